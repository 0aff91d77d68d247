"""A run on one page that a colleague can be sent: what was fitted, to what, how far to believe it, what to do next.

One HTML file with everything in it, read without a network, on a phone, by keyboard and by ear: pictures are inline and
have a text alternative, tables can be scrolled, headings make sense on their own.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

import ppgen
from ppgen import data as data_module
from ppgen.console import cell, number
from ppgen.errors import PpgenError
from ppgen.gaps import in_words
from ppgen.inference.evaluation.diagnose import Diagnosis, diagnose
from ppgen.inference.evaluation.estimates import LogLik
from ppgen.inference.evaluation.loglik import DrawnDensity, NoWeights, loglik
from ppgen.inference.evaluation.sample import ready, require_run
from ppgen.inference.report.chain_plots import chain_figures
from ppgen.inference.report.figures import rendered
from ppgen.inference.report.model_graph import svg
from ppgen.inference.report.plot import elbo_figure, khat_figure, latent_figure, reconstructions_figure
from ppgen.inference.report.sample_plots import samples_figure
from ppgen.inference.verdicts.findings import FINE, LOOK, VERDICTS, WRONG, Finding, model_verdict, verdict
from ppgen.inference.verdicts.report_checks import Check, predictive_checks, report_checks
from ppgen.run import Run, prepare_columns
from ppgen.run.files import make_folder, read_json, write_atomic
from ppgen.run.shown import by_group, group_rows
from ppgen.structure import Site
from ppgen.style import BLUE, GREY, ORANGE

BADGES = {WRONG: "Wrong:", LOOK: "Look:", FINE: "Fine:"}
VERDICT_WORDS = {
    WRONG: "Do not use it yet.",
    LOOK: "Use it with care.",
    FINE: "Every check that was made is fine.",
}
ROWS = 1000  # of the data, at most, in the checks of a program whose rows are apart
ENTRIES = 40  # of a table
DPI = 110

Section = dict[str, Any]


def report(run: Run, data: Any = None, out: str | Path | None = None, *, draws: int = 1000, seed: int = 0) -> Path:
    """Writes the page.

    Args:
        run: the run; where its folder has calibration.json (`ppgen calibrate`), it is on the page.
        data: the columns to show it on; None takes those that were fitted.
        out: the file; None: RUN/report.html.
        draws: of the posterior.
        seed: of the draws.

    Raises:
        PpgenError: a run in memory without `out`, or fitted to data in memory without `data`.
    """
    return write_report(run, data, out, draws=draws, seed=seed)[0]


def write_report(
    run: Run, data: Any = None, out: str | Path | None = None, *, draws: int = 1000, seed: int = 0
) -> tuple[Path, list[Finding]]:
    """As `report`: the file, and the findings that are on the page, the worst first."""
    require_run(run, "report")
    if out is None and run.path is None:
        raise PpgenError("the run has no folder to put the report into; pass out=")
    path = Path(out) if out is not None else run.path / "report.html"  # type: ignore[operator]
    page, findings = _page(run, data, draws, seed)
    make_folder(path.parent)
    write_atomic(path, page)
    return path, findings


def _page(run: Run, data: Any, draws: int, seed: int) -> tuple[str, list[Finding]]:
    """The page's text, and the findings on it."""
    rows = run.data() if data is None else prepare_columns(data, run.program, run.dtype)
    known = run.program.columns
    rows = rows.only([k for k in rows if data_module.argument_of(k, rows) in known or not known])
    few = rows
    if not run.structure.globals and not run.program.fixed_rows:
        few = data_module.take(rows, slice(0, ROWS), run.structure.row_columns)
    d, unweighed = None, ""
    try:
        d = None if run.program.repeats else diagnose(run, few, draws=draws, seed=seed)
    except DrawnDensity:
        unweighed = "drawn"
    except NoWeights:
        unweighed = "point" if run.structure.latents else ""
    bounds = d.bounds if d is not None else loglik(run, few, seed=seed)
    checks = predictive_checks(d.tree) if d is not None else []
    file = None if run.path is None else run.path / "calibration.json"
    calibration = read_json(file) if file is not None and file.is_file() else None
    calibrated = [Finding.from_dict(f) for f in calibration["findings"]] if calibration is not None else []
    sections = [
        _model(run, few, rows),
        _data(run, rows),
        _training(run),
        _bounds(bounds, len(few) and data_module.n_rows(few, run.structure.row_columns)),
        *([_posterior(run, few, d, seed)] if d is not None else []),
        _chain(run, few, seed) if run.program.repeats else _predictions(run, few, d, checks, seed),
        *([_calibrated(calibration, calibrated)] if calibration is not None else []),
        _details(run),
    ]
    findings = report_checks(run, d, calibrated if calibration is not None else None, unweighed=unweighed)
    return _render(run, [s for s in sections if s], findings), findings


