"""Log-likelihood by the probability-flow ODE: where the density is known, and against the ELBO."""

import math

import pytest
import torch
from known import KnownChain, draws_agree, normal

from ppgen.chains.gaussian_chain import PROCESSES
from ppgen.inference.diffusion import ode
from ppgen.inference.diffusion.ode import _log_density, flow, ode_loglik
from ppgen.inference.diffusion.samplers import sample_diffusion
from ppgen.models import Diffusion


@pytest.mark.parametrize("process", ["vp", "ve", "sub-vp", "ot"])
def test_exact_on_a_gaussian(process):
    known = KnownChain(process=process, low=-12.0, high=12.0)
    x = known.data.sample((50,))
    found = ode_loglik(known, {"x": x}, tolerance=1e-8)
    assert found.kind == "exact" and (found.se == 0).all()
    # The map keeps what is whitened: y_1 - m = √(S_1 / S_0) (y_0 - m), S = C + e^γ, in the axes of C.
    values, axes = torch.linalg.eigh(known.data.covariance_matrix)
    (g0, _, _), (g1, a1, _) = known.coefficients(0.0), known.coefficients(1.0)
    ratio = ((values + g1.exp()) / (values + g0.exp())).sqrt()
    end = a1 * (known.mean + (x - known.mean) @ axes * ratio @ axes.T)
    exact = known.base().log_prob(end) + ratio.log().sum() + 2 * a1.log()
    assert torch.allclose(torch.as_tensor(found.values), exact, atol=1e-6)
    assert torch.allclose(exact, known.data.log_prob(x), atol=0.02)  # the ends are not at infinity


@pytest.mark.parametrize("low", [-3.0, -8.0])
def test_its_density_is_of_draws_without_the_noise_of_the_likelihood(low, caplog):
    """Of N(0, 1): z_0 / α_0 has a variance of 1 + e^γ, and a draw of x one of 1 + 2 e^γ."""
    known = KnownChain(mean=(0.0,), factor=((1.0,),), low=low, high=10.0)
    x = torch.linspace(-2, 2, 5).double()[:, None]
    found = torch.as_tensor(ode_loglik(known, {"x": x}, tolerance=1e-7).values)
    once, twice = (torch.distributions.Normal(0.0, (1 + k * math.exp(low)) ** 0.5) for k in (1, 2))
    torch.testing.assert_close(found, once.log_prob(x[:, 0]), atol=1e-4, rtol=0)
    drawn = [sample_diffusion(known, 40_000, "heun", 60, mean=mean, seed=0) for mean in (True, False)]
    draws_agree(drawn[0], 0.0, once.variance)
    draws_agree(drawn[1], 0.0, twice.variance)
    assert ("draws by mean=True" in caplog.text) == (low == -3.0)


def test_an_unbiased_estimate_where_the_trace_is_drawn(monkeypatch):
    """Of a trace whose integral is ½ log det C: 0.7 nats, told to 0.06."""
    known = KnownChain(low=-12.0, high=12.0)
    x = known.data.sample((4,))
    exact = ode_loglik(known, {"x": x}).values
    monkeypatch.setattr(ode, "EXACT", 1)
    torch.manual_seed(0)
    found = ode_loglik(known, {"x": x}, draws=8000)
    off = torch.as_tensor(found.values) - torch.as_tensor(exact)
    assert found.kind == "estimate" and (off.abs() < 4.5 * torch.as_tensor(found.se) + 1e-4).all()
    assert (4.5 * found.se < 0.06).all()


def test_there_and_back():
    known = KnownChain()
    z = normal(10, 2).double()
    assert torch.allclose(flow(known, flow(known, z, 0.0, 0.7, tolerance=1e-9), 0.7, 0.0, tolerance=1e-9), z, atol=1e-6)


def test_the_density_is_normalised():
    """Whatever the network: a density on the plane, summed over a grid."""
    torch.manual_seed(0)
    model = Diffusion(2, hidden=(8,), gamma_low=-4.0, gamma_high=4.0, loc=[0, 0], scale=[1, 1]).double().eval()
    torch.nn.init.normal_(model.net.last.weight, std=0.3)
    side = torch.linspace(-30, 30, 121).double()
    h = torch.cartesian_prod(side, side)
    total = _log_density(model, h).exp().sum() * (side[1] - side[0]) ** 2
    assert float(total) == pytest.approx(1.0, abs=1e-3)


def test_units_of_the_data():
    torch.manual_seed(0)
    plain = Diffusion(2, hidden=(8,), loc=[0, 0], scale=[1, 1]).double().eval()
    other = Diffusion(2, hidden=(8,), loc=[3, 1], scale=[2, 5]).double().eval()
    other.net.load_state_dict(plain.net.state_dict())
    x = normal(6, 2).double()
    a = ode_loglik(plain, {"x": x}).values
    b = ode_loglik(other, {"x": x * torch.tensor([2.0, 5.0]) + torch.tensor([3.0, 1.0])}).values
    assert b + math.log(10) == pytest.approx(a, abs=1e-3)


def test_a_lower_bound_where_x_is_discrete():
    """All levels of one value: the bounds of their probabilities sum to at most 1, and nearly so."""
    torch.manual_seed(0)
    model = Diffusion(1, hidden=(8,), likelihood="discrete", levels=5, gamma_high=8.0).double().eval()
    x = torch.linspace(0, 1, 5).double()[:, None]
    found = ode_loglik(model, {"x": x}, draws=2000, tolerance=1e-4)
    total = torch.as_tensor(found.values).exp().sum()
    assert found.kind == "lower" and 0.5 < float(total) < 1.0


@pytest.mark.parametrize("process", PROCESSES)
def test_probabilities_of_all_levels_sum_to_one(process):
    """A draw of the bound is log w with E w = P(x): an equality, whatever the network and however wide the noise."""
    torch.manual_seed(0)
    how = {"process": process, "prediction": "data", "gamma_low": 1.0, "gamma_high": 5.0}
    model = Diffusion(1, hidden=(8,), likelihood="discrete", levels=5, **how).double().eval()
    torch.nn.init.normal_(model.net.last.weight, std=0.3)
    x = torch.linspace(0, 1, 5).double()[:, None].repeat(2000, 1)
    found = ode_loglik(model, {"x": x}, draws=1, tolerance=1e-4)
    total = torch.as_tensor(found.values).exp().reshape(2000, 5).sum(1)
    se = float(total.std()) / 2000**0.5
    assert found.kind == "lower" and se < 0.005
    assert abs(float(total.mean()) - 1) < 4.5 * se


@pytest.mark.parametrize("kind", ["estimate", "lower"])
def test_standard_errors_are_the_spread_of_what_is_drawn(kind, monkeypatch):
    """Of one row many times over: the variance of its values is the mean of their squared standard errors."""
    torch.manual_seed(0)
    if kind == "estimate":
        monkeypatch.setattr(ode, "EXACT", 1)
        model = KnownChain(low=-12.0, high=12.0)
        x = model.data.sample((1,)).repeat(8000, 1)
    else:
        model = Diffusion(1, hidden=(8,), likelihood="discrete", levels=5, gamma_high=5.0).double().eval()
        x = torch.full((8000, 1), 0.25).double()
    found = ode_loglik(model, {"x": x}, draws=4, tolerance=1e-3)
    assert found.kind == kind
    assert found.values.var(ddof=1) / (found.se**2).mean() == pytest.approx(1.0, abs=0.1)
