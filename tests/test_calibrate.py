"""Simulation-based calibration: conjugate pairs pass, planted bugs fail, and the band is what it says."""

from __future__ import annotations

import json
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from known import Gaussian, GuidedNormalMean, NormalMean, normal, ppca
from scipy import stats
from torch import Tensor, nn
from typer.testing import CliRunner

from ppgen import PpgenError, Program, rows
from ppgen.check import check
from ppgen.cli import app
from ppgen.distributions import Censored, Flat
from ppgen.distributions.status import WithStatus
from ppgen.inference import calibrate, fit
from ppgen.inference.evaluation.calibrate import _of_guide
from ppgen.inference.evaluation.ecdf_bands import band, ecdf, p_value
from ppgen.inference.training.optimise import learning_rate
from ppgen.inference.training.refit import refit

X = {"x": normal(10)}


# -- the band ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n, tests", [(50, 1), (200, 4)])
def test_the_band_holds_with_the_probability_that_it_says(n, tests):
    rng = np.random.default_rng(1)
    found, repeats = band(n, tests, 0.1), 1500
    out = 0
    for _ in range(repeats):
        f = np.stack([ecdf(rng.random(n)) for _ in range(tests)])
        out += bool(((f < found.low) | (f > found.high)).any())
    assert out / repeats == pytest.approx(0.1, abs=4 * (0.1 * 0.9 / repeats) ** 0.5 + 0.01)


def test_p_values_of_uniform_numbers_are_uniform_and_others_small():
    rng = np.random.default_rng(2)
    p = np.array([p_value(rng.random(100)) for _ in range(300)])
    assert np.mean(p <= 0.2) == pytest.approx(0.2, abs=0.1) and np.mean(p <= 0.05) < 0.1
    assert p_value(rng.random(200) ** 1.5) < 0.01
    once = rng.random(100) ** 1.2
    assert p_value(once, tests=10) >= p_value(once)


# -- pairs that are right ------------------------------------------------------------------------------


def test_a_conjugate_pair_passes():
    found = calibrate(GuidedNormalMean(), X, simulations=300, refit=False)
    assert found.passes and str(found.findings[0]).startswith("Calibrated")
    assert found.names == ["m", "log p(x | z)"] and found.ranks.shape == (300, 2)
    assert found.ranks.min() >= 0 and found.ranks.max() <= 99
    exact = 1 - float(NormalMean().posterior(X["x"]).variance) / 4
    assert found.contraction[0] == pytest.approx(exact, abs=0.05)
    assert found.z_mean[0] == pytest.approx(0, abs=4.5 / 300**0.5) and found.z_sd[0] == pytest.approx(1, abs=0.2)
    assert np.isnan(found.contraction[1])


class Counts(Program):
    """y ~ Poisson(rate), rate ~ Gamma(2, 1), with its posterior; counts of a table are whole numbers."""

    def __init__(self, observe):
        super().__init__()
        self.observe = observe

    def model(self, y):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with rows(y):
            pyro.sample("y", dist.Poisson(rate), obs=self.observe(y))

    def guide(self, y):
        pyro.sample("rate", dist.Gamma(2.0 + y.sum(), 1.0 + len(y)))


def test_whole_numbers_that_are_observed_as_floats_are_simulated():
    """A regression by a formula observes counts so; they were refused."""
    data = {"y": torch.tensor([0, 3, 1, 2, 2])}
    found = calibrate(Counts(lambda y: y.float()), data, simulations=200, refit=False)
    assert found.passes and found.names == ["rate", "log p(x | z)"]
    assert found.z_mean[0] == pytest.approx(0, abs=4.5 / 200**0.5)
    for other in (lambda y: y.float().clamp(max=3), lambda y: y.sort().values.float()):
        with pytest.raises(PpgenError, match="'y' is no column as it stands"):
            calibrate(Counts(other), {"y": data["y"].sort().values}, simulations=20, refit=False)


def test_a_guide_with_parameters_that_are_held_is_fitted_anew():
    """Of a guide with a parameter that is held, as with `freeze=True`, this was torch's RuntimeError that a tensor
    requires no gradient."""
    program = GuidedNormalMean()
    program.held = nn.Parameter(torch.zeros(()), requires_grad=False)
    assert calibrate(program, X, simulations=100, steps=300, refit=True).passes


