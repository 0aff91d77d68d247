r"""Missing values from a Gaussian chain as it is, without training it anew: x_missing ~ p_θ(x_missing | x_known).

The known values' states are drawn first, z_0..z_1 ~ q(z | x_known): a path that the reverse chain would have to follow.
K particles then walk the reverse chain; the missing values' states are drawn, and each particle is weighed by how well
it foresees the known ones',

    w ← w · p_θ(z_s,known | z_t)        resampled where the effective number of particles falls below K / 2,

so that, with K and the number of steps, the particles become draws of the conditional of the model whose reverse chain
undoes its forward process. (Setting the known values without weights, as is often done, has no such limit.) The steps
are those of `dpmpp_sde`: even in log-SNR, with x̂ extrapolated to their middle. Where one step changes much, the chain's
own variance is too narrow for what the true step may be, and the weights follow the noise of the known values' path.

Source: Diffusion Probabilistic Modeling of Protein Backbones in 3D for the Motif-Scaffolding Problem (Trippe et al.,
2023, arXiv:2206.04119), SMCDiff; systematic resampling: Kitagawa (1996).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ppgen.chains.gaussian_chain import GaussianChain
from ppgen.data import Table
from ppgen.errors import PpgenError
from ppgen.inference.diffusion.samplers import Middle, chain_of
from ppgen.inference.evaluation.sample import dtype_of_program, ready
from ppgen.program import Program
from ppgen.run import Run, prepare_columns

Grid = list[tuple[float, float]]  # steps (s, t) from t = 1 down to s = 0


@torch.no_grad()
def impute(
    run: Run | Program,
    x: Any,
    known: Any = None,
    *,
    draws: int = 1,
    particles: int = 64,
    steps: int = 100,
    given: Mapping[str, Any] | None = None,
    seed: int | None = None,
    report: Callable[[int, int], object] | None = None,
) -> Tensor:
    """Draws of each row with its missing values filled in: (draws, rows, D).

    Args:
        run: a run, or a program: a Gaussian chain.
        x: rows, nan where missing unless `known` tells.
        known: booleans in the shape of x (or of one row), True where the value is known.
        draws: of each row; at most as many as particles, which they are taken from. They share the path of the known
            values and some of their own, and tell less than as many independent ones; a row that is repeated in x has
            independent draws.
        particles: K, each a network call a step.
        steps: even in log-SNR, unless as many as an explicit chain has.
        given: other columns of the model, one value a row or for all.
        seed: of the draws.
        report: called with (steps done, of how many).

    Raises:
        PpgenError: a program that is no Gaussian chain; shapes that do not fit; more draws than particles; a known
            value that x cannot have.
    """
    program = chain_of(run, "impute")
    if program.samplers:
        raise PpgenError(
            f"impute follows the steps of a diffusion, and those of {program.name} as set are others; fit model "
            "diffusion"
        )
    types = given.types if isinstance(given, Table) else None
    table = Table({"x": x, **(given or {})}, types)
    columns = prepare_columns(table, program, dtype_of_program(program), program.columns)
    if not 1 <= draws <= particles or steps < 1:
        raise PpgenError(
            f"draws is {draws}, particles {particles}, steps {steps}; expected 1 <= draws <= particles, and steps of "
            "at least 1"
        )
    values = program.values(columns["x"])
    mask = ~values.isnan() if known is None else _mask(program, known, values)
    with ready(run, columns, seed, guide=False), program.running():
        rows = len(values)
        context = {k: v.expand(particles, rows) for k, v in program.context(columns).items()}
        grid = program.sampling_grid(steps)
        path = _up(program, values, mask, grid, {k: v[0] for k, v in context.items()})
        z = torch.where(mask, path[0], program.base().expand([particles, rows]).sample())
        z, log_w = _down(program, z, path[1:], mask, grid, context, report)
        chosen = _systematic(log_w.softmax(0), draws)
        z = z.gather(0, chosen[..., None].expand(-1, -1, z.shape[-1]))
        some = {k: v[:draws] for k, v in context.items()}
        return torch.where(mask, values.nan_to_num(), program.likelihood(z, **some).sample())


def _up(program: GaussianChain, values: Tensor, mask: Tensor, grid: Grid, context: dict[str, Tensor]) -> list[Tensor]:
    """A draw of q(z | x) of the known values, from time 1 down to 0: each (rows, D)."""
    # What stands in a missing place reaches nothing: each value has its own noise.
    filled = torch.where(mask, values, program.decode(torch.zeros_like(values)))
    path = [program.forward(filled, 1.0).sample()]
    _require_possible(program.likelihood(path[0], **context), values, mask)
    for s, t in grid:
        path.append(program.posterior(path[-1], filled, s, t).sample())
    return path


def _down(
    program: GaussianChain, z: Tensor, path: list[Tensor], mask: Tensor, grid: Grid, context: dict[str, Tensor],
    report: Callable[[int, int], object] | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Particles (K, rows, D) and their log-weights (K, rows) at time 0, the known values on their path."""
    steps = len(grid)
    log_w = z.new_zeros(z.shape[:-1])
    middle = Middle(program, steps, context)
    for i, ((s, t), target) in enumerate(zip(grid, path, strict=True), 1):
        _, x = middle(z, s, t)
        p: Any = program.posterior_at(z, x, s, t).base_dist
        log_w = log_w + (p.log_prob(target) * mask).sum(-1)
        z = torch.where(mask, target, p.sample())
        both, log_w = _resampled(torch.cat([z, middle.latest], -1), log_w)  # a particle keeps the x̂ it came from
        z, middle.latest = both.chunk(2, -1)
        if report is not None:
            report(i, steps)
    return z, log_w


