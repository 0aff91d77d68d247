"""Distributions that Pyro lacks: improper priors, likelihoods of censored, truncated and quantised data (pixels).

A quantised value lies on a grid of L equally spaced levels, v_k = low + k (high - low) / (L - 1):
8-bit grey values k/255 have low = 0, high = 1, L = 256. The data stay such floats, and `log_prob`
is the log of a probability mass, so that nats per value over log 2 are bits/dim as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.utils import broadcast_all
from torch.nn.functional import logsigmoid

from ppgen.distributions.censored import Censored, Truncated
from ppgen.distributions.expanding import Expanding
from ppgen.errors import PpgenError

__all__ = ["Censored", "DiscretizedLogistic", "Flat", "GridCategorical", "Truncated", "grid"]


class Flat(Expanding):
    """The improper prior with density 1 on a support: log p(x) = 0.

    Its draws mean nothing: there is no such distribution. They are feasible points to start an
    autoguide or a sampler from, the support's transform of Uniform(-2, 2) draws as in Stan, so do
    not read prior samples off a program that has such a site.

    Args:
        support: any constraint with a bijection from the reals (`torch.distributions.biject_to`):
            real, positive, interval, simplex, corr_cholesky, Pyro's ordered_vector, ...
        shape: event shape of one value, at least as long as the support's event dimensions: the
            value is one event. A plate or `expand` gives batch dimensions.
        dtype, device: of the draws; those of the support's bounds, or torch's defaults, where None.

    Raises:
        PpgenError: where the support has no such bijection, or the shape is none of its values'.

    >>> Flat(constraints.positive, (3,)).sample().shape
    torch.Size([3])
    >>> Flat(constraints.simplex, (4,)).expand([5]).log_prob(torch.full((5, 4), 0.25))
    tensor([0., 0., 0., 0., 0.])
    """

    def __init__(
        self,
        support: constraints.Constraint = constraints.real,
        shape: Sequence[int] = (),
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        validate_args: bool | None = None,
    ):
        shape = torch.Size(shape)
        if not isinstance(support, constraints.Constraint):
            raise PpgenError(
                f"Flat got the support {support!r}, expected a constraint; "
                "pass one such as constraints.positive or constraints.interval(0., 1.)"
            )
        try:
            self._transform = biject_to(support)
        except NotImplementedError:
            raise PpgenError(
                f"Flat got the support {support}, which has no bijection from the reals; use a "
                "continuous support, or a proper prior such as Categorical for a discrete one"
            ) from None
        # Pyro's positive_ordered_vector says event_dim = 0, and checks vectors; its transform knows
        own = max(support.event_dim, self._transform.codomain.event_dim)
        if len(shape) < own:
            raise PpgenError(
                f"Flat({support}) got shape={tuple(shape)}, but a value of that support has {own} "
                f"dimension(s); pass its shape, as in shape={(3,) * own}"
            )
        try:
            self._free_shape = torch.Size(self._transform.inverse_shape(shape))
        except ValueError as error:
            raise PpgenError(
                f"Flat({support}) got shape={tuple(shape)}, which no value of that support has "
                f"({str(error).rstrip('.')}); pass the shape of one value"
            ) from error
        extra = len(shape) - own
        self._support = constraints.independent(support, extra) if extra else support
        bounds = [v for v in vars(support).values() if isinstance(v, Tensor)]
        self._dtype = dtype or (bounds[0].dtype if bounds else None)
        self._device = device or (bounds[0].device if bounds else None)
        super().__init__(torch.Size(), shape, validate_args=validate_args)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        return self._support

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Feasible points, of shape sample_shape + batch_shape + event_shape; see the class."""
        shape = torch.Size(sample_shape) + self.batch_shape + self._free_shape
        with torch.no_grad():
            free = torch.rand(shape, dtype=self._dtype, device=self._device)
            return self._transform(4 * free - 2)

    def log_prob(self, value: Tensor) -> Tensor:
        """Zeros of the value's batch shape; outside the support a ValueError under validation."""
        if self._validate_args:
            self._validate_sample(value)
        own = value.shape[: value.dim() - len(self.event_shape)]
        return value.new_zeros(np.broadcast_shapes(own, self.batch_shape))


