r"""Pathfinder: where to begin, by normal approximations along quasi-Newton paths up the log joint, many paths at once.

    d = H ∇ log p,  u' = u + t d,      H: the BFGS estimate of minus the inverse Hessian
    q_k = N(u_k + H_k ∇ log p(u_k), H_k),   kept: the k of the largest ELBO, E_q[log p(u) - log q(u)]

A mode can be a bad place to start, or infinitely high and without mass (a scale that goes to zero); the ELBO tells.
A path ends where nothing is left to climb, or where its ELBO, among the best of all, rises no more: early, on the way
up a funnel. A path whose ELBO lies far below the best one's ended where there is no mass: its draw is another path's.
Many chains begin at the draws (`ppgen.inference.mcmc`), a guide at the best normal (`inference.training.guide_init`).

Source: Pathfinder: Parallel quasi-Newton variational inference (Zhang, Carpenter, Gelman, Vehtari 2022,
arXiv:2108.03782), with a dense H in place of its factored form, but by `climb_low_rank`, for many dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from ppgen.engine.density.inverse_hessian import Dense, LimitedMemory, LowRank, Triangular

FEW = 16  # paths in many dimensions
DRAWS = 3  # of each normal approximation, for its ELBO
HOPELESS = 20.0  # nats below the best path's ELBO: e⁻²⁰ of the mass
SHARE = 0.2  # nats more a dimension, where normals of low rank leave as much between paths that end in one place
SHORTER = 25  # trials of a line search
STILL = 5  # steps without progress after which a path ends,
IDLE, LOST = 10, 40  # and those without a better ELBO, where its ELBO is among the best, and where it is not
FLAT = 1e-11  # a promised rise, relative to the log joint, that is not worth a search
TRIALS = 1000  # of a path, at the most
WEIGHED, EM_ROUNDS = 50, 10  # of a mixture's weights: draws of each normal, and rounds


Density = Callable[[Tensor], tuple[Tensor, Tensor]]  # (n, dim) -> (n,) nats and (n, dim)


class Paths(NamedTuple):
    """What `pathfinder` returns.

    Attributes:
        u: (chains, dim), one draw of the best normal distribution of each path.
        elbo: (chains,) in nats, of the paths.
        mean, covariance: (dim,) and (dim, dim), of the best path of all; by L-BFGS a `LowRank` of one normal.
        kept: how many paths gave a draw of their own.
    """

    u: Tensor
    elbo: Tensor
    mean: Tensor
    covariance: Tensor | LowRank
    kept: int


Root = TypeVar("Root", Tensor, LowRank)


class Climbs(NamedTuple, Generic[Root]):
    """The best normal of each path, and where it ended.

    Attributes:
        elbo: (chains,) in nats; minus infinity where a path found none.
        mean, root: (chains, dim), and (chains, dim, dim), lower-triangular: N(mean, root rootᵀ); in many dimensions
            the covariances.
        draw: (chains, dim), one draw of each.
        top: (chains, dim), where it ended.
    """

    elbo: Tensor
    mean: Tensor
    root: Root
    draw: Tensor
    top: Tensor


def pathfinder(
    target: Density, start: Tensor, *, generator: torch.Generator | None = None, enough: float = 0.9
) -> Paths:
    """Follows one path from each start, and takes from every path, or from a better one, a draw.

    Args:
        target: the log joint of unconstrained vectors, n at once, and its gradient.
        start: (chains, dim).
        enough: the share of paths that have ended when all do.
    """
    paths = climb(target, start, generator=generator, enough=enough)
    draws, top, kept = _chosen(target, paths, Triangular(paths.root), generator)
    return Paths(draws, paths.elbo, paths.mean[top], paths.root[top] @ paths.root[top].mT, kept)


def pathfinder_low_rank(
    target: Density, start: Tensor, *, generator: torch.Generator | None = None, enough: float = 0.5
) -> Paths:
    """The same by L-BFGS, where there are too many dimensions for matrices; arguments as for `pathfinder`.

    No more than `FEW` paths are followed, from the first starts; the chains of the others take further draws of them.
    """
    found = climb_low_rank(target, start[:FEW], generator=generator, enough=enough, hasty=True)
    path = torch.arange(len(start)) % len(found.elbo)
    elbo, mean, draw, top = (v[path] for v in (found.elbo, found.mean, found.draw, found.top))
    new = path[FEW:]
    noise = torch.randn(len(new), start.shape[1], generator=generator, dtype=mean.dtype)
    draw[FEW:] = found.mean[new] + found.root.taken(new).spread(noise)
    paths = Climbs(elbo, mean, found.root.taken(path), draw, top)
    draws, best, kept = _chosen(target, paths, paths.root, generator)
    return Paths(draws, elbo, mean[best], LowRank(*(v[best] for v in paths.root)), kept)


@torch.no_grad()
def climb(
    target: Density, start: Tensor, *, generator: torch.Generator | None = None, enough: float = 0.9
) -> Climbs[Tensor]:
    """Follows one path from each start; arguments as for `pathfinder`."""
    paths = _climbed(target, start, Dense, generator, enough)
    assert isinstance(paths.root, Triangular)
    return Climbs(paths.elbo, paths.mean, paths.root.root, paths.draw, paths.u)


@torch.no_grad()
def climb_low_rank(
    target: Density,
    start: Tensor,
    *,
    generator: torch.Generator | None = None,
    enough: float = 0.9,
    hasty: bool = False,
) -> Climbs[LowRank]:
    """The same by L-BFGS, where there are too many dimensions for matrices.

    Args:
        hasty: whether a path ends that has long had no better ELBO, however far it is from the best.
    """
    paths = _climbed(target, start, LimitedMemory, generator, enough, hasty)
    assert isinstance(paths.root, LowRank)
    return Climbs(paths.elbo, paths.mean, paths.root, paths.draw, paths.u)


def _climbed(
    target: Density,
    start: Tensor,
    curvature: type[Dense | LimitedMemory],
    generator: torch.Generator | None,
    enough: float,
    hasty: bool = False,
) -> _Paths:
    """Every path is at a trial of its own line search: one that has found a step goes on, and waits for no other. The
    next trials, and the draws for the ELBOs of the normals that were just found, are one call of the log joint."""
    paths = _Paths(start, *_safe(target, start), curvature, hasty)
    normals = None
    for _ in range(TRIALS):
        ended = paths.ended
        if ended.float().mean() > enough:
            break
        going = (~ended).nonzero()[:, 0]
        trial = paths.u[going] + paths.t[going, None] * paths.direction[going]
        lp, g = _safe(target, torch.cat([trial, *([] if normals is None else [normals.draws.flatten(0, 1)])]))
        if normals is not None:
            paths.compare(normals, lp[len(going) :])
        arrived = paths.tried(going, trial, lp[: len(going)], g[: len(going)])
        normals = paths.normals(arrived, generator)
    if normals is not None:
        paths.compare(normals, _safe(target, normals.draws.flatten(0, 1))[0])
    return paths


class _Normals(NamedTuple):
    """Normals of some paths, with what their ELBOs are made of: draws (DRAWS, paths, dim), and noise."""

    which: Tensor
    mean: Tensor
    root: Triangular | LowRank
    noise: Tensor
    draws: Tensor


class _Paths:
    """Where paths stand, and the best normal of each so far.

    Attributes:
        u, lp, g: (n, dim), (n,), (n, dim).
        H: their inverse Hessians.
        still, idle, lost: steps without progress, and without a better ELBO, where theirs is among the best and at all.
        direction, slope, t, trials: of the line search that each is at.
        elbo, mean, root, draw: of the best normals.
    """

    def __init__(self, u: Tensor, lp: Tensor, g: Tensor, curvature: type[Dense | LimitedMemory], hasty: bool = False):
        n, dim = u.shape
        self.hasty, self.margin = hasty, HOPELESS + (SHARE * dim if hasty else 0.0)
        u, g = u.to(lp), g.to(lp)  # the program's dtype, which need not be torch's default
        self.u, self.lp, self.g = u.clone(), lp, g
        self.H = curvature(g)
        self.still, self.idle, self.lost, self.trials = (torch.zeros(n, dtype=torch.long) for _ in range(4))
        self.direction, self.slope, self.t = torch.empty_like(u), torch.empty_like(lp), torch.ones_like(lp)
        self.elbo = torch.full_like(lp, -torch.inf)
        self.mean, self.draw = u.clone(), u.clone()
        self.root = self.H.flat(n, dim, 1e-4)
        self.aim(torch.arange(n))

    @property
    def ended(self) -> Tensor:
        over = (self.still >= STILL) | (self.idle >= IDLE)
        return over | (self.lost >= LOST) if self.hasty else over

    def aim(self, i: Tensor) -> None:
        """New line searches, of the paths i."""
        g = self.g[i]
        direction = self.H.times(i, g)
        uphill = (direction * g).sum(-1) > 0
        direction = torch.where(uphill[:, None], direction, g / g.norm(dim=-1).clamp_min(1.0)[:, None])
        self.direction[i], self.slope[i] = direction, (direction * g).sum(-1)
        self.t[i], self.trials[i] = 1.0, 0

    def tried(self, i: Tensor, trial: Tensor, lp: Tensor, g: Tensor) -> Tensor:
        """Backtracking until the log joint has risen by a share of what the slope promises (Armijo).

        Args:
            i: the paths, with their trials, the log joint and its gradient there.

        Returns:
            Those whose search has ended, and that have taken a step if it found one.
        """
        before, slope, t = self.lp[i], self.slope[i], self.t[i]
        level = max(FLAT, 10 * torch.finfo(lp.dtype).eps)
        flat = slope <= level * (1 + before.abs())  # nothing more is to be had
        moved = ~flat & (lp > before + 1e-4 * t * slope)
        short = 0.5 * slope * t**2 / (before + slope * t - lp)  # the top of the parabola
        self.t[i] = torch.where(torch.isfinite(short), short.clamp(0.05 * t, 0.5 * t), 0.1 * t)
        self.trials[i] += 1
        over = moved | flat | (self.trials[i] >= SHORTER)
        self._step(i[over], *(v[over] for v in (trial, lp, g, moved)))
        return i[over]

    def _step(self, i: Tensor, u: Tensor, lp: Tensor, g: Tensor, moved: Tensor) -> None:
        was_u, was_lp, was_g = self.u[i], self.lp[i], self.g[i]
        u, g = (torch.where(moved[:, None], new, old) for new, old in ((u, was_u), (g, was_g)))
        lp = torch.where(moved, lp, was_lp)
        was_fresh = self.H.fresh[i]
        self.H.update(i, u - was_u, was_g - g, moved)
        # A plateau is no end: the steps double on it until the long direction is known. Rounding is one, and so is a
        # ridge on which steps straight up are the only ones that rise.
        small = (lp - was_lp).abs() <= 1e-13 * was_lp.abs()
        still = self.still[i]
        self.still[i] = torch.where(moved & ~small, torch.where(was_fresh, still, 0), still + 1)
        again = ~moved & (self.still[i] < 3)  # once more, straight up
        self.H.restart(i[again], g[again])
        self.u[i], self.lp[i], self.g[i] = u, lp, g
        self.aim(i)

    def normals(self, i: Tensor, generator: torch.Generator | None) -> _Normals | None:
        """N(u + H g, H) of those of the paths i where it may be good: H has a root and has seen some curvature, and
        the ELBO that it would have of a quadratic is not far below the best."""
        g, half = self.g[i], 0.5 * self.u.shape[1]
        root, usable = self.H.roots(i)
        rise = self.H.times(i, g)
        promised = self.lp[i] + 0.5 * (g * rise).sum(-1) + root.volume() + half * math.log(2 * math.pi)
        usable = usable & (promised > self.elbo.max() - HOPELESS - 2 * half)
        self._count(i[~usable])
        if not usable.any():
            return None
        root, mean = root.taken(usable), (self.u[i] + rise)[usable]
        noise = torch.randn(DRAWS, *mean.shape, generator=generator, dtype=mean.dtype)
        return _Normals(i[usable], mean, root, noise, mean + root.spread(noise))

    def compare(self, q: _Normals, lp: Tensor) -> None:
        """Keeps the normals that are better than those before, lp the log joint of their draws."""
        i, dim = q.which, self.u.shape[1]
        total = (lp.reshape(DRAWS, -1) + 0.5 * (q.noise**2).sum(-1)).sum(0)
        elbo = total / DRAWS + q.root.volume() + 0.5 * dim * math.log(2 * math.pi)
        better = elbo > self.elbo[i]
        k = i[better]
        self.elbo[k], self.mean[k] = elbo[better], q.mean[better]
        for mine, new in zip(self.root, q.root.taken(better), strict=True):
            mine[k] = new
        self.draw[k] = q.draws[-1][better]
        self.idle[k], self.lost[k] = 0, 0
        self._count(i[~better])

    def _count(self, i: Tensor) -> None:
        """One more step of the paths i without a better ELBO."""
        self.lost[i] += 1
        self.idle[i] += (self.elbo[i] > self.elbo.max() - self.margin).long()


@torch.no_grad()
def _chosen(
    target: Density, paths: Climbs[Any], roots: Triangular | LowRank, generator: torch.Generator | None
) -> tuple[Tensor, int, int]:
    """The draws of good paths, and in place of a hopeless one's a draw of theirs; the best path; how many are good."""
    elbo, means, _, draws, tops = paths
    n, dim = draws.shape
    top = int(elbo.argmax())
    good = elbo > elbo[top] - (max(HOPELESS, dim) if isinstance(roots, Triangular) else HOPELESS + SHARE * dim)
    chosen = torch.where(
        good, torch.arange(n), good.nonzero()[:, 0][torch.arange(n) % max(int(good.sum()), 1)] if good.any() else 0
    )
    noise = torch.randn(draws.shape, generator=generator, dtype=draws.dtype)
    other = means[chosen] + roots.taken(chosen).spread(noise)
    drawn = torch.where(good[:, None], draws, other)
    for instead in (means[chosen], tops[chosen]):  # a normal may reach beyond the support, and so may its mean
        finite = torch.isfinite(_safe(target, drawn)[0])
        drawn = torch.where(finite[:, None], drawn, instead)
    return drawn, top, int(good.sum())


