"""`ppgen fit`: a program, data and options to a run folder; and going on with one."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ppgen.cli import options as opt
from ppgen.cli import output
from ppgen.cli.options import app, out_option, with_family
from ppgen.console import say
from ppgen.errors import PpgenError

if TYPE_CHECKING:
    from ppgen.run import Run


OPTIONS = (  # that `ppgen.inference.fit` takes under the same name
    "steps", "until", "batch_size", "lr", "schedule", "optimizer", "clip", "ema", "kl_warmup", "patience", "objective",
    "gradient", "particles", "guide", "starts", "engine", "precision", "device", "seed", "log_every",
    "checkpoint_every", "strict",
)  # fmt: skip


@app.command(short_help="Fit a program to data; leaves a run folder.")
def fit(
    ctx: typer.Context,
    program: Annotated[str | None, typer.Argument(metavar="PROGRAM", help=opt.PROGRAM, show_default=False)] = None,
    data: opt.Data = None,
    out: Annotated[Path | None, out_option("[default: runs/<model>-<n>]", "RUN")] = None,
    settings: opt.Set = None,
    family: opt.Family = None,
    steps: Annotated[
        int | None, typer.Option(help="Gradient steps. [default: 2000; 50000 at most with --until]")
    ] = None,
    until: Annotated[str | None, typer.Option(help="converged: stop when averaged iterates no longer move.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows a step. [default: by model and data; else all]")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate. [default: by model without --steps; 0.001]")] = None,
    schedule: Annotated[
        str | None, typer.Option(help="constant, linear, cosine or exponential. [default: as for --lr; constant]")
    ] = None,
    optimizer: Annotated[str, typer.Option(help="Any of torch.optim, as in 'AdamW(weight_decay=0.01)'.")] = "Adam",
    clip: Annotated[float | None, typer.Option(help="Largest norm of the gradient.")] = None,
    ema: Annotated[float | None, typer.Option(help="Decay of a moving average of the parameters.")] = None,
    kl_warmup: Annotated[int, typer.Option(help="Steps over which the latent terms come in.")] = 0,
    patience: Annotated[int | None, typer.Option(help="Evaluations without a better held-out ELBO, then stop.")] = None,
    objective: Annotated[str | None, typer.Option(help="The bound: ppgen list objectives. [default: analytic]")] = None,
    gradient: Annotated[str, typer.Option(help="Its gradient's estimator: ppgen list gradients.")] = "pathwise",
    particles: Annotated[int, typer.Option(help="Draws of the latents a step.")] = 1,
    guide: Annotated[str | None, typer.Option(help="flow, or a Pyro autoguide, in place of the program's.")] = None,
    starts: Annotated[
        int | None, typer.Option(help="Starting points tried for the guide. [default: by guide and program]")
    ] = None,
    engine: Annotated[str, typer.Option(help="eager, trace, compile or auto.")] = "auto",
    precision: Annotated[
        str | None, typer.Option(help="32-true, 64-true, bf16-mixed, 16-mixed. [default: by data]")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps or auto.")] = "cpu",
    seed: opt.Seed = 0,
    columns: opt.Columns = None,
    types: opt.Types = None,
    missing: opt.Missing = None,
    context: Annotated[
        str | None, typer.Option(metavar="COL+COL", help="Columns that p(x | context) is conditioned on.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Rows to fit. [default: train where the data have splits]")] = None,
    valid_split: Annotated[
        str | None, typer.Option(help="Held-out rows to follow, or none. [default: valid beside train]")
    ] = None,
    data_dir: opt.DataDir = None,
    log_every: Annotated[int | None, typer.Option(help="Steps a row of metrics. [default: steps / 100]")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps a checkpoint. [default: each 30 s]")] = None,
    strict: Annotated[bool, typer.Option("--strict/--lenient", help="Refuse doubtful data, or warn of them.")] = True,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Go on where a stopped run was.")] = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Fit a program to data by maximising a bound on log p(x); leaves a run folder.

    ppgen fit vae --data digits --set latent=8      ppgen fit my_model.py --data table.csv --columns x=a+b
    ppgen fit flow --data table.csv --columns x=a+b --context c
    """
    if resume is not None:
        changes, path = _changes(ctx), resume
    elif program is None:
        raise PpgenError("there is no program to fit; name one of the catalogue (ppgen list), or path/to/file.py")
    else:
        path = out or _free_folder(program)
    stream = sys.stderr if json else sys.stdout
    begun = time.monotonic()
    try:
        if resume is not None:
            run = _resume(path, changes, stream, quiet)
        else:
            options = {name: ctx.params[name] for name in OPTIONS}
            where = {name: ctx.params[name] for name in ("split", "columns", "types", "missing", "context", "data_dir")}
            own = with_family(settings, family) or []
            run = _fit(str(program), data, own, where, valid_split, path, options, stream, quiet)
    except KeyboardInterrupt as stop:
        begun_steps = (path / "state.safetensors").is_file()
        on = f"{stop or 'stopped'}; go on with: ppgen fit --resume {path}"
        say(f"ppgen: {on if begun_steps else 'stopped before the first step'}", sys.stderr)
        raise typer.Exit(130) from None
    output.fit(run, time.monotonic() - begun, json)


