"""`ppgen predict`: posterior predictive at new rows."""

from __future__ import annotations

from json import loads as parse
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ppgen.cli import options as opt
from ppgen.cli.options import app, check_suffix, is_run, out_option
from ppgen.console import print_json, print_table, say
from ppgen.errors import PpgenError

if TYPE_CHECKING:
    from ppgen.data import Table

ROWS = 20  # of the table on a screen; all are in the JSON and the file


@app.command(short_help="Predict new rows from the posterior of a run, or of mcmc.")
def predict(
    source: Annotated[Path, typer.Argument(metavar="RUN|NC", help="A run folder, or a file of ppgen mcmc.")],
    data: opt.Data = None,
    group_by: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Predict the mean over the rows of each of its values.")
    ] = None,
    new_groups: Annotated[
        str, typer.Option(help="Groups that were not fitted: error, or draw their latents from the model.")
    ] = "error",
    out: Annotated[
        Path | None, out_option(".nc, or .csv (the table). [default: RUN/predictions.nc, NC-predictions.nc]")
    ] = None,
    draws: Annotated[int, typer.Option("-n", "--draws", help="Posterior draws; of an NC as many of each chain.")]
    = 1000,
    program: Annotated[
        str | None, typer.Option(metavar="FILE|RUN", help="Of an NC whose program is not where it was.")
    ] = None,
    columns: opt.Columns = None,
    split: opt.Split = None,
    data_dir: opt.DataDir = None,
    seed: opt.Seed = 0,
    json: opt.Json = False,
) -> None:  # fmt: skip
    """Draw the observed columns at new rows from p(new | fitted data): latents from the posterior, not the prior.

    ppgen predict RUN --data new.csv --group-by county
    """
    from ppgen import inference
    from ppgen.inference.evaluation.predict import summaries
    from ppgen.run.files import write_netcdf

    default = source / "predictions.nc" if is_run(str(source)) else source.with_name(f"{source.stem}-predictions.nc")
    path = out or default
    check_suffix(path, (".nc", ".csv"))
    fitted, made, recorded = _opened(source, program)
    where: dict[str, Any] = {"split": split or "all", "data_dir": data_dir}
    where["types"] = made.types
    rows, label = _rows(data, columns, made.columns, group_by, recorded, where)
    tree = inference.predict(
        fitted, rows, program=None if source.suffix != ".nc" else made, draws=draws, seed=seed, new_groups=new_groups
    )
    if group_by is not None and label is not None:
        _attach(tree, group_by, label)
    found = summaries(tree, group_by)
    if path.suffix.lower() == ".csv":
        _write_table(path, found)
    else:
        write_netcdf(path, tree)
    draws = tree.predictions.sizes["chain"] * tree.predictions.sizes["draw"]
    if json:
        said = {"extrapolated": parse(tree.attrs.get("extrapolated", "[]")), "predictions": found}
        print_json({"out": str(path), "draws": draws, "conditions_on": "the fitted data", **said})
        return
    _print(found, f"{draws} draws given the fitted data")
    say(f"predictions {path}")


def _opened(source: Path, program: str | None) -> tuple[Any, Any, Any]:
    """The run or tree, its program, and the choice of columns that it was fitted to."""
    from ppgen import catalog
    from ppgen.run import Run
    from ppgen.run.files import read_netcdf
    from ppgen.run.trees import opened

    if source.suffix != ".nc":
        if program is not None:
            raise PpgenError(f"--program is for a file of draws, and {source} has its own program; leave it out")
        run = Run.load(source)
        return run, run.program, run.config["data"].get("columns")
    tree = read_netcdf(source)
    made = None if program is None else Run.load(program) if is_run(program) else catalog.find(program)
    made = catalog.build(made, {}) if isinstance(made, catalog.Found) else made
    chosen = parse(tree.attrs["source_columns"]) if "source_columns" in tree.attrs else None
    return tree, opened(tree, made).program, chosen


def _rows(
    data: str | None, columns: str | None, takes: tuple[str, ...], group_by: str | None, recorded: Any, where: Any
) -> tuple[Table, Any]:
    """The new rows, and a column that is only to group by.

    Columns are gathered as they were for the fit, where the new data have them.
    """
    from ppgen import data as data_module

    if data is None:
        raise PpgenError("there are no new rows to predict; name them with --data")
    if columns is not None:
        rows = data_module.load(data, columns=columns, **where)
    else:
        rows = data_module.load(data, **where)
        names = {k: [v] if isinstance(v, str) else list(v) for k, v in (recorded or {}).items()}
        chosen = {k: recorded[k] for k, own in names.items() if set(own) <= {*rows, *rows.types}}
        rows = data_module.load(data, columns=chosen, **where) if chosen else rows
    if group_by is None or group_by in takes:
        return rows, None
    table = rows if group_by in rows else data_module.load(data, columns={group_by: group_by}, **where)
    words, codes = table.words.get(group_by), table[group_by].numpy()
    label = codes if words is None else [words[c] for c in codes]
    return rows.only(rows.keys() - {group_by}), label


def _attach(tree: Any, name: str, label: Any) -> None:
    """A column of the new rows that the program does not take, beside those that it takes."""
    from xarray import Dataset, DataTree

    group = tree.children.get("predictions_constant_data")
    dataset = group.to_dataset() if group is not None else Dataset()
    tree["predictions_constant_data"] = DataTree(dataset.assign({name: (tree.attrs["row_dim"], label)}))


def _write_table(path: Path, found: list[dict[str, Any]]) -> None:
    """All rows of the table, a column for the share of each word."""
    from ppgen.run.files import write_csv

    rows = [_flat(f) for f in found]
    head = list(dict.fromkeys(k for row in rows for k in row))
    write_csv(path, head, [[row.get(k, "") for k in head] for row in rows])


def _flat(f: dict[str, Any]) -> dict[str, Any]:
    """A row with the shares of words beside the rest; of a word that the rest has, as "row", the name says it."""
    rest = {k: v for k, v in f.items() if k != "shares"}
    return rest | {f"share of {k}" if k in rest else k: v for k, v in f.get("shares", {}).items()}


def _print(found: list[dict[str, Any]], title: str) -> None:
    for name in sorted({f["site"] for f in found}):
        own = [_flat(f) for f in found if f["site"] == name]
        head = [k for k in own[0] if k != "site"]
        rows = [[f[k] for k in head] for f in own]
        print_table([h if h != "row" else "" for h in head], rows[:ROWS], title=f"{name}: {title}")
        if len(rows) > ROWS:
            say(f"and {len(rows) - ROWS} more in the file")
