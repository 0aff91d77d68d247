"""`ppgen gradients`: which objective and estimator has how much signal."""

from __future__ import annotations

from typing import Annotated

import typer

from ppgen.cli import options as opt
from ppgen.cli.options import app, program_or_run
from ppgen.console import print_json, print_table, say


@app.command(short_help="How noisy each gradient estimator is on a program.")
def gradients(
    program: Annotated[str, typer.Argument(metavar="PROGRAM|RUN", help=f"{opt.PROGRAM} Or a run.", show_default=False)],
    data: opt.Data = None,
    settings: opt.Set = None,
    family: opt.Family = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(
            help="One to try, as in 'sampled sticking' or 'renyi(alpha=0.3)'; repeatable. "
            "[default: all; of a long chain subsampled]"
        ),
    ] = None,
    particles: Annotated[int, typer.Option(help="Draws of the latents a gradient.")] = 8,
    rows: Annotated[int, typer.Option(help="Rows of the data, the first ones.")] = 1000,
    repeats: Annotated[int, typer.Option(help="Gradients of each.")] = 100,
    columns: opt.Columns = None,
    split: opt.Split = None,
    data_dir: opt.DataDir = None,
    seed: opt.Seed = 0,
    json: opt.Json = False,
) -> None:
    """Signal-to-noise ratio of the gradient by objective, estimator and group of parameters.

    Of a program before its first step, or of a run at its parameters.
    """
    from ppgen import inference
    from ppgen.data import take
    from ppgen.run import Run

    where = {"split": split, "columns": columns, "data_dir": data_dir}
    made, _, table = program_or_run(program, settings, family, data, where, seed)
    run = made if isinstance(made, Run) else inference.fit(made, table, steps=0, seed=seed)
    table = take(table, slice(0, rows))
    how = {"choices": objective} if objective else {}
    found, refused = inference.gradient_noise(run, table, particles=particles, repeats=repeats, seed=seed, **how)
    if json:
        print_json({"gradients": [row._asdict() for row in found], "refused": refused})
        return
    print_table(
        ["objective", "parameters", "numbers", "signal", "noise", "ratio", "ms"],
        [[r.choice, r.group, r.size, r.signal, r.noise, r.ratio, 1e3 * r.seconds] for r in found],
        title=f"{run.program.name}: gradients with {particles} particles, {repeats} of each; "
        f"a ratio below {repeats**-0.5:.2g} is none",
    )
    for choice, why in refused.items():
        say(f"- {choice}: {why}")
