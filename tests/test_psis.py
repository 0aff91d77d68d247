"""Importance weights, smoothed, and the guide's draws corrected by them."""

from __future__ import annotations

import re
import warnings
from contextlib import nullcontext

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from arviz_base import from_dict
from known import GuidedNormalMean, draws_agree, normal, ppca
from torch import nn

from ppgen import Program, rows
from ppgen.errors import PpgenError
from ppgen.inference import diagnose, fit, posterior
from ppgen.inference.evaluation.psis import (
    corrected,
    effective,
    khat_se,
    moments,
    pareto_k,
    resampled,
    smoothed,
    tail,
    threshold,
)
from ppgen.run.files import read_netcdf, write_netcdf

X = normal(20) + 1.0
EXACT = GuidedNormalMean().posterior(X)


def wide(width=1.6):
    return fit(GuidedNormalMean(width=width), {"x": X}, steps=0)


def test_weights_sum_to_one_and_keep_their_order():
    log_w = np.random.default_rng(0).normal(size=(2000, 3))
    out, k = smoothed(log_w)
    assert np.allclose(np.logaddexp.reduce(out), 0) and np.all(k < 0.5)
    assert all(np.corrcoef(a, b)[0, 1] > 0.999 for a, b in zip(out.T, log_w.T, strict=True))
    assert threshold(10) == 0 and threshold(10_000) == 0.7


def _of_values(kind):
    """Log weights of few values, as of discrete latents, and k-hat above which and below which is false."""
    rng = np.random.default_rng(0)
    few = {"two": (0.5, 1.0), "a rare one": (0.01, 3.0), "one of all": (1e-3, 20.0), "a tenth": (0.1, 1.0)}
    if kind in few:
        share, above = few[kind]
        return np.where(np.arange(1000) < 1000 * share, above, 0.0)
    if kind == "many":
        return 0.3 * rng.poisson(1.0, 1000)
    return np.r_[rng.exponential(2.0, 60), np.zeros(940)]  # k-hat of exp(Exponential) of mean 2 is 2


