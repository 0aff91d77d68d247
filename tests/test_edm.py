"""EDM: its levels, loss and units as the paper writes them."""

import math

import torch
from known import normal
from torch.distributions import Normal

from ppgen.models import EDM


def test_the_levels_of_its_schedule():
    model, n = EDM(2, hidden=(4,)).double(), 18
    times = [1.0] + [s for s, _ in model.grid(n)]
    sigma = torch.stack([(model.gamma(t) / 2).exp()[0] for t in times])
    i = torch.arange(n + 1).double() / n
    exact = (80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close(sigma.detach(), exact, rtol=1e-6, atol=0)


@torch.no_grad()
def test_the_objective_is_half_of_the_weighted_loss():
    """½ λ(σ) |D − x|² times the density of log σ, and the derivative of log σ by the time."""
    torch.manual_seed(0)
    model = EDM(2, hidden=(8,), loc=[0.0, 0.0], scale=[1.0, 1.0]).double().eval()
    torch.nn.init.normal_(model.net.last.weight)
    x, noise, t = normal(4, 2).double(), normal(4, 2, seed=1).double(), torch.tensor([0.1, 0.4, 0.6, 0.9]).double()
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    sigma = (low + t * (high - low))[:, None] ** 7
    slope = 7 * (high - low) / (low + t * (high - low))
    noisy = x + sigma * noise
    skip, out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / (sigma**2 + 0.25).sqrt()
    level = (2 * sigma.log() - 2 * math.log(0.002)) / (2 * math.log(80 / 0.002))
    guess = skip * noisy + out * model.net(noisy / (sigma**2 + 0.25).sqrt(), level[:, 0])
    torch.testing.assert_close(model.denoise(noisy, t), guess)
    loss = 0.5 * ((sigma**2 + 0.25) / (0.5 * sigma) ** 2 * (guess - x) ** 2).sum(-1)
    density = Normal(-1.2, 1.2).log_prob(sigma[:, 0].log()).exp()
    torch.testing.assert_close(model.rate(x, noisy, t) * model.weight(t, t), loss * density * slope)


def test_continuous_data_have_a_standard_deviation_of_one_half():
    x = 3 + 7 * normal(500, 2)
    for model in (EDM(**EDM.from_data({"x": x}), hidden=(4,)), EDM(2, hidden=(4,))):
        z = model.prepare({"x": x}).encode(x)
        torch.testing.assert_close(z.std(0), torch.full((2,), 0.5), rtol=2e-3, atol=0)
        assert abs(float(z.mean())) < 1e-3
    assert math.isclose(model.range[0], 2 * math.log(0.002))
