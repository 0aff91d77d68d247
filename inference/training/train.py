"""The training loop, and what a checkpoint holds.

A step is the engine's (`ppgen.inference.training.step`); here are the batches, the rows of metrics, the held-out ELBO,
the moving average, and the checkpoints that a killed run is resumed from to the bit.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppgen import data as data_module
from ppgen.errors import PpgenError
from ppgen.handlers import without_validation
from ppgen.inference.objective import Objective, make_objective
from ppgen.inference.pyro_objective import PyroObjective
from ppgen.inference.training.converge import EVERY, Convergence, Probe
from ppgen.inference.training.eager import Row
from ppgen.inference.training.optimise import learning_rate, make_fabric, make_optimizer
from ppgen.inference.training.state import Progress, like, load_optimizer, random_state, set_random_state
from ppgen.inference.training.step import MAX_BAD_STEPS, Step, bad_site
from ppgen.program import Program
from ppgen.run import Run, load_parameters, metrics_text
from ppgen.run.files import tree_bytes, write_atomic, write_json

CHECKPOINT_SECONDS = 30.0

log = logging.getLogger("ppgen")

Report = Callable[[dict[str, float]], None]


@dataclass
class _Loop:
    """All that a fit reads and moves."""

    run: Run
    fabric: Any
    objective: Objective | PyroObjective
    optimizer: Any
    step: Step  # moves the parameters
    data: Mapping[str, Tensor]  # rows that are fitted, on the device
    valid: Mapping[str, Tensor] | None  # rows that are held out
    now: Progress
    until: Convergence | None  # None: all steps are taken
    ema: dict[str, Tensor] | None  # the moving average of the program's state
    best: dict[str, Tensor] | None  # its state at the best held-out ELBO, where a fit stops by it
    bad_in_a_row: int = 0  # steps without a finite loss
    saved_at: float = field(default_factory=time.monotonic)  # in seconds: the last checkpoint
    saved_step: int = 0  # its step
    pending_step: int = 0
    pending: dict[str, bytes | str] = field(default_factory=dict)  # a checkpoint's files, until its loss was finite

    def __post_init__(self) -> None:
        self.options, self.rows = self.run.config["fit"], self.run.config["data"]["rows"]
        self.batch_size = min(self.options["batch_size"] or self.rows, self.rows)
        self.folder = self.run.path if self.fabric.is_global_zero else None  # where this process writes
        self.saved_step = self.now.step

    @property
    def settled(self) -> bool:
        return self.until is not None and self.until.converged

    @property
    def ended(self) -> bool:
        patience = self.options["patience"]
        return self.now.step >= self.options["steps"] or bool(patience and self.now.waited >= patience) or self.settled

    @property
    def averaged(self) -> Mapping[str, Tensor]:
        return self.ema if self.ema is not None else self.run.program.state_dict()

    @property
    def final(self) -> Mapping[str, Tensor]:
        """The parameters that the fit would end with now."""
        if self.until is not None and self.until.average is not None:
            return self.until.average
        return {**self.averaged, **(self.best or {})}  # a parameter that appeared since the best has its value now


def train(
    run: Run,
    data: Mapping[str, Tensor],
    valid: Mapping[str, Tensor] | None,
    *,
    state: Any = None,
    report: Report | None = None,
    fabric: Any = None,
) -> Run:
    """The loop, from a fresh start or from a saved state.

    A killed process leaves state.safetensors of its last checkpoint, whole; rows of metrics.csv beyond it are
    written anew.
    """
    loop = _begin(run, data, valid, state, fabric)
    whole = _share(loop.data, run.structure.row_columns, loop.fabric) if loop.batch_size == loop.rows else loop.data
    if state is None:
        _checkpoint(loop)
        _write(loop)
    if loop.folder is not None:
        write_json(loop.folder / "config.json", run.config)
    probe = Probe(run.program, whole, run.structure)
    device = loop.fabric.device  # where new tensors of a program's code land; on the CPU they do so at no cost
    on_device = nullcontext() if device.type == "cpu" else device
    with ExitStack() as after, without_validation(), on_device:
        stopped = after.enter_context(_stop_signal(loop.fabric.world_size))
        after.callback(loop.step.release)
        while not loop.ended:
            lr = _take_steps(loop, whole)
            if loop.until is not None and loop.now.step % EVERY == 0:
                loop.until.note(run.program.state_dict(), probe())
            last = loop.now.step == loop.options["steps"]
            if loop.now.step % loop.options["log_every"] == 0 or last or loop.settled:
                _note_row(loop, lr, report)
            due = _is_due(loop) and not loop.bad_in_a_row
            if stopped or due or last:
                _checkpoint(loop)
            if stopped or last:
                _write(loop)
            if stopped:
                raise KeyboardInterrupt(f"stopped at step {loop.now.step}")
        _checkpoint(loop)
        _write(loop)
    return _end(loop)


def _begin(run: Run, data: Mapping[str, Tensor], valid: Mapping[str, Tensor] | None, state: Any, fabric: Any) -> _Loop:
    o, program = run.config["fit"], run.program
    fabric = fabric or make_fabric(o["device"], o["precision"])
    objective = make_objective(program, run.structure, run.config["data"]["rows"], o, run.loss)
    trained = [p for p in objective.parameters() if p.requires_grad]
    nothing = [torch.nn.Parameter(torch.zeros(()))]  # torch's optimisers take no empty list
    optimizer = make_optimizer(o["optimizer"], list(trained or nothing), o["lr"])
    wrapped, optimizer = fabric.setup(objective, optimizer)
    data = data_module.on_device(data, fabric.device)
    valid = None if valid is None else data_module.on_device(valid, fabric.device)
    ema = {k: v.detach().clone() for k, v in program.state_dict().items()} if o["ema"] else None
    best, now, until = None, Progress(), Convergence() if o.get("until") else None
    if fabric.world_size > 1:
        torch.manual_seed(_rank_seed(o["seed"], fabric.global_rank))
    if state is not None:
        file, own = f"{run.path}/state.safetensors", program.state_dict()
        load_parameters(program, state["parameters"])
        ema = None if ema is None else like(state["ema"] or {}, own, file)
        best = None if state["best_parameters"] is None else like(state["best_parameters"], own, file)
        now = Progress(**state["progress"])
        twin = make_optimizer(o["optimizer"], [torch.nn.Parameter(torch.zeros(1, 1))], o["lr"])
        load_optimizer(optimizer, state["optimizer"], file, twin)
        if until is not None and state["convergence"]:
            until = Convergence(**state["convergence"])
        set_random_state(state["random"], fabric, file)
    step = Step(
        wrapped, optimizer, fabric, engine=o["engine"], clip=o["clip"], warm_up=bool(o["kl_warmup"]), ema=ema,
        ema_decay=o["ema"], steps=o["steps"], engines=state and state.get("engines"),
    )  # fmt: skip
    return _Loop(run, fabric, objective, optimizer, step, data, valid, now, until, ema, best)


def _take_steps(loop: _Loop, whole: Mapping[str, Tensor]) -> float:
    """Some steps at once, up to the next stop; the learning rate of the last."""
    o, now = loop.options, loop.now
    fall = loop.until.lr_factor if loop.until is not None else 1.0
    rows = [_step_row(o, s, fall) for s in range(now.step, now.step + _steps_together(o, now.step, loop.step.chunk))]
    batches = _batches(loop, whole, rows)
    before = torch.get_rng_state()
    for batch, (elbo, grad_norm, finite) in zip(batches, loop.step(batches, rows), strict=True):
        now.step += 1
        if finite:
            _write(loop)
            loop.bad_in_a_row = 0
            now.grad_norm = grad_norm
            now.window.append(elbo)
            continue
        now.bad_steps += 1
        loop.bad_in_a_row += 1
        if loop.bad_in_a_row >= MAX_BAD_STEPS:
            raise PpgenError(_gone_bad(loop, batch, before))
    return rows[-1].lr


def _batches(loop: _Loop, whole: Mapping[str, Tensor], rows: Sequence[Row]) -> list[Mapping[str, Tensor]]:
    """The batch of each step: this process's share of it."""
    n, size, fabric = loop.rows, loop.batch_size, loop.fabric
    if size == n:
        return [whole] * len(rows)
    indices = [data_module.batch_index(r.step - 1, n, size, loop.options["seed"]) for r in rows]
    parts = (data_module.take(loop.data, i.to(fabric.device)) for i in indices)
    return [_share(part, loop.run.structure.row_columns, fabric) for part in parts]


