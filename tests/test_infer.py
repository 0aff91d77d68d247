"""`infer`: on posteriors that are known, its draws and what it says of them; each rung alone; and what is refused."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pyro
import pytest
import torch
from known import NormalMean, Regression, draws_agree, normal
from pyro.distributions import (
    Bernoulli,
    Binomial,
    Categorical,
    Dirichlet,
    Gamma,
    HalfCauchy,
    HalfNormal,
    LogNormal,
    Multinomial,
    MultivariateNormal,
    MultivariateStudentT,
    NanMaskedNormal,
    Normal,
    Poisson,
    StudentT,
    Uniform,
)
from torch import nn

from ppgen import PpgenError, Program, rows
from ppgen.engine import log_joint
from ppgen.engine.density.joint import in_blocks
from ppgen.inference import diagnose, fit, infer, load_findings, mcmc
from ppgen.inference.sampling import infer as ladder
from ppgen.inference.sampling import weighted
from ppgen.inference.sampling.mcmc_init import starts
from ppgen.inference.sampling.prepared import prepared
from ppgen.inference.sampling.weighted import Drawn, Mixture, importance_weights, tails
from ppgen.inference.verdicts.findings import Finding, verdict
from ppgen.inference.verdicts.mcmc_diagnostics import with_derived
from ppgen.models import VAE

ONE = {"one": torch.ones(1).double()}
ALONE = {"predictive": False, "prior": False}


def tried(tree):
    return [t["method"] for t in json.loads(tree.attrs["tried"])]


# -- the ladder ------------------------------------------------------------------------------------


def test_a_normal_posterior_takes_one_rung():
    x, y = normal(40, 4, seed=1).double(), normal(40, seed=2).double()
    tree = infer(Regression(), {"x": x, "y": y})
    exact = Regression().posterior(x.float(), y.float())
    draws_agree(torch.tensor(tree["posterior"]["b"].values[0]).float(), exact.loc, exact.variance)
    assert tree.attrs["method"] == "gaussian" and tree.attrs["verdict"] == verdict(load_findings(tree)) == "fine"
    assert tried(tree) == ["gaussian"] and tree.attrs["seconds"] > 0
    groups = {"posterior", "posterior_predictive", "log_likelihood", "log_prior", "prior", "sample_stats"}
    assert groups <= set(tree.children)


def _squared(y):
    th = pyro.sample("th", Normal(0.0, 5.0))
    with rows(y):
        pyro.sample("y", Normal(th**2, 1.0), obs=y)


def _two_modes(one):
    """Three quarters of the mass at 0 and a quarter at 40, under a wide prior that is divided out."""
    th = pyro.sample("th", Normal(0.0, 30.0))
    modes = torch.stack([Normal(0.0, 1.0).log_prob(th) + math.log(3), Normal(40.0, 1.0).log_prob(th)])
    pyro.factor("f", torch.logsumexp(modes, 0) - Normal(0.0, 30.0).log_prob(th))


MODES = {
    "theta squared": (_squared, {"y": 4 + normal(30).double()}, 0.0, 0.5),
    "far apart": (_two_modes, ONE, 20.0, 0.75),
}


@pytest.mark.parametrize("name", list(MODES))
def test_places_that_the_first_normal_has_not_seen_become_normals(name):
    model, data, middle, share = MODES[name]
    tree = infer(model, data, **ALONE)
    th = tree["posterior"]["th"].values
    assert tree.attrs["verdict"] == "fine" and tried(tree) == ["gaussian"]
    assert (th < middle).mean() == pytest.approx(share, abs=0.03)


def _exchangeable(y):
    """Three means, and rows of any of them: six modes that are one another's copies."""
    mu = pyro.sample("mu", Normal(torch.zeros(3), 5.0).to_event(1))
    pyro.factor("y", torch.logsumexp(Normal(mu, 1.0).log_prob(y[:, None]) - math.log(3), -1).sum())


def test_exchangeable_means_are_all_six_modes_or_said_not_to_be():
    """A guide at one of six is not believed; `infer` has them all: every mean is their mean."""
    y = {"y": torch.cat([c + normal(20, seed=i) for i, c in enumerate((-4.0, 0.0, 4.0))]).double()}
    tree = infer(_exchangeable, y, **ALONE)
    mu = tree["posterior"]["mu"].values[0]
    assert tree.attrs["verdict"] == "fine" and abs(mu.mean(0) - mu.mean()).max() < 0.3
    assert mu.std(0) == pytest.approx(np.full(3, mu.std()), rel=0.05) and mu.std() > 3
    found = diagnose(fit(Program.from_pair(_exchangeable), y, guide="bam", steps=0, precision="64-true"), y)
    unseen = {f.measure: f for f in found.findings}["unseen_modes"]
    assert found.verdict != "fine" and unseen.verdict != "fine" and unseen.figure > 0.5