@pytest.mark.parametrize("kind", ["two", "a rare one", "one of all", "a tenth", "many", "heavy above a plateau"])
def test_weights_of_few_values_have_no_tail_and_are_not_nan(kind):
    log_w = _of_values(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out, k = smoothed(log_w[:, None])
    assert np.logaddexp.reduce(out[:, 0]) == pytest.approx(0.0, abs=1e-9)
    if kind.startswith("heavy"):
        assert k[0] > 1.2
        return
    assert k[0] < 0.1
    if kind != "many":
        np.testing.assert_allclose(np.exp(out[:, 0]), np.exp(log_w) / np.exp(log_w).sum())


def test_the_guide_of_a_discrete_latent_is_diagnosed():
    """z ~ Bernoulli(0.3), x ~ N(2 z, 1), and a guide that says 0.5: by Bayes' rule."""

    def model(x):
        z = pyro.sample("z", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(2 * z, 1.0), obs=x)

    def guide(x):
        pyro.sample("z", dist.Bernoulli(pyro.param("q", torch.tensor(0.5))))

    x = torch.tensor(0.6)
    odds = 0.3 / 0.7 * np.exp(-0.5 * 1.4**2 + 0.5 * 0.6**2)
    found = diagnose(fit(Program.from_pair(model, guide), {"x": x}, steps=0), {"x": x}, draws=4000, particles=4000)
    p = odds / (1 + odds)
    mean = float(found.moments.loc["z", "corrected_mean"])
    assert mean == pytest.approx(p, abs=4.5 * (p * (1 - p) / 2000) ** 0.5)
    assert not any("narrow" in str(f) for f in found.findings)


def test_resampling_is_in_proportion():
    log_w = np.log([0.5, 0.2, 0.3])
    index = resampled(log_w, 1000, np.random.default_rng(0))
    assert np.allclose(np.bincount(index), [500, 200, 300], atol=1)
    assert (np.diff(index) < 0).sum() > 100, "in random order"


def test_moments_by_weights():
    value = np.array([[[1.0, 10.0], [3.0, 10.0]]])
    mean, sd = moments(value, np.log([0.25, 0.75]))
    assert np.allclose(mean, [2.5, 10.0]) and np.allclose(sd, [0.75**0.5, 0.0])


def test_a_guide_that_is_too_wide_is_corrected():
    tree = posterior(wide(), {"x": X}, draws=3000, corrected=True)
    draws = tree["posterior"]["m"].values[0]
    assert draws.shape == (3000,) and tree["posterior_predictive"]["x"].shape == (1, 3000, 20)
    draws_agree(draws, EXACT.loc, EXACT.variance)
    assert tree["prior"]["m"].shape == (1, 3000)


def test_each_row_is_corrected_by_its_own_weights():
    x = normal(30, 4, seed=1)
    program = ppca(width=1.5)
    tree = posterior(fit(program, {"x": x}, steps=0), {"x": x}, draws=2000, corrected=True, prior=False)
    z = tree["posterior"]["z"].values[0]
    exact = program.posterior(x)
    sd = exact.variance.sqrt().detach().numpy()
    off = (z.mean(0) - exact.mean.detach().numpy()) / sd
    assert np.sqrt((off**2).mean()) < 3 / 2000**0.5 and np.allclose(z.std(0).mean(), sd.mean(), rtol=0.02)
    assert tree["log_likelihood"]["x"].shape == (1, 2000, 30)


class Crossed(Program):
    """Rows right of a plate of units; the guide twice as wide as the prior, and nothing is told by x."""

    def __init__(self):
        super().__init__()
        self.width = nn.Parameter(torch.tensor(1.5))

    def model(self, x=None):
        with pyro.plate("unit", 3, dim=-2), rows(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(0 * z, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("unit", 3, dim=-2), rows(x):
            pyro.sample("z", dist.Normal(0.0 * x, self.width))


def test_rows_that_do_not_lead():
    z = posterior(fit(Crossed(), {"x": normal(5)}, steps=0), {"x": normal(5)}, draws=2000, corrected=True)["posterior"][
        "z"
    ]
    assert z.shape == (1, 2000, 3, 5) and float(z.std()) == pytest.approx(1.0, abs=0.03)


def test_what_is_too_narrow_is_refused():
    said = r"k-hat is 0\.\d+ ± 0\.\d+ of \d+ weights .*, and they can be trusted below 0\.70 only"
    with pytest.raises(PpgenError, match=said):
        posterior(wide(0.3), {"x": X}, draws=2000, corrected=True)
    x = normal(30, 4, seed=1)
    with pytest.raises(PpgenError, match="of 30 rows have a k-hat above"):
        posterior(fit(ppca(width=0.3), {"x": x}, steps=0), {"x": x}, corrected=True)


# -- beside the guide's moments ---------------------------------------------------------------------


def test_moments_stand_beside_each_other():
    exact = np.random.default_rng(0).normal(float(EXACT.loc), float(EXACT.scale), size=(4, 5000))
    found = diagnose(wide(), {"x": X}, draws=4000, reference=from_dict({"posterior": {"m": exact}}))
    row = found.moments.loc["m"]
    assert row["sd"] == pytest.approx(1.6 * float(EXACT.scale), rel=0.05)
    assert row["corrected_sd"] == pytest.approx(float(EXACT.scale), rel=0.06)
    assert row["reference_sd"] == pytest.approx(float(EXACT.scale), rel=0.03)
    beside = {f.details["beside"]: str(f) for f in found.findings if f.measure == "sd_ratio"}
    assert "corrected by its weights" in beside["corrected"] and "reference draws" in beside["reference"]
    assert 0.5 < float(beside["reference"].split("sd by at most ")[1].split("%")[0]) / 100 < 0.7


def test_a_narrow_guide_has_no_corrected_moments():
    found = diagnose(wide(0.3), {"x": X}, particles=4000)
    assert list(found.moments) == ["mean", "sd"]


def test_a_reference_of_something_else():
    run = wide()
    with pytest.raises(PpgenError, match="none of the latents m"):
        diagnose(run, {"x": X}, reference=from_dict({"posterior": {"b": np.zeros((1, 5))}}))
    with pytest.raises(PpgenError, match="'m' has the shape"):
        diagnose(run, {"x": X}, reference=from_dict({"posterior": {"m": np.zeros((1, 5, 2))}}))


def test_a_tree_is_read_back(tmp_path):
    write_netcdf(tmp_path / "posterior.nc", posterior(wide(1.0), {"x": X}, draws=50))
    assert read_netcdf(tmp_path / "posterior.nc")["posterior"]["m"].shape == (1, 50)
    with pytest.raises(PpgenError, match="there is no file"):
        read_netcdf(tmp_path / "nothing.nc")
    (tmp_path / "bad.nc").write_text("no netCDF")
    with pytest.raises(PpgenError, match="cannot be read as netCDF"):
        read_netcdf(tmp_path / "bad.nc")


# -- k-hat where it says nothing -----------------------------------------------------------------------


def test_weights_that_are_nearly_equal_have_no_tail_to_ask():
    """log w ~ 0.05 t: of 200 guides k-hat alone refuses some; 99 of 100 draws of each are effective."""
    rng = np.random.default_rng(0)
    found = [smoothed(0.05 * rng.standard_t(3, size=(1000, 1))) for _ in range(200)]
    k = np.array([k[0] for _, k in found])
    ess = np.array([effective(w)[0] for w, _ in found])
    asked = tail(k, ess, 1000)
    assert (k > threshold(1000)).any() and (asked > threshold(1000)).mean() <= 0.02
    assert np.isnan(tail(np.array([np.nan]), np.array([20.0]), 20)).all(), "what was not measured is not fine"


def test_a_tail_that_carries_weight_is_asked():
    """A guide of a third of the posterior's width: its k-hat is 8/9, and few of its draws count."""
    rng = np.random.default_rng(1)
    z = rng.normal(size=(1000, 1)) / 3
    w, k = smoothed(-0.5 * z**2 + 4.5 * z**2)
    assert tail(k, effective(w), 1000) == k and k[0] + 2 * khat_se(k[0], 1000) > 8 / 9 > k[0] - 2 * khat_se(k[0], 1000)


def test_the_standard_error_of_khat_is_its_spread():
    rng = np.random.default_rng(0)
    k = [pareto_k(0.5 * rng.exponential(size=(4000, 1)))[0] for _ in range(100)]  # w ~ Pareto of shape 0.5
    assert np.mean(k) == pytest.approx(0.5, abs=0.05) and np.std(k) == pytest.approx(khat_se(0.5, 4000), rel=0.3)


def test_a_hundred_draws_have_to_count():
    """log w ~ N(0, 1.5²) of 400 draws: k-hat allows it, and an average is one of 60 draws."""
    run = fit(GuidedNormalMean(), {"x": X}, steps=0)
    log_w = 1.5 * np.random.default_rng(0).normal(size=(1, 400))
    found = {"posterior": {"m": log_w}, "sample_stats": {"log_p": log_w, "log_q": 0 * log_w}}
    with pytest.raises(PpgenError, match="60 of 400 are effective, and 100 are needed"):
        corrected(found, run.structure, 100, 0)


@pytest.mark.parametrize("local", [False, True])
def test_tails_that_no_weights_give_are_said(local, caplog):
    """A normal guide of t(2.5), of sd 2.24: its weights are tame, and what they correct has an sd of 1.7."""

    def prior():
        return pyro.sample("z", dist.StudentT(2.5, 0.0, 1.0))

    def model(x):
        z = 0.0 if local else prior()
        with rows(x):
            pyro.sample("x", dist.Normal(0.0 * (prior() if local else z), 1.0), obs=x)

    def guide(x):
        with rows(x) if local else nullcontext():
            pyro.sample("z", dist.Normal(pyro.param("m", torch.zeros(())), 3.0))

    run = fit(Program.from_pair(model, guide), {"x": X[:2]}, steps=0)
    caplog.clear()
    tree = posterior(run, {"x": X[:2]}, corrected=True, predictive=False, prior=False)
    assert float(tree["posterior"]["z"].std()) < 1.9
    assert re.search("tails of z.* are heavy", caplog.text)
    assert any(f.measure == "tail_khat" for f in diagnose(run, {"x": X[:2]}).findings)
