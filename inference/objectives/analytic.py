r"""The ELBO with KL(q(z_i | ·), p(z_i | ·)) in closed form wherever it exists, drawn elsewhere.

    ELBO = E_q[log p_θ(x | z)] − KL(q_φ(z | x), p_θ(z)) ≤ log p_θ(x)

Sources: Auto-Encoding Variational Bayes (Kingma & Welling 2014, arXiv:1312.6114); β-VAE (Higgins et al. 2017); for free
bits Improved Variational Inference with Inverse Autoregressive Flow (Kingma et al. 2016, arXiv:1606.04934).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ppgen.inference.bounds import Setting, require_between, score_function, times
from ppgen.terms import Term, added

SUMMARY = "ELBO, KL in closed form wherever it exists: analytic(beta=1, free_bits=0)"
TERMS = "closed_form"
PATHWISE = False
MEAN = True
REWEIGHTED = {"beta": 1.0, "free_bits": 0.0}


def objective(terms: Sequence[Term], s: Setting, *, beta: float = 1.0, free_bits: float = 0.0) -> tuple[Tensor, Tensor]:
    """The mean over K draws of the sum of all terms.

    Args:
        beta: weight of the latent terms in what is trained on: above 1 a looser bound, below it **no** bound.
        free_bits: nats a row that each KL in closed form costs at least in what is trained on, which is then a looser
            bound. The bound that is reported is the ELBO, whatever is trained on. Rows that are masked have
            none, those with a weight so many times as many.

    Raises:
        PpgenError: β or the free nats below 0.
    """
    require_between("analytic", "beta", beta, 0.0, 1e30)
    require_between("analytic", "free_bits", free_bits, 0.0, 1e30)
    s = s._replace(kl_weight=beta * s.kl_weight) if beta != 1.0 else s
    k = len(terms[0].log_prob)
    found, trained = [], []
    for t in terms:
        weight = t.sign * t.weight(s.row_plates, s.n_over_b)
        found.append(times(weight, t.log_prob.sum()))
        own = found[-1] if t.target is None else times(weight, t.target.sum())
        if free_bits and t.role == "kl":
            own = own.clamp(max=-free_bits * weight * _rows(t, s))
        trained.append(times(s.kl_weight, own) if t.latent else own)
    return times(1 / k, added(trained + score_function(terms, s))), times(1 / k, added(found))


def _rows(t: Term, s: Setting) -> Tensor:
    """How many rows a KL of K draws is of, over all draws: masked ones are none, and others count as they weigh."""
    counts = torch.ones_like(t.log_prob) if t.counts is None else t.counts
    within = [1 + i for i, d in enumerate(t.dims) if d not in s.row_plates]
    return (counts.amax(within) if within else counts).sum()
