"""Gaussian-process regression with a squared-exponential kernel, the function integrated out.

    ρ ~ LogNormal(log s, 1),  α ~ HalfNormal(2),  σ ~ HalfNormal(1)         s: the spread of the inputs, by default 1
    k(x, x') = α² exp(-|x - x'|² / 2ρ²),   y ~ N(0, K + σ² I)               y: (n,) at inputs x: (n,) or (n, D)

The covariance is computed and factorized in float64: in float32, n points are rounded by some n 1e-7 α², and log p by
nats where σ² is not far above that.

Source: Gaussian Processes for Machine Learning (Rasmussen & Williams 2006), chapters 2 and 5.
"""

from __future__ import annotations

import math
from typing import Any

import pyro
import torch
from pyro.distributions import HalfNormal, LogNormal, MultivariateNormal, Normal
from torch import Tensor

import ppgen
from ppgen.data.precision import wide
from ppgen.errors import PpgenError


class _Curve(MultivariateNormal):
    """A normal in float64, whose values and log-densities have the dtype of the inputs x."""

    dtype: torch.dtype

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Curve:
        new: _Curve = super().expand(batch_shape, self._get_checked_instance(_Curve, _instance))
        new.dtype = self.dtype
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """(..., n) -> (...)."""
        return super().log_prob(wide(value)).to(self.dtype)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return super().rsample(torch.Size(sample_shape)).to(self.dtype)


class GaussianProcess(ppgen.Program):
    """One function y: (n,), or several (N, n), at the inputs x. It has no guide: a fit gives it an autoguide.

    Args:
        scale: s, where the prior of the length scale ρ has its median, in units of x.
        jitter: added to the diagonal of K, in units of α².
    """

    dims = {"y": ["point"]}

    def __init__(self, scale: float = 1.0, jitter: float = 1e-5):
        super().__init__()
        if scale <= 0 or jitter < 0:
            raise PpgenError(f"GaussianProcess got scale={scale}, jitter={jitter}; expected both positive")
        self.scale, self.jitter = scale, jitter

    def model(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """p(y, ρ, α, σ | x)."""
        x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
        zero = x.new_zeros(())
        rho = pyro.sample("rho", LogNormal(zero + math.log(self.scale), 1.0))
        alpha = pyro.sample("alpha", HalfNormal(zero + 2.0))
        sigma = pyro.sample("sigma", HalfNormal(zero + 1.0))
        K = self._covariance(wide(x), wide(rho), wide(alpha), wide(sigma))
        function = _Curve(K.new_zeros(len(x)), covariance_matrix=K)
        function.dtype = x.dtype
        if y is not None and y.dim() == 1:
            return pyro.sample("y", function, obs=y)
        with ppgen.rows(y):
            return pyro.sample("y", function, obs=y)

    @staticmethod
    def kernel(a: Tensor, b: Tensor, rho: Tensor, alpha: Tensor) -> Tensor:
        """(n, D), (m, D) or (n,), (m,) -> (..., n, m), with the leading dimensions of ρ and α."""
        a, b = (v[:, None] if v.dim() == 1 else v for v in (a, b))
        squares = ((a[:, None] - b) ** 2).sum(-1)
        return alpha[..., None, None] ** 2 * torch.exp(-0.5 * squares / rho[..., None, None] ** 2)

    @torch.no_grad()
    def function(self, x: Tensor, y: Tensor, new: Tensor, rho: Tensor, alpha: Tensor, sigma: Tensor) -> Normal:
        """p(f(new) | y) at draws of the hyperparameters of shape (S,): a normal of shape (S, m), marginally."""
        dtype = y.dtype
        x, y, new, rho, alpha, sigma = map(wide, (x, y, new, rho, alpha, sigma))
        cross = self.kernel(x, new, rho, alpha)
        root = torch.linalg.cholesky(self._covariance(x, rho, alpha, sigma))
        half = torch.linalg.solve_triangular(root, cross, upper=False)
        white = torch.linalg.solve_triangular(root, y.expand(*rho.shape, len(x))[..., None], upper=False)
        variance = alpha[..., None] ** 2 - (half**2).sum(-2)
        return Normal((half * white).sum(-2).to(dtype), variance.clamp_min(0.0).sqrt().to(dtype))

    def _covariance(self, x: Tensor, rho: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Of y: (..., n, n), with the leading dimensions of the hyperparameters."""
        noise = (sigma**2 + self.jitter * alpha**2)[..., None, None] * torch.eye(len(x)).to(x)
        return self.kernel(x, x, rho, alpha) + noise
