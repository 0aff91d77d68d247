"""The search for modes that draws have not seen, on densities whose modes and masses are known."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from known import normal
from pyro.distributions import MixtureSameFamily, Normal
from torch.distributions import Categorical, Independent, MultivariateNormal

import ppgen
from ppgen import Program
from ppgen.inference import diagnose, fit, mcmc
from ppgen.inference.evaluation.estimates import Evidence
from ppgen.inference.verdicts.findings import load_findings, verdict
from ppgen.inference.verdicts.mode_search import _bridge, unseen_modes

LOG_Z = 2.5  # nats, of every density here


def mixture(weights, locs, scales):
    """A mixture of normals, (components, dim)."""
    locs, scales = (torch.as_tensor(v).double().expand(len(weights), -1) for v in (locs, scales))
    return MixtureSameFamily(Categorical(torch.tensor(weights).double()), Independent(Normal(locs, scales), 1))


def density(d):
    def target(u):
        u = u.detach().requires_grad_()
        with torch.enable_grad():
            lp = d.log_prob(u) + LOG_Z
            (g,) = torch.autograd.grad(lp.sum(), u)
        return lp.detach(), g

    return target


class Funnel:
    """v ~ N(0, 3), x ~ N(0, e^(v/2)) in nine dimensions."""

    def log_prob(self, u):
        x = Normal(0.0, (u[:, :1] / 2).exp(), validate_args=False)  # a climb ends where the scale is 0
        return Normal(0.0, 3.0).log_prob(u[:, 0]) + x.log_prob(u[:, 1:]).sum(-1)

    def sample(self, shape):
        v = 3 * torch.randn(*shape, 1).double()
        return torch.cat([v, (v / 2).exp() * torch.randn(*shape, 9)], -1)


def search(d, draws, **options):
    torch.manual_seed(1)
    found = unseen_modes(density(d), draws, len(draws), **options)
    assert found is not None
    return found


ALL = slice(None)
TWO = mixture([0.5, 0.5], [[0.0], [40.0]], [[1.0], [1.0]])
UNEVEN = mixture([0.8, 0.2], [[0.0, 0.0], [12.0, 5.0]], [[1.0, 0.5], [0.5, 2.0]])
MIRRORED = mixture([0.5, 0.5], [[-3.0, -3.0], [3.0, 3.0]], [[0.3, 0.3], [0.3, 0.3]])
UNLIKE = mixture([0.9, 0.1], [[-3.0, -3.0], [3.0, 3.0]], [[0.3, 0.3], [0.3, 0.3]])
NESTED = mixture([0.5, 0.5], torch.zeros(2, 10), [[1.0] * 10, [0.1] * 10])
WIDE, NARROW = (mixture([w, 1 - w], torch.zeros(2, 10), [[1.0] * 10, [0.1] * 10]) for w in (0.85, 0.15))
SLOPE = mixture([0.5, 0.5], [[0.0] * 4, [3.0, 3.0, 0.0, 0.0]], [[1.0] * 4, [0.3] * 4])
BESIDE = mixture([0.5, 0.5], [[0.0] * 5, [6.0, 0.0, 0.0, 0.0, 0.0]], [[1.0] * 5, [0.5] * 5])
FEW = mixture([0.999, 0.001], [[0.0], [40.0]], [[1.0], [1.0]])
SITUATIONS = {  # density, which of its draws are seen, verdict, share of the mass that is missing, copies
    "one of two modes": (TWO, lambda u: u[:, 0] < 20, "wrong", 0.5, False),
    "both modes": (TWO, lambda u: u[:, 0] < 99, "fine", 0.0, None),
    "the larger of two": (UNEVEN, lambda u: u[:, 0] < 6, "wrong", 0.2, False),
    "the smaller of two": (UNEVEN, lambda u: u[:, 0] > 6, "wrong", 0.8, False),
    "a mirror image": (MIRRORED, lambda u: u[:, 0] < 0, "look", 0.5, True),
    "a mirror image of another mass": (UNLIKE, lambda u: u[:, 0] > 0, "wrong", 0.9, False),
    "the narrow one of two with one center": (NESTED, lambda u: u.norm(dim=-1) < 0.8, "wrong", 0.5, False),
    "the wide one of two with one center": (NESTED, lambda u: u.norm(dim=-1) > 0.8, "wrong", 0.5, False),
    "a small narrow one in a wide one": (WIDE, lambda u: u.norm(dim=-1) > 0.8, "wrong", 0.15, False),
    "a small wide one around a narrow one": (NARROW, lambda u: u.norm(dim=-1) < 0.8, "wrong", 0.15, False),
    "a narrow one on a wide one's slope": (SLOPE, lambda u: (u[:, :2] - 3).norm(dim=-1) > 1.4, "wrong", 0.5, False),
    "a narrow one beside a wide one": (BESIDE, lambda u: u[:, 0] < 4, "wrong", 0.5, False),
    "a thousandth is missing": (FEW, lambda u: u[:, 0] < 20, "fine", 0.0, None),
}


@pytest.mark.parametrize("name", list(SITUATIONS))
def test_the_mass_that_draws_have_not_seen(name):
    d, seen, expected, share, copies = SITUATIONS[name]
    torch.manual_seed(0)
    u = d.sample((8000,))
    found = search(d, u[seen(u)])
    assert found.verdict == expected, found
    assert found.figure == pytest.approx(share, abs=0.1)
    assert found.details.get("copies") == copies


def test_a_mode_is_found_from_the_prior_and_not_without():
    """A narrow mode far out of the draws' reach: where the prior leads to it, it is found."""
    d = mixture([0.5, 0.5], [[0.0] * 5, [300.0] * 5], [[0.1] * 5, [0.1] * 5])
    u = 0.1 * torch.randn(4000, 5).double()
    assert search(d, u, prior=lambda n: 300 + 5 * torch.randn(n, 5).double()).verdict == "wrong"


