"""Latents integrated out by Laplace's method: exact where they are normal given the rest, and said where not."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from pyro.distributions import Bernoulli, HalfCauchy, MultivariateNormal, Normal, Poisson

from ppgen import PpgenError, Program
from ppgen.engine import log_joint
from ppgen.engine.density.laplace import LaplaceMarginal, _positive, _root
from ppgen.inference import load_findings, mcmc
from ppgen.inference.evaluation.estimates import Evidence
from ppgen.inference.sampling.kernels import Draws
from ppgen.inference.sampling.mcmc import _completed

Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]).double()
S = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]).double()


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def schools(y, s):
    mu = pyro.sample("mu", Normal(0.0, 5.0))
    tau = pyro.sample("tau", HalfCauchy(5.0))
    with pyro.plate("J", len(y)):
        theta = pyro.sample("theta", Normal(mu, tau))
        pyro.sample("y", Normal(theta, s), obs=y)


def exact_schools(u):
    """log p(y, mu, tau) of u = (mu, log tau): theta in closed form."""
    mu, tau = u[:, 0], u[:, 1].exp()
    prior = Normal(0.0, 5.0).log_prob(mu) + HalfCauchy(5.0).log_prob(tau) + u[:, 1]
    return prior + Normal(mu[:, None], (tau[:, None] ** 2 + S**2).sqrt()).log_prob(Y).sum(-1)


def marginal(model, data, *inner):
    return LaplaceMarginal(log_joint(Program.from_pair(model), data), inner)


def agrees(m, exact, u, tol=1e-10):
    value, gradient = m.value_and_grad(u)
    x = u.clone().requires_grad_()
    target = exact(x)
    assert torch.allclose(value, target, atol=tol), (value - target).abs().max()
    assert torch.allclose(gradient, torch.autograd.grad(target.sum(), x)[0], atol=10 * tol)


def test_normal_latents_are_integrated_out_exactly():
    torch.manual_seed(0)
    m = marginal(schools, {"y": Y, "s": S}, "theta")
    assert m.labels == ("mu", "tau") and m.dim == 2
    agrees(m, exact_schools, torch.randn(16, 2))
    _, log_w = m.complete(torch.randn(16, 2), torch.Generator().manual_seed(0))
    assert float(log_w.abs().max()) < 0.06, "the sums over candidates are the integrals, of all eight blocks"


def test_draws_given_the_rest_are_those_of_the_conditional():
    m = marginal(schools, {"y": Y, "s": S}, "theta")
    u = torch.tensor([[3.0, 1.0]]).expand(4000, 2)
    theta = m.whole.unflatten(m.complete(u, torch.Generator().manual_seed(0))[0])["theta"]
    precision = 1 / S**2 + math.exp(-2.0)
    mean, sd = (Y / S**2 + 3.0 * math.exp(-2.0)) / precision, precision**-0.5
    assert (((theta.mean(0) - mean) / sd).abs() < 5 / 4000**0.5).all()
    assert ((theta.std(0) / sd - 1).abs() < 5 / 8000**0.5).all()
    assert theta.T.corrcoef().fill_diagonal_(0.0).abs().max() < 5 / 4000**0.5


def test_blocks_of_correlated_slopes():
    """A vector of two for each group: blocks of two, in closed form."""
    y = torch.tensor([[1.0, 2.0], [0.5, -1.0], [2.0, 0.3]])
    cov = torch.tensor([[1.0, 0.6], [0.6, 2.0]])

    def model(y):
        m = pyro.sample("m", Normal(0.0, 1.0))
        with pyro.plate("groups", 3):
            b = pyro.sample("b", MultivariateNormal(m * torch.ones(2), cov))
            pyro.sample("y", Normal(b, 0.5).to_event(1), obs=y)

    def exact(u):
        whole = MultivariateNormal(torch.zeros(2), cov + 0.25 * torch.eye(2))
        return Normal(0.0, 1.0).log_prob(u[:, 0]) + whole.log_prob(y - u[:, None]).sum(-1)

    m = marginal(model, {"y": y}, "b")
    assert [tuple(row.shape) for row, _ in m._blocks] == [(3, 2, 2)] and len(m._colors) == 2
    agrees(m, exact, torch.randn(8, 1))


def test_latents_that_depend_on_each_other_are_one_block():
    i = torch.arange(6.0)
    K = (-0.5 * (i[:, None] - i) ** 2).exp() + 1e-4 * torch.eye(6)
    y = torch.sin(i)

    def model(y):
        s = pyro.sample("s", HalfCauchy(1.0))
        f = pyro.sample("f", MultivariateNormal(torch.zeros(6), s**2 * K))
        pyro.sample("y", Normal(f, 0.3).to_event(1), obs=y)

    def exact(u):
        s = u[:, 0].exp()
        cov = s[:, None, None] ** 2 * K + 0.09 * torch.eye(6)
        return HalfCauchy(1.0).log_prob(s) + u[:, 0] + MultivariateNormal(torch.zeros(6), cov).log_prob(y)

    m, u = marginal(model, {"y": y}, "f"), 0.5 * torch.randn(8, 1)
    agrees(m, exact, u, 1e-8)
    assert float(m.complete(u, torch.Generator().manual_seed(0))[1].abs().max()) < 1e-6, "it is normal given s"


def test_counts_by_quadrature():
    """Poisson groups: near the exact integral, and the derivative is that of what is computed."""
    y = torch.tensor([0.0, 3.0, 12.0, 7.0])

    def model(y):
        m = pyro.sample("m", Normal(0.0, 2.0))
        with pyro.plate("groups", 4):
            a = pyro.sample("a", Normal(m, 0.7))
            pyro.sample("y", Poisson(a.exp()), obs=y)

    m = marginal(model, {"y": y}, "a")
    u = torch.tensor([[0.5], [1.5], [2.0]])
    value, gradient = m.value_and_grad(u)
    grid = torch.linspace(-8, 8, 8001)
    each = Normal(u[:, :, None], 0.7).log_prob(grid) + Poisson(grid.exp()).log_prob(y[:, None])[None]
    integral = each.logsumexp(-1).sum(-1) + 4 * math.log(16 / 8000) + Normal(0.0, 2.0).log_prob(u[:, 0])
    assert (value - integral).abs().max() < 0.1
    h = 1e-4
    slope = (m.value_and_grad(u + h)[0] - m.value_and_grad(u - h)[0]) / (2 * h)
    assert torch.allclose(slope, gradient[:, 0], atol=1e-5)


def few(y):
    """Groups with one row each of zeros and ones: the conditional of each is no normal."""
    m = pyro.sample("m", Normal(0.0, 2.0))
    with pyro.plate("groups", len(y)):
        a = pyro.sample("a", Normal(m, 2.0))
        pyro.sample("y", Bernoulli(logits=a), obs=y)


def test_draws_are_resampled_by_what_laplaces_method_is_off_by():
    """Thirty groups of one row each, and m on an even grid: after weighing it is the exact posterior's, by quadrature.

    What is off adds up over groups: without weights m is the grid's.
    """
    y = (torch.arange(30) % 3 == 0).double()
    m = marginal(few, {"y": y}, "a")
    order = torch.randperm(3200, generator=torch.Generator().manual_seed(1))
    u = torch.linspace(-1.0, 1.0, 3200)[order].reshape(50, 64, 1)
    grid = torch.linspace(-14, 14, 401)
    each = Normal(u.reshape(-1, 1), 2.0).log_prob(grid)
    ones, zeros = ((each + torch.nn.functional.logsigmoid(s * grid)).logsumexp(-1) for s in (1.0, -1.0))
    exact = Normal(0.0, 2.0).log_prob(u.flatten()) + 10 * ones + 20 * zeros + 30 * math.log(28 / 400)
    log_w = exact - torch.cat([m.value_and_grad(part)[0] for part in u]).flatten()
    drawn, said = _completed(m, Draws(u, {}, 0, torch.zeros(1), "dense", Evidence(0.0, 0.0)), 0)
    expected = (log_w.reshape(50, 64).softmax(0) * u[..., 0]).sum(0)
    off = drawn.u[..., list(m.places)].mean(0)[:, 0] - expected
    se = float(off.std()) / 8
    assert abs(float(off.mean())) < 4 * se < float(expected.mean() - u.mean()) / 2
    assert drawn.evidence.log_z == pytest.approx(float(log_w.exp().mean().log()), abs=0.01)
    assert said.measure == "laplace"


def test_weighted_draws_are_those_of_the_conditional_where_it_is_not_normal():
    y = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0])
    grid = torch.linspace(-20, 20, 8001)
    u = torch.tensor([[0.5], [-1.0]])
    each = Normal(u[:, :, None], 2.0).log_prob(grid) + Bernoulli(logits=grid).log_prob(y[:, None])[None]
    integral = (each.logsumexp(-1) + math.log(40 / 8000)).sum(-1) + Normal(0.0, 2.0).log_prob(u[:, 0])
    mean = (each.softmax(-1) * grid).sum(-1)
    sd = ((each.softmax(-1) * grid**2).sum(-1) - mean**2).sqrt()
    m = marginal(few, {"y": y}, "a")
    value, _ = m.value_and_grad(u)
    assert ((value - integral).abs() > 0.02).all(), "Laplace's method alone is off"
    n = 4096
    for i in range(2):
        whole, log_w = m.complete(u[i].expand(n, 1), torch.Generator().manual_seed(i))
        assert float(torch.logsumexp(log_w, 0) - math.log(n) + value[i]) == pytest.approx(float(integral[i]), abs=2e-3)
        assert float(log_w.std()) < 0.05, "one number for every draw, but for the few points of each sum"
        a, w = m.whole.unflatten(whole)["a"], log_w.softmax(0)
        assert ((w @ a - mean[i]).abs() < 5 * sd[i] / n**0.5).all()
        assert ((w @ (a - mean[i]) ** 2).sqrt() / sd[i] - 1).abs().max() < 0.08  # 5 s.e. where the kurtosis is 3


@pytest.mark.parametrize("groups", [2, 1])
def test_weights_of_blocks_of_two(groups):
    """An intercept and a slope of each group, with counts: by quadrature over both."""
    x, y = torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 3.0]])[-groups:]

    def model(y):
        m = pyro.sample("m", Normal(0.0, 1.0))
        with pyro.plate("groups", groups):
            a, b = pyro.sample("a", Normal(m, 1.0)), pyro.sample("b", Normal(0.0, 1.0))
            pyro.sample("y", Poisson((a[:, None] + b[:, None] * x).exp()).to_event(1), obs=y)

    grid = torch.linspace(-7, 7, 561)
    a, b = grid[:, None], grid
    prior = Normal(0.3, 1.0).log_prob(a) + Normal(0.0, 1.0).log_prob(b)
    rate = (a[..., None] + b[..., None] * x).exp()
    each = [(prior + Poisson(rate).log_prob(row).sum(-1)).logsumexp((0, 1)) + 2 * math.log(14 / 560) for row in y]
    exact = float(sum(each)) + float(Normal(0.0, 1.0).log_prob(torch.tensor(0.3)))
    m = marginal(model, {"y": y}, "a", "b")
    assert [tuple(row.shape) for row, _ in m._blocks] == [(groups, 2, 2)]
    u = torch.full((512, 1), 0.3)
    value, _ = m.value_and_grad(u[:64])
    _, log_w = m.complete(u, torch.Generator().manual_seed(0))
    assert abs(float(value[0]) - exact) > 0.009, "without weights"
    assert float(torch.logsumexp(log_w, 0) - math.log(512) + value[0]) == pytest.approx(exact, abs=5e-3)


def test_another_top_of_a_group_is_named():
    def squares(y):
        s = pyro.sample("s", HalfCauchy(1.0))
        with pyro.plate("groups", 3):
            pyro.sample("y", Normal(pyro.sample("a", Normal(0.0, 2.0)) ** 2, s), obs=y)

    u = torch.zeros(64, 1)
    found = marginal(squares, {"y": torch.tensor([0.0, 4.0, 0.0])}, "a").other_top(u, torch.Generator())
    assert found == "a[1]"
    assert marginal(few, {"y": torch.tensor([0.0, 1.0])}, "a").other_top(u, torch.Generator()) is None


def test_the_same_value_wherever_newton_begins():
    m = marginal(schools, {"y": Y, "s": S}, "theta")
    u = torch.randn(4, 2)
    first, _ = m.value_and_grad(u)
    m.value_and_grad(u + 3)
    assert torch.allclose(m.value_and_grad(u)[0], first, atol=1e-12)


@pytest.mark.slow
def test_centred_eight_schools_has_no_funnel_left():
    data = {"y": Y, "s": S}
    tree = mcmc(schools, data, "smc", marginal="theta", engine="trace", predictive=False, prior=False)
    assert abs(tree.attrs["log_evidence"] + 31.3114) < 4 * tree.attrs["log_evidence_se"] < 0.1
    tree = mcmc(schools, data, marginal="theta", engine="trace", predictive=False, prior=False)
    said = {f.measure: f for f in load_findings(tree)}
    assert said["rhat"].verdict == said["laplace"].verdict == said["ess_bulk"].verdict == "fine"
    grid = torch.cartesian_prod(torch.linspace(-20, 30, 201), torch.linspace(-6, 6, 241))
    w = exact_schools(grid).softmax(0)
    tau = float((w * grid[:, 1].exp()).sum())
    assert float(tree["posterior"]["tau"].mean()) == pytest.approx(tau, rel=0.05)
    assert float(tree["posterior"]["mu"].mean()) == pytest.approx(float((w * grid[:, 0]).sum()), abs=0.15)


def test_latents_that_are_far_from_normal_are_said():
    """One success a group, of widely different rates: Laplace's method is poor, and the weights say so."""

    def model(y):
        s = pyro.sample("s", HalfCauchy(10.0))
        with pyro.plate("groups", 12):
            a = pyro.sample("a", Normal(0.0, 10 * s + 5))
            pyro.sample("y", Bernoulli(logits=a), obs=y)

    tree = mcmc(model, {"y": torch.ones(12)}, marginal="a", engine="trace", chains=16, draws=25, warmup=20,
                predictive=False, prior=False)  # fmt: skip
    (said,) = [f for f in load_findings(tree) if f.measure == "laplace"]
    assert said.verdict != "fine" and "leave marginal" in said.remedy


