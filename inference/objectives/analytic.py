r"""The ELBO with KL(q(z_i | ·), p(z_i | ·)) in closed form wherever it exists, drawn elsewhere.

    ELBO = E_q[log p_θ(x | z)] − KL(q_φ(z | x), p_θ(z)) ≤ log p_θ(x)

Source: Auto-Encoding Variational Bayes (Kingma & Welling 2014, arXiv:1312.6114).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ppgen.inference.bounds import Setting, score_function, times
from ppgen.terms import Term, added

SUMMARY = "ELBO, KL in closed form wherever it exists"
TERMS = "closed_form"
PATHWISE = False


def objective(terms: Sequence[Term], s: Setting) -> tuple[Tensor, Tensor]:
    """The mean over K draws of the sum of all terms."""
    found, trained = [], []
    for t in terms:
        weight = t.sign * t.weight(s.row_plates, s.n_over_b)
        found.append(times(weight, t.log_prob.sum()))
        own = found[-1] if t.target is None else times(weight, t.target.sum())
        trained.append(times(s.kl_weight, own) if t.latent else own)
    k = len(terms[0].log_prob)
    return times(1 / k, added(trained + score_function(terms, s))), times(1 / k, added(found))
