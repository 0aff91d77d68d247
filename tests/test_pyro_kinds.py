"""What Pyro users write, as Pyro means it: batch shapes without plates, plates of every kind, factors, bound methods.

Each row of KINDS is a program whose joint density is a quadratic in its latents, so that log p(x) and the posterior
are known, from Pyro's own log joint and its second derivatives alone. Every row goes through fit, loglik, posterior,
predict and mcmc; values keep the shape that the program gave them.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from known import SCHOOLS, chains_agree, draws_agree, normal
from pyro import poutine
from pyro.contrib.easyguide import easy_guide
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal
from pyro.infer.reparam import SplitReparam
from pyro.nn import PyroModule, PyroSample
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode

import ppgen
from ppgen import Program, catalog, rows
from ppgen.distributions import Flat
from ppgen.engine.density.joint import log_joint as joint_of
from ppgen.errors import PpgenError
from ppgen.inference import diagnose, fit, loglik, mcmc, posterior, predict, sample
from ppgen.run import Run

X6 = torch.tensor([1.0, 2.0, 0.5, 1.5, 3.0, 2.2])
ONE = {"one": torch.ones(1)}
MASK = torch.tensor([True, True, False, True, False, True])


pytestmark = pytest.mark.usefixtures("double")


# -- the oracle ---------------------------------------------------------------------------------------


class Known(NamedTuple):
    """Of a model whose log joint is a quadratic: shapes of the latents in order, posterior, log p(x)."""

    shapes: dict[str, torch.Size]
    mean: Tensor
    cov: Tensor
    evidence: float

    def flat(self, values: dict[str, np.ndarray]) -> Tensor:
        """Of draws by latent, (draws, shape): (draws, D)."""
        return torch.cat([torch.as_tensor(values[n]).reshape(len(values[n]), -1) for n in self.shapes], 1)

    def one(self, u: Tensor) -> dict[str, Tensor]:
        parts = u.split([s.numel() for s in self.shapes.values()])
        return {n: part.reshape(s) for (n, s), part in zip(self.shapes.items(), parts, strict=True)}


def log_joint(model: Callable, data: dict[str, Tensor], latents: dict[str, Tensor]) -> Tensor:
    """log p(x, z), by Pyro."""
    trace = poutine.trace(poutine.condition(model, latents)).get_trace(**data)
    return trace.log_prob_sum()


def known(model: Callable, data: dict[str, Tensor]) -> Known:
    trace = poutine.trace(model).get_trace(**data)
    shapes = {n: trace.nodes[n]["value"].shape for n in prune_subsample_sites(trace).stochastic_nodes}
    free = Known(shapes, torch.zeros(0), torch.zeros(0), 0.0)
    zero = torch.zeros(sum(s.numel() for s in shapes.values()))

    def joint(u: Tensor) -> Tensor:
        return log_joint(model, data, free.one(u))

    precision = -torch.autograd.functional.hessian(joint, zero)
    mean = torch.linalg.solve(precision, torch.autograd.functional.jacobian(joint, zero))
    evidence = joint(mean) + 0.5 * (len(zero) * math.log(2 * math.pi) - torch.logdet(precision))
    return Known(shapes, mean, torch.linalg.inv(precision), float(evidence))


# -- the table ----------------------------------------------------------------------------------------


class Kind(NamedTuple):
    model: Callable
    data: dict[str, Tensor]
    observed: tuple[str, ...]  # sites that are observed; none where a factor is the likelihood


KINDS: dict[str, Kind] = {}


def kind(data: dict[str, Tensor], *observed: str, name: str = ""):
    def enter(model: Callable) -> Callable:
        double = {k: v.double() if v.is_floating_point() else v for k, v in data.items()}
        KINDS[name or model.__name__] = Kind(model, double, observed)
        return model

    return enter


@kind({"s": SCHOOLS["sigma"], "y": SCHOOLS["y"]}, "obs")
def batch_shapes_and_no_plate(s, y):
    """Pyro's examples/eight_schools/mcmc.py, with the spread known."""
    eta = pyro.sample("eta", dist.Normal(torch.zeros(8), torch.ones(8)))
    mu = pyro.sample("mu", dist.Normal(torch.zeros(1), 10 * torch.ones(1)))
    pyro.sample("obs", dist.Normal(mu + 3.0 * eta, s), obs=y)


@kind({"x": normal(6, 3), "y": normal(6, 2, seed=1)}, "y")
def a_matrix_and_no_plate(x, y):
    w = pyro.sample("w", dist.Normal(torch.zeros(3, 2), 1.0))
    pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


@kind({"y": normal(4, 2)}, "y")
def batch_and_event_and_no_plate(y):
    m = pyro.sample("m", dist.Normal(torch.zeros(4, 2), 1.0).to_event(1))
    b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(m + b, 1.0).to_event(1), obs=y)


