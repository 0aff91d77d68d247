"""What a program is passed besides tensors, what it asks of Pyro, what Pyro gets back: values and sentences."""

from __future__ import annotations

import json
import logging
import math
from collections import namedtuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import EnergyDistance, RenyiELBO, ReweightedWakeSleep, Trace_ELBO, TraceGraph_ELBO
from torch import nn
from typer.testing import CliRunner

import ppgen
from ppgen import Program
from ppgen.data import as_tensors, fingerprint, n_rows, put_together, row_columns, take
from ppgen.errors import PpgenError
from ppgen.inference import fit, loglik, mcmc, posterior, predict, resume, sample
from ppgen.run import Run

X = torch.tensor([0.3, -0.2, 1.1, 0.8, 0.4, -0.6])
SEEN = torch.tensor([True, False, True, True, False, True])


@pytest.fixture(autouse=True)
def empty_store():
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


def mean_model(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def mean_guide(x):
    loc = pyro.param("loc", torch.tensor(0.1))
    pyro.sample("mu", dist.Normal(loc, pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)))


def evidence(x: torch.Tensor) -> float:
    """log p(x) of `mean_model`."""
    n = len(x)
    return float(dist.MultivariateNormal(torch.zeros(n), torch.ones(n, n) + torch.eye(n)).log_prob(x))


# -- arguments ------------------------------------------------------------------------------------------

Batch = namedtuple("Batch", "x y")


@pytest.mark.parametrize(
    "value",
    [None, True, 3, 2.5, "word", (2, 3), torch.tanh, {"a": X, "n": 3}, Batch(X, 2 * X), [X, X[:4]], {"s": [X, None]}],
    ids=lambda v: type(v).__name__,
)
def test_an_argument_arrives_as_it_was_passed(value):
    arrived = put_together(as_tensors({"x": X, "value": value}))["value"]
    assert type(arrived) is type(value)
    if isinstance(value, dict):
        assert arrived.keys() == value.keys()
    if isinstance(value, Batch):
        assert torch.equal(arrived.x, X)
        assert torch.equal(arrived.y, 2 * X)
    if not isinstance(value, dict | list | Batch):
        assert arrived is value or arrived == value


def test_tensors_inside_containers_are_columns():
    data = as_tensors({"batch": {"x": X, "y": X[:, None], "n": 6}, "w": torch.ones(2)})
    assert row_columns(data) == ("batch[x]", "batch[y]")
    assert n_rows(data) == 6
    few = put_together(take(data, slice(0, 2)))["batch"]
    assert few["x"].shape == (2,)
    assert few["y"].shape == (2, 1)
    assert few["n"] == 6


def test_the_fingerprint_knows_constants():
    one, other = (fingerprint(as_tensors({"x": X, "flag": flag}))["sha256"] for flag in (True, False))
    assert one != other


def scaled(x, factor=1.0, wide=False):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0 if wide else 1.0))
    with pyro.plate("data", len(x)), poutine.scale(scale=factor):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


@pytest.mark.parametrize("engine", ["eager", "trace"])
def test_a_constant_that_changes_is_seen(engine):
    run = fit(Program.from_pair(scaled), {"x": X, "factor": 1.0}, steps=3, engine=engine)
    found = [loglik(run, {"x": X, "factor": f}, particles=200, seed=0).best.values[0] for f in (1.0, 0.5, 1.0)]
    assert found[0] == found[2]
    assert abs(found[0] - found[1]) > 1.0


def test_batches_of_nested_columns():
    def model(batch, n):
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(batch["x"])):
            pyro.sample("y", dist.Normal(b * batch["x"], 1.0), obs=batch["y"])

    x = torch.randn(40, generator=torch.Generator().manual_seed(0))
    data = {"batch": {"x": x, "y": 2 * x}, "n": 40}
    run = fit(Program.from_pair(model), data, steps=1500, batch_size=10, lr=0.02, seed=0)
    precision = 1 + float((x**2).sum())
    tree = posterior(run, data, draws=2000)
    assert tree["posterior"]["b"].values.mean() == pytest.approx(2 * (precision - 1) / precision, abs=0.1)


PROGRAM = """
import pyro, torch
import pyro.distributions as dist

def model(batch, flag, sizes=(1,), name=None):
    b = pyro.sample("b", dist.Normal(0.0, 2.0 if flag else 1.0))
    assert name == "a" and sizes == (1, 2)
    with pyro.plate("data", len(batch["x"])):
        pyro.sample("y", dist.Normal(b * batch["x"], 1.0), obs=batch["y"])
"""


