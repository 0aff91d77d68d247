"""Learning: maximise a lower bound on log p(x) by stochastic gradients. One plain loop.

    θ, φ ← θ, φ + step · ∇ ELBO(θ, φ; minibatch)

`fit` prepares and checks, `train` is the loop, `resume` goes on where a run stopped: to the bit, as
everything that the next step depends on stands in state.safetensors, and the order of the data is a
function of the seed and the step alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer.autoguide import AutoLaplaceApproximation
from torch import Tensor

from ppgen import data as data_module
from ppgen.check import check, columns, require_batch_safe, running_of
from ppgen.errors import PpgenError, nearest
from ppgen.files import read_tree
from ppgen.guides import FLOW, guide_spec, parse
from ppgen.guides.start import start_at
from ppgen.inference.elbo import OBJECTIVES, Objective, default_elbo
from ppgen.inference.optimise import learning_rate, make_fabric, make_optimizer
from ppgen.inference.step import ENGINES
from ppgen.inference.train import Report, train
from ppgen.program import Program
from ppgen.run import (
    Run,
    default_dtype,
    describe_program,
    dtype_of,
    load_parameters,
    prepare_columns,
    read_config,
    rebuild,
    start_folder,
    versions,
)
from ppgen.sites import sample_sites
from ppgen.structure import Structure


def fit(
    program: Program,
    data: Any,
    *,
    valid: Any = None,
    steps: int | None = None,
    until: str | None = None,
    batch_size: int | None = None,
    lr: float = 1e-3,
    schedule: str = "constant",
    optimizer: str = "Adam",
    clip: float | None = None,
    ema: float | None = None,
    kl_warmup: int = 0,
    patience: int | None = None,
    elbo: str | None = None,
    particles: int = 1,
    guide: str | None = None,
    starts: int | None = None,
    engine: str = "auto",
    precision: str = "32-true",
    device: str = "cpu",
    seed: int = 0,
    out: str | Path | None = None,
    log_every: int | None = None,
    checkpoint_every: int | None = None,
    source: Mapping[str, Any] | None = None,
    report: Report | None = None,
) -> Run:
    """Fits a program to data by maximising a bound on log p(x).

    The loss that the optimiser sees is −ELBO / N, in nats a row, so that `lr` and `clip` mean the same
    for every size of data and batch; figures are reported in nats over all N rows.

    Args:
        program: a `Program`; its parameters are changed in place.
        data: columns by name (tensors, arrays, lists, a DataFrame), or one table for the first column.
        valid: held-out rows; their ELBO is logged, and `patience` counts on it.
        steps: gradient steps; 2000 if None.
        until: "converged" ends the fit where its averaged iterates have stopped moving, at `steps` at the latest
            (50 000 if None), and keeps the average (`ppgen.inference.converge`).
        batch_size: rows a step; None takes all. Batches run through one random permutation an epoch.
        lr, schedule: learning rate, and its course over the steps: constant, linear, cosine, exponential.
        optimizer: a name in torch.optim, with keywords if wanted: "AdamW(weight_decay=0.01)".
        clip: largest norm of the gradient of the loss a row.
        ema: decay of an exponential moving average of the parameters, which is then what the run keeps.
        kl_warmup: steps over which the weight of the latent terms in the loss rises from 0 to 1.
        patience: evaluations of `valid` without a better ELBO after which the fit stops; it keeps the best.
        elbo, particles: the objective (`ppgen.inference.elbo`), and its draws a step; None is "subsampled" for a chain
            of latents, "analytic" otherwise.
        guide: name of a guide that replaces the program's (`ppgen.guides`): flow, or one of Pyro's autoguides.
        starts: starting points of a search on all rows for a Gaussian at which a flow, AutoNormal, AutoDiagonalNormal
            or AutoMultivariateNormal begins; None: 8 for a flow, none for the others, which begin as Pyro made them.
        engine: how a step is run: eager, trace, compile, auto.
        precision: 32-true, 64-true, bf16-mixed, 16-mixed (Lightning Fabric's names).
        device: cpu, cuda, cuda:1, mps, auto. Under torchrun each process takes its share of every batch.
        seed: the one seed: parameters of the guide, order of the data, draws.
        out: the run folder to write; None keeps the result in memory.
        log_every: steps a row of metrics (and an evaluation of `valid`); about 100 rows by default.
        checkpoint_every: steps a checkpoint; None: every 30 seconds.
        source: where the data came from, recorded for `resume` and the shell.
        report: called with each row of metrics, and what to divide its figures by: `per` and `valid_per` rows,
            1 where a latent is global.

    Returns:
        The `Run`, its program with the final parameters, in eval mode.

    Raises:
        PpgenError: whatever is wrong with program, data or options, in one sentence, before the first step;
            a loss that stays NaN or infinite, with the site's name.
    """
    elbo = elbo or default_elbo(program)
    steps = (50_000 if until else 2000) if steps is None else steps
    options: dict[str, Any] = {
        "steps": steps, "until": until, "batch_size": batch_size, "lr": lr, "schedule": schedule,
        "optimizer": optimizer, "clip": clip,
        "ema": ema, "kl_warmup": kl_warmup, "patience": patience, "elbo": elbo, "particles": particles, "guide": guide,
        "starts": starts, "engine": engine, "precision": precision, "device": device, "seed": seed,
        "log_every": log_every or max(1, steps // 100), "checkpoint_every": checkpoint_every,
    }  # fmt: skip
    _check_options(options, valid)
    path = Path(out) if out is not None else None
    if path is not None and (path / "config.json").exists():
        raise PpgenError(
            f"{path} holds a run already; choose another folder, go on with it (--resume {path}), or remove it"
        )
    with _one_seed(seed), default_dtype(dtype_of(precision)):
        train_data = prepare_columns(data, program, dtype_of(precision))
        columns(program, train_data)
        data_module.validate(train_data)
        valid_data = None if valid is None else prepare_columns(valid, program, dtype_of(precision))
        program.to(dtype_of(precision))
        program.train()
        n = data_module.n_rows(train_data)
        first = data_module.take(train_data, torch.arange(min(batch_size or n, n)))
        with running_of(program, train_data):
            program.prepare(train_data)
        guide, enumerated = _choose_guide(program, first, options, n)
        with running_of(program, first), pyro.validation_enabled(False):
            program.setup(first, guide, hide=enumerated)
            guide = getattr(program._autoguide, "spec", guide) if guide else guide
            many = (8 if parse(guide)[0] == FLOW else 0) if guide and starts is None else starts
            if guide and many and len(enumerated) == 0 and (batch_size is None or batch_size >= n):
                start_at(program, first, many, seed)
        structure = check(program, train_data, batch_size=batch_size, enumerated=enumerated)
        config: dict[str, Any] = {
            "versions": versions(),
            "seed": seed,
            "fit": options,
            "data": {
                **(source or {}),
                **_record(train_data),
                "rows": n,
                "row_columns": list(data_module.row_columns(train_data)),
            },
        }
        if valid_data is not None:
            config["data"]["valid_rows"] = data_module.n_rows(valid_data)
        require_batch_safe(
            program, structure, Objective(program, structure, n, elbo=elbo, particles=particles).particles
        )
        config["program"], file = describe_program(program, structure, guide)
        example = _example(program, train_data, structure, first)
        fabric = make_fabric(device, precision)
        if path is not None:
            start_folder(path, example, file)
        run = Run(program, config, structure, example, path)
        return train(run, train_data, valid_data, report=report, fabric=fabric)


def resume(
    path: str | Path, data: Any = None, *, valid: Any = None, program: Program | None = None, steps: int | None = None,
    report: Report | None = None,
) -> Run:  # fmt: skip
    """Goes on where a stopped or killed run was, to the result that an unbroken run would have given.

    Args:
        path: the run folder.
        data, valid: needed only where the fit was given data in memory.
        program: needed only where the run cannot build it by itself.
        steps: a new total, to train longer than was asked at first.

    Raises:
        PpgenError: no run; other data than the run was fitted to.
    """
    path = Path(path)
    config = read_config(path)
    options = config["fit"]
    if steps is not None:
        options["steps"] = steps
    with _one_seed(options["seed"]), default_dtype(dtype_of(options["precision"])):
        example = read_tree(path / "example.safetensors")
        state = read_tree(path / "state.safetensors")
        if not isinstance(state, dict) or not {"parameters", "optimizer", "progress", "random"} <= state.keys():
            raise PpgenError(f"{path / 'state.safetensors'} is no state of a fit; restore it, or fit again")
        program, structure = rebuild(config, example, path, program)
        load_parameters(program, state["parameters"], path)
        run = Run(program, config, structure, example, path)
        recorded = config["data"]
        train_data = run.data() if data is None else prepare_columns(data, program, run.dtype)
        if valid is None and recorded.get("valid_split"):
            valid = run.data(recorded["valid_split"])
        valid_data = None if valid is None else prepare_columns(valid, program, run.dtype)
        if data_module.fingerprint(train_data)["sha256"] != recorded["sha256"]:
            raise PpgenError(
                f"the data are not those that {path} was fitted to (their fingerprints differ); pass the same rows"
            )
        first = data_module.take(
            train_data, torch.arange(min(options["batch_size"] or recorded["rows"], recorded["rows"]))
        )
        program.train()
        program.setup(first, None)
        structure = check(
            program, train_data, batch_size=options["batch_size"], enumerated=tuple(config["program"]["enumerated"])
        )
        run.structure = structure
        return train(run, train_data, valid_data, state=state, report=report)


# -- before the first step ------------------------------------------------------------------------


def _check_options(o: dict[str, Any], valid: Any) -> None:
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
        if o[name] is not None and (not isinstance(o[name], int) or o[name] < low):
            raise PpgenError(f"{name} is {o[name]!r}; expected a whole number of at least {low}")
    for name in ("lr", "clip"):
        if o[name] is not None and not 0 < o[name] < float("inf"):
            raise PpgenError(f"{name} is {o[name]!r}; expected a positive number")
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
    if o["elbo"] == "enumerate" and o["kl_warmup"]:
        raise PpgenError("kl_warmup has no meaning with elbo='enumerate'; leave it out")
    # Each of these says what there is; here, before a folder is made.
    learning_rate(o["schedule"], o["lr"], 0, 1)
    make_optimizer(o["optimizer"], [torch.nn.Parameter(torch.zeros(1, 1))], o["lr"])
    if o["engine"] not in ENGINES:
        raise PpgenError(
            f"there is no engine {o['engine']!r}{nearest(o['engine'], ENGINES)}; they are {', '.join(ENGINES)}"
        )
    if o["elbo"] not in OBJECTIVES:
        Objective(None, None, 1, elbo=o["elbo"])  # type: ignore[arg-type]  # says which there are


def _choose_guide(
    program: Program, first: Mapping[str, Tensor], o: dict[str, Any], rows: int
) -> tuple[str | None, tuple[str, ...]]:
    """The autoguide to make, if any, and the latents that are summed out."""
    with running_of(program, first), pyro.validation_enabled(False):
        latent = _latents(program, first)
    discrete = tuple(n for n, site in latent.items() if site["fn"].has_enumerate_support)
    enumerated = discrete if o["elbo"] == "enumerate" else ()
    guide = o["guide"]
    if guide is None and not program.has_guide and set(latent) - set(enumerated):
        guide = program.default_guide
    if guide is not None and parse(guide)[0] == FLOW and "amortised" not in guide:
        n = data_module.n_rows(first)
        if o["batch_size"] is not None and rows > n:  # a batch has other rows at every step
            guide = guide_spec(guide, amortised=True)
    if guide is not None and set(discrete) - set(enumerated):
        raise PpgenError(
            f"the discrete latent {discrete[0]!r} has no place in {guide}, whose latents are continuous; "
            "sum it out with elbo='enumerate' (--elbo enumerate), or write a guide that samples it"
        )
    return guide, enumerated


def _latents(program: Program, first: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """The latent sites of the model."""
    program = program.brief()
    with program.collecting():
        trace = pyro.poutine.trace(lambda: program.call("model", first)).get_trace()
    return {n: s for n, s in sample_sites(trace).items() if not s["is_observed"]}


def _record(data: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fingerprint of the data; `columns` is the source's choice of columns, and so is not used for it."""
    found = data_module.fingerprint(data)
    return {"contents": found["columns"], "sha256": found["sha256"]}


def _example(
    program: Program, data: Mapping[str, Tensor], structure: Structure, first: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The rows that set the program up again: two, or all where its guide needs all.

    It does where it knows them one by one, where it reads the global latents off them, and for Laplace's approximation.
    """
    if isinstance(program._autoguide, AutoLaplaceApproximation):
        return dict(data)
    rows = structure.row_columns
    few = data_module.take(first, slice(0, 2), rows)
    if structure.locals:
        try:
            enumerated = tuple(s.name for s in structure.sites if s.enumerated)
            check(program, few, rows=rows, enumerated=enumerated, learn=False)
        except PpgenError:  # an autoguide, or parameters of one value a row
            return dict(first)
    return dict(data) if _reads_globals(program, structure, few, first) else few


def _reads_globals(
    program: Program, structure: Structure, few: Mapping[str, Tensor], first: Mapping[str, Tensor]
) -> bool:
    """Whether the guide's global latents have another distribution at fewer rows, or it cannot run on fewer."""
    if not structure.globals or program._autoguide is not None:
        return False
    trace = pyro.poutine.trace
    with program.collecting():
        one = sample_sites(trace(lambda: program.call("guide", first)).get_trace())
        values = {n: one[n]["value"] for n in structure.globals}
        try:
            two = sample_sites(trace(pyro.poutine.condition(lambda: program.call("guide", few), values)).get_trace())
            return any(
                not torch.equal(one[n]["fn"].log_prob(value), two[n]["fn"].log_prob(value))
                for n, value in values.items()
            )
        except Exception:  # shapes of all rows
            return True


@contextmanager
def _one_seed(seed: int) -> Iterator[None]:
    """Seeds torch, numpy and random, and gives the caller's random state back."""
    if not 0 <= seed < 2**32:
        raise PpgenError(f"seed is {seed}; expected a whole number from 0 to 4294967295")
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        pyro.set_rng_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
