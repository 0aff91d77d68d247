r"""Chains that add Gaussian noise: z_t = α_t x + σ_t ε, with γ = log σ_t² / α_t² from a schedule.

    q(z_t | x)       = N(α_t x, σ_t²)
    q(z_s | z_t, x)  = N(α_s (e^(γ_s − γ_t) z_t / α_t + c x),  c σ_s²),   c = 1 − e^(γ_s − γ_t)
    p_θ(z_s | z_t)   = the same at x̂_θ(z_t, t), and of a variance between c σ_s² and c σ_t²
    KL               = ½ (e^(−γ_s) − e^(−γ_t)) |x − x̂|²  at equal variances;   ½ γ'(t) e^(−γ) |x − x̂|² a unit of time

The process says how α and σ share γ; all of them are one model (but for "forward" variances), their states scaled by
another factor at each time:

    vp       α² + σ² = 1                variance preserving
    ve       α = 1                      variance exploding
    sub-vp   σ = 1 − α²                 Song et al. (2021, arXiv:2011.13456)
    ot       α + σ = 1                  straight paths: flow matching, Lipman et al. (2023, arXiv:2210.02747)

Source of the algebra: Variational Diffusion Models (Kingma et al., 2021, arXiv:2107.00630), appendix A.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import torch
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor
from torch.nn.functional import logsigmoid

from ppgen.chains.chain import Chain
from ppgen.chains.schedules import Schedule
from ppgen.errors import PpgenError, nearest

__all__ = ["PROCESSES", "VARIANCES", "WEIGHTINGS", "GaussianChain"]

PROCESSES = ("vp", "ve", "sub-vp", "ot")
VARIANCES = ("posterior", "forward", "learned")
# What multiplies ½ |ε − ε̂|² under times uniform in [0, 1]: (γ, dγ/dt) -> weight. "elbo" is the KL as it is.
WEIGHTINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "elbo": lambda gamma, rate: rate,
    "simple": lambda gamma, rate: torch.ones_like(gamma),
    # min(SNR, 5) for |x - x̂|², Hang et al. (2023, arXiv:2303.09556)
    "min_snr": lambda gamma, rate: (5 * gamma.exp()).clamp(max=1.0),
    # log σ ~ N(-1.2, 1.2²) and weight 1 / c_out², Karras et al. (2022, arXiv:2206.00364), at σ_data = 0.5
    "edm": lambda gamma, rate: (
        (4 * gamma.exp() + 1) * Normal(-1.2, 1.2, validate_args=False).log_prob(gamma / 2).exp() * rate / 2
    ),
    # |v − v̂|² of the velocity ε − x on straight paths: 1/α²
    "flow": lambda gamma, rate: (1 + (gamma / 2).exp()) ** 2,
}


class GaussianChain(Chain):
    """A chain of Gaussian conditionals, all of them told by one function, `predict`. Abstract.

    Attributes:
        schedule: γ(t).
        process: one of `PROCESSES`.
        variance: of p_θ(z_s | z_t): "posterior" c σ_s², "forward" c σ_t², or "learned" between the two.
        zero: a buffer of zeros, (D,).
        data_scale: the standard deviation of the data in the units of the chain.
        sampler: and its steps, where none is asked for; None: chosen by D and T.
        samplers: those that are right for it; none: all.
    """

    gaussian_steps = True
    data_scale: float = 1.0
    sampler: tuple[str, int] | None = None
    samplers: tuple[str, ...] = ()
    schedule: Schedule
    process: str
    variance: str

    @property
    def draws_by_steps(self) -> bool:
        """As for `Chain`: not where x̂ is E[x | z_t] for other noise than they add."""
        return not self.samplers or "ancestral" in self.samplers

    def predict(self, z: Tensor, t: Tensor | float, **columns: Tensor) -> tuple[Tensor, Tensor | None]:
        """x̂(z_t, t), (..., D), and where the variance is learned where it lies: a number, through a sigmoid."""
        raise NotImplementedError

    def encode(self, x: Tensor) -> Tensor:
        """The column x in the units of the chain, of about unit variance: (..., D)."""
        raise NotImplementedError

    def decode(self, x: Tensor) -> Tensor:
        """The units of the chain as those of the column x, (..., D)."""
        raise NotImplementedError

    def denoise(self, z: Tensor, t: Tensor | float, **columns: Tensor) -> Tensor:
        """x̂(z_t, t): (..., D), the mean of x given z_t as the model has it."""
        return self.predict(z, t, **columns)[0]

    # -- the four conditionals --------------------------------------------------------------------------

    def base(self, **columns: Tensor) -> TorchDistribution:
        """p(z_1) = N(0, α_1² + σ_1²): the variance that data of unit variance have there."""
        _, alpha, sigma = self.coefficients(1.0)
        size = self.zero.shape
        return Normal(self.zero, (alpha**2 + sigma**2).sqrt().expand(size)).to_event(1)

    def forward(self, x: Tensor, t: Tensor | float, **columns: Tensor) -> TorchDistribution:
        """q(z_t | x)."""
        x = self.encode(x)
        _, alpha, sigma = self.coefficients(t)
        return Normal(alpha * x, sigma.expand(np.broadcast_shapes(sigma.shape, x.shape))).to_event(1)

    def posterior(self, z: Tensor, x: Tensor, s: Tensor | float, t: Tensor | float) -> TorchDistribution:
        """q(z_s | z_t, x)."""
        return self.posterior_at(z, self.encode(x), s, t)

    def posterior_at(self, z: Tensor, x: Tensor, s: Tensor | float, t: Tensor | float) -> TorchDistribution:
        """q(z_s | z_t, x), x in the units of the chain."""
        mean, (variance, _) = self._between(z, x, s, t)
        return Normal(mean, variance.sqrt().expand(mean.shape)).to_event(1)

    def reverse(self, z: Tensor, s: Tensor | float, t: Tensor | float, **columns: Tensor) -> TorchDistribution:
        """p_θ(z_s | z_t)."""
        x, raw = self.predict(z, t, **columns)
        mean, variances = self._between(z, x, s, t)
        return Normal(mean, self._log_variance(raw, *variances).div(2).exp().expand(mean.shape)).to_event(1)

    # -- the same in closed form -------------------------------------------------------------------------

    def cost(self, x: Tensor, z: Tensor, s: Tensor, t: Tensor, **columns: Tensor) -> Tensor:
        """KL(q(z_s | z_t, x), p_θ(z_s | z_t)) in nats, without a difference of nearly equal means."""
        guess, raw = self.predict(z, t, **columns)
        error = (self.encode(x) - guess) ** 2
        gamma_s, gamma_t = self.gamma(s), self.gamma(t)
        snr = 0.5 * (-gamma_t).exp() * torch.expm1(gamma_t - gamma_s)  # half of SNR(s) - SNR(t)
        if self.variance == "posterior":
            return (snr * error).sum(-1)
        small, large = self._between(z, guess, s, t)[1]
        log_ratio = small.log() - self._log_variance(raw, small, large)  # log of posterior over reverse variance
        ratio = log_ratio.exp()
        return (snr * ratio * error + 0.5 * (ratio - 1 - log_ratio)).sum(-1)

    def rate(self, x: Tensor, z: Tensor, t: Tensor, **columns: Tensor) -> Tensor:
        """½ γ'(t) e^(−γ) |x − x̂|², for any variance: their difference vanishes faster than 1/T."""
        gamma, slope = self.schedule.with_rate(t)
        error = (self.encode(x) - self.predict(z, t, **columns)[0]) ** 2
        return 0.5 * slope * (-gamma).exp() * error.sum(-1)

    def weight(self, s: Tensor, t: Tensor) -> Tensor:
        """`WEIGHTINGS` relative to the KL's own weight."""
        gamma, rate = self.schedule.with_rate(t)
        own = rate if s is t else torch.expm1(gamma - self.schedule(s)) / (t - s)
        return WEIGHTINGS[self.weighting](gamma, rate) / own

    def variance_only(self) -> AbstractContextManager[list[Tensor]]:
        return self.schedule.shapes()

    # -- coefficients ---------------------------------------------------------------------------------

    def gamma(self, t: Tensor | float) -> Tensor:
        """γ(t) = −log SNR, (..., 1)."""
        return self.schedule(self.time(t))[..., None]

    def times_of(self, gamma: Tensor) -> Tensor:
        """The times t with γ(t) = gamma, by bisection; 0 or 1 beyond the ends. (...) -> (...)."""
        low, high = torch.zeros_like(gamma), torch.ones_like(gamma)
        for _ in range(40):
            middle = (low + high) / 2
            below = self.gamma(middle)[..., 0] < gamma
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def sampling_grid(self, steps: int) -> list[tuple[float, float]]:
        """Steps (s, t) from t = 1 down to s = 0, even in log-SNR; of as many as the explicit chain has, its own.

        A schedule says where training looks. To a sampler x of every scale is alike, and each has its own γ.
        """
        if steps == self.steps and not self.limit:
            return self.grid()
        first, last = (self.gamma(t).double() for t in (0.0, 1.0))
        inner = self.times_of(last + (first - last) * torch.arange(1, steps).to(first) / steps)
        times = [1.0, *inner.tolist(), 0.0]
        return list(zip(times[1:], times, strict=False))

    def coefficients(self, t: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
        """γ, α and σ at t, each (..., 1)."""
        gamma = self.gamma(t)
        return gamma, *shares(self.process, gamma)

    def spread(self, t: Tensor | float) -> Tensor:
        """The standard deviation of z_t where the data have unit variance, (..., 1)."""
        _, alpha, sigma = self.coefficients(t)
        return (alpha**2 + sigma**2).sqrt()

    def left(self, t: Tensor | float) -> Tensor:
        """The variance of x given z_t where the data are independent normals of `data_scale`, (..., 1)."""
        return 1 / (self.data_scale**-2 + (-self.gamma(t)).exp())

    def _between(
        self, z: Tensor, x: Tensor, s: Tensor | float, t: Tensor | float
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Mean of q(z_s | z_t, x), and the variances c σ_s² and c σ_t²."""
        gamma_s, alpha_s, sigma_s = self.coefficients(s)
        gamma_t, alpha_t, sigma_t = self.coefficients(t)
        c = -torch.expm1(gamma_s - gamma_t)
        mean = alpha_s * ((gamma_s - gamma_t).exp() * z / alpha_t + c * x)
        return mean, (c * sigma_s**2, c * sigma_t**2)

    def _log_variance(self, raw: Tensor | None, small: Tensor, large: Tensor) -> Tensor:
        if self.variance == "posterior":
            return small.log()
        if self.variance == "forward" or raw is None:
            return large.log()
        return torch.lerp(*torch.broadcast_tensors(small.log(), large.log(), torch.sigmoid(raw)))

    def require_increasing(self) -> None:
        """
        Raises:
            PpgenError: γ does not grow from one step of the chain to the next, in the floats that it is computed in.
        """
        with torch.no_grad():
            t = torch.arange(self.steps + 1, dtype=self.zero.dtype, device=self.zero.device) / self.steps
            gamma = self.schedule(t)
        flat = int((gamma.diff() <= 0).sum())
        if flat or not torch.isfinite(gamma).all():
            raise PpgenError(
                f"the schedule of {self.name} saturates: from {float(gamma[0]):.4g} to {float(gamma[-1]):.4g} its "
                f"log-SNR stands still over {flat} of {self.steps} steps; take fewer steps, ends closer to 0, or "
                "float64 (--precision 64-true)"
            )


def shares(process: str, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """α and σ with σ/α = e^(γ/2), as the process has them."""
    if process == "vp":
        return logsigmoid(-gamma).div(2).exp(), logsigmoid(gamma).div(2).exp()
    ratio = (gamma / 2).exp()
    if process == "ve":
        return torch.ones_like(ratio), ratio
    if process == "ot":
        return torch.sigmoid(-gamma / 2), torch.sigmoid(gamma / 2)
    if process != "sub-vp":
        raise PpgenError(f"there is no process {process!r}{nearest(process, PROCESSES)}; take {', '.join(PROCESSES)}")
    alpha = 2 / (ratio + (ratio**2 + 4).sqrt())  # of 1 - α² = α e^(γ/2)
    return alpha, ratio * alpha
