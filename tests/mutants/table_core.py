"""Bugs of the core: bounds, log-likelihoods, posteriors, structure, convergence, calibration, comparison."""

from planting import Mutant

MUTANTS: list[Mutant] = [
    # -- objectives --------------------------------------------------------------------------------------------
    Mutant(
        "NB_chain_loss",
        "return -weight * drawn.target.sum() / self.rows",
        "return -drawn.target.sum() / self.rows",
        "tests/test_chain.py::test_a_batch_of_a_chain_stands_for_all_rows",
    ),
    # -- log-likelihoods ---------------------------------------------------------------------------------------
    Mutant(
        "mean_se_sqrt2",
        "np.sqrt((self.se**2).sum()) / len(self.se)",
        "np.sqrt((self.se**2).sum() / 2) / len(self.se)",
        "tests/test_loglik.py::test_mean_se_and_rows_se",
    ),
    # -- convergence -------------------------------------------------------------------------------------------
    Mutant(
        "average_off_by_one",
        "1 / self.count)",
        "1 / (self.count + 1))",
        "tests/test_converge.py::test_the_average_is_the_mean_of_the_states_that_it_has_seen",
    ),
    # -- calibration -------------------------------------------------------------------------------------------
    Mutant(
        "sbc_rank_off",
        "u = (ranks + rng.random(ranks.shape)) / (many + 1)",
        "u = (ranks + rng.random(ranks.shape)) / (many + 2)",
        "tests/test_calibrate.py::test_a_rank_has_its_own_share_of_the_unit_interval",
    ),
    Mutant(
        "calib_sd_10pct",
        "mean, sd = draws.mean(1), draws.std(1, ddof=1)",
        "mean, sd = draws.mean(1), 1.1 * draws.std(1, ddof=1)",
        "tests/test_calibrate.py::test_contraction_and_z_scores_against_their_closed_forms",
    ),
]
