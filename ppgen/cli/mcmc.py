"""`ppgen mcmc`: reference draws from a posterior."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ppgen.cli.options import (
    PROGRAM,
    Columns,
    Data,
    DataDir,
    Family,
    Json,
    Missing,
    Quiet,
    Seed,
    Set,
    Split,
    Types,
    app,
    is_run,
    out_option,
    program_or_run,
    with_family,
)
from ppgen.cli.output import groups, keep_columns, posterior
from ppgen.console import print_json, say


@app.command(short_help="Reference draws of a posterior by HMC; writes posterior.nc.")
def mcmc(
    program: Annotated[str, typer.Argument(metavar="PROGRAM|RUN", help=PROGRAM + " Or a run, its parameters held.")],
    data: Data = None,
    out: Annotated[Path | None, out_option("[default: PROGRAM.nc, or RUN/mcmc.nc]")]
    = None,
    settings: Set = None,
    family: Family = None,
    kernel: Annotated[str, typer.Option(help="ppgen list kernels shows them, and their numbers.")] = "chees",
    chains: Annotated[int | None, typer.Option(help="[default: the kernel's]")] = None,
    draws: Annotated[int | None, typer.Option(help="Of each chain. [default: the kernel's]")] = None,
    warmup: Annotated[int | None, typer.Option(help="[default: the kernel's]")] = None,
    metric: Annotated[str, typer.Option(help="diag, dense or auto.")] = "auto",
    engine: Annotated[str, typer.Option(help="eager, trace, compile or auto.")] = "auto",
    precision: Annotated[
        str | None, typer.Option(help="64-true or 32-true. [default: 64-true where the program can]")
    ] = None,
    marginal: Annotated[
        str | None, typer.Option(metavar="A,B", help="Latents that Laplace's method integrates out.")
    ] = None,
    through_guide: Annotated[
        bool, typer.Option("--through-guide", help="In the coordinates of the run's guide, a normal or a flow.")
    ] = False,
    noncentred: Annotated[
        str | None, typer.Option(metavar="A,B|all", help="Latents that chains move by (z - loc) / scale.")
    ] = None,
    seed: Seed = 0,
    columns: Columns = None,
    types: Types = None,
    missing: Missing = None,
    split: Split = None,
    data_dir: DataDir = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Draws from p(z | x) by Hamiltonian Monte Carlo: what a guide is held against. Writes the posterior as netCDF.

    ppgen mcmc eight_schools --data eight_schools --out schools.nc
    """
    import torch

    from ppgen import catalog, inference
    from ppgen.cli.progress import counter
    from ppgen.inference.verdicts.findings import figures, load_findings
    from ppgen.run import Run
    from ppgen.run.export import check_suffix
    from ppgen.run.files import write_netcdf
    from ppgen.run.shown import summarized

    torch.manual_seed(seed)
    where = {"split": split, "columns": columns, "types": types, "missing": missing, "data_dir": data_dir}
    model, name, table = program_or_run(program, with_family(settings, family), data, where)
    here = Path(program) / "mcmc.nc" if is_run(program) else Path(f"{catalog.stem(program)}.nc")
    path = out or here
    check_suffix(path, (".nc",))
    with counter("mcmc", sys.stderr, quiet or json) as report:
        tree = inference.mcmc(
            model, table, kernel, chains=chains, draws=draws, warmup=warmup, metric=metric, engine=engine, seed=seed,
            precision=precision, marginal=_names(marginal), through=through_guide,
            noncentred="all" if noncentred == "all" else _names(noncentred),
            report=None if report is None else lambda done: report(done, None),  # type: ignore[arg-type]
        )  # fmt: skip
    keep_columns(tree, columns)
    write_netcdf(path, tree)
    shown = summarized(tree)
    if json:
        latents = {k: {c: float(v) for c, v in row.items()} for k, row in shown.to_dict("index").items()}
        said = figures(load_findings(tree))  # what is not fine is logged, on stderr
        print_json({"data": name, "kernel": kernel, "posterior": str(path), "summary": latents} | said)
        return
    program_name = model.program.name if isinstance(model, Run) else model.name
    title = f"{program_name} on {name}: {kernel}, {tree.attrs['metric']} metric"
    posterior(shown, title, ("mean", "sd", "ess_bulk", "ess_tail", "r_hat"))
    groups(tree)
    _say_agreement(shown, load_findings(tree))
    say(f"posterior {path}")


def _names(text: str | None) -> list[str]:
    return [n.strip() for n in text.split(",")] if text else []


def _say_agreement(shown: Any, findings: list[Any]) -> None:
    """Where the table's R-hat, of single chains, is above what the check of the chains asks of groups of them."""
    from ppgen.inference.verdicts.mcmc_diagnostics import GOOD_RHAT

    found = next((f for f in findings if f.measure == "rhat"), None)
    if found is not None and found.verdict == "fine" and "r_hat" in shown and float(shown["r_hat"].max()) > GOOD_RHAT:
        say(f"- {found}; r_hat in the table is that of single chains, which is larger where they are short")