class SharedScale(Program):
    """x | u ~ N(a u, 0.5), u ~ N(0, 1); the guide is the posterior where k = 0, and reads the model's a."""

    def __init__(self):
        super().__init__()
        self.a, self.k = nn.Parameter(torch.tensor(0.7)), nn.Parameter(torch.tensor(0.3))

    def model(self, x=None):
        with rows(x):
            u = pyro.sample("u", dist.Normal(0.0 * self.a, 1.0))
            return pyro.sample("x", dist.Normal(self.a * u, 0.5), obs=x)

    def guide(self, x):
        v = self.a**2 + 0.25
        with rows(x):
            pyro.sample("u", dist.Normal(self.k + self.a * x / v, (0.25 / v) ** 0.5))


@pytest.mark.parametrize("again", [None, True])
def test_a_parameter_of_the_model_that_the_guide_reads_stays(again):
    """It was trained on what it had simulated, and the program left with it; a guide of rows that was fitted anew ended
    in an error of torch's."""
    program = SharedScale()
    assert _of_guide(program, X) == {"k"}
    found = calibrate(program, X, simulations=200, steps=600, refit=again, seed=1)
    assert found.passes and program.a.item() == pytest.approx(0.7, abs=1e-7)
    assert program.k.item() == pytest.approx(0.3, abs=1e-7)  # fitted for the while: calibrate changes nothing


def test_a_guide_that_is_fitted_anew_passes():
    found = calibrate(NormalMean(), X, simulations=100, steps=400, lr=0.1, guide="AutoNormal")
    assert found.passes, found.findings
    assert found.z_sd[0] == pytest.approx(1, abs=0.3)


def test_one_network_for_local_latents_passes():
    """PPCA whose guide is not the posterior yet: trained on simulated rows."""
    program = ppca(latent=2, width=3.0)
    before = program.W.detach().clone()
    found = calibrate(program, {"x": normal(50, 4)}, simulations=200, steps=400, lr=0.02)
    assert found.names == ["z[0]", "z[1]", "log p(x | z)"] and found.passes, found.findings
    assert torch.equal(before, program.W), "the model is not trained"


def test_a_run_is_taken_as_it_is():
    run = fit(ppca(width=1.0), {"x": normal(50, 4)}, steps=0)
    assert calibrate(run, {"x": normal(50, 4)}, simulations=200).passes
    run = fit(ppca(width=0.5), {"x": normal(50, 4)}, steps=0)
    found = calibrate(run, {"x": normal(50, 4)}, simulations=200)
    assert not found.passes and "too narrow" in " ".join(map(str, found.findings))


class Coin(Program):
    """k ~ Bernoulli(0.3), x | k ~ N(k, 1): a discrete latent whose posterior is known."""

    def __init__(self, prior: float = 0.3):
        super().__init__()
        self.prior, self.shift = prior, nn.Parameter(torch.tensor(0.0))

    def model(self, x=None):
        with rows(x):
            k = pyro.sample("k", dist.Bernoulli(self.prior))
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    def guide(self, x):
        with rows(x):
            logit = math.log(self.prior / (1 - self.prior)) + x - 0.5 + self.shift
            pyro.sample("k", dist.Bernoulli(logits=logit))


def test_ranks_of_a_discrete_latent_are_drawn_among_ties():
    x = {"x": normal(50)}
    right = calibrate(fit(Coin(), x, steps=0), x, simulations=300)
    assert right.passes and len(np.unique(right.ranks[:, 0])) > 50
    wrong = fit(Coin(), x, steps=0)
    with torch.no_grad():
        wrong.program.shift.fill_(1.5)
    assert not calibrate(wrong, x, simulations=300).passes


def test_a_rank_has_its_own_share_of_the_unit_interval():
    """u of rank r of L draws lies in [r, r + 1) / (L + 1), all of it; at L = 9 a share is a tenth."""
    found = calibrate(GuidedNormalMean(), X, simulations=400, draws=9, refit=False)
    assert found.draws == 9 and set(np.unique(found.ranks)) == set(range(10))
    assert np.array_equal(np.floor(10 * found.u), found.ranks)
    within = 10 * found.u - found.ranks
    assert stats.kstest(within.ravel(), "uniform").pvalue > 0.001


