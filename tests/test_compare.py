"""Comparing models: leave-one-out and held-out rows against closed forms, and what may not be compared."""

from __future__ import annotations

import json
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from known import Gaussian, GuidedNormalMean, NormalMean, normal, ppca
from pyro import poutine
from scipy import stats
from typer.testing import CliRunner

import ppgen
from ppgen import PpgenError, Program
from ppgen.cli import app
from ppgen.inference import fit, posterior
from ppgen.inference.evaluation.compare import Score, _loo_se, _score, compare, held_out, loo

X = normal(40) + 1.0
NEW = normal(30, seed=3) + 1.0
SOURCE = {"precision": "64-true", "guide": "AutoNormal", "starts": 1, "steps": 0}


def exact_loo(x: torch.Tensor, sd: float = 1.5, prior: float = 2.0) -> np.ndarray:
    found = []
    for i in range(len(x)):
        q = NormalMean(prior, sd).posterior(torch.cat((x[:i], x[i + 1 :])))
        found.append(stats.norm(float(q.loc), math.hypot(sd, float(q.scale))).logpdf(float(x[i])))
    return np.array(found)


def run_of(sd: float = 1.5, prior: float = 2.0):
    return fit(NormalMean(prior, sd), {"x": X}, **SOURCE)


def tree_of(**how):
    return posterior(run_of(**how), {"x": X}, draws=4000, predictive=False, prior=False)


def test_loo_is_that_of_the_closed_form():
    found = loo(tree_of())
    assert found.kind == "loo" and found.bad == 0
    assert np.allclose(found.values, exact_loo(X), atol=0.02)
    assert found.total == pytest.approx(exact_loo(X).sum(), abs=0.1)


def test_loo_of_a_guide_that_is_not_the_posterior():
    """Its draws are corrected by log p - log q: with an exact guide all weights are equal, whatever their sign."""
    tree = posterior(GuidedNormalMean(width=1.5), {"x": X}, draws=4000, predictive=False, prior=False)
    found = loo(tree)
    assert np.allclose(found.values, exact_loo(X), atol=0.02)
    assert found.kind == "loo" and found.bad == 0


def test_a_row_without_density_at_a_draw_has_no_loo():
    """Its weight without the row is 0 / 0: the score was nan, and the comparison failed on it."""

    def model(y):
        a = pyro.sample("a", dist.Pareto(0.3, 1.0))
        with ppgen.rows(y):
            pyro.sample("y", dist.Uniform(0.0, a, validate_args=False), obs=y)

    def guide(y):
        pyro.sample("a", dist.Pareto(pyro.param("least", torch.tensor(0.3)), 5.0))

    y = {"y": torch.tensor([0.1, 0.2, 0.32, 0.25])}
    run = fit(Program.from_pair(model, guide), y, steps=0)
    with pytest.raises(PpgenError, match="row 2 is 0 or infinite at some of the draws"):
        loo(posterior(run, y, draws=500, predictive=False, prior=False))
    found = held_out(run, {"y": 0.9 * y["y"]}, draws=500)
    assert np.isfinite(found.values).all()


def test_draws_are_scored():
    draws = tree_of()
    found = compare({"draws": draws, "score": loo(draws)})
    assert found.scores["draws"].total == found.scores["score"].total
    with pytest.raises(PpgenError, match="compare got int for 'b'; expected a score"):
        compare({"a": draws, "b": 3})


def test_a_run_of_data_in_memory_has_a_remedy_that_works():
    run = run_of()
    with pytest.raises(PpgenError, match=r"'a' is a run of data in memory.*; name posterior\(run, data\), or held_out"):
        compare({"a": run, "b": tree_of()})
    compare({"a": posterior(run, {"x": X}), "b": tree_of()})


@pytest.mark.parametrize("width", [1.0, 1.3], ids=["posterior", "guide"])
def test_the_monte_carlo_error_of_loo_is_the_spread_over_other_draws(width):
    """Of −Σ_i log(Σ_s w_s / p(x_i | m_s) / Σ_s w_s), plain NumPy, at draws of the closed form or of a wider normal."""
    rng, S, n = np.random.default_rng(0), 500, 400
    q = NormalMean().posterior(X.double())
    loc, sd = float(q.loc), float(q.scale)
    m = stats.norm(loc, width * sd).rvs((n, S), rng)
    log_w = stats.norm(loc, sd).logpdf(m) - stats.norm(loc, width * sd).logpdf(m)
    log_lik = stats.norm(m[..., None], 1.5).logpdf(X.numpy())
    w = np.exp(log_w)
    totals = -np.log((w[..., None] / np.exp(log_lik)).sum(1) / w.sum(1)[:, None]).sum(-1)
    said = [_loo_se(log_lik[i, None], log_w[i, None]) for i in range(n)]
    assert np.sqrt(np.mean(np.square(said))) == pytest.approx(totals.std(), rel=4.5 / math.sqrt(2 * n))


