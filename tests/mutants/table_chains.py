"""Bugs of chains of latents: algebra, schedules, samplers, the ODE, filling in, whole paths, the bound's terms."""

from planting import Mutant

MUTANTS = [
    # -- samplers ----------------------------------------------------------------------------------------------
    Mutant(
        "ancestral_noise_2pct",
        "z = _seen(watch, s, program.reverse(z, s, t, **columns).sample())",
        """
        p = program.reverse(z, s, t, **columns).base_dist
        z = _seen(watch, s, p.loc + 1.02 * p.scale * torch.randn_like(z))
        """,
        "tests/test_samplers.py::test_each_ancestral_step_is_a_draw_of_its_conditional",
    ),
    Mutant(
        "dpmpp_sde_noise_2pct",
        "z + sigma_s * kept.sqrt() * torch.randn_like(z)",
        "z + 1.02 * sigma_s * kept.sqrt() * torch.randn_like(z)",
        "tests/test_samplers.py::test_dpmpp_sde_is_its_published_update",
    ),
    Mutant(
        "dpmpp_last_order",
        "if len(self.length) and not (s == 0.0 and self.steps < 15):",
        "if len(self.length):",
        "tests/test_samplers.py::test_dpmpp_is_its_published_update",
    ),
    Mutant(
        "dpmpp_ratio",
        "* step / (2 * self.length)",
        "* self.length / (2 * step)",
        "tests/test_samplers.py::test_dpmpp_is_its_published_update",
    ),
    Mutant(
        "sampler_base_2pct",
        "z = program.base(**held).expand([rows]).sample()",
        "z = 1.02 * program.base(**held).expand([rows]).sample()",
        "tests/test_samplers.py::test_every_sampler_starts_from_the_base",
    ),
    # -- filling in --------------------------------------------------------------------------------------------
    Mutant(
        "impute_mask_weight",
        "log_w = log_w + (p.log_prob(target) * mask).sum(-1)",
        "log_w = log_w + 0.9 * (p.log_prob(target) * mask).sum(-1)",
        "tests/test_impute.py::test_each_step_weighs_a_particle_by_what_it_foresaw",
    ),
    Mutant(
        "impute_tempered_resampling",
        """
        w = log_w.softmax(0)
        poor =
        """,
        """
        w = (0.9 * log_w).softmax(0)
        poor =
        """,
        "tests/test_impute.py::test_particles_are_resampled_by_their_weights",
    ),
    Mutant(
        "impute_draws_without_weights",
        "chosen = _systematic(log_w.softmax(0), draws)",
        "chosen = _systematic(0 * log_w + 1 / len(log_w), draws)",
        "tests/test_impute.py::test_as_many_draws_as_particles_are_draws_by_their_weights",
    ),
    # -- the terms of the bound --------------------------------------------------------------------------------
    Mutant(
        "ledger_kl_scale",
        "kl=(cost.mean(1) / k).numpy()",
        "kl=(1.02 * cost.mean(1) / k).numpy()",
        "tests/test_diffusion.py::test_the_ledger_keeps_the_terms_apart",
    ),
    Mutant(
        "chain_elbo_2pct",
        "parts.append((start + end - cost).double())",
        "parts.append((start + end - 1.02 * cost).double())",
        "tests/test_diffusion.py::test_the_elbo_by_strata_is_that_of_the_closed_form",
    ),
    # -- the algebra -------------------------------------------------------------------------------------------
    Mutant(
        "base_unit",
        "return Normal(self.zero, (alpha**2 + sigma**2).sqrt().expand(size)).to_event(1)",
        "return Normal(self.zero, sigma.expand(size)).to_event(1)",
        "tests/test_chain.py::test_the_base_has_the_variance_of_unit_data",
    ),
    Mutant(
        "edm_skip",
        "skip, reach = a * (self.data_scale / spread) ** 2, s * self.data_scale / spread",
        "skip, reach = a * (self.data_scale / spread), s * self.data_scale / spread",
        "tests/test_diffusion.py::test_edm_is_that_of_karras",
    ),
    Mutant(
        "posterior_variance_of_the_wrong_end",
        "return mean, (c * sigma_s**2, c * sigma_t**2)",
        "return mean, (c * sigma_t**2, c * sigma_s**2)",
        "tests/test_chain.py::test_the_cost_is_the_kl",
    ),
    Mutant(
        "posterior_mean_without_alpha",
        "mean = alpha_s * ((gamma_s - gamma_t).exp() * z / alpha_t + c * x)",
        "mean = alpha_s * ((gamma_s - gamma_t).exp() * z + c * x)",
        "tests/test_chain.py::test_the_conditionals_are_one_joint",
    ),
    Mutant(
        "rate_half",
        "return 0.5 * slope * (-gamma).exp() * error.sum(-1)",
        "return slope * (-gamma).exp() * error.sum(-1)",
        "tests/test_chain.py::test_infinitely_many_steps",
    ),
    Mutant(
        "cost_of_variances",
        "0.5 * (ratio - 1 - log_ratio)",
        "(ratio - 1 - log_ratio)",
        "tests/test_chain.py::test_the_cost_is_the_kl",
    ),
    Mutant(
        "sub_vp_alpha",
        "alpha = 2 / (ratio + (ratio**2 + 4).sqrt())",
        "alpha = 2 / (ratio + (ratio**2 + 3).sqrt())",
        "tests/test_schedules.py::test_processes",
    ),
    Mutant(
        "weighting_of_flow_matching",
        '"flow": lambda gamma, rate: (1 + (gamma / 2).exp()) ** 2',
        '"flow": lambda gamma, rate: 1 + (gamma / 2).exp()',
        "tests/test_chain.py::test_reweightings_are_the_published_losses",
    ),
    Mutant(
        "min_snr_of_four",
        '"min_snr": lambda gamma, rate: (5 * gamma.exp()).clamp(max=1.0)',
        '"min_snr": lambda gamma, rate: (4 * gamma.exp()).clamp(max=1.0)',
        "tests/test_chain.py::test_reweightings_are_the_published_losses",
    ),
    Mutant(
        "weight_of_finite_steps",
        "own = rate if s is t else torch.expm1(gamma - self.schedule(s)) / (t - s)",
        "own = rate",
        "tests/test_chain.py::test_reweightings_are_the_published_losses",
    ),
    Mutant(
        "velocity_for_noise",
        "return a * h - s * out, raw",
        "return (h - s * out) / a, raw",
        "tests/test_diffusion.py::test_a_network_that_knows_gives_the_data",
    ),
    Mutant(
        "bernoulli_logits",
        "return Bernoulli(logits=2 * mean / scale**2).to_event(1)",
        "return Bernoulli(logits=mean / scale**2).to_event(1)",
        "tests/test_diffusion.py::test_the_likelihood_has_the_noise_of_the_last_state",
    ),
    Mutant(
        "likelihood_not_in_the_datas_units",
        "return Normal(self.loc + self.scale * mean, self.scale * scale).to_event(1)",
        "return Normal(self.loc + self.scale * mean, scale.expand_as(mean)).to_event(1)",
        "tests/test_diffusion.py::test_the_likelihood_has_the_noise_of_the_last_state",
    ),
    Mutant(
        "guidance_from_the_label",
        "return guess[1] + guidance * (guess[0] - guess[1])",
        "return guess[0] + guidance * (guess[0] - guess[1])",
        "tests/test_samplers.py::test_guidance",
    ),
    # -- schedules -----------------------------------------------------------------------------------------------
    Mutant(
        "linear_rate",
        "lambda u: (b0 + (b1 - b0) * u) / -torch.expm1(-integral(u))",
        "lambda u: b0 + (b1 - b0) * u",
        "tests/test_schedules.py::test_its_rate_is_its_derivative",
    ),
    Mutant(
        "linear_betas",
        "BETA = (0.1, 20.0)",
        "BETA = (0.1, 19.0)",
        "tests/test_schedules.py::test_published_values",
    ),
    Mutant(
        "edm_rho",
        "RHO = 7.0",
        "RHO = 6.8",
        "tests/test_schedules.py::test_published_values",
    ),
    Mutant(
        "cosine_end",
        "lambda gamma: 2 / math.pi * math.atan(math.exp(gamma / 2))",
        "lambda gamma: 2 / math.pi * math.atan(math.exp(gamma))",
        "tests/test_schedules.py::test_it_increases_between_its_ends",
    ),
    Mutant(
        "learned_rate",
        "a + (w * b * s * (1 - s)).sum(-1)",
        "a + (w * s * (1 - s)).sum(-1)",
        "tests/test_schedules.py::test_its_rate_is_its_derivative",
    ),
    # -- times of a subsampled bound -----------------------------------------------------------------------------
    Mutant(
        "density_of_times",
        "return t, p[k] * bins",
        "return t, p[k].sqrt() * bins",
        "tests/test_chain.py::test_times_by_running_loss_have_the_density_that_they_say[0]",
    ),
    Mutant(
        "times_not_weighed",
        "cost, target = cost / density, target / density",
        "cost, target = cost, target / density",
        "tests/test_chain.py::test_times_by_running_loss_leave_the_elbo_as_it_is",
    ),
    Mutant(
        "one_step_too_few",
        "return program.steps * program.cost(x, z, s, t, **columns)",
        "return (program.steps - 1) * program.cost(x, z, s, t, **columns)",
        "tests/test_chain.py::test_of_twenty_steps",
    ),
    Mutant(
        "noise_of_the_earlier_time",
        "cost = _cost(program, x, _draw(program.forward(x, t, **columns)), s, t, columns)",
        "cost = _cost(program, x, _draw(program.forward(x, s, **columns)), s, t, columns)",
        "tests/test_chain.py::test_of_twenty_steps",
    ),
    Mutant(
        "schedule_learns_nothing_of_its_variance",
        "relative = cost.detach() / cost.detach().mean()",
        "relative = torch.ones_like(cost)",
        "tests/test_chain.py::test_a_learned_schedule_lowers_the_variance_of_the_limit",
    ),
    # -- the probability-flow ODE --------------------------------------------------------------------------------
    Mutant(
        "ode_units_of_the_data",
        "rest = mean.shape[-1] * a.log().squeeze(-1) - stretch.log().sum()",
        "rest = mean.shape[-1] * a.log().squeeze(-1)",
        "tests/test_ode.py::test_units_of_the_data",
    ),
    Mutant(
        "ode_field_2pct",
        "return 0.5 * rate * a * (a * h - x)",
        "return 0.49 * rate * a * (a * h - x)",
        "tests/test_ode.py::test_exact_on_a_gaussian[vp]",
    ),
    Mutant(
        "ode_probes_too_long",
        "torch.randint(0, 2, h.shape).to(h) * 2 - 1",
        "1.05 * (torch.randint(0, 2, h.shape).to(h) * 2 - 1)",
        "tests/test_ode.py::test_an_unbiased_estimate_where_the_trace_is_drawn",
    ),
    # -- whole paths ---------------------------------------------------------------------------------------------
    Mutant(
        "paths_without_their_first_density",
        "log_w = program.base(**context).log_prob(z) - q.log_prob(z)",
        "log_w = program.base().log_prob(z)",
        "tests/test_path_weights.py::test_weights_of_whole_paths",
    ),
    Mutant(
        "weighed_ess",
        "float(relative.sum() ** 2 / (relative**2).sum())",
        "float(relative.sum() / (relative**2).sum())",
        "tests/test_path_weights.py::test_weights_of_whole_paths",
    ),
    # -- found unseen in the first count: secondary standard errors, and options that meet ----------------------
    Mutant(
        "times_common_shift",
        "return ((even + shift) % 1.0).reshape(times, rows)",
        "return ((even + shift / n) % 1.0).reshape(times, rows)",
        "tests/test_chain.py::test_the_figure_of_a_fit_is_that_of_all_rows_at_all_times[None]",
    ),
    Mutant(
        "times_common_shift_by_entry",
        "return ((even + shift) % 1.0).reshape(times, rows)",
        "return ((even + shift / n) % 1.0).reshape(times, rows)",
        "tests/test_chain.py::test_times_are_spread_evenly_and_uniform",
    ),
    Mutant(
        "chain_se_sqrt2",
        "se = values.std(0) / math.sqrt(k) if k > 1 else torch.full((n,), math.nan)",
        "se = values.std(0) / math.sqrt(2 * k) if k > 1 else torch.full((n,), math.nan)",
        "tests/test_diffusion.py::test_the_standard_error_of_a_chains_elbo",
    ),
    Mutant(
        "ledger_se_sqrt2",
        "return x.std(-1) / math.sqrt(n) if n > 1",
        "return x.std(-1) / math.sqrt(2 * n) if n > 1",
        "tests/test_diffusion.py::test_the_standard_errors_of_the_ledger",
    ),
    Mutant(
        "bpd_ledger_log10",
        "nats / (self.dims * math.log(2))",
        "nats / (self.dims * math.log(10))",
        "tests/test_diffusion.py::test_bits_of_the_ledger_are_of_base_two_and_by_value",
    ),
    Mutant(
        "classif_free_hide",
        'hidden = torch.rand(columns["y"].shape, dtype=self.zero.dtype) < self.label_dropout',
        'hidden = torch.rand(columns["y"].shape, dtype=self.zero.dtype) > self.label_dropout',
        "tests/test_diffusion.py::test_few_labels_are_hidden_where_few_are_asked_for",
    ),
    Mutant(
        "window_of_a_held_schedule",
        'self.window = None if schedule == "learned" else nearest',
        "self.window = nearest",
        "tests/test_vdm.py::test_probabilities_of_a_held_schedule_are_those_of_a_learned_one",
    ),
    Mutant(
        "samplers_at_steps_even_in_time",
        "times = [1.0, *inner.tolist(), 0.0]",
        "times = [1 - i / steps for i in range(steps + 1)]",
        "tests/test_samplers.py::test_steps_are_even_in_log_snr_whatever_the_schedule[linear]",
    ),
    Mutant(
        "gridnormal_window",
        "max(2, math.ceil(3 * (self.levels - 1) * math.exp(gamma_low / 2)))",
        "max(2, math.ceil((self.levels - 1) * math.exp(gamma_low / 2)))",
        "tests/test_diffusion.py::test_no_level_is_left_out_of_the_likelihood[-2.0]",
    ),
    Mutant(
        "ode_discrete_unit",
        "rest = rest - mean.shape[-1] * unit.log().squeeze(-1)",
        "rest = rest - 0 * unit.log().squeeze(-1)",
        "tests/test_ode.py::test_probabilities_of_all_levels_sum_to_one[ot]",
    ),
    Mutant(
        "ode_discrete_2pct",
        "rest = program.likelihood(z, **columns).log_prob(program.values(x)) - q.log_prob(z)",
        "rest = program.likelihood(z, **columns).log_prob(program.values(x)) - 0.9 * q.log_prob(z)",
        "tests/test_ode.py::test_probabilities_of_all_levels_sum_to_one[vp]",
    ),
    Mutant(
        "ode_se_sqrt2",
        "se = found.std(0) / math.sqrt(draws) if draws > 1",
        "se = found.std(0) / math.sqrt(2 * draws) if draws > 1",
        "tests/test_ode.py::test_standard_errors_are_the_spread_of_what_is_drawn[lower]",
    ),
    Mutant(
        "weigh_khat_sign",
        "float(pareto_k(w[:, None])[0])",
        "float(pareto_k(-w[:, None])[0])",
        "tests/test_path_weights.py::test_the_shape_of_weights_to_a_narrower_and_a_wider_target",
    ),
    Mutant(
        "unipc_moments",
        "moments.append(h**k - k * moments[-1])",
        "moments.append(h**k - moments[-1])",
        "tests/test_samplers.py::test_orders_of_convergence",
    ),
    Mutant(
        "coupled_noise_for_all_rows_but_theirs",
        "noise = torch.stack([e[optimal_pairs(rows, e, label)] for e in noise])",
        "noise = torch.stack([e[optimal_pairs(e, rows, label)] for e in noise])",
        "tests/test_flow_matching.py::test_coupled_noise_is_a_permutation_of_least_distance",
    ),
    Mutant(
        "coupled_noise_across_labels",
        "noise = torch.stack([e[optimal_pairs(rows, e, label)] for e in noise])",
        "noise = torch.stack([e[optimal_pairs(rows, e)] for e in noise])",
        "tests/test_flow_matching.py::test_noise_is_coupled_within_each_label",
    ),
    Mutant(
        "jump_beyond_the_end",
        "return y - (level - first) / level * (y - program.denoise(z, t, **columns))",
        "return y - (y - program.denoise(z, t, **columns))",
        "tests/test_distil.py::test_a_jump_is_a_step_of_ddim_and_stands_still_at_the_end",
    ),
    Mutant(
        "consistency_noise_2pct",
        "y = y + (gamma.exp() - first**2).sqrt() * torch.randn_like(y)",
        "y = y + 1.04 * (gamma.exp() - first**2).sqrt() * torch.randn_like(y)",
        "tests/test_distil.py::test_draws_of_the_known_function_are_of_the_data",
    ),
    Mutant(
        "deis_moments",
        "end - k * float((w * v ** (k - 1) * inner).sum())",
        "end - float((w * v ** (k - 1) * inner).sum())",
        "tests/test_samplers.py::test_deis_is_exact_where_the_noise_is_a_polynomial_in_time",
    ),
    Mutant(
        "guidance_without_its_scale",
        "by = sigma**2 / alpha * slope",
        "by = sigma**2 * slope",
        "tests/test_guidance.py::test_a_linear_observation_of_independent_normals_is_exact",
    ),
]
