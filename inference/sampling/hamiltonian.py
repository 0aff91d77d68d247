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

DIVERGENT = 1000.0  # an error of the energy in nats, as in Stan


class Target(Protocol):
    """What is sampled: `ppgen.engine.LogJoint` is one."""

    def leapfrog(self, y: Tensor, p: Tensor, g: Tensor, step: Tensor, centre: Tensor, root: Tensor) -> list[Tensor]: ...


class Chains(NamedTuple):
    """Where the chains are: y, the gradient in y and the log joint at each."""

    y: Tensor
    g: Tensor
    lp: Tensor


class Preconditioner(NamedTuple):
    """u = centre + root y."""

    centre: Tensor
    root: Tensor

    def out(self, y: Tensor) -> Tensor:
        return self.centre + (y * self.root if self.root.dim() == 1 else y @ self.root.mT)

    def into(self, u: Tensor) -> Tensor:
        if self.root.dim() == 1:
            return (u - self.centre) / self.root
        return torch.linalg.solve_triangular(self.root, (u - self.centre).mT, upper=False).mT

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
) -> tuple[Chains, Chains, Tensor, Outcome, Chains]:
    """n leapfrog steps and the Metropolis decision: old, new, the proposal's momentum, outcome, proposal."""
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
    return old, new, p, outcome, Chains(y, g, lp)


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


def root_of(covariance: Tensor, n: int) -> Tensor:
    """Lower-triangular; correlations of few draws are shrunk, and those of a singular matrix left out."""
    sd = covariance.diagonal().clamp_min(0.0).sqrt()
    sd = torch.where(sd > 0, sd, 1.0)
    identity = torch.eye(len(sd)).to(sd)
    weight = 1e-10 if n >= 10 * len(sd) else len(sd) / (len(sd) + n)
    factor, info = torch.linalg.cholesky_ex((1 - weight) * covariance / sd / sd[:, None] + weight * identity)
    return sd[:, None] * (identity if info else factor)