def test_a_model_is_not_better_than_itself():
    """By other draws of one posterior: rows differ alike, which paired rows take for certain."""
    draws = [posterior(run_of(), {"x": X}, draws=1000, seed=s, predictive=False, prior=False) for s in range(8)]
    found = [compare({"a": a, "b": b}) for a, b in zip(draws[::2], draws[1::2], strict=True)]
    assert all("cannot be told apart" in str(f.findings[0]) for f in found)
    assert all(abs(d) < 3 * se for f in found for d, se in f.differences.values() if d)


def test_draws_of_a_likelihood_to_a_power_have_no_loo():
    """Their weights are p(x_i | m) to the power: LOO by its own was 10 nats off, without a word."""

    def model(x=None, power=0.1):
        m = pyro.sample("m", dist.Normal(0.0, 2.0))
        with poutine.scale(scale=power), ppgen.rows(x):
            pyro.sample("x", dist.Normal(m, 1.5), obs=x)

    for power in (0.1, 1.0):
        tree = posterior(fit(model, {"x": X, "power": power}, steps=0), {"x": X, "power": power}, draws=100)
        if power == 1.0:
            assert loo(tree).kind == "loo"
            continue
        with pytest.raises(PpgenError, match="the log-probability of 'x'.*score a program without the scale"):
            loo(tree)


def test_loo_of_a_discrete_latent():
    """z ~ Bernoulli(1/2), x_i ~ N(2 z, 2), a guide that says 1/2: sums over both values. Its weights are two."""

    def model(x):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        with ppgen.rows(x):
            pyro.sample("x", dist.Normal(2 * z, 2.0), obs=x)

    def guide(x):
        pyro.sample("z", dist.Bernoulli(pyro.param("q", torch.tensor(0.5))))

    x = X[:8]
    found = loo(posterior(fit(Program.from_pair(model, guide), {"x": x}, steps=0), {"x": x}, draws=20_000))
    each = stats.norm(np.array([0.0, 2.0]), 2.0).logpdf(x.double().numpy()[:, None])
    whole = each.sum(0)
    exact = np.logaddexp.reduce(whole) - np.logaddexp.reduce(whole - each, axis=1)
    assert abs(found.total - exact.sum()) < 4.5 * found.se < 0.1 and found.bad == 0
    assert found.values == pytest.approx(exact, abs=0.02)


def test_loo_sums_out_the_classes_of_rows_beside_one_that_rows_share():
    """z ~ Bernoulli(0.4), k_i ~ Bernoulli(0.3), x_i ~ N(2 z + 4 k_i, 1), both summed out: given k_i that were drawn,
    rows that lie between two classes are weighed by what the drawn one says of them."""

    def model(x):
        z = pyro.sample("z", dist.Bernoulli(0.4))
        with ppgen.rows(x):
            k = pyro.sample("k", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(2 * z + 4 * k, 1.0), obs=x)

    x = torch.tensor([2.1, 3.9, 1.2, 2.8, 5.0, 0.4])
    found = loo(posterior(fit(model, {"x": x}, steps=0, objective="enumerate"), {"x": x}, draws=20_000))
    by_class = stats.norm(np.array([[0.0, 4.0], [2.0, 6.0]])).logpdf(x.double().numpy()[:, None, None])
    each = np.logaddexp.reduce(by_class + np.log([0.7, 0.3]), axis=2)  # by row and z
    whole = each.sum(0) + np.log([0.6, 0.4])
    exact = np.logaddexp.reduce(whole) - np.logaddexp.reduce(whole - each, axis=1)
    assert found.bad == 0 and found.values == pytest.approx(exact, abs=0.03)


class Raters(NormalMean):
    """m ~ N(0, 2), x_ij | m ~ N(m, 1.5): rows i in the plate "people", columns j in another."""

    def __init__(self, outermost: bool):
        super().__init__()
        self.outermost = outermost

    def model(self, x=None):
        m = pyro.sample("m", dist.Normal(0.0, self.prior))
        people, rater = (-2, -1) if self.outermost else (-1, -2)
        with pyro.plate("people", 7 if x is None else len(x), dim=people), pyro.plate("rater", 3, dim=rater):
            pyro.sample("x", dist.Normal(m, self.sd), obs=x if x is None or self.outermost else x.T)


