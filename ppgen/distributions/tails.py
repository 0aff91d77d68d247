r"""log F(x) and log(1 - F(x)) of one-dimensional distributions, each precise in its own tail.

    log P(a <= X <= b) = log(F(b) - F(a)) = log(S(a) - S(b)),  S = 1 - F,

by whichever of the two is the difference of small numbers. Normal, LogNormal (`ppgen.normal`), Exponential, Weibull,
Pareto, Gumbel, Logistic, Laplace, Uniform, Cauchy, HalfNormal, HalfCauchy and Geometric have both in closed form, to
a few units of the last digit. Gamma, Chi2, InverseGamma and Poisson have both from the incomplete gamma function, and
from its series and continued fraction where it underflows. StudentT, Beta, Binomial, NegativeBinomial and GammaPoisson
have both from the incomplete beta function (`incomplete_beta`). Zero-inflated ones have those of their base. Other
counts are summed mass by mass in float64, where a support without an end has S = 1 - F, nothing below 1e-16. Whatever
else has a `cdf` has S = 1 - F: a tail lighter than 6e-8 in float32, 1e-16 in float64, is then -inf.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch import distributions as td
from torch.distributions import constraints
from torch.nn.functional import logsigmoid, softplus

from ppgen import normal
from ppgen.distributions.incomplete_beta import log_incomplete_beta
from ppgen.errors import PpgenError

LN2 = math.log(2.0)
COUNTS = 100_000  # masses that are summed at most
BISECTIONS = 60
UNDERFLOW, TERMS = 1e-290, 20  # of an incomplete gamma function, and terms of what stands for it then


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(-x)) for x > 0 (Maechler 2012, Accurately computing log(1 - exp(-|a|)))."""
    small = x < LN2
    return torch.where(
        small,
        torch.log(-torch.expm1(-torch.where(small, x, LN2))),
        torch.log1p(-torch.exp(-torch.where(small, LN2, x))),
    )


