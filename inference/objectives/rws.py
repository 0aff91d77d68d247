r"""Reweighted wake-sleep, its wake phases: the model along log p(x), the guide towards the posterior from without.

    Σ_k w̃_k ∇ [log p_θ(x, z_k) + log q_φ(z_k | x)],   w̃_k = w_k / Σ_j w_j

θ follows the importance-weighted estimate of ∇ log p(x), φ that of −∇ KL(p(z | x) ‖ q), which covers the posterior
where the ELBO's KL(q ‖ p) seeks a mode. Both have a bias that falls as 1/K. Discrete latents need no reparametrization.

Source: Reweighted Wake-Sleep (Bornschein & Bengio 2015, arXiv:1406.2751); Revisiting Reweighted Wake-Sleep (Le et al.
2019, arXiv:1805.10469).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ppgen.inference.bounds import Setting, log_mean_exp, of_weights, over_rows, scored, with_gradient_of
from ppgen.terms import Term

SUMMARY = "reweighted wake-sleep: KL(p || q) for the guide, importance weights for the model"
TERMS = "drawn"
PATHWISE = False
GRADIENT = "score"


def objective(terms: Sequence[Term], s: Setting) -> tuple[Tensor, Tensor]:
    """The importance-weighted bound, with the gradient above."""
    log_p, log_w, log_q = scored(terms, s)
    weights = log_w.detach().softmax(0)
    _, bound = of_weights(log_mean_exp, terms, s)
    return with_gradient_of(bound, over_rows((weights * (log_p + log_q)).sum(0), s)), bound
