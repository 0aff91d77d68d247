"""From one row to another through the latents: what a decoder makes of the points between."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppgen import data as data_module
from ppgen.inference.evaluation.posterior import name_in, posterior
from ppgen.inference.report import sample_plots
from ppgen.inference.report.figures import figure_of, image_grid
from ppgen.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINES = 8
POINTS = 9  # of a line


def interpolation_figure(run: Run, data: Mapping[str, Tensor], *, seed: int | None = 0) -> Figure | None:
    """Two rows of images at the ends of each line, and between them E[x | z] at even steps from E[z | x] of the one to
    that of the other. Columns that the model is given are those of the left row.

    None where x is no image, or a latent is discrete, shared by the rows, or of a support that a line may leave.
    """
    sites = [run.structure[n] for n in run.structure.latents]
    name = next(iter(run.structure.names("observed")), None)
    if not sites or name is None or any(s.discrete or "Real" not in s.support for s in sites):
        return None
    few = sample_plots.first_rows(run, data, 2 * LINES)
    lines, shape = min(LINES, data_module.n_rows(few) // 2), sample_plots.image_shape(run, name)
    if not lines or shape is None:
        return None
    seen, given = sample_plots.observed_values(run, few)
    tree: Any = posterior(run, few, draws=20, seed=seed, predictive=False, prior=False)
    ends = {s.name: torch.as_tensor(tree["posterior"][name_in(tree, s.name)].values[0].mean(0)) for s in sites}
    held = {n: _between(z.to(run.dtype), lines) for n, z in ends.items()}
    left = torch.arange(0, 2 * lines, 2).repeat_interleave(POINTS)
    given = data_module.take(given, left, [k for k in given if k in run.structure.row_columns])
    means = sample_plots.means_at(run, name, held, lines * POINTS, given)
    if means is None:
        return None
    x = seen[name][: 2 * lines].reshape(lines, 2, -1).to(means)
    tiles = torch.cat([x[:, :1], means.reshape(lines, POINTS, -1), x[:, 1:]], 1).flatten(0, 1)
    wide = 8.2
    figure, axes = figure_of(wide, 0.35 + wide * lines / (POINTS + 2))
    title = f"{name}, E[{name} | z] on the line from its E[z | {name}] to that of the other, and the other {name}"
    image_grid(axes[0], tiles, shape, title, POINTS + 2, values=sample_plots.pixel_values(run, name))
    return figure


def _between(z: Tensor, lines: int) -> Tensor:
    """Even steps from each even row to the odd one behind it, (2 lines or more, ...) -> (lines * POINTS, ...)."""
    left, right = z[0 : 2 * lines : 2, None], z[1 : 2 * lines : 2, None]
    share = torch.linspace(0, 1, POINTS).to(z).reshape(-1, *[1] * (z.dim() - 1))
    return ((1 - share) * left + share * right).flatten(0, 1)
