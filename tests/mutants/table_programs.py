"""Bugs in what a program is passed, asks of Pyro, and gives back to it."""

from planting import Mutant

FILE = "tests/test_pyro_arguments.py"

MUTANTS: list[Mutant] = [
    Mutant(
        "constants_are_one_to_a_graph",
        "return a is b or type(a) is type(b) and isinstance(a, bool | int | float | str) and a == b",
        "return True",
        f"{FILE}::test_a_constant_that_changes_is_seen",
    ),
    Mutant(
        "the_fingerprint_leaves_constants_out",
        "columns |= _fingerprint_of_constant(name, data[name])",
        "pass",
        f"{FILE}::test_the_fingerprint_knows_constants",
    ),
    Mutant(
        "booleans_stay_booleans",
        'msg["given"], msg["value"] = value, value.to(torch.get_default_dtype())',
        "pass",
        f"{FILE}::test_booleans_are_observed_as_numbers",
    ),
    Mutant(
        "obs_mask_leaves_latents_flat",
        'elif not msg["is_observed"] and msg["name"] in {f"{name}_unobserved" for name in self.partly}:',
        "elif False:",
        f"{FILE}::test_obs_mask_has_a_bound_and_not_one_that_grows",
    ),
    Mutant(
        "plates_stay_subsampled",
        "return own(name, size, None if subsample is None else subsample_size, subsample, *rest)",
        "return own(name, size, subsample_size, subsample, *rest)",
        f"{FILE}::test_a_subsampled_program_is_evaluated_on_all_rows",
    ),
    Mutant(
        "sites_do_not_ask_to_be_summed",
        'asked = terms != "subsampled" and site["infer"].get("enumerate") is not None',
        "asked = False",
        f"{FILE}::test_sites_ask_to_be_summed_out",
    ),
    Mutant(
        "the_store_is_not_looked_at",
        'if not getattr(program, "pair", None) or not found:',
        "if True:",
        f"{FILE}::test_what_pyro_trained_is_taken_up",
    ),
    Mutant(
        "float32_is_not_found_out",
        'return "dtype" in str(error) or "scalar type" in str(error)',
        "return False",
        f"{FILE}::test_float32_that_a_program_holds_is_computed_with",
    ),
    Mutant(
        "a_loss_without_its_gradient",
        "return torch.as_tensor(value).detach() + path - path.detach()",
        "return torch.as_tensor(value).detach() - path + path.detach()",
        f"{FILE}::test_a_loss_of_pyros_is_trained",
    ),
    Mutant(
        "draws_of_other_sites_are_stacked",
        "if names and names != list(found):",
        "if False:",
        "tests/test_pyro_programs.py::test_what_follows_a_fit",
    ),
    Mutant(
        "a_weight_of_dormand_and_prince",
        "64448 / 6561, -212 / 729),",
        "64448 / 6561, 212 / 729),",
        "tests/test_differential_equations.py::test_the_error_falls_with_the_fifth_power_of_the_step",
    ),
    Mutant(
        "stages_at_the_time_of_the_first",
        "k.append(f(t + c * h, at))",
        "k.append(f(t, at))",
        "tests/test_differential_equations.py::test_an_equation_that_depends_on_time",
    ),
    Mutant(
        "errors_of_steps_that_nobody_reads",
        "if error <= tolerance or key in _said:",
        "if error <= 1e9 or key in _said:",
        "tests/test_differential_equations.py::test_a_solution_by_too_few_steps_is_said",
    ),
]
