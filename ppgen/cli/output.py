"""What the commands print: figures in JSON, or in words and tables."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ppgen.console import number, print_json, print_table, say
from ppgen.errors import first_of

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from ppgen.data import ColumnType, Table
    from ppgen.run import Run

SHOWN = 5  # levels of a column
GROUPS = 40  # rows of a posterior's table, or of a table by group
SUMMARY_ROWS = 24  # of the ArviZ summary, on a screen; all are in the JSON and the netCDF


def fit(run: Run, seconds: float, json: bool) -> None:
    """The last row of metrics, or the one whose parameters are kept: nats a row, or of the data set where a latent is
    global."""
    from ppgen.cli.progress import duration
    from ppgen.inference.objectives import reweighted

    last: dict[str, float] = dict(run.rows[-1]) if run.rows else {"step": 0}
    steps = int(last["step"])
    if run.config["fit"]["patience"] and "valid_elbo" in last:
        last = max(map(dict, run.rows), key=lambda row: row.get("valid_elbo", -math.inf))
    whole, recorded = not run.structure.by_row, run.config["data"]
    per = {"elbo": recorded["rows"], "elbo_se": recorded["rows"], "valid_elbo": recorded.get("valid_rows", 1)}
    elbo, se, valid = (last[k] / (1 if whole else n) if k in last else None for k, n in per.items())
    if json:
        print_json(
            {
                "run": run.path,
                "steps": steps,
                "seconds": round(seconds, 3),
                "per": "data set" if whole else "row",
                "rows": recorded["rows"],
                "elbo": elbo,
                "elbo_se": se,
                "valid_elbo": valid,
            }
        )
        return
    if elbo is not None:
        held_out = f", {number(valid)} held out" if valid is not None else ""
        unit = "nats" if whole else "nats a row"
        kept = f", of step {int(last['step'])}, which is kept" if last["step"] < steps else ""
        say(f"ELBO {number(elbo, se)} {unit}{held_out}{kept}; {steps} steps in {duration(seconds)}")
        if other := reweighted(run.config["fit"]["objective"], run.program):
            say(f"trained on {other}, and not on the ELBO above")
    say(f"run  {run.path}")


def write_posterior(path: Path, tree: Any, columns: str | None) -> None:
    """With which of a file's columns --columns named: `predict` reads another file so."""
    from json import dumps

    from ppgen.data import parse_columns
    from ppgen.run.files import write_netcdf

    if columns is not None:
        tree.attrs["source_columns"] = dumps(parse_columns(columns))
    write_netcdf(path, tree)


def posterior(shown: Any, title: str, head: Iterable[str]) -> None:
    """The first rows of a posterior's summary, these of its columns."""
    head = [c for c in head if c in shown]
    print_table(
        ["", *head], [[k, *(float(row[c]) for c in head)] for k, row in shown.head(GROUPS).iterrows()], title=title
    )
    if len(shown) > GROUPS:
        say(f"and {len(shown) - GROUPS} more in the file")


def bounds(found: Any, title: str) -> None:
    """The table of a `LogLik`."""
    words = {"elbo": "ELBO", "iw": f"importance-weighted, {found.particles} draws", "exact": "log p(x)"}
    words["ode"] = "probability-flow ODE"
    kinds = {"lower": "lower bound", "upper": "upper bound"}
    bits = ["bits/dim"] if found.dims is not None else []
    rows = []
    for b in found.table():
        figures = [b["nats"], b["se"], b["rows_se"], *([b["bits_per_dim"]] if bits else [])]
        rows.append([words.get(b["name"], b["name"]), kinds.get(b["kind"], b["kind"]), *figures])
    unit = "nats a row" if found.per == "row" else "nats"
    print_table(["", "kind", unit, "± Monte Carlo", "± rows", *bits], rows, title=f"{title}, {found.rows} rows")


def diagnosis_figures(found: Any) -> dict[str, Any]:
    return {
        "summary": found.summary.to_dict("index"),
        "bounds": found.bounds.table(),
        "khat": found.khat,
        "ess": found.ess,
        "kl": found.kl,
        "active": found.active,
        "moments": found.moments.to_dict("index"),
        "verdict": found.verdict,
        "findings": [f.as_dict() for f in found.findings],
    }


def findings(found: Iterable[Any]) -> None:
    """A line each: the sentence, and what to do."""
    for f in found:
        say(f"- {f}{' ' if f.remedy else ''}{f.remedy}")


