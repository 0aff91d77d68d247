"""Every distribution of Pyro, made from tensors: DISTRIBUTIONS[name].

    DISTRIBUTIONS["Gamma"]()                    the distribution at its first parameters, p
    DISTRIBUTIONS["Gamma"](*parameters)         at others, such as its second ones, q, or tensors that need a gradient

Both are of one family and q's support lies in p's, so that q serves as a guide for a prior p. Where a distribution is
missing, SKIPPED says why; a test holds the two against all of `pyro.distributions`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro.distributions import transforms
from torch import Tensor

Values = tuple[Any, ...]


class Known(NamedTuple):
    """One family.

    Attributes:
        make: the distribution of some tensors.
        p, q: two settings of them.
        fixed: what stands in the program as it is: it has no gradient (a number of trials, a temperature).
        plate: whether it can be expanded, many of it drawn at once, and so stand in a plate.
    """

    make: Callable[..., Any]
    p: Values
    q: Values
    fixed: dict[str, Any] = {}
    plate: bool = True

    def __call__(self, *parameters: Tensor) -> Any:
        return self.make(*(parameters or self.tensors(self.p)), **self.fixed)

    def tensors(self, values: Values) -> list[Tensor]:
        """In float64."""
        return [torch.as_tensor(v).double() for v in values]


def _independent(loc: Tensor, scale: Tensor) -> Any:
    return dist.Normal(loc, scale).to_event(1)


def _transformed(loc: Tensor, scale: Tensor) -> Any:
    return dist.TransformedDistribution(dist.Normal(loc, scale), [transforms.SigmoidTransform()])


def _ordered(loc: Tensor, scale: Tensor) -> Any:
    return dist.TransformedDistribution(dist.Normal(loc, scale).to_event(1), [transforms.OrderedTransform()])


def _same_family(logits: Tensor, loc: Tensor, scale: Tensor) -> Any:
    return dist.MixtureSameFamily(dist.Categorical(logits=logits), dist.Normal(loc, scale))


def _vector_mixture(logits: Tensor, loc: Tensor) -> Any:
    return dist.MixtureSameFamily(dist.Categorical(logits=logits), dist.Normal(loc, 1.0).to_event(1))


def _scale_tril(below: Tensor, diagonal: Tensor) -> Tensor:
    return torch.stack([torch.stack([diagonal[0], 0 * below]), torch.stack([below, diagonal[1]])])


def _multivariate(loc: Tensor, below: Tensor, diagonal: Tensor) -> Any:
    return dist.MultivariateNormal(loc, scale_tril=_scale_tril(below, diagonal))


def _omt(loc: Tensor, below: Tensor, diagonal: Tensor) -> Any:
    return dist.OMTMultivariateNormal(loc, _scale_tril(below, diagonal))


def _student(df: Tensor, loc: Tensor, below: Tensor, diagonal: Tensor) -> Any:
    return dist.MultivariateStudentT(df, loc, _scale_tril(below, diagonal))


def _wishart(df: Tensor, below: Tensor, diagonal: Tensor) -> Any:
    return dist.Wishart(df, scale_tril=_scale_tril(below, diagonal))


def _skewed(concentration: Tensor, skewness: Tensor) -> Any:
    base = dist.VonMises(torch.zeros(2).to(concentration), concentration).to_event(1)
    return dist.SineSkewed(base, skewness)


def _folded(loc: Tensor, scale: Tensor) -> Any:
    return dist.FoldedDistribution(dist.Normal(loc, scale))


def _zero_inflated(gate: Tensor, rate: Tensor) -> Any:
    return dist.ZeroInflatedDistribution(dist.Poisson(rate), gate=gate)


def _zero_inflated_binomial(gate: Tensor, probs: Tensor) -> Any:
    return dist.ZeroInflatedNegativeBinomial(total_count=torch.tensor(4.0).to(probs), probs=probs, gate=gate)


def _counts(cls: Any) -> Callable[..., Any]:
    """Of success probabilities, with `total_count` fixed."""

    def make(probs: Tensor, total_count: Any) -> Any:
        return cls(total_count=total_count, probs=probs)

    return make


def _of(cls: Any, *names: str) -> Callable[..., Any]:
    """Of parameters by name."""

    def make(*values: Tensor, **fixed: Any) -> Any:
        return cls(**dict(zip(names, values, strict=True)), **fixed)

    return make


def _relaxed(cls: Any) -> Callable[..., Any]:
    def make(logits: Tensor, temperature: float) -> Any:
        return cls(torch.tensor(temperature).to(logits), logits=logits)

    return make


_LOC_SCALE: tuple[Values, Values] = ((0.3, 1.4), (-0.2, 1.1))
_VECTOR: tuple[Values, Values] = (([0.3, -1.0], 0.5, [1.2, 0.9]), ([0.0, -0.8], -0.2, [1.0, 1.1]))
_TEN = {"total_count": 10}

DISTRIBUTIONS: dict[str, Known] = {
    # the real line
    "AsymmetricLaplace": Known(dist.AsymmetricLaplace, (0.3, 1.4, 1.2), (-0.2, 1.1, 0.9)),
    "Cauchy": Known(dist.Cauchy, *_LOC_SCALE),
    "Gumbel": Known(dist.Gumbel, *_LOC_SCALE),
    "Laplace": Known(dist.Laplace, *_LOC_SCALE),
    "Logistic": Known(dist.Logistic, *_LOC_SCALE),
    "Normal": Known(dist.Normal, *_LOC_SCALE),
    "SkewLogistic": Known(dist.SkewLogistic, (0.3, 1.4, 1.2), (-0.2, 1.1, 0.9)),
    "SoftAsymmetricLaplace": Known(dist.SoftAsymmetricLaplace, (0.3, 1.4, 1.2), (-0.2, 1.1, 0.9), plate=False),
    "SoftLaplace": Known(dist.SoftLaplace, *_LOC_SCALE),
    "StudentT": Known(dist.StudentT, (4.0, 0.3, 1.4), (6.0, -0.2, 1.1)),
    "MixtureSameFamily": Known(
        _same_family, ([0.5, 0.0], [-1.0, 2.0], [1.0, 0.7]), ([0.0, 0.3], [-0.8, 1.7], [1.1, 0.8])
    ),
    # positive, or from a point on
    "Chi2": Known(dist.Chi2, (3.0,), (4.0,)),
    "Exponential": Known(dist.Exponential, (1.5,), (2.0,)),
    "FisherSnedecor": Known(dist.FisherSnedecor, (5.0, 9.0), (6.0, 10.0)),
    "FoldedDistribution": Known(_folded, (0.4, 1.2), (0.2, 1.0)),
    "Gamma": Known(dist.Gamma, (2.0, 1.5), (2.5, 1.2)),
    "GeneralizedPareto": Known(
        _of(dist.GeneralizedPareto, "scale", "concentration"), (1.2, 0.2), (1.0, 0.15), {"loc": 0.0}
    ),
    "HalfCauchy": Known(dist.HalfCauchy, (1.5,), (1.2,)),
    "HalfNormal": Known(dist.HalfNormal, (1.5,), (1.2,)),
    "InverseGamma": Known(dist.InverseGamma, (3.0, 2.0), (4.0, 2.5)),
    "LogNormal": Known(dist.LogNormal, (0.3, 0.7), (0.1, 0.6)),
    "Pareto": Known(_of(dist.Pareto, "alpha"), (3.0,), (4.0,), {"scale": 1.0}),
    "Weibull": Known(dist.Weibull, (1.3, 1.7), (1.1, 1.5)),
    # an interval, an angle
    "AffineBeta": Known(
        _of(dist.AffineBeta, "concentration1", "concentration0"), (2.0, 3.0), (2.5, 2.5), {"loc": -1.0, "scale": 3.0}
    ),
    "Beta": Known(dist.Beta, (2.0, 3.0), (2.5, 2.5)),
    "ContinuousBernoulli": Known(dist.ContinuousBernoulli, (0.3,), (0.4,)),
    "Kumaraswamy": Known(dist.Kumaraswamy, (2.0, 3.0), (2.2, 2.6)),
    "RelaxedBernoulli": Known(_relaxed(dist.RelaxedBernoulli), (0.4,), (0.1,), {"temperature": 0.7}),
    "TransformedDistribution": Known(_transformed, *_LOC_SCALE),
    "Uniform": Known(dist.Uniform, (-1.0, 2.0), (-1.0, 2.0)),  # a narrower guide would be no bound
    "VonMises": Known(dist.VonMises, (0.3, 2.0), (0.1, 2.5)),
    # vectors and matrices
    "Dirichlet": Known(dist.Dirichlet, ([2.0, 1.5, 3.0],), ([2.5, 2.0, 2.5],)),
    "Independent": Known(_independent, ([0.3, -1.0], [1.4, 0.6]), ([-0.2, -0.8], [1.1, 0.5])),
    "LKJ": Known(_of(dist.LKJ, "concentration"), (1.5,), (2.0,), {"dim": 3}, plate=False),
    "LKJCholesky": Known(_of(dist.LKJCholesky, "concentration"), (1.5,), (2.0,), {"dim": 3}),
    "LogisticNormal": Known(dist.LogisticNormal, ([0.3, -1.0], [1.2, 0.9]), ([0.0, -0.8], [1.0, 0.8])),
    "LowRankMultivariateNormal": Known(
        dist.LowRankMultivariateNormal, ([0.3, -1.0], [[0.8], [0.4]], [0.6, 0.9]),
        ([0.0, -0.8], [[0.6], [0.2]], [0.7, 0.8]),
    ),
    "MixtureOfDiagNormals": Known(
        dist.MixtureOfDiagNormals, ([[0.0, 1.0], [2.0, -1.0]], [[1.0, 0.8], [0.6, 1.1]], [0.4, 0.0]),
        ([[0.2, 0.8], [1.7, -0.8]], [[1.1, 0.9], [0.7, 1.0]], [0.1, 0.0]), plate=False,
    ),
    "MixtureOfDiagNormalsSharedCovariance": Known(
        dist.MixtureOfDiagNormalsSharedCovariance, ([[0.0, 1.0], [2.0, -1.0]], [1.0, 0.8], [0.4, 0.0]),
        ([[0.2, 0.8], [1.7, -0.8]], [1.1, 0.9], [0.1, 0.0]), plate=False,
    ),
    "MixtureSameFamily of vectors": Known(
        _vector_mixture, ([0.5, 0.0], [[0.0, 1.0], [2.0, -1.0]]), ([0.2, 0.0], [[0.2, 0.8], [1.7, -0.8]])
    ),
    "MultivariateNormal": Known(_multivariate, *_VECTOR),
    "MultivariateStudentT": Known(_student, (5.0, *_VECTOR[0]), (6.0, *_VECTOR[1])),
    "OMTMultivariateNormal": Known(_omt, *_VECTOR, plate=False),
    "ordered vector": Known(_ordered, ([0.3, -1.0, 0.2], [1.4, 0.6, 0.8]), ([0.1, -0.8, 0.0], [1.1, 0.5, 0.7])),
    "ProjectedNormal": Known(dist.ProjectedNormal, ([1.0, 0.5, -0.3],), ([0.7, 0.7, 0.0],)),
    "RelaxedOneHotCategorical": Known(
        _relaxed(dist.RelaxedOneHotCategorical), ([0.5, 0.0, -0.3],), ([0.2, 0.1, 0.0],), {"temperature": 0.9}
    ),
    "SineBivariateVonMises": Known(
        _of(dist.SineBivariateVonMises, "phi_loc", "psi_loc", "phi_concentration", "psi_concentration", "correlation"),
        (0.3, -0.4, 2.0, 3.0, 0.5), (0.1, -0.2, 2.5, 2.5, 0.3), plate=False,  # many at once, Pyro draws another law
    ),
    "SineSkewed": Known(_skewed, ([2.0, 3.0], [0.2, -0.3]), ([2.5, 2.5], [0.1, -0.2])),
    "Wishart": Known(
        _wishart, (5.0, 0.5, [1.2, 0.9]), (6.0, 0.3, [1.0, 0.8]), plate=False  # many at once have no gradient in torch
    ),
    # counts and categories
    "Bernoulli": Known(dist.Bernoulli, (0.3,), (0.45,)),
    "BetaBinomial": Known(_of(dist.BetaBinomial, "concentration1", "concentration0"), (2.0, 3.0), (2.5, 2.5), _TEN),
    "Binomial": Known(_counts(dist.Binomial), (0.3,), (0.4,), _TEN),
    "Categorical": Known(dist.Categorical, ([0.2, 0.5, 0.3],), ([0.3, 0.4, 0.3],)),
    "DirichletMultinomial": Known(
        _of(dist.DirichletMultinomial, "concentration"), ([2.0, 1.5, 3.0],), ([2.5, 2.0, 2.5],), _TEN
    ),
    "GammaPoisson": Known(dist.GammaPoisson, (2.0, 1.5), (2.5, 1.2)),
    "Geometric": Known(dist.Geometric, (0.4,), (0.5,)),
    "Multinomial": Known(_counts(dist.Multinomial), ([0.2, 0.5, 0.3],), ([0.3, 0.4, 0.3],), _TEN),
    "NegativeBinomial": Known(_counts(dist.NegativeBinomial), (0.4,), (0.3,), {"total_count": 4.0}),
    "OneHotCategorical": Known(dist.OneHotCategorical, ([0.2, 0.5, 0.3],), ([0.3, 0.4, 0.3],)),
    "OneHotCategoricalStraightThrough": Known(
        dist.OneHotCategoricalStraightThrough, ([0.2, 0.5, 0.3],), ([0.3, 0.4, 0.3],)
    ),
    "OrderedLogistic": Known(dist.OrderedLogistic, (0.3, [-1.0, 0.2, 1.5]), (0.1, [-0.9, 0.1, 1.2])),
    "Poisson": Known(dist.Poisson, (2.5,), (3.0,)),
    "ZeroInflatedDistribution": Known(_zero_inflated, (0.3, 2.5), (0.25, 2.8)),
    "ZeroInflatedNegativeBinomial": Known(_zero_inflated_binomial, (0.3, 0.4), (0.25, 0.35)),
    "ZeroInflatedPoisson": Known(_of(dist.ZeroInflatedPoisson, "rate", "gate"), (2.5, 0.3), (2.8, 0.25)),
}  # fmt: skip

_HMM = "its parameters are a chain's, and its tests are those of hidden Markov models"
_WRAPPER = "a wrapper, which other rows stand in"
_LIKELIHOOD = "made for observed values: it cannot be drawn"
_BASE = "no distribution by itself"
_STRAIGHT = "its log_prob needs an attribute of the tensor that it drew, which no trace and no copy keeps"

SKIPPED: dict[str, str] = {
    "AVFMultivariateNormal": "as MultivariateNormal, with a gradient estimator that has parameters of its own",
    "CoalescentTimes": _LIKELIHOOD,
    "CoalescentTimesWithRate": _LIKELIHOOD,
    "Delta": "a point, which has no density: test_loglik.py refuses it as a guide",
    "DiscreteHMM": _HMM,
    "Empirical": "made of draws: it has no parameters",
    "ExpandedDistribution": _WRAPPER,
    "ExponentialFamily": _BASE,
    "ExtendedBetaBinomial": "as BetaBinomial where it can be drawn",
    "ExtendedBinomial": "as Binomial where it can be drawn",
    "GammaGaussianHMM": _HMM,
    "GaussianHMM": _HMM,
    "GaussianMRF": _HMM,
    "GaussianScaleMixture": "no support, which a guide is checked against",
    "GroupedNormalNormal": _LIKELIHOOD,
    "ImproperUniform": "improper",
    "IndependentHMM": _HMM,
    "LKJCorrCholesky": "the old name of LKJCholesky",
    "LinearHMM": _HMM,
    "LogNormalNegativeBinomial": _LIKELIHOOD,
    "MaskedDistribution": _WRAPPER,
    "MaskedMixture": _WRAPPER,
    "NanMaskedMultivariateNormal": _LIKELIHOOD,
    "NanMaskedNormal": _LIKELIHOOD,
    "OneOneMatching": "a structure; drawn by a Markov chain of its own",
    "OneTwoMatching": "a structure; drawn by a Markov chain of its own",
    "Rejector": "needs a proposal and a log-acceptance of one's own",
    "RelaxedBernoulliStraightThrough": _STRAIGHT,
    "RelaxedOneHotCategoricalStraightThrough": _STRAIGHT,
    "SpanningTree": "a structure; drawn by a Markov chain of its own",
    "Stable": "no log_prob",
    "StableWithLogProb": "its log_prob is an integral by a thousand points, of limited accuracy",
    "TorchDistribution": _BASE,
    "TruncatedPolyaGamma": "no parameters",
    "Unit": "no value",
    "VonMises3D": _LIKELIHOOD,
}
