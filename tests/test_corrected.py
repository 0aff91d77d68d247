"""Draws of every distribution are those of its density, and every support that a latent may have has its bijection.

For x ~ p_θ,  E[∂ log p_θ(x) / ∂θ] = 0  and  E[q(x) / p_θ(x)] = 1,  which a sampler of another law does not give.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from known_distributions import DISTRIBUTIONS
from pyro.infer.reparam import ProjectedNormalReparam
from torch.distributions import biject_to

from ppgen import PpgenError, Program
from ppgen.inference import fit, mcmc

# Draws come one after the other, or are not drawn; Empirical's density is that of single values.
ONE_BY_ONE = ("CoalescentTimes", "SpanningTree", "Stable", "StableWithLogProb", "Rejector", "SineBivariateVonMises")
NONE = ("Delta", "Empirical", "TruncatedPolyaGamma", "Uniform")
DRAWN = [
    pytest.param(n, marks=pytest.mark.slow) if n in ONE_BY_ONE and n != "CoalescentTimes" else n
    for n, known in DISTRIBUTIONS.items() if known.value is None and n not in NONE
]  # fmt: skip
E = 1e-5


@pytest.mark.parametrize("name", DRAWN)
def test_draws_are_those_of_the_density(name, double):
    known = DISTRIBUTIONS[name]
    apart = name in ONE_BY_ONE
    n = 3_000 if apart else 20_000
    torch.manual_seed(3)
    p = known.tensors(known.p)
    d = known(*p)
    x = torch.stack([d.sample() for _ in range(n)]) if apart else d.sample((n,))

    def log_prob(parameters):
        own = known(*parameters)
        found = torch.stack([own.log_prob(v) for v in x]) if apart else own.log_prob(x)
        return found.reshape(n, -1).sum(1)

    def z(values, mean):
        return float((values.mean() - mean) / (values.std() / math.sqrt(n))) if values.std() > 1e-9 else 0.0

    found = {"ratio": z((log_prob(known.tensors(known.q)) - log_prob(p)).exp(), 1.0)}
    for i, t in enumerate(p):
        for j in range(t.numel()):
            up, down = ([u.clone() for u in p] for _ in range(2))
            up[i].view(-1)[j] += E
            down[i].view(-1)[j] -= E
            found[f"score {i}, {j}"] = z((log_prob(up) - log_prob(down)) / (2 * E), 0.0)
    assert max(map(abs, found.values())) < 4.5, found


@pytest.mark.parametrize(
    "make", [lambda n: dist.Binomial(n, torch.tensor(0.3)), lambda n: dist.BetaBinomial(1.0, 1.0, n)]
)
def test_missing_trials_are_drawn_as_missing(make):
    """The draw of torch's had no end."""
    with pyro.validation_enabled(False):
        drawn = make(torch.tensor([5.0, torch.nan])).sample((100,))
    assert bool(drawn[:, 1].isnan().all()) and bool(((drawn[:, 0] >= 0) & (drawn[:, 0] <= 5)).all())


@pytest.mark.parametrize("dim, eta", [(2, 1.5), (3, 1.0), (5, 0.7), (5, 4.0)])
def test_correlations_of_lkj_are_those_of_its_beta(dim, eta, double):
    """Each entry of the matrix is 2 Beta(a, a) - 1, a = η + d/2 - 1, of variance 1 / (2a + 1)."""
    torch.manual_seed(0)
    for d in (dist.LKJCholesky(dim, eta), dist.LKJCholesky(dim, torch.tensor(eta)).expand((1,))):
        root = d.sample((40_000,)).reshape(-1, dim, dim)
        entries = (root @ root.mT)[:, *torch.tril_indices(dim, dim, -1)]
        square = entries**2
        error = square.std(0) / math.sqrt(len(square))
        assert bool(((square.mean(0) - 1 / (2 * eta + dim - 1)).abs() < 4.5 * error).all())


def test_coalescent_times_are_drawn_at_their_rate(double):
    """Two leaves at 0 and -1 meet an exponential time of that rate before the earlier one."""
    torch.manual_seed(0)
    rate = torch.tensor([0.2, 5.0])
    found = -1 - dist.CoalescentTimes(torch.tensor([0.0, -1.0]), rate).sample((4_000,))[..., 0]
    assert bool(((found.mean(0) * rate - 1).abs() < 4.5 / math.sqrt(4_000)).all())


def mixture(components):
    return dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), components)


ENDS = torch.tensor([2.0, 3.0, 4.0])
BOTH = (torch.tensor([0.5, -1.0]), torch.tensor([1.0, 2.0]), torch.tensor([0.3, -0.5]))