@kind({"y": normal(1, 3)}, "y")
def dimensions_of_one(y):
    a = pyro.sample("a", dist.Normal(torch.zeros(1, 1), 1.0))
    with pyro.plate("one", 1):
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        c = pyro.sample("c", dist.Normal(torch.zeros(1), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(a + b + c.sum() + torch.zeros(1, 3), 1.0).to_event(1), obs=y)


@kind({"x": normal(5, 3)}, "x")
def nested_plates(x):
    with pyro.plate("a", x.shape[1], dim=-1):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("b", x.shape[0], dim=-2):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("a2", x.shape[1], dim=-1):
            pyro.sample("x", dist.Normal(m + z, 1.0), obs=x)


@kind({"x": normal(4, 4)}, "x")
def plates_of_one_size(x):
    """Two plates of one size, which are also as many as the particles."""
    with pyro.plate("columns", 4, dim=-1):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(m, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)


@kind({"x": X6}, "x")
def a_plate_that_leaves_a_gap(x):
    with pyro.plate("groups", 3, dim=-2):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("x", dist.Normal(a.sum(), 1.0), obs=x)


@kind({"y": X6, "s": torch.ones(6)}, "y")
def plates_of_a_fixed_size(y, s):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("d", 6):
        t = pyro.sample("t", dist.Normal(m, 1.0))
        pyro.sample("y", dist.Normal(t, s), obs=y)


@kind({"x": X6, "group": torch.tensor([0, 1, 2, 0, 1, 2])}, "x")
def indices_into_a_plate(x, group):
    with pyro.plate("g", 3):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with pyro.plate("d", len(x)):
        pyro.sample("x", dist.Normal(a[group], 1.0), obs=x)


@kind({"x": X6[:2], "w": torch.ones(3)}, "x")
def a_column_of_another_length_than_the_plate_data(x, w):
    m = pyro.sample("m", dist.Normal(torch.zeros(3), w).to_event(1))
    with pyro.plate("data", 2):
        pyro.sample("x", dist.Normal(m.sum(), 1.0), obs=x)


@kind({"x": X6[:3]}, "x_0", "x_1", "x_2")
def a_plate_in_a_loop(x):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    for i in pyro.plate("data", len(x)):
        pyro.sample(f"x_{i}", dist.Normal(m, 1.0), obs=x[i])


@kind({"x": X6[:3]}, "x0", "x1", "x2")
def a_markov_chain(x):
    z = torch.zeros(())
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z{t}", dist.Normal(z, 1.0))
        pyro.sample(f"x{t}", dist.Normal(z, 1.0), obs=x[t])


class BayesianRegression(PyroModule):
    """Pyro's Bayesian regression tutorial, with sigma known."""

    def __init__(self):
        super().__init__()
        self.linear = PyroModule[nn.Linear](3, 1)
        self.linear.weight = PyroSample(lambda self: dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2))
        self.linear.bias = PyroSample(lambda self: dist.Normal(0.0, 10.0).expand([1]).to_event(1))

    def forward(self, x, y=None):
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("obs", dist.Normal(mean, 0.5), obs=y)


kind({"x": normal(8, 3), "y": normal(8, seed=1)}, "obs", name="a_bayesian_network")(BayesianRegression())


@kind({"y": normal(7, 3)}, "y")
def diag_and_mm(y):
    """torch.diag and torch.mm take what has no leading dimensions only."""
    m = pyro.sample("m", dist.Normal(torch.zeros(3), 1.0))
    mean = torch.mm(torch.diag(m), torch.ones(3, 1)).squeeze(-1)
    with pyro.plate("d", len(y)):
        pyro.sample("y", dist.MultivariateNormal(mean, torch.eye(3)), obs=y)


# factors, scales and masks