@pytest.mark.slow
def test_a_funnel_is_left_to_the_chains(monkeypatch):
    """v ~ N(0, 3), x_i ~ N(0, e^(v/2)): the weights of normals say that they are not it."""

    def funnel(one):
        v = pyro.sample("v", Normal(0.0, 3.0))
        pyro.sample("x", Normal(torch.zeros(9), (v / 2).exp()).to_event(1))

    monkeypatch.setattr(ladder, "LADDER", (ladder.gaussian, ladder.chees))
    tree = infer(funnel, ONE, **ALONE)
    assert tried(tree) == ["gaussian", "chees"] and json.loads(tree.attrs["tried"])[0]["verdict"] != "fine"
    off = abs(tree["posterior"]["v"].values.mean()) / 3
    assert off < 0.1 or tree.attrs["verdict"] != "fine", "right, or said not to be"


def test_a_posterior_without_an_sd_is_said_and_climbed_no_further(monkeypatch):
    def heavy(problem):
        return ladder.gaussian(problem)._replace(findings=[Finding("tail_khat", "m", 0.5, 0.35, "look", {"others": 0})])

    monkeypatch.setattr(ladder, "LADDER", (heavy, _never))
    tree = infer(NormalMean(), {"x": normal(5).double()}, **ALONE)
    assert tree.attrs["verdict"] == "look" and tried(tree) == ["heavy"]


def test_more_is_drawn_where_too_few_draws_are_in_the_tails(monkeypatch):
    """2% of 4000 weighted draws are fewer than 100, those of 8000 are not; the search for modes is not made again."""
    searches = []
    monkeypatch.setattr(weighted, "LEAST_TAIL", 100)
    monkeypatch.setattr(
        weighted, "search_modes", lambda *a, f=weighted.search_modes, **k: searches.append(1) or f(*a, **k)
    )
    monkeypatch.setattr(ladder, "LADDER", (ladder.gaussian, _never))
    x = normal(5).double()
    tree = infer(NormalMean(), {"x": x}, **ALONE)
    found = {f.measure: f for f in load_findings(tree)}
    assert tree.attrs["verdict"] == "fine" and len(found) == 4 and len(searches) == 1
    assert found["importance"].details["draws"] == 8000 and found["tail_khat"].figure < 0.3


def _never(problem):
    raise AssertionError("no further rung")


def test_the_flow_rung_weighs_its_draws(monkeypatch):
    monkeypatch.setattr(ladder, "LADDER", (ladder.flow,))
    monkeypatch.setattr(ladder, "STEPS", 60)
    x = normal(20).double() + 1.0
    program = NormalMean()
    tree = infer(program, {"x": x}, **ALONE)
    exact = program.posterior(x)
    assert tree.attrs["method"] == "flow" and tree.attrs["verdict"] == "fine" and program._autoguide is None
    draws_agree(torch.tensor(tree["posterior"]["m"].values[0]), exact.loc, exact.variance)


@pytest.mark.slow  # the weights themselves: tests/test_laplace.py
def test_groups_near_a_funnel_are_integrated_out(monkeypatch):
    """y_j ~ Binomial(3, sigmoid(a_j)), a_j ~ N(m, s), centred, where s may be near zero: moments by quadrature."""
    y = torch.tensor([1.0, 2, 0, 3, 1, 1, 2, 1, 0, 2, 1, 2, 3, 1, 1, 0, 2, 1, 1, 2]).double()

    def model(y):
        m, s = pyro.sample("m", Normal(0.0, 1.0)), pyro.sample("s", HalfCauchy(1.0))
        with rows(y):
            pyro.sample("y", Binomial(3, logits=pyro.sample("a", Normal(m, s))), obs=y)

    for name, value in {"LADDER": (ladder.gaussian, ladder.laplace, _never), "DRAWS": 2000}.items():
        monkeypatch.setattr(ladder, name, value)
    tree = infer(model, {"y": y}, **ALONE)
    assert tree.attrs["method"] == "laplace" and tree.attrs["verdict"] == "fine"
    nodes, w = (torch.tensor(v) for v in np.polynomial.hermite_e.hermegauss(80))
    grid = torch.linspace(-2, 2, 161).double(), torch.linspace(-9, 2.5, 231).double()
    m, t = torch.meshgrid(*grid, indexing="ij")
    at = m[..., None] + t.exp()[..., None] * nodes
    each = torch.stack(
        [Binomial(3, logits=at).log_prob(torch.tensor(c).double()) + w.log() for c in (0.0, 1.0, 2.0, 3.0)], -2
    )
    lp = each.logsumexp(-1) @ torch.bincount(y.long()).double() + Normal(0.0, 1.0).log_prob(m)
    p = (lp + HalfCauchy(1.0).log_prob(t.exp()) + t).flatten().softmax(0)
    a = (each.softmax(-1) * at[..., None, :]).sum(-1).flatten(0, 1)  # E[a | m, s, count]
    exact = {"m": p @ m.flatten(), "s": p @ t.exp().flatten(), **{f"a{c}": p @ a[:, c] for c in range(4)}}
    group = tree["posterior"]
    drawn = {"m": group["m"], "s": group["s"]} | {f"a{c}": group["a"][0, :, (y == c).nonzero()[0, 0]] for c in range(4)}
    for name, value in exact.items():
        draws = drawn[name].values.ravel()
        assert abs(draws.mean() - float(value)) < 5 * draws.std() / 2000**0.5, name


