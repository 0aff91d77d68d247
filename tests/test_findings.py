"""Findings: planted situations and the verdicts that they must get; no false alarm for what is right."""

from __future__ import annotations

import json
import math
from functools import cache
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from arviz_base import from_dict
from known import GuidedNormalMean, NormalMean, normal, ppca
from scipy import stats
from torch import nn

from ppgen import PpgenError, Program, rows
from ppgen.inference import calibrate, diagnose, fit, infer, mcmc, posterior, report
from ppgen.inference.evaluation.calibrate import _Calibration, _findings
from ppgen.inference.evaluation.ecdf_bands import band, p_value
from ppgen.inference.evaluation.loglik import Bound, LogLik
from ppgen.inference.evaluation.moments import MEAN_OFF, SD_RATIO, WRONG_MEAN, WRONG_SD, _batch_se, compare_moments
from ppgen.inference.evaluation.psis import pareto_k
from ppgen.inference.sampling.kernels import Draws
from ppgen.inference.verdicts import predictive_statistics
from ppgen.inference.verdicts import report_checks as report_checks_module
from ppgen.inference.verdicts.finding_words import WORDS
from ppgen.inference.verdicts.findings import (
    TOGETHER,
    VERDICTS,
    Finding,
    load_findings,
    model_verdict,
    store_findings,
    verdict,
    worst_first,
)
from ppgen.inference.verdicts.guide_checks import conclusion, weight_checks
from ppgen.inference.verdicts.mcmc_diagnostics import findings as chain_findings
from ppgen.inference.verdicts.report_checks import _training, predictive, predictive_checks, report_checks, resolution
from ppgen.run.files import read_netcdf, write_netcdf

X = normal(20) + 1.0
SEEDS = 20


def failing(findings):
    """The measures that are not fine, without the conclusion drawn from them."""
    return {f.measure for f in findings if f.verdict != "fine"} - {"guide"}


def test_what_can_be_done_is_said_of_fits_that_may_have_ended_early_and_of_uneven_weights():
    early = Finding(
        "calibration", "", 1e-4, 0.05, "wrong", {"simulations": 99, "quantities": 1, "failed": ["m"], "steps": 50}
    )
    assert early.remedy.startswith("Take more steps (--steps 200)")
    (uneven,) = (f for f in findings_of("300 sd off") if "too uneven to correct them" in str(f))
    assert "Take more steps or a richer guide" in uneven.remedy


# -- a guide -------------------------------------------------------------------------------------------


class Shifted(GuidedNormalMean):
    """The posterior, so many times as wide and so many sd off."""

    def __init__(self, width=1.0, shift=0.0):
        super().__init__(width=width)
        self.shift = shift

    def guide(self, x):
        q = self.posterior(x)
        pyro.sample("m", dist.Normal(q.loc + self.shift * q.scale, q.scale * self.log_width.exp()))


class Two(Program):
    """Two modes of equal mass, and a guide that is the right one of them exactly."""

    def __init__(self):
        super().__init__()
        self.width = nn.Parameter(torch.ones(()))

    def model(self, x=None):
        m = pyro.sample("m", dist.Normal(0.0, 100.0))
        with rows(x):
            pyro.sample("x", dist.Normal(m.abs(), 1.0), obs=x)

    def guide(self, x):
        precision = 100.0**-2 + len(x)
        pyro.sample("m", dist.Normal(x.sum() / precision, self.width * precision**-0.5))


def both_modes():
    data = {"x": X + 50.0}
    m = np.random.default_rng(0).choice([-1, 1], (4, 500)) * (51 + 20**-0.5 * normal(4, 500).numpy())
    return diagnose(fit(Two(), data, steps=0), data, reference=from_dict({"posterior": {"m": m}})).findings


def guided(width=1.0, shift=0.0, **options):
    return diagnose(fit(Shifted(width, shift), {"x": X}, steps=0), {"x": X}, **options).findings


def by_row(width=1.0, **options):
    x = normal(40, 4, seed=1) * 1.5
    return diagnose(fit(ppca(width=width, **options), {"x": x}, steps=0), {"x": x}, draws=400).findings


GUIDES = {  # the verdict, and what is not fine
    "exact": (lambda: guided(), "fine", set()),
    "as good as exact": (lambda: guided(1.05, 0.1), "fine", set()),
    "2.5 times too wide": (lambda: guided(2.5), "wrong", {"sd_ratio", "bound_gap"}),
    "1.3 times too wide": (lambda: guided(1.3), "look", {"sd_ratio"}),
    "a fifth too narrow": (lambda: guided(0.8), "look", {"sd_ratio"}),
    "far too narrow": (lambda: guided(0.3), "wrong", {"khat", "ess", "sd_ratio"}),
    "half an sd off": (lambda: guided(1.0, 0.5), "look", {"mean_off"}),
    "300 sd off": (lambda: guided(1.0, 300.0), "wrong", {"khat", "ess", "sd_ratio", "bound_gap"}),
    "one of two modes": (both_modes, "wrong", {"mean_off", "sd_ratio", "unseen_modes"}),
    "few particles": (lambda: guided(1.05, particles=20), "look", {"khat"}),
    "exact by row": (lambda: by_row(), "fine", set()),
    "too wide by row": (lambda: by_row(2.5), "wrong", {"sd_ratio", "ess", "bound_gap"}),
    "1.3 times too wide by row": (lambda: by_row(1.3), "look", {"sd_ratio"}),
    "too narrow by row": (lambda: by_row(0.4), "look", {"khat", "ess", "sd_ratio"}),
    "dimensions that carry nothing": (lambda: by_row(latent=3, dead=2), "look", {"inactive_units"}),
}


@cache
def findings_of(name):
    """Those of the guide: the data are not all drawn from the models."""
    return [f for f in GUIDES[name][0]() if f.measure != "predictive"]


@pytest.mark.parametrize("name", list(GUIDES))
def test_a_guide(name):
    _, expected, measures = GUIDES[name]
    found = findings_of(name)
    assert (verdict(found), failing(found)) == (expected, measures), "\n".join(map(str, found))
    assert {f.verdict for f in found if f.measure == "guide"} == {
        verdict(f for f in found if f.measure != "inactive_units")
    }
    assert ("draws and bounds can be believed" in str(found[0])) == (found[0].verdict == "fine")
    survives_json(found)


