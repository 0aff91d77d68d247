"""Learning: maximise a lower bound on log p(x) by stochastic gradients. One plain loop.

    θ, φ ← θ, φ + step · ∇ ELBO(θ, φ; minibatch)

`fit` prepares and checks (`ready.py`), `train` is the loop, `resume` goes on where a run stopped.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppgen import data as data_module
from ppgen.check import running_of
from ppgen.check.indices import warn_of_negative_indices
from ppgen.data.precision import precision_for
from ppgen.errors import lenient
from ppgen.handlers import without_validation
from ppgen.inference.objective import make_objective
from ppgen.inference.pyro_objective import loss_of, name_of
from ppgen.inference.training.defaults import choose_rates, plain_rates
from ppgen.inference.training.optimise import make_fabric, weight_decay
from ppgen.inference.training.ready import Ready, begun, check_options, one_seed
from ppgen.inference.training.resume import record_of, resume
from ppgen.inference.training.train import Report, train
from ppgen.inference.trend import warn_if_rising
from ppgen.program import Program
from ppgen.run import (
    Run,
    default_dtype,
    describe_program,
    dtype_of,
    versions,
)
from ppgen.run.config import VERSION, read_config
from ppgen.run.folder import free_folder, new_folder
from ppgen.structure import Structure

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
    check_options(options, valid, loss)
    if out is not None and _restarted(Path(out), options):
        return resume(out, data, valid=valid, program=program, report=report)
    path = None if out is None else free_folder(out)
    with one_seed(seed), lenient(not strict), ExitStack() as stack:
        train_data, valid_data, ready = begun(program, (data, valid), options, loss, either=either)
        stack.enter_context(default_dtype(dtype_of(options["precision"])))
        return _fitted(program, (train_data, valid_data), ready, options, path, source, report, by_program=by_program)


def _fitted(
    program: Program, tables: tuple[Any, Any], ready: Ready, o: dict[str, Any], path: Path | None,
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
    if by_program:
        warn_if_rising(run)
    return run


def _choose(program: Program, tables: tuple[Any, Any], ready: Ready, o: dict[str, Any]) -> None:
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


def _warn_of_rows(program: Program, data: Mapping[str, Tensor], structure: Structure) -> None:
    warn_of_negative_indices(program, data)
    learns = any(not name.startswith("autoguide.") for name, _ in program.named_parameters())
    if learns and data_module.n_rows(data) == 1 and structure.by_row:
        log.warning("the data have one row, which tells no density: its own is raised without bound; give more")


def _config(
    o: dict[str, Any], data: Mapping[str, Tensor], valid: Mapping[str, Tensor] | None, source: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What config.json holds beside the program."""
    record = {"rows": data_module.n_rows(data), "row_columns": list(data_module.row_columns(data))}
    types = data.types if isinstance(data, data_module.Table) else {}
    record["types"] = {name: own.kept() for name, own in types.items()}
    config = {
        "version": VERSION, "versions": versions(), "seed": o["seed"], "fit": o,
        "data": {**(source or {}), **record_of(data), **record}, "history": [],
    }  # fmt: skip
    if valid is not None:
        config["data"] |= {
            "valid_rows": data_module.n_rows(valid), "valid_sha256": data_module.fingerprint(valid)["sha256"],
        }  # fmt: skip
    return config
