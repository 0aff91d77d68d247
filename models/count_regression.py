"""Regression of counts: Poisson, or negative binomial where they vary more than that.

    η_i = α + x_i · β + log e_i                                   e_i: exposure, 1 where it is left out
    poisson             y_i ~ Poisson(exp η_i)
    negative_binomial   y_i ~ NegativeBinomial(mean exp η_i, variance exp η_i + exp 2η_i / φ),  φ ~ Gamma(2, 0.1)

Source: Data Analysis Using Regression and Multilevel/Hierarchical Models (Gelman & Hill 2007), chapter 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import torch
from pyro.distributions import Gamma
from torch import Tensor

import ppgen
from ppgen.distributions.counts import counts
from ppgen.distributions.regression import features_of, linear_predictor, require_features
from ppgen.errors import PpgenError


class CountRegression(ppgen.Program):
    """Counts y on the columns of x. It has no guide: a fit gives it an autoguide.

    Args:
        features: D, of the column x: (N, D).
        family: "poisson" or "negative_binomial".
        prior: of β, "normal" or "horseshoe".
        scale, intercept: scales of β (of τ, for the horseshoe) and α, in logs.
        names: of the features, for tables and plots.
    """

    dims = {"x": ["feature"]}

    def __init__(
        self,
        features: int,
        family: str = "poisson",
        prior: str = "normal",
        scale: float = 1.0,
        intercept: float = 2.5,
        names: Sequence[str] | None = None,
    ):
        super().__init__()
        require_features("CountRegression", features, prior, scale, intercept)
        if family not in ("poisson", "negative_binomial"):
            raise PpgenError(f"CountRegression got family={family!r}; expected poisson or negative_binomial")
        self.family, self.prior, self.scale, self.intercept = family, prior, scale, intercept
        self.coords = {"feature": list(names)} if names else {}

    @classmethod
    def from_data(cls, data: dict[str, Tensor]) -> dict[str, Any]:
        """The number of features."""
        return features_of(data, "CountRegression")

    def model(self, x: Tensor, exposure: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """p(y, α, β, φ | x), with x of shape (N, D), exposure and y (N,)."""
        x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
        zero = x.new_zeros(())
        eta = linear_predictor(zero, x, self.prior, self.scale, self.intercept)
        eta = eta if exposure is None else eta + exposure.log()
        phi = None if self.family == "poisson" else pyro.sample("phi", Gamma(zero + 2.0, zero + 0.1))
        with ppgen.rows(x):
            return pyro.sample("y", counts(eta, phi), obs=None if y is None else y.to(x))
