"""What a column of a table is: a record that a run keeps, and that `--types` can say otherwise."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ppgen.errors import PpgenError, nearest

KINDS = {
    "real": "numbers",
    "positive": "numbers above 0",
    "bounded": "numbers from 0 to 1",
    "count": "whole numbers from 0",
    "binary": "two values",
    "categorical": "words, or numbers of kinds",
    "ordered": "words in an order",
    "date": "days or times of day, as numbers of `unit`",
    "duration": "lengths of time, in seconds",
    "text": "words of single rows, which no program takes unless it names the column",
    "unclear": "nothing that can be read; `why` says so",
}
NUMERIC = ("real", "positive", "bounded", "count")
MARKS = {"comma": ",", "point": "."}
ASKED = "asked for"
_EXAMPLE = "write for example income=positive,grade=ordered:a<b<c,when=date:%d/%m/%Y,price=real:comma"


@dataclass(frozen=True)
class ColumnType:
    """What a column is.

    Attributes:
        name: of the column in its source.
        kind: one of `KINDS`.
        levels: the words behind codes 0, 1, ...; () where the tensor is the numbers themselves.
        unit: what the numbers count: "days since 2024-01-02", "seconds", "%", "$".
        form: how text was read: the decimal mark ("comma", "point"), or the format of a date.
        rows, missing: how many cells there are, and how many of them are empty.
        low, high: the range of the numbers.
        why: the rule that it follows from.
        notes: sentences about what may be wrong with it.
    """

    name: str
    kind: str
    levels: tuple[str, ...] = ()
    unit: str = ""
    form: str = ""
    rows: int = 0
    missing: int = 0
    low: float | None = None
    high: float | None = None
    why: str = ""
    notes: tuple[str, ...] = ()

    @property
    def missing_share(self) -> float:
        return self.missing / self.rows if self.rows else 0.0

    def kept(self) -> dict[str, Any]:
        """What a run keeps, for later files: no figures of these rows."""
        whole = {"kind": self.kind, "levels": list(self.levels), "unit": self.unit, "form": self.form}
        return {"name": self.name} | {k: v for k, v in whole.items() if v}

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return asdict(self) | {"levels": list(self.levels), "notes": list(self.notes)}


def word_of(number: float) -> str:
    """The word that a number is, where numbers are words.

    >>> word_of(7.0), word_of(2.5), word_of(1234567.0), word_of(True)
    ('7', '2.5', '1234567', 'True')
    """
    if isinstance(number, bool | np.bool_):
        return str(bool(number))
    return str(int(number)) if float(number).is_integer() else str(number)


def type_of_record(record: Mapping[str, Any]) -> ColumnType:
    """What `ColumnType.kept` gave."""
    return ColumnType(**{**record, "levels": tuple(record.get("levels", ()))})


def parse_types(text: str) -> dict[str, ColumnType]:
    """Read ``"column=kind,column=kind:detail"``, the form that a command line takes.

    The detail of a categorical or an ordered column is its words in order (``a<b<c``), of a date its format
    (``%d/%m/%Y``), of numbers their decimal mark (``comma`` or ``point``). Names and words with a comma, =, : or <
    stand in double quotes.

    >>> parse_types("income=positive, grade=ordered:low<high")["grade"].levels
    ('low', 'high')
    >>> parse_types('"age, in years"=ordered:"<18"<18+')["age, in years"].levels
    ('<18', '18+')
    """
    asked: dict[str, ColumnType] = {}
    for item in _items(text):
        name, equals, rest = _cut_last(item, "=") if ":" not in _bare(item) else _split_at_equals(item)
        kind, _, detail = rest.strip().partition(":")
        name, kind = _unquoted(name), kind.strip()
        if not (equals and name and kind):
            raise PpgenError(f"types={text!r}: {item.strip()!r} is not of the form column=kind; {_EXAMPLE}")
        if kind not in KINDS or kind == "unclear":
            known = [k for k in KINDS if k != "unclear"]
            raise PpgenError(
                f"types={text!r}: there is no kind {kind!r}{nearest(kind, known)}; the kinds are {', '.join(known)}"
            )
        if name in asked:
            raise PpgenError(f"types={text!r} gives {name!r} twice; leave one of them")
        asked[name] = _asked(name, kind, detail.strip(), text)
    return asked


def _bare(text: str) -> str:
    """The text with blanks for what stands in double quotes: separators in there are none."""
    return re.sub(r'"[^"]*"', lambda m: " " * len(m[0]), text)


def _unquoted(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text


def _cut(text: str, mark: str) -> list[str]:
    """The parts between marks that stand in no quotes."""
    ends = [-1, *(i for i, c in enumerate(_bare(text)) if c == mark), len(text)]
    return [text[i + 1 : j] for i, j in zip(ends, ends[1:], strict=False)]


def _cut_last(text: str, mark: str) -> tuple[str, str, str]:
    """What stands before the last mark outside of quotes, the mark, and what follows."""
    at = _bare(text).rfind(mark)
    return ("", "", text) if at < 0 else (text[:at], mark, text[at + 1 :])


def _items(text: str) -> list[str]:
    """The parts between commas; one without an equals sign belongs to the format before it ("%b %d, %Y")."""
    items: list[str] = []
    for part in _cut(text, ","):
        if items and "=" not in part and "date:" in items[-1]:
            items[-1] += f",{part}"
        else:
            items.append(part)
    return items


def _split_at_equals(item: str) -> tuple[str, str, str]:
    colon = _bare(item).find(":")
    name, equals, kind = _cut_last(item[:colon], "=")
    return name, equals, f"{kind}{item[colon:]}"


def _asked(name: str, kind: str, detail: str, text: str) -> ColumnType:
    made = ColumnType(name, kind, why=ASKED)
    if not detail:
        return made
    if kind == "date":
        return replace(made, form=detail)
    if kind in ("categorical", "ordered", "binary"):
        levels = tuple(_unquoted(word) for word in _cut(detail, "<"))
        if len(set(levels)) < max(2, len(levels)) or not all(levels):
            raise PpgenError(
                f"types={text!r}: {detail!r} is no list of words, each once; write for example a<b<c, and words with "
                'a < or a comma in double quotes ("<18"<18+)'
            )
        return replace(made, levels=levels)
    if kind in NUMERIC and detail in MARKS:
        return replace(made, form=detail)
    raise PpgenError(f"types={text!r}: {kind} takes no {detail!r}; {_EXAMPLE}")
