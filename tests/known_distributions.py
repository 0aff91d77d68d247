"""Every distribution of Pyro as a row: made of tensors, with how many draws of it are made.

    DISTRIBUTIONS["Gamma"].p, .q                two settings of its parameters; between them lies p + s (q - p)
    DISTRIBUTIONS["Gamma"].make(*tensors)       the distribution

A name's first word is the class. A class of `pyro.distributions` without a row stands in NO_ROW, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from pyro.distributions import transforms
from torch import Tensor

from ppgen.distributions import Censored, Truncated

RECORDED, LOOP = "recorded", "one after the other"

Values = tuple[Any, ...]


class Known(NamedTuple):
    """One family.

    Attributes:
        make: the distribution of some tensors.
        p, q: two settings of them; what lies between is a setting too.
        fixed: what stands in the program as it is: it has no gradient (a number of trials, a temperature).
        plate: whether it can be expanded, and so stand in a plate.
        way: how many draws are made.
        trained: the same where gradients are taken, if that is another way.
        value: an observed value, where it cannot be drawn.
    """

    make: Callable[..., Any]
    p: Values
    q: Values
    fixed: dict[str, Any] = {}
    plate: bool = True
    way: str = RECORDED
    trained: str = ""
    value: Any = None

    def __call__(self, *parameters: Tensor) -> Any:
        return self.make(*parameters, **self.fixed)

    def tensors(self, values: Values) -> list[Tensor]:
        """In torch's default dtype."""
        return [torch.as_tensor(v, dtype=torch.get_default_dtype()) for v in values]


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


def _empirical(weights: Tensor) -> Any:
    return dist.Empirical(torch.tensor([-1.0, 0.5, 2.0]).to(weights), weights.log())


def _expanded(loc: Tensor, scale: Tensor) -> Any:
    return dist.ExpandedDistribution(dist.Normal(loc, scale), torch.Size([2]))


