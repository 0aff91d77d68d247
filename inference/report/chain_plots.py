"""Pictures of a chain: its states from noise to data, and where its bound's nats go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ppgen.chains.gaussian_chain import GaussianChain
from ppgen.inference.diffusion.elbo_decomposition import ElboDecomposition, chains_within, elbo_decomposition
from ppgen.inference.diffusion.samplers import chain_of, sample_diffusion
from ppgen.inference.evaluation.sample import sample
from ppgen.inference.report.figures import figure_of, image_grid
from ppgen.inference.report.sample_plots import first_rows, image_shape, samples_figure
from ppgen.program import Program
from ppgen.run import Run
from ppgen.style import BLUE, GREY, ORANGE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SAMPLER, STEPS = "dpmpp", 50
SHOWN = 8  # states
ROWS = 200  # of the data, in the ledger


def chain_figures(run: Run, data: Mapping[str, Tensor], *, seed: int | None = 0) -> dict[str, Figure | None]:
    """The pictures of `ppgen plot` for a chain: draws, the chain, the ledger."""
    given = _columns(run, data)
    n = 64 if image_shape(run, "x") else 1000
    held = {k: v[torch.arange(n) % len(v)] for k, v in given.items()}
    gaussian = isinstance(run.program, GaussianChain)
    drawn = sample_diffusion(run, n, given=held, seed=seed) if gaussian else sample(run, n, seed=seed)["x"]
    return {
        "samples": samples_figure(run, data, drawn={"x": drawn}, given=held),
        "chain": _chain_figure(run, given, seed=seed) if gaussian else None,
        "ledger": _elbo_figure(elbo_decomposition(run, {k: v[:ROWS] for k, v in data.items()}, seed=seed), run.program),
    }


def within_figures(run: Run, data: Mapping[str, Tensor], *, seed: int | None = 0) -> dict[str, Figure | None]:
    """The ledgers of the chains within a program, each under its site's name."""
    if not run.program.subsamples:
        return {}
    few = first_rows(run, data, ROWS)
    return {
        f"ledger_{name.replace('/', '_')}": _elbo_figure(elbo_decomposition(chain, rows, seed=seed), chain, name)
        for name, (chain, rows) in chains_within(run, few, seed=seed).items()
    }


def _chain_figure(run: Run, given: Mapping[str, Tensor] | None = None, *, seed: int | None = 0) -> Figure | None:
    """Some states z_t of a draw, in the units of the data and of variance that stays, and x̂ beneath, left to right.

    Images: one row a draw. Otherwise points of the first two features, or histograms of the only one.
    """
    program = chain_of(run, "this picture")
    shape = image_shape(run, "x")
    n = 6 if shape else 1000
    held = {k: v[torch.arange(n) % len(v)] for k, v in (given or {}).items()}
    states: list[tuple[float, Tensor]] = []
    sampler, steps = SAMPLER, STEPS
    if program.samplers and sampler not in program.samplers:
        sampler, steps = program.samplers[0], program.sampler[1] if program.sampler else STEPS
    x = sample_diffusion(run, n, sampler, steps, given=held, seed=seed, watch=lambda t, z: states.append((t, z)))
    chosen = [states[i] for i in np.linspace(0, len(states) - 1, SHOWN).round().astype(int)]
    with torch.no_grad():
        shown = []
        for t, z in chosen:
            shown.append((t, program.decode(z / program.spread(t))))
    titles = [f"t = {t:.2f}" for t, _ in shown] + ["x"]
    values = [v for _, v in shown] + [x]
    figure, axes = figure_of(1.15 * len(values) if shape else 1.6 * len(values), 6.6 if shape else 2.0, len(values))
    if shape:
        low, high = float(x.min()), max(float(x.max()), float(x.min()) + 1e-6)
        for axis, title, v in zip(axes, titles, values, strict=True):
            scaled = ((v[:n] - low) / (high - low)).clamp(0, 1)
            image_grid(axis, scaled, shape, title, columns=1)
        return figure
    flat = [v.reshape(len(v), -1).numpy() for v in values]
    for axis, title, points in zip(axes, titles, flat, strict=True):
        axis.set_title(title, fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
        if points.shape[1] == 1:
            axis.hist(points[:, 0], bins=40, density=True, color=BLUE)
            continue
        axis.scatter(points[:, 0], points[:, 1], s=1.5, color=BLUE, alpha=0.5, lw=0)
        ends = np.concatenate([flat[0], flat[-1]])[:, :2]
        least, most = np.quantile(ends, [0.001, 0.999], axis=0)
        margin = 0.3 * (most - least)
        axis.set(xlim=(least[0] - margin[0], most[0] + margin[0]), ylim=(least[1] - margin[1], most[1] + margin[1]))
    return figure


def _elbo_figure(found: ElboDecomposition, program: Program | None = None, name: str = "x") -> Figure:
    """What each interval of time costs, the ends beside it: bits/dim where x is discrete, else nats a row."""
    unit = "nats a row" if found.dims is None else "bits/dim"

    def of(nats: float | np.ndarray) -> np.ndarray:
        value = np.asarray(nats, dtype=float)
        return value if found.dims is None else value / (found.dims * np.log(2))

    figure, (axis, ends) = figure_of(7.6, 3.4, 2, width_ratios=[4, 1])
    width = np.diff(found.times)
    axis.bar(found.times[:-1], of(found.kl), width, align="edge", color=BLUE, lw=0)
    axis.errorbar(found.times[:-1] + width / 2, of(found.kl), 2 * of(found.kl_se), fmt="none", ecolor=GREY, lw=0.8)
    total, se = float(of(-found.elbo)), float(of(found.elbo_se))
    axis.set(xlabel="time t, data at 0", ylabel=f"KL of each interval, {unit}")
    weighting = getattr(program, "weighting", "elbo")
    trained = "" if weighting == "elbo" else f"; trained by {weighting!r}, which is no bound"
    bound = f"an upper bound on −log p({name}){trained}"
    axis.set_title(f"−ELBO = {total:.4g} ± {se:.2g} {unit} ({found.rows} rows): {bound}", fontsize=9)
    names, parts = ["prior", "all times", f"{name} given z_0"], [found.prior, found.kl.sum(), found.reconstruction]
    ends.bar(names, [float(of(p)) for p in parts], color=[GREY, BLUE, ORANGE])
    ends.tick_params(axis="x", labelrotation=60)
    ends.set_ylabel(unit)
    return figure


def _columns(run: Run, data: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in data.items() if k != "x" and k in run.program.columns}
