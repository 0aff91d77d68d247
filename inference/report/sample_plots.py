"""Pictures of draws of the observed site beside the data: images, points, histograms, densities."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ppgen import data as data_module
from ppgen.data import Table
from ppgen.errors import PpgenError
from ppgen.handlers import without_validation
from ppgen.inference.evaluation.sample import sample
from ppgen.inference.report.corner import MOST, corner_figure, plane_figure
from ppgen.inference.report.figures import figure_of, image_grid
from ppgen.nested import asked_rows
from ppgen.run import Run, default_dtype
from ppgen.sites import given_value
from ppgen.style import BLUE, GREY
from ppgen.terms import holding, model_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS = 1000  # of the data, at most, in a picture
PAIRS = 5000  # rows, at most, of a picture of densities


def samples_figure(
    run: Run,
    data: Mapping[str, Tensor] | None = None,
    *,
    drawn: Mapping[str, Tensor] | None = None,
    given: Mapping[str, Tensor] | None = None,
    seed: int | None = 0,
) -> Figure | None:
    """Draws of the observed site: images, points, or histograms.

    Args:
        data: shown beside the draws where they are no images; their covariates are given to the model.
        drawn, given: what `sample` returned, and what it was given; None draws it.
    """
    if not run.structure.names("observed"):  # factors only: nothing can be drawn
        return None
    seen, covariates = observed_values(run, data) if data else ({}, Table())
    if drawn is None:
        drawn, given = _draw(run, data or {}, covariates, seed)
    name = next((n for n in run.structure.names("observed") if n in drawn), None)
    if name is None:
        return None
    value = drawn[name].detach()
    shape = image_shape(run, name)
    if shape:
        return _image_draws(run, name, drawn, given or {}, shape)
    event = len(run.structure[name].event_shape)
    x = value.reshape(-1, *value.shape[value.dim() - event :])  # draws of whole data sets: all their rows
    what = f"{name} ~ p({name})" + (", latents from the prior" if run.structure.globals else "")
    sets = {"data": flat(seen[name]) if name in seen else None, f"draws {what}": flat(x)}
    return _planes(sets, name) if event == 1 and x.shape[1:].numel() == 2 else _histograms(sets, name)


def _draw(
    run: Run, data: Mapping[str, Tensor], covariates: Table, seed: int | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Draws for a picture, and what they were given: one a row of the covariates, where the data have some."""
    name = run.structure.names("observed")[0]
    n = 100 if run.structure.globals else 64 if image_shape(run, name) else ROWS
    given = covariates
    rows = [k for k in given if k in run.structure.row_columns]
    if rows and not run.structure.globals:
        n = min(n, data_module.n_rows(data))
        given = data_module.take(given, slice(0, n), rows)
    return sample(run, n, given=given, seed=seed), given


@torch.no_grad()
def observed_values(run: Run, data: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Table]:
    """What each observed site is given out of the data, and the columns that no site observes: the covariates."""
    program = run.program
    with default_dtype(run.dtype), without_validation(), torch.random.fork_rng(), program.in_brief():
        nodes = model_run(program, data).nodes
    seen = {n: nodes[n]["value"] for n in run.structure.names("observed") if n in nodes}
    taken = {given_value(nodes[n]).data_ptr() for n in seen}
    rest = {k: v for k, v in data.items() if not isinstance(v, Tensor) or v.data_ptr() not in taken}
    return seen, Table(rest, data.types if isinstance(data, Table) else None)


def density_figures(run: Run, data: Mapping[str, Tensor], *, seed: int | None = 0) -> dict[str, Figure | None]:
    """The figures `density` and `corner`, for rows of 2 to 8 continuous values."""
    name = next(iter(run.structure.names("observed")), None)
    if name is None:
        return {}
    site = run.structure[name]
    if run.structure.globals or site.discrete or len(site.event_shape) != 1 or not 2 <= site.event_shape[0] <= MOST:
        return {}
    few = first_rows(run, data, PAIRS)
    seen, covariates = observed_values(run, few)
    n = data_module.n_rows(few)
    draws, x = flat(sample(run, n, given=covariates, seed=seed)[name]), flat(seen[name])
    if x.shape[1] == 2:
        return {"density": plane_figure(run, x, draws, name)}
    return {"corner": corner_figure(x, draws, _column_names(run, name, x.shape[1]))}


def _column_names(run: Run, name: str, d: int) -> list[str]:
    """Those of the table's columns, where the run knows them."""
    known = (run.config["data"].get("columns") or {}).get(name)
    if isinstance(known, list) and len(known) == d and not any("*" in k for k in known):
        return list(known)
    return [f"{name}[{i}]" for i in range(d)]


def _image_draws(
    run: Run, name: str, drawn: Mapping[str, Tensor], given: Mapping[str, Tensor], shape: tuple[int, ...]
) -> Figure:
    n = min(len(drawn[name]), 64)
    held = {k: v[:n] for k, v in drawn.items() if k in run.structure.latents}
    rows = run.structure.row_columns
    given = {k: v[:n].expand(n, *v.shape[1:]) if k in rows and v.dim() else v for k, v in given.items()}
    given |= {k: v.expand(n) for k, v in given.items() if k in rows and not v.dim()}
    means = means_at(run, name, held, n, given) if held else None
    panels = 2 if means is not None else 1
    tall = math.ceil(n / math.ceil(math.sqrt(n))) / math.ceil(math.sqrt(n))
    figure, axes = figure_of(4.1 * panels, 4.0 * tall + 0.35, panels)
    figure.get_layout_engine().set(wspace=0.04)  # type: ignore[union-attr, call-arg]
    values = pixel_values(run, name)
    image_grid(axes[0], drawn[name][:n], shape, f"{n} draws, {name} ~ p({name} | z), z ~ p(z)", values=values)
    if means is not None:
        image_grid(axes[1], means, shape, f"their means, E[{name} | z]", values=values)
    else:
        axes[0].set_title(f"{n} draws, {name} ~ p({name})", fontsize=10)
    return figure


