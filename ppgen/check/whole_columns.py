"""Observed columns as a whole: a fit by minibatches runs its checks on the first, and later rows may hold anything."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

from ppgen.data import blocks
from ppgen.sites import observed_columns, sample_sites, support_of


def rows_outside(model: poutine.Trace, data: Mapping[str, Any], batch: Mapping[str, Any]) -> list[tuple[str, int]]:
    """The observed sites whose support a row may leave, and the first such row of each, where a column tells.

    A site whose values are, in the batch, those of a column is taken to observe it, and its support to be that of all
    rows if no bound of it is a row's own: a run on the row that is named says whether this holds.

    Args:
        model: a trace of it on the batch, without a mask where a site is to be looked at.
        data: all rows.
    """
    sites = {n: s for n, s in sample_sites(model).items() if s["is_observed"] and not isinstance(s["mask"], Tensor)}
    columns = {n: n for n, s in sites.items() if _is_reshaped(s["value"], batch.get(n))}
    found = []
    for name, column in (columns | observed_columns(sites, batch)).items():
        support = _one_for_all_rows(sites[name]["fn"])
        row = None if support is None else _first_outside(support, data[column], sites[name]["value"].dtype)
        found += [] if row is None else [(name, row)]
    return found


def _first_outside(support: Any, column: Tensor, dtype: torch.dtype) -> int | None:
    """The first row with a value outside; nan is said elsewhere."""
    before = 0
    for rows in blocks(column) if column.dim() else ():
        outside = ~support.check(rows.to(dtype))
        if not support.event_dim:
            outside &= ~rows.isnan()
        wrong = outside.reshape(len(rows), -1).any(1).nonzero()
        if len(wrong):
            return before + int(wrong[0])
        before += len(rows)
    return None


def _is_reshaped(value: Any, column: Any) -> bool:
    """Whether a value is a column in another shape, as images that are flat."""
    if not isinstance(value, Tensor) or not isinstance(column, Tensor) or value.numel() != column.numel():
        return False
    return torch.equal(column.reshape(value.shape).to(value.dtype), value)


def _one_for_all_rows(fn: Any) -> Any:
    """The support of a distribution, of one value of it, if it has no bounds of the rows' own; else None."""
    support = support_of(fn)
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support is None:
        return None
    support = copy.copy(support)
    for name, bound in list(vars(support).items()):
        if isinstance(bound, Tensor) and bound.numel():
            one = bound.detach().flatten()[0]
            if bool((bound != one).any()):
                return None
            setattr(support, name, one)
    return support
