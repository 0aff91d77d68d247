"""The algorithm catalogue: one algorithm a file, each a function of a program or a run."""

from ppgen.inference.elbo import Objective
from ppgen.inference.fit import fit, resume

__all__ = ["Objective", "fit", "resume"]
