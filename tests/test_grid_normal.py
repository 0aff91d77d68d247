"""Values on a grid seen through noise: the likelihood, and the mean that a network's prior gives."""

import math

import pytest
import torch
from known import draws_agree, normal

from ppgen.distributions.grid_normal import GridNormal, levels_numbers, posterior_mean


@pytest.mark.parametrize("window", [None, 4])
def test_probabilities(window):
    loc = torch.tensor([-0.2, 0.0, 0.31, 0.97, 1.4], dtype=torch.double)
    d = GridNormal(loc, torch.tensor(0.04).double(), levels=17, window=window)
    values = d.enumerate_support()
    p = d.log_prob(values).exp()
    weight = (-((values - loc) ** 2) / (2 * 0.04**2)).exp()
    assert torch.allclose(p, weight / weight.sum(0), atol=1e-9)
    assert torch.allclose(d.mean, (p * values).sum(0)) and torch.allclose(
        d.variance, (p * (values - d.mean) ** 2).sum(0), atol=1e-9
    )
    torch.manual_seed(0)
    drawn = d.sample((20_000,))
    assert d.support.check(drawn).all()
    draws_agree(drawn[:, 2], d.mean[2], d.variance[2])


def test_gradients_are_finite_far_away():
    loc = torch.tensor([-30.0, 30.0], requires_grad=True)
    GridNormal(loc, 0.001, levels=256, window=2).log_prob(torch.tensor([1.0, 0.0])).sum().backward()
    assert torch.isfinite(loc.grad).all()


def brute(out, y, variance, atoms=(-1.0, 1.0)):
    """E[x | y] by summing over a fine grid of the prior's grey part, and its atoms."""
    *logits, m, log_s = out
    x = torch.linspace(-20, 20, 400_001, dtype=torch.double)
    density = torch.distributions.Normal(m, log_s.exp()).log_prob(x).exp() * (x[1] - x[0])
    w = torch.stack(logits).softmax(0)
    points = torch.cat([torch.tensor(atoms).double(), x])
    prior = torch.cat([w[:-1], w[-1] * density])
    posterior = prior * torch.exp(-((y - points) ** 2) / (2 * variance))
    return (posterior * points).sum() / posterior.sum()


@pytest.mark.parametrize("variance", [0.3, 4.0])
def test_the_posterior_mean_in_wide_noise(variance):
    for i in range(6):
        out, y = normal(5, seed=i).double() * 0.7, normal(1, seed=i + 50).double()
        found = posterior_mean(out, y, torch.tensor([variance]).double(), 17)
        assert torch.allclose(found, brute(out, y[0], variance), atol=1e-5)
        out = normal(7, seed=i).double()
        found = posterior_mean(out, y, torch.tensor([variance]).double(), 17, (0, 4, 15, 16))
        assert torch.allclose(found, brute(out, y[0], variance, (-1.0, -0.5, 0.875, 1.0)), atol=1e-5)


def test_the_posterior_mean_in_narrow_noise_is_a_level():
    y = torch.linspace(-1, 1, 17).double() + 0.004 * normal(17).double()
    found = posterior_mean(normal(5 * 17, seed=2).double(), y, torch.tensor([0.01**2]).double(), 17)
    assert torch.allclose(found, torch.linspace(-1, 1, 17).double(), atol=1e-4)


def test_of_two_levels():
    out, y, v = torch.tensor([0.4]).double(), torch.tensor([-0.3]).double(), torch.tensor([0.5]).double()
    odds = math.exp(2 * 0.4) * math.exp((-((-0.3 - 1) ** 2) + (-0.3 + 1) ** 2) / (2 * 0.5))
    assert float(posterior_mean(out, y, v, 2)) == pytest.approx((odds - 1) / (odds + 1))
    assert levels_numbers(2) == 1 and levels_numbers(256) == 5 and levels_numbers(256, [0, 7, 9]) == 6