def test_a_guide_that_is_too_wide_is_not_believed():
    """Its k-hat is the best there is, and half of its draws count: neither makes it fine."""
    found = findings_of("2.5 times too wide")
    by = {f.measure: f for f in found}
    assert by["khat"].verdict == by["ess"].verdict == "fine"
    assert verdict(found) == by["sd_ratio"].verdict == found[0].verdict == "wrong"
    assert by["sd_ratio"].where == "m" and by["sd_ratio"].figure == pytest.approx(2.5, rel=0.1)
    assert "2.5" in str(by["sd_ratio"]) or "2.4" in str(by["sd_ratio"]) or "2.6" in str(by["sd_ratio"])
    assert "draws and bounds can be believed" not in " ".join(map(str, found)) and "corrected=True" in found[0].remedy


# -- no false alarms, from weights that are known ------------------------------------------------------


def weighted(width, shift, dims, seed, rows=0, draws=1000):
    """Draws of N(shift, width²) with their weights for N(0, 1): findings of weights and moments."""
    rng = np.random.default_rng(seed)
    z = shift + width * rng.normal(size=(draws, rows, dims) if rows else (draws, dims))
    log_w = (stats.norm.logpdf(z) - stats.norm.logpdf(z, shift, width)).sum(-1)
    named = {"z": ["data", "dim"] if rows else ["dim"], "log_p": ["data"] * bool(rows), "log_q": ["data"] * bool(rows)}
    tree = from_dict(
        {"posterior": {"z": z[None]}, "sample_stats": {"log_p": log_w[None], "log_q": 0 * log_w[None]}}, dims=named
    )
    log_w = log_w.reshape(draws, -1)
    ess = np.exp(2 * np.logaddexp.reduce(log_w) - np.logaddexp.reduce(2 * log_w))
    same = Bound("elbo", "lower", np.zeros(log_w.shape[1]), np.zeros(log_w.shape[1]))
    ll = LogLik((same, same), "row" if rows else "data set", max(rows, 1), draws, ess, None)
    khat = pareto_k(log_w)
    checks = [*weight_checks(ll, khat), *compare_moments(tree, khat)[1]]
    return [conclusion(ll, khat, checks), *checks]


RIGHT = {  # sd ratio, sd off, dimensions, rows
    "exact": (1.0, 0.0, 1, 0),
    "a little wide": (1.05, 0.05, 1, 0),
    "a little narrow": (0.95, 0.1, 1, 0),
    "of twenty dimensions": (1.03, 0.03, 20, 0),
    "of thirty rows": (1.05, 0.05, 2, 30),
}


@pytest.mark.parametrize("name", list(RIGHT))
def test_a_guide_that_is_right_is_fine_whatever_the_seed(name):
    width, shift, dims, n = RIGHT[name]
    found = [weighted(width, shift, dims, seed, n, 200 if n else 1000) for seed in range(SEEDS)]
    assert [verdict(f) for f in found] == ["fine"] * SEEDS, [str(g) for f in found for g in f if g.verdict != "fine"]


@pytest.mark.parametrize(
    "width, shift, measure", [(1.2, 0.0, "sd_ratio"), (0.83, 0.0, "sd_ratio"), (1, 0.35, "mean_off")]
)
def test_a_guide_that_is_not_is_noticed_whatever_the_seed(width, shift, measure):
    found = [weighted(width, shift, 1, seed) for seed in range(SEEDS)]
    assert all(measure in failing(f) and verdict(f) == "look" for f in found)


class Correlated(Program):
    """Two of six latents correlated, and a guide of the right margins, with the correlation or without."""

    def __init__(self, rho, known):
        super().__init__()
        self.cov, self.known = torch.eye(6), known
        self.cov[1, 4] = self.cov[4, 1] = rho

    def model(self, x):
        pyro.sample("z", dist.MultivariateNormal(torch.zeros(6), self.cov))
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    def guide(self, x):
        pyro.sample("z", dist.MultivariateNormal(torch.zeros(6), self.cov if self.known else torch.eye(6)))


@pytest.mark.parametrize("rho", [0.5, -0.5])
def test_a_guide_without_the_correlation_of_the_posterior_is_noticed(rho):
    """sd(z_1 - z_4) is (2 (1 - rho))^½, and of the guide 2^½; the s.e. of the ratio is some 4%."""
    data = {"x": torch.zeros(())}
    missed, known = (diagnose(fit(Correlated(rho, k), data, steps=0), data).findings for k in (False, True))
    (said,) = (f for f in missed if f.measure == "sd_ratio")
    assert said.where == f"z[1] {'-' if rho > 0 else '+'} z[4], in units of their sds"
    assert said.figure == pytest.approx(2**0.5, rel=0.15) and failing(missed) == {"sd_ratio"}
    assert verdict(missed) == "look" and verdict(known) == "fine"


@pytest.mark.parametrize("rows", [0, 10])
def test_standard_errors_are_those_over_seeds(rows):
    """Of both figures, over many seeds: what is said to be the Monte Carlo error is the spread of the figures."""
    many = [weighted(1.2, 0.4, 1, seed, rows, 300)[-2:] for seed in range(80 if rows else 200)]
    off, ratio = (np.array([f[i].figure for f in many]) for i in (0, 1))
    said = [np.array([f[i].details["se"] for f in many]) for i in (0, 1)]
    assert off.std() == pytest.approx(said[0].mean(), rel=0.25)
    assert np.log(ratio).std() == pytest.approx(said[1].mean(), rel=0.25)
    assert off.mean() == pytest.approx(0.4, abs=0.02) and np.log(ratio).mean() == pytest.approx(math.log(1.2), abs=0.02)


