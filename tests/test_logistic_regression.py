"""Logistic regression: the posterior by quadrature, and under separation."""

import numpy as np
import pytest
import torch
from known import chains_agree, log_joint_at, normal
from scipy import special, stats

from ppgen.inference import mcmc
from ppgen.models import LogisticRegression

X = normal(20, 1).double()
Y = (X[:, 0] + normal(20, seed=1) > 0).double()


def exact(y: torch.Tensor) -> tuple[float, float]:
    """Mean and variance of β on a grid of α and β."""
    a, b = np.linspace(-12, 12, 300)[:, None, None], np.linspace(-12, 25, 600)[None, :, None]
    eta = a + b * X.numpy()[:, 0]
    log_p = (y.numpy() * special.log_expit(eta) + (1 - y.numpy()) * special.log_expit(-eta)).sum(-1)
    log_p = log_p + stats.norm(0, 5).logpdf(a[..., 0]) + stats.norm(0, 2.5).logpdf(b[..., 0])
    w = special.softmax(log_p)
    mean = (w * b[..., 0]).sum()
    return mean, (w * (b[..., 0] - mean) ** 2).sum()


def test_the_density():
    z = {"alpha": torch.tensor(0.4).double(), "beta": torch.tensor([-0.7]).double()}
    eta = 0.4 - 0.7 * X.numpy()[:, 0]
    expected = stats.norm(0, 5).logpdf(0.4) + stats.norm(0, 2.5).logpdf(-0.7)
    expected += stats.bernoulli(special.expit(eta)).logpmf(Y.numpy().astype(int)).sum()
    assert log_joint_at(LogisticRegression(1), z, {"x": X, "y": Y}) == pytest.approx(expected, rel=1e-6)


HOW = {"engine": "trace", "predictive": False, "prior": False}


def test_the_posterior_against_quadrature():
    tree = mcmc(LogisticRegression(1), {"x": X, "y": Y}, chains=64, draws=150, warmup=200, **HOW)
    chains_agree(tree["posterior"]["beta"].values[..., 0], *exact(Y))


def test_separation_leaves_it_to_the_prior():
    y = (X[:, 0] > 0).double()
    tree = mcmc(LogisticRegression(1), {"x": X, "y": y}, chains=64, draws=150, warmup=200, **HOW)
    chains_agree(tree["posterior"]["beta"].values[..., 0], *exact(y))