def _fit(
    spec: str, data: str | None, settings: list[str], where: dict[str, Any], valid_split: str | None, path: Path,
    options: dict[str, Any], stream: Any, quiet: bool,
) -> Run:  # fmt: skip
    import torch

    from ppgen import inference
    from ppgen.cli.progress import progress
    from ppgen.data import n_rows
    from ppgen.inference.training.defaults import most_steps
    from ppgen.inference.training.fit import rows_a_step
    from ppgen.run import sources

    torch.manual_seed(options["seed"])  # the constructor draws the first parameters
    program, source, columns = sources.program_and_rows(spec, settings, data, **where)
    if where["context"] and "context" not in program.columns and "kwargs" not in program.columns:
        raise PpgenError(
            f"{program.name} takes no context, only {', '.join(program.columns)}; name its covariates with --columns, "
            "or fit a conditional density with the model flow"
        )
    if valid_split is None and source.split == "train":
        follow = options["patience"] is not None or sources.reads_rows(program, columns, options["guide"])
        valid_split = "valid" if follow else None
    valid_split = None if valid_split in (None, "none") else valid_split
    valid = source.load(valid_split) if valid_split else None
    if not quiet:
        held_out = f", {n_rows(valid)} held out ({valid_split})" if valid is not None else ""
        few = options["batch_size"] or rows_a_step(program, n_rows(columns), options["guide"], options["objective"])
        batches = f", {few} a step" if few and few < n_rows(columns) else ""
        say(f"{program.name} on {source.name}: {n_rows(columns)} rows ({source.split}){batches}{held_out}", stream)
    with progress(most_steps(options), stream, quiet) as report:
        return inference.fit(
            program, columns, valid=valid, out=path, source=source.record(valid_split), report=report, **options
        )


def _resume(path: Path, changes: dict[str, Any], stream: Any, quiet: bool) -> Run:
    from ppgen import inference
    from ppgen.cli.progress import progress
    from ppgen.run import Run, sources

    source = changes.pop("data", None)
    run = Run.load(path)
    total = changes.get("steps", run.config["fit"]["steps"])
    done = int(run.rows[-1]["step"]) if run.rows else 0
    data = None if run.config["data"].get("source") or source else sources.of_run(run)[1]
    if not quiet:
        say(f"{run.program.name} goes on: {total} steps, the last row of metrics at {done}", stream)
    with progress(total, stream, quiet) as report:
        return inference.resume(path, data, source=source, report=report, **changes)


def _given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _changes(ctx: typer.Context) -> dict[str, Any]:
    """The options beside --resume, by name."""
    from ppgen.inference.training.fit import CHANGEABLE

    given = {n: v for n, v in ctx.params.items() if n not in ("resume", "json", "quiet") and _given(ctx, n)}
    for name in given:
        if name not in (*CHANGEABLE, "data"):
            others = {"program": "PROGRAM", "settings": "--set", "strict": "--lenient"}
            option = others.get(name, f"--{name.replace('_', '-')}")
            changeable = ", ".join(f"--{n.replace('_', '-')}" for n in CHANGEABLE)
            raise PpgenError(
                f"--resume goes on with the run's own program, data and seed, and {option} was given; what can be "
                f"changed is {changeable}, and where the file lies (--data)"
            )
    return given


def _free_folder(program: str) -> Path:
    """runs/<model>-<n>, the first that is free."""
    from ppgen import catalog

    stem = catalog.stem(program) or "run"
    n = 1
    while (Path("runs") / f"{stem}-{n}").exists():
        n += 1
    return Path("runs") / f"{stem}-{n}"
