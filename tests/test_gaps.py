"""Missing cells: left out, drawn, their rows dropped, or refused; the same posterior as without them."""

from __future__ import annotations

import json
import logging

import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import (
    Bernoulli,
    Categorical,
    Dirichlet,
    Gamma,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    Poisson,
)
from scipy import stats
from typer.testing import CliRunner

import ppgen
from ppgen import cli, data
from ppgen.errors import PpgenError
from ppgen.gaps import find_gaps, in_words
from ppgen.inference import diagnose, fit, infer, loglik, mcmc, posterior, predict
from ppgen.inference.evaluation.compare import compare, loo
from ppgen.inference.report.report import _data
from ppgen.run import Run
from ppgen.run.shown import summarized
from ppgen.terms import run as run_once

torch.manual_seed(0)
N = 30
X = torch.randn(N)
GONE = torch.zeros(N, dtype=torch.bool)
GONE[[0, 3, 4, 11, 29]] = True
LIKELIHOODS = {
    "normal": (lambda m: Normal(m, 1.0), torch.randn(N)),
    "poisson": (lambda m: Poisson(m.exp()), torch.randint(0, 5, (N,)).float()),
    "bernoulli": (lambda m: Bernoulli(logits=m), torch.randint(0, 2, (N,)).float()),
    "gamma": (lambda m: Gamma(2.0, m.exp()), torch.rand(N) + 0.5),
    "categorical": (lambda m: Categorical(logits=torch.stack([m, -m, 0 * m], -1)), torch.randint(0, 3, (N,)).float()),
    "vectors": (lambda m: MultivariateNormal(torch.stack([m, m], -1), torch.eye(2)), torch.randn(N, 2)),
}


class Line(ppgen.Program):
    """y of some likelihood at a line."""

    def __init__(self, name: str):
        super().__init__()
        self.likelihood = LIKELIHOODS[name][0]

    def model(self, x, y=None):
        a = pyro.sample("a", Normal(0.0, 1.0))
        with ppgen.rows(x):
            return pyro.sample("y", self.likelihood(a + 0.5 * x), obs=y)


def table(name: str, missing: bool = True) -> dict[str, torch.Tensor]:
    y = LIKELIHOODS[name][1].clone()
    if missing:
        y[GONE] = torch.nan
        return {"x": X, "y": y}
    return {"x": X[~GONE], "y": y[~GONE]}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_a_masked_cell_counts_for_nothing(name):
    """The log joint and its gradient are those of the other rows alone."""
    program, found = Line(name), []
    program.missing = "mask"
    find_gaps(program, table(name))
    assert program.gaps == {"y": int(table(name)["y"].isnan().sum())}
    for columns in (table(name), table(name, missing=False)):
        a = torch.tensor(0.3, requires_grad=True)
        total = run_once(program, columns, latents={"a": a}, guide=False).p.log_prob_sum()
        grad = torch.autograd.grad(total, a)[0]
        found.append((float(total.detach()), float(grad)))
        program.gaps = {}
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_cells_of_independent_entries_are_masked_one_by_one(caplog):
    """Where each row was left out that had one missing cell, while the log counted cells: with one in three missing,
    19 of 20 of such rows, of 27 cells each. Against numpy."""
    y = 2 + torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    y[torch.rand(40, 3, generator=torch.Generator().manual_seed(1)) < 0.4] = torch.nan
    assert y.isnan().any(1).float().mean() > 0.5

    def model(y):
        m = pyro.sample("m", Normal(torch.zeros(3), 10.0).to_event(1))
        with ppgen.rows(y):
            pyro.sample("y", Normal(m, 1.0).to_event(1), obs=y)

    program = ppgen.Program.from_pair(model)
    program.missing = "mask"
    with caplog.at_level(logging.INFO, "ppgen"):
        run = fit(program, {"y": y}, steps=600, lr=0.05, particles=8, schedule="cosine", engine="trace", seed=0)
    assert f"{int(y.isnan().sum())} cells of 'y' are missing and left out of the likelihood" in caplog.text
    precision = 0.01 + (~y.isnan()).sum(0).numpy()
    mean, sd = np.nansum(y.numpy(), 0) / precision, precision**-0.5
    draws = posterior(run, {"y": y}, draws=2000, corrected=True, seed=0)["posterior"]["m"].values[0]
    assert (abs(draws.mean(0) - mean) < 4.5 * sd / 2000**0.5 + 0.02 * sd).all()
    assert draws.std(0) == pytest.approx(sd, rel=0.08)
    filled = np.nan_to_num(y.numpy())
    expected = -0.5 * np.log(2 * np.pi) - 0.5 * (filled - 1.5) ** 2
    seen = np.where(np.isnan(y.numpy()), 0, expected).sum()
    at = run_once(program, {"y": y}, latents={"m": torch.full((3,), 1.5)}, guide=False).p
    at.compute_log_prob()
    assert float(at.nodes["y"]["log_prob_sum"]) == pytest.approx(seen, rel=1e-5)


