"""Observed columns that new rows give beside others that are left out: what their predictions are conditioned on.

    y_2 given, y_1 left out:   ỹ_1 ~ p(y_1 | y_2, z, new columns),   z ~ p(z | x) of the fitted rows

Holding a site at its column is this conditional where p(y_2 | z) does not depend on what else is drawn at the new
rows: there its density is one and the same number in every draw, and would weight all of them alike.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from ppgen.sites import observed_columns, sample_sites

log = logging.getLogger("ppgen")

RUNS = 8  # draws that are compared: a binary draw is the same in all of them with a probability below 1%


def conditioned(
    run: Callable[[Collection[str]], Any],
    sites: Mapping[str, Mapping[str, Any]],
    rows: Mapping[str, Tensor],
    left_out: Collection[str],
    free: bool,
) -> frozenset[str]:
    """The observed sites that stay at the columns of the new rows.

    Args:
        run: a trace of the model at the new rows with these sites held, everything else drawn.
        sites: of the model at the new rows, by name.
        left_out: the columns that stand for their shape only.
        free: whether the model draws sites that the fit observed, as their columns are None here.

    Returns:
        None where all observed columns are given, whose predictions are of them all, or all are left out. A warning
        names a column that cannot be held.
    """
    columns = observed_columns(sites, rows)
    given = {name: column for name, column in columns.items() if column not in left_out}
    if not given or not (free or set(columns.values()) & set(left_out)):
        return frozenset()
    whole = {n: c for n, c in given.items() if not rows[c].is_floating_point() or not bool(rows[c].isnan().any())}
    varying = _varying(run, whole)
    held = frozenset(whole) - varying
    if lost := sorted({given[name] for name in given if name not in held}):
        log.warning(
            "predictions are not conditioned on the given column%s %s, whose distribution depends on what is drawn at "
            "these rows, or which has missing cells; to predict given such a column, let the program take it before "
            "what it predicts, or fit these rows with the rest, what is to be predicted as missing cells",
            "s" * (len(lost) > 1), ", ".join(map(repr, lost)),
        )  # fmt: skip
    return held


def _varying(run: Callable[[Collection[str]], Any], names: Collection[str]) -> set[str]:
    """The sites whose density at their columns differs between draws of everything else."""
    if not names:
        return set()
    with torch.random.fork_rng():
        runs = [_densities(run(names), names) for _ in range(RUNS)]
    return {name for name in names if any(not torch.equal(runs[0][name], other[name]) for other in runs[1:])}


def _densities(trace: Any, names: Collection[str]) -> dict[str, Tensor]:
    found = sample_sites(trace)
    return {name: found[name]["fn"].log_prob(found[name]["value"]) for name in names}
