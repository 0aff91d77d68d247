"""Censored and truncated likelihoods against scipy, quadrature and the posterior of censored exponential times."""

import math

import mpmath
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats as ss
import torch
from scipy import special
from scipy.integrate import quad
from scipy.special import gammaln
from torch import tensor
from torch.distributions import biject_to
from torch.utils._python_dispatch import TorchDispatchMode

import ppgen
from ppgen.distributions import Censored, Truncated
from ppgen.distributions.incomplete_beta import log_incomplete_beta
from ppgen.distributions.tails import log_between, quantile, tails
from ppgen.errors import PpgenError
from ppgen.inference import loglik

pytestmark = pytest.mark.usefixtures("double")

# name: of torch, of scipy, two parameters, values from the far left tail to the far right one
CONTINUOUS = {
    "Normal": (dist.Normal, lambda a, b: ss.norm(a, b), (0.3, 1.4), [-50.0, -9.0, 0.2, 9.0, 50.0]),
    "LogNormal": (dist.LogNormal, lambda a, b: ss.lognorm(b, scale=math.exp(a)), (0.3, 0.6), [1e-6, 0.5, 2.0, 1e6]),
    "Weibull": (dist.Weibull, lambda a, b: ss.weibull_min(b, scale=a), (1.3, 2.0), [1e-6, 0.5, 2.0, 40.0]),
    "Gumbel": (dist.Gumbel, lambda a, b: ss.gumbel_r(a, b), (0.3, 0.8), [-3.0, 0.2, 3.0, 60.0]),
    "Logistic": (dist.Logistic, lambda a, b: ss.logistic(a, b), (0.3, 0.8), [-90.0, 0.2, 3.0, 90.0]),
    "Laplace": (dist.Laplace, lambda a, b: ss.laplace(a, b), (0.3, 0.8), [-90.0, 0.2, 3.0, 90.0]),
    "Cauchy": (dist.Cauchy, lambda a, b: ss.cauchy(a, b), (0.3, 0.8), [-1e9, 0.2, 3.0, 1e9]),
    "Gamma": (dist.Gamma, lambda a, b: ss.gamma(a, scale=1 / b), (2.3, 1.4), [0.01, 0.5, 2.0, 60.0]),
    "InverseGamma": (dist.InverseGamma, lambda a, b: ss.invgamma(a, scale=b), (2.3, 1.4), [0.02, 0.5, 2.0, 1e3]),
    "Pareto": (dist.Pareto, lambda a, b: ss.pareto(b, scale=a), (0.5, 2.0), [0.51, 0.9, 20.0, 1e9]),
    "StudentT": (
        lambda a, b: dist.StudentT(b, a, 0.7),
        lambda a, b: ss.t(b, a, 0.7),
        (0.3, 2.5),
        [-1e6, 0.2, 0.3, 3.0, 1e4],
    ),
    "Beta": (dist.Beta, lambda a, b: ss.beta(a, b), (2.3, 1.4), [1e-8, 0.2, 0.85, 0.99999]),
    "Uniform": (dist.Uniform, lambda a, b: ss.uniform(a, b - a), (-0.3, 2.0), [-0.28, 0.9, 1.99]),
}
COUNTS = {
    "Poisson": (lambda a: dist.Poisson(a), lambda a: ss.poisson(a), 3.2, [0.0, 2.0, 9.0, 40.0]),
    "Geometric": (lambda a: dist.Geometric(a), lambda a: ss.geom(a, loc=-1), 0.2, [0.0, 2.0, 9.0, 200.0]),
    "NegativeBinomial": (
        lambda a: dist.NegativeBinomial(4.0, a),
        lambda a: ss.nbinom(4.0, 1 - a),
        0.3,
        [0.0, 2.0, 9.0],
    ),
    "Binomial": (lambda a: dist.Binomial(12, a), lambda a: ss.binom(12, a), 0.3, [0.0, 2.0, 9.0]),
}