@pytest.mark.parametrize("name", ["normal", "gamma", "vectors"])
def test_an_imputed_cell_is_a_latent_of_its_own_distribution(name):
    program = Line(name)
    program.missing = "impute"
    find_gaps(program, table(name))
    trace = run_once(program, table(name), guide=False).p
    assert trace.nodes["y_observed"]["is_observed"] and not trace.nodes["y_unobserved"]["is_observed"]
    whole, drawn = trace.nodes["y"]["value"], trace.nodes["y_unobserved"]["value"]
    torch.testing.assert_close(whole[~GONE], table(name)["y"][~GONE])
    torch.testing.assert_close(whole[GONE], drawn[GONE])


SIGMA = torch.tensor([[1.0, 0.9, 0.5], [0.9, 2.0, 0.6], [0.5, 0.6, 1.5]], dtype=torch.float64)
PARTS = torch.tensor(
    [[1.5, torch.nan, torch.nan], [2.0, 1.0, torch.nan], [0.3, 0.2, 0.1], [torch.nan] * 3, [torch.nan, 1.0, 3.0]],
    dtype=torch.float64,
)
_FACTOR, _REST = torch.linalg.cholesky(SIGMA - 0.2 * torch.eye(3)), torch.full((3,), 0.2, dtype=torch.float64)
VECTORS = {
    "normal": lambda m: MultivariateNormal(m, SIGMA),
    "low_rank": lambda m: LowRankMultivariateNormal(m, _FACTOR, _REST),
    "independent": lambda m: Normal(m, SIGMA.diag().sqrt()).to_event(1),
}


class Vectors(ppgen.Program):
    def __init__(self, law, missing: str):
        super().__init__()
        self.law, self.missing = law, missing

    def model(self, y=None):
        m = pyro.sample("m", Normal(0.0, 1.0))
        with ppgen.rows(y):
            return pyro.sample("y", self.law(m.double() * torch.ones(3, dtype=torch.float64)), obs=y)


@pytest.mark.parametrize("name", VECTORS)
def test_what_is_seen_of_a_vector_is_kept_and_the_rest_is_drawn_given_it(name):
    """scipy: log p(seen) of masked vectors, and p(seen) p(missing | seen) = p(whole) of drawn ones."""
    sigma = np.diag(SIGMA.diag()) if name == "independent" else SIGMA.numpy()
    loc, entries = np.full(3, 0.4), ~PARTS.isnan().numpy()
    laws = [stats.multivariate_normal(loc[s], sigma[np.ix_(s, s)]) if s.any() else None for s in entries]
    of_seen = sum(d.logpdf(y[s]) for d, y, s in zip(laws, PARTS.numpy(), entries, strict=True) if d is not None)
    traces = {}
    for how in ("mask", "impute"):
        program = Vectors(VECTORS[name], how)
        find_gaps(program, {"y": PARTS})
        assert program.gaps == {"y": int((~entries).sum())}
        traces[how] = run_once(program, {"y": PARTS}, latents={"m": torch.tensor(0.4)}, guide=False).p
        traces[how].compute_log_prob()
    assert float(traces["mask"].nodes["y"]["log_prob_sum"]) == pytest.approx(of_seen, abs=1e-5)
    drawn = traces["impute"].nodes
    assert float(drawn["y_observed"]["log_prob_sum"]) == pytest.approx(of_seen, abs=1e-5)
    whole, missing = drawn["y"]["value"], drawn["y_unobserved"]
    assert torch.equal(whole[torch.tensor(entries)], PARTS[torch.tensor(entries)])
    joint = stats.multivariate_normal(loc, sigma).logpdf(whole.numpy()).sum()
    unused = stats.norm(loc, np.diag(sigma) ** 0.5 if name == "independent" else 1).logpdf(missing["value"].numpy())
    both = float(drawn["y_observed"]["log_prob_sum"] + missing["fn"].log_prob(missing["value"]).sum())
    assert both == pytest.approx(joint + unused[entries].sum(), abs=1e-4)


