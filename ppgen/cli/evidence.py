"""`ppgen evidence`: log p(x) from both sides."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ppgen.cli.options import PROGRAM, Columns, Data, DataDir, Json, Quiet, Seed, Set, Split, Types, app, program_or_run
from ppgen.console import print_json, print_table, say


@app.command(short_help="log p(x), latents integrated out, from both sides.")
def evidence(
    program: Annotated[str, typer.Argument(metavar="PROGRAM|RUN", help=PROGRAM + " Or a run, its parameters held.")],
    data: Data = None,
    draws: Annotated[
        Path | None, typer.Option(help="posterior.nc of ppgen mcmc or ppgen infer. [default: tempered SMC draws them]")
    ] = None,
    settings: Set = None,
    seed: Seed = 0,
    columns: Columns = None,
    types: Types = None,
    split: Split = None,
    data_dir: DataDir = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Bounds on log p(x) from below and from above, and estimates between them, each with its standard error.

    ppgen evidence eight_schools --data eight_schools
    """
    import torch

    from ppgen import inference
    from ppgen.cli import output
    from ppgen.cli.progress import counter
    from ppgen.inference.verdicts.findings import FINE, figures
    from ppgen.run.files import read_netcdf

    torch.manual_seed(seed)
    where = {"split": split, "columns": columns, "types": types, "data_dir": data_dir}
    model, name, table = program_or_run(program, settings, data, where)
    tree = None if draws is None else read_netcdf(draws)
    with counter("smc", sys.stderr, quiet or json) as report:
        found = inference.evidence(
            model, table, draws=tree, seed=seed,
            report=None if report is None else lambda done: report(done, None),  # type: ignore[arg-type]
        )  # fmt: skip
    if json:
        print_json({"data": name, "evidence": found.table(), "flat": list(found.flat)} | figures(found.findings))
        return
    words = {"lower": "lower bound", "upper": "upper bound", "estimate": "estimate"}
    rows = [[t["name"], words.get(t["kind"], t["kind"]), t["nats"], t["se"]] for t in found.table()]
    print_table(["", "kind", "nats", "± s.e."], rows, title=f"log p(x) on {name}")
    if found.flat:
        say(
            f"The prior of {', '.join(found.flat)} is flat: log p(x) is known up to a constant, and not to be compared "
            "with another model's."
        )
    output.findings([f for f in found.findings if f.verdict != FINE])
