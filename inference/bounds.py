r"""What objectives share: sums of terms, importance weights, and the gradient of an expectation over draws.

Gradients are pathwise where a latent has a reparametrization. Where it has none, the score function

    ∇ log q(z_i | ·) (cost_i − b_i)

with cost_i the terms that z_i can influence, summed over the plates that z_i does not stand in, and b_i the mean cost
of the other draws (so at least two are made): unbiased, and without state.

Sources: Automated Variational Inference in Probabilistic Programming (Wingate & Weber 2013, arXiv:1301.1299); Buy 4
REINFORCE Samples, Get a Baseline for Free! (Kool et al. 2019).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ppgen.errors import PpgenError
from ppgen.structure import Structure
from ppgen.terms import Term, added, sum_to


class Setting(NamedTuple):
    """What terms are weighed by.

    Attributes:
        row_plates: the plates over the rows.
        by_row: whether log p(x, z) − log q(z | x) is a sum over rows.
        n_over_b: N/B, where the terms are of a batch of B out of N rows.
        kl_weight: of the latent terms in the target (KL warm-up); the bound does not have it.
        weights: of the rows, by which all of their terms are multiplied (`poutine.scale`): w_i times the bound of a
            row is no function of its log weights times w_i.
    """

    row_plates: frozenset[str]
    by_row: bool
    n_over_b: float = 1.0
    kl_weight: float | Tensor = 1.0
    weights: float | Tensor = 1.0

    @classmethod
    def of(cls, structure: Structure, n_over_b: float = 1.0, kl_weight: float | Tensor = 1.0) -> Setting:
        return cls(structure.row_plates, structure.by_row, n_over_b, kl_weight)

    def weighed(self, terms: Sequence[Term], structure: Structure) -> Setting:
        """With the weights that these terms, of many draws, were multiplied by."""
        scale = next((t.scale for t in terms if t.site == structure.weighed), 1.0)
        return self._replace(weights=scale[0].flatten() if isinstance(scale, Tensor) else scale)


def _part(t: Term, s: Setting, *, target: bool) -> Tensor:
    """A term's part of the ELBO of each draw, (K, its dims), as it is or as it is trained on."""
    value = t.log_prob if t.target is None or not target else t.target
    value = times(t.sign * t.weight(s.row_plates, s.n_over_b), value)
    return times(s.kl_weight, value) if target and t.latent else value


def times(weight: float | Tensor, value: Tensor) -> Tensor:
    """Their product, without an operation where the weight is the number 1."""
    return value if not isinstance(weight, Tensor) and weight == 1.0 else weight * value


def log_weights(terms: Sequence[Term], s: Setting, *, target: bool = False) -> Tensor:
    """log w_k = log p(x, z_k) − log q(z_k | x): (K, rows) without N/B where it is a sum over rows, else (K,); without
    the weights of the rows."""
    keep = s.row_plates if s.by_row else frozenset()
    s = s._replace(n_over_b=1.0) if s.by_row else s
    log_w = added([sum_to(t, _part(t, s, target=target), keep, lead=1) for t in terms])
    if isinstance(s.weights, float) and s.weights == 1.0:
        return log_w
    w = torch.as_tensor(s.weights)
    return log_w / torch.where(w == 0, 1.0, w)  # a row that does not count has log w = 0


def log_mean_exp(log_w: Tensor) -> Tensor:
    """log 1/K Σ_k w_k, over the first dimension."""
    return torch.logsumexp(log_w, 0) - math.log(len(log_w))


def of_weights(formula: Callable[[Tensor], Tensor], terms: Sequence[Term], s: Setting) -> tuple[Tensor, Tensor]:
    """Target and bound of an objective that is a function of the log weights: log w -> a value, or one a row."""
    target, bound = (over_rows(formula(log_weights(terms, s, target=t)), s) for t in (True, False))
    return target, bound


class _Scored(NamedTuple):
    """What objectives by score functions are made of, each as `log_weights`.

    Attributes:
        log_p: log p(x, z_k) as it is trained on.
        log_w: log p(x, z_k) − log q(z_k | x) as it is trained on.
        log_q: log q(z_k | x) as it is drawn from, whose gradient is the score: a KL weight is no part of it.
    """

    log_p: Tensor
    log_w: Tensor
    log_q: Tensor


def scored(terms: Sequence[Term], s: Setting) -> _Scored:
    """The sums of such terms."""
    guide = [t for t in terms if t.role == "guide"]
    log_p = log_weights([t for t in terms if t.role != "guide"], s, target=True)
    if not guide:
        return _Scored(log_p, log_p, torch.zeros_like(log_p))
    log_q = -log_weights(guide, s._replace(kl_weight=1.0), target=True)
    return _Scored(log_p, log_p - times(s.kl_weight, log_q), log_q)


def with_gradient_of(value: Tensor, surrogate: Tensor) -> Tensor:
    """A value whose gradient is the surrogate's."""
    return value.detach() + surrogate - surrogate.detach()


def require_between(objective: str, option: str, value: float, low: float, high: float) -> None:
    """
    Raises:
        PpgenError: an option of an objective outside of [low, high).
    """
    if not low <= value < high:
        raise PpgenError(f"{objective}({option}={value}): expected a number from {low} to below {high}")


def over_rows(values: Tensor, s: Setting) -> Tensor:
    """The sum over all N rows of one value a row, times its weight; or the one value for all."""
    return times(s.weights, values).sum() * (s.n_over_b if s.by_row else 1.0)


def score_function(terms: Sequence[Term], s: Setting) -> list[Tensor]:
    """Of each latent without a reparametrization log q · (cost − baseline), summed over draws, for its gradient."""
    found: list[Tensor] = []
    for t in terms:
        if t.order < 0 or t.pathwise or t.role == "prior":
            continue
        plates = tuple(d for d in t.dims if not d.startswith(f"{t.site}_dim_"))
        influenced = [other for other in terms if _influences(t.order, other)]
        if not influenced:  # its own KL in closed form is all that there is
            continue
        cost = added([_aligned(other, _part(other, s, target=True).detach(), plates) for other in influenced])
        k = len(t.log_density)
        if k > 1 and cost.shape[:1] == (k,):
            cost = cost - (cost.sum(0, keepdim=True) - cost) / (k - 1)
        found.append((_aligned(t, t.log_density, plates) * cost).sum())
    return found


def _influences(i: int, other: Term) -> bool:
    """Whether a term can depend on the draw of the i-th latent of the guide."""
    if other.role == "guide":
        return other.order >= i
    return other.role != "kl" or other.order < 0 or other.order > i


def _aligned(t: Term, value: Tensor, plates: tuple[str, ...]) -> Tensor:
    """(K, dims of the term) -> (K, plates), summed over what is no such plate, 1 where the term lacks one."""
    others = [1 + i for i, d in enumerate(t.dims) if d not in plates]
    value = value.sum(others) if others else value
    own = [d for d in t.dims if d in plates]
    sizes = dict(zip(own, value.shape[1:], strict=True))
    value = value.permute(0, *(1 + own.index(d) for d in plates if d in own))
    return value.reshape(len(value), *(sizes.get(d, 1) for d in plates))
