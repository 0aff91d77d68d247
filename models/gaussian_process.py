"""Gaussian-process regression with a squared-exponential kernel, the function integrated out.

    ρ ~ LogNormal(log s, 1),  α ~ HalfNormal(2),  σ ~ HalfNormal(1)         s: the spread of the inputs, by default 1
    k(x, x') = α² exp(-|x - x'|² / 2ρ²),   y ~ N(0, K + σ² I)               y: (n,) at inputs x: (n,) or (n, D)

Source: Gaussian Processes for Machine Learning (Rasmussen & Williams 2006), chapters 2 and 5.
"""

from __future__ import annotations

import math

import pyro
import torch
from pyro.distributions import HalfNormal, LogNormal, MultivariateNormal, Normal
from torch import Tensor

import ppgen
from ppgen.errors import PpgenError


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
        K = self.kernel(x, x, rho, alpha)
        eye = torch.eye(len(x)).to(x)
        noise = (sigma**2 + self.jitter * alpha**2)[..., None, None] * eye
        function = MultivariateNormal(x.new_zeros(len(x)), covariance_matrix=K + noise)
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
        K = self.kernel(x, x, rho, alpha) + sigma[..., None, None] ** 2 * torch.eye(len(x)).to(x)
        cross = self.kernel(x, new, rho, alpha)
        root = torch.linalg.cholesky(K)
        half = torch.linalg.solve_triangular(root, cross, upper=False)
        white = torch.linalg.solve_triangular(root, y.expand(*rho.shape, len(x))[..., None], upper=False)
        variance = alpha[..., None] ** 2 - (half**2).sum(-2)
        return Normal((half * white).sum(-2), variance.clamp_min(0.0).sqrt())