def test_groups_with_two_tops_are_not_believed(monkeypatch):
    def model(y):
        s = pyro.sample("s", HalfNormal(1.0))
        with rows(y):
            pyro.sample("y", Normal(pyro.sample("a", Normal(0.0, 2.0)) ** 2, s), obs=y)

    for name, value in {"LADDER": (ladder.laplace,), "ROUNDS": 1, "DRAWS": 1000}.items():
        monkeypatch.setattr(ladder, name, value)
    tree = infer(model, {"y": torch.tensor([4.0, 3.0, 5.0, 4.2]).double()}, **ALONE)
    said = {f.measure: f for f in load_findings(tree)}["unseen_modes"]
    assert said.verdict == "look" and "has more than one top" in str(said)


def test_no_few_latents_that_others_depend_on(monkeypatch):
    monkeypatch.setattr(ladder, "LADDER", (ladder.laplace,))
    with pytest.raises(PpgenError, match="has no few latents that many others depend on"):
        infer(NormalMean(), {"x": normal(5).double()}, **ALONE)


def test_nothing_to_believe_is_said(caplog, monkeypatch):
    def funnel(one):
        v = pyro.sample("v", Normal(0.0, 3.0))
        pyro.sample("x", Normal(torch.zeros(9), (v / 2).exp()).to_event(1))

    monkeypatch.setattr(ladder, "LADDER", (ladder.gaussian,))
    tree = infer(funnel, ONE, **ALONE)
    assert tree.attrs["verdict"] != "fine" and "no method gave draws that can be believed" in caplog.text


def test_a_budget_ends_it(monkeypatch):
    with pytest.raises(PpgenError, match="budget is -3; expected seconds, 0 or more"):
        infer(NormalMean(), {"x": normal(5)}, budget=-3)
    with pytest.raises(PpgenError, match="no method came to an end within the budget.*--budget"):
        infer(NormalMean(), {"x": normal(5)}, budget=0.0)

    def unsettled(problem):
        outcome = ladder.gaussian(problem)
        monkeypatch.setattr(ladder.time, "monotonic", lambda: problem.ends + 1)
        return outcome._replace(findings=[Finding("rhat", "m", 2.0, 1.01, "wrong")])

    monkeypatch.setattr(ladder, "LADDER", (unsettled, _never))
    tree = infer(NormalMean(), {"x": normal(5).double()}, budget=60.0, **ALONE)
    assert tree.attrs["verdict"] == "wrong" and tried(tree) == ["unsettled", "_never"]
    assert json.loads(tree.attrs["tried"])[1]["why"] == ["the budget was spent"]


def test_a_budget_that_ends_chains_is_said_to_be_spent(monkeypatch):
    """A program's own errors are worded as such; that its time is over is none."""

    def over(problem):
        monkeypatch.setattr(ladder.time, "monotonic", lambda: problem.ends + 1)
        return ladder.chees(problem)

    monkeypatch.setattr(ladder, "LADDER", (over,))
    with pytest.raises(PpgenError, match="no method came to an end within the budget: over: the budget was spent"):
        infer(NormalMean(), {"x": normal(5).double()}, budget=60.0, **ALONE)


# -- kinds of programs -----------------------------------------------------------------------------


def test_discrete_latents_are_summed_out_and_drawn():
    def model(y):
        m = pyro.sample("m", Normal(torch.tensor([-2.0, 2.0]), 1.0).to_event(1))
        with rows(y):
            k = pyro.sample("k", Categorical(torch.ones(2)))
            pyro.sample("y", Normal(m[k], 0.5), obs=y)

    y = torch.cat([-2.5 + 0.5 * normal(20), 1.5 + 0.5 * normal(20, seed=1)]).double()
    tree = infer(model, {"y": y}, **ALONE)
    assert tree.attrs["verdict"] == "fine" and tree["posterior"]["k"].shape == (1, 4000, 40)
    shrunk = [(y[:20].sum() / 0.25 - 2) / 81, (y[20:].sum() / 0.25 + 2) / 81]
    assert tree["posterior"]["m"].values[0].mean(0) == pytest.approx(torch.stack(shrunk).numpy(), abs=0.01)
    assert (tree["posterior"]["k"].values[0, :, :20] == 0).mean() > 0.99


def _counts(k):
    p = pyro.sample("p", Dirichlet(torch.ones(3).double()))
    pyro.sample("k", Multinomial(20, p), obs=k)


COUNTS = {"k": torch.tensor([12.0, 5.0, 3.0]).double()}


def _gapped(y):
    m = pyro.sample("m", Normal(torch.tensor(0.0).double(), 1.0))
    with rows(y):
        pyro.sample("y", NanMaskedNormal(m, 1.0), obs=y)


def _branching(y):
    z = pyro.sample("z", Normal(torch.zeros(()).double(), 1.0))
    pyro.sample("y", Normal(z if z > -99 else -z, 1.0).expand([2]).to_event(1), obs=y[[0, 2]])


