"""Linear regression with a normal or a horseshoe prior.

    α ~ N(0, s_α²),  β ~ prior,  σ ~ HalfCauchy(s_σ),  y_i ~ N(α + x_i · β, σ²)          x_i: (D,)

Scales are in units of y and of y per unit of x: standardise the columns, or give scales that fit them.

Sources: Bayesian Data Analysis (Gelman et al., 3rd edition, 2013), chapter 14; The horseshoe estimator for sparse
signals (Carvalho, Polson, Scott 2010).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import torch
from pyro.distributions import HalfCauchy, Normal
from torch import Tensor

import ppgen
from ppgen.distributions.regression import features_of, linear_predictor, require_features


class LinearRegression(ppgen.Program):
    """y on the columns of x. It has no guide: a fit gives it an autoguide.

    Args:
        features: D, of the column x: (N, D).
        prior: of β, "normal" or "horseshoe".
        scale, intercept, noise: scales of β (of τ, for the horseshoe), α and σ.
        names: of the features, for tables and plots.
    """

    dims = {"x": ["feature"]}

    def __init__(
        self,
        features: int,
        prior: str = "normal",
        scale: float = 2.5,
        intercept: float = 10.0,
        noise: float = 2.5,
        names: Sequence[str] | None = None,
    ):
        super().__init__()
        require_features("LinearRegression", features, prior, scale, intercept, noise)
        self.prior, self.scale, self.intercept, self.noise = prior, scale, intercept, noise
        self.coords = {"feature": list(names)} if names else {}

    @classmethod
    def from_data(cls, data: dict[str, Tensor]) -> dict[str, Any]:
        """The number of features."""
        return features_of(data, "LinearRegression")

    def model(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """p(y, α, β, σ | x), with x of shape (N, D) and y (N,)."""
        x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
        zero = x.new_zeros(())
        loc = linear_predictor(zero, x, self.prior, self.scale, self.intercept)
        sigma = pyro.sample("sigma", HalfCauchy(zero + self.noise))
        with ppgen.rows(x):
            return pyro.sample("y", Normal(loc, sigma), obs=y)
