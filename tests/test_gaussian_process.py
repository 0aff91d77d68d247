"""Gaussian-process regression: density and predictions against scikit-learn's, the posterior by quadrature."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from known import log_joint_at, normal
from scipy import special, stats
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel

from ppgen import PpgenError, Program
from ppgen.inference import fit, mcmc, predict
from ppgen.models import GaussianProcess
from ppgen.terms import run, terms

X = torch.linspace(-2, 2, 9).double()
Y = (torch.sin(2 * X) + 0.2 * normal(9)).double()
PROGRAM = GaussianProcess(jitter=0.0)


def evidence(rho: float, alpha: float, sigma: float) -> float:
    K = alpha**2 * np.exp(-0.5 * ((X[:, None] - X) / rho).numpy() ** 2) + sigma**2 * np.eye(9)
    return stats.multivariate_normal(np.zeros(9), K).logpdf(Y.numpy())


def test_density_and_predictions():
    z = {k: torch.tensor(v).double() for k, v in {"rho": 0.7, "alpha": 1.1, "sigma": 0.3}.items()}
    expected = evidence(0.7, 1.1, 0.3) + stats.lognorm(1).logpdf(0.7)
    expected += stats.halfnorm(scale=2).logpdf(1.1) + stats.halfnorm.logpdf(0.3)
    assert log_joint_at(PROGRAM, z, {"x": X, "y": Y}) == pytest.approx(expected, rel=1e-6)
    peer = GaussianProcessRegressor(ConstantKernel(1.1**2) * RBF(0.7), alpha=0.3**2, optimizer=None)
    peer.fit(X.numpy()[:, None], Y.numpy())
    new = torch.tensor([-2.5, 0.1, 1.0]).double()
    mean, sd = peer.predict(new.numpy()[:, None], return_std=True)
    found = PROGRAM.function(X, Y, new, *(v[None] for v in (z["rho"], z["alpha"], z["sigma"])))
    np.testing.assert_allclose(found.loc[0], mean, rtol=1e-4)
    np.testing.assert_allclose(found.scale[0], sd, rtol=1e-4)


def test_float32_is_as_exact_as_its_numbers():
    """log p of 400 points with little noise was off by nats in float32, its gradient had another sign, and predictions
    failed in a factorization."""
    x = torch.linspace(-3, 3, 400)
    at = {"rho": 1.0, "alpha": 2.0, "sigma": 0.003}
    program = GaussianProcess(jitter=1e-6)
    K = 4 * np.exp(-0.5 * (x[:, None].double() - x.double()).numpy() ** 2) + (0.003**2 + 4e-6) * np.eye(400)
    y = torch.tensor(np.linalg.cholesky(K) @ normal(400).double().numpy()).float()
    expected = stats.multivariate_normal(np.zeros(400), K).logpdf(y.double().numpy())
    z = {k: torch.tensor(v, requires_grad=True) for k, v in at.items()}
    site = next(t for t in terms(run(program, {"x": x, "y": y}, latents=z)) if t.site == "y")
    assert site.log_prob.dtype == torch.float32
    assert float(site.log_prob.detach()) == pytest.approx(expected, abs=0.002)
    white = np.linalg.solve(K, y.double().numpy())
    slope = 0.003 * (white @ white - np.trace(np.linalg.inv(K)))
    assert float(torch.autograd.grad(site.log_prob, z["sigma"])[0]) == pytest.approx(slope, rel=1e-4)
    new = torch.tensor([0.1, 4.0])
    cross = 4 * np.exp(-0.5 * (x[:, None].double() - new.double()).numpy() ** 2)
    found = program.function(x, y, new, *(v.detach()[None] for v in z.values()))
    np.testing.assert_allclose(found.loc[0], cross.T @ white, rtol=1e-4)
    sd = np.sqrt(4 - np.einsum("nm,nm->m", cross, np.linalg.solve(K, cross)))
    np.testing.assert_allclose(found.scale[0], sd, rtol=1e-3)


@pytest.mark.slow
def test_the_posterior_against_quadrature():
    grid = [
        (r, a, s) for r in np.geomspace(0.05, 15, 28) for a in np.linspace(0.1, 5, 24) for s in np.linspace(0.02, 2, 24)
    ]
    r, _, s = (np.array(v) for v in zip(*grid, strict=True))
    a = np.array([g[1] for g in grid])
    log_p = np.array([evidence(*g) for g in grid]) + stats.norm.logpdf(np.log(r))  # in log ρ
    log_p += stats.halfnorm(scale=2).logpdf(a) + stats.halfnorm.logpdf(s)
    w = special.softmax(log_p)
    tree = mcmc(PROGRAM, {"x": X, "y": Y}, chains=64, draws=100, warmup=200, prior=False)
    for name, value in (("rho", np.log(r)), ("sigma", s)):
        mean = (w * value).sum()
        sd = (w * (value - mean) ** 2).sum() ** 0.5
        draws = tree["posterior"][name].values
        draws = np.log(draws) if name == "rho" else draws
        assert abs(draws.mean() - mean) < 0.1 * sd and abs(draws.std() / sd - 1) < 0.1, name


def test_what_makes_no_process_is_said():
    with pytest.raises(PpgenError, match="scale=0"):
        GaussianProcess(scale=0)


class Curve(Program):
    """y ~ N(m, K) for a number m, K of that covariance; the entries are independent where it is "none"."""

    def __init__(self, covariance: str):
        super().__init__()
        self.covariance = covariance

    def model(self, x, y=None):
        m, eye = pyro.sample("m", dist.Normal(x.new_zeros(()), 1.0)), torch.eye(len(x)).to(x)
        if self.covariance == "none":
            return pyro.sample("y", dist.Normal(m + 0 * x, 0.3).to_event(1), obs=y)
        K = eye + (torch.exp(-((x[:, None] - x) ** 2)) if self.covariance == "full" else 0.0)
        return pyro.sample("y", dist.MultivariateNormal(m + 0 * x, K), obs=y)


@pytest.mark.parametrize(("covariance", "said"), [("full", True), ("diagonal", False), ("none", False)])
def test_predictions_of_a_new_function_were_called_those_of_the_fitted_one(covariance, said, caplog):
    """Given m and the fitted y the new y at the same x has variance below 1.5; a new vector has that of K, 2."""
    run = fit(Curve(covariance), {"x": X, "y": Y}, guide="AutoNormal", steps=0, precision="64-true")
    drawn = predict(run, {"x": X + 0.1}).predictions.y
    assert ("another such vector" in caplog.text) == said
    if said:
        variance = float(drawn.var("draw").mean())
        assert variance > 1.7, "the prior's"