@pytest.mark.parametrize(("model", "engine"), [(_gapped, "trace"), (_branching, "eager")])
def test_a_density_that_asks_for_values(model, engine):
    """A normal with gaps asks the data whether there are any; what asks a latent cannot be batched."""
    y = torch.tensor([0.3, math.nan, 1.2]).double()
    with prepared(model, {"y": y}, 0) as made:
        joint = ladder._joint(made)
    u = normal(3, 1).double()
    value, grad = joint.value_and_grad(u)
    assert (joint.engine == "eager") == (engine == "eager")  # of a busy machine, where a call is slow, it is "auto"
    assert torch.allclose(value, Normal(0.0, 1.0).log_prob(u[:, 0]) + Normal(u, 1.0).log_prob(y[[0, 2]]).sum(-1))
    assert torch.allclose(grad, 1.5 - 3 * u)


EDGES = {
    "near": torch.tensor([1.0, 2.0, 3.0, 0.5]).double(),
    "beyond the prior": torch.tensor([301.0, 20.0, 100.0, 299.0]).double(),
}


def _largest(y):
    top = pyro.sample("top", Gamma(torch.tensor(1.0).double(), 0.05))
    with rows(y):
        pyro.sample("y", Uniform(0.0, top), obs=y)


@pytest.mark.parametrize("name", [pytest.param("near", marks=pytest.mark.slow), "beyond the prior"])
def test_data_that_bound_a_support_leave_a_normal_by_moments(name, monkeypatch):
    """Every normal reaches beyond the edge, so that none has an ELBO; p(top | y) ∝ exp(-top/20) top⁻⁴ from max y on."""
    y = EDGES[name]
    monkeypatch.setattr(ladder, "LADDER", (ladder.gaussian,))
    top = infer(_largest, {"y": y}, **ALONE)["posterior"]["top"].values
    grid = float(y.max()) + np.linspace(0, 400, 200_001)
    p = np.exp(-grid / 20 - 4 * np.log(grid / grid[0]))
    p /= p.sum()
    mean = p @ grid
    sd = (p @ (grid - mean) ** 2) ** 0.5
    assert abs(top.mean() - mean) < 0.1 * sd and abs(math.log(top.std() / sd)) < 0.15 and top.min() > y.max()


def test_starts_beyond_the_draws_of_the_prior():
    def value(u):
        return torch.where((u[:, 0] > 9.0) & (u[:, 1].abs() < 5), -u.square().sum(-1), -torch.inf)

    generator = torch.Generator().manual_seed(0)
    u = starts(value, 32, 2, lambda n: torch.randn(n, 2, generator=generator), generator)
    assert torch.isfinite(value(u)).all()
    with pytest.raises(PpgenError, match="not finite at any of 1024 starting points"):
        starts(lambda u: torch.full_like(u[:, 0], -torch.inf), 32, 2, None, generator)


def test_a_latent_of_some_runs_only_is_named():
    def model(one):
        if pyro.sample("z", Normal(0.0, 1.0)) > 0:
            pyro.sample("b", Normal(0.0, 1.0))

    for method in (infer, mcmc):
        with pytest.raises(PpgenError, match="draws the latent 'b' in some runs and not in others.*torch.where"):
            method(model, ONE, **ALONE)


@pytest.mark.slow
def test_counts_of_a_multinomial():
    p = infer(_counts, COUNTS, **ALONE)["posterior"]["p"].values[0]
    assert p.mean(0) == pytest.approx(np.array([13, 6, 4]) / 23, abs=0.01)


def test_latents_of_rows():
    """m ~ N(0, 2), z_i ~ N(m, 1), x_i ~ N(z_i, 1): m | x is normal, and E[z_i | x] = (E m + x_i) / 2."""

    def model(x=None):
        m = pyro.sample("m", Normal(0.0, 2.0))
        with rows(x):
            pyro.sample("x", Normal(pyro.sample("z", Normal(m, 1.0)), 1.0), obs=x)

    x = 1 + normal(12).double()
    tree = infer(model, {"x": x}, **ALONE)
    precision = 1 / 4 + len(x) / 2
    mean = float(x.sum() / 2 / precision)
    assert tree.attrs["verdict"] == "fine"
    assert tree["posterior"]["m"].values.mean() == pytest.approx(mean, abs=0.1 * precision**-0.5)
    assert tree["posterior"]["z"].values[0].mean(0) == pytest.approx(((mean + x) / 2).numpy(), abs=0.08)


def test_what_has_no_posterior_is_refused():
    with pytest.raises(PpgenError, match="has parameters to learn .*fit it, and pass the run"):
        infer(VAE(4), {"x": (normal(10, 4) > 0).float()})
    with pytest.raises(PpgenError, match="has no latent"):
        infer(lambda x: pyro.sample("x", Normal(0.0, 1.0).expand([3]).to_event(1), obs=x), {"x": normal(3)})

    class Learned(Program):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def model(self, x=None):
            m = pyro.sample("m", Normal(0.0, self.scale))
            with rows(x):
                pyro.sample("x", Normal(m, 1.0), obs=x)

    with pytest.raises(PpgenError, match="Learned has parameters to learn"):
        infer(Learned(), {"x": normal(5)})


