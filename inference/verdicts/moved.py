r"""Whether draws stay where they are under moves that leave the posterior as it is: a test of draws that end too early.

    z = L⁻¹ (u − m),  z' from z by Hamiltonian moves,   E f(z') = E f(z)   for f(z) = z_i and f(z) = z_i²

with m, L Lᵀ the mean and covariance of the draws. Weights are judged where draws are, and so are scores: the tips of a
crescent, or tails, that no draw has reached change neither. Moves walk into what is connected with the draws, and the
means of f change. Of separated modes they say nothing: that is what `mode_search` is for.

The change is that of a regression, c the slope of f(z') on f(z): mean(f(z') − c f(z)) − (1 − c) Σ_s w_s f(z_s), which
has the least variance, whether the moves are short or long. Half of that of z_i² is one of log sd.

Source: MCMC using Hamiltonian dynamics (Neal 2011, arXiv:1206.1901).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from ppgen.engine.density.leapfrog import leapfrog_step
from ppgen.engine.density.pathfinder import Density
from ppgen.inference.evaluation.psis import resampled
from ppgen.inference.sampling.hamiltonian import Chains, Preconditioner, first_step, root_of, transition
from ppgen.inference.verdicts.findings import FINE, LOOK, WRONG, Finding

MOVED = 2000  # draws
MOVES, LENGTH = 10, 1.5  # trajectories, and how long each is, in units of the draws' sds
MAX_STEPS, ALL_STEPS = 16, 100  # leapfrog steps of a trajectory, and of all together
ACCEPTANCE = 0.8
PILOT = 100  # draws that find the step size
ALARMS = 0.001  # of draws of the posterior, in all entries together
CHANGED = (0.05, 0.3)  # sd, or log sd, of a change that is told, and that is "wrong"
WIDE = 300  # entries from which on only their own scales are taken


class _Target:
    """A density with the leapfrog step of `hamiltonian.Target`."""

    def __init__(self, density: Density):
        self.density = density

    def leapfrog(self, y: Tensor, p: Tensor, g: Tensor, step: Tensor, centre: Tensor, root: Tensor) -> list[Tensor]:
        return leapfrog_step(self._both, y, p, g, step, centre, root)

    def _both(self, u: Tensor) -> tuple[Tensor, Tensor]:
        lp, g = self.density(u)
        return g, lp


@torch.no_grad()
def moved(density: Density, u: Tensor, w: Tensor, labels: Sequence[str], *, seed: int = 0) -> Finding:
    """The largest change of a mean, in sd, or of a log sd, that is not of chance.

    Args:
        density: the log joint and its gradient, at any number of vectors.
        u, w: (S, dim), and their weights (S,), which sum to one.
        labels: of the entries.
    """
    generator = torch.Generator().manual_seed(seed)
    mean = w @ u
    off = u - mean
    dim = u.shape[1]
    if dim <= WIDE:
        root = root_of((w[:, None] * off).mT @ off, int(1 / float(w.square().sum())))
    else:
        root = (w @ off.square()).sqrt().clamp_min(1e-300)
    frame, target = Preconditioner(mean, root), _Target(density)
    index = torch.as_tensor(resampled(w.double().log().numpy(), min(MOVED, len(u)), np.random.default_rng(seed)))
    start = frame.chains(target, u[index])
    end = _moved(target, start, frame, generator)
    sd = (w @ off.square()).sqrt().clamp_min(1e-300)
    z, before, after = off / sd, (u[index] - mean) / sd, (frame.out(end.y) - mean) / sd
    level = NormalDist().inv_cdf(1 - ALARMS / (4 * dim))
    a, b, c = (0.5 * v.square() for v in (z, before, after))
    changes = [_change(z, before, after, w), _change(a, b, c, w)]
    figure, se = (torch.stack(v) for v in zip(*changes, strict=True))
    sure = (figure.abs() - level * se).clamp_min(0.0)
    worst = int(torch.where(figure.abs() > CHANGED[0], sure, 0.0).flatten().argmax())
    what, entry = divmod(worst, dim)
    size, least = float(figure[what, entry]), float(sure[what, entry])
    graded = FINE if least == 0 or abs(size) <= CHANGED[0] else LOOK if abs(size) <= CHANGED[1] else WRONG
    said = {"se": float(se[what, entry]), "of": ("mean", "sd")[what], "draws": len(index)}
    return Finding("moved", labels[entry], size, CHANGED[0], graded, said)


def _moved(target: _Target, start: Chains, frame: Preconditioner, generator: torch.Generator) -> Chains:
    pilot = Chains(*(v[:PILOT] for v in start))
    step = min(first_step(target, pilot, frame, generator), 1.0)
    chains, left = start, ALL_STEPS
    for _ in range(MOVES):
        size = step * (0.6 + 0.4 * float(torch.rand(1, generator=generator)))
        steps = min(max(math.ceil(LENGTH / size), 1), MAX_STEPS, left)
        if not steps:
            break
        chains, _, outcome, _ = transition(target, chains, frame, size, steps, generator)
        step = min(step * math.exp(float(outcome.acceptance.mean()) - ACCEPTANCE), 1.0)
        left -= steps
    return chains


def _change(f: Tensor, before: Tensor, after: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Of each entry the change of E f, and its standard error."""
    mean, n = w @ f, len(before)
    b, a = before - before.mean(0), after - after.mean(0)
    c = (a * b).mean(0) / b.square().mean(0).clamp_min(1e-300)
    change = (after - c * before).mean(0) - (1 - c) * mean
    own = (w.square()[:, None] * (f - mean).square()).sum(0)
    return change, ((a - c * b).square().mean(0) / n + (1 - c).square() * own).sqrt()
