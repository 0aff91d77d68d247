r"""Hamiltonian Monte Carlo of many chains in step: coordinates, n leapfrog steps, and the Metropolis decision.

    H(y, p) = −log p(u(y)) + |p|²/2,   u = centre + root y,   accepted with probability min(1, e^{H − H'})

In the coordinates y the metric is the identity. The leapfrog step is the target's: `ppgen.engine.LogJoint` has one as
one graph.

Source: MCMC using Hamiltonian dynamics (Neal 2011, arXiv:1206.1901), section 5.3.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ppgen.engine.density.joint import in_blocks
from ppgen.engine.density.leapfrog import outward
from ppgen.engine.density.pathfinder import Density

DIVERGENT = 1000.0  # an error of the energy in nats, as in Stan
NOISE = 1.5  # times the largest eigenvalue of noise, as draws are not quite independent
LEAST_REST = 0.05  # the share of a variance that no few directions explain


class Target(Protocol):
    """What is sampled: `ppgen.engine.LogJoint` is one."""

    def leapfrog(self, y: Tensor, p: Tensor, g: Tensor, step: Tensor, centre: Tensor, root: Tensor) -> list[Tensor]: ...


class Chains(NamedTuple):
    """Where the chains are: y, the gradient in y and the log joint at each."""

    y: Tensor
    g: Tensor
    lp: Tensor


class Preconditioner(NamedTuple):
    """u = centre + root y, the root (dim,), lower-triangular (dim, dim), or (dim, 1 + rank) as of `outward`."""

    centre: Tensor
    root: Tensor

    @property
    def kind(self) -> str:
        """Of the metric: diag, dense or low-rank."""
        if self.root.dim() == 1:
            return "diag"
        return "dense" if self.root.shape[0] == self.root.shape[1] else "low-rank"

    @property
    def sd(self) -> Tensor:
        """(dim,), of u where y is standard normal."""
        if self.root.dim() == 1:
            return self.root
        if self.kind == "dense":
            return self.root.norm(dim=1)
        B = self.root[:, 1:]  # (I + B Bᵀ)² = I + B (2 I + Bᵀ B) Bᵀ
        return self.root[:, 0] * (1 + ((B @ (2 * torch.eye(B.shape[1]).to(B) + B.mT @ B)) * B).sum(1)).sqrt()

    def out(self, y: Tensor) -> Tensor:
        return self.centre + outward(y, self.root)

    def into(self, u: Tensor) -> Tensor:
        off = u - self.centre
        if self.root.dim() == 1:
            return off / self.root
        if self.kind == "dense":
            return torch.linalg.solve_triangular(self.root, off.mT, upper=False).mT
        return self._within(off / self.root[:, 0])

    def slope(self, g: Tensor) -> Tensor:
        """The gradient in u, of one in y, which is rootᵀ ∇_u."""
        if self.root.dim() == 1:
            return g / self.root
        if self.kind == "dense":
            return torch.linalg.solve_triangular(self.root.mT, g.mT, upper=True).mT
        return self._within(g) / self.root[:, 0]

    def _within(self, z: Tensor) -> Tensor:
        """(I + B Bᵀ)⁻¹ z of each row, B the directions of a low-rank root."""
        B = self.root[:, 1:]
        return z - torch.linalg.solve(torch.eye(B.shape[1]).to(B) + B.mT @ B, (z @ B).mT).mT @ B.mT

    def chains(self, target: Target, u: Tensor) -> Chains:
        """Where the chains are: a step of length 0 (one graph serves for all)."""
        y, zero = self.into(u), torch.zeros_like(u)
        _, _, g, lp = target.leapfrog(y, zero, zero, torch.tensor(0.0).to(u), self.centre, self.root)
        return Chains(y, g, lp)


class Outcome(NamedTuple):
    """Of each chain's proposal.

    Attributes:
        diverging: its energy went wrong by more than `DIVERGENT`, or is not a number.
        outside: it was refused because it left the support: in one step, from a place where its energy was right, to
            one where log p is minus infinity. No step size would have it accepted.
    """

    acceptance: Tensor
    diverging: Tensor
    energy: Tensor
    outside: Tensor


def transition(
    target: Target, old: Chains, frame: Preconditioner, step: float, n: int, generator: torch.Generator | None
) -> tuple[Chains, Tensor, Outcome, Chains]:
    """n leapfrog steps and the Metropolis decision: new chains, the proposal's momentum, outcome, proposal."""
    start = torch.randn(old.y.shape, generator=generator, dtype=old.y.dtype)
    y, p, g, lp = old.y, start, old.g, old.lp
    size = torch.tensor(step).to(y)
    before = 0.5 * (start**2).sum(-1) - old.lp
    outside = torch.zeros_like(lp, dtype=torch.bool)
    for _ in range(n):
        p_before, lp_before = p, lp
        y, p, g, lp = target.leapfrog(y, p, g, size, frame.centre, frame.root)
        if (edge := torch.isneginf(lp)).any():
            outside = outside | edge & (0.5 * (p_before**2).sum(-1) - lp_before - before < DIVERGENT)
    after = 0.5 * (p**2).sum(-1) - lp
    error = after - before
    bad = ~torch.isfinite(error) | ~torch.isfinite(g).all(-1)
    alpha = torch.where(bad, 0.0, (-error).clamp_max(0.0).exp())
    accept = torch.rand(alpha.shape, generator=generator, dtype=alpha.dtype) < alpha
    new = Chains(
        torch.where(accept[:, None], y, old.y),
        torch.where(accept[:, None], g, old.g),
        torch.where(accept, lp, old.lp),
    )
    bad = bad | (error > DIVERGENT)
    outcome = Outcome(alpha, bad & ~outside, torch.where(accept, after, before), bad & outside)
    return new, p, outcome, Chains(y, g, lp)