def test_a_density_that_is_seldom_drawn_anew_is_refused():
    class Seldom(Normal):
        def log_prob(self, value):
            return super().log_prob(value) - (torch.rand_like(value) < 0.05).to(value)

        def expand(self, shape, _instance=None):
            return Seldom(self.loc.expand(shape), self.scale.expand(shape))

    def model(y):
        m = pyro.sample("m", Normal(0.0, 1.0))
        pyro.sample("y", Seldom(m, torch.tensor(1.0)), obs=y)

    torch.manual_seed(1)
    with pytest.raises(PpgenError, match="drawn anew at each call .*a function of its value"):
        infer(model, {"y": torch.tensor(1.0)}, **ALONE)


# -- weighted draws --------------------------------------------------------------------------------


def weighed(model, mean, root, n=4000, data=ONE):
    """Draws of the mixture of one normal, weighed for a model."""
    with prepared(model, data, 0) as made:
        joint = log_joint(made.program, made.data)
        q = Mixture(torch.zeros(1).double(), mean[None].double(), root[None].double())
        u = q.draw(n, torch.Generator().manual_seed(0))
        return importance_weights(joint, in_blocks(joint.value_and_grad), u, q.log_prob(u), prior=None, seed=0)


def test_the_density_of_a_mixture_integrates_to_one():
    """∫ q over a grid, and E_q[p / q] of a normal whose integral is known."""
    q = Mixture(torch.tensor([0.3, 0.7]).log(), torch.tensor([[-2.0], [1.0]]), torch.tensor([[[0.5]], [[2.0]]]))
    grid = torch.linspace(-400, 400, 800_001)[:, None].double()
    q = Mixture(*(v.double() for v in q))
    assert float(torch.trapezoid(q.log_prob(grid).exp(), grid[:, 0])) == pytest.approx(1, abs=1e-4)
    u = q.draw(20_000, torch.Generator().manual_seed(0))
    w = (Normal(0.5, 1.0).log_prob(u[:, 0]) - q.log_prob(u)).exp()
    assert float(w.mean()) == pytest.approx(1, abs=4 * float(w.std()) / 20_000**0.5)


def test_the_evidence_and_moments_are_those_of_the_posterior():
    def model(one):
        x = pyro.sample("x", MultivariateNormal(torch.tensor([1.0, -1.0]), torch.tensor([[1.0, 0.8], [0.8, 1.0]])))
        pyro.factor("z", torch.tensor(3.0) + 0 * x.sum())

    found = weighed(model, torch.zeros(2), 1.5 * torch.eye(2))
    assert found.evidence.log_z == pytest.approx(3.0, abs=4 * found.evidence.se) and found.evidence.se < 0.05
    assert torch.allclose((found.w[:, None] * found.u).sum(0), torch.tensor([1.0, -1.0]).double(), atol=0.08)
    assert found.settled and [f.measure for f in found.findings] == ["importance", "score", "tail_khat", "unseen_modes"]


FAULTS = {
    "far away": (lambda: weighed(_one_normal, torch.full((1,), 60.0), torch.eye(1)), "importance", "wrong"),
    "few draws": (lambda: weighed(_one_normal, torch.zeros(1), torch.eye(1) * 3, n=300), "importance", "look"),
    "a narrower mode beside": (lambda: weighed(_beside, torch.zeros(5), torch.eye(5)), "unseen_modes", "wrong"),
    "one of two modes": (lambda: weighed(_two_modes, torch.zeros(1), torch.eye(1)), "unseen_modes", "wrong"),
}


def _one_normal(one):
    pyro.sample("x", Normal(torch.zeros(1), 1.0).to_event(1))


def _beside(one):
    """Half of the mass is N(0, 1) in five dimensions, half a ball half as wide, six away."""
    x = pyro.sample("x", Normal(torch.zeros(5), 10.0).to_event(1))
    other = Normal(torch.tensor([6.0, 0, 0, 0, 0]), 0.5).log_prob(x).sum(-1)
    both = torch.logaddexp(Normal(0.0, 1.0).log_prob(x).sum(-1), other)
    pyro.factor("f", both - Normal(0.0, 10.0).log_prob(x).sum(-1))


@pytest.mark.parametrize("name", list(FAULTS))
def test_weighted_draws_that_are_not_right_are_not_believed(name):
    found, measure, expected = FAULTS[name][0](), *FAULTS[name][1:]
    one = {f.measure: f for f in found.findings}[measure]
    assert one.verdict == expected and str(one) and one.remedy and not found.settled


def test_draws_that_end_before_the_posterior_does_have_other_scores():
    """Draws of N(0, 1) within one sd, all weights equal: E z ∂ log p is not -1."""
    from ppgen.inference.sampling.weighted import score

    u = torch.linspace(-1, 1, 2001)[:, None].double()
    w = torch.full((2001,), 1 / 2001).double()
    cut = score(u, w, -u, ["u"])
    whole = normal(4000, 1).double()
    right = score(whole, torch.full((4000,), 1 / 4000).double(), -whole, ["u"])
    assert cut.verdict == "look" and cut.figure == pytest.approx(2 / 3, abs=0.01) and right.verdict == "fine"


