"""`ppgen check`, `new`, `list` and `trust`: programs, and whether one may run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ppgen.cli import options as opt
from ppgen.cli import output
from ppgen.cli.options import app, with_family
from ppgen.console import is_terminal, print_json, print_table, say
from ppgen.errors import PpgenError, nearest, require_known

if TYPE_CHECKING:
    from ppgen.run import Run


@app.command(short_help="Check a program on its data, and show its sites.")
def check(
    program: Annotated[
        str | None,
        typer.Argument(metavar="PROGRAM", help=opt.PROGRAM + " Or none: the data alone.", show_default=False),
    ] = None,
    data: opt.Data = None,
    settings: opt.Set = None,
    family: opt.Family = None,
    batch_size: Annotated[int | None, typer.Option(help="Check with batches of so many rows.")] = None,
    objective: Annotated[str | None, typer.Option(help="The bound: ppgen list objectives. [default: analytic]")] = None,
    guide: Annotated[str | None, typer.Option(help="A Pyro autoguide in place of the program's guide.")] = None,
    engine: Annotated[str, typer.Option(help="trace also shows the traced graph.")] = "eager",
    columns: opt.Columns = None,
    types: opt.Types = None,
    missing: opt.Missing = None,
    split: opt.Split = None,
    data_dir: opt.DataDir = None,
    seed: opt.Seed = 0,
    json: opt.Json = False,
) -> None:
    """Run the contract's checks on a program and its data, and print its sites, plates, shapes, supports.

    Of a file that is large in memory, the first 10 000 rows. Without a program, what each column of the data is taken
    for, and why: ppgen check --data table.csv
    """
    if program is None:
        _check_data(data, types, columns, split, data_dir, json)
        return
    import torch

    from ppgen import inference
    from ppgen.run import sources

    torch.manual_seed(seed)
    made, source, table = sources.program_and_rows(
        program, with_family(settings, family), data, split=split, columns=columns, types=types, missing=missing,
        data_dir=data_dir, rows=ROWS,
    )  # fmt: skip
    run = inference.fit(
        made, table, steps=0, batch_size=batch_size, objective=objective, guide=guide, engine="eager", seed=seed
    )
    graph = _graph(run, table, batch_size, engine)
    if json:
        print_json(output.check_figures(run, table) | {"graph": graph})
        return
    output.check(run, table, f"{made.name} on {source.name} ({source.split})", graph)


def _check_data(
    data: str | None, types: str | None, columns: str | None, split: str | None, data_dir: str | None, json: bool
) -> None:
    """The types of the columns of data."""
    from ppgen import data as data_module

    if data is None:
        raise PpgenError("there is nothing to check; name a program (ppgen list), or a table with --data")
    table = data_module.load(data, split or "all", columns=columns, data_dir=data_dir, rows=ROWS, types=types)
    if json:
        print_json({"data": data, "columns": {name: own.as_dict() for name, own in table.types.items()}})
        return
    output.types(table, Path(data).name)


def _graph(run: Run, table: Any, batch_size: int | None, engine: str) -> dict[str, Any] | None:
    """What the engine makes of a step, where it is asked for."""
    if engine == "eager":
        return None
    from ppgen.data import n_rows, take
    from ppgen.engine import describe
    from ppgen.inference.objective import make_objective
    from ppgen.inference.training.step import ENGINES
    from ppgen.run import prepare_columns

    require_known("engine", engine, ENGINES)
    n = n_rows(table)
    batch = prepare_columns(take(table, slice(0, batch_size or n)), run.program, run.dtype)
    bound = make_objective(run.program.train(), run.structure, n, run.config["fit"], run.loss)
    return describe(bound, batch)


@app.command(short_help="Write a small program of your own.")
def new(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="The Python file to write.", show_default=False)
    ] = None,
    formula: Annotated[str | None, typer.Option(help="Of a regression: the program that it stands for.")] = None,
    family: opt.Family = None,
    data: opt.Data = None,
    settings: opt.Set = None,
    columns: opt.Columns = None,
    missing: opt.Missing = None,
) -> None:
    """Write a small commented program of your own, which `ppgen fit FILE` runs at once.

    With --formula, --family and --data it is that regression, and is printed where no FILE is named.
    """
    from ppgen.run.files import write_atomic
    from ppgen.run.template import program_text, regression_text

    if formula is not None:
        text = regression_text(formula, with_family(settings, family), data, columns, file, missing)
        if file is None:
            print(text, end="")
            return
    elif file is None:
        raise PpgenError("there is no FILE to write; name it, as in ppgen new my_model.py, or give a --formula")
    else:
        text = program_text(file)
    if file.suffix != ".py":
        raise PpgenError(f"{file} is no Python file; let its name end in .py, as in my_model.py")
    if file.exists():
        raise PpgenError(f"{file} is there already, and is not overwritten; choose another name")
    if not file.parent.is_dir():
        raise PpgenError(f"there is no folder {file.parent} to write {file.name} into; make it first")
    write_atomic(file, text)
    say(f"wrote {file}; run it with: ppgen fit {file}" + (f" --data {data}" if formula is not None else ""))


@app.command("list", short_help="What there is to choose from, and a model's arguments.")
def list_(
    what: Annotated[
        str | None,
        typer.Argument(
            help="models, data, guides, objectives, gradients, kernels, optimizers, schedules, engines; or a model."
        ),
    ] = None,
    json: opt.Json = False,
) -> None:
    """List models, data sets, guides, objectives, ...; `ppgen list vae` shows a model's arguments."""
    from ppgen import catalog

    if what is None or what in SECTIONS:
        shown = {k: _section(k) for k in ([what] if what else SECTIONS) if what or k not in LONG}
        if json:
            print_json(shown)
            return
        for name, entries in shown.items():
            print_table([name, ""], entries.items())
        if what is None:
            say(f"more: ppgen list {' | '.join(LONG)}, and ppgen list MODEL for its arguments")
        return
    models = _section("models")
    if what not in models and ".py" not in what:
        raise PpgenError(
            f"there is nothing called {what!r} to list{nearest(what, [*SECTIONS, *models])}; "
            f"it is one of {', '.join(SECTIONS)}, or a model's name"
        )
    arguments = catalog.arguments(what)
    if json:
        print_json({"model": what, "arguments": arguments})
        return
    print_table(
        ["argument", "default", ""],
        [[a["name"], a["default"], a["help"]] for a in arguments],
        title=models.get(what, what),
    )


