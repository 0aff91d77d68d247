"""What regressions share: priors of coefficients.

A coefficient vector is drawn in `pyro.plate("feature", D)`: its last dimension is the plate's, and `beta @ x.mT`,
(..., D) by (N, D), is the linear predictor (..., N).
"""

from __future__ import annotations

import pyro
from pyro.distributions import HalfCauchy, Normal
from torch import Tensor

from ppgen.errors import PpgenError, lacking

__all__ = ["PRIORS", "coefficients", "linear_predictor", "require_features"]

PRIORS = ("normal", "horseshoe")


def coefficients(zero: Tensor, features: int, prior: str, scale: float) -> Tensor:
    r"""The site or sites of β, (..., D).

    normal       β_d ~ N(0, scale²)
    horseshoe    β_d = τ λ_d z_d,  τ ~ HalfCauchy(scale),  λ_d ~ HalfCauchy(1),  z_d ~ N(0, 1)

    Args:
        zero: a scalar zero of the data's dtype and device.

    Source: The horseshoe estimator for sparse signals (Carvalho, Polson, Scott 2010), non-centred.
    """
    if prior == "normal":
        with pyro.plate("feature", features):
            return pyro.sample("beta", Normal(zero, scale))
    tau = pyro.sample("tau", HalfCauchy(zero + scale))
    with pyro.plate("feature", features):
        local = pyro.sample("lambda", HalfCauchy(zero + 1.0))
        z = pyro.sample("z", Normal(zero, 1.0))
        return pyro.deterministic("beta", tau * local * z)


def linear_predictor(zero: Tensor, x: Tensor, prior: str, scale: float, intercept: float) -> Tensor:
    """α + x β with α ~ N(0, intercept²): (..., N)."""
    alpha = pyro.sample("alpha", Normal(zero, intercept))
    return alpha + coefficients(zero, x.shape[-1], prior, scale) @ x.mT


def require_features(name: str, features: int, prior: str, *scales: float) -> None:
    """
    Raises:
        PpgenError: arguments of a regression that make none.
    """
    if features < 1 or prior not in PRIORS or min(scales) <= 0:
        raise PpgenError(
            f"{name} got features={features}, prior={prior!r} and scales {scales}; expected at least one feature, a "
            f"prior of {' or '.join(PRIORS)}, and positive scales"
        )


def features_of(data: dict[str, Tensor], name: str) -> dict[str, int]:
    """The number of features, for `from_data`.

    Raises:
        PpgenError: no matrix x.
    """
    if "x" not in data or data["x"].dim() != 2:
        needed = f"{name} needs a column x of shape (rows, features)"
        raise lacking(needed, data, "name or gather it with columns= (--columns x=a+b)")
    return {"features": data["x"].shape[1]}
