"""Linear regression: the posterior by quadrature over the noise, the horseshoe's density, what is refused."""

import numpy as np
import pytest
import torch
from known import chains_agree, log_joint_at, normal
from scipy import special, stats

from ppgen import PpgenError
from ppgen.inference import mcmc
from ppgen.models import LinearRegression

X = normal(25, 2).double()
Y = (1.0 + X @ torch.tensor([2.0, -1.0]).double() + 0.5 * normal(25, seed=1)).double()


def exact() -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of (α, β_1, β_2): given σ they are conjugate; σ is on a grid."""
    Z = np.concatenate([np.ones((25, 1)), X.numpy()], 1)
    prior = np.diag([10.0**2, 2.5**2, 2.5**2])
    grid, log_w, means, seconds = np.linspace(0.2, 2.0, 600), [], [], []
    for s in grid:
        log_w.append(
            stats.multivariate_normal(np.zeros(25), Z @ prior @ Z.T + s**2 * np.eye(25)).logpdf(Y.numpy())
            + stats.halfcauchy(scale=2.5).logpdf(s)
        )
        cov = np.linalg.inv(np.linalg.inv(prior) + Z.T @ Z / s**2)
        means.append(cov @ Z.T @ Y.numpy() / s**2)
        seconds.append(cov.diagonal() + means[-1] ** 2)
    w = special.softmax(log_w)[:, None]
    mean = (w * means).sum(0)
    return mean, (w * seconds).sum(0) - mean**2


HOW = {"engine": "trace", "predictive": False, "prior": False}


def test_the_posterior_against_quadrature():
    tree = mcmc(LinearRegression(2, names=["a", "b"]), {"x": X, "y": Y}, chains=64, draws=150, warmup=200, **HOW)
    post = tree["posterior"]
    assert list(post["beta"].coords["feature"].values) == ["a", "b"]
    assert tree["constant_data"]["x"].dims == ("data", "feature")
    mean, var = exact()
    chains_agree(post["alpha"].values, mean[0], var[0])
    for i in range(2):
        chains_agree(post["beta"].values[..., i], mean[i + 1], var[i + 1])


def test_the_density_under_the_horseshoe():
    program = LinearRegression(2, prior="horseshoe", scale=0.5)
    z = {"alpha": 0.3, "tau": 0.7, "lambda": [0.4, 2.0], "z": [1.0, -0.2], "sigma": 0.8}
    z = {k: torch.tensor(v).double() for k, v in z.items()}
    beta = (z["tau"] * z["lambda"] * z["z"]).numpy()
    expected = (
        stats.norm(0, 10).logpdf(0.3)
        + stats.halfcauchy(scale=0.5).logpdf(0.7)
        + stats.halfcauchy.logpdf([0.4, 2.0]).sum()
        + stats.norm.logpdf([1.0, -0.2]).sum()
        + stats.halfcauchy(scale=2.5).logpdf(0.8)
        + stats.norm(0.3 + X.numpy() @ beta, 0.8).logpdf(Y.numpy()).sum()
    )
    assert log_joint_at(program, z, {"x": X, "y": Y}) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("options", [{"features": 0}, {"features": 2, "prior": "flat"}, {"features": 2, "scale": 0.0}])
def test_what_makes_no_regression_is_said(options):
    with pytest.raises(PpgenError, match="LinearRegression got"):
        LinearRegression(**options)
    with pytest.raises(PpgenError, match="needs a column x"):
        LinearRegression.from_data({"x": torch.zeros(3)})
