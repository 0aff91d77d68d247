"""`diagnose` on guides whose faults are planted: exact, too narrow, too wide, with dead dimensions."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from known import SCHOOLS, Gaussian, GuidedNormalMean, NormalMean, normal, ppca
from scipy import stats
from torch import nn

from ppgen import PpgenError, Program, rows
from ppgen.engine.density.joint import LogJoint
from ppgen.inference import diagnose, fit
from ppgen.inference.evaluation.diagnose import ACTIVE, NoWeights
from ppgen.inference.evaluation.psis import pareto_k
from ppgen.models import VAE, EightSchools

X = normal(60, 4, seed=1) * 1.5


def diagnosed(program, data, **options):
    return diagnose(fit(program, data, steps=0), data, **({"draws": 100} | options))


# -- k-hat -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0.3, 0.8])
def test_pareto_k_of_a_tail_that_is_known(k):
    """Weights drawn from a generalised Pareto law of shape k; from the negated log weights it is less than 0."""
    w = stats.genpareto(c=k, loc=1.0).rvs(size=(4000, 60), random_state=np.random.default_rng(0))
    found = pareto_k(np.log(w))
    assert found.mean() == pytest.approx(k, abs=4 * found.std() / 60**0.5 + 0.02)
    assert pareto_k(-np.log(w)).mean() < 0


def test_equal_weights_have_no_tail():
    assert pareto_k(np.full((100, 2), -3.0)).tolist() == [-np.inf, -np.inf]


def narrow_k(width):
    """Shape of the weights' tail for q = N(0, width²), p = N(0, 1): w = exp((1 - width²) g² / 2), g ~ N(0, 1)."""
    return 1 - width**2


@pytest.mark.parametrize("width, sentence", [(1.0, "is the posterior"), (1.1, "close to"), (2.2, "covers"), (0.4, "%")])
def test_planted_widths_by_row(width, sentence):
    found = diagnosed(ppca(width=width), {"x": X}, particles=2200)
    assert found.khat.shape == found.ess.shape == (60,)
    assert sentence in str(found.findings[0])
    k, log_ess = 2, np.log(found.ess / 2200).mean()
    if width == 1.0:
        assert np.all(found.khat == -np.inf) and "lies " in str(found.findings[1])
    elif width > 1:  # E w² / (E w)² is finite: width² / sqrt(2 width² - 1) a dimension
        assert np.all(found.khat < 0.3)
        assert log_ess == pytest.approx(k * (math.log(2 * width**2 - 1) / 2 - 2 * math.log(width)), abs=0.05)
    else:
        assert np.mean(found.khat > 0.7) > 0.6 and np.median(found.khat) == pytest.approx(narrow_k(width), abs=0.15)
        assert f"above 0.7 for {np.mean(found.khat > 0.7):.0%} of the rows" in str(found.findings[0])
        assert np.exp(log_ess) < 0.2


@pytest.mark.parametrize("width, sentence", [(1.0, "is the posterior"), (1.2, "close to"), (0.3, "misses part of")])
def test_planted_widths_of_a_global_latent(width, sentence):
    found = diagnosed(GuidedNormalMean(width=width), {"x": normal(20)}, particles=20_000)
    assert found.khat.shape == (1,) and found.bounds.per == "data set"
    assert sentence in str(found.findings[0]) and "for the data set" in str(found.findings[1])
    if width == 0.3:
        assert found.khat[0] == pytest.approx(narrow_k(width), abs=0.25)
    assert found.active == {}


def test_the_gap_is_what_the_guide_costs():
    width = 1.3
    found = diagnosed(ppca(width=width), {"x": X}, particles=2000)
    gap = 2 * (width**2 / 2 - 0.5 - math.log(width))
    said = float(str(found.findings[1]).split("lies ")[1].split(" nats")[0])
    assert said == pytest.approx(gap, abs=0.02)


# -- KL and active dimensions ----------------------------------------------------------------------


