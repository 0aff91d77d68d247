"""Noise schedules: their ends, their derivative, their floats."""

import math

import pytest
import torch

from ppgen import PpgenError
from ppgen.chains.gaussian_chain import PROCESSES, shares
from ppgen.chains.schedules import SCHEDULES, make_schedule


@pytest.fixture(params=SCHEDULES)
def schedule(request):
    torch.manual_seed(0)
    made = make_schedule(request.param, -13.3, 5.0)
    for p in made.parameters():  # a learned one, away from its start
        p.data += 0.1 * torch.randn_like(p) * p.abs()
    return made.double()


def test_it_increases_between_its_ends(schedule):
    gamma = schedule(torch.linspace(0, 1, 1001, dtype=torch.double)).detach()
    assert torch.allclose(gamma[[0, -1]], torch.stack([schedule.low, schedule.high]).detach().double(), atol=1e-9)
    assert (gamma.diff() > 0).all()


def test_its_rate_is_its_derivative(schedule):
    t = torch.linspace(0, 1, 57, dtype=torch.double).requires_grad_()
    gamma, rate = schedule.with_rate(t)
    (slope,) = torch.autograd.grad(gamma.sum(), t)
    assert torch.allclose(rate, slope, rtol=1e-9)


def test_float32_tells_a_thousand_steps_apart(schedule):
    t = torch.linspace(0, 1, 1001)
    gamma = schedule(t.double()).detach()
    single = schedule.float()(t).detach()
    assert torch.allclose(single.double(), gamma, atol=2e-5) and (single.diff() > 0).all()


def test_published_values():
    t = torch.tensor([0.5], dtype=torch.double)
    cosine = make_schedule("cosine", -20.0, 20.0)
    assert float(cosine(t)) == pytest.approx(0.0, abs=1e-9)  # α² = cos²(π/4) = 1/2
    # DDPM's β from 0.1 to 20: α² = exp(-∫β), ∫β = 0.05 + 2.4875 at t = 1/2 of a schedule that is cut at t = 1
    end = 0.1 + 19.9 / 2
    linear = make_schedule("linear", -20.0, math.log(math.expm1(end)))
    assert float(torch.sigmoid(-linear(t))) == pytest.approx(math.exp(-(0.05 + 19.9 / 8)), rel=1e-5)
    # Karras et al., equation 5, at its defaults: σ from 0.002 to 80
    edm = make_schedule("edm", 2 * math.log(0.002), 2 * math.log(80.0))
    half = ((80 ** (1 / 7) + 0.002 ** (1 / 7)) / 2) ** 7
    assert float((edm(t) / 2).exp()) == pytest.approx(half, rel=1e-5)
    # straight paths: σ/α = t / (1 - t)
    assert float((make_schedule("ot", -20.0, 20.0)(t) / 2).exp()) == pytest.approx(1.0, rel=1e-6)
    # Jabri et al.: α² = (σ(3) - σ(6u - 3)) / (σ(3) - σ(-3))
    t = torch.tensor([0.3], dtype=torch.double)
    s = torch.sigmoid(torch.tensor([3.0, -3.0, 6 * 0.3 - 3], dtype=torch.double))
    found = torch.sigmoid(-make_schedule("sigmoid", -30.0, 30.0)(t))
    assert float(found) == pytest.approx(float((s[0] - s[2]) / (s[0] - s[1])), rel=1e-5)


@pytest.mark.parametrize("process", PROCESSES)
def test_processes(process):
    gamma = torch.linspace(-12, 9, 50, dtype=torch.double)
    alpha, sigma = shares(process, gamma)
    assert torch.allclose(2 * (sigma / alpha).log(), gamma)
    law = {
        "vp": alpha**2 + sigma**2,
        "ve": alpha,
        "sub-vp": alpha**2 + sigma,
        "ot": alpha + sigma,
    }[process]
    assert torch.allclose(law, torch.ones_like(law))


def test_errors():
    with pytest.raises(PpgenError, match="no schedule 'cosin'.*cosine"):
        make_schedule("cosin", -10, 5)
    with pytest.raises(PpgenError, match="low=5, high=-10"):
        make_schedule("linear", 5, -10)
