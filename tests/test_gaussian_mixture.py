"""The mixture: its density by hand, its order, and a posterior that finds two clusters."""

import numpy as np
import pytest
import torch
from known import log_joint_at, normal
from scipy import special, stats

from ppgen import PpgenError
from ppgen.inference import mcmc
from ppgen.models import GaussianMixture

X = torch.cat([normal(40) - 2.0, 0.5 * normal(60, seed=1) + 2.0]).double()


def test_the_density():
    z = {"weights": [0.2, 0.5, 0.3], "first": -1.0, "gaps": [0.5, 2.0], "sigma": [0.5, 1.0, 2.0]}
    expected = (
        stats.dirichlet([1, 1, 1]).logpdf([0.2, 0.5, 0.3])
        + stats.norm(0, 5).logpdf(-1.0)
        + stats.halfnorm(scale=5).logpdf([0.5, 2.0, 0.5, 1.0, 2.0]).sum()
        + special.logsumexp(
            np.log([0.2, 0.5, 0.3]) + stats.norm([-1.0, -0.5, 1.5], [0.5, 1.0, 2.0]).logpdf(X.numpy()[:, None]), 1
        ).sum()
    )
    found = log_joint_at(GaussianMixture(3), {k: torch.tensor(v).double() for k, v in z.items()}, {"x": X})
    assert found == pytest.approx(expected, rel=1e-6)


def test_two_clusters():
    tree = mcmc(GaussianMixture(2), {"x": X}, chains=32, draws=100, warmup=200,
                engine="trace", predictive=False, prior=False)  # fmt: skip
    mu, w = tree["posterior"]["mu"].values, tree["posterior"]["weights"].values
    assert (np.diff(mu, axis=-1) > 0).all()
    for k, part in enumerate((X[:40], X[40:])):
        assert abs(mu[..., k].mean() - float(part.mean())) < 0.1
        assert abs(mu[..., k].std() - float(part.std()) / len(part) ** 0.5) < 0.05
    assert abs(w[..., 0].mean() - 41 / 102) < 0.02  # Beta(41, 61), the clusters being apart


def test_one_component_is_no_mixture():
    with pytest.raises(PpgenError, match="components=1"):
        GaussianMixture(1)
