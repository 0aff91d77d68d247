r"""The terms of a chain's ELBO, from its four conditionals, without running the chain: a producer of terms.

    ELBO = −KL(q(z_1 | x), p(z_1)) + E log p(x | z_0) − Σ_i E_q(z_t | x) KL(q(z_s | z_t, x), p(z_s | z_t)),   T steps

z_t is drawn from `forward` at once, so each term stands by itself. `subsampled_terms` draws one i a row, of
probability P_i, and divides by it: unbiased for the ELBO and, the random t depending on no parameter, for its
gradient. The times of a batch are spread evenly (low discrepancy): each is uniform by itself, and their mean has less
variance. `ppgen.inference.elbo_decomposition` runs over every i and keeps the terms apart.

A reweighted objective (`weighting`) changes what is trained on (`Term.target`), never the log-probability beside it.

Sources: Variational Diffusion Models (Kingma et al., 2021, arXiv:2107.00630), times and T → ∞; Improved Denoising
Diffusion Probabilistic Models (Nichol & Dhariwal, 2021, arXiv:2102.09672), times by running loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from ppgen.terms import Term

Chain = Any  # a `ppgen.chains.chain.Chain`, whose file imports this one

MEMORY = 0.9  # of the running mean of squared costs
UNIFORM = 0.05  # share of the times that is drawn uniformly, whatever the costs


def subsampled_terms(program: Chain, data: Mapping[str, Tensor], times: int = 1) -> list[Term]:
    """Unbiased draws of the terms of each row's ELBO: both ends, and `times` of the T steps between them.

    Args:
        program: the chain; in training mode its labels are partly hidden and its history of costs is kept.
        data: the columns.
        times: of each row; the leading dimension of the terms.
    """
    with program.running():
        columns, x = program.context(dict(data)), data["x"]
        if program.training:
            columns = program.hide(columns, x)
        n = len(x)
        u = _spread_times(times, n, like=program.values(x[:1]))
        t, density = _timed(program, u)
        cost, target = terms(program, x, t, columns)
        cost, target = cost / density, target / density
        if program.training:
            _remember(program, t, cost.detach() * density)
        ends = {
            "kl": -program.prior(x, **columns),
            "likelihood": reconstruction(program, x, columns),
        }

    def by_row(site: str, role: str, value: Tensor, target: Tensor | None = None) -> Term:
        return Term(site, role, value.new_zeros(times), value, value, ("data",), frozenset(["data"]), target=target)

    found = [by_row("z_1" if role == "kl" else "x", role, v.expand(times, n)) for role, v in ends.items()]
    return [*found, by_row("z", "kl", -cost, -target)]


def reconstruction(program: Chain, x: Tensor, columns: Mapping[str, Tensor]) -> Tensor:
    """log p(x | z_0) at a draw of z_0, one a row."""
    z = _draw(program.forward(x, 0.0, **columns))
    return program.likelihood(z, **columns).log_prob(program.values(x))


def terms(program: Chain, x: Tensor, t: Tensor, columns: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """T KL of the step that holds time t, (times, rows): as it is, and reweighted."""
    program.require_density()
    if program.limit:
        s = t
    else:
        i = (t * program.steps).floor().clamp(0, program.steps - 1)
        s, t = i / program.steps, (i + 1) / program.steps
    coupled = program.coupled(x, t, **columns) if program.training else None
    with program.variance_only() as shape, nullcontext() if coupled is None else torch.no_grad():
        cost = _cost(program, x, _draw(program.forward(x, t, **columns)), s, t, columns)
    # The shape of the schedule between the ends changes the variance of the estimate, not its mean: its gradient
    # is made that of E cost².
    relative = cost.detach() / cost.detach().mean()
    for tensor in shape if program.limit else ():
        tensor.register_hook(relative.mul)
    target = cost if coupled is None else _cost(program, x, coupled, s, t, columns)
    return cost, target if program.weighting == "elbo" else target * program.weight(s, t)


def _cost(program: Chain, x: Tensor, z: Tensor, s: Tensor, t: Tensor, columns: Mapping[str, Tensor]) -> Tensor:
    """T KL of the step from z at t to s, or nats a unit of time."""
    if program.limit:
        return program.rate(x, z, t, **columns)
    return program.steps * program.cost(x, z, s, t, **columns)


def _draw(q: TorchDistribution) -> Tensor:
    """A draw of z_t: a path where there is one; of categories there is none, and q has no parameters."""
    return q.rsample() if q.has_rsample else q.sample()


# -- times -----------------------------------------------------------------------------------------


def _spread_times(times: int, rows: int, like: Tensor) -> Tensor:
    """(times, rows) numbers in [0, 1), each uniform, evenly spread over all and each row's by one random shift."""
    n = times * rows
    shift = torch.rand((), dtype=like.dtype, device=like.device)
    even = torch.arange(n, dtype=like.dtype, device=like.device) / n
    return ((even + shift) % 1.0).reshape(times, rows)


def _timed(program: Chain, u: Tensor) -> tuple[Tensor, Tensor]:
    """Times for uniform numbers u, and their density: 1, or in proportion to the root of the mean squared cost.

    With T steps the density is that of the step: T times the probability that a time falls into it.
    """
    history = getattr(program, "history", None)
    if history is None or not program.training:
        return u, torch.ones_like(u)
    bins = len(history)
    p = history.sqrt() / history.sqrt().sum()
    p = (1 - UNIFORM) * p + UNIFORM / bins
    edges = torch.cat([p.new_zeros(1), p.cumsum(0)])
    edges = edges / edges[-1]
    k = (torch.searchsorted(edges, u.contiguous(), right=True) - 1).clamp(0, bins - 1)
    t = ((k + (u - edges[k]) / p[k]) / bins).clamp(0, 1 - 1e-6)
    if program.limit:
        return t, p[k] * bins
    i = (t * program.steps).floor()
    return t, (_below(edges, p, (i + 1) / program.steps) - _below(edges, p, i / program.steps)) * program.steps


def _below(edges: Tensor, p: Tensor, t: Tensor) -> Tensor:
    """The probability of a time below t."""
    k = (t * len(p)).floor().clamp(0, len(p) - 1)
    return edges[k.long()] + (t * len(p) - k) * p[k.long()]


def _remember(program: Chain, t: Tensor, cost: Tensor) -> None:
    """The running mean of the squared cost of each bin of times."""
    history = getattr(program, "history", None)
    if history is None:
        return
    k = (t * len(history)).long().clamp(0, len(history) - 1).flatten()
    count = torch.zeros_like(history).index_add(0, k, torch.ones_like(cost.flatten()))
    total = torch.zeros_like(history).index_add(0, k, cost.flatten() ** 2)
    fresh = total / count.clamp(min=1.0)
    history.copy_(torch.where(count > 0, MEMORY * history + (1 - MEMORY) * fresh, history))
