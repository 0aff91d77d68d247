"""Learning: maximise a lower bound on log p(x) by stochastic gradients. One plain loop.

    θ, φ ← θ, φ + step · ∇ ELBO(θ, φ; minibatch)

`fit` prepares and checks, `train` is the loop, `resume` goes on where a run stopped: to the bit, as
everything that the next step depends on stands in state.safetensors, and the order of the data is a
function of the seed and the step alone.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pyro
import torch
from pyro.infer.autoguide import AutoLaplaceApproximation
from torch import Tensor

from ppgen import data as data_module
from ppgen.check import Checked, check, checked, columns, running_of
from ppgen.check.agreement import subsampled
from ppgen.check.indices import warn_of_negative_indices
from ppgen.check.missing import validate
from ppgen.check.word_order import warn_of_word_order
from ppgen.data.precision import precision_for
from ppgen.data.ranges import ranges
from ppgen.draws import one_draw, parameters_as
from ppgen.engine.graphs.noise import python_randomness
from ppgen.errors import PpgenError, lenient, nearest, of_dtypes, require_known
from ppgen.gaps import find_gaps
from ppgen.guides import file_of, guide_spec, parse
from ppgen.handlers import without_validation
from ppgen.inference import gradients, objectives
from ppgen.inference.objective import Objective, make_objective
from ppgen.inference.pyro_objective import is_ours, loss_of, name_of
from ppgen.inference.training.defaults import LEAST, choose_rates, plain_rates
from ppgen.inference.training.guide_init import start_at
from ppgen.inference.training.optimise import check_optimizer, learning_rate, make_fabric, weight_decay
from ppgen.inference.training.state import read_state
from ppgen.inference.training.step import ENGINES
from ppgen.inference.training.train import Report, train
from ppgen.inference.trend import warn_if_rising
from ppgen.program import Program
from ppgen.run import (
    Run,
    default_dtype,
    describe_program,
    dtype_of,
    in_dtype,
    load_parameters,
    prepare_columns,
    rebuild,
    require_finite,
    versions,
)
from ppgen.run.config import PRECISIONS, VERSION, read_config
from ppgen.run.example import read_example
from ppgen.run.folder import free_folder, new_folder, same_folder
from ppgen.sites import sample_sites
from ppgen.structure import Structure
from ppgen.terms import Traces, model_run

log = logging.getLogger("ppgen")


def fit(
    program: Program | Callable[..., Any], data: Any, *, valid: Any = None, steps: int | None = None,
    until: str | None = None, batch_size: int | None = None, lr: float | None = None, schedule: str | None = None,
    optimizer: str = "Adam", clip: float | None = None, ema: float | None = None, kl_warmup: int = 0,
    patience: int | None = None, objective: Any = None, gradient: str = "pathwise", particles: int = 1,
    guide: str | None = None, starts: int | None = None, engine: str = "auto", precision: str | None = None,
    device: str = "cpu", seed: int = 0, out: str | Path | None = None, log_every: int | None = None,
    checkpoint_every: int | None = None,
    source: Mapping[str, Any] | None = None, report: Report | None = None, strict: bool = True,
) -> Run:  # fmt: skip
    """Fits a program to data by maximising a bound on log p(x).

    The optimiser's loss is −ELBO / N, in nats a row, so that `lr` and `clip` mean the same for every size of data;
    figures are reported in nats over all N rows.

    Args:
        program: a `Program`, or a Pyro model; its parameters are changed in place.
        data: columns by name (tensors, arrays, lists, a DataFrame), or one table for the first column.
        valid: held-out rows; their ELBO is logged, and `patience` counts on it.
        steps: gradient steps; 2000 if None. Where lr, schedule, until and patience are None too, the program says these
            (`ppgen.inference.training.defaults`), and the log what they are: fewer steps where they are costly, and
            where `valid` is followed an average of the parameters, of which the best is kept.
        until: "converged" ends the fit where its averaged iterates have stopped moving, at `steps` at the latest
            (50 000 if None), and keeps the average (`ppgen.inference.training.converge`).
        batch_size: rows a step, by one permutation an epoch; None: `Program.rows_a_step` of many rows, or else all.
        lr, schedule: learning rate, 0.001 if None, and its course over the steps: constant (if None), linear, cosine,
            exponential.
        optimizer: a name in torch.optim, with keywords if wanted: "AdamW(weight_decay=0.01)".
        clip: largest norm of the gradient of the loss a row.
        ema: decay of an exponential moving average of the parameters, which is then what the run keeps.
        kl_warmup: steps over which the weight of the latent terms in the loss rises from 0 to 1.
        patience: evaluations of `valid` without a better ELBO after which the fit stops; it keeps the best.
        objective: the bound, a name of `ppgen.inference.objectives`; None: the one that the program asks for. Or a loss
            that is run as Pyro runs it (`ppgen.inference.pyro_objective`): a name of pyro.infer, an object, a function.
        gradient, particles: the estimator of its gradient, a name of `ppgen.inference.gradients`, and its draws a step.
        guide: name of a guide that replaces the program's (`ppgen.guides`): flow, or one of Pyro's autoguides.
        starts: starting points of a search on all rows for a Gaussian at which a flow, AutoNormal, AutoDiagonalNormal
            or AutoMultivariateNormal begins, and of which bam, bam_low_rank and pathfinder are made; None: 8 for a
            flow and bam, 4 for bam_low_rank, 20 for pathfinder, for Pyro's those of the program (`Program.starts`, 4
            of a formula): of 0 they begin as Pyro made them.
        engine: how a step is run: eager, trace, compile, auto.
        precision: 32-true, 64-true, bf16-mixed, 16-mixed (Fabric's names); None: 64-true by torch's default dtype, the
            float64 tensors of the program or the size of counts, as logged; else 32-true.
        device: cpu, cuda, cuda:1, mps, auto. Under torchrun each process takes its share of every batch.
        seed: the one seed: parameters of the guide, order of the data, draws.
        out: the run folder to write; None keeps the result in memory.
        log_every: steps a row of metrics (and an evaluation of `valid`); about 100 rows by default.
        checkpoint_every, source: steps a checkpoint (None: every 30 seconds); where the data came from, as recorded.
        strict: whether values outside of a support, and columns that are not finite, are refused; else: a warning.
        report: called with each row of metrics, and what to divide its figures by (`per`, `valid_per`).

    Returns:
        The `Run`, its program with the final parameters, in eval mode.

    Raises:
        PpgenError: whatever is wrong with program, data or options, in one sentence, before the first step;
            a loss that stays NaN or infinite, with the site's name.
    """
    program = program if isinstance(program, Program) else Program.from_pair(program)
    loss, either, precision = loss_of(objective), precision is None, precision or precision_for(data, device)
    options: dict[str, Any] = {
        "steps": steps, "until": until, "batch_size": batch_size, "lr": lr, "schedule": schedule,
        "optimizer": optimizer, "clip": clip, "ema": ema, "kl_warmup": kl_warmup, "patience": patience,
        "objective": objective and name_of(objective), "gradient": gradient, "particles": particles, "guide": guide,
        "starts": starts, "engine": engine, "precision": precision, "device": device, "seed": seed,
        "log_every": log_every, "checkpoint_every": checkpoint_every, "strict": strict,
    }  # fmt: skip
    by_program = plain_rates(options)
    _check_options(options, valid, loss)
    if out is not None and _restarted(Path(out), options):
        return resume(out, data, valid=valid, program=program, report=report)
    path = None if out is None else free_folder(out)
    with _one_seed(seed), lenient(not strict), ExitStack() as stack:
        train_data, valid_data, ready = _begun(program, (data, valid), options, loss, either=either)
        stack.enter_context(default_dtype(dtype_of(options["precision"])))
        return _fitted(program, (train_data, valid_data), ready, options, path, source, report, by_program=by_program)


def _fitted(
    program: Program, tables: tuple[Any, Any], ready: _Ready, o: dict[str, Any], path: Path | None,
    source: Mapping[str, Any] | None, report: Report | None, *, by_program: bool,
) -> Run:  # fmt: skip
    """The run of what was begun: recorded, and trained unless there is nothing to train."""
    train_data, valid_data = tables
    idle = path is None and _needs_no_loop(program, o)
    fabric = None if idle else make_fabric(o["device"], o["precision"])
    if by_program:
        _choose(program, tables, ready, o)
    o["log_every"] = o["log_every"] or max(1, o["steps"] // 100)
    _warn_of_rows(program, train_data, ready.checked.structure)
    if program.fixed_rows and o["steps"] and (decay := weight_decay(o["optimizer"], o["lr"])):
        log.warning(
            "optimizer=%r has weight_decay=%g, which pulls the guide's means and scales to 0 as well, so that it is no "
            "approximation of the posterior; take %s(weight_decay=0)", o["optimizer"], decay,
            o["optimizer"].partition("(")[0],
        )  # fmt: skip
    config = _config(o, train_data, valid_data, source)
    config["program"], file = describe_program(program, ready.checked.structure, ready.guide)
    run = Run(program, config, ready.checked.structure, ready.example, path)
    run.loss = ready.loss
    if fabric is None:
        program.eval()
        return run
    if not fabric.is_global_zero:
        path = None
    with nullcontext() if path is None else new_folder(path, ready.example, config["program"], file):
        run = train(run, train_data, valid_data, report=report, fabric=fabric)
    warn_if_rising(run)
    return run


def _choose(program: Program, tables: tuple[Any, Any], ready: _Ready, o: dict[str, Any]) -> None:
    """Steps and rates of a fit that was told nothing, by what its first step runs."""
    data, valid = tables
    n, structure = data_module.n_rows(data), ready.checked.structure
    objective = batch = None
    if ready.loss is None and o["particles"] == 1:
        objective = make_objective(program, structure, n, o)
        batch = data_module.take(data, torch.arange(min(o["batch_size"] or n, n)), structure.row_columns)
    with running_of(program, data), without_validation():
        choose_rates(program, o, n, objective, batch, follows=valid is not None and structure.by_row)


def _needs_no_loop(program: Program, o: Mapping[str, Any]) -> bool:
    """Whether there is nothing to train: no step, so that no optimiser and no Fabric have to be imported."""
    plain = o["device"] == "cpu" and o["precision"] in ("32-true", "64-true") and o["until"] is None
    return o["steps"] == 0 and plain and all(bool(torch.isfinite(p).all()) for p in program.parameters())


def _restarted(path: Path, options: Mapping[str, Any]) -> bool:
    """Whether torchrun has started this very fit again: it then goes on with what is there."""
    if not int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) or not (path / "config.json").is_file():
        return False
    recorded = read_config(path)["fit"]
    return all(value is None or recorded[name] == value for name, value in options.items())


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
    _check_options(options, recorded.get("valid_rows") or valid, loss)
    strict = lenient(not options["strict"])
    with _one_seed(options["seed"]), default_dtype(dtype_of(options["precision"])), strict:
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
    """Holds the rows against the fingerprint of those that were fitted, in the precision that they had."""
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
    recorded |= _record(table)


def _require_same_valid(run: Run, valid: Any, table: Mapping[str, Tensor] | None, precision: str) -> None:
    """Holds the held-out rows against those that were followed, in the precision that they had."""
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


# -- before the first step ------------------------------------------------------------------------


def _check_options(o: dict[str, Any], valid: Any, loss: Any) -> None:
    least = {
        "steps": 0,
        "batch_size": 1,
        "particles": 1,
        "kl_warmup": 0,
        "patience": 1,
        "log_every": 1,
        "starts": 0,
        "checkpoint_every": 1,
    }
    for name, low in least.items():
        if o[name] is not None and (not isinstance(o[name], Integral) or not low <= o[name] < 2**53):
            raise PpgenError(f"{name} is {o[name]!r}; expected a whole number of at least {low}, below 2**53")
    for name in ("lr", "clip"):
        known = o[name] is None or isinstance(o[name], Real) and 0 < o[name] < 1e30  # beyond which it is no float32
        if not known:
            raise PpgenError(f"{name} is {o[name]!r}; expected a positive number, below 1e30")
    # config.json holds Python's numbers
    o |= {name: int(v) for name, v in o.items() if isinstance(v, Integral) and not isinstance(v, bool)}
    o |= {name: float(v) for name, v in o.items() if isinstance(v, Real) and not isinstance(v, Integral)}
    if o["ema"] is not None and not 0 < o["ema"] < 1:
        raise PpgenError(f"ema is {o['ema']!r}; expected a decay between 0 and 1, such as 0.999")
    if o["until"] not in (None, "converged"):
        raise PpgenError(f"until is {o['until']!r}; expected 'converged', or None to take all steps")
    for name, default in (("schedule", "constant"), ("ema", None), ("patience", None)):
        if o["until"] and o[name] != default:
            raise PpgenError(
                f"until='converged' lowers the learning rate and averages by itself, and {name} is {o[name]!r}; leave "
                f"{name} out"
            )
    if o["patience"] is not None and valid is None:
        raise PpgenError(
            "patience counts on the ELBO of held-out rows, and valid has none; pass valid= (a split: --split train)"
        )
    # Each of these says what there is; here, before a folder is made.
    learning_rate(o["schedule"] or "constant", 1.0, 0, 1)
    check_optimizer(o["optimizer"], o["lr"] or LEAST)
    require_known("engine", o["engine"], ENGINES)
    require_known("precision", o["precision"], get_args(PRECISIONS))
    gradients.named(o["gradient"])
    if loss is None and o["objective"] is not None:
        objectives.formula(o["objective"])
    for name in ("batch_size", "gradient", "particles", "kl_warmup") if loss is not None else ():
        if o[name] not in (None, "pathwise", 1 if name == "particles" else 0):
            raise PpgenError(
                f"the objective {o['objective']} is run as Pyro runs it, on all rows with its own draws, and {name} "
                f"is {o[name]!r}; leave {name} out (subsample with pyro.plate, give the object its particles)"
            )


class _Ready(NamedTuple):
    """A program before its first step.

    Attributes:
        guide: the name of the guide that was made; None where the program has its own, or needs none.
        checked: what the checks found.
        example: the rows that set the program up again.
        loss: Pyro's, or a function, where no objective of ppgen's is trained.
    """

    guide: str | None
    checked: Checked
    example: dict[str, Tensor]
    loss: Any


def _ready(program: Program, data: Mapping[str, Tensor], o: dict[str, Any], loss: Any, held_out: int) -> _Ready:
    """One pass: the first run makes the guide, a run of the pair is checked, the guide finds where to begin.

    Args:
        held_out: how many rows are; 0: none.
    """
    dtype = dtype_of(o["precision"])
    program.to(dtype)
    program.train()
    n, rows = data_module.n_rows(data), data_module.row_columns(data)
    o["batch_size"] = o["batch_size"] or rows_a_step(program, n, o["guide"], o["objective"])
    size = min(o["batch_size"] or n, n)
    first = data_module.take(data, torch.arange(size), rows)
    guide, summed = _guide_of(program, o, n), _summed(o["objective"])
    with running_of(program, data), without_validation():
        program.prepare(dict(data))
        apart = program.first_run(first, guide, hide=summed, rows=rows)
    program.to(dtype).train()  # with the programs within that the first run has added
    made = program._autoguide if guide is not None else None
    guide = None if made is None else getattr(made, "spec", guide)
    enumerated = _enumerated(apart, summed)
    plain = o["objective"] is None
    o["objective"] = o["objective"] or (
        "enumerate" if enumerated else "subsampled" if program.subsamples else "analytic"
    )
    if o["objective"] == "enumerate" and o["kl_warmup"]:
        raise PpgenError("kl_warmup has no meaning with objective='enumerate'; leave it out")
    found = checked(
        program, first, apart, data=data, enumerated=enumerated, rows=rows, along_paths=_along_paths(o)
    )  # fmt: skip
    warn_of_word_order(sample_sites(found.run.p), first)
    if plain and (name := _of_pyro(found, apart, o, size == n)):
        o["objective"], loss = name, loss_of(name)
    if enumerated:
        with running_of(program, first), without_validation(), torch.no_grad(), torch.random.fork_rng(devices=[]):
            one_draw(program, first, found.structure)  # says what cannot be summed out
    bound = make_objective(program, found.structure, n, o, loss)  # says what does not go together
    if isinstance(bound, Objective):
        if hasattr(bound.estimator, "require"):
            with running_of(program, first), without_validation(), torch.random.fork_rng(devices=[]):
                bound.estimator.require(program, first, found.structure)
        with running_of(program, first), without_validation(), torch.no_grad(), torch.random.fork_rng(devices=[]):
            bound.require_densities(found.run)
        bound.require_all_rows(size, trained=True)
        bound.require_all_rows(held_out or n, "held-out rows (--valid-split none)")
    _begin(program, first, o, guide if size == n and not _dreams(o) else "", enumerated)
    return _Ready(guide, found, _example(program, data, first, found), loss)


def _begin(program: Program, rows: Mapping[str, Any], o: dict[str, Any], guide: str | None, enumerated: Any) -> None:
    """Where a guide that is made by name begins: at what a search on all rows finds, if it is to; `starts` of the
    options then says of how many.

    Args:
        guide: its name, if a step has all rows.
    """
    file = file_of(guide) if guide else None
    starts = (file.STARTS if file else program.starts) if o["starts"] is None else o["starts"]
    searches = hasattr(program._autoguide, "search")
    begun = False
    if guide and (searches or starts and not enumerated):
        begun = start_at(program, rows, max(starts, 1) if searches else starts, o["seed"])
    if begun:
        o["starts"] = starts
    elif o["starts"]:
        log.warning(
            "starts=%d did nothing: it is for a guide that is made by name (a flow, AutoNormal, AutoDiagonalNormal, "
            "AutoMultivariateNormal, bam, bam_low_rank, pathfinder) and begins at a normal of all rows' log joint, "
            "which this fit has not; leave starts (--starts) out, or take such a guide and all rows a step",
            o["starts"],
        )  # fmt: skip


def _file_of(objective: str | None) -> Any:
    """The file of one of ppgen's objectives; None for another, or none."""
    return objectives.named(objective) if objective and is_ours(objective) else None


def _along_paths(o: Mapping[str, Any]) -> bool:
    """Whether the gradient takes derivatives of the model in its latents."""
    own = _file_of(o["objective"])
    estimator = gradients.named(getattr(own, "GRADIENT", o["gradient"]))
    return getattr(estimator, "PATHS", True) and getattr(own, "PATHS", True)


def rows_a_step(program: Program, rows: int, guide: str | None = None, objective: Any = None) -> int | None:
    """The batch_size of a fit that is given none; None: all rows."""
    few = program.rows_a_step
    return few if few and rows > 4 * few and guide is None and loss_of(objective) is None else None


def _begun(
    program: Program, tables: tuple[Any, Any], o: dict[str, Any], loss: Any, *, either: bool
) -> tuple[data_module.Table, data_module.Table | None, _Ready]:
    """The columns of the rows and of those held out, and the first pass; in float64, if the program asks for it.

    Args:
        either: whether the precision may be another than `o` says, which then says it.
    """
    data, valid = tables
    now, dtype = dict(o), dtype_of(o["precision"])
    try:
        with default_dtype(dtype):
            train_data = _training_columns(program, data, dtype)
            valid_data = None if valid is None else prepare_columns(valid, program, dtype)
            held_out = 0 if valid_data is None else data_module.n_rows(valid_data)
            ready = _ready(program, train_data, now, loss, held_out)
    except PpgenError as e:
        if not (either and dtype == torch.float32 and of_dtypes(e)):
            raise
        try:
            found = _begun(program, tables, double := {**o, "precision": "64-true"}, loss, either=False)
        except PpgenError as other:
            raise e if of_dtypes(other) else other from None
        log.info("%s holds float64 tensors: computed in float64 (precision=64-true)", program.name)
        o |= double
        return found
    o |= now
    return train_data, valid_data, ready


def _training_columns(program: Program, data: Any, dtype: torch.dtype) -> data_module.Table:
    """The columns, checked; their types are the program's from now on. Without types, codes are those of an earlier
    fit."""
    if data_module.as_tensors(data).types:
        program.types = None
    table = prepare_columns(data, program, dtype)
    program.types = table.types if program.types is None else program.types
    columns(program, table)
    table.log_notes()
    find_gaps(program, table)
    validate(program, table, fits=True)
    return table


def _warn_of_rows(program: Program, data: Mapping[str, Tensor], structure: Structure) -> None:
    warn_of_negative_indices(program, data)
    learns = any(not name.startswith("autoguide.") for name, _ in program.named_parameters())
    if learns and data_module.n_rows(data) == 1 and structure.by_row:
        log.warning("the data have one row, which tells no density: its own is raised without bound; give more")


def _of_pyro(found: Checked, apart: Traces, o: dict[str, Any], whole: bool) -> str:
    """The loss of Pyro's that a program needs: its sites depend on values, or its guide asks for enumeration."""
    if found.differ:
        return "TraceEnum_ELBO" if found.structure.summed else "Trace_ELBO"
    drawn = sample_sites(apart.q).items()
    asked = [n for n, s in drawn if s["infer"].get("enumerate") and s["fn"].has_enumerate_support]
    if asked and not found.structure.summed and o["gradient"] == "pathwise":
        o["gradient"] = "enumerated"
    elif asked and whole and o["particles"] == 1 and o["gradient"] == "pathwise" and not o["kl_warmup"]:
        return "TraceEnum_ELBO"
    elif asked:
        log.info("%r is drawn, not enumerated: Pyro's TraceEnum_ELBO takes all rows and one draw", asked[0])
    return ""


def _config(
    o: dict[str, Any], data: Mapping[str, Tensor], valid: Mapping[str, Tensor] | None, source: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What config.json holds beside the program."""
    record = {"rows": data_module.n_rows(data), "row_columns": list(data_module.row_columns(data))}
    types = data.types if isinstance(data, data_module.Table) else {}
    record["types"] = {name: own.kept() for name, own in types.items()}
    config = {
        "version": VERSION, "versions": versions(), "seed": o["seed"], "fit": o,
        "data": {**(source or {}), **_record(data), **record}, "history": [],
    }  # fmt: skip
    if valid is not None:
        config["data"] |= {
            "valid_rows": data_module.n_rows(valid), "valid_sha256": data_module.fingerprint(valid)["sha256"],
        }  # fmt: skip
    return config


def _guide_of(program: Program, o: dict[str, Any], rows: int) -> str | None:
    """The named guide that is to be made, if any: the one asked for, or an autoguide where the program has none."""
    dreams = _dreams(o)
    guide = o["guide"] or (None if program.has_guide else "flow" if dreams else program.default_guide)
    batches = o["batch_size"] is not None and rows > o["batch_size"]  # a batch has other rows at every step
    if guide is not None and (file := file_of(guide)) is not None:
        told = getattr(file, "DREAMS", {}) if dreams else file.BATCHES if batches else {}
        return guide_spec(guide, **{**told, **parse(guide)[1]})
    return guide


def _dreams(o: Mapping[str, Any]) -> bool:
    """Whether the guide is fitted to draws of the model."""
    return getattr(_file_of(o["objective"]), "DREAMS", False)


def _summed(objective: str | None) -> Callable[[dict[str, Any]], bool]:
    """Which latents an objective sums out where the guide does not draw them: those that can be, if it sums any.

    With others those that ask for it by infer={"enumerate": ...}.
    """
    terms = getattr(_file_of(objective), "TERMS", "")
    sums = terms == "summed"

    def hide(site: dict[str, Any]) -> bool:
        asked = terms != "subsampled" and site["infer"].get("enumerate") is not None
        return (sums or asked) and not site["is_observed"] and site["fn"].has_enumerate_support

    return hide


def _enumerated(apart: Traces, summed: Callable[[dict[str, Any]], bool]) -> tuple[str, ...]:
    """The latents that are summed out."""
    drawn = sample_sites(apart.q)
    return tuple(n for n, s in sample_sites(apart.p, deterministic=False).items() if n not in drawn and summed(s))


def _example(
    program: Program, data: Mapping[str, Tensor], first: Mapping[str, Tensor], found: Checked
) -> dict[str, Tensor]:
    """The rows that set the program up again: two, or all where it needs all.

    It does where it runs on no fewer, where its guide knows them one by one, where its latents are as many as the
    rows, where it reads the global latents or their number off them, and for Laplace's approximation.
    """
    structure, longer = found.structure, found.longer
    if isinstance(program._autoguide, AutoLaplaceApproximation) or program.fixed_rows and program.guide_columns:
        return dict(data)
    if any(subsampled(s, f.name) for t in found.run for s in sample_sites(t).values() for f in s["cond_indep_stack"]):
        return dict(data)
    if any(not structure.is_local(n) for n in structure.summed):  # known only where all rows are
        return dict(data)
    if longer is None or (program.fixed_rows or not len(longer.q.nodes)) and structure.locals:
        return dict(first)
    if sample_sites(longer.p).keys() != sample_sites(found.run.p).keys():  # a site a row, in a loop
        return dict(data)
    if _follow_the_rows(structure, found.run, longer, program._autoguide is None):
        return dict(data)
    few = data_module.take(first, slice(0, 2), structure.row_columns)
    scalars = all(s.value_shape == s.event_shape == () for s in structure.sites if s.name in structure.globals)
    if scalars and all(map(structure.is_local, (*structure.names("observed"), *structure.names("factor")))):
        return few
    return few if _same_shapes(program, few, structure, found.run) else dict(data)


def _same_shapes(program: Program, few: Mapping[str, Tensor], structure: Structure, t: Traces) -> bool:
    """Whether the program runs on a few rows, as one that reads `y[11]` does not, with global latents of the same
    shapes: not where the rows tell the number of groups."""
    counts = parameters_as(program, {name: b.clone() for name, b in program.named_buffers()})  # of batch norm
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), without_validation(), program.in_brief(), counts:
            own = model_run(program, few).nodes
    except Exception:  # written for one number of rows
        return False
    names = [n for n in (*structure.globals, *structure.summed) if not structure.is_local(n)]
    return all(n in own and own[n]["value"].shape == t.p.nodes[n]["value"].shape for n in names if n in t.p.nodes)


def _follow_the_rows(structure: Structure, t: Traces, longer: Traces, own_guide: bool) -> bool:
    """Whether global latents have another shape on a row more, or another distribution in the guide."""
    p, q = (sample_sites(trace) for trace in t)
    longer_p, longer_q = (sample_sites(trace) for trace in longer)
    for name in (*structure.globals, *structure.summed):
        if not structure.is_local(name) and p[name]["value"].shape != longer_p[name]["value"].shape:
            return True
        if (
            own_guide
            and name in q
            and (
                name not in longer_q
                or not torch.equal(*(g[name]["fn"].log_prob(q[name]["value"]).detach() for g in (q, longer_q)))
            )
        ):
            return True
    return False


def _record(data: Mapping[str, Tensor]) -> dict[str, Any]:
    """Fingerprint and ranges of the data; `columns` is the source's choice of columns, and so is not used for it."""
    found = data_module.fingerprint(data)
    return {
        "contents": found["columns"], "sha256": found["sha256"], "ranges": ranges(data, data_module.row_columns(data)),
    }  # fmt: skip


@contextmanager
def _one_seed(seed: int) -> Iterator[None]:
    """Seeds torch, numpy and random, and gives the caller's random state back."""
    if not isinstance(seed, Integral) or not 0 <= seed < 2**32:
        raise PpgenError(f"seed is {seed}; expected a whole number from 0 to 4294967295")
    with torch.random.fork_rng(), python_randomness():
        pyro.set_rng_seed(int(seed))
        yield