def test_contraction_and_z_scores_against_their_closed_forms():
    """20 000 rows, a simulation each: sd's to 2%. With L draws E z² = (1 + 1/L) (L − 1) / (L − 3) if calibrated."""
    simulations, draws = 20_000, 50
    program = ppca(latent=1, width=1.0)
    run, x = fit(program, {"x": normal(50, 4)}, steps=0), {"x": normal(50, 4)}
    found = calibrate(run, x, simulations=simulations, draws=draws)
    remains = program.posterior(x["x"][:1]).variance.item()
    z_sd = ((1 + 1 / draws) * (draws - 1) / (draws - 3)) ** 0.5
    assert 1 - found.contraction[0] == pytest.approx(remains, rel=4 * (2 / simulations) ** 0.5)
    assert found.z_sd[0] == pytest.approx(z_sd, rel=4 * (0.55 / simulations) ** 0.5)  # of a t: more than a normal's ½
    assert found.z_mean[0] == pytest.approx(0, abs=4 * z_sd / simulations**0.5)


# -- planted bugs --------------------------------------------------------------------------------------


class MisScaled(GuidedNormalMean):
    """Its likelihood counts every row twice."""

    def posterior(self, x: Tensor) -> dist.Normal:
        return super().posterior(torch.cat((x, x)))


PLANTED = {
    "a guide with half the variance": (lambda: GuidedNormalMean(width=0.5**0.5), "too narrow"),
    "a likelihood that is scaled wrongly": (MisScaled, "too narrow"),
    "a wrong prior": (lambda: GuidedNormalMean(prior=0.5), "m:"),
}


@pytest.mark.parametrize("bug", list(PLANTED))
def test_planted_bugs_fail(bug):
    make, words = PLANTED[bug]
    data = {"x": normal(4)}
    found = calibrate(make(), data, simulator=NormalMean(), simulations=400, refit=False)
    assert not found.passes and found.p.min() < 0.01
    assert str(found.findings[0]).startswith("Not calibrated") and words in " ".join(map(str, found.findings))


def test_a_scaled_model_fails_when_it_is_fitted():
    """The pair's own model weighs its rows by a handler, which its simulations do not see."""

    class Heavy(NormalMean):
        def model(self, x=None):
            with pyro.poutine.scale(scale=3.0):
                return super().model(x)

    found = calibrate(Heavy(), {"x": normal(5)}, simulator=NormalMean(), simulations=200, steps=300, lr=0.1)
    assert not found.passes and "too narrow" in " ".join(map(str, found.findings))


# -- many fits at once ---------------------------------------------------------------------------------


def test_fits_at_once_are_each_the_posterior():
    program = NormalMean().setup(X, "AutoNormal")
    structure = check(program, X)
    many = normal(6, 10, seed=5) * 1.5
    found = refit(program, structure, X, {"x": many}, steps=500, lr=0.1, particles=8)
    for values, x in zip(found, many, strict=True):
        exact = NormalMean().posterior(x)
        loc, scale = (
            values["autoguide.locs.m_unconstrained"],
            nn.functional.softplus(values["autoguide.scales.m_unconstrained"]),
        )
        assert abs(float(loc - exact.loc)) < 0.15 * float(exact.scale)
        assert float(scale / exact.scale) == pytest.approx(1, abs=0.1)


def test_fits_at_once_are_those_of_torchs_adam():
    """Without latents the loss has no noise: step by step the same, from the same start."""
    program, many = Gaussian(), 1.0 + 2.0 * normal(3, 10, seed=5)
    structure = check(program, X)
    found = refit(program, structure, X, {"x": many}, steps=25, lr=0.1, particles=1)
    for values, x in zip(found, many, strict=True):
        alone = Gaussian()
        optimizer = torch.optim.Adam(alone.parameters())
        for step in range(25):
            optimizer.param_groups[0]["lr"] = learning_rate("cosine", 0.1, step, 25)
            optimizer.zero_grad()
            (-dist.Normal(alone.mu, alone.log_scale.exp()).log_prob(x).mean()).backward()
            optimizer.step()
        for name, p in alone.named_parameters():
            torch.testing.assert_close(values[name], p.detach(), rtol=1e-4, atol=1e-5)


def test_draws_that_depend_on_values_are_fitted_one_by_one():
    def model(x=None):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with rows(x):
            pyro.sample("x", dist.Exponential(rate), obs=x)

    def guide(x):
        a = pyro.param("a", torch.tensor(3.0), constraint=dist.constraints.positive)
        pyro.sample("rate", dist.Gamma(a, pyro.param("b", torch.tensor(2.0), constraint=dist.constraints.positive)))

    found = calibrate(
        Program.from_pair(model, guide), {"x": normal(5).abs()}, simulations=20, draws=19, steps=150, lr=0.1, refit=True
    )
    assert found.z_sd[0] == pytest.approx(1, abs=0.6)


