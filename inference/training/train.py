"""The training loop, and what a checkpoint holds.

A step is the engine's (`ppgen.inference.training.step`); here are the batches, the rows of metrics, the held-out ELBO,
the moving average, and the checkpoints that a killed run is resumed from to the bit.
"""

from __future__ import annotations

import logging
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from ppgen import data as data_module
from ppgen.errors import PpgenError
from ppgen.inference.objective import Objective
from ppgen.inference.training.converge import EVERY, Convergence, probe
from ppgen.inference.training.optimise import learning_rate, make_fabric, make_optimizer
from ppgen.inference.training.step import MAX_BAD_STEPS, Row, bad_site, make_step
from ppgen.program import Program
from ppgen.run import Run, load_parameters, write_metrics
from ppgen.run.files import write_json, write_tree

CHECKPOINT_SECONDS = 30.0

log = logging.getLogger("ppgen")

Report = Callable[[dict[str, float]], None]


@dataclass
class Progress:
    """Where the loop stands, beside parameters, optimiser and random state."""

    step: int = 0
    window: list[float] = field(default_factory=list)  # the ELBO of each step since the last row of metrics
    rows: list[dict[str, float]] = field(default_factory=list)
    bad_steps: int = 0
    best: float = -float("inf")
    waited: int = 0
    grad_norm: float = 0.0


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
    o, program = run.config["fit"], run.program
    n = run.config["data"]["rows"]
    fabric = fabric or make_fabric(o["device"], o["precision"])
    objective = Objective(program, run.structure, n, elbo=o["elbo"], particles=o["particles"])
    optimizer = make_optimizer(o["optimizer"], [p for p in objective.parameters() if p.requires_grad], o["lr"])
    wrapped, optimizer = fabric.setup(objective, optimizer)
    data = {k: v.to(fabric.device) for k, v in data.items()}
    valid = None if valid is None else {k: v.to(fabric.device) for k, v in valid.items()}
    ema = {k: v.detach().clone() for k, v in program.state_dict().items()} if o["ema"] else None
    best: dict[str, Tensor] | None = None
    now = Progress()
    until = Convergence() if o.get("until") else None
    if fabric.world_size > 1:
        torch.manual_seed(_rank_seed(o["seed"], fabric.global_rank))
    if state is not None:
        load_parameters(program, state["parameters"])
        ema = state["ema"] and {k: v.to(fabric.device) for k, v in state["ema"].items()}
        best = state["best_parameters"]
        optimizer.load_state_dict(state["optimizer"])
        now = Progress(**state["progress"])
        if until is not None and state.get("convergence"):
            until = Convergence(**state["convergence"])
        _set_random_state(state["random"], fabric)

    step = make_step(
        wrapped,
        optimizer,
        fabric,
        engine=o["engine"],
        clip=o["clip"],
        warm_up=bool(o["kl_warmup"]),
        ema=ema,
        ema_decay=o["ema"],
        steps=o["steps"],
    )

    def final_parameters() -> dict[str, Tensor]:
        if until is not None and until.average is not None:
            return until.average
        return best if best is not None else ema if ema is not None else program.state_dict()

    def checkpoint() -> None:
        tree = {
            "parameters": dict(program.state_dict()),
            "ema": ema,
            "best_parameters": best,
            "optimizer": optimizer.state_dict(),
            "progress": vars(now),
            "convergence": until and until.saved(),
            "random": _random_state(fabric),
        }
        if run.path is not None and fabric.is_global_zero:
            write_metrics(run.path / "metrics.csv", now.rows)
            write_tree(run.path / "parameters.safetensors", dict(final_parameters()))
            write_tree(run.path / "state.safetensors", tree)

    # What divides the figures of a row: with a global latent they are those of the whole data set.
    per = {"per": 1, "valid_per": 1}
    if run.structure.by_row:
        per = {"per": n, "valid_per": 1 if valid is None else data_module.n_rows(valid)}
    batch_size = min(o["batch_size"] or n, n)
    saved_at = time.monotonic()
    bad_in_a_row = 0
    whole = _share(data, run.structure.row_columns, fabric) if batch_size == n else data
    if state is None:
        checkpoint()
    if run.path is not None and fabric.is_global_zero:
        write_json(run.path / "config.json", run.config)
    with _stop_signal() as stopped, pyro.validation_enabled(False), _on(fabric.device):
        while now.step < o["steps"] and not (o["patience"] and now.waited >= o["patience"]) and not _settled(until):
            fall = until.lr_factor if until is not None else 1.0
            rows = [_step_row(o, s, fall) for s in range(now.step, now.step + _steps_together(o, now.step, step.chunk))]
            batches = [whole] * len(rows)
            if batch_size < n:
                indices = [data_module.batch_index(r.step - 1, n, batch_size, o["seed"]) for r in rows]
                parts = (data_module.take(data, i.to(fabric.device)) for i in indices)
                batches = [_share(part, run.structure.row_columns, fabric) for part in parts]
            before = torch.get_rng_state()
            for batch, (elbo, grad_norm, finite) in zip(batches, step(batches, rows), strict=True):
                now.step += 1
                if finite:
                    bad_in_a_row = 0
                    now.grad_norm = grad_norm
                    now.window.append(elbo)
                else:
                    now.bad_steps += 1
                    bad_in_a_row += 1
                    if bad_in_a_row >= MAX_BAD_STEPS:
                        raise PpgenError(_gone_bad(run, objective, batch, before, now))
            if until is not None and now.step % EVERY == 0:
                until.note(program.state_dict(), probe(program, whole, run.structure))
            if now.step % o["log_every"] == 0 or now.step == o["steps"] or _settled(until):
                row = _row(now, rows[-1].lr)
                if valid is not None:
                    with _parameters_of(program, ema):
                        row |= _validate(objective, valid, o["seed"], now.step, batch_size)
                    if row["valid_elbo"] > now.best:
                        now.best, now.waited = row["valid_elbo"], 0
                        source = ema if ema is not None else program.state_dict()
                        if o["patience"]:
                            best = {k: v.detach().clone() for k, v in source.items()}
                    else:
                        now.waited += 1
                now.rows.append(row)
                now.window.clear()
                if report is not None and fabric.is_global_zero:
                    report(row | per)
            due = (
                now.step % o["checkpoint_every"] == 0
                if o["checkpoint_every"]
                else now.step % o["log_every"] == 0
                and fabric.broadcast(time.monotonic() - saved_at > CHECKPOINT_SECONDS)
            )
            if stopped or due or now.step == o["steps"]:
                checkpoint()
                saved_at = time.monotonic()
            if stopped:
                raise KeyboardInterrupt(f"stopped at step {now.step}")
        checkpoint()
    if until is not None:
        run.config["converged"] = until.converged
        _say_converged(until, now)
        if run.path is not None and fabric.is_global_zero:
            write_json(run.path / "config.json", run.config)
    run.rows = now.rows
    load_parameters(program, {k: v.detach().clone() for k, v in final_parameters().items()})
    program.to("cpu").eval()
    return run