def _safe(target: Density, u: Tensor) -> tuple[Tensor, Tensor]:
    """Minus infinity, and no slope, where the log joint or its gradient is not a number."""
    lp, g = target(u)
    ok = torch.isfinite(lp) & torch.isfinite(g).all(-1)
    return torch.where(ok, lp, -torch.inf), torch.where(ok[:, None], g, 0.0)


def mixture_weights(target: Density, means: Tensor, roots: Tensor, generator: torch.Generator) -> Tensor:
    """Log weights of the normals, (P,): those of the mixture that is nearest to the posterior."""
    n, dim = means.shape
    noise = torch.randn(n, WEIGHED, dim, generator=generator, dtype=means.dtype)
    u = (means[:, None] + noise @ roots.mT).flatten(0, 1)
    return weights_of_draws(target, u, MultivariateNormal(means, scale_tril=roots).log_prob(u[:, None]))


def weights_of_draws(target: Density, u: Tensor, each: Tensor) -> Tensor:
    """The same from as many draws u of each normal, and the log density of each normal at all of them, (draws, P)."""
    n = each.shape[1]
    made = torch.logsumexp(each, -1) - math.log(n)  # they were drawn from equal shares
    log_p = torch.nan_to_num(target(u)[0], nan=-math.inf, posinf=-math.inf)
    most = torch.logsumexp(log_p - made, 0) - 0.5 * math.log(len(u))  # a single weight has no more than √S of S
    log_w = torch.log_softmax((log_p - made).clamp_max(float(most)), 0)
    log_weights = torch.full((n,), -math.log(n)).to(each)
    for _ in range(EM_ROUNDS):
        shares = torch.log_softmax(each + log_weights, -1)
        log_weights = torch.logsumexp(log_w[:, None] + shares, 0)
    return log_weights
