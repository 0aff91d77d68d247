"""The command line: a thin layer over functions of the same names. A file here is a group of commands.

Nothing heavy is imported at the top, so that `ppgen --help` answers at once: every command imports what it needs.
"""

from __future__ import annotations

import gc
from typing import Annotated

import typer

import ppgen
from ppgen.cli.options import app

# The order of import is the order in `ppgen --help`.
from ppgen.cli import (  # isort: skip
    fit, draw, predict, judge, posteriors, calibrate, compare, gradients, programs, demo,  # noqa: F401
)  # fmt: skip

__all__ = ["app", "main"]


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


def main() -> None:
    """The entry point `ppgen`."""
    gc.set_threshold(10_000)  # of Python's 700: modules that are imported make no garbage, and are a fifth faster so
    app()