def test_a_table_of_drawn_vectors_has_their_missing_entries_alone():
    """Their means and sds are those of the joint normal of m and all entries."""
    tree = infer(Vectors(VECTORS["normal"], "impute"), {"y": PARTS}, seed=0)
    table = summarized(tree, kind="stats")
    cells = ["0, 1", "0, 2", "1, 2", "3, 0", "3, 1", "3, 2", "4, 0"]
    assert table.index.tolist() == ["m", *(f"y_unobserved[{c}]" for c in cells)]
    gone, y = PARTS.isnan().numpy().ravel(), PARTS.numpy().ravel()
    cov = np.kron(np.eye(5), SIGMA.numpy()) + 1.0
    weights = np.linalg.solve(cov[np.ix_(~gone, ~gone)], cov[np.ix_(~gone, gone)]).T
    sd = np.sqrt(np.diag(cov[np.ix_(gone, gone)] - weights @ cov[np.ix_(~gone, gone)]))
    np.testing.assert_allclose(table["mean"][1:] / sd, weights @ y[~gone] / sd, atol=5 / 3000**0.5)
    np.testing.assert_allclose(table["sd"][1:] / sd, 1, atol=5 / 6000**0.5)


def test_fillings_of_missing_entries_are_held_against_no_model(caplog):
    """Rows of N(0, Σ), of which entries are missing at random: the model is theirs, and is not called unlike them."""
    y = MultivariateNormal(torch.zeros(3, dtype=torch.float64), SIGMA).sample((12,))
    y[0, 0] = y[3, 2] = y[5, 0] = torch.nan
    y[2], y[1, 1:] = torch.nan, torch.nan
    tree = mcmc(Vectors(VECTORS["normal"], "impute"), {"y": y}, chains=8, draws=50, warmup=50)
    assert np.array_equal(tree["observed_data"]["y_observed"].values, y.numpy(), equal_nan=True)
    assert "does not give data like the observed" not in caplog.text


def test_parts_of_vectors_that_cannot_be_told_from_the_rest_are_refused_or_said(caplog):
    program = Vectors(lambda m: Dirichlet(m.exp()), "impute")
    shares = torch.tensor([[0.2, 0.3, 0.5], [0.4, torch.nan, torch.nan]], dtype=torch.float64)
    with pytest.raises(PpgenError, match="of a Dirichlet those that are missing cannot be drawn .*--missing mask"):
        find_gaps(program, {"y": shares})
    program.missing = "mask"
    find_gaps(program, {"y": shares})
    assert "left out as a whole" in caplog.text
    caplog.clear()
    shares[1] = torch.nan
    find_gaps(program, {"y": shares})
    assert "whole" not in caplog.text
    program.missing = "impute"
    find_gaps(program, {"y": shares})


@pytest.mark.parametrize("engine", ["eager", "trace"])
def test_a_fit_of_masked_cells_is_that_of_the_dropped_rows(engine, caplog):
    runs = []
    for how in ("mask", "drop"):
        program = Line("normal")
        program.missing = how
        with caplog.at_level(logging.INFO, "ppgen"):
            runs.append(fit(program, table("normal"), steps=50, lr=0.05, engine=engine, seed=0))
    a, b = (run.params["AutoNormal.locs.a"] for run in runs)
    assert float(a) == pytest.approx(float(b), abs=1e-5)
    assert "5 cells of 'y' are missing and left out of the likelihood (missing=mask)" in caplog.text
    assert "5 of 30 rows have a missing cell and are left out (missing=drop)" in caplog.text
    # log, tree, report and a kept run count the same
    assert in_words(runs[0].program, N) == (
        "Missing cells: 5 of y; they were left out of the likelihood (missing=mask)."
    )
    assert in_words(runs[1].program, N - 5) == "5 of 30 rows had a missing cell and were left out (missing=drop)."
    assert runs[1].config["program"]["dropped"] == 5 and not in_words(runs[1].program, N)
    attrs = posterior(runs[1], table("normal"), draws=2).attrs
    assert json.loads(attrs["missing"]) == {"how": "drop", "rows": 5, "of": 30}
    for run in runs:
        assert in_words(run.program, run.config["data"]["rows"]) in str(_data(run, table("normal")))
    bounds = [float(loglik(run, table("normal"), particles=20).best.values.sum()) for run in runs]
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-4)


def test_missing_cells_are_an_error_that_names_the_ways():
    with pytest.raises(PpgenError, match="'y' .* has 5 NaN values.*--missing drop"):
        fit(Line("normal"), table("normal"), steps=1)
    program = Line("normal")
    program.missing = "mask"
    gone = table("normal") | {"x": torch.where(GONE, torch.nan, X)}
    with pytest.raises(PpgenError, match="'x' .* has 5 NaN values"):  # a covariate has no likelihood to leave
        fit(program, gone, steps=1)