class grid(constraints.Constraint):
    """The L = `levels` equally spaced values from `low` to `high`, up to 1% of their distance.

    >>> grid(levels=17).check(torch.tensor([0.0, 0.5, 1.0, 0.53, 1.0625]))
    tensor([ True,  True,  True, False, False])
    """

    is_discrete = True
    event_dim = 0

    def __init__(self, low: float = 0.0, high: float = 1.0, levels: int = 256):
        self.low, self.high, self.levels = float(low), float(high), int(levels)
        super().__init__()

    @property
    def step(self) -> float:
        return (self.high - self.low) / (self.levels - 1)

    def check(self, value: Tensor) -> Tensor:
        k = self.position(value)
        on = (k - k.round()).abs() < 0.01  # float32 rounding of 16-bit values stays below
        return on & (k > -0.5) & (k < self.levels - 0.5)

    def position(self, value: Tensor) -> Tensor:
        """(value - low) / step: the level k, where the value lies on the grid."""
        return (value - self.low) / self.step

    def value(self, k: Tensor) -> Tensor:
        """The value of level k (a floating tensor): exactly k/255 for the default grid."""
        return self.low + k / (self.levels - 1) * (self.high - self.low)

    def __repr__(self) -> str:
        return f"grid(low={self.low:g}, high={self.high:g}, levels={self.levels})"


class _OnGrid(Expanding):
    """What the distributions on a grid share; a subclass gives `grid`, and p(k) in index units."""

    has_enumerate_support = True

    def _set_grid(self, low: float, high: float, levels: int) -> None:
        if int(levels) != levels or levels < 2 or not low < high:
            raise PpgenError(
                f"{type(self).__name__} got low={low}, high={high}, levels={levels}; "
                "pass low < high and a whole number of levels of at least 2"
            )
        self.grid = grid(low, high, levels)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        return self.grid

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All levels, of shape (L, *batch_shape), or (L, 1, ...) unexpanded."""
        k = torch.arange(self.grid.levels, dtype=self._param.dtype, device=self._param.device)
        values = self.grid.value(k).reshape((-1,) + (1,) * len(self.batch_shape))
        return values.expand((-1, *self.batch_shape)) if expand else values


class _LocScaleOnGrid(_OnGrid):
    """Those with a location and a scale."""

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}
    expanded = {"loc": 0, "scale": 0}

    def __init__(
        self,
        loc: Tensor | float,
        scale: Tensor | float,
        low: float = 0.0,
        high: float = 1.0,
        levels: int = 256,
        validate_args: bool | None = None,
    ):
        self.loc, self.scale = broadcast_all(loc, scale)
        self._set_grid(low, high, levels)
        super().__init__(self.loc.shape, validate_args=validate_args)

    @property
    def _param(self) -> Tensor:
        return self.loc


class DiscretizedLogistic(_LocScaleOnGrid):
    """A logistic variable rounded to a grid of levels, the two end levels taking the tails.

    With F the logistic distribution function and step the distance of neighbouring levels,

        p(v) = F((v + step/2 - loc) / scale) - F((v - step/2 - loc) / scale),

    with F = 0 below the first level and F = 1 above the last. `log_prob` is computed without a
    difference of nearly equal numbers, as log σ(a) + log σ(-b) + log(1 - exp(b - a)) for the upper
    and lower edge a and b, so that its value and gradient are finite wherever the arguments are.

    Args:
        loc, scale: of the logistic, in the units of the values; they broadcast. A scale below
            1e-12 steps counts as 1e-12 steps.
        low, high: first and last level.
        levels: their number L.

    References: PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood and
    Other Modifications (Salimans et al., 2017, arXiv:1701.05517), section 2.1.

    >>> d = DiscretizedLogistic(torch.tensor(0.4), torch.tensor(0.1), levels=17)
    >>> float(d.log_prob(d.enumerate_support()).logsumexp(0).abs() < 1e-6)
    1.0
    """

    def _in_steps(self) -> tuple[Tensor, Tensor]:
        """Location, and 1 / scale, in index units: edges that neighbours share are then equal."""
        precision = self.grid.step / self.scale.clamp_min(1e-12 * self.grid.step)
        return self.grid.position(self.loc), precision.clamp_min(torch.finfo(self.scale.dtype).tiny)

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(value), in nats, of the broadcast shape of value and batch."""
        if self._validate_args:
            self._validate_sample(value)
        loc, precision = self._in_steps()
        k = self.grid.position(value).round()
        first, last = k < 0.5, k > self.grid.levels - 1.5
        below = logsigmoid((k + 0.5 - loc) * precision)  # log F(upper edge)
        above = logsigmoid((loc - k + 0.5) * precision)  # log(1 - F(lower edge))
        # log(1 - exp(-precision)): to the last bit at both ends, as torch.log1p(-exp) is not
        within = torch.log(-torch.expm1(-precision))
        zero = torch.zeros_like(below)
        return (
            torch.where(last, zero, below) + torch.where(first, zero, above) + torch.where(first | last, zero, within)
        )

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        loc, precision = self._in_steps()
        with torch.no_grad():
            u = torch.rand(shape, dtype=loc.dtype, device=loc.device)
            u = u.clamp(torch.finfo(u.dtype).tiny, 1 - torch.finfo(u.dtype).eps)
            k = (loc + (u.log() - torch.log1p(-u)) / precision).round()
            return self.grid.value(k.clamp(0, self.grid.levels - 1))

    def _exceeds(self, k: int) -> Tensor:
        loc, precision = self._in_steps()
        return torch.sigmoid((loc - k + 0.5) * precision)  # P(level >= k)

    @property
    def mean(self) -> Tensor:
        # E k = Σ_{k>=1} P(level >= k), summed one by one: L times the memory otherwise
        total = torch.zeros_like(self.loc)
        for k in range(1, self.grid.levels):
            total = total + self._exceeds(k)
        return self.grid.value(total)

    @property
    def variance(self) -> Tensor:
        first = second = torch.zeros_like(self.loc)
        for k in range(1, self.grid.levels):
            p = self._exceeds(k)
            first, second = first + p, second + (2 * k - 1) * p
        return (second - first**2).clamp_min(0) * self.grid.step**2


