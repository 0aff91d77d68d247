"""R-hat and effective draws of many entries at once, beside ArviZ's of one at a time."""

import arviz_stats
import numpy as np
import pytest
from arviz_stats.base import array_stats

from ppgen.inference.evaluation.posterior import tree_from
from ppgen.inference.evaluation.psis import pareto_shape, smoothed
from ppgen.inference.verdicts.mcmc_diagnostics import LEAST, _tail_shape
from ppgen.run.chain_statistics import TAILS, ess_bulk, ess_mean, ess_tail, of_entries, rhat
from ppgen.run.shown import summarized


def walks(chains, draws, entries, rho, seed=0):
    """AR(1) chains, (chains, draws, entries)."""
    x = np.random.default_rng(seed).normal(size=(chains, draws, entries))
    for t in range(1, draws):
        x[:, t] += rho * x[:, t - 1]
    return x


CHAINS = {
    "many": walks(64, 30, 3, 0.3), "few": walks(4, 300, 3, 0.9), "antithetic": walks(4, 101, 3, -0.5),
    "slow": walks(3, 100, 3, 0.999), "odd": walks(2, 9, 3, 0.2), "shortest": walks(2, 4, 3, 0.2),
    "short": walks(2, 6, 3, 0.2), "one": walks(1, 50, 3, 0.2), "equal": np.round(walks(4, 60, 3, 0.9)),
    "apart": walks(16, 25, 3, 0.3) + np.arange(16)[:, None, None], "constant": np.zeros((4, 50, 2)),
    "heavy": np.random.default_rng(0).standard_cauchy((4, 100, 3)),
}  # fmt: skip
STATISTICS = {
    "rhat": (rhat, array_stats.rhat),
    "bulk": (ess_bulk, array_stats.ess),
    "tail": (ess_tail, lambda x: array_stats.ess(x, method="tail", prob=TAILS)),
    "mean": (ess_mean, lambda x: array_stats.ess(x, method="mean")),
}


def each(statistic, x):
    with np.errstate(all="ignore"):
        return np.array([float(statistic(np.ascontiguousarray(x[..., i]))) for i in range(x.shape[-1])])


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("chains", CHAINS)
def test_statistics_are_those_of_arviz(name, chains):
    ours, theirs = STATISTICS[name]
    assert of_entries(ours, CHAINS[chains]) == pytest.approx(each(theirs, CHAINS[chains]), rel=1e-9, nan_ok=True)


@pytest.mark.parametrize("chains", ["many", "apart"])
def test_nested_rhat_is_that_of_arviz(chains):
    x = CHAINS[chains]
    theirs = each(lambda v: array_stats.rhat_nested(v, superchain_ids=np.arange(len(x)) % 8), x)
    assert of_entries(lambda v: rhat(v, 8), x) == pytest.approx(theirs, rel=1e-9)


def test_of_nan_and_of_too_few_draws_nothing_is_known():
    x = walks(4, 20, 2, 0.5)
    x[1, 3, 0] = np.nan
    assert np.isnan(of_entries(ess_bulk, x)).tolist() == [True, False]
    assert of_entries(rhat, np.repeat([0.0, 0.0, 1.0, 1.0], 50).reshape(4, 50)) > 1e6  # chains that never move
    assert np.isnan(of_entries(rhat, x[:, :3])).all() and of_entries(rhat, x[..., :0]).shape == (0,)


@pytest.mark.parametrize("draws", [25, 225, 226, 1000])
@pytest.mark.parametrize("sd", [0.5, 3.0])
def test_weights_are_smoothed_as_by_arviz(draws, sd):
    log_w = sd * np.random.default_rng(draws).normal(size=(draws, 2))
    ours, k = smoothed(log_w)
    for i in range(2):
        theirs, theirs_k = array_stats.psislw(-log_w[:, i])
        assert k[i] == pytest.approx(float(theirs_k), rel=1e-9) and ours[:, i] == pytest.approx(theirs, abs=1e-9)


def test_the_tails_of_draws_are_those_of_arviz():
    rng = np.random.default_rng(0)
    for x in (rng.standard_cauchy((4, 250)), rng.standard_t(3, (16, 100)), walks(8, 200, 1, 0.5)[..., 0]):
        share = float(array_stats.ess(x, method="tail", prob=TAILS)) / x.size
        assert share * x.size > LEAST
        assert _tail_shape(x) == pytest.approx(float(array_stats.pareto_khat(x, r_eff=min(share, 1.0))), rel=1e-9)


def test_a_tail_of_equal_values_is_none():
    log_w = np.concatenate([np.full(200, -1.0), np.zeros(100)])[:, None]
    ours, k = smoothed(log_w)
    assert k[0] == -np.inf and pareto_shape(np.ones(9))[0] == -np.inf
    assert np.exp(ours).sum() == pytest.approx(1.0)


def test_the_summary_is_that_of_arviz():
    draws = {"a": walks(4, 60, 6, 0.4).reshape(4, 60, 3, 2), "b": walks(4, 60, 1, 0.4)[..., 0] > 0}
    tree = tree_from({"posterior": draws}, {"a": ["town", "term"]}, {"town": ["Ulm", "Bonn", "Jena"], "term": [0, 1]})
    ours, theirs = summarized(tree), arviz_stats.summary(tree, var_names=["a"], round_to="none")
    assert list(ours.columns) == list(theirs.columns) and list(ours.index) == [*theirs.index, "b"]
    for name in theirs.columns:
        assert ours.loc[theirs.index, name].to_numpy() == pytest.approx(theirs[name].to_numpy(float), rel=1e-9), name
    assert ours.loc["b", "mean"] == draws["b"].mean()
    assert list(summarized(tree, "stats").columns) == list(theirs.columns)[:4]
