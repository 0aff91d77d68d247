"""ARMA: its noise by scipy's linear filter, its draws' covariance, the posterior of an AR(1) by conjugacy."""

import numpy as np
import pytest
import torch
from known import log_joint_at, normal
from scipy import signal, special, stats

from ppgen import PpgenError
from ppgen.inference import mcmc
from ppgen.models import ARMA
from ppgen.models.arma import _ARMASeries


@pytest.mark.parametrize("p, q", [(1, 1), (2, 0), (0, 2), (3, 2)])
def test_the_density(p, q):
    y = normal(2, 30).double()
    phi, theta = 0.3 * normal(p, seed=3).double(), 0.4 * normal(q, seed=4).double()
    z = {"mu": torch.tensor(0.2).double(), "sigma": torch.tensor(0.8).double()}
    z |= ({"phi": phi} if p else {}) | ({"theta": theta} if q else {})
    noise = signal.lfilter(np.r_[1, -phi], np.r_[1, theta], y.numpy() - 0.2)
    expected = (
        stats.norm(0, 2.5).logpdf(0.2)
        + stats.halfcauchy(scale=2.5).logpdf(0.8)
        + stats.norm.logpdf(np.r_[phi, theta]).sum()
        + stats.norm(0, 0.8).logpdf(noise).sum()
    )
    assert log_joint_at(ARMA(p, q, 30), z, {"y": y}) == pytest.approx(expected, rel=1e-6)


def test_draws_undo_the_filter():
    torch.manual_seed(0)
    phi, theta = torch.tensor([0.5, -0.2]).double(), torch.tensor([0.4]).double()
    series = _ARMASeries(torch.tensor(1.0).double(), phi, theta, torch.tensor(2.0).double(), 6)
    y = series.rsample((20_000,)).numpy()
    noise = signal.lfilter([1, -0.5, 0.2], [1, 0.4], y - 1.0)
    assert np.abs(np.cov(noise.T) - 4 * np.eye(6)).max() < 4.5 * 4 * (2 / 20_000) ** 0.5
    assert np.abs(noise.mean(0)).max() < 4.5 * 2 / 20_000**0.5


@pytest.mark.parametrize("p, q", [(1, 1), (2, 0), (0, 2), (3, 2)])
@pytest.mark.parametrize("T", [1, 30])
def test_forecasts_are_the_joint_normal_given_the_series(p, q, T):
    """Of y = μ + L ε, with L by scipy's filter: the conditional of a multivariate normal."""
    H, S = 4, 3
    phi, theta = 0.3 * normal(S, p, seed=3).double(), 0.4 * normal(S, q, seed=4).double()
    mu, sigma, y = normal(S, seed=5).double(), 0.5 + normal(S, seed=6).double().abs(), normal(T).double()
    found = ARMA(p, q, T).forecast(y, H, mu, sigma, phi if p else None, theta if q else None)
    for s in range(S):
        L = signal.lfilter(np.r_[1, theta[s]], np.r_[1, -phi[s]], np.eye(T + H), axis=0)
        cov = float(sigma[s]) ** 2 * L @ L.T
        gain = np.linalg.solve(cov[:T, :T], cov[:T, T:]).T
        mean = float(mu[s]) + gain @ (y.numpy() - float(mu[s]))
        np.testing.assert_allclose(found.mean[s], mean, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(found.covariance_matrix[s], cov[T:, T:] - gain @ cov[:T, T:], rtol=1e-6, atol=1e-9)


def test_forecasts_of_other_orders_are_refused():
    one = torch.ones(2)
    with pytest.raises(PpgenError, match=r"orders \(0, 1\), y of shape \(5,\)"):
        ARMA(1, 1).forecast(torch.zeros(5), 2, one, one, theta=torch.ones(2, 1))


def test_the_posterior_of_an_autoregression_against_quadrature():
    """Of φ, with μ and σ on grids."""
    e = normal(40, seed=2).numpy()
    y = signal.lfilter([1], [1, -0.6], e)
    mu, phi, sigma = (
        np.linspace(-2, 2, 60)[:, None, None],
        np.linspace(-0.4, 1.3, 120)[:, None],
        np.linspace(0.5, 1.8, 60),
    )
    d = y[:, None, None, None] - mu
    noise = np.concatenate([d[:1] + 0 * phi, d[1:] - phi * d[:-1]])
    log_p = -0.5 * (noise**2).sum(0) / sigma**2 - 40 * np.log(sigma)
    log_p = log_p + stats.norm(0, 2.5).logpdf(mu) + stats.norm.logpdf(phi) + stats.halfcauchy(scale=2.5).logpdf(sigma)
    w = special.softmax(log_p)
    mean = (w * phi).sum()
    sd = (w * (phi - mean) ** 2).sum() ** 0.5
    tree = mcmc(ARMA(1, 0, 40), {"y": torch.tensor(y)}, chains=64, draws=100, warmup=200)
    draws = tree["posterior"]["phi"].values[..., 0]
    assert abs(draws.mean() - mean) < 0.06 * sd and abs(draws.std() / sd - 1) < 0.06
    assert list(tree["posterior"]["phi"].coords["lag"].values) == [1]
    assert tree["observed_data"]["y"].dims == ("data", "time")


def test_orders_of_zero_are_no_model():
    with pytest.raises(PpgenError, match="p=0, q=0"):
        ARMA(0, 0)
