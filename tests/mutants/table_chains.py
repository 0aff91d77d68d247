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
        "tests/test_samplers.py::test_dpm_solver_by_hand",
    ),
    Mutant(
        "dpmpp_last_order",
        "if self.before is not None and not (s == 0.0 and self.steps < 15):",
        "if self.before is not None:",
        "tests/test_samplers.py::test_dpm_solver_by_hand",
    ),
    Mutant(
        "dpmpp_ratio",
        "* step / (2 * self.before[1])",
        "* self.before[1] / (2 * step)",
        "tests/test_samplers.py::test_dpm_solver_by_hand",
    ),
    Mutant(
        "sampler_base_2pct",
        "z = program.base().expand([rows]).sample()",
        "z = 1.02 * program.base().expand([rows]).sample()",
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
]
