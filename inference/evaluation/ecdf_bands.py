r"""Are these numbers uniform on [0, 1]? The empirical distribution function, and a band that all of it lies in.

With N numbers, N F(z) is binomial(N, z). At the points z_i = i / K a pointwise interval of level γ each is simultaneous
of level α where γ is the α-quantile, over uniform samples, of the smallest two-sided binomial p-value on the way: found
by simulation here. With several parameters each is given the level 1 − (1 − α)^(1/P).

Source: Graphical test for discrete uniformity and its applications in goodness-of-fit evaluation and multiple sample
comparison (Säilynoja et al. 2022, arXiv:2103.10522).
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

REPEATS = 4000  # of the simulation, at least
POINTS = 50  # K, at most


class Band(NamedTuple):
    """At the points z the ECDF of each of several samples lies between low and high, all with probability 1 − α."""

    z: np.ndarray
    low: np.ndarray
    high: np.ndarray


def _points(n: int) -> np.ndarray:
    """z_1, ..., z_{K-1}."""
    k = min(n, POINTS)
    return np.arange(1, k) / k


def band(n: int, tests: int = 1, level: float = 0.05) -> Band:
    """The simultaneous band for samples of size n.

    Args:
        tests: P, how many samples are looked at.
        level: α, the probability that some ECDF leaves the band though all samples are uniform.
    """
    each = 1 - (1 - level) ** (1 / tests)
    gamma = float(np.quantile(_null(n, _repeats(each)), each))
    z = _points(n)
    return Band(z, _binomial().ppf(gamma / 2, n, z) / n, _binomial().ppf(1 - gamma / 2, n, z) / n)


def ecdf(u: np.ndarray) -> np.ndarray:
    """F at the points, of numbers (n,)."""
    return np.searchsorted(np.sort(u), _points(len(u)), side="right") / len(u)


def p_value(u: np.ndarray, tests: int = 1) -> float:
    """The probability that a uniform sample leaves some band that this one just leaves, given P looks."""
    n = len(u)
    smallest = _pointwise(np.round(ecdf(u) * n)[None], n)[0]
    null = _null(n, _repeats(0.05 / tests))
    each = (1 + np.sum(null <= smallest * (1 + 1e-9))) / (1 + len(null))
    return float(1 - (1 - min(each, 1.0)) ** tests)


def _binomial() -> Any:
    from scipy.stats import binom  # it takes half a second to import

    return binom


def _repeats(each: float) -> int:
    return int(min(max(REPEATS, 20 / each), 400_000))


def _pointwise(counts: np.ndarray, n: int) -> np.ndarray:
    """The smallest two-sided binomial p-value over the points, (samples, points) -> (samples,)."""
    z = _points(n)
    table = np.arange(n + 1)
    below = _binomial().cdf(table[:, None], n, z)
    above = _binomial().sf(table[:, None] - 1, n, z)
    both = np.minimum(2 * np.minimum(below, above), 1.0)
    return both[counts.astype(int), np.arange(len(z))].min(1)


@cache
def _null(n: int, repeats: int) -> np.ndarray:
    """The statistic of uniform samples of size n."""
    k = len(_points(n)) + 1
    counts = np.random.default_rng(0).multinomial(n, np.full(k, 1 / k), size=repeats).cumsum(1)[:, :-1]
    return _pointwise(counts, n)
