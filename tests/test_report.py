"""The page of a run: everything in one file, every picture with its words, the gravest first, the graph as it is."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from functools import cache
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from arviz_base import from_dict
from known import SCHOOLS, Gaussian, GuidedNormalMean, NormalMean, normal, ppca
from scipy import stats

from ppgen import PpgenError, Program, rows
from ppgen.console import number
from ppgen.inference import calibrate, diagnose, fit, report
from ppgen.inference.report.model_graph import _describe, _edges_of, _layout, svg
from ppgen.inference.report.report import _data, _glance
from ppgen.inference.verdicts.findings import VERDICTS, WRONG, Finding
from ppgen.inference.verdicts.report_checks import predictive_checks, report_checks
from ppgen.models import VAE, Diffusion, DiffusionBridge, EightSchools, regression
from ppgen.run import prepare_columns

X = {"x": normal(20) + 1.0}


class Page(HTMLParser):
    """What a reader without eyes, or without a network, meets."""

    VOID = {"meta", "img", "br", "link"}

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"{self.open} not closed"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def all(self, tag):
        return [a for t, a in self.tags if t == tag]


def page_of(run, data, folder):
    path = report(run, data, folder / "report.html", draws=100)
    text = path.read_text(encoding="utf-8")
    return Page(text), text


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """By the name of a row of PROGRAMS: the run, its data, its page and the text of it, made once."""

    @cache
    def made(name):
        run, data = PROGRAMS[name]()
        return run, data, *page_of(run, data, tmp_path_factory.mktemp("page"))

    return made


PROGRAMS = {
    "a global latent": lambda: (fit(NormalMean(), X, steps=50, log_every=2), X),
    "eight schools": lambda: (fit(EightSchools(), SCHOOLS, steps=50, log_every=2), SCHOOLS),
    "local latents": lambda: (fit(ppca(), {"x": normal(30, 4)}, steps=4, log_every=1), {"x": normal(30, 4)}),
    "images": lambda: (
        fit(VAE(49, 2, (8,)), {"x": (normal(30, 49) > 0).float()}, steps=4, log_every=1),
        {"x": (normal(30, 49) > 0).float()},
    ),
    "nothing latent": lambda: (fit(Gaussian(), X, steps=50, log_every=2), X),
    "a flow guide": lambda: (fit(NormalMean(), X, steps=4, guide="flow(hidden=(4,))", engine="eager"), X),
}


@pytest.mark.parametrize("name", list(PROGRAMS))
def test_the_page_stands_by_itself_and_can_be_read(name, page):
    run, _, page, text = page(name)
    assert not re.findall(r"""(?:src|href)=["'](?!data:|\#)""", text), "nothing is fetched"
    assert "url(" not in re.sub(r"url\(#\w+\)", "", text) and not page.all("script") and not page.all("link")
    for image in page.all("img"):
        assert (
            len(image["alt"]) > 20 and int(image["width"]) > 100 and image["src"].startswith("data:image/png;base64,")
        )
    for picture in page.all("svg"):
        assert picture["role"] == "img" and len(picture["aria-label"]) > 20
    levels = [int(t[1]) for t, _ in page.tags if re.fullmatch(r"h[1-6]", t)]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert all(a["href"][1:] in ids for a in page.all("a")), "every link leads somewhere"
    assert page.all("html")[0]["lang"] == "en" and page.all("main") and page.all("nav")
    assert len(page.all("table")) == sum(
        a.get("class") == "scroll" and a.get("tabindex") == "0" for a in page.all("div")
    )
    assert all("scope" in a for a in page.all("th"))
    assert run.config["data"]["sha256"] in text and "nan" not in re.sub(r"base64,[^\"]*", "", text)


def tables_of(text):
    """The page's tables by caption: a dict of cells by heading for each row, under its first cell."""
    found = {}
    for table in re.findall(r"<table>(.*?)</table>", text, re.S):
        caption = html.unescape(re.search(r"<caption>(.*?)</caption>", table)[1])
        head, *rows_ = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", table)]
        found[caption] = {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows_}
    return found


