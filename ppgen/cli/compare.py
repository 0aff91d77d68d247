"""`ppgen compare`: which of several runs predicts better."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ppgen.cli.options import Columns, Data, Json, Seed, app
from ppgen.console import print_json, print_table
from ppgen.errors import PpgenError


@app.command(short_help="Which of several runs predicts better.")
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN ...", help="Run folders, or posterior.nc files.")],
    data: Data = None,
    split: Annotated[str | None, typer.Option(help="Score held-out rows of that split. [default: LOO, else test]")]
    = None,
    draws: Annotated[int, typer.Option(help="Posterior draws, where latents are global.")] = 4000,
    particles: Annotated[int, typer.Option(help="Importance weights a row, where latents are local.")] = 1000,
    columns: Columns = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:  # fmt: skip
    """One table over models and families: log predictive density, its kind, and paired differences with their s.e.

    Leave-one-out where what rows share was inferred; else log p(x) of held-out rows.
    """
    from ppgen.cli import output
    from ppgen.cli.options import amortised
    from ppgen.inference import posterior
    from ppgen.inference.evaluation.compare import Score, compare, held_out, loo
    from ppgen.inference.verdicts.findings import figures
    from ppgen.run import Run, sources
    from ppgen.run.files import read_netcdf

    found: dict[str, Score] = {}
    for path in runs:
        name = str(path)
        if name in found:
            raise PpgenError(f"{name} is named twice; name two different runs")
        if path.suffix == ".nc":
            found[name] = loo(read_netcdf(path))
            continue
        run = Run.load(path)
        _, rows = sources.of_run(run, data, split, columns=columns, held_out=amortised(run))
        if data is None and split is None and run.structure.globals:
            found[name] = loo(posterior(run, rows, draws=draws, seed=seed, predictive=False, prior=False))
        else:
            found[name] = held_out(run, rows, draws=draws, particles=particles, seed=seed)
    result = compare(found)
    if json:
        print_json({"models": result.table()} | figures(result.findings))
        return
    _print_scores(result.table())
    output.findings(result.findings)


def _print_scores(table: list[dict[str, Any]]) -> None:
    words = {"loo": "LOO", "lower": "lower bound", "exact": "exact", "estimate": "posterior predictive"}
    print_table(
        ["", "kind", "nats", "± rows", "± Monte Carlo", "nats a row", "from the best", "± paired", "k > 0.7"],
        [
            [t["name"], words[t["kind"]], t["nats"], t["rows_se"], t["se"], t["per_row"], t["difference"],
             t["difference_se"] if t["difference"] else None, t["bad_k"] if t["kind"] == "loo" else None]
            for t in table
        ],
        title=f"Log predictive density over {table[0]['rows']} rows",
    )  # fmt: skip
