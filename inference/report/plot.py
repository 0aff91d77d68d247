"""Pictures of a fit, those that make sense for its program, as PNG or SVG files.

elbo              the ELBO over the steps with its standard error, and that of the held-out rows
samples           draws of the model: images, points of a plane, or histograms, beside the data
density           p(x) itself between data and draws, for points of a plane where nothing is latent
corner            pairs of 3 to 8 dimensions: regions of the data and of draws
reconstructions   E[x | z] at z ~ q(z | x) beside x; where a latent is global, the posterior predictive beside x
interpolation     images between two rows, by the latents between theirs
latent            posterior means of the rows and KL by dimension; intervals of global latents
ledger_NAME       of a chain within, where the nats of its bound go
khat              Pareto k-hat and effective draws of the guide, row by row

Each figure is a function of its own, which returns None where it has nothing to show.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ppgen import data as data_module
from ppgen.errors import PpgenError
from ppgen.inference import objectives
from ppgen.inference.evaluation.diagnose import Diagnosis, diagnose
from ppgen.inference.evaluation.loglik import NoWeights
from ppgen.inference.evaluation.posterior import name_in, posterior
from ppgen.inference.evaluation.psis import GOOD_K
from ppgen.inference.evaluation.sample import reconstruct
from ppgen.inference.report import sample_plots
from ppgen.inference.report.chain_plots import chain_figures, within_figures
from ppgen.inference.report.figures import (
    figure_of,
    groups_figures,
    image_grid,
    intervals_figure,
    require_format,
    write_figures,
)
from ppgen.inference.report.interpolation import interpolation_figure
from ppgen.run import Run, prepare_columns
from ppgen.run.shown import entry_names, shown, variable
from ppgen.style import BLUE, GREY, LABELS, ORANGE

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot(
    run: Run, data: Any = None, out: str | Path | None = None, *, seed: int = 0, format: str = "png"
) -> list[Path]:
    """Writes the pictures of a run.

    Args:
        run: the run.
        data: the columns to show it on; None takes those that were fitted. A label `y` that the program does not
            take colours the latent space.
        out: the folder, made where it is not there; None: RUN/plots.
        seed: of the draws.
        format: png or svg.

    Returns:
        The files written.

    Raises:
        PpgenError: a run in memory without `out`, or fitted to data in memory without `data`; another format.
    """
    require_format(format)
    if out is None and run.path is None:
        raise PpgenError("the run has no folder to put pictures into; pass out=")
    folder = Path(out) if out is not None else run.path / "plots"  # type: ignore[operator]
    columns = run.data() if data is None else prepare_columns(data, run.program, run.dtype)
    label = columns.get("y")
    columns = columns.only([k for k in columns if k != "y" or k in run.program.columns])
    if not isinstance(label, Tensor) or not _is_label(label, columns):
        label = None
    if run.program.is_chain:
        return write_figures(folder, {"elbo": elbo_figure(run), **chain_figures(run, columns, seed=seed)}, format)
    d = None
    with suppress(NoWeights):
        d = diagnose(run, columns, draws=200, rows=30, particles=500, seed=seed)
    first = sample_plots.first_rows(run, columns, sample_plots.ROWS)
    figures = {
        "elbo": elbo_figure(run),
        "samples": sample_plots.samples_figure(run, first, seed=seed),
        **sample_plots.density_figures(run, columns, seed=seed),
        "reconstructions": reconstructions_figure(run, columns, seed=seed),
        "interpolation": interpolation_figure(run, columns, seed=seed),
        "latent": latent_figure(run, columns, d, label, seed=seed),
        **within_figures(run, columns, seed=seed),
        **(groups_figures(d.tree) if d is not None else {}),
        "khat": khat_figure(d),
    }
    return write_figures(folder, figures, format)


# -- the ELBO ------------------------------------------------------------------------------------


def elbo_figure(run: Run) -> Figure | None:
    """ELBO and its standard error over the steps; nats a row, or of the data set where a latent is global."""
    m = run.metrics
    seen = np.isfinite(m["elbo"])
    if seen.sum() < 2:
        return None
    whole = not run.structure.by_row
    recorded = run.config["data"]
    per = 1 if whole else recorded["rows"]
    step, elbo, se = m["step"][seen], m["elbo"][seen] / per, m["elbo_se"][seen] / per
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
    other = objectives.reweighted(run.config["fit"]["objective"], run.program)
    title = "A lower bound on log p(x)" + (f"; trained on {other}, not on it" if other else "")
    axis.set(xlabel="step", ylabel="nats" if whole else "nats a row")
    axis.set_title(title, fontsize=9 if other else None)
    axis.legend(frameon=False, loc="lower right")
    return figure


# -- reconstructions -----------------------------------------------------------------------------


def reconstructions_figure(run: Run, data: Mapping[str, Tensor], *, seed: int | None = 0) -> Figure | None:
    """x beside E[x | z], z ~ q(z | x); with a global latent, x beside its posterior predictive."""
    if not run.structure.latents:
        return None
    few = sample_plots.first_rows(run, data, sample_plots.ROWS)
    seen = sample_plots.observed_values(run, few)[0]
    name = next(iter(seen), None)
    if name is None:
        return None
    if run.structure.globals:
        return _predictive(run, data, name, seen[name], seed)
    again, shape = reconstruct(run, few, seed=seed)[name], sample_plots.image_shape(run, name)
    if shape:
        n = min(20, len(again))
        figure, axes = figure_of(8.2, 4.9)
        pairs = torch.cat([torch.cat([seen[name][i : i + 10], again[i : i + 10]]) for i in range(0, n, 10)])
        image_grid(axes[0], pairs, shape, f"{name}, and below each E[{name} | z], z ~ q(z | {name})", min(n, 10),
                   values=sample_plots.pixel_values(run, name))  # fmt: skip
        figure.set_size_inches(8.2, 0.35 + 8.2 * math.ceil(len(pairs) / 10) / min(n, 10))
        return figure
    x, y = sample_plots.flat(seen[name]), sample_plots.flat(again)
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
    return intervals_figure(draws, entry_names(variable), name, f"Posterior predictive of {name}", seen)


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
    few = sample_plots.first_rows(run, data, sample_plots.ROWS)
    tree: Any = posterior(run, few, draws=20, seed=seed, predictive=False, prior=False)
    drawn = tree["posterior"][name_in(tree, name)].values[0]
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
    groups = [variable(tree, n) for n in shown(tree)]
    draws = np.concatenate([v.values[0].reshape(v.sizes["draw"], -1) for v in groups], 1)
    names = [n for v in groups for n in entry_names(v)]
    return intervals_figure(draws, names, "value", "Posterior of the latents, under the guide")


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


def _is_label(y: Tensor, columns: Mapping[str, Tensor]) -> bool:
    """Few whole numbers, one a row."""
    whole = not y.is_floating_point() and not y.is_complex()
    return whole and y.shape == (data_module.n_rows(columns),) and len(torch.unique(y)) <= 20
