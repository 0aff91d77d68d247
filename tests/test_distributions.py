"""Distributions against float64 and scipy references, and Flat under what is to start from it."""

import math

import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro.distributions import Normal
from pyro.distributions import constraints as pyro_constraints
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.infer.autoguide.initialization import init_to_feasible, init_to_median, init_to_uniform
from pyro.infer.mcmc.util import initialize_model
from scipy.special import expit
from torch.distributions import biject_to, constraints

from ppgen.distributions import DiscretizedLogistic, Flat, GridCategorical, grid
from ppgen.errors import PpgenError

F64 = torch.float64

# ---------------------------------------------------------------- Flat

SUPPORTS = {
    "real": (constraints.real, ()),
    "several reals": (constraints.real, (3,)),
    "matrix of reals": (constraints.real, (2, 3)),
    "positive": (constraints.positive, ()),
    "unit interval": (constraints.unit_interval, ()),
    "interval": (constraints.interval(-3.0, 5.0), (2,)),
    "greater than": (constraints.greater_than(2.0), ()),
    "less than": (constraints.less_than(-1.0), ()),
    "real vector": (constraints.real_vector, (4,)),
    "simplex": (constraints.simplex, (4,)),
    "several simplexes": (constraints.simplex, (3, 4)),
    "ordered": (pyro_constraints.ordered_vector, (4,)),
    "positive ordered": (pyro_constraints.positive_ordered_vector, (4,)),
    "cholesky of correlations": (constraints.corr_cholesky, (3, 3)),
    "correlations": (pyro_constraints.corr_matrix, (3, 3)),
}
EACH = pytest.mark.parametrize("support, shape", SUPPORTS.values(), ids=SUPPORTS)


@EACH
def test_flat_shapes_and_density(support, shape):
    d = Flat(support, shape).expand([5])
    x = d.sample((2,))
    assert x.shape == (2, 5, *shape)
    assert d.event_shape == shape and d.batch_shape == (5,)
    assert d.support.check(x).shape == (2, 5) and d.support.check(x).all()
    assert torch.equal(d.log_prob(x), torch.zeros(2, 5))
    assert d.log_prob(x.double()).dtype == F64
    assert not torch.equal(x[0], x[1])


@EACH
def test_flat_draws_are_uniform_when_unconstrained(support, shape):
    free = biject_to(support).inv(Flat(support, shape, dtype=F64).sample((400,)))
    assert free.abs().max() <= 2 + 1e-6
    assert free.abs().max() > 1.9 and free.min() < -1.5


@EACH
@pytest.mark.parametrize("init", [init_to_feasible, init_to_median, init_to_uniform])
def test_flat_starts_autoguides_and_hmc(support, shape, init):
    def model():
        theta = pyro.sample("theta", Flat(support, shape))
        with pyro.plate("rows", 3):
            pyro.sample("y", Normal(theta.sum(), 1.0), obs=torch.zeros(3))

    for make in (AutoNormal, AutoMultivariateNormal):
        pyro.clear_param_store()
        guide = make(model, init_loc_fn=init)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
        assert all(math.isfinite(svi.step()) for _ in range(2))
        assert guide.median()["theta"].shape == shape
    start, potential, *_ = initialize_model(model, num_chains=1)
    assert potential(start).isfinite()


@pytest.mark.parametrize("support", [constraints.real, constraints.positive], ids=str)
def test_the_posterior_under_flat_is_the_likelihood(support):
    """HMC's potential is -log p(y | mu), less the log Jacobian of the support's transform."""
    y = torch.tensor([1.0, 2.0, 4.5, 0.5])

    def model():
        mu = pyro.sample("mu", Flat(support))
        with pyro.plate("rows", 4):
            pyro.sample("y", Normal(mu, 1.0), obs=y)

    free = torch.tensor(0.7)
    _, potential, *_ = initialize_model(model)
    mu = free if support is constraints.real else free.exp()
    expected = -Normal(mu, 1.0).log_prob(y).sum() - (0.0 if mu is free else free)
    torch.testing.assert_close(potential({"mu": free}), expected)


