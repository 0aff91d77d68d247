"""Pictures of a fit, those that make sense for its program, as PNG files.

elbo              the ELBO over the steps with its standard error, and that of the held-out rows
samples           draws of the model: images, points of a plane, or histograms, beside the data
density           p(x) itself between data and draws, for points of a plane where nothing is latent
corner            pairs of 3 to 8 dimensions: regions of the data and of draws
reconstructions   E[x | z] at z ~ q(z | x) beside x; where a latent is global, the posterior predictive beside x
latent            posterior means of the rows and KL by dimension; intervals of global latents
khat              Pareto k-hat and effective draws of the guide, row by row

Each figure is a function of its own, which returns None where it has nothing to show. Colours of Okabe & Ito (2008) and
of Tol (2021), told apart with any kind of colour vision.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor

from ppgen import data as data_module
from ppgen.errors import PpgenError
from ppgen.files import write_atomic
from ppgen.gaussian_chain import GaussianChain
from ppgen.inference.corner import MOST, corner_figure, plane_figure
from ppgen.inference.diagnose import Diagnosis, diagnose
from ppgen.inference.posterior import posterior
from ppgen.inference.psis import GOOD_K
from ppgen.inference.sample import reconstruct, sample
from ppgen.program import asked_rows
from ppgen.run import Run, default_dtype

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#0072B2", "#E69F00", "#999999"
LABELS = ("#332288", "#E69F00", "#117733", "#CC6677", "#88CCEE", "#882255", "#999933", "#555555", "#AA4499", "#44AA99")
ROWS = 1000  # of the data, at most, in a picture
INTERVALS = 40  # at most, in a picture
PAIRS = 5000  # rows, at most, of a picture of densities


def plot(run: Run, data: Any = None, out: str | Path | None = None, *, seed: int = 0) -> list[Path]:
    """Writes the pictures of a run.

    Args:
        run: the run.
        data: the columns to show it on; None takes those that were fitted. A label `y` that the program does not
            take colours the latent space.
        out: the folder, made where it is not there; None: RUN/plots.
        seed: of the draws.

    Returns:
        The files written.

    Raises:
        PpgenError: a run in memory without `out`, or fitted to data in memory without `data`.
    """
    if out is None and run.path is None:
        raise PpgenError("the run has no folder to put pictures into; pass out=")
    folder = Path(out) if out is not None else run.path / "plots"  # type: ignore[operator]
    columns = dict(run.data() if data is None else data_module.as_tensors(data))
    label = columns.get("y")
    columns = {k: v for k, v in columns.items() if k != "y" or k in run.program.columns}
    if label is not None and not _is_label(label, columns):
        label = None
    if isinstance(run.program, GaussianChain):
        from ppgen.inference.chain_plots import chain_figures

        return write_figures(folder, {"elbo": elbo_figure(run), **chain_figures(run, columns, seed=seed)})
    d = None
    if run.structure.latents:
        d = diagnose(run, columns, draws=200, rows=30, particles=500, seed=seed)
    figures = {
        "elbo": elbo_figure(run),
        "samples": samples_figure(run, _first(run, columns, ROWS), seed=seed),
        **density_figures(run, columns, seed=seed),
        "reconstructions": reconstructions_figure(run, columns, seed=seed),
        "latent": latent_figure(run, columns, d, label, seed=seed),
        "khat": khat_figure(d),
    }
    return write_figures(folder, figures)


def write_figures(folder: Path, figures: Mapping[str, Figure | None]) -> list[Path]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise PpgenError(f"the folder {folder} could not be made: {e.strerror}; choose another place") from e
    return [save(figure, folder / f"{name}.png") for name, figure in figures.items() if figure is not None]


def save(figure: Figure, path: str | Path) -> Path:
    """Writes a figure as PNG, atomically."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=150)
    write_atomic(path, out.getvalue())
    return Path(path)


