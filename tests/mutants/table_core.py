"""Bugs of the core: bounds, log-likelihoods, posteriors, structure, convergence, calibration, comparison."""

from planting import Mutant

MUTANTS: list[Mutant] = [
]
