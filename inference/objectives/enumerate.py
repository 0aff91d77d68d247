r"""The ELBO with the discrete latents summed out exactly (Pyro's TraceEnum_ELBO), the others drawn.

    ELBO = E_q[log Σ_d p_θ(x, d, z) − log q_φ(z | x)] ≤ log p_θ(x)

The sum is made by the producer of the terms (`ppgen.enumerated`); the formula is the ELBO's.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ppgen.inference.bounds import Setting
from ppgen.inference.objectives import analytic
from ppgen.terms import Term

SUMMARY = "ELBO with discrete latents summed out (Pyro's TraceEnum_ELBO)"
TERMS = "summed"
PATHWISE = False
MEAN = True


def objective(terms: Sequence[Term], s: Setting) -> tuple[Tensor, Tensor]:
    """The mean over K draws of the sum of all terms. The prior of what is summed out has no term to be weighed."""
    return analytic.objective(terms, s)
