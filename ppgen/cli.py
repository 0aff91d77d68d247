"""The command line: a thin layer over functions of the same names.

Nothing heavy is imported at the top, so that `ppgen --help` answers at once: every command imports what it needs.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import ppgen
from ppgen import tell
from ppgen.console import Commands, print_json, print_table
from ppgen.errors import PpgenError, nearest

if TYPE_CHECKING:
    from ppgen.run import Run

app = typer.Typer(
    cls=Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Errors are one sentence and exit code 2; --debug, on any command, shows the traceback.",
)

FORMATS = ".npz .npy .csv .parquet .json .nc .safetensors or IDX"
PROGRAM = "A model of the catalogue, or path/to/file.py[:Name]."

Data = Annotated[
    str | None, typer.Option("--data", "-d", metavar="DATA", help=f"Built in (ppgen list), or a file: {FORMATS}.")
]
Columns = Annotated[str | None, typer.Option(metavar="ARG=COL", help="Columns to arguments, as in x=a+b+c,y=target.")]
DataDir = Annotated[str | None, typer.Option(metavar="DIR", help="Where mnist, fashion, ... lie. [env: PPGEN_DATA]")]
Split = Annotated[str | None, typer.Option(help="train, valid, test or all.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress, only the result.")]
Set = Annotated[list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="A constructor argument.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", show_default=False)]
Seed = Annotated[int, typer.Option(help="Seed of the draws.")]


def _version(asked: bool) -> None:
    if asked:
        print(f"ppgen {ppgen.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _main(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Generative models as probabilistic programs: fit, bound, sample and diagnose any pair of model and guide.

    ppgen fit vae --data digits --out runs/digits, then sample, evaluate, diagnose or plot runs/digits.
    """
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


