"""Chains in the coordinates of a guide: its density by the change of variables, and draws right whatever the guide."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from pyro.distributions import Gamma, Normal

from ppgen import PpgenError, Program
from ppgen.engine import log_joint
from ppgen.engine.density.pullback import Pullback
from ppgen.guides import coordinates
from ppgen.guides.flow import _Pushed
from ppgen.inference import fit, load_findings, mcmc
from ppgen.inference.sampling.kernels import Draws
from ppgen.inference.sampling.through import base_starts, brought_back, guide_weights, through_guide
from ppgen.run import default_dtype

Y = torch.tensor([1.0, 2.0, 4.0]).double()
GUIDES = ("AutoNormal", "AutoDiagonalNormal", "AutoMultivariateNormal", "AutoLowRankMultivariateNormal",
          "AutoIAFNormal(hidden_dim=[6])", "bam", "bam_low_rank(rank=2)", "flow(hidden=(4,))",
          "flow(hidden=(4,), smooth=True)")  # fmt: skip


@pytest.fixture(autouse=True)
def float64():
    with default_dtype(torch.float64):
        yield


def scales(y):
    """A positive latent, one of rows, and one more: what is unconstrained is not what is modelled."""
    s = pyro.sample("s", Gamma(2.0, 1.0))
    with pyro.plate("rows", len(y)):
        a = pyro.sample("a", Normal(0.0, s))
        pyro.sample("y", Normal(a, 1.0), obs=y)
    pyro.sample("b", Normal(a.sum(), 2.0))


def mean(y):
    m = pyro.sample("m", Normal(0.0, 2.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", Normal(m, 1.0), obs=y)


def made(guide, model=scales):
    """Of the guide's name, each parameter somewhere."""
    program = Program.from_pair(model).setup({"y": Y}, guide)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in program.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return program


@pytest.mark.parametrize("guide", GUIDES)
def test_the_density_is_that_of_the_change_of_variables(guide):
    """log p(x, T(e)) + log |det ∂T/∂e|, the determinant by autograd's Jacobian; and T(e) is a draw of the guide."""
    program = made(guide)
    joint = log_joint(program, {"y": Y}, engine="eager")
    outer, e = through_guide(joint, program), torch.randn(5)
    u, ladj = outer.push(e)
    jacobian = torch.autograd.functional.jacobian(lambda v: outer.push(v)[0], e)
    assert torch.allclose(ladj, jacobian.slogdet()[1])
    assert torch.allclose(outer.one(e), joint.one(u) + jacobian.slogdet()[1])
    traced = [Pullback(log_joint(program, {"y": Y}), outer.push)] if guide == "AutoMultivariateNormal" else []
    for value, gradient in ([x[0] for x in o.value_and_grad(e[None])] for o in (outer, *traced)):
        x = e.clone().requires_grad_()
        assert torch.allclose(value, outer.one(e))
        assert torch.allclose(gradient, torch.autograd.grad(outer.one(x), x)[0])
    law = program._autoguide
    log_q = Normal(0.0, 1.0).log_prob(e).sum() - ladj
    values = {n: v.detach() for n, v in joint.unflatten(u).items()}
    with torch.no_grad():
        assert torch.allclose(log_q, _log_prob(law, values, joint), atol=1e-6)


def _log_prob(guide, values, joint):
    """Of a guide at these latents, on the unconstrained scale, by its own law."""
    inner = {n: joint.blocks[n].transform.inv(v).reshape(-1) for n, v in values.items()}
    if hasattr(guide, "of_all"):
        return _Pushed(guide.flow).log_prob(torch.cat([inner[a.name] for a in guide.of_all]))
    if hasattr(guide, "law"):
        return guide.law().log_prob(torch.cat([inner[a.name] for a in guide.latents]))
    if hasattr(guide, "_get_loc_and_scale"):
        each = {n: [p.reshape(-1) for p in guide._get_loc_and_scale(n)] for n in values}
        return sum(Normal(*each[n]).log_prob(v).sum() for n, v in inner.items())
    return guide.get_posterior().log_prob(torch.cat([inner[n] for n in guide._unconstrained_shapes]))


def test_the_order_of_the_latents_is_that_of_the_joint():
    program = made("bam")
    program._autoguide.latents = [a._replace(start=s, stop=s + a.stop - a.start)
                                  for a, s in zip(program._autoguide.latents, (4, 1, 0), strict=True)]  # fmt: skip
    joint = log_joint(program, {"y": Y}, engine="eager")
    e = torch.randn(5)
    u, direct = through_guide(joint, program).push(e)[0], coordinates(program._autoguide, "").push(e)[0]
    assert torch.equal(u[joint.places["s"]], direct[4:]) and torch.equal(u[joint.places["a"]], direct[1:4])
    assert torch.equal(u[joint.places["b"]], direct[:1])


