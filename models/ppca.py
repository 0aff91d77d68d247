"""Probabilistic principal component analysis: the linear-Gaussian model, where all is known exactly.

    z ~ N(0, I_k),   x | z ~ N(W z + μ, σ² I_D)            z: (k,), x: (D,), W: (D, k)
    p(x) = N(μ, C),  C = W Wᵀ + σ² I
    p(z | x) = N(M⁻¹ Wᵀ (x - μ), σ² M⁻¹),  M = Wᵀ W + σ² I

Source: Probabilistic Principal Component Analysis (Tipping & Bishop, 1999), sections 3.1 to 3.3.
"""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro.distributions import MultivariateNormal, Normal, TorchDistribution
from torch import Tensor, nn
from torch.distributions import LowRankMultivariateNormal
from torch.nn.functional import softplus

import ppgen
from ppgen.distributions.regression import features_of
from ppgen.errors import PpgenError


class PPCA(ppgen.Program):
    """Probabilistic PCA with an amortised guide N(V (x - μ), S) of the exact posterior's form.

    Args:
        features: D, of the column x: (N, D).
        latent: k, the dimension of z.
        posterior_scale: "full", a learned covariance S shared by all rows, so that the ELBO can
            reach log p(x); or "diagonal", with which a gap remains unless the columns of W are
            orthogonal.

    Attributes:
        W, mu, log_sigma: the parameters of the model; V and the scale those of the guide.
    """

    zero: Tensor

    def __init__(self, features: int, latent: int = 2, posterior_scale: str = "full"):
        super().__init__()
        if min(features, latent) < 1 or posterior_scale not in ("full", "diagonal"):
            raise PpgenError(
                f"PPCA got features={features}, latent={latent}, posterior_scale={posterior_scale!r}; expected sizes "
                "of at least 1 and 'full' or 'diagonal'"
            )
        self.shapes = {"x": (features,)}
        self.latent, self.full = latent, posterior_scale == "full"
        self.W = nn.Parameter(torch.randn(features, latent) / latent**0.5)
        self.mu = nn.Parameter(torch.zeros(features))
        self.log_sigma = nn.Parameter(torch.zeros(()))
        self.V = nn.Parameter(torch.randn(latent, features) / features**0.5)
        # softplus(0.54) = 1: a standard deviation of 1 to begin with
        self.raw_diagonal = nn.Parameter(torch.full((latent,), 0.54))
        if self.full:
            self.raw_below = nn.Parameter(torch.zeros(latent, latent))
        self.register_buffer("zero", torch.zeros(latent), persistent=False)

    @classmethod
    def from_data(cls, data: dict[str, Tensor]) -> dict[str, Any]:
        """The number of features."""
        return features_of({k: v.flatten(1) if k == "x" and v.dim() > 2 else v for k, v in data.items()}, "PPCA")

    @property
    def sigma(self) -> Tensor:
        """σ, the standard deviation of the noise."""
        return self.log_sigma.exp()

    def model(self, x: Tensor | None = None) -> Tensor:
        with ppgen.rows(x):
            z = pyro.sample("z", Normal(self.zero, 1.0).to_event(1))
            loc = z @ self.W.mT + self.mu
            return pyro.sample("x", Normal(loc, self.sigma).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with ppgen.rows(x):
            loc = (x - self.mu) @ self.V.mT
            pyro.sample("z", self._around(loc))

    def _around(self, loc: Tensor) -> TorchDistribution:
        scale = softplus(self.raw_diagonal)
        if not self.full:
            return Normal(loc, scale).to_event(1)
        return MultivariateNormal(loc, scale_tril=self.raw_below.tril(-1) + scale.diag())

    def log_prob(self, x: Tensor) -> Tensor:
        """The exact log p(x) in nats, (..., D) -> (...)."""
        noise = (2 * self.log_sigma).exp().expand(self.mu.shape)
        return LowRankMultivariateNormal(self.mu, self.W, noise).log_prob(x)

    def posterior(self, x: Tensor) -> MultivariateNormal:
        """The exact p(z | x): (..., D) -> a multivariate normal of batch (...) and event (k,)."""
        M = self.W.mT @ self.W + self.sigma**2 * torch.eye(self.latent).to(self.W)
        loc = torch.linalg.solve(M, self.W.mT @ (x - self.mu)[..., None])[..., 0]
        return MultivariateNormal(loc, covariance_matrix=self.sigma**2 * torch.linalg.inv(M))

    @torch.no_grad()
    def solve_(self, x: Tensor) -> PPCA:
        """Sets W, μ, σ to a maximum of the likelihood of x, and the guide to the posterior there.

        W = U (Λ - σ² I)^½ with the k leading eigenpairs of the covariance of x, and σ² the mean of
        the other eigenvalues.

        Raises:
            PpgenError: no eigenvalue is left for the noise (latent >= D, or too few rows).
        """
        eigenvalues, vectors = torch.linalg.eigh((x - x.mean(0)).mT @ (x - x.mean(0)) / len(x))
        rest, leading = eigenvalues[: -self.latent], eigenvalues[-self.latent :]
        if len(rest) == 0 or rest.mean() <= 0:
            raise PpgenError(
                f"PPCA(latent={self.latent}) has no maximum of the likelihood on x of shape "
                f"{tuple(x.shape)}: no variance is left for the noise; take fewer latents"
            )
        self.mu.copy_(x.mean(0))
        self.log_sigma.copy_(rest.mean().log() / 2)
        self.W.copy_(vectors[:, -self.latent :] * (leading - rest.mean()).clamp_min(0).sqrt())
        return self.match_guide_()

    @torch.no_grad()
    def match_guide_(self) -> PPCA:
        """Sets the guide to the exact posterior of the present W, μ, σ; a diagonal one to the
        normal of least KL(guide, posterior)."""
        exact = self.posterior(self.mu)
        self.V.copy_(exact.covariance_matrix @ self.W.mT / self.sigma**2)
        if self.full:
            scale = exact.scale_tril.diagonal()
            self.raw_below.copy_(exact.scale_tril)
        else:
            scale = exact.precision_matrix.diagonal().rsqrt()
        self.raw_diagonal.copy_(scale + torch.log(-torch.expm1(-scale)))  # softplus⁻¹
        return self
