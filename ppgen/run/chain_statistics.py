r"""R-hat and effective sample sizes of chains, of many entries at once: x is (entries, chains, draws), float64.

    R̂² = (B / W + n - 1) / n                 B / n: variance of the chains' means, W: mean of their variances
    ESS = m n / τ,   τ = -1 + 2 Σ_k P_k        P_k = ρ_2k + ρ_2k+1, up to where they end to be positive, never rising

Chains are split in halves. The ranks of all draws together, as normal scores Φ^-1((r - 3/8) / (S + 1/4)), make both
independent of the scale; R-hat is the larger of that of the scores and that of the scores of distances from the median.

Sources: Rank-normalization, folding, and localization (Vehtari et al. 2021, arXiv:1903.08008); nested R-hat: Assessing
the convergence of Markov chain Monte Carlo when running many short chains (Margossian et al. 2024, arXiv:2110.13017).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

__all__ = ["TAILS", "distances", "ess_bulk", "ess_mean", "ess_tail", "mcse_mean", "mcse_sd", "of_entries", "rhat"]

TAILS = (0.05, 0.95)
CHUNK = 2**21  # values that are worked on together
EQUAL = 1e-15  # the width of a set of values that are all the same


def of_entries(statistic: Callable[[Tensor], Tensor], draws: np.ndarray) -> np.ndarray:
    """A function of this file of each entry of (chains, draws, ...): an array of the shape of the entries; NaN where a
    draw is NaN, or of fewer than four draws.
    """
    shape = draws.shape[2:]
    flat = torch.as_tensor(draws).reshape(*draws.shape[:2], math.prod(shape)).movedim(-1, 0)
    if draws.shape[1] < 4 or not len(flat):
        return np.full(shape, np.nan)
    parts = [part.double().contiguous() for part in flat.split(max(CHUNK // max(draws[..., :1].size, 1), 1))]
    known = [torch.where(part.isnan().any((1, 2)), torch.nan, statistic(part)) for part in parts]
    return torch.cat(known).numpy().reshape(shape)


def rhat(x: Tensor, groups: int | None = None) -> Tensor:
    """R-hat of each entry; NaN of one chain.

    Args:
        groups: nested R-hat, of so many groups of chains: chain c is in group c mod `groups`.
    """
    if x.shape[1] < 2:
        return x.new_full((len(x),), torch.nan)
    halves = _split(x)
    median = torch.as_tensor(np.median(halves.flatten(1).numpy(), -1))
    folded = (halves - median[:, None, None]).abs()
    bulk, tails = (_rhat(z) if groups is None else _nested(z, groups) for z in map(_scores, (halves, folded)))
    return torch.where(tails > bulk, tails, bulk)


def _rhat(x: Tensor) -> Tensor:
    n = x.shape[-1]
    return ((n * x.mean(-1).var(-1) / x.var(-1).mean(-1) + n - 1) / n).sqrt()


def _nested(x: Tensor, groups: int) -> Tensor:
    """Of halves of chains, the second ones behind all of the first ones."""
    half = x.shape[1] // 2
    sets = torch.stack([x[:, :half], x[:, half:]], 1).unflatten(2, (-1, groups))  # entries, half, chain, group, draws
    mean = sets.mean(-1)
    within = sets.var(-1).mean((1, 2)) + mean.flatten(1, 2).var(1)
    return (1 + mean.mean((1, 2)).var(-1) / within.mean(-1)).sqrt()


def ess_bulk(x: Tensor) -> Tensor:
    return _ess(_scores(_split(x)))


def ess_mean(x: Tensor) -> Tensor:
    return _ess(_split(x))


def mcse_mean(x: Tensor) -> Tensor:
    """The Monte Carlo error of the mean."""
    return x.flatten(1).std(-1) / ess_mean(x).sqrt()


def mcse_sd(x: Tensor) -> Tensor:
    """That of the sd, by the variance of (x - E x)²."""
    square = (x - x.mean((1, 2), keepdim=True)).square().flatten(1)
    variance = square.mean(-1)
    return ((square.square().mean(-1) - variance**2) / ess_mean(x) / variance / 4).sqrt()


def ess_tail(x: Tensor, tails: tuple[float, float] = TAILS) -> Tensor:
    """The smaller one of those of the events that a draw is below either quantile."""
    below = torch.as_tensor(np.quantile(x.flatten(1).numpy(), tails, axis=-1))
    return torch.stack([_ess(_split((x <= q[:, None, None]).double())) for q in below]).amin(0)


def distances(x: np.ndarray) -> np.ndarray:
    """How far the mean of each chain is from that of most, in sds of the draws of one: (chains, draws, figures) ->
    (chains, figures); of both it is the median chain's that is meant.
    """
    mean = x.mean(1)
    return np.abs(mean - np.median(mean, 0)) / np.median(x.std(1), 0).clip(1e-12)


def _split(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat([x[..., :half], x[..., -half:]], 1)


def _scores(x: Tensor) -> Tensor:
    """Normal scores of the ranks among all draws of an entry; equal draws have the mean of their ranks."""
    flat = x.flatten(1)
    size = flat.shape[1]
    order = torch.as_tensor(np.argsort(flat.numpy(), -1))  # twice as fast as torch's
    values = flat.gather(1, order)
    rank = torch.arange(1, size + 1)
    if bool((new := values[:, 1:] != values[:, :-1]).all()):
        rank = rank[None].to(x.dtype)
    else:
        edge = torch.ones_like(new[:, :1])
        first = torch.where(torch.cat([edge, new], 1), rank, 0).cummax(1).values
        last = torch.where(torch.cat([new, edge], 1), rank, size).flip(1).cummin(1).values.flip(1)
        rank = (first + last).to(x.dtype) / 2
    scores = torch.special.ndtri((rank - 0.375) / (size + 0.25)).expand_as(flat)
    return torch.empty_like(flat).scatter_(1, order, scores).view_as(x)


def _ess(x: Tensor) -> Tensor:
    """Of each entry, by the autocovariances of its chains about their own means."""
    chains, n = x.shape[1:]
    mean = x.mean(-1)
    length = 1 << (2 * n - 1).bit_length()
    power = torch.fft.rfft(x - mean[..., None], length)
    covariance = torch.fft.irfft(power.real.square() + power.imag.square(), length)[..., :n].mean(1) / n
    within = covariance[:, 0] * n / (n - 1)
    total = covariance[:, 0] + (mean.var(-1) if chains > 1 else 0.0)
    rho = 1 - (within[:, None] - covariance) / total[:, None]
    rho[:, 0] = 1
    last = max(-(-(n - 2) // 2) - 1, 0)  # the last pair that is looked at
    even = rho[:, 0 : 2 * last + 1 : 2]
    pairs = even + rho[:, 1 : 2 * last + 2 : 2]
    end = (pairs > 0).cumprod(1).sum(1, keepdim=True).clamp(max=last)
    before = torch.arange(last + 1) < end
    at_end, even_end = pairs.gather(1, end)[:, 0], even.gather(1, end)[:, 0]
    tau = 2 * torch.where(before, pairs.cummin(1).values, 0.0).sum(1) - 1
    tau = tau + torch.where((even_end > 0) | (at_end >= 0), even_end, 0.0)
    size = chains * n
    ess = size / tau.clamp(min=1 / math.log10(size))
    ess = torch.where(at_end.isnan(), torch.nan, ess)
    return torch.where(x.amax((1, 2)) - x.amin((1, 2)) < EQUAL, float(size), ess)