def test_a_run_with_constants_and_containers_is_reopened(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    from ppgen import catalog

    program = catalog.build(catalog.find(str(tmp_path / "program.py")), {})
    data = {"batch": {"x": X, "y": 2 * X}, "flag": True, "sizes": (1, 2), "name": "a"}
    run = fit(program, data, steps=20, out=tmp_path / "run")
    again = Run.load(tmp_path / "run")
    assert put_together(again.example)["sizes"] == (1, 2)
    a, b = (loglik(r, data, particles=50, seed=1).best.values for r in (run, again))
    assert np.array_equal(a, b)
    assert resume(tmp_path / "run", data, steps=25).rows[-1]["step"] == 25


def test_an_object_is_asked_for_when_a_run_is_reopened(tmp_path):
    def model(x, link):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(link(mu), 1.0), obs=x)

    data = {"x": X, "link": torch.tanh}
    run = fit(Program.from_pair(model), data, steps=5, out=tmp_path / "run")
    with pytest.raises(PpgenError, match="argument 'link' as an object, which no file holds; pass it"):
        Run.load(tmp_path / "run", Program.from_pair(model))
    again = Run.load(tmp_path / "run", Program.from_pair(model), {"link": torch.tanh})
    a, b = (loglik(r, data, particles=50, seed=1).best.values for r in (run, again))
    assert np.array_equal(a, b)


def test_a_program_without_arguments_on_the_shell(tmp_path):
    from ppgen.cli import app

    (tmp_path / "own.py").write_text(
        "import pyro, torch\nimport pyro.distributions as dist\n"
        "def model():\n    z = pyro.sample('z', dist.Normal(0.0, 1.0))\n"
        "    with pyro.plate('data', 3):\n"
        "        pyro.sample('x', dist.Normal(z, 1.0), obs=torch.tensor([1.0, 2.0, 0.5]))\n"
    )
    runner, out = CliRunner(), str(tmp_path / "run")
    own = ["fit", str(tmp_path / "own.py"), "--steps", "20", "--out", out]
    for words in (own, ["evaluate", out], ["diagnose", out]):
        result = runner.invoke(app, words)
        assert result.exit_code == 0, result.output


# -- right values ------------------------------------------------------------------------------------------


def partly(x, seen):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x, obs_mask=seen)


def test_obs_mask_has_a_bound_and_not_one_that_grows():
    data, exact = {"x": X, "seen": SEEN}, evidence(X[SEEN])
    run = fit(Program.from_pair(partly), data, steps=2500, lr=0.02, particles=8, seed=0)
    found = loglik(run, data, particles=4000, seed=0)
    assert found.bounds[0].values[0] < exact
    assert found.best.values[0] == pytest.approx(exact, abs=0.1)


def test_obs_mask_leaves_a_mean_field_guide_as_it_is_without_the_latents():
    """Of a mean field the sd of mu is (1 + n)^-1/2, n the rows, whether their values are given or latent."""
    x = torch.randn(30, generator=torch.Generator().manual_seed(0)) + 1
    data = {"x": x, "seen": torch.arange(30) % 3 > 0}
    run = fit(Program.from_pair(partly), data, steps=1500, lr=0.03, particles=4, schedule="cosine", seed=0)
    draws = posterior(run, data, draws=4000)["posterior"]["mu"].values
    assert draws.std() == pytest.approx(31**-0.5, rel=0.08)


def test_obs_mask_under_mcmc():
    m = mcmc(partly, {"x": X, "seen": SEEN}, seed=1)["posterior"]["mu"].values
    n = int(SEEN.sum()) + 1
    assert m.mean() == pytest.approx(float(X[SEEN].sum()) / n, abs=0.02)
    assert m.std() == pytest.approx(n**-0.5, rel=0.03)


def subsampled(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), subsample_size=2) as i:
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x[i])


def test_a_subsampled_program_is_evaluated_on_all_rows():
    run = fit(Program.from_pair(subsampled, mean_guide), {"x": X}, steps=3000, lr=0.01, seed=0)
    found = loglik(run, {"x": X}, particles=4000, seed=0)
    assert found.best.values[0] == pytest.approx(evidence(X), abs=0.05)
    assert posterior(run, {"x": X}, draws=10)["posterior_predictive"]["x"].shape == (1, 10, 6)
    m = mcmc(subsampled, {"x": X}, seed=0)["posterior"]["mu"].values
    assert m.mean() == pytest.approx(float(X.sum()) / 7, abs=0.02)
    assert m.std() == pytest.approx(7**-0.5, rel=0.03)