def test_a_reference_that_is_autocorrelated_raises_no_alarm():
    """Chains of AR(1) draws have fewer effective ones than draws; of 20 seeds none is suspected."""
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        e = rng.normal(size=(4, 400, 2))
        for i in range(1, 400):
            e[:, i] = 0.9 * e[:, i - 1] + 0.19**0.5 * e[:, i]
        z = rng.normal(size=(1, 1000, 2))
        tree = from_dict({"posterior": {"z": z}, "sample_stats": {"log_p": z[..., 0] * 0, "log_q": z[..., 0] * 0}})
        found = compare_moments(tree, np.full(1, -np.inf), from_dict({"posterior": {"z": e}}))[1]
        assert [f.verdict for f in found] == ["fine"] * 4
        assert [f.details["beside"] for f in found] == ["corrected", "reference"] * 2


def test_batch_means_of_an_autoregression():
    """Standard error of its mean: √((1 + ρ) / (1 − ρ)) times that of independent draws."""
    chains_ = autoregressive(0.8, 10_000, 4, 3).swapaxes(0, 1)
    np.testing.assert_allclose(_batch_se(chains_), 3 / 40_000**0.5, rtol=0.12)


def test_one_effective_draw_is_wrong_whatever_khat():
    bound = Bound("elbo", "lower", np.zeros(1), np.zeros(1))
    for ess, expected in ((600.0, "fine"), (400.0, "look"), (11.0, "look"), (3.0, "wrong")):
        ll = LogLik((bound, bound), "data set", 9, 1000, np.array([ess]), None)
        khat, count = weight_checks(ll, np.full(1, 0.05))
        assert (khat.verdict, count.verdict) == ("fine", expected)
        moments = [Finding(m, "z", 1.0, 1.0, "fine", {"beside": "corrected"}) for m in ("mean_off", "sd_ratio")]
        told = conclusion(ll, np.full(1, 0.05), [khat, count, *moments])
        assert told.verdict == expected and ("do not trust its spread" in str(told)) == (expected == "wrong")


def test_a_guide_whose_draws_move_away_is_not_one_that_could_not_be_told():
    bound = Bound("elbo", "lower", np.zeros(1), np.zeros(1))
    ll = LogLik((bound, bound), "data set", 9, 1000, np.array([600.0]), None)
    moved = Finding("moved", "g", 0.34, 0.1, "wrong", {"of": "sd", "se": 0.08})
    told = conclusion(ll, np.full(1, 0.05), [*weight_checks(ll, np.full(1, 0.05)), moved])
    assert told.verdict == "wrong" and "do not trust its spread" in str(told)


@pytest.mark.parametrize("nats", [20.0, 800.0, 1e5])
def test_weights_of_a_guide_that_is_far_away(nats):
    """Log weights that spread over so many nats: one weight has everything, and no tail is light."""
    log_w = nats * np.random.default_rng(0).normal(size=(1000, 1))
    assert pareto_k(log_w)[0] > 1
    with np.errstate(over="raise"):
        assert np.isnan(pareto_k(log_w[:24])[0]), "five weights are the least for a tail"


def test_thresholds_are_what_their_reasons_say():
    """What is as good as right, and what is wrong, by the coverage of a nominal 90% interval."""

    def coverage(off=0.0, ratio=1.0):
        half = stats.norm.ppf(0.95) * ratio
        return stats.norm.cdf(off + half) - stats.norm.cdf(off - half)

    assert coverage(MEAN_OFF) == pytest.approx(0.89, abs=0.005) and coverage(WRONG_MEAN) == pytest.approx(
        0.74, abs=0.005
    )
    assert coverage(ratio=SD_RATIO) == pytest.approx(0.93, abs=0.005)
    assert coverage(ratio=1 / SD_RATIO) == pytest.approx(0.86, abs=0.006)
    assert coverage(ratio=WRONG_SD) == pytest.approx(0.999, abs=0.0005)
    assert coverage(ratio=1 / WRONG_SD) == pytest.approx(0.59, abs=0.005)


@pytest.mark.slow
def test_a_fit_that_is_right_is_fine_whatever_the_seed():
    for seed in range(SEEDS):
        x = {"x": normal(20, seed=seed) + 1.0}
        run = fit(NormalMean(), x, steps=400, lr=0.05, schedule="cosine", particles=8, seed=seed)
        found = diagnose(run, x, seed=seed)
        assert found.verdict == "fine", "\n".join(map(str, found.findings))


# -- chains --------------------------------------------------------------------------------------------


class Entries:
    """Latents that are their own unconstrained coordinates."""

    labels = ("u[0]", "u[1]")

    def unflatten(self, u):
        return {"u": u}


def autoregressive(rho, *shape, seed=0):
    """AR(1) along the first dimension, of unit variance."""
    e = np.random.default_rng(seed).normal(size=shape)
    for i in range(1, len(e)):
        e[i] = rho * e[i - 1] + (1 - rho**2) ** 0.5 * e[i]
    return e


def chains(change=lambda u: u, energy=0.0, diverging=0, outside=0, count=8, draws=400):
    """Independent draws of N(0, I), changed; energies are AR(1)."""
    u = change(np.random.default_rng(1).normal(size=(draws, count, 2)))
    order = np.arange(draws * count).reshape(draws, count)
    stats_ = {
        "lp": -0.5 * (u**2).sum(-1), "energy": autoregressive(energy, draws, count, seed=2),
        "diverging": order < diverging, "outside": order < outside,
    }  # fmt: skip
    found = Draws(torch.tensor(u), {n: torch.tensor(v) for n, v in stats_.items()}, 0, torch.zeros(2), "diag")
    return chain_findings(found, Entries())


def with_chain(value):
    def change(u):
        u[:, 3] = value(u[:, 3])
        return u

    return change


