r"""The guide by the χ² divergence from the posterior, which it covers; the model along the importance-weighted bound.

    CUBO_n = 1/n log E_q[wⁿ] ≥ log p(x),   −∇_φ CUBO_n = (n − 1)/n Σ_k v_k ∇_φ log q(z_k),   v_k ∝ w_kⁿ

An upper bound is no objective for θ, nor a figure that rises as a fit gets better: what is reported is the importance-
weighted lower bound. `ppgen evidence` has an upper bound. Discrete latents need no reparametrization.

Source: Variational Inference via χ Upper Bound Minimization (Dieng, Tran, Ranganath, Paisley, Blei 2017,
arXiv:1611.00328).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ppgen.inference.bounds import (
    Setting,
    log_mean_exp,
    of_weights,
    over_rows,
    require_between,
    scored,
    with_gradient_of,
)
from ppgen.terms import Term

SUMMARY = "the guide by the chi-square upper bound, the model by importance weights: cubo(n=2)"
TERMS = "drawn"
PATHWISE = False
GRADIENT = "score"


def objective(terms: Sequence[Term], s: Setting, *, n: float = 2.0) -> tuple[Tensor, Tensor]:
    """The importance-weighted bound, with the gradients above.

    Raises:
        PpgenError: a power that gives no upper bound.
    """
    require_between("cubo", "n", n, 1.0 + 1e-6, 100.0)
    log_p, log_w, log_q = scored(terms, s)
    log_w = log_w.detach()
    _, bound = of_weights(log_mean_exp, terms, s)
    surrogate = (log_w.softmax(0) * log_p + (n - 1) / n * (n * log_w).softmax(0) * log_q).sum(0)
    return with_gradient_of(bound, over_rows(surrogate, s)), bound
