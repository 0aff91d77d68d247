"""Radon: the density against scipy, the posterior with the intercepts integrated out by hand, names of counties."""

import numpy as np
import pytest
import torch
from known import log_joint_at, normal
from scipy import special, stats

from ppgen import PpgenError
from ppgen.inference import mcmc
from ppgen.models import Radon

COUNTY = torch.arange(30) % 3
FLOOR = (normal(30, seed=5) > 0).double()
Y = (1.0 - 0.7 * FLOOR + torch.tensor([0.5, 0.0, -0.6])[COUNTY] + 0.5 * normal(30, seed=6)).double()
DATA = {"county": COUNTY, "floor": FLOOR, "y": Y}


def test_the_density():
    z = {"mu": 0.9, "b": -0.5, "tau": 0.4, "sigma": 0.6, "z": [1.0, 0.1, -1.2]}
    z = {k: torch.tensor(v).double() for k, v in z.items()}
    alpha = 0.9 + 0.4 * np.array([1.0, 0.1, -1.2])
    expected = (
        stats.norm(0, 10).logpdf([0.9, -0.5]).sum()
        + stats.halfcauchy.logpdf([0.4, 0.6]).sum()
        + stats.norm.logpdf([1.0, 0.1, -1.2]).sum()
        + stats.norm(alpha[COUNTY] - 0.5 * FLOOR.numpy(), 0.6).logpdf(Y.numpy()).sum()
    )
    assert log_joint_at(Radon(3), z, DATA) == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_the_posterior_against_quadrature():
    """Given τ and σ all else is jointly normal: the mean of b on a grid of the two."""
    n, Z = 30, np.eye(3)[COUNTY.numpy()]
    M = np.stack([np.ones(n), FLOOR.numpy()], 1)
    log_w, mean, second = [], [], []
    for t in np.linspace(0.02, 8, 80):
        for s in np.linspace(0.25, 1.1, 50):
            noise = t**2 * Z @ Z.T + s**2 * np.eye(n)
            log_w.append(
                stats.multivariate_normal(np.zeros(n), noise + 100 * M @ M.T).logpdf(Y.numpy())
                + stats.halfcauchy.logpdf([t, s]).sum()
            )
            cov = np.linalg.inv(M.T @ np.linalg.solve(noise, M) + np.eye(2) / 100)
            mean.append((cov @ M.T @ np.linalg.solve(noise, Y.numpy()))[1])
            second.append(cov[1, 1] + mean[-1] ** 2)
    w = special.softmax(log_w)
    exact = (w * mean).sum()
    sd = ((w * second).sum() - exact**2) ** 0.5
    tree = mcmc(Radon(3, names=["AITKIN", "ANOKA", "BECKER"]), DATA, chains=64, draws=200, warmup=300)
    b = tree["posterior"]["b"].values
    assert abs(b.mean() - exact) < 0.06 * sd and abs(b.std() / sd - 1) < 0.06
    assert list(tree["posterior"]["alpha"].coords["county"].values) == ["AITKIN", "ANOKA", "BECKER"]
    post = tree["posterior"]
    assert np.allclose(post["alpha"], post["mu"] + post["tau"] * post["z"])


def test_counties_are_whole_numbers():
    assert Radon.from_data(DATA) == {"counties": 3}
    with pytest.raises(PpgenError, match="whole numbers"):
        Radon.from_data({"county": Y})
