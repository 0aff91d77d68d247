r"""Inverse Hessians along many quasi-Newton paths at once, and the normals that they are covariances of.

`Dense` keeps whole matrices, `LimitedMemory` a diagonal D and the last J pairs of steps s and of gradients' differences
y, each divided by (sᵀy)^½, in the compact form of L-BFGS:

    H = D + W M Wᵀ,   W = [S, D Y],   M = [[R⁻ᵀ (I + Yᵀ D Y) R⁻¹, −R⁻ᵀ], [−R⁻¹, 0]],   R_ij = s_iᵀ y_j, i <= j
    D_k = (Σ_j s_jk² / Σ_j y_jk²)^½

which is exact for a normal of independent entries after one step. Its normal is drawn from with P, orthonormal columns
of D^-½ W, and the eigenvalues 1 + λ there:

    H = D^½ (I + P diag(λ) Pᵀ) D^½,   u = μ + D^½ (e + P ((1 + λ)^½ − 1) Pᵀ e)

Sources: Representations of quasi-Newton matrices and their use in limited memory methods (Byrd, Nocedal, Schnabel
1994); Pathfinder: Parallel quasi-Newton variational inference (Zhang, Carpenter, Gelman, Vehtari 2022,
arXiv:2108.03782), with another diagonal.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from torch import Tensor

HISTORY = 10  # pairs J


class Triangular(NamedTuple):
    """The covariances root rootᵀ of n normals, (n, dim, dim)."""

    root: Tensor

    def taken(self, k: Tensor) -> Self:
        """Those of the normals k."""
        return type(self)(*(v[k] for v in self))

    def volume(self) -> Tensor:
        """½ log |H|, (n,)."""
        return self.root.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    def spread(self, noise: Tensor) -> Tensor:
        """Draws about the means, of standard normal noise (..., n, dim)."""
        return (self.root @ noise[..., None])[..., 0]


class LowRank(NamedTuple):
    """n covariances D^½ (I + P diag(stretch² − 1) Pᵀ) D^½: sd = D^½ (n, dim), basis = P (n, dim, 2 J), stretch."""

    sd: Tensor
    basis: Tensor
    stretch: Tensor

    def taken(self, k: Tensor) -> Self:
        """Those of the normals k."""
        return type(self)(*(v[k] for v in self))

    def volume(self) -> Tensor:
        """½ log |H|, (n,)."""
        return self.sd.log().sum(-1) + self.stretch.log().sum(-1)

    def spread(self, noise: Tensor) -> Tensor:
        """Draws about the means, of standard normal noise (..., n, dim)."""
        along = (self.basis.mT @ noise[..., None])[..., 0] * (self.stretch - 1)
        return self.sd * (noise + (self.basis @ along[..., None])[..., 0])


class Dense:
    """Whole matrices H (n, dim, dim), by the updates of BFGS.

    Attributes:
        fresh: which have seen no curvature yet, (n,).
    """

    def __init__(self, g: Tensor):
        self.H = _steepest(g)
        self.fresh = torch.ones(len(g), dtype=torch.bool)

    def flat(self, n: int, dim: int, sd: float) -> Triangular:
        """Normals of independent entries."""
        return Triangular(torch.eye(dim).to(self.H).repeat(n, 1, 1) * sd)

    def times(self, i: Tensor, x: Tensor) -> Tensor:
        """H x of the paths i."""
        return (self.H[i] @ x[..., None])[..., 0]

    def restart(self, i: Tensor, g: Tensor) -> None:
        """The curvature is forgotten: a step straight up, of length 1 at the most."""
        self.H[i], self.fresh[i] = _steepest(g), True

    def update(self, i: Tensor, s: Tensor, y: Tensor, moved: Tensor) -> None:
        """What a step s says, y what the gradient lost on it; where the curvature along s is positive."""
        H, fresh = self.H[i], self.fresh[i]
        sy = (s * y).sum(-1)
        ok = _positive(s, y, moved)
        rho = torch.where(ok, 1 / torch.where(ok, sy, 1.0), 0.0)
        scale = torch.where(ok, sy / (y * y).sum(-1).clamp_min(1e-300), 1.0)
        identity = torch.eye(s.shape[1]).to(s)
        H = torch.where((ok & fresh)[:, None, None], identity * scale[:, None, None], H)
        Hy = (H @ y[..., None])[..., 0]
        cross = s[:, :, None] * Hy[:, None, :]
        curved = rho * (1 + rho * (y * Hy).sum(-1))
        new = H - rho[:, None, None] * (cross + cross.mT) + curved[:, None, None] * s[:, :, None] * s[:, None, :]
        use = ok & torch.isfinite(new).all(-1).all(-1)
        self.H[i], self.fresh[i] = torch.where(use[:, None, None], new, H), fresh & ~use

    def roots(self, i: Tensor) -> tuple[Triangular, Tensor]:
        """Of the paths i, and which are usable."""
        root, info = torch.linalg.cholesky_ex(self.H[i])
        return Triangular(root), (info == 0) & torch.isfinite(root).all(-1).all(-1) & ~self.fresh[i]


class LimitedMemory:
    """Diagonals and pairs; see above.

    Attributes:
        s, y: (n, J, dim), the latest pair last, zeros where there are none yet.
        diagonal: D, (n, dim).
        fresh: which have seen no curvature yet, (n,).
    """

    def __init__(self, g: Tensor):
        self.s = g.new_zeros(len(g), HISTORY, g.shape[1])
        self.y = self.s.clone()
        self.diagonal = _length(g)[:, None].repeat(1, g.shape[1])
        self.fresh = torch.ones(len(g), dtype=torch.bool)

    def flat(self, n: int, dim: int, sd: float) -> LowRank:
        """Normals of independent entries."""
        sds = torch.full((n, dim), sd).to(self.s)
        return LowRank(sds, sds.new_zeros(n, dim, min(2 * HISTORY, dim)), sds.new_ones(n, min(2 * HISTORY, dim)))

    def times(self, i: Tensor, x: Tensor) -> Tensor:
        """H x of the paths i."""
        D, W, M = self._compact(i)
        return D * x + (W.mT @ (M @ (W @ x[..., None])))[..., 0]

    def restart(self, i: Tensor, g: Tensor) -> None:
        """The curvature is forgotten: a step straight up, of length 1 at the most."""
        self.s[i], self.y[i] = 0.0, 0.0
        self.diagonal[i] = _length(g)[:, None].expand(-1, g.shape[1])
        self.fresh[i] = True

    def update(self, i: Tensor, s: Tensor, y: Tensor, moved: Tensor) -> None:
        """What a step s says, y what the gradient lost on it; where the curvature along s is positive."""
        ok = _positive(s, y, moved)
        k, unit = i[ok], (s[ok] * y[ok]).sum(-1).sqrt()[:, None]
        self.s[k] = torch.cat([self.s[k, 1:], (s[ok] / unit)[:, None]], 1)
        self.y[k] = torch.cat([self.y[k, 1:], (y[ok] / unit)[:, None]], 1)
        D = (self.s[k].square().sum(1) / self.y[k].square().sum(1)).sqrt()
        self.diagonal[k] = torch.where(torch.isfinite(D) & (D > 0), D, self.diagonal[k])
        self.fresh[k] = False

    def roots(self, i: Tensor) -> tuple[LowRank, Tensor]:
        """Of the paths i, and which are usable."""
        D, W, M = self._compact(i)
        sd = D.sqrt()
        basis, R = torch.linalg.qr((W / sd[:, None]).mT)
        core = R @ M @ R.mT
        ok = torch.isfinite(core).all(-1).all(-1)
        w, vectors = torch.linalg.eigh(torch.where(ok[:, None, None], 0.5 * (core + core.mT), 0.0))
        ok = ok & (w > -1).all(-1) & ~self.fresh[i]
        return LowRank(sd, basis @ vectors, (1 + w).clamp_min(torch.finfo(w.dtype).tiny).sqrt()), ok

    def _compact(self, i: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """D, Wᵀ and M of the paths i."""
        D, s, y = self.diagonal[i], self.s[i], self.y[i]
        Dy = D[:, None] * y
        eye = torch.eye(HISTORY).to(D)
        R = torch.triu(s @ y.mT, 1) + eye  # sᵀy = 1, or no pair
        inverse = torch.linalg.solve_triangular(R, eye.expand_as(R), upper=True)
        first = inverse.mT @ (eye + y @ Dy.mT) @ inverse
        M = torch.cat([torch.cat([first, -inverse.mT], -1), torch.cat([-inverse, torch.zeros_like(R)], -1)], -2)
        return D, torch.cat([s, Dy], 1), M


def _positive(s: Tensor, y: Tensor, moved: Tensor) -> Tensor:
    """Whether there was a step, and the curvature along it is positive."""
    return moved & ((s * y).sum(-1) > 1e-12 * s.norm(dim=-1) * y.norm(dim=-1)) & torch.isfinite(y).all(-1)


def _length(g: Tensor) -> Tensor:
    """Of a step along g of length 1 at the most."""
    return 1 / g.norm(dim=-1).clamp_min(1.0)


def _steepest(g: Tensor) -> Tensor:
    """H before any curvature is known: a step straight up, of length 1 at the most, (n, dim, dim)."""
    return torch.eye(g.shape[1]).to(g) / g.norm(dim=-1).clamp_min(1.0)[:, None, None]
