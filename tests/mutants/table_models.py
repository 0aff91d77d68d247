"""Bugs of densities: the models of the catalogue, distributions, dequantisation."""

from planting import Mutant

MUTANTS = [
    # -- models --------------------------------------------------------------------------------------------------
    Mutant(
        "schools_prior_2pct",
        'tau = pyro.sample("tau", HalfCauchy(zero + 5.0))',
        'tau = pyro.sample("tau", HalfCauchy(zero + 5.1))',
        "tests/test_eight_schools.py::test_log_joint_against_scipy",
    ),
    Mutant(
        "label_given_away",
        "torch.where(known[..., None], sure, logits)",
        "torch.where(known[..., None], logits, logits)",
        "tests/test_semi_supervised_vae.py::test_its_elbo_is_the_papers",
    ),
    Mutant(
        "supervision_in_the_bound",
        "return log_q - log_q.detach()",
        "return log_q",
        "tests/test_semi_supervised_vae.py::test_importance_weights_average_to_the_quadrature",
    ),
    Mutant(
        "unseen_cells_keep_their_density",
        ".log_prob(value) - unseen",
        ".log_prob(value)",
        "tests/test_state_space.py::test_the_density_with_and_without_gaps",
    ),
    Mutant(
        "smoother_spread_of_the_filter",
        "cov = own + gain @ (cov - spread) @ gain.mT",
        "cov = own - gain @ (cov - spread) @ gain.mT",
        "tests/test_state_space.py::test_smoothing_and_forecasts",
    ),
    Mutant(
        "counts_exposure_not_logged",
        "exposure.log().reshape",
        "exposure.reshape",
        "tests/test_vae.py::test_counts_against_quadrature[poisson]",
    ),
    Mutant(
        "counts_dispersion_half_as_large_again",
        "phi = log_phi.exp()",
        "phi = 1.5 * log_phi.exp()",
        "tests/test_vae.py::test_counts_against_quadrature[negative_binomial]",
    ),
    Mutant(
        "cluster_scale_of_another",
        "Normal(self.loc[c], self.scale[c]).to_event(1)",
        "Normal(self.loc[c], self.scale[0 * c]).to_event(1)",
        "tests/test_clustering_vae.py::test_what_is_trained_on_is_its_elbo",
    ),
    Mutant(
        "memberships_without_weights",
        ".log_prob(z[..., None, :]).sum(-1) + self.logits.log_softmax(-1)",
        ".log_prob(z[..., None, :]).sum(-1)",
        "tests/test_clustering_vae.py::test_memberships_by_quadrature",
    ),
    Mutant(
        "arma_mean_not_taken_off",
        "noise = _apply(self.phi, value - self.mu[..., None], -1.0)",
        "noise = _apply(self.phi, value, -1.0) - self.mu[..., None]",
        "tests/test_arma.py::test_the_density",
    ),
    Mutant(
        "arma_draws_sign",
        "_solve(-self.phi, noise)",
        "_solve(self.phi, noise)",
        "tests/test_arma.py::test_draws_undo_the_filter",
    ),
    Mutant(
        "gp_kernel_half",
        "torch.exp(-0.5 * squares / rho",
        "torch.exp(-squares / rho",
        "tests/test_gaussian_process.py::test_density_and_predictions",
    ),
    Mutant(
        "gp_predicted_variance",
        "variance = alpha[..., None] ** 2 - (half**2).sum(-2)",
        "variance = alpha[..., None] ** 2 - 0.98 * (half**2).sum(-2)",
        "tests/test_gaussian_process.py::test_density_and_predictions",
    ),
    Mutant(
        "hmm_first_state",
        "start = emission[..., 0, :] - torch.tensor(float(self.mu.shape[-1])).to(emission).log()",
        "start = emission[..., 0, :]",
        "tests/test_hidden_markov.py::test_the_density_over_all_paths",
    ),
    Mutant(
        "hmm_odd_step_lost",
        "steps = torch.cat([pairs, steps[..., n - 1 :, :, :]], -3) if n % 2 else pairs",
        "steps = pairs",
        "tests/test_hidden_markov.py::test_the_density_over_all_paths",
    ),
    Mutant(
        "mixture_weights_prior",
        "Dirichlet(zero + torch.ones(self.components).to(zero))",
        "Dirichlet(zero + 1.1 * torch.ones(self.components).to(zero))",
        "tests/test_gaussian_mixture.py::test_the_density",
    ),
    Mutant(
        "exposure_not_logged",
        "eta + exposure.log()",
        "eta + exposure",
        "tests/test_count_regression.py::test_poisson_with_exposure",
    ),
    Mutant(
        "negative_binomial_rate",
        "GammaPoisson(phi, phi / mean)",
        "GammaPoisson(phi, 1 / mean)",
        "tests/test_count_regression.py::test_negative_binomial",
    ),
    Mutant(
        "spread_prior_2pct",
        "dist.HalfNormal(scale).to_event(1)",
        "dist.HalfNormal(1.02 * scale).to_event(1)",
        "tests/test_regression.py::test_the_log_joint_of_correlated_effects_that_vary",
    ),
    Mutant(
        "effects_of_the_intercept_alone",
        '(r[given[group["codes"]]] * matrix(group["matrix"], given, scale)).sum(-1)',
        '(r[given[group["codes"]]] * matrix(group["matrix"], given, scale))[..., 0]',
        "tests/test_regression.py::test_the_log_joint_of_correlated_effects_that_vary",
    ),
    Mutant(
        "intercept_scale_2pct",
        'alpha = pyro.sample("alpha", Normal(zero, intercept))',
        'alpha = pyro.sample("alpha", Normal(zero, 1.02 * intercept))',
        "tests/test_linear_regression.py::test_the_density_under_the_horseshoe",
    ),
    Mutant(
        "horseshoe_without_its_local_scales",
        "tau * local * z)",
        "tau * z)",
        "tests/test_linear_regression.py::test_the_density_under_the_horseshoe",
    ),
    Mutant(
        "logistic_sign",
        'pyro.sample("y", Bernoulli(logits=logits), obs=None if y is None else y.to(x))',
        'pyro.sample("y", Bernoulli(logits=-logits), obs=None if y is None else y.to(x))',
        "tests/test_logistic_regression.py::test_the_density",
    ),
    Mutant(
        "radon_spread",
        'alpha = pyro.deterministic("alpha", mu + tau * z)',
        'alpha = pyro.deterministic("alpha", mu + tau * tau * z)',
        "tests/test_radon.py::test_the_density",
    ),
    Mutant(
        "ppca_marginal_noise",
        "noise = (2 * self.log_sigma).exp().expand(self.mu.shape)",
        "noise = self.log_sigma.exp().expand(self.mu.shape)",
        "tests/test_ppca.py::test_log_prob_is_the_dense_marginal",
    ),
    Mutant(
        "ppca_posterior_covariance",
        "covariance_matrix=self.sigma**2 * torch.linalg.inv(M)",
        "covariance_matrix=self.sigma * torch.linalg.inv(M)",
        "tests/test_ppca.py::test_posterior_is_the_dense_conditional",
    ),
    Mutant(
        "ppca_maximum",
        "self.log_sigma.copy_(rest.mean().log() / 2)",
        "self.log_sigma.copy_(rest.mean().log())",
        "tests/test_ppca.py::test_solve_reaches_the_maximum_of_the_likelihood",
    ),
    Mutant(
        "vae_units",
        "fn = Normal(self.low + width * (0.5 + first), width * (softplus(self.noise) + 1e-3) / 2)",
        "fn = Normal(self.low + width * (0.5 + first), (softplus(self.noise) + 1e-3) / 2)",
        "tests/test_vae.py::test_units_of_real_data",
    ),
    Mutant(
        "vae_logistic_location",
        "loc = self.low + width * (0.5 + first)",
        "loc = self.low + width * first",
        "tests/test_vae.py::test_the_decoders_number_is_the_middle_of_the_range",
    ),
    # -- distributions -------------------------------------------------------------------------------------------
    Mutant(
        "logistic_cell_edge",
        "below = logsigmoid((k + 0.5 - loc) * precision)",
        "below = logsigmoid((k + 0.49 - loc) * precision)",
        "tests/test_distributions.py::test_logistic_sums_to_one_with_finite_gradients",
    ),
    Mutant(
        "logistic_end_levels",
        "torch.where(last, zero, below)",
        "below",
        "tests/test_distributions.py::test_logistic_sums_to_one_with_finite_gradients",
    ),
    Mutant(
        "logistic_variance",
        "second + (2 * k - 1) * p",
        "second + 2 * k * p",
        "tests/test_distributions.py::test_draws_and_moments",
    ),
    Mutant(
        "grid_categorical_variance",
        "return (self._moment(2) - self._moment(1) ** 2).clamp_min(0) * self.grid.step**2",
        "return (self._moment(2) - self._moment(1) ** 2).clamp_min(0) * self.grid.step",
        "tests/test_distributions.py::test_draws_and_moments",
    ),
    Mutant(
        "grid_normal_weight",
        "log_weight = -0.5 * ((value - self.loc) / self.scale) ** 2",
        "log_weight = -0.49 * ((value - self.loc) / self.scale) ** 2",
        "tests/test_grid_normal.py::test_probabilities",
    ),
    Mutant(
        "grey_without_its_determinant",
        "grey - (y - m) ** 2 / (2 * total) - 0.5 * (total / variance).log()",
        "grey - (y - m) ** 2 / (2 * total)",
        "tests/test_grid_normal.py::test_the_posterior_mean_in_wide_noise",
    ),
    Mutant(
        "normal_mixture_constant",
        "- 0.5 * math.log(2 * math.pi) * self.loc.shape[-1]",
        "- 0.5 * math.log(2 * math.pi)",
        "tests/test_mixtures.py::test_log_prob_and_its_gradient_equal_torchs",
    ),
    # -- dequantisation ------------------------------------------------------------------------------------------
    Mutant(
        "end_cells_are_bounded",
        "above = (self.v >= k) | (k <= 0)",
        "above = self.v >= k",
        "tests/test_flow.py::test_quantised_and_its_cells",
    ),
    Mutant(
        "noise_beyond_the_cell",
        "parts = [SigmoidTransform(), AffineTransform(k, 1.0, event_dim=1)]",
        "parts = [SigmoidTransform(), AffineTransform(k, 1.1, event_dim=1)]",
        "tests/test_flow.py::test_variational_noise_is_a_density_in_the_cell",
    ),
    Mutant(
        "logit_cells_width",
        "width = levels / (1 - 2 * margin)",
        "width = levels * (1 - 2 * margin)",
        "tests/test_flow.py::test_logit_cells_count_their_jacobian",
    ),
    Mutant(
        "levels_one_too_few",
        "return 0.0, float(top), top + 1",
        "return 0.0, float(top), top",
        "tests/test_flow.py::test_grids_are_found",
    ),
    Mutant(
        "uniform_noise_has_a_density",
        "return torch.where(((u >= 0) & (u <= 1)).all(-1), 0.0, -torch.inf).to(value)",
        "return torch.where(((u >= 0) & (u <= 1)).all(-1), 0.1, -torch.inf).to(value)",
        "tests/test_flow.py::test_a_uniform_distribution_has_log2_of_its_levels",
    ),
    # -- found unseen in the first count: secondary standard errors, and options that meet ----------------------
    Mutant(
        "hmm_prior",
        "HalfNormal(zero + self.scale)).clamp_min(1e-6)",
        "HalfNormal(zero + 1.02 * self.scale)).clamp_min(1e-6)",
        "tests/test_hidden_markov.py::test_the_joint_density_with_its_priors",
    ),
    Mutant(
        "hmm_stay",
        "Dirichlet(1 + self.stay * torch.eye(K).to(zero)))",
        "Dirichlet(1 + self.stay * torch.ones(K, K).to(zero)))",
        "tests/test_hidden_markov.py::test_the_joint_density_with_its_priors",
    ),
    Mutant(
        "hmm_sample_sd10",
        "here = torch.normal(*(p.gather(-1, state[..., None])[..., 0] for p in (mu, sigma)))",
        "here = torch.normal(*(p.gather(-1, state[..., None])[..., 0] for p in (mu, 1.1 * sigma)))",
        "tests/test_hidden_markov.py::test_draws_have_the_chains_moments",
    ),
]
