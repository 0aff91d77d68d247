r"""The ELBO with every term drawn (Pyro's Trace_ELBO).

ELBO = E_q[log p_θ(x, z) − log q_φ(z | x)] ≤ log p_θ(x)
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ppgen.inference.bounds import Setting
from ppgen.inference.objectives import analytic
from ppgen.terms import Term

SUMMARY = "ELBO, every term drawn (Pyro's Trace_ELBO)"
TERMS = "drawn"
PATHWISE = False
MEAN = True
REWEIGHTED = {"beta": 1.0}


def objective(terms: Sequence[Term], s: Setting, *, beta: float = 1.0) -> tuple[Tensor, Tensor]:
    """The mean over K draws of the sum of all terms.

    Args:
        beta: as for `analytic`.
    """
    return analytic.objective(terms, s, beta=beta)