@pytest.mark.parametrize("outermost", [False, True])
def test_loo_leaves_out_rows_and_not_another_plate(outermost):
    x = normal(7, 3) + 1.0
    run = fit(Raters(outermost), {"x": x}, **SOURCE)
    found = loo(posterior(run, {"x": x}, draws=4000, predictive=False, prior=False))
    exact = []
    for i in range(len(x)):
        q = NormalMean().posterior(torch.cat((x[:i], x[i + 1 :])).flatten())
        cov = 1.5**2 * torch.eye(3) + q.variance
        exact.append(float(dist.MultivariateNormal(q.loc.expand(3), cov).log_prob(x[i])))
    assert len(found.values) == len(x)
    assert np.allclose(found.values, exact, atol=0.05)


def test_held_out_rows_given_a_global_latent():
    found = held_out(run_of(), {"x": NEW}, draws=4000)
    q = NormalMean().posterior(X)
    exact = stats.norm(float(q.loc), math.hypot(1.5, float(q.scale))).logpdf(NEW.numpy())
    assert found.kind == "estimate" and found.se < 0.1
    assert abs(found.total - exact.sum()) < 4.5 * found.se
    assert np.allclose(found.values, exact, atol=0.03)


def test_the_standard_error_of_a_predictive_whose_rows_share_a_latent():
    """By quadrature over m. New rows lie on one side of the fitted ones, so that a draw of m is good or bad for all."""
    new, draws = NEW.double().numpy() + 2.0, 10_000
    q = NormalMean().posterior(X.double())
    m = stats.norm(float(q.loc), float(q.scale)).ppf((np.arange(20_000) + 0.5) / 20_000)
    ratio = stats.norm(m, 1.5).pdf(new[:, None])
    ratio /= ratio.mean(1, keepdims=True)  # p(x_i | m) / p(x_i)
    shared, alone = math.sqrt(ratio.sum(0).var() / draws), math.sqrt(ratio.var(1).sum() / draws)
    assert shared > 2 * alone
    assert held_out(run_of(), {"x": torch.tensor(new)}, draws=draws).se == pytest.approx(shared, rel=0.04)


def test_a_paired_difference_is_that_of_the_rows():
    a, b = loo(tree_of()), loo(tree_of(sd=4.0))
    found = compare({"wide": b, "right": a})
    d = exact_loo(X, 4.0) - exact_loo(X)
    assert list(found.scores) == ["right", "wide"]
    assert found.differences["wide"][0] == pytest.approx(d.sum(), abs=0.15)
    assert found.differences["wide"][1] == pytest.approx(d.std(ddof=1) * len(d) ** 0.5, rel=0.02)
    assert found.differences["right"] == (0.0, 0.0) and "right predicts best" in str(found.findings[0])
    assert found.differences["wide"][1] < b.rows_se + a.rows_se
    assert "array(" not in repr(found) and f"right: {a.total:.2f} nats (loo)\nwide: " in repr(found)
    assert "right predicts best" in repr(found)


def test_models_that_are_alike_cannot_be_told_apart():
    found = compare({"a": loo(tree_of()), "b": loo(tree_of(prior=2.5))})
    assert "cannot be told apart" in str(found.findings[0])
    same = compare({"a": loo(tree_of()), "b": loo(tree_of())})
    assert str(same.findings[0]).startswith("a and b predict each of these rows alike") and not same.findings[0].remedy


def test_across_families_and_kinds():
    x = normal(40, 4)
    latent = _score(fit(ppca(width=1.2), {"x": x}, steps=0), {"x": x}, particles=1500)
    other = Score("exact", latent.values + 1, 0.0, 0, latent.observed)
    found = compare({"ppca": latent, "flow": other})
    assert latent.kind == "lower" and len(latent.values) == 40
    assert np.allclose(latent.values, ppca().log_prob(x).detach(), atol=0.05)
    assert "Kinds are mixed: ppca is a lower bound" in str(found.findings[-1])
    assert found.differences["ppca"] == (pytest.approx(-40.0, abs=1e-6), pytest.approx(latent.se))
    assert {"name", "kind", "nats", "difference", "difference_se"} <= set(found.table()[0])


def test_the_standard_error_of_a_bound_on_new_rows():
    """A guide w times too wide in k dimensions: the weights' relative variance is (w² / √(2w² - 1))^k - 1."""
    width, particles = 1.2, 4000
    program = ppca(width=width)
    found = held_out(fit(program, {"x": normal(40, 4)}, steps=0), {"x": normal(30, 4, seed=3)}, particles=particles)
    k = program.posterior(normal(1, 4)).event_shape[0]
    variance = (width**2 / math.sqrt(2 * width**2 - 1)) ** k - 1
    assert found.kind == "lower" and found.se == pytest.approx(math.sqrt(30 * variance / particles), rel=0.02)