@app.command(short_help="Fit a program to data; leaves a run folder.")
def fit(
    ctx: typer.Context,
    program: Annotated[str | None, typer.Argument(metavar="PROGRAM", help=PROGRAM, show_default=False)] = None,
    data: Data = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="RUN", help="[default: runs/<model>-<n>]")] = None,
    settings: Set = None,
    steps: Annotated[int, typer.Option(help="Gradient steps.")] = 2000,
    batch_size: Annotated[int | None, typer.Option(help="Rows a step. [default: all]")] = None,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 1e-3,
    schedule: Annotated[str, typer.Option(help="constant, linear, cosine or exponential.")] = "constant",
    optimizer: Annotated[str, typer.Option(help="Any of torch.optim, as in 'AdamW(weight_decay=0.01)'.")] = "Adam",
    clip: Annotated[float | None, typer.Option(help="Largest norm of the gradient.")] = None,
    ema: Annotated[float | None, typer.Option(help="Decay of a moving average of the parameters.")] = None,
    kl_warmup: Annotated[int, typer.Option(help="Steps over which the latent terms come in.")] = 0,
    patience: Annotated[int | None, typer.Option(help="Evaluations without a better held-out ELBO, then stop.")] = None,
    elbo: Annotated[str, typer.Option(help="analytic, sampled, iwae or enumerate.")] = "analytic",
    particles: Annotated[int, typer.Option(help="Draws of the latents a step.")] = 1,
    guide: Annotated[str | None, typer.Option(help="A Pyro autoguide in place of the program's guide.")] = None,
    engine: Annotated[str, typer.Option(help="eager, trace, compile or auto.")] = "auto",
    precision: Annotated[str, typer.Option(help="32-true, 64-true, bf16-mixed or 16-mixed.")] = "32-true",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps or auto.")] = "cpu",
    seed: Annotated[int, typer.Option(help="The one seed: parameters, order of the data, draws.")] = 0,
    columns: Columns = None,
    split: Annotated[str | None, typer.Option(help="Rows to fit. [default: train where the data have splits]")] = None,
    valid_split: Annotated[
        str | None, typer.Option(help="Held-out rows to follow, or none. [default: valid beside train]")
    ] = None,
    data_dir: DataDir = None,
    log_every: Annotated[int | None, typer.Option(help="Steps a row of metrics. [default: steps / 100]")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps a checkpoint. [default: each 30 s]")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Go on where a stopped run was.")] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Fit a program to data by maximising a bound on log p(x); leaves a run folder.

    ppgen fit vae --data digits --set latent=8      ppgen fit my_model.py --data table.csv --columns x=a+b
    """
    if resume is not None:
        _refuse_options(ctx, {"resume", "steps", "json", "quiet"})
        path, total = resume, steps if _given(ctx, "steps") else None
    elif program is None:
        raise PpgenError("there is no program to fit; name one of the catalogue (ppgen list), or path/to/file.py")
    else:
        path, total = out or _free_folder(program), steps
    stream = sys.stderr if json else sys.stdout
    begun = time.monotonic()
    try:
        if resume is not None:
            run = _resume(path, total, stream, quiet)
        else:
            options = {
                "steps": steps, "batch_size": batch_size, "lr": lr, "schedule": schedule, "optimizer": optimizer,
                "clip": clip, "ema": ema, "kl_warmup": kl_warmup, "patience": patience, "elbo": elbo,
                "particles": particles, "guide": guide, "engine": engine, "precision": precision, "device": device,
                "seed": seed, "log_every": log_every, "checkpoint_every": checkpoint_every,
            }  # fmt: skip
            where = {"split": split, "columns": columns, "data_dir": data_dir}
            run = _fit(str(program), data, settings or [], where, valid_split, path, options, stream, quiet)
    except KeyboardInterrupt as stop:
        if (path / "state.safetensors").is_file():
            said = f"{stop or 'stopped'}; go on with: ppgen fit --resume {path}"
        else:
            said = "stopped before the first step"
        print(f"ppgen: {said}", file=sys.stderr)
        raise typer.Exit(130) from None
    tell.fit(run, time.monotonic() - begun, json)


def _fit(
    spec: str, data: str | None, settings: list[str], where: dict[str, Any], valid_split: str | None, path: Path,
    options: dict[str, Any], stream: Any, quiet: bool,
) -> Run:  # fmt: skip
    import torch

    from ppgen import catalog, inference, sources
    from ppgen.data import n_rows
    from ppgen.progress import progress

    torch.manual_seed(options["seed"])  # the constructor draws the first parameters
    found = catalog.find(spec)
    source = sources.choose(data, found, **where)
    columns = source.load()
    program = catalog.build(found, catalog.parse_settings(settings), columns)
    source, columns = sources.without_label(source, columns, program)
    if valid_split is None and source.split == "train":
        follow = options["patience"] is not None or sources.reads_rows(program, columns, options["guide"])
        valid_split = "valid" if follow else None
    valid_split = None if valid_split in (None, "none") else valid_split
    valid = source.load(valid_split) if valid_split else None
    if not quiet:
        held_out = f", {n_rows(valid)} held out ({valid_split})" if valid is not None else ""
        print(f"{program.name} on {source.name}: {n_rows(columns)} rows ({source.split}){held_out}", file=stream)
    with progress(options["steps"], stream, quiet) as report:
        return inference.fit(
            program, columns, valid=valid, out=path, source=source.record(valid_split), report=report, **options
        )


def _resume(path: Path, steps: int | None, stream: Any, quiet: bool) -> Run:
    from ppgen import inference, sources
    from ppgen.progress import progress
    from ppgen.run import Run

    run = Run.load(path)
    total = steps if steps is not None else run.config["fit"]["steps"]
    done = int(run.rows[-1]["step"]) if run.rows else 0
    data = None if run.config["data"].get("source") else sources.of_run(run)[1]
    if not quiet:
        print(f"{run.program.name} goes on: {total} steps, the last row of metrics at {done}", file=stream)
    with progress(total, stream, quiet) as report:
        return inference.resume(path, data, steps=steps, report=report)


@app.command(short_help="Draw from a fitted model.")
def sample(
    run: RunPath,
    n: Annotated[int, typer.Option("-n", help="Number of draws.")] = 64,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help=".png, .npz (all sites) or .csv. [default: RUN/samples.png]")
    ] = None,
    given: Annotated[
        list[str] | None, typer.Option(metavar="FILE|KEY=VALUE", help="Columns or sites to hold fixed: a file, or y=3.")
    ] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Draw from the fitted model, p(x) at the learned parameters."""
    from ppgen import inference
    from ppgen.export import check_suffix, write_draws
    from ppgen.run import Run

    fitted = Run.load(run)
    path = out or run / "samples.png"
    check_suffix(path)
    held = _held(given or [])
    drawn = inference.sample(fitted, n, given=held, seed=seed)
    if path.suffix.lower() == ".png":
        from ppgen.inference.plot import samples_figure, save

        figure = samples_figure(fitted, drawn=drawn, given=_columns(held, fitted))
        if figure is None:
            raise PpgenError(f"{fitted.program.name} has nothing that could be drawn; write the sites with --out x.npz")
        save(figure, path)
    else:
        write_draws(path, drawn, fitted.structure.names("observed"))
    if json:
        print_json({"out": str(path), "n": n, "sites": {k: list(v.shape) for k, v in drawn.items()}})
    else:
        print(f"{n} draws of {', '.join(drawn)} in {path}")