def _note_row(loop: _Loop, lr: float, report: Report | None) -> None:
    """A row of metrics, with the held-out ELBO, and whether that is the best so far."""
    now, row = loop.now, _row(loop.now, lr)
    if loop.valid is not None:
        with _parameters_of(loop.run.program, loop.ema):
            row |= _validate(loop.objective, loop.valid, loop.options["seed"], now.step, loop.batch_size)
        if not np.isfinite(row["valid_elbo"]) and all(np.isfinite(r.get("valid_elbo", 0.0)) for r in now.rows):
            log.warning(
                "the ELBO of the held-out rows is %s at step %d: one of them, at least, has no density; look for it by "
                "loglik (ppgen evaluate), row by row", row["valid_elbo"], now.step,
            )  # fmt: skip
        if row["valid_elbo"] > now.best:
            now.best, now.waited = row["valid_elbo"], 0
            if loop.options["patience"]:
                loop.best = {k: v.detach().clone() for k, v in loop.averaged.items()}
        elif np.isfinite(now.best):  # else there is nothing to compare with, and patience would end the fit anywhere
            now.waited += 1
    now.rows.append(row)
    now.window.clear()
    if report is not None and loop.fabric.is_global_zero:
        report(row | _per(loop))


def _per(loop: _Loop) -> dict[str, float]:
    """What divides the figures of a row (with a global latent they are those of the whole data set), and all steps."""
    steps = loop.options["steps"]
    if not loop.run.structure.by_row:
        return {"per": 1, "valid_per": 1, "steps": steps}
    valid = 1 if loop.valid is None else data_module.n_rows(loop.valid)
    return {"per": loop.rows, "valid_per": valid, "steps": steps}


