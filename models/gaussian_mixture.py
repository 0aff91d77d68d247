"""A mixture of K normals in one dimension, its labels summed out and its components in order.

    w ~ Dirichlet(1, ..., 1),  μ_1 ~ N(0, s²),  μ_k = μ_{k-1} + g_k,  g_k ~ HalfNormal(s),  σ_k ~ HalfNormal(s)
    p(x_i) = Σ_k w_k N(x_i; μ_k, σ_k²)

In order the components have one labelling, so that chains agree on what they mean.

Source: Identifying Bayesian mixture models (Betancourt 2017, mc-stan.org case studies).
"""

from __future__ import annotations

import pyro
import torch
from pyro.distributions import Categorical, Dirichlet, HalfNormal, MixtureSameFamily, Normal
from torch import Tensor

import ppgen
from ppgen.errors import PpgenError


class GaussianMixture(ppgen.Program):
    """Values x: (N,) from K normals. It has no guide: a fit gives it an autoguide.

    Args:
        components: K, at least 2.
        scale: s, in units of x.
    """

    dims = {"weights": ["component"]}

    def __init__(self, components: int = 2, scale: float = 5.0):
        super().__init__()
        if components < 2 or scale <= 0:
            raise PpgenError(
                f"GaussianMixture got components={components}, scale={scale}; expected at least 2 and a positive scale"
            )
        self.components, self.scale = components, scale

    def model(self, x: Tensor | None = None) -> Tensor:
        """p(x, w, μ, σ), with x of shape (N,)."""
        zero = torch.zeros(()) if x is None else x.new_zeros(())
        weights = pyro.sample("weights", Dirichlet(zero + torch.ones(self.components).to(zero)))
        first = pyro.sample("first", Normal(zero, self.scale))
        with pyro.plate("gap", self.components - 1):
            gap = pyro.sample("gaps", HalfNormal(zero + self.scale))
        with pyro.plate("component", self.components):
            sigma = pyro.sample("sigma", HalfNormal(zero + self.scale))
            steps = torch.cat([first.expand(*gap.shape[:-1], 1), gap], -1)
            mu = pyro.deterministic("mu", steps.cumsum(-1))
        with ppgen.rows(x):
            parts = Normal(mu[..., None, :], sigma[..., None, :].clamp_min(1e-6))
            return pyro.sample("x", MixtureSameFamily(Categorical(weights), parts), obs=x)
