"""Groups and categories by their words: which code is which word or number, in every table alike.

A program says in `codes` what the codes of its arguments stand for. An argument is a column of words, a column of
numbers that are names (`site` 3, 17, 99), or several columns joined (`school:class`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppgen.data.cells.types import ColumnType
from ppgen.data.table import Table
from ppgen.errors import PpgenError, first_of, nearest

__all__ = ["Levels", "encoded"]


class Levels(NamedTuple):
    """What the codes of an argument stand for.

    `columns` are those of the table, of which several are joined by ":"; `values` are words, and numbers as words, in
    the order of the codes; `new` is whether a later table may have others, as new groups, where that is asked for.
    """

    columns: Sequence[str]
    values: Sequence[str]
    new: bool = False


def encoded(data: Table, levels: Mapping[str, Levels], *, new: bool = False) -> Table:
    """The table with the codes that `levels` say; what lacks the columns is left as it is.

    Args:
        new: whether groups that are not among them take the next codes, in sorted order.

    Raises:
        PpgenError: a word or number that has no code.

    >>> sites = Table({"site": torch.tensor([17, 3])})
    >>> encoded(sites, {"site_level": Levels(["site"], ["3", "17"])})["site_level"]
    tensor([1, 0])
    """
    made, types = dict(data), dict(data.types)
    for name, own in levels.items():
        if all(column in data and (column in data.words or column != name) for column in own.columns):
            labels = _joined([_labels(data[column], data.words.get(column)) for column in own.columns])
            made[name], levels_of = _codes(labels, own, new)
            known = types.get(name, ColumnType(":".join(own.columns), "categorical"))
            types[name] = replace(known, levels=levels_of)
    return Table(made, types)


def text_of(value: Any) -> str:
    """A number as the word that names its group: 3 and 3.0 are "3", and 0.1 in either precision is "0.1".

    >>> text_of(3.0), text_of(0.1), text_of(np.float32(0.1)), text_of(True), text_of("a")
    ('3', '0.1', '0.1', 'True', 'a')
    """
    value = value.item() if isinstance(value, np.generic) else value
    if not isinstance(value, float) or not math.isfinite(value):
        return str(value)
    if value.is_integer():
        return str(int(value))
    with np.errstate(over="ignore", under="ignore"):
        single = np.float32(value)
    return str(single) if float(single) == value else str(value)


def _labels(column: Tensor, words: Sequence[str] | None) -> np.ndarray:
    """The words of a column, "" where a cell is missing."""
    values, place = np.unique(column.numpy(), return_inverse=True)
    shown = ["" if v != v else text_of(v) if words is None else words[int(v)] for v in values]
    return np.array(shown, dtype=object)[place]


def _joined(labels: list[np.ndarray]) -> np.ndarray:
    joined = labels[0]
    for other in labels[1:]:
        joined = np.where((joined == "") | (other == ""), "", joined + ":" + other)
    return joined


def not_fitted(name: str, unseen: Sequence[str], known: Iterable[str], groups: bool = True) -> PpgenError:
    """Of a column's words that the fit did not see.

    Args:
        groups: whether new ones may be drawn.
    """
    draw = ", or, to predict, draw new groups from their distribution with new_groups='draw' (--new-groups draw)"
    return PpgenError(
        f"the column {name!r} has {first_of([*map(repr, unseen)], 5)}, which the fit did not see"
        f"{nearest(unseen[0], known)}; leave these rows out{draw if groups else ''}"
    )


def _codes(labels: np.ndarray, own: Levels, new: bool) -> tuple[Tensor, tuple[str, ...]]:
    words, place = np.unique(labels.astype(str), return_inverse=True)
    known = {word: code for code, word in enumerate(own.values)}
    unseen = [str(w) for w in words if w and w not in known]
    if unseen and not (new and own.new):
        raise not_fitted(":".join(own.columns), unseen, known, own.new)
    known |= {word: len(known) + i for i, word in enumerate(unseen)}
    codes = torch.tensor([known.get(str(w), torch.nan) for w in words])[torch.as_tensor(place)]  # nan: a missing cell
    return codes, tuple(known)
