"""Bugs in programs within programs, and in the objectives of weights."""

from planting import Mutant

HAND = "tests/test_nested.py::test_a_nested_program_is_the_one_written_out_by_hand"

MUTANTS = [
    Mutant(
        "an_inner_value_that_is_drawn_anew",
        'msg["is_observed"], msg["value"], msg["done"] = False, None, False\n                msg.pop("given", None)',
        'msg["is_observed"] = True',
        HAND,
    ),
    Mutant("no_inner_guide", "scope.guide = True", "return", HAND),
    Mutant(
        "a_chain_of_one_time_for_all_rows",
        "own = v.expand(batch) if v.dim() < nesting else v.expand(batch + v.shape[nesting:])",
        "own = v[:1].expand(batch + v.shape[nesting:])",
        "tests/test_nested.py::test_a_long_chain_within_gives_the_elbo_of_the_explicit_one",
    ),
    Mutant(
        "weights_of_a_chain_that_is_drawn",
        'if site["infer"].get("drawn"):',
        'if site["infer"].get("drawn") == 0:',
        "tests/test_nested.py::test_a_long_chain_within_has_an_elbo_and_no_importance_weighted_bound",
    ),
    Mutant(
        "a_frozen_program_that_learns",
        "program.requires_grad_(False)",
        "program.requires_grad_(True)",
        "tests/test_nested.py::test_a_frozen_program_stays_as_it_is",
    ),
    Mutant(
        "a_frozen_program_in_training_mode",
        'return super().train(mode and "held" not in self.__dict__)',
        "return super().train(mode)",
        "tests/test_nested.py::test_a_frozen_program_is_in_eval_mode",
    ),
    Mutant(
        "a_chains_value_taken_for_a_point_mass",
        'or is_deterministic(msg) or msg["infer"].get("drawn"):',
        "or is_deterministic(msg):",
        "tests/test_nested.py::test_a_guide_of_ours_or_pyros_infers_the_value_of_a_long_chain",
    ),
    Mutant(
        "wake_sleep_by_parts_of_the_rows",
        'learned = getattr(self.bound, "OF_A_PART", "") if trained else ""',
        'learned = ""',
        "tests/test_objectives.py::test_wake_sleep_takes_all_rows_of_a_shared_latent",
    ),
    Mutant(
        "a_calibration_that_trains_the_model",
        "return _read(program, value) - _read(program, joint)",
        "return _read(program, value)",
        "tests/test_calibrate.py::test_a_parameter_of_the_model_that_the_guide_reads_stays[True]",
    ),
    Mutant(
        "another_thing_than_the_column_is_observed",
        'torch.equal(own["value"].to(drawn.dtype), drawn)',
        "True",
        "tests/test_nested.py::test_what_cannot_be_within_is_refused_in_a_sentence",
    ),
    Mutant(
        "what_is_summed_out_is_drawn_for_the_inner_guide",
        "if read and around.summed:",
        "if read and not around.summed:",
        "tests/test_nested.py::test_what_is_summed_out_is_no_column_of_an_inner_guide",
    ),
    Mutant(
        "vimco_without_its_baseline",
        "surrogate = value + ((value - without).detach() * log_q).sum(0)",
        "surrogate = value + (without.detach() * log_q).sum(0)",
        "tests/test_objectives.py::test_vimco_has_the_gradient_of_the_importance_weighted_bound",
    ),
    Mutant(
        "score_with_the_weight_of_a_warm_up",
        "log_q = -log_weights(guide, s._replace(kl_weight=1.0), target=True)",
        "log_q = -log_weights(guide, s, target=True)",
        "tests/test_objectives.py::test_a_kl_weight_is_no_part_of_the_score_of_the_guide[rws-300-0.3]",
    ),
    Mutant(
        "rws_with_even_weights",
        "weights = log_w.detach().softmax(0)",
        "weights = (0 * log_p).detach().softmax(0)",
        "tests/test_objectives.py::test_rws_moves_the_guide_by_the_gradient_of_the_forward_kl",
    ),
    Mutant(
        "doubly_reparametrized_with_single_weights",
        "surrogate = (weights * model_weights(terms, s) + twice * along).sum(0)",
        "surrogate = (weights * model_weights(terms, s) + weights * along).sum(0)",
        "tests/test_objectives.py::test_doubly_reparametrized_gradients_are_those_of_the_importance_weighted_bound",
    ),
    Mutant(
        "doubly_reparametrized_with_the_draws_path_in_the_models_part",
        'fixed.nodes[name] = {**site, "value": site["value"].detach()}',
        'fixed.nodes[name] = {**site, "value": site["value"]}',
        "tests/test_objectives.py::test_doubly_reparametrized_gradients_are_those_of_the_importance_weighted_bound",
    ),
    Mutant(
        "targets_lost_over_many_draws",
        'for n in ("value", "log_prob", "log_density", "target", "scale", "counts")}',
        'for n in ("value", "log_prob", "log_density", "scale", "counts")}',
        "tests/test_objectives.py::test_doubly_reparametrized_gradients_are_those_of_the_importance_weighted_bound",
    ),
    Mutant(
        "chi_square_weights_of_the_first_power",
        "(n - 1) / n * (n * log_w).softmax(0) * log_q",
        "(n - 1) / n * log_w.softmax(0) * log_q",
        "tests/test_objectives.py::test_the_chi_square_bound_moves_the_guide_by_its_own_gradient",
    ),
    Mutant(
        "sleep_at_the_data",
        'columns[own[0]] = site["value"].to(data[own[0]])',
        "columns[own[0]] = data[own[0]]",
        "tests/test_objectives.py::test_wake_sleep_moves_the_guide_by_the_gradient_of_the_forward_kl",
    ),
    Mutant(
        "tvo_without_its_covariance",
        "surrogate.append(width * (weights * log_w + away *",
        "surrogate.append(width * (weights * log_w + 0 * away *",
        "tests/test_objectives.py::test_the_thermodynamic_bound_and_its_gradient_are_closed_forms",
    ),
    Mutant(
        "groups_of_miwae_that_are_all_draws",
        "log_w.unflatten(0, (-1, groups))",
        "log_w.unflatten(0, (groups, -1))",
        "tests/test_objectives.py::test_groups_of_weights_lie_between_the_elbo_and_the_importance_weighted_bound",
    ),
    Mutant(
        "free_bits_of_the_bound_that_is_reported",
        "own = own.clamp(max=-free_bits * weight * _rows(t, s))",
        "found[-1] = own = own.clamp(max=-free_bits * weight * _rows(t, s))",
        "tests/test_objectives.py::test_what_is_trained_on_with_weighted_latents_is_not_what_is_reported",
    ),
    Mutant(
        "free_bits_of_masked_rows",
        "counts = torch.ones_like(t.log_prob) if t.counts is None else t.counts",
        "counts = torch.ones_like(t.log_prob)",
        "tests/test_objectives.py::test_free_bits_of_masked_rows_were_taken_off_the_cost_of_others[1-False]",
    ),
    Mutant(
        "pairs_of_latents_of_one_row_alone",
        "ratio = float(of_rows.log_ratio[:, place].mean())",
        "ratio = float(of_rows.log_ratio[:, place].mean()) * (weights.rows is None)",
        "tests/test_diagnose.py::test_a_correlation_within_a_row_that_the_guide_has_not_is_seen",
    ),
]
