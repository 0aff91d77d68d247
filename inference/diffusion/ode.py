r"""The probability-flow ODE of a Gaussian chain: a deterministic map between data and noise, and so a density.

In states of unit variance, h = z / √(α² + σ²) = a x + s ε with a² + s² = 1,

    dh/dγ = ½ a (a h − x̂(h, γ)),     log p_0(h_0) = log p_1(h_1) + ∫ tr ∂(dh/dγ)/∂h dγ      from γ(0) to γ(1)

has at every t the marginals of the reverse SDE, if x̂ is the conditional mean; in any case it is an invertible map, and
its density is that of its own draws: of continuous x of z_0 / α_0, as `sample_diffusion(mean=True)` gives them, without
the noise of p(x | z_0); where that is no small one it is said. The trace is exact (D backward passes), or Hutchinson's
unbiased estimate εᵀ J ε.

    continuous x   log p(x) = log p_0(a_0 x) + D log a_0                 exact, but for the solver's tolerance
    discrete x     E_q(z_0 | x)[log p_0(z_0) + log p(x | z_0) − log q(z_0 | x)] ≤ log P(x)

Sources: Score-Based Generative Modeling through SDEs (Song et al., 2021, arXiv:2011.13456); FFJORD (Grathwohl et al.,
2018, arXiv:1810.01367).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppgen.chains.gaussian_chain import GaussianChain, shares
from ppgen.data import n_rows, take
from ppgen.errors import PpgenError
from ppgen.inference.evaluation.estimates import Bound
from ppgen.transforms.continuous import solve

EXACT = 16  # values a row up to which the trace is exact
BLOCK = 2**19  # values at once
SMALL_NOISE = 0.05  # standard deviations: of a variance 0.25% larger

log = logging.getLogger("ppgen")


def flow(
    program: GaussianChain, z: Tensor, start: float, end: float, *, tolerance: float = 1e-5, **columns: Any
) -> Tensor:
    """The state z at time `start`, moved along the ODE to time `end`, in either direction."""
    _, alpha, sigma = program.coefficients(start)
    h = z / (alpha**2 + sigma**2).sqrt()
    times = torch.tensor([start, end], dtype=z.dtype, device=z.device)
    h = solve(_field(program, columns), h, times, rtol=tolerance, atol=tolerance)
    _, alpha, sigma = program.coefficients(end)
    return h * (alpha**2 + sigma**2).sqrt()


def _log_density(
    program: GaussianChain,
    h: Tensor,
    *,
    probes: Tensor | None = None,
    tolerance: float = 1e-5,
    **columns: Any,
) -> Tensor:
    """log p_0(h), (..., D) -> (...): of the states of unit variance at t = 0.

    Args:
        probes: noise of unit covariance in the shape of h, for Hutchinson's trace; None for the exact one.
    """
    field = _field(program, columns)

    def both(t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return _with_trace(lambda h: field(t, h), state[0], probes)

    times = torch.tensor([0.0, 1.0], dtype=h.dtype, device=h.device)
    start = (h, torch.zeros_like(h[..., 0]))
    end, trace = solve(both, start, times, rtol=tolerance, atol=tolerance)
    # the base in states of unit variance
    _, alpha, sigma = program.coefficients(1.0)
    unit = (alpha**2 + sigma**2).sqrt()
    log_base = program.base().log_prob(end * unit) + h.shape[-1] * unit.log().squeeze(-1)
    return log_base + trace


@torch.no_grad()
def ode_loglik(program: GaussianChain, data: Mapping[str, Tensor], *, draws: int = 1, tolerance: float = 1e-5) -> Bound:
    """log p(x) of each row by the ODE, with its kind: exact, estimate (Hutchinson), or lower where x is discrete.

    Args:
        data: the columns, prepared.
        draws: of Hutchinson's noise and of z_0 a row; at least two give a standard error.
        tolerance: of the solver, relative and absolute.
    """
    if program.samplers and "ode" not in program.samplers:
        raise PpgenError(f"{program.name} has no ODE that its draws follow; leave ode (--ode) out")
    values = program.values(data["x"])
    d, n = values.shape[-1], n_rows(data)
    discrete = bool(program.likelihood(values[:1] * 0, **_first(program, data)).support.is_discrete)
    exact = d <= EXACT
    if exact and not discrete:
        draws = 1
    noise = float((program.gamma(0.0) / 2).exp())
    if not discrete and noise > SMALL_NOISE:
        log.warning(
            "log p(x) by the ODE is the density of z_0, without the noise of p(x | z_0), which is of %.2g standard "
            "deviations of the data here: it is that of draws by mean=True; fit with a lower gamma_low", noise,
        )  # fmt: skip
    rows, parts = max(1, BLOCK // (d * draws)), []
    for i in range(0, n, rows):
        batch = take(data, slice(i, i + rows))
        with program.running():
            parts.append(_of_rows(program, batch, draws, discrete, exact, tolerance))
    found = torch.cat(parts, 1).double()
    se = found.std(0) / math.sqrt(draws) if draws > 1 else torch.full((n,), math.nan if discrete or not exact else 0.0)
    kind = "lower" if discrete else "exact" if exact else "estimate"
    return Bound("ode", kind, found.mean(0).numpy(), np.asarray(se))


def _of_rows(
    program: GaussianChain, batch: Mapping[str, Tensor], draws: int, discrete: bool, exact: bool, tolerance: float
) -> Tensor:
    """(draws, rows)."""
    x, columns = batch["x"], program.context(dict(batch))
    gamma, alpha, sigma = program.coefficients(0.0)
    a, _ = shares("vp", gamma)
    mean = program.encode(x).expand(draws, -1, -1)
    if discrete:
        q = program.forward(x, 0.0)
        z = q.sample((draws,))
        h, unit = z / (alpha**2 + sigma**2).sqrt(), (alpha**2 + sigma**2).sqrt()
        # densities of z: that of h, less the logarithm of the factor between them
        rest = program.likelihood(z, **columns).log_prob(program.values(x)) - q.log_prob(z)
        rest = rest - mean.shape[-1] * unit.log().squeeze(-1)
    else:
        h = a * mean
        # x = decode(h / a): its Jacobian is that of decode, which is affine
        stretch = (program.decode(torch.ones_like(mean[0, 0])) - program.decode(torch.zeros_like(mean[0, 0]))).abs()
        rest = mean.shape[-1] * a.log().squeeze(-1) - stretch.log().sum()
    probes = None if exact else torch.randint(0, 2, h.shape).to(h) * 2 - 1
    return _log_density(program, h, probes=probes, tolerance=tolerance, **columns) + rest


def _first(program: GaussianChain, data: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return program.context(dict(take(data, slice(0, 1))))


def _field(program: GaussianChain, columns: Mapping[str, Any]) -> Callable[[Tensor, Tensor], Tensor]:
    """(t, h) -> dh/dt."""

    def field(t: Tensor, h: Tensor) -> Tensor:
        t = t.clamp(0.0, 1.0)  # the solver looks beyond to choose its first step
        gamma, rate = program.schedule.with_rate(t)
        a, _ = shares("vp", gamma)
        alpha, sigma = shares(program.process, gamma)
        x = program.denoise(h * (alpha**2 + sigma**2).sqrt(), t, **columns)
        return 0.5 * rate * a * (a * h - x)

    return field


def _with_trace(f: Callable[[Tensor], Tensor], h: Tensor, probes: Tensor | None) -> tuple[Tensor, Tensor]:
    """f(h), and the trace of its Jacobian in each row."""
    with torch.enable_grad():
        h = h.detach().requires_grad_()
        value = f(h)
        if probes is not None:
            (product,) = torch.autograd.grad(value, h, probes)
            return value.detach(), (product * probes).sum(-1)
        trace = torch.zeros_like(h[..., 0])
        for i in range(h.shape[-1]):
            (row,) = torch.autograd.grad(value[..., i].sum(), h, retain_graph=i + 1 < h.shape[-1])
            trace = trace + row[..., i]
    return value.detach(), trace
