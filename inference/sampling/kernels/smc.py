r"""Tempered sequential Monte Carlo: from a density that is known to the posterior, by way of those between.

    π_β(u) ∝ q(u)^(1−β) p̃(u)^β,   p̃(u) = p(x, z(u)) |det ∂z/∂u|,   0 = β_0 < β_1 < ... < 1
    w = (p̃(u) / q(u))^(β_t − β_{t−1}),   log Ẑ = Σ_t log mean w

q is a mixture: the prior (where that is flat, or no density, a Student's t around the places found, or of its scale),
and the normals of the places where climbs from over-dispersed starts end (`mode_search.places`), with those that batch
and match leads to from the ones that count: in many dimensions a maximum may be far from the mass. The particles are
islands of equal size, which are resampled apart from each other, so that Ẑ of each is independent given the β, and

    Ẑ = mean Ẑ_c,   se log Ẑ = sd(Ẑ_c) / (Ẑ √C)

The next β leaves a share `KEEP` of the particles effective. At each, Hamiltonian moves in the coordinates of the
particles' covariance. On the way to β = 1 all islands are resampled together, each by its Ẑ_c: separated modes keep
their proportions.

A chain of the draws is an island; its draws stand in the order of their ancestors, so that ESS by autocorrelation sees
what copies are worth.

Sources: Sequential Monte Carlo samplers (Del Moral, Doucet, Jasra 2006); Adaptive tuning of Hamiltonian Monte Carlo
within sequential Monte Carlo (Buchholz, Chopin, Jacob 2021, arXiv:1808.07730); Island particle models: On parallel
implementation of sequential Monte Carlo methods (Vergé, Dubarry, Del Moral, Moulines 2015, arXiv:1306.3911).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ppgen.engine import LogJoint
from ppgen.engine.density.batch_and_match import Gaussian, batch_and_match, elbo_of
from ppgen.engine.density.joint import in_blocks
from ppgen.engine.density.leapfrog import leapfrog_step
from ppgen.engine.density.pathfinder import Density, climb
from ppgen.errors import PpgenError
from ppgen.inference.evaluation.estimates import Evidence
from ppgen.inference.sampling.hamiltonian import Outcome, Preconditioner, first_step, root_of, transition
from ppgen.inference.sampling.kernels import DENSE_DIM, Draws, Numbers
from ppgen.inference.sampling.mcmc_init import nowhere
from ppgen.inference.sampling.weighted import Mixture, mixture_of
from ppgen.inference.verdicts.mode_search import places

SUMMARY = "tempered SMC: islands of particles from a wide density to the posterior; separated modes, log p(x)"
DEFAULTS = Numbers(chains=16, draws=500, warmup=200)
LEAST = Numbers(chains=2, draws=16, warmup=1)
TOGETHER = True

KEEP = 0.7  # the share of effective particles that the next β leaves
ACCEPTANCE, EASY = 0.8, 0.95  # wanted, and from which on the step size is looked for anew: the wide part is gone
MOVES, LAST_MOVES = 3, 8  # at a β, and at β = 1
LENGTH = 1.6  # of a trajectory: a quarter turn of a standard normal
MAX_STEPS = 64  # leapfrog steps of a move
FROM_PRIOR = 200  # draws that the wide part is fitted to
STARTS, WIDEST = 32, 3.0  # of climbs, and log10 of how far from 0 they begin where a prior is flat
WIDE = 0.5  # the share of the wide part
LEAST_SHARE, RISE = 0.01, 1.0  # of a normal that is improved, and the nats of ELBO that make the new one another
LARGEST = 1000  # entries of u
BLOCK = 512  # vectors a call of the log joint


class _Start(NamedTuple):
    """Where the particles begin: the log joint at any number of vectors, q, and the number of islands."""

    target: Density
    q: _Reference
    islands: int


class _Reference:
    """q = δ wide + (1 − δ) local."""

    def __init__(self, draw: Callable[[int], Tensor], wide: Density, local: Mixture | None):
        """
        Args:
            draw, wide: draws of the wide part, its log-density and gradient.
            local: the normals; None where there are none.
        """
        self._draw, self._wide, self._local = draw, wide, local

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, dim), in random order; the shares of both parts are as even as whole numbers allow."""
        if self._local is None:
            return self._draw(n)
        u = torch.cat([self._draw(round(WIDE * n)), self._local.draw(n - round(WIDE * n), generator)])
        return u[torch.randperm(n, generator=generator)]

    def value_and_grad(self, u: Tensor) -> tuple[Tensor, Tensor]:
        lw, gw = self._wide(u)
        if self._local is None:
            return lw, gw
        ll, gl = self._local.value_and_grad(u)
        bad = ~torch.isfinite(lw) | ~torch.isfinite(gw).all(-1)
        lw, gw = torch.where(bad, -torch.inf, lw) + math.log(WIDE), torch.where(bad[:, None], 0.0, gw)
        log_q = torch.logaddexp(lw, ll + math.log1p(-WIDE))
        share = (lw - log_q).exp()[:, None]
        return log_q, share * gw + (1 - share) * gl


