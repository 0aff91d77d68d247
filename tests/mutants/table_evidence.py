"""Bugs in tempering, resampling, bridge sampling and the bounds of the evidence."""

from planting import Mutant

SMC = "tests/test_smc.py::test_evidence_of_a_conjugate_model_is_exact"
MODES = "tests/test_smc.py::test_two_modes_keep_their_proportions[proper]"
LAPLACE = "tests/test_laplace.py::test_normal_latents_are_integrated_out_exactly"
SIDES = "tests/test_evidence.py::test_both_sides_and_the_estimates_of_a_conjugate_model"

MUTANTS = [
    Mutant(
        "weights_of_the_whole_ratio", "log_w = (tempered.beta - before) * ratio", "log_w = tempered.beta * ratio", SMC
    ),
    Mutant(
        "evidence_summed_in_place_of_averaged",
        "log_z = log_z + torch.logsumexp(log_w, -1) - math.log(S)",
        "log_z = log_z + torch.logsumexp(log_w, -1)",
        SMC,
    ),
    Mutant(
        "the_prior_without_its_jacobian",
        "return total + log_joint_of([t",
        "return (0.0 if prior else total) + log_joint_of([t",
        "tests/test_smc.py::test_constrained_latents_have_their_jacobian",
    ),
    Mutant(
        "the_wide_part_without_its_share",
        "torch.where(bad, -torch.inf, lw) + math.log(WIDE)",
        "torch.where(bad, -torch.inf, lw)",
        SMC,
    ),
    Mutant(
        "islands_resampled_as_if_they_agreed",
        "whole = (log_z[:, None] + log_w).reshape(1, -1) if last else log_w",
        "whole = (0 * log_z[:, None] + log_w).reshape(1, -1) if last else log_w",
        "tests/test_smc.py::test_islands_are_joined_by_their_evidence",
    ),
    Mutant("bridge_without_the_density_of_q", "f = e / (s1 * e + s2)", "f = e / s1", SIDES),
    Mutant(
        "bridge_error_of_independent_draws",
        "worth = n_p if effective is None else min(effective, n_p)",
        "worth = n_p",
        "tests/test_evidence.py::test_bridge_sampling_of_correlated_draws_has_their_error",
    ),
    Mutant(
        "upper_bound_over_draws_of_q",
        """_bound("eubo", "upper", Evidence(float(at_p.mean())""",
        """_bound("eubo", "upper", Evidence(float(at_q.mean())""",
        "tests/test_evidence.py::test_eight_schools_is_that_of_quadrature",
    ),
    Mutant(
        "a_gradient_of_normals_alone",
        "slope = (normal - both).exp() + (t - both).exp() * (DEGREES + dim) / (DEGREES + r2)",
        "slope = (normal - both).exp() + (t - both).exp()",
        "tests/test_smc.py::test_the_gradient_of_a_mixture_is_that_of_its_log_density",
    ),
    Mutant(
        "laplace_with_the_determinant_of_the_covariance",
        "return f(theta) - log_det + 0.5 * len(theta)",
        "return f(theta) + log_det + 0.5 * len(theta)",
        LAPLACE,
    ),
    Mutant("laplace_without_its_constant", "+ 0.5 * len(theta) * math.log(2 * math.pi), blocks", ", blocks", LAPLACE),
    Mutant(
        "laplace_at_a_place_that_is_held",
        "theta = theta + self._solved(held, torch.func.grad(f)(theta))",
        "theta = theta + 0 * self._solved(held, torch.func.grad(f)(theta))",
        "tests/test_laplace.py::test_counts_by_quadrature",
    ),
    Mutant(
        "laplace_draws_of_the_precision",
        "torch.linalg.solve_triangular(factors[i].mT, b, upper=True)",
        "factors[i] @ b",
        "tests/test_laplace.py::test_draws_given_the_rest_are_those_of_the_conditional",
    ),
    Mutant("laplace_weights_of_the_joint_alone", "[0] - log_q - value", "[0] - log_q", LAPLACE),
]