def _is_due(loop: _Loop) -> bool:
    """Whether a checkpoint is; all processes ask alike."""
    step, every = loop.now.step, loop.options["checkpoint_every"]
    if every:
        return step % every == 0
    late = time.monotonic() - loop.saved_at > CHECKPOINT_SECONDS
    return step % loop.options["log_every"] == 0 and loop.fabric.broadcast(late)


def _checkpoint(loop: _Loop) -> None:
    """Makes a checkpoint, which is written once the next step's loss is finite: it is one that can be gone on from."""
    tree = {
        "parameters": dict(loop.run.program.state_dict()),
        "ema": loop.ema,
        "best_parameters": loop.best,
        "optimizer": loop.optimizer.state_dict(),
        "progress": vars(loop.now),
        "convergence": loop.until and vars(loop.until),
        "random": random_state(loop.fabric),
        "engines": vars(loop.step.engines),
    }
    if loop.folder is not None and _finite(loop.run.program):
        loop.pending = {
            "metrics.csv": metrics_text(loop.now.rows),
            "parameters.safetensors": tree_bytes(dict(loop.final)),
            "state.safetensors": tree_bytes(tree),
        }
        loop.pending_step = loop.now.step
    loop.saved_at = time.monotonic()


def _write(loop: _Loop) -> None:
    """Writes the checkpoint that waits, if any: its parameters have had a finite loss, or the fit is at its end."""
    if loop.pending and loop.folder is not None:
        for name, content in loop.pending.items():
            write_atomic(loop.folder / name, content)
        loop.saved_step, loop.pending = loop.pending_step, {}


def _finite(program: Program) -> bool:
    return all(bool(torch.isfinite(p).all()) for p in program.parameters())


def _end(loop: _Loop) -> Run:
    run = loop.run
    if not _finite(run.program):
        step = loop.now.step
        raise PpgenError(f"the parameters are not finite after step {step}; {_go_on(loop, step + 1)}")
    if loop.bad_in_a_row:
        log.warning(
            "the loss of the last %d of %d steps is not finite, and the parameters are those that they were left with; "
            "fit again with a smaller lr, clip=1, or float64 (precision='64-true')", loop.bad_in_a_row, loop.now.step,
        )  # fmt: skip
    if loop.until is not None:
        run.config["converged"] = loop.until.converged
        _say_converged(loop.until, loop.now)
        if loop.folder is not None:
            write_json(loop.folder / "config.json", run.config)
    run.rows = loop.now.rows
    load_parameters(run.program, {k: v.detach().clone() for k, v in loop.final.items()})
    run.program.to("cpu").eval()
    return run


# -- what the loop calls -------------------------------------------------------------------------


def _say_converged(until: Convergence, now: Progress) -> None:
    if until.converged:
        log.info(
            "converged after %d steps: the average of the iterates no longer moves (%d falls of the learning rate); it "
            "is kept", now.step, until.phase,
        )  # fmt: skip
        return
    kept = "their average so far is kept" if until.average is not None else "the last of them is kept"
    log.warning(
        "not converged after %d steps, at fall %d of the learning rate: the iterates still move; %s; take more steps, "
        "or a larger lr where it has not fallen yet", now.step, until.phase, kept,
    )  # fmt: skip


def _step_row(o: Mapping[str, Any], s: int, fall: float = 1.0) -> Row:
    """Learning rate and KL weight of the step after s."""
    kl_weight = min(1.0, (s + 1) / o["kl_warmup"]) if o["kl_warmup"] else 1.0
    return Row(fall * learning_rate(o["schedule"], o["lr"], s, o["steps"]), kl_weight, s + 1)