def first_step(target: Target, chains: Chains, frame: Preconditioner, generator: torch.Generator | None) -> float:
    """A step size near which one leapfrog step is accepted 8 times in 10 by the median chain."""
    step, direction = 0.5, 0
    for _ in range(60):
        *_, outcome, _ = transition(target, chains, frame, step, 1, generator)
        wanted = 1 if float(outcome.acceptance.median()) > 0.8 else -1
        if direction and wanted != direction:
            return step
        direction, step = wanted, step * 2.0**wanted
    return step


def density_of(target: Target, chains: int, root: Tensor) -> Density:
    """The log joint and its gradient at any number of vectors, by the graph of a leapfrog step of so many chains.

    Args:
        root: of the kind that the chains' metric is, for the graph to be theirs.
    """
    step, zero = torch.tensor(0.0).to(root), torch.zeros(len(root)).to(root)

    def together(u: Tensor) -> tuple[Tensor, Tensor]:
        still = torch.zeros_like(u)
        _, _, g, lp = target.leapfrog(u, still, still, step, zero, root)
        return lp, g

    return in_blocks(together, chains)


def root_of(covariance: Tensor, n: int) -> Tensor:
    """Lower-triangular; correlations of few draws are shrunk, and those of a singular matrix left out."""
    sd = covariance.diagonal().clamp_min(0.0).sqrt()
    sd = torch.where(sd > 0, sd, 1.0)
    identity = torch.eye(len(sd)).to(sd)
    weight = 1e-10 if n >= 10 * len(sd) else len(sd) / (len(sd) + n)
    factor, info = torch.linalg.cholesky_ex((1 - weight) * covariance / sd / sd[:, None] + weight * identity)
    return sd[:, None] * (identity if info else factor)


def strongest(z: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues of the correlations, (k,), and their vectors, (dim, k), of few draws of many entries.

    Those that noise would give, λ up to (1 + √γ)² with γ = dim / n or half more, are left out; the others are
    overestimates, and λ = ℓ (1 + γ / (ℓ - 1)) is solved for ℓ.

    Args:
        z: (n, dim), draws in units of their sd about their mean.

    Source: Asymptotics of sample eigenstructure for a large dimensional spiked covariance model (Paul 2007).
    """
    n, dim = z.shape
    small = z @ z.mT / n if n < dim else z.mT @ z / n
    values, vectors = torch.linalg.eigh(small)
    values, vectors = values[-most:].flip(0), vectors[:, -most:].flip(1)
    gamma = dim / n
    good = values > NOISE * (1 + gamma**0.5) ** 2
    values, vectors = values[good], vectors[:, good]
    if n < dim:
        vectors = z.mT @ vectors / (n * values).sqrt()
    half = 0.5 * (values + 1 - gamma)
    return half + (half**2 - values).clamp_min(0.0).sqrt(), vectors


def low_rank_root(variance: Tensor, values: Tensor, vectors: Tensor, rank: int) -> Tensor:
    """(dim, 1 + rank), of a covariance whose correlations are a diagonal and these eigenvalues, the largest first.

        D^½ (Ψ + V diag(ℓ - ℓ₀) Vᵀ) D^½ = root rootᵀ,   root = (Ψ D)^½ (I + B Bᵀ),   ℓ₀: the mean of the others

    Args:
        variance: D, (dim,).
        values, vectors: ℓ (k,) and V (dim, k), k <= rank.
    """
    dim, k = vectors.shape
    others = ((dim - values.sum()) / (dim - k)).clamp_min(LEAST_REST)
    factor = vectors * (values - others).clamp_min(0.0).sqrt()
    rest = (1 - factor.square().sum(1)).clamp_min(LEAST_REST)
    basis, size, _ = torch.linalg.svd(factor / rest.sqrt()[:, None], full_matrices=False)
    B = torch.zeros(dim, rank).to(vectors)
    B[:, :k] = basis * ((1 + size**2).sqrt() - 1).sqrt()
    return torch.cat([(variance * rest).sqrt()[:, None], B], 1)