@kind(ONE)
def a_factor_over_everything(one):
    th = pyro.sample("th", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.factor("lik", -2 * (th**2).sum())


@kind({"x": X6})
def a_factor_summed_over_the_rows(x):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    pyro.factor("ll", dist.Normal(m, 1.0).log_prob(x).sum())


@kind({"one": torch.ones(1)})
def a_flat_prior_and_a_factor(one):
    th = pyro.sample("th", Flat(shape=(2,)))
    pyro.factor("f", -0.5 * ((th - one) ** 2).sum())


@kind({"x": X6}, "x")
def one_factor_in_a_plate(x):
    """A scalar in a plate counts once a row."""
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with rows(x):
        pyro.factor("pull", -0.1 * (m - 3) ** 2)
        pyro.sample("x", dist.Normal(m, 1.0), obs=x)


@kind({"x": X6}, "x")
def a_factor_of_local_latents(x):
    """One sum over all rows ties latents that stand in the plate."""
    with rows(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    pyro.factor("tie", -0.5 * z.sum() ** 2)


@kind({"x": X6, "w": torch.linspace(0.5, 2, 6)}, "x")
def a_scale_by_row(x, w):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("d", len(x)), poutine.scale(scale=w):
        z = pyro.sample("z", dist.Normal(m, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        pyro.factor("f", -0.1 * z**2)


@kind({"x": X6, "mask": MASK}, "x")
def a_mask_by_row(x, mask):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("d", len(x)), poutine.mask(mask=mask):
        pyro.sample("x", dist.Normal(m, 1.0), obs=x)
        pyro.factor("f", -0.1 * (m - x) ** 2)


every_kind = pytest.mark.parametrize("name", KINDS)


def size_of(k: Kind) -> int:
    """As many as a plate has: where a draw is easily mistaken for a row."""
    return max(2, *(len(v) for v in k.data.values()))


@cache
def oracle(name: str) -> Known:
    return known(KINDS[name].model, KINDS[name].data)


def exact_program(name: str) -> Program:
    """The model with Pyro's AutoMultivariateNormal, set to the posterior."""
    k, truth = KINDS[name], oracle(name)
    guide = AutoMultivariateNormal(k.model)
    guide(**k.data)
    factor = torch.linalg.cholesky(truth.cov)
    guide.loc.data.copy_(truth.mean)
    guide.scale, guide.scale_tril = factor.diagonal(), factor / factor.diagonal()[:, None]
    return Program.from_pair(k.model, guide)


@cache
def fitted(name: str, particles: int | None = None, engine: str = "auto"):
    """A run whose guide is the posterior; its two steps go nowhere."""
    k = KINDS[name]
    return fit(exact_program(name), k.data, steps=2, lr=1e-12, log_every=1, objective="sampled", engine=engine,
               particles=particles or size_of(k), precision="64-true")  # fmt: skip


# -- the laws -----------------------------------------------------------------------------------------


@every_kind
def test_the_bound_with_several_particles(name):
    """The guide is the posterior, so that the bound is log p(x)."""
    assert fitted(name).metrics["elbo"] == pytest.approx([oracle(name).evidence] * 2, abs=1e-6)


@every_kind
@pytest.mark.parametrize("engine", ["eager", "trace"])
def test_the_bound_with_one_particle(name, engine):
    run = fitted(name, 1, engine)
    assert run.metrics["elbo"] == pytest.approx([oracle(name).evidence] * 2, abs=1e-6)


@every_kind
@pytest.mark.parametrize("more", [0, 4])
def test_loglik(name, more):
    k = KINDS[name]
    found = loglik(fitted(name), k.data, particles=size_of(k) + more)
    for bound in found.bounds:
        assert bound.values.sum() == pytest.approx(oracle(name).evidence, abs=1e-6)


@every_kind
def test_posterior(name):
    k, n = KINDS[name], size_of(KINDS[name])
    tree = posterior(fitted(name), k.data, draws=n)
    _draws_of(tree, name, (1, n))
    stats = tree["sample_stats"]
    log_p = stats["log_p"].values.reshape(n, -1).sum(1)
    assert log_p == pytest.approx(_log_joints(tree, name), abs=1e-6)
    log_q = stats["log_q"].values.reshape(n, -1).sum(1)
    assert log_p - log_q == pytest.approx(oracle(name).evidence, abs=1e-6)


def shape_of(name: str, site: str) -> tuple[int, ...]:
    """A site's value as the program gave it; in plates, without the dimensions of one that stand for no plate."""
    k = KINDS[name]
    node = poutine.trace(k.model).get_trace(**k.data).nodes[site]
    plates = {f.dim for f in node["cond_indep_stack"] if f.vectorized}
    shape = tuple(node["fn"].shape())
    batch, event = len(node["fn"].batch_shape), len(node["fn"].event_shape)
    return tuple(
        n for i, n in enumerate(shape) if i >= batch or not plates or n != 1 or i + event - len(shape) in plates
    )


def _draws_of(tree, name: str, lead: tuple[int, int]) -> None:
    """The draws have the shapes that the program gave them; so have predictions, where there is an observed site."""
    k = KINDS[name]
    assert set(tree["posterior"].data_vars) == set(oracle(name).shapes)
    for latent in oracle(name).shapes:
        assert tree["posterior"][latent].shape == (*lead, *shape_of(name, latent)), latent
    groups = [g for g in ("posterior_predictive", "log_likelihood") if g in tree.children and tree[g].data_vars]
    assert bool(groups) == bool(k.observed)
    for site in k.observed:
        assert tree["posterior_predictive"][site].shape == (*lead, *shape_of(name, site))
        assert tree["log_likelihood"][site].shape[:2] == lead


def _log_joints(tree, name: str) -> np.ndarray:
    """log p(x, z) of every draw, by Pyro, (chains x draws)."""
    k = KINDS[name]
    draws = {n: torch.as_tensor(tree["posterior"][n].values).reshape(-1, *s) for n, s in oracle(name).shapes.items()}
    n = len(next(iter(draws.values())))
    return np.array([float(log_joint(k.model, k.data, {m: v[i] for m, v in draws.items()})) for i in range(n)])


@every_kind
def test_moments_of_many_draws(name):
    tree = posterior(fitted(name), KINDS[name].data, draws=1000, predictive=False, prior=False)
    u = oracle(name).flat({n: v.values[0] for n, v in tree["posterior"].data_vars.items()})
    draws_agree(u, oracle(name).mean, oracle(name).cov.diagonal())
    draws_agree(u.sum(1), oracle(name).mean.sum(), oracle(name).cov.sum())


@every_kind
def test_predict_and_diagnose(name):
    k = KINDS[name]
    if k.observed:
        tree = predict(fitted(name), k.data, draws=3)
        for site in k.observed:
            assert tree["predictions"][site].shape == (1, 3, *shape_of(name, site))
    found = diagnose(fitted(name), k.data, draws=size_of(k), particles=200)
    assert found.bounds.best.values.sum() == pytest.approx(oracle(name).evidence, abs=1e-6)


@every_kind
def test_mcmc_keeps_its_draws(name):
    k = KINDS[name]
    tree = mcmc(k.model, k.data, chains=16, draws=20, warmup=40, engine="trace")
    _draws_of(tree, name, (16, 20))
    assert tree["sample_stats"]["lp"].values.ravel() == pytest.approx(_log_joints(tree, name), abs=1e-6)
    u = oracle(name).flat({n: v.values.reshape(-1, *v.shape[2:]) for n, v in tree["posterior"].data_vars.items()})
    off = (u.mean(0) - oracle(name).mean) / oracle(name).cov.diagonal().sqrt()
    assert off.abs().max() < 0.6  # of a few draws: not of another place


def test_a_plate_without_a_size():
    """Pyro's autoguides do not take it; a guide by hand does."""

    def model(x):
        with pyro.plate("data"):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        loc = pyro.param("loc", lambda: x / 2)
        with pyro.plate("data"):
            pyro.sample("z", dist.Normal(loc, 0.5**0.5))

    data = {"x": X6.double()}
    evidence = known(model, data).evidence
    for particles in (1, 6):
        run = fit(Program.from_pair(model, guide), data, steps=2, lr=1e-12, log_every=1, objective="sampled",
                  particles=particles, precision="64-true")  # fmt: skip
        assert run.metrics["elbo"] == pytest.approx([evidence] * 2, abs=1e-6)
    assert loglik(run, data, particles=6).best.values.sum() == pytest.approx(evidence, abs=1e-6)
    assert posterior(run, data, draws=6)["posterior"]["z"].shape == (1, 6, 6)


# -- sites with a batch shape and no plate that are not normal ----------------------------------------


def test_eight_schools_of_pyros_mcmc_example():
    """Its draws, their log-density on the unconstrained scale, and the shapes of its sites."""

    def model(s, y):
        eta = pyro.sample("eta", dist.Normal(torch.zeros(8), torch.ones(8)))
        mu = pyro.sample("mu", dist.Normal(torch.zeros(1), 10 * torch.ones(1)))
        tau = pyro.sample("tau", dist.HalfCauchy(scale=25 * torch.ones(1)))
        pyro.sample("obs", dist.Normal(mu + tau * eta, s), obs=y)

    data = {"s": SCHOOLS["sigma"].double(), "y": SCHOOLS["y"].double()}
    tree = mcmc(model, data, chains=16, draws=25, warmup=100, engine="trace")
    draws = {n: torch.as_tensor(v.values) for n, v in tree["posterior"].data_vars.items()}
    assert {n: tuple(v.shape) for n, v in draws.items()} == {"eta": (16, 25, 8), "mu": (16, 25, 1), "tau": (16, 25, 1)}
    assert tree["posterior_predictive"]["obs"].shape == (16, 25, 8)
    likelihood = dist.Normal(draws["mu"] + draws["tau"] * draws["eta"], data["s"]).log_prob(data["y"])
    lp = (
        dist.Normal(0.0, 1.0).log_prob(draws["eta"]).sum(-1) + dist.Normal(0.0, 10.0).log_prob(draws["mu"])[..., 0]
        + dist.HalfCauchy(25.0).log_prob(draws["tau"])[..., 0] + draws["tau"].log()[..., 0] + likelihood.sum(-1)
    )  # fmt: skip
    assert tree["sample_stats"]["lp"].values == pytest.approx(lp.numpy(), abs=1e-6)
    # no plate: one log-likelihood for every school, or one for them all
    found = tree["log_likelihood"]["obs"].values
    assert found == pytest.approx((likelihood if found.ndim == 3 else likelihood.sum(-1)).numpy(), abs=1e-6)
    moments = tree["posterior"]["mu"].values
    assert 2 < moments.mean() < 9.5  # 7.6 without the spread's uncertainty; shrunk by Normal(0, 10)


def test_a_matrix_made_of_sites_without_plates():
    """`theta` has a batch shape, `L` an event of two dimensions, and torch.mm takes neither with a dimension more."""

    def model(y):
        theta = pyro.sample("theta", dist.HalfCauchy(torch.ones(3)))
        L = pyro.sample("L", dist.LKJCholesky(3, torch.ones(())))
        scale_tril = torch.mm(torch.diag(theta.sqrt()), L)
        with pyro.plate("observations", len(y)):
            pyro.sample("obs", dist.MultivariateNormal(torch.zeros(3), scale_tril=scale_tril), obs=y)

    y = normal(50, 3).double()
    tree = mcmc(model, {"y": y}, chains=8, draws=20, warmup=60, engine="trace")
    assert tree["posterior"]["theta"].shape == (8, 20, 3)
    assert tree["posterior"]["L"].shape == (8, 20, 3, 3)
    assert tree["log_likelihood"]["obs"].shape == (8, 20, 50)
    assert tree["posterior_predictive"]["obs"].shape == (8, 20, 50, 3)
    variance = tree["posterior"]["theta"].values.mean((0, 1))
    assert variance == pytest.approx((y**2).mean(0).numpy(), rel=0.35)
    run = fit(Program.from_pair(model), {"y": y}, steps=300, lr=0.05, particles=3, precision="64-true")
    tree = posterior(run, {"y": y}, draws=50)
    assert tree["posterior"]["theta"].shape == (1, 50, 3) and tree["posterior"]["L"].shape == (1, 50, 3, 3)
    assert tree["posterior"]["theta"].values.mean((0, 1)) == pytest.approx((y**2).mean(0).numpy(), rel=0.35)


# -- factors ------------------------------------------------------------------------------------------


class Penalty(Program):
    """x ~ N(mu, 1), and a penalty on theta that no site depends on; `latent` adds a latent site."""

    def __init__(self, latent: bool = False):
        super().__init__()
        self.mu, self.theta = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        self.latent = latent

    def model(self, x=None):
        pyro.factor("penalty", -((self.theta - 1) ** 2))
        z = pyro.sample("z", dist.Normal(0.0, 1.0)) if self.latent else 0.0
        with rows(x):
            pyro.sample("x", dist.Normal(self.mu + z, 1.0), obs=x)


@pytest.mark.parametrize("latent", [False, True], ids=["no latent", "a latent"])
@pytest.mark.parametrize("engine", ["eager", "trace"])
def test_a_parameter_that_only_a_factor_reaches_is_trained(latent, engine):
    """A step of SGD moves theta - 1 by the factor 1 - 2 lr / N."""
    run = fit(Penalty(latent), {"x": X6.double()}, steps=20, lr=0.3, optimizer="SGD", engine=engine,
              precision="64-true")  # fmt: skip
    assert float(run.program.theta) == pytest.approx(1 - (1 - 2 * 0.3 / 6) ** 20, abs=1e-9)


@pytest.mark.parametrize("particles", [1, 6])
def test_a_factor_in_the_guide_is_part_of_its_density(particles):
    """q(m) e^0.3: an importance weight is e^-0.3 of what it was."""

    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("d", len(x)):
            pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    def guide(x):
        shift = pyro.param("shift", torch.zeros(()))
        pyro.sample("m", dist.Normal(x.sum() / 7 + shift, 7**-0.5))
        pyro.factor("f", 0.3 + 0.0 * shift, has_rsample=True)

    data = {"x": X6.double()}
    evidence = known(model, data).evidence
    run = fit(Program.from_pair(model, guide), data, steps=2, lr=1e-12, log_every=1, objective="sampled",
              particles=particles, precision="64-true")  # fmt: skip
    assert run.metrics["elbo"] == pytest.approx([evidence - 0.3] * 2, abs=1e-8)
    assert loglik(run, data, particles=particles).best.mean == pytest.approx(evidence - 0.3, abs=1e-8)


@pytest.mark.parametrize(  # one draw a step moves a flow's mean by its own noise, more than is asked here
    ("guide", "particles"), [("AutoMultivariateNormal", 1), ("AutoMultivariateNormal", 16), ("flow", 16)]
)
@pytest.mark.parametrize("name", ["a_factor_over_everything", "a_flat_prior_and_a_factor"])
def test_guides_of_a_factor(name, guide, particles):
    """What shared sums over draws did to the spread: 0.12 for 0.447 with 16 particles."""
    k, truth = KINDS[name], oracle(name)
    run = fit(Program.from_pair(k.model), k.data, guide=guide, particles=particles, starts=4, steps=60, lr=0.01,
              precision="64-true")  # fmt: skip
    tree = posterior(run, k.data, draws=2000, prior=False, predictive=False)
    found = tree["posterior"]["th"].values[0]
    sd = truth.cov.diagonal().sqrt().numpy()
    assert found.std(0) == pytest.approx(sd, rel=0.15)  # 60 noisy steps away from the posterior
    assert found.mean(0) == pytest.approx(truth.mean.numpy(), abs=0.2 * sd.max())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_two_modes_far_apart_are_both_found_or_it_is_said(seed):
    """Half of the mass at 0, half at 40."""

    def model(one):
        th = pyro.sample("th", dist.Normal(0.0, 30.0))
        both = torch.logaddexp(dist.Normal(0.0, 1.0).log_prob(th), dist.Normal(40.0, 1.0).log_prob(th))
        pyro.factor("f", both - dist.Normal(0.0, 30.0).log_prob(th))

    tree = mcmc(model, ONE, seed=seed, prior=False, predictive=False)
    share = float((tree["posterior"]["th"] < 20).mean())
    assert tree.attrs["findings"] or abs(share - 0.5) < 0.1, share


def _wide_and_narrow(x):
    """Each entry of theta - x has variance 1 or 0.01, both together, with equal mass: 0.505."""
    th = pyro.sample("th", dist.Uniform(-10.0, 10.0).expand([2]).to_event(1))
    wide, narrow = (dist.Normal(th, s).log_prob(x).sum() for s in (1.0, 0.1))
    pyro.factor("f", torch.logaddexp(wide, narrow) + math.log(0.5))


@pytest.mark.parametrize("seed", range(2))
def test_a_wide_and_a_narrow_factor(seed):
    x = torch.tensor([1.0, -2.0])
    tree = mcmc(_wide_and_narrow, {"x": x}, seed=seed, prior=False, predictive=False)
    for i in range(2):
        chains_agree(tree["posterior"]["th"].values[..., i], float(x[i]), 0.505)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_chains_that_agree_are_not_said_to_disagree(seed):
    x = torch.tensor([1.0, -2.0])
    tree = mcmc(_wide_and_narrow, {"x": x}, seed=seed, prior=False, predictive=False)
    assert "do not agree" not in tree.attrs["findings"]


# -- bound methods of the user's own network ----------------------------------------------------------


class Tutorial(nn.Module):
    """The form of Pyro's VAE tutorial: model and guide are methods of one module. `last` is frozen by its owner."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.e, self.d = nn.Linear(6, 4), nn.Linear(2, 6)
        self.last = nn.Parameter(torch.zeros(6), requires_grad=False)
        self.register_buffer("offset", torch.full((6,), 0.1))
        self.trouble: Callable[[str, Tensor], Tensor] = lambda where, value: value

    def model(self, x):
        pyro.module("decoder", self.d)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("z", dist.Normal(torch.zeros(x.shape[0], 2), 1.0).to_event(1))
            logits = self.trouble("model", self.d(z) + self.last + self.offset)
            pyro.sample("obs", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.e)
        with pyro.plate("data", x.shape[0]):
            h = self.trouble("guide", self.e(x))
            pyro.sample("z", dist.Normal(h[:, :2], h[:, 2:].exp()).to_event(1))


class Written(Program):
    """The same as a `Program`."""

    def __init__(self):
        super().__init__()
        self.own = Tutorial()

    def model(self, x):
        self.own.model(x)

    def guide(self, x):
        self.own.guide(x)


BITS = {"x": (normal(8, 6) > 0).double()}


def identity(module: nn.Module) -> dict[str, tuple]:
    """What belongs to the user: the tensors themselves, their types, their memory, whether they are trained."""
    own = [*module.named_parameters(), *module.named_buffers()]
    place = {n: t.data_ptr() if type(t.data) is Tensor else "no memory" for n, t in own}
    return {n: (id(t), type(t), type(t.data), place[n], t.requires_grad, t.shape, t.dtype) for n, t in own}


@contextlib.contextmanager
def unharmed(module: nn.Module) -> Iterator[None]:
    """After it, whatever happened, the module's tensors are the ones that it had, and hold finite numbers."""
    before = identity(module)
    yield
    assert identity(module) == before
    for name, t in [*module.named_parameters(), *module.named_buffers()]:
        assert type(t) is (nn.Parameter if name in dict(module.named_parameters()) else Tensor)
        assert torch.isfinite(t).all(), name


ENGINES = ["eager", "trace", pytest.param("compile", marks=pytest.mark.slow), "auto"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("particles", [1, 8])
def test_two_bound_methods_of_one_module(engine, particles):
    """They train the user's own weights, as the same program written as a class does from the same seed."""
    vae, other = Tutorial(), Written()
    options = {"steps": 12, "lr": 0.01, "particles": particles, "log_every": 1, "precision": "64-true"}
    with unharmed(vae):
        run = fit(Program.from_pair(vae.model, vae.guide), BITS, engine=engine, **options)
    assert len(list(run.program.parameters())) == len(list(vae.parameters()))
    reference = fit(other, BITS, engine="eager", **options)
    assert run.metrics["elbo"] == pytest.approx(reference.metrics["elbo"], abs=1e-6)
    for (name, mine), (_, its) in zip(vae.named_parameters(), other.own.named_parameters(), strict=True):
        torch.testing.assert_close(mine, its, atol=1e-6, rtol=1e-6, msg=name)
    assert not torch.equal(vae.e.weight, Tutorial().e.weight) and torch.equal(vae.last, torch.zeros(6))
    with unharmed(vae):
        found = loglik(run, BITS, particles=20)
        assert found.per == "row" and found.bounds[0].mean <= found.best.mean
        assert posterior(run, BITS, draws=3)["posterior"]["z"].shape == (1, 3, 8, 2)


def test_a_bound_method_and_a_guide_by_name():
    class Regression(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.zeros(()))

        def model(self, x):
            m = pyro.sample("m", dist.Normal(self.a, 1.0))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    own = Regression()
    with unharmed(own):
        run = fit(Program.from_pair(own.model), {"x": X6.double()}, steps=500, lr=0.05, engine="trace",
                  precision="64-true")  # fmt: skip
    # given a, x_i ~ N(a, 1 + 1): the likelihood is highest at a = x's mean
    assert float(own.a) == pytest.approx(float(X6.mean()), abs=0.15)
    with unharmed(own):
        mcmc(run, {"x": X6.double()}, chains=4, draws=4, warmup=20, engine="trace")


def test_methods_of_two_modules():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.e = Tutorial().e

        def guide(self, x):
            with pyro.plate("data", x.shape[0]):
                h = self.e(x)
                pyro.sample("z", dist.Normal(h[:, :2], h[:, 2:].exp()).to_event(1))

    vae, encoder = Tutorial(), Encoder()
    vae.e.requires_grad_(False)  # not part of this pair
    options = {"steps": 6, "lr": 0.01, "log_every": 1, "precision": "64-true"}
    with unharmed(vae), unharmed(encoder):
        run = fit(Program.from_pair(vae.model, encoder.guide), BITS, engine="trace", **options)
    reference = fit(Written(), BITS, engine="eager", **options)
    assert run.metrics["elbo"] == pytest.approx(reference.metrics["elbo"], abs=1e-6)


# -- whatever fails, the weights are the user's --------------------------------------------------------


class Stop(BaseException):
    """As KeyboardInterrupt, which is left to whoever runs the tests."""


class _Breaks(torch.autograd.Function):
    """The identity, whose gradient cannot be traced."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        if being_traced(g):
            raise RuntimeError("planted")
        return g


def being_traced(value: Tensor) -> bool:
    return get_proxy_mode() is not None or type(value) is not Tensor


def raise_while_traced(where: str, error: type[BaseException]):
    def trouble(here: str, value: Tensor) -> Tensor:
        if here == where and being_traced(value):
            raise error("planted")
        return value

    return trouble


def need_a_value(where: str):
    """A branch on what a tensor holds: it runs, and cannot be traced."""

    def trouble(here: str, value: Tensor) -> Tensor:
        return value + 1e-9 if here == where and float(value.detach().sum()) > 0 else value

    return trouble


def broken(monkeypatch, name: str, modules: str) -> None:
    """Whatever is called `name` in these modules fails."""

    def fail(*_, **__):
        raise RuntimeError("planted")

    places = [m for k, m in sys.modules.items() if k.startswith(modules) and hasattr(m, name)]
    assert places, f"nothing in {modules} is called {name}"
    for module in places:
        monkeypatch.setattr(module, name, fail)


STAGES: dict[str, Callable] = {
    "the model": lambda vae, _: setattr(vae, "trouble", raise_while_traced("model", RuntimeError)),
    "the guide": lambda vae, _: setattr(vae, "trouble", raise_while_traced("guide", RuntimeError)),
    "a value that is needed": lambda vae, _: setattr(vae, "trouble", need_a_value("model")),
    "the gradient": lambda vae, _: setattr(vae, "trouble", lambda where, v: _Breaks.apply(v)),
    "interrupted": lambda vae, _: setattr(vae, "trouble", raise_while_traced("guide", Stop)),
    "recording": lambda _, m: [broken(m, name, "ppgen.engine.graphs.trace") for name in ("record", "_made")],
    "the graph": lambda _, m: m.setattr(torch.fx.GraphModule, "__init__", _fail),
    "vmap": lambda _, m: (m.setattr(torch.func, "vmap", _fail), m.setattr(torch, "vmap", _fail)),
    "hoisting the noise": lambda _, m: broken(m, "hoist", "ppgen."),
    "compiling": lambda _, m: broken(m, "compile_fx", "torch._inductor.compile_fx"),
}
RUNS_EAGERLY = ("the model", "the guide", "a value that is needed", "the gradient")  # the program runs, untraced


def _fail(*_, **__):
    raise RuntimeError("planted")


WHERE = [(stage, engine, particles) for stage in STAGES for engine, particles in
         (("trace", 1), ("trace", 8), ("compile", 8), ("auto", 1)) if engine == "trace" or stage not in
         ("vmap", "the graph", "recording")]  # fmt: skip


@pytest.mark.parametrize(("stage", "engine", "particles"), WHERE)
def test_weights_are_restored_whatever_fails(stage, engine, particles, monkeypatch):
    import torch._inductor.compile_fx  # noqa: F401

    vae = Tutorial()
    STAGES[stage](vae, monkeypatch)
    steps = 20_000 if engine == "auto" else 4  # auto traces and compiles long runs only
    with unharmed(vae):
        try:
            run = fit(Program.from_pair(vae.model, vae.guide), BITS, steps=steps, lr=0.01, particles=particles,
                      engine=engine, precision="64-true", log_every=20, report=_stop_after(30))  # fmt: skip
        except (Exception, Stop) as e:
            assert not (stage in RUNS_EAGERLY and engine == "trace"), e
        else:
            assert run.program.training is False
    assert any(p.requires_grad for p in vae.parameters())
    with unharmed(vae):  # and it can be fitted again
        monkeypatch.undo()
        vae.trouble = lambda where, value: value
        fit(Program.from_pair(vae.model, vae.guide), BITS, steps=2, engine="eager", precision="64-true")


def _stop_after(rows: int):
    """A report that ends a long fit."""
    seen: list = []

    def report(*row) -> None:
        seen.append(row)
        if len(seen) > rows:
            raise Stop

    return report


@pytest.mark.parametrize("call", ["loglik", "posterior", "mcmc", "diagnose"])
@pytest.mark.parametrize("stage", ["the model", "vmap", "recording"])
def test_weights_are_restored_after_other_uses(call, stage, monkeypatch):
    vae = Tutorial()
    program = Program.from_pair(vae.model, vae.guide)
    run = fit(program, BITS, steps=1, lr=1e-9, engine="eager", precision="64-true")
    STAGES[stage](vae, monkeypatch)
    options = {"mcmc": {"chains": 4, "draws": 4, "warmup": 20, "engine": "trace"}, "loglik": {"particles": 200},
               "posterior": {"draws": 60}, "diagnose": {"draws": 20, "particles": 100}}  # fmt: skip
    with unharmed(vae), contextlib.suppress(Exception):
        getattr(ppgen.inference, call)(run, BITS, **options[call])


# -- flat priors of Pyro's, and what a split makes of a site -------------------------------------


def _series(x):
    level = pyro.sample("level", dist.Normal(torch.zeros(4), 2.0).to_event(1))
    pyro.sample("x", dist.Normal(level, 0.5).to_event(1), obs=x)


def test_the_parts_of_a_split_site_have_its_density():
    x, u = torch.tensor([0.3, -1.0, 0.5, 2.0]), torch.tensor([0.1, 0.4, -0.7, 1.2])
    split = Program.from_pair(poutine.reparam(_series, config={"level": SplitReparam([1, 3], -1)}))
    joint = joint_of(split.setup({"x": x}), {"x": x})
    expected = dist.Normal(0.0, 2.0).log_prob(u).sum() + dist.Normal(u, 0.5).log_prob(x).sum()
    assert joint.latents == ("level_split_0", "level_split_1") and joint.improper == joint.latents
    torch.testing.assert_close(joint(u), expected)


@pytest.mark.parametrize("support", [dist.constraints.positive, dist.constraints.ordered_vector])
def test_a_flat_prior_of_pyros_is_ppgens(support):
    shape = (3,) if support.event_dim else ()
    priors = [dist.ImproperUniform(support, (2,), shape), Flat(support, shape).expand([2])]
    programs = [lambda p=p: pyro.factor("f", -pyro.sample("s", p).square().sum()) for p in priors]
    found = [joint_of(Program.from_pair(p).setup({}), {}) for p in programs]
    u = torch.linspace(-1.0, 1.0, found[0].dim)
    torch.testing.assert_close(found[0](u), found[1](u))


@pytest.mark.parametrize("given, said", [({}, True), ({"s": torch.tensor(2.0)}, False)])
def test_draws_from_a_flat_prior_are_said_to_be_none(given, said, caplog):
    def model(x=None):
        s = pyro.sample("s", dist.ImproperUniform(dist.constraints.positive, (), ()))
        with rows(x):
            pyro.sample("x", dist.Normal(0.0, s), obs=x)

    run = fit(Program.from_pair(model), {"x": torch.tensor([0.3, 1.2, -0.4])}, steps=1, engine="eager")
    caplog.clear()
    assert (sample(run, 4, given=given)["s"] > 0).all()
    assert ("'s' is flat and has no draws" in caplog.text) is said


def test_a_prediction_that_cannot_be_drawn_is_said_and_left_out(caplog):
    def model(x):
        k = pyro.sample("k", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(k, 1.0).to_event(0), obs=x + 0 * z)

    run = fit(Program.from_pair(model), {"x": torch.tensor(0.3)}, steps=1, engine="eager")
    tree = posterior(run, {"x": torch.tensor(0.3)}, draws=4)
    assert "posterior_predictive" not in tree.children or "x" not in tree["posterior_predictive"]
    (said,) = {r.message for r in caplog.records if "no predictions of 'x'" in r.message}
    assert "not implemented for 'Long'" in said
    assert "\n" not in said


# -- one dtype ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["eager", "trace"])
def test_the_default_dtype_is_what_a_fit_computes_in(engine):
    held = torch.randn(6, 3)

    def model(y=None):
        b = pyro.sample("b", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", 6):
            return pyro.sample("y", dist.Normal(held @ b, 1.0), obs=y)

    data = {"y": torch.randn(6)}
    run = fit(Program.from_pair(model), data, steps=3, engine=engine)
    assert {p.dtype for p in run.program.parameters()} == {torch.float64}
    assert posterior(run, data, draws=4)["posterior"]["b"].dtype == "float64"


@pytest.mark.parametrize("engine", ["eager", "trace"])
def test_a_program_of_float64_tensors_is_fitted_in_float64(engine, caplog):
    torch.set_default_dtype(torch.float32)
    held = torch.randn(6, 3, dtype=torch.float64)

    def model(y=None):
        b = pyro.sample("b", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", 6):
            return pyro.sample("y", dist.Normal(held @ b, 1.0), obs=y)

    y = torch.randn(6, dtype=torch.float64)
    with caplog.at_level("INFO", "ppgen"):
        run = fit(Program.from_pair(model), {"y": y}, steps=3, engine=engine)
    assert any("computed in float64" in r.message for r in caplog.records)
    assert run.config["fit"]["precision"] == "64-true"
    assert torch.equal(run.example["y"], y)
    with pytest.raises(PpgenError, match="must have the same dtype"):
        fit(Program.from_pair(model), {"y": y}, steps=3, engine=engine, precision="32-true")


def test_dtypes_that_no_precision_mends_are_said_as_they_were_found():
    torch.set_default_dtype(torch.float32)

    def model(y):
        held = torch.ones(2, 2, dtype=torch.float32) @ torch.ones(2, dtype=torch.float64)
        pyro.sample("y", dist.Normal(held[0], 1.0), obs=y)

    with pytest.raises(PpgenError, match="must have the same dtype"):
        fit(Program.from_pair(model), {"y": torch.tensor(0.3)}, steps=1)


def test_a_fit_takes_a_model_as_it_is():
    def model(y):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(m, 1.0), obs=y)

    run = fit(model, {"y": torch.tensor(0.3)}, steps=2)
    assert run.metrics["elbo"] == pytest.approx(
        fit(Program.from_pair(model), {"y": torch.tensor(0.3)}, steps=2).metrics["elbo"]
    )


# -- modules as guides -------------------------------------------------------------------------------------------


def eight_rows(y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("groups", 4):
        a = pyro.sample("a", dist.Normal(mu, 0.3))
    with pyro.plate("data", 8):
        return pyro.sample("y", dist.Normal(a.repeat(2), 1.0), obs=y)


class Guide(PyroModule):
    def forward(self, y=None):
        pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 0.1))
        with pyro.plate("groups", 4):
            pyro.sample("a", dist.Normal(pyro.param("a_loc", torch.zeros(4)), 0.1))


def test_what_pyro_trained_within_a_module_is_where_a_pair_begins():
    y, guide = torch.randn(8) + 2, Guide()
    svi = SVI(eight_rows, guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    for _ in range(20):
        svi.step(y)
    trained = {n: v.detach().clone() for n, v in pyro.get_param_store().items()}
    run = fit(Program.from_pair(eight_rows, guide), {"y": y}, steps=0)
    assert trained["loc"] > 0.5
    assert {n: v.tolist() for n, v in run.params.items()} == {n: v.tolist() for n, v in trained.items()}


@pytest.mark.parametrize("engine", ["eager", "trace"])
def test_an_easy_guide_groups_sites_across_plates(engine):
    @easy_guide(eight_rows)
    def guide(self, y=None):
        self.group(match="mu|a").sample("all", dist.Normal(pyro.param("loc", torch.zeros(5)), 0.3).to_event(1))

    y = torch.randn(8)
    run = fit(Program.from_pair(eight_rows, guide), {"y": y}, steps=1, lr=1e-9, engine=engine)
    pyro.set_rng_seed(0)
    theirs = [-Trace_ELBO().loss(eight_rows, guide, y) for _ in range(400)]
    ours = loglik(run, {"y": y}, particles=400, seed=0).bounds[0]
    assert abs(ours.mean - np.mean(theirs)) < 4.5 * np.std(theirs) * (2 / 400) ** 0.5
    assert posterior(run, {"y": y}, draws=4)["posterior"]["a"].shape == (1, 4, 4)


# -- state, weights by hand, point masses ------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [lambda x: 8 / len(x), lambda x: 2.0], ids=["by its rows", "a constant"])
def test_a_batch_is_weighed_once(weight):
    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)), poutine.scale(scale=weight(x)):
            pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    data = {"x": torch.arange(8.0)}
    with pytest.raises(PpgenError, match="weighs 'x' by 2, and a batch of 4 of 8 rows is weighed by 2 as well"):
        fit(model, data, steps=1, batch_size=4)
    fit(model, data, steps=1, engine="eager")


def test_a_program_that_writes_into_its_data_begins_from_them_at_each_run(caplog):
    def model(x):
        x -= 1.0
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with rows(x):
            pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    x = X6.clone()
    program, u = Program.from_pair(model), torch.tensor([0.4])
    exact = dist.Normal(0.0, 1.0).log_prob(u).sum() + dist.Normal(0.4, 1.0).log_prob(x - 1).sum()
    joint = joint_of(program.setup({"x": x}), {"x": x})
    torch.testing.assert_close(torch.stack([joint(u), joint(u)]), torch.stack([exact, exact]))
    assert "writes into 'x'" in caplog.text
    mcmc(model, {"x": x}, chains=4, draws=4, warmup=20, engine="eager", predictive=False, prior=False)
    assert torch.equal(x, X6)


def test_a_latent_that_draws_from_a_delta_is_no_latent():
    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        d = pyro.sample("d", dist.Delta(2 * m))
        with rows(x):
            e = pyro.sample("e", dist.Delta(d * x / 2))
            pyro.sample("x", dist.Normal(e / x, 1.0), obs=x)

    def plain(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with rows(x):
            pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    data, u = {"x": X6}, torch.tensor([0.4])
    joints = [joint_of(Program.from_pair(p).setup(data), data) for p in (model, plain)]
    assert joints[0].dim == 1
    torch.testing.assert_close(joints[0](u), joints[1](u))
    tree = posterior(fit(model, data, steps=1, engine="eager"), data, draws=3)["posterior"]
    np.testing.assert_allclose(tree["d"], 2 * tree["m"])
    assert tree["e"].shape == (1, 3, 6)


def test_parameters_that_no_run_has_learned_are_said(caplog):
    def model(x):
        s = pyro.param("s", torch.tensor(1.0), constraint=dist.constraints.positive)
        pyro.param("unused", torch.tensor(1.0))
        m = pyro.sample("m", dist.Normal(0.0, s))
        pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    data = {"x": torch.tensor(0.3)}
    mcmc(model, data, chains=4, draws=4, warmup=20, engine="eager", predictive=False, prior=False)
    assert "no run has learned (param:s): they are held" in caplog.text


def test_draws_of_a_point_are_not_corrected():
    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    data = {"x": torch.tensor(0.3)}
    run = fit(model, data, guide="AutoDelta", steps=1, engine="eager")
    with pytest.raises(PpgenError, match="gives the latent 'm' as a point"):
        posterior(run, data, corrected=True)


@pytest.mark.parametrize("block", [2**20, 16])
def test_log_p_of_rows_in_the_last_dimension_of_another_column(block, monkeypatch):
    """The program runs on all its rows only: a few of x do not go with all of y."""

    def model(x, y):
        with pyro.plate("d", len(x), dim=-1):
            pyro.sample("x", dist.Normal(0.5, 1.0), obs=x)
            with pyro.plate("e", 2, dim=-2):
                pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    monkeypatch.setattr(sys.modules["ppgen.inference.evaluation.loglik"], "BLOCK", block)
    x, y = torch.arange(8.0), torch.arange(16.0).reshape(2, 8) / 8
    exact = dist.Normal(0.5, 1.0).log_prob(x) + dist.Normal(0.0, 1.0).log_prob(y).sum(0)
    found = loglik(Program.from_pair(model), {"x": x, "y": y}, particles=4).best
    torch.testing.assert_close(torch.as_tensor(found.values), exact)


def test_data_that_no_draw_of_a_guide_has_room_for():
    def model(x):
        top = pyro.sample("top", dist.Gamma(2.0, 4.0))
        with rows(x):
            pyro.sample("x", dist.Uniform(0.0, top, validate_args=False), obs=x)

    with pytest.raises(PpgenError, match="'x' of the model is -inf; where that site's support depends on latents"):
        fit(model, {"x": torch.tensor([3.0, 9.0])}, steps=20, engine="eager")


FILE = """
from functools import partial
import pyro, torch
from pyro import poutine
from pyro.distributions import Normal
from pyro.nn import PyroModule

def base(x, width=1.0):
    m = pyro.sample("m", Normal(0.0, width))
    with pyro.plate("data", len(x)):
        pyro.sample("x", Normal(m, 1.0), obs=x)

class Net(PyroModule):
    def forward(self, x):
        base(x, 3.0)

model = """


@pytest.mark.parametrize(
    ("made", "name"),
    [("partial(base, width=3.0)", ""), ("poutine.scale(base, scale=1.0)", ""), ("Net()", ""), ("Net()", ":model")],
)
def test_a_model_that_is_no_function_is_found_in_its_file_again(made, name, tmp_path):
    (tmp_path / "mine.py").write_text(FILE + made)
    program = catalog.build(catalog.find(f"{tmp_path / 'mine.py'}{name}"), {})
    run = fit(program, {"x": X6}, steps=2, engine="eager", out=tmp_path / "run")
    again = Run.load(tmp_path / "run", trust=True)
    assert {n: v.tolist() for n, v in again.params.items()} == {n: v.tolist() for n, v in run.params.items()}
    assert loglik(again, {"x": X6}, particles=4).best.mean == loglik(run, {"x": X6}, particles=4).best.mean
