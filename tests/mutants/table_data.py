"""Bugs of what goes in and what comes out: columns, splits, batches, fingerprints; figures of pages and pictures."""

from planting import Mutant

FIGURES = "tests/test_report.py::test_the_figures_are_those_of_the_functions_that_make_them"

MUTANTS = [
    # -- data ----------------------------------------------------------------------------------------------------
    Mutant(
        "fingerprint_without_type",
        'digest = hashlib.sha256(f"{shape} {dtype} ".encode())',
        'digest = hashlib.sha256(f"{shape} ".encode())',
        "tests/test_data.py::test_fingerprint",
    ),
    Mutant(
        "fingerprint_without_shape",
        'digest = hashlib.sha256(f"{shape} {dtype} ".encode())',
        'digest = hashlib.sha256(f"{dtype} ".encode())',
        "tests/test_data.py::test_fingerprint_tells_apart",
    ),
    Mutant(
        "fingerprint_without_names",
        'total = hashlib.sha256(repr([(n, c["sha256"]) for n, c in columns.items()]).encode())',
        'total = hashlib.sha256(repr([c["sha256"] for n, c in columns.items()]).encode())',
        "tests/test_data.py::test_fingerprint_tells_apart",
    ),
    Mutant(
        "splits_overlap",
        "return take(data, _order(n, seed)[cuts[at] : cuts[at + 1]])",
        "return take(data, _order(n, seed)[max(cuts[at] - 1, 0) : cuts[at + 1]])",
        "tests/test_data.py::test_seeded_split_is_a_partition",
    ),
    Mutant(
        "valid_is_trained_on",
        'return take(train, order[n - held_out :] if split == "valid" else order[: n - held_out])',
        'return take(train, order[n - held_out :] if split == "valid" else order)',
        "tests/test_data.py::test_valid_is_held_out_of_train",
    ),
    Mutant(
        "every_epoch_in_one_order",
        'digest = hashlib.sha256(f"ppgen epoch {seed} {epoch}".encode()).digest()',
        'digest = hashlib.sha256(f"ppgen epoch {seed}".encode()).digest()',
        "tests/test_data.py::test_each_row_comes_equally_often_at_each_place",
    ),
    Mutant(
        "last_rows_never_seen",
        "epoch, offset = divmod(position, n_rows)",
        "epoch, offset = divmod(position, n_rows - n_rows % batch_size or n_rows)",
        "tests/test_data.py::test_batches_are_one_stream_of_permutations",
    ),
    Mutant(
        "infinite_values_pass",
        "if not torch.isfinite(block.sum()) and (wrong := ~torch.isfinite(block)).any():",
        "if (wrong := torch.isnan(block)).any():",
        "tests/test_data.py::test_validate_names_what_is_wrong",
    ),
    Mutant(
        "a_rows_place_in_a_mapped_file_is_wrong",
        "begin = memory.offset + column.storage_offset() * column.element_size()",
        "begin = memory.offset",
        "tests/test_large.py::test_a_large_npy_is_mapped_and_says_what_it_would_say_in_memory",
    ),
    Mutant(
        "a_written_column_is_given_back",
        'if not _MAPS or column.device.type != "cpu" or column._version:',
        'if not _MAPS or column.device.type != "cpu":',
        "tests/test_large.py::test_the_file_is_never_written_to_and_a_written_column_is_left_alone",
    ),
    Mutant(
        "figures_become_categories",
        'if in_figures == some or in_figures > some / 2 and most != "word":',
        "if in_figures > some:",
        "tests/test_data_faults.py::test_text_that_is_plainly_a_number_is_that_number_or_a_sentence_and_no_category",
    ),
    Mutant(
        "held_words_are_coded_anew",
        "held = data.Table({**held, **found}, {**held.types, **found.types})",
        "held = data.Table({**held, **found})",
        "tests/test_data_faults.py::test_a_word_that_the_fit_did_not_see_is_named_by_every_command",
    ),
    Mutant(
        "the_hidden_slot_is_a_label",
        "wrong |= (y.long() >= n) if not beyond else False",
        "wrong |= (y.long() > n) if not beyond else False",
        "tests/test_data_faults.py::test_labels_out_of_range_are_refused_at_fit_evaluate_and_sample",
    ),
    # -- pages and pictures --------------------------------------------------------------------------------------
    Mutant(
        "report_se_of_rows",
        'float(b["se"])',
        'float(b["rows_se"])',
        f"{FIGURES}",
    ),
    Mutant(
        "report_elbo_of_the_whole",
        'elbo = m["elbo"][np.isfinite(m["elbo"])] / (run.config["data"]["rows"] if run.structure.by_row else 1)',
        'elbo = m["elbo"][np.isfinite(m["elbo"])]',
        f"{FIGURES}",
    ),
    Mutant(
        "report_sd_is_a_variance",
        "float(x.std()) if x.numel() > 1 else 0.0",
        "float(x.var()) if x.numel() > 1 else 0.0",
        f"{FIGURES}",
    ),
    Mutant(
        "report_calibration_columns",
        'for k in ("p", "contraction", "z_mean", "z_sd"))]',
        'for k in ("p", "contraction", "z_sd", "z_mean"))]',
        "tests/test_report.py::test_calibration_is_on_the_page",
    ),
    Mutant(
        "predictive_p_of_the_other_tail",
        "p = float(((r > t).sum() + 0.5 * (r == t).sum() + 0.5) / (len(r) + 1))",
        "p = float(((r < t).sum() + 0.5 * (r == t).sum() + 0.5) / (len(r) + 1))",
        "tests/test_report.py::test_predictive_checks_against_a_law_that_is_known",
    ),
    Mutant(
        "predictive_residuals_that_are_small",
        "(self.p > 1 - self.rare and not self.upper)",
        "self.p > 1 - self.rare",
        "tests/test_findings.py::test_residuals_of_a_model_that_adapts_to_its_rows_are_smaller_than_its_own_and_no_alarm",
    ),
    Mutant(
        "predictive_of_masked_values",
        'some = (found != 0).any("draw")',
        'some = (found == found).any("draw")',
        "tests/test_findings.py::test_what_cannot_be_compared_with_draws_is_left_out[masked]",
    ),
    Mutant(
        "what_is_fine_comes_first",
        "key=lambda f: VERDICTS.index(f.verdict))",
        "key=lambda f: -VERDICTS.index(f.verdict))",
        "tests/test_report.py::test_a_narrow_guide_comes_first",
    ),
    Mutant(
        "plot_elbo_band",
        "axis.fill_between(step, elbo - 2 * se, elbo + 2 * se",
        "axis.fill_between(step, elbo - se, elbo + se",
        "tests/test_plot.py::test_elbo_is_in_nats_a_row_with_its_error",
    ),
    Mutant(
        "plot_elbo_of_the_whole",
        'per = 1 if whole else recorded["rows"]',
        "per = 1",
        "tests/test_plot.py::test_elbo_is_in_nats_a_row_with_its_error",
    ),
    Mutant(
        "contours_of_other_shares",
        "mass = order.cumsum() / order.sum()",
        "mass = order.cumsum() ** 2 / (order**2).sum()",
        "tests/test_corner.py::test_contours_hold_their_share_of_the_draws",
    ),
    Mutant(
        "density_of_half_the_picture",
        "density = _log_density(run, {next(iter(run.example)): grid}, name).exp().reshape(160, 160)",
        "density = _log_density(run, {next(iter(run.example)): grid}, name).div(2).exp().reshape(160, 160)",
        "tests/test_corner.py::test_the_density_shown_integrates_to_one",
    ),
    Mutant(
        "missing_cells_count",
        'msg["mask"] = seen if msg["mask"] is None else seen & msg["mask"]',
        'msg["mask"] = None',
        "tests/test_gaps.py::test_a_masked_cell_counts_for_nothing",
    ),
    Mutant(
        "days_begin_anew_in_every_table",
        "return value + _days_between(own.unit, kept.unit), kept",
        "return value, kept",
        "tests/test_types_kept.py::test_a_frame_in_memory_says_the_same_as_a_file",
    ),
    Mutant(
        "every_comma_is_a_decimal_mark",
        "must_be_comma = comma & ~thousands",
        "must_be_comma = comma",
        "tests/test_data_faults.py::test_text_that_is_plainly_a_number_is_that_number_or_a_sentence_and_no_category",
    ),
    Mutant(
        "leading_zeros_are_lost",
        "if not whole or not _has_zeros(self.path, self.separator):",
        "if whole:",
        "tests/test_types.py::test_the_type_of_a_file_with_known_truth",
    ),
    Mutant(
        "a_piece_of_a_csv_is_rounded",
        "odd += [name for name in self.names if name not in odd and _is_rounded(name, parts, moments)]",
        "odd += []",
        "tests/test_readers.py::test_a_csv_in_pieces_is_that_read_at_once",
    ),
    Mutant(
        "channels_last_stay_last",
        "return x.permute(0, 3, 1, 2).contiguous()",
        "return x",
        "tests/test_images.py::test_channels_last_are_turned_where_a_program_has_them_first",
    ),
    Mutant(
        "numbers_beside_units_without_one_are_let_pass",
        "not re.fullmatch(_MONEY, units[0], re.I)",
        "False",
        "tests/test_odd_files.py::test_a_messy_file_is_right_or_one_sentence",
    ),
    Mutant(
        "a_new_word_is_the_next_number",
        "if name not in groups:",
        "if name in ():",
        "tests/test_types_kept.py::test_a_new_word_is_a_new_group_only_where_the_model_has_groups",
    ),
]
