"""Observed columns that new rows give beside others that are left out: what their predictions are conditioned on.

    y_2 given, y_1 left out:   ỹ_1 ~ p(y_1 | y_2, z, new columns),   z ~ p(z | x) of the fitted rows

Holding a site at its column is this conditional where p(y_2 | z) does not depend on what else is drawn at the new
rows: there its density is one and the same number in every draw, and would weight all of them alike.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any

import torch
from pyro.ops.provenance import get_provenance, track_provenance
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import constraints

from ppgen.data import tensors
from ppgen.gaps import has_nan
from ppgen.sites import given_value, innermost, is_deterministic, observed_columns, sample_sites

log = logging.getLogger("ppgen")

RUNS = 8  # draws that are compared: a binary draw is the same in all of them with a probability below 1%
STEPS = 3  # by which counts without an upper end are spread


def conditioned(
    trace: Callable[[Mapping[str, Tensor], Collection[str]], Any],
    observe: Callable[[Mapping[str, Tensor]], Mapping[str, Mapping[str, Any]]],
    rows: Mapping[str, Tensor],
    left_out: Collection[str],
    free: bool,
    latents: Mapping[str, Tensor],
    unread: Mapping[str, Collection[str]],
) -> frozenset[str]:
    """The observed sites that stay at the columns of the new rows.

    Args:
        trace: of the model at the new rows with these latents and observed sites held, everything else drawn.
        observe: the sites of the model at given rows, nothing that is observed drawn.
        left_out: the columns that stand for their shape only.
        free: whether the model draws sites that the fit observed, as their columns are None here.
        latents: one draw of those that are not the model's.
        unread: by column, the latents among them that were drawn without regard to it.

    Returns:
        None where all observed columns are given, whose predictions are of them all, or all are left out. A warning
        names a column that cannot be held.
    """
    columns = columns_of(observe, rows)
    given = {name: own for name, own in columns.items() if not own & set(left_out)}
    if not given or not (free or len(given) < len(columns)):
        return frozenset()
    held = frozenset(n for n, own in given.items() if not any(has_nan(rows[c]) for c in own))

    free_of = {n: set().union(*(unread.get(c, ()) for c in own)) for n, own in given.items()}
    while varying := _varying(trace, held, latents, free_of):
        held -= varying  # what is let go is drawn, and others may depend on it
    if lost := sorted(set().union(*(given[name] for name in given if name not in held))):
        log.warning(
            "predictions are not conditioned on the given column%s %s, whose distribution depends on what is drawn at "
            "these rows, or which has missing cells; to predict given such a column, let the program take it before "
            "what it predicts, or fit these rows with the rest, what is to be predicted as missing cells",
            "s" * (len(lost) > 1), ", ".join(map(repr, lost)),
        )  # fmt: skip
    return held


def columns_of(
    observe: Callable[[Mapping[str, Tensor]], Mapping[str, Mapping[str, Any]]], rows: Mapping[str, Tensor]
) -> dict[str, set[str]]:
    """The columns that each observed site reads: one as it stands, or those that its value is a function of, as
    `obs=a.log()` is."""

    def observed(columns: Mapping[str, Tensor]) -> dict[str, Mapping[str, Any]]:
        with torch.random.fork_rng():  # what is drawn is the same each time
            return {n: s for n, s in observe(columns).items() if "fixed" in s and s["is_observed"] and not s["fixed"]}

    sites = observed(rows)
    found = {n: {c} for n, c in (_read_row_by_row(sites, rows) | observed_columns(sites, rows)).items()}
    if found.keys() == sites.keys():
        return found
    try:
        followed = observed({**rows, **{n: track_provenance(v, frozenset({n})) for n, v in tensors(rows).items()}})
        read = {n: set(get_provenance(given_value(s))) for n, s in followed.items()}
    except Exception:  # an operation that does not take a tensor that is followed
        read = _changing(observed, sites, rows)
    return {n: own for n, own in read.items() if own and n in sites} | found


def _changing(
    observed: Callable[[Mapping[str, Tensor]], Mapping[str, Mapping[str, Any]]],
    sites: Mapping[str, Mapping[str, Any]],
    rows: Mapping[str, Tensor],
) -> dict[str, set[str]]:
    """The columns that each observed value changes with."""
    found: dict[str, set[str]] = {n: set() for n in sites}
    for name, column in tensors(rows).items():
        with suppress(Exception):  # other values may be none that the model takes
            for values in other_values(column):
                others = observed({**rows, name: values})
                for site in sites:
                    if site not in others or not torch.equal(given_value(others[site]), given_value(sites[site])):
                        found[site].add(name)
    return found


def other_values(column: Tensor) -> list[Tensor]:
    """Other values, at random, of which the random state knows nothing: rows in another order, and a little more; in
    the range where they are whole numbers, and at its ends."""
    if column.dtype == torch.bool:
        return [~column]
    with torch.random.fork_rng():
        if column.is_floating_point():
            rows = column[torch.randperm(len(column))] if column.dim() else column
            return [rows + torch.rand_like(column)]
        low, high = int(column.min()), int(column.max())
        if high == low:
            return [column + 1]
        return [torch.randint_like(column, low, high + 1), *(torch.full_like(column, v) for v in (low, high))]


def _read_row_by_row(sites: Mapping[str, Mapping[str, Any]], rows: Mapping[str, Tensor]) -> dict[str, str]:
    """The column of each site that observes one row of it, as in a loop over the rows.

    By where it lies in memory: `ppgen.sites.seen_in` takes equal values for it too, which other columns may have.
    """
    columns = {n: v for n, v in rows.items() if isinstance(v, Tensor) and v.dim()}
    seen = {n: given_value(s) for n, s in sites.items() if s["is_observed"] and not is_deterministic(s)}
    pairs = ((n, c) for n, v in seen.items() if isinstance(v, Tensor) for c in columns if _is_row_of(v, columns[c]))
    return dict(pairs)


def _is_row_of(value: Tensor, column: Tensor) -> bool:
    """Whether a value is in the memory of one of a column's rows."""
    if value.dtype != column.dtype or value.shape != column.shape[1:]:
        return False
    offset, step = value.data_ptr() - column.data_ptr(), column.stride(0) * column.element_size()
    return 0 <= offset < step * len(column) and offset % step == 0