def slopes(fn, values, h=1e-5):
    """dfn/dvalues by Richardson's differences."""
    found = []
    for i, v in enumerate(values):
        d = []
        for step in (h * max(1.0, abs(v)), h * max(1.0, abs(v)) / 2):
            up, down = ([*values[:i], v + sign * step, *values[i + 1 :]] for sign in (1, -1))
            d.append((fn(*up) - fn(*down)) / (2 * step))
        found.append((4 * d[1] - d[0]) / 3)
    return np.array(found)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_both_tails_and_their_gradients_are_scipys(name):
    make, scipys, values, xs = CONTINUOUS[name]
    for x in xs:
        for side, theirs in enumerate(("logcdf", "logsf")):
            parameters = [tensor(v, requires_grad=True) for v in values]
            ours = tails(make(*parameters), tensor(x))[side]
            expected = getattr(scipys(*values), theirs)(x)
            assert float(ours.detach()) == pytest.approx(expected, rel=1e-9, abs=1e-290), (x, theirs)
            gradient = torch.stack(torch.autograd.grad(ours, parameters, allow_unused=True, materialize_grads=True))
            with np.errstate(all="ignore"):
                finite = slopes(lambda *v, x=x, of=theirs: getattr(scipys(*v), of)(x), list(values))
            np.testing.assert_allclose(gradient, finite, rtol=2e-5, atol=1e-7, err_msg=f"{x} {theirs}")


