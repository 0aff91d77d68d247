"""`loglik` against closed forms: exact where nothing is latent, else ELBO ≤ importance-weighted bound ≤ log p(x)."""

from __future__ import annotations

import math
from importlib import import_module

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from known import SCHOOLS, Gaussian, GuidedNormalMean, NormalMean, Regression, binary, normal, ppca
from scipy import stats
from torch import nn

from ppgen import PpgenError, Program, rows
from ppgen.data import take
from ppgen.inference import diagnose, fit, loglik, mcmc, posterior
from ppgen.inference.evaluation.loglik import Bound
from ppgen.models import VAE, EightSchools, Flow

X = normal(40, 4, seed=1) * 1.5


# -- one latent a row ------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [0.7, 1.0, 1.3])
def test_bounds_of_ppca_against_its_closed_form(width):
    program = ppca(width=width)
    exact = program.log_prob(X).detach().numpy()
    posterior = program.posterior(X)
    found = loglik(program, {"x": X}, particles=4000)
    elbo, iw = found.bounds
    assert [(b.name, b.kind) for b in found.bounds] == [("elbo", "lower"), ("iw", "lower")]
    assert (found.per, found.rows, found.particles, found.dims) == ("row", 40, 4000, None)
    # KL(q, posterior) of two normals with the same mean, covariances in the ratio width²
    k = posterior.event_shape[0]
    gap = k * (width**2 / 2 - 0.5 - math.log(width))
    assert np.all(np.abs(elbo.values - (exact - gap)) < 4.5 * elbo.se + 1e-4)
    assert np.all(np.abs(iw.values - exact) < 4.5 * iw.se + 1e-4)
    assert abs(iw.mean - exact.mean()) < 4 * iw.mean_se + 1e-4
    assert abs(elbo.mean - (exact.mean() - gap)) < 4 * elbo.mean_se + 1e-4
    if width == 1.0:  # every weight is p(x)
        assert np.allclose(found.ess, 4000, rtol=1e-3) and np.allclose(iw.values, exact, atol=1e-3)
    else:
        assert gap > 0.05 and elbo.mean < exact.mean() - 0.9 * gap


def test_iw_bound_rises_with_particles():
    program = ppca(width=0.6)
    exact = program.log_prob(X).mean().item()
    means = [loglik(program, {"x": X}, particles=k, seed=2).best.mean for k in (1, 10, 100, 3000)]
    assert means == sorted(means) and means[0] < exact - 0.1 and abs(means[-1] - exact) < 0.02


WIDTH = 1.2  # weights of finite variance, close to normal in the mean of 400


@pytest.fixture(scope="module")
def over_seeds():
    """A program, and its bounds with 400 particles by 25 seeds."""
    program = ppca(latent=1, width=WIDTH)
    return program, [loglik(program, {"x": X}, particles=400, seed=seed).bounds for seed in range(25)]


@pytest.mark.parametrize("bound", ["elbo", "iw"])
def test_standard_errors_are_honest(bound, over_seeds):
    """Intervals of ±1 and ±2 s.e. cover the truth as often as a normal's would, over rows and seeds."""
    program, found = over_seeds
    truth = program.log_prob(X).detach().numpy()
    if bound == "elbo":
        truth = truth - (WIDTH**2 / 2 - 0.5 - math.log(WIDTH))
    bounds = [b[["elbo", "iw"].index(bound)] for b in found]
    z = np.concatenate([(b.values - truth) / b.se for b in bounds])  # rows share no draws: independent
    for interval in (1.0, 2.0):
        covered, p = int((np.abs(z) < interval).sum()), stats.norm.cdf(interval) - stats.norm.cdf(-interval)
        assert stats.binomtest(covered, len(z), p).pvalue > 1e-4, (interval, covered / len(z), p)


