"""A fit by minibatches looks at all rows of what it observes, and takes no value for another's."""

import pyro
import pytest
import torch
from pyro.distributions import Bernoulli, Binomial, Gamma, Normal, Poisson

import ppgen
from ppgen import PpgenError, Program
from ppgen.inference import fit
from ppgen.models import VAE, Diffusion, MaskedDiffusion

N, BATCH = 60, 10
ZEROS = torch.zeros(N)


def observing(make):
    """θ ~ N(0, 1), and the sites that `make` observes given it."""

    def model(y, other=None):
        theta = pyro.sample("theta", Normal(0.0, 1.0))
        with ppgen.rows(y):
            make(theta, y, other)

    return Program.from_pair(model, "AutoNormal")


def with_a_row(value, column=ZEROS):
    column = column.clone()
    column[-1] = value
    return column


def fitted(program, data):
    return fit(program, data, steps=2, batch_size=BATCH, engine="trace")


@pytest.mark.parametrize(
    ("bad", "make"),
    [
        (0.5, lambda theta, y, _: pyro.sample("y", Bernoulli(logits=theta), obs=y)),
        (-1.0, lambda theta, y, _: pyro.sample("y", Poisson(theta.exp()), obs=y)),
        (7, lambda theta, y, _: pyro.sample("y", Binomial(5, logits=theta), obs=y.float())),
    ],
    ids=["bernoulli", "poisson", "binomial"],
)
def test_a_value_outside_of_the_support_in_the_last_row(bad, make):
    column = ZEROS.long() if isinstance(bad, int) else ZEROS
    with pytest.raises(PpgenError, match=f"the observed site 'y' .*the data have {bad:g} "):
        fitted(observing(make), {"y": with_a_row(bad, column)})
    fitted(observing(make), {"y": with_a_row(1, column)})


@pytest.mark.parametrize(
    "program",
    [
        Diffusion((1, 2, 2), hidden=(4,), likelihood="discrete", levels=3, high=2.0, prediction="levels"),
        MaskedDiffusion((2, 2), hidden=(4,), levels=3, high=2.0),
        VAE((2, 2), latent=1, hidden=(4,), likelihood="logistic", levels=3, high=2.0),
    ],
    ids=["diffusion", "masked", "vae"],
)
def test_a_grid(program):
    x = (torch.arange(4 * N) % 3).reshape(N, *program.shape).to(torch.uint8)
    fitted(program, {"x": x})
    x[-1, ..., 0] = 7
    with pytest.raises(PpgenError, match="support grid\\(low=0, high=2, levels=3\\), and the data have 7 "):
        fitted(program, {"x": x})


def test_what_is_only_like_a_column_in_the_first_batch_is_none():
    """A hurdle, whose first rows are 0 and 1; another column of the same values; bounds of the rows' own; nan."""

    def hurdle(theta, y, other):
        pyro.sample("any", Bernoulli(logits=theta), obs=(y > 0).float())
        with pyro.poutine.mask(mask=y > 0):
            pyro.sample("y", Gamma(2.0, theta.exp()), obs=y.clamp(min=0.1))

    fitted(observing(hurdle), {"y": with_a_row(5.0)})
    two = observing(lambda theta, y, other: pyro.sample("b", Bernoulli(logits=theta + 0 * other), obs=y.long().float()))
    fitted(two, {"other": with_a_row(0.5), "y": with_a_row(1.0)})
    own = observing(lambda theta, y, n: pyro.sample("y", Binomial(n, logits=theta), obs=y))
    fitted(own, {"y": with_a_row(7.0), "other": with_a_row(9.0, torch.ones(N))})
