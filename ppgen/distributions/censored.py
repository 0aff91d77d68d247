r"""Likelihoods of values seen only in part: censored (known to lie beyond a bound), truncated (never seen there).

    Censored(d, a, b)    p(x) = f(x) for a < x < b,   P(X <= a) at x = a,   P(X >= b) at x = b
    Truncated(d, a, b)   p(x) = f(x) / P(a <= X <= b) for a <= x <= b,      0 elsewhere

for any one-dimensional d with a cdf, continuous or of counts; tails are in logarithms (`ppgen.distributions.tails`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Normal, biject_to, constraints, transform_to

from ppgen.distributions.expanding import Expanding
from ppgen.distributions.tails import contains, ends, inner_point, is_discrete, log_between, quantile, tails
from ppgen.errors import PpgenError

ROUNDS = 1000  # of draws of counts, until all lie between the bounds

Bound = Tensor | float | None


class _CountsOrBounds(type(constraints.integer_interval(0, 1))):  # type: ignore[misc]
    """Whole numbers between two bounds, and the bounds, at which censored counts are recorded."""

    def check(self, value: Tensor) -> Tensor:
        return super().check(value) | (value == self.lower_bound) | (value == self.upper_bound)


class _LessThanEq(type(constraints.less_than(0.0))):  # type: ignore[misc]
    """Up to a bound, which is reached: torch has `greater_than_eq` alone."""

    def check(self, value: Tensor) -> Tensor:
        return value <= self.upper_bound


for _to in (biject_to, transform_to):
    _to.register(_LessThanEq, lambda c: biject_to(constraints.less_than(c.upper_bound)))


class _Bounded(Expanding):
    """A distribution and two bounds; each subclass says what happens at them."""

    expanded = {"base": 0, "lower": 0, "upper": 0}
    base: Any
    lower: Tensor
    upper: Tensor
    rounds = False  # whether bounds of counts are moved inwards, to whole numbers

    def __init__(self, d: Any, lower: Bound = None, upper: Bound = None, validate_args: bool | None = None):
        if d.event_shape:
            raise PpgenError(
                f"{type(self).__name__} got {type(d).__name__} with values of shape {tuple(d.event_shape)}; expected a "
                "distribution of single numbers: put .to_event() outside"
            )
        self.bounded = lower is not None, upper is not None
        like = _like(d)
        low, high = (
            torch.as_tensor(infinite if b is None else b, dtype=like.dtype, device=like.device)
            for b, infinite in ((lower, -math.inf), (upper, math.inf))
        )
        if self.rounds and is_discrete(d):
            low, high = torch.ceil(low), torch.floor(high)
        shape = np.broadcast_shapes(d.batch_shape, low.shape, high.shape)
        self.base, self.lower, self.upper = d.expand(shape), low.expand(shape), high.expand(shape)
        super().__init__(shape, validate_args=False)
        by_default = torch.distributions.Distribution._validate_args
        self._validate_args = by_default if validate_args is None else validate_args
        if self._validate_args and bool((self.lower >= self.upper).any()):
            raise PpgenError(
                f"{type(self).__name__} got a lower bound that is not below the upper one; pass lower < upper"
            )

    @constraints.dependent_property(event_dim=0)
    def support(self) -> constraints.Constraint:
        """Between the bounds and the ends of d's own support."""
        low, high = ends(self.base)
        if is_discrete(self.base):
            return _CountsOrBounds(self.lower.clamp_min(low), self.upper.clamp_max(high))
        some = self.bounded[0] or low != -math.inf, self.bounded[1] or high != math.inf
        low, high = torch.maximum(self.lower, _as(low, self.lower)), torch.minimum(self.upper, _as(high, self.upper))
        if all(some):
            return constraints.interval(low, high)
        if some[0]:
            return constraints.greater_than_eq(low)
        return _LessThanEq(high) if some[1] else constraints.real

    def _within(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Where the value lies within both bounds and d's support, and the value, another one standing elsewhere."""
        inside = (value >= self.lower) & (value <= self.upper) & contains(self.base, value)
        return inside, torch.where(inside, value, inner_point(self.base, _like(self.base)))

    def log_between(self) -> Tensor:
        """log P(lower <= X <= upper)."""
        if not all(self.bounded):
            if self.bounded[1]:
                return tails(self.base, self.upper)[0]
            return tails(self.base, torch.ceil(self.lower) - 1 if is_discrete(self.base) else self.lower)[1]
        return log_between(self.base, self.lower, self.upper)


def _as(value: Any, like: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=like.dtype, device=like.device)


def _like(d: Any) -> Tensor:
    """A tensor of the dtype that a distribution computes in."""
    while hasattr(d, "base_dist"):
        d = d.base_dist
    found = (v for v in vars(d).values() if isinstance(v, Tensor) and v.is_floating_point())
    return next(found, torch.zeros(()))


class Censored(_Bounded):
    """Values of d that are recorded as the bound where they lie beyond it: durations at the end of a study, readings
    below the limit of a device.

    log_prob(x) is log f(x) between the bounds, log P(X <= lower) at the lower one, log P(X >= upper) at the upper one,
    and -inf beyond. Counts may have bounds between them: 3 is not beyond 3.5, at which 4 and more are recorded. A row
    that is not censored has an infinite bound, or one beyond its value.

    Args:
        d: Normal, LogNormal, Exponential, Weibull, Gamma, Logistic, Poisson, ...: one number, with a cdf.
        lower, upper: bounds, which broadcast with d's batch; None and infinite ones are none.

    Draws are d's, moved to the bounds. They are not reparametrized: the mass at a bound has no density.

    >>> from pyro.distributions import Exponential
    >>> d = Censored(Exponential(0.5), upper=torch.tensor([3.0, 3.0]))
    >>> d.log_prob(torch.tensor([1.0, 3.0]))  # log 0.5 - 0.5, and log P(X >= 3) = -1.5
    tensor([-1.1931, -1.5000])
    """

    has_rsample = False

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        inside, x = self._within(value)
        found = torch.where(inside, self.base.log_prob(x), -math.inf)
        low, high = (torch.isfinite(b) & (value == b) for b in (self.lower, self.upper))
        if self.bounded[1]:
            above = tails(self.base, torch.ceil(self.upper) - 1 if is_discrete(self.base) else self.upper)[1]
            found = torch.where(high, above, found)
        return torch.where(low, tails(self.base, self.lower)[0], found) if self.bounded[0] else found

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        drawn = self.base.sample(torch.Size(sample_shape))
        drawn = drawn if drawn.is_floating_point() else drawn.to(self.lower)  # a bound may be no whole number
        return torch.minimum(torch.maximum(drawn, self.lower.to(drawn)), self.upper.to(drawn))

    def cdf(self, value: Tensor) -> Tensor:
        """P(X <= value)."""
        inner = tails(self.base, value)[0].exp()
        return torch.where(value < self.lower, 0.0, torch.where(value >= self.upper, 1.0, inner))

    @property
    def mean(self) -> Tensor:
        """Of a censored Normal."""
        below, between, above, first, _ = self._moments()
        return below + between * first + above

    @property
    def variance(self) -> Tensor:
        """Of a censored Normal."""
        loc = self.mean
        below, between, above, first, second = self._moments(1)
        low, high = (torch.where(torch.isinf(b), 0.0, b) for b in (self.lower, self.upper))
        return below * (low - loc) ** 2 + above * (high - loc) ** 2 + between * (second + (first - loc) ** 2)

    def _moments(self, power: int = 0) -> tuple[Tensor, ...]:
        """P(X <= lower) and P(X >= upper), times the bound where power is 0; P(between); mean and variance there."""
        inner = Truncated(self.base, self.lower, self.upper)
        first, second = inner.mean, inner.variance
        low, high = tails(self.base, self.lower)[0].exp(), tails(self.base, self.upper)[1].exp()
        if power == 0:
            low, high = (torch.where(torch.isinf(b), 0.0, b * p) for b, p in ((self.lower, low), (self.upper, high)))
        return low, self.log_between().exp(), high, first, second


class Truncated(_Bounded):
    """Values of d given that they lie between the bounds, both included: what lies beyond was never recorded.

    log_prob(x) = log f(x) - log P(lower <= X <= upper), also where that probability is far out in a tail.

    Args:
        d: Normal, LogNormal, Exponential, Weibull, Gamma, Logistic, Poisson, ...: one number, with a cdf.
        lower, upper: bounds, which broadcast with d's batch; None and infinite ones are none.

    Draws are by the inverse of the cdf (found by bisection where d has none), reparametrized; of counts by rejection.

    >>> from pyro.distributions import Normal
    >>> d = Truncated(Normal(0.0, 1.0), lower=8.0)
    >>> d.mean, d.log_prob(torch.tensor(8.5))
    (tensor(8.1214), tensor(-2.0305))
    """

    rounds = True

    @property
    def has_rsample(self) -> bool:
        return not is_discrete(self.base)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        inside, x = self._within(value)
        return torch.where(inside, self.base.log_prob(x) - self.log_between(), -math.inf)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        with torch.no_grad():
            return self._rejected(sample_shape) if is_discrete(self.base) else self.rsample(sample_shape)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        u = torch.rand(shape, dtype=self.lower.dtype, device=self.lower.device)
        u = u.clamp(torch.finfo(u.dtype).tiny, 1 - torch.finfo(u.dtype).eps / 2)
        (ca, sa), (cb, sb) = tails(self.base, self.lower), tails(self.base, self.upper)
        # F and 1 - F at the draw, each a mixture of the two ends', both precise
        logs = torch.log(u), torch.log1p(-u)
        c, s = (_log_mix(*logs, x, y) for x, y in ((ca, cb), (sa, sb)))
        x = quantile(self.base, c, s)
        return torch.minimum(torch.maximum(x, self.lower), self.upper)

    def _rejected(self, sample_shape: Sequence[int]) -> Tensor:
        shape = torch.Size(sample_shape)
        drawn = self.base.sample(shape)
        for _ in range(ROUNDS):
            outside = (drawn < self.lower) | (drawn > self.upper)
            if not bool(outside.any()):
                return drawn
            drawn = torch.where(outside, self.base.sample(shape), drawn)
        raise PpgenError(
            f"Truncated {type(self.base).__name__}: {int(outside.sum())} of {drawn.numel()} draws lay beyond the "
            f"bounds in each of {ROUNDS} rounds; widen the bounds, or observe the site"
        )

    def cdf(self, value: Tensor) -> Tensor:
        """P(X <= value)."""
        x = torch.minimum(torch.maximum(value, self.lower), self.upper)
        inner = torch.exp(log_between(self.base, self.lower, x) - self.log_between())
        return torch.where(value < self.lower, 0.0, torch.where(value >= self.upper, 1.0, inner))

    @property
    def mean(self) -> Tensor:
        """Of a truncated Normal: μ + σ (φ(α) - φ(β)) / P, α and β the standardized bounds."""
        base, (a, ra), (b, rb) = self._standardized()
        return base.loc + base.scale * (ra - rb)

    @property
    def variance(self) -> Tensor:
        """Of a truncated Normal. In a tail it is a difference of nearly equal numbers: of relative error α² eps."""
        base, (a, ra), (b, rb) = self._standardized()
        left, right = (torch.where(torch.isinf(x), 0.0, x * r) for x, r in ((a, ra), (b, rb)))
        return base.scale**2 * (1 + left - right - (ra - rb) ** 2).clamp_min(0)

    def _standardized(self) -> Any:
        """The Normal, and each standardized bound with φ(bound) / P."""
        if not isinstance(self.base, Normal):
            raise NotImplementedError(f"Truncated {type(self.base).__name__} has no mean and variance in closed form")
        standard, p = Normal(torch.zeros_like(self.lower), 1.0, validate_args=False), self.log_between()
        bounds = [(b - self.base.loc) / self.base.scale for b in (self.lower, self.upper)]
        return self.base, *((b, torch.exp(standard.log_prob(b) - p)) for b in bounds)


def _log_mix(log_u: Tensor, log_v: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """log(u exp(x) + v exp(y)), where not both are -inf; no NaN in the gradient where one is."""
    floor = -1e30 if x.dtype != torch.float16 else -6e4
    return torch.logaddexp(log_u + x.clamp_min(floor), log_v + y.clamp_min(floor))