def test_draws_of_two_mixtures_are_those_of_one():
    """What the second has not seen keeps its weight: a narrow one does not hide the half of the mass at 8."""
    both = Mixture(torch.zeros(2), torch.tensor([[0.0], [8.0]]), torch.ones(2, 1, 1))
    narrow = Mixture(torch.zeros(1), torch.zeros(1, 1), torch.ones(1, 1, 1))

    def target(u):
        return both.log_prob(u), torch.zeros_like(u)

    generator = torch.Generator().manual_seed(0)
    first, second = (Drawn.of(q, target, 3000, generator) for q in (both, narrow))
    drawn = first.joined(second)
    w = torch.softmax(drawn.lp - drawn.mixture.log_prob(drawn.u), 0)
    assert len(drawn.u) == 6000 and float(w[drawn.u[:, 0] > 4].sum()) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("kind", ["t", "scale"])
def test_the_slope_far_out_tells_the_tail(kind):
    """Student's t with 4 degrees of freedom: k is 1/4; z whose log has the density e^u / (1 + e^u)^3: k is 1/2."""
    prior, k, said = (StudentT(4.0), 0.25, "fine") if kind == "t" else (HalfCauchy(1.0), 0.5, "look")

    def model(one):
        z = pyro.sample("z", prior)
        if kind == "scale":
            pyro.factor("f", -3 * torch.log1p(z) - prior.log_prob(z))

    found = weighed(model, torch.zeros(1), 2 * torch.eye(1), n=20_000)
    heaviest = {f.measure: f for f in found.findings}["tail_khat"]
    assert heaviest.figure == pytest.approx(k, abs=0.08) and heaviest.verdict == said and heaviest.where == "z"


def test_tails_of_latents_that_are_strongly_correlated_are_not_noise():
    """Scores of a normal with correlation 0.9999 are 70 times as large as the slopes of its margins."""
    cov = torch.tensor([[1.0, 0.9999], [0.9999, 1.0]]).double()

    def model(one):
        pyro.sample("x", MultivariateNormal(torch.zeros(2).double(), cov))

    found = weighed(model, torch.zeros(2), torch.linalg.cholesky(cov))
    heaviest = {f.measure: f for f in found.findings}["tail_khat"]
    assert heaviest.verdict == "fine" and 0.1 < heaviest.figure < 0.2, "of a normal 1 / (E[x² | far out] - 1)"


def test_a_model_that_the_data_contradict_is_told_and_no_method_blamed(caplog):
    def model(x):
        rate = pyro.sample("rate", Gamma(2.0, 0.5))
        with rows(x):
            pyro.sample("x", Poisson(rate), obs=x)

    x = torch.tensor([0.0] * 20 + [9.0] * 12)
    tree = infer(model, {"x": x}, prior=False)
    (said,) = (f for f in load_findings(tree) if f.measure == "predictive")
    assert tried(tree) == ["gaussian"] and json.loads(tree.attrs["tried"])[0]["verdict"] == "fine"
    assert tree.attrs["verdict"] == verdict(load_findings(tree)) == "fine"
    assert tree.attrs["model"] == said.verdict == "look" and "the sd of x is 4.36" in str(said)
    assert "does not give data like the observed" in caplog.text and "no method" not in caplog.text


def test_rows_that_a_program_masks_are_not_held_against_its_draws():
    def model(y, seen):
        m = pyro.sample("m", Normal(20.0, 3.0))
        with rows(y), pyro.poutine.mask(mask=seen):
            pyro.sample("y", Normal(m, 1.0), obs=y)

    seen = torch.arange(40) % 2 == 0
    y = torch.where(seen, 20 + torch.linspace(-2, 2, 40), 0.0)
    tree = infer(model, {"y": y, "seen": seen}, prior=False)
    assert tree.attrs["verdict"] == tree.attrs["model"] == "fine"


# -- from the shell --------------------------------------------------------------------------------


