"""Bugs in tempering, resampling, bridge sampling and the bounds of the evidence."""

from planting import Mutant

SMC = "tests/test_smc.py::test_evidence_of_a_conjugate_model_is_exact"
MODES = "tests/test_smc.py::test_two_modes_keep_their_proportions[proper]"
LAPLACE = "tests/test_laplace.py::test_normal_latents_are_integrated_out_exactly"
WEIGHTED = "tests/test_laplace.py::test_weighted_draws_are_those_of_the_conditional_where_it_is_not_normal"
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
        "bridge_that_moves_away",
        "log_z = before + float(f.mean().log() - g.mean().log())",
        "log_z = before - float(f.mean().log() - g.mean().log())",
        SIDES,
    ),
    Mutant(
        "importance_weights_summed_in_place_of_averaged",
        "log_z = float(torch.logsumexp(at_q, 0)) - math.log(WEIGHTS)",
        "log_z = float(torch.logsumexp(at_q, 0))",
        SIDES,
    ),
    Mutant(
        "bayes_factors_turned_round",
        "n: (float(b.values[0] - first.values[0])",
        "n: (float(first.values[0] - b.values[0])",
        "tests/test_evidence.py::test_bayes_factors_are_differences_with_their_error",
    ),
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
        "laplace_without_the_derivative_of_its_top",
        "return by_phi + through, value",
        "return by_phi, value",
        "tests/test_laplace.py::test_counts_by_quadrature",
    ),
    Mutant(
        "laplace_draws_of_the_precision",
        "torch.linalg.solve_triangular(root.mT, z, upper=True)",
        "root @ z",
        "tests/test_laplace.py::test_latents_that_depend_on_each_other_are_one_block",
    ),
    Mutant(
        "laplace_draws_of_the_precision_of_one",
        "return z / root if root.shape[-1] == 1",
        "return z * root if root.shape[-1] == 1",
        WEIGHTED,
    ),
    Mutant("laplace_weights_of_the_joint_alone", "+ at_top - volume - value", "+ at_top - volume", LAPLACE),
    Mutant("laplace_weights_without_a_block", "+ at_top - volume", "* 0.9 + at_top - volume", LAPLACE),
    Mutant(
        "laplace_candidates_that_are_not_weighed",
        "race = log_w - torch.rand",
        "race = 0 * log_w - torch.rand",
        WEIGHTED,
    ),
    Mutant(
        "laplace_chains_that_are_not_weighed",
        "u = u.transpose(0, 1).flatten(0, 1)[index].reshape",
        "u = u.transpose(0, 1).flatten(0, 1).reshape",
        "tests/test_laplace.py::test_draws_are_resampled_by_what_laplaces_method_is_off_by",
    ),
    Mutant("laplace_sums_in_place_of_means", "(total - math.log(len(points)))", "total", LAPLACE),
    Mutant(
        "laplace_rung_with_the_weights_of_the_few_alone",
        "log_w = (log_w + drawn.lp - drawn",
        "log_w = (drawn.lp - drawn",
        "tests/test_infer.py::test_groups_near_a_funnel_are_integrated_out",
    ),
]