@pytest.mark.parametrize("name", CONTINUOUS)
def test_quantile_inverts_the_tails_and_carries_their_gradient(name):
    make, _, values, xs = CONTINUOUS[name]
    x = tensor(xs)
    torch.testing.assert_close(quantile(make(*map(tensor, values)), *tails(make(*values), x)), x, rtol=1e-7, atol=1e-7)

    def drawn(*v):
        torch.manual_seed(0)
        return Truncated(make(*v), 0.8, 1.7).rsample((5,))

    parameters = [tensor(v, requires_grad=True) for v in values]
    assert all(0.8 <= d <= 1.7 for d in drawn(*parameters))
    gradient = torch.stack(torch.autograd.grad(drawn(*parameters).sum(), parameters))
    finite = slopes(lambda *v: float(drawn(*map(tensor, v)).sum()), list(values))
    np.testing.assert_allclose(gradient, finite, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_the_mass_of_continuous_ones_is_1(name):
    make, scipys, values, _ = CONTINUOUS[name]
    d = make(*values)
    censored, truncated = (made(d, 0.7, 1.6, validate_args=False) for made in (Censored, Truncated))
    assert float(censored.log_prob(tensor(0.7)).exp()) == pytest.approx(scipys(*values).cdf(0.7))
    assert float(censored.log_prob(tensor(1.6)).exp()) == pytest.approx(scipys(*values).sf(1.6))
    within = quad(lambda x: float(censored.log_prob(tensor(x)).exp()), 0.7 + 1e-12, 1.6 - 1e-12)[0]
    assert within + sum(float(censored.log_prob(tensor(b)).exp()) for b in (0.7, 1.6)) == pytest.approx(1)
    assert quad(lambda x: float(truncated.log_prob(tensor(x)).exp()), 0.7, 1.6)[0] == pytest.approx(1)
    part = quad(lambda x: float(truncated.log_prob(tensor(x)).exp()), 0.7, 1.1)[0]
    assert float(truncated.cdf(tensor(1.1))) == pytest.approx(part)
    assert float(censored.cdf(tensor(1.1))) == pytest.approx(scipys(*values).cdf(1.1))
    beyond = tensor([0.6, 1.7])
    assert torch.isneginf(censored.log_prob(beyond)).all() and torch.isneginf(truncated.log_prob(beyond)).all()


@pytest.mark.parametrize("name", COUNTS)
def test_counts(name):
    make, scipys, value, xs = COUNTS[name]
    theirs = scipys(value)
    for x in xs:
        p = tensor(value, requires_grad=True)
        for ours, which in zip(tails(make(p), tensor(x)), ("logcdf", "logsf"), strict=True):
            assert float(ours.detach()) == pytest.approx(getattr(theirs, which)(x), rel=1e-7), (x, which)
            (gradient,) = torch.autograd.grad(ours, p, retain_graph=True)
            finite = slopes(lambda v, which=which, x=x: getattr(scipys(v), which)(x), [value])
            np.testing.assert_allclose(float(gradient), finite[0], rtol=1e-4, atol=1e-8)
    k = torch.arange(2.0, 6.0)
    censored, truncated = Censored(make(tensor(value)), 2.0, 5.0), Truncated(make(tensor(value)), 1.5, 5.5)
    assert censored.log_prob(k).exp().sum() == pytest.approx(1)
    assert float(censored.log_prob(k[0]).exp()) == pytest.approx(theirs.cdf(2))  # the bound itself is in
    assert float(censored.log_prob(k[-1]).exp()) == pytest.approx(theirs.sf(4))
    torch.testing.assert_close(truncated.log_prob(k).exp(), tensor(theirs.pmf(k) / theirs.pmf(k).sum()))
    torch.manual_seed(0)
    drawn = truncated.sample((4000,))
    shares = tensor([(drawn == v).double().mean() for v in k])
    p = truncated.log_prob(k).exp()
    assert ((shares - p).abs() < 4.5 * (p * (1 - p) / 4000).sqrt()).all()
    assert set(censored.sample((400,)).tolist()) <= set(k.tolist()) and not truncated.has_rsample


@pytest.mark.parametrize("lower, upper", [(1.5, 3.5), (1.0, 3.5), (-math.inf, 3.5), (1.5, math.inf), (-0.5, 4.0)])
def test_counts_censored_between_whole_numbers(lower, upper):
    theirs, d = ss.poisson(3.0), Censored(dist.Poisson(tensor(3.0)), lower, upper, validate_args=True)
    inner = [k for k in range(40) if lower < k < upper]
    at = {float(k): theirs.pmf(k) for k in inner}
    at |= {lower: theirs.cdf(lower)} if lower >= 0 else {}
    at |= {upper: theirs.sf(math.ceil(upper) - 1)} if upper < math.inf else {}
    x = tensor(sorted(at))
    p = d.log_prob(x).exp()
    torch.testing.assert_close(p, tensor([at[v] for v in x.tolist()]))
    assert float(p.sum()) == pytest.approx(1)
    torch.testing.assert_close(d.cdf(x), p.cumsum(0))
    assert d.support.check(x).all() and not d.support.check(tensor([2.25, 3.25])).any()
    torch.manual_seed(0)
    drawn = d.sample((4000,))
    shares = (drawn[:, None] == x).double().mean(0)
    assert float(shares.sum()) == 1 and ((shares - p).abs() < 4.5 * (p * (1 - p) / 4000).sqrt()).all()


def test_integer_draws_are_moved_to_a_bound_between_them():
    d = Censored(dist.Categorical(tensor([0.2, 0.3, 0.5])), upper=1.5)
    assert set(d.sample((200,)).tolist()) == {0.0, 1.0, 1.5}


SHIFTED = dist.TransformedDistribution(
    dist.Exponential(2.0, validate_args=True), [dist.transforms.AffineTransform(1.0, 1.0)]
)
OUTSIDE = {
    "Pareto": (dist.Pareto(1.0, 2.0), 0.5),
    "LogNormal": (dist.LogNormal(0.0, 1.0), -0.5),
    "Uniform": (dist.Uniform(0.0, 1.0), 1.5),
    "shifted Exponential": (SHIFTED, 0.5),
    "Poisson": (dist.Poisson(3.0), -1.0),
    "half a count": (dist.Poisson(3.0), 0.5),
}


@pytest.mark.parametrize("make", [Truncated, Censored])
@pytest.mark.parametrize("name", OUTSIDE)
def test_values_outside_of_the_support_have_no_density(make, name):
    base, value = OUTSIDE[name]
    d = make(base, -1.5, 2.5, validate_args=False)
    found = d.log_prob(tensor([value, 2.0 if name != "Uniform" else 0.5]))
    assert torch.isneginf(found[0]) and torch.isfinite(found[1])


def test_a_bound_outside_of_the_support_has_no_mass():
    for make in (Truncated, Censored):
        assert torch.isneginf(make(dist.Pareto(1.0, 2.0), 0.5, 2.5, validate_args=False).log_prob(tensor(0.5)))


def test_a_truncated_normal_is_scipys_far_out():
    a, b = np.array([-2.0, 8.0, 30.0, -np.inf, -41.0]), np.array([1.0, np.inf, 31.0, -12.0, -40.0])
    x = np.array([0.3, 8.1, 30.01, -12.3, -40.02])
    d = Truncated(dist.Normal(tensor(1.0), 2.0), tensor(1 + 2 * a), tensor(1 + 2 * b))
    theirs = ss.truncnorm(a, b, 1.0, 2.0)
    np.testing.assert_allclose(d.log_prob(tensor(1 + 2 * x)), theirs.logpdf(1 + 2 * x), rtol=1e-11)
    np.testing.assert_allclose(d.mean, theirs.mean(), rtol=1e-9)
    np.testing.assert_allclose(d.variance, theirs.var(), rtol=1e-6)
    np.testing.assert_allclose(d.cdf(tensor(1 + 2 * x)), theirs.cdf(1 + 2 * x), rtol=1e-9)
    drawn = d.sample((2000,))
    assert ((drawn.mean(0) - d.mean).abs() < 4.5 * (d.variance / 2000).sqrt()).all()
    single = Truncated(dist.Normal(tensor(0.0), tensor(1.0)).expand([2]), tensor([8.0, 30.0]))
    assert (single.expand([3, 2]).sample().dtype, single.event_shape) == (torch.float64, ())


FAR_COUNTS = [
    (dist.NegativeBinomial(4.0, 0.3), ss.nbinom(4.0, 0.7), [0.0, 30.0, 90.0, 150_000.0]),
    (dist.GammaPoisson(2.5, 0.5), ss.nbinom(2.5, 1 / 3), [0.0, 60.0, 200.0]),
    (dist.Binomial(40, 0.1), ss.binom(40, 0.1), [0.0, 25.0, 39.0]),
    (dist.BetaBinomial(2.0, 9.0, 60), ss.betabinom(60, 2.0, 9.0), [0.0, 50.0, 59.0]),
    (dist.ZeroInflatedPoisson(tensor(2.0), gate=tensor(0.3)), None, [0.0, 25.0]),
]


@pytest.mark.parametrize("d, theirs, xs", FAR_COUNTS, ids=lambda d: type(d).__name__)
def test_in_float32_few_counts_lie_far_out(d, theirs, xs):
    """Survival was one less the masses up to there: 6e-8 at the least in float32, and no sum of 150 000 masses."""
    torch.set_default_dtype(torch.float32)
    c, s = tails(d, torch.tensor(xs))
    if theirs is None:
        expected = np.log(0.3 + 0.7 * ss.poisson(2).cdf(xs)), np.log(0.7) + ss.poisson(2).logsf(xs)
    else:
        expected = theirs.logcdf(xs), theirs.logsf(xs)
    seen = np.isfinite(expected[1])  # scipy's underflows
    np.testing.assert_allclose(c, expected[0], rtol=2e-5, atol=1e-9)
    np.testing.assert_allclose(s[seen], expected[1][seen], rtol=2e-5)
    assert (s[~seen] < -700).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("a, x", [(2.5, 1e-30), (2.5, 120.0), (2.5, 3000.0), (700.0, 120.0), (400.0, 2500.0)])
def test_tails_of_a_gamma_go_on_where_its_functions_underflow(a, x, dtype):
    """To 1e-38 in float32, 1e-308 in float64; beyond they were -inf, and NaN with a gradient, which ends a fit."""
    with mpmath.workdps(50):
        both = [mpmath.gammainc(a, 0, x, regularized=True), mpmath.gammainc(a, x, mpmath.inf, regularized=True)]
        up, down = (mpmath.gammainc(mpmath.mpf(a) + h, x, mpmath.inf, regularized=True) for h in (1e-12, -1e-12))
        expected, slope = [float(mpmath.log(p)) for p in both], float(mpmath.log(up / down) / 2e-12)
    shape, value = (torch.tensor(v, dtype=dtype, requires_grad=True) for v in (a, x))
    rtol = 2e-7 if dtype == torch.float64 else 2e-6
    gamma = tails(dist.Gamma(shape, torch.ones((), dtype=dtype)), value)
    inverse = tails(dist.InverseGamma(shape, torch.ones((), dtype=dtype)), 1 / value)[::-1]
    poisson = tails(dist.Poisson(value), shape.detach() - 1)[::-1] if a == 700.0 or a == 400.0 else gamma
    for found in (gamma, inverse, poisson):
        np.testing.assert_allclose([float(v.detach()) for v in found], expected, rtol=rtol, atol=1e-37)
    gradients = torch.autograd.grad(gamma[1], (shape, value))
    assert float(gradients[0]) == pytest.approx(slope, rel=1e-5, abs=1e-30)
    density = float(ss.gamma(a).logpdf(x)) - expected[1]
    assert float(gradients[1]) == pytest.approx(-math.exp(density), rel=1e-4, abs=1e-30)


@pytest.mark.parametrize("x", [1e20, 1e30])
def test_in_float32_the_square_of_a_student_t_may_overflow(x):
    found = tails(dist.StudentT(tensor(3.0, dtype=torch.float32)), tensor([-x, x], dtype=torch.float32))
    exact = ss.t(3.0).logsf(x)
    assert [float(found[0][0]), float(found[1][1])] == pytest.approx([exact] * 2, rel=1e-6)
    assert float(found[0][1]) == float(found[1][0]) == 0.0  # -1e-60


def test_in_float32_the_tail_is_kept():
    torch.set_default_dtype(torch.float32)
    d = Truncated(dist.Normal(0.0, 1.0), torch.tensor([8.0, 30.0, -30.0]), torch.tensor([math.inf, math.inf, -29.0]))
    x = torch.tensor([8.5, 30.01, -29.02])
    np.testing.assert_allclose(
        d.log_prob(x), ss.truncnorm([8, 30, -30], [np.inf, np.inf, -29]).logpdf(x.double()), rtol=2e-4, atol=1e-4
    )
    assert torch.isfinite(d.sample((1000,))).all()


def test_a_censored_normal_has_its_moments():
    d = Censored(dist.Normal(tensor(0.4), 1.3), tensor([-1.0, -math.inf, 0.0]), tensor([1.5, 1.0, math.inf]))
    for i, (a, b) in enumerate(zip(d.lower.tolist(), d.upper.tolist(), strict=True)):
        n = ss.norm(0.4, 1.3)
        moments = [
            quad(lambda x, k=k, n=n: x**k * n.pdf(x), a, b)[0]
            + sum(0.0 if math.isinf(e) else e**k * p for e, p in ((a, n.cdf(a)), (b, n.sf(b))))
            for k in (1, 2)
        ]
        assert float(d.mean[i]) == pytest.approx(moments[0])
        assert float(d.variance[i]) == pytest.approx(moments[1] - moments[0] ** 2)
    with pytest.raises(NotImplementedError, match="closed form"):
        _ = Truncated(dist.Weibull(1.0, 2.0), 0.5).mean


def test_a_bound_at_which_values_are_recorded_is_in_the_support():
    """From above, of what has no lower end: as every other bound."""
    for d in (Censored(dist.Normal(0.0, 1.0), upper=0.5), Truncated(dist.Normal(0.0, 1.0), upper=0.5)):
        d = d.expand([2])
        assert d.support.check(tensor([0.5, -3.0])).all() and not d.support.check(tensor([0.6, math.inf])).any()
        assert torch.isfinite(d.log_prob(tensor([0.5, -3.0]))).all()
        assert (biject_to(d.support)(tensor([-1.0, 2.0])) < 0.5).all()


def test_bounds_a_row_infinite_or_beyond_the_support_leave_no_nan():
    scale = tensor([1.0, 2.0, 0.5], requires_grad=True)
    upper, x = tensor([math.inf, 1.5, 4.0]), tensor([0.7, 1.5, 2.0])
    lower = tensor([-math.inf, -1.0, 0.0])
    for d in (Censored(dist.Weibull(scale, 1.5), lower, upper), Truncated(dist.Weibull(scale, 1.5), lower, upper)):
        (gradient,) = torch.autograd.grad(d.log_prob(x).sum(), scale)
        assert torch.isfinite(gradient).all() and (gradient != 0).all()
        assert not d.support.check(tensor([-0.1, 1.6, 5.0])).any()
    inner = dist.Weibull(scale, 1.5)
    expected = torch.stack([inner.log_prob(x)[0], -((1.5 / scale[1]) ** 1.5), inner.log_prob(x)[2]])
    torch.testing.assert_close(Censored(inner, lower, upper).log_prob(x), expected)
    assert log_between(dist.Normal(0.0, 1.0), tensor(-math.inf), tensor(math.inf)) == 0


def test_what_cannot_be_is_said():
    with pytest.raises(PpgenError, match="VonMises has no cdf"):
        Censored(dist.VonMises(0.0, 1.0), 0.0).log_prob(tensor(1.0))
    with pytest.raises(PpgenError, match=r"values of shape \(2,\)"):
        Truncated(dist.Normal(torch.zeros(2), 1.0).to_event(1), 0.0)
    with pytest.raises(PpgenError, match="lower bound that is not below"):
        Truncated(dist.Normal(0.0, 1.0), 1.0, 0.0, validate_args=True)
    with pytest.raises(PpgenError, match="draws lay beyond the bounds"):
        Truncated(dist.Poisson(0.1), 40.0).sample((3,))


class Survival(ppgen.Program):
    """λ ~ Gamma(2, 3); times ~ Exponential(λ), followed for c. The guide is the posterior."""

    def model(self, c, t=None):
        rate = pyro.sample("rate", dist.Gamma(2.0, 3.0))
        with ppgen.rows(c):
            pyro.sample("t", Censored(dist.Exponential(rate), upper=c), obs=t)

    def guide(self, c, t):
        pyro.sample("rate", dist.Gamma(2.0 + (t < c).sum(), 3.0 + t.sum()))


def test_censored_exponential_times_have_the_gamma_posterior():
    torch.manual_seed(0)
    c = torch.rand(30) * 3
    t = torch.minimum(dist.Exponential(0.8).sample((30,)), c)
    events, total = float((t < c).sum()), float(t.sum())
    exact = gammaln(2 + events) - gammaln(2) + 2 * math.log(3) - (2 + events) * math.log(3 + total)
    program = Survival().setup({"c": c, "t": t})
    found = loglik(program, {"c": c, "t": t}, particles=40)
    assert found.best.mean == pytest.approx(exact, rel=1e-9) and found.best.se < 1e-9


def test_tails_in_float32_are_scipys_and_hold_a_few_numbers_a_value():
    """90 nodes of each value in float64 were 5 GB of 10 000 rows in 64 chains."""
    rng = np.random.default_rng(0)
    a, b = 10 ** rng.uniform(-1, 4, (2, 5000))
    mean = a / (a + b)
    x = (mean + rng.normal(size=5000) * 3 * np.sqrt(mean * (1 - mean) / (a + b + 1))).clip(1e-6, 1 - 1e-6)
    x = x.astype(np.float32).astype(float)
    sizes = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **kwargs or {})
            sizes.extend(t.numel() * t.element_size() for t in (out if isinstance(out, tuple | list) else [out])
                         if isinstance(t, torch.Tensor))  # fmt: skip
            return out

    alpha, beta = (tensor(v, dtype=torch.float32) for v in (a, b))
    logs = (tensor(v, dtype=torch.float64) for v in (np.log(x), np.log1p(-x)))
    with Sizes():
        c, s = log_incomplete_beta(alpha, beta, *(v.float() for v in logs))
    a, b = alpha.double().numpy(), beta.double().numpy()
    for found, p in ((c, special.betainc(a, b, x)), (s, special.betaincc(a, b, x))):
        some = (p > 1e-30) & (a + b < 100)  # beyond, log x in float32 is too coarse for x^(a + b)
        np.testing.assert_allclose(found.numpy()[some], np.log(p[some]), atol=2e-5, rtol=2e-6)
    assert max(sizes) <= 48 * 4 * 5000


@pytest.mark.parametrize("d", [dist.StudentT(3.0, 0.3, 0.7), dist.Poisson(2.5), dist.Normal(0.3, 2.0)], ids=str)
def test_a_bound_that_is_not_given_is_the_end(d):
    for kind in (Censored, Truncated):
        for given, infinite in (({"lower": 1.0}, {"upper": torch.inf}), ({"upper": 4.0}, {"lower": -torch.inf})):
            x = tensor([1.0, 2.0, 4.0])
            torch.testing.assert_close(kind(d, **given).log_prob(x), kind(d, **given, **infinite).log_prob(x))