def test_mean_se_and_rows_se():
    """Against the spread of 800 figures, each from draws of its own: to 10%."""
    found = loglik(ppca(width=1.2), {"x": X}, particles=100)
    often = loglik(ppca(width=1.2), {"x": X.repeat(800, 1)}, particles=100, seed=1).bounds[0]
    means = often.values.reshape(800, 40).mean(1)
    se = often._replace(values=often.values[:40], se=np.sqrt((often.se.reshape(800, 40) ** 2).mean(0))).mean_se
    low, high = np.sqrt(stats.chi2.ppf([1e-4, 1 - 1e-4], 799) / 799)
    assert low < np.std(means, ddof=1) / se < high and found.bounds[0].mean_se == pytest.approx(se, rel=0.1)
    values = found.best.values
    assert found.best.rows_se == pytest.approx(values.std(ddof=1) / 40**0.5)
    four = Bound("iw", "lower", np.zeros(4), np.full(4, 2.0))
    assert four.mean_se == pytest.approx(1.0)  # the draws of a row are its own


def test_blocks_and_chunks_of_particles_change_nothing_but_the_noise(monkeypatch):
    module = import_module("ppgen.inference.evaluation.loglik")
    program = ppca(width=1.2)
    whole = loglik(program, {"x": X}, particles=2000)
    monkeypatch.setattr(module, "BLOCK", 7 * 4 * 30)
    monkeypatch.setattr(module, "MOST_PARTICLES", 30)
    monkeypatch.setattr(import_module("ppgen.draws"), "BLOCK", 7 * 4 * 30)
    blocks = loglik(program, {"x": X}, particles=2000)
    for a, b in zip(whole.bounds, blocks.bounds, strict=True):
        assert not np.array_equal(a.values, b.values)
        assert np.all(np.abs(a.values - b.values) < 4.5 * np.hypot(a.se, b.se))
        assert np.allclose(a.se, b.se, rtol=0.3)


def test_draws_of_shared_latents_are_weighed_some_at_a_time(monkeypatch):
    """Terms of all rows of all draws together took 24 GB of a million rows. Of an exact guide each weight is p(x), in
    whatever parts."""
    module = import_module("ppgen.inference.evaluation.loglik")
    x, calls = normal(20), []
    exact = stats.multivariate_normal(np.zeros(20), 1.5**2 * np.eye(20) + 2.0**2).logpdf(x.numpy())
    many = module.ManyTerms.__call__
    monkeypatch.setattr(module.ManyTerms, "__call__", lambda self, n, data: calls.append(n) or many(self, n, data))
    monkeypatch.setattr(module, "MOST_TERMS", 150)
    found = loglik(GuidedNormalMean(2.0, 1.5), {"x": x}, particles=25, keep_weights=True)
    assert found.log_w.shape == (25, 1) and found.log_w == pytest.approx(exact, abs=1e-3)
    assert max(calls) == 7 and sum(calls) % 25 == 0


def test_rows_of_which_a_network_makes_much_are_few_at_once(monkeypatch):
    module = import_module("ppgen.inference.evaluation.loglik")
    torch.manual_seed(0)
    x = torch.randn(3000, 2)
    flow = Flow(2, transforms=1, hidden=(64, 64)).prepare({"x": x}).eval()
    whole, sizes = loglik(flow, {"x": x}).best, []
    own = module._Blocks.log_weights
    monkeypatch.setattr(module, "MOST_ENTRIES", 64 * 700)  # 700 rows of 64 units
    monkeypatch.setattr(
        module._Blocks, "log_weights", lambda self, data, draws: sizes.append(len(data["x"])) or own(self, data, draws)
    )
    parts = loglik(flow, {"x": x}).best
    assert 512 <= max(sizes) <= 700 and parts.kind == whole.kind == "exact"
    assert np.allclose(parts.values, whole.values, atol=1e-5)


def test_kept_weights_are_those_of_the_bounds():
    found = loglik(ppca(width=1.2), {"x": X}, particles=250, keep_weights=True)
    w = torch.as_tensor(found.log_w)
    assert w.shape == (250, 40)
    assert np.allclose(found.bounds[0].values, w.mean(0))
    assert np.allclose(found.best.values, w.logsumexp(0) - math.log(250))
    assert np.allclose(found.ess, (w.logsumexp(0) * 2 - (2 * w).logsumexp(0)).exp())
    assert loglik(ppca(), {"x": X}, particles=3).log_w is None


def test_one_seed_one_result_and_the_random_state_is_left_alone():
    program = ppca(width=1.2)
    before = torch.get_rng_state()
    a, b, c = (loglik(program, {"x": X}, particles=5, seed=s).best.values for s in (1, 1, 2))
    assert np.array_equal(a, b) and not np.array_equal(a, c)
    assert torch.equal(before, torch.get_rng_state())