def _logs(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """log p and log q of p + q = 1, the one near 1 by the other."""
    left = p < q
    small = torch.where(left, p, q)
    far, near = torch.log(small), torch.log1p(-small)
    return torch.where(left, far, near), torch.where(left, near, far)


def _log_difference(larger: Tensor, smaller: Tensor) -> Tensor:
    """log(exp(larger) - exp(smaller)); -inf where they are equal, without NaN in the gradient where smaller is -inf."""
    gap = larger - torch.where(torch.isneginf(smaller), 0.0, smaller)
    some = ~torch.isneginf(smaller) & (gap > 0)
    within = _log1mexp(torch.where(some, gap, 1.0))
    none = ~torch.isneginf(smaller) & ~(gap > 0)
    return torch.where(none, -math.inf, larger + torch.where(some, within, 0.0))


def is_discrete(d: Any) -> bool:
    return bool(d.support.is_discrete)


def ends(d: Any) -> tuple[Any, Any]:
    """The lowest and highest value of a distribution, infinite where there is none."""
    support = d.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if isinstance(support, type(constraints.boolean)):
        return 0.0, 1.0
    low, high = getattr(support, "lower_bound", -math.inf), getattr(support, "upper_bound", math.inf)
    return low, high


def _hides(d: Any) -> bool:
    """Whether a transformed distribution says the transform's codomain to be its support, whatever its base's is."""
    own: Any = td.TransformedDistribution.support
    return isinstance(d, td.TransformedDistribution) and type(d).support is own


def contains(d: Any, x: Tensor) -> Tensor:
    """Whether a distribution has x in its support."""
    while isinstance(d, dist.ExpandedDistribution):
        d = d.base_dist
    inside = d.support.check(x)
    if not _hides(d):
        return inside
    for t in reversed(d.transforms):
        x = t.inv(x)
    return inside & contains(d.base_dist, x)


def inner_point(d: Any, like: Tensor) -> Tensor:
    """A value where the density is finite, to stand where a value lies outside of the support."""
    while isinstance(d, dist.ExpandedDistribution):
        d = d.base_dist
    if _hides(d) and d.support is constraints.real:
        x = inner_point(d.base_dist, like)
        for t in d.transforms:
            x = t(x)
        return x
    low, high = (torch.as_tensor(e, dtype=like.dtype, device=like.device) for e in ends(d))
    one = 1.0
    middle = torch.where(torch.isinf(high), low + one, (low + high) / 2)
    middle = torch.where(torch.isinf(low), torch.where(torch.isinf(high), 0.0, high - one), middle)
    return middle.floor() if is_discrete(d) else middle


def tails(d: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """log F(x) and log(1 - F(x)), at any x, infinite ones included; F is of P(X <= x)."""
    low, high = ends(d)
    x = torch.floor(x) if is_discrete(d) else x
    below = x < low if is_discrete(d) else x <= low
    above = x >= high
    outside = below | above | torch.isinf(x)
    c, s = _tails(d, torch.where(outside, inner_point(d, x), x))
    nothing = torch.full_like(c, -math.inf)
    zero = torch.zeros_like(c)
    c = torch.where(below, nothing, torch.where(above, zero, c))
    return c, torch.where(below, zero, torch.where(above, nothing, s))


def log_between(d: Any, a: Tensor, b: Tensor) -> Tensor:
    """log P(a <= X <= b), nats, a <= b."""
    if is_discrete(d):
        a = torch.ceil(a) - 1
    (ca, sa), (cb, sb) = tails(d, a), tails(d, b)
    right = ca > sa
    return _log_difference(torch.where(right, sa, cb), torch.where(right, sb, ca))


@functools.singledispatch
def _tails(d: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Both, at values inside of the support."""
    if is_discrete(d):
        return _counted(d, x)
    try:
        c = d.cdf(x)
    except NotImplementedError:
        raise PpgenError(
            f"{type(d).__name__} has no cdf, which Censored and Truncated need; take a distribution that has one "
            "(Normal, LogNormal, Weibull, Gamma, Logistic, ...), or write the term with pyro.factor"
        ) from None
    tiny, most = torch.finfo(c.dtype).tiny, 1 - torch.finfo(c.dtype).eps / 2
    return (
        torch.where(c > 0, c.clamp_min(tiny).log(), -math.inf),
        torch.where(c < 1, torch.log1p(-c.clamp_max(most)), -math.inf),
    )


def _counted(d: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Of a distribution of counts, mass by mass up to the largest finite x."""
    low, high = int(ends(d)[0]), ends(d)[1]
    most = int(x.max())
    last = most if math.isinf(top := float(torch.as_tensor(high).max())) else int(top)
    if last - low > COUNTS:
        raise PpgenError(f"a bound of {type(d).__name__} is {last}, with as many masses to sum; pass a smaller one")
    k = torch.arange(low, last + 1, dtype=x.dtype, device=x.device).reshape(-1, *[1] * x.dim()).expand(-1, *x.shape)
    within = k <= high
    masses = torch.where(within, d.log_prob(torch.where(within, k, low)), -math.inf).double()
    c = torch.logsumexp(torch.where(k <= x, masses, -math.inf), 0).clamp_max(-torch.finfo(torch.float64).tiny)
    if math.isinf(top):
        return c.to(x), _log1mexp(-c).to(x)
    s = torch.logsumexp(torch.where(k > x, masses, -math.inf), 0).clamp_max(-torch.finfo(torch.float64).tiny)
    return torch.where(c < s, c, _log1mexp(-s)).to(x), torch.where(c < s, _log1mexp(-c), s).to(x)


def _negative_binomial(total: Tensor, logits: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return log_incomplete_beta(total, x + 1, logsigmoid(-logits), logsigmoid(logits))


def _of_log_survival(s: Tensor) -> tuple[Tensor, Tensor]:
    """log F and log(1 - F) from the latter."""
    return _log1mexp(-s), s


def _symmetric(log_cdf: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    return log_cdf(z), log_cdf(-z)


_IN_A_LINE: dict[type, Callable[[Any, Tensor], tuple[Tensor, Tensor]]] = {
    td.Normal: lambda d, x: _symmetric(normal.log_cdf, (x - d.loc) / d.scale),
    dist.Logistic: lambda d, x: _symmetric(logsigmoid, (x - d.loc) / d.scale),
    td.Exponential: lambda d, x: _of_log_survival(-d.rate * x),
    td.Weibull: lambda d, x: _of_log_survival(-((x / d.scale) ** d.concentration)),
    td.Geometric: lambda d, x: _of_log_survival(-(x + 1) * softplus(d.logits)),
    td.Gumbel: lambda d, x: _of_log_survival(-torch.exp(-(x - d.loc) / d.scale))[::-1],
    td.Gamma: lambda d, x: _gamma_tails(d.concentration, d.rate * x),
    td.InverseGamma: lambda d, x: _gamma_tails(d.concentration, d.rate / x)[::-1],
    td.Beta: lambda d, x: log_incomplete_beta(d.concentration1, d.concentration0, x.log(), torch.log1p(-x)),
    td.NegativeBinomial: lambda d, x: _negative_binomial(d.total_count, d.logits, x),
    dist.GammaPoisson: lambda d, x: _negative_binomial(d.concentration, -d.rate.log(), x),
    dist.ExpandedDistribution: lambda d, x: tails(d.base_dist, x),
}
for _kind, _both in _IN_A_LINE.items():
    _tails.register(_kind, _both)


@_tails.register
def _(d: td.Laplace, x: Tensor) -> tuple[Tensor, Tensor]:
    z = (x - d.loc) / d.scale
    far = -z.abs() - LN2  # log of the lighter tail
    near = torch.log1p(-torch.exp(far))
    return torch.where(z < 0, far, near), torch.where(z < 0, near, far)


@_tails.register
def _(d: td.Uniform, x: Tensor) -> tuple[Tensor, Tensor]:
    width = d.high - d.low
    return _logs((x - d.low) / width, (d.high - x) / width)


@_tails.register
def _(d: td.Cauchy, x: Tensor) -> tuple[Tensor, Tensor]:
    z = (x - d.loc) / d.scale
    one = torch.ones_like(z)
    return _logs(torch.atan2(one, -z) / math.pi, torch.atan2(one, z) / math.pi)


@_tails.register
def _(d: td.HalfCauchy, x: Tensor) -> tuple[Tensor, Tensor]:
    z = x / d.scale
    return _logs(torch.atan(z) * (2 / math.pi), torch.atan2(torch.ones_like(z), z) * (2 / math.pi))


@_tails.register
def _(d: td.HalfNormal, x: Tensor) -> tuple[Tensor, Tensor]:
    z = x / d.scale
    c, s = torch.erf(z / math.sqrt(2.0)), LN2 + normal.log_cdf(-z)
    return torch.where(c < 0.5, torch.log(c), _log1mexp(-s)), s


def _gamma_tails(a: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """log P(a, x) and log Q(a, x), with the gradient in both, computed in float64.

    torch has none in a; it is taken by differences of fourth order, to 1e-11. Where one of the two underflows it is the
    first terms of a series, or of a continued fraction, with its own gradient.
    """
    dtype = torch.result_type(a, x)
    a, x = torch.broadcast_tensors(a.double(), x.double())
    fixed = a.detach()
    p, q = torch.special.gammainc(fixed, x), torch.special.gammaincc(fixed, x)
    low, high = p < UNDERFLOW, q < UNDERFLOW
    inside = torch.where(low | high, a, x)
    c, s = _logs(torch.special.gammainc(fixed, inside), torch.special.gammaincc(fixed, inside))
    if torch.is_grad_enabled():
        with torch.no_grad():
            h = 1e-3 * fixed
            p = [_logs(*(f(fixed + k * h, inside) for f in (torch.special.gammainc, torch.special.gammaincc)))
                 for k in (-2, -1, 1, 2)]  # fmt: skip
            slopes = [((m - n) + 8 * (v - u)) / (12 * h) for m, u, v, n in zip(*p, strict=True)]
        c, s = c + slopes[0] * (a - fixed), s + slopes[1] * (a - fixed)
    left, right = _far_left(a, torch.where(low, x, a / 2)), _far_right(a, torch.where(high, x, 2 * a + 1))
    c = torch.where(low, left, torch.where(high, -torch.exp(right), c))
    return c.to(dtype), torch.where(high, right, torch.where(low, -torch.exp(left), s)).to(dtype)


def _far_left(a: Tensor, x: Tensor) -> Tensor:
    """log P(a, x) of x far below a: x^a exp(-x) / Γ(a + 1) (1 + x / (a + 1) + x² / (a + 1) (a + 2) + ...)."""
    term = total = torch.ones_like(x)
    for k in range(1, TERMS + 1):
        term = term * x / (a + k)
        total = total + term
    return a * x.log() - x - torch.lgamma(a + 1) + total.log()


def _far_right(a: Tensor, x: Tensor) -> Tensor:
    """log Q(a, x) of x far above a: x^a exp(-x) / Γ(a) 1 / (x + 1 - a - (1 - a) / (x + 3 - a - ...))."""
    fraction = x + 2 * TERMS + 1 - a
    for k in range(TERMS, 0, -1):
        fraction = x + 2 * k - 1 - a - k * (k - a) / fraction
    return a * x.log() - x - torch.lgamma(a) - fraction.log()


@_tails.register
def _(d: td.Poisson, x: Tensor) -> tuple[Tensor, Tensor]:
    return _gamma_tails(x + 1, d.rate)[::-1]


@_tails.register
def _(d: td.StudentT, x: Tensor) -> tuple[Tensor, Tensor]:
    """F(z) = I_u(ν/2, ν/2), u = (r + z) / 2r, r² = z² + ν, which is smooth at 0."""
    z, half = (x - d.loc) / d.scale, d.df / 2
    r = torch.hypot(z, d.df.sqrt())
    right = z > 0
    outer = r + torch.where(right, z, -z)
    near, far = torch.log(outer / (2 * r)), torch.log(half) - torch.log(r) - torch.log(outer)
    return log_incomplete_beta(half, half, torch.where(right, near, far), torch.where(right, far, near))


@_tails.register
def _(d: td.Binomial, x: Tensor) -> tuple[Tensor, Tensor]:
    left = (d.total_count - x).clamp_min(0.5)  # none are left at the last count only, which is not asked here
    return log_incomplete_beta(left, x + 1, logsigmoid(-d.logits), logsigmoid(d.logits))


@_tails.register
def _(d: dist.ZeroInflatedDistribution, x: Tensor) -> tuple[Tensor, Tensor]:
    c, s = tails(d.base_dist, x)
    gate, s = logsigmoid(d.gate_logits), logsigmoid(-d.gate_logits) + s
    c = torch.logaddexp(gate, logsigmoid(-d.gate_logits) + c)
    return torch.where(c < s, c, _log1mexp(-s)), s


@_tails.register
def _(d: td.TransformedDistribution, x: Tensor) -> tuple[Tensor, Tensor]:
    """Those of the base, for increasing or decreasing transforms."""
    sign: Any = 1
    for t in reversed(d.transforms):
        x, sign = t.inv(x), sign * t.sign
    c, s = tails(d.base_dist, x)
    if isinstance(sign, int):
        return (c, s) if sign > 0 else (s, c)
    return torch.where(sign > 0, c, s), torch.where(sign > 0, s, c)


# -- the inverse -----------------------------------------------------------------------------------


@functools.singledispatch
def quantile(d: Any, c: Tensor, s: Tensor) -> Tensor:
    """x with log F(x) = c and log(1 - F(x)) = s; differentiable in both and in the parameters."""
    try:
        return d.icdf(torch.exp(c))
    except NotImplementedError:
        return _bisected(d, c, s)


def _bisected(d: Any, c: Tensor, s: Tensor) -> Tensor:
    """By halving an interval; x - (log F(x) - c) / (f(x) / F(x)) carries the gradient."""
    left = c < s
    with torch.no_grad():
        x_of, low, high = _scale(d, c)
        for _ in range(BISECTIONS):
            y = (low + high) / 2
            own = torch.where(left, *tails(d, x_of(y)))
            less = torch.where(left, own < c, own > s)
            low, high = torch.where(less, y, low), torch.where(less, high, y)
        x = x_of((low + high) / 2)
    own_c, own_s = tails(d, x)
    own = torch.where(left, own_c, own_s)
    slope = torch.exp(d.log_prob(x) - own) * torch.where(left, 1.0, -1.0)
    return x - (own - torch.where(left, c, s)) / slope.detach()


def _scale(d: Any, like: Tensor) -> tuple[Any, Tensor, Tensor]:
    """A map from an interval onto the support, and the ends of the interval: x, ±exp(y) from an end, or sinh(y)."""
    low, high = ends(d)
    a, b = (torch.as_tensor(e, dtype=like.dtype, device=like.device).expand_as(like) for e in (low, high))
    most = torch.full_like(like, 0.95 * math.log(torch.finfo(like.dtype).max))
    finite = [isinstance(e, Tensor) or math.isfinite(e) for e in (low, high)]
    if all(finite):
        return (lambda y: y), a, b
    if finite[0]:
        return (lambda y: a + torch.exp(y)), -most, most
    return torch.sinh, -most, most


@quantile.register
def _(d: td.Normal, c: Tensor, s: Tensor) -> Tensor:
    left = c < s
    z = normal.quantile(torch.where(left, c, s))
    return d.loc + d.scale * torch.where(left, z, -z)


_INVERSES: dict[type, Callable[[Any, Tensor, Tensor], Tensor]] = {
    td.Exponential: lambda d, c, s: -s / d.rate,
    td.Weibull: lambda d, c, s: d.scale * (-s) ** (1 / d.concentration),
    td.Gumbel: lambda d, c, s: d.loc - d.scale * torch.log(-c),
    dist.Logistic: lambda d, c, s: d.loc + d.scale * (c - s),
    td.HalfCauchy: lambda d, c, s: d.scale / torch.tan(torch.exp(s) * (math.pi / 2)),
    td.HalfNormal: lambda d, c, s: -d.scale * normal.quantile(s - LN2),
    dist.ExpandedDistribution: lambda d, c, s: quantile(d.base_dist, c, s),
}
for _kind, _inverse in _INVERSES.items():
    quantile.register(_kind, _inverse)


@quantile.register
def _(d: td.Laplace, c: Tensor, s: Tensor) -> Tensor:
    left = c < s
    far = torch.where(left, c, s) + LN2
    return d.loc + d.scale * torch.where(left, far, -far)


@quantile.register
def _(d: td.Cauchy, c: Tensor, s: Tensor) -> Tensor:
    left = c < s
    far = 1 / torch.tan(math.pi * torch.exp(torch.where(left, c, s)))
    return d.loc + d.scale * torch.where(left, -far, far)


@quantile.register
def _(d: td.TransformedDistribution, c: Tensor, s: Tensor) -> Tensor:
    sign: Any = 1
    for t in d.transforms:
        sign = sign * t.sign
    if isinstance(sign, int):
        x = quantile(d.base_dist, *((c, s) if sign > 0 else (s, c)))
    else:
        x = quantile(d.base_dist, torch.where(sign > 0, c, s), torch.where(sign > 0, s, c))
    for t in d.transforms:
        x = t(x)
    return x
