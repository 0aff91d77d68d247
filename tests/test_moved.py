"""Moves that leave the posterior as it is: draws of it stay, and draws that end too early do not."""

from __future__ import annotations

import pyro
import pytest
import torch
from known import normal
from pyro.distributions import Normal

from ppgen.inference import infer
from ppgen.inference.sampling import infer as ladder
from ppgen.inference.verdicts.moved import _change, moved


def crescent(u):
    """a ~ N(0, 10), b ~ N(0.03 (a² − 100), 1): log joint and gradient."""
    a, b = u.unbind(-1)
    off = b - 0.03 * (a**2 - 100)
    return -(a**2) / 200 - off**2 / 2, torch.stack([-a / 100 + 0.06 * a * off, -off], -1)


def of_crescent(n, seed):
    a, e = 10 * normal(n, seed=seed).double(), normal(n, seed=seed + 1000).double()
    return torch.stack([a, 0.03 * (a**2 - 100) + e], -1)


def standard(u):
    return -0.5 * u.square().sum(-1), -u


def equal(u):
    return torch.full((len(u),), 1 / len(u)).double()


def test_draws_of_the_posterior_stay():
    for seed in range(10):
        u = of_crescent(4000, seed)
        assert moved(crescent, u, equal(u), ["a", "b"], seed=seed).verdict == "fine"


def test_weighted_draws_of_the_posterior_stay():
    """Of a normal with 100 latents that are correlated, by draws that are half as wide again in one of them."""
    for seed in range(3):
        z = normal(8000, 100, seed=seed).double()
        z[:, 0] *= 1.5
        w = torch.softmax(-0.5 * z[:, 0].square() * (1 - 1 / 1.5**2), 0)
        assert moved(standard, z, w, [str(i) for i in range(100)], seed=seed).verdict == "fine"


@pytest.mark.parametrize("seed", range(3))
def test_a_crescent_without_its_tips(seed):
    """All weights are equal, and the scores are those of the posterior wherever there are draws."""
    u = of_crescent(10_000, seed)
    u = u[u[:, 0].abs() < 17]
    found = moved(crescent, u, equal(u), ["a", "b"], seed=seed)
    assert found.verdict != "fine" and found.where == "b" and found.figure > 0.1 and "moves change" in str(found)


def test_draws_that_are_too_narrow_or_beside_it():
    narrow, beside = 0.7 * normal(4000, 3).double(), normal(4000, 3).double() + torch.tensor([0.0, 0.4, 0.0])
    found = moved(standard, narrow, equal(narrow), "abc")
    assert found.verdict == "wrong" and found.details["of"] == "sd"
    found = moved(standard, beside, equal(beside), "abc")
    assert found.verdict == "wrong" and found.where == "b" and found.details["of"] == "mean"
    assert found.figure == pytest.approx(-0.4, abs=0.1)


def test_the_standard_error_of_a_change_is_its_spread():
    """f(z') and f(z) with correlation 0.8, of equal mean."""
    figures = []
    for seed in range(200):
        f, noise = normal(400, 1, seed=seed).double(), normal(400, 1, seed=seed + 999).double()
        figures.append(torch.cat(_change(f, f[:200], 0.8 * f[:200] + 0.6 * noise[:200], equal(f))))
    change, se = torch.stack(figures).unbind(-1)
    assert abs(float(change.mean())) < 4 * float(change.std()) / 200**0.5
    assert float(change.std() / se.mean()) == pytest.approx(1, abs=0.15)


@pytest.mark.slow
def test_a_flow_without_the_tips_is_not_believed(monkeypatch):
    """It was: effective draws three quarters, k-hat 0.35, and an sd of 0.57 times the true one."""

    def model(one):
        a = pyro.sample("a", Normal(0.0, 10.0))
        pyro.sample("b", Normal(0.03 * (a**2 - 100), 1.0))

    monkeypatch.setattr(ladder, "LADDER", (ladder.flow,))
    tree = infer(model, {"one": torch.ones(1).double()}, predictive=False, prior=False)
    off = abs(tree["posterior"]["b"].values.std() / 18**0.5 / 1.0274 - 1)
    assert tree.attrs["verdict"] != "fine" or off < 0.15
