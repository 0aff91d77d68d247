r"""Vectors of which parts are missing: the distribution of what is seen, and that of the rest given it.

Of independent entries both are the entries' own. Of a normal, with S = diag(1 where an entry is seen, else 0),
T = 1 - S and precision Λ = Σ⁻¹,

    seen       N(μ, S Σ S + T / 2π), at μ where an entry is missing: there its density is 1
    missing    N(μ - Λ_T⁻¹ T Λ S (x - μ), Λ_T⁻¹),  Λ_T = T Λ T + S
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Independent, LowRankMultivariateNormal, MultivariateNormal


class Parted(NamedTuple):
    """seen, missing: distributions of whole vectors, of which the seen and the missing entries count.
    filled: the vectors, with numbers of the support in their gaps. entries: which are seen."""

    seen: Any
    missing: Any
    filled: Tensor
    entries: Tensor


def parted(fn: Any, value: Tensor, filled: Tensor) -> Parted | None:
    """None of a distribution whose parts have none that is known here.

    Args:
        filled: the value, with numbers of the support in its gaps.
    """
    entries = ~value.isnan()
    base: Any = fn
    while isinstance(base, Independent):
        base = base.base_dist
    if not base.event_shape:
        return Parted(base.mask(entries).to_event(fn.event_dim), fn, filled, entries)
    if base is fn and isinstance(fn, MultivariateNormal | LowRankMultivariateNormal):
        return _of_normal(fn, value, entries)
    return None


def _of_normal(fn: Any, value: Tensor, entries: Tensor) -> Parted:
    loc, covariance, precision = fn.loc.expand(value.shape), fn.covariance_matrix, fn.precision_matrix
    covariance, precision, s = covariance.to(loc), precision.to(loc), entries.to(loc)
    here, gone = torch.diag_embed(s), torch.diag_embed(1 - s)
    filled = torch.where(entries, value.nan_to_num().to(loc), loc)
    seen = dist.MultivariateNormal(loc, here @ covariance @ here + gone / (2 * math.pi))
    pull = gone @ precision @ here @ (filled - loc)[..., None]
    precision = gone @ precision @ gone + here
    middle = loc - torch.linalg.solve(precision, pull)[..., 0]
    return Parted(seen, dist.MultivariateNormal(middle, precision_matrix=precision), filled, entries)