def test_booleans_are_observed_as_numbers():
    def model(y):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Bernoulli(p), obs=y)

    def guide(y):
        pyro.sample("p", dist.Beta(torch.tensor(5.0), torch.tensor(3.0)))

    program = Program.from_pair(model, guide).setup({"y": SEEN})
    exact = math.lgamma(5) + math.lgamma(3) - math.lgamma(8)
    assert loglik(program, {"y": SEEN}, particles=2).best.values[0] == pytest.approx(exact, abs=1e-5)


def test_a_program_gets_the_booleans_that_it_observed():
    def model(seen):
        k = pyro.sample("k", dist.Bernoulli(torch.full((6,), 0.5)).to_event(1), obs=seen)
        pyro.sample("z", dist.Normal(torch.where(k, 1.0, 0.0).sum(), 1.0))

    run = fit(Program.from_pair(model), {"seen": SEEN}, steps=1200, lr=0.03, schedule="cosine")
    assert float(posterior(run, {"seen": SEEN}, draws=2000)["posterior"]["z"].mean()) == pytest.approx(4, abs=0.15)


def test_a_parameter_that_a_program_holds_and_uses_is_trained():
    w = nn.Parameter(torch.zeros(()))

    def guide(x):
        pyro.param("w", w)
        pyro.sample("mu", dist.Normal(w, 0.378))

    run = fit(Program.from_pair(mean_model, guide), {"x": X}, steps=600, lr=0.02)
    assert float(w) == pytest.approx(float(X.sum()) / 7, abs=0.05)
    assert torch.equal(run.params["w"], w.detach())


def test_enumeration_in_the_guide_is_exact():
    from pyro.infer import config_enumerate

    @config_enumerate
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Bernoulli(pyro.param("q", torch.tensor(0.4), constraint=constraints.unit_interval)))

    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    run = fit(Program.from_pair(model, guide), {"x": X}, steps=3, lr=1e-9, log_every=1)
    q, p = dist.Bernoulli(0.4), dist.Bernoulli(0.3)
    k = torch.tensor([0.0, 1.0])[:, None]
    exact = (q.log_prob(k).exp() * (p.log_prob(k) + dist.Normal(k, 1.0).log_prob(X) - q.log_prob(k))).sum()
    assert run.metrics["elbo"] == pytest.approx([float(exact)] * 3, abs=1e-4)


def test_values_without_a_plate_under_mcmc():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    tree = mcmc(model, {"x": X}, seed=0)
    assert tree["posterior"]["mu"].values.mean() == pytest.approx(float(X.sum()) / 7, abs=0.02)
    assert tree["posterior_predictive"]["x"].shape == (64, 250, 6)


def test_a_packed_sequence_is_passed_on():
    from torch.nn.utils.rnn import PackedSequence, pack_sequence

    packed = pack_sequence([X, X[:4]])
    assert as_tensors({"x": X, "p": packed})["p"] is packed
    assert isinstance(packed, PackedSequence)


def test_words_that_are_no_rows_are_words():
    data = as_tensors({"x": X, "kinds": ["wide", "other"], "group": list("aabbcc")})
    assert data["kinds"] == ["wide", "other"]
    assert data["group"].tolist() == [0, 0, 1, 1, 2, 2]


