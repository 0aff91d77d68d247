"""One model, written five ways, gives the same numbers: those of its closed form.

    beta ~ N(0, TAU² I₂),   y | beta ~ N(x beta, SD² I)

The likelihood stands in a plate over the rows, as one vector event, in a factor summed over the rows, in a factor by
row, and as `x @ beta`. Nothing that ppgen reports may depend on which: not by the number of particles or draws (16 of
them are as many as there are rows, which is where a draw and a row can be mistaken for each other).

Most checks are free of noise: with the posterior as guide every importance weight is p(y); a guide that is almost a
point descends as its closed form does; log-probabilities are compared at the draws themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from known import chains_agree, draws_agree, few, normal
from scipy.stats import chi2, kstest
from torch import Tensor, nn

from ppgen import PpgenError, Program, rows
from ppgen.inference import diagnose, fit, loglik, mcmc, posterior, predict
from ppgen.inference.evaluation.compare import loo

ROWS, TAU, SD, WIDTH = 16, 1.5, 0.7, 1.5
X = normal(ROWS, 2).double() @ torch.tensor([[1.0, 0.8], [0.0, 0.6]]).double()
Y = X @ torch.tensor([0.8, -0.5]).double() + SD * normal(ROWS, seed=1).double()
DATA = {"x": X, "y": Y}
NEW = torch.tensor([[1.0, 0.0], [0.5, -2.0], [3.0, 1.0]]).double()


# -- the closed form --------------------------------------------------------------------------------


def exact_posterior(x: Tensor, y: Tensor) -> dist.MultivariateNormal:
    """p(beta | y)."""
    precision = torch.eye(2).to(x) / TAU**2 + x.T @ x / SD**2
    loc = torch.linalg.solve(precision, x.T @ y / SD**2)
    return dist.MultivariateNormal(loc, covariance_matrix=torch.linalg.inv(precision))


def log_evidence(x: Tensor, y: Tensor) -> float:
    """log p(y): y ~ N(0, TAU² x xᵀ + SD² I)."""
    cov = TAU**2 * x @ x.T + SD**2 * torch.eye(len(x)).to(x)
    return float(dist.MultivariateNormal(torch.zeros(len(x)).to(x), covariance_matrix=cov).log_prob(y))


def log_likelihoods(beta: Tensor) -> Tensor:
    """log p(y_i | beta), (..., ROWS)."""
    return dist.Normal(beta @ X.T, SD).log_prob(Y)


def log_joint(beta: Tensor) -> Tensor:
    """log p(y, beta), (...)."""
    return dist.Normal(torch.zeros(2).double(), TAU).log_prob(beta).sum(-1) + log_likelihoods(beta).sum(-1)


def exact_loo() -> Tensor:
    """log p(y_i | y_-i) = log p(y) - log p(y_-i), (ROWS,)."""
    rest = [torch.arange(ROWS) != i for i in range(ROWS)]
    return torch.tensor([EVIDENCE - log_evidence(X[r], Y[r]) for r in rest]).double()


EVIDENCE = log_evidence(X, Y)
EXACT = exact_posterior(X, Y)
KL = WIDTH**2 - 1 - 2 * math.log(WIDTH)  # of the wide guide from the posterior, nats


# -- the five ways ----------------------------------------------------------------------------------


def _prior(x: Tensor) -> Tensor:
    return pyro.sample("beta", dist.Normal(x.new_zeros(2), TAU).to_event(1))


def plate(x, y=None):
    beta = _prior(x)
    with rows(x):
        pyro.sample("y", dist.Normal((x * beta).sum(-1), SD), obs=y)


def event(x, y=None):
    beta = _prior(x)
    pyro.sample("y", dist.Normal((x * beta).sum(-1), SD).to_event(1), obs=y)


def factor_summed(x, y):
    beta = _prior(x)
    pyro.factor("likelihood", dist.Normal((x * beta).sum(-1), SD).log_prob(y).sum())


def factor_by_row(x, y):
    beta = _prior(x)
    with rows(x):
        pyro.factor("likelihood", dist.Normal((x * beta).sum(-1), SD).log_prob(y))


def matrix_product(x, y=None):
    beta = _prior(x)
    with rows(x):
        pyro.sample("y", dist.Normal(x @ beta, SD), obs=y)


WAYS: dict[str, Callable] = {f.__name__: f for f in (plate, event, factor_summed, factor_by_row, matrix_product)}
BY_ROW = ("plate", "matrix_product", "factor_by_row")  # the rows have a likelihood each
OBSERVED = ("plate", "matrix_product", "event")  # y is a site, which can be drawn

every_way = pytest.mark.parametrize("way", WAYS)


class Guide(nn.Module):
    """The posterior, moved by L `shift` and `width` times as wide, L its Cholesky factor."""

    def __init__(self, width: float = 1.0, shift: tuple[float, float] = (0.0, 0.0)):
        super().__init__()
        self.width, self.shift = width, nn.Parameter(torch.tensor(shift).double())

    def forward(self, x, y):
        q = exact_posterior(x, y)
        scale = q.scale_tril
        pyro.sample("beta", dist.MultivariateNormal(q.loc + scale @ self.shift, scale_tril=self.width * scale))


def program(way: str, width: float = 1.0, shift: tuple[float, float] = (0.0, 0.0)) -> Program:
    return Program.from_pair(WAYS[way], Guide(width, shift))


@cache
def guided(way: str, width: float = 1.0):
    """A run whose guide is the posterior, `width` times as wide."""
    return fit(program(way, width), DATA, steps=0, precision="64-true")


def has_none(tree, group: str) -> bool:
    return group not in tree.children or not tree[group].data_vars


# -- fit --------------------------------------------------------------------------------------------


@every_way
@pytest.mark.parametrize(("objective", "particles"), [("sampled", 1), ("sampled", ROWS), ("iwae", ROWS)])
def test_the_bound_of_the_posterior_is_the_evidence(way, objective, particles):
    run = fit(program(way), DATA, steps=2, lr=1e-12, particles=particles, objective=objective, log_every=1,
              precision="64-true")  # fmt: skip
    assert run.metrics["elbo"] == pytest.approx([EVIDENCE] * 2, abs=1e-8)


@every_way
@pytest.mark.parametrize(("engine", "particles"), [("eager", 1), ("eager", ROWS), ("trace", ROWS)])
def test_gradient_descent_of_almost_a_point(way, engine, particles):
    """In units of the posterior's Cholesky factor the ELBO is -|shift|² / 2 + const: a step of SGD shrinks shift by
    1 - lr / N."""
    shift, rate, steps = (1.0, -0.5), 0.05, 20
    run = fit(program(way, 1e-5, shift), DATA, steps=steps, lr=rate * ROWS, optimizer="SGD", particles=particles,
              engine=engine, precision="64-true")  # fmt: skip
    (found,) = run.program.parameters()
    expected = (1 - rate) ** steps * torch.tensor(shift).double()
    assert found.detach().numpy() == pytest.approx(expected.numpy(), abs=2e-4)


@every_way
def test_an_autoguide_that_holds_the_posterior_finds_it(way):
    run = fit(Program.from_pair(WAYS[way]), DATA, guide="AutoMultivariateNormal", starts=4, particles=ROWS,
              steps=2, lr=1e-12, log_every=1, objective="sampled", precision="64-true")  # fmt: skip
    assert run.metrics["elbo"] == pytest.approx([EVIDENCE] * 2, abs=1e-3)
    tree = posterior(run, DATA, draws=2000, predictive=False, prior=False)
    draws_agree(tree["posterior"]["beta"].values[0], EXACT.loc, EXACT.variance)


# -- loglik -----------------------------------------------------------------------------------------


@every_way
@pytest.mark.parametrize("particles", [1, ROWS, ROWS + 4])
def test_every_weight_of_the_posterior_is_the_evidence(way, particles):
    found = loglik(guided(way), DATA, particles=particles, keep_weights=True)
    assert (found.per, found.rows, found.particles) == ("data set", ROWS, particles)
    assert [b.name for b in found.bounds] == ["elbo", "iw"]
    for bound in found.bounds:
        assert bound.kind == "lower" and bound.values == pytest.approx([EVIDENCE], abs=1e-8)
    assert found.log_w.shape == (particles, 1)
    assert found.log_w == pytest.approx(EVIDENCE, abs=1e-8)
    assert found.ess == pytest.approx([particles])


@every_way
def test_weights_of_a_wide_guide_have_their_distribution(way):
    """log w = log p(y) + 2 log WIDTH - (WIDTH² - 1) / 2 u, with u chi-square of two degrees of freedom."""
    n = 4000
    found = loglik(guided(way, WIDTH), DATA, particles=n, keep_weights=True)
    u = 2 * (EVIDENCE + 2 * math.log(WIDTH) - found.log_w[:, 0]) / (WIDTH**2 - 1)
    assert u.min() > 0 and kstest(u, chi2(2).cdf).pvalue > 1e-3
    elbo, iw = found.bounds
    assert abs(elbo.mean - (EVIDENCE - KL)) < 4 * elbo.mean_se
    assert abs(iw.mean - EVIDENCE) < 4 * iw.mean_se
    assert elbo.mean_se == pytest.approx((WIDTH**2 - 1) / math.sqrt(n), rel=0.1)


# -- posterior --------------------------------------------------------------------------------------


@every_way
@pytest.mark.parametrize("draws", [2, ROWS, ROWS + 4])
def test_draws_have_their_shapes_and_their_log_probabilities(way, draws):
    tree = posterior(guided(way, WIDTH), DATA, draws=draws)
    assert tree["posterior"]["beta"].shape == tree["prior"]["beta"].shape == (1, draws, 2)
    beta = torch.as_tensor(tree["posterior"]["beta"].values)
    stats = tree["sample_stats"]
    assert stats["log_p"].shape == stats["log_q"].shape == (1, draws)
    wide = dist.MultivariateNormal(EXACT.loc, scale_tril=WIDTH * EXACT.scale_tril)
    assert stats["log_p"].values == pytest.approx(log_joint(beta).numpy(), abs=1e-8)
    assert stats["log_q"].values == pytest.approx(wide.log_prob(beta).numpy(), abs=1e-8)
    _has_what_its_sites_give(tree, way, (1, draws), beta)


def _has_what_its_sites_give(tree, way: str, lead: tuple[int, int], beta: Tensor) -> None:
    """log_likelihood by row, for all rows, or none; predictions where y is a site."""
    likelihood = log_likelihoods(beta).numpy()
    if way in (*OBSERVED, *BY_ROW):
        likelihood = likelihood if way in BY_ROW else likelihood.sum(-1)
        found = tree["log_likelihood"]["y" if way in OBSERVED else "likelihood"]
        assert found.shape == likelihood.shape and found.values == pytest.approx(likelihood, abs=1e-8)
    else:
        assert has_none(tree, "log_likelihood")
    if way in OBSERVED:
        for group in ("posterior_predictive", "prior_predictive"):
            assert tree[group]["y"].shape == (*lead, ROWS)
        assert tree["observed_data"]["y"].values == pytest.approx(Y.numpy())
    else:
        for group in ("posterior_predictive", "prior_predictive"):
            assert has_none(tree, group), group


@every_way
def test_draws_have_their_moments(way):
    tree = posterior(guided(way), DATA, draws=2000)
    beta = tree["posterior"]["beta"].values[0]
    draws_agree(beta, EXACT.loc, EXACT.variance)
    draws_agree(beta.sum(-1), EXACT.loc.sum(), EXACT.covariance_matrix.sum())
    draws_agree(tree["prior"]["beta"].values[0], np.zeros(2), np.full(2, TAU**2))
    if way in OBSERVED:
        cov = EXACT.covariance_matrix
        draws_agree(tree["posterior_predictive"]["y"].values[0], X @ EXACT.loc, SD**2 + (X @ cov * X).sum(-1))
        draws_agree(tree["prior_predictive"]["y"].values[0], np.zeros(ROWS), SD**2 + TAU**2 * (X**2).sum(-1))


@every_way
def test_draws_that_are_corrected_by_their_weights(way):
    tree = posterior(guided(way, WIDTH), DATA, draws=5, corrected=True, predictive=False, prior=False)
    beta = torch.as_tensor(tree["posterior"]["beta"].values)
    assert beta.shape == (1, 5, 2)
    assert tree["sample_stats"]["log_p"].values == pytest.approx(log_joint(beta).numpy(), abs=1e-8)


# -- what is made of them ---------------------------------------------------------------------------


@every_way
def test_leave_one_out(way):
    tree = posterior(guided(way, WIDTH), DATA, draws=4000, predictive=False, prior=False)
    if way not in BY_ROW:
        with pytest.raises(PpgenError, match=r"row|log_likelihood"):
            loo(tree)
        return
    score = loo(tree)
    assert score.kind == "loo" and score.bad == 0
    assert score.values == pytest.approx(exact_loo().numpy(), abs=0.05)  # of 8 seeds: sd 0.01
    assert score.total == pytest.approx(float(exact_loo().sum()), abs=0.1)  # of 8 seeds: sd 0.02


@pytest.mark.parametrize("way", few(WAYS, "event", "factor_summed"))
def test_diagnose_of_the_posterior_itself(way):
    found = diagnose(guided(way), DATA, draws=ROWS, particles=ROWS)
    assert found.khat.shape == found.ess.shape == (1,)
    assert found.bounds.best.values == pytest.approx([EVIDENCE], abs=1e-8)
    assert found.ess == pytest.approx([ROWS])
    assert found.tree["posterior"]["beta"].shape == (1, ROWS, 2)


@pytest.mark.parametrize("way", few(WAYS, "plate", "factor_by_row"))
def test_diagnose_of_a_wide_guide(way):
    found = diagnose(guided(way, WIDTH), DATA, draws=2000, particles=2000)
    assert found.khat.shape == (1,) and found.khat[0] < 0.7
    assert found.ess[0] / 2000 == pytest.approx(_efficiency(WIDTH), abs=0.06)
    for bound, truth in zip(found.bounds.bounds, (EVIDENCE - KL, EVIDENCE), strict=True):
        assert abs(bound.mean - truth) < 4 * bound.mean_se
    sd = EXACT.stddev.numpy()
    error = 4 / math.sqrt(_efficiency(WIDTH) * 2000)
    assert found.moments["mean"].to_numpy() == pytest.approx(EXACT.loc.numpy(), abs=WIDTH * sd.max() * 4 / 2000**0.5)
    assert found.moments["sd"].to_numpy() == pytest.approx(WIDTH * sd, rel=4 / 4000**0.5)
    assert found.moments["corrected_mean"].to_numpy() == pytest.approx(EXACT.loc.numpy(), abs=sd.max() * error)
    assert found.moments["corrected_sd"].to_numpy() == pytest.approx(sd, rel=error)


def _efficiency(width: float) -> float:
    """(E w)² / E w² of a guide `width` times as wide, in two dimensions: (2 / width² - 1 / width⁴)."""
    return 2 / width**2 - 1 / width**4


@every_way
def test_mcmc(way):
    tree = mcmc(WAYS[way], DATA, chains=32, draws=100, warmup=100, engine="trace")
    beta = torch.as_tensor(tree["posterior"]["beta"].values)
    assert beta.shape == (32, 100, 2)
    for i in range(2):
        chains_agree(beta[..., i].numpy(), float(EXACT.loc[i]), float(EXACT.variance[i]))
    assert tree["sample_stats"]["lp"].values == pytest.approx(log_joint(beta).numpy(), abs=1e-6)
    _has_what_its_sites_give(tree, way, (32, 100), beta)
    if way in OBSERVED:
        means = tree["posterior_predictive"]["y"].mean("draw").values
        off = (means.mean(0) - (X @ EXACT.loc).numpy()) / (means.std(0, ddof=1) / math.sqrt(32))
        assert np.abs(off).max() < 4.5


@every_way
def test_predict(way):
    if way not in OBSERVED:
        with pytest.raises(PpgenError, match="no observed site, only factors, from which nothing can be drawn"):
            predict(guided(way), {"x": NEW, "y": Y[:3]}, draws=4)
        return
    tree = predict(guided(way), {"x": NEW}, draws=1000)
    assert tree["predictions"]["y"].shape == (1, 1000, 3)
    mean, var = NEW @ EXACT.loc, SD**2 + (NEW @ EXACT.covariance_matrix * NEW).sum(-1)
    draws_agree(tree["predictions"]["y"].values[0], mean, var)
