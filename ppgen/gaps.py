"""Missing cells of observed columns: nan in the column, which a program leaves out of its likelihood or draws.

`program.missing` says how: "mask" leaves the cells out (a row, where a value is a vector whose parts are neither
independent nor normal); "impute" makes each a latent `NAME_unobserved`, drawn from the site's own distribution (of a
vector, given what is seen of it) with the other latents, as Pyro's `obs_mask` does; "drop" leaves out their rows, and
"error" refuses them. Other columns have no distribution, but in a program that says in
`drawn_columns` that it draws their cells itself under "impute", as a regression by a formula does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import transform_to

from ppgen.data import Table, row_columns, take, tensors
from ppgen.errors import PpgenError, nearest
from ppgen.handlers import without_validation
from ppgen.parted import Parted, parted
from ppgen.sites import given_value, innermost

log = logging.getLogger("ppgen")

HOW = ("error", "drop", "mask", "impute")
COVARIATE = "of_covariate"  # in a factor's infer: a term of columns that are given, no likelihood of what is observed


def require_how(how: str) -> str:
    """The way with missing cells, as it was named; others are refused."""
    if how not in HOW:
        raise PpgenError(f"missing is {how!r}{nearest(how, HOW)}; expected one of {', '.join(HOW)}")
    return how


def dropped(table: Table, names: Collection[str]) -> Table:
    """Without the rows that have a missing cell in one of these columns; the log says how many."""
    rows = row_columns(table)
    gone = torch.zeros(len(table[rows[0]]) if rows else 0, dtype=torch.bool)
    for name in rows:
        if name in names and has_nan(table[name]):
            gone |= table[name].isnan().reshape(len(gone), -1).any(1)
    if not bool(gone.any()):
        return table
    if bool(gone.all()):
        raise PpgenError(f"every one of {len(gone)} rows has a missing cell, and none is left")
    log.info("%d of %d rows have a missing cell and are left out (missing=drop)", int(gone.sum()), len(gone))
    left = take(table, (~gone).nonzero()[:, 0], rows)
    codes = {n: v.long() for n, v in left.items() if n in table.words and not has_nan(v)}
    return Table({**left, **codes}, left.types)


def note_dropped(program: Any, before: Table, after: Table) -> Table:
    """Keeps in `program.dropped` how many rows were left out, and how many are left; gives the latter table."""
    if after is not before:
        left = len(after[row_columns(after)[0]])
        program.dropped = (len(before[row_columns(before)[0]]) - left, left)
    return after


def counts(program: Any, rows: int) -> dict[str, Any]:
    """What was done with missing cells, and to how many of each column, or to how many rows; empty where none was
    missing.

    Args:
        rows: how many there are now.
    """
    dropped_rows, left = program.dropped
    if program.missing == "drop" and dropped_rows and left == rows:
        return {"how": "drop", "rows": dropped_rows, "of": dropped_rows + left}
    return {"how": program.missing, "cells": dict(program.gaps)} if program.gaps else {}


def in_words(program: Any, rows: int) -> str:
    """The same as a sentence; "" where no cell was missing."""
    found = counts(program, rows)
    if not found:
        return ""
    if found["how"] == "drop":
        return f"{found['rows']} of {found['of']} rows had a missing cell and were left out (missing=drop)."
    cells = ", ".join(f"{n} of {name}" for name, n in found["cells"].items())
    done = "left out of the likelihood" if found["how"] == "mask" else "drawn with the latents"
    return f"Missing cells: {cells}; they were {done} (missing={found['how']})."


def find_gaps(program: Any, data: Mapping[str, Any]) -> None:
    """Sets `program.gaps`: how many cells of each observed site are missing, where they are masked or imputed, and of
    each column whose cells the program draws itself.

    The log says how many. Other missing cells are for the check of the data to refuse.
    """
    program.gaps = {}
    if program.missing not in ("mask", "impute") or not any(has_nan(v) for v in tensors(data).values()):
        return
    looking = _Looking()
    try:
        with program.collecting(), without_validation(), looking:
            program.call("model", data)
    except Exception as e:  # of a gap in another column, which the check of the data names
        log.debug("%s cannot be run on these columns: %s", program.name, e)
    program.gaps = looking.found
    if looking.whole:
        name, law = next(iter(looking.whole.items()))
        if program.missing == "mask":
            log.warning(
                "values of %r have some missing and some seen entries, and those that are seen cannot be told from the "
                "rest of a %s: these values are left out as a whole (missing=mask)", name, law,
            )  # fmt: skip
        else:
            raise PpgenError(
                f"values of {name!r} have some missing and some seen entries, and of a {law} those that are missing "
                "cannot be drawn given the others (of independent entries, to_event, and of normals they can); leave "
                "these values out (--missing mask), or their rows (--missing drop)"
            )
    if program.missing == "impute":
        drawn = {n: data[n] for n in program.drawn_columns if n in data and has_nan(data[n])}
        program.gaps |= {name: int(value.isnan().sum()) for name, value in drawn.items()}
    for name, n in program.gaps.items():
        done = "left out of the likelihood" if program.missing == "mask" else f"drawn, as {name}_unobserved"
        log.info("%d cells of %r are missing and %s (missing=%s)", n, name, done, program.missing)


def gap_rows(program: Any, data: Mapping[str, Any]) -> dict[str, tuple[str, np.ndarray]]:
    """Of the columns whose cells a program draws itself, by the site of the cells: their dimension, and their rows."""
    if program.missing != "impute":
        return {}
    gone = {n: data[n].isnan() for n in program.drawn_columns if n in data}
    return {f"{n}_unobserved": (f"{n}_row", where.nonzero()[:, 0].numpy()) for n, where in gone.items()}


def has_nan(value: Tensor) -> bool:
    return value.is_floating_point() and bool(value.isnan().any())


class _Looking(Messenger):
    """Which observed sites have missing cells, and the distributions of those that have parts of a vector missing which
    cannot be told from the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, int] = {}
        self.whole: dict[str, str] = {}

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        value = msg["value"]
        if msg["is_observed"] and isinstance(value, Tensor) and has_nan(value):
            self.found[msg["name"]] = int(value.isnan().sum())
            fn = msg["fn"]
            some = bool((~_seen(fn, value) & ~_none_seen(fn, value)).any())
            if some and parted(fn, value, value) is None:
                self.whole[msg["name"]] = type(innermost(fn)).__name__