def _steps_together(o: Mapping[str, Any], s: int, most: int) -> int:
    """How many steps can be taken at once: up to the next row of metrics, checkpoint or the end."""
    stops = [o["log_every"] - s % o["log_every"], o["steps"] - s]
    if o.get("until"):
        stops.append(EVERY - s % EVERY)
    if o["checkpoint_every"]:
        stops.append(o["checkpoint_every"] - s % o["checkpoint_every"])
    return min(most, *stops)


def _row(now: Progress, lr: float) -> dict[str, float]:
    w = np.array(now.window)
    row: dict[str, float] = {"step": now.step, "lr": lr, "grad_norm": now.grad_norm, "bad_steps": now.bad_steps}
    if len(w):
        row["elbo"] = float(w.mean())
    if len(w) > 1:
        row["elbo_se"] = float(w.std(ddof=1) / len(w) ** 0.5)
    return row


def _validate(
    objective: Objective | PyroObjective, valid: Mapping[str, Tensor], seed: int, step: int, chunk: int
) -> dict[str, float]:
    """The ELBO of the held-out rows in nats, and its standard error over batches."""
    rows = objective.structure.row_columns
    n = data_module.n_rows(valid, rows)
    objective.eval()
    values = []
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(_rank_seed(seed, step))
        if not objective.structure.locals:
            chunk = n  # a global latent has one posterior for all rows
        for start in range(0, n, chunk):
            _, elbo = objective(data_module.take(valid, slice(start, start + chunk), rows))
            values.append((min(chunk, n - start), float(elbo) / objective.rows))
    objective.train()
    weights = np.array([w for w, _ in values], dtype=float)
    means = np.array([v for _, v in values])
    mean = float((weights * means).sum() / weights.sum())
    row = {"valid_elbo": mean * n}
    if len(values) > 1:
        row["valid_elbo_se"] = float(means.std(ddof=1) / len(values) ** 0.5 * n)
    return row


def _gone_bad(loop: _Loop, batch: Mapping[str, Tensor], random_state: Tensor) -> str:
    first = loop.now.step - MAX_BAD_STEPS + 1
    site = bad_site(loop.objective, batch, random_state)
    went = f"the loss was not finite for {MAX_BAD_STEPS} steps running, first at step {first}: {site}"
    if first == 1 and site.endswith("of the model is -inf"):
        return (
            f"{went}; where that site's support depends on latents, write a guide whose draws leave the data in it, or "
            "take ppgen infer or mcmc; else look at the scale of the data"
        )
    return f"{went}; {_go_on(loop, first)}"


def _go_on(loop: _Loop, bad: int) -> str:
    """The remedy of a fit that has diverged at this step: what the step before left is what it went bad from."""
    run, ways = loop.run, "a smaller lr, clip=1, or float64 (precision='64-true')"
    if run.path is None or loop.saved_step >= bad - 1:
        return f"fit again with {ways}"
    return (
        f"{run.path} keeps the last good checkpoint: go on with {ways}, as in ppgen fit --resume {run.path} "
        f"--lr {min(run.config['fit']['lr'] / 10, 0.01):.3g} --clip 1"
    )


@contextmanager
def _parameters_of(program: Program, values: Mapping[str, Tensor] | None) -> Iterator[None]:
    """The program with other parameters, for a while."""
    if values is None:
        yield
        return
    own = {k: v.detach().clone() for k, v in program.state_dict().items()}
    program.load_state_dict(values)
    try:
        yield
    finally:
        program.load_state_dict(own)


def _share(batch: Mapping[str, Tensor], rows: tuple[str, ...], fabric: Any) -> Mapping[str, Tensor]:
    """This process's rows of the batch; gradients are averaged over processes."""
    if fabric.world_size == 1:
        return batch
    n = data_module.n_rows(batch, rows)
    if n % fabric.world_size:
        raise PpgenError(
            f"{n} rows a step cannot be shared evenly by {fabric.world_size} processes; choose a multiple for "
            "batch_size"
        )
    return data_module.take(batch, slice(fabric.global_rank, None, fabric.world_size), rows)


def _rank_seed(seed: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, rank]).generate_state(1)[0])


@contextmanager
def _stop_signal(processes: int) -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM wait for the end of the step, so that a checkpoint is whole. A second one does not wait.

    Of several processes each ends at once: a checkpoint needs all of them, and one may be gone already.
    """
    got: list[int] = []
    if processes > 1 or threading.current_thread() is not threading.main_thread():
        yield got
        return

    def note(number: int, frame: Any) -> None:
        if got:
            raise KeyboardInterrupt
        got.append(number)

    old = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield got
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)
