"""What counts as a row's log-likelihood: rows that are masked do not, a factor with a term a row does."""

from __future__ import annotations

import arviz_stats as azs
import numpy as np
import pyro
import pytest
import torch
from known import few, normal
from pyro import poutine
from pyro.distributions import Normal

import ppgen
from ppgen import PpgenError
from ppgen.inference import fit, mcmc, plot, posterior
from ppgen.inference.evaluation.compare import compare, loo
from ppgen.run.files import read_netcdf, write_netcdf
from ppgen.sites import rows_seen

Y = 3 + normal(30)
SEEN = torch.ones(30, dtype=torch.bool)
SEEN[5:15] = False


def by_mask(y=None, seen=None):
    m = pyro.sample("m", Normal(0.0, 100.0))
    with ppgen.rows(y, seen), poutine.mask(mask=seen):
        pyro.sample("y", Normal(m, 1.0), obs=y)


def by_distribution(y=None, seen=None):
    m = pyro.sample("m", Normal(0.0, 100.0))
    with ppgen.rows(y, seen):
        pyro.sample("y", Normal(m, 1.0).mask(seen), obs=y)


def exact_loo(y: torch.Tensor) -> float:
    """Of the rows that are seen: y_i | the others ~ N(their mean, 1 + 1 / (n - 1)), the prior being flat to 1e-4."""
    n = len(y)
    rest = (y.sum() - y) / (n - 1)
    return float(Normal(rest, (1 + 1 / (n - 1)) ** 0.5).log_prob(y).sum())


@pytest.mark.parametrize("model", few([by_mask, by_distribution], "by_mask"))
def test_masked_rows_are_left_out_whatever_stands_in_them(model, tmp_path):
    totals = []
    for filler in (0.0, 1000.0):
        data = {"y": torch.where(SEEN, Y, filler), "seen": SEEN}
        tree = mcmc(model, data, chains=16, draws=100, warmup=100, engine="trace", predictive=False, prior=False)
        assert tree["log_likelihood"]["y"].shape == (16, 100, 20)
        assert (tree["log_likelihood"]["data"].values == np.flatnonzero(SEEN)).all()
        assert tree["observed_data"]["y"].shape == (30,)
        write_netcdf(tmp_path / "tree.nc", tree)
        opened = read_netcdf(tmp_path / "tree.nc")
        assert azs.loo(opened).elpd == pytest.approx(loo(opened).total)
        assert loo(opened).observed == pytest.approx(Y[SEEN].numpy())
        totals.append(loo(opened).total)
    assert totals[0] == totals[1] == pytest.approx(exact_loo(Y[SEEN]), abs=0.1)


def test_a_guides_draws_leave_them_out_too():
    data = {"y": torch.where(SEEN, Y, 1e6), "seen": SEEN}
    run = fit(ppgen.Program.from_pair(by_mask), data, steps=300, lr=0.1, schedule="cosine", engine="trace")
    tree = posterior(run, data, draws=1000, predictive=False, prior=False)
    assert tree["log_likelihood"]["y"].shape == (1, 1000, 20)
    assert loo(tree).total == pytest.approx(exact_loo(Y[SEEN]), abs=0.5)


def test_a_row_of_several_values_counts_as_long_as_one_is_left():
    seen = torch.stack([SEEN, torch.ones(30, dtype=torch.bool)])
    seen[1, 7] = False
    data = {"y": torch.stack([Y, Y], -1), "seen": seen}

    def model(y=None, seen=None):
        m = pyro.sample("m", Normal(0.0, 100.0))
        with pyro.plate("two", 2, dim=-2), pyro.plate("data", y.shape[0], dim=-1), poutine.mask(mask=seen):
            pyro.sample("y", Normal(m, 1.0), obs=y.mT)

    tree = mcmc(model, data, chains=8, draws=50, warmup=100, engine="trace", predictive=False, prior=False)
    found = tree["log_likelihood"]["y"]
    assert found.sizes["data"] == 29 and 7 not in found["data"] and (found.sel(two=0, data=6) == 0).all()


# -- factors ---------------------------------------------------------------------------------------


def as_site(y):
    m = pyro.sample("m", Normal(0.0, 100.0))
    with ppgen.rows(y):
        pyro.sample("y", Normal(m, 1.0), obs=y)


