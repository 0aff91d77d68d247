"""Pyro's losses as what a fit trains: the same loss, the same gradient, in nats a row."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceGraph_ELBO, TraceTailAdaptive_ELBO
from torch.distributions import constraints

from ppgen import Program
from ppgen.errors import PpgenError
from ppgen.inference import fit
from ppgen.inference.pyro_objective import PyroObjective, loss_of, name_of
from ppgen.structure import inspect

X = torch.tensor([0.3, -0.2, 1.1, 0.8])


def model(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def guide(x):
    loc = pyro.param("loc", torch.tensor(0.3))
    pyro.sample("mu", dist.Normal(loc, pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)))


def made(loss):
    program = Program.from_pair(model, guide).setup({"x": X})
    return program, PyroObjective(program, inspect(program, {"x": X}), len(X), loss)


@pytest.mark.parametrize("kind", [Trace_ELBO, TraceGraph_ELBO])
def test_the_loss_and_its_gradient_are_pyros(kind):
    program, objective = made(kind(num_particles=5))
    torch.manual_seed(0)
    loss, bound = objective({"x": X})
    loss.backward()
    pyro.clear_param_store()
    torch.manual_seed(0)
    theirs = kind(num_particles=5).loss_and_grads(model, guide, X)
    assert float(loss) * len(X) == pytest.approx(theirs, rel=1e-5)
    assert float(bound) == pytest.approx(-theirs, rel=1e-5)
    store = pyro.get_param_store()
    for name in ("loc", "scale"):
        expected = store._params[name].grad / len(X)
        assert torch.allclose(program.get_parameter(f"param:{name}").grad, expected, rtol=1e-4)
    pyro.clear_param_store()


def test_gradients_of_others_are_left_alone():
    program, objective = made(TraceGraph_ELBO())
    before = torch.tensor(7.0)
    program.get_parameter("param:loc").grad = before
    objective({"x": X})
    assert program.get_parameter("param:loc").grad is before


def test_names():
    assert loss_of("analytic") is None
    assert isinstance(loss_of("Trace_ELBO"), Trace_ELBO)
    assert name_of(Trace_ELBO()) == "Trace_ELBO (an object)"
    with pytest.raises(PpgenError, match="there is no objective"):
        loss_of("pyro")


def test_the_tail_adaptive_divergence_has_pyros_gradient_and_the_elbos_value():
    def tail():
        return TraceTailAdaptive_ELBO(num_particles=5, vectorize_particles=True, max_plate_nesting=1)

    program, objective = made(tail())
    torch.manual_seed(0)
    loss, bound = objective({"x": X})
    loss.backward()
    assert -20.0 < float(bound) < 0.0
    pyro.clear_param_store()
    torch.manual_seed(0)
    tail().loss_and_grads(model, guide, X)
    expected = pyro.get_param_store()._params["loc"].grad / len(X)
    assert torch.allclose(program.get_parameter("param:loc").grad, expected, rtol=1e-4)
    pyro.clear_param_store()


@pytest.mark.parametrize("name", ["Trace_MMD", "TraceTailAdaptive_ELBO", "EnergyDistance", "ReweightedWakeSleep"])
def test_losses_by_name(name):
    run = fit(Program.from_pair(model, guide), {"x": X}, steps=3, lr=0.05, objective=name, engine="eager", log_every=1)
    assert run.rows[-1]["bad_steps"] == 0 and float(run.params["loc"]) != pytest.approx(0.3)


@pytest.mark.parametrize("name, instead", [("CSIS", "ReweightedWakeSleep"), ("SVGD", "mcmc and infer")])
def test_algorithms_that_are_no_loss_are_told_what_is_near(name, instead):
    with pytest.raises(PpgenError, match=f"{name} .*{instead}"):
        loss_of(name)
