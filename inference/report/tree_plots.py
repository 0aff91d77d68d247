"""Pictures of a posterior on its own, as `ppgen mcmc` and `ppgen diagnose` write it: no program is needed.

latents      intervals of the latents
groups_NAME  of groups with words and several effects: intervals of each effect, a panel each, by group
ranks        of the entries whose chains agree least: the ECDF of each chain's ranks among all draws, less that of
             uniform ranks; chains that agree stay near zero
energy       the energy about its mean, beside its changes from draw to draw: chains that explore the tails have both
             alike (a sampler's draws)
predictive   intervals of the posterior predictive, and what was observed

Sources: Rank-normalization, folding, and localization (Vehtari et al. 2021, arXiv:1903.08008) for ranks; A conceptual
introduction to Hamiltonian Monte Carlo (Betancourt 2017, arXiv:1701.02434) for energies.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ppgen.inference.report.figures import (
    figure_of,
    groups_figures,
    intervals_figure,
    require_format,
    write_figures,
)
from ppgen.inference.verdicts.mcmc_diagnostics import statistic
from ppgen.run.shown import entry_names, shown, variable
from ppgen.style import BLUE, GREY, ORANGE

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from xarray import DataTree

RANKED = 4  # entries in the picture of ranks


def plot_tree(tree: DataTree, out: str | Path, *, format: str = "png") -> list[Path]:
    """Writes those pictures that the tree has the groups for.

    Args:
        tree: with a group posterior.
        out: the folder, made where it is not there.
        format: png or svg.

    Returns:
        The files written.

    Raises:
        PpgenError: another format.
    """
    require_format(format)
    figures: dict[str, Figure | None] = {
        "latents": _latents_figure(tree), **groups_figures(tree), "ranks": _ranks_figure(tree),
        "energy": _energy_figure(tree), "predictive": _predictive_figure(tree),
    }  # fmt: skip
    return write_figures(Path(out), figures, format)


def _entries(variables: Sequence[Any]) -> tuple[np.ndarray, list[str]]:
    """Every entry of every variable: (chains, draws, entries), and names."""
    values = np.concatenate([v.values.reshape(*v.shape[:2], -1) for v in variables], -1)
    return values, [n for v in variables for n in entry_names(v)]


def _latents_figure(tree: DataTree) -> Figure:
    """Intervals of the latents, all chains together."""
    values, names = _entries([variable(tree, n) for n in shown(tree)])
    return intervals_figure(values.reshape(-1, values.shape[-1]), names, "value", "Posterior of the latents")


def _ranks_figure(tree: DataTree) -> Figure | None:
    """Whether each chain visits what all chains visit; None for one chain."""
    values, names = _entries(list(tree["posterior"].dataset.data_vars.values()))
    C, S, n = values.shape
    if C < 2:
        return None
    rhat = np.array([statistic("rhat", values[..., i]) if np.ptp(values[..., i]) else 1.0 for i in range(n)])
    worst = np.argsort(-rhat, kind="stable")[:RANKED]
    figure, axes = figure_of(2.6 * len(worst) + 0.6, 2.8, len(worst), sharey=True)
    at = np.linspace(0, 1, 201)
    for axis, i in zip(axes, worst, strict=True):
        ranks = values[..., i].ravel().argsort(kind="stable").argsort().reshape(C, S) / (C * S)
        off = np.stack([np.searchsorted(np.sort(r), at, side="right") / S for r in ranks]) - at
        farthest = int(np.abs(off).max(1).argmax())
        axis.plot(at, np.delete(off, farthest, 0).T, color=GREY, lw=0.6, alpha=0.6)
        axis.plot(at, off[farthest], color=ORANGE, lw=1.6, label=f"chain {farthest}")
        axis.axhline(0, color="black", lw=0.8)
        axis.set(title=f"{names[i]}, R-hat {rhat[i]:.3f}", xlabel="rank among all draws")
        axis.title.set_fontsize(9)
        axis.legend(frameon=False, fontsize=7)
    axes[0].set_ylabel("ECDF less uniform")
    return figure


def _energy_figure(tree: DataTree) -> Figure | None:
    """The energy and its changes; None for draws that have none."""
    if "sample_stats" not in tree.children or "energy" not in tree["sample_stats"].dataset.data_vars:
        return None
    energy = tree["sample_stats"].dataset["energy"].values
    change, about = np.diff(energy, axis=1).ravel(), (energy - energy.mean(1, keepdims=True)).ravel()
    figure, (axis,) = figure_of(5.0, 3.0)
    both = np.concatenate([about, change])
    low, high = np.quantile(both, [0.001, 0.999])
    edges = np.linspace(low, high, 60)
    axis.hist(about, edges, density=True, color=BLUE, alpha=0.5, label="energy, less its mean")
    axis.hist(change, edges, density=True, histtype="step", color=ORANGE, lw=1.6, label="change from draw to draw")
    axis.set(xlabel="nats", ylabel="density", title="Energy")
    axis.legend(frameon=False, fontsize=8)
    return figure


def _predictive_figure(tree: DataTree) -> Figure | None:
    """The first observed site that was predicted; None where none was."""
    if not {"posterior_predictive", "observed_data"} <= set(tree.children):
        return None
    predicted, observed = (tree[g].dataset for g in ("posterior_predictive", "observed_data"))
    name = next((n for n in observed.data_vars if n in predicted.data_vars), None)
    if name is None:
        return None
    values, seen = predicted[name].values, observed[name].values.ravel()
    if values[0, 0].size != len(seen):
        return None
    names, title = entry_names(predicted[name]), f"Posterior predictive of {name}"
    return intervals_figure(values.reshape(-1, len(seen)), names, str(name), title, seen)