ESS = {"ess_bulk", "ess_tail"}
DRIFT = np.linspace(0, 1.0, 400)[:, None, None]
CHI = (np.random.default_rng(3).chisquare(2, (400, 8, 2)) / 2) ** 0.5  # a normal over it is Student's t of 2 degrees
CHAINS = {
    "independent draws": (lambda: chains(), "fine", set()),
    "one that never moved": (lambda: chains(with_chain(lambda u: 0 * u + 0.1)), "wrong", {"stuck_chains", "rhat"}),
    "one elsewhere": (lambda: chains(with_chain(lambda u: u + 30)), "wrong", {"chains_apart", "rhat", *ESS}),
    "chains that drift": (lambda: chains(lambda u: u + DRIFT), "look", {"rhat", "ess_bulk"}),
    "few effective draws": (lambda: chains(lambda u: autoregressive(0.9, *u.shape)), "look", {"rhat", *ESS}),
    "too few draws": (lambda: chains(draws=40), "look", {"rhat", *ESS}),
    "heavy tails": (lambda: chains(lambda u: u / CHI), "look", {"tail_khat"}),
    "divergences": (lambda: chains(diverging=20), "look", {"divergences"}),
    "a divergence": (lambda: chains(diverging=1), "fine", set()),
    "proposals that left the support": (lambda: chains(outside=900), "fine", set()),
    "an energy that hardly moves": (lambda: chains(energy=0.9), "look", {"e_bfmi"}),
    "one chain": (lambda: chains(count=1, draws=2000), "look", {"rhat"}),
}


@pytest.mark.parametrize("name", list(CHAINS))
def test_chains(name):
    situation, expected, measures = CHAINS[name]
    found = situation()
    assert (verdict(found), failing(found)) == (expected, measures), "\n".join(map(str, found))
    assert len(found) == 9 and len({f.measure for f in found}) == 9, "every check is there, fine or not"
    survives_json(found)


@pytest.mark.parametrize("tau", [3.5, 25.0])
def test_many_short_chains_in_their_target_agree(tau):
    """64 x 250 draws of AR(1) that begin in their target, of autocorrelation time tau; 1% may be flagged."""
    rho, flagged = (tau - 1) / (tau + 1), 0
    for seed in range(30):
        u = autoregressive(rho, 250, 64, 2, seed=seed)
        figures = {f.measure: f for f in chains(lambda _, u=u: u, count=64, draws=250)}
        flagged += figures["rhat"].verdict != "fine"
    assert flagged < 3


def test_many_short_chains_that_disagree_are_told():
    u = autoregressive(0.5, 250, 64, 2)
    apart = u + np.where(np.arange(64) < 20, 6.0, 0.0)[:, None]
    drifting = u + np.linspace(0, 3, 250)[:, None, None]
    for draws in (apart, drifting):
        assert verdict(chains(lambda _, u=draws: u, count=64, draws=250)) != "fine"


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_e_bfmi_of_energies_that_are_known(rho):
    """Σ (ΔE)² / Σ (E − mean)² of an AR(1) is 2 (1 − ρ)."""
    figure = next(f.figure for f in chains(energy=rho, draws=4000) if f.measure == "e_bfmi")
    assert figure == pytest.approx(2 * (1 - rho), rel=0.06)


def test_divergences_are_a_share_of_all_draws():
    found = next(f for f in chains(diverging=20) if f.measure == "divergences")
    assert found.figure == 20 / 3200 and "20 of 3200 draws diverged" in str(found)


# -- training, predictions, calibration ----------------------------------------------------------------


class Metrics:
    """What training leaves behind, without a fit."""

    def __init__(self, elbo, converged=None, bad=0, rows=0, schedule="constant"):
        self.metrics = {"elbo": np.asarray(elbo, float), "bad_steps": np.array([bad])}
        self.config = {"data": {"rows": rows}, "fit": {"schedule": schedule, "patience": None}}
        self.config |= {} if converged is None else {"converged": converged}
        self.structure = SimpleNamespace(by_row=rows > 0)


NOISE = np.random.default_rng(0).normal(size=400)
TRAINING = {
    "a plateau": (Metrics(NOISE), "fine", set()),
    "still rising": (Metrics(NOISE + 0.1 * np.arange(400)), "look", {"elbo_trend"}),
    "falling": (Metrics(NOISE - 0.1 * np.arange(400)), "fine", set()),
    "a rate fell too early": (Metrics(-(0.5 ** (np.arange(400) / 100)), schedule="cosine"), "look", {"elbo_trend"}),
    "a rate fell": (Metrics(-100 - 0.1 ** (np.arange(400) / 100), schedule="cosine"), "fine", set()),
    "converged": (Metrics(NOISE, converged=True), "fine", set()),
    "steps ran out": (Metrics(NOISE, converged=False), "wrong", {"converged"}),
    "steps that were skipped": (Metrics(NOISE, bad=3), "look", {"bad_steps"}),
    "too short to tell": (Metrics(NOISE[:5]), "look", set()),
}


@pytest.mark.parametrize("name", list(TRAINING))
def test_training(name):
    run, expected, measures = TRAINING[name]
    found = _training(run)
    assert (verdict(found), failing(found)) == (expected, measures)
    survives_json(found)


def test_what_the_elbo_gains_is_said_a_row():
    rising = NOISE + 0.1 * np.arange(400)
    (whole,), (row,) = _training(Metrics(rising)), _training(Metrics(50 * rising, rows=50))
    assert (row.figure, row.threshold) == pytest.approx((whole.figure, whole.threshold))
    assert whole.figure == pytest.approx(4.0, abs=0.6)  # 40 steps of 0.1
    assert f"by {row.figure:.3g} nats a row in" in str(row) and f"by {whole.figure:.3g} nats in" in str(whole)


@pytest.mark.parametrize("scale, expected", [(1.0, "fine"), (2.0, "look")])
def test_predictions(scale, expected):
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(1, 500, 50))
    tree = from_dict({"posterior_predictive": {"x": drawn}, "observed_data": {"x": scale * rng.normal(size=50)}})
    (found,) = predictive(predictive_checks(tree))
    assert found.verdict == expected and found.where == "x" and ("the sd of x" in str(found)) == (scale == 2.0)
    survives_json([found])


@pytest.mark.parametrize(
    ("noise", "dtype", "said"),
    [(1e-7, np.float32, "float32"), (1e-5, np.float32, None), (1e-7, float, None), (1e-16, float, "float64")],
)
def test_values_that_are_fitted_to_their_last_digits(noise, dtype, said):
    """Numbers about 3 are 2.4e-7 apart in float32, 4.4e-16 in float64."""
    rng = np.random.default_rng(0)
    x = rng.uniform(2.1, 3.9, 50).astype(dtype).astype(float)
    drawn = x + noise * rng.normal(size=(1, 500, 50))
    found = resolution(from_dict({"posterior_predictive": {"x": drawn}, "observed_data": {"x": x}}))
    assert [f.details["dtype"] for f in found] == [said] * (said is not None)
    certain = from_dict({"posterior_predictive": {"x": 0 * drawn + 1}, "observed_data": {"x": np.ones(50)}})
    assert not resolution(certain), "a count that is certain is no matter of digits"
    assert model_verdict(found) == ("look" if said else "")
    survives_json(found)