def test_a_tree_counts_what_was_done_and_a_run_keeps_it(tmp_path):
    (tmp_path / "line.py").write_text(PROGRAM)
    program = ppgen.catalog.build(ppgen.catalog.find(str(tmp_path / "line.py")), {})
    program.missing = "mask"
    run = fit(program, table("normal"), steps=5, engine="eager", out=tmp_path / "run")
    again = Run.load(tmp_path / "run", trust=True)
    assert (again.program.missing, again.program.gaps) == ("mask", {"y": 5})
    for opened in (run, again):
        tree = posterior(opened, table("normal"), draws=5)
        assert json.loads(tree.attrs["missing"]) == {"how": "mask", "cells": {"y": 5}}
        assert tree.log_likelihood.sizes["data"] == N - 5
        assert np.isnan(tree.observed_data.y.values).tolist() == GONE.tolist() and "y" not in tree.constant_data
    fresh = ppgen.catalog.build(ppgen.catalog.find(str(tmp_path / "line.py")), {})
    fresh.missing = "mask"
    drawn = mcmc(fresh, table("normal"), chains=4, draws=4, warmup=20, engine="eager")
    assert json.loads(drawn.attrs["missing"])["cells"] == {"y": 5}
    again = predict(drawn, {"x": X[:3]}, draws=4)
    assert bool(np.isfinite(again.predictions.y).all())
    scores = {how: loo(posterior(run, table("normal"), draws=200)) for how in ("one", "other")}
    assert compare(scores) and len(scores["one"].values) == N - 5


def test_a_fit_with_drawn_cells_is_diagnosed_and_predicts_rows_without_the_column(caplog):
    """Its guide knows the missing cells alone; tables show these; new rows have no gaps."""
    program = Line("normal")
    program.missing = "impute"
    run = fit(program, table("normal"), steps=150, lr=0.1, schedule="cosine", engine="eager", seed=0)
    found = diagnose(run, table("normal"), draws=400, particles=400)
    spread = found.tree.posterior["y_unobserved"].values.std((0, 1))
    assert np.allclose(spread, 1, rtol=0.3), spread  # in rows where it is used nowhere, as the log joint has it
    shown = summarized(found.tree, kind="stats").index.tolist()
    assert shown == ["a", *(f"y_unobserved[{i}]" for i in GONE.nonzero()[:, 0].tolist())]
    assert not any(f.where.startswith("y[") for f in found.findings)  # of cells that do not vary
    new = predict(run, {"x": torch.tensor([0.0, 1.0])}, draws=400).predictions["y"]
    assert new.shape == (1, 400, 2) and float(new.std("draw").mean()) == pytest.approx(1.0, rel=0.15)


def test_a_gap_that_a_program_cannot_be_run_with_is_one_sentence(tmp_path):
    class Groups(ppgen.Program):
        def model(self, g, y=None):
            with pyro.plate("groups", int(g.max()) + 1):
                u = pyro.sample("u", Normal(0.0, 1.0))
            with ppgen.rows(g):
                return pyro.sample("y", Normal(u[g], 1.0), obs=y)

    program = Groups()
    program.missing = "mask"
    with pytest.raises(PpgenError, match="column 'g' .* has 1 NaN values.*drop these rows"):
        fit(program, {"g": torch.tensor([0.0, torch.nan, 1.0]), "y": torch.tensor([0.5, 1.0, torch.nan])}, steps=1)


@pytest.mark.slow
def test_imputed_cells_are_drawn_as_the_model_says():
    """a | y is that of the rows that are there; a missing y has the posterior predictive's mean and variance."""
    program = Line("normal")
    program.missing = "impute"
    tree = mcmc(program, table("normal"), chains=16, draws=250, warmup=200, seed=0).posterior
    rest = table("normal", missing=False)
    precision = 1 + float((~GONE).sum())
    mean = float((rest["y"] - 0.5 * rest["x"]).sum()) / precision
    a, y = tree["a"].values, tree["y_unobserved"].values[..., GONE.numpy()]
    se = 5 * precision**-0.5 / 1000**0.5
    assert a.mean() == pytest.approx(mean, abs=se) and a.var() == pytest.approx(1 / precision, rel=0.15)
    np.testing.assert_allclose(y.mean((0, 1)), mean + 0.5 * X[GONE].numpy(), atol=5 * (1 + 1 / precision) ** 0.5 / 30)
    np.testing.assert_allclose(y.var((0, 1)), 1 + 1 / precision, rtol=0.2)


# -- the command line ------------------------------------------------------------------------------

