"""Flow matching: the velocity on straight paths, and what its loss is the mean of."""

import pytest
import torch
from known import normal, subsampled
from scipy.optimize import linear_sum_assignment

import ppgen
from ppgen import PpgenError
from ppgen.inference import fit, impute, loglik, sample, sample_diffusion
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


def test_coupled_noise_is_a_permutation_of_least_distance():
    model, x, t = (
        FlowMatching(2, hidden=(8,), coupling="ot", loc=[1.0, 0.0], scale=[2.0, 1.0]),
        normal(12, 2),
        normal(3, 12),
    )
    t = t.sigmoid()
    torch.manual_seed(1)
    z = model.coupled(x, t)
    torch.manual_seed(1)
    noise, rows = torch.randn(3, 12, 2), model.encode(x)
    _, alpha, sigma = model.coefficients(t)
    used = (z - alpha * rows) / sigma
    for own, drawn in zip(used, noise, strict=True):
        assert torch.allclose(own.sort(0).values, drawn.sort(0).values, atol=1e-5)
        rows_of_least, noise_of_least = linear_sum_assignment(torch.cdist(rows, drawn).square())
        assert torch.equal(torch.as_tensor(rows_of_least), torch.arange(len(x)))
        assert torch.allclose(own, drawn[noise_of_least], atol=1e-5)
    assert FlowMatching(2, hidden=(8,)).coupled(x, t) is None


@torch.no_grad()
def test_noise_is_coupled_within_each_label():
    """Across labels, two clusters at -3 and 3 would take the noise below 0 and above it, where draws take all."""
    y = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0, 1, 1, 0, 1])
    x, t = 3.0 * (y[:, None] - 1) + 0.1 * normal(12, 1), torch.full((2, 12), 0.5)
    model = FlowMatching(1, hidden=(8,), coupling="ot", classes=2, loc=[0.0], scale=[1.0])
    _, alpha, sigma = model.coefficients(t)
    torch.manual_seed(1)
    used = (model.coupled(x, t, y=y) - alpha * x) / sigma
    torch.manual_seed(1)
    for own, drawn in zip(used, torch.randn(2, 12, 1), strict=True):
        for label in range(3):  # the last is a hidden one
            rows = (y == label).nonzero()[:, 0]
            order = x[rows].argsort(0)[:, 0]  # of least distance on a line: both in order
            assert torch.allclose(own[rows][order], drawn[rows].sort(0).values, atol=1e-5)


@pytest.mark.slow
def test_draws_of_a_label_after_coupled_training():
    y = torch.arange(2000) % 2
    x = (4.0 * y - 2.0 + 0.3 * normal(2000))[:, None]
    torch.manual_seed(0)
    model = FlowMatching(1, hidden=(32, 32), coupling="ot", classes=2)
    run = fit(model, {"x": x, "y": y}, steps=500, batch_size=128, lr=5e-3, schedule="cosine", engine="trace", seed=0)
    for label, mean in ((0, -2.0), (1, 2.0)):
        drawn = sample_diffusion(run, 2000, given={"y": label}, seed=0)
        assert abs(float(drawn.mean()) - mean) < 0.1 and abs(float(drawn.std()) - 0.3) < 0.06


def test_coupled_noise_is_trained_on_and_the_bound_is_of_fresh_noise():
    """The target is linear in the cost: its gradient flows through the coupled states only, and its value differs."""
    torch.manual_seed(0)
    model, x = FlowMatching(2, hidden=(8,), coupling="ot", loc=[0.0, 0.0], scale=[1.0, 1.0]), normal(200, 2)
    torch.nn.init.normal_(model.net.last.weight)
    drawn = subsampled(model.train(), {"x": x})
    assert drawn.target.requires_grad and not drawn.elbo.requires_grad
    torch.manual_seed(3)
    plain = subsampled(model.eval(), {"x": x})
    assert plain.elbo.requires_grad
    fresh = [float(subsampled(m, {"x": x}, 20).elbo.detach().mean()) for m in (model.train(), model.eval())]
    assert abs(fresh[0] / fresh[1] - 1) < 0.1


def test_what_needs_fresh_noise_is_refused():
    model = FlowMatching(2, hidden=(8,), coupling="ot")
    assert sample_diffusion(model, 3, "ddim", 2, seed=0).shape == (3, 2)
    assert torch.equal(sample_diffusion(model, 3, seed=0), sample_diffusion(model, 3, "dpmpp", 50, seed=0))
    for sampler, how, message in (
        ("ancestral", {}, "'ancestral' does not draw from FlowMatching as set; take ddim, heun"),
        ("ddim", {"eta": 1.0}, "without fresh noise; leave eta out"),
    ):
        with pytest.raises(PpgenError, match=message):
            sample_diffusion(model, 3, sampler, 2, **how)
    with pytest.raises(PpgenError, match="impute follows the steps of a diffusion"):
        impute(model, torch.tensor([[0.0, float("nan")]]))
    with pytest.raises(PpgenError, match="coupling='opt' .did you mean 'ot'"):
        FlowMatching(2, coupling="opt")


def test_draws_of_its_explicit_chain_are_warned_of(caplog):
    model = FlowMatching(2, hidden=(4,), coupling="ot", steps=9)
    sample(model, 2, seed=0)
    assert "draw by sample_diffusion(run)" in caplog.text
    caplog.clear()
    plain = FlowMatching(2, hidden=(4,), steps=9)
    sample(plain, 2, seed=0)
    x = {"x": normal(3, 2)}
    loglik(plain, x, particles=4)
    loglik(model, x, particles=4, ode=True)
    assert not caplog.text
    loglik(model, x, particles=4)
    assert "log p(x) of its draws is that of the ODE" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["eager", "compile"])
def test_coupled_paths_are_straighter(engine):
    """At one Euler step the draws of coupled training are many times closer to where the ODE ends."""
    x, off = ppgen.data.load("moons", "train"), []
    for coupling in ("independent", "ot"):
        torch.manual_seed(0)
        run = fit(
            FlowMatching(2, hidden=(32, 32), coupling=coupling), x, steps=300, batch_size=128, lr=5e-3, engine=engine
        )
        ends = [sample_diffusion(run, 500, sampler, n, seed=0) for sampler, n in (("heun", 40), ("ddim", 1))]
        off.append(float((ends[0] - ends[1]).norm(dim=-1).mean()))
    assert off[1] < off[0] / 3