@pytest.mark.parametrize("name", ["a global latent", "local latents", "images"])
def test_the_figures_are_those_of_the_functions_that_make_them(name, page):
    run, data, _, text = page(name)
    tables, d = tables_of(text), diagnose(run, data, draws=100)
    of_row = name != "a global latent"
    for bound, words in zip(d.bounds.bounds, ("ELBO", "importance-weighted, 1000 draws"), strict=True):
        cells = tables["Bounds on log p(x)"][words]
        assert cells["kind"] == "lower bound" and cells["± Monte Carlo"] == number(bound.mean_se)
        assert cells["nats a row" if of_row else "nats"] == number(bound.mean)
        if name == "images":
            assert cells["bits/dim"] == number(-bound.mean / (49 * np.log(2)))
    x = data["x"].double()
    column = tables["Columns"]["x"]
    assert [column[k] for k in ("mean", "sd", "least", "largest")] == [
        number(float(v)) for v in (x.mean(), x.std(), x.min(), x.max())
    ]
    m = run.metrics["elbo"] / (30 if of_row else 1)
    said = f"from {m[0]:.4g} to {m[-1]:.4g} " + ("nats a row" if of_row else "nats")
    assert f"The ELBO over {run.config['fit']['steps']} steps: {said}." in html.unescape(text)
    posterior_table = next(v for k, v in tables.items() if k.startswith("Posterior of the latents"))
    for label, row in posterior_table.items():
        assert row == {k: number(float(v)) for k, v in d.summary.loc[label].items()}
    for c in predictive_checks(d.tree):
        row = tables["Statistics of the data"][f"{c.statistic} of {c.site}"]
        low, high = (number(v) for v in c.predicted)
        assert row["observed"] == number(c.observed) and row["90% of predicted"] == f"{low} to {high}"
        assert row["P(predicted ≥ observed)"] == number(c.p) and row[""] == ("off" if c.off else "fine")


def test_codes_of_words_have_no_mean():
    pytest.importorskip("formulae")
    own = pd.DataFrame({"g": ["b", "a", "c"] * 5, "x": np.arange(15.0), "y": np.arange(15.0) ** 0.5})
    run = fit(regression("y ~ x + (1 | g)", data=own), own, steps=1)
    (table,) = _data(run, prepare_columns(own, run.program, torch.float32))["tables"]
    rows = {row[0]: row[4:] for row in table["rows"]}
    assert rows["g"] == [""] * 4 and rows["x"][0] == number(7.0)


def test_the_top_says_what_was_fitted_the_verdict_and_what_to_do(page):
    run, _, _, text = page("images")
    glance = re.search(r'<dl class="glance (\w+)".*?</dl>', text, re.S)
    said = re.findall(r"<dd>(.*?)</dd>", glance[0], re.S)
    assert glance[1] in VERDICTS and len(said) == 3 and f"{run.program.name} to 30 rows" in said[0]
    assert html.unescape(said[2]) in html.unescape(text.split("</dl>")[1])


def test_the_top_does_not_say_use_it_where_checks_are_missing(page):
    """k-hat alone, or nothing at all, is "look", though no finding has a remedy."""
    run, *_ = page("a global latent")
    for findings in ([], [Finding("khat", "", 0.1, 0.7, "fine", {"rows": 1})]):
        glance = _glance(run, findings)
        assert glance["verdict"] == "look" and glance["words"] == "Use it with care."
        assert "not every check" in glance["next"]


def test_the_top_says_the_formula_and_the_family(page, monkeypatch):
    run, *_ = page("a global latent")
    monkeypatch.setitem(run.config["program"], "arguments", {"formula": "y ~ x", "family": "poisson"})
    assert _glance(run, [])["what"].startswith("y ~ x (poisson) to ")


