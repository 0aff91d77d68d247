r"""Between the ELBO and the importance-weighted bound.

    β E log w + (1 − β) E log 1/K Σ_k w_k

Source: Tighter Variational Bounds are Not Necessarily Better (Rainforth et al. 2018, arXiv:1802.04537).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ppgen.inference.bounds import Setting, log_mean_exp, of_weights, require_between
from ppgen.terms import Term

SUMMARY = "between the ELBO and the importance-weighted bound: ciwae(beta=0.5)"
TERMS = "drawn"
PATHWISE = True


def objective(terms: Sequence[Term], s: Setting, *, beta: float = 0.5) -> tuple[Tensor, Tensor]:
    """The bound, and the same with KL-weighted terms.

    Raises:
        PpgenError: β outside of [0, 1).
    """
    require_between("ciwae", "beta", beta, 0.0, 1.0)
    return of_weights(lambda log_w: beta * log_w.mean(0) + (1 - beta) * log_mean_exp(log_w), terms, s)
