r"""Batch and match: a Gaussian whose scores are those of the log joint, with no step of a gradient.

A Gaussian is matched to the scores (gradients of the log joint) at its own draws, which for a Gaussian posterior is
exact after a few rounds:

    V = Σ + λ C + λ/(1+λ) (μ − ū)(μ − ū)ᵀ,   U = λ Γ + λ/(1+λ) ḡ ḡᵀ,   Σ' = 2 V (I + (I + 4 U V)^½)⁻¹,
    μ' = (μ + λ (Σ' ḡ + ū)) / (1 + λ)

with ū, C and ḡ, Γ the means and covariances of the draws and of their scores. It begins at the best normal of
Pathfinder's paths: a mode that has no mass, such as that of a funnel, is passed on the way and not taken.

Where no normal on the paths has an ELBO, because the density has an edge, `gaussian_of_draws` finds one by moments.

Source: Batch and match: black-box variational inference with a score-based divergence (Cai et al. 2024,
arXiv:2402.14758).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppgen.engine.density.pathfinder import Density, pathfinder

MOST = 300  # entries of the latents: a matrix of so many squared is factorised at every round
DRAWS = 64  # for an ELBO
ROUNDS = 60
SETTLED = 0.01  # nats of KL between normals five rounds apart, below which it ends
SAME = 0.05  # nats of ELBO, less than its noise tells apart
ENOUGH = 0.5  # of the starts' paths, ended
MOMENTS, WIDER = 8, 1.5  # rounds of weighted draws, and how much wider these are than the moments have it
EFFECTIVE = 0.25  # of the draws, which the weights of a round are tempered to leave
REACH = 2.0  # starts are uniform in [-2, 2]


class Gaussian(NamedTuple):
    """N(loc, scale_tril scale_trilᵀ), and its ELBO in nats."""

    loc: Tensor
    scale_tril: Tensor
    elbo: float = math.nan


def best_gaussian(score: Density, dim: int, *, starts: int = 8, seed: int = 0) -> Gaussian | None:
    """The Gaussian; None where the log joint is finite at no start.

    Args:
        score: log joint in nats, and gradients, of many points at once.
    """
    generator = torch.Generator().manual_seed(seed)
    first = REACH * (2 * torch.rand(starts, dim, generator=generator, dtype=torch.get_default_dtype()) - 1)
    first[0] = 0
    paths = pathfinder(score, first, generator=generator, enough=ENOUGH)
    root, info = torch.linalg.cholesky_ex(paths.covariance)
    if info or not torch.isfinite(paths.elbo).any():
        return None
    found = Gaussian(paths.mean, root, 0.0)
    return batch_and_match(score, found._replace(elbo=elbo_of(score, found, generator)), generator)


def gaussian_of_draws(score: Density, u: Tensor, generator: torch.Generator) -> Gaussian:
    """The Gaussian of the moments of weighted draws: for a density with edges, beyond which every Gaussian reaches, so
    that it has no ELBO, and whose scores are not those of a Gaussian.

        w ∝ (p(u) / q(u))^β,   q' = N(E_w u, c² Cov_w u),   β the largest that leaves a share of the draws effective

    Source: Population Monte Carlo (Cappé et al. 2004), with tempered weights.

    Args:
        u: (n, dim), from where the log joint is finite; the first weights are p^β.
    """
    n, dim = u.shape
    log_q = torch.zeros(n).to(u)
    loc, root = u.mean(0), torch.eye(dim).to(u)
    for _ in range(MOMENTS):
        value, _ = score(u)
        log_w = torch.where(torch.isfinite(value), value - log_q, -torch.inf).double()
        if not torch.isfinite(log_w).any():
            break
        w = _tempered(log_w).to(u)
        loc = w @ u
        off = w.sqrt()[:, None] * (u - loc)
        narrowest = 1e-3 * off.square().sum(0).max().clamp_min(1e-12)
        found, info = torch.linalg.cholesky_ex(off.mT @ off + narrowest * torch.eye(dim).to(u))
        root = root if info else WIDER * found
        z = torch.randn(max(n, 20 * dim), dim, generator=generator, dtype=u.dtype)
        u, log_q = loc + z @ root.mT, -0.5 * z.square().sum(-1)
    return Gaussian(loc, root)


def _tempered(log_w: Tensor) -> Tensor:
    """The weights ∝ exp(β log w), by bisection of β."""
    low, high = 0.0, 1.0
    least = EFFECTIVE * float(torch.isfinite(log_w).sum())
    for step in range(30):
        beta = high if step == 0 else (low + high) / 2
        w = torch.softmax(torch.where(torch.isfinite(log_w), beta * log_w, -torch.inf), 0)
        if float(1 / w.square().sum()) >= least:
            if step == 0:
                return w
            low = beta
        else:
            high = beta
    return w


def elbo_of(score: Density, q: Gaussian, generator: torch.Generator, draws: int = DRAWS) -> float:
    e = torch.randn(draws, len(q.loc), generator=generator, dtype=q.loc.dtype)
    value, _ = score(q.loc + e @ q.scale_tril.T)
    log_q = -0.5 * (e * e).sum(-1) - q.scale_tril.diagonal().log().sum() - 0.5 * len(q.loc) * np.log(2 * np.pi)
    total = (value - log_q).double().mean()
    return float(total) if torch.isfinite(total) else -float("inf")


def batch_and_match(score: Density, first: Gaussian, generator: torch.Generator) -> Gaussian:
    """Batch and match from a Gaussian, until it settles; what has the highest ELBO on the way."""
    n = len(first.loc)
    batch = max(32, min(2 * n, 200))
    mu, sigma = first.loc.double(), (first.scale_tril @ first.scale_tril.T).double()
    best = before = first
    eye = torch.eye(n, dtype=torch.float64)
    for t in range(ROUNDS):
        L, info = torch.linalg.cholesky_ex(sigma)
        if info:
            break
        u = mu + torch.randn(batch, n, generator=generator, dtype=torch.float64) @ L.T
        value, g = score(u.to(first.loc.dtype))
        g = g.double()
        good = torch.isfinite(value) & torch.isfinite(g).all(-1)
        if good.sum() < batch // 2:
            break
        u, g = u[good], g[good]
        weight = batch * n / (t + 1)
        ub, gb = u.mean(0), g.mean(0)
        C, G = torch.cov(u.T, correction=0).reshape(n, n), torch.cov(g.T, correction=0).reshape(n, n)
        share = weight / (1 + weight)
        V = sigma + weight * C + share * torch.outer(mu - ub, mu - ub)
        U = weight * G + share * torch.outer(gb, gb)
        # with V = R Rᵀ, 2 V (I + (I + 4 U V)^½)⁻¹ = R 2 (I + (I + 4 Rᵀ U R)^½)⁻¹ Rᵀ: symmetric
        R, info = torch.linalg.cholesky_ex(V)
        if info:
            break
        w, Q = torch.linalg.eigh(eye + 4 * R.T @ U @ R)
        root = R @ Q
        sigma = root @ torch.diag(2 / (1 + w.clamp_min(1.0).sqrt())) @ root.T
        sigma = (sigma + sigma.T) / 2
        mu = (mu + weight * (sigma @ gb + ub)) / (1 + weight)
        if t % 5 == 4:
            L, info = torch.linalg.cholesky_ex(sigma)
            if info:
                break
            now = Gaussian(mu.to(first.loc), L.to(first.loc), 0.0)
            now = now._replace(elbo=elbo_of(score, now, generator, 4 * DRAWS))
            if now.elbo > best.elbo - SAME:  # of two that are as good the later: an ELBO by few draws is noisy
                best = now._replace(elbo=max(now.elbo, best.elbo))
            if _kl(now, before) < SETTLED:
                break
            before = now
    return best


def _kl(q: Gaussian, p: Gaussian) -> float:
    """KL(q, p) in nats."""
    moved = torch.cat([q.scale_tril, (q.loc - p.loc)[:, None]], 1)
    both = torch.linalg.solve_triangular(p.scale_tril, moved, upper=False)
    log_ratio = (q.scale_tril.diagonal() / p.scale_tril.diagonal()).log().sum()
    return float(0.5 * (both.square().sum() - len(q.loc)) - log_ratio)