def _render(run: Run, sections: list[Section], findings: list[Finding]) -> str:
    from jinja2 import Environment, StrictUndefined

    text = files("ppgen").joinpath("templates/report.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    recorded = run.config["data"]
    source, sites = recorded.get("source") or "data in memory", len(run.structure.latents)
    return environment.from_string(text).render(
        title=f"{run.program.name} on {Path(str(source)).name}",
        subtitle=f"{recorded['rows']} rows, {sites} latent site{'s' * (sites != 1)}, "
        f"{sum(p.numel() for p in run.program.parameters())} parameters, seed {run.config['seed']}",
        findings=findings,
        badges=BADGES,
        glance=_glance(run, findings),
        sections=sections,
        footer=f"Written by ppgen {ppgen.__version__}. Everything is in this file.",
    )


def _glance(run: Run, findings: list[Finding]) -> dict[str, str]:
    """The page in three lines: what was fitted, the verdict of all findings, and the first thing to do."""
    recorded = run.config["data"]
    guide = run.config["program"]["guide"] or ("its own guide" if run.structure.latents else "")
    rows = f"{recorded['rows']} row{'s' if recorded['rows'] != 1 else ''}"
    written = run.config["program"].get("arguments") or {}
    name = f"{written['formula']} ({written['family']})" if {"formula", "family"} <= set(written) else run.program.name
    what = f"{name} to {rows} of {recorded.get('source') or 'data in memory'}"
    about = model_verdict(findings)
    found = min((v for v in (verdict(findings), about) if v), key=VERDICTS.index)
    said = f" {findings[0].sentence}" if findings and findings[0].verdict == found != FINE else ""
    otherwise = "Read the findings: not every check that applies was made."
    if found == FINE:
        otherwise = "Nothing: use it." if about else "Look at the draws beside the data: no check compares them."
    return {
        "what": what + (f", with {guide}." if guide else "."),
        "verdict": found,
        "words": VERDICT_WORDS[found] + said,
        "next": next((f.remedy for f in findings if f.remedy), otherwise),  # the worst comes first
    }


def _section(title: str, *text: str, figures: list | None = None, tables: list | None = None,
             details: list | None = None) -> Section:  # fmt: skip
    return {
        "id": title.lower().replace(" ", "-"), "title": title, "text": list(text), "figures": figures or [],
        "tables": tables or [], "details": details or [],
    }  # fmt: skip


def _table(caption: str, head: list[str], rows: list[list[Any]]) -> dict[str, Any]:
    cells = [[cell(c) for c in row] for row in rows]
    return {"caption": caption, "head": head, "rows": cells}


def _frame_table(caption: str, frame: Any) -> dict[str, Any]:
    shown = frame.head(ENTRIES)
    rows = [[str(i), *map(float, row)] for i, row in zip(shown.index, shown.values, strict=True)]
    return _table(caption + _first_of(len(shown), len(frame)), ["", *map(str, frame.columns)], rows)


def _figure(figure: Any, alt: str, caption: str) -> list[dict[str, Any]]:
    """A matplotlib figure as an inline PNG; none where there is nothing to show."""
    if figure is None:
        return []
    raw = rendered(figure, dpi=DPI)
    width, height = (int.from_bytes(raw[i : i + 4], "big") for i in (16, 20))
    return [{"svg": "", "png": base64.b64encode(raw).decode(), "width": width, "height": height, "alt": alt,
             "caption": caption}]  # fmt: skip


# -- the sections ----------------------------------------------------------------------------------


def _model(run: Run, data: Mapping[str, Any], rows: Mapping[str, Any]) -> Section:
    doc = (type(run.program).__doc__ or "").strip().split("\n\n")[0].replace("\n", " ").replace("`", "").strip()
    with ready(run, data, 0, guide=False):
        n = data_module.n_rows(rows, run.structure.row_columns) if run.structure.row_columns else None
        picture = svg(run.program, data, run.structure, n)
    figures = []
    if picture is not None:
        caption = "White: latent. Grey: observed. Dashed: computed. A box is a plate, with how many there are."
        figures = [{"svg": picture[0], "caption": caption}]
    shown = [s for s in run.structure.sites if not _of_an_autoguide(run, s)]
    sites = [
        [s.name, s.role + (", summed out" if s.enumerated else ""), s.distribution, ", ".join(s.plates) or "–",
         "×".join(map(str, s.event_shape)) or "–"]
        for s in shown[:ENTRIES]
    ]  # fmt: skip
    caption = "Sites of the program" + _first_of(len(sites), len(shown))
    guide = run.config["program"]["guide"] or ("its own" if run.structure.latents else "none: nothing is latent")
    return _section(
        "Model", doc, f"Guide: {guide}.", figures=figures,
        tables=[_table(caption, ["site", "role", "distribution", "plates", "event"], sites)],
    )  # fmt: skip


def _of_an_autoguide(run: Run, site: Site) -> bool:
    """Whether a site is an automatic guide's own, behind a latent that is shown already: mu_unconstrained of mu."""
    return site.role == "auxiliary" and bool(run.config["program"]["guide"])


def _first_of(shown: int, all: int) -> str:
    """For the end of a caption: " (40 of 90)" where not all are shown."""
    return f" ({shown} of {all})" if shown < all else ""


def _data(run: Run, data: Mapping[str, Any]) -> Section:
    types, codes = run.program.types or {}, run.program.codes or {}
    rows: list[list[Any]] = []
    for name, v in data_module.tensors(data).items():
        x = v.double()
        x = x[~x.isnan()]
        kind = "a row each" if name in run.structure.row_columns else "constant"
        rows.append([name, "×".join(map(str, v.shape)), str(v.dtype).removeprefix("torch."), kind])
        words = name in codes or (name in types and types[name].levels)
        rows[-1] += [""] * 4 if words else _figures(x)  # no mean of codes
    recorded = run.config["data"]
    gaps = in_words(run.program, recorded["rows"])
    split = f", split {recorded['split']}" if recorded.get("split") else ""
    return _section(
        "Data",
        f"Source: {recorded.get('source') or 'in memory'}{split}.",
        f"Fingerprint of the rows that were fitted (SHA-256): {recorded['sha256']}.",
        *([gaps] if gaps else []),
        tables=[_table("Columns", ["column", "shape", "type", "passed as", "mean", "sd", "least", "largest"], rows)],
    )


def _figures(x: Tensor) -> list[float]:
    """Mean, sd, least and largest of the cells that are there."""
    if not x.numel():
        return [float("nan")] * 4
    return [float(x.mean()), float(x.std()) if x.numel() > 1 else 0.0, float(x.min()), float(x.max())]


def _training(run: Run) -> Section:
    o, m = run.config["fit"], run.metrics
    text = (
        f"{o['optimizer']}, learning rate {o['lr']:g}, {int(m['step'][-1]) if len(m['step']) else 0} steps, objective "
        + str(o["objective"])
    )
    figure = elbo_figure(run)
    if figure is None:
        return _section("Training", text + ". Too few rows of metrics for a curve.")
    elbo = m["elbo"][np.isfinite(m["elbo"])] / (run.config["data"]["rows"] if run.structure.by_row else 1)
    unit = "nats a row" if run.structure.by_row else "nats"
    alt = f"The ELBO over {int(m['step'][-1])} steps: from {elbo[0]:.4g} to {elbo[-1]:.4g} {unit}."
    return _section("Training", text + ".", figures=_figure(figure, alt, "The bound over the steps, with its standard "
                    "error."))  # fmt: skip


def _bounds(found: LogLik, rows: int) -> Section:
    words = {"elbo": "ELBO", "iw": f"importance-weighted, {found.particles} draws"}
    unit = "nats a row" if found.per == "row" else "nats"
    table = [
        [words.get(b["name"], b["name"]), {"lower": "lower bound"}.get(b["kind"], b["kind"]), float(b["nats"]),
         float(b["se"]), *([float(b["bits_per_dim"])] if found.dims is not None else [])]
        for b in found.table()
    ]  # fmt: skip
    head = ["", "kind", unit, "± Monte Carlo", *(["bits/dim"] if found.dims is not None else [])]
    return _section("Likelihood", f"log p(x) of {rows} rows.", tables=[_table("Bounds on log p(x)", head, table)])


def _posterior(run: Run, data: Mapping[str, Any], d: Diagnosis, seed: int) -> Section:
    k = d.khat[np.isfinite(d.khat)]
    alt = f"Pareto k-hat: largest {k.max():.2f}, median {np.median(k):.2f}." if len(k) else "Pareto k-hat: none."
    figures = _figure(
        latent_figure(run, data, d, None, seed=seed), "Latents: " + _in_words(d), "The latents' posterior."
    )
    if len(d.khat) > 1:
        figures += _figure(khat_figure(d), alt, "k-hat above 0.7 marks rows whose posterior is not to be trusted.")
    tables = [_frame_table("Posterior of the latents", d.summary)]
    if len(d.moments.columns) > 2:
        moments = d.moments.rename(columns=lambda name: name.replace("_", " "))
        tables.append(_frame_table("The guide's moments beside better ones", moments))
    for plate, (means, sds) in by_group(d.tree).items():
        each = group_rows(means, sds, ENTRIES)
        caption = f"By {plate}, mean ± sd" + _first_of(len(each), len(means))
        tables.append(_table(caption, [plate, *means.columns], each))
    checks = [[f.measure.replace("_", " "), f.where or "–", f.figure, f.threshold, f.verdict] for f in d.findings[1:]]
    tables.append(_table("Checks of the guide", ["", "where", "figure", "good to", "verdict"], checks))
    return _section("Posterior", str(d.findings[0]), figures=figures, tables=tables)


def _in_words(d: Diagnosis) -> str:
    table = d.summary.head(6)
    said = [f"{i} {row['mean']:.3g} ± {row['sd']:.2g}" for i, row in table.iterrows()]
    return "; ".join(said) + ("; and more." if len(d.summary) > 6 else ".")


def _predictions(run: Run, data: Mapping[str, Any], d: Diagnosis | None, checks: list[Check], seed: int) -> Section:
    if d is None:
        figure = samples_figure(run, data_module.take(data, slice(0, ROWS), run.structure.row_columns), seed=seed)
        words = "Draws of the fitted model beside the data."
        return _section("Draws", figures=_figure(figure, words, words))
    figure = reconstructions_figure(run, data, seed=seed)
    rows: list[list[Any]] = [
        [f"{c.statistic} of {c.site}", c.observed, f"{number(c.predicted[0])} to {number(c.predicted[1])}", c.p,
         "off" if c.off else "fine"]
        for c in checks
    ]  # fmt: skip
    alt = "Posterior predictive beside the data. " + "; ".join(
        f"{c.statistic} of {c.site}: observed {c.observed:.3g}, predicted {c.predicted[0]:.3g} to {c.predicted[1]:.3g}"
        for c in checks[:4]
    )
    head = ["statistic", "observed", "90% of predicted", "P(predicted ≥ observed)", ""]
    return _section(
        "Predictive checks",
        "Data drawn from the fitted model beside the observed ones: p near 0 or 1 says what the model cannot give.",
        figures=_figure(figure, alt, "What was observed, and what the model predicts."),
        tables=[_table("Statistics of the data", head, rows)] if rows else [],
    )


def _chain(run: Run, data: Mapping[str, Any], seed: int) -> Section:
    """Draws of a long chain, some states of one, and where its bound goes: its states are nothing to summarise."""
    words = {
        "samples": "Draws of the fitted model beside the data.",
        "chain": "Some states of draws, from noise to x.",
        "ledger": "The terms of the bound over the times of the chain.",
    }
    found = chain_figures(run, data, seed=seed)
    return _section("Draws", figures=[f for name, w in words.items() for f in _figure(found[name], w, w)])


def _calibrated(c: Mapping[str, Any], findings: list[Finding]) -> Section:
    from matplotlib.figure import Figure

    names = list(c["parameters"])[:9]
    across = min(3, len(names))
    down = -(-len(names) // across)
    figure = Figure(figsize=(2.6 * across, 0.4 + 2.0 * down), layout="constrained")
    z, low, high = (np.array(c["band"][k]) for k in ("z", "low", "high"))
    for i, name in enumerate(names):
        axis = figure.add_subplot(down, across, i + 1)
        p = c["parameters"][name]
        axis.fill_between(z, low - z, high - z, color=GREY, alpha=0.35, lw=0)
        axis.plot(z, np.array(p["ecdf"]) - z, color=BLUE if p["p"] > 0.05 else ORANGE, lw=1.4)
        axis.set_title(f"{name}, p = {p['p']:.2g}", fontsize=9)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    rows = [[n, *(float(p[k]) if p[k] is not None else float("nan") for k in ("p", "contraction", "z_mean", "z_sd"))]
            for n, p in list(c["parameters"].items())[:ENTRIES]]  # fmt: skip
    sentences = [str(f) for f in findings]
    alt = f"Ranks of {len(names)} quantities over {c['simulations']} simulations. " + " ".join(sentences)
    return _section(
        "Calibration", *sentences,
        figures=_figure(figure, alt, "ECDF of the ranks less that of uniform ones; grey is where all lie with "
                        "probability 0.95 if calibrated."),
        tables=[_table("Simulation-based calibration", ["", "p-value", "contraction", "mean z", "sd of z"], rows)],
    )  # fmt: skip


def _details(run: Run) -> Section:
    options = {k: v for k, v in run.config["fit"].items() if v is not None}
    return _section(
        "How it was made",
        details=[
            {"title": "Options of the fit", "text": json.dumps(options, indent=1)},
            {"title": "Versions", "text": json.dumps(run.config["versions"], indent=1)},
            {"title": "The program's arguments", "text": json.dumps(run.config["program"], indent=1, default=str)},
        ],
    )
