"""Missing values, on a Gaussian, whose conditionals are known."""

import math

import pytest
import torch
from known import KnownChain, draws_agree

from ppgen import PpgenError
from ppgen.inference.impute import impute


def conditional(known, value):
    """Mean and variance of x[1] given x[0]."""
    c = known.data.covariance_matrix
    return known.mean[1] + c[1, 0] / c[0, 0] * (value - known.mean[0]), c[1, 1] - c[1, 0] ** 2 / c[0, 0]


@pytest.mark.parametrize("value", [-1.0, 2.5])
def test_the_conditional_of_a_gaussian(value):
    """Over runs of 64 particles, one draw of each: independent draws of the conditional."""
    known = KnownChain()
    x = torch.tensor([[value, math.nan]]).double().repeat(2000, 1)
    drawn = impute(known, x, particles=64, steps=100, seed=0)[0]
    assert (drawn[:, 0] == value).all()
    mean, var = conditional(known, value)
    draws_agree(drawn[:, 1], mean, var)


def test_setting_the_known_values_without_weights_would_not_do():
    """One particle has no weights: the draw then ignores much of what the known value says."""
    known = KnownChain()
    x = torch.tensor([[2.5, math.nan]]).double().repeat(2000, 1)
    drawn = impute(known, x, particles=1, steps=120, seed=0)[0]
    assert abs(float(drawn[:, 1].mean() - conditional(known, 2.5)[0])) > 0.1


def test_nothing_missing_and_everything_missing():
    known = KnownChain()
    x = known.data.sample((2000,))
    assert torch.equal(impute(known, x, particles=2, steps=5)[0], x)
    drawn = impute(known, x, [False, False], particles=2, steps=200, seed=1)[0]
    draws_agree(drawn, known.mean, known.data.variance)


def test_several_draws_of_a_row():
    known = KnownChain()
    x = torch.tensor([[0.0, math.nan], [math.nan, 1.0]]).double()
    drawn = impute(known, x, draws=5, particles=8, steps=10, seed=0)
    assert drawn.shape == (5, 2, 2) and (drawn[:, 0, 0] == 0).all() and (drawn[:, 1, 1] == 1).all()
    assert len(drawn[:, 0, 1].unique()) == 5


def test_errors():
    known = KnownChain()
    with pytest.raises(PpgenError, match="draws is 9, particles 4"):
        impute(known, torch.zeros(1, 2).double(), draws=9, particles=4)
    with pytest.raises(PpgenError, match=r"known has the shape \(3,\)"):
        impute(known, torch.zeros(1, 2).double(), [True, False, True])
