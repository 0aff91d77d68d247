"""DDPM: its schedule, loss and reverse step as the paper writes them."""

import torch
from known import normal

from ppgen.inference.diffusion.samplers import _usual
from ppgen.models import DDPM

BETA = torch.linspace(1e-4, 0.02, 1000).double()
KEPT = (1 - BETA).cumprod(0)  # ᾱ of x_1, ..., x_1000


def made(latents: int = 1000) -> DDPM:
    torch.manual_seed(0)
    model = DDPM(2, latents, hidden=(8,), loc=[0.0, 0.0], scale=[1.0, 1.0]).double().eval()
    torch.nn.init.normal_(model.net.last.weight)
    return model


def test_the_schedule_is_that_of_the_paper():
    """γ = log (1 − ᾱ) / ᾱ; z_0 is x_1, and z_999 is x_1000."""
    gamma = made().gamma(torch.linspace(0, 1, 1000).double())[:, 0]
    exact = ((1 - KEPT) / KEPT).log()
    assert (abs(gamma - exact) < 0.05).all() and abs(gamma[0] - exact[0]) < 1e-3 and abs(gamma[-1] - exact[-1]) < 1e-3


@torch.no_grad()
def test_the_reverse_step_is_algorithm_2():
    """With β_t and ᾱ_t read off from our own curve."""
    model, z = made(10), normal(4, 2).double()
    for i in range(1, 10):
        s, t = (i - 1) / 9, i / 9
        _, alpha_t, sigma_t = model.coefficients(t)
        _, alpha_s, sigma_s = model.coefficients(s)
        beta = 1 - (alpha_t / alpha_s) ** 2
        noise = model.net(z, model.gamma(t)[0].sub(model.range[0]).div(model.range[1] - model.range[0]).expand(4))
        mean = (z - beta / sigma_t * noise) / (1 - beta).sqrt()
        p = model.reverse(z, s, t).base_dist
        torch.testing.assert_close(p.loc, mean)
        torch.testing.assert_close(p.scale**2, (beta * sigma_s**2 / sigma_t**2).expand(4, 2))


@torch.no_grad()
def test_the_objective_is_half_of_l_simple():
    model, x, noise = made(8), normal(7, 2).double(), normal(7, 2, seed=1).double()
    t = torch.arange(1, 8).double() / 7
    _, alpha, sigma = model.coefficients(t)
    z = alpha * x + sigma * noise
    ours = model.steps * model.cost(x, z, t - 1 / 7, t) * model.weight(t - 1 / 7, t)
    u = (model.gamma(t)[:, 0] - model.range[0]) / (model.range[1] - model.range[0])
    torch.testing.assert_close(ours, 0.5 * ((noise - model.net(z, u)) ** 2).sum(-1))


def test_few_latents_are_drawn_by_the_chain():
    assert _usual(made(10)) == ("ancestral", 9) and _usual(made(1000)) == ("dpmpp_sde", 100)