def _counts(seed, rows=60, spread=None):
    """Counts of one rate, Gamma(1, 1) before they are seen, or of a rate for each row, beside draws of the former."""
    rng = np.random.default_rng(seed)
    rate = rng.gamma(1.0, 3.0) if spread is None else rng.gamma(spread, 4.0 / spread, rows)
    x = rng.poisson(rate, rows)
    drawn = rng.poisson(rng.gamma(1 + x.sum(), 1 / (1 / 3 + rows), 500)[:, None], (500, rows))
    return from_dict({"posterior_predictive": {"x": drawn[None]}, "observed_data": {"x": x}})


def test_a_right_model_is_rarely_off_and_one_of_too_little_spread_is():
    said = [predictive(predictive_checks(_counts(seed)))[0] for seed in range(50)]
    assert sum(f.verdict != "fine" for f in said) <= 1
    (over,) = predictive(predictive_checks(_counts(0, spread=1.0)))
    assert (
        "share of zeros" in str(over) and "spread of the residuals" in str(over) and "negative binomial" in over.remedy
    )


def test_no_share_of_zeros_is_asked_of_a_continuous_model_of_whole_numbers():
    """Numbers that were rounded, one of them to 0: a normal has no zeros, and is no model of counts."""
    rng = np.random.default_rng(0)
    y = np.r_[0.0, rng.normal(5, 2, 59).round().clip(1)]
    (found,) = predictive(predictive_checks(_both({"x": rng.normal(5, 2, (1, 1000, 60))}, {"x": y})))
    assert found.verdict == "fine" and "share of zeros" not in found.details["statistics"]


def _apart(tree):
    """The values of `x` as sites of a loop."""
    drawn, x = (tree[g]["x"].values for g in ("posterior_predictive", "observed_data"))
    return from_dict({
        "posterior_predictive": {f"x_{i}": drawn[..., i] for i in range(len(x))},
        "observed_data": {f"x_{i}": x[i] for i in range(len(x))},
    })  # fmt: skip


def test_the_sites_of_a_loop_are_checked_together():
    together, apart = ([predictive(predictive_checks(own)) for own in (t, _apart(t))] for t in
                       (_counts(0, spread=1.0), _counts(1)))  # fmt: skip
    for (one,), (loop,) in (together, apart):
        assert loop.where == "x_0 ... x_59"
        assert (loop.figure, loop.verdict) == (pytest.approx(one.figure), one.verdict)
        assert loop.details["statistics"] == one.details["statistics"]
    assert together[1][0].verdict == "look" and apart[1][0].verdict == "fine"


def test_the_last_of_many_sites_is_checked_and_right_ones_are_rarely_off():
    rng, off = np.random.default_rng(0), 0
    for _ in range(40):
        drawn = {f"{name}": rng.normal(size=(1, 1000, 30)) for name in "abcdefghij"}
        right = {n: rng.normal(size=30) for n in drawn}
        off += any(f.verdict != "fine" for f in predictive(predictive_checks(_both(drawn, right))))
        wrong = predictive(predictive_checks(_both(drawn, right | {"j": 3 + right["j"]})))
        assert wrong[-1].where == "j" and wrong[-1].verdict == "look"
    assert off <= 3


@pytest.mark.parametrize("rows", [20, 300])
def test_statistics_are_those_of_all_rows_and_of_numpy(rows, monkeypatch):
    """Of many values one row in twelve was looked at, and "the largest of y is" said of these."""
    monkeypatch.setattr(predictive_statistics, "BLOCK", 1000)
    monkeypatch.setattr(report_checks_module, "MOST_VALUES", 1000)
    rng = np.random.default_rng(rows)
    y, drawn = rng.gamma(2.0, size=rows).round(3), rng.gamma(2.0, size=(1000, rows)).astype(np.float32)
    y[7], x = 40.0, rng.normal(size=rows)
    tree = from_dict({"posterior_predictive": {"y": drawn[None]}, "observed_data": {"y": y}, "constant_data": {"x": x}})
    tree.attrs["direct"] = '["y"]'
    checks = {c.statistic: c for c in predictive_checks(tree)}
    both = np.concatenate([y[None], drawn])
    z = (both - both.mean(0)) / both.std(0)
    expected = {
        "mean": both.mean(1), "sd": both.std(1), "least": both.min(1), "largest": both.max(1),
        "spread of the residuals": (z**2).mean(1) ** 0.5, "largest residual": np.abs(z).max(1),
        "correlation of neighboring residuals": (z[:, 1:] * z[:, :-1]).sum(1) / (z**2).sum(1),
    }  # fmt: skip
    for name, t in expected.items():
        c, p = checks[name], ((t[1:] > t[0]).sum() + 0.5 * (t[1:] == t[0]).sum() + 0.5) / 1001
        assert (c.observed, c.p) == (pytest.approx(t[0]), pytest.approx(p)), name
        assert c.predicted == pytest.approx(tuple(np.quantile(t[1:], [0.05, 0.95]))), name
    by = z[:, np.argsort(x)]
    along = (by[0, 1:] * by[0, :-1]).sum() / (by[0] ** 2).sum()
    assert checks["correlation of neighboring residuals by x"].observed == pytest.approx(along)
    assert checks["largest"].off and checks["largest"].observed == 40.0


@pytest.mark.slow
def test_right_models_of_four_sites_are_rarely_off():
    """Each of 4 sites had the level of one: 12 of 200 right models were off, where 2 are expected."""
    off = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        drawn = {n: rng.exponential(size=(1, 4000, 30)) for n in "abcd"}
        off += any(c.off for c in predictive_checks(_both(drawn, {n: rng.exponential(size=30) for n in drawn})))
    assert off <= 6  # of 200 at 1% more are once in 200 times


