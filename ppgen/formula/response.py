"""The response of a formula at a table: whether the family takes it, and what its codes mean."""

from __future__ import annotations

import logging

import torch

from ppgen.data.cells.levels import Levels
from ppgen.errors import PpgenError, nearest
from ppgen.formula.blocks import Formula
from ppgen.formula.design import Response
from ppgen.formula.families import FAMILIES
from ppgen.formula.table import CodedTable

_STATUS = {
    "none": 0.0, "event": 0.0, "right": 1.0, "left": -1.0, "0": 0.0, "1": 1.0, "-1": -1.0, "False": 0.0, "True": 1.0,
}  # fmt: skip
_SEEN = {"event", "events", "death", "dead", "died", "failed", "failure", "observed", "uncensored", "status", "relapse"}
_EXPECTED = {
    "real": "finite numbers", "positive": "numbers above 0", "unit": "numbers between 0 and 1, without these",
    "counts": "counts: 0, 1, 2, ...", "trials": "counts, no more than the trials",
}  # fmt: skip

log = logging.getLogger("ppgen")


def response_of(formula: Formula, family: str, table: CodedTable) -> Response:
    """What a formula observes; refused is a response that the family does not take."""
    kind = FAMILIES[family].kind
    _require_form(formula, family)
    categories = 0
    if kind in ("categories", "binary"):
        categories = _categories(formula, family, table, kind)
    else:
        _require_values(formula, family, table, kind)
    status_of = None if formula.status is None else _status(formula.status, table)
    return {
        "y": formula.y, "trials": formula.trials, "status": formula.status, "status_of": status_of,
        "categories": categories,
    }  # fmt: skip


def _require_form(formula: Formula, family: str) -> None:
    if (formula.trials is not None) != (family == "binomial"):
        raise PpgenError(
            f"the family is {family} and the response {formula.y!r} {'has' if formula.trials else 'has no'} trials; "
            "p(successes, trials) is the response of the family binomial, and of no other"
        )
    if formula.status is not None and not FAMILIES[family].censored:
        able = ", ".join(k for k, f in FAMILIES.items() if f.censored)
        raise PpgenError(f"the family {family} has no censored(...) responses; those that have are {able}")
    if formula.level is not None and family != "bernoulli":
        raise PpgenError(f"{formula.y}[...] names a success, which the family bernoulli has, and {family} does not")
    if family == "categorical" and formula.blocks:
        raise PpgenError(
            "the family categorical has no group effects here; write a program of your own with them (ppgen new), or "
            "leave them out"
        )


def _categories(formula: Formula, family: str, table: CodedTable, kind: str) -> int:
    """How many categories there are; 0 of a binary response."""
    y, values = formula.y, table.values(formula.y)
    if len(values) < 2 or kind == "binary" and len(values) > 2:
        raise PpgenError(
            f"the response {y!r} has {len(values)} values ({', '.join(values[:5])}), and {family} takes "
            f"{'two' if kind == 'binary' else 'at least two'}; choose another family (--family)"
        )
    if formula.level is not None:
        if formula.level not in values:
            raise PpgenError(
                f"the response {y!r} has no {formula.level!r}{nearest(formula.level, values)}; it has {values}"
            )
        values = [*(v for v in values if v != formula.level), formula.level]
    if y in table.raw.words:
        table.levels[y] = Levels([y], values)
        if family == "ordered":
            _warn_of_order(y, values, table.raw.types[y].kind)
        if kind == "binary":
            log.warning(
                "%s: %r is 1, %r is 0 (write %s[%r] ~ ... for the other)", y, values[1], values[0], y, values[0]
            )
    elif values not in ([str(i) for i in range(len(values))], ["False", "True"]):
        raise PpgenError(
            f"the response {y!r} is the numbers {', '.join(values[:5])}; number its categories 0, 1, ..., or write "
            "them as words (a pandas categorical in their order)"
        )
    return 0 if kind == "binary" else len(values)


def _warn_of_order(y: str, values: list[str], kind: str) -> None:
    """Says that words are in alphabetical order, where nothing tells another."""
    if kind != "ordered" and len(values) > 2 and values == sorted(values) and not all(v[0].isdigit() for v in values):
        log.warning(
            "%s: its words are taken in alphabetical order, %s; if their order is another, say it with "
            "types=%s=ordered:a<b<c (--types), or make the column an ordered categorical",
            y, " < ".join(values[:5]) + (" < ..." if len(values) > 5 else ""), y,
        )  # fmt: skip


def _require_values(formula: Formula, family: str, table: CodedTable, kind: str) -> None:
    if formula.y in table.raw.words:
        word = table.raw.words[formula.y][0]
        raise PpgenError(
            f"the response {formula.y!r} is words ({word!r}, ...), and {family} takes {_EXPECTED[kind]}; choose "
            "another family (--family)"
        )
    y = table.numbers[formula.y]
    most = table.numbers[formula.trials] if isinstance(formula.trials, str) else formula.trials
    if kind == "trials" and bool((parts := torch.as_tensor(most) % 1 > 0).any()):
        where = "" if parts.dim() == 0 else f" in row {int(parts.nonzero()[0])} (counting from 0)"
        raise PpgenError(
            f"the trials {formula.trials!r} of {formula.y!r} are no whole number{where}; for shares of what was not "
            "counted take the family beta, else mend the table"
        )
    fraction = (y != y.round()) & ~y.isnan()  # a missing cell is no number, and not looked at
    wrong = {
        "real": torch.isinf(y),
        "positive": y <= 0,
        "unit": (y <= 0) | (y >= 1),
        "counts": (y < 0) | fraction,
        "trials": (y < 0) | fraction | (y > (torch.inf if most is None else most)),
    }[kind]
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise PpgenError(
            f"the response {formula.y!r} is {y[row].item():g} in row {row} (counting from 0), and {family} takes "
            f"{_EXPECTED[kind]}; choose another family (--family), or mend the table"
        )


def _status(column: str, table: CodedTable) -> list[float] | None:
    """What the codes of a status of words mean."""
    values = table.values(column)
    unknown = [v for v in values if v not in _STATUS]
    if unknown:
        raise PpgenError(
            f"the status {column!r} has {unknown[0]!r}; expected none, right or left, or 0 (seen), 1 (right censored) "
            "and -1 (left censored)"
        )
    if column not in table.raw.words:
        right = int((table.numbers[column] == 1).sum())
        if right and column.lower() in _SEEN:
            log.warning(
                "%s: 1 is right censored, which %d of %d rows are; where 1 says that the event was seen, as one of "
                "this name often does, compute a column 1 - %s, and name that",
                column, right, len(table.numbers[column]), column,
            )  # fmt: skip
        return None
    table.levels[column] = Levels([column], values)
    return [_STATUS[v] for v in values]
