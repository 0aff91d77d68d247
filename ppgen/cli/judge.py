"""`ppgen evaluate`, `diagnose`, `plot` and `report`: what a fit is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ppgen.cli import options as opt
from ppgen.cli import output
from ppgen.cli.options import app, check_suffix, out_option, refuse, run_and_rows
from ppgen.console import print_json, print_table, say


@app.command(short_help="Bounds on log p(x) of data.")
def evaluate(
    run: opt.RunOrPosterior,
    data: opt.Data = None,
    split: Annotated[str | None, typer.Option(help="[default: test where the data have splits, else the rows fitted]")]
    = None,
    particles: Annotated[int | None, typer.Option(help="Draws of the latents a row. [default: 1000, of a chain 100]")]
    = None,
    ode: Annotated[bool, typer.Option("--ode", help="For a diffusion, its probability-flow ODE's figure too.")] = False,
    columns: opt.Columns = None,
    seed: opt.Seed = 0,
    json: opt.Json = False,
) -> None:  # fmt: skip
    """Bounds on log p(x): value, kind, Monte Carlo standard error; bits/dim where the data are discrete.

    Of a posterior.nc, the leave-one-out estimate of the log predictive density.
    """
    from ppgen import inference

    if run.suffix == ".nc":
        refuse(run, {"data": data, "split": split, "particles": particles, "ode": ode, "columns": columns})
        _evaluate_posterior(run, json)
        return
    fitted, name, rows = run_and_rows(run, data, split, columns)
    found = inference.loglik(fitted, rows, particles=particles, seed=seed, ode=ode)
    table = found.table()
    if json:
        print_json({"run": str(run), "data": name, "per": found.per, "rows": found.rows, "bounds": table})
        return
    output.bounds(found, f"{fitted.program.name} on {name}")


def _evaluate_posterior(path: Path, json: bool) -> None:
    from ppgen.inference.evaluation.compare import loo
    from ppgen.run.files import read_netcdf

    found = loo(read_netcdf(path))
    rows = len(found.values)
    if json:
        print_json(
            {"posterior": str(path), "rows": rows, "loo": found.total, "rows_se": found.rows_se, "bad_k": found.bad}
        )
        return
    print_table(
        ["", "nats", "± rows", "nats a row", "k > 0.7"],
        [["LOO", found.total, found.rows_se, found.total / rows, found.bad]],
        title=f"Log predictive density of {path}, each of {rows} rows left out in turn",
    )
    if found.bad:
        say(f"- {found.bad} of {rows} rows weigh so much (k-hat above 0.7) that their terms are not to be relied on")


@app.command(short_help="Whether to believe the guide; writes posterior.nc.")
def diagnose(
    run: opt.RunPath,
    data: opt.Data = None,
    out: Annotated[Path | None, out_option("[default: RUN/posterior.nc]")] = None,
    split: opt.Split = None,
    rows: Annotated[int, typer.Option(help="Rows in the posterior, where latents are local; ten times more weighed.")]
    = 100,
    draws: Annotated[int, typer.Option(help="Draws in the posterior.")] = 1000,
    particles: Annotated[int, typer.Option(help="Importance weights a row.")] = 1000,
    reference: Annotated[Path | None, typer.Option(metavar="NC", help="A posterior.nc to compare with: ppgen mcmc's.")]
    = None,
    columns: opt.Columns = None,
    seed: opt.Seed = 0,
    json: opt.Json = False,
) -> None:  # fmt: skip
    """Whether to believe the guide: summary, k-hat, effective draws, KL. Writes the posterior as netCDF."""
    from ppgen import inference
    from ppgen.run.config import read_config
    from ppgen.run.files import read_netcdf, write_netcdf

    read_config(run)
    path = out or run / "posterior.nc"
    check_suffix(path, (".nc",))
    fitted, name, cols = run_and_rows(run, data, split, columns)
    beside = None if reference is None else read_netcdf(reference)
    found = inference.diagnose(fitted, cols, draws=draws, rows=rows, particles=particles, reference=beside, seed=seed)
    write_netcdf(path, found.tree)
    if json:
        print_json(output.diagnosis_figures(found) | {"run": str(run), "data": name, "posterior": str(path)})
    else:
        output.diagnosis(found, f"{fitted.program.name} on {name}")
        say(f"posterior {path}")


@app.command(short_help="Pictures of a run.")
def plot(
    run: opt.RunOrPosterior,
    data: opt.Data = None,
    out: Annotated[Path | None, out_option("[default: RUN/plots, or NC-plots]", "DIR")]
    = None,
    split: opt.Split = None,
    columns: opt.Columns = None,
    seed: opt.Seed = 0,
    format: Annotated[str, typer.Option(help="png or svg.")] = "png",
    json: opt.Json = False,
) -> None:  # fmt: skip
    """Pictures: ELBO, samples, reconstructions, interpolation, latents, k-hat; those that make sense for the program.

    Of a posterior.nc: latents, ranks of the chains, energy, posterior predictive.
    """
    from ppgen import inference

    if run.suffix == ".nc":
        from ppgen.run.files import read_netcdf

        refuse(run, {"data": data, "split": split, "columns": columns})
        files = inference.plot_tree(read_netcdf(run), out or run.with_name(f"{run.stem}-plots"), format=format)
    else:
        fitted, _, cols = run_and_rows(run, data, split, columns, label=True)
        files = inference.plot(fitted, cols, out, seed=seed, format=format)
    if json:
        print_json({"run": str(run), "files": files})
    else:
        say("\n".join(map(str, files)))


@app.command(short_help="A run on one HTML page.")
def report(
    run: opt.RunPath,
    data: opt.Data = None,
    out: Annotated[Path | None, out_option("[default: RUN/report.html]")] = None,
    split: opt.Split = None,
    draws: Annotated[int, typer.Option(help="Draws of the posterior.")] = 1000,
    columns: opt.Columns = None,
    seed: opt.Seed = 0,
    json: opt.Json = False,
) -> None:
    """One self-contained page: the model's graph, the data, training, posterior, and what was found, the worst first.

    It shows calibration where ppgen calibrate RUN was run before.
    """
    from ppgen.inference.report.report import write_report
    from ppgen.inference.verdicts.findings import figures

    if out is not None:
        check_suffix(out, (".html",))
    fitted, _, rows = run_and_rows(run, data, split, columns)
    path, findings = write_report(fitted, rows, out, draws=draws, seed=seed)
    if json:
        print_json({"run": str(run), "report": str(path)} | figures(findings))
    else:
        say(path)