@pytest.mark.parametrize("effective", [400.0, 4000.0])
def test_a_narrow_mode_within_the_shell_of_a_wide_one_does_not_stand_for_it(effective):
    """The spike is 1.9 sd from the slab's top, so that all of its draws are in the slab's shell; so are exact ones."""
    torch.manual_seed(0)
    d = mixture([0.6, 0.4], [[0.0], [1.9]], [[0.01], [1.0]])
    u = d.sample((4000,))
    found = search(d, u[u.abs()[:, 0] < 0.04], evidence=Evidence(LOG_Z + math.log(0.6), 0.01))
    assert found.verdict == "wrong" and found.figure == pytest.approx(0.4, abs=0.07)
    exact = unseen_modes(density(d), u, effective)
    assert exact is not None and exact.verdict == "fine", exact


def test_one_of_two_modes_is_missed_in_many_dimensions():
    """What climbs know of so many scales is too little to weigh places by; the normal at a top is enough."""
    torch.manual_seed(0)
    dim = 150
    locs = torch.zeros(2, dim).double()
    locs[1, 0] = 12.0
    u = mixture([1.0], locs[:1], scales := torch.logspace(-1, 1, dim).double()).sample((1000,))
    found = search(mixture([0.5, 0.5], locs, scales), u, prior=lambda n: 30 * torch.randn(n, dim).double())
    assert found.verdict != "fine" and found.figure == pytest.approx(0.5, abs=0.1), found


ALONE = {
    "correlated, 20-D": lambda: MultivariateNormal(
        torch.zeros(20).double(), torch.eye(20).double() + 9 * torch.ones(20, 20).double()
    ),
    "Student's t": lambda: Independent(torch.distributions.StudentT(torch.full((3,), 3.0).double()), 1),
    "funnel": Funnel,
    "skewed": lambda: Independent(torch.distributions.Gumbel(torch.zeros(6).double(), 1.0), 1),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", list(ALONE))
def test_one_mode_whose_draws_are_exact_is_not_suspected(name, seed):
    torch.manual_seed(seed)
    d = ALONE[name]()
    found = search(d, d.sample((4000,)), seed=seed)
    assert found.verdict == "fine", found


def test_bridge_sampling_gives_the_evidence():
    torch.manual_seed(0)
    errors = []
    for seed in range(20):
        u = UNEVEN.sample((2000,))
        e = _bridge(density(UNEVEN), u, [], torch.Generator().manual_seed(seed))
        errors.append((e.log_z - LOG_Z, e.se))
    off = torch.tensor(errors).double()
    assert abs(off[:, 0].mean()) < 4 * off[:, 0].std() / 20**0.5 + 0.01
    assert 0.5 < float(off[:, 0].std() / off[:, 1].mean()) < 2, "the standard error is that of repeated estimates"


def test_what_cannot_be_weighed_is_said():
    torch.manual_seed(0)
    u = TWO.sample((2000,))
    found = search(TWO, u[u[:, 0] < 20], evidence=Evidence(LOG_Z, math.inf))
    assert found.verdict == "look" and math.isnan(found.figure) and "could not be told" in str(found)
    assert unseen_modes(density(TWO), torch.randn(1000, 301).double(), 1000.0) is None, "too many dimensions to search"


def test_chains_in_one_of_two_modes_are_not_believed():
    def model(one):
        th = pyro.sample("th", Normal(0.0, 30.0))
        both = torch.logaddexp(Normal(0.0, 1.0).log_prob(th), Normal(40.0, 1.0).log_prob(th))
        pyro.factor("f", both - Normal(0.0, 30.0).log_prob(th))

    tree = mcmc(model, {"one": torch.ones(1)}, seed=1, prior=False, predictive=False)
    found = {f.measure: f for f in load_findings(tree)}["unseen_modes"]
    assert found.verdict == "wrong" and "th = 40" in str(found)


def test_a_guide_at_one_of_two_modes_is_not_believed():
    def model(y):
        th = pyro.sample("th", Normal(0.0, 5.0))
        with ppgen.rows(y):
            pyro.sample("y", Normal(th**2, 1.0), obs=y)

    y = {"y": 4 + normal(30).double()}
    run = fit(Program.from_pair(model), y, guide="AutoNormal", starts=4, steps=100, lr=0.01, precision="64-true")
    found = diagnose(run, y)
    assert verdict(found.findings) == "look" and "one part of the posterior" in str(found.findings[0])
    assert {f.measure: f for f in found.findings}["unseen_modes"].details["copies"]