@torch.no_grad()
def means_at(run: Run, name: str, held: Mapping[str, Tensor], n: int, given: Mapping[str, Tensor]) -> Tensor | None:
    """E[x | z] at latents that were drawn; None where the model does not say."""
    program = run.program
    with default_dtype(run.dtype), without_validation(), asked_rows(n), torch.random.fork_rng(), holding(held):
        try:
            fn = model_run(program, given).nodes[name]["fn"]
            return fn.mean.expand(fn.shape())
        except (NotImplementedError, PpgenError):  # no mean, or a column that the model cannot be run without
            return None


def image_shape(run: Run, name: str) -> tuple[int, ...] | None:
    """(side, side) or (3, side, side) where a row of the site is an image: a square of at least 7 x 7 values
    in [-1, 1] or [0, 255]."""
    site = run.structure[name]
    event = site.event_shape
    if run.structure.globals or not run.structure.is_local(name):
        return None
    if len(event) == 2 and event[0] == event[1] and event[0] >= 7:
        return event
    if len(event) == 3 and event[0] in (1, 3) and event[1] == event[2]:
        return event[1:] if event[0] == 1 else event
    values = observed_values(run, run.example)[0].get(name)
    if len(event) != 1 or values is None or values.min() < -1 or values.max() > (1 if values.min() < 0 else 255):
        return None
    for channels in (1, 3):
        side = math.isqrt(event[0] // channels)
        if side >= 7 and channels * side * side == event[0]:
            return (side, side) if channels == 1 else (3, side, side)
    return None


def pixel_values(run: Run, name: str) -> tuple[float, float]:
    """The values of black and white of images in [-1, 1], [0, 1] or from 0 to 255, by rows that were fitted."""
    values = observed_values(run, run.example)[0].get(name)
    most = 1.0 if values is None else float(values.max())
    return -1.0 if values is not None and values.min() < 0 else 0.0, 1.0 if most <= 1 + 1e-6 else max(255.0, most)


def _planes(sets: Mapping[str, np.ndarray | None], name: str) -> Figure:
    """Points of a plane, one panel a set, on the same axes."""
    shown = {k: v[:2000] for k, v in sets.items() if v is not None}
    figure, axes = figure_of(4.0 * len(shown), 4.0, len(shown), sharex=True, sharey=True)
    # One stray draw must not shrink the rest: the axes follow the first set, the data where they are there.
    first = next(iter(shown.values()))
    low, high = np.quantile(first, 0.001, axis=0), np.quantile(first, 0.999, axis=0)
    margin = 0.15 * (high - low)
    for axis, colour, (title, x) in zip(axes, (GREY, BLUE)[-len(shown) :], shown.items(), strict=True):
        axis.scatter(x[:, 0], x[:, 1], s=3, color=colour, alpha=0.6, lw=0)
        axis.set(xlabel=f"{name}[0]", title=f"{len(x)} {title}" if colour == BLUE else title)
        axis.set(xlim=(low[0] - margin[0], high[0] + margin[0]), ylim=(low[1] - margin[1], high[1] + margin[1]))
    axes[0].set_ylabel(f"{name}[1]")
    return figure


def _histograms(sets: Mapping[str, np.ndarray | None], name: str) -> Figure:
    """Each value of a row, in a panel of its own (the first twelve)."""
    shown = {k: v for k, v in sets.items() if v is not None}
    width = min(12, min(v.shape[1] for v in shown.values()))
    across = min(width, 4)
    figure, _ = figure_of(max(5.2, 2.6 * across), 0.6 + 2.6 * math.ceil(width / across))
    figure.clear()
    for i in range(width):
        axis = figure.add_subplot(math.ceil(width / across), across, i + 1)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.set_yticks([])
        columns = {k: v[:, min(i, v.shape[1] - 1)] for k, v in shown.items()}
        edges = _edges(np.concatenate(list(columns.values())))
        for (label, x), colour in zip(columns.items(), (GREY, BLUE)[-len(shown) :], strict=True):
            style: dict[str, Any] = {"histtype": "step", "lw": 1.6}
            if colour == GREY:
                style = {"histtype": "stepfilled", "alpha": 0.5}
            axis.hist(x, bins=edges, density=True, color=colour, label=label, **style)
        axis.set_xlabel(name if width == 1 else f"{name}[{i}]")
        if i == 0:
            axis.set_ylabel("density")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", frameon=False, ncols=2, fontsize=9)
    return figure


def _edges(x: np.ndarray) -> list[float]:
    values = np.unique(x)
    if len(values) <= 20 and np.allclose(values, np.round(values)):
        return np.arange(values.min() - 0.5, values.max() + 1.5).tolist()
    low, high = np.quantile(x, [0.005, 0.995])
    return np.linspace(low, high if high > low else low + 1, 41).tolist()


def first_rows(run: Run, data: Mapping[str, Tensor], n: int) -> Table:
    """The first rows, where the guide reads rows; all, where it knows the fitted ones only."""
    if run.program.fixed_rows or run.structure.globals:
        n = data_module.n_rows(data)
    return data_module.take(data, slice(0, n))


def flat(value: Tensor) -> np.ndarray:
    return value.detach().reshape(len(value) if value.dim() else 1, -1).double().numpy()
