"""Logistic regression with a normal or a horseshoe prior.

    α ~ N(0, s_α²),  β ~ prior,  y_i ~ Bernoulli(1 / (1 + exp(-α - x_i · β)))          x_i: (D,),  y_i: 0 or 1

With these proper priors the posterior exists where a column separates the zeros from the ones, too; what it then says
about that coefficient is the prior's.

Source: A weakly informative default prior distribution for logistic and other regression models (Gelman et al. 2008).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import torch
from pyro.distributions import Bernoulli
from torch import Tensor

import ppgen
from ppgen.distributions.regression import features_of, linear_predictor, require_features


class LogisticRegression(ppgen.Program):
    """A binary y on the columns of x. It has no guide: a fit gives it an autoguide.

    Args:
        features: D, of the column x: (N, D).
        prior: of β, "normal" or "horseshoe".
        scale, intercept: scales of β (of τ, for the horseshoe) and α, in log odds.
        names: of the features, for tables and plots.
    """

    dims = {"x": ["feature"]}

    def __init__(
        self,
        features: int,
        prior: str = "normal",
        scale: float = 2.5,
        intercept: float = 5.0,
        names: Sequence[str] | None = None,
    ):
        super().__init__()
        require_features("LogisticRegression", features, prior, scale, intercept)
        self.prior, self.scale, self.intercept = prior, scale, intercept
        self.coords = {"feature": list(names)} if names else {}

    @classmethod
    def from_data(cls, data: dict[str, Tensor]) -> dict[str, Any]:
        """The number of features."""
        return features_of(data, "LogisticRegression")

    def model(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """p(y, α, β | x), with x of shape (N, D) and y (N,)."""
        x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
        logits = linear_predictor(x.new_zeros(()), x, self.prior, self.scale, self.intercept)
        with ppgen.rows(x):
            return pyro.sample("y", Bernoulli(logits=logits), obs=None if y is None else y.to(x))
