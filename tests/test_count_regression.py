"""Regressions of counts: densities against scipy, the posterior by quadrature."""

import numpy as np
import pytest
import torch
from known import COUNTS, chains_agree, log_joint_at, normal
from scipy import special, stats

from ppgen import PpgenError
from ppgen.inference import mcmc
from ppgen.models import CountRegression

X, E = normal(12, 1).double(), normal(12, seed=2).exp().double()
Z = {"alpha": torch.tensor(0.2).double(), "beta": torch.tensor([0.4]).double()}
ETA = 0.2 + 0.4 * X.numpy()[:, 0]
PRIOR = stats.norm(0, 2.5).logpdf(0.2) + stats.norm(0, 1).logpdf(0.4)


def test_poisson_with_exposure():
    expected = PRIOR + stats.poisson(np.exp(ETA) * E.numpy()).logpmf(COUNTS.numpy()).sum()
    data = {"x": X, "exposure": E, "y": COUNTS}
    assert log_joint_at(CountRegression(1), Z, data) == pytest.approx(expected, rel=1e-6)


def test_negative_binomial():
    phi, mean = 3.0, np.exp(ETA)
    expected = PRIOR + stats.gamma(2, scale=10).logpdf(phi) + stats.nbinom(phi, phi / (phi + mean)).logpmf(COUNTS).sum()
    z = Z | {"phi": torch.tensor(phi).double()}
    found = log_joint_at(CountRegression(1, family="negative_binomial"), z, {"x": X, "y": COUNTS})
    assert found == pytest.approx(expected, rel=1e-6)


def test_the_posterior_against_quadrature():
    a, b = np.linspace(-3, 3, 400)[:, None], np.linspace(-3, 3, 400)[None]
    eta = a[..., None] + b[..., None] * X.numpy()[:, 0]
    log_p = (COUNTS.numpy() * eta - np.exp(eta)).sum(-1) + stats.norm(0, 2.5).logpdf(a) + stats.norm(0, 1).logpdf(b)
    w = special.softmax(log_p)
    mean = (w * b).sum()
    how = {"engine": "trace", "predictive": False, "prior": False}
    tree = mcmc(CountRegression(1), {"x": X, "y": COUNTS}, chains=64, draws=150, warmup=200, **how)
    chains_agree(tree["posterior"]["beta"].values[..., 0], mean, (w * (b - mean) ** 2).sum())


def test_another_family_is_said():
    with pytest.raises(PpgenError, match="family='binomial'"):
        CountRegression(1, family="binomial")