def _censored(made: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *parameters: Censored(made(*parameters), 0.5, 2.0)


def _truncated(made: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *parameters: Truncated(made(*parameters), 0.5, 2.0)


def _masked(loc: Tensor, scale: Tensor) -> Any:
    return dist.Normal(loc.expand(2), scale).mask(torch.tensor([True, False])).to_event(1)


def _masked_mixture(loc: Tensor, scale: Tensor, other: Tensor) -> Any:
    mask = torch.tensor([True, False])
    return dist.MaskedMixture(
        mask, dist.Normal(loc, scale).expand([2]), dist.Laplace(other, scale).expand([2])
    ).to_event(1)


def _rejector(scale: Tensor) -> Any:
    """A half normal out of an exponential."""
    propose = dist.Exponential(1 / scale)

    def log_prob_accept(x: Tensor) -> Tensor:
        return -0.5 * (x / scale - 1) ** 2

    log_scale = torch.tensor(math.pi / (2 * math.e)).to(scale).log() / 2
    return dist.Rejector(propose, log_prob_accept, log_scale)


def _affine(loc: Tensor, scale: Tensor, shift: Tensor, slope: Tensor) -> Any:
    return dist.TransformedDistribution(
        dist.Normal(loc, scale), [transforms.AffineTransform(shift, slope), transforms.ExpTransform()]
    )


def _delta(v: Tensor) -> Any:
    return dist.Delta(v, event_dim=1)


def _avf(loc: Tensor, below: Tensor, diagonal: Tensor, control: Tensor) -> Any:
    return dist.AVFMultivariateNormal(loc, _scale_tril(below, diagonal), control)


def _nan_masked(loc: Tensor, below: Tensor, diagonal: Tensor) -> Any:
    return dist.NanMaskedMultivariateNormal(loc, scale_tril=_scale_tril(below, diagonal))


def _discrete_hmm(initial: Tensor, transition: Tensor, loc: Tensor) -> Any:
    return dist.DiscreteHMM(initial, transition, dist.Normal(loc, 1.0), duration=3)


def _chain(slope: Tensor, scale: Tensor) -> tuple[Any, ...]:
    one = torch.ones(1, 1).to(slope)
    noise = dist.Normal(torch.zeros(1).to(slope), scale).to_event(1)
    return noise, slope * one, noise, one, noise


def _gaussian_hmm(slope: Tensor, scale: Tensor) -> Any:
    return dist.GaussianHMM(*_chain(slope, scale), duration=3)


def _linear_hmm(slope: Tensor, scale: Tensor) -> Any:
    return dist.LinearHMM(*_chain(slope, scale), duration=3)


def _independent_hmm(slope: Tensor, scale: Tensor) -> Any:
    return dist.IndependentHMM(dist.GaussianHMM(*_chain(slope.expand(2, 1, 1, 1), scale.expand(2, 1, 1)), duration=3))


def _normal_of(slope: Tensor, scale: Tensor, n: int) -> Any:
    eye = torch.eye(n).to(slope)
    return dist.MultivariateNormal(slope * torch.ones(n).to(slope), scale_tril=scale * eye)


def _gamma_gaussian_hmm(concentration: Tensor, rate: Tensor, slope: Tensor) -> Any:
    one = torch.ones(1, 1).to(slope)
    noise = _normal_of(0 * slope, slope, 1)
    return dist.GammaGaussianHMM(dist.Gamma(concentration, rate), noise, slope * one, noise, one, noise, duration=3)


def _gaussian_mrf(slope: Tensor, scale: Tensor) -> Any:
    return dist.GaussianMRF(*(_normal_of(slope, scale, n).expand([3][: n - 1]) for n in (1, 2, 2)))


def _improper(scale: Tensor) -> Any:
    return dist.ImproperUniform(dist.constraints.positive, (), ())


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
        ([[0.2, 0.8], [1.7, -0.8]], [[1.1, 0.9], [0.7, 1.0]], [0.1, 0.0]), plate=False, trained=LOOP),
    "MixtureOfDiagNormalsSharedCovariance": Known(
        dist.MixtureOfDiagNormalsSharedCovariance, ([[0.0, 1.0], [2.0, -1.0]], [1.0, 0.8], [0.4, 0.0]),
        ([[0.2, 0.8], [1.7, -0.8]], [1.1, 0.9], [0.1, 0.0]), plate=False, trained=LOOP),
    "MixtureSameFamily of vectors": Known(
        _vector_mixture, ([0.5, 0.0], [[0.0, 1.0], [2.0, -1.0]]), ([0.2, 0.0], [[0.2, 0.8], [1.7, -0.8]])
    ),
    "MultivariateNormal": Known(_multivariate, *_VECTOR),
    "MultivariateStudentT": Known(_student, (5.0, *_VECTOR[0]), (6.0, *_VECTOR[1])),
    "OMTMultivariateNormal": Known(_omt, *_VECTOR, plate=False, trained=LOOP),
    "ordered vector": Known(_ordered, ([0.3, -1.0, 0.2], [1.4, 0.6, 0.8]), ([0.1, -0.8, 0.0], [1.1, 0.5, 0.7])),
    "ProjectedNormal": Known(dist.ProjectedNormal, ([1.0, 0.5, -0.3],), ([0.7, 0.7, 0.0],)),
    "RelaxedOneHotCategorical": Known(
        _relaxed(dist.RelaxedOneHotCategorical), ([0.5, 0.0, -0.3],), ([0.2, 0.1, 0.0],), {"temperature": 0.9}
    ),
    "SineBivariateVonMises": Known(
        _of(dist.SineBivariateVonMises, "phi_loc", "psi_loc", "phi_concentration", "psi_concentration", "correlation"),
        (0.3, -0.4, 2.0, 3.0, 0.5), (0.1, -0.2, 2.5, 2.5, 0.3), plate=False, way=LOOP,
    ),  # many at once, Pyro draws another law
    "SineSkewed": Known(_skewed, ([2.0, 3.0], [0.2, -0.3]), ([2.5, 2.5], [0.1, -0.2]), way=LOOP),
    "Wishart": Known(
        _wishart, (5.0, 0.5, [1.2, 0.9]), (6.0, 0.3, [1.0, 0.8]), plate=False, way=LOOP,
    ),  # many at once have no gradient in torch
    # counts and categories
    "Bernoulli": Known(dist.Bernoulli, (0.3,), (0.45,)),
    "BetaBinomial": Known(_of(dist.BetaBinomial, "concentration1", "concentration0"), (2.0, 3.0), (2.5, 2.5), _TEN),
    "Binomial": Known(_counts(dist.Binomial), (0.3,), (0.4,), _TEN),
    "Categorical": Known(dist.Categorical, ([0.2, 0.5, 0.3],), ([0.3, 0.4, 0.3],)),
    "DirichletMultinomial": Known(
        _of(dist.DirichletMultinomial, "concentration"), ([2.0, 1.5, 3.0],), ([2.5, 2.0, 2.5],), _TEN, way=LOOP),
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
    # wrappers
    "Delta": Known(_delta, ([0.3, -1.0],), ([0.3, -1.0],), plate=False),
    "Empirical": Known(_empirical, ([0.2, 0.5, 0.3],), ([0.3, 0.4, 0.3],), plate=False),
    "ExpandedDistribution": Known(_expanded, *_LOC_SCALE, plate=False),
    "MaskedDistribution": Known(_masked, *_LOC_SCALE),
    "MaskedMixture": Known(_masked_mixture, (0.3, 1.4, 0.2), (-0.2, 1.1, 0.7)),
    "Rejector": Known(_rejector, (1.4,), (1.1,), plate=False, way=LOOP),
    "TransformedDistribution of a parameter": Known(_affine, (0.3, 1.4, 0.5, 1.2), (-0.2, 1.1, 0.2, 0.8)),
    "Unit": Known(dist.Unit, (0.3,), (0.5,), plate=False, value=[]),
    # more
    "AVFMultivariateNormal": Known(
        _avf, (*_VECTOR[0], [[[0.1, 0.2]], [[0.3, 0.1]]]), (*_VECTOR[1], [[[0.2, 0.2]], [[0.1, 0.1]]]), plate=False,
        trained=LOOP,
    ),
    "CoalescentTimes": Known(
        _of(dist.CoalescentTimes, "rate"), (1.5,), (1.2,), {"leaf_times": torch.tensor([0.0, 0.5, 1.0])}, way=LOOP,
    ),
    "CoalescentTimesWithRate": Known(
        _of(dist.CoalescentTimesWithRate, "rate_grid"), ([0.5, 1.5, 2.0],), ([0.6, 1.2, 1.0],),
        {"leaf_times": torch.tensor([0.0, 0.5, 1.0])}, value=[-0.4, 0.2],
        plate=False,
    ),
    "DiscreteHMM": Known(
        _discrete_hmm, ([0.5, 0.0], [[1.0, 0.0], [0.2, 0.8]], [-1.0, 1.0]), ([0.2, 0.1], [[0.7, 0.1], [0.3, 0.9]],
        [-0.7, 1.2]), plate=False,
    ),
    "ExtendedBetaBinomial": Known(
        _of(dist.ExtendedBetaBinomial, "concentration1", "concentration0"), (2.0, 3.0), (2.5, 2.5), _TEN,
    ),
    "ExtendedBinomial": Known(_counts(dist.ExtendedBinomial), (0.3,), (0.4,), _TEN),
    "GammaGaussianHMM": Known(
        _gamma_gaussian_hmm, (2.0, 1.5, 0.8), (2.5, 1.2, 0.7), value=[[0.5], [0.2], [-0.3]], plate=False,
    ),
    "GaussianHMM": Known(_gaussian_hmm, (0.9, 0.7), (0.8, 0.5), plate=False),
    "GaussianMRF": Known(_gaussian_mrf, (0.9, 0.7), (0.8, 0.5), value=[[0.5], [0.2], [-0.3]], plate=False),
    "ImproperUniform": Known(_improper, (0.3,), (0.4,), value=0.7),
    "IndependentHMM": Known(_independent_hmm, (0.9, 0.7), (0.8, 0.5), plate=False),
    "LKJCorrCholesky": Known(_of(dist.LKJCorrCholesky, "eta"), (1.5,), (2.0,), {"d": 3}, plate=False),
    "LogNormalNegativeBinomial": Known(
        _of(dist.LogNormalNegativeBinomial, "logits", "multiplicative_noise_scale"), (0.3, 0.7), (0.1, 0.6),
        {"total_count": 4.0}, value=3.0,
    ),
    "NanMaskedNormal": Known(dist.NanMaskedNormal, *_LOC_SCALE, way=LOOP),
    "NanMaskedMultivariateNormal": Known(_nan_masked, *_VECTOR, way=LOOP),
    "OneOneMatching": Known(
        dist.OneOneMatching, ([[0.5, 0.0], [0.2, 0.1]],), ([[0.2, 0.0], [0.1, 0.4]],), plate=False,
    ),
    "OneTwoMatching": Known(
        dist.OneTwoMatching, ([[0.5, 0.0], [0.2, 0.1], [0.0, 0.3], [0.4, 0.0]],),
        ([[0.2, 0.1], [0.1, 0.2], [0.3, 0.0], [0.0, 0.0]],), plate=False,
    ),
    "RelaxedBernoulliStraightThrough": Known(
        _relaxed(dist.RelaxedBernoulliStraightThrough), (0.4,), (0.1,), {"temperature": 0.7}, trained=LOOP,
    ),
    "RelaxedOneHotCategoricalStraightThrough": Known(
        _relaxed(dist.RelaxedOneHotCategoricalStraightThrough), ([0.5, 0.0, -0.3],), ([0.2, 0.1, 0.0],),
        {"temperature": 0.9}, trained=LOOP,
    ),
    "SpanningTree": Known(dist.SpanningTree, ([0.5, 0.0, 0.2],), ([0.2, 0.0, 0.1],), plate=False, way=LOOP),
    "Stable": Known(dist.Stable, (1.5, 0.2, 1.2, 0.3), (1.6, 0.1, 1.0, 0.1), way=LOOP),
    "StableWithLogProb": Known(dist.StableWithLogProb, (1.5, 0.2, 1.2, 0.3), (1.6, 0.1, 1.0, 0.1), way=LOOP),
    "TruncatedPolyaGamma": Known(dist.TruncatedPolyaGamma, (0.3,), (0.5,), plate=False),
    "VonMises3D": Known(dist.VonMises3D, ([1.0, 0.5, -0.3],), ([0.7, 0.7, 0.0],), value=[0.6, 0.0, 0.8]),
}  # fmt: skip

