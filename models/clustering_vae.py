r"""The clustering VAE: a component for each row, summed out, and a decoder from its latent.

    c ~ Categorical(π),  z | c ~ N(μ_c, diag(σ_c²)),  x | z ~ Π_d p(x_d; f_θ(z)_d)       c in 0 .. K - 1, z: (k,)
    guide:  z | x ~ N(m_φ(x), diag(s_φ(x)²)),   c | z ~ p(c | z)

p(c | z) is known, and the best that a guide can have: the ELBO is that of log p(x) with c summed out. A row belongs to
the components in the proportions E_q p(c | z).

Source: Variational Deep Embedding: An Unsupervised and Generative Approach to Clustering (Jiang, Zheng, Tan, Tang, Zhou
2017, arXiv:1611.05148).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import torch
from pyro.distributions import Categorical, Normal
from torch import Tensor, nn
from torch.nn.functional import softplus

import ppgen
from ppgen.errors import PpgenError
from ppgen.models.vae import VAE


class ClusteringVAE(ppgen.Program):
    """Rows x: (N, *features), each of one of K components.

    Args:
        features, latent, hidden, likelihood, levels, low, high: of the networks and of p(x | z), see `VAE`.
        components: K, at least 2.

    Raises:
        PpgenError: an argument out of range.
    """

    rows_a_step = 256

    def __init__(
        self, features: int | Sequence[int], components: int = 10, latent: int = 10,
        hidden: int | Sequence[int] = (200,), likelihood: str = "bernoulli", levels: int = 256, low: float = 0.0,
        high: float = 1.0,
    ):  # fmt: skip
        super().__init__()
        if components < 2:
            raise PpgenError(f"ClusteringVAE got components={components}; expected at least 2")
        self.vae = VAE(features, latent, hidden, likelihood, levels=levels, low=low, high=high)
        self.logits = nn.Parameter(torch.zeros(components))
        self.loc = nn.Parameter(torch.randn(components, latent))
        self.raw = nn.Parameter(torch.full((components, latent), 0.54))  # softplus(0.54) = 1
        self.shapes = self.vae.shapes

    @classmethod
    def from_data(cls, data: dict[str, Tensor]) -> dict[str, Any]:
        """The VAE's."""
        return VAE.from_data(data)

    @property
    def scale(self) -> Tensor:
        """σ: (K, k)."""
        return softplus(self.raw) + 1e-3

    def model(self, x: Tensor | None = None) -> Tensor:
        """p(x, c, z)."""
        with ppgen.rows(x):
            c = pyro.sample("c", Categorical(logits=self.logits))
            z = pyro.sample("z", Normal(self.loc[c], self.scale[c]).to_event(1))
            return pyro.sample("x", self.vae.decode(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(z | x) p(c | z)."""
        with ppgen.rows(x):
            z = pyro.sample("z", self.vae.encode(x))
            pyro.sample("c", Categorical(logits=self.log_joint(z)), infer={"enumerate": "parallel"})

    def log_joint(self, z: Tensor) -> Tensor:
        """log p(c, z) of every component: (..., k) -> (..., K)."""
        return Normal(self.loc, self.scale).log_prob(z[..., None, :]).sum(-1) + self.logits.log_softmax(-1)

    @torch.no_grad()
    def memberships(self, x: Tensor, draws: int = 50) -> Tensor:
        """E_q(z | x) p(c | z): (N, *features) -> (N, K), by that many draws."""
        return self.log_joint(self.vae.encode(x).sample((draws,))).softmax(-1).mean(0)
