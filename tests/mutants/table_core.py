"""Bugs of the core: bounds, log-likelihoods, posteriors, structure, convergence, calibration, comparison."""

from planting import Mutant

UNBIASED = "tests/test_elbo.py::test_elbo_and_its_gradient_are_unbiased"

TABLE = "tests/test_distributions_table.py::test_many_draws_are_the_program_run_k_times_with_its_gradient[{}]"

MUTANTS: list[Mutant] = [
    # -- objectives that need all rows ----------------------------------------------------------------------------
    Mutant(
        "weights_of_a_part_of_the_rows",
        "part = self.structure.subsampled or rows != self.rows and not self.structure.by_row",
        "part = self.structure.subsampled",
        "tests/test_objectives.py::test_a_function_of_weights_needs_all_rows_that_share_latents[iwae]",
    ),
    Mutant(
        "a_drawn_chain_is_an_estimate_of_log_p",
        """chain = any(s["infer"].get("drawn")""",
        """chain = any(s["infer"].get("drown")""",
        "tests/test_nested.py::test_an_observed_long_chain_gives_a_lower_bound_and_no_estimate_of_log_p",
    ),
    # -- objectives ----------------------------------------------------------------------------------------------
    Mutant(
        "all_entries_weigh_the_same",
        "weights = torch.linspace(1.0, 2.0, o.numel(), dtype=torch.double, device=o.device)",
        "weights = torch.linspace(1.0, 1.0, o.numel(), dtype=torch.double, device=o.device)",
        TABLE.format("RelaxedOneHotCategoricalStraightThrough"),
    ),
    Mutant(
        "recordings_that_differ_in_a_number_are_one",
        "n.name, str(n.args), str(n.kwargs)",
        "n.name, str(n.kwargs)",
        "tests/test_draws.py::test_only_an_equal_graph_is_worked_out_once",
    ),
    Mutant(
        "no_grad_is_not_recorded",
        "if not self.depth or torch.is_grad_enabled():",
        "if True:",
        TABLE.format("LKJCholesky"),
    ),
    Mutant(
        "a_recording_writes_to_what_it_holds",
        "if any(self.node_of(t) is None or _memory(t) in self._outer for t in written):",
        "if any(self.node_of(t) is None for t in written):",
        "tests/test_record.py::test_what_reads_values_or_changes_what_it_holds_is_refused[changes_a_part_of_it]",
    ),
    Mutant(
        "a_mask_that_values_were_written_to_is_known",
        "self._written.update(map(_memory, written))",
        "pass",
        "tests/test_record.py::test_what_reads_values_or_changes_what_it_holds_is_refused[counts_what_it_wrote]",
    ),
    Mutant(
        "hooks_of_a_step_are_left_out",
        "if step is None or _has_hooks(of):",
        "if step is None:",
        "tests/test_record.py::test_hooks_of_a_step_are_called",
    ),
    Mutant(
        "in_place_in_the_memory_of_one_draw",
        "if self.narrow is None:",
        "if True:",
        TABLE.format("OrderedLogistic"),
    ),
    Mutant(
        "kl_the_other_way",
        "return kl_divergence(a, b)",
        "return kl_divergence(b, a)",
        f"{UNBIASED}[1-analytic-Linear]",
    ),
    Mutant(
        "kl_without_its_scale",
        'log_prob = scale_and_mask(-kl, p["scale"], p["mask"])',
        'log_prob = scale_and_mask(-kl, 1.0, p["mask"])',
        "tests/test_elbo.py::test_a_masked_latent_costs_nothing_and_a_scaled_one_as_much_more",
    ),
    Mutant(
        "kl_without_its_mask",
        'log_prob = scale_and_mask(-kl, p["scale"], p["mask"])',
        'log_prob = scale_and_mask(-kl, p["scale"], None)',
        "tests/test_elbo.py::test_a_masked_latent_costs_nothing_and_a_scaled_one_as_much_more",
    ),
    Mutant(
        "scale_left_out",
        'else density * site["scale"]',
        "else density",
        "tests/test_elbo.py::test_masks_and_scales_are_kept",
    ),
    Mutant(
        "mask_left_out",
        'density = scale_and_mask(density, 1.0, site["mask"])',
        "pass",
        "tests/test_elbo.py::test_masks_and_scales_are_kept",
    ),
    Mutant(
        "closed_form_against_the_order",
        'if other not in earlier and other in guide and not node["is_observed"]:',
        "if False:",
        "tests/test_elbo.py::test_analytic_kl_is_not_used_against_the_order_of_sampling",
    ),
    Mutant(
        "iwae_sum_for_mean",
        "return torch.logsumexp(log_w, 0) - math.log(len(log_w))",
        "return torch.logsumexp(log_w, 0)",
        "tests/test_elbo.py::test_iwae_equals_its_definition_and_tightens",
    ),
    Mutant(
        "baseline_of_its_own_particle",
        "cost = cost - (cost.sum(0, keepdim=True) - cost) / (k - 1)",
        "cost = cost - cost.mean(0, keepdim=True)",
        "tests/test_elbo.py::test_elbo_and_its_gradient_are_unbiased[5-sampled-Mixed]",
    ),
    Mutant(
        "score_without_the_prior",
        'return other.role != "kl" or other.order < 0 or other.order > i',
        'return other.role not in ("kl", "prior") or other.order > i',
        "tests/test_elbo.py::test_elbo_and_its_gradient_are_unbiased[5-sampled-Mixed]",
    ),
    Mutant(
        "score_of_its_own_density_left_out",
        "return other.order >= i",
        "return other.order > i",
        "tests/test_elbo.py::test_elbo_and_its_gradient_are_unbiased[5-sampled-Mixed]",
    ),
    Mutant(
        "score_left_out",
        '{**msg["infer"], "detached": True}',
        '{**msg["infer"], "detached": False}',
        "tests/test_gradients.py::test_its_mean_is_the_closed_form_gradient[sampled-score]",
    ),
    Mutant(
        "enumerated_by_the_last_latent_alone",
        "weight = weight * s.q",
        "weight = s.q",
        "tests/test_gradients.py::test_discrete_latents_are_summed_over_without_noise[sampled]",
    ),
    Mutant(
        "gdreg_with_dregs_sign",
        'held.nodes[name]["value"] - moved',
        'held.nodes[name]["value"] + moved',
        "tests/test_objectives.py::test_with_one_draw_the_priors_gradient_is_that_of_the_closed_form",
    ),
    Mutant(
        "sticking_with_the_other_sign",
        "return [t._replace(log_prob=log_q[t.site]) if",
        "return [t._replace(log_prob=2 * log_q[t.site] - t.log_prob) if",
        "tests/test_gradients.py::test_its_variance_beside_pathwise[sticking]",
    ),
    Mutant(
        "sticking_without_the_path",
        "t._replace(log_prob=log_q[t.site]) if",
        "t._replace(log_prob=log_q[t.site].detach()) if",
        "tests/test_gradients.py::test_its_mean_is_the_closed_form_gradient[sampled-sticking]",
    ),
    Mutant(
        "particles_summed",
        "return times(1 / k, added(trained + score_function(terms, s))), times(1 / k, added(found))",
        "return added(trained + score_function(terms, s)), times(1 / k, added(found))",
        "tests/test_elbo.py::test_elbo_and_its_gradient_are_unbiased[5-analytic-Linear]",
    ),
    Mutant(
        "minibatch_weight",
        "n := n_rows(batch, self.structure.row_columns)",
        "n := n_rows(batch)",
        "tests/test_elbo.py::test_a_constant_longer_than_the_batch_does_not_upset_the_weights",
    ),
    Mutant(
        "minibatch_weight_of_every_site",
        "return n_over_b if self.rows & row_plates else 1.0",
        "return n_over_b",
        "tests/test_elbo.py::test_minibatches_are_unbiased_where_a_latent_is_global",
    ),
    Mutant(
        "kl_weight_on_the_likelihood",
        "trained.append(times(s.kl_weight, own) if t.latent else own)",
        "trained.append(times(s.kl_weight, own))",
        "tests/test_elbo.py::test_kl_weight_reaches_the_loss_and_not_the_figure",
    ),
    Mutant(
        "enumerated_without_n_over_b",
        'Term("+".join(observed), "summed", value, scaled, value, names, frozenset(names) & inside)',
        'Term("+".join(observed), "summed", value, scaled, value, names, frozenset())',
        "tests/test_elbo.py::test_enumeration_sums_the_discrete_latents_out",
    ),
    Mutant(
        "NB_chain_loss",
        "own = found[-1] if t.target is None else times(weight, t.target.sum())",
        "own = times(t.sign, (t.log_prob if t.target is None else t.target).sum())",
        "tests/test_chain.py::test_a_batch_of_a_chain_stands_for_all_rows",
    ),
    # -- log-likelihoods -----------------------------------------------------------------------------------------
    Mutant(
        "mean_se_sqrt2",
        "np.sqrt((self.se**2).sum()) / len(self.se)",
        "np.sqrt((self.se**2).sum() / 2) / len(self.se)",
        "tests/test_loglik.py::test_mean_se_and_rows_se",
    ),
    Mutant(
        "elbo_se_15pct",
        "elbo_se = log_w.std(0) / math.sqrt(k)",
        "elbo_se = 0.85 * log_w.std(0) / math.sqrt(k)",
        "tests/test_loglik.py::test_standard_errors_are_honest[elbo]",
    ),
    Mutant(
        "iw_se_15pct",
        "iw_se = ((1 / ess - 1 / k).clamp(min=0) * k / (k - 1)).sqrt()",
        "iw_se = 0.85 * ((1 / ess - 1 / k).clamp(min=0) * k / (k - 1)).sqrt()",
        "tests/test_loglik.py::test_standard_errors_are_honest[iw]",
    ),
    Mutant(
        "weights_of_a_wrong_sign",
        'return -1.0 if self.role == "guide" else 1.0',
        "return 1.0",
        "tests/test_loglik.py::test_evidence_of_a_conjugate_normal_mean",
    ),
    Mutant(
        "ess_of_tempered_weights",
        "ess = (2 * total - squares).exp()",
        "ess = (total - squares / 2).exp()",
        "tests/test_loglik.py::test_kept_weights_are_those_of_the_bounds",
    ),
    Mutant(
        "bits_of_base_ten",
        "return -bound.mean / scale / (self.dims * math.log(2))",
        "return -bound.mean / scale / (self.dims * math.log(10))",
        "tests/test_loglik.py::test_bits_per_dim_of_a_known_discrete_distribution",
    ),
    Mutant(
        "bits_of_the_whole_set",
        "scale = self.rows / len(bound.values)",
        "scale = 1.0",
        "tests/test_loglik.py::test_bits_per_dim_where_a_latent_is_global",
    ),
    Mutant(
        "dims_of_all_rows",
        'for n in structure.names("observed")) // rows or None',
        'for n in structure.names("observed")) or None',
        "tests/test_loglik.py::test_bits_per_dim_where_a_latent_is_global",
    ),
    # -- posteriors ----------------------------------------------------------------------------------------------
    Mutant(
        "log_q_negated",
        '"log_q": -total(parts["log_q"], keep=keep) if parts["log_q"]',
        '"log_q": total(parts["log_q"], keep=keep) if parts["log_q"]',
        "tests/test_posterior.py::test_log_p_and_log_q_by_hand",
    ),
    Mutant(
        "predictive_of_the_prior",
        """
with holding(held):
                sites = sample_sites(poutine.trace(model).get_trace())
""",
        """
with holding({}):
                sites = sample_sites(poutine.trace(model).get_trace())
""",
        "tests/test_posterior.py::test_predictive_distributions",
    ),
    Mutant(
        "prior_of_the_posterior",
        "sites = sample_sites(poutine.trace(model).get_trace(), deterministic=False)",
        "sites = sample_sites(poutine.trace(holding(held)(model)).get_trace(), deterministic=False)",
        "tests/test_posterior.py::test_predictive_distributions",
    ),
    # -- convergence ---------------------------------------------------------------------------------------------
    Mutant(
        "average_off_by_one",
        "1 / self.count)",
        "1 / (self.count + 1))",
        "tests/test_converge.py::test_the_average_is_the_mean_of_the_states_that_it_has_seen",
    ),
    Mutant(
        "r_hat_of_the_variances_ratio",
        "r = ((half - 1) / half + between / within.clamp_min(1e-300)).sqrt()",
        "r = (half - 1) / half + between / within.clamp_min(1e-300)",
        "tests/test_converge.py::test_split_r_hat_is_arvizs",
    ),
    Mutant(
        "unit_is_a_variance",
        "spread = mean.std(0)",
        "spread = mean.var(0)",
        "tests/test_converge.py::test_the_unit_is_the_spread_of_the_draws",
    ),
    # -- calibration ---------------------------------------------------------------------------------------------
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
    Mutant(
        "ties_rank_last",
        "ranks = below + rng.integers(0, ties + 1)",
        "ranks = below + ties",
        "tests/test_calibrate.py::test_ranks_of_a_discrete_latent_are_drawn_among_ties",
    ),
    Mutant(
        "band_one_sided",
        "_binomial().ppf(gamma / 2, n, z) / n, _binomial().ppf(1 - gamma / 2, n, z) / n",
        "_binomial().ppf(gamma, n, z) / n, _binomial().ppf(1 - gamma, n, z) / n",
        "tests/test_calibrate.py::test_the_band_holds_with_the_probability_that_it_says",
    ),
    Mutant(
        "band_of_one_test",
        "each = 1 - (1 - level) ** (1 / tests)",
        "each = level",
        "tests/test_calibrate.py::test_the_band_holds_with_the_probability_that_it_says[200-4]",
    ),
    Mutant(
        "refit_adam_correction",
        "return 1 / (1 - b1**t), (1 - b2**t) ** -0.5",
        "return 1 / (1 - b1**t), 1.0",
        "tests/test_calibrate.py::test_fits_at_once_are_those_of_torchs_adam",
    ),
    # -- comparison ----------------------------------------------------------------------------------------------
    Mutant(
        "paired_difference_as_if_unpaired",
        "_sum_se(one.values - other.values)",
        "math.hypot(_sum_se(one.values), _sum_se(other.values))",
        "tests/test_compare.py::test_a_paired_difference_is_that_of_the_rows",
    ),
    Mutant(
        "predictive_sum_for_mean",
        "values = log_p.logsumexp(0) - math.log(len(log_p))",
        "values = log_p.logsumexp(0)",
        "tests/test_compare.py::test_held_out_rows_given_a_global_latent",
    ),
    # -- diagnosis -----------------------------------------------------------------------------------------------
    Mutant(
        "gap_of_the_whole",
        "gap = max(ll.best.mean - ll.bounds[0].mean, 0.0)",
        "gap = max(ll.best.values.sum() - ll.bounds[0].values.sum(), 0.0)",
        "tests/test_diagnose.py::test_the_gap_is_what_the_guide_costs",
    ),
    Mutant(
        "activity_of_a_spread",
        "return {n: _rows_first(v, sites[n], structure).var(0).numpy() for n, v in full.items()}",
        "return {n: _rows_first(v, sites[n], structure).abs().mean(0).numpy() for n, v in full.items()}",
        "tests/test_diagnose.py::test_a_mean_that_is_the_same_for_all_rows_is_inactive",
    ),
    Mutant(
        "kl_of_the_sum_over_rows",
        'return _rows_first(value.expand(q["fn"].shape()), q, structure).mean(0).numpy()',
        'return _rows_first(value.expand(q["fn"].shape()), q, structure).sum(0).numpy()',
        "tests/test_diagnose.py::test_kl_of_each_dimension_and_inactive_ones",
    ),
    # -- found unseen in the first count: secondary standard errors, and options that meet ----------------------
    Mutant(
        "loo_swap_pq",
        'log_w = (stats["log_p"] - stats["log_q"]).values.astype(np.float64)',
        'log_w = (stats["log_q"] - stats["log_p"]).values.astype(np.float64)',
        "tests/test_compare.py::test_loo_of_a_guide_that_is_not_the_posterior",
    ),
    Mutant(
        "loo_error_of_weights_that_are_equal",
        "shares(log_w[..., None] - log_lik).sum(-1) - log_lik.shape[-1] * shares(log_w)",
        "shares(log_w[..., None] - log_lik).sum(-1)",
        "tests/test_compare.py::test_the_monte_carlo_error_of_loo_is_the_spread_over_other_draws",
    ),
    Mutant(
        "a_law_of_weights_that_are_two_values",
        "elif (few := _above_ties(np.exp(ordered - ordered[-1]), length)) < LEAST_TAIL:",
        "elif (few := _above_ties(np.exp(ordered - ordered[-1]), length)) < 0:",
        "tests/test_psis.py::test_weights_of_few_values_have_no_tail_and_are_not_nan",
    ),
    Mutant(
        "neighbors_of_themselves",
        "residuals[:, 1:], residuals[:, :-1])",
        "residuals[:, 1:], residuals[:, 1:])",
        "tests/test_findings.py::test_a_trend_or_an_autocorrelation_that_the_model_leaves_out_is_told",
    ),
    Mutant(
        "a_guide_of_fitted_rows_draws_new_ones",
        "return not blind, unread if left_out and not blind else {}",
        "return True, unread if left_out else {}",
        "tests/test_predict.py::test_a_guide_that_knows_the_fitted_rows_alone_draws_no_latents_of_new_ones",
    ),
    Mutant(
        "loo_wrong_dim",
        'keep = ("chain", "draw", row_dim if row_dim in rows else rows[-1])',
        'keep = ("chain", "draw", rows[-1])',
        "tests/test_compare.py::test_loo_leaves_out_rows_and_not_another_plate[True]",
    ),
    Mutant(
        "pred_se_sqrt2",
        "error = (relative - 1).sum(1).std() / math.sqrt(len(log_p))  # the rows share z_s",
        "error = (relative - 1).sum(1).std() / math.sqrt(2 * len(log_p))  # the rows share z_s",
        "tests/test_compare.py::test_the_standard_error_of_a_predictive_whose_rows_share_a_latent",
    ),
    Mutant(
        "compare_pred_se",
        "error = (relative - 1).sum(1).std() / math.sqrt(len(log_p))  # the rows share z_s",
        "error = ((relative - 1).var(0).sum() / len(log_p)).sqrt()  # as if the rows did not share z_s",
        "tests/test_compare.py::test_the_standard_error_of_a_predictive_whose_rows_share_a_latent",
    ),
    Mutant(
        "score_se_sqrt2",
        "float(np.sqrt((best.se**2).sum()))\n",
        "float(np.sqrt((best.se**2).sum() / 2))\n",
        "tests/test_compare.py::test_the_standard_error_of_a_bound_on_new_rows",
    ),
    Mutant(
        "rows_are_matched_and_left",
        "return s._replace(values=s.values[places], observed=first.observed)",
        "return s._replace(values=s.values, observed=first.observed)",
        "tests/test_compare.py::test_the_same_rows_in_another_order_are_the_same_data",
    ),
    Mutant(
        "rows_are_matched_by_one_column",
        "shared = sorted(set(first) & set(other))",
        "shared = sorted(set(first) & set(other))[-1:]",
        "tests/test_compare.py::test_the_same_rows_in_another_order_are_the_same_data",
    ),
    Mutant(
        "weights_of_rows_are_powers",
        "return self._replace(weights=scale[0].flatten() if isinstance(scale, Tensor) else scale)",
        "return self",
        "tests/test_objectives.py::test_the_gradient_is_linear_in_the_weights_of_rows[iwae]",
    ),
    Mutant(
        "NB_iwae",
        "return times(s.weights, values).sum() * (s.n_over_b if s.by_row else 1.0)",
        "return values.sum()",
        "tests/test_elbo.py::test_iwae_on_minibatches_is_unbiased_where_latents_are_local",
    ),
    Mutant(
        "iwae_klweight",
        'return self.role in ("prior", "guide", "kl")',
        'return self.role in ("guide", "kl")',
        "tests/test_elbo.py::test_kl_weight_reaches_both_latent_terms_of_iwae",
    ),
    Mutant(
        "score_klweight",
        "_aligned(other, _part(other, s, target=True).detach(), plates)",
        "_aligned(other, _part(other, s, target=False).detach(), plates)",
        "tests/test_elbo.py::test_kl_weight_reaches_the_score_function",
    ),
    Mutant(
        "NB_chain_report",
        "found.append(times(weight, t.log_prob.sum()))",
        "found.append(times(t.sign, t.log_prob.sum()))",
        "tests/test_chain.py::test_the_figure_of_a_fit_is_that_of_all_rows_at_all_times[50]",
    ),
    Mutant(
        "estimate_se_sqrt2",
        "(draws.std(0) / len(draws) ** 0.5).numpy())",
        "(draws.std(0) / (2 * len(draws)) ** 0.5).numpy())",
        "tests/test_loglik.py::test_a_log_density_that_is_drawn_is_called_an_estimate",
    ),
    Mutant(
        "mcse",
        "return means.std(0) / batches**0.5",
        "return means.std(0) / (2 * batches) ** 0.5",
        "tests/test_converge.py::test_the_standard_error_of_a_mean_of_iterates",
    ),
    Mutant(
        "vae_latent_dropout_train",
        """
training = self.program.training
        self.program.eval()
""",
        "training = self.program.training",
        "tests/test_converge.py::test_a_probe_is_in_eval_mode_and_leaves_training_as_it_was",
    ),
    Mutant(
        "iw_without_log_k",
        "bounds = (counts * v for v in (elbo, elbo_se, total - math.log(k), iw_se))",
        "bounds = (counts * v for v in (elbo, elbo_se, total, iw_se))",
        "tests/test_models.py::test_bounds_on_its_log_likelihood[vae]",
    ),
    Mutant(
        "weights_guide_10pct",
        'return -1.0 if self.role == "guide" else 1.0',
        'return -0.9 if self.role == "guide" else 1.0',
        "tests/test_bounds.py::test_weights_by_row_sum_over_every_other_plate",
    ),
    Mutant(
        "bits_of_continuous",
        'if any(not structure[name].discrete for name in structure.names("observed")):',
        'if not structure.names("observed"):',
        "tests/test_models.py::test_its_bits_per_dim_are_of_the_values_in_a_row[ppca]",
    ),
    Mutant(
        "interpreted_entry_added_to_the_whole",
        'self._write("add_to", place(x.view), x.base, [g])',
        'self._write("add_to", x.view, x.base, [g])',
        "tests/test_interpreted.py::test_gradients_of_a_loop_over_entries_take_no_memory_of_the_whole",
    ),
    Mutant(
        "interpreted_stride_of_another_operand",
        "INNER(k * v, k * w, 0, k * u, E) } break;",
        "INNER(k * v, k * v, 0, k * u, E) } break;",
        "tests/test_interpreted.py::test_layouts_are_followed",
    ),
    Mutant(
        "interpreted_memory_given_back_early",
        "self.last[root] = max(self.last.get(root, -1), order[n], order[reader])",
        "self.last[root] = order[n] - 1",
        "tests/test_interpreted.py::test_layouts_are_followed",
    ),
    Mutant(
        "interpreted_results_in_one_memory",
        "if node not in self.p.wanted:\n    return self._own(shape)",
        "if True:\n    return self._own(shape)",
        "tests/test_interpreted.py::test_a_result_is_the_callers",
    ),
    Mutant(
        "interpreted_step_moves_the_random_stream",
        "with torch.random.fork_rng(devices=[]):\n    by_torch",
        "if True:\n    by_torch",
        "tests/test_state.py::test_a_loop_is_interpreted_where_that_pays_and_resumed_so",
    ),
]