# -- nothing latent --------------------------------------------------------------------------------


def test_exact_without_latents():
    x = normal(100)
    found = loglik(Gaussian(), {"x": x}, particles=7)
    (bound,) = found.bounds
    assert (bound.name, bound.kind, found.particles, found.ess) == ("exact", "exact", 1, None)
    assert np.allclose(bound.values, stats.norm(0.5, 2.0).logpdf(x), atol=1e-5)
    assert bound.mean_se == 0.0 and found.best is bound
    assert found.table()[0]["nats"] == pytest.approx(bound.mean)


class Levels(Program):
    """Pixels drawn from one categorical distribution over 8 grey levels; its entropy is known."""

    def __init__(self, learned: bool = True):
        super().__init__()
        self.logits = nn.Parameter(torch.linspace(-1.0, 1.0, 8))

    def model(self, x=None):
        with rows(x):
            pyro.sample("x", dist.Categorical(logits=self.logits).expand([5]).to_event(1), obs=x)


def test_bits_per_dim_of_a_known_discrete_distribution():
    program = Levels()
    x = torch.multinomial(program.logits.softmax(0), 5 * 4000, True, generator=torch.Generator().manual_seed(0))
    found = loglik(program, {"x": x.reshape(4000, 5)})
    p = program.logits.softmax(0).detach().double()
    entropy = -(p * p.log2()).sum().item()
    assert found.dims == 5
    bits = found.bits_per_dim(found.best)
    assert bits == pytest.approx(-np.log2(p.numpy())[x].mean(), abs=1e-5)
    se = found.best.rows_se / (5 * math.log(2))
    assert abs(bits - entropy) < 4 * se and se < 0.005 * entropy
    assert found.table()[0]["bits_per_dim"] == bits


class TwoKinds(Program):
    """A binary latent behind two observed columns: x continuous, k a count. log p(x, k) is a sum of two terms."""

    def __init__(self, discrete: bool = False):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(1.5))
        self.discrete = discrete

    def model(self, x=None, k=None):
        with rows(x, k):
            b = pyro.sample("b", dist.Bernoulli(0.3))
            if not self.discrete:
                pyro.sample("x", dist.Normal(self.shift * b, 1.0), obs=x)
            pyro.sample("k", dist.Poisson(1.0 + self.shift * b), obs=k)

    def guide(self, x=None, k=None):
        with rows(x, k):
            pyro.sample("b", dist.Bernoulli(logits=(k - 1.5).clamp(-1, 1) * self.shift))


def test_mixed_data_and_a_discrete_latent():
    x, k = normal(30), torch.poisson(torch.full((30,), 1.5), generator=torch.Generator().manual_seed(0))
    terms = [
        math.log(p) + stats.norm(1.5 * b, 1.0).logpdf(x) + stats.poisson(1 + 1.5 * b).logpmf(k)
        for b, p in ((0, 0.7), (1, 0.3))
    ]
    found = loglik(TwoKinds(), {"x": x, "k": k}, particles=4000)
    assert found.dims is None and found.bits_per_dim(found.best) is None  # densities and probabilities together
    assert np.all(np.abs(found.best.values - np.logaddexp(*terms)) < 4.5 * found.best.se + 1e-4)
    assert loglik(TwoKinds(discrete=True), {"k": k}, particles=5).dims == 1


# -- a global latent -------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1.0, 1.25])
def test_evidence_of_a_conjugate_normal_mean(width):
    x = normal(15) + 1.0
    program = GuidedNormalMean(width=width)
    found = loglik(program, {"x": x}, particles=5000)
    elbo, iw = found.bounds
    exact = program.log_evidence(x)
    assert (found.per, found.rows, len(iw.values)) == ("data set", 15, 1)
    assert abs(elbo.mean - (exact - (width**2 / 2 - 0.5 - math.log(width)))) < 4 * elbo.mean_se + 1e-4
    assert abs(iw.mean - exact) < 4 * iw.mean_se + 1e-4
    assert math.isnan(iw.rows_se)


def test_evidence_with_a_fitted_autoguide():
    x = normal(15) + 1.0
    run = fit(NormalMean(), {"x": x}, steps=400, lr=0.03, particles=4)
    iw = loglik(run, {"x": x}, particles=2000).best
    assert abs(iw.mean - NormalMean().log_evidence(x)) < 4 * iw.mean_se + 1e-3
    assert iw.mean_se < 0.05