def test_the_plate_holds_all_rows_and_latents_stand_once(page):
    _, _, _, text = page("images")
    assert ">data, 30<" in text
    assert "_unconstrained" not in page("a global latent")[3]


def test_what_the_user_wrote_is_shown_as_text(tmp_path):
    class Odd(NormalMean):
        """<script>alert(1)</script> & more."""

    _, text = page_of(fit(Odd(), X, steps=0), X, tmp_path)
    assert "<script>" not in text and "&lt;script&gt;" in text


def test_where_it_goes(tmp_path):
    run = fit(NormalMean(), X, steps=5, out=tmp_path / "run")
    assert report(run, X, draws=50) == tmp_path / "run" / "report.html"
    with pytest.raises(PpgenError, match="pass out="):
        report(fit(NormalMean(), X, steps=0), X)
    with pytest.raises(PpgenError, match="pass the data"):
        report(run)


def test_calibration_is_on_the_page(tmp_path):
    run = fit(GuidedNormalMean(width=0.5), X, steps=0, out=tmp_path / "run")
    found = calibrate(run, X, simulations=100, refit=False)
    (tmp_path / "run" / "calibration.json").write_text(json.dumps(found.figures()))
    text = report(run, X, draws=50).read_text()
    assert 'id="calibration"' in text and "Not calibrated" in text and text.index("Wrong:") < text.index("Fine:")
    row = tables_of(text)["Simulation-based calibration"]["m"]
    figures = (found.p, found.contraction, found.z_mean, found.z_sd)
    assert list(row.values()) == [number(float(v[0])) for v in figures]


# -- the graph ---------------------------------------------------------------------------------------


def structure_of(program, data):
    return fit(program, data, steps=0).structure


def test_edges_are_what_each_site_depends_on():
    program = EightSchools()
    structure = structure_of(program, SCHOOLS)
    edges = _edges_of(program, SCHOOLS, structure)
    assert sorted(edges) == [("eta", "theta"), ("mu", "theta"), ("tau", "theta"), ("theta", "y")]
    nodes = {n.name: n for n in _layout(structure, edges)}
    assert nodes["theta"].level == 1 and nodes["y"].level == 2 and nodes["mu"].level == 0
    assert "y (observed, Normal) in plate school given theta" in _describe(list(nodes.values()), edges)


def test_boxes_do_not_overlap_what_is_outside():
    class Nested(Program):
        def model(self, x=None):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            with pyro.plate("unit", 3, dim=-2):
                b = pyro.sample("b", dist.Normal(a, 1.0))
                with rows(x):
                    z = pyro.sample("z", dist.Normal(b, 1.0))
                    pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    program = Nested()
    structure = structure_of(program, {"x": normal(5)})
    nodes = _layout(structure, _edges_of(program, {"x": normal(5)}, structure))
    spans = {}
    for n in nodes:
        for i in range(len(n.plates)):
            spans.setdefault(n.plates[: i + 1], []).append(n.x)
    for stack, xs in spans.items():
        for n in nodes:
            if n.plates[: len(stack)] != stack:
                assert n.x > max(xs) or n.x < min(xs), (stack, n.name)
    picture, words = svg(program, {"x": normal(5)}, structure)
    assert picture.count('class="plate"') == 2 and "unit, data" in words
    Page(picture)


@pytest.mark.parametrize("make, columns", [(Diffusion, ("x",)), (DiffusionBridge, ("x", "x0"))])
def test_a_long_chain_has_a_page_of_its_draws(tmp_path, make, columns):
    data = {name: normal(40, 2) for name in columns}
    run = fit(make(2, hidden=(4,), steps=70), data, steps=2, batch_size=20, engine="eager")
    page = Page(report(run, data, tmp_path / "chain.html").read_text())
    assert [a["alt"] for a in page.all("img")][-3:] == [
        "Draws of the fitted model beside the data.",
        "Some states of draws, from noise to x.",
        "The terms of the bound over the times of the chain.",
    ]
    assert not any("calibrate" in str(f) for f in report_checks(run))