@app.command(short_help="Bounds on log p(x) of data.")
def evaluate(
    run: RunPath,
    data: Data = None,
    split: Annotated[str | None, typer.Option(help="[default: test where the data have splits, else the rows fitted]")]
    = None,
    particles: Annotated[int, typer.Option(help="Draws of the latents a row.")] = 1000,
    columns: Columns = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:  # fmt: skip
    """Bounds on log p(x): value, kind, Monte Carlo standard error; bits/dim where the data are discrete."""
    from ppgen import inference, sources
    from ppgen.run import Run

    fitted = Run.load(run)
    name, rows = sources.of_run(fitted, data, split, columns=columns, held_out=_amortised(fitted))
    found = inference.loglik(fitted, rows, particles=particles, seed=seed)
    table = found.table()
    if json:
        print_json({"run": str(run), "data": name, "per": found.per, "rows": found.rows, "bounds": table})
        return
    tell.bounds(found, f"{fitted.program.name} on {name}")


@app.command(short_help="Whether to believe the guide; writes posterior.nc.")
def diagnose(
    run: RunPath,
    data: Data = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="[default: RUN/posterior.nc]")] = None,
    split: Split = None,
    rows: Annotated[int, typer.Option(help="Rows in the posterior, where latents are local; ten times more weighed.")]
    = 100,
    draws: Annotated[int, typer.Option(help="Draws in the posterior.")] = 1000,
    particles: Annotated[int, typer.Option(help="Importance weights a row.")] = 1000,
    columns: Columns = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:  # fmt: skip
    """Whether to believe the guide: summary, k-hat, effective draws, KL. Writes the posterior as netCDF."""
    from ppgen import inference, sources
    from ppgen.export import check_suffix
    from ppgen.files import write_netcdf
    from ppgen.run import Run

    fitted = Run.load(run)
    path = out or run / "posterior.nc"
    check_suffix(path, (".nc",))
    name, cols = sources.of_run(fitted, data, split, columns=columns, held_out=_amortised(fitted))
    found = inference.diagnose(fitted, cols, draws=draws, rows=rows, particles=particles, seed=seed)
    write_netcdf(path, found.tree)
    if json:
        print_json(tell.diagnosis_figures(found) | {"run": str(run), "data": name, "posterior": str(path)})
    else:
        tell.diagnosis(found, f"{fitted.program.name} on {name}")
        print(f"posterior {path}")


@app.command(short_help="Pictures of a run.")
def plot(
    run: RunPath,
    data: Data = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="DIR", help="[default: RUN/plots]")] = None,
    split: Split = None,
    columns: Columns = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Pictures: ELBO, samples, reconstructions, latent space, k-hat; those that make sense for the program."""
    from ppgen import inference, sources
    from ppgen.run import Run

    fitted = Run.load(run)
    _, cols = sources.of_run(fitted, data, split, columns=columns, held_out=_amortised(fitted), label=True)
    files = inference.plot(fitted, cols, out, seed=seed)
    if json:
        print_json({"run": str(run), "files": files})
    else:
        print("\n".join(map(str, files)))


@app.command(short_help="Check a program on its data, and show its sites.")
def check(
    program: Annotated[str, typer.Argument(metavar="PROGRAM", help=PROGRAM, show_default=False)],
    data: Data = None,
    settings: Set = None,
    batch_size: Annotated[int | None, typer.Option(help="Check with batches of so many rows.")] = None,
    elbo: Annotated[str, typer.Option(help="analytic, sampled, iwae or enumerate.")] = "analytic",
    guide: Annotated[str | None, typer.Option(help="A Pyro autoguide in place of the program's guide.")] = None,
    engine: Annotated[str, typer.Option(help="trace also shows the traced graph.")] = "eager",
    columns: Columns = None,
    split: Split = None,
    data_dir: DataDir = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Run the contract's checks on a program and its data, and print its sites, plates, shapes, supports."""
    import torch

    from ppgen import catalog, inference, sources

    torch.manual_seed(seed)
    found = catalog.find(program)
    source = sources.choose(data, found, split=split, columns=columns, data_dir=data_dir)
    table = source.load()
    made = catalog.build(found, catalog.parse_settings(settings or []), table)
    source, table = sources.without_label(source, table, made)
    run = inference.fit(made, table, steps=0, batch_size=batch_size, elbo=elbo, guide=guide, engine="eager", seed=seed)
    graph = _graph(run, table, batch_size, engine)
    if json:
        print_json(tell.check_figures(run, table) | {"graph": graph})
        return
    tell.check(run, table, f"{made.name} on {source.name} ({source.split})", graph)


def _graph(run: Run, table: Any, batch_size: int | None, engine: str) -> dict[str, Any] | None:
    """What the engine makes of a step, where it is asked for."""
    if engine == "eager":
        return None
    from ppgen.data import n_rows, take
    from ppgen.engine import describe
    from ppgen.inference import Objective
    from ppgen.inference.step import ENGINES
    from ppgen.run import prepare_columns

    if engine not in ENGINES:
        raise PpgenError(f"there is no engine {engine!r}{nearest(engine, ENGINES)}; they are {', '.join(ENGINES)}")
    n = n_rows(table)
    batch = prepare_columns(take(table, slice(0, batch_size or n)), run.program, run.dtype)
    return describe(Objective(run.program.train(), run.structure, n, elbo=run.config["fit"]["elbo"]), batch)


