r"""The ELBO with every term drawn (Pyro's Trace_ELBO).

ELBO = E_q[log p_θ(x, z) − log q_φ(z | x)] ≤ log p_θ(x)
"""

from ppgen.inference.objectives.analytic import objective

__all__ = ["objective"]

SUMMARY = "ELBO, every term drawn (Pyro's Trace_ELBO)"
TERMS = "drawn"
PATHWISE = False
MEAN = True
