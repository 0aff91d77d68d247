"""A latent that the likelihood depends on without a derivative is named: a fit along paths would keep its prior."""

from __future__ import annotations

import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import Delta, HalfNormal, Normal

from ppgen import Program
from ppgen.inference import fit
from ppgen.models import Flow

Y = {"y": torch.tensor([2.0, 3.0, 4.0])}

CUTS = {
    "detached": lambda m: m.detach(),
    "rounded": torch.round,
    "a number": lambda m: m.item(),
    "by NumPy": lambda m: torch.as_tensor(np.square(m.detach().numpy())),
    "under no_grad": torch.no_grad()(lambda m: m * 1.0),
    "a branch": lambda m: torch.where(m > 0, 1.0, -1.0),
}


def pair(cut, guide="AutoNormal"):
    def model(y):
        m = pyro.sample("m", Normal(0.0, 10.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", Normal(cut(m), 1.0), obs=y)

    return Program.from_pair(model, guide)


@pytest.mark.parametrize("name", CUTS)
def test_a_cut_latent_is_named(name, caplog):
    fit(pair(CUTS[name]), Y, steps=1)
    assert "'y' of model depends on the latent 'm', and has no derivative in it" in caplog.text


def unused(y):
    pyro.sample("m", Normal(0.0, 1.0))
    pyro.sample("y", Normal(0.0, pyro.sample("s", HalfNormal(1.0))).expand(y.shape).to_event(1), obs=y)


def deep(y):
    m = pyro.sample("m", Normal(0.0, pyro.sample("s", HalfNormal(1.0))))
    pyro.sample("t", Delta(m))
    with pyro.plate("data", len(y)):
        pyro.sample("y", Normal(m, 1.0), obs=y)


@pytest.mark.parametrize("model", [unused, deep])
def test_a_latent_with_a_derivative_or_without_use_is_not(model, caplog):
    fit(Program.from_pair(model, "AutoNormal"), Y, steps=1)
    assert "no derivative" not in caplog.text


KINKS = {  # and a value beyond the kink, where the derivative is 0
    "relu": (torch.relu, -3.0),
    "clamp": (lambda m: m.clamp(0, 5), 9.0),
    "minimum": (lambda m: m.clamp(max=1), 3.0),
}


@pytest.mark.parametrize("name", KINKS)
def test_a_derivative_that_is_zero_beyond_a_kink_is_one(name, caplog):
    cut, beyond = KINKS[name]

    def guide(y):
        pyro.sample("m", Normal(pyro.param("loc", torch.tensor(beyond)), 0.1))

    fit(pair(cut, guide), Y, steps=1)
    assert "no derivative" not in caplog.text


def test_the_noise_of_a_dequantised_value_is_not(caplog):
    """p(x | v) is 1 in the cell of x, whose derivative is 0, and 0 elsewhere: a support."""
    x = torch.arange(40.0).reshape(20, 2) % 5 / 4
    fit(Flow(**{**Flow.from_data({"x": x}), "dequantise": "variational"}), {"x": x}, steps=1)
    assert "no derivative" not in caplog.text


def own(y):
    loc = pyro.param("loc", torch.tensor(1.0))
    pyro.sample("m", Normal(loc, 1.0))


@pytest.mark.parametrize("options", [{"gradient": "score"}, {"objective": "rws"}, {"objective": "wake_sleep"}])
def test_the_remedy_says_nothing(options, caplog):
    fit(pair(CUTS["detached"], own), Y, steps=1, **options)
    assert "no derivative" not in caplog.text


def test_the_remedy_finds_the_posterior():
    """Precision 1/100 + 3, mean 9 / 3.01."""
    run = fit(pair(CUTS["detached"]), Y, steps=1500, lr=0.05, gradient="score", particles=16, schedule="cosine", seed=0)
    found = dict(run.program.named_parameters())
    assert abs(float(found["autoguide.locs.m_unconstrained"].detach()) - 9 / 3.01) < 0.1
