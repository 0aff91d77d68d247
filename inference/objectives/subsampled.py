r"""The ELBO of a chain of latents, from some of its terms, drawn at random (`Program.subsampled_terms`).

A reweighting of the chain changes what the gradient is of, never the bound that is returned beside it.
"""

from ppgen.inference.objectives.analytic import REWEIGHTED, objective

__all__ = ["REWEIGHTED", "objective"]

SUMMARY = "ELBO of a chain of latents, by terms drawn at random"
TERMS = "subsampled"
PATHWISE = True
MEAN = True
