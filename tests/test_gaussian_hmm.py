"""Pyro's GaussianHMM against the dense normal of its series, and a Kalman filter in Python's floats."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import multivariate_normal

import ppgen.sites  # noqa: F401 (sets Pyro's GaussianHMM right)
from ppgen.inference import mcmc, sample


def normal(batch, size):
    root = torch.randn(*batch, size, size)
    return dist.MultivariateNormal(torch.randn(*batch, size), root @ root.mT + 0.3 * torch.eye(size))


SHAPES = {  # batch, steps, size of the state and of a value, batch of transitions, batch of observations
    "one matrix for all steps": ((), 8, 3, 1, (), ()),
    "a matrix for each step": ((), 7, 2, 3, (7,), (7,)),
    "matrices by series": ((4,), 9, 2, 2, (4, 1), (9,)),
    "one step": ((4,), 1, 2, 2, (), ()),
    "numbers": ((2, 3), 5, 1, 1, (2, 3, 5), (5,)),
}


def dense(parts, steps, series):
    """Mean and covariance of a series: of z_t by its map from z_0 and all noises."""
    start, F, step, H, seen = (
        (p.expand(*series[0], steps, *p.shape[-2:]) if isinstance(p, torch.Tensor) else p) for p in parts
    )
    start = start.expand(series[0])
    step, seen = (d.expand((*series[0], steps)) for d in (step, seen))
    at = series[1]
    noises = [start.covariance_matrix[at], *step.covariance_matrix[at]]
    means = [start.mean[at], *step.mean[at]]
    maps, mean, rows, values = [torch.eye(len(means[0]))], means[0], [], []
    for t in range(steps):
        A = F[at][t].mT
        maps = [A @ m for m in maps] + [torch.eye(len(mean))]
        mean = A @ mean + means[t + 1]
        rows.append([H[at][t].mT @ m for m in maps])
        values.append(H[at][t].mT @ mean + seen.mean[at][t])
    cov = [
        [sum(a @ q @ b.mT for a, b, q in zip(rows[i], rows[j], noises, strict=False)) + (i == j) * seen_cov(seen, at, i)
         for j in range(steps)] for i in range(steps)
    ]  # fmt: skip
    return torch.cat(values), torch.cat([torch.cat(r, -1) for r in cov])


def seen_cov(seen, at, t):
    return seen.base_dist.variance[at][t].diag() if hasattr(seen, "base_dist") else seen.covariance_matrix[at][t]


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_log_prob_is_that_of_the_dense_normal(name, independent, double):
    batch, steps, k, features, of_steps, of_values = SHAPES[name]
    torch.manual_seed(1)
    loc = torch.randn(*of_values, features)
    seen = dist.Normal(loc, 0.3 + loc.abs()).to_event(1) if independent else normal(of_values, features)
    parts = (
        normal(batch, k),
        0.4 * torch.randn(*of_steps, k, k),
        normal(of_steps, k),
        torch.randn(*of_values, k, features),
        seen,
    )
    d = dist.GaussianHMM(*parts, duration=steps)
    x = d.sample()
    found, again = d.log_prob(x), d.expand((6, *batch)).log_prob(x)
    for at in np.ndindex(*batch):
        mean, cov = dense(parts, steps, (batch, at))
        expected = multivariate_normal(mean, cov).logpdf(x[at].flatten())
        assert float(found[at]) == pytest.approx(expected, rel=1e-9)
        assert float(again[(3, *at)]) == pytest.approx(expected, rel=1e-9)


def walk(q, r, steps):
    one = torch.eye(1)
    start, step, seen = (dist.Normal(torch.zeros(1), s).to_event(1) for s in (torch.ones(()), q, r))
    return dist.GaussianHMM(start, one, step, one, seen, duration=steps)


def kalman(q, r, y):
    mean, var, log_p = 0.0, 1.0, 0.0
    for v in y:
        var += q * q
        total = var + r * r
        log_p -= 0.5 * (math.log(2 * math.pi * total) + (v - mean) ** 2 / total)
        mean, var = mean + var / total * (v - mean), var * r * r / total
    return log_p


@pytest.mark.parametrize("r", [1.0, 1e-2, 1e-5, 1e-8])
@pytest.mark.parametrize("q", [1.0, 1e-3, 1e-5, 1e-30])
def test_log_prob_in_float32_is_that_of_a_kalman_filter_at_any_noise(q, r):
    """Pyro's is off by 30 nats at q = 1, r = 1e-4, and by 1e10 at r = 1e-8."""
    torch.manual_seed(4)
    y = torch.randn(60).cumsum(0) / 2
    found = float(walk(torch.tensor(q), torch.tensor(r), 60).log_prob(y[:, None]))
    r, q = float(torch.tensor(r)), float(torch.tensor(q))
    assert found == pytest.approx(kalman(q, r, y.tolist()), rel=1e-4 if q < r < 1e-5 or q < 1e-20 else 1e-6)


def test_draws_of_small_and_large_noises_are_made():
    """Draws of two scales from their priors ended in "linalg.cholesky: not positive-definite"."""

    def model(y=None):
        q = pyro.sample("q", dist.LogNormal(0.0, 10.0))
        r = pyro.sample("r", dist.LogNormal(0.0, 10.0))
        pyro.sample("y", walk(q, r, 60), obs=y)

    y = sample(model, 300, seed=0)["y"]
    assert y.shape == (300, 60, 1)
    assert bool(y.isfinite().all())


def test_chains_of_a_state_of_two_numbers_run_together(caplog):
    """log p of the posterior's draws is that of the dense normal."""

    def model(y):
        q = pyro.sample("q", dist.HalfNormal(1.0))
        turn = torch.tensor([[0.9, 0.2], [-0.2, 0.9]])
        start, step, seen = (dist.Normal(torch.zeros(2), s).to_event(1) for s in (torch.ones(()), q, torch.tensor(0.5)))
        pyro.sample("y", dist.GaussianHMM(start, turn, step, torch.eye(2), seen, duration=12), obs=y)

    torch.manual_seed(0)
    y = torch.randn(12, 2)
    tree = mcmc(model, {"y": y}, chains=4, draws=10, warmup=30, predictive=False)
    assert "one after the other" not in caplog.text
    q = float(tree.posterior.q[0, 0])
    start, step, seen = (dist.Normal(torch.zeros(2), s).to_event(1).expand(()) for s in (1.0, q, 0.5))
    turn = torch.tensor([[0.9, 0.2], [-0.2, 0.9]])
    full = [dist.MultivariateNormal(d.mean, d.variance.diag()) for d in (start, step, seen)]
    mean, cov = dense((full[0], turn, full[1], torch.eye(2), full[2]), 12, ((), ()))
    expected = multivariate_normal(mean, cov).logpdf(y.flatten())
    assert float(tree.log_likelihood.y[0, 0].sum()) == pytest.approx(expected, rel=1e-4)
