"""log p(x) from both sides, against closed forms and quadrature; Bayes factors."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import MultivariateNormal, Normal
from typer.testing import CliRunner

import ppgen
from ppgen import PpgenError
from ppgen.cli import app
from ppgen.data import load
from ppgen.distributions import Flat
from ppgen.inference import Bound, bayes_factors, evidence, fit, infer, mcmc, posterior
from ppgen.inference.sampling.bridge import bridge_sampling
from ppgen.inference.sampling.evidence import _room
from ppgen.models import EightSchools
from ppgen.run.files import write_netcdf

X = torch.tensor([1.0, 2.5, -0.3, 0.8])


def mean(x, width=2.0):
    m = pyro.sample("m", Normal(0.0, width))
    with pyro.plate("data", len(x)):
        pyro.sample("x", Normal(m, 1.0), obs=x)


def exact(width=2.0):
    return float(MultivariateNormal(torch.zeros(4), torch.eye(4) + width**2).log_prob(X))


def holds(found, log_p, sigmas=3.5):
    for b in found.bounds:
        off, slack = float(b.values[0]) - log_p, sigmas * float(b.se[0]) + 1e-3
        assert {"lower": off < slack, "upper": off > -slack}.get(b.kind, abs(off) < slack), (b.name, off, slack)


@pytest.fixture(scope="module")
def found():
    return evidence(mean, {"x": X})


@pytest.fixture(scope="module")
def chains():
    """Draws of the posterior of `mean`."""
    return mcmc(mean, {"x": X}, chains=16, draws=200, warmup=100, engine="trace", predictive=False, prior=False)


@pytest.fixture(scope="module")
def of_schools():
    """Draws of the posterior of eight schools."""
    few = {"chains": 16, "draws": 200, "warmup": 200}
    return mcmc(EightSchools(), load("eight_schools"), engine="trace", predictive=False, prior=False, **few)


def width_two(m=None):
    u = pyro.sample("u/1", Normal(0.0, 1.5))
    return pyro.sample("m", Normal(u, 1.75**0.5), obs=m)


def nested_mean(x):
    m = ppgen.sample("m", width_two)
    with pyro.plate("data", len(x)):
        pyro.sample("x", Normal(m, 1.0), obs=x)


@pytest.mark.slow
def test_latents_with_slashes_in_their_names():
    """Those of a program within a program, which is a Pyro model as it stands."""
    draws = mcmc(nested_mean, {"x": X}, chains=16, draws=100, warmup=100, engine="trace", predictive=False, prior=False)
    holds(evidence(nested_mean, {"x": X}, draws=draws), exact())


def test_both_sides_and_the_estimates_of_a_conjugate_model(found):
    assert [(b.name, b.kind) for b in found.bounds] == [
        ("elbo", "lower"), ("iw", "lower"), ("bridge", "estimate"), ("smc", "estimate"), ("eubo", "upper"),
    ]  # fmt: skip
    holds(found, exact())
    assert all(abs(float(b.values[0]) - exact()) < 0.02 for b in found.bounds), "q is normal, as the posterior is"
    assert float(found.best.se[0]) < 0.01 and not found.flat
    assert found.findings[-1].measure == "bounds" and found.findings[-1].verdict == "fine"


def test_eight_schools_is_that_of_quadrature():
    holds(evidence(EightSchools(), load("eight_schools")), -31.3114)


@pytest.mark.parametrize("method", ["mcmc", "infer"])
def test_draws_that_were_made_before(method, chains):
    tree = infer(mean, {"x": X}, seed=1) if method == "infer" else chains
    found = evidence(mean, {"x": X}, draws=tree)
    assert [b.name for b in found.bounds] == ["elbo", "iw", "bridge", "eubo"]
    holds(found, exact())


def test_bridge_sampling_of_correlated_draws_has_their_error():
    """An AR(1) chain of 4000 is worth 100 draws: the error says so."""
    rng = np.random.default_rng(0)
    noise, chain, rho = rng.normal(size=4000), np.zeros(4000), 0.95
    for i in range(1, 4000):
        chain[i] = rho * chain[i - 1] + (1 - rho**2) ** 0.5 * noise[i]
    p, q = torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(1.0, 1.0)
    at_q, at_p = (p.log_prob(u) - q.log_prob(u) for u in (q.sample((4000,)), torch.as_tensor(chain).float()))
    log_z, se = bridge_sampling(at_q, at_p, effective=4000 * (1 - rho) / (1 + rho))
    assert abs(log_z) < 3 * se
    assert se > 2 * bridge_sampling(at_q, at_p).se


def test_a_bridge_between_two_that_have_nothing_in_common_knows_nothing():
    log_z, se = bridge_sampling(torch.full((100,), -torch.inf), torch.zeros(100))
    assert not np.isfinite(log_z) and se == np.inf


def test_a_run_has_its_guides_bounds(of_schools):
    run = fit(EightSchools(), load("eight_schools"), steps=300, lr=0.05)
    found = evidence(run, load("eight_schools"), draws=of_schools)
    holds(found, -31.3114)
    assert float(found.bounds[0].values[0]) < -31.4, "after 300 steps the guide is not the posterior"


def test_bayes_factors_are_differences_with_their_error(found):
    how = {"chains": 16, "draws": 200, "warmup": 100, "engine": "trace", "predictive": False, "prior": False}
    wide = partial(mean, width=200.0)
    wide = evidence(wide, {"x": X}, draws=mcmc(wide, {"x": X}, **how))
    factors = bayes_factors({"wide": wide, "narrow": found})
    table = factors.table()
    assert str(factors).startswith("narrow: log p(x) ") and "\nwide: log p(x) " in str(factors)
    assert [t["name"] for t in table] == ["narrow", "wide"]
    off = table[1]["log_bayes_factor"] - (exact(200.0) - exact())
    assert abs(off) < 3.5 * table[1]["log_bayes_factor_se"] + 1e-3 < 0.1


def test_a_flat_prior_is_said():
    def flat(x):
        m = pyro.sample("m", Flat())
        with pyro.plate("data", len(x)):
            pyro.sample("x", Normal(m, 1.0), obs=x)

    assert evidence(flat, {"x": X}).flat == ("m",)


@pytest.mark.parametrize("prior", [Normal(0.0, 1.0).mask(False), "scaled"], ids=["masked", "scaled"])
def test_a_prior_that_is_no_density_is_said(prior):
    def model(x):
        with pyro.poutine.scale(scale=0.5 if prior == "scaled" else 1.0):
            m = pyro.sample("m", Normal(0.0, 1.0) if prior == "scaled" else prior)
        with pyro.plate("data", len(x)):
            pyro.sample("x", Normal(m, 1.0), obs=x)

    assert evidence(model, {"x": X}).flat == ("m",)


def test_draws_of_other_data_are_refused(chains):
    with pytest.raises(PpgenError, match="the draws are of other data .4 of 4 observed values"):
        evidence(mean, {"x": X + 3}, draws=chains)
    with pytest.raises(PpgenError, match="draws is str; expected a tree"):
        evidence(mean, {"x": X}, draws="draws.nc")


def test_draws_of_another_prior_contradict_the_bounds(chains):
    found = evidence(partial(mean, width=0.1), {"x": X}, draws=chains)
    assert found.findings[-1].measure == "bounds" and found.findings[-1].verdict == "wrong"


def test_a_mask_or_a_scale_of_the_data_is_another_data_set(found, caplog):
    def masked(x):
        m = pyro.sample("m", Normal(0.0, 2.0))
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=torch.tensor([True, True, False, True])):
            pyro.sample("x", Normal(m, 1.0), obs=x)

    def scaled(x):
        with pyro.poutine.scale(scale=0.5):
            mean(x)

    few = {"chains": 4, "draws": 50, "warmup": 50, "engine": "trace", "predictive": False, "prior": False}
    for other in (masked, scaled):
        with pytest.raises(PpgenError, match="explain other values"):
            bayes_factors({"a": found, "b": evidence(other, {"x": X}, draws=mcmc(other, {"x": X}, **few))})
        assert ("integral of densities to powers" in caplog.text) == (other is scaled)


def test_models_of_other_data_are_refused(found):
    other = found._replace(observed=np.zeros((2, 7)))
    with pytest.raises(PpgenError, match="'a' and 'b' explain other values"):
        bayes_factors({"a": found, "b": other})
    with pytest.raises(PpgenError, match="got 1"):
        bayes_factors({"a": found})


def test_draws_of_a_guide_are_refused(tmp_path):
    run = fit(EightSchools(), load("eight_schools"), steps=5)
    with pytest.raises(PpgenError, match="these draws are a guide's"):
        evidence(run, load("eight_schools"), draws=posterior(run, load("eight_schools"), draws=50))


def test_draws_of_another_program_are_refused(of_schools):
    with pytest.raises(PpgenError, match="the draws have no latent 'm'"):
        evidence(mean, {"x": X}, draws=of_schools)


@pytest.mark.parametrize("drawn", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["draws", "none"])
def test_on_the_command_line(drawn, of_schools, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_netcdf(tmp_path / "schools.nc", of_schools)
    line = ["evidence", "eight_schools", "--data", "eight_schools", "--json", *["--draws", "schools.nc"] * drawn]
    out = CliRunner().invoke(app, line)
    assert out.exit_code == 0, out.output
    said = json.loads(out.stdout)
    expected = {"elbo", "iw", "bridge", "eubo"} | ({"smc"} if not drawn else set())
    assert {t["name"] for t in said["evidence"]} == expected and said["flat"] == []


@pytest.mark.slow
def test_compare_by_evidence_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        fit(EightSchools(), load("eight_schools"), steps=20, out=tmp_path / name)
    out = CliRunner().invoke(app, ["compare", "a", "b", "--evidence", "--data", "eight_schools", "--json"])
    assert out.exit_code == 0, out.output
    first, second = json.loads(out.stdout)["models"]
    assert abs(second["log_bayes_factor"]) < 4 * second["log_bayes_factor_se"] + 1e-3


@pytest.mark.parametrize("elbo, verdict", [(-np.inf, "fine"), (-1.0, "fine"), (4.0, "wrong")])
def test_an_elbo_of_minus_infinity_contradicts_nothing(elbo, verdict):
    """As of x ~ Uniform(0, b) and normal draws of b, some of which leave x no room."""
    kinds = {"elbo": ("lower", elbo), "iw": ("lower", 0.0), "bridge": ("estimate", 0.1), "eubo": ("upper", 0.3)}
    found = [
        Bound(n, kind, np.array([v]), np.array([0.1 if np.isfinite(v) else np.inf])) for n, (kind, v) in kinds.items()
    ]
    assert _room(found).verdict == verdict
