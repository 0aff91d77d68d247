r"""Pathfinder: where to begin, by normal approximations along quasi-Newton paths up the log joint, many paths at once.

    d = H ∇ log p,  u' = u + t d,      H: the BFGS estimate of minus the inverse Hessian
    q_k = N(u_k + H_k ∇ log p(u_k), H_k),   kept: the k of the largest ELBO, E_q[log p(u) - log q(u)]

A mode can be a bad place to start, or infinitely high and without mass (a scale that goes to zero); the ELBO tells.
A path ends where nothing is left to climb, or where its ELBO, among the best of all, rises no more: early, on the way
up a funnel. A path whose ELBO lies far below the best one's ended where there is no mass: its draw is another path's.
Many chains begin at the draws (`ppgen.inference.mcmc`), a guide at the best normal (`inference.training.guide_init`).

Source: Pathfinder: Parallel quasi-Newton variational inference (Zhang, Carpenter, Gelman, Vehtari 2022,
arXiv:2108.03782), with a dense H in place of its factored form.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

DRAWS = 3  # of each normal approximation, for its ELBO
HOPELESS = 20.0  # nats below the best path's ELBO: e⁻²⁰ of the mass
SHORTER = 25  # trials of a line search
STILL = 5  # iterations without progress after which a path ends,
IDLE = 10  # and those without a better ELBO, where its ELBO is among the best
FLAT = 1e-11  # a promised rise, relative to the log joint, that is not worth a search
ITERATIONS = 200
WEIGHED, EM_ROUNDS = 50, 10  # of a mixture's weights: draws of each normal, and rounds


Density = Callable[[Tensor], tuple[Tensor, Tensor]]  # (n, dim) -> (n,) nats and (n, dim)


class Paths(NamedTuple):
    """What `pathfinder` returns.

    Attributes:
        u: (chains, dim), one draw of the best normal distribution of each path.
        elbo: (chains,) in nats, of the paths.
        mean, covariance: (dim,) and (dim, dim), of the best path of all.
        kept: how many paths gave a draw of their own.
    """

    u: Tensor
    elbo: Tensor
    mean: Tensor
    covariance: Tensor
    kept: int


class Climbs(NamedTuple):
    """The best normal of each path, and where it ended.

    Attributes:
        elbo: (chains,) in nats; minus infinity where a path found none.
        mean, root: (chains, dim), and (chains, dim, dim), lower-triangular: N(mean, root rootᵀ).
        draw: (chains, dim), one draw of each.
        top: (chains, dim), where it ended.
    """

    elbo: Tensor
    mean: Tensor
    root: Tensor
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
    return _chosen(target, climb(target, start, generator=generator, enough=enough), generator)


@torch.no_grad()
def climb(target: Density, start: Tensor, *, generator: torch.Generator | None = None, enough: float = 0.9) -> Climbs:
    """Follows one path from each start; arguments as for `pathfinder`."""
    n, dim = start.shape
    u = start
    lp, g = _safe(target, u)
    identity = torch.eye(dim).to(u)
    H = identity / g.norm(dim=-1).clamp_min(1.0)[:, None, None]
    fresh = torch.ones(n, dtype=torch.bool)  # H has seen no curvature yet
    still = torch.zeros(n, dtype=torch.long)  # iterations without progress
    idle = torch.zeros(n, dtype=torch.long)  # iterations without a better ELBO
    elbo = torch.full_like(lp, -torch.inf)
    best = (u, identity.expand(n, dim, dim) * 1e-4, u)  # mean, root, draw
    for _ in range(ITERATIONS):
        direction = (H @ g[..., None])[..., 0]
        uphill = (direction * g).sum(-1) > 0
        direction = torch.where(uphill[:, None], direction, g / g.norm(dim=-1).clamp_min(1.0)[:, None])
        ended = (still >= STILL) | (idle >= IDLE)
        if ended.float().mean() > enough:
            break
        new, new_lp, new_g, moved = _search(target, u, lp, g, direction, ended)
        s, y = new - u, g - new_g
        H, fresh = _bfgs(H, s, y, moved, fresh, identity)
        # A plateau is no end: the steps double on it until the long direction is known. Rounding is one.
        small = (new_lp - lp).abs() <= 1e-13 * lp.abs()
        still = torch.where(moved & ~small, 0, still + 1)
        again = ~moved & (still < 3)  # once more, straight up
        H = torch.where(again[:, None, None], identity / new_g.norm(dim=-1).clamp_min(1.0)[:, None, None], H)
        fresh = fresh | again
        u, lp, g = new, new_lp, new_g
        found, mean, root, draw = _approximate(target, u, g, H, generator)
        found = torch.where(fresh, -torch.inf, found)
        better = found > elbo
        idle = torch.where(better, 0, idle + (elbo > elbo.max() - HOPELESS))
        elbo = torch.where(better, found, elbo)
        best = tuple(  # type: ignore[assignment]
            torch.where(better.view(-1, *[1] * (b.dim() - 1)), b, a)
            for a, b in zip(best, (mean, root, draw), strict=True)
        )
    return Climbs(elbo, *best, u)


@torch.no_grad()
def _chosen(target: Density, paths: Climbs, generator: torch.Generator | None) -> Paths:
    """The draws of good paths, and in place of a hopeless one's a draw of theirs."""
    elbo, means, roots, draws, tops = paths
    n, dim = draws.shape
    top = int(elbo.argmax())
    good = elbo > elbo[top] - max(HOPELESS, dim)
    chosen = torch.where(
        good, torch.arange(n), good.nonzero()[:, 0][torch.arange(n) % max(int(good.sum()), 1)] if good.any() else 0
    )
    noise = torch.randn(draws.shape, generator=generator, dtype=draws.dtype)
    other = means[chosen] + (roots[chosen] @ noise[..., None])[..., 0]
    drawn = torch.where(good[:, None], draws, other)
    for instead in (means[chosen], tops[chosen]):  # a normal may reach beyond the support, and so may its mean
        finite = torch.isfinite(_safe(target, drawn)[0])
        drawn = torch.where(finite[:, None], drawn, instead)
    return Paths(drawn, elbo, means[top], roots[top] @ roots[top].mT, int(good.sum()))