# of ppgen.distributions
DISTRIBUTIONS |= {
    "Censored": Known(_censored(dist.Exponential), (0.9,), (0.7,)),
    "Censored Gamma": Known(_censored(dist.Gamma), (2.0, 1.5), (2.5, 1.2)),
    "Censored Poisson": Known(_censored(dist.Poisson), (1.4,), (1.1,)),
    "Truncated": Known(_truncated(dist.Normal), *_LOC_SCALE),
    "Truncated Gamma": Known(_truncated(dist.Gamma), (2.0, 1.5), (2.5, 1.2)),
    "Truncated Poisson": Known(_truncated(dist.Poisson), (1.4,), (1.1,), way=LOOP),
}


REFUSED: dict[str, tuple[Known, str]] = {
    "GaussianScaleMixture": (Known(
        dist.GaussianScaleMixture, ([1.2, 0.9], [0.5, 0.0], [0.7, 2.0]), ([1.0, 1.0], [0.2, 0.1], [0.9, 1.7]),
        plate=False,
    ), "has no gradient"),
    "ImproperUniform drawn": (Known(_improper, (0.3,), (0.4,)), "no distribution"),
    "GroupedNormalNormal": (
        Known(dist.GroupedNormalNormal, ([0.3, -1.0], [1.2, 0.9], [0.5, 0.7, 0.6]), ([0.0, -0.8], [1.0, 1.1], [0.6,
        0.6, 0.6]), {"group_idx": torch.tensor([1, 0, 1])}, value=[0.2, -0.4, 0.9], plate=False),
        "make the two agree",
    ),
    "LinearHMM": (
        Known(_linear_hmm, (0.9, 0.7), (0.8, 0.5), plate=False), "log_prob at the site 'x' of the model failed",
    ),
}  # fmt: skip

NO_ROW: dict[str, str] = {
    "ExponentialFamily": "no distribution by itself",
    "TorchDistribution": "no distribution by itself",
}