class CoinOfUnknownBias(Program):
    """p ~ U(0, 1), x_i ~ Bernoulli(p): p(x) = B(h + 1, t + 1)."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(3.0))

    def model(self, x=None):
        p = pyro.sample("p", dist.Beta(torch.ones(()), 1.0))
        with rows(x):
            pyro.sample("x", dist.Bernoulli(p), obs=x)

    def guide(self, x):
        pyro.sample("p", dist.Beta(self.a, 2.0))


def test_bits_per_dim_where_a_latent_is_global():
    x = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    found = loglik(CoinOfUnknownBias(), {"x": x}, particles=5000)
    exact = math.lgamma(5) + math.lgamma(3) - math.lgamma(8)
    assert abs(found.best.mean - exact) < 4 * found.best.mean_se
    assert found.bits_per_dim(found.best) == pytest.approx(-found.best.mean / (6 * math.log(2)))


def test_a_program_whose_operations_take_no_leading_dimension():
    x, y = normal(12, 2), normal(12, seed=1)
    run = fit(Regression(), {"x": x, "y": y}, steps=300, lr=0.05, guide="AutoMultivariateNormal")
    exact = dist.MultivariateNormal(torch.zeros(12), torch.eye(12) + x @ x.T).log_prob(y).item()
    for what in (run, run.program):
        iw = loglik(what, {"x": x, "y": y}, particles=300).best
        assert abs(iw.mean - exact) < 4 * iw.mean_se + 0.02


# -- columns ---------------------------------------------------------------------------------------


class WithConstant(Program):
    """z ~ N(0, 1), x | z ~ N(z + mean of the table t, 1): t is no row column."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.5))

    def model(self, t, x=None):
        with rows(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + t.mean(), 1.0), obs=x)

    def guide(self, t, x):
        with rows(x):
            pyro.sample("z", dist.Normal(self.a * (x - t.mean()), 0.5**0.5))


@pytest.mark.parametrize("n", [1, 5, 7, 30])
def test_a_constant_longer_than_the_new_rows(n):
    """A run knows which columns are rows, however few of them come."""
    t, x = torch.linspace(0.0, 1.0, 7), normal(30)
    run = fit(WithConstant(), {"t": t, "x": x}, steps=0)
    assert run.structure.row_columns == ("x",)
    found = loglik(run, {"t": t, "x": x[:n]}, particles=200)
    assert (found.per, found.rows) == ("row", n)
    exact = dist.Normal(0.5, 2**0.5).log_prob(x[:n]).numpy()
    assert np.allclose(found.best.values, exact, atol=1e-4)  # the guide is exact


def test_a_program_with_a_constant_longer_than_two_rows():
    t, x = torch.linspace(0.0, 1.0, 7), normal(30)
    found = loglik(WithConstant(), {"t": t, "x": x}, particles=50)
    assert (found.per, found.rows) == ("row", 30)
    assert np.allclose(found.best.values, dist.Normal(0.5, 2**0.5).log_prob(x).numpy(), atol=1e-4)


def test_a_run_on_other_rows_equals_the_rows_alone():
    run = fit(ppca(width=1.2), {"x": X}, steps=0)
    exact = run.program.log_prob(X).detach().numpy()
    for part in (slice(0, 1), slice(3, 10)):
        found = loglik(run, take({"x": X}, part), particles=3000)
        assert np.all(np.abs(found.best.values - exact[part]) < 4.5 * found.best.se)


def test_a_grey_image_among_binary_ones_is_found_in_any_row():
    """torch's Bernoulli gives grey values a figure; it would be no log-probability."""
    run = fit(VAE(6, 2, (8,)), {"x": binary()}, steps=1)
    x = torch.cat([binary(), torch.full((1, 6), 0.5)])
    with pytest.raises(PpgenError, match="'x' .Bernoulli. has the support .0, 1., and the data have 0.5"):
        loglik(run, {"x": x}, particles=3)


def test_a_missing_observed_column_is_no_latent():
    run = fit(EightSchools(), SCHOOLS, steps=1)
    with pytest.raises(PpgenError, match="no column 'y'"):
        loglik(run, {"sigma": SCHOOLS["sigma"]}, particles=3)


