r"""Increasing functions of one variable, each with parameters given entry by entry: what autoregressive, coupling and
elementwise transforms apply to every feature.

Each is a `torch.distributions.Transform` x -> z with `call_and_ladj(x)`, as zuko's are. Bijections of all of ℝ:
outside the interval where their family lives they go on as straight lines, so that densities integrate to one
and far outliers get a finite log-probability.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Transform, constraints
from zuko.transforms import AdditiveTransform, MonotonicAffineTransform

from ppgen.transforms.change_of_variables import Pair, full_precision
from ppgen.transforms.univariate.roots import solve_increasing

__all__ = [
    "AdditiveTransform", "Bernstein", "MonotonicAffineTransform", "PositiveIntegral", "SumOfSquares", "Univariate",
]  # fmt: skip


class Univariate(Transform):
    """An increasing function ℝ -> ℝ, elementwise; subclasses write `call_and_ladj`."""

    domain: constraints.Constraint = constraints.real
    codomain: constraints.Constraint = constraints.real
    bijective = True
    sign = 1

    def call_and_ladj(self, x: Tensor) -> Pair:
        raise NotImplementedError

    def _call(self, x: Tensor) -> Tensor:
        return self.call_and_ladj(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return solve_increasing(self.call_and_ladj, y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.call_and_ladj(x)[1]


@cache
def _legendre(n: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return tuple((nodes + 1) / 2), tuple(weights / 2)


class PositiveIntegral(Univariate):
    r"""f(x) = b + ∫₀ˣ g(u) du with g > 0, by n-point Gauss-Legendre quadrature; g is constant beyond ±reach.

    Args:
        g: positive function of (n, ..., D) points.
        constant: b.
        n: points; exact for polynomials g up to degree 2 n - 1.
        reach: half the length of the interval in which g varies.

    Source: Unconstrained Monotonic Neural Networks (Wehenkel & Louppe, 2019, arXiv:1908.05164).
    """

    def __init__(self, g: Callable[[Tensor], Tensor], constant: Tensor, n: int, reach: float = 10.0):
        super().__init__()
        self.g, self.constant, self.n, self.reach = g, constant, n, reach

    @full_precision
    def call_and_ladj(self, x: Tensor) -> Pair:
        within = x.clamp(-self.reach, self.reach)
        nodes, weights = (x.new_tensor(v) for v in _legendre(self.n))
        column = (-1, *(1,) * x.dim())
        values = self.g(torch.cat((within * nodes.reshape(column), within[None])))
        slope = values[-1]
        area = within * (values[:-1] * weights.reshape(column)).sum(0)
        return self.constant + area + (x - within) * slope, slope.log()


class SumOfSquares(PositiveIntegral):
    r"""f(x) = b + ∫₀ˣ 1/K Σ_k (1 + Σ_l a_kl (u/r)ˡ)² + slope du, r = 10 its reach.

    Source: Sum-of-Squares Polynomial Flow (Jaini et al., 2019, arXiv:1905.02325).

    Args:
        a: (..., K, L + 1).
        constant: b.
    """

    def __init__(self, a: Tensor, constant: Tensor, slope: float = 1e-3):
        super().__init__(self._density, constant, n=a.shape[-1])
        # |a| < 5, so that what a network says of an outlier does not overflow when it is squared, layer after layer
        self.a, self.slope = a / (1 + a.abs() / 5), slope

    def _density(self, u: Tensor) -> Tensor:
        u = (u / self.reach)[..., None]
        p = torch.zeros_like(u)  # Horner
        for coefficient in reversed(self.a.unbind(-1)):
            p = p * u + coefficient
        return (1 + p).square().mean(-1) + self.slope


class Bernstein(Univariate):
    r"""f(x) = Σ_m θ_m b_{m,M}((x + B) / 2B) with θ increasing from -B to B; the identity outside [-B, B].

    The two outermost differences of θ on either side are 2B/M: slope 1 and curvature 0 where the identity begins.
    Source: Deep transformation models (Sick et al., 2020, arXiv:2004.00464).

    Args:
        free: (..., M - 4) unconstrained differences of θ.
    """

    def __init__(self, free: Tensor, bound: float = 5.0):
        super().__init__()
        self.bound, self.degree = bound, free.shape[-1] + 4
        edge = torch.full_like(free[..., :2], 2 * bound / self.degree)
        inner = free.softmax(-1) * (2 * bound * (1 - 4 / self.degree))
        self.steps = torch.cat((edge, inner, edge), -1)
        start = torch.full_like(free[..., :1], -bound)
        self.theta = torch.cat((start, start + self.steps[..., :-1].cumsum(-1)), -1)

    def _basis(self, u: Tensor) -> Tensor:
        """The M polynomials of degree M - 1, last."""
        up, down = ([torch.ones_like(u)] for _ in range(2))
        for _ in range(self.degree - 1):
            up.append(up[-1] * u)
            down.append(down[-1] * (1 - u))
        binomials = u.new_tensor([math.comb(self.degree - 1, i) for i in range(self.degree)])
        return torch.stack(up, -1) * torch.stack(down[::-1], -1) * binomials

    def call_and_ladj(self, x: Tensor) -> Pair:
        inside = x.abs() < self.bound
        u = (torch.where(inside, x, 0.0) + self.bound) / (2 * self.bound)
        basis = self._basis(u)
        rise = (basis * self.steps).sum(-1)
        y = (basis * self.theta).sum(-1) + u * rise  # de Casteljau's last step
        slope = rise * (self.degree / (2 * self.bound))
        return torch.where(inside, y, x), torch.where(inside, slope.log(), 0.0)

    def _inverse(self, y: Tensor) -> Tensor:
        inside = y.abs() < self.bound
        return torch.where(inside, solve_increasing(self.call_and_ladj, torch.where(inside, y, 0.0), self.bound), y)
