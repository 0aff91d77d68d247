"""Families of a regression: the distribution of the response given the linear predictor η, and what stands beside η.

| family | y | given η |
|---|---|---|
| gaussian, student | real | location η |
| bernoulli, binomial | 0 or 1; successes of trials | logit of the probability |
| poisson, negbinomial | counts | log of the mean; variance μ + μ² / φ |
| zero_inflated_poisson, zero_inflated_negbinomial | counts | the same, but 0 with probability gate |
| gamma | positive | log of the mean; shape |
| beta | in (0, 1) | logit of the mean; precision κ |
| ordered | categories in order | logit P(y <= k) = cutpoint_k - η |
| categorical | categories | log odds against the first, an η each |
| weibull, exponential | positive | log of the scale (for exponential the mean) |
| lognormal | positive | location of log y |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from pyro.distributions import (
    Bernoulli,
    Beta,
    Binomial,
    Categorical,
    Exponential,
    Gamma,
    GammaPoisson,
    LogNormal,
    Normal,
    Poisson,
    StudentT,
    Weibull,
    ZeroInflatedDistribution,
    ZeroInflatedPoisson,
)
from torch import Tensor

__all__ = ["FAMILIES", "Family"]


def _gaussian(eta: Tensor, sigma: Tensor) -> Any:
    return Normal(eta, sigma)


def _student(eta: Tensor, sigma: Tensor, nu: Tensor) -> Any:
    return StudentT(nu, eta, sigma)


def _bernoulli(eta: Tensor) -> Any:
    return Bernoulli(logits=eta)


def _binomial(eta: Tensor, trials: Tensor) -> Any:
    return Binomial(trials, logits=eta)


def _poisson(eta: Tensor) -> Any:
    return Poisson(eta.clamp_max(30.0).exp())


def _negbinomial(eta: Tensor, phi: Tensor) -> Any:
    return GammaPoisson(phi, phi / eta.clamp_max(30.0).exp())


def _zero_inflated_poisson(eta: Tensor, gate: Tensor) -> Any:
    return ZeroInflatedPoisson(eta.clamp_max(30.0).exp(), gate=gate)


def _zero_inflated_negbinomial(eta: Tensor, phi: Tensor, gate: Tensor) -> Any:
    return ZeroInflatedDistribution(GammaPoisson(phi, phi / eta.clamp_max(30.0).exp()), gate=gate)


def _gamma(eta: Tensor, shape: Tensor) -> Any:
    return Gamma(shape, shape * (-eta).exp())


def _beta(eta: Tensor, kappa: Tensor) -> Any:
    return Beta(kappa * eta.sigmoid(), kappa * (-eta).sigmoid())


def _ordered(eta: Tensor, cutpoints: Tensor) -> Any:
    """Pyro's OrderedLogistic, which writes in place and is recorded twice before chains are batched; in logarithms,

        log(σ(b) - σ(a)) = log σ(b) + log σ(-a) + log(1 - exp(a - b)),

    as differences of probabilities are 0 where η is far out: 17 in float32, 37 in float64.
    """
    below, above = (torch.nn.functional.logsigmoid(s * (cutpoints - eta[..., None])) for s in (1, -1))
    gap = (cutpoints[..., 1:] - cutpoints[..., :-1]).clamp_min(torch.finfo(eta.dtype).tiny)
    between = below[..., 1:] + above[..., :-1] + torch.log(-torch.expm1(-gap))
    return Categorical(logits=torch.cat([below[..., :1], between, above[..., -1:]], -1))


def _categorical(eta: Tensor) -> Any:
    return Categorical(logits=torch.cat([torch.zeros_like(eta[..., :1]), eta], -1))


def _weibull(eta: Tensor, shape: Tensor) -> Any:
    return Weibull(eta.exp(), shape)


def _exponential(eta: Tensor) -> Any:
    return Exponential((-eta).exp())


def _lognormal(eta: Tensor, sigma: Tensor) -> Any:
    return LogNormal(eta, sigma)


class Family(NamedTuple):
    """A family.

    Attributes:
        likelihood: of η and what stands beside it, by name.
        kind: of the response: real, positive, unit, counts, trials, binary or categories.
        link: identity, log or logit.
        beside: the name of a prior's distribution and its arguments, by site; "sd" is the response's spread.
        censored: whether a response may be known to lie beyond its value.
    """

    likelihood: Callable[..., Any]
    kind: str
    link: str
    beside: Mapping[str, tuple[str, tuple[float | str, ...]]] = {}
    censored: bool = False


_PHI = {"phi": ("Gamma", (2.0, 0.1))}
_GATE = {"gate": ("Beta", (2.0, 2.0))}
_SIGMA = {"sigma": ("Exponential", ("1/sd",))}

FAMILIES: dict[str, Family] = {
    "gaussian": Family(_gaussian, "real", "identity", _SIGMA, censored=True),
    "student": Family(_student, "real", "identity", {**_SIGMA, "nu": ("Gamma", (2.0, 0.1))}, censored=True),
    "bernoulli": Family(_bernoulli, "binary", "logit"),
    "binomial": Family(_binomial, "trials", "logit"),
    "poisson": Family(_poisson, "counts", "log"),
    "negbinomial": Family(_negbinomial, "counts", "log", _PHI),
    "zero_inflated_poisson": Family(_zero_inflated_poisson, "counts", "log", _GATE),
    "zero_inflated_negbinomial": Family(_zero_inflated_negbinomial, "counts", "log", {**_PHI, **_GATE}),
    "gamma": Family(_gamma, "positive", "log", {"shape": ("Gamma", (2.0, 0.1))}, censored=True),
    "beta": Family(_beta, "unit", "logit", {"kappa": ("Gamma", (2.0, 0.1))}),
    "ordered": Family(_ordered, "categories", "logit"),
    "categorical": Family(_categorical, "categories", "logit"),
    "weibull": Family(_weibull, "positive", "log", {"shape": ("Gamma", (2.0, 1.0))}, censored=True),
    "exponential": Family(_exponential, "positive", "log", {}, censored=True),
    "lognormal": Family(_lognormal, "positive", "log", _SIGMA, censored=True),
}
