r"""Rényi's bound of order α, between the ELBO (α → 1) and log p(x) (α → 0).

    L_α = 1/(1 − α) log E_q w^(1 − α) ≤ log p_θ(x),   estimated by its mean over K draws, which biases it downwards

Source: Rényi Divergence Variational Inference (Li & Turner 2016, arXiv:1602.02311).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ppgen.inference.bounds import Setting, log_mean_exp, of_weights, require_between
from ppgen.terms import Term

SUMMARY = "Rényi's bound, between the ELBO and log p(x): renyi(alpha=0.5)"
TERMS = "drawn"
PATHWISE = True


def objective(terms: Sequence[Term], s: Setting, *, alpha: float = 0.5) -> tuple[Tensor, Tensor]:
    """The bound, and the same with KL-weighted terms.

    Raises:
        PpgenError: α outside of [0, 1).
    """
    require_between("renyi", "alpha", alpha, 0.0, 1.0)
    return of_weights(lambda log_w: log_mean_exp((1 - alpha) * log_w) / (1 - alpha), terms, s)