PROGRAM = """
import pyro, ppgen
from pyro.distributions import HalfNormal, Normal


class Line(ppgen.Program):
    def model(self, x, y=None):
        a = pyro.sample("a", Normal(0.0, 1.0))
        s = pyro.sample("s", HalfNormal(1.0))
        with ppgen.rows(x):
            return pyro.sample("y", Normal(a + 0.5 * x, s), obs=y)
"""


@pytest.fixture
def call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "line.py").write_text(PROGRAM)
    rows = [f"{x:.3f},{'NA' if gone else f'{x / 2:.3f}'},{'?' if i == 1 else 'w'}" for i, (x, gone) in
            enumerate(zip(X.tolist(), GONE.tolist(), strict=True))]  # fmt: skip
    (tmp_path / "t.csv").write_text("x,y,unused\n" + "\n".join(rows) + "\n")
    return lambda words, code=0: _called(words, code)


def _called(words: str, code: int) -> str:
    done = CliRunner().invoke(cli.app, words.split())
    assert done.exit_code == code, done.output
    return done.output + done.stderr


def test_missing_on_the_command_line(call, tmp_path):
    for how, said in (("mask", "5 cells of 'y' are missing"), ("drop", "5 of 30 rows have a missing cell")):
        assert said in call(f"fit line.py -d t.csv --steps 2 --engine eager --missing {how} --out {how}")
        assert "every check passed" in call(f"check line.py -d t.csv --missing {how}")
    assert "has 5 NaN values" in call("fit line.py -d t.csv --steps 2", 2)
    (tmp_path / "own.py").write_text(PROGRAM.replace("    def model", '    missing = "mask"\n\n    def model'))
    assert "5 cells of 'y' are missing and left out" in call("fit own.py -d t.csv --steps 2 --engine eager")
    assert "has 5 NaN values" in call("fit own.py -d t.csv --steps 2 --missing error", 2)
    assert "did you mean 'mask'" in call("fit line.py -d t.csv --missing masked", 2)
    assert "--missing is said at the fit" in call("mcmc mask --missing drop", 2)
    assert data.load("t.csv").types["y"].missing == 5


class _Encoded(ppgen.Program):
    """z ~ N(0, 1), y | z ~ N(z, 1) of three entries; the guide is the posterior given those that are seen."""

    missing = "mask"

    def __init__(self, fills: bool):
        super().__init__()
        self.fills, self.scale = fills, torch.nn.Parameter(torch.ones(()))

    def model(self, y=None):
        with ppgen.rows(y):
            z = pyro.sample("z", Normal(0.0, 1.0))
            pyro.sample("y", Normal(z[..., None].expand(*z.shape, 3), 1.0).to_event(1), obs=y)

    def guide(self, y):
        precision, total = 1 + (~y.isnan()).sum(-1), (y.nan_to_num() if self.fills else y).sum(-1)
        with ppgen.rows(y):
            pyro.sample("z", Normal(total / precision, precision**-0.5 * self.scale))


def test_a_guide_may_read_columns_with_missing_cells():
    """With the posterior as guide, each row's bound is log p of the entries that are seen, by scipy."""
    y = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    y[:7, 0], y[4:9, 2], y[11] = torch.nan, torch.nan, torch.nan
    with pytest.raises(PpgenError, match="the guide draws nan for 'z', and 'y', which it may read.*nan_to_num"):
        fit(_Encoded(fills=False), {"y": y}, steps=1)
    run = fit(_Encoded(fills=True), {"y": y}, steps=0)
    seen = [row[~row.isnan()].numpy() for row in y]
    exact = [stats.multivariate_normal(np.zeros(len(s)), np.eye(len(s)) + 1).logpdf(s) if len(s) else 0.0 for s in seen]
    assert loglik(run, {"y": y}, particles=3).best.values == pytest.approx(exact, abs=1e-4)


def test_a_site_of_missing_cells_alone_is_passed_over():
    """One site a group, of which one has no observed cell: a posterior ended in "slice step cannot be zero"."""

    def model(y):
        m = pyro.sample("m", Normal(0.0, 1.0))
        for g in range(2):
            with pyro.plate(f"rows_{g}", 3):
                pyro.sample(f"y_{g}", Normal(m, 1.0), obs=y[:, g])

    program = ppgen.Program.from_pair(model)
    program.missing = "mask"
    tree = infer(program, {"y": torch.tensor([[1.0, torch.nan], [2.0, torch.nan], [0.5, torch.nan]])})
    draws = tree["posterior"]["m"].values.ravel()
    assert tree.attrs["verdict"] == "fine" and abs(draws.mean() - 3.5 / 4) < 5 * 0.5 / len(draws) ** 0.5
