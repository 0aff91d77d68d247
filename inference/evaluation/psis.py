r"""Pareto-smoothed importance sampling: a guide's draws, corrected by their weights where these can be trusted.

    w_s = p(x, z_s) / q(z_s | x),  z_s ~ q        the largest √-few of them replaced by quantiles of a generalised
                                                  Pareto law fitted to them, whose shape is k-hat

k-hat < 0.7: the weights' law is tame enough for averages at practical numbers of draws, and z_s resampled by w_s are
draws from the posterior. With S draws the threshold is min(0.7, 1 − 1 / log10 S). Its standard error is (1 + k) / √M,
M the weights of the tail. Where nine tenths of the draws are effective, weights are nearly equal: S / ESS − 1 = χ² is
0.11 at most, a single weight is below √(0.11 / S) of their sum, and the shape of so flat a tail says nothing: it is
left out. Where fewer than a hundred are, a corrected mean is off by 0.1 sd by chance alone, and is not given.

Source: Pareto smoothed importance sampling (Vehtari et al. 2024, arXiv:1507.02646).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ppgen.errors import PpgenError
from ppgen.structure import Structure

GOOD_K = 0.7
SAME = 1e-3  # nats between the log weights of a row, which is what float32 leaves of equal ones
LEAST_TAIL = 5  # weights, as many as ArviZ fits a law to
LEAST_DRAWS = 25  # for a tail of five, which a Pareto law is fitted to
FARTHEST = 700.0  # nats from the largest weight to the tail's smallest, beyond which it is 0 in float64
PROPOSALS = 4  # draws of the guide for each corrected one
EVEN = 0.9  # effective share of the draws from which on their weights are nearly equal
LEAST_ESS = 100

Arrays = dict[str, np.ndarray]


def pareto_k(log_w: np.ndarray) -> np.ndarray:
    """Pareto k-hat of the weights, (K, n) -> (n,): -inf where all are equal, the guide being exact."""
    return smoothed(log_w)[1]


def smoothed(log_w: np.ndarray, r_eff: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Smoothed log weights that sum to one, (K, n), and k-hat, (n,); r_eff: the effective share of dependent draws.

    k-hat is 0 of weights that are few values, of which raw ones are given: ESS says how uneven these are. It is nan of
    fewer than 25 weights, to whose tail no law can be fitted, and infinite where the tail spans more than float64 can
    hold, so that one weight has all the mass. ArviZ's `psislw` is made for leave-one-out and takes negative log
    weights; it takes a tail of which nothing is left for a light one.
    """
    from arviz_stats.base import array_stats  # type: ignore[attr-defined]

    out, k = np.empty(log_w.shape), np.empty(log_w.shape[1])
    length = _tail_length(len(log_w), r_eff)
    for i, column in enumerate(log_w.T.astype(np.float64)):
        ordered = np.sort(column)
        if ordered[-1] - ordered[0] < SAME:
            out[:, i], k[i] = -math.log(len(column)), -np.inf
        elif len(column) < LEAST_DRAWS or ordered[-1] - ordered[-length] > FARTHEST:
            out[:, i], k[i] = column - np.logaddexp.reduce(column), math.nan if len(column) < LEAST_DRAWS else math.inf
        elif (few := _above_ties(np.exp(ordered - ordered[-1]), length)) < LEAST_TAIL:
            out[:, i], k[i] = column - np.logaddexp.reduce(column), 0.0
        else:
            share = r_eff if few == length else 9 * len(column) / (few + 0.5) ** 2  # of which the tail is so many
            out[:, i], k[i] = array_stats.psislw(-column, r_eff=share)
    return out, k


def _above_ties(ordered: np.ndarray, length: int) -> int:
    """How many of the largest weights, which are sorted, a law can be fitted to: `length`, or less than five where they
    are few values, as of discrete latents, whose weights have no tail. A Pareto law counts from the largest weight
    below, where a quarter may not lie."""
    while length >= LEAST_TAIL and ordered[-length - 1 + int(length / 4 + 0.5)] <= ordered[-length - 1]:
        length = int((ordered > ordered[-length - 1]).sum())
    return 0 if ordered[-1] == ordered[-max(length, 1)] else length


def effective(log_w: np.ndarray) -> np.ndarray:
    """(Σ w)² / Σ w² of log weights, (K, n) -> (n,)."""
    log_w = log_w.astype(np.float64)
    return np.exp(2 * np.logaddexp.reduce(log_w, 0) - np.logaddexp.reduce(2 * log_w, 0))


def tail(khat: np.ndarray, ess: np.ndarray, draws: int) -> np.ndarray:
    """k-hat, and minus infinity where the weights are nearly equal and it says nothing.

    >>> tail(np.array([0.9, 2.9]), np.array([60.0, 15_311.0]), 16_000)
    array([ 0.9, -inf])
    """
    return np.where((ess >= EVEN * draws) & ~np.isnan(khat), -np.inf, khat)


