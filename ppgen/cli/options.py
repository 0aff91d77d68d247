"""The application, and the options that several commands share."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ppgen.console import Commands
from ppgen.errors import PpgenError

if TYPE_CHECKING:
    from ppgen.run import Run

app = typer.Typer(
    cls=Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Errors are one sentence and exit code 2. On any command, --debug shows the traceback, and -v (--verbose) "
    "which engine was chosen, why, and what it cost.",
)

FORMATS = ".csv .tsv .parquet .feather .xlsx .jsonl .json .npz .npy .nc .h5 .h5ad .mat .safetensors or IDX"
PROGRAM = "A model of the catalogue, path/to/file.py[:Name], or a formula: 'y ~ x + (1 | g)'."

Data = Annotated[
    str | None, typer.Option("--data", "-d", metavar="DATA", help=f"Built in (ppgen list), or a file: {FORMATS}.")
]
Columns = Annotated[str | None, typer.Option(metavar="ARG=COL", help="Columns to arguments, as in x=a+b+c,y=target.")]
Types = Annotated[
    str | None,
    typer.Option(metavar="COL=KIND", help="What columns are, as in income=positive,grade=ordered:a<b (ppgen check)."),
]
Missing = Annotated[
    str | None,
    typer.Option(
        help="Missing cells of observed columns: error, drop (their rows), mask or impute. [default: the program's]"
    ),
]
DataDir = Annotated[str | None, typer.Option(metavar="DIR", help="Where mnist, fashion, ... lie. [env: PPGEN_DATA]")]
Split = Annotated[str | None, typer.Option(help="train, valid, test or all.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress, only the result.")]
Set = Annotated[list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="A constructor argument.")]
Family = Annotated[
    str | None, typer.Option(help="Of a formula: gaussian, student, bernoulli, poisson, negbinomial, ordered, ...")
]
ProgramOrRun = Annotated[str, typer.Argument(metavar="PROGRAM|RUN", help=PROGRAM + " Or a run, its parameters held.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", show_default=False)]
RunOrPosterior = Annotated[
    Path, typer.Argument(metavar="RUN|NC", help="A run folder, or a posterior.nc.", show_default=False)
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of everything random.")]


def out_option(help: str, metavar: str = "PATH") -> Any:
    """--out of a command."""
    return typer.Option("--out", "-o", parser=_path, metavar=metavar, help=help)


def _path(text: str) -> Path:
    """A path as it was given; '' is none, where Python takes it for the current folder."""
    if not text:
        raise typer.BadParameter("'' is no path; name a file or a folder, or leave the option out")
    return Path(text)


def with_family(settings: list[str] | None, family: str | None) -> list[str] | None:
    """The settings of a program, and the family of a formula."""
    return settings if family is None else [*(settings or []), f"family={family}"]


def refuse(path: Path, options: dict[str, object]) -> None:
    """Options that ask for a program, given with a posterior that has none."""
    for name, value in options.items():
        if value not in (None, False):
            raise PpgenError(f"--{name} is for a run, and {path} is a posterior on its own; leave it out")


def run_and_rows(
    path: Path, data: str | None, split: str | None, columns: str | None, *, label: bool = False
) -> tuple[Run, str, Any]:
    """A run, its data in words, and their rows: held-out ones by default where these can be asked about, as the guide
    reads rows, or nothing is latent."""
    from ppgen.run import Run, sources

    run = Run.load(path)
    amortised = not run.program.fixed_rows and not run.structure.globals
    return run, *sources.of_run(run, data, split, columns=columns, held_out=amortised, label=label)


def program_or_run(
    spec: str, settings: list[str] | None, family: str | None, data: str | None, where: dict[str, Any],
    seed: int | None = None,
) -> tuple[Any, str, Any]:  # fmt: skip
    """A program made for its data, or a run at its learned parameters; the data in words, and its rows."""
    import torch

    from ppgen.run import Run, sources

    settings = with_family(settings, family)
    if seed is not None:
        torch.manual_seed(seed)  # the constructor draws the first parameters
    if is_run(spec):
        if settings:
            raise PpgenError("--set gives arguments to a program, and a run has its own; leave it out")
        for name in ("types", "missing"):
            if where.get(name) is not None:
                raise PpgenError(f"--{name} is said at the fit, and a run keeps it; leave it out, or name a program")
        run = Run.load(spec)
        return run, *sources.of_run(run, data, where["split"], columns=where["columns"])
    program, source, rows = sources.program_and_rows(spec, settings, data, **where)
    return program, source.name, rows


def check_suffix(path: Path, suffixes: Iterable[str]) -> None:
    """Refuses a file name before any work is done for it."""
    if path.suffix.lower() not in suffixes:
        raise PpgenError(f"{path} names no format that can be written; let it end in {', '.join(suffixes)}")
    if not path.parent.is_dir():
        raise PpgenError(f"there is no folder {path.parent} to write {path.name} into; make it first")


def posterior_path(spec: str, out: Path | None, name: str) -> Path:
    """Where a posterior is written: --out, the file `name` in a run, or else PROGRAM.nc.

    Raises:
        PpgenError: a file that is no .nc.
    """
    from ppgen import catalog

    path = out or (Path(spec) / name if is_run(spec) else Path(f"{catalog.stem(spec)}.nc"))
    check_suffix(path, (".nc",))
    return path


def is_run(spec: str) -> bool:
    return (Path(spec) / "config.json").is_file()
