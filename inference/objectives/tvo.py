r"""The thermodynamic bound: a left Riemann sum of log p(x) = ∫₀¹ E_{π_β}[log w] dβ,  π_β ∝ q^(1−β) p^β.

    Σ_j (β_{j+1} − β_j) E_{π_βj}[log w],   β_0 = 0 < ... < β_J = 1, evenly spaced in log β from β_1 on

E_{π_β} is taken by the K draws of q with weights in proportion to w^β. One interval is the ELBO. The gradient is the
covariance form, E[∇ log w] + Cov(log w, ∇ log π_β), with draws that are held: no reparametrization is needed.

Source: The Thermodynamic Variational Objective (Masrani et al. 2019, arXiv:1907.00031).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from torch import Tensor

from ppgen.errors import PpgenError
from ppgen.inference.bounds import Setting, of_weights, over_rows, require_between, scored, with_gradient_of
from ppgen.terms import Term, added

SUMMARY = "thermodynamic bound, of a few temperatures: tvo(intervals=5, first=0.03)"
TERMS = "drawn"
PATHWISE = False
GRADIENT = "score"


def objective(terms: Sequence[Term], s: Setting, *, intervals: int = 5, first: float = 0.03) -> tuple[Tensor, Tensor]:
    """The bound, with the gradient above of the same with KL-weighted terms.

    Args:
        intervals: J.
        first: β_1, where there is more than one interval.

    Raises:
        PpgenError: fewer intervals than one, or β_1 outside of (0, 1).
    """
    require_between("tvo", "first", first, 1e-9, 1.0)
    if intervals < 1:
        raise PpgenError(f"tvo(intervals={intervals}): expected one at least")
    betas = [0.0, *(first ** (1 - j / (intervals - 1)) for j in range(intervals))] if intervals > 1 else [0.0, 1.0]
    _, log_w, log_q = scored(terms, s)
    surrogate = []
    for beta, width, weights in _temperatures(betas, log_w):
        away = (weights * (log_w - (weights * log_w).sum(0))).detach()
        surrogate.append(width * (weights * log_w + away * (log_q + beta * log_w)).sum(0))
    target, bound = of_weights(lambda log_w: _bound(betas, log_w), terms, s)
    return with_gradient_of(target, over_rows(added(surrogate), s)), bound


def _temperatures(betas: Sequence[float], log_w: Tensor) -> Iterator[tuple[float, float, Tensor]]:
    """Each β but the last, the width of the interval above it, and the weights of π_β."""
    for beta, above in itertools.pairwise(betas):
        yield beta, above - beta, (beta * log_w).detach().softmax(0)


def _bound(betas: Sequence[float], log_w: Tensor) -> Tensor:
    return added([width * (weights * log_w).sum(0) for _, width, weights in _temperatures(betas, log_w)])
