"""Eight schools: the hierarchical normal model of the effects of coaching.

    μ ~ N(0, 5),  τ ~ HalfCauchy(5),  θ_j ~ N(μ, τ),  y_j ~ N(θ_j, σ_j)     j = 1..J schools

y_j is the estimated effect in school j, in points of the test score, σ_j its known standard error.

Sources: Estimation in Parallel Randomized Experiments (Rubin, 1981), for the data; Bayesian Data
Analysis (Gelman et al., 3rd edition, 2013), section 5.5; Hamiltonian Monte Carlo for Hierarchical
Models (Betancourt & Girolami, 2013, arXiv:1312.0906), for the non-centred form.
"""

from __future__ import annotations

import pyro
import torch
from pyro.distributions import HalfCauchy, Normal
from torch import Tensor

import ppgen


class EightSchools(ppgen.Program):
    """Eight schools, or any other number. It has no guide: a fit gives it an autoguide.

    Args:
        centred: samples θ itself, where the posterior is a funnel that normal guides and HMC fit
            badly. By default η_j ~ N(0, 1) is the latent, and θ = μ + τ η follows from it.
    """

    coords = {"school": list("ABCDEFGH")}  # where there are eight

    def __init__(self, centred: bool = False):
        super().__init__()
        self.centred = centred

    def model(self, sigma: Tensor, y: Tensor | None = None) -> Tensor:
        """p(y, θ, μ, τ | σ), with sigma and y of shape (J,)."""
        if not sigma.is_floating_point():
            sigma = sigma.to(torch.get_default_dtype())
        zero = sigma.new_zeros(())  # the latents take the dtype and device of sigma
        mu = pyro.sample("mu", Normal(zero, 5.0))
        tau = pyro.sample("tau", HalfCauchy(zero + 5.0))
        with pyro.plate("school", len(sigma)):
            if self.centred:
                theta = pyro.sample("theta", Normal(mu, tau))
            else:
                eta = pyro.sample("eta", Normal(zero, 1.0))
                theta = pyro.deterministic("theta", mu + tau * eta)
            return pyro.sample("y", Normal(theta, sigma), obs=y)