def test_a_long_chain_is_no_picture():
    def model(x):
        z = torch.zeros(())
        for i in range(60):
            z = pyro.sample(f"z{i}", dist.Normal(z, 1.0))
        with rows(x):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    program = Program.from_pair(model)
    assert svg(program, X, structure_of(program, X)) is None


# -- findings ----------------------------------------------------------------------------------------


def test_predictive_checks_against_a_law_that_is_known():
    rng = np.random.default_rng(0)
    seen = rng.normal(size=50)
    tree = from_dict({"posterior_predictive": {"x": rng.normal(size=(1, 2000, 50))}, "observed_data": {"x": seen}})
    mean = next(c for c in predictive_checks(tree) if c.statistic == "mean")
    assert mean.p == pytest.approx(stats.norm.sf(seen.mean() * 50**0.5), abs=0.05) and not mean.off
    far = from_dict({"posterior_predictive": {"x": rng.normal(size=(1, 2000, 50))}, "observed_data": {"x": 3 * seen}})
    assert {c.statistic for c in predictive_checks(far) if c.off} >= {"sd"}


def test_a_narrow_guide_comes_first():
    run = fit(GuidedNormalMean(width=0.2), X, steps=0)
    found = report_checks(run, diagnose(run, X, draws=100, particles=4000))
    assert found[0].verdict == WRONG and "misses part of the posterior" in str(found[0])
    assert "--guide flow" in found[0].remedy
    assert any(f.verdict == "look" and "calibrated was not checked" in str(f) for f in found)
    assert [f.verdict for f in found] == sorted((f.verdict for f in found), key=VERDICTS.index)


def test_training_that_was_too_short():
    run = fit(NormalMean(), X, steps=60, lr=0.01, log_every=1, particles=30)
    assert any("still rising" in str(f) for f in report_checks(run))
    run = fit(NormalMean(), X, steps=40, until="converged", lr=1e-4)
    assert any(f.verdict == WRONG and "stopped moving" in str(f) for f in report_checks(run))


# -- in a browser ------------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-quic", "--allow-file-access-from-files",
    "--enable-logging=stderr", "--virtual-time-budget=4000",
]  # fmt: skip
MEASURE = """<body><iframe id="f" width="390" height="800" srcdoc="%s"></iframe><script>
f.onload = () => { const d = f.contentDocument; const list = s => [...d.querySelectorAll(s)];
  list('details').forEach(e => { e.open = true; });
  const wide = list('main *').filter(e => !e.closest('.scroll') && !e.closest('svg')
    && e.getBoundingClientRect().right > 391).map(e => e.tagName);
  const reached = list('a[href], summary, [tabindex="0"]').filter(e => { e.focus(); return d.activeElement === e; });
  document.body.innerHTML = '<pre>' + JSON.stringify({ page: d.documentElement.scrollWidth, wide,
    broken: list('img').filter(i => !i.naturalWidth).length, images: list('img').length,
    focusable: list('a[href], summary, [tabindex="0"]').length, reached: reached.length,
    small: list('nav a').filter(a => a.getBoundingClientRect().height < 24).length }) + '</pre>'; };
</script></body>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("name", ["eight schools", "images"])
def test_in_a_browser_as_wide_as_a_phone(name, tmp_path):
    run, data = PROGRAMS[name]()
    _, text = page_of(run, data, tmp_path)
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(MEASURE % html.escape(text, quote=True), encoding="utf-8")
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", wrapper.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = json.loads(html.unescape(re.search(r"<pre>(.*?)</pre>", done.stdout, re.S)[1]))
    assert "CONSOLE" not in done.stderr, done.stderr
    assert found["page"] <= 390 and found["wide"] == [], found
    assert found["images"] >= 2 and found["broken"] == 0
    assert found["reached"] == found["focusable"] > 8 and found["small"] == 0
