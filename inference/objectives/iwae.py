r"""The importance-weighted bound: tighter than the ELBO for K > 1 draws.

    L_K = E log 1/K Σ_k w_k ≤ log p_θ(x),   w_k = p_θ(x, z_k) / q_φ(z_k | x)

with one weight a row where log p(x, z) − log q(z | x) is a sum over rows, and one for all rows otherwise.

Source: Importance Weighted Autoencoders (Burda et al. 2016, arXiv:1509.00519).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ppgen.inference.bounds import Setting, log_mean_exp, of_weights
from ppgen.terms import Term

SUMMARY = "importance-weighted bound with as many weights as particles"
TERMS = "drawn"
PATHWISE = True


def objective(terms: Sequence[Term], s: Setting) -> tuple[Tensor, Tensor]:
    """The bound, and the same with KL-weighted terms."""
    return of_weights(log_mean_exp, terms, s)