def test_no_latents_is_exact():
    program = Gaussian()
    found = _score(fit(program, {"x": X}, steps=0), {"x": NEW})
    assert found.kind == "exact" and found.se == 0
    exact = stats.norm(0.5, 2.0).logpdf(NEW.numpy())
    assert np.allclose(found.values, exact, atol=1e-5)


def test_what_may_not_be_compared():
    a = held_out(fit(Gaussian(), {"x": X}, steps=0), {"x": NEW})
    with pytest.raises(PpgenError, match="name two runs"):
        compare({"a": a})
    with pytest.raises(PpgenError, match="about other rows"):
        compare({"a": a, "b": loo(tree_of())})
    with pytest.raises(PpgenError, match="is scored on 30 rows"):
        compare({"a": a, "b": held_out(fit(Gaussian(), {"x": X}, steps=0), {"x": NEW[:20]})})
    with pytest.raises(PpgenError, match="predict other values"):
        compare({"a": a, "b": held_out(fit(Gaussian(), {"x": X}, steps=0), {"x": 2 * NEW})})
    tree = tree_of()
    with pytest.raises(PpgenError, match="no group log_likelihood"):
        loo(tree.drop_nodes("log_likelihood"))


def test_the_same_rows_in_another_order_are_the_same_data(tmp_path):
    """Of covariates too: equal responses stand in rows with other covariates."""
    n = 40
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(n, generator=generator), torch.randint(0, 3, (n,), generator=generator).double()
    order = torch.randperm(n, generator=generator)

    def made(slope):
        def model(x, y=None):
            m = pyro.sample("m", dist.Normal(0.0, 2.0))
            with ppgen.rows(x):
                pyro.sample("y", dist.Normal(m + slope * x, 1.0), obs=y)

        return model

    table, turned = {"x": x, "y": y}, {"x": x[order], "y": y[order]}
    runs = [fit(made(s), table, **SOURCE) for s in (0.0, 1.0)]
    fitted = [(runs[0], table), (runs[1], table), (fit(made(1.0), turned, **SOURCE), turned)]
    a, b, c = (loo(posterior(r, own, draws=500, predictive=False, prior=False)) for r, own in fitted)
    best, (gap, se) = next((n, d) for n, d in compare({"a": a, "b": b}).differences.items() if d[0])
    found = compare({"a": a, "c": c}).differences
    assert found[best if best == "a" else "c"] == (pytest.approx(gap, abs=1.0), pytest.approx(se, rel=0.1))
    one, two, same = (held_out(r, own, draws=50) for r, own in ((runs[0], table), (runs[1], turned), (runs[1], table)))
    assert compare({"1": one, "2": two}).differences["2"] == pytest.approx(
        compare({"1": one, "2": same}).differences["2"]
    )
    with pytest.raises(PpgenError, match="predict other values"):
        compare({"1": one, "2": held_out(runs[1], {"x": x, "y": y[order]}, draws=50)})


def test_in_the_shell(tmp_path):
    file = tmp_path / "x.csv"
    np.savetxt(file, X.numpy(), header="x", comments="", fmt="%.6f")
    source = tmp_path / "m.py"
    source.write_text(
        "import pyro, ppgen\nfrom pyro.distributions import Normal\n"
        "class M(ppgen.Program):\n"
        "    def __init__(self, sd=1.5):\n        super().__init__()\n        self.sd = sd\n"
        "    def model(self, x=None):\n        m = pyro.sample('m', Normal(0.0, 2.0))\n"
        "        with ppgen.rows(x):\n            pyro.sample('x', Normal(m, self.sd), obs=x)\n"
    )
    runner = CliRunner()
    for sd in ("1.5", "4.0"):
        words = ["fit", f"{source}:M", "--data", str(file), "--set", f"sd={sd}", "--steps", "300", "--lr", "0.05",
                 "--out", str(tmp_path / sd), "--quiet"]  # fmt: skip
        assert runner.invoke(app, words).exit_code == 0
    out = runner.invoke(app, ["compare", str(tmp_path / "1.5"), str(tmp_path / "4.0"), "--json"])
    assert out.exit_code == 0, out.output
    table = json.loads(out.stdout)["models"]
    assert [t["kind"] for t in table] == ["loo", "loo"] and table[0]["name"].endswith("1.5")