def _both(drawn, observed):
    return from_dict({"posterior_predictive": drawn, "observed_data": observed})


def test_residuals_of_a_model_that_adapts_to_its_rows_are_smaller_than_its_own_and_no_alarm():
    """a_i ~ N(0, 1), y_i ~ N(a_i, 1): y - E y is half of y, and of what is drawn given y an N(0, 1.5)."""
    rng = np.random.default_rng(0)
    y = rng.normal(0, 2**0.5, 100)
    drawn = y / 2 + rng.normal(0, 1.5**0.5, (500, 100))
    checks = predictive_checks(from_dict({"posterior_predictive": {"y": drawn[None]}, "observed_data": {"y": y}}))
    assert next(c.p for c in checks if c.statistic == "spread of the residuals") > 0.998
    assert predictive(checks)[0].verdict == "fine"


def _walk(rng, rows, carried):
    """Errors of variance 1 and of an autocorrelation."""
    e = rng.normal(size=rows)
    for i in range(1, rows):
        e[i] = carried * e[i - 1] + (1 - carried**2) ** 0.5 * e[i]
    return e


@pytest.mark.parametrize("loop", [False, True], ids=["rows", "loop"])
@pytest.mark.parametrize("kind", ["autocorrelation", "trend", "independent", "sorted"])
def test_a_trend_or_an_autocorrelation_that_the_model_leaves_out_is_told(kind, loop):
    """y ~ N(m, sd) under Jeffreys' prior, whose posterior predictive is a closed form."""
    told, n = 0, 60
    for seed in range(25):
        rng = np.random.default_rng(seed)
        y = _walk(rng, n, 0.6 if kind == "autocorrelation" else 0.0) + (kind == "trend") * np.linspace(-2.5, 2.5, n)
        y = np.sort(y) if kind == "sorted" else y
        sd = np.sqrt(np.square(y - y.mean()).sum() / rng.chisquare(n - 1, 1000))[:, None]
        drawn = y.mean() + sd * (rng.normal(size=(1000, 1)) / n**0.5 + rng.normal(size=(1000, n)))
        tree = _both({"x": drawn[None]}, {"x": y})
        (found,) = predictive(predictive_checks(_apart(tree) if loop else tree))
        told += any(c["statistic"] == "correlation of neighboring residuals" for c in found.details["off"])
    assert told >= 20 if kind in ("autocorrelation", "trend") else told <= 1