def figure_of(width: float, height: float, panels: int = 1, **how: Any) -> tuple[Figure, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = list(np.atleast_1d(figure.subplots(1, panels, **how)).ravel())
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


# -- the ELBO ------------------------------------------------------------------------------------


def elbo_figure(run: Run) -> Figure | None:
    """ELBO and its standard error over the steps; nats a row, or of the data set where a latent is global."""
    m = run.metrics
    seen = np.isfinite(m["elbo"])
    if seen.sum() < 2:
        return None
    whole = not run.structure.by_row
    recorded = run.config["data"]
    step, elbo, se = (m[k][seen] / s for k, s in (("step", 1), *((k, _per(run)) for k in ("elbo", "elbo_se"))))
    figure, (axis,) = figure_of(6.4, 3.6)
    axis.fill_between(step, elbo - 2 * se, elbo + 2 * se, color=BLUE, alpha=0.25, lw=0, label="± 2 standard errors")
    axis.plot(step, elbo, color=BLUE, lw=1.4, label="ELBO, rows fitted")
    shown = [elbo]
    valid = np.isfinite(m["valid_elbo"])
    if valid.any() and (whole or recorded.get("valid_rows")):
        held_out = m["valid_elbo"][valid] / (1 if whole else recorded["valid_rows"])
        axis.plot(m["step"][valid], held_out, color=ORANGE, lw=1.4, label="ELBO, rows held out")
        shown.append(held_out)
    late = np.concatenate([s[len(s) // 10 :] for s in shown])  # the first tenth may start anywhere
    low, high = late.min(), late.max()
    axis.set_ylim(low - 0.05 * (high - low) - 1e-9, high + 0.1 * (high - low) + 1e-9)
    axis.set(xlabel="step", ylabel="nats" if whole else "nats a row", title="A lower bound on log p(x)")
    axis.legend(frameon=False, loc="lower right")
    return figure


def _per(run: Run) -> int:
    return run.config["data"]["rows"] if run.structure.by_row else 1


# -- draws ---------------------------------------------------------------------------------------


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
    seen, covariates = _seen(run, data) if data else ({}, {})
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
    sets = {"data": _flat(seen[name]) if name in seen else None, f"draws {what}": _flat(x)}
    return _planes(sets, name) if event == 1 and x.shape[1:].numel() == 2 else _histograms(sets, name)


def _draw(
    run: Run, data: Mapping[str, Tensor], covariates: Mapping[str, Tensor], seed: int | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Draws for a picture, and what they were given: one a row of the covariates, where the data have some."""
    name = run.structure.names("observed")[0]
    n = 100 if run.structure.globals else 64 if image_shape(run, name) else ROWS
    given = dict(covariates)
    rows = [k for k in given if k in run.structure.row_columns]
    if rows and not run.structure.globals:
        n = min(n, data_module.n_rows(data))
        given |= {k: given[k][:n] for k in rows}
    return sample(run, n, given=given, seed=seed), given


@torch.no_grad()
def _seen(run: Run, data: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What each observed site is given out of the data, and the columns that no site observes: the covariates."""
    program = run.program
    with default_dtype(run.dtype), pyro.validation_enabled(False), torch.random.fork_rng():
        nodes = poutine.trace(lambda: program.call("model", data)).get_trace().nodes
    seen = {n: nodes[n]["value"] for n in run.structure.names("observed") if n in nodes}
    taken = {v.data_ptr() for v in seen.values()}
    return seen, {k: v for k, v in data.items() if v.data_ptr() not in taken}


def density_figures(run: Run, data: Mapping[str, Tensor], *, seed: int | None = 0) -> dict[str, Figure | None]:
    """The figures `density` and `corner`, for rows of 2 to 8 continuous values."""
    name = run.structure.names("observed")[0]
    site = run.structure[name]
    if run.structure.globals or site.discrete or len(site.event_shape) != 1 or not 2 <= site.event_shape[0] <= MOST:
        return {}
    few = _first(run, data, PAIRS)
    seen, covariates = _seen(run, few)
    n = data_module.n_rows(few)
    draws, x = _flat(sample(run, n, given=covariates, seed=seed)[name]), _flat(seen[name])
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
    means = _means(run, name, held, n, given) if held else None
    panels = 2 if means is not None else 1
    tall = math.ceil(n / math.ceil(math.sqrt(n))) / math.ceil(math.sqrt(n))
    figure, axes = figure_of(4.1 * panels, 4.0 * tall + 0.35, panels)
    figure.get_layout_engine().set(wspace=0.04)  # type: ignore[union-attr, call-arg]
    image_grid(axes[0], drawn[name][:n], shape, f"{n} draws, {name} ~ p({name} | z), z ~ p(z)")
    if means is not None:
        image_grid(axes[1], means, shape, f"their means, E[{name} | z]")
    else:
        axes[0].set_title(f"{n} draws, {name} ~ p({name})", fontsize=10)
    return figure


@torch.no_grad()
def _means(run: Run, name: str, held: Mapping[str, Tensor], n: int, given: Mapping[str, Tensor]) -> Tensor | None:
    """E[x | z] at latents that were drawn; None where the model does not say."""
    program = run.program
    model = poutine.condition(lambda: program.call("model", given), dict(held))
    with default_dtype(run.dtype), pyro.validation_enabled(False), asked_rows(n), torch.random.fork_rng():
        try:
            fn = poutine.trace(model).get_trace().nodes[name]["fn"]
            return fn.mean.expand(fn.shape())
        except (NotImplementedError, PpgenError):  # no mean, or a column that the model cannot be run without
            return None


def image_shape(run: Run, name: str) -> tuple[int, ...] | None:
    """(side, side) or (3, side, side) where a row of the site is an image: a square of at least 7 x 7 values
    between bounds."""
    site = run.structure[name]
    event = site.event_shape
    if run.structure.globals or not run.structure.is_local(name):
        return None
    if len(event) == 2 and event[0] == event[1] and event[0] >= 7:
        return event
    if len(event) == 3 and event[0] in (1, 3) and event[1] == event[2]:
        return event[1:] if event[0] == 1 else event
    values = _seen(run, run.example)[0].get(name)
    if len(event) != 1 or values is None or values.min() < 0 or values.max() > 255:
        return None
    for channels in (1, 3):
        side = math.isqrt(event[0] // channels)
        if side >= 7 and channels * side * side == event[0]:
            return (side, side) if channels == 1 else (3, side, side)
    return None


def image_grid(axis: Any, images: Tensor, shape: tuple[int, ...], title: str, columns: int | None = None) -> None:
    """Tiles images, one pixel apart."""
    x = images.detach().double().numpy().reshape(-1, *shape)
    x = np.moveaxis(x, 1, -1) if len(shape) == 3 else x[..., None]
    top = 1.0 if x.max() <= 1.0 + 1e-6 else max(255.0, x.max())
    columns = columns or math.ceil(math.sqrt(len(x)))
    rows, side = math.ceil(len(x) / columns), shape[-1]
    canvas = np.full((rows * (side + 1) - 1, columns * (side + 1) - 1, x.shape[-1]), top)
    for i, image in enumerate(x):
        r, c = (i // columns) * (side + 1), (i % columns) * (side + 1)
        canvas[r : r + side, c : c + side] = image
    canvas = np.clip(canvas / top, 0, 1)
    axis.imshow(
        canvas if canvas.shape[-1] == 3 else canvas[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest"
    )
    axis.set_title(title, fontsize=10)
    axis.set_axis_off()


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


# -- reconstructions -----------------------------------------------------------------------------


def reconstructions_figure(run: Run, data: Mapping[str, Tensor], *, seed: int | None = 0) -> Figure | None:
    """x beside E[x | z], z ~ q(z | x); with a global latent, x beside its posterior predictive."""
    if not run.structure.latents:
        return None
    few = _first(run, data, ROWS)
    seen = _seen(run, few)[0]
    name = next(iter(seen), None)
    if name is None:
        return None
    if run.structure.globals:
        return _predictive(run, data, name, seen[name], seed)
    again, shape = reconstruct(run, few, seed=seed)[name], image_shape(run, name)
    if shape:
        n = min(20, len(again))
        figure, axes = figure_of(8.2, 4.9)
        pairs = torch.cat([torch.cat([seen[name][i : i + 10], again[i : i + 10]]) for i in range(0, n, 10)])
        image_grid(axes[0], pairs, shape, f"{name}, and below each E[{name} | z], z ~ q(z | {name})", min(n, 10))
        figure.set_size_inches(8.2, 0.35 + 8.2 * math.ceil(len(pairs) / 10) / min(n, 10))
        return figure
    x, y = _flat(seen[name]), _flat(again)
    figure, (axis,) = figure_of(4.4, 4.4)
    if x.shape[1] == 2:
        x, y = x[:300], y[:300]
        axis.plot(*np.stack([x, y]).transpose(2, 0, 1), color=GREY, lw=0.5)
        axis.scatter(*x.T, s=6, color=GREY, label=name)
        axis.scatter(*y.T, s=6, color=BLUE, label=f"E[{name} | z], z ~ q(z | {name})")
        axis.set(xlabel=f"{name}[0]", ylabel=f"{name}[1]", title="Reconstructions")
        axis.legend(frameon=False, fontsize=8)
        return figure
    pick = np.random.default_rng(0).permutation(x.size)[:3000]
    axis.scatter(x.ravel()[pick], y.ravel()[pick], s=4, color=BLUE, alpha=0.4, lw=0)
    axis.axline((x.mean(), x.mean()), slope=1, color="black", lw=0.8, ls="--")
    axis.set(
        xlabel=f"{name}, every value of a row", ylabel=f"E[{name} | z], z ~ q(z | {name})", title="Reconstructions"
    )
    return figure


def _predictive(run: Run, data: Mapping[str, Tensor], name: str, observed: Tensor, seed: int | None) -> Figure | None:
    tree = posterior(run, data, draws=500, seed=seed, prior=False)
    if name not in tree.posterior_predictive:
        return None
    variable = tree.posterior_predictive[name]
    draws, seen = variable.values[0].reshape(500, -1), observed.double().numpy().ravel()
    if draws.shape[1] != len(seen):
        return None
    return predictive_intervals(draws, entry_names(variable), seen, name)


def predictive_intervals(draws: np.ndarray, names: list[str], seen: np.ndarray, name: str) -> Figure:
    """Intervals of the posterior predictive of a site, (draws, entries), and what was observed, (entries,)."""
    return intervals_figure(draws, names, name, f"Posterior predictive of {name}", seen)


# -- latents -------------------------------------------------------------------------------------


def latent_figure(
    run: Run,
    data: Mapping[str, Tensor],
    diagnosis: Diagnosis | None = None,
    label: Tensor | None = None,
    *,
    seed: int | None = 0,
) -> Figure | None:
    """Where a latent is global, its intervals; else the rows' posterior means (in their first two principal
    directions) and the KL of each dimension."""
    if not run.structure.latents:
        return None
    if run.structure.globals:
        return _global_latents(run, data, diagnosis, seed)
    name = next((n for n in run.structure.locals if not run.structure[n].discrete), None)
    if name is None:
        return None
    few = _first(run, data, ROWS)
    drawn = posterior(run, few, draws=20, seed=seed, predictive=False, prior=False).posterior[name].values[0]
    means = drawn.mean(0).reshape(drawn.shape[1], -1)
    if len(means) != data_module.n_rows(few):
        return None
    kl = diagnosis.kl.get(name) if diagnosis is not None else None
    panels = 2 if kl is not None and len(kl) > 1 else 1
    figure, axes = figure_of(4.8 * panels, 4.4, panels)
    _means_panel(axes[0], means, name, None if label is None else label[: len(means)])
    if panels == 2 and kl is not None and diagnosis is not None:
        active = diagnosis.active[name][np.argsort(-kl)] if name in diagnosis.active else np.ones(len(kl), bool)
        axes[1].bar(np.arange(1, len(kl) + 1), np.sort(kl)[::-1], color=np.where(active, BLUE, GREY))
        axes[1].xaxis.get_major_locator().set_params(integer=True)
        axes[1].set(
            xlabel=f"dimension of {name}, sorted",
            ylabel="KL(q, p), nats a row",
            title=f"{int(active.sum())} of {len(kl)} dimensions active",
        )
    return figure


def _means_panel(axis: Any, means: np.ndarray, name: str, label: Tensor | None) -> None:
    if means.shape[1] == 1:
        axis.hist(means[:, 0], bins=40, color=BLUE)
        axis.set(xlabel=f"E[{name} | x]", ylabel="rows", title="Latent space")
        return
    names = [f"E[{name}[{i}] | x]" for i in range(2)]
    xy = means
    if means.shape[1] > 2:
        centred = means - means.mean(0)
        _, s, v = np.linalg.svd(centred, full_matrices=False)
        xy, share = centred @ v[:2].T, s**2 / (s**2).sum()
        names = [
            f"{which} principal direction of E[{name} | x] ({share[i]:.0%} of variance)"
            for i, which in enumerate(("1st", "2nd"))
        ]
    if label is None:
        axis.scatter(*xy[:, :2].T, s=8, color=BLUE, alpha=0.7, lw=0)
    else:
        y = label.numpy()
        for i, value in enumerate(np.unique(y)):
            axis.scatter(*xy[y == value, :2].T, s=26, marker=f"${value}$", color=LABELS[i % len(LABELS)], lw=0.2)
    axis.set_title(f"Latent space, {len(means)} rows" + (", each at its label y" if label is not None else ""))
    axis.set_xlabel(names[0], fontsize=8)
    axis.set_ylabel(names[1], fontsize=8)


def _global_latents(run: Run, data: Mapping[str, Tensor], diagnosis: Diagnosis | None, seed: int | None) -> Figure:
    tree = diagnosis.tree if diagnosis is not None else posterior(run, data, draws=500, seed=seed, predictive=False)
    groups = list(tree.posterior.data_vars.values())
    draws = np.concatenate([v.values[0].reshape(v.sizes["draw"], -1) for v in groups], 1)
    names = [n for v in groups for n in entry_names(v)]
    return intervals_figure(draws, names, "value", "Posterior of the latents, under the guide")


def intervals_figure(
    draws: np.ndarray, names: list[str], xlabel: str, title: str, seen: np.ndarray | None = None
) -> Figure:
    """Intervals of the columns, and what was observed of each, where it was."""
    figure, (axis,) = figure_of(7.4, 0.9 + 0.24 * min(len(names), INTERVALS))
    _draw_intervals(axis, draws, names)
    if seen is not None:
        at = -np.arange(min(len(seen), INTERVALS))
        axis.scatter(seen[:INTERVALS], at, s=26, marker="D", color=ORANGE, zorder=3, label=f"{xlabel}, observed")
    axis.set(xlabel=xlabel, title=title)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)  # of all that is drawn by now
    return figure


def _draw_intervals(axis: Any, draws: np.ndarray, names: list[str]) -> None:
    """Median, 50% and 94% interval of each column, from the top down."""
    draws, names = draws[:, :INTERVALS], names[:INTERVALS]
    at = -np.arange(len(names))
    for low, high, width, label in ((0.03, 0.97, 1.4, "94% interval"), (0.25, 0.75, 4.0, "50% interval")):
        a, b = np.quantile(draws, [low, high], axis=0)
        axis.hlines(at, a, b, color=BLUE, lw=width, label=label)
    axis.scatter(np.median(draws, 0), at, s=18, color="white", edgecolor=BLUE, zorder=3, label="median")
    axis.set_yticks(at, names, fontsize=8)
    axis.set_ylim(at[-1] - 0.7, 0.7)


def entry_names(variable: Any) -> list[str]:
    """theta[A], theta[B], ...: an entry's coordinates."""
    dims = [d for d in variable.dims if d not in ("chain", "draw")]
    names = [str(variable.name)]
    if dims:
        stacked = variable.isel(chain=0, draw=0).stack(entry=dims)
        names = [f"{variable.name}[{', '.join(map(str, e))}]" for e in stacked["entry"].values]
    return names


# -- k-hat ---------------------------------------------------------------------------------------


def khat_figure(diagnosis: Diagnosis | None) -> Figure | None:
    """Pareto k-hat of every row, and how many of the draws count after weighting."""
    if diagnosis is None or len(diagnosis.khat) < 2 or not np.isfinite(diagnosis.khat).any():
        return None
    k, ess, particles = np.sort(diagnosis.khat), diagnosis.ess, diagnosis.bounds.particles
    figure, (left, right) = figure_of(8.4, 3.6, 2)
    bad = k > GOOD_K
    left.scatter(np.arange(len(k)), k, s=6, color=np.where(bad, ORANGE, BLUE), lw=0)
    left.axhline(GOOD_K, color="black", lw=0.8, ls="--", label=f"{GOOD_K}: below it, weights correct the draws")
    left.legend(frameon=False, fontsize=8, loc="upper left")
    left.set_ylim(top=max(k[np.isfinite(k)].max(), GOOD_K) + 0.25 * np.ptp([*k[np.isfinite(k)], GOOD_K]))
    left.set(
        xlabel="row, sorted by k-hat",
        ylabel="Pareto k-hat",
        title=f"k-hat > {GOOD_K} in {bad.mean():.0%} of {len(k)} rows",
    )
    right.hist(ess, bins=np.geomspace(1, particles, 31).tolist(), color=BLUE)
    right.set(
        xscale="log",
        xlabel=f"draws that count, of {particles} a row",
        ylabel="rows",
        title=f"Effective draws, median {np.median(ess):.0f}",
    )
    return figure


# -- helpers -------------------------------------------------------------------------------------


def _first(run: Run, data: Mapping[str, Tensor], n: int) -> dict[str, Tensor]:
    """The first rows, where the guide reads rows; all, where it knows the fitted ones only."""
    if run.program.fixed_rows or run.structure.globals:
        return dict(data)
    return data_module.take(data, slice(0, n))


def _flat(value: Tensor) -> np.ndarray:
    return value.detach().reshape(len(value), -1).double().numpy()


def _is_label(y: Tensor, columns: Mapping[str, Tensor]) -> bool:
    """Few whole numbers, one a row."""
    whole = not y.is_floating_point() and not y.is_complex()
    return whole and y.shape == (data_module.n_rows(columns),) and len(torch.unique(y)) <= 20


__all__ = [
    "density_figures",
    "elbo_figure",
    "khat_figure",
    "latent_figure",
    "plot",
    "reconstructions_figure",
    "samples_figure",
    "save",
]
