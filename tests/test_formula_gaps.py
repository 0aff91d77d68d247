"""Columns of a formula with missing cells: their models against closed forms; what is refused; trees, predictions."""

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from known import log_joint_at
from scipy import stats
from scipy.special import expit, logsumexp

from ppgen import PpgenError
from ppgen.inference import fit, mcmc, posterior, predict
from ppgen.models import Regression, regression
from ppgen.run import Run, prepare_columns

pytest.importorskip("formulae")
N = 20
RNG = np.random.default_rng(11)
U = RNG.normal(size=N)
X = 0.5 + 0.7 * U + 0.6 * RNG.normal(size=N)
V = np.where(RNG.random(N) < expit(X), 1.0, 0.0)
Y = 1 + X - 0.5 * U + 0.8 * V + 0.5 * RNG.normal(size=N)
GONE, GONE_V = np.arange(N) % 4 == 1, np.arange(N) % 5 == 2
TABLE = pd.DataFrame({"x": X, "u": U, "v": V, "w": np.where(V > 0, "yes", "no"), "y": Y, "g": list("abcd") * 5})
GAPS = TABLE.assign(x=TABLE["x"].mask(GONE), v=TABLE["v"].mask(GONE_V), w=TABLE["w"].mask(GONE_V))
OF_X = {"alpha_x": 0.4, "beta_x": [0.6], "sigma_x": 0.7}


def at(program: Regression, table: pd.DataFrame, **latents) -> float:
    held = {k: torch.as_tensor(v, dtype=torch.float64) for k, v in latents.items()}
    return log_joint_at(program, held, prepare_columns(table, program, torch.float64))


def prior_of_y(program: Regression, alpha: float, beta: list[float], sigma: float) -> float:
    priors = program.priors
    found = stats.norm(*priors["intercept"]).logpdf(alpha)
    found += stats.expon(scale=1 / priors["beside"]["sigma"][1][0]).logpdf(sigma)
    return found + sum(stats.norm(*p).logpdf(b) for p, b in zip(priors["slopes"], beta, strict=True))


def test_gaps_of_numbers_integrate_to_the_joint_normal():
    """The log joint is a parabola in the latents of the cells; its integral is y given u, with the variance of x."""
    program = regression("y ~ x + u", data=GAPS, missing="impute")
    beta, alpha, sigma = [1.1, -0.4], 1.2, 0.8
    z = {"beta": beta, "alpha": alpha, "sigma": sigma, **OF_X}
    eye, middle = np.eye(N), at(program, GAPS, z_x=np.zeros(N), **z)
    sides = np.array([[at(program, GAPS, z_x=s * e, **z) for s in (1.0, -1.0)] for e in eye])
    slope, bend = (sides[:, 0] - sides[:, 1]) / 2, 2 * middle - sides.sum(1)
    integral = middle + (slope**2 / (2 * bend) + 0.5 * np.log(2 * math.pi / bend)).sum()

    fill, mean = X[~GONE].mean(), program.design["means"]
    assert mean[0] == pytest.approx(fill, abs=0.1)  # of the table that formulae read, filled with quantiles
    of_x = 0.4 + 0.6 * (U - U.mean())
    x = np.where(GONE, of_x, X)
    scale = np.where(GONE, math.hypot(sigma, beta[0] * 0.7), sigma)
    expected = stats.norm(alpha + (x - mean[0]) * beta[0] + (U - mean[1]) * beta[1], scale).logpdf(Y).sum()
    expected += stats.norm(of_x, 0.7).logpdf(X)[~GONE].sum()
    priors, sd = program.priors, X[~GONE].std()
    assert priors["gaps"]["x"]["alpha"] == pytest.approx([fill, 2.5 * sd], rel=0.01)
    expected += prior_of_y(program, alpha, beta, sigma)
    own = priors["gaps"]["x"]
    expected += stats.norm(*own["alpha"]).logpdf(0.4) + stats.norm(0, own["slopes"][0]).logpdf(0.6)
    expected += stats.expon(scale=1 / own["rate"]).logpdf(0.7)
    assert integral == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("column", ["v", "w"])
def test_a_gap_of_two_values_is_their_mixture(column):
    program = regression(f"y ~ {column} + u", data=GAPS, missing="impute", priors={"alpha_" + column: (0.1, 2.0)})
    z = {"beta": [0.9, 0.3], "alpha": 1.0, "sigma": 0.8, f"alpha_{column}": 0.2, f"beta_{column}": [0.7]}
    ones = [at(program, GAPS, **z, **{f"z_{column}": np.full(N, k)}) for k in (0.0, 1.0)]
    by_row = [at(program, GAPS, **z, **{f"z_{column}": np.arange(N) == i}) - ones[0] for i in range(N)]
    integral = ones[0] + np.logaddexp(0, by_row).sum()

    p, mean = expit(0.2 + 0.7 * (U - U.mean())), program.design["means"]
    eta = 1.0 + (np.array([[0.0], [1.0]]) - mean[0]) * 0.9 + (U - mean[1]) * 0.3
    each = stats.norm(eta, 0.8).logpdf(Y) + np.log([1 - p, p])
    seen = np.where(V == 1, each[1], each[0])
    expected = np.where(GONE_V, logsumexp(each, 0), seen).sum()
    priors = program.priors
    assert priors["gaps"][column]["alpha"] == [0.1, 2.0]
    expected += stats.norm(0.1, 2.0).logpdf(0.2) + stats.norm(0, priors["gaps"][column]["slopes"][0]).logpdf(0.7)
    expected += prior_of_y(program, 1.0, z["beta"], 0.8)
    assert integral == pytest.approx(expected, abs=1e-8)