def test_all_latents_are_in_the_tree():
    tree = mcmc(schools, {"y": Y, "s": S}, marginal=["theta"], engine="trace", chains=8, draws=20, warmup=20)
    assert tree["posterior"]["theta"].shape == (8, 20, 8) and tree.attrs["marginal"] == "theta"
    assert tree["posterior_predictive"]["y"].shape == (8, 20, 8)


def test_a_block_that_is_no_maximum_is_climbed():
    block = torch.tensor([[[[-2.0, 0.5], [0.5, 1.0]], [[2.0, 0.0], [0.0, 1.0]]]])
    made = _positive(block)
    assert torch.linalg.eigvalsh(made).min() > 0 and torch.equal(made[0, 1], block[0, 1])
    assert torch.isfinite(_positive(torch.full((1, 1, 2, 2), torch.inf))).all(), (
        "where counts overflow there is no Hessian"
    )
    assert torch.equal(_positive(-torch.ones(1, 1, 1, 1)) > 0, torch.ones(1, 1, 1, 1) > 0)
    assert _root(block)[0, 0].isnan().all() and torch.allclose(_root(block)[0, 1] ** 2, block[0, 1])  # its own alone


def test_a_density_without_a_second_derivative_is_said(monkeypatch):
    def fails(self):
        raise NotImplementedError("the derivative for 'zeta' is not implemented")

    monkeypatch.setattr(LaplaceMarginal, "_pattern", fails)
    with pytest.raises(
        PpgenError, match="theta cannot be integrated out, as the log joint of schools cannot be differ"
    ):
        marginal(schools, {"y": Y, "s": S}, "theta")


@pytest.mark.parametrize(
    ("inner", "said"),
    [
        (("eta",), "marginal names 'eta', which is no continuous latent of schools; name some of mu, tau, theta"),
        (("mu", "tau", "theta"), "marginal names all latents of schools; leave some to be sampled"),
    ],
)
def test_names_that_cannot_be_integrated_out(inner, said):
    with pytest.raises(PpgenError, match=said):
        marginal(schools, {"y": Y, "s": S}, *inner)
