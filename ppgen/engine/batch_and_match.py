r"""Batch and match: a Gaussian whose scores are those of the log joint, with no step of a gradient.

A Gaussian is matched to the scores (gradients of the log joint) at its own draws, which for a Gaussian posterior is
exact after a few rounds:

    V = Σ + λ C + λ/(1+λ) (μ − ū)(μ − ū)ᵀ,   U = λ Γ + λ/(1+λ) ḡ ḡᵀ,   Σ' = 2 V (I + (I + 4 U V)^½)⁻¹,
    μ' = (μ + λ (Σ' ḡ + ū)) / (1 + λ)

with ū, C and ḡ, Γ the means and covariances of the draws and of their scores. It begins at the best normal of
Pathfinder's paths: a mode that has no mass, such as that of a funnel, is passed on the way and not taken.

Source: Batch and match: black-box variational inference with a score-based divergence (Cai et al. 2024,
arXiv:2402.14758).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppgen.engine.pathfinder import Density, pathfinder

MOST = 300  # entries of the latents: a matrix of so many squared is factorised at every round
DRAWS = 64  # for an ELBO
ROUNDS = 60
SETTLED = 0.01  # nats of KL between normals five rounds apart, below which it ends
SAME = 0.05  # nats of ELBO, less than its noise tells apart
ENOUGH = 0.5  # of the starts' paths, ended
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