def _line(seed, curve, columns=2, n=100):
    """y = a + b x + curve x_0² + e as linear in x, with draws from the closed form of a flat prior."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, columns))
    design = np.c_[np.ones(n), x]
    y = design @ rng.normal(size=columns + 1) + curve * x[:, 0] ** 2 + rng.normal(size=n)
    cov = np.linalg.inv(design.T @ design)
    mean = cov @ design.T @ y
    sd = np.sqrt(np.square(y - design @ mean).sum() / rng.chisquare(n - columns - 1, 1000))[:, None]
    beta = mean + sd * (rng.normal(size=(1000, columns + 1)) @ np.linalg.cholesky(cov).T)
    drawn = beta @ design.T + sd * rng.normal(size=(1000, n))
    return x, y, drawn


def _told_along(x, y, drawn, direct=True):
    tree = from_dict({"posterior_predictive": {"y": drawn[None]}, "observed_data": {"y": y}, "constant_data": {"x": x}})
    tree.attrs["direct"] = '["y"]' if direct else "[]"
    (found,) = predictive(predictive_checks(tree))
    return found if any("residuals by x[" in c["statistic"] for c in found.details["off"]) else None


def test_a_line_through_a_curve_is_told_by_the_column_and_right_ones_are_not():
    told = [_told_along(*_line(seed, 1.0)) for seed in range(20)]
    assert sum(f is not None for f in told) >= 15
    assert all("neighboring residuals by x[0]" in str(f) for f in told if f is not None)
    assert all("goes along x[0] otherwise" in f.remedy for f in told if f is not None)
    assert sum(_told_along(*_line(seed, 0.0, n=30)) is not None for seed in range(60)) <= 1


def test_a_column_that_the_observed_value_is_a_function_of_is_no_covariate():
    """Of y = f(x) residuals go with x under any model: where it is monotone, or known to be a function."""
    _, y, drawn = _line(0, 0.0)
    assert _told_along(np.exp(y)[:, None], y, drawn) is None
    assert _told_along((y - drawn.mean(0) + 0.2 * normal(100).numpy())[:, None], y, drawn) is not None
    assert _told_along((y - drawn.mean(0) + 0.2 * normal(100).numpy())[:, None], y, drawn, direct=False) is None


@pytest.mark.parametrize("scale", ["direct", "of a function"])
def test_trees_know_what_is_observed_as_it_stands(scale):
    def model(x, y):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with rows(x):
            pyro.sample("seen", dist.Normal(m * x, 1.0), obs=y if scale == "direct" else y / x)

    data = {"x": normal(8) + 5.0, "y": normal(8, seed=1)}
    tree = posterior(fit(model, data, steps=0), data, draws=4)
    assert json.loads(tree.attrs["direct"]) == (["seen"] if scale == "direct" else [])


def test_neighbors_are_of_values_in_a_row_alone():
    """Of a table of values the neighbors in memory are columns, which a model may take for the same."""
    rng = np.random.default_rng(0)
    drawn, y = (rng.normal(size=shape) + np.repeat(rng.normal(size=(*shape[:-1], 1)), 2, -1)
                for shape in ((1, 500, 40, 2), (40, 2)))  # fmt: skip
    checks = predictive_checks(_both({"x": drawn}, {"x": y}))
    assert "correlation of neighboring residuals" not in {c.statistic for c in checks}


@pytest.mark.parametrize("kind", ["missing", "masked", "censored", "few draws"])
def test_what_cannot_be_compared_with_draws_is_left_out(kind):
    x, drawn = np.r_[np.zeros(20), 99.0], np.random.default_rng(0).normal(size=(1, 500, 21))
    x[:20] = drawn[0, 0, :20]
    groups = {"posterior_predictive": {"x": drawn}, "observed_data": {"x": x}}
    assert predictive(predictive_checks(from_dict(groups)))[0].verdict == "look"
    terms = -np.ones_like(drawn)
    terms[..., 20] = 0.0
    if kind == "missing":
        x[20] = np.nan
    tree = from_dict(groups | ({"log_likelihood": {"x": terms}} if kind == "masked" else {}))
    if kind == "few draws":
        tree = from_dict(groups | {"posterior_predictive": {"x": drawn[:, :200]}})
    if kind == "censored":
        tree.attrs["unrecorded"] = '["x"]'
    assert all(f.verdict == "fine" for f in predictive(predictive_checks(tree)))


@pytest.mark.parametrize("by", ["a column", "a latent"])
def test_masked_values_beside_a_latent_that_is_summed_out_are_not_held_against_draws(by):
    """Of y, masked by a column, the values that stand in for the missing ones, 99, were; of two sites that the latent
    masks, those of the other component."""
    torch.manual_seed(0)
    n = 60
    z, seen = torch.bernoulli(torch.full((n,), 0.4)), torch.bernoulli(torch.full((n,), 0.7)).bool()
    y, u = torch.where(z == 1, 4.0, -4.0) + torch.randn(n), z + 0.5 * torch.randn(n)

    def model(y, u, seen):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", dist.Bernoulli(p), infer={"enumerate": "parallel"})
            if by == "a column":
                with pyro.poutine.mask(mask=seen):
                    pyro.sample("y", dist.Normal(torch.where(z == 1, 4.0, -4.0), 1.0), obs=y)
            for k in (0, 1) if by == "a latent" else ():
                with pyro.poutine.mask(mask=z == k):
                    pyro.sample(f"y{k}", dist.Normal(8.0 * k - 4, 1.0), obs=y)
            pyro.sample("u", dist.Normal(z, 0.5), obs=u)

    tree = infer(model, {"y": torch.where(seen, y, 99.0) if by == "a column" else y, "u": u, "seen": seen}, prior=False)
    checks = predictive_checks(tree)
    assert {c.site for c in checks} == ({"y", "u"} if by == "a column" else {"u"})
    assert not [c for c in checks if c.off]
    largest = [c.observed for c in checks if (c.site, c.statistic) == ("y", "largest")]
    assert largest == ([pytest.approx(float(y[seen].max()))] if by == "a column" else [])


def test_an_event_that_no_column_records_is_not_held_against_draws():
    """Censored at c: a Bernoulli of exp(-rate c) at ones, by the ones trick, and counts of a column that are all 0."""
    t = torch.tensor([0.3, 1.1, 0.2, 0.8, 2.0, 1.7, 0.6, 2.0, 2.0, 0.9])

    def model(t, seen, zeros):
        rate = pyro.sample("rate", dist.Gamma(2.0, 2.0))
        with pyro.plate("rows", len(t)):
            with pyro.poutine.mask(mask=seen):
                pyro.sample("t", dist.Exponential(rate), obs=t)
            with pyro.poutine.mask(mask=~seen):
                pyro.sample("censored", dist.Bernoulli((-rate * t).exp()), obs=torch.ones(len(t)))
            pyro.sample("zeros", dist.Poisson(1.0), obs=zeros)

    data = {"t": t, "seen": t < 2, "zeros": torch.zeros(10)}
    tree = mcmc(model, data, chains=8, draws=100, warmup=100, prior=False)
    rate = tree.posterior["rate"].values
    assert abs(rate.mean() - 9 / (2 + float(t.sum()))) < 4 * (9**0.5 / 13.6) / 500**0.5  # Gamma(2 + 7, 2 + sum of t)
    assert {f.where for f in predictive(predictive_checks(tree)) if f.verdict == "look"} == {"zeros"}
    assert "censored" not in {c.site for c in predictive_checks(tree)}


CENSORED_AT = 0.5
TIMES = -torch.log1p(-(torch.arange(100) * 37 % 100 + 0.5) / 100)  # the quantiles of Exponential(1)


def under_a_mask(t, late):
    rate = pyro.sample("rate", dist.Gamma(2.0, 2.0))
    with pyro.plate("rows", len(t)):
        with pyro.poutine.mask(mask=~late):
            pyro.sample("t", dist.Exponential(rate), obs=t)
        with pyro.poutine.mask(mask=late):
            pyro.factor("survived", -rate * t)


def in_a_plate(t, late):
    rate, seen = pyro.sample("rate", dist.Gamma(2.0, 2.0)), t[~late]
    with pyro.plate("events", len(seen)):
        pyro.sample("t", dist.Exponential(rate), obs=seen)
    with pyro.plate("survivors", int(late.sum())):
        pyro.factor("survived", -rate * t[late])


def a_penalty_beside(t, late):
    rate, seen = pyro.sample("rate", dist.Gamma(2.0, 2.0)), t[~late]
    with pyro.plate("groups", 3):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("penalty", -(z**2))
    with pyro.plate("events", len(seen)):
        pyro.sample("t", dist.Exponential(rate), obs=seen)


@pytest.mark.parametrize("model", [under_a_mask, in_a_plate, a_penalty_beside])
def test_times_of_events_are_not_held_against_those_of_all_rows_where_a_factor_has_the_others(model):
    """The model that the data are of was said not to give data like them: a right posterior with a mean of 1 beside
    events up to 0.5. Where no term has the other rows, as with a penalty of latents alone, the check stays."""
    t = TIMES.clamp(max=CENSORED_AT)
    data = {"t": t, "late": t == CENSORED_AT}
    tree = mcmc(model, data, chains=8, draws=100, warmup=100, prior=False, engine="trace")
    events, total = int((~data["late"]).sum()), float(t.sum())
    if model is a_penalty_beside:
        total = float(t[~data["late"]].sum())
        assert {c.site for c in predictive_checks(tree)} == {"t"}
    else:
        assert all(f.verdict == "fine" for f in predictive(predictive_checks(tree)))
    rate = tree.posterior["rate"].values  # Gamma(2 + events, 2 + total)
    assert abs(rate.mean() * (2 + total) / (2 + events) - 1) < 4 / ((2 + events) * 300) ** 0.5


@pytest.mark.parametrize("width, expected", [(1.0, "fine"), (0.5, "wrong"), (2.0, "wrong")])
def test_calibration(width, expected):
    found = calibrate(GuidedNormalMean(width=width), {"x": X}, simulations=100, refit=False)
    assert isinstance(found, _Calibration) and verdict(found.findings) == expected
    words = {0.5: "narrow", 2.0: "wide"}
    assert width not in words or words[width] in {f.details.get("shape") for f in found.findings if f.where == "m"}
    assert "--steps" not in found.findings[0].remedy, "nothing was fitted here"
    again = json.loads(json.dumps(found.figures(), default=str))["findings"]
    assert [Finding.from_dict(d) for d in again] == found.findings


def test_ranks_that_chance_alone_may_have_made_are_no_fault():
    """Of 400 calibrated pairs 20 are below 0.05, of binomial sd 4.4, and 2 below 0.005."""
    p = np.array([p_value(np.random.default_rng(seed).random(100)) for seed in range(400)])
    said = [_ranks_say(value)[0].verdict for value in p]
    assert 8 <= said.count("look") <= 33 and said.count("wrong") <= 7
    assert [_ranks_say(value)[0].verdict for value in (0.051, 0.049, 0.0051, 0.0049)] == [
        "fine",
        "look",
        "look",
        "wrong",
    ]
    assert "--simulations 400" in _ranks_say(0.02)[0].remedy and "Perhaps not" in str(_ranks_say(0.02)[0])
    assert p_value(np.linspace(0.0, 0.5, 100), tests=900) < 0.005, "many quantities hide no fault"


def _ranks_say(p):
    u = np.random.default_rng(0).random((100, 1))
    none = np.zeros(1)
    return _findings(_Calibration(["m"], u, u, 99, np.array([p]), none, none, none, band(100), []), None)


def test_what_was_not_checked_is_not_fine():
    run = fit(GuidedNormalMean(), {"x": X}, steps=0)
    exact = diagnose(run, {"x": X}, draws=100)
    found = report_checks(run, exact)
    assert exact.verdict == "fine" and verdict(found) == "look" and failing(found) == {"calibration"}
    calibrated = calibrate(run, {"x": X}, simulations=100, refit=False).findings
    assert verdict(report_checks(run, exact, calibration=calibrated)) == "fine"
    failed = [Finding("calibration", "", 1e-5, 0.05, "wrong", {"simulations": 9, "quantities": 2, "failed": ["m"]})]
    found = report_checks(run, exact, calibration=failed)
    assert verdict(found) == "wrong" and found[0] is failed[0], "what is worst comes first"


# -- records -------------------------------------------------------------------------------------------


def survives_json(findings):
    tree = from_dict({"posterior": {"m": np.zeros((1, 2))}})
    store_findings(tree, findings)
    json.loads(tree.attrs["findings"], parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))
    again = load_findings(tree)
    assert [str(f) for f in again] == [str(f) for f in findings]
    assert [f.remedy for f in again] == [f.remedy for f in findings]
    assert [f.as_dict() for f in again] == [f.as_dict() for f in findings]
    assert all(f.sentence and (f.verdict == "fine" or f.remedy) for f in findings), "what is not fine has a remedy"


def test_one_check_of_several_is_not_fine():
    for group in (s for sets in TOGETHER for s in sets):
        details = {"per": "row", "rows": 1, "particles": 9, "beside": "corrected", "count": 0, "draws": 9}
        all_of_it = [Finding(m, "z", 1.0, 1.0, "fine", details) for m in sorted(group)]
        assert verdict(all_of_it) == "fine"
        assert {verdict([f for f in all_of_it if f is not left]) for left in all_of_it} == {"look"}
    assert verdict([]) == "look"


def test_worst_first_keeps_the_order_of_equals():
    found = [Finding("bad_steps", str(i), 1.0, 0.0, VERDICTS[i % 3]) for i in (2, 1, 0, 5, 4, 3)]
    assert [f.where for f in worst_first(found)] == ["0", "3", "1", "4", "2", "5"]


def test_a_record_is_checked():
    with pytest.raises(ValueError, match="'speed' has no words"):
        Finding("speed", "", 1.0, 1.0, "fine")
    with pytest.raises(ValueError, match="'good' is none of"):
        Finding("khat", "", 1.0, 1.0, "good")
    with pytest.raises(ValueError, match="was not measured"):
        Finding("khat", "", math.nan, 1.0, "fine")


def test_findings_of_another_version_are_refused():
    tree = from_dict({"posterior": {"m": np.zeros((1, 2))}})
    assert load_findings(tree) == []
    for text in ("only 12 effective draws of m", "3", '["only 12 effective draws of m"]', '[{"measure": "khat"}]'):
        tree.attrs["findings"] = text
        with pytest.raises(PpgenError, match="another version of ppgen"):
            load_findings(tree)


def test_findings_are_in_the_file(tmp_path):
    found = diagnose(fit(Shifted(2.5), {"x": X}, steps=0), {"x": X}, draws=100)
    write_netcdf(tmp_path / "posterior.nc", found.tree)
    assert load_findings(read_netcdf(tmp_path / "posterior.nc")) == found.findings


@pytest.mark.parametrize("page", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["findings", "page"])
def test_no_code_reads_a_sentence(page, monkeypatch, tmp_path):
    """With other words for everything, verdicts, order and pages are the same."""
    run = fit(Shifted(2.5), {"x": X}, steps=0)

    def results():
        found = report_checks(run, diagnose(run, {"x": X}, draws=100))
        said = report(run, {"x": X}, tmp_path / "report.html", draws=100).read_text() if page else ""
        return [(f.measure, f.where, f.figure, f.verdict) for f in found], said.count("Wrong:"), said.count("Look:")

    before = results()
    for measure in WORDS:
        monkeypatch.setitem(WORDS, measure, lambda f: ("Wort.", "Tat."))
    assert results() == before and str(Finding("khat", "", 9.0, 0.7, "wrong")) == "Wort."