def test_a_wrong_guide_leaves_the_draws_right():
    """A posterior in closed form, through a normal that is four sd off and half as wide."""
    precision = 0.25 + len(Y)
    sd, loc = precision**-0.5, float(Y.sum()) / precision
    run = fit(mean, {"y": Y}, guide="AutoNormal", steps=0, precision="64-true")
    guide = run.program._autoguide
    with torch.no_grad():
        guide.locs.m.fill_(loc + 4 * sd)
        guide.scales.m = torch.tensor(0.5 * sd)
    few = {"chains": 32, "draws": 100, "warmup": 60, "engine": "trace", "predictive": False, "prior": False}
    tree = mcmc(run, {"y": Y}, through=True, **few)
    m = torch.as_tensor(tree["posterior"]["m"].values)
    assert tree.attrs["through"] and m.shape == (32, 100)
    joint = log_joint(run.program, {"y": Y})
    assert torch.allclose(torch.as_tensor(tree["sample_stats"]["lp"].values), joint(m[..., None]), atol=1e-8)
    said = next(f for f in load_findings(tree) if f.measure == "through")
    assert said.verdict == "look" and "reaches beyond the guide" in str(said)
    assert abs(float(m.mean()) - loc) < 0.1 * sd and float(m.std()) == pytest.approx(sd, rel=0.07)


def test_the_posterior_itself_as_a_guide_is_a_standard_normal():
    precision = 0.25 + len(Y)
    joint = log_joint(Program.from_pair(mean), {"y": Y})
    ladj = torch.tensor(-0.5 * math.log(precision))
    outer = Pullback(joint, lambda e: (Y.sum() / precision + e / precision**0.5, ladj))
    e = torch.randn(7, 1)
    value, gradient = outer.value_and_grad(e)
    assert torch.allclose(gradient, -e) and torch.allclose(value + 0.5 * e[:, 0] ** 2, value[0] + 0.5 * e[0, 0] ** 2)
    said = guide_weights(_named(outer), outer.value_and_grad, 0)
    assert said.verdict == "fine" and said.details["share"] == pytest.approx(1.0)
    found = Draws(e[None], {"lp": value[None]}, 0, torch.ones(1), "diag")
    back = brought_back(outer, found)
    assert torch.allclose(back.stats["lp"][0], joint(back.u[0])) and not back.growth.any()


def _named(outer):
    outer.program = made("AutoNormal", mean)
    return outer


def test_starts_where_the_density_is_finite():
    def right(e):
        return torch.where(e[:, 0] > 1.5, 0.0, -torch.inf), torch.zeros_like(e)

    generator = torch.Generator().manual_seed(0)
    assert (base_starts(right, 64, 2, generator).u[:, 0] > 1.5).all()
    with pytest.raises(PpgenError, match="not finite at any draw of the guide"):
        base_starts(lambda e: (torch.full_like(e[:, 0], torch.nan), e), 8, 2, generator)


def test_what_has_no_such_map_is_refused_in_a_sentence():
    data = {"y": Y}
    point = fit(mean, data, guide="AutoDelta", steps=0)
    own = fit(Program.from_pair(mean, lambda y: pyro.sample("m", Normal(0.0, 1.0))), data, steps=0)
    rows = fit(scales, data, guide="flow(amortised=True)", steps=0)
    for run, said in ((point, "it is AutoDelta"), (own, "one of its own"), (rows, "amortised=False")):
        with pytest.raises(PpgenError, match=said):
            mcmc(run, data, through=True)
    good = fit(scales, data, guide="AutoNormal", steps=0)
    with pytest.raises(PpgenError, match="'a' has 2 entries in .* and 3 in its guide"):
        mcmc(good, {"y": Y[:2]}, through=True)
    with pytest.raises(PpgenError, match="leave one of the two out"):
        mcmc(good, data, marginal="a", through=True)
    with pytest.raises(PpgenError, match="kernel 'smc' begins at places of its own"):
        mcmc(good, data, "smc", through=True)


@pytest.mark.slow
def test_a_funnel_through_a_flow():
    """Ten-dimensional, its neck too narrow for plain chains: the scale is normal, as it was before the data."""

    def funnel(one):
        v = pyro.sample("v", Normal(0.0, 3.0))
        pyro.sample("x", Normal(torch.zeros(9), (v / 2).exp()).to_event(1))
        pyro.factor("one", 0.0 * one.sum())

    data = {"one": torch.ones(1)}
    options = {"steps": 2000, "lr": 0.02, "schedule": "cosine", "particles": 16, "precision": "64-true"}
    run = fit(funnel, data, guide="flow(smooth=True)", **options)
    tree = mcmc(run, data, through=True, draws=500, engine="trace", predictive=False, prior=False)
    v = torch.as_tensor(tree["posterior"]["v"].values)
    rhat = next(f for f in load_findings(tree) if f.measure == "rhat")
    assert rhat.verdict == "fine" and abs(float(v.mean())) < 0.1 * 3 and float(v.std()) == pytest.approx(3.0, rel=0.1)