def _safe(target: Density, u: Tensor) -> tuple[Tensor, Tensor]:
    """Minus infinity, and no slope, where the log joint or its gradient is not a number."""
    lp, g = target(u)
    ok = torch.isfinite(lp) & torch.isfinite(g).all(-1)
    return torch.where(ok, lp, -torch.inf), torch.where(ok[:, None], g, 0.0)


def _search(
    target: Density, u: Tensor, lp: Tensor, g: Tensor, direction: Tensor, ended: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Backtracking until the log joint has risen by a share of what the slope promises (Armijo)."""
    slope = (direction * g).sum(-1)
    t = torch.ones_like(lp)
    out = (u, lp, g)
    moved = torch.zeros(len(u), dtype=torch.bool)
    flat = max(FLAT, 10 * torch.finfo(lp.dtype).eps)
    idle = ended | (slope <= flat * (1 + lp.abs()))  # of these nothing more is to be had
    for _ in range(SHORTER):
        trial = torch.where((moved | idle)[:, None], out[0], u + t[:, None] * direction)
        trial_lp, trial_g = _safe(target, trial)
        ok = ~moved & ~idle & (trial_lp > lp + 1e-4 * t * slope)
        out = (
            torch.where(ok[:, None], trial, out[0]),
            torch.where(ok, trial_lp, out[1]),
            torch.where(ok[:, None], trial_g, out[2]),
        )
        moved = moved | ok
        if (moved | idle).all():
            break
        short = 0.5 * slope * t**2 / (lp + slope * t - trial_lp)  # the top of the parabola
        t = torch.where(torch.isfinite(short), short.clamp(0.05 * t, 0.5 * t), 0.1 * t)
    return *out, moved


def _bfgs(H: Tensor, s: Tensor, y: Tensor, moved: Tensor, fresh: Tensor, identity: Tensor) -> tuple[Tensor, Tensor]:
    """The update of the inverse Hessian where the curvature along s is positive."""
    sy = (s * y).sum(-1)
    ok = moved & (sy > 1e-12 * s.norm(dim=-1) * y.norm(dim=-1)) & torch.isfinite(y).all(-1)
    rho = torch.where(ok, 1 / torch.where(ok, sy, 1.0), 0.0)
    scale = torch.where(ok, sy / (y * y).sum(-1).clamp_min(1e-300), 1.0)
    H = torch.where((ok & fresh)[:, None, None], identity * scale[:, None, None], H)
    Hy = (H @ y[..., None])[..., 0]
    cross = s[:, :, None] * Hy[:, None, :]
    curved = rho * (1 + rho * (y * Hy).sum(-1))
    new = H - rho[:, None, None] * (cross + cross.mT) + curved[:, None, None] * s[:, :, None] * s[:, None, :]
    use = ok & torch.isfinite(new).all(-1).all(-1)
    return torch.where(use[:, None, None], new, H), fresh & ~use


def _approximate(
    target: Density, u: Tensor, g: Tensor, H: Tensor, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ELBO, mean, root and one draw of N(u + H g, H)."""
    root, info = torch.linalg.cholesky_ex(H)
    usable = (info == 0) & torch.isfinite(root).all(-1).all(-1)
    root = torch.where(usable[:, None, None], root, torch.eye(u.shape[1]).to(u))
    mean = u + (H @ g[..., None])[..., 0]
    z = torch.randn(DRAWS, *u.shape, generator=generator, dtype=u.dtype)
    draws = mean + (root @ z[..., None])[..., 0]
    lp = _safe(target, draws.flatten(0, 1))[0].reshape(DRAWS, -1)
    draw, total = draws[-1], (lp + 0.5 * (z**2).sum(-1)).sum(0)
    elbo = total / DRAWS + root.diagonal(dim1=-2, dim2=-1).log().sum(-1) + 0.9189385332046727 * u.shape[1]
    return torch.where(usable, elbo, -torch.inf), mean, root, draw


def mixture_weights(target: Density, means: Tensor, roots: Tensor, generator: torch.Generator) -> Tensor:
    """Log weights of the normals, (P,): those of the mixture that is nearest to the posterior."""
    n, dim = means.shape
    noise = torch.randn(n, WEIGHED, dim, generator=generator, dtype=means.dtype)
    u = (means[:, None] + noise @ roots.mT).flatten(0, 1)
    each = MultivariateNormal(means, scale_tril=roots).log_prob(u[:, None])  # (draws, P)
    made = torch.logsumexp(each, -1) - math.log(n)  # they were drawn from equal shares
    log_p = torch.nan_to_num(target(u)[0], nan=-math.inf, posinf=-math.inf)
    most = torch.logsumexp(log_p - made, 0) - 0.5 * math.log(len(u))  # a single weight has no more than √S of S
    log_w = torch.log_softmax((log_p - made).clamp_max(float(most)), 0)
    log_weights = torch.full((n,), -math.log(n)).to(means)
    for _ in range(EM_ROUNDS):
        shares = torch.log_softmax(each + log_weights, -1)
        log_weights = torch.logsumexp(log_w[:, None] + shares, 0)
    return log_weights
