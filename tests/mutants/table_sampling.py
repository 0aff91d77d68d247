"""Bugs of samplers of the posterior and of what their draws are worth: HMC, Pathfinder, PSIS, chain diagnostics."""

from planting import Mutant

THROUGH = "tests/test_through.py::test_the_density_is_that_of_the_change_of_variables"
BACK = "tests/test_through.py::test_the_posterior_itself_as_a_guide_is_a_standard_normal"
NONCENTRED = "tests/test_noncentred.py::test_the_density_is_that_of_the_latents_in_other_coordinates"

MUTANTS = [
    # -- through a guide ---------------------------------------------------------------------------------------
    Mutant(
        "tails_that_are_not_surely_heavy",
        "estimates.append((fall, fall + SURE * se))",
        "estimates.append((fall, fall))",
        "tests/test_infer.py::test_a_tail_that_few_visits_of_chains_saw_is_heavy_where_it_surely_is",
    ),
    Mutant("no_jacobian_of_the_guide", "return self.whole.one(u) + ladj", "return self.whole.one(u)", THROUGH),
    Mutant(
        "a_gradient_without_the_jacobians",
        "(gradient, torch.ones_like(ladj))",
        "(gradient, torch.zeros_like(ladj))",
        THROUGH,
    ),
    Mutant(
        "determinant_of_the_inverse_map",
        "ladj = scale_tril.diagonal().log().sum()",
        "ladj = -scale_tril.diagonal().log().sum()",
        THROUGH,
    ),
    Mutant(
        "lp_of_the_guides_coordinates",
        'lp = found.stats["lp"] - ladj.reshape',
        'lp = found.stats["lp"] - 0 * ladj.reshape',
        BACK,
    ),
    Mutant(
        "latents_in_the_guides_order",
        "return u[index], ladj",
        "return u, ladj",
        "tests/test_through.py::test_the_order_of_the_latents_is_that_of_the_joint",
    ),
    # -- HMC ---------------------------------------------------------------------------------------------------
    Mutant(
        "mcmc_temper_2pct",
        "error = after - before\n",
        "error = after - before + 0.04 * (lp - old.lp)\n",
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
        "size = learned.step.current if warm else learned.step.average",
        "size = learned.step.current",
        "tests/test_mcmc.py::test_dual_averaging_by_hand",
    ),
    Mutant(
        "every_proposal_accepted",
        "accept = torch.rand(alpha.shape, generator=generator, dtype=alpha.dtype) < alpha",
        "accept = torch.rand(alpha.shape, generator=generator, dtype=alpha.dtype) < torch.where(bad, 0.0, 1.0)",
        "tests/test_mcmc.py::test_a_proposal_by_hand",
    ),
    Mutant(
        "leapfrog_whole_second_kick",
        "return [y, p + 0.5 * step * g, g, value]",
        "return [y, p + step * g, g, value]",
        "tests/test_mcmc.py::test_a_leapfrog_step_by_hand",
    ),
    Mutant(
        "gradient_of_the_wrong_coordinates",
        "g = _back(grad, root)",
        "g = grad",
        "tests/test_mcmc.py::test_a_leapfrog_step_by_hand",
    ),
    Mutant(
        "low_rank_coordinates_that_are_not_their_own_inverse",
        "return z - torch.linalg.solve(",
        "return z + torch.linalg.solve(",
        "tests/test_many_dimensions.py::test_a_low_rank_root_and_its_inverse",
    ),
    Mutant(
        "chains_that_begin_in_one_place",
        "draw[FEW:] = found.mean[new] + found.root.taken(new).spread(noise)",
        "draw[FEW:] = found.mean[new]",
        "tests/test_many_dimensions.py::test_pathfinder_of_low_rank",
    ),
    Mutant(
        "tails_of_the_first_entries",
        "for i in longest_tails(entries.reshape(-1, entries.shape[-1]), MOST_TAILS):",
        "for i in range(min(entries.shape[-1], MOST_TAILS)):",
        "tests/test_many_dimensions.py::test_the_longest_tails_are_looked_at",
    ),
    Mutant(
        "dual_averaging_t0",
        "w = 1 / (self.count + 10)",
        "w = 1 / (self.count + 9)",
        "tests/test_mcmc.py::test_dual_averaging_by_hand",
    ),
    Mutant(
        "length_without_its_cost",
        "each = change * (time * (b * p).sum(-1) - COST * change / 4)",
        "each = change * time * (b * p).sum(-1)",
        "tests/test_mcmc.py::test_the_length_climbs_the_criterion",
    ),
    Mutant(
        "welford_before_twice",
        "after = u - self.mean",
        "after = before",
        "tests/test_mcmc.py::test_moments_by_batches_are_those_of_all",
    ),
    Mutant(
        "halton_of_base_three",
        "value, scale, i = value + scale * (i & 1), scale / 2, i >> 1",
        "value, scale, i = value + scale * (i & 1), scale / 3, i >> 1",
        "tests/test_mcmc.py::test_the_pieces_of_chees",
    ),
    Mutant(
        "bound_of_the_whole_for_that_of_a_mode",
        "log_w = lp - q.log_prob(u.flatten(0, 1)).reshape(lp.shape)",
        "log_w = lp",
        "tests/test_negligible.py::test_the_share_of_a_light_mode_is_bounded_from_above",
    ),
    Mutant(
        "negligible_below_a_hundredth",
        "NEGLIGIBLE = 1e-4",
        "NEGLIGIBLE = 1e-2",
        "tests/test_negligible.py::test_a_mode_that_has_mass_keeps_its_chains",
    ),
    Mutant(
        "chains_of_light_modes_stay",
        "return Chains(*(v[origin] for v in chains))",
        "return chains",
        "tests/test_negligible.py::test_chains_in_a_light_mode_begin_anew",
    ),
    Mutant(
        "normals_of_maxima_alone",
        "return mixture_of(parts + better, target, generator) if better else first",
        "return first",
        "tests/test_smc.py::test_normals_of_maxima_far_from_the_mass_are_led_to_it",
    ),
    # -- Pathfinder ----------------------------------------------------------------------------------------------
    Mutant(
        "pathfinder_constant",
        "0.5 * dim * math.log(2 * math.pi)",
        "0.5 * math.log(2 * math.pi)",
        "tests/test_mcmc.py::test_pathfinder_finds_a_normal",
    ),
    Mutant(
        "pathfinder_curvature",
        "curved = rho * (1 + rho * (y * Hy).sum(-1))",
        "curved = rho",
        "tests/test_mcmc.py::test_pathfinder_finds_a_normal",
    ),
    Mutant(
        "lbfgs_diagonal_without_a_root",
        "D = (self.s[k].square().sum(1) / self.y[k].square().sum(1)).sqrt()",
        "D = self.s[k].square().sum(1) / self.y[k].square().sum(1)",
        "tests/test_guides.py::test_pathfinder_in_hundreds_of_dimensions",
    ),
    Mutant(
        "lbfgs_without_the_curvature_along_a_step",
        "first = inverse.mT @ (eye + y @ Dy.mT) @ inverse",
        "first = inverse.mT @ (y @ Dy.mT) @ inverse",
        "tests/test_guides.py::test_limited_memory_is_bfgs_of_the_last_pairs[5]",
    ),
    # -- Pareto-smoothed importance sampling ---------------------------------------------------------------------
    Mutant(
        "khat_of_inverse_weights",
        "array_stats.psislw(-column, r_eff=share)",
        "array_stats.psislw(column, r_eff=share)",
        "tests/test_diagnose.py::test_pareto_k_of_a_tail_that_is_known",
    ),
    Mutant(
        "khat_of_half_the_log_weights",
        "array_stats.psislw(-column, r_eff=share)",
        "array_stats.psislw(-column / 2, r_eff=share)",
        "tests/test_diagnose.py::test_pareto_k_of_a_tail_that_is_known",
    ),
    Mutant(
        "threshold_whatever_the_draws",
        "return min(GOOD_K, 1 - 1 / math.log10(max(draws, 10)))",
        "return GOOD_K",
        "tests/test_psis.py::test_weights_sum_to_one_and_keep_their_order",
    ),
    Mutant(
        "resampling_tempered",
        "np.searchsorted(np.cumsum(np.exp(log_w)), steps)",
        "np.searchsorted(np.cumsum(np.exp(0.9 * log_w)) / np.exp(0.9 * log_w).sum(), steps)",
        "tests/test_psis.py::test_resampling_is_in_proportion",
    ),
    Mutant(
        "corrected_by_the_inverse_weights",
        'log_w = found["sample_stats"]["log_p"][0] - found["sample_stats"]["log_q"][0]',
        'log_w = found["sample_stats"]["log_q"][0] - found["sample_stats"]["log_p"][0]',
        "tests/test_psis.py::test_a_guide_that_is_too_wide_is_corrected",
    ),
    Mutant(
        "every_row_by_the_first_rows_weights",
        "index = np.stack([resampled(w, draws, rng) for w in weights.T], -1)",
        "index = np.stack([resampled(weights.T[0], draws, rng) for w in weights.T], -1)",
        "tests/test_psis.py::test_each_row_is_corrected_by_its_own_weights",
    ),
    Mutant(
        "weighted_sd_without_weights",
        "return mean, np.sqrt((w * (x - mean) ** 2).sum(0).clip(min=0))",
        "return mean, np.sqrt(((x - mean) ** 2).mean(0))",
        "tests/test_psis.py::test_moments_by_weights",
    ),
    # -- what chains are worth -----------------------------------------------------------------------------------
    Mutant(
        "chains_that_disagree_are_fine",
        "grade(rhat[worst], most, WRONG_RHAT)",
        "grade(rhat[worst], 100 * GOOD_RHAT)",
        "tests/test_models.py::test_on_a_conjugate_target[mcmc_diagnostics]",
    ),
    Mutant(
        "heavy_tails_of_a_mean_only",
        "grade(k[worst], HEAVY)",
        "grade(k[worst], GOOD_K)",
        "tests/test_mcmc.py::test_tails_are_told_by_their_shape",
    ),
    Mutant(
        "refused_chain_sets_the_step",
        "share / float((1 / alpha[~diverging].clamp_min(REFUSED)).mean())",
        "share / float((1 / alpha[~diverging].clamp_min(1e-9)).mean())",
        "tests/test_mcmc.py::test_one_refused_chain_does_not_set_the_step",
    ),
    # -- found unseen in the first count: secondary standard errors, and options that meet ----------------------
    Mutant(
        "bfmi",
        "(np.diff(energy, axis=1) ** 2).mean(1) / energy.var(1).clip(1e-300)))",
        "(np.diff(energy, axis=1) ** 2).mean(1) / 2 / energy.var(1).clip(1e-300)))",
        "tests/test_mcmc.py::test_energies_of_a_known_bfmi[0.9-0.2]",
    ),
    # -- what a guide is worth -----------------------------------------------------------------------------------
    Mutant(
        "part_of_the_checks_is_fine",
        "return LOOK if worst == FINE and part else worst",
        "return worst",
        "tests/test_findings.py::test_one_check_of_several_is_not_fine",
    ),
    Mutant(
        "the_best_verdict",
        "worst = min((f.verdict for f in found), key=VERDICTS.index, default=LOOK)",
        "worst = max((f.verdict for f in found), key=VERDICTS.index, default=LOOK)",
        "tests/test_findings.py::test_what_was_not_checked_is_not_fine",
    ),
    Mutant(
        "too_wide_is_fine",
        "off, se = abs(ratio), float(",
        "off, se = max(-ratio, 0.0), float(",
        "tests/test_findings.py::test_a_guide_that_is_too_wide_is_not_believed",
    ),
    Mutant(
        "error_of_a_mean_as_if_of_other_draws",
        "influence = (x - mean) / better_sd - w * z",
        "influence = np.hypot(1, w) * z",
        "tests/test_findings.py::test_standard_errors_are_those_over_seeds",
    ),
    Mutant(
        "error_of_an_sd_of_the_guide_alone",
        "spread = (t**2 - 1) / 2 - w * (z**2 - 1) / 2",
        "spread = (t**2 - 1) / 2",
        "tests/test_findings.py::test_standard_errors_are_those_over_seeds",
    ),
    Mutant(
        "chains_as_independent_draws",
        "length = int(T**0.5)",
        "length = 1",
        "tests/test_findings.py::test_batch_means_of_an_autoregression",
    ),
    Mutant(
        "few_effective_draws_are_only_looked_at",
        "LOOK if ess >= min(LEAST_ESS, K / 2) or ll.noise else WRONG",
        "LOOK",
        "tests/test_findings.py::test_one_effective_draw_is_wrong_whatever_khat",
    ),
    Mutant(
        "weights_that_underflow_have_no_tail",
        "or ordered[-1] - ordered[-length] > FARTHEST:",
        "or False:",
        "tests/test_findings.py::test_weights_of_a_guide_that_is_far_away",
    ),
    Mutant(
        "mode_at_the_end_of_a_climb_left_out",
        "return kept + [new for new in tops if all(_apart(new, old) for old in kept)]",
        "return kept",
        "tests/test_mode_search.py::test_the_mass_that_draws_have_not_seen",
    ),
    Mutant(
        "top_of_a_rough_place_left_out",
        "if (found is None or found.se > ROUGH) and (top",
        "if False and (top",
        "tests/test_mode_search.py::test_one_of_two_modes_is_missed_in_many_dimensions",
    ),
    Mutant(
        "bridge_of_shares_exchanged",
        "s1, s2 = n_p / (n_p + n_q), n_q / (n_p + n_q)",
        "s1, s2 = 1.0, 0.0",
        "tests/test_mode_search.py::test_bridge_sampling_gives_the_evidence",
    ),
    Mutant(
        "mirror_images_are_not_told",
        "copies = all(any(_copy(r, other) for other in seen) for r in unseen)",
        "copies = False",
        "tests/test_mode_search.py::test_the_mass_that_draws_have_not_seen",
    ),
    Mutant(
        "climbs_from_the_prior_left_out",
        "kinds.append(prior(max(FEWEST, min(MOST_STARTS, PRIOR_STARTS // max(dim, size)))))",
        "pass",
        "tests/test_mode_search.py::test_a_mode_is_found_from_the_prior_and_not_without",
    ),
    Mutant(
        "groups_of_chains_as_single_ones",
        "np.arange(chains) % groups",
        "np.arange(chains)",
        "tests/test_findings.py::test_many_short_chains_in_their_target_agree",
    ),
    # -- weighted draws -------------------------------------------------------------------------------------
    Mutant(
        "a_mixture_that_is_no_density",
        "math.log(2 * math.pi)) + math.log(1 - DEFENSIVE)",
        "math.log(2 * math.pi))",
        "tests/test_infer.py::test_the_density_of_a_mixture_integrates_to_one",
    ),
    Mutant(
        "an_edge_is_a_divergence",
        "outcome = Outcome(alpha, bad & ~outside,",
        "outcome = Outcome(alpha, bad,",
        "tests/test_mcmc.py::test_a_proposal_beyond_the_edge_is_no_divergence",
    ),
    Mutant(
        "a_flat_tail_is_asked",
        "return np.where((ess >= EVEN * draws) & ~np.isnan(khat), -np.inf, khat)",
        "return khat",
        "tests/test_psis.py::test_weights_that_are_nearly_equal_have_no_tail_to_ask",
    ),
    Mutant(
        "a_density_that_is_drawn_is_not_noticed",
        'if off := _apart(first, site["fn"].log_prob(site["value"])):',
        "if off := _apart(first, first):",
        "tests/test_loglik.py::test_no_bound_by_weights_of_a_density_that_is_drawn",
    ),
    # -- non-centred latents -----------------------------------------------------------------------------------
    Mutant(
        "noncentred_by_the_location_alone",
        "own = [AffineTransform(base.loc, base.scale)]",
        "own = [AffineTransform(base.loc, torch.ones_like(base.scale))]",
        NONCENTRED,
    ),
    Mutant(
        "noncentred_vectors_without_a_determinant",
        "return self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1).expand(x.shape[:-1])",
        "return torch.zeros(x.shape[:-1])",
        NONCENTRED,
    ),
    Mutant(
        "noncentred_where_the_location_moves",
        "return [base.scale_tril if isinstance(base, td.MultivariateNormal) else base.scale]",
        "return [base.loc]",
        "tests/test_noncentred.py::test_a_named_latent_is_and_no_other",
    ),
    Mutant(
        "what_is_written_in_place_is_shared",
        "own = g.call_function(aten.copy_.default, (room, node))",
        "own = room",
        "tests/test_mcmc.py::test_what_is_written_in_place_has_room_for_every_chain",
    ),
    Mutant(
        "observed_values_outside_of_the_support",
        "if name not in by_latents:",
        "if name in by_latents:",
        "tests/test_mcmc.py::test_data_outside_of_the_support_are_refused",
    ),
]
