"""`ppgen report`: a run on one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ppgen.cli.options import Columns, Data, Json, RunPath, Seed, Split, amortised, app, out_option
from ppgen.console import print_json, say


@app.command(short_help="A run on one HTML page.")
def report(
    run: RunPath,
    data: Data = None,
    out: Annotated[Path | None, out_option("[default: RUN/report.html]")] = None,
    split: Split = None,
    draws: Annotated[int, typer.Option(help="Draws of the posterior.")] = 1000,
    columns: Columns = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """One self-contained page: the model's graph, the data, training, posterior, and what was found, the worst first.

    It shows calibration where ppgen calibrate RUN was run before.
    """
    from ppgen.inference.report.report import write_report
    from ppgen.inference.verdicts.findings import figures
    from ppgen.run import Run, sources
    from ppgen.run.export import check_suffix

    if out is not None:
        check_suffix(out, (".html",))
    fitted = Run.load(run)
    _, rows = sources.of_run(fitted, data, split, columns=columns, held_out=amortised(fitted))
    path, findings = write_report(fitted, rows, out, draws=draws, seed=seed)
    if json:
        print_json({"run": str(run), "report": str(path)} | figures(findings))
    else:
        say(path)