class _Tempered:
    """log π_β and its gradient, with the leapfrog step of `hamiltonian.Target`."""

    def __init__(self, target: Density, q: _Reference):
        self.target, self.q, self.beta = target, q, 0.0

    def parts(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """log p̃ and log q, and their gradients; log p̃ is minus infinity where it cannot be evaluated."""
        lp, gp = self.target(u)
        lq, gq = self.q.value_and_grad(u)
        bad = ~torch.isfinite(lp) | ~torch.isfinite(gp).all(-1)
        return torch.where(bad, -torch.inf, lp), lq, torch.where(bad[:, None], 0.0, gp), gq

    def both(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient, and log π_β."""
        lp, lq, gp, gq = self.parts(u)
        return self.beta * gp + (1 - self.beta) * gq, self.beta * lp + (1 - self.beta) * lq

    def leapfrog(self, y: Tensor, p: Tensor, g: Tensor, step: Tensor, centre: Tensor, root: Tensor) -> list[Tensor]:
        return leapfrog_step(self.both, y, p, g, step, centre, root)


def begin(joint: LogJoint, islands: int, prior: Callable[[int], Tensor] | None, generator: torch.Generator) -> _Start:
    """q, from the prior and from climbs.

    Args:
        prior: n draws from the prior, unconstrained; None where it is flat somewhere.
    """
    dim = joint.dim
    if dim > LARGEST:
        raise PpgenError(f"{dim} latents are too many for kernel 'smc', at most {LARGEST}; take kernel='chees'")
    target = in_blocks(joint.value_and_grad, BLOCK)
    reach = 10 ** torch.linspace(0, WIDEST, STARTS)[:, None]
    box = 4 * torch.rand(STARTS, dim, generator=generator) - 2
    start = box * reach if prior is None else torch.cat([box[::2], prior(STARTS // 2)])
    found = [(n.m, n.L) for n in places(target, climb(target, start, generator=generator))] if dim <= DENSE_DIM else []
    local = _matched(found, target, generator) if found else None
    if prior is not None and joint.proper:
        q = _Reference(prior, in_blocks(joint.prior_value_and_grad, BLOCK), local)
        return _Start(target, q, islands)
    if prior is None and local is None:
        raise PpgenError("a prior is flat, and no place was found where the density has a maximum; take kernel='chees'")
    mean, root = _around(found) if prior is None else _scale(prior(FROM_PRIOR))
    wide = Mixture(torch.zeros(1).to(mean), mean[None], root[None])
    return _Start(target, _Reference(lambda n: wide.draw(n, generator), wide.value_and_grad, local), islands)


def _matched(parts: list[tuple[Tensor, Tensor]], target: Density, generator: torch.Generator) -> Mixture:
    """The mixture of normals, and of those that batch and match finds from the ones that have a share in it."""
    first = mixture_of(parts, target, generator)
    counts = first.log_weights.softmax(0) > LEAST_SHARE
    better = []
    for (m, L), count in zip(parts, counts, strict=True):
        if count:
            before = Gaussian(m, L, elbo_of(target, Gaussian(m, L, -torch.inf), generator))
            after = batch_and_match(target, before, generator)
            if after.elbo > before.elbo + RISE:
                better.append((after.loc, after.scale_tril))
    return mixture_of(parts + better, target, generator) if better else first


def _scale(u: Tensor) -> tuple[Tensor, Tensor]:
    """The median of each entry, and half of what two thirds of the draws lie in."""
    low, middle, high = torch.nanquantile(u, torch.tensor([0.16, 0.5, 0.84]).to(u), dim=0)
    return middle, ((high - low) / 2).clamp_min(1e-6).diag()


def _around(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Twice as wide as normals and the distances between them."""
    means, roots = torch.stack([m for m, _ in parts]), torch.stack([L for _, L in parts])
    spread = means.var(0, correction=0) + roots.square().sum(-1).amax(0)
    return means.mean(0), (2 * spread.sqrt()).diag()


def sample(
    joint: LogJoint, start: _Start, *, draws: int, warmup: int, metric: str = "auto",
    generator: torch.Generator, report: Callable[[int], None] | None = None,
) -> Draws:  # fmt: skip
    """Tempers islands of `draws` particles, by `warmup` temperatures at most; see `kernels`.

    Raises:
        PpgenError: temperatures were too few, or the log joint is finite at no particle.
    """
    C, S = start.islands, draws
    tempered = _Tempered(start.target, start.q)
    walk = _Walk(tempered, joint.dim, metric, generator, report)
    u = start.q.draw(C * S, generator)
    log_z = torch.zeros(C).to(u)
    for _ in range(warmup):
        lp, lq, _, _ = tempered.parts(u)
        ratio = (lp - lq).reshape(C, S)
        if not bool(torch.isfinite(ratio).any()):
            raise nowhere(C * S)
        before, tempered.beta = tempered.beta, _next(ratio, tempered.beta)
        log_w = (tempered.beta - before) * ratio
        last = tempered.beta == 1.0
        whole = (log_z[:, None] + log_w).reshape(1, -1) if last else log_w
        log_z = log_z + torch.logsumexp(log_w, -1) - math.log(S)
        u, outcome = walk.move(u[systematic(whole, generator)], LAST_MOVES if last else MOVES)
        if last:
            break
    else:
        raise PpgenError(
            f"{warmup} temperatures took the particles of {joint.program.name} to β = {tempered.beta:.2g}, where 1 is "
            "the posterior; give more (warmup=, --warmup), or more particles (draws=, --draws)"
        )
    stats = {"lp": walk.lp, "acceptance_rate": outcome.acceptance, "outside": outcome.outside,
             "n_steps": torch.full_like(walk.lp, walk.steps).long(),
             "step_size": torch.full_like(walk.lp, walk.step)}  # fmt: skip
    by_draw = {n: v.reshape(C, S).mT for n, v in stats.items()}
    u = u.reshape(C, S, -1).movedim(0, 1)
    return Draws(u, by_draw, walk.steps, torch.zeros(joint.dim).to(u), walk.metric, _evidence(log_z))


def _next(ratio: Tensor, beta: float) -> float:
    """The β that leaves `KEEP` of the particles effective, of those whose density is not zero: by bisection.

    Args:
        ratio: log p̃ − log q, (islands, particles).
    """
    alive = torch.isfinite(ratio).sum(-1)

    def effective(new: float) -> float:
        log_w = (new - beta) * ratio
        ess = (2 * torch.logsumexp(log_w, -1) - torch.logsumexp(2 * log_w, -1)).exp()
        return float(torch.where(alive > 0, ess / alive, 1.0).mean())

    if effective(1.0) >= KEEP:
        return 1.0
    low, high = beta, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if effective(middle) >= KEEP else (low, middle)
    return high


def systematic(log_w: Tensor, generator: torch.Generator) -> Tensor:
    """Systematic resampling of each row of (islands, particles), in order: places in the flat vector of all."""
    C, S = log_w.shape
    w = log_w.double().softmax(-1).nan_to_num(1 / S)  # an island where every particle has density zero
    at = (torch.arange(S) + torch.rand(C, 1, generator=generator)) / S
    index = torch.searchsorted(w.cumsum(-1), at.to(w)).clamp_max(S - 1)
    return (index + S * torch.arange(C)[:, None]).flatten()


def _evidence(log_z: Tensor) -> Evidence:
    top = log_z.max()
    z = (log_z - top).exp()
    return Evidence(float(top + z.mean().log()), float(z.std() / z.mean()) / len(z) ** 0.5)


class _Walk:
    """Hamiltonian moves of the particles, and what they have learned: the step size.

    Attributes:
        steps: leapfrog steps so far.
        lp: log π_β of the particles after the last move.
    """

    def __init__(
        self,
        tempered: _Tempered,
        dim: int,
        metric: str,
        generator: torch.Generator,
        report: Callable[[int], None] | None,
    ):
        self.tempered, self.generator, self.report = tempered, generator, report
        dense = metric != "diag" and dim <= DENSE_DIM
        self.metric = "dense" if dense else "diag"
        self.step, self.acceptance, self.steps, self.moves = 0.0, 0.0, 0, 0
        self.lp = torch.zeros(0)

    def move(self, u: Tensor, n: int) -> tuple[Tensor, Outcome]:
        """n moves of every particle at the present β."""
        if self.metric == "diag":
            root = u.std(0).clamp_min(1e-12)
        else:
            root = root_of(torch.cov(u.mT).reshape(u.shape[1], -1), len(u))
        frame = Preconditioner(u.mean(0), root)
        chains = frame.chains(self.tempered, u)
        for _ in range(n):
            if not self.step or self.acceptance > EASY:
                self.step = first_step(self.tempered, chains, frame, self.generator)
            a, b = torch.rand(2, generator=self.generator).tolist()
            size = self.step * (0.6 + 0.4 * a)
            steps = min(max(math.ceil(LENGTH * (0.5 + 0.5 * b) / size), 1), MAX_STEPS)
            chains, _, outcome, _ = transition(self.tempered, chains, frame, size, steps, self.generator)
            self.acceptance = float(outcome.acceptance.mean())
            self.step *= math.exp(self.acceptance - ACCEPTANCE)
            self.steps, self.moves = self.steps + steps, self.moves + 1
            if self.report is not None:
                self.report(self.moves)
        self.lp = chains.lp
        return frame.out(chains.y), outcome
