"""`ppgen infer`: a posterior by the first method that can be believed."""

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

ANSWERS = {
    "fine": "these draws can be believed",
    "look": "use these draws with care",
    "wrong": "do not use these draws",
}
MODEL = "these draws are the posterior's, of a model that the data contradict"


@app.command(short_help="A posterior, and whether to believe it; writes posterior.nc.")
def infer(
    program: Annotated[str, typer.Argument(metavar="PROGRAM|RUN", help=PROGRAM + " Or a run, its parameters held.")],
    data: Data = None,
    out: Annotated[Path | None, out_option("[default: PROGRAM.nc, or RUN/infer.nc]")] = None,
    settings: Set = None,
    family: Family = None,
    budget: Annotated[float | None, typer.Option(metavar="SECONDS", help="No further method after so many.")] = None,
    seed: Seed = 0,
    columns: Columns = None,
    types: Types = None,
    missing: Missing = None,
    split: Split = None,
    data_dir: DataDir = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:  # fmt: skip
    """Draws from p(z | x) by the cheapest method whose checks are fine: weighted normals, a flow guide, ChEES-HMC.

    ppgen infer eight_schools --data eight_schools --out schools.nc
    """
    import torch

    from ppgen import catalog, inference
    from ppgen.inference.verdicts.findings import FINE, figures, load_findings
    from ppgen.run import Run
    from ppgen.run.export import check_suffix
    from ppgen.run.files import write_netcdf
    from ppgen.run.shown import summarized

    torch.manual_seed(seed)
    where = {"split": split, "columns": columns, "types": types, "missing": missing, "data_dir": data_dir}
    model, name, table = program_or_run(program, with_family(settings, family), data, where)
    path = out or (Path(program) / "infer.nc" if is_run(program) else Path(f"{catalog.stem(program)}.nc"))
    check_suffix(path, (".nc",))
    show = None if quiet or json else lambda method: say(f"trying {method} ...", sys.stderr)
    tree = inference.infer(model, table, budget=budget, seed=seed, report=show)
    keep_columns(tree, columns)
    write_netcdf(path, tree)
    shown = summarized(tree, kind="stats")
    said = load_findings(tree)
    if json:
        latents = {k: {c: float(v) for c, v in row.items()} for k, row in shown.to_dict("index").items()}
        told = {k: tree.attrs[k] for k in ("method", "seconds")} | {"tried": _tried(tree)}
        print_json({"data": name, "posterior": str(path), "summary": latents} | told | figures(said))
        return
    title = f"{model.program.name if isinstance(model, Run) else model.name} on {name}: {tree.attrs['method']}"
    posterior(shown, title, ("mean", "sd"))
    groups(tree)
    for t in _tried(tree):
        say(f"{t['method']}: {t['verdict']}, {t['seconds']:.1f} s" + "".join(f"\n  - {why}" for why in t["why"]))
    model_only = all(f.verdict == FINE or f.measure == "predictive" for f in said) and tree.attrs["verdict"] != FINE
    answer = MODEL if model_only else ANSWERS[tree.attrs["verdict"]]
    say(f"{answer}: {tree.attrs['method']}, {tree.attrs['seconds']:.1f} s")
    for finding in said:
        say(f"- {finding}" + (f". {finding.remedy}" if finding.verdict != FINE else ""))
    say(f"posterior {path}")


def _tried(tree: Any) -> list[dict[str, Any]]:
    from json import loads

    return loads(tree.attrs["tried"])
