"""Bugs of samplers of the posterior and of what their draws are worth: HMC, Pathfinder, PSIS, chain diagnostics."""

from planting import Mutant

MUTANTS = [
    # -- HMC ---------------------------------------------------------------------------------------------------
    Mutant(
        "mcmc_temper_2pct",
        "before, after = 0.5 * (start**2).sum(-1) - old.lp, 0.5 * (p**2).sum(-1) - lp",
        "before, after = 0.5 * (start**2).sum(-1) - 0.96 * old.lp, 0.5 * (p**2).sum(-1) - 0.96 * lp",
        "tests/test_mcmc.py::test_a_proposal_by_hand",
    ),
    Mutant(
        "energy_of_the_wrong_end",
        "torch.where(accept, after, before)",
        "torch.where(accept, before, after)",
        "tests/test_mcmc.py::test_a_proposal_by_hand",
    ),
    Mutant(
        "dual_average_last",
        "size = step.current if warm else step.average",
        "size = step.current",
        "tests/test_mcmc.py::test_dual_averaging_by_hand",
    ),
]
