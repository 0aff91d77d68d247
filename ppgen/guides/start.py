r"""Where a guide begins: a Gaussian in the latents' unconstrained space, the best of several starts.

From each start L-BFGS climbs the log joint; each point of its path, with the inverse Hessian that its steps have told
so far, is a Gaussian, and the one with the highest ELBO is kept: a mode that has no mass, such as that of a funnel,
is passed on the way and not taken. The best of all starts is then matched to the scores (gradients of the log joint)
at its own draws, which for a Gaussian posterior is exact after a few rounds:

    V = Σ + λ C + λ/(1+λ) (μ − ū)(μ − ū)ᵀ,   U = λ Γ + λ/(1+λ) ḡ ḡᵀ,   Σ' = 2 V (I + (I + 4 U V)^½)⁻¹,
    μ' = (μ + λ (Σ' ḡ + ū)) / (1 + λ)

with ū, C and ḡ, Γ the means and covariances of the draws and of their scores.

Sources: Pathfinder (Zhang et al., 2022, arXiv:2108.03782); Batch and match (Cai et al., 2024, arXiv:2402.14758).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro.infer.autoguide.utils import deep_setattr
from torch import Tensor

from ppgen.engine import log_joint
from ppgen.errors import PpgenError
from ppgen.program import Program

log = logging.getLogger("ppgen")

MOST = 300  # entries of the latents: a matrix of so many squared is factorised at every round
DRAWS = 64  # for an ELBO
ROUNDS = 60  # of batch and match
REACH = 2.0  # starts are uniform in [-2, 2]

Score = Callable[[Tensor], tuple[Tensor, Tensor]]  # (K, D) -> log joint (K,) and its gradients (K, D)


class Gaussian(NamedTuple):
    """N(loc, scale_tril scale_trilᵀ), and its ELBO in nats."""

    loc: Tensor
    scale_tril: Tensor
    elbo: float


def start_at(program: Program, data: Mapping[str, Tensor], starts: int, seed: int) -> bool:
    """Sets the program's guide, a flow or one of Pyro's Gaussian autoguides, to the Gaussian found on all rows.

    Returns:
        Whether it did: False where the latents are too many, or the log joint is no function of them alone.
    """
    guide: Any = program._autoguide
    if guide is None or not hasattr(guide, "start_at") and not _loc_of(guide):
        return False
    try:
        joint = log_joint(program, data)
        if joint.dim > MOST:
            return False
        found = gaussian(joint.value_and_grad, joint.dim, starts=starts, seed=seed)
    except (PpgenError, RuntimeError, ValueError) as e:
        log.info("the guide begins where it was made, as no start was found: %s", str(e).splitlines()[0])
        return False
    if found is None:
        return False
    places = {n: slice(b.start, b.stop) for n, b in joint._blocks.items()}
    if hasattr(guide, "start_at"):
        guide.start_at(places, found.loc, found.scale_tril)
    else:
        with program.running():
            _set_pyro(guide, places, found)
    return True


def gaussian(score: Score, dim: int, *, starts: int = 8, seed: int = 0) -> Gaussian | None:
    """The Gaussian; None where the log joint is finite at no start.

    Args:
        score: log joint in nats, and gradients, of many points at once.
    """
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.get_default_dtype()
    best: Gaussian | None = None
    for i in range(starts):
        first = torch.zeros(dim) if i == 0 else REACH * (2 * torch.rand(dim, generator=generator, dtype=dtype) - 1)
        for found in _path(score, first):
            found = found._replace(elbo=_elbo(score, found, generator))
            if np.isfinite(found.elbo) and (best is None or found.elbo > best.elbo):
                best = found
    return None if best is None else _matched(score, best, generator)


def _path(score: Score, first: Tensor) -> list[Gaussian]:
    """The Gaussians along one climb; L-BFGS forgets, the inverse Hessian here is that of all steps."""
    from scipy.optimize import minimize

    points: list[tuple[np.ndarray, np.ndarray]] = []

    def loss(u: np.ndarray) -> tuple[float, np.ndarray]:
        value, grad = score(torch.as_tensor(u, dtype=first.dtype)[None])
        if not (torch.isfinite(value).all() and torch.isfinite(grad).all()):
            return 1e100, np.zeros_like(u)
        return -float(value), -grad[0].double().numpy()

    def note(u: np.ndarray) -> None:
        points.append((u.copy(), loss(u)[1]))

    note(first.double().numpy())
    minimize(loss, points[0][0], jac=True, method="L-BFGS-B", callback=note, options={"maxiter": 300, "maxfun": 600})
    found = []
    n = len(first)
    H = np.eye(n)
    every = max(1, len(points) // 25)
    for i in range(1, len(points)):
        s, y = points[i][0] - points[i - 1][0], points[i][1] - points[i - 1][1]
        sy, yy = float(s @ y), float(y @ y)
        if sy > 1e-10 * yy and sy > 0:
            if i == 1:
                H = np.eye(n) * (sy / yy)
            rest = np.eye(n) - np.outer(s, y) / sy
            H = rest @ H @ rest.T + np.outer(s, s) / sy
        if i % every and i != len(points) - 1:
            continue
        u, g = points[i]
        try:
            L = np.linalg.cholesky((H + H.T) / 2)
        except np.linalg.LinAlgError:
            continue
        for loc in (u, u - H @ g):
            found.append(Gaussian(torch.tensor(loc, dtype=first.dtype), torch.tensor(L, dtype=first.dtype), 0.0))
    return found


def _elbo(score: Score, q: Gaussian, generator: torch.Generator, draws: int = DRAWS) -> float:
    e = torch.randn(draws, len(q.loc), generator=generator, dtype=q.loc.dtype)
    value, _ = score(q.loc + e @ q.scale_tril.T)
    log_q = -0.5 * (e * e).sum(-1) - q.scale_tril.diagonal().log().sum() - 0.5 * len(q.loc) * np.log(2 * np.pi)
    total = (value - log_q).double().mean()
    return float(total) if torch.isfinite(total) else -float("inf")


def _matched(score: Score, first: Gaussian, generator: torch.Generator) -> Gaussian:
    """Batch and match from a Gaussian; what has the highest ELBO on the way."""
    n = len(first.loc)
    batch = max(32, min(2 * n, 200))
    mu, sigma = first.loc.double(), (first.scale_tril @ first.scale_tril.T).double()
    best = first
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
            now = now._replace(elbo=_elbo(score, now, generator, 4 * DRAWS))
            if now.elbo > best.elbo:
                best = now
    return best


# -- Pyro's Gaussian autoguides --------------------------------------------------------------------


def _loc_of(guide: Any) -> bool:
    return type(guide).__name__ in ("AutoNormal", "AutoDiagonalNormal", "AutoMultivariateNormal")


@torch.no_grad()
def _set_pyro(guide: Any, places: Mapping[str, slice], q: Gaussian) -> None:
    sd = q.scale_tril.norm(dim=-1)
    kind = type(guide).__name__
    if kind == "AutoNormal":
        for name, place in places.items():
            shape = reduce(getattr, name.split("."), guide.locs).shape
            deep_setattr(guide.locs, name, q.loc[place].reshape(shape))
            deep_setattr(guide.scales, name, sd[place].reshape(shape))
        return
    guide.loc.copy_(q.loc)
    if kind == "AutoDiagonalNormal":
        guide.scale = sd
        return
    guide.scale = q.scale_tril.diagonal()
    guide.scale_tril = q.scale_tril / q.scale_tril.diagonal()[:, None]
