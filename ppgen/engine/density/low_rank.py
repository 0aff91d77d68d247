r"""Batch and match in many dimensions: a normal of covariance Ψ + Λ Λᵀ, Ψ diagonal, Λ (dim, rank).

One round is that of `batch_and_match`, of B draws, with every matrix kept as a diagonal and a few columns,

    U = Q Qᵀ,   V = Ψ + R Rᵀ,   Σ' = V − V Q (½ I + (Qᵀ V Q + ¼ I)^½)⁻² Qᵀ V,   μ' = (μ + λ (Σ' ḡ + ū)) / (1 + λ)

Q of the B scores about their mean, and the mean; R of Λ, the B draws about their mean, and their mean about μ. Then the
patch: the Ψ and Λ whose normal is nearest to that of Σ', by the steps of EM for a factor analysis whose covariance is
Σ'. A round costs dim · (rank + B)². It begins at the best normal of the paths of a Pathfinder that needs no matrices.

Source: Batch, match, and patch: low-rank approximations for score-based variational inference (Modi, Cai, Saul 2024,
arXiv:2410.22292).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ppgen.engine.density.batch_and_match import ENOUGH, REACH, SAME
from ppgen.engine.density.inverse_hessian import LowRank as Root
from ppgen.engine.density.pathfinder import Density, climb_low_rank

DRAWS = 64  # of a round, and four times as many for an ELBO
ROUNDS, EVERY = 200, 10  # rounds, and those between two ELBOs
PATIENCE = 4  # ELBOs that are no better, after which it ends
PATCHES = 10  # steps of EM
SHRINK = 20  # halvings of the first normal's sd, until its draws can be evaluated


class _LowRank(NamedTuple):
    """N(loc, diag(diagonal) + factor factorᵀ), and its ELBO in nats: (dim,), (dim, rank), (dim,)."""

    loc: Tensor
    factor: Tensor
    diagonal: Tensor
    elbo: float = -math.inf

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        noise = torch.randn(n, sum(self.factor.shape), generator=generator, dtype=self.loc.dtype)
        dim = len(self.loc)
        return self.loc + noise[:, :dim] * self.diagonal.sqrt() + noise[:, dim:] @ self.factor.mT

    def log_prob(self, u: Tensor) -> Tensor:
        return torch.distributions.LowRankMultivariateNormal(self.loc, self.factor, self.diagonal).log_prob(u)


@torch.no_grad()
def low_rank_gaussian(score: Density, dim: int, rank: int, *, starts: int = 4, seed: int = 0) -> _LowRank | None:
    """The normal of the highest ELBO on the way; None where the log joint is finite near no start.

    Args:
        score: log joint in nats, and gradients, of many points at once.
        starts: paths of Pathfinder.
    """
    generator = torch.Generator().manual_seed(seed)
    now = _first(score, dim, rank, starts, generator)
    if now is None:
        return None
    best, idle = now, 0
    for t in range(ROUNDS):
        found = _drawn(score, now, generator)
        if found is None or not _usable(new := _round(now, *found, t)):
            break
        now = new
        if t % EVERY == EVERY - 1:
            elbo = _elbo(score, now, generator)
            better = elbo > best.elbo + SAME
            if elbo > best.elbo - SAME:  # of two that are as good the later
                best = now._replace(elbo=max(elbo, best.elbo))
            idle = 0 if better else idle + 1
            if idle == PATIENCE:
                break
    return best if math.isfinite(best.elbo) else None


def _first(score: Density, dim: int, rank: int, starts: int, generator: torch.Generator) -> _LowRank | None:
    """The best normal of the paths; where they found none, one about zero that is narrow enough to be evaluated."""
    dtype = torch.get_default_dtype()
    small = 1e-3 * torch.randn(dim, rank, generator=generator, dtype=dtype)
    now = _LowRank(torch.zeros(dim, dtype=dtype), small, torch.ones(dim, dtype=dtype))
    at = REACH * (2 * torch.rand(starts, dim, generator=generator, dtype=dtype) - 1)
    paths = climb_low_rank(score, at, generator=generator, enough=ENOUGH)
    if torch.isfinite(top := paths.elbo.max()):
        k = int(paths.elbo.argmax())
        found = _patched(now._replace(loc=paths.mean[k]), paths.root.taken(torch.tensor([k])))
        if _drawn(score, found, generator) is not None:
            return found._replace(elbo=float(top))
    for _ in range(SHRINK):
        if _drawn(score, now, generator) is not None:
            return now
        now = now._replace(factor=now.factor / 2, diagonal=now.diagonal / 4)
    return None


def _patched(q: _LowRank, root: Root) -> _LowRank:
    """The nearest normal of this form to the one of covariance `root`."""
    sd, basis, variance = root.sd[0], root.basis[0], root.stretch[0].square() - 1

    def product(x: Tensor) -> Tensor:
        x = sd[:, None] * x
        return sd[:, None] * (x + basis @ (variance[:, None] * (basis.mT @ x)))

    whole = sd.square() * (1 + (basis.square() * variance).sum(1))
    order = variance.argsort(descending=True)[: q.factor.shape[1]]
    factor = q.factor.clone()
    factor[:, : len(order)] += sd[:, None] * basis[:, order] * variance[order].clamp_min(0.0).sqrt()
    q = q._replace(factor=factor, diagonal=sd.square())
    found = _patch(q, product, whole)
    return found if _usable(found) else q


def _drawn(score: Density, q: _LowRank, generator: torch.Generator) -> tuple[Tensor, Tensor] | None:
    """Draws and scores, those that are numbers; None where fewer than half are."""
    u = q.draw(DRAWS, generator)
    value, g = score(u)
    good = torch.isfinite(value) & torch.isfinite(g).all(-1)
    return (u[good], g[good]) if good.sum() >= DRAWS // 2 else None


def _usable(q: _LowRank) -> bool:
    return all(bool(torch.isfinite(v).all()) for v in q[:3]) and bool((q.diagonal > 0).all())


def _elbo(score: Density, q: _LowRank, generator: torch.Generator) -> float:
    u = q.draw(4 * DRAWS, generator)
    total = (score(u)[0] - q.log_prob(u)).double().mean()
    return float(total) if torch.isfinite(total) else -math.inf


def _round(q: _LowRank, u: Tensor, g: Tensor, t: int) -> _LowRank:
    n = len(u)
    weight = n * len(q.loc) / (t + 1)
    share = weight / (1 + weight)
    ub, gb = u.mean(0), g.mean(0)
    Q = torch.cat([(weight / n) ** 0.5 * (g - gb), share**0.5 * gb[None]]).mT
    R = torch.cat([q.factor.mT, (weight / n) ** 0.5 * (u - ub), share**0.5 * (q.loc - ub)[None]]).mT
    VQ = q.diagonal[:, None] * Q + R @ (R.mT @ Q)
    w, E = torch.linalg.eigh(Q.mT @ VQ)
    P = VQ @ (E / (0.5 + (w.clamp_min(0.0) + 0.25).sqrt()))  # Σ' = Ψ + R Rᵀ − P Pᵀ

    def product(x: Tensor) -> Tensor:
        return q.diagonal[:, None] * x + R @ (R.mT @ x) - P @ (P.mT @ x)

    loc = (q.loc + weight * (product(gb[:, None])[:, 0] + ub)) / (1 + weight)
    whole = q.diagonal + R.square().sum(1) - P.square().sum(1)
    return _patch(_LowRank(loc, q.factor, q.diagonal), product, whole)


def _patch(q: _LowRank, product: Callable[[Tensor], Tensor], whole: Tensor) -> _LowRank:
    """The nearest normal of this form to one of covariance Σ', whose products and diagonal are given."""
    factor, diagonal = q.factor, q.diagonal
    eye = torch.eye(factor.shape[1]).to(factor)
    least = 1e-8 * whole.clamp_min(0.0) + torch.finfo(whole.dtype).tiny
    for _ in range(PATCHES):
        scaled = factor / diagonal[:, None]
        beta = torch.linalg.solve(eye + factor.mT @ scaled, scaled.mT)  # E[η | u] = β (u − μ)
        moved = product(beta.mT)
        second = eye - beta @ factor + beta @ moved
        factor = torch.linalg.solve(second, moved.mT).mT
        diagonal = torch.maximum(whole - (factor * moved).sum(1), least)
    return _LowRank(q.loc, factor, diagonal)
