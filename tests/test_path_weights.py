"""Importance weights along a chain whose every part is known."""

import math

import pytest
import torch
from known import KnownChain

from ppgen.inference import chain_weights, importance_sample


def test_weights_of_whole_paths():
    """Their mean is the ELBO of the explicit chain, and the reverse chain is a good proposal for its own data."""
    known = KnownChain(steps=30, low=-4.0)
    x = known.data.sample((4000,))
    log_w = chain_weights(known, {"x": x}, particles=1)[0]
    assert abs(float(log_w.mean()) - known.expected_elbo()) < 4 * float(log_w.std()) / 4000**0.5
    cov = known.data.covariance_matrix + 2 * math.exp(-4) * torch.eye(2).double()
    target = torch.distributions.MultivariateNormal(known.mean, cov)
    good = importance_sample(known, lambda x: target.log_prob(x) + 3.0, 2000, steps=200, seed=0)
    assert good.ess > 400 and good.khat < 0.7
    assert float(good.log_w.logsumexp(0)) - math.log(2000) == pytest.approx(3.0, abs=0.15)
    far = importance_sample(known, lambda x: target.log_prob(x - 4.0), 2000, steps=200, seed=0)
    assert far.ess < 20


@pytest.mark.parametrize(("width", "least", "most"), [(0.5, -2.0, 0.4), (2.0, 0.4, 1.2)])
def test_the_shape_of_weights_to_a_narrower_and_a_wider_target(width, least, most):
    """Of a normal c times as wide the weights have the tail 1 - 1/c²: 0.75 at twice the width, none at half of it."""
    known = KnownChain(steps=30, low=-4.0)
    scale = torch.linalg.cholesky(known.data.covariance_matrix + 2 * math.exp(-4) * torch.eye(2).double())
    target = torch.distributions.MultivariateNormal(known.mean, scale_tril=width * scale)
    assert least < importance_sample(known, target.log_prob, 2000, steps=200, seed=0).khat < most
