"""Predictions at new rows of a model whose rows depend on latents of each other: what is said, and its remedy."""

from __future__ import annotations

import pyro
import pytest
import torch
from pyro.distributions import Normal

from ppgen import Program
from ppgen.inference import fit, mcmc, predict

X = torch.linspace(0.0, 4.0, 8)
Y = 5.0 + torch.sin(X)
NEW = X[:4] + 0.25


def covariance(x):
    return 25.0 * torch.exp(-0.5 * (x[:, None] - x) ** 2) + 1e-3 * torch.eye(len(x), dtype=x.dtype)


def whitened(x, y=None):
    with pyro.plate("n", len(x)):
        e = pyro.sample("e", Normal(0.0, 1.0))
        pyro.sample("y", Normal(torch.linalg.cholesky(covariance(x)) @ e, 0.5), obs=y)


def walk(x, y=None):
    with pyro.plate("n", len(x)):
        step = pyro.sample("step", Normal(0.0, 1.0))
        pyro.sample("y", Normal(step.cumsum(0), 0.5), obs=y)


def own(x, y=None):
    a = pyro.sample("a", Normal(0.0, 1.0))
    with pyro.plate("n", len(x)):
        u = pyro.sample("u", Normal(a, 1.0))
        pyro.sample("y", Normal(a * x + u, 0.5), obs=y)


def groups(x, y=None):
    with pyro.plate("groups", 2):
        u = pyro.sample("u", Normal(0.0, 1.0))
    with pyro.plate("n", len(x)):
        pyro.sample("y", Normal(u[(x > 2).long()], 0.5), obs=y)


@pytest.mark.parametrize("model", [whitened, walk, own, groups])
def test_new_rows_that_do_not_go_on_from_the_fitted_ones_are_said(model, caplog):
    run = fit(model, {"x": X, "y": Y}, steps=2, guide="AutoNormal", engine="eager")
    predict(run, {"x": X}, draws=50)
    assert "of other rows" not in caplog.text, "the fitted rows"
    predict(run, {"x": NEW}, draws=50)
    assert ("of other rows" in caplog.text) == (model in (whitened, walk))


def test_rows_among_the_fitted_ones_without_an_observed_value_are_predicted_from_them():
    """The remedy: against the conditional normal of a Gaussian process."""
    program = Program.from_pair(whitened)
    program.missing = "mask"
    x = torch.cat([X, NEW])
    data = {"x": x, "y": torch.cat([Y, torch.full_like(NEW, torch.nan)])}
    tree = mcmc(program, data, chains=16, draws=250, warmup=200, engine="trace", prior=False, precision="64-true")
    K = covariance(x.double())
    gain = torch.linalg.solve(K[:8, :8] + 0.25 * torch.eye(8), K[:8, 8:]).mT
    mean, var = gain @ Y.double(), (K[8:, 8:] - gain @ K[:8, 8:]).diagonal() + 0.25
    y = torch.as_tensor(tree.posterior_predictive["y"].values[..., 8:]).flatten(0, 1)
    assert ((y.mean(0) - mean).abs() < 4 * (var / 1000).sqrt()).all() and (var / 1000).sqrt().max() < 0.02 * 5
    assert ((y.std(0) / var.sqrt() - 1).abs() < 0.1).all()