def test_from_the_shell(tmp_path):
    (tmp_path / "line.py").write_text(
        "import pyro, ppgen\nfrom pyro.distributions import HalfNormal, Normal\n\n\n"
        "def model(t, y=None):\n    a, b = (pyro.sample(n, Normal(0.0, 5.0)) for n in 'ab')\n"
        "    s = pyro.sample('s', HalfNormal(2.0))\n"
        "    with ppgen.rows(t):\n        pyro.sample('y', Normal(a + b * t, s), obs=y)\n"
    )
    t = np.linspace(0, 1, 30)
    y = 1 + 2 * t + 0.1 * np.random.default_rng(0).normal(size=30)
    (tmp_path / "line.csv").write_text("t,y\n" + "\n".join(f"{a},{b}" for a, b in zip(t, y, strict=True)))
    command = [sys.executable, "-m", "ppgen", "infer", "line.py", "--data", "line.csv", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    slope, intercept = np.polyfit(t, y, 1)
    assert (said["method"], said["verdict"], said["posterior"]) == ("gaussian", "fine", "line.nc")
    assert said["summary"]["b"]["mean"] == pytest.approx(slope, abs=0.02)
    assert said["summary"]["a"]["mean"] == pytest.approx(intercept, abs=0.02)
    assert (tmp_path / "line.nc").is_file() and said["tried"][0]["method"] == "gaussian"
    done = subprocess.run([*command[:-1], "--budget", "0"], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2 and "--budget" in done.stderr and "Traceback" not in done.stderr


# -- tails that no draw is in ----------------------------------------------------------------------


@pytest.mark.parametrize(("weight", "verdict"), [(0.01, "look"), (0.0, "fine")])
def test_a_tail_is_followed_beyond_the_draws(weight: float, verdict: str):
    """Draws of the log-normal that is all but a hundredth of it; the rest is half-Cauchy, and has no mean."""

    def model(one):
        s = pyro.sample("s", LogNormal(0.0, 0.3))
        own, other = LogNormal(0.0, 0.3).log_prob(s), HalfCauchy(1.0).log_prob(s)
        pyro.factor("mixed", torch.logaddexp(own + math.log1p(-weight), other + math.log(weight + 1e-300)) - own)

    torch.set_default_dtype(torch.float64)
    joint = log_joint(Program.from_pair(model), {"one": torch.ones(1)})
    u = 0.3 * torch.randn(4000, 1)
    lp, g = joint.value_and_grad(u)
    found = tails(joint, u, torch.full((4000,), 1 / 4000), lp, g, joint.value_and_grad)
    assert found.measure == "tail_khat" and found.verdict == verdict
    assert found.figure < 0.3 if verdict == "fine" else 0.4 < found.figure < 0.7


@pytest.mark.parametrize(("nu", "verdict"), [(4.0, "fine"), (2.0, "look")])
def test_a_tail_that_few_visits_of_chains_saw_is_heavy_where_it_surely_is(nu: float, verdict: str):
    """Student's t in five dimensions, each place ten draws of one chain: slopes of latents that share a scale are as
    noisy as there are visits. By errors that took draws for independent ones, nine of ten runs of nu = 4 were heavy."""

    def model(one):
        z = pyro.sample("z", MultivariateStudentT(nu, torch.zeros(5), torch.eye(5)))
        pyro.factor("nothing", 0 * z.sum())

    torch.set_default_dtype(torch.float64)
    joint = log_joint(Program.from_pair(model), {"one": torch.ones(1)})
    for seed in range(3):
        rng = np.random.default_rng(seed)
        places = rng.normal(size=(1600, 5)) * np.sqrt(nu / rng.chisquare(nu, (1600, 1)))
        u = torch.from_numpy(places.repeat(10, 0)).double()
        lp, g = joint.value_and_grad(u)
        chains = torch.arange(64).repeat_interleave(250)
        found = tails(joint, u, torch.full((16_000,), 1 / 16_000), lp, g, joint.value_and_grad,
            at_edges=-math.inf, chains=chains)  # fmt: skip
        assert found.verdict == verdict


def test_one_chain_that_stays_far_out_makes_no_heavy_tail():
    """Two independent normals, and one chain that was stuck where a is far out and b pulls it on: means by chain have
    no spread where there is one chain, which was an error of 0, and the tail of a normal was surely infinite."""

    def model(one):
        a, b = (pyro.sample(n, Normal(0.0, 1.0)) for n in "ab")
        pyro.factor("shared", -0.5 * (b - 3 * a) ** 2 + 0.5 * b**2)

    torch.set_default_dtype(torch.float64)
    joint = log_joint(Program.from_pair(model), {"one": torch.ones(1)})
    a = np.random.default_rng(0).normal(size=(64, 250))
    b = 3 * a + np.random.default_rng(1).normal(size=a.shape)
    a[5], b[5] = 4.5, 20.0
    u = torch.from_numpy(np.stack([a, b], -1).reshape(-1, 2))
    lp, g = joint.value_and_grad(u)
    chains = torch.arange(64).repeat_interleave(250)
    found = tails(joint, u, torch.full((16_000,), 1 / 16_000), lp, g, joint.value_and_grad,
        at_edges=-math.inf, chains=chains)  # fmt: skip
    assert found.verdict == "fine", found


def test_what_the_data_cut_off_is_no_tail():
    """y_i ~ U(th, th + 1): th is nearly uniform between max y - 1 and min y, where its density does not fall."""

    def window(y):
        th = pyro.sample("th", Normal(0.0, 1.0))
        with rows(y):
            pyro.sample("y", Uniform(th, th + 1.0), obs=y)

    data = {"y": torch.tensor([0.3, 0.6, 0.9]).double()}
    joint = log_joint(Program.from_pair(window).setup(data), data)
    u = 0.4 * torch.rand(4000, 1, generator=torch.Generator().manual_seed(0)).double() - 0.1
    lp, g = joint.value_and_grad(u)
    found = tails(joint, u, torch.full((4000,), 1 / 4000).double(), lp, g, joint.value_and_grad)
    assert found.verdict == "fine"


@pytest.mark.parametrize(("at_edges", "verdict"), [(-math.inf, "fine"), (math.nan, "look")])
def test_slopes_do_not_tell_a_tail_along_an_edge(at_edges: float, verdict: str):
    """y_i ~ U(lo, lo + w), both nearly flat: 1/w is Beta(n - 2, 2), lo uniform given w, and its tail is t^(2 - n)."""

    def window(y):
        lo, w = pyro.sample("lo", Normal(0.0, 1000.0)), pyro.sample("w", HalfNormal(1000.0))
        with rows(y):
            pyro.sample("y", Uniform(lo, lo + w), obs=y)

    data = {"y": torch.linspace(0, 1, 30).double()}
    joint = log_joint(Program.from_pair(window).setup(data), data)
    g = np.random.default_rng(0)
    w = 1 / g.beta(28, 2, 4000)
    u = torch.from_numpy(np.stack([(1 - w) * g.uniform(size=4000), np.log(w)], -1))
    lp, slopes = joint.value_and_grad(u)
    assert torch.isfinite(lp).all()
    equal = torch.full((4000,), 1 / 4000).double()
    found = tails(joint, u, equal, lp, slopes, joint.value_and_grad, at_edges=at_edges)
    assert found.verdict == verdict


def test_a_tail_with_too_few_weighted_draws_is_not_called_light():
    def model(one):
        pyro.sample("s", LogNormal(0.0, 0.3))
        pyro.factor("nothing", torch.zeros(()))

    torch.set_default_dtype(torch.float64)
    joint = log_joint(Program.from_pair(model), {"one": torch.ones(1)})
    u = 0.3 * torch.randn(4000, 1)
    lp, g = joint.value_and_grad(u)
    w = torch.where(u[:, 0] > 0.0, 1e-6, 1.0)  # one side has no weight to speak of
    w[u[:, 0].argmax()] = 40.0
    found = tails(joint, u, w / w.sum(), lp, g, joint.value_and_grad)
    assert found.verdict == "look" and math.isnan(found.figure) and "too few of the weighted draws" in str(found)


# -- functions of latents, which the tree reports too ----------------------------------------------


@pytest.mark.parametrize(
    ("function", "said"),
    [(lambda a, b: a / b, "mean and sd"), (lambda a, b: (4 * a).exp(), "sd"), (lambda a, b: a + b.square(), "")],
    ids=["ratio", "exponential", "sum"],
)
def test_a_deterministic_site_without_an_sd_is_told(function, said):
    def model(one):
        a, b = pyro.sample("a", Normal(1.0, 1.0)), pyro.sample("b", Normal(0.0, 1.0))
        pyro.deterministic("f", function(a, b))

    trees = [infer(model, ONE, **ALONE)]
    if said == "mean and sd":
        trees.append(mcmc(model, ONE, chains=32, draws=50, warmup=50, engine="trace", **ALONE))
    for tree in trees:
        tails_of = {f.measure: f for f in load_findings(tree)}["tail_khat"]
        assert tails_of.verdict == ("look" if said else "fine") and (not said or tails_of.where == "f")
        assert said in str(tails_of)
    assert tried(trees[0]) == ["gaussian"], "another method would say the same"
    assert trees[0].attrs["verdict"] == tails_of.verdict == json.loads(trees[0].attrs["tried"])[0]["verdict"]


def test_infinite_values_of_a_deterministic_site_are_heavy_tails_and_missing_ones_are_not():
    light = Finding("tail_khat", "", -math.inf, 0.35, "fine", {"others": 0})
    values = np.random.default_rng(0).normal(size=(4, 100, 3))
    values[0, 0, 1], values[0, 1, 2] = np.inf, np.nan
    (said,) = with_derived([light], {"d": values, "n": np.ones((4, 100), int)})
    assert said.verdict == "look" and said.where == "d[1]"
    assert with_derived([light], {"d": values[..., [0, 2]]}) == [light]


def test_a_spike_within_the_shell_of_a_slab_does_not_hide_it():
    """b is N(0, 0.01²) or N(0, 3²): from the slab's top at 1.8 the spike is 1.9 sd away."""
    y = torch.tensor([2.0]).double()

    def model(y):
        z = pyro.sample("z", Bernoulli(0.3))
        b = pyro.sample("b", Normal(0.0, torch.where(z > 0, 3.0, 0.01)))
        with rows(y):
            pyro.sample("y", Normal(b, 1.0), obs=y)

    tree = infer(model, {"y": y}, **ALONE)
    slab, spike = 0.3 * Normal(0.0, 10**0.5).log_prob(y).exp(), 0.7 * Normal(0.0, 1.0).log_prob(y).exp()
    share = float(slab / (slab + spike))
    b = tree["posterior"]["b"].values
    assert tree.attrs["verdict"] == "fine" and (abs(b) > 0.1).mean() == pytest.approx(share, abs=0.04)
    assert b.mean() == pytest.approx(1.8 * share, abs=0.08)
