"""The support of what is transformed, and posteriors of latents of such a prior, against quadrature."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.distributions.transforms import OrderedTransform
from torch.distributions import biject_to
from torch.distributions.transforms import (
    AffineTransform,
    ExpTransform,
    PowerTransform,
    SigmoidTransform,
    TanhTransform,
)

from ppgen import Program, rows
from ppgen.inference import fit, loglik, mcmc, posterior
from ppgen.supports import is_bounded

X = torch.tensor([9.0, 9.5, 9.8, 10.5])
INFINITY = float("inf")
CASES = {
    "scaled beta": (dist.Beta(2.0, 2.0), [AffineTransform(0.0, 10.0)], 0.0, 10.0),
    "turned beta": (dist.Beta(2.0, 2.0), [AffineTransform(1.0, -2.0)], -1.0, 1.0),
    "shifted gamma": (dist.Gamma(2.0, 1.0), [AffineTransform(3.0, 2.0)], 3.0, INFINITY),
    "turned gamma": (dist.Gamma(2.0, 1.0), [AffineTransform(3.0, torch.tensor(-2.0))], -INFINITY, 3.0),
    "scaled sigmoid": (dist.Normal(0.0, 1.0), [SigmoidTransform(), AffineTransform(0.0, 10.0)], 0.0, 10.0),
    "exp of a gamma": (dist.Gamma(2.0, 1.0), [ExpTransform()], 1.0, INFINITY),
    "scaled exp": (dist.Normal(0.0, 1.0), [ExpTransform(), AffineTransform(0.0, 3.0)], 0.0, INFINITY),
    "tanh of a uniform": (dist.Uniform(0.0, 1.0), [TanhTransform()], 0.0, 0.7615942),
    "inverse of a beta": (dist.Beta(2.0, 2.0), [PowerTransform(torch.tensor(-1.0))], 1.0, INFINITY),
    "affine normal": (dist.Normal(0.0, 1.0), [AffineTransform(1.0, 3.0)], -INFINITY, INFINITY),
    "logit of a beta": (dist.Beta(2.0, 2.0), [SigmoidTransform().inv], -INFINITY, INFINITY),
}


@pytest.mark.parametrize("shape", [(), (3,)])
@pytest.mark.parametrize("name", CASES)
def test_the_support_is_where_the_draws_are(name, shape):
    base, transforms, low, high = CASES[name]
    d = dist.TransformedDistribution(base.expand(shape).to_event(len(shape)), transforms).expand([2])
    support = d.support
    assert support.event_dim == len(shape)
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    ends = getattr(support, "lower_bound", -INFINITY), getattr(support, "upper_bound", INFINITY)
    assert [float(e) for e in ends] == pytest.approx([low, high])
    assert d.support.check(d.sample((1000,))).all() and d.batch_shape == (2,)


ORDERED = dist.TransformedDistribution(
    dist.Normal(torch.zeros(2), 1.0).to_event(1), [OrderedTransform(), ExpTransform()]
)
TEN_SHARES = dist.TransformedDistribution(dist.Dirichlet(torch.ones(3)), [AffineTransform(0.0, 10.0)])


@pytest.mark.parametrize(
    "d, outside", [(ORDERED, [2.0, 1.0]), (TEN_SHARES, [5.0, 5.0, 5.0])], ids=["ordered", "shares"]
)
def test_entries_that_belong_together_do_so_after_a_map_of_each(d, outside):
    """torch says that eˣ of ordered numbers is any positive ones, and that 10 x of shares is any number."""
    assert d.support.check(d.sample((1000,))).all() and not d.support.check(torch.tensor(outside))
    into = biject_to(d.support)
    u = torch.randn(1000, *into.inv(d.sample()).shape)
    assert d.support.check(into(u)).all() and torch.allclose(into.inv(into(u)), u, atol=1e-3)


def test_a_guide_by_name_of_positive_ordered_numbers():
    """c_1 = exp(u_1), c_2 = exp(u_1 + exp(u_2)), y_i ~ N(c_1, c_2), by quadrature over u."""
    y = torch.tensor([0.5, 1.2, 3.0, 2.2, 0.7, 4.1])

    def model(y):
        c = pyro.sample("c", ORDERED)
        with rows(y):
            pyro.sample("y", dist.Normal(c[0], c[1]), obs=y)

    a, b = torch.meshgrid(*[torch.linspace(-5, 4, 900, dtype=torch.float64)] * 2, indexing="ij")
    first, second = a.exp(), (a + b.exp()).exp().clamp_max(1e300)
    joint = dist.Normal(0.0, 1.0).log_prob(a) + dist.Normal(0.0, 1.0).log_prob(b)
    joint = joint + sum(dist.Normal(first, second).log_prob(v) for v in y)
    exact = float(joint.flatten().logsumexp(0) + 2 * torch.log(a[1, 0] - a[0, 0]))
    run = fit(Program.from_pair(model), {"y": y}, guide="AutoMultivariateNormal", steps=600, lr=0.02, schedule="cosine")
    bound = loglik(run, {"y": y}, particles=10_000).best
    assert abs(bound.mean - exact) < 4 * bound.mean_se + 0.01
    drawn = posterior(run, {"y": y}, draws=500, predictive=False, prior=False)["posterior"]["c"].values
    assert (drawn[..., 0] > 0).all() and (drawn[..., 1] > drawn[..., 0]).all()


def ten_sigmoid(x):
    prior = dist.TransformedDistribution(dist.Normal(0.0, 1.0), [SigmoidTransform(), AffineTransform(0.0, 10.0)])
    v = pyro.sample("v", prior)
    with rows(x):
        pyro.sample("x", dist.Normal(v, 1.0), obs=x)


def three_exp(x):
    scale = pyro.param("scale", torch.tensor(3.0))
    scale = 3.0 + 0.0 * scale  # a tensor of the trace
    v = pyro.sample(
        "v", dist.TransformedDistribution(dist.Normal(0.0, 1.0), [ExpTransform(), AffineTransform(0.0, 3.0)])
    )
    with rows(x):
        pyro.sample("x", dist.Normal(0.0 * scale, v), obs=x)


def beyond(a):
    def model(x):
        v = pyro.sample("v", dist.TransformedDistribution(dist.Beta(2.0, 2.0), [AffineTransform(a, 10.0)]))
        with rows(x):
            pyro.sample("x", dist.Normal(v, 1.0), obs=x)

    return model


U = torch.linspace(-9, 9, 20001, dtype=torch.float64)
QUADRATURE = {  # the prior's base on a grid, and v there
    "ten_sigmoid": (ten_sigmoid, dist.Normal(0.0, 1.0).log_prob(U), 10 * U.sigmoid(), None),
    "three_exp": (three_exp, dist.Normal(0.0, 1.0).log_prob(U), 3 * U.exp(), 0.0),
}


@pytest.mark.parametrize("name", QUADRATURE)
def test_a_posterior_stays_within_the_support(name):
    """torch says that 10 sigmoid(u) and 3 exp(u) have the support ℝ: a scale had draws below 0, AutoNormal found a mean
    of 4.6 for 9.1, and steps without a finite loss were many."""
    model, log_prior, v, loc = QUADRATURE[name]
    like = dist.Normal(v[:, None] if loc is None else loc, 1.0 if loc is None else v[:, None])
    joint = log_prior + like.log_prob(X).sum(-1) + torch.log(U[1] - U[0])
    exact, mean = float(joint.logsumexp(0)), float((joint.softmax(0) * v).sum())
    how = {"steps": 800, "lr": 0.1, "schedule": "cosine", "particles": 4, "seed": 0}
    run = fit(Program.from_pair(model), {"x": X}, guide="AutoNormal", engine="trace", **how)
    assert run.rows[-1]["bad_steps"] == 0
    assert float(loglik(run, {"x": X}, particles=2000, seed=0).best.values.sum()) == pytest.approx(exact, abs=0.03)
    drawn = posterior(run, {"x": X}, draws=4000, predictive=False, prior=False)["posterior"]["v"].values
    assert drawn.min() > 0 and drawn.mean() == pytest.approx(mean, rel=0.02)


def test_chains_stay_within_the_support():
    v = 10 * torch.linspace(1e-4, 1 - 1e-4, 20001, dtype=torch.float64)
    joint = dist.Beta(2.0, 2.0).log_prob(v / 10) + dist.Normal(v[:, None], 1.0).log_prob(X).sum(-1)
    mean = float((joint.softmax(0) * v).sum())
    tree = mcmc(Program.from_pair(beyond(0.0)), {"x": X}, chains=8, draws=1000, predictive=False, prior=False)
    assert float(tree["sample_stats"]["diverging"].sum()) == 0
    drawn = tree["posterior"]["v"].values
    assert drawn.max() < 10 and drawn.mean() == pytest.approx(mean, abs=0.03)  # sd 0.36, 1000 and more effective draws


@pytest.mark.parametrize(
    "d, bounded",
    [(dist.LKJ(3, 1.0), True), (dist.LKJCholesky(3, 1.0), True), (dist.Beta(1.0, 1.0), True),
     (dist.Uniform(-1.0, 2.0), True), (dist.Dirichlet(torch.ones(3)), True), (dist.Gamma(1.0, 1.0), False),
     (dist.Wishart(torch.tensor(3.0), torch.eye(2)), False), (dist.Normal(0.0, 1.0), False)],
    ids=lambda v: type(v).__name__,
)  # fmt: skip
def test_what_is_bounded_has_draws_within_a_ball(d, bounded):
    """Matrices of correlations (LKJ) were taken for unbounded, and may be said to have heavy tails."""
    transform = biject_to(d.support)
    u = 30 * torch.randn(400, *transform.inverse_shape(d.shape()))
    assert is_bounded(transform) == bounded == bool(transform(u).abs().max() <= 2.001)
