"""Bugs of maps and their log-determinants: transforms, flows, the flow guide."""

from planting import Mutant

LAW = "tests/test_transforms.py::test_log_det_is_that_of_autograds_jacobian"
BACK = "tests/test_transforms.py::test_inverse_of_forward_is_the_value_and_the_reverse"
SINGLE = "tests/test_transforms.py::test_single_transforms_have_both_directions_and_their_log_det"

MUTANTS = [
    # -- log-determinants ----------------------------------------------------------------------------------------
    Mutant(
        "conv1x1_one_pixel",
        "total = self.log_diagonal.sum() * self.shape[1:].numel()",
        "total = self.log_diagonal.sum()",
        f"{SINGLE}[conv1x1]",
    ),
    Mutant(
        "actnorm_one_pixel",
        "ladj = self.log_scale.sum() * self.shape[1:].numel()",
        "ladj = self.log_scale.sum()",
        f"{SINGLE}[glow]",
    ),
    Mutant(
        "tarflow_log_det_sign",
        "return x, -self.pull(x)[1]",
        "return x, self.pull(x)[1]",
        "tests/test_transforms.py::test_a_patch_depends_on_those_before_it",
    ),
    Mutant(
        "tarflow_patches_not_turned_back",
        "parts = patches.flip(-2) if self.backward else patches",
        "parts = patches",
        f"{SINGLE}[tarflow]",
    ),
    Mutant(
        "spline_slope_ends_swapped",
        "b.d0 * rest * rest + b.d1 * share * share",
        "b.d1 * rest * rest + b.d0 * share * share",
        f"{LAW}[nsf]",
    ),
    Mutant(
        "coupling_draw_log_det_sign",
        "-functions.log_abs_det_jacobian(x, b).sum(-1)",
        "functions.log_abs_det_jacobian(x, b).sum(-1)",
        f"{LAW}[realnvp]",
    ),
    Mutant(
        "split_log_det_mean",
        "return torch.cat((a, (b - loc) * (-log_scale).exp()), -3), -log_scale.flatten(-3).sum(-1)",
        "return torch.cat((a, (b - loc) * (-log_scale).exp()), -3), -log_scale.flatten(-3).mean(-1)",
        f"{SINGLE}[split]",
    ),
    Mutant(
        "radial_one_dimension_more",
        "(self.shape[0] - 1) * torch.log1p(beta * h)",
        "self.shape[0] * torch.log1p(beta * h)",
        f"{LAW}[radial]",
    ),
    Mutant(
        "planar_derivative_of_tanh",
        "return z + u * t[..., None], torch.log1p((1 - t.square()) * (w @ u))",
        "return z + u * t[..., None], torch.log1p((1 - t) * (w @ u))",
        f"{LAW}[planar]",
    ),
    Mutant(
        "sylvester_without_s",
        "torch.log1p((1 - t.square()) * R.diagonal() * S.diagonal())",
        "torch.log1p((1 - t.square()) * R.diagonal())",
        f"{LAW}[sylvester]",
    ),
    Mutant(
        "bernstein_degree",
        "slope = rise * (self.degree / (2 * self.bound))",
        "slope = rise * ((self.degree - 1) / (2 * self.bound))",
        f"{LAW}[bpf]",
    ),
    Mutant("gaussianization_peak", "ladj = slope.log() + peak", "ladj = slope.log()", f"{LAW}[gf]"),
    Mutant(
        "lipswish_slope",
        "slopes.append(share * (1 + x * (1 - share)) / 1.1)",
        "slopes.append(share * (1 + x * (1 - share)))",
        f"{LAW}[residual]",
    ),
    Mutant(
        "roulette_without_its_probability",
        "(-1) ** (k + 1) / (k * kept)",
        "(-1) ** (k + 1) / k",
        "tests/test_transforms.py::test_the_roulette_of_the_residual_series_is_weighed",
    ),
    Mutant(
        "continuous_trace_without_slopes",
        "return ((slopes[1] @ (second * (first @ last).mT)) * slopes[0]).sum(-1)",
        "return (slopes[1] @ (second * (first @ last).mT)).sum(-1)",
        "tests/test_transforms.py::test_traces_carried_forward_are_those_of_autograds_jacobian",
    ),
    Mutant(
        "hutchinson_mean",
        "return (noise * moved).sum(-1)",
        "return (noise * moved).mean(-1)",
        "tests/test_transforms.py::test_traces_carried_forward_are_those_of_autograds_jacobian",
    ),
    Mutant(
        "inverse_keeps_the_sign",
        "return z, -self.transform.pull(z, context)[1] if ladj is None else ladj",
        "return z, self.transform.pull(z, context)[1] if ladj is None else ladj",
        "tests/test_transforms.py::test_density_integrates_to_one[iaf]",
    ),
    Mutant(
        "log_det_of_the_other_direction",
        'self._remember(z, x, -ladj, made="z")',
        'self._remember(z, x, ladj, made="z")',
        "tests/test_transforms.py::test_density_integrates_to_one[nsf]",
    ),
    Mutant(
        "whitening_log_det_sign",
        "self.ladj.copy_(-root.diagonal().log().sum())",
        "self.ladj.copy_(root.diagonal().log().sum())",
        "tests/test_flow.py::test_whitening_is_counted_and_undone",
    ),
    # -- the maps themselves -------------------------------------------------------------------------------------
    Mutant(
        "spline_inverse_bend",
        "bend = rise * (b.d0 + b.d1 - 2 * s)",
        "bend = rise * (b.d0 + b.d1 - s)",
        f"{BACK}[nsf]",
    ),
    Mutant(
        "lu_permutation_the_wrong_way",
        "y = torch.linalg.solve_triangular(L, self.P.mT @ self._columns(z)",
        "y = torch.linalg.solve_triangular(L, self.P @ self._columns(z)",
        f"{SINGLE}[lu5]",
    ),
    Mutant(
        "householder_half",
        "inner = inner.triu(1) + inner.diagonal().diag() / 2",
        "inner = inner.triu(1) + inner.diagonal().diag()",
        f"{SINGLE}[orthogonal]",
    ),
    Mutant(
        "multiscale_other_half",
        "x, out = x.chunk(2, -3)",
        "out, x = x.chunk(2, -3)",
        f"{SINGLE}[glow]",
    ),
    Mutant(
        "stale_memory",
        'if memo is not None and memo["x"]() is x and memo["state"] is not None and memo["state"] == self._state():',
        'if memo is not None and memo["x"]() is x and memo["state"] is not None:',
        "tests/test_transforms.py::test_nothing_is_remembered_beyond_a_step[maf]",
    ),
    Mutant(
        "memory_of_what_was_written_into",
        'if z is not None and memo["versions"] == (_version(z), _version(x)):',
        "if z is not None:",
        "tests/test_transforms.py::test_draws_that_were_written_into_have_the_density_of_what_they_are[maf]",
    ),
    Mutant(
        "umnn_quadrature_2pct",
        "area = within * (values[:-1] * weights.reshape(column)).sum(0)",
        "area = 1.02 * within * (values[:-1] * weights.reshape(column)).sum(0)",
        f"{LAW}[sospf]",
    ),
    # -- flows and the flow guide --------------------------------------------------------------------------------
    Mutant(
        "flow_scale_is_a_variance",
        "parts.append(AffineTransform(self.loc, self.scale, event_dim=1))",
        "parts.append(AffineTransform(self.loc, self.scale.sqrt(), event_dim=1))",
        "tests/test_flow.py::test_standardisation_is_counted_and_undone",
    ),
    Mutant(
        "context_not_centred",
        "return (c - self.context_loc) / self.context_scale",
        "return c / self.context_scale",
        "tests/test_flow.py::test_the_context_is_standardised_as_x_is",
    ),
    Mutant(
        "flow_guide_tails",
        "return z + self.rate * t**3 * z.sign(), (3 * self.rate * t * t).log1p().sum(-1)",
        "return z + self.rate * t**3 * z.sign(), (2 * self.rate * t * t).log1p().sum(-1)",
        "tests/test_guides.py::test_density_of_a_stack_is_that_of_the_change_of_variables",
    ),
    Mutant(
        "flow_guide_own_density",
        "self._drawn = u, _log_normal(e) - ladj",
        "self._drawn = u, _log_normal(e) + ladj",
        "tests/test_guides.py::test_what_it_drew_it_knows_the_density_of",
    ),
    Mutant(
        "constraints_not_counted",
        "total = total + b.transform.log_abs_det_jacobian(inner[name], latents[name]).sum()",
        "total = total + 0.9 * b.transform.log_abs_det_jacobian(inner[name], latents[name]).sum()",
        "tests/test_engine.py::test_log_joint_is_the_density",
    ),
    Mutant(
        "moving_constraints_not_counted",
        'self.log_det = self.log_det + transform.log_abs_det_jacobian(u, msg["value"]).sum()',
        'self.log_det = self.log_det + 0.9 * transform.log_abs_det_jacobian(u, msg["value"]).sum()',
        "tests/test_mcmc.py::test_its_transform_is_asked_of_each_run",
    ),
    Mutant(
        "supports_of_one_run",
        'return [n for n, b in first.items() if n in again and not _same(b, tensors(again[n]["fn"]))]',
        "return []",
        "tests/test_mcmc.py::test_a_support_that_depends_on_a_latent",
    ),
    Mutant(
        "angles_on_the_line",
        "    if type(fn) not in ON_CIRCLE:",
        "    if True:",
        "tests/test_mcmc.py::test_an_angle_stays_on_its_circle",
    ),
    Mutant(
        "transformed_latents_with_the_codomain_for_support",
        "    return _codomain(self) if found is None else found",
        "    return _codomain(self)",
        "tests/test_supports.py::test_chains_stay_within_the_support",
    ),
    Mutant(
        "lkj_as_torch_draws_it",
        "    self._beta = Beta(below / 2, ",
        "    self._beta = Beta(below - 0.5, ",
        "tests/test_corrected.py::test_correlations_of_lkj_are_those_of_its_beta",
    ),
    Mutant(
        "coalescent_times_of_rate_one",
        "validate_args=False), torch.Size(sample_shape)) / rate",
        "validate_args=False), torch.Size(sample_shape))",
        "tests/test_corrected.py::test_coalescent_times_are_drawn_at_their_rate",
    ),
    Mutant(
        "the_jacobian_of_a_covariance_without_its_twos",
        "        return d * torch.log(torch.tensor(2.0)).to(x) + (logs",
        "        return (logs",
        "tests/test_corrected.py::test_a_support_has_its_bijection",
    ),
    Mutant(
        "a_zero_derivative_is_one",
        "if g is None or not bool(g.any())]",
        "if g is None]",
        "tests/test_cut_gradients.py::test_a_cut_latent_is_named",
    ),
    Mutant(
        "a_transformers_order_and_its_inverse",
        "        return z[..., 0][..., self.order], ladj.sum(-1)",
        "        return z[..., 0][..., self.order.argsort()], ladj.sum(-1)",
        "tests/test_transforms.py::test_a_transformers_features_follow_those_before_them_in_its_order",
    ),
    Mutant(
        "a_transformer_that_is_told_of_other_numbers",
        "tokens = x.asinh()[..., None]",
        "tokens = x.sinh()[..., None]",
        "tests/test_transforms.py::test_a_transformers_density_is_the_product_of_its_mixtures",
    ),
]
