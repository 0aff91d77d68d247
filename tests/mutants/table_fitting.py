"""Bugs of the loop: learning rates, averages of parameters, warm-up, validation, batches, resuming."""

from planting import Mutant

MUTANTS = [
    Mutant(
        "ema_decay_shift",
        "return min(decay, (1 + step) / (10 + step))",
        "return min(decay, (11 + step) / (20 + step))",
        "tests/test_fit.py::test_ema_begins_with_the_mean_of_few",
    ),
]
