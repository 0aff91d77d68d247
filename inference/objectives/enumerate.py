r"""The ELBO with the discrete latents summed out exactly (Pyro's TraceEnum_ELBO), the others drawn.

    ELBO = E_q[log Σ_d p_θ(x, d, z) − log q_φ(z | x)] ≤ log p_θ(x)

The sum is made by the producer of the terms (`ppgen.enumerated`); the formula is the ELBO's.
"""

from ppgen.inference.objectives.analytic import objective

__all__ = ["objective"]

SUMMARY = "ELBO with discrete latents summed out (Pyro's TraceEnum_ELBO)"
TERMS = "summed"
PATHWISE = False
MEAN = True