class GridCategorical(_OnGrid):
    """A categorical over the levels of a grid: p(v_k) = softmax(logits)_k.

    Unlike `pyro.distributions.Categorical` its values are the levels themselves, so data such as
    pixels k/255 stay the floats they are.

    Args:
        logits: shape (*batch, L); not normalised.
        low, high: first and last level.

    >>> GridCategorical(torch.tensor([0.0, 0.0, math.log(2.0)])).mean
    tensor(0.6250)
    """

    arg_constraints = {"logits": constraints.independent(constraints.real, 1)}
    expanded = {"logits": 1}

    def __init__(
        self,
        logits: Tensor,
        low: float = 0.0,
        high: float = 1.0,
        validate_args: bool | None = None,
    ):
        self._set_grid(low, high, logits.shape[-1] if logits.dim() else 0)
        self.logits = logits - logits.logsumexp(-1, keepdim=True)
        super().__init__(logits.shape[:-1], validate_args=validate_args)

    @property
    def _param(self) -> Tensor:
        return self.logits

    @property
    def probs(self) -> Tensor:
        """p(v_k), of shape (*batch, L)."""
        return self.logits.exp()

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(value), in nats, of the broadcast shape of value and batch."""
        if self._validate_args:
            self._validate_sample(value)
        k = self.grid.position(value).round().long().clamp(0, self.grid.levels - 1)
        shape = np.broadcast_shapes(k.shape, self.batch_shape)
        logits = self.logits.expand((*shape, self.grid.levels))
        return logits.gather(-1, k.expand(shape)[..., None])[..., 0]

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            n = math.prod(sample_shape)
            k = torch.multinomial(self.probs.reshape(-1, self.grid.levels), n, replacement=True)
            return self.grid.value(k.T.reshape(shape).to(self.logits.dtype))

    def _moment(self, power: int) -> Tensor:
        k = torch.arange(self.grid.levels, dtype=self.logits.dtype, device=self.logits.device)
        return self.probs @ k**power

    @property
    def mean(self) -> Tensor:
        return self.grid.value(self._moment(1))

    @property
    def variance(self) -> Tensor:
        return (self._moment(2) - self._moment(1) ** 2).clamp_min(0) * self.grid.step**2