def diagnosis(found: Any, title: str) -> None:
    """What each latent dimension carries, ArviZ's summary, the weights, and the sentences."""
    import numpy as np

    for site, kl in found.kl.items():
        order = np.argsort(-kl)[:SUMMARY_ROWS]
        active = found.active.get(site, np.ones(len(kl), bool))
        print_table(
            [f"dimension of {site}", "KL(q, p), nats", "active"],
            [[f"{site}[{i}]", float(kl[i]), "yes" if active[i] else "no"] for i in order],
            title=f"What each dimension carries, nats a row: {kl.sum():.2f} in all{_first(order, kl, 'dimensions')}",
        )
    _print_frame(found.summary, f"{title}: ArviZ summary of the posterior")
    groups(found.tree)
    if len(found.moments.columns) > 2:
        moments = found.moments.rename(columns=lambda name: name.replace("_", " "))
        _print_frame(moments, "The guide's moments beside better ones")
    k, ess = found.khat[~np.isnan(found.khat)], found.ess
    if len(k):
        quantiles = [0.05, 0.5, 0.95] if len(k) > 1 else [0.5]
        print_table(
            ["", *(f"{q:.0%} of rows" if len(k) > 1 else "data set" for q in quantiles)],
            [
                ["Pareto k-hat", *map(float, np.quantile(k, quantiles))],
                [f"effective draws of {found.bounds.particles}", *map(float, np.quantile(ess, quantiles))],
            ],
            title="The guide's importance weights" + (", quantiles over the rows" if len(k) > 1 else ""),
        )
    findings(found.findings)


def _print_frame(frame: Any, title: str) -> None:
    shown = frame.head(SUMMARY_ROWS)
    rows = [[index, *map(float, row)] for index, row in zip(shown.index, shown.values, strict=True)]
    print_table(["", *map(str, frame.columns)], rows, title=title + _first(shown, frame, "entries"))


def groups(tree: Any) -> None:
    """Of each plate of groups, a table of mean and sd of what varies over them."""
    from ppgen.run.shown import by_group, group_rows

    for plate, (means, sds) in by_group(tree).items():
        rows = group_rows(means, sds, GROUPS)
        print_table([plate, *means.columns], rows, title=f"By {plate}, mean ± sd{_first(rows, means, 'groups')}")


def _first(shown: Any, table: Any, what: str) -> str:
    return f", {len(shown)} of {len(table)} {what}" if len(table) > len(shown) else ""


def types(table: Table, title: str) -> None:
    """What each column is, and what may be wrong with it."""
    from ppgen.data import n_rows, tensors
    from ppgen.data.files.images import describe_images

    rows = [
        [own.name if own.name == name else f"{name} ({own.name})", own.kind, _values_of(own), own.missing_share or None,
         own.why if own.kind != "unclear" else None]
        for name, own in table.types.items()
    ]  # fmt: skip
    others = {n: v for n, v in tensors(table).items() if n not in table.types}
    kinds = {n: str(v.dtype).removeprefix("torch.") for n, v in others.items()}
    rows += [[n, kinds[n], str(tuple(v.shape)), None, describe_images(v) or "an array"] for n, v in others.items()]
    print_table(["column", "type", "levels or range", "missing", "why"], rows, title=f"{title}: {n_rows(table)} rows")
    for name, own in table.types.items():
        if own.kind == "unclear":
            say(f"- {own.why}")
        for note in own.notes:
            say(f"- {name}: {note}")


def _values_of(own: ColumnType) -> str | None:
    """The levels, or the range and what it counts."""
    if own.levels:
        mark = " < " if own.kind == "ordered" else ", "
        some = own.levels if len(own.levels) <= SHOWN else own.levels[: SHOWN - 1]
        return mark.join(some) + (f"{mark}... ({len(own.levels)})" if len(own.levels) > SHOWN else "")
    if own.low is None or own.high is None:
        return None
    return f"{own.low:g} to {own.high:g} {own.unit}".rstrip()


def check_figures(run: Run, table: Mapping[str, Tensor]) -> dict[str, Any]:
    rows = run.structure.row_columns
    return {
        "program": run.program.name,
        "columns": {
            k: {"shape": list(v.shape), "dtype": str(v.dtype), "rows": k in rows}
            for k, v in table.items()
            if k in run.config["data"]["contents"]
        },
        "parameters": sum(p.numel() for p in run.program.parameters() if p.requires_grad),
        "sites": [vars(site) for site in run.structure.sites],
        "row_plates": sorted(run.structure.row_plates),
        "guide": run.config["program"]["guide"],
    }


