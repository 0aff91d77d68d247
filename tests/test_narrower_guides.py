"""Guides that are narrower than the prior: right where the likelihood is 0 beyond, and else refused."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from pyro.distributions import Exponential, Normal, Pareto, TransformedDistribution, Uniform
from torch.distributions.transforms import AffineTransform

from ppgen import PpgenError, Program, rows
from ppgen.inference import fit, loglik

Y = torch.tensor([0.3, 0.5, 0.9, 1.8])
N, LARGEST, LEAST = len(Y), 1.8, 0.5


def of_the_largest(y):
    a = pyro.sample("a", Pareto(LEAST, 1.0))
    with rows(y):
        pyro.sample("y", Uniform(0.0, a, validate_args=False), obs=y)


def of_the_mean(y):
    a = pyro.sample("a", Pareto(LEAST, 1.0))
    with rows(y):
        pyro.sample("y", Normal(a, 1.0), obs=y)


def exact(y):
    pyro.sample("a", Pareto(pyro.param("largest", torch.tensor(LARGEST)), 1.0 + N))


def shifted(y):
    beyond = Exponential(pyro.param("rate", torch.tensor(3.0)))
    pyro.sample("a", TransformedDistribution(beyond, [AffineTransform(LARGEST, 1.0)]))


def test_the_posterior_of_a_bound_is_a_guide():
    """∫ LEAST a⁻² a⁻ᴺ da from the largest on, by the exact guide with one draw."""
    run = fit(Program.from_pair(of_the_largest, exact), {"y": Y}, steps=0)
    evidence = math.log(LEAST) - (N + 1) * math.log(LARGEST) - math.log(N + 1)
    assert float(loglik(run, {"y": Y}, particles=1).best.values.sum()) == pytest.approx(evidence, abs=1e-5)


def test_a_transformed_guide_beyond_the_bound_is_one():
    fit(Program.from_pair(of_the_largest, shifted), {"y": Y}, steps=1)


@pytest.mark.parametrize("guide", [exact, shifted])
def test_where_the_likelihood_is_not_0_beyond_it_is_refused(guide):
    with pytest.raises(PpgenError, match="narrower"):
        fit(Program.from_pair(of_the_mean, guide), {"y": Y}, steps=0)
