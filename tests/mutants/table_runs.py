"""Bugs of run folders: whose code runs, damage that is not seen, two fits in one folder, what a resume changes."""

from planting import Mutant

MUTANTS = [
    Mutant(
        "every_program_is_trusted",
        'if os.environ.get("PPGEN_TRUST") == "all" or name in _here:',
        "if True:",
        "tests/test_trust.py::test_a_folder_from_elsewhere_is_opened_once_it_is_trusted",
    ),
    Mutant(
        "trust_of_the_text_alone",
        'chosen = json.dumps([spec["file"], spec.get("name") or "", spec.get("arguments") or {}], sort_keys=True)',
        'chosen = ""',
        "tests/test_trust.py::test_no_command_runs_anothers_code[arguments-evaluate]",
    ),
    Mutant(
        "a_models_name_is_any_file",
        'if spec.get("model"):\n    return catalog.model(spec["model"])\ntext = program_text(path, spec)',
        'if spec.get("model"):\n    return catalog.find(spec["model"])\ntext = program_text(path, spec)',
        "tests/test_trust.py::test_no_command_runs_anothers_code[model_is_a_file-evaluate]",
    ),
    Mutant(
        "a_tree_of_draws_reads_its_program_again",
        'return catalog.find_in(file, spec.get("name") or "", text)',
        'return catalog.find_in(file, spec.get("name") or "")',
        "tests/test_trust.py::test_what_was_held_against_the_list_is_what_a_tree_of_draws_runs",
    ),
    Mutant(
        "neighbours_of_a_runs_program",
        "if not alone:\n    sys.path.insert(0, folder)",
        "if True:\n    sys.path.insert(0, folder)",
        "tests/test_trust.py::test_the_text_that_was_read_is_what_runs",
    ),
    Mutant(
        "digest_not_compared",
        "if digest and digest != _digest(path):",
        "if False:",
        "tests/test_run_config.py::test_no_bit_flips_unnoticed",
    ),
    Mutant(
        "nobody_holds_the_lock",
        "fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)",
        "tests/test_faults.py::test_a_second_fit_or_resume_waits_for_nobody_and_says_who_is_there",
    ),
    Mutant(
        "a_folder_of_others_is_taken",
        "names = sorted(p.name for p in path.iterdir()) if path.is_dir() else []",
        "names: list[str] = []",
        "tests/test_run_config.py::test_out_is_a_folder_of_its_own",
    ),
    Mutant(
        "the_step_after_a_resume_is_eager",
        "if key not in self._runs and _label(key) in self.engines.runs:",
        "if False:",
        "tests/test_state.py::test_the_step_after_a_resume_runs_on_the_graph",
    ),
    Mutant(
        "a_checkpoint_without_a_finite_loss",
        "if stopped or last:\n                _write(loop)",
        "_write(loop)",
        "tests/test_state.py::test_the_advice_after_divergence_can_be_followed",
    ),
    Mutant(
        "nan_parameters_pass",
        "bad = int((~torch.isfinite(value)).sum())",
        "bad = 0",
        "tests/test_state.py::test_parameters_that_are_not_finite_are_refused",
    ),
    Mutant(
        "changes_without_a_history",
        'config["history"].append(',
        'list(config["history"]).append(',
        "tests/test_state.py::test_options_can_change_and_the_run_says_when",
    ),
    Mutant(
        "a_missing_key_passes",
        "if f.name not in value and f.default is MISSING and f.default_factory is MISSING:",
        "if False:",
        "tests/test_run_config.py::test_every_key_is_looked_at",
    ),
    Mutant(
        "a_summary_of_several_variables_at_once",
        'summary(one, round_to="none", ci_prob=LEVEL, **options) for one in each',
        'summary(tree, var_names=shown(tree), round_to="none", ci_prob=LEVEL, **options) for _ in [0]',
        "tests/test_shown.py::test_every_label_of_the_summary_has_its_own_figures",
    ),
]