class _Spread(Messenger):
    """Draws discrete values evenly from those that are possible, so that a rare one is seen in few draws."""

    def __init__(self, held: Collection[str]):
        super().__init__()
        self.held = held

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        fn = msg["fn"]
        if msg["is_observed"] or msg["name"] in self.held or not _is_discrete(fn):
            return
        drawn = fn() if msg["value"] is None else msg["value"]
        spread = _spread(fn, drawn)
        possible = fn.log_prob(spread).isfinite()
        msg["value"] = torch.where(possible.reshape(possible.shape + (1,) * fn.event_dim), spread, drawn)
        msg["done"] = True


def _is_discrete(fn: Any) -> bool:
    try:
        return bool(fn.support.is_discrete)
    except (AttributeError, NotImplementedError):  # rows of a plate that are picked, or a distribution without one
        return False


def _spread(fn: Any, drawn: Tensor) -> Tensor:
    """As `drawn`, of any value of the support: of counts without an upper end, a few more than were drawn."""
    own = innermost(fn)
    if getattr(own, "has_enumerate_support", False):
        try:
            values = own.enumerate_support(expand=False).reshape(-1, *own.event_shape)
        except NotImplementedError:  # of batches whose supports differ: binomials of several totals
            return torch.floor(torch.rand_like(drawn) * (own.total_count + 1)) if hasattr(own, "total_count") else drawn
        batch = drawn.shape[: drawn.dim() - len(own.event_shape)]
        return values[torch.randint(len(values), batch, device=drawn.device)]
    if isinstance(_entry_support(fn), type(constraints.nonnegative_integer)):
        return drawn + torch.randint_like(drawn, STEPS)
    return drawn


def _entry_support(fn: Any) -> Any:
    """The support of one entry."""
    support = fn.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support


def _varying(
    trace: Callable[[Mapping[str, Tensor], Collection[str]], Any],
    names: Collection[str],
    latents: Mapping[str, Tensor],
    free: Mapping[str, Collection[str]],
) -> set[str]:
    """The sites whose density at their columns differs between draws of everything else.

    Args:
        free: by site, the latents that are drawn too.
    """
    found: set[str] = set()
    for drawn in {frozenset(free[n]) for n in names}:
        own = [n for n in names if free[n] == drawn]
        known = {n: v for n, v in latents.items() if n not in drawn}
        with torch.random.fork_rng(), _Spread(known):
            first, *others = (_densities(trace(known, names), own) for _ in range(RUNS))
        found |= {n for n in own if any(not torch.equal(first[n], other[n]) for other in others)}
    return found


def _densities(trace: Any, names: Collection[str]) -> dict[str, Tensor]:
    found = sample_sites(trace)
    return {name: found[name]["fn"].log_prob(found[name]["value"]) for name in names}