def as_factor(y):
    m = pyro.sample("m", Normal(0.0, 100.0))
    with ppgen.rows(y):
        pyro.factor("term", Normal(m, 1.0).log_prob(y))


def test_a_factor_by_row_gives_the_log_likelihood_of_the_site_and_its_loo():
    draws = {}
    for model in (as_site, as_factor):
        draws[model] = mcmc(model, {"y": Y}, chains=8, draws=50, warmup=100, engine="trace")
    site, factor = (t["log_likelihood"].dataset for t in draws.values())
    assert (site["y"].values == factor["term"].values).all() and factor["term"].dims == ("chain", "draw", "data")
    scores = {name.__name__: loo(tree) for name, tree in draws.items()}
    assert scores["as_site"].total == scores["as_factor"].total == pytest.approx(exact_loo(Y), abs=0.2)
    assert compare(scores).differences["as_factor"][0] == 0
    assert azs.loo(draws[as_factor]).elpd == pytest.approx(scores["as_site"].total)


@pytest.mark.parametrize("by_guide", few([False, True], False))
def test_rows_of_a_factor_under_a_mask_count_beside_those_of_a_site_under_its_opposite(by_guide):
    """As of censored times: half of the rows were in no LOO, without a word."""
    late = Y > 3.0

    def model(y, late):
        m = pyro.sample("m", Normal(0.0, 100.0))
        with ppgen.rows(y):
            with poutine.mask(mask=late):
                pyro.factor("later", 0.0 * y + (1.0 - Normal(m, 1.0).cdf(3.0)).log())
            with poutine.mask(mask=~late):
                pyro.sample("y", Normal(m, 1.0), obs=y)

    data = {"y": Y, "late": late}
    if by_guide:
        run = fit(model, data, steps=300, lr=0.1, guide="AutoNormal", schedule="cosine", engine="trace")
        tree = posterior(run, data, draws=1000, prior=False)
    else:
        tree = mcmc(model, data, chains=8, draws=100, warmup=100, engine="trace", prior=False)
    y, grid, seen = Y.double()[:, None], torch.linspace(0.0, 6.0, 2001).double(), late[:, None]
    each = torch.where(seen, (1 - Normal(grid, 1.0).cdf(torch.tensor(3.0))).log(), Normal(grid, 1.0).log_prob(y))
    rest = each.sum(0) - each
    exact = ((rest + each).logsumexp(1) - rest.logsumexp(1)).sum()
    score = loo(tree)
    assert len(score.values) == 30 and score.total == pytest.approx(float(exact), abs=0.3)


def test_a_factor_by_row_that_is_scaled_has_no_loo():
    """The draws are of twice the rows, which were left out one at a time by the weight of one."""

    def model(y):
        m = pyro.sample("m", Normal(0.0, 100.0))
        with ppgen.rows(y), poutine.scale(scale=2.0):
            pyro.factor("term", Normal(m, 1.0).log_prob(y))

    with pytest.raises(PpgenError, match="multiplies the log-probability of 'term'"):
        loo(mcmc(model, {"y": Y}, chains=8, draws=50, warmup=100, engine="trace"))


def test_pictures_of_a_model_of_factors(tmp_path):
    run = fit(ppgen.Program.from_pair(as_factor), {"y": Y}, steps=20, lr=0.1, engine="eager")
    files = plot(run, {"y": Y}, out=tmp_path)
    assert {f.name for f in files} >= {"elbo.png", "latent.png"}


def test_rows_of_a_mask_within_an_event_are_those_of_which_a_part_counts():
    seen = torch.tensor([[True, False], [False, False], [True, True]])
    fn = Normal(torch.zeros(3, 2), 1.0).mask(seen).to_event(1)
    with pyro.plate("data", 3):
        trace = poutine.trace(lambda: pyro.sample("y", fn, obs=torch.zeros(3, 2))).get_trace()
    with pyro.plate("groups", 4, dim=-2), pyro.plate("data", 3):
        wide = poutine.trace(lambda: pyro.sample("y", fn, obs=torch.zeros(4, 3, 2))).get_trace()
    for t in (trace, wide):
        assert rows_seen(t.nodes["y"], "data").tolist() == [True, False, True]
