"""ARMA(p, q) series, and AR(p) where q = 0.

    y_t - μ = Σ_{i=1..p} φ_i (y_{t-i} - μ) + ε_t + Σ_{j=1..q} θ_j ε_{t-j},    ε_t ~ N(0, σ²)
    μ ~ N(0, s²),  φ_i ~ N(0, 1),  θ_j ~ N(0, 1),  σ ~ HalfCauchy(s)

The series starts at rest: y_t = μ and ε_t = 0 before it. Stationarity is not imposed. With lower-triangular Toeplitz
matrices, Φ (y - μ) = Θ ε: the density is that of ε = Θ⁻¹ Φ (y - μ), and the determinant is 1.

Source: Time Series Analysis: Forecasting and Control (Box, Jenkins, Reinsel, 4th edition, 2008), chapters 3 and 7.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import torch
from pyro.distributions import HalfCauchy, MultivariateNormal, Normal, constraints
from torch import Tensor

import ppgen
from ppgen.distributions.expanding import Expanding
from ppgen.errors import PpgenError


class _ARMASeries(Expanding):
    """Series of T values.

    Args:
        mu, sigma: (...).
        phi, theta: (..., p) and (..., q); None where there is none.
        duration: T.
    """

    expanded = {"mu": 0, "sigma": 0, "phi": 1, "theta": 1}
    support = constraints.real_vector

    def __init__(
        self,
        mu: Tensor,
        phi: Tensor | None,
        theta: Tensor | None,
        sigma: Tensor,
        duration: int,
        validate_args: Any = None,
    ):
        self.mu, self.phi, self.theta, self.sigma = mu, phi, theta, sigma
        lead = [v.shape[:-1] for v in (phi, theta) if v is not None]
        shape = np.broadcast_shapes(mu.shape, sigma.shape, *lead)
        super().__init__(shape, torch.Size([duration]), validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """(..., T) -> (...)."""
        noise = _apply(self.phi, value - self.mu[..., None], -1.0)
        if self.theta is not None:
            noise = _solve(self.theta, noise)
        return Normal(0.0, self.sigma[..., None]).log_prob(noise).sum(-1)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape + self.event_shape
        noise = _apply(self.theta, torch.randn(shape).to(self.mu) * self.sigma[..., None], 1.0)
        return self.mu[..., None] + (noise if self.phi is None else _solve(-self.phi, noise))


def _apply(weights: Tensor | None, x: Tensor, sign: float) -> Tensor:
    """x_t + sign Σ_i w_i x_{t-i}: (..., T)."""
    found = x
    for i in range(min(0 if weights is None else weights.shape[-1], x.shape[-1] - 1)):
        assert weights is not None
        found = found + sign * weights[..., i : i + 1] * torch.nn.functional.pad(x[..., : -i - 1], (i + 1, 0))
    return found


def _solve(weights: Tensor, x: Tensor) -> Tensor:
    """The e of e_t + Σ_j w_j e_{t-j} = x_t: (..., T)."""
    T = x.shape[-1]
    lag = torch.arange(T, device=x.device)[:, None] - torch.arange(T, device=x.device)
    padded = torch.cat([torch.ones_like(weights[..., :1]), weights, torch.zeros_like(weights[..., :1])], -1)
    last = padded.shape[-1] - 1
    matrix = padded[..., torch.where((lag < 0) | (lag > last), last, lag)]
    shape = np.broadcast_shapes(matrix.shape[:-2], x.shape[:-1])
    return torch.linalg.solve_triangular(
        matrix.expand(*shape, T, T), x.expand(*shape, T)[..., None], upper=False, unitriangular=True
    )[..., 0]


class ARMA(ppgen.Program):
    """Series y: (N, T), or one of (T,). It has no guide: a fit gives it an autoguide.

    Args:
        p, q: orders; q = 0 is the autoregression AR(p).
        duration: T.
        scale: s, in units of y.
    """

    dims = {"y": ["time"]}

    def __init__(self, p: int = 1, q: int = 1, duration: int = 100, scale: float = 2.5):
        super().__init__()
        if min(p, q) < 0 or p + q < 1 or duration < 1 or scale <= 0:
            raise PpgenError(
                f"ARMA got p={p}, q={q}, duration={duration}, scale={scale}; expected orders of which one is at least "
                "1, a step and a positive scale"
            )
        self.p, self.q, self.duration, self.scale = p, q, duration, scale
        self.coords = {"lag": list(range(1, p + 1)), "noise_lag": list(range(1, q + 1))}

    @classmethod
    def from_data(cls, data: dict[str, Tensor]) -> dict[str, Any]:
        """The length of the series."""
        if "y" not in data or not data["y"].dim():
            raise PpgenError("ARMA needs a column y of series, (series, T) or (T,); name it with --columns y=...")
        return {"duration": data["y"].shape[-1]}

    def model(self, y: Tensor | None = None) -> Tensor:
        """p(y, μ, φ, θ, σ), with y of shape (N, T) or (T,)."""
        zero = torch.zeros(()) if y is None else y.new_zeros(())
        mu = pyro.sample("mu", Normal(zero, self.scale))
        sigma = pyro.sample("sigma", HalfCauchy(zero + self.scale))
        phi = theta = None
        if self.p:
            with pyro.plate("lag", self.p):
                phi = pyro.sample("phi", Normal(zero, 1.0))[..., None, :]
        if self.q:
            with pyro.plate("noise_lag", self.q):
                theta = pyro.sample("theta", Normal(zero, 1.0))[..., None, :]
        series = _ARMASeries(mu, phi, theta, sigma, self.duration)
        with ppgen.rows(y if y is None or y.dim() > 1 else y[None]):
            return pyro.sample("y", series, obs=y if y is None or y.dim() > 1 else y[None])

    @torch.no_grad()
    def forecast(
        self, y: Tensor, steps: int, mu: Tensor, sigma: Tensor, phi: Tensor | None = None, theta: Tensor | None = None
    ) -> MultivariateNormal:
        """p(y_{T+1} ... y_{T+H} | y_1 ... y_T), H = steps, at draws of the parameters: their joint normal.

        Args:
            y: one series, (T,).
            mu, sigma: draws, (S,).
            phi, theta: draws, (S, p) and (S, q); None where the order is 0.

        Returns:
            A normal of batch (S,) and event (H,): a draw of it continues the series by each draw of the parameters.

        Raises:
            PpgenError: parameters that are not those of the orders; no step.

        >>> draws = {"mu": torch.zeros(3), "sigma": torch.ones(3), "phi": torch.full((3, 1), 0.5)}
        >>> ARMA(1, 0).forecast(torch.tensor([0.0, 1.0]), 2, **draws).mean[0]
        tensor([0.5000, 0.2500])
        """
        orders = tuple(0 if v is None else v.shape[-1] for v in (phi, theta))
        if orders != (self.p, self.q) or steps < 1 or y.dim() != 1:
            raise PpgenError(
                f"ARMA(p={self.p}, q={self.q}).forecast got phi and theta of orders {orders}, y of shape "
                f"{tuple(y.shape)} and steps={steps}; expected draws of (S, p) and (S, q), one series (T,), and a step"
            )
        noise = list(_apply(phi, y - mu[:, None], -1.0).unbind(-1))
        for t in range(len(noise) if theta is not None else 0):
            noise[t] = noise[t] - _lagged(theta, noise[:t])
        values = list((y - mu[:, None]).unbind(-1))
        for _ in range(steps):
            noise.append(torch.zeros_like(mu))  # the mean of what is to come
            values.append(_lagged(phi, values) + _lagged(theta, noise[:-1]))
        first = torch.eye(steps).to(mu)[0].expand(len(mu), steps)
        impulse = _apply(theta, first, 1.0)
        impulse = impulse if phi is None else _solve(-phi, impulse)  # ψ, of a unit of noise in the first step
        lag = torch.arange(steps)[:, None] - torch.arange(steps)
        scale_tril = (sigma[:, None, None] * impulse[:, lag.clamp_min(0)]).tril()
        return MultivariateNormal(mu[:, None] + torch.stack(values[-steps:], -1), scale_tril=scale_tril)


def _lagged(weights: Tensor | None, series: list[Tensor]) -> Tensor:
    """Σ_i w_i x_{t-i}, with nothing before the series: (S,)."""
    found = torch.zeros(())
    for i, x in zip(range(0 if weights is None else weights.shape[-1]), reversed(series), strict=False):
        assert weights is not None
        found = found + weights[..., i] * x
    return found
