"""The normal's density, cumulative distribution and quantile, in logarithms and far out in the tail."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def log_density(x: Tensor) -> Tensor:
    """log φ(x)."""
    return -x.square() / 2 - 0.5 * math.log(2 * math.pi)


def log_cdf(x: Tensor) -> Tensor:
    """log Φ(x), by operations that run on many numbers at once, as those of torch's log_ndtr do not.

    By erfc as far as the square of that does not underflow, by which the second derivative divides, and beyond by
    Mills' ratio.
    """
    end, left = 26.0 if x.dtype == torch.float64 else 9.0, x < 0
    tail = torch.special.erfc(torch.where(left, -x.clamp_min(-end), x) * 0.5**0.5) / 2
    near = torch.where(left, torch.where(left, tail, 0.5).log(), torch.log1p(-torch.where(left, 0.5, tail)))
    t = -x.clamp_max(-end)
    return torch.where(x < -end, log_density(t) + mills(t).log(), near)


def mills(t: Tensor) -> Tensor:
    """Φ(-t) / φ(t) for t of 9 or more, = 1/t (1 - 1/t² + 3/t⁴ - 15/t⁶ + ...)."""
    w = 1 / t.square()
    return (1 - w * (1 - 3 * w * (1 - 5 * w * (1 - 7 * w * (1 - 9 * w))))) / t


def erfc_end(x: Tensor) -> float:
    """How far below 0 erfc does not underflow."""
    return 35.0 if x.dtype == torch.float64 else 12.0


def hazard(x: Tensor, log_p: Tensor) -> Tensor:
    """φ(x) / Φ(x), from log Φ(x); beyond -20 by its expansion -x + 1/-x - 2/-x³."""
    far = x < -20
    t = torch.where(far, -x, 20.0)
    near = torch.where(far, 0.0, log_density(x) - log_p).exp()
    return torch.where(far, t + 1 / t - 2 / t**3, near)


def quantile(log_p: Tensor) -> Tensor:
    """The y <= 0 with log Φ(y) = log_p, for log_p <= log 1/2: Newton's steps on log Φ, which is concave.

    They begin at the rational approximation 26.2.23 of Abramowitz and Stegun's Handbook of Mathematical Functions
    (1964), whose error is below 4.5e-4.
    """
    t = (-2 * log_p).sqrt()
    y = (2.515517 + t * (0.802853 + t * 0.010328)) / (1 + t * (1.432788 + t * (0.189269 + t * 0.001308))) - t
    for _ in range(3):
        log_p_of_y = log_cdf(y)
        y = y + (log_p - log_p_of_y) / hazard(y, log_p_of_y)
    return y
