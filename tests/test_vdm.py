"""VDM: the objective is the ELBO, ½ E γ'(t) |ε − ε̂|² between its ends."""

import math

import torch
from known import grey, normal

from ppgen.models import VDM


@torch.no_grad()
def test_the_objective_is_the_bound():
    torch.manual_seed(0)
    model = VDM(2, hidden=(8,), loc=[0.0, 0.0], scale=[1.0, 1.0]).double().eval()
    torch.nn.init.normal_(model.net.last.weight)
    torch.nn.init.normal_(model.schedule.weight)
    assert model.limit and model.weighting == "elbo"
    x, noise, t = normal(4, 2).double(), normal(4, 2, seed=1).double(), torch.tensor([0.1, 0.4, 0.6, 0.9]).double()
    gamma, slope = model.schedule.with_rate(t)
    around = [model.schedule(t + h) for h in (-1e-5, 1e-5)]
    torch.testing.assert_close(slope, (around[1] - around[0]) / 2e-5, rtol=1e-6, atol=0)
    z = torch.sigmoid(-gamma).sqrt()[:, None] * x + torch.sigmoid(gamma).sqrt()[:, None] * noise
    guess = model.net(z, (gamma + 13.3) / 18.3)
    torch.testing.assert_close(model.rate(x, z, t), 0.5 * slope * ((noise - guess) ** 2).sum(-1))


def test_the_papers_waves_are_of_two_levels_and_one():
    images = {"x": torch.arange(256).repeat(2, 1) / 255}
    assert VDM.from_data(images)["fourier"] == [7, 8] and "fourier" not in VDM.from_data({"x": grey(12, 3)})
    assert VDM(**VDM.from_data({"x": grey(12, 3)}), hidden=(8,)).prediction == "noise"


@torch.no_grad()
def test_probabilities_of_a_held_schedule_are_those_of_a_learned_one():
    """Held (`freeze=True`) it was taken for one that had never moved, and the levels for the few with mass there."""
    program = VDM(2, hidden=(4,), likelihood="discrete", levels=256).double()
    program.schedule.low.fill_(-6.0)
    z = torch.tensor([[0.1, -0.7]]).double()
    every = torch.arange(256).double()[:, None].expand(-1, 2) / 255
    sd, mean = math.exp(-3.0) / 2, 0.5 + 0.5 * z / program.coefficients(0.0)[1]
    exact = torch.distributions.Normal(mean, sd).log_prob(every).log_softmax(0).sum(-1)
    for held in (False, True):
        program.requires_grad_(not held)
        torch.testing.assert_close(program.likelihood(z).log_prob(every), exact, atol=1e-6, rtol=1e-6)