@contextmanager
def filling_gaps(program: Any) -> Iterator[None]:
    """Within it, the sites of `program.gaps` are run as `program.missing` says."""
    if not program.gaps:
        yield
        return
    handler: Callable = _Mask if program.missing == "mask" else _Impute
    with handler(program.gaps):
        yield


@contextmanager
def without_gaps(program: Any) -> Iterator[None]:
    """Within it, observed sites are what they are without missing cells: to draw them anew."""
    gaps, program.gaps = program.gaps, {}
    try:
        yield
    finally:
        program.gaps = gaps


class _Mask(Messenger):
    """Missing cells count for nothing: a value of the support stands in their place, masked."""

    def __init__(self, sites: Mapping[str, int]):
        super().__init__()
        self.sites = sites

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        value = msg["value"]
        if msg["name"] not in self.sites or not msg["is_observed"] or not value.is_floating_point():
            return
        fn, filled = msg["fn"], _filled(msg["fn"], value)
        seen = _seen(fn, value)
        if (parts := parted(fn, value, filled) if fn.event_dim else None) is not None:
            msg["fn"], filled, seen = parts.seen, parts.filled, ~_none_seen(fn, value)
        msg["given"], msg["value"] = value, filled  # the program gets what it gave (`ParamSites`)
        msg["filled"] = filled
        msg["mask"] = seen if msg["mask"] is None else seen & msg["mask"]


def with_gaps(site: dict[str, Any]) -> dict[str, Any]:
    """A site of a run with the values that it was given, nan where one was missing."""
    given = given_value(site)
    return {**site, "value": given} if isinstance(given, Tensor) and given.is_floating_point() else site


class _Impute(Messenger):
    """Missing cells are latents of their own, drawn from the site's distribution."""

    def __init__(self, sites: Mapping[str, int]):
        super().__init__()
        self.sites = sites
        self.given: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        name, fn, value = msg["name"], msg["fn"], msg["value"]
        if msg["is_observed"] and (given := self.given.pop(name, None)) is not None:
            msg["given"] = given
        if name not in self.sites or not msg["is_observed"] or not value.is_floating_point():
            return
        rows, filled = _seen(fn, value), _filled(fn, value)
        parts = parted(fn, value, filled) if fn.event_dim else None
        if parts is None:
            parts = Parted(fn, fn, filled, rows.reshape(rows.shape + (1,) * fn.event_dim))
        self.given[f"{name}_observed"] = value  # nan in the gaps, whose fillings are no data
        with poutine.mask(mask=~_none_seen(fn, value)):
            observed = pyro.sample(f"{name}_observed", parts.seen, obs=parts.filled)
        with poutine.mask(mask=~rows):
            unobserved = pyro.sample(f"{name}_unobserved", parts.missing)
        whole = torch.where(parts.entries, observed, unobserved)
        msg["fn"] = pyro.distributions.Delta(whole, event_dim=fn.event_dim).mask(False)
        msg["value"], msg["infer"] = whole, {**msg["infer"], "_deterministic": True}


def _seen(fn: Any, value: Tensor) -> Tensor:
    """Of each value of a site, whether no part of it is missing."""
    missing = value.isnan()
    return ~(missing.flatten(missing.dim() - fn.event_dim).any(-1) if fn.event_dim else missing)


def _none_seen(fn: Any, value: Tensor) -> Tensor:
    """Of each value of a site, whether every part of it is missing."""
    missing = value.isnan()
    return missing.flatten(missing.dim() - fn.event_dim).all(-1) if fn.event_dim else missing


def _filled(fn: Any, value: Tensor) -> Tensor:
    """The values, with one of the support where one is missing."""
    return torch.where(value.isnan(), _possible(fn, value), value)


def _possible(fn: Any, value: Tensor) -> Tensor:
    zeros = torch.zeros_like(value)
    try:
        support = fn.support
        if support.is_discrete:
            return zeros + getattr(support, "lower_bound", 0)
        return transform_to(support)(zeros) + zeros
    except (NotImplementedError, AttributeError):  # a distribution that does not say
        return zeros
