r"""The ELBO with KL(q(z_i | ·), p(z_i | ·)) in closed form wherever it exists, drawn elsewhere.

    ELBO = E_q[log p_θ(x | z)] − KL(q_φ(z | x), p_θ(z)) ≤ log p_θ(x)

Sources: Auto-Encoding Variational Bayes (Kingma & Welling 2014, arXiv:1312.6114); β-VAE (Higgins et al. 2017); for free
bits Improved Variational Inference with Inverse Autoregressive Flow (Kingma et al. 2016, arXiv:1606.04934).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ppgen.inference.bounds import Setting, score_function, times
from ppgen.terms import Term, added

SUMMARY = "ELBO, KL in closed form wherever it exists: analytic(beta=1, free_bits=0)"
TERMS = "closed_form"
PATHWISE = False
MEAN = True


def objective(terms: Sequence[Term], s: Setting, *, beta: float = 1.0, free_bits: float = 0.0) -> tuple[Tensor, Tensor]:
    """The mean over K draws of the sum of all terms.

    Args:
        beta: weight of the latent terms in what is trained on; other than 1 that is **no** bound.
        free_bits: nats a row that each KL in closed form may cost for nothing in what is trained on, which is then
            **no** bound. The bound that is reported is the ELBO, whatever is trained on.
    """
    s = s._replace(kl_weight=beta * s.kl_weight) if beta != 1.0 else s
    k = len(terms[0].log_prob)
    found, trained = [], []
    for t in terms:
        weight = t.sign * t.weight(s.row_plates, s.n_over_b)
        found.append(times(weight, t.log_prob.sum()))
        own = found[-1] if t.target is None else times(weight, t.target.sum())
        if free_bits and t.role == "kl":
            rows = math.prod(n for d, n in zip(t.dims, t.log_prob.shape[1:], strict=True) if d in s.row_plates)
            own = own.clamp(max=-free_bits * k * rows * weight)
        trained.append(times(s.kl_weight, own) if t.latent else own)
    return times(1 / k, added(trained + score_function(terms, s))), times(1 / k, added(found))
