"""`ppgen infer`, `mcmc` and `evidence`: a posterior, and what its model is worth."""

from __future__ import annotations

import sys
from json import loads as parse
from pathlib import Path
from typing import Annotated, Any

import typer

from ppgen.cli import options as opt
from ppgen.cli import output
from ppgen.cli.options import app, out_option, posterior_path, program_or_run
from ppgen.console import print_json, print_table, say

ANSWERS = {
    "fine": "these draws can be believed",
    "look": "use these draws with care",
    "wrong": "do not use these draws",
}
CONTRADICTED = "these draws are the posterior's, of a model that the data contradict"


@app.command(short_help="A posterior, and whether to believe it; writes posterior.nc.")
def infer(
    program: opt.ProgramOrRun,
    data: opt.Data = None,
    out: Annotated[Path | None, out_option("[default: PROGRAM.nc, or RUN/infer.nc]")] = None,
    settings: opt.Set = None,
    family: opt.Family = None,
    budget: Annotated[float | None, typer.Option(metavar="SECONDS", help="No further method after so many.")] = None,
    seed: opt.Seed = 0,
    columns: opt.Columns = None,
    types: opt.Types = None,
    missing: opt.Missing = None,
    split: opt.Split = None,
    data_dir: opt.DataDir = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:  # fmt: skip
    """Draws from p(z | x) by the cheapest method whose checks are fine: weighted normals, a flow guide, ChEES-HMC.

    ppgen infer eight_schools --data eight_schools --out schools.nc
    """
    from ppgen import inference
    from ppgen.inference.verdicts.findings import FINE, LOOK, figures, load_findings
    from ppgen.run.shown import summarized

    where = {"split": split, "columns": columns, "types": types, "missing": missing, "data_dir": data_dir}
    model, name, table = program_or_run(program, settings, family, data, where, seed)
    path = posterior_path(program, out, "infer.nc")
    show = None if quiet or json else lambda method: say(f"trying {method} ...", sys.stderr)
    tree = inference.infer(model, table, budget=budget, seed=seed, report=show)
    output.write_posterior(path, tree, columns)
    shown = summarized(tree, kind="stats")
    said, tried = load_findings(tree), parse(tree.attrs["tried"])
    if json:
        told = {k: tree.attrs[k] for k in ("method", "seconds")} | {"tried": tried}
        print_json({"data": name, "posterior": str(path), "summary": _latents(shown)} | told | figures(said))
        return
    output.posterior(shown, f"{_name(model)} on {name}: {tree.attrs['method']}", ("mean", "sd"))
    output.groups(tree)
    for t in tried:
        say(f"{t['method']}: {t['verdict']}, {t['seconds']:.1f} s" + "".join(f"\n  - {why}" for why in t["why"]))
    contradicted = tree.attrs["verdict"] == FINE and tree.attrs["model"] == LOOK
    answer = CONTRADICTED if contradicted else ANSWERS[tree.attrs["verdict"]]
    say(f"{answer}: {tree.attrs['method']}, {tree.attrs['seconds']:.1f} s")
    for finding in said:
        say(f"- {str(finding).removesuffix('.') if finding.verdict == FINE else finding.told}")
    say(f"posterior {path}")


def _latents(shown: Any) -> dict[str, dict[str, float]]:
    """A posterior's summary for JSON."""
    return {k: {c: float(v) for c, v in row.items()} for k, row in shown.to_dict("index").items()}


def _name(model: Any) -> str:
    from ppgen.run import Run

    return model.program.name if isinstance(model, Run) else model.name


@app.command(short_help="Reference draws of a posterior by HMC; writes posterior.nc.")
def mcmc(
    program: opt.ProgramOrRun,
    data: opt.Data = None,
    out: Annotated[Path | None, out_option("[default: PROGRAM.nc, or RUN/mcmc.nc]")] = None,
    settings: opt.Set = None,
    family: opt.Family = None,
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
    seed: opt.Seed = 0,
    columns: opt.Columns = None,
    types: opt.Types = None,
    missing: opt.Missing = None,
    split: opt.Split = None,
    data_dir: opt.DataDir = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:  # fmt: skip
    """Draws from p(z | x) by Hamiltonian Monte Carlo: what a guide is held against. Writes the posterior as netCDF.

    ppgen mcmc eight_schools --data eight_schools --out schools.nc
    """
    from ppgen import inference
    from ppgen.cli.progress import counter
    from ppgen.inference.verdicts.findings import figures, load_findings
    from ppgen.run.shown import summarized

    where = {"split": split, "columns": columns, "types": types, "missing": missing, "data_dir": data_dir}
    model, name, table = program_or_run(program, settings, family, data, where, seed)
    path = posterior_path(program, out, "mcmc.nc")
    with counter("mcmc", sys.stderr, quiet or json) as report:
        tree = inference.mcmc(
            model, table, kernel, chains=chains, draws=draws, warmup=warmup, metric=metric, engine=engine, seed=seed,
            precision=precision, marginal=_names(marginal), through=through_guide,
            noncentred="all" if noncentred == "all" else _names(noncentred),
            report=report,
        )  # fmt: skip
    output.write_posterior(path, tree, columns)
    shown = summarized(tree)
    if json:
        said = figures(load_findings(tree))  # what is not fine is logged, on stderr
        print_json({"data": name, "kernel": kernel, "posterior": str(path), "summary": _latents(shown)} | said)
        return
    title = f"{_name(model)} on {name}: {kernel}, {tree.attrs['metric']} metric"
    output.posterior(shown, title, ("mean", "sd", "ess_bulk", "ess_tail", "r_hat"))
    output.groups(tree)
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


@app.command(short_help="log p(x), latents integrated out, from both sides.")
def evidence(
    program: opt.ProgramOrRun,
    data: opt.Data = None,
    draws: Annotated[
        Path | None, typer.Option(help="posterior.nc of ppgen mcmc or ppgen infer. [default: tempered SMC draws them]")
    ] = None,
    settings: opt.Set = None,
    family: opt.Family = None,
    seed: opt.Seed = 0,
    columns: opt.Columns = None,
    types: opt.Types = None,
    split: opt.Split = None,
    data_dir: opt.DataDir = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Bounds on log p(x) from below and from above, and estimates between them, each with its standard error.

    ppgen evidence eight_schools --data eight_schools
    """
    from ppgen import inference
    from ppgen.cli.progress import counter
    from ppgen.inference.verdicts.findings import FINE, figures
    from ppgen.run.files import read_netcdf

    where = {"split": split, "columns": columns, "types": types, "data_dir": data_dir}
    model, name, table = program_or_run(program, settings, family, data, where, seed)
    tree = None if draws is None else read_netcdf(draws)
    with counter("smc", sys.stderr, quiet or json) as report:
        found = inference.evidence(
            model, table, draws=tree, seed=seed,
            report=report,
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
