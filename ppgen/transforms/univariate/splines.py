r"""Rational-quadratic splines of one variable, monotone, written so that many are computed at once.

With knots (x_k, y_k), k = 0..K, from (-B, -B) to (B, B), derivatives d_k > 0 there (1 at the ends), and in the bin of
x the slope s = (y₁ - y₀) / (x₁ - x₀) and the share ζ = (x - x₀) / (x₁ - x₀):

    z = y₀ + (y₁ - y₀) (s ζ² + d₀ ζ (1 - ζ)) / (s + (d₀ + d₁ - 2 s) ζ (1 - ζ))

The bin is found by K - 1 comparisons, each of which may replace what the one before chose: no sorting, no gathering,
only elementwise operations on the K knots one by one, which a compiler merges into a single loop.

Source: Neural Spline Flows (Durkan et al., 2019, arXiv:1906.04032), section 3.1.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

from ppgen.transforms.change_of_variables import Pair
from ppgen.transforms.univariate import Univariate


class _Bin(NamedTuple):
    """What of the spline holds where the argument lies; each of the argument's shape."""

    x: Tensor  # left end, and width
    width: Tensor
    y: Tensor
    height: Tensor
    d0: Tensor  # derivatives at the ends
    d1: Tensor


class Spline(Univariate):
    """A rational-quadratic spline with K bins on [-bound, bound], the identity outside.

    Args:
        widths, heights: (..., K) without constraints; zeros, with zero derivatives, make the identity.
        derivatives: (..., K - 1), their logarithms before they are bounded.
        bound: B.
        slope: lower bound of the derivatives; bins are no narrower than slope relative to the widest.
    """

    def __init__(self, widths: Tensor, heights: Tensor, derivatives: Tensor, bound: float = 5.0, slope: float = 1e-3):
        super().__init__()
        self.bound, limit = bound, -math.log(slope)
        # |w| < limit / 2, so that neither exp nor the sum of some can overflow
        self.widths = _shares(widths / (1 + (2 / limit) * widths.abs()), bound)
        self.heights = _shares(heights / (1 + (2 / limit) * heights.abs()), bound)
        inner = [torch.exp(d) for d in (derivatives / (1 + derivatives.abs() / limit)).unbind(-1)]
        one = torch.ones_like(self.widths[0])
        self.derivatives = [one, *inner, one]

    def _bin(self, value: Tensor, by: list[Tensor]) -> _Bin:
        """The bin that holds a value, whose knots are cumulative sums of `by`: the widths, or the heights."""
        d = self.derivatives
        x = torch.full_like(self.widths[0], -self.bound)
        found = _Bin(x, self.widths[0], x, self.heights[0], d[0], d[1])
        y, edge = x, x
        for k in range(1, len(self.widths)):
            x, y, edge = x + self.widths[k - 1], y + self.heights[k - 1], edge + by[k - 1]
            right = value > edge
            here = (x, self.widths[k], y, self.heights[k], d[k], d[k + 1])
            found = _Bin(*(torch.where(right, new, old) for new, old in zip(here, found, strict=True)))
        return found

    def call_and_ladj(self, x: Tensor) -> Pair:
        """z and log dz/dx, entry by entry."""
        inside = x.abs() < self.bound
        b = self._bin(x, self.widths)
        share = (torch.where(inside, x, b.x) - b.x) / b.width
        rest = 1 - share
        s, both = b.height / b.width, share * rest
        below = s + (b.d0 + b.d1 - 2 * s) * both
        z = b.y + b.height * (s * share * share + b.d0 * both) / below
        slope = s * s * (2 * s * both + b.d0 * rest * rest + b.d1 * share * share) / (below * below)
        return torch.where(inside, z, x), torch.where(inside, slope, 1.0).log()

    def _inverse(self, y: Tensor) -> Tensor:
        inside = y.abs() < self.bound
        b = self._bin(y, self.heights)
        rise, s = torch.where(inside, y, b.y) - b.y, b.height / b.width
        bend = rise * (b.d0 + b.d1 - 2 * s)
        a_, b_, c_ = b.height * (s - b.d0) + bend, b.height * b.d0 - bend, -s * rise
        # the sum of b and the root is positive, and so is the discriminant but for rounding
        root = (b_ * b_ - 4 * a_ * c_).clamp_min(torch.finfo(y.dtype).tiny).sqrt()
        share = (-2 * c_ / (b_ + root)).clamp(0, 1)
        return torch.where(inside, b.x + share * b.width, y)


def spline_shapes(bins: int) -> tuple[tuple[int], ...]:
    """Of the parameters of one spline: widths, heights and inner derivatives."""
    return (bins,), (bins,), (bins - 1,)


def _shares(logits: Tensor, bound: float) -> list[Tensor]:
    """softmax times 2 B, as a list over the last dimension."""
    parts = [torch.exp(w) for w in logits.unbind(-1)]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    scale = 2 * bound / total
    return [part * scale for part in parts]


class Circular(Univariate):
    """A rational-quadratic spline on the circle [-π, π), after a shift by half a turn: periodic, with slope 1 at ±π.

    Source: Normalizing Flows on Tori and Spheres (Rezende et al., 2020, arXiv:2002.02428), section 2.1.2.
    """

    domain: constraints.Constraint = constraints.interval(-math.pi, math.pi)
    codomain: constraints.Constraint = domain

    def __init__(self, widths: Tensor, heights: Tensor, derivatives: Tensor, slope: float = 1e-3):
        super().__init__()
        self.spline = Spline(widths, heights, derivatives, bound=math.pi, slope=slope)

    @staticmethod
    def _turn(x: Tensor) -> Tensor:
        return torch.remainder(x, 2 * math.pi) - math.pi

    def call_and_ladj(self, x: Tensor) -> Pair:
        return self.spline.call_and_ladj(self._turn(x))

    def _inverse(self, y: Tensor) -> Tensor:
        return self._turn(self.spline._inverse(y))