# -- what cannot be ------------------------------------------------------------------------------------


def test_the_seed_decides_and_nothing_else_changes():
    program = GuidedNormalMean()
    before = torch.get_rng_state()
    a, b = (calibrate(program, X, simulations=30, refit=False, seed=4) for _ in range(2))
    assert np.array_equal(a.ranks, b.ranks) and np.array_equal(a.u, b.u)
    assert torch.equal(before, torch.get_rng_state())
    figures = a.figures()
    assert figures["passes"] == a.passes and set(figures["parameters"]) == {"m", "log p(x | z)"}


def test_what_cannot_be_calibrated():
    def flat(x):
        m = pyro.sample("m", Flat(dist.constraints.real))
        with rows(x):
            pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    def logged(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with rows(x):
            pyro.sample("y", dist.Normal(m, 1.0), obs=x.abs().log())

    def censored(x, c=None):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with rows(x):
            pyro.sample("x", WithStatus(dist.Normal(m, 1.0), c), obs=x)

    with pytest.raises(PpgenError, match="2 of 10 values of 'x' are censored, .*; leave out the column"):
        calibrate(Program.from_pair(censored), X | {"c": torch.tensor([1.0, -1.0] + 8 * [0.0])}, guide="AutoNormal")
    seen = [X, X | {"c": torch.zeros(10)}]
    assert all(calibrate(Program.from_pair(censored), d, simulations=20, steps=1, guide="AutoNormal") for d in seen)
    with pytest.raises(PpgenError, match="the prior of 'm' is flat"):
        calibrate(Program.from_pair(flat), X)
    with pytest.raises(PpgenError, match="'y' is no column as it stands"):
        calibrate(Program.from_pair(logged), X)
    with pytest.raises(PpgenError, match="at least 20"):
        calibrate(NormalMean(), X, simulations=3)


def test_ranks_against_scipy():
    """u of exact draws is uniform by another test as well."""
    found = calibrate(GuidedNormalMean(), X, simulations=300, refit=False, seed=7)
    assert stats.kstest(found.u[:, 0], "uniform").pvalue > 0.001


def test_in_the_shell(tmp_path):
    runner = CliRunner()
    source = tmp_path / "m.py"
    source.write_text(
        "import pyro, torch, ppgen\nfrom pyro.distributions import Normal\ndata = {'x': torch.zeros(5)}\n"
        "class M(ppgen.Program):\n    def model(self, x=None):\n        m = pyro.sample('m', Normal(0.0, 2.0))\n"
        "        with ppgen.rows(x):\n            pyro.sample('x', Normal(m, 1.0), obs=x)\n"
    )
    words = ["calibrate", f"{source}:M", "--simulations", "30", "--steps", "150", "--lr", "0.1", "--json"]
    out = runner.invoke(app, [*words, "--out", str(tmp_path / "c.json")])
    assert out.exit_code == 0, out.output
    assert set(json.loads(out.stdout)["parameters"]) == {"m", "log p(x | z)"}
    assert json.loads((tmp_path / "c.json").read_text())["simulations"] == 30
    fitted = runner.invoke(app, ["fit", f"{source}:M", "--steps", "20", "--out", str(tmp_path / "run"), "--quiet"])
    assert fitted.exit_code == 0, fitted.output
    out = runner.invoke(app, ["calibrate", str(tmp_path / "run"), "--simulations", "30", "--steps", "100"])
    assert out.exit_code == 0 and "p-value" in out.stdout and (tmp_path / "run" / "calibration.json").is_file()
    out = runner.invoke(app, ["report", str(tmp_path / "run"), "--draws", "50", "--json"])
    assert out.exit_code == 0 and 'id="calibration"' in (tmp_path / "run" / "report.html").read_text()


def test_shapes_of_distributions_are_torchs():
    """Those of censored values were tuples, which do not count their entries: torch and Pyro ask."""
    rate = torch.ones(4)
    for d in (WithStatus(dist.Exponential(rate), rate), Censored(dist.Exponential(rate), upper=2 * rate)):
        assert d.batch_shape.numel() == 4 and d.to_event(1).event_shape.numel() == 4
