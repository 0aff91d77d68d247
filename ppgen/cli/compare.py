"""`ppgen compare`: which of several runs predicts better."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ppgen.cli import options as opt
from ppgen.cli.options import app, run_and_rows
from ppgen.console import print_json, print_table, say
from ppgen.errors import PpgenError


@app.command(short_help="Which of several runs predicts better.")
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN ...", help="Run folders, or posterior.nc files.")],
    data: opt.Data = None,
    split: Annotated[str | None, typer.Option(help="Score held-out rows of that split. [default: LOO, else test]")]
    = None,
    draws: Annotated[int, typer.Option(help="Posterior draws, where latents are global.")] = 4000,
    particles: Annotated[int, typer.Option(help="Importance weights a row, where latents are local.")] = 1000,
    evidence: Annotated[bool, typer.Option("--evidence", help="Bayes factors: log p(x) of all rows, latents out.")]
    = False,
    columns: opt.Columns = None,
    seed: opt.Seed = 0,
    json: opt.Json = False,
) -> None:  # fmt: skip
    """One table over models and families: log predictive density, its kind, and paired differences with their s.e.

    Leave-one-out where what rows share was inferred; else log p(x) of held-out rows. Or Bayes factors (--evidence).
    """
    from ppgen.cli import output
    from ppgen.inference import posterior
    from ppgen.inference.evaluation.compare import Score, compare, held_out, loo
    from ppgen.inference.verdicts.findings import figures
    from ppgen.run.files import read_netcdf

    if evidence:
        return _bayes_factors(runs, data, split, columns, seed, json)
    found: dict[str, Score] = {}
    for path in runs:
        name = str(path)
        if name in found:
            raise PpgenError(f"{name} is named twice; name two different runs")
        if path.suffix == ".nc":
            found[name] = loo(read_netcdf(path))
            continue
        run, _, rows = run_and_rows(path, data, split, columns)
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


def _bayes_factors(
    runs: list[Path], data: str | None, split: str | None, columns: str | None, seed: int, json: bool
) -> None:
    from ppgen.inference import bayes_factors, evidence
    from ppgen.run import Run, sources

    found = {}
    for path in runs:
        if path.suffix == ".nc":
            raise PpgenError(f"{path} is a posterior, and a Bayes factor (--evidence) is of runs; name their folders")
        run = Run.load(path)
        found[str(path)] = evidence(run, sources.of_run(run, data, split, columns=columns)[1], seed=seed)
    result = bayes_factors(found)
    if json:
        print_json({"models": result.table()})
        return
    rows = [
        [t["name"], t["nats"], t["se"], t["log_bayes_factor"], t["log_bayes_factor_se"] or None] for t in result.table()
    ]
    print_table(["", "log p(x), nats", "± s.e.", "log Bayes factor", "± s.e."], rows, title="Evidence, all rows")
    if result.flat:
        say(
            f"The priors of {', '.join(result.flat)} are flat somewhere: log p(x) is known up to a constant, and a "
            "Bayes factor means nothing; give the latents proper priors."
        )