def test_a_plate_is_of_the_rows_by_its_size_and_not_by_its_name():
    def model(grid, x):
        z = pyro.sample("z", dist.Normal(grid.mean() * 0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(PpgenError, match="stands in no plate over the rows"):
        fit(Program.from_pair(model), {"grid": torch.linspace(0, 1, 100), "x": X}, steps=2, batch_size=20)


def test_a_factor_over_rows_is_not_weighed_in_batches():
    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("l", dist.Normal(z, 1.0).log_prob(x).sum())

    def shared(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("energy", -(z**2))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(PpgenError, match="the factor 'l' is a sum over rows in no plate"):
        fit(Program.from_pair(model), {"x": X}, steps=2, batch_size=3)
    fit(Program.from_pair(shared), {"x": X}, steps=2, batch_size=3)


def test_parameters_that_one_run_does_not_come_to_are_kept():
    def model(x):
        k = pyro.sample("k", dist.Bernoulli(0.5))
        w = pyro.sample("w", dist.Normal(3.0, 1.0)) if k else 0.0
        pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    def guide(x):
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        p = pyro.param("p", torch.tensor(0.5), constraint=constraints.unit_interval)
        if pyro.sample("k", dist.Bernoulli(p)):
            pyro.sample("w", dist.Normal(0.0, scale))

    program = Program.from_pair(model, guide)
    run = fit(program, {"x": torch.tensor(1.0)}, steps=30, lr=0.05, objective="Trace_ELBO", seed=0)
    loglik(run, {"x": torch.tensor(1.0)}, particles=20)
    for _ in range(5):
        assert run.params.keys() == {"scale", "p"}


@pytest.mark.parametrize("engine", ["eager", "trace"])
def test_numbers_are_observed(engine):
    def model(n, hits):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        pyro.sample("hits", dist.Binomial(n, p), obs=hits)

    def guide(n, hits):
        pyro.sample("p", dist.Beta(torch.tensor(1.0 + hits), torch.tensor(1.0 + n - hits)))

    fit(Program.from_pair(model), {"n": 9, "hits": 6}, steps=2, engine=engine)
    program = Program.from_pair(model, guide).setup({"n": 9, "hits": 6})
    assert loglik(program, {"n": 9, "hits": 6}, particles=2).best.values[0] == pytest.approx(-math.log(10), abs=1e-5)


def test_float32_that_a_program_holds_is_computed_with(caplog):
    design = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))

    def model(x):
        b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", 6):
            pyro.sample("x", dist.Normal(design @ b, 1.0), obs=x)

    with caplog.at_level(logging.INFO, "ppgen"):
        b = mcmc(model, {"x": X}, seed=0)["posterior"]["b"].values
    assert "computed in float32" in caplog.text
    cov = torch.linalg.inv(torch.eye(2) + design.T @ design)
    assert np.allclose(b.mean((0, 1)), cov @ design.T @ X, atol=0.03)
    with pytest.raises(PpgenError, match="precision is '8'"):
        mcmc(model, {"x": X}, precision="8")


def test_sites_that_values_decide_are_fitted():
    """P(stop at once | x) against the sum over all cases."""

    def model(x):
        n = 0
        while n < 3 and pyro.sample(f"go_{n}", dist.Bernoulli(0.5)) > 0:
            n += 1
        pyro.sample("x", dist.Normal(float(n), 1.0), obs=x)

    def guide(x):
        p = pyro.param("p", torch.full((3,), 0.5), constraint=constraints.unit_interval)
        n = 0
        while n < 3 and pyro.sample(f"go_{n}", dist.Bernoulli(p[n])) > 0:
            n += 1

    x = torch.tensor(0.2)
    run = fit(Program.from_pair(model, guide), {"x": x}, steps=6000, lr=0.01, objective="Trace_ELBO", seed=0)
    prior = torch.tensor([0.5, 0.25, 0.125, 0.125])
    joint = prior * dist.Normal(torch.arange(4.0), 1.0).log_prob(x).exp()
    assert float(run.params["p"][0]) == pytest.approx(float(1 - joint[0] / joint.sum()), abs=0.08)
    found = loglik(run, {"x": x}, particles=4000, seed=0)
    assert found.best.values[0] == pytest.approx(float(joint.sum().log()), abs=0.03)


def test_sites_ask_to_be_summed_out():
    def model(x):
        w = pyro.sample("w", dist.Beta(2.0, 2.0))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(w), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    run = fit(Program.from_pair(model), {"x": X}, steps=800, lr=0.02, particles=4, seed=0)
    assert run.config["fit"]["objective"] == "enumerate"
    assert run.structure.summed == ("k",)
    w = torch.linspace(1e-4, 1 - 1e-4, 4001, dtype=torch.double)[:, None]
    x = X.double()
    p = (1 - w) * dist.Normal(0.0, 1.0).log_prob(x).exp() + w * dist.Normal(1.0, 1.0).log_prob(x).exp()
    exact = math.log(torch.trapezoid((p.prod(1) * 6 * (w * (1 - w))[:, 0]), w[:, 0]))
    assert loglik(run, {"x": X}, particles=4000, seed=0).best.values[0] == pytest.approx(exact, abs=0.02)


# -- Pyro's parameter store -------------------------------------------------------------------------------


def test_parameters_have_pyros_names_and_values():
    run = fit(Program.from_pair(mean_model, mean_guide), {"x": X}, steps=300, lr=0.02)
    assert run.params.keys() == {"loc", "scale"}
    assert float(run.params["scale"]) > 0
    with run:
        assert torch.equal(pyro.param("scale").detach(), run.params["scale"])
        torch.manual_seed(0)
        inside = Trace_ELBO(num_particles=10).loss(mean_model, mean_guide, X)
    assert "scale" not in pyro.get_param_store()
    run.to_pyro()
    torch.manual_seed(0)
    assert Trace_ELBO(num_particles=10).loss(mean_model, mean_guide, X) == inside


def test_what_pyro_trained_is_taken_up():
    from pyro.infer import SVI

    svi = SVI(mean_model, mean_guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(200):
        svi.step(X)
    trained = {k: v.detach().clone() for k, v in pyro.get_param_store().items()}
    run = fit(Program.from_pair(mean_model, mean_guide), {"x": X}, steps=0)
    for name, value in trained.items():
        assert torch.allclose(run.params[name], value)


def test_a_parameter_without_a_start_that_the_store_has():
    pyro.param("loc", torch.tensor(0.7))

    def guide(x):
        pyro.sample("mu", dist.Normal(pyro.param("loc"), 1.0))

    run = fit(Program.from_pair(mean_model, guide), {"x": X}, steps=0)
    assert float(run.params["loc"]) == pytest.approx(0.7)


# -- losses that are run as Pyro runs them -------------------------------------------------------------------


def own_loss(model, guide, x):
    q = poutine.trace(guide).get_trace(x)
    p = poutine.trace(poutine.replay(model, trace=q)).get_trace(x)
    return q.log_prob_sum() - p.log_prob_sum()


@pytest.mark.parametrize(
    "objective",
    ["Trace_ELBO", "TraceMeanField_ELBO", "TraceGraph_ELBO", own_loss, TraceGraph_ELBO(),
     pytest.param(Trace_ELBO(num_particles=3), marks=pytest.mark.slow),
     RenyiELBO(alpha=0.5, num_particles=4), ReweightedWakeSleep(num_particles=8), "TraceTMC_ELBO"],
    ids=lambda o: o if isinstance(o, str) else getattr(o, "__name__", type(o).__name__),
)  # fmt: skip
def test_a_loss_of_pyros_is_trained(objective):
    run = fit(Program.from_pair(mean_model, mean_guide), {"x": X}, objective=objective, steps=1200, lr=0.02, ema=0.99)
    assert float(run.params["loc"]) == pytest.approx(float(X.sum()) / 7, abs=0.06)
    assert float(run.params["scale"]) == pytest.approx(7**-0.5, rel=0.15)


def test_the_energy_distance_trains_a_generator():
    def model(x=None):
        loc = pyro.param("m", torch.tensor(0.0))
        with pyro.plate("data", 200):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    data = 2 + torch.randn(200, generator=torch.Generator().manual_seed(0))
    run = fit(
        Program.from_pair(model, lambda x=None: None), {"x": data}, objective=EnergyDistance(num_particles=4),
        steps=400, lr=0.05, ema=0.95,
    )  # fmt: skip
    assert float(run.params["m"]) == pytest.approx(float(data.mean()), abs=0.15)


def test_a_loss_by_name_is_resumed_and_an_object_is_not(tmp_path):
    whole = fit(Program.from_pair(mean_model, mean_guide), {"x": X}, objective="TraceGraph_ELBO", steps=30)
    how = {"objective": "TraceGraph_ELBO", "steps": 20, "out": tmp_path / "a"}
    fit(Program.from_pair(mean_model, mean_guide), {"x": X}, **how)
    run = resume(tmp_path / "a", {"x": X}, program=Program.from_pair(mean_model, mean_guide), steps=30)
    assert torch.equal(run.params["loc"], whole.params["loc"])
    fit(Program.from_pair(mean_model, mean_guide), {"x": X}, objective=own_loss, steps=5, out=tmp_path / "b")
    with pytest.raises(PpgenError, match="own_loss"):
        resume(tmp_path / "b", {"x": X}, program=Program.from_pair(mean_model, mean_guide), steps=8)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"objective": "nonsense"}, "there is no objective 'nonsense'"),
        ({"objective": 3}, "objective is 3; expected a name"),
        ({"objective": "JitTrace_ELBO"}, "take Trace_ELBO"),
        ({"objective": Trace_ELBO(), "batch_size": 2}, "batch_size is 2; leave batch_size out"),
        ({"objective": Trace_ELBO(), "particles": 4}, "particles is 4; leave particles out"),
        ({"objective": lambda model, guide, x: 3.0}, "gives 3.0; expected a tensor with a gradient"),
    ],
)
def test_what_a_loss_does_not_go_with(how, words):
    with pytest.raises(PpgenError, match=words):
        fit(Program.from_pair(mean_model, mean_guide), {"x": X}, steps=2, **how)


