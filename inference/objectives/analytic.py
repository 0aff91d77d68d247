r"""The ELBO with KL(q(z_i | ·), p(z_i | ·)) in closed form wherever it exists, drawn elsewhere.

    ELBO = E_q[log p_θ(x | z)] − KL(q_φ(z | x), p_θ(z)) ≤ log p_θ(x)

Source: Auto-Encoding Variational Bayes (Kingma & Welling 2014, arXiv:1312.6114).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ppgen.inference.bounds import Setting, part, score_function
from ppgen.terms import Term

SUMMARY = "ELBO, KL in closed form wherever it exists"
TERMS = "closed_form"
PATHWISE = False


def objective(terms: Sequence[Term], s: Setting) -> tuple[Tensor, Tensor]:
    """The mean over K draws of the sum of all terms."""
    k = len(terms[0].log_prob)
    bound, target = torch.zeros(()), torch.zeros(())
    for t in terms:
        bound = bound + part(t, s, target=False).sum()
        target = target + part(t, s, target=True).sum()
    return (target + score_function(terms, s)) / k, bound / k