def _resampled(z: Tensor, log_w: Tensor) -> tuple[Tensor, Tensor]:
    """Systematic resampling of the rows whose particles count less than half: z (K, rows, D), log_w (K, rows)."""
    k, rows = log_w.shape
    w = log_w.softmax(0)
    poor = 1 / (w**2).sum(0) < k / 2
    if not poor.any():
        return z, log_w
    index = _systematic(w, k)
    index = torch.where(poor, index, torch.arange(k, device=w.device)[:, None])
    return z.gather(0, index[..., None].expand_as(z)), torch.where(poor, 0.0, log_w)


def _systematic(w: Tensor, n: int) -> Tensor:
    """Indices of n particles of each row in proportion to their weights (K, rows), evenly: (n, rows)."""
    at = (torch.arange(n, dtype=w.dtype, device=w.device)[:, None] + torch.rand(w.shape[1:]).to(w)) / n
    return torch.searchsorted(w.cumsum(0).T.contiguous(), at.T.contiguous()).clamp(max=len(w) - 1).T


def _require_possible(likelihood: Any, values: Tensor, mask: Tensor) -> None:
    """Refuses a known value outside the support."""
    support = likelihood.base_dist.support
    wrong = mask & ~(support.check(values.nan_to_num()) & values.isfinite())
    if wrong.any():
        row, column = (int(i) for i in wrong.nonzero()[0])
        raise PpgenError(
            f"value {column} of row {row} of x is {float(values[row, column]):g}, outside the support {support}; "
            "leave it empty (nan) to have it filled in, or give it in the units of the data that were fitted"
        )


def _mask(program: Any, known: Any, values: Tensor) -> Tensor:
    mask = torch.as_tensor(known)
    mask = mask.reshape(-1, values.shape[-1]) if mask.numel() % values.shape[-1] == 0 else mask
    if mask.shape[-1] != values.shape[-1] or len(mask) not in (1, len(values)):
        raise PpgenError(
            f"known has the shape {tuple(torch.as_tensor(known).shape)} for {len(values)} rows of {values.shape[-1]} "
            f"values of {program.name}; pass one boolean a value, or one row of them"
        )
    return mask.bool().expand_as(values)
