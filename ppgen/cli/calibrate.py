"""`ppgen calibrate`: simulation-based calibration of a program or a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ppgen.cli import options as opt
from ppgen.cli.options import app, out_option, program_or_run
from ppgen.console import print_json, print_table, say


@app.command(short_help="Whether posteriors are right on average over simulated data.")
def calibrate(
    program: Annotated[str, typer.Argument(metavar="PROGRAM|RUN", help=f"{opt.PROGRAM} Or a run folder.")],
    data: opt.Data = None,
    settings: opt.Set = None,
    family: opt.Family = None,
    simulator: Annotated[str | None, typer.Option(metavar="PROGRAM", help="Simulates in place of the model.")] = None,
    simulations: Annotated[int, typer.Option(help="Data sets, or rows where latents are local.")] = 200,
    draws: Annotated[int, typer.Option(help="Draws of each posterior.")] = 99,
    refit: Annotated[bool | None, typer.Option(help="Fit the guide to each. [default: unless it reads rows]")] = None,
    guide: Annotated[str | None, typer.Option(help="flow, or a Pyro autoguide, in place of the program's.")] = None,
    steps: Annotated[int, typer.Option(help="Gradient steps of each fit.")] = 1000,
    lr: Annotated[float, typer.Option(help="Learning rate of each fit.")] = 0.05,
    particles: Annotated[int, typer.Option(help="Draws of the latents a step.")] = 4,
    columns: opt.Columns = None,
    types: opt.Types = None,
    split: opt.Split = None,
    data_dir: opt.DataDir = None,
    seed: opt.Seed = 0,
    out: Annotated[Path | None, out_option("JSON file. [default: RUN/calibration.json]")] = None,
    json: opt.Json = False,
) -> None:
    """Simulation-based calibration: ranks of the truth among posterior draws, over data that the model simulates.

    ppgen calibrate eight_schools --data eight_schools --guide AutoNormal      ppgen calibrate runs/schools
    """
    from ppgen import catalog, inference
    from ppgen.cli import output
    from ppgen.run import Run
    from ppgen.run.files import write_json

    where = {"split": split, "columns": columns, "types": types, "data_dir": data_dir}
    target, _, rows = program_or_run(program, settings, family, data, where)
    if isinstance(target, Run) and guide is None and refit is None and target.program.fixed_rows:
        guide = target.config["program"]["guide"] or None
    other = catalog.build(catalog.find(simulator), {}, rows) if simulator is not None else None
    result = inference.calibrate(
        target, rows, simulator=other, simulations=simulations, draws=draws, refit=refit, guide=guide, steps=steps,
        lr=lr, particles=particles, seed=seed,
    )  # fmt: skip
    path = out or (Path(program) / "calibration.json" if isinstance(target, Run) else None)
    if path is not None:
        write_json(path, result.figures())
    if json:
        print_json(result.figures())
        return
    _print_ranks(result)
    output.findings(result.findings)
    if path is not None:
        say(f"figures  {path}")


def _print_ranks(result: Any) -> None:
    print_table(
        ["", "p-value", "contraction", "mean z", "sd of z"],
        [
            [n, *map(float, (result.p[i], result.contraction[i], result.z_mean[i], result.z_sd[i]))]
            for i, n in enumerate(result.names)
        ],
        title=f"Ranks over {len(result.u)} simulations, {result.draws} draws each; p-values corrected for their number",
    )