SUPPORTS = {
    "positive definite": (dist.Wishart(torch.tensor(5.0), torch.eye(3)), (6,)),
    "Pareto, both kinds": (dist.GeneralizedPareto(*BOTH), (2,)),
    "mixture on the line": (mixture(dist.Normal(torch.zeros(3, 2), 1.0)), (3,)),
    "mixture of positive": (mixture(dist.Gamma(torch.ones(2), 1.0)), ()),
    "mixture on one interval": (mixture(dist.Uniform(torch.ones(2, 3), ENDS).to_event(1)), (3,)),
}


@pytest.mark.parametrize("name", SUPPORTS)
def test_a_support_has_its_bijection(name, double):
    d, shape = SUPPORTS[name]
    transform = biject_to(d.support)
    torch.manual_seed(1)
    u = torch.randn(shape).double()
    x = transform(u)
    assert bool(d.support.check(x).all()), x
    assert transform.inv(x).shape == torch.Size(shape)
    torch.testing.assert_close(transform.inv(x), u)
    free = torch.tril_indices(3, 3) if name == "positive definite" else None

    def flat(u):
        return (transform(u) if free is None else transform(u)[*free]).reshape(-1)

    full = torch.autograd.functional.jacobian(flat, u).reshape(u.numel(), u.numel())
    found = transform.log_abs_det_jacobian(u, x).sum()
    torch.testing.assert_close(found, torch.linalg.slogdet(full)[1])


def pair(d, guide=None):
    def model(y):
        z = pyro.sample("z", d())
        pyro.sample("y", dist.Normal(z.sum(), 1.0), obs=y)

    return Program.from_pair(model, guide)


def test_a_mixture_as_a_prior_is_sampled(double):
    """z ~ ½ N(-2, 1) + ½ N(2, 1), y ~ N(z, 1) at y = 1: weights as e^(-9/4) and e^(-1/4), means halfway to y."""
    z = mcmc(pair(lambda: mixture(dist.Normal(torch.tensor([-2.0, 2.0]), 1.0))), {"y": torch.tensor(1.0)}, seed=0)
    right = 1 / (1 + math.exp(-2.0))
    assert abs(z["posterior"]["z"].values.mean() - (1.5 * right - 0.5 * (1 - right))) < 0.05


def test_a_wishart_has_a_guide_by_name():
    fit(pair(lambda: dist.Wishart(torch.tensor(5.0), torch.eye(2)), "AutoNormal"), {"y": torch.tensor(1.0)}, steps=2)


WITHOUT = {
    "ProjectedNormalReparam": lambda: dist.ProjectedNormal(torch.ones(2)),
    "different supports": lambda: mixture(dist.Uniform(torch.zeros(2), torch.tensor([1.0, 2.0]))),
}


@pytest.mark.parametrize("said", WITHOUT)
def test_a_support_without_a_bijection_is_said(said):
    d, data = WITHOUT[said], {"y": torch.tensor(1.0)}
    for run in (mcmc, fit):
        for guide in ("AutoNormal", "flow"):
            with pytest.raises(PpgenError, match=f"the latent 'z' .*{said}"):
                run(pair(d, guide), data)


def test_the_remedy_for_a_direction_works():
    def model(y):
        z = pyro.sample("z", dist.ProjectedNormal(torch.ones(2)))
        pyro.sample("y", dist.Normal(z.sum(), 1.0), obs=y)

    turned = pyro.poutine.reparam(model, {"z": ProjectedNormalReparam()})
    fit(Program.from_pair(turned, "AutoNormal"), {"y": torch.tensor(1.0)}, steps=2)


def test_directions_in_float32_are_on_the_sphere_in_float64(caplog):
    """They were refused of ProjectedNormal, and of VonMises3D "what is called log p(x) is none" was said."""
    torch.manual_seed(0)
    x = torch.nn.functional.normalize(torch.tensor([1.0, 0.0, 0.0]) + 0.4 * torch.randn(40, 3), dim=-1)
    assert bool((x.double().norm(dim=-1) - 1).abs().max() > 1e-9)

    def model(x):
        direction = pyro.sample("direction", dist.Normal(torch.zeros(3), 5.0).to_event(1))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.ProjectedNormal(direction), obs=x)

    mean = mcmc(model, {"x": x}, chains=8, draws=100, warmup=100, predictive=False).posterior.direction.mean(
        ("chain", "draw")
    )
    towards = x.mean(0) / x.mean(0).norm()  # the posterior's direction, up to its prior, and of 40 rows
    assert float(mean.values @ towards.double().numpy()) / float((mean.values**2).sum() ** 0.5) > 0.995
    assert "support" not in caplog.text
    assert not bool(dist.constraints.sphere.check(1.001 * x.double()).any())
    assert bool(dist.constraints.corr_cholesky.check(dist.LKJCholesky(4, 1.0).sample((9,)).double()).all())