class Factorised(Program):
    """A guide N(slope x, width²) of three dimensions, the last of which reads nothing."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([1.0, -0.5, 0.0]))
        self.width = nn.Parameter(torch.tensor([0.5, 0.8, 1.0]))

    def model(self, x=None):
        with rows(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[..., 0] - z[..., 1], 1.0), obs=x)

    def guide(self, x):
        with rows(x):
            pyro.sample("z", dist.Normal(self.slope * x[..., None], self.width).to_event(1))


def test_kl_of_each_dimension_and_inactive_ones():
    x = normal(50)
    found = diagnosed(Factorised(), {"x": x})
    m, s = np.outer(x, [1.0, -0.5, 0.0]), np.array([0.5, 0.8, 1.0])
    exact = (m**2 / 2 + s**2 / 2 - 0.5 - np.log(s)).mean(0)
    assert np.allclose(found.kl["z"], exact, atol=1e-4)
    assert found.active["z"].tolist() == [True, True, False]
    assert "1 of 3 dimensions of 'z' is inactive" in str(found.findings[-1])


def test_a_mean_that_is_the_same_for_all_rows_is_inactive():
    class Shifted(Factorised):
        def guide(self, x):
            with rows(x):
                pyro.sample("z", dist.Normal(self.slope * x[..., None] + 2.0, self.width).to_event(1))

    assert diagnosed(Shifted(), {"x": normal(50)}).active["z"].tolist() == [True, True, False]


class Crossed(Program):
    """Rows right of a plate of 3: the dimensions of a value are (plate, rows)."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([[1.0], [0.0], [-1.0]]))

    def model(self, x=None):
        with pyro.plate("unit", 3, dim=-2), rows(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("unit", 3, dim=-2), rows(x):
            pyro.sample("z", dist.Normal(self.slope * x, 1.0))


def test_rows_that_are_not_the_leading_dimension():
    x = normal(30)
    found = diagnosed(Crossed(), {"x": x})
    assert np.allclose(found.kl["z"], [float((x**2).mean()) / 2, 0.0, float((x**2).mean()) / 2], atol=1e-4)
    assert found.active["z"].tolist() == [True, False, True]
    assert found.khat.shape == (30,)


def test_dead_dimensions_of_ppca():
    found = diagnosed(ppca(latent=3, dead=2), {"x": X})
    assert found.active["z"].tolist() == [True, False, False]
    assert "2 of 3 dimensions of 'z' are inactive" in str(found.findings[-1])
    assert found.kl == {}  # a full covariance has no KL a dimension


class Local(Program):
    """A latent a row without a guide of its own: AutoNormal's sites are points, drawn elsewhere."""

    def model(self, x=None):
        with rows(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(3 * z + 0 * w, 0.5), obs=x)


def test_an_autoguide_of_local_latents():
    x = normal(25) * 3
    run = fit(Local(), {"x": x}, steps=600, lr=0.05, schedule="cosine", particles=32)
    found = diagnose(run, {"x": x}, draws=100)
    assert found.active == {"z": np.array([True]), "w": np.array([False])} and found.kl == {}
    assert found.khat.shape == (25,) and np.median(found.khat) < 0.7


# -- the whole -------------------------------------------------------------------------------------


def test_the_log_joint_is_traced_once_however_many_climbs_go_on(monkeypatch):
    traced, build = [], LogJoint.build
    monkeypatch.setattr(LogJoint, "build", lambda self, fn, example: traced.append(1) or build(self, fn, example))
    run = fit(NormalMean(), {"x": normal(20) + 1.0}, steps=0, starts=2)
    traced.clear()
    found = diagnose(run, {"x": normal(20) + 1.0}, draws=100, particles=100)
    assert {f.measure: f.verdict for f in found.findings}["unseen_modes"] == "fine"
    assert len(traced) == 1


def test_a_diagnosis_of_eight_schools():
    run = fit(EightSchools(), SCHOOLS, steps=50, lr=0.05)
    found = diagnose(run, SCHOOLS, draws=300, particles=300)
    assert found.tree["posterior"].sizes["draw"] == 300
    assert found.summary.loc["mu", "mean"] == pytest.approx(float(found.tree["posterior"]["mu"].mean()), rel=1e-5)
    assert "ess_bulk" not in found.summary.columns and "r_hat" not in found.summary.columns
    assert found.khat.shape == (1,) and found.moments.index[0] == "mu"


def test_rows_are_cut_for_local_latents():
    torch.manual_seed(0)
    data = {"x": (normal(90, 6) > 0).float()}
    found = diagnosed(VAE(6, 2, (8,)), data, rows=8, particles=50)
    assert found.tree["posterior"].sizes["data"] == 8 and found.khat.shape == (80,)
    assert found.kl["z"].shape == (2,) and found.active["z"].shape == (2,)
    assert ACTIVE == 0.01
    one = diagnosed(VAE(6, 2, (8,)), {"x": data["x"][:1]}, particles=50)
    assert one.active == {} and np.isfinite(one.kl["z"]).all()


def test_laplace_is_diagnosed_as_a_normal():
    x = normal(20)
    run = fit(NormalMean(), {"x": x}, steps=500, lr=0.05, schedule="cosine", guide="AutoLaplaceApproximation")
    assert "close to" in (said := str(diagnose(run, {"x": x}, draws=100).findings[0])) or "is the posterior" in said


@pytest.mark.parametrize("noise", [0.3, 0.0], ids=["drawn at no site", "none"])
def test_a_guide_is_not_said_to_miss_what_noise_at_no_site_does_to_its_weights(noise):
    """z ~ N(0, 1), y_i ~ N(z + e_i, 0.1), e_i ~ N(0, noise) drawn by torch; the guide is the posterior."""
    y = normal(20, seed=1) * 0.3 + 1.0

    def model(y):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        e = noise * torch.randn(20)
        with pyro.plate("rows", 20):
            pyro.sample("y", dist.Normal(z + e, 0.1), obs=y)

    def guide(y):
        variance = noise**2 + 0.1**2
        sd = pyro.param("sd", torch.tensor((1 + 20 / variance) ** -0.5))
        pyro.sample("z", dist.Normal(y.sum() / variance * sd**2, sd))

    found = diagnose(fit(Program.from_pair(model, guide), {"y": y}, steps=0), {"y": y}, particles=500)
    said = str(found.findings[0])
    if noise:
        assert (
            found.verdict == "look" and "cannot be told: its weights are of what the program draws at no site" in said
        )
        assert not any("narrow" in str(f) or "is the guide's" in str(f) for f in found.findings)
    else:
        assert found.verdict == "fine" and "The guide is the posterior" in said


def test_what_cannot_be_diagnosed_is_said():
    with pytest.raises(PpgenError, match="Gaussian has no latents"):
        diagnosed(Gaussian(), {"x": normal(5)})
    run = fit(NormalMean(), {"x": normal(20)}, steps=1, guide="AutoDelta")
    with pytest.raises(PpgenError, match="'m' as a point"):
        diagnose(run, {"x": normal(20)})


def test_a_program_whose_own_tensors_are_of_another_dtype():
    """Without parameters torch's default holds, and the constants are float64."""
    y = normal(6).double()

    def model(y):
        w = pyro.sample("w", dist.Normal(torch.zeros(6).double(), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(w, 0.5).to_event(1), obs=y)

    def guide(y):
        pyro.sample("w", dist.Normal(0.8 * y.double(), torch.full((6,), 0.2**0.5).double()).to_event(1))

    assert diagnosed(Program.from_pair(model, guide), {"y": y}).verdict == "fine"


def _chosen(p):
    """k in 0, 1, 2 and x ~ N(k, 1), and a guide of probabilities p."""

    def model(x):
        k = pyro.sample("k", dist.Categorical(torch.ones(3) / 3))
        with rows(x):
            pyro.sample("x", dist.Normal(k.to(x), 1.0), obs=x)

    def guide(x):
        pyro.sample("k", dist.Categorical(logits=pyro.param("logits", torch.tensor(p).log().clamp(-200.0))))

    return Program.from_pair(model, guide)


def test_a_guide_of_which_two_draws_are_the_same_has_a_spread():
    """The posterior by Bayes' rule: its own guide is fine, and k-hat is told; one that is sure is no guide to judge."""
    x = torch.tensor([0.9, 1.3, 0.2])
    log_joint = np.array([-((x.double().numpy() - k) ** 2).sum() / 2 for k in range(3)])
    p = np.exp(log_joint) / np.exp(log_joint).sum()
    how = {"gradient": "score", "steps": 0}
    for q in (p.tolist(), [0.02, 0.96, 0.02]):
        found = diagnose(fit(_chosen(q), {"x": x}, **how), {"x": x}, draws=2000, particles=2000)
        mean = float(found.tree.posterior["k"].mean())
        exact = np.array(q) @ [0, 1, 2]
        assert abs(mean - exact) < 4 * (np.array(q) @ (np.arange(3) - exact) ** 2 / 2000) ** 0.5
        assert (found.verdict == "fine") == (q[1] < 0.9)
    sure = fit(_chosen([0.0, 1.0, 0.0]), {"x": x}, **how)
    with pytest.raises(NoWeights, match="it gives one value of 'k'"):
        diagnose(sure, {"x": x})


def test_a_report_of_a_guide_that_is_a_point_is_not_fine(tmp_path):
    from ppgen.inference.report.report import write_report

    data = {"x": torch.tensor([0.9, 1.3, 0.2])}
    run = fit(_chosen([0.0, 1.0, 0.0]), data, gradient="score", steps=0)
    page, found = write_report(run, data, tmp_path / "r.html")
    assert [(f.measure, f.verdict) for f in found] == [("guide", "look")]
    assert "cannot tell how far the posterior is" in page.read_text()


def of_sums(x):
    """z ~ N(0, I_2) of each row, x = z_1 + z_2 + N(0, 1): the posterior has variances 2/3 and the correlation -1/2."""
    with rows(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)


def guide_of_sums(x, correlation):
    cov = torch.tensor([[2.0, 0.0], [0.0, 2.0]]) / 3 + correlation * torch.tensor([[0.0, 2.0], [2.0, 0.0]]) / 3
    with rows(x):
        pyro.sample("z", dist.MultivariateNormal((x / 3)[:, None].expand(-1, 2), cov))


@pytest.mark.parametrize(("correlation", "said"), [(0.0, True), (-0.5, False)])
def test_a_correlation_within_a_row_that_the_guide_has_not_is_seen(correlation, said):
    """In units of the sds var(z_1 + z_2) is 2 (1 - 1/2) = 1, and 2 by a guide of independent dimensions."""
    program = Program.from_pair(of_sums, partial(guide_of_sums, correlation=correlation))
    found = next(f for f in diagnosed(program, {"x": normal(40)}, draws=1000).findings if f.measure == "sd_ratio")
    assert (found.where == "z[0] + z[1], in units of their sds") == said == (found.verdict == "look")
    if said:
        assert found.figure == pytest.approx(2**0.5, rel=0.03) and found.details["rows"] == 40
