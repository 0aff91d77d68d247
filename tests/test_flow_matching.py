"""Flow matching: the velocity on straight paths, and what its loss is the mean of."""

import torch
from known import normal, subsampled

from ppgen.models import FlowMatching


def matched() -> FlowMatching:
    torch.manual_seed(0)
    model = FlowMatching(2, hidden=(8,), loc=[0.0, 0.0], scale=[1.0, 1.0]).eval()
    torch.nn.init.normal_(model.net.last.weight)
    return model


def test_flow_matching_is_the_limit_on_straight_paths():
    model = matched()
    z, t = normal(4, 2), torch.tensor([0.2, 0.5, 0.7, 0.9])
    gamma, alpha, sigma = model.coefficients(t)
    v = (z - model.denoise(z, t)) / sigma  # z = x + σ v on a straight path
    u = (gamma[:, 0] - model.range[0]) / (model.range[1] - model.range[0])
    assert torch.allclose(alpha + sigma, torch.ones(4, 1)) and model.limit
    unit = (alpha**2 + sigma**2).sqrt()
    assert torch.allclose(v, model.net(z / unit, u), atol=1e-5)


@torch.no_grad()
def test_the_objective_is_the_squared_error_of_the_velocity():
    """½ E |v − (ε − x)|² over times uniform in the schedule's own, but for the ends, which no network changes."""
    model, x = matched(), normal(1, 2).expand(40_000, 2)
    drawn = subsampled(model, {"x": x})
    ours = drawn.elbo - drawn.target  # the terms of the ends cancel
    t = torch.rand(len(x))
    _, alpha, sigma = model.coefficients(t)
    noise = torch.randn(x.shape)
    z = alpha * x + sigma * noise
    v = (z - model.denoise(z, t)) / sigma
    loss = 0.5 * ((v - (noise - x)) ** 2).sum(-1)
    cost = model.rate(x, z, t)
    theirs = loss - cost
    error = (ours.var() + theirs.var()).div(len(x)).sqrt()
    assert abs(float(ours.mean() - theirs.mean())) < 4.5 * float(error)