# -- errors ----------------------------------------------------------------------------------------


class Point(NormalMean):
    def __init__(self):
        super().__init__()
        self.at = nn.Parameter(torch.tensor(0.3))

    def guide(self, x):
        pyro.sample("m", dist.Delta(self.at))


@pytest.mark.parametrize("guide", ["own", "AutoDelta"])
def test_a_point_estimate_gives_no_bound(guide):
    """log p(x, z*) at a point is a density, not a lower bound on log p(x)."""
    x = normal(15)
    run = fit(Point() if guide == "own" else NormalMean(), {"x": x}, steps=2, guide=None if guide == "own" else guide)
    with pytest.raises(PpgenError, match="'m' .*point"):
        loglik(run, {"x": x})


def test_laplace_approximation_gives_a_bound():
    x = normal(15) + 1.0
    run = fit(NormalMean(), {"x": x}, steps=300, lr=0.05, guide="AutoLaplaceApproximation")
    iw = loglik(run, {"x": x}, particles=500).best
    assert abs(iw.mean - NormalMean().log_evidence(x)) < 4 * iw.mean_se + 1e-3


@pytest.mark.parametrize(
    "options, data, message",
    [
        ({"particles": 0}, {"x": X}, "particles is 0"),
        ({}, {"x": X.clone().index_fill_(0, torch.tensor([3]), math.nan)}, "row 3"),
        ({}, {"y": X}, "needs the column 'x'|taken by no argument"),
        ({}, {"x": X, "extra": X}, "'extra'"),
        ({}, {"x": X[:, :3]}, "PPCA"),
    ],
)
def test_what_it_cannot_take_is_said(options, data, message):
    with pytest.raises(PpgenError, match=message):
        loglik(ppca(), data, **options)


def test_a_log_density_that_is_drawn_is_called_an_estimate():
    class Noisy(Program):
        """log p(x) = N(x; t, 1), observed with noise of mean 0, as a stochastic trace gives it."""

        def __init__(self):
            super().__init__()
            self.t = torch.nn.Parameter(torch.tensor(0.0))

        def model(self, x=None):
            with rows(x):
                pyro.sample("x", dist.Normal(self.t, 1.0), obs=x)
                pyro.factor("noise", 0.1 * torch.randn(len(x)))

    x = torch.randn(500, generator=torch.Generator().manual_seed(0))
    bound = loglik(Noisy(), {"x": x}, particles=20).best
    exact = dist.Normal(0.0, 1.0).log_prob(x).mean().item()
    assert (bound.name, bound.kind) == ("estimate", "estimate") and 0 < bound.mean_se < 0.01
    assert abs(bound.mean - exact) < 4.5 * bound.mean_se
    se = loglik(Noisy(), {"x": normal(20_000)}, particles=20).best.se
    assert np.mean(se**2) == pytest.approx(0.1**2 / 20, rel=0.01)


# -- a log-density that is itself drawn ------------------------------------------------------------


class Noisy(dist.Normal):
    """A normal whose log_prob has noise of sd 3 in it, and is half a nat low."""

    def log_prob(self, value):
        return super().log_prob(value) + 3 * torch.randn_like(value) - 0.5

    def expand(self, shape, _instance=None):
        return Noisy(self.loc.expand(shape), self.scale.expand(shape))


class NoisyPrior(Program):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(1, 2)

    def model(self, x=None):
        with rows(x):
            z = pyro.sample("z", Noisy(torch.tensor(0.0), torch.tensor(1.0)))
            return pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(self, x):
        with rows(x):
            loc, scale = self.encoder(x[:, None]).unbind(-1)
            pyro.sample("z", dist.Normal(loc, scale.exp()))


def test_no_bound_by_weights_of_a_density_that_is_drawn(caplog):
    x = 1.118 * normal(200)
    run = fit(NoisyPrior(), {"x": x}, steps=300, lr=0.02, objective="sampled", engine="eager")
    found = loglik(run, {"x": x}, particles=500)
    exact = float(dist.Normal(0.0, 1.25**0.5).log_prob(x).mean())
    assert [b.name for b in found.bounds] == ["elbo"] and found.best.mean < exact and found.ess is None
    assert "the log_prob of 'z' is drawn anew at each call" in caplog.text
    with pytest.raises(PpgenError, match="k-hat and bounds by them cannot be formed"):
        diagnose(run, {"x": x})
    with pytest.raises(PpgenError, match="no weights to be corrected by"):
        posterior(run, {"x": x}, corrected=True)
    with pytest.raises(PpgenError, match="no log joint that can be climbed or sampled"):
        mcmc(NoisyPrior(), {"x": x})