def of_draws(log_w: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Smoothed log weights of draws, (K,), that sum to one; their k-hat, as of `tail`; and how many are effective."""
    smooth, k = smoothed(log_w[:, None])
    ess = effective(smooth)
    return smooth[:, 0], float(tail(k, ess, len(log_w))[0]), float(ess[0])


def khat_se(khat: float, draws: int) -> float:
    """The standard error of k-hat, (1 + k) / √M, of the shape of a generalised Pareto law by M draws."""
    return (1 + max(khat, 0.0)) / _tail_length(draws) ** 0.5


def _tail_length(draws: int, r_eff: float = 1.0) -> int:
    """M, how many weights the law is fitted to."""
    return draws // 5 if draws * r_eff <= 225 else int(3 * (draws / r_eff) ** 0.5)


def threshold(draws: int) -> float:
    """The largest k-hat at which that many weighted draws can be trusted: min(0.7, 1 − 1 / log10 S).

    >>> threshold(1000), threshold(100_000), threshold(5)
    (0.6666666666666667, 0.7, 0.0)
    """
    return min(GOOD_K, 1 - 1 / math.log10(max(draws, 10)))


def resampled(log_w: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of draws in proportion to their weights, in random order: systematic resampling, (draws,).

    Args:
        log_w: (K,), normalised.
    """
    steps = (np.arange(draws) + rng.random()) / draws
    index = np.searchsorted(np.cumsum(np.exp(log_w)), steps).clip(max=len(log_w) - 1)
    return rng.permutation(index)


def corrected(found: dict[str, Arrays], structure: Structure, draws: int, seed: int | None) -> dict[str, Arrays]:
    """The groups of `posterior`, resampled by their weights; each row by its own where every latent is local.

    Args:
        found: by group and name, (1, K, ...), with sample_stats log_p and log_q.
        draws: how many are wanted.
    """
    if "sample_stats" not in found:
        raise PpgenError(
            "latents are summed out, and the guide's draws have no weights to be corrected by; leave it out"
        )
    _require_no_point(found["posterior"], structure.latents)
    log_w = found["sample_stats"]["log_p"][0] - found["sample_stats"]["log_q"][0]
    per_row = log_w.ndim == 2
    log_w = log_w if per_row else log_w[:, None]
    weights, k = smoothed(log_w)
    ess = effective(weights)
    k, most = tail(k, ess, len(log_w)), threshold(len(log_w))
    bad = ~(k < most)
    if bad.any():
        what = f"{bad.sum()} of {len(k)} rows have a k-hat above {most:.2f}, the largest" if per_row else "k-hat is"
        worst, few = float(k[bad].max()), "" if per_row else " (fewer, as diagnose has, may not have met the largest)"
        error = f" ± {khat_se(worst, len(log_w)):.2f}" if math.isfinite(worst) else ""
        raise PpgenError(
            f"the guide's draws cannot be corrected by their weights: {what} {worst:.2f}{error} of "
            f"{len(log_w)} weights{few}, and they can be trusted below {most:.2f} only; take a richer guide "
            "(--guide flow), or sample the posterior (ppgen mcmc)"
        )
    if ess.min() < LEAST_ESS:
        raise PpgenError(
            f"the guide's draws cannot be corrected by their weights: {ess.min():.0f} of {len(log_w)} are effective, "
            f"and {LEAST_ESS} are needed; take more draws, a richer guide (--guide flow), or sample the posterior "
            "(ppgen mcmc)"
        )
    rng = np.random.default_rng(seed)
    index = np.stack([resampled(w, draws, rng) for w in weights.T], -1)  # (draws, rows or 1)
    out: dict[str, Arrays] = {}
    for group, arrays in found.items():
        if group in ("prior", "prior_predictive"):
            out[group] = {n: v[:, :draws] for n, v in arrays.items()}
        else:
            out[group] = {
                n: _picked(v, index, _row_axis(n, v, structure) if per_row else None) for n, v in arrays.items()
            }
    return out


def _require_no_point(drawn: Arrays, latents: Sequence[str]) -> None:
    """Refuses a latent all draws of which are the same."""
    for name in latents:
        value = drawn.get(name)
        if value is not None and value.dtype.kind == "f" and value.size and (value == value[:, :1]).all():
            raise PpgenError(
                f"the guide gives the latent {name!r} as a point, which no weights make draws of the posterior; fit "
                "with a guide that has a spread (--guide AutoNormal, or AutoLaplaceApproximation)"
            )


def _row_axis(name: str, value: np.ndarray, structure: Structure) -> int:
    """Which axis of (1, K, plates, event) runs over the rows."""
    if name in ("log_p", "log_q"):
        return 2
    dims = structure[name].dims
    return 2 + next(i for i, d in enumerate(dims) if d in structure.row_plates)


def _picked(value: np.ndarray, index: np.ndarray, axis: int | None) -> np.ndarray:
    if axis is None:
        return value[:, index[:, 0]]
    rows_last = np.moveaxis(value, axis, -1)  # (1, K, ..., rows)
    shape = (1, len(index), *(1,) * (rows_last.ndim - 3), index.shape[1])
    return np.moveaxis(np.take_along_axis(rows_last, index.reshape(shape), 1), -1, axis)


def moments(value: np.ndarray, log_w: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sd over the draws of each entry of (1, K, ...), weighted by log weights, (K,) or (K, entries)."""
    x = value[0].reshape(value.shape[1], -1).astype(np.float64)
    log_w = np.zeros(len(x)) if log_w is None else log_w
    w = np.exp(log_w - np.logaddexp.reduce(log_w)).reshape(len(x), -1)
    mean = (w * x).sum(0)
    return mean, np.sqrt((w * (x - mean) ** 2).sum(0).clip(min=0))