@app.command(short_help="Write a small program of your own.")
def new(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The Python file to write.", show_default=False)],
) -> None:
    """Write a small commented program of your own, which `ppgen fit FILE` runs at once."""
    from ppgen.files import write_atomic
    from ppgen.template import program_text

    if file.suffix != ".py":
        raise PpgenError(f"{file} is no Python file; let its name end in .py, as in my_model.py")
    if file.exists():
        raise PpgenError(f"{file} is there already, and is not overwritten; choose another name")
    if not file.parent.is_dir():
        raise PpgenError(f"there is no folder {file.parent} to write {file.name} into; make it first")
    write_atomic(file, program_text(file))
    print(f"wrote {file}; run it with: ppgen fit {file}")


@app.command("list", short_help="Models, data sets, guides, objectives, a model's arguments.")
def list_(
    what: Annotated[
        str | None,
        typer.Argument(help="models, data, guides, objectives, optimizers, schedules, engines; or a model's name."),
    ] = None,
    json: Json = False,
) -> None:
    """List models, data sets, guides, objectives; `ppgen list vae` shows a model's arguments."""
    from ppgen import catalog

    sections = _sections()
    if what is None or what in sections:
        shown = {what: sections[what]} if what else {k: v for k, v in sections.items() if k not in LONG}
        if json:
            print_json(shown)
            return
        for name, entries in shown.items():
            print_table([name, ""], entries.items())
        if what is None:
            print(f"more: ppgen list {' | '.join(LONG)}, and ppgen list MODEL for its arguments")
        return
    if what not in sections["models"] and ".py" not in what:
        raise PpgenError(
            f"there is nothing called {what!r} to list{nearest(what, [*sections, *sections['models']])}; "
            f"it is one of {', '.join(sections)}, or a model's name"
        )
    arguments = catalog.arguments(what)
    if json:
        print_json({"model": what, "arguments": arguments})
        return
    print_table(
        ["argument", "default", ""],
        [[a["name"], a["default"], a["help"]] for a in arguments],
        title=sections["models"].get(what, what),
    )


LONG = ("optimizers", "schedules", "engines")


def _sections() -> dict[str, dict[str, str]]:
    from ppgen import catalog, data
    from ppgen.inference.elbo import OBJECTIVES
    from ppgen.inference.optimise import SCHEDULES, optimizer_names
    from ppgen.inference.step import ENGINES
    from ppgen.program import autoguide_names

    return {
        "models": catalog.names(),
        "data": data.names(),
        "guides": {n: "Pyro's autoguide" for n in autoguide_names()},
        "objectives": OBJECTIVES,
        "optimizers": {n: f"torch.optim.{n}" for n in optimizer_names()},
        "schedules": {n: f"{d}, t = step / steps" for n, d in SCHEDULES.items()},
        "engines": dict.fromkeys(ENGINES, ""),
    }


# -- helpers -------------------------------------------------------------------------------------


def _given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _refuse_options(ctx: typer.Context, allowed: set[str]) -> None:
    for name in ctx.params:
        if name not in allowed and _given(ctx, name):
            option = name.upper() if name == "program" else f"--{name.replace('_', '-').replace('settings', 'set')}"
            raise PpgenError(
                f"--resume goes on with the run's own program, data and options, and {option} was given; only --steps "
                "can be changed"
            )


def _free_folder(program: str) -> Path:
    """runs/<model>-<n>, the first that is free."""
    stem = Path(program.rpartition(".py")[0] or program).name or "run"
    n = 1
    while (Path("runs") / f"{stem}-{n}").exists():
        n += 1
    return Path("runs") / f"{stem}-{n}"


def _held(items: list[str]) -> dict[str, Any] | None:
    """--given: files of columns, and key=value."""
    from ppgen import catalog, data

    held: dict[str, Any] = {}
    for item in items:
        if "=" in item and not Path(item).exists():
            held |= data.as_tensors(catalog.parse_settings([item]))
        else:
            held |= data.load(item)
    return held or None


def _columns(held: dict[str, Any] | None, run: Run) -> dict[str, Any]:
    from ppgen.run import prepare_columns

    columns = prepare_columns(held or {}, run.program, run.dtype) if held else {}
    return {k: v for k, v in columns.items() if k in run.program.columns}


def _amortised(run: Run) -> bool:
    """Whether rows that were not fitted can be asked about: the guide reads rows, or nothing is latent."""
    return run.program._autoguide is None and not run.structure.globals


def main() -> None:
    """The entry point `ppgen`."""
    app()


if __name__ == "__main__":
    main()