def test_without_gaps_the_program_is_as_before():
    plain, asked = (regression("y ~ x + u", data=TABLE, missing=how) for how in ("error", "impute"))
    assert plain.arguments == asked.arguments and "gaps" not in plain.design


REFUSED = {
    "a function": ("y ~ np.log(x)", "'x' has 5 missing cells in 20 rows, and cells are drawn of columns that"),
    "an interaction": ("y ~ x*u", "'x' has 5 missing cells"),
    "an effect that varies": ("y ~ u + (1 + x | g)", "'x' has 5 missing cells"),
    "a group": ("y ~ u + (1 | w)", "'w' has 4 missing cells"),
    "every level": ("y ~ 0 + w", "'w' has 4 missing cells, which are drawn in a column of numbers, or of two words"),
    "four words": ("y ~ h", "'h' has 4 missing cells, which are drawn in"),
    "two of two values": ("y ~ w + r", "'w' and 'r' have two values each and missing cells both"),
    "nothing seen": ("y ~ x + none", "every cell of the column 'none' is missing"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_cannot_be_drawn_is_one_sentence_and_its_remedy_works(case):
    formula, message = REFUSED[case]
    own = GAPS.assign(h=TABLE["g"].mask(GONE_V), r=TABLE["v"].mask(GONE), none=np.nan)
    with pytest.raises(PpgenError, match=message) as error:
        regression(formula, data=own, missing="impute")
    assert "\n" not in str(error.value)
    if "--missing drop" in str(error.value):
        assert regression(formula.replace("np.log(x)", "exp(x)"), data=own, missing="drop").missing == "drop"


def test_two_values_can_be_asked_to_be_numbers():
    from ppgen import data

    own = data.as_tensors(GAPS.assign(r=TABLE["v"].mask(GONE)), "r=real")
    gaps = regression("y ~ v + r", data=own, missing="impute").design["gaps"]
    assert [(gap["name"], gap["binary"]) for gap in gaps] == [("r", False), ("v", True)]


def test_gaps_that_were_not_asked_about_name_the_ways():
    for missing in ("error", "mask"):
        with pytest.raises(PpgenError, match="'x' has 5 missing cells.*--missing impute.*--missing drop"):
            regression("y ~ x + u", data=GAPS, missing=missing)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    program = regression("y ~ x + w + u", data=GAPS, missing="impute")
    return fit(program, GAPS, steps=20, lr=0.05, engine="eager", out=tmp_path_factory.mktemp("gaps") / "run")


def test_a_run_keeps_its_gaps_and_its_tree_has_the_cells_by_row(run):
    again = Run.load(run.path)
    assert again.program.gaps == {"x": 5, "w": 4} and again.program.missing == "impute"
    tree = posterior(again, GAPS, draws=6)
    assert json.loads(tree.attrs["missing"]) == {"how": "impute", "cells": {"x": 5, "w": 4}}
    for name, gone in (("x", GONE), ("w", GONE_V)):
        cells = tree.posterior[f"{name}_unobserved"]
        assert cells.dims[2:] == (f"{name}_row",) and cells[f"{name}_row"].values.tolist() == gone.nonzero()[0].tolist()
    assert set(np.unique(tree.posterior["w_unobserved"])) <= {0.0, 1.0}
    # what LOO reads is y given the columns: nothing of the columns' own models
    assert list(tree.log_likelihood.data_vars) == ["y"] and tree.log_likelihood.sizes["data"] == N
    means = np.array(again.program.design["means"])
    z = tree.posterior.isel(chain=0)
    i = next(i for i in range(N) if not GONE[i] and not GONE_V[i])
    eta = z["alpha"] + z["beta"].values @ (np.array([X[i], V[i], U[i]]) - means)
    expected = stats.norm(eta, z["sigma"]).logpdf(Y[i])
    np.testing.assert_allclose(tree.log_likelihood["y"].values[0, :, i], expected, atol=1e-4)


def test_new_rows_with_gaps_are_integrated_over(run):
    """Where the globals are known, a gap of x adds (beta sigma_x)^2 to the variance, one of w that of its mixture."""
    known = Run.load(run.path)
    with torch.no_grad():
        for name, value in known.program.named_parameters():
            if ".scales." in name:
                value.fill_(-12.0)
    new = pd.DataFrame({"x": [0.0, np.nan, 0.0], "w": ["yes", "yes", None], "u": [0.3, 0.3, 0.3]})
    tree = predict(known, new, draws=4000)
    z = {k: v.values[0, 0] for k, v in posterior(known, GAPS, draws=2)["posterior"].data_vars.items()}
    labels, gaps = known.program.design["matrix"]["labels"], {g["name"]: g for g in known.program.design["gaps"]}
    beta = dict(zip(labels, z["beta"], strict=True))
    row = {"x": 0.0, "u": 0.3}
    w = np.array([row[labels[i]] for i in gaps["w"]["beside"]]) - gaps["w"]["means"]
    p = expit(z["alpha_w"] + w @ z["beta_w"])
    noise = float(z["sigma"]) ** 2
    expected = [noise, noise + (beta["x"] * z["sigma_x"]) ** 2, noise + beta["w[yes]"] ** 2 * p * (1 - p)]
    np.testing.assert_allclose(tree.predictions["y"].var(("chain", "draw")), expected, rtol=0.11)  # 5 standard errors
    assert tree.predictions_constant_data["w"].values.tolist() == ["yes", "yes", ""]
    complete = fit(regression("y ~ x", data=TABLE), TABLE, steps=1, engine="eager")
    with pytest.raises(PpgenError, match="'x' .* has 1 NaN values"):
        predict(complete, pd.DataFrame({"x": [np.nan, 1.0]}))


@pytest.mark.slow
def test_draws_have_the_moments_of_a_long_chain_on_the_closed_form():
    """mcmc beside random-walk Metropolis, in numpy, on the log joint with the cells integrated out."""
    rng = np.random.default_rng(2)
    program = regression("y ~ x + u", data=GAPS, missing="impute")
    tree = mcmc(program, GAPS, chains=32, draws=150, warmup=150, seed=1)
    names = ("alpha", "beta", "sigma", "alpha_x", "beta_x", "sigma_x")
    ours = np.column_stack([tree.posterior[n].values.reshape(4800, -1) for n in names])

    own, mean = program.priors, np.array(program.design["means"])
    of_x, rate = own["gaps"]["x"], own["beside"]["sigma"][1][0]

    def log_p(t: np.ndarray) -> np.ndarray:
        a, b1, b2, ls, ax, bx, lsx = t.T[:, :, None]
        s, sx = np.exp(ls), np.exp(lsx)
        x_mean = ax + bx * (U - U.mean())
        x = np.where(GONE, x_mean, X)
        scale = np.where(GONE, np.hypot(s, b1 * sx), s)
        f = stats.norm.logpdf(Y, a + (x - mean[0]) * b1 + (U - mean[1]) * b2, scale).sum(1)
        f += (stats.norm.logpdf(X, x_mean, sx) * ~GONE).sum(1)
        f += (-rate * s + ls - of_x["rate"] * sx + lsx)[:, 0]
        for value, (loc, sd) in ((a, own["intercept"]), (b1, own["slopes"][0]), (b2, own["slopes"][1]),
                                 (ax, of_x["alpha"]), (bx, (0, of_x["slopes"][0]))):  # fmt: skip
            f += stats.norm.logpdf(value, loc, sd)[:, 0]
        return f

    start = np.column_stack([ours[:, :3], np.log(ours[:, 3]), ours[:, 4:6], np.log(ours[:, 6])])
    t, chol = start[rng.integers(0, 4800, 200)], np.linalg.cholesky(np.cov(start.T)) * 0.7
    f, kept = log_p(t), []
    for i in range(1500):
        new = t + rng.normal(size=t.shape) @ chol.T
        f_new = log_p(new)
        take = np.log(rng.random(len(t))) < f_new - f
        t, f = np.where(take[:, None], new, t), np.where(take, f_new, f)
        if i >= 300 and i % 5 == 0:
            kept.append(t.copy())
    theirs = np.concatenate(kept)
    theirs[:, [3, 6]] = np.exp(theirs[:, [3, 6]])
    sd = theirs.std(0)
    np.testing.assert_allclose(ours.mean(0), theirs.mean(0), atol=(0.08 * sd).max(), rtol=0)
    assert (abs(ours.mean(0) - theirs.mean(0)) / sd < 0.08).all()  # 5 standard errors of 4800 draws, nearly independent
    np.testing.assert_allclose(ours.std(0) / sd, 1.0, atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["impute", "drop"])
def test_the_benchmark_of_gaps_draws_the_posterior_of_its_closed_form(how):
    """benchmarks/gaps.py: ppgen's draws beside importance sampling in numpy, of one table whose x is missing by y."""
    path = Path(__file__).parents[1] / "benchmarks" / "gaps.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_gaps", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    complete, _ = benchmark.drawn(2)
    own = benchmark.with_gaps(complete, "x", "y", 2)
    assert own["x"].isna().sum() > 10
    draws, (points, w) = benchmark.draws_of(own, how, 0), benchmark.closed_form(own, how, 0)
    assert 1 / (w @ w) > 1000
    for name, values in points.items():
        mean = w @ values
        sd = math.sqrt(w @ (values - mean) ** 2)
        assert draws[name].mean() == pytest.approx(mean, abs=0.25 * sd)  # of 640 draws, hundreds of them effective
        assert draws[name].std() == pytest.approx(sd, rel=0.25)
