"""Bugs of chains of latents: the algebra, schedules, samplers, the ODE, filling in, whole paths, the terms of the bound."""

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
]
