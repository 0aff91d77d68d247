"""Tempered SMC: log p(x) and the mass of modes against closed forms, and what it is made of."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pyro
import pytest
import torch
from pyro.distributions import Dirichlet, HalfCauchy, Normal, StudentT

from ppgen import PpgenError
from ppgen.distributions import Flat
from ppgen.engine.density.pathfinder import climb
from ppgen.inference import load_findings, mcmc, verdict
from ppgen.inference.sampling.kernels.smc import KEEP, _matched, _next, _Reference, _Start, sample, systematic
from ppgen.inference.sampling.weighted import Mixture, mixture_of
from ppgen.inference.verdicts import mcmc_diagnostics
from ppgen.inference.verdicts.findings import Finding
from ppgen.inference.verdicts.mode_search import places

ONE = {"one": torch.ones(1)}
WEIGHTS, LOCS = torch.tensor([0.7, 0.3]), torch.tensor([0.0, 40.0])


def smc(model, data=ONE, **options):
    return mcmc(model, data, "smc", engine="trace", predictive=False, prior=False, **options)


def two_modes(prior):
    """0.7 N(0, 1) + 0.3 N(40, 1) times e^1.5, whatever the prior."""

    def model(one):
        x = pyro.sample("x", prior)
        here = torch.logsumexp(Normal(LOCS, 1.0).log_prob(x) + WEIGHTS.log(), -1)
        pyro.factor("f", here + 1.5 - (0.0 if isinstance(prior, Flat) else prior.log_prob(x)))

    return model


def holds(tree, exact):
    """log Z within 3.5 standard errors, which are small."""
    assert tree.attrs["log_evidence_se"] < 0.1
    assert abs(tree.attrs["log_evidence"] - exact) < 3.5 * tree.attrs["log_evidence_se"] + 1e-3


@pytest.mark.parametrize(
    "prior", [Normal(0.0, 60.0), pytest.param(Flat(), marks=pytest.mark.slow)], ids=["proper", "flat"]
)
def test_two_modes_keep_their_proportions(prior):
    tree = smc(two_modes(prior), seed=0)
    holds(tree, 1.5)
    x = tree["posterior"]["x"].values
    share = (x > 20).mean(-1)  # of each island
    se = share.std(ddof=1) / len(share) ** 0.5
    assert abs(share.mean() - 0.3) < 4 * se < 0.06
    assert verdict(load_findings(tree)) == "fine"


def test_a_tail_is_told_by_the_slope_of_the_density_where_draws_do_not_show_it(monkeypatch):
    """Without an sd: the largest of 8 000 draws need not tell."""

    def model(one):
        pyro.sample("t", StudentT(2.0, 0.0, 1.0))
        pyro.factor("one", one.sum())

    light = Finding("tail_khat", "", -math.inf, 0.35, "fine", {"others": 0})
    monkeypatch.setattr(mcmc_diagnostics, "_heavy_tails", lambda latents: light)
    said = {f.measure: f for f in load_findings(smc(model))}["tail_khat"]
    assert said.verdict == "look" and said.where == "t"


def test_evidence_of_a_conjugate_model_is_exact():
    x = torch.tensor([1.0, 2.5, -0.3, 0.8])

    def model(x):
        m = pyro.sample("m", Normal(0.0, 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", Normal(m, 1.0), obs=x)

    cov = torch.eye(4) + 4.0
    holds(smc(model, {"x": x}), float(torch.distributions.MultivariateNormal(torch.zeros(4), cov).log_prob(x)))


@pytest.mark.slow
def test_a_prior_with_a_funnel_is_where_it_begins():
    """The posterior is the prior: no fitted normal would begin in its neck."""

    def model(one):
        v = pyro.sample("v", Normal(0.0, 3.0))
        pyro.sample("x", Normal(torch.zeros(9), (v / 2).exp()).to_event(1))
        pyro.factor("nothing", torch.zeros(()))

    tree = smc(model)
    holds(tree, 0.0)
    v = tree["posterior"]["v"].values
    assert abs(v.mean()) < 0.15 and abs(v.std() / 3 - 1) < 0.05


def test_constrained_latents_have_their_jacobian():
    """A simplex and a scale: Dirichlet-multinomial, and p(y) of a scale by quadrature."""
    counts, y = torch.tensor([5.0, 2.0, 1.0]), torch.tensor([0.5, -1.5])

    def model(counts, y):
        p = pyro.sample("p", Dirichlet(torch.full((3,), 0.5)))
        pyro.factor("f", (counts * p.log()).sum())
        s = pyro.sample("s", HalfCauchy(1.0))
        pyro.factor("g", Normal(0.0, s).log_prob(y).sum())

    a = torch.full((3,), 0.5)
    simplex = torch.lgamma(a.sum()) - torch.lgamma(a.sum() + 8) + (torch.lgamma(a + counts) - torch.lgamma(a)).sum()
    t = torch.linspace(-12, 12, 20_001).double()
    s = t.exp()
    log_f = HalfCauchy(torch.ones(()).double()).log_prob(s) + t + Normal(0.0, s[:, None]).log_prob(y).sum(-1)
    scale = torch.logsumexp(log_f, 0) + math.log(float(t[1] - t[0]))
    holds(smc(model, {"counts": counts, "y": y}), float(simplex + scale))


def test_islands_are_joined_by_their_evidence():
    """400 islands of 16 particles: one that has missed the narrow mode has a small Z, and counts by it."""
    locs, sds = torch.tensor([0.0, 40.0]), torch.tensor([1.0, 0.2])

    def target(u):
        u = u.detach().requires_grad_()
        with torch.enable_grad():
            lp = torch.logsumexp(Normal(locs, sds).log_prob(u) + math.log(0.5), -1)
        return lp.detach(), torch.autograd.grad(lp.sum(), u)[0]

    wide = Mixture(torch.zeros(1), torch.zeros(1, 1), torch.full((1, 1, 1), 30.0))
    g = torch.Generator().manual_seed(0)
    q = _Reference(lambda n: wide.draw(n, g), wide.value_and_grad, None)
    joint = SimpleNamespace(dim=1, program=SimpleNamespace(name="two"))
    found = sample(joint, _Start(target, q, 400), draws=16, warmup=50, generator=g)
    assert abs(found.evidence.log_z) < 4 * found.evidence.se < 0.5
    assert float((found.u > 20).float().mean()) == pytest.approx(0.5, abs=0.08)


def test_the_same_seed_gives_the_same_draws():
    a, b, c = (smc(two_modes(Normal(0.0, 60.0)), chains=2, draws=40, seed=s) for s in (3, 3, 4))
    assert (a["posterior"]["x"].values == b["posterior"]["x"].values).all()
    assert (a["posterior"]["x"].values != c["posterior"]["x"].values).any()


def test_too_few_temperatures_are_said():
    def far(one):
        x = pyro.sample("x", Normal(torch.zeros(300), 1.0).to_event(1))
        pyro.factor("f", Normal(3.0, 0.1).log_prob(x).sum())

    with pytest.raises(PpgenError, match=r"2 temperatures took the particles of far to β = 0\.\d+"):
        smc(far, chains=2, draws=40, warmup=2)


def test_particles_that_disagree_are_not_believed():
    """Forty separated modes, and 16 particles an island."""
    where = torch.linspace(-1000, 1000, 41)

    def model(one):
        x = pyro.sample("x", Flat())
        pyro.factor("f", torch.logsumexp(Normal(where, 0.5).log_prob(x), -1))

    assert verdict(load_findings(smc(model, chains=8, draws=16))) != "fine"


def test_the_next_temperature_leaves_a_share_effective():
    ratio = 50 * torch.randn(4, 1000, generator=torch.Generator().manual_seed(0)).double()
    ratio[:, :100] = -torch.inf  # outside of the support: gone at once, and not counted
    beta = _next(ratio, 0.1)
    log_w = (beta - 0.1) * ratio
    share = ((2 * log_w.logsumexp(-1) - (2 * log_w).logsumexp(-1)).exp() / 900).mean()
    assert float(share) == pytest.approx(KEEP, abs=1e-3)
    assert _next(ratio, 1 - 1e-9) == 1.0


def test_systematic_resampling_is_even_and_keeps_the_order():
    g = torch.Generator().manual_seed(0)
    w = torch.rand(3, 200, generator=g).double()
    index = systematic(w.log(), g).reshape(3, 200)
    for i, row in enumerate(index):
        assert (row.diff() >= 0).all() and int(row[0]) >= 200 * i and int(row[-1]) < 200 * (i + 1)
        copies = torch.bincount(row - 200 * i, minlength=200)
        assert ((copies - 200 * w[i] / w[i].sum()).abs() < 1).all()


def test_the_gradient_of_a_mixture_is_that_of_its_log_density():
    g = torch.Generator().manual_seed(0)
    roots = torch.eye(3).double() + torch.randn(2, 3, 3, generator=g).double().tril(-1)
    q = Mixture(torch.tensor([0.0, -1.0]).double(), torch.randn(2, 3, generator=g).double(), roots)
    u = (3 * torch.randn(50, 3, generator=g).double()).requires_grad_()
    value, gradient = q.value_and_grad(u)
    (exact,) = torch.autograd.grad(value.sum(), u)
    assert torch.allclose(gradient, exact)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_separated_modes_over_seeds(seed):
    """Mass of modes within 4 standard errors, log Z within 3: two modes, a sign, wide and narrow."""
    tree = smc(two_modes(Normal(0.0, 60.0)), seed=seed)
    assert abs(tree.attrs["log_evidence"] - 1.5) < 3 * tree.attrs["log_evidence_se"]

    def wide_and_narrow(one):
        x = pyro.sample("x", Normal(torch.zeros(10), 5.0).to_event(1))
        each = Normal(0.0, torch.tensor([[1.0], [0.1]])).log_prob(x).sum(-1) + math.log(0.5)
        pyro.factor("f", torch.logsumexp(each, -1) - Normal(0.0, 5.0).log_prob(x).sum())

    tree = smc(wide_and_narrow, seed=seed)
    assert abs(tree.attrs["log_evidence"]) < 3 * tree.attrs["log_evidence_se"] + 1e-3
    narrow = ((tree["posterior"]["x"].values ** 2).sum(-1) < 1).mean(-1)
    assert abs(narrow.mean() - 0.5) < 4 * narrow.std(ddof=1) / len(narrow) ** 0.5


def hierarchy(groups=40, noise=0.1):
    """v ~ N(0, 1), z_j ~ N(0, 1), y_j ~ N(e^v z_j, 0.1²), and log p(y): given v, y_j ~ N(0, e^(2v) + 0.01).

    The maximum over v and z is where e^v is large and all z are small, far from the mass.
    """
    y = 0.5 * torch.randn(groups, generator=torch.Generator().manual_seed(0)).double()

    def target(u):
        u = u.detach().requires_grad_()
        with torch.enable_grad():
            v, z = u[:, 0], u[:, 1:]
            off = (y - v.exp()[:, None] * z) / noise
            lp = -0.5 * (v**2 + (z**2).sum(-1) + (off**2).sum(-1)) - groups * math.log(noise)
            lp = lp - 0.5 * (1 + 2 * groups) * math.log(2 * math.pi)
            return lp.detach(), torch.autograd.grad(lp.sum(), u)[0]

    v = torch.linspace(-4, 3, 4001).double()
    lp = Normal(0.0, ((2 * v).exp() + noise**2).sqrt()[:, None]).log_prob(y).sum(-1) + Normal(0.0, 1.0).log_prob(v)
    return target, float(torch.logsumexp(lp, 0)) + math.log(7 / 4000)


def test_normals_of_maxima_far_from_the_mass_are_led_to_it():
    target, log_z = hierarchy()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        start = 4 * torch.rand(8, 41, generator=generator).double() - 2
        found = [(n.m, n.L) for n in places(target, climb(target, start, generator=generator))]
        estimates = []
        for q in (mixture_of(found, target, generator), _matched(found, target, generator)):
            u = q.draw(4000, generator)
            log_w = target(u)[0] - q.log_prob(u)
            estimates.append(float(torch.logsumexp(log_w, 0)) - math.log(4000) - log_z)
    assert estimates[0] < -3 and abs(estimates[1]) < 0.3