# -- what the loop calls -------------------------------------------------------------------------


def _settled(until: Convergence | None) -> bool:
    return until is not None and until.converged


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


def _validate(objective: Objective, valid: Mapping[str, Tensor], seed: int, step: int, chunk: int) -> dict[str, float]:
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


def _gone_bad(run: Run, objective: Objective, batch: Mapping[str, Tensor], random_state: Tensor, now: Progress) -> str:
    site = bad_site(objective, batch, random_state)
    keeps = (
        f"the run folder {run.path} keeps the last good checkpoint: go on with --resume {run.path}"
        if run.path is not None
        else "the parameters are as they were before"
    )
    return (
        f"the loss was not finite for {MAX_BAD_STEPS} steps running, first at step {now.step - MAX_BAD_STEPS + 1}: "
        f"{site}; {keeps}, "
        "with a smaller lr, clip=1, or float64 (precision='64-true')"
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


def _on(device: torch.device) -> Any:
    """New tensors of a program's code land on the device. (On the CPU they do so already, at no cost.)"""
    return nullcontext() if device.type == "cpu" else device


def _rank_seed(seed: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, rank]).generate_state(1)[0])


def _random_state(fabric: Any) -> dict[str, Any]:
    name, keys, *rest = np.random.get_state()
    return {
        "torch": fabric.all_gather(torch.get_rng_state().to(fabric.device)).cpu().reshape(fabric.world_size, -1),
        "device": torch.cuda.get_rng_state(fabric.device) if fabric.device.type == "cuda" else None,
        "python": random.getstate(),
        "numpy": (name, np.asarray(keys).astype(np.int64), *rest),
    }


def _set_random_state(state: dict[str, Any], fabric: Any) -> None:
    torch.set_rng_state(state["torch"][min(fabric.global_rank, len(state["torch"]) - 1)].clone())
    if state["device"] is not None and fabric.device.type == "cuda":
        torch.cuda.set_rng_state(state["device"], fabric.device)
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.astype(np.uint32), *rest))


@contextmanager
def _stop_signal() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM wait for the end of the step, so that a checkpoint is whole. A second one does not wait."""
    got: list[int] = []
    if threading.current_thread() is not threading.main_thread():
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