def test_flat_in_a_plate_with_bounds_of_its_own():
    low = torch.tensor([0.0, 10.0, 20.0], dtype=F64)
    d = Flat(constraints.interval(low, low + 1))
    assert d.expand([3]).sample().dtype == F64
    with pyro.plate("rows", 3):
        x = pyro.sample("x", d)
    assert ((x > low) & (x < low + 1)).all()


def test_flat_outside_its_support():
    with pytest.raises(ValueError, match="within the support"):
        Flat(constraints.positive, validate_args=True).log_prob(torch.tensor(-1.0))
    with pytest.raises(ValueError, match="within the support"):
        Flat(constraints.positive, validate_args=True).expand([2]).log_prob(torch.tensor([1.0, -1]))


@pytest.mark.parametrize(
    "support, shape, said",
    [
        (constraints.simplex, (), "pass its shape"),
        (constraints.corr_cholesky, (3,), "2 dimension"),
        (constraints.corr_cholesky, (3, 2), "pass the shape of one value"),
        (constraints.nonnegative_integer, (), "no bijection"),
        (constraints.boolean, (), "no bijection"),
        (float, (), "expected a constraint"),
    ],
)
def test_flat_refuses(support, shape, said):
    with pytest.raises(PpgenError, match=said):
        Flat(support, shape)


# ---------------------------------------------------------------- discretised logistic


def reference(k, loc, scale, levels):
    """log p of level k of 0..L-1 on [0, 1], from scipy in double precision, None where that fails."""
    upper = 1.0 if k == levels - 1 else expit((k + 0.5 - loc * (levels - 1)) / (scale * (levels - 1)))
    lower = 0.0 if k == 0 else expit((k - 0.5 - loc * (levels - 1)) / (scale * (levels - 1)))
    return math.log(upper - lower) if upper - lower > 1e-9 else None


@settings(max_examples=200, deadline=None)
@given(loc=st.floats(-3, 4), log_scale=st.floats(-7, 4), levels=st.integers(2, 300), data=st.data())
def test_logistic_log_prob_against_scipy(loc, log_scale, levels, data):
    k, scale = data.draw(st.integers(0, levels - 1)), math.exp(log_scale)
    expected = reference(k, loc, scale, levels)
    for dtype, tolerance in ((F64, 1e-6), (torch.float32, 2e-3)):
        d = DiscretizedLogistic(torch.tensor(loc, dtype=dtype), torch.tensor(scale, dtype=dtype), levels=levels)
        found = d.log_prob(torch.tensor(k / (levels - 1), dtype=dtype))
        assert found.dtype == dtype and found <= 0
        if expected is not None:
            # in float32 the argument (k - loc) / scale itself is only as good as its rounding
            slack = 1e-6 * (levels + abs(loc) * levels) / (scale * levels) if dtype != F64 else 0
            assert found.item() == pytest.approx(expected, rel=tolerance, abs=tolerance + slack)


EXTREMES = [
    (loc, scale) for loc in (-1e4, -1.0, 0.0, 0.3, 1.0, 7.0, 1e4) for scale in (1e-12, 1e-6, 1e-3, 0.3, 1e3, 1e12)
]


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("dtype, tolerance", [(F64, 1e-12), (torch.float32, 1e-5)])
def test_logistic_sums_to_one_with_finite_gradients(levels, dtype, tolerance):
    loc, scale = (torch.tensor(v, dtype=dtype, requires_grad=True) for v in zip(*EXTREMES, strict=True))
    d = DiscretizedLogistic(loc, scale, levels=levels)
    log_p = d.log_prob(d.enumerate_support())
    assert log_p.shape == (levels, len(EXTREMES))
    # at a scale far above the grid, 255 differences of order 1e-14 stand beside two halves
    torch.testing.assert_close(log_p.logsumexp(0), torch.zeros_like(loc), atol=tolerance, rtol=0)
    assert log_p.isfinite().all()
    for gradient in torch.autograd.grad(log_p.sum(), (loc, scale)):
        assert gradient.isfinite().all()


def test_logistic_gradients():
    loc = torch.linspace(-0.5, 1.5, 7, dtype=F64, requires_grad=True)
    scale = torch.logspace(-2, 1, 7, dtype=F64).requires_grad_()
    values = grid(levels=17).value(torch.tensor([[0.0], [1], [8], [15], [16]], dtype=F64))

    def log_prob(loc, scale):
        return DiscretizedLogistic(loc, scale, levels=17).log_prob(values)

    assert torch.autograd.gradcheck(log_prob, (loc, scale))


