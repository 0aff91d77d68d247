r"""Pyro's planar, radial and Sylvester transforms, with the inverses that Pyro leaves out.

    planar     x = z + u tanh(wᵀz + b)
    radial     x = z + β (z - z_0) / (α + |z - z_0|)
    Sylvester  x = z + Q R tanh(S Qᵀ z + b), R and S upper triangular, Q orthogonal

Sampling is the closed form. The density of data needs z: planar by Newton's steps on the one number wᵀz, Sylvester by
one such solution after the other from the last row of the triangular system up, radial by a quadratic equation.

Sources: Variational Inference with Normalizing Flows (Rezende & Mohamed, 2015, arXiv:1505.05770); Sylvester
Normalizing Flows for Variational Inference (van den Berg et al., 2018, arXiv:1803.05649).
"""

from __future__ import annotations

import torch
from pyro.distributions import transforms as pyro_transforms
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppgen.transforms.change_of_variables import FlowTransform, Pair, full_precision
from ppgen.transforms.univariate.roots import solve_increasing


class Planar(FlowTransform):
    """x = z + û tanh(wᵀz + b), with û such that wᵀû > -1, where the map is invertible.

    Args:
        features: D.
    """

    pulls = False

    def __init__(self, features: int):
        super().__init__((features,))
        self.map = pyro_transforms.planar(features)

    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        w, b = self.map.w, self.map.bias.squeeze(-1)
        return self.map.u_hat(self.map.u, w), w, b

    @full_precision
    def push(self, z: Tensor, context: Tensor | None = None) -> Pair:
        u, w, b = self._parts()
        t = (z @ w + b).tanh()
        return z + u * t[..., None], torch.log1p((1 - t.square()) * (w @ u))

    @full_precision
    def pull(self, x: Tensor, context: Tensor | None = None) -> Pair:
        u, w, b = self._parts()
        a = _solve_tanh(w @ u, b, x @ w)
        t = (a + b).tanh()
        return x - u * t[..., None], -torch.log1p((1 - t.square()) * (w @ u))


def _solve_tanh(slope: Tensor, shift: Tensor, y: Tensor) -> Tensor:
    """The a with a + slope · tanh(a + shift) = y, slope > -1."""

    def f(a: Tensor) -> Pair:
        t = (a + shift).tanh()
        return a + slope * t, torch.log1p(slope * (1 - t.square()))

    return solve_increasing(f, y)


class Radial(FlowTransform):
    """x = z + β (z - z_0) / (α + r), r = |z - z_0|, β > -α, where the map is invertible.

    Args:
        features: D.
    """

    pulls = False

    def __init__(self, features: int):
        super().__init__((features,))
        self.map = pyro_transforms.radial(features)

    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        m = self.map
        alpha = softplus(m.alpha_prime.squeeze(-1))
        return m.x0, alpha, softplus(m.beta_prime.squeeze(-1)) - alpha

    def _ladj(self, r: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        h = 1 / (alpha + r)
        return (self.shape[0] - 1) * torch.log1p(beta * h) + torch.log1p(beta * h - beta * h.square() * r)

    def push(self, z: Tensor, context: Tensor | None = None) -> Pair:
        centre, alpha, beta = self._parts()
        r = (z - centre).norm(dim=-1)
        return z + (beta / (alpha + r))[..., None] * (z - centre), self._ladj(r, alpha, beta)

    def pull(self, x: Tensor, context: Tensor | None = None) -> Pair:
        centre, alpha, beta = self._parts()
        far = (x - centre).norm(dim=-1)
        # far = r (1 + β / (α + r)): r² + (α + β - far) r - α far = 0, its positive root without cancellation
        b = alpha + beta - far
        root = (b.square() + 4 * alpha * far).sqrt()
        r = torch.where(b > 0, 2 * alpha * far / (b.abs() + root), (root + b.abs()) / 2)
        return centre + (x - centre) / (1 + beta / (alpha + r))[..., None], -self._ladj(r, alpha, beta)


class Sylvester(FlowTransform):
    """x = z + Q R tanh(S Qᵀ z + b), |R_ii S_ii| < 1, where the map is invertible.

    Args:
        features: D.
        reflections: of the Householder product Q.
    """

    pulls = False

    def __init__(self, features: int, reflections: int | None = None):
        super().__init__((features,))
        n = features
        self.R, self.S = (nn.Parameter(0.1 * torch.randn(n, n)) for _ in range(2))
        self.b = nn.Parameter(0.1 * torch.randn(n))
        self.v = nn.Parameter(torch.randn(reflections or n, n))

    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        Q = torch.eye(self.shape[0]).to(self.b)
        for v in self.v.unbind(0):
            Q = Q - 2 * torch.outer(Q @ v, v) / (v @ v)
        R, S = (m.triu(1) + (0.999 * m.diagonal().tanh()).diag() for m in (self.R, self.S))
        return Q, R, S

    def _ladj(self, t: Tensor, R: Tensor, S: Tensor) -> Tensor:
        return torch.log1p((1 - t.square()) * R.diagonal() * S.diagonal()).sum(-1)

    @full_precision
    def push(self, z: Tensor, context: Tensor | None = None) -> Pair:
        Q, R, S = self._parts()
        t = (z @ Q @ S.mT + self.b).tanh()
        return z + t @ R.mT @ Q.mT, self._ladj(t, R, S)

    @full_precision
    def pull(self, x: Tensor, context: Tensor | None = None) -> Pair:
        Q, R, S = self._parts()
        y = x @ Q
        a: list[Tensor] = []  # entries of Qᵀz and of tanh, the last first
        t: list[Tensor] = []
        for i in reversed(range(self.shape[0])):
            shift = self.b[i].expand(y.shape[:-1])
            target = y[..., i]
            for j in range(i + 1, self.shape[0]):
                k = self.shape[0] - 1 - j
                shift = shift + S[i, j] * a[k]
                target = target - R[i, j] * t[k]
            # a + R_ii tanh(S_ii a + shift) = target
            a_i = _solve_scaled(R[i, i], S[i, i], shift, target)
            a.append(a_i)
            t.append((S[i, i] * a_i + shift).tanh())
        return torch.stack(a[::-1], -1) @ Q.mT, -self._ladj(torch.stack(t[::-1], -1), R, S)


def _solve_scaled(r: Tensor, s: Tensor, shift: Tensor, y: Tensor) -> Tensor:
    def f(a: Tensor) -> Pair:
        t = (s * a + shift).tanh()
        return a + r * t, torch.log1p(r * s * (1 - t.square()))

    return solve_increasing(f, y)
