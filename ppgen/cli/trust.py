"""`ppgen trust`: lets the program of a run folder that came from elsewhere run."""

from __future__ import annotations

import sys

import typer

from ppgen.cli.options import RunPath, app
from ppgen.console import is_terminal, say
from ppgen.errors import PpgenError


@app.command(short_help="Show a run's own program, and let it run.")
def trust(run: RunPath) -> None:
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