@app.command(short_help="Show a run's own program, and let it run.")
def trust(run: opt.RunPath) -> None:
    """Show the program.py of a run folder, which opening the run would run, and put it on the list of trusted programs.

    Fits made in this account are on it; a program that is changed in any way is no longer.
    """
    from ppgen import catalog
    from ppgen.run import trust as trusted
    from ppgen.run.config import read_config

    spec = read_config(run)["program"]
    if spec.get("file") is None:
        if spec.get("model"):
            catalog.model(spec["model"])  # says so where it is no name of the catalogue
        kind = f"is of the catalogue ({spec['model']})" if spec.get("model") else "was made in memory"
        raise PpgenError(f"the program of {run} {kind}, and the folder has no code to trust; open it as it is")
    text = trusted.program_text(run, spec)
    say(text.decode(errors="backslashreplace"))
    chosen = ", ".join(f"{k}={v!r}" for k, v in spec["arguments"].items())
    say(f"# run as {spec.get('name') or 'model and guide'}({chosen})")
    if is_terminal(sys.stdout) and is_terminal(sys.stdin):
        typer.confirm("Let this code run as you, whenever the run is opened?", abort=True)
    trusted.trust(text, spec)
    say(f"trusted: {run / 'program.py'}")


ROWS = 10_000  # of a large file that `check` looks at
SECTIONS = ("models", "data", "guides", "objectives", "gradients", "kernels", "optimizers", "schedules", "engines")
LONG = SECTIONS[6:]
AUTOGUIDES = (  # Pyro's, as `ppgen.guides` finds them
    "AutoDelta", "AutoDiagonalNormal", "AutoDiscreteParallel", "AutoGaussian", "AutoIAFNormal",
    "AutoLaplaceApproximation", "AutoLowRankMultivariateNormal", "AutoMultivariateNormal", "AutoNormal",
    "AutoStructured",
)  # fmt: skip


def _section(name: str) -> dict[str, str]:
    """Names and what they are. Sources are read, and not run: importing torch takes two seconds."""
    from ppgen import catalog
    from ppgen.listing import constant, names

    def summaries(package: str) -> dict[str, str]:
        return {n: constant(package, n, "SUMMARY") for n in names(package)}

    match name:
        case "models":
            return catalog.names()
        case "data":
            return dict(constant("ppgen.data.files", "datasets", "NAMES"))
        case "guides":
            return dict.fromkeys(AUTOGUIDES, "Pyro's autoguide") | summaries("ppgen.guides")
        case "kernels":
            package, words = "ppgen.inference.sampling.kernels", "{}; {chains} chains of {draws} draws after {warmup}"
            return {n: words.format(s, **constant(package, n, "DEFAULTS")) for n, s in summaries(package).items()}
        case "optimizers":
            from ppgen.inference.training.optimise import optimizer_names

            return {n: f"torch.optim.{n}" for n in optimizer_names()}
        case "schedules":
            found = constant("ppgen.inference.training", "optimise", "SCHEDULES")
            return {n: f"{d}, t = step / steps" for n, d in found.items()}
        case "engines":
            return dict.fromkeys(constant("ppgen.inference.training", "step", "ENGINES"), "")
    return summaries(f"ppgen.inference.{name}")
