"""Densities of data and draws beside each other: every pair of a few dimensions, and a density in the plane.

Where both sets of regions coincide, the model has the data's pairs right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ppgen.handlers import without_validation
from ppgen.run import Run, default_dtype
from ppgen.style import BLUE, DENSITY, GREY
from ppgen.terms import model_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 8  # dimensions
SHARES = (0.5, 0.9)  # of all points, within a contour
CELLS = 40  # of a histogram's side


def corner_figure(data: np.ndarray, draws: np.ndarray, names: Sequence[str]) -> Figure | None:
    """Each dimension's histogram, and for each pair the smallest regions that hold 50% and 90% of the points.

    Args:
        data, draws: (N, D) and (M, D), 2 <= D <= 8; else there is no figure.
        names: of the D dimensions.
    """
    from matplotlib.figure import Figure

    d = data.shape[1]
    if not 2 <= d <= MOST or len(data) < 50 or len(draws) < 50:
        return None
    figure = Figure(figsize=(1.0 + 1.55 * d, 1.0 + 1.55 * d), layout="constrained")
    axes = figure.subplots(d, d, squeeze=False)
    low, high = np.quantile(data, [0.005, 0.995], axis=0)
    room = 0.1 * np.where(high > low, high - low, 1.0)
    low, high = low - room, high + room
    edges = [np.linspace(low[i], high[i], CELLS + 1) for i in range(d)]
    for i in range(d):
        for j in range(d):
            axis = axes[i, j]
            if j > i:
                axis.set_axis_off()
                continue
            axis.tick_params(labelsize=7, labelbottom=i == d - 1, labelleft=j == 0 and i > 0)
            axis.set_xlim(low[j], high[j])
            if i == j:
                axis.set_yticks([])
                axis.spines[["top", "right", "left"]].set_visible(False)
                axis.hist(data[:, i], bins=edges[i].tolist(), density=True, color=GREY, alpha=0.5)
                axis.hist(draws[:, i], bins=edges[i].tolist(), density=True, histtype="step", color=BLUE, lw=1.4)
            else:
                axis.set_ylim(low[i], high[i])
                _regions(axis, data[:, [j, i]], edges[j], edges[i], filled=True)
                _regions(axis, draws[:, [j, i]], edges[j], edges[i], filled=False)
            if i == d - 1:
                axis.set_xlabel(names[j], fontsize=9)
            if j == 0 and i > 0:
                axis.set_ylabel(names[i], fontsize=9)
    figure.align_labels()
    _legend(figure, len(data), len(draws))
    return figure


def _legend(figure: Figure, rows: int, draws: int) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    regions = " and ".join(f"{s:.0%}" for s in SHARES)
    entries = [
        Patch(color=GREY, alpha=0.5, label=f"data ({rows} rows)"),
        Line2D([], [], color=BLUE, lw=1.4, label=f"draws ({draws})"),
    ]
    figure.legend(
        handles=entries, loc="upper right", frameon=False, fontsize=9, title=f"regions of {regions}", title_fontsize=9
    )


def _regions(axis: Any, points: np.ndarray, x: np.ndarray, y: np.ndarray, filled: bool) -> None:
    """Contours of a smoothed histogram at the heights above which the shares of its mass lie."""
    from scipy.ndimage import gaussian_filter

    counts, _, _ = np.histogram2d(points[:, 0], points[:, 1], bins=[x, y])
    # the wider for the fewer points: the kernel's rule for a normal density in the plane, in cells
    width = max(0.8, CELLS / 5 * len(points) ** (-1 / 6))
    height = gaussian_filter(counts, width, mode="constant")
    order = np.sort(height.ravel())[::-1]
    mass = order.cumsum() / order.sum()
    levels = sorted({float(order[np.searchsorted(mass, s)]) for s in SHARES})
    centres = [(e[1:] + e[:-1]) / 2 for e in (x, y)]
    if filled:
        axis.contourf(*centres, height.T, levels=[*levels, float(order[0]) * 1.001], colors=[GREY], alpha=0.35)
        axis.contourf(*centres, height.T, levels=[levels[-1], float(order[0]) * 1.001], colors=[GREY], alpha=0.5)
    else:
        axis.contour(*centres, height.T, levels=levels, colors=[BLUE], linewidths=1.2)


def plane_figure(run: Run, data: np.ndarray, draws: np.ndarray, name: str) -> Figure | None:
    """Points of the data, the density itself and draws, for a program of one column of points, with nothing latent."""
    from matplotlib.figure import Figure

    if run.structure.latents or len(run.example) != 1:
        return None
    low, high = np.quantile(data, 0.001, axis=0), np.quantile(data, 0.999, axis=0)
    room = 0.15 * np.where(high > low, high - low, 1.0)
    low, high = low - room, high + room
    u, v = (np.linspace(low[i], high[i], 160) for i in range(2))
    grid = torch.as_tensor(np.stack(np.meshgrid(u, v, indexing="ij"), -1).reshape(-1, 2), dtype=run.dtype)
    density = _log_density(run, {next(iter(run.example)): grid}, name).exp().reshape(160, 160)
    figure = Figure(figsize=(10.2, 3.8), layout="constrained")
    axes = figure.subplots(1, 3, sharex=True, sharey=True)
    axes[0].scatter(*data[:2000].T, s=3, color=GREY, alpha=0.6, lw=0)
    shown = axes[1].pcolormesh(u, v, density.T.numpy(), cmap=DENSITY, rasterized=True, vmin=0)
    figure.colorbar(shown, ax=axes[1], fraction=0.05)
    axes[2].scatter(*draws[:2000].T, s=3, color=BLUE, alpha=0.6, lw=0)
    for axis, title in zip(axes, ("data", f"p({name})", f"{min(len(draws), 2000)} draws"), strict=True):
        axis.set(title=title, xlim=(low[0], high[0]), ylim=(low[1], high[1]), xlabel=f"{name}[0]")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel(f"{name}[1]")
    return figure


@torch.no_grad()
def _log_density(run: Run, columns: Mapping[str, Tensor], name: str) -> Tensor:
    """log p of the rows, exact where nothing is latent."""
    with default_dtype(run.dtype), without_validation():
        node = model_run(run.program, columns).nodes[name]
    return node["fn"].log_prob(node["value"])