class Seldom(dist.Normal):
    """A normal whose log_prob is a nat less, one time in fifty."""

    def log_prob(self, value):
        return super().log_prob(value) - (torch.rand_like(value) < 0.02).to(value)

    def expand(self, shape, _instance=None):
        return Seldom(self.loc.expand(shape), self.scale.expand(shape))


def _seldom(x):
    z = pyro.sample("z", Seldom(torch.tensor(0.0), torch.tensor(1.0)))
    with rows(x):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def _drawn_factor(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.factor("f", 3 * torch.randn(()))
    with rows(x):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def _unnamed(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    e = torch.randn(())
    with rows(x):
        pyro.sample("x", dist.Normal(z + 0.5 * e, 1.0), obs=x)


@pytest.mark.parametrize("model", [_seldom, _drawn_factor])
def test_a_density_that_is_seldom_drawn_and_a_factor_that_is_give_no_bound_by_weights(model, caplog):
    run = fit(Program.from_pair(model), {"x": normal(4)}, steps=0, guide="AutoNormal")
    assert [b.name for b in loglik(run, {"x": normal(4)}, particles=10).bounds] == ["elbo"]
    assert "drawn anew at each call" in caplog.text


def test_noise_that_is_no_site_is_integrated_out(caplog):
    """x ~ N(0, I + 1.25 11ᵀ): the noise is a latent drawn from its prior."""
    x = torch.tensor([1.0, 2.0, 0.0, 1.5])
    run = fit(Program.from_pair(_unnamed), {"x": x}, steps=300, lr=0.03, guide="AutoNormal")
    bound = loglik(run, {"x": x}, particles=40_000).bounds[1]
    exact = float(dist.MultivariateNormal(torch.zeros(4), torch.eye(4) + 1.25).log_prob(x))
    assert bound.mean == pytest.approx(exact, abs=4 * bound.mean_se + 0.05) and bound.mean_se < 0.1
    assert "draws what is no site: log p(x) of each data set is with that integrated out" in caplog.text


def test_large_counts_are_exact_without_parameters_of_their_own_precision():
    """float32 rounds the log_prob of a count of a million by half a nat."""
    y = 1e6 + 1000 * normal(20).round()

    def model(y):
        with rows(y):
            pyro.sample("y", dist.Poisson(torch.tensor(1e6)), obs=y)

    class Learned(Program):
        def __init__(self):
            super().__init__()
            self.rate = torch.nn.Parameter(torch.tensor(1e6))

        def model(self, y=None):
            with rows(y):
                pyro.sample("y", dist.Poisson(self.rate), obs=y)

    exact = dist.Poisson(torch.tensor(1e6).double()).log_prob(y.double()).numpy()
    learned = Learned()
    for program in (Program.from_pair(model), learned, fit(Program.from_pair(model), {"y": y}, steps=0)):
        assert loglik(program, {"y": y}).best.values == pytest.approx(exact, abs=1e-6)
    assert learned.rate.dtype == torch.float32 and torch.get_default_dtype() == torch.float32


def test_a_scale_of_the_program_is_said(caplog):
    """A power likelihood had a "lower bound on log p(x)" that no density has; plates that subsample are no scale."""
    x = torch.randn(6, generator=torch.Generator().manual_seed(0))

    def model(x, scale=1.0, subsample=None):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=subsample) as i, pyro.poutine.scale(scale=scale):
            pyro.sample("x", dist.Normal(m, 1.0), obs=x[i])

    for how, said in (({"scale": 0.5}, 1), ({"scale": torch.arange(6.0)}, 1), ({}, 0), ({"subsample": 3}, 0)):
        caplog.clear()
        loglik(fit(Program.from_pair(model), {"x": x, **how}, steps=2, seed=0), {"x": x, **how}, particles=5)
        found = [r.getMessage() for r in caplog.records if "integral of densities to powers" in r.getMessage()]
        assert len(found) == said and all("'x'" in m for m in found)
