r"""Rényi's bound of order α = 1/2, between the ELBO (α → 1) and log p(x) (α → 0).

    L_α = 1/(1 − α) log E_q w^(1 − α) ≤ log p_θ(x),   estimated by its mean over K draws, which biases it downwards

Source: Rényi Divergence Variational Inference (Li & Turner 2016, arXiv:1602.02311).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ppgen.inference.bounds import Setting, log_mean_exp, log_weights, over_rows
from ppgen.terms import Term

SUMMARY = "Rényi's bound of order 1/2"
TERMS = "drawn"
PATHWISE = True
ALPHA = 0.5


def objective(terms: Sequence[Term], s: Setting) -> tuple[Tensor, Tensor]:
    """The bound, and the same with KL-weighted terms."""

    def value(target: bool) -> Tensor:
        return over_rows(log_mean_exp((1 - ALPHA) * log_weights(terms, s, target=target)) / (1 - ALPHA), s)

    return value(True), value(False)
