"""A hidden Markov model with normal emissions, its states summed out by products of pairs of steps.

    A_k ~ Dirichlet(1 + stay e_k),  μ_1 ~ N(0, s²),  μ_k = μ_{k-1} + g_k,  g_k ~ HalfNormal(s),  σ_k ~ HalfNormal(s)
    z_1 ~ uniform,  z_t ~ A_{z_{t-1}},  y_t ~ N(μ_{z_t}, σ_{z_t}²)

log p(y | A, μ, σ) is a product of T matrices of K x K, in log2 T rounds of pairs.

Sources: A tutorial on hidden Markov models (Rabiner 1989); Temporal parallelization of Bayesian smoothers (Särkkä &
García-Fernández 2019, arXiv:1905.13002), for the pairs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import torch
from pyro.distributions import Dirichlet, HalfNormal, Normal, constraints
from torch import Tensor

import ppgen
from ppgen.distributions.expanding import Expanding
from ppgen.errors import PpgenError


class _NormalHMM(Expanding):
    """Series of T values of a hidden Markov chain, states summed out.

    Args:
        transition: (..., K, K), rows sum to 1.
        mu, sigma: (..., K).
        duration: T.
    """

    expanded = {"transition": 2, "mu": 1, "sigma": 1}
    support = constraints.real_vector

    def __init__(self, transition: Tensor, mu: Tensor, sigma: Tensor, duration: int, validate_args: Any = None):
        self.transition, self.mu, self.sigma = transition, mu, sigma
        shape = np.broadcast_shapes(transition.shape[:-2], mu.shape[:-1])
        super().__init__(shape, torch.Size([duration]), validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        """(..., T) -> (...)."""
        emission = Normal(self.mu[..., None, :], self.sigma[..., None, :]).log_prob(value[..., None])  # (..., T, K)
        start = emission[..., 0, :] - torch.tensor(float(self.mu.shape[-1])).to(emission).log()
        steps = self.transition.log()[..., None, :, :] + emission[..., 1:, None, :]
        if not steps.shape[-3]:
            return start.logsumexp(-1)
        while (n := steps.shape[-3]) > 1:
            pairs = torch.logsumexp(steps[..., 0 : n - 1 : 2, :, :, None] + steps[..., 1:n:2, None, :, :], -2)
            steps = torch.cat([pairs, steps[..., n - 1 :, :, :]], -3) if n % 2 else pairs
        return (start[..., None] + steps[..., 0, :, :]).logsumexp((-1, -2))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """The chain, a step at a time."""
        shape, K = torch.Size(sample_shape) + self.batch_shape, self.mu.shape[-1]
        with torch.no_grad():
            transition, mu, sigma = (
                p.expand(*shape, *p.shape[p.dim() - k :])
                for p, k in ((self.transition, 2), (self.mu, 1), (self.sigma, 1))
            )
            state = torch.randint(K, shape, device=mu.device)
            values = []
            for _ in range(self.event_shape[0]):
                here = torch.normal(*(p.gather(-1, state[..., None])[..., 0] for p in (mu, sigma)))
                values.append(here)
                row = transition.gather(-2, state[..., None, None].expand(*shape, 1, K))[..., 0, :]
                state = torch.distributions.Categorical(row, validate_args=False).sample()
            return torch.stack(values, -1)


class HiddenMarkov(ppgen.Program):
    """Series y: (N, T), or one of (T,), through K hidden states. It has no guide: a fit gives it an autoguide.

    Args:
        states: K, at least 2.
        duration: T.
        scale: s, in units of y.
        stay: what the prior adds to the diagonal of A.
    """

    dims = {"transition": ["to_state"], "y": ["time"]}

    def __init__(self, states: int = 2, duration: int = 100, scale: float = 5.0, stay: float = 1.0):
        super().__init__()
        if states < 2 or duration < 1 or scale <= 0 or stay < 0:
            raise PpgenError(
                f"HiddenMarkov got states={states}, duration={duration}, scale={scale}, stay={stay}; expected at least "
                "2 states, a step, a positive scale and stay of at least 0"
            )
        self.states, self.duration, self.scale, self.stay = states, duration, scale, stay

    @classmethod
    def from_data(cls, data: dict[str, Tensor]) -> dict[str, Any]:
        """The length of the series."""
        if "y" not in data or not data["y"].dim():
            raise PpgenError(
                "HiddenMarkov needs a column y of series, (series, T) or (T,); name it with --columns y=..."
            )
        return {"duration": data["y"].shape[-1]}

    def model(self, y: Tensor | None = None) -> Tensor:
        """p(y, A, μ, σ), with y of shape (N, T) or (T,)."""
        zero, K = torch.zeros(()) if y is None else y.new_zeros(()), self.states
        first = pyro.sample("first", Normal(zero, self.scale))
        with pyro.plate("gap", K - 1):
            gap = pyro.sample("gaps", HalfNormal(zero + self.scale))
        with pyro.plate("state", K):
            transition = pyro.sample("transition", Dirichlet(1 + self.stay * torch.eye(K).to(zero)))
            sigma = pyro.sample("sigma", HalfNormal(zero + self.scale)).clamp_min(1e-6)
            steps = torch.cat([first.expand(*gap.shape[:-1], 1), gap], -1)
            mu = pyro.deterministic("mu", steps.cumsum(-1))
        series = _NormalHMM(transition[..., None, :, :], mu[..., None, :], sigma[..., None, :], self.duration)
        with ppgen.rows(y if y is None or y.dim() > 1 else y[None]):
            return pyro.sample("y", series, obs=y if y is None or y.dim() > 1 else y[None])
