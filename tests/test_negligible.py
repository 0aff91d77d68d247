"""Modes of next to no mass: two normals, whose shares are what they are made with."""

import logging
import math

import pyro
import pytest
import torch
from pyro.distributions import Normal

from ppgen.inference import load_findings, mcmc, verdict
from ppgen.inference.sampling.kernels import NEGLIGIBLE
from ppgen.inference.sampling.negligible import negligible_modes

FAR = 12.0


def two(share, dim, scale=1.0):
    """(1 − s) N(0, I) + s N(12, scale² I), times e³, and its gradient; and draws of either."""
    loc = torch.stack([torch.zeros(dim), torch.full((dim,), FAR)]).double()
    sd = torch.tensor([[1.0], [scale]]).double()
    weights = torch.tensor([1 - share, share]).double().log() + 3.0

    def target(u):
        u = u.detach().requires_grad_()
        with torch.enable_grad():
            each = Normal(loc, sd).log_prob(u[:, None]).sum(-1)
            lp = torch.logsumexp(each + weights, -1)
            return lp.detach(), torch.autograd.grad(lp.sum(), u)[0]

    def draws(which, n=44, seed=1):
        """(n, chains, dim), of the mode that each chain is in."""
        noise = torch.randn(n, len(which), dim, generator=torch.Generator().manual_seed(seed)).double()
        return loc[which] + sd[which] * noise

    return target, draws


def found(target, u):
    lp = target(u.flatten(0, 1))[0].reshape(u.shape[:2])
    return negligible_modes(target, u, lp, torch.Generator().manual_seed(0))


WHICH = torch.tensor([0] * 12 + [1] * 4)


@pytest.mark.parametrize("dim, scale", [(1, 1.0), (5, 1.0), (5, 0.1)])
def test_the_share_of_a_light_mode_is_bounded_from_above(dim, scale):
    share = 1e-7
    target, draws = two(share, dim, scale)
    begun = found(target, draws(WHICH))
    assert begun.chains.tolist() == [12, 13, 14, 15] and share < begun.share < 20 * share
    assert (begun.where - FAR).abs().max() < 5


@pytest.mark.parametrize("share", [1e-3, 0.1, 0.5])
def test_a_mode_that_has_mass_keeps_its_chains(share):
    target, draws = two(share, 3)
    assert found(target, draws(WHICH)) is None


@pytest.mark.slow
def test_chains_on_their_way_into_a_heavy_mode_of_many_dimensions_stay(monkeypatch):
    """Draws 0.6 times as far from its middle as those of a normal were taken for a mode of 3e-8, which has 0.7."""
    monkeypatch.setitem(globals(), "FAR", 4.0)
    target, draws = two(0.7, 150)
    u = draws(WHICH)
    u[:, WHICH == 1] = FAR + 0.6 * (u[:, WHICH == 1] - FAR)
    assert found(target, u) is None


@pytest.mark.parametrize("which", [0 * WHICH, 1 + 0 * WHICH])
def test_chains_that_are_together_are_left_where_they_are(which):
    target, draws = two(1e-7, 3)
    assert found(target, draws(which)) is None


def test_the_neck_of_a_funnel_keeps_its_chains():
    """v ~ N(0, 3), x_i ~ N(0, e^(v / 2)): a neck around v = -8 has 0.0015 of the mass, and no top."""

    def target(u):
        u = u.detach().requires_grad_()
        with torch.enable_grad():
            v, x = u[:, 0], u[:, 1:]
            lp = -(v**2) / 18 - 0.5 * ((x**2).sum(-1) * (-v).exp() + x.shape[1] * v)
            return lp.detach(), torch.autograd.grad(lp.sum(), u)[0]

    generator = torch.Generator().manual_seed(0)
    v = torch.cat([torch.zeros(12), torch.full((4,), -8.0)]) + 0.1 * torch.randn(44, 16, generator=generator)
    x = (v / 2).exp()[..., None] * torch.randn(44, 16, 9, generator=generator)
    assert found(target, torch.cat([v[..., None], x], -1).double()) is None


def light_at_zero(share):
    """Chains begin around 0 more often than at 12."""

    def model():
        z = pyro.sample("z", Normal(0.0, 10.0))
        a, b = Normal(0.0, 1.0).log_prob(z) + math.log(share), Normal(FAR, 1.0).log_prob(z) + math.log1p(-share)
        pyro.factor("mixture", torch.logaddexp(a, b) - Normal(0.0, 10.0).log_prob(z))

    return model


def sampled(share):
    tree = mcmc(light_at_zero(share), {}, chains=32, draws=100, warmup=200, engine="trace", prior=False,
                predictive=False)  # fmt: skip
    return tree["posterior"]["z"].values, load_findings(tree)


def test_chains_in_a_light_mode_begin_anew(caplog):
    caplog.set_level(logging.INFO, "ppgen")
    z, said = sampled(1e-6)
    (one,) = [f for f in said if f.measure == "negligible_modes"]
    assert z.mean() == pytest.approx(FAR, abs=0.15) and z.std() == pytest.approx(1.0, abs=0.1) and z.min() > FAR / 2
    assert verdict(said) == "fine" and 1e-6 < one.figure < 1e-5 < one.threshold == NEGLIGIBLE
    assert str(one) in caplog.text and "began anew from where the others were" in str(one)


def test_chains_in_a_mode_of_a_tenth_stay_there_and_it_is_told():
    z, said = sampled(0.1)
    stayed = (z < FAR / 2).all(1).mean()
    assert stayed > 0.3 and verdict(said) == "wrong"
    assert "negligible_modes" not in {f.measure for f in said}