# -- warnings in place of refusals -----------------------------------------------------------------------------


def bernoulli(x, validate=None):
    p = pyro.sample("p", dist.Beta(1.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Bernoulli(p, validate_args=validate), obs=x)


GREY = {"x": torch.tensor([0.2, 0.9, 1.0])}


def test_values_outside_of_a_support(caplog):
    with pytest.raises(PpgenError, match="strict=False"):
        fit(Program.from_pair(bernoulli), GREY, steps=1)
    fit(Program.from_pair(bernoulli), GREY, steps=1, strict=False)
    assert "has the support {0, 1}" in caplog.text
    caplog.clear()
    run = fit(Program.from_pair(bernoulli), GREY | {"validate": False}, steps=1)
    assert "its validation is switched off" in caplog.text
    loglik(run, GREY | {"validate": False}, particles=2)
    with pyro.validation_enabled(False):
        fit(Program.from_pair(bernoulli), GREY, steps=1)


@pytest.mark.parametrize("wide", [pytest.param(False, marks=pytest.mark.slow), True])
def test_nan_is_what_is_missing_to_a_distribution_that_says_so(wide):
    x, loc = torch.tensor([0.5, float("nan"), -1.0]), torch.zeros(3)

    def model():
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        d = dist.NanMaskedMultivariateNormal(loc + b, torch.eye(3)) if wide else dist.NanMaskedNormal(loc + b, 1.0)
        pyro.sample("x", d if wide else d.to_event(1), obs=x)

    run = fit(Program.from_pair(model), {}, steps=1000, lr=0.02, seed=0)
    assert loglik(run, {}, particles=4000, seed=0).best.values[0] == pytest.approx(evidence(x[[0, 2]]), abs=0.02)


def test_a_mask_on_one_side_only_is_said(caplog):
    def model(x):
        with pyro.plate("data", len(x)):
            with poutine.mask(mask=SEEN):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    fit(Program.from_pair(model), {"x": X}, steps=1)
    assert "the latent 'z' is masked in the model and not in the guide" in caplog.text


def test_a_parameter_that_nothing_reaches_is_said(caplog):
    def model(x):
        pyro.param("unused", torch.zeros(2))
        mean_model(x)

    run = fit(Program.from_pair(model, mean_guide), {"x": X}, steps=2)
    assert "the parameter 'unused'" in caplog.text
    assert torch.equal(run.params["unused"], torch.zeros(2))


def test_names_with_slashes_are_kept_beside():
    def model(x):
        mu = pyro.sample("level/mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data/rows", len(x)):
            pyro.sample("x/obs", dist.Normal(mu, 1.0), obs=x)

    run = fit(Program.from_pair(model), {"x": X}, steps=5)
    tree = posterior(run, {"x": X}, draws=5)
    assert set(tree["posterior"].data_vars) == {"level.mu"}
    assert json.loads(tree.attrs["original_names"])["level.mu"] == "level/mu"
    assert predict(run, {"x": X}, draws=3)["predictions"]["x.obs"].dims == ("chain", "draw", "data.rows")
    assert "level.mu" in mcmc(model, {"x": X}, chains=8, draws=10, warmup=20)["posterior"]


def test_weights_of_two_bound_methods_with_a_constant():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(0.0))

        def model(self, x, shift):
            with ppgen.rows(x):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z + shift, self.scale.exp()), obs=x)

        def guide(self, x, shift):
            with ppgen.rows(x):
                pyro.sample("z", dist.Normal((x - shift) / 2, 0.7))

    net = Net()
    run = fit(Program.from_pair(net.model, net.guide), {"x": X, "shift": 0.5}, steps=10)
    assert run.program.model.__self__ is net
    assert sample(run, 4)["x"].shape == (4,)
