"""Inverses of increasing functions that have none in closed form."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ppgen.transforms.change_of_variables import Pair


def solve_increasing(f: Callable[[Tensor], Pair], y: Tensor, reach: float = 1e6) -> Tensor:
    """The x with f(x) = y, for f increasing in each entry of x by itself, and |x| < reach.

    What is halved is the range of asinh(x), so that the relative precision is the same near 0 and far out. Gradients
    are those of the implicit function.

    Args:
        f: gives f(x) and log f'(x).
    """
    with torch.no_grad():
        size = 1 + y.abs()

        def relative(x: Tensor) -> Pair:
            value, log_slope = f(x)
            return (value - y) / size, log_slope.exp() / size

        high = torch.full_like(y, reach)
        x = root(relative, y.clamp(-reach, reach), -high, high, lambda a, b: ((a.asinh() + b.asinh()) / 2).sinh())
    return implicit(f, x, y)


def root(
    f: Callable[[Tensor], Pair],
    x: Tensor,
    low: Tensor,
    high: Tensor,
    middle: Callable[[Tensor, Tensor], Tensor],
    steps: int = 16,
) -> Tensor:
    """The root of an increasing function, entry by entry, by a fixed number of Newton's steps; where they leave the
    bracket or are slow the bracket is halved.

    Args:
        f: gives the value, relative to what it is made of, and the derivative.
        x: where to begin.
        low, high: the bracket.
        middle: of a bracket.
        steps: easy roots are found to rounding in five, the hardest of thousands that were tried in twelve.
    """
    last, rounding = high - low, 16 * torch.finfo(x.dtype).eps
    for _ in range(steps):
        value, slope = f(x)
        low, high = torch.where(value < 0, x, low), torch.where(value < 0, high, x)
        step = -value / slope
        # at the root steps are rounding, which does not fall: halving would lead away from it again
        there = (value.abs() <= rounding) | (step.abs() <= rounding * (1 + x.abs()))
        good = (x + step >= low) & (x + step <= high) & (step.abs() < last / 2)
        new = torch.where(good | there, (x + step).clamp(low, high), middle(low, high))
        x, last = new, (new - x).abs()
    return x


def implicit(f: Callable[[Tensor], Pair], x: Tensor, y: Tensor) -> Tensor:
    """x, near the root of f(x) = y, after two of Newton's steps. Through the second go the gradients by y and by
    whatever f depends on, those of the implicit function.

    Args:
        f: gives f(x) and log f'(x).
    """
    with torch.no_grad():
        x = _newton(x, *f(x), y)
    value, log_slope = f(x)
    return _newton(x, value, log_slope.detach(), y)


def _newton(x: Tensor, value: Tensor, log_slope: Tensor, y: Tensor) -> Tensor:
    return x - (value - y) * (-log_slope).exp()