def both_kinds(levels=9, dtype=F64, low=-1.0, high=3.0):
    torch.manual_seed(0)
    return {
        "logistic": DiscretizedLogistic(
            torch.tensor([0.2, 5.0], dtype=dtype), torch.tensor([0.5, 1.0], dtype=dtype), low, high, levels
        ),
        "categorical": GridCategorical(torch.randn(2, levels, dtype=dtype), low, high),
    }


KINDS = pytest.mark.parametrize("kind", ["logistic", "categorical"])


@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_draws_and_moments(kind, dtype):
    d = both_kinds(dtype=dtype)[kind]
    values = d.enumerate_support()
    p = d.log_prob(values).exp()
    torch.testing.assert_close(p.sum(0), torch.ones(2, dtype=dtype))
    torch.testing.assert_close(d.mean, (p * values).sum(0))
    torch.testing.assert_close(d.variance, (p * (values - d.mean) ** 2).sum(0))
    n = 40_000
    torch.manual_seed(1)
    x = d.sample((n,))
    assert x.shape == (n, 2) and x.dtype == dtype and d.support.check(x).all()
    # a frequency's standard error is sqrt(p (1 - p) / n), 0.0025 at most
    frequencies = (x == values[:, None]).to(dtype).mean(1)
    assert ((frequencies - p).abs() <= 4 * (p * (1 - p) / n).sqrt() + 1e-12).all()


@KINDS
def test_expand_and_broadcast(kind):
    d = both_kinds()[kind]
    wide = d.expand([4, 2])
    assert wide.batch_shape == (4, 2) and wide.sample((3,)).shape == (3, 4, 2)
    x = wide.sample((3,))
    torch.testing.assert_close(wide.log_prob(x), d.log_prob(x))
    assert d.to_event(1).log_prob(x).shape == (3, 4)
    assert d.enumerate_support(expand=False).shape == (9, 1)
    assert wide.mean.shape == wide.variance.shape == (4, 2)


@KINDS
def test_values_off_the_grid(kind):
    d = both_kinds()[kind]
    d._validate_args = True
    for bad in (0.3, -1.5, 3.5, math.nan, math.inf):
        with pytest.raises(ValueError, match="support"):
            d.log_prob(torch.tensor(bad))
    assert d.log_prob(torch.tensor([-1.0, 3.0])).isfinite().all()


@pytest.mark.parametrize("levels", [2, 17, 256, 65536])
def test_grid_has_its_float32_values(levels):
    k = torch.arange(levels)
    values = grid(levels=levels).value(k.float())
    assert grid(levels=levels).check(values).all()
    assert torch.equal(values, k.float() / (levels - 1))
    assert torch.equal(grid(levels=levels).position(values).round().long(), k)


def test_bytes_are_values():
    d = DiscretizedLogistic(torch.tensor(100.0), torch.tensor(9.0), 0, 255)
    x = torch.tensor([0, 99, 255], dtype=torch.uint8)
    assert d.support.check(x).all()
    torch.testing.assert_close(d.log_prob(x), d.log_prob(x.float()))


def test_categorical_against_torch():
    logits = torch.randn(3, 5, 17)
    k = torch.randint(17, (3, 5))
    expected = torch.distributions.Categorical(logits=logits).log_prob(k)
    torch.testing.assert_close(GridCategorical(logits).log_prob(k / 16), expected)


def test_parameters_that_are_none():
    with pytest.raises(ValueError, match="scale"):
        DiscretizedLogistic(torch.tensor(0.0), torch.tensor(-1.0), validate_args=True)
    for low, high, levels in ((1.0, 0.0, 4), (0.0, 1.0, 1), (0.0, 1.0, 2.5)):
        with pytest.raises(PpgenError, match="low < high"):
            DiscretizedLogistic(torch.tensor(0.0), torch.tensor(1.0), low, high, levels)
    with pytest.raises(PpgenError, match="levels=1"):
        GridCategorical(torch.zeros(3, 1))
