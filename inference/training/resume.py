"""Going on with a run that was stopped or killed.

To the bit, as everything that the next step depends on stands in state.safetensors, and the order of the data is a
function of the seed and the step alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppgen import data as data_module
from ppgen.check import check, running_of
from ppgen.data.ranges import ranges
from ppgen.errors import PpgenError, lenient, nearest
from ppgen.inference.pyro_objective import loss_of
from ppgen.inference.training.ready import check_options, one_seed
from ppgen.inference.training.state import read_state
from ppgen.inference.training.train import Report, train
from ppgen.program import Program
from ppgen.run import (
    Run,
    default_dtype,
    dtype_of,
    in_dtype,
    load_parameters,
    prepare_columns,
    rebuild,
    require_finite,
)
from ppgen.run.config import read_config
from ppgen.run.example import read_example
from ppgen.run.folder import same_folder

log = logging.getLogger("ppgen")

CHANGEABLE = (
    "steps", "batch_size", "lr", "schedule", "clip", "patience", "particles", "engine", "precision", "device",
    "log_every", "checkpoint_every",
)  # fmt: skip
_NONE_IS_MEANT = ("batch_size", "clip", "patience", "checkpoint_every")  # of the others None keeps what there is


def resume(
    path: str | Path, data: Any = None, *, valid: Any = None, source: str | Path | None = None,
    program: Program | Callable[..., Any] | None = None, report: Report | None = None, **changes: Any,
) -> Run:  # fmt: skip
    """Goes on where a stopped or killed run was, to the result that an unbroken run would have given.

    Args:
        path: the run folder.
        data, valid: needed only where the fit was given data in memory.
        source: where the data that the run was fitted to lie now, if their file was moved; the run keeps it.
        program: needed only where the run cannot build it by itself.
        changes: options of `fit` that are others from here on, out of `CHANGEABLE`: a new total of `steps`, a smaller
            `lr`. config.json keeps the old ones in `history`, with the step of the change.

    Raises:
        PpgenError: no run; other data than the run was fitted to; an option that a run keeps; a fit that is at work.
    """
    path = Path(path)
    read_config(path)
    for name in changes:
        if name not in CHANGEABLE:
            raise PpgenError(
                f"a run keeps its {name}{nearest(name, CHANGEABLE)}; what resume can change is {', '.join(CHANGEABLE)}"
            )
    changes = {name: v for name, v in changes.items() if v is not None or name in _NONE_IS_MEANT}
    with same_folder(path):
        config = read_config(path)  # another fit may have ended since
        if source is not None:
            if config["data"].get("source") is None:
                raise PpgenError(f"{path} was fitted to data in memory, which have no file; pass the rows as data")
            config["data"]["source"] = str(source)
        return _resume(path, config, data, valid, program, report, changes)


def _resume(
    path: Path, config: dict[str, Any], data: Any, valid: Any,
    program: Program | Callable[..., Any] | None, report: Report | None, changes: dict[str, Any],
) -> Run:  # fmt: skip
    recorded, before = config["data"], dict(config["fit"])
    options = config["fit"] = before | changes
    loss = loss_of(options["objective"])
    check_options(options, recorded.get("valid_rows") or valid, loss)
    strict = lenient(not options["strict"])
    with one_seed(options["seed"]), default_dtype(dtype_of(options["precision"])), strict:
        example = read_example(path / "example.safetensors", data if isinstance(data, Mapping) else {})
        example = in_dtype(example, dtype_of(options["precision"]))
        state = read_state(path / "state.safetensors")
        taken = state["progress"]["step"]
        if changes.get("steps", taken) < taken:
            raise PpgenError(
                f"steps is {changes['steps']}, and {path} has taken {taken}; give a total that is beyond them"
            )
        program, structure = rebuild(config, example, path, program)
        load_parameters(program, state["parameters"], path)
        require_finite(program, path)
        run = Run(program, config, structure, example, path)
        run.loss = loss
        train_data = run.data() if data is None else prepare_columns(data, program, run.dtype)
        _require_same(run, data, train_data, before["precision"])
        if valid is None and recorded.get("valid_split"):
            finest = torch.promote_types(run.dtype, dtype_of(before["precision"]))
            valid = run.data(recorded["valid_split"], dtype=finest)
        valid_data = None if valid is None else prepare_columns(valid, program, run.dtype)
        _require_same_valid(run, valid, valid_data, before["precision"])
        first = data_module.take(
            train_data, torch.arange(min(options["batch_size"] or recorded["rows"], recorded["rows"]))
        )
        program.train()
        with running_of(program, first):
            program.setup(first, None)
        structure = check(
            program, train_data, batch_size=options["batch_size"], enumerated=tuple(config["program"]["enumerated"])
        )
        run.structure = structure
        changed = {k: options[k] for k in changes if before[k] != options[k]}
        if changed.keys() & {"engine", "precision", "device"} or "steps" in changed and _was_eager(state):
            state["engines"] = None  # they are chosen anew
        waited = state["progress"]["waited"]
        if options["patience"] and waited >= options["patience"] and taken < options["steps"]:
            log.warning(
                "%s stopped at step %d by its patience, %d evaluations of the held-out rows without a better ELBO, and "
                "goes no further; resume with a larger patience", path, taken, waited,
            )  # fmt: skip
        if changed:
            old = {k: before[k] for k in changed}
            config["history"].append({"step": state["progress"]["step"], "before": old, "after": changed})
        return train(run, train_data, valid_data, state=state, report=report)


def _was_eager(state: Mapping[str, Any]) -> bool:
    engines = state.get("engines")
    return engines is not None and "eager" in (engines["asked"], *engines["runs"].values())


def _require_same(run: Run, data: Any, table: Mapping[str, Tensor], precision: str) -> None:
    """Holds the rows against the fingerprint of those that were fitted, in the precision that they had.

    Raises:
        PpgenError: others.
    """
    recorded, dtype = run.config["data"], dtype_of(precision)
    same = table
    if dtype != run.dtype:
        with default_dtype(dtype):
            same = run.data(dtype=dtype) if data is None else prepare_columns(data, run.program, dtype)
    rows = (data_module.n_rows(table), sorted(data_module.row_columns(table)))
    if data_module.fingerprint(same)["sha256"] != recorded["sha256"]:
        raise PpgenError(
            f"the data are not those that {run.path} was fitted to (their fingerprints differ); pass the same rows"
        )
    if rows != (recorded["rows"], sorted(recorded["row_columns"])):
        raise PpgenError(f"{run.path} says that {recorded['rows']} rows were fitted, and its data have {rows[0]}")
    recorded |= record_of(table)


def _require_same_valid(run: Run, valid: Any, table: Mapping[str, Tensor] | None, precision: str) -> None:
    """Holds the held-out rows against those that were followed, in the precision that they had.

    Raises:
        PpgenError: others, to whose ELBO the best so far says nothing.
    """
    recorded, dtype = run.config["data"], dtype_of(precision)
    followed = recorded.get("valid_rows") or 0
    if followed != (0 if table is None else data_module.n_rows(table)):
        raise PpgenError(f"{run.path} follows {followed} held-out rows; pass the same as valid=")
    if table is None:
        return
    own = before = data_module.fingerprint(table)["sha256"]
    if dtype != run.dtype:
        with default_dtype(dtype):
            before = data_module.fingerprint(prepare_columns(valid, run.program, dtype))["sha256"]
    if recorded.get("valid_sha256", before) != before:
        raise PpgenError(
            f"the held-out rows are not those that {run.path} follows (their fingerprints differ); pass the same as "
            "valid="
        )
    recorded["valid_sha256"] = own


def record_of(data: Mapping[str, Tensor]) -> dict[str, Any]:
    """Fingerprint and ranges of the data; `columns` is the source's choice of columns, and so is not used for it."""
    found = data_module.fingerprint(data)
    return {
        "contents": found["columns"], "sha256": found["sha256"], "ranges": ranges(data, data_module.row_columns(data)),
    }  # fmt: skip