def check(run: Run, table: Table, title: str, graph: dict[str, Any] | None = None) -> None:
    """Columns, sites, and what a fit of the program could use."""
    found = check_figures(run, table)
    print_table(
        ["column", "shape", "type", "passed as"],
        [
            [k, tuple(c["shape"]), c["dtype"].removeprefix("torch."), "a row each" if c["rows"] else "constant"]
            for k, c in found["columns"].items()
        ],
        title=title,
    )
    if table.types:
        types(table, "the columns")
    head = ["site", "role", "distribution", "plates", "batch", "event", "support"]
    print_table(head, [_site(run, site) for site in run.structure.sites])
    own = "its own" if run.program.has_guide else "empty: nothing is latent"
    say(f"guide       {found['guide'] or own}")
    say(f"parameters  {found['parameters']}")
    say(f"minibatches {_minibatches(run)}")
    if graph is not None:
        _graph(graph)
    say("every check passed")


def _site(run: Run, site: Any) -> list[Any]:
    plates = ", ".join(f"{p} (rows)" if p in run.structure.row_plates else p for p in site.plates)
    role = f"{site.role}, summed out" if site.enumerated else site.role
    shapes = [site.batch_shape, site.event_shape]
    return [site.name, role, site.distribution, plates or None, *shapes, _support_in_words(site.support)]


BOUND = re.compile(r"\w+=-?[\d.e+-]+(, \w+=-?[\d.e+-]+)?")
SUPPORTS = {
    "Real": "real", "Boolean": "0 or 1", "Simplex": "simplex", "OneHot": "one-hot", "LowerCholesky": "lower triangular",
    "CorrCholesky": "Cholesky factor of correlations", "PositiveDefinite": "positive definite",
    "GreaterThan": "> {low}", "GreaterThanEq": ">= {low}", "LessThan": "< {high}", "LessThanEq": "<= {high}",
    "Interval": "{low} to {high}", "HalfOpenInterval": "{low} to {high}", "IntegerInterval": "whole, {low} to {high}",
    "IntegerGreaterThan": "whole, >= {low}", "IntegerLessThan": "whole, <= {high}",
}  # fmt: skip


def _support_in_words(text: str) -> str | None:
    """A constraint, as torch prints it, in words; one that has no words here, without its wrapper.

    >>> _support_in_words("Independent(GreaterThan(lower_bound=0.0), 1)"), _support_in_words("Real()")
    ('> 0', 'real')
    >>> _support_in_words("Interval(lower_bound=-1.0, upper_bound=1.0)"), _support_in_words("Boolean()")
    ('-1 to 1', '0 or 1')
    """
    while text.startswith("Independent"):
        text = text.partition("(")[2].rpartition(",")[0]
    name, _, rest = text.strip("_").removesuffix(")").partition("(")
    kind = name.strip("_")
    if "tensor" in rest:
        return "bounds by entry"
    bounds = dict(b.split("=") for b in rest.split(", ")) if BOUND.fullmatch(rest) else {}
    low, high = (f"{float(bounds[k]):g}" if k in bounds else "" for k in ("lower_bound", "upper_bound"))
    if kind in SUPPORTS and (low or high or "{" not in SUPPORTS[kind]):
        return SUPPORTS[kind].format(low=low, high=high)
    return text.removesuffix("()").lstrip("_") or None


def _minibatches(run: Run) -> str:
    plates = sorted(run.structure.row_plates)
    if not plates:
        return "no: no plate follows the rows"
    if looped := {p for s in run.structure.sites if s.role == "observed" for p in s.loops}.intersection(plates):
        return f"no: {min(looped)} is a sequential plate, whose steps are not weighed"
    if run.config["program"]["guide"] and run.structure.locals:
        return "no: an autoguide has one posterior for each of the rows"
    return f"yes: sites in {', '.join(plates)} are weighed by N/B"


def _graph(graph: dict[str, Any]) -> None:
    if not graph["traces"]:
        say(f"graph       none, every step runs eagerly: {graph['reason']}")
        return
    most = [f"{name.removeprefix('aten.')} {count}" for name, count in graph["operations"].items()]
    say(f"graph       {graph['size']} operations: {first_of(most, 8)}")
    say(f"outside     {', '.join(graph['outside'])}")
    say(f"compiling   {graph['advice'] or 'about {:.0f} s'.format(graph['seconds'])}")
