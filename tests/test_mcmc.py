"""Sampling against closed forms: moments, discrete latents summed out, the tree, and what is refused or said."""

import logging
import math
import re
from importlib import import_module

import arviz_stats
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from known import SCHOOLS, Gaussian, NormalMean, Regression, chains_agree, normal
from pyro.contrib.conjugate.infer import BetaBinomialPair, collapse_conjugate
from pyro.distributions import constraints
from scipy import special, stats

from ppgen import PpgenError, Program, rows
from ppgen.distributions import Flat
from ppgen.engine import LogJoint, log_joint
from ppgen.engine.density.leapfrog import _back, leapfrog_step
from ppgen.engine.density.pathfinder import Paths, pathfinder
from ppgen.inference import evidence, fit, infer, loglik, posterior
from ppgen.inference.evaluation.compare import loo
from ppgen.inference.sampling import kernels
from ppgen.inference.sampling.hamiltonian import Preconditioner, transition
from ppgen.inference.sampling.kernels import Draws, chees
from ppgen.inference.sampling.kernels.chees import (
    _Averaged,
    _halton,
    _harmonic,
    _Length,
    _Moments,
    _run,
    _windows,
    sample,
)
from ppgen.inference.sampling.mcmc import _runs_away, mcmc
from ppgen.inference.verdicts import mcmc_diagnostics
from ppgen.inference.verdicts.findings import load_findings, verdict
from ppgen.inference.verdicts.mcmc_diagnostics import _heavy_tails, _tail_shape, findings
from ppgen.models import EightSchools

chees_module = import_module("ppgen.inference.sampling.kernels.chees")
X = normal(20) + 1.0
FEW = {"chains": 32, "draws": 100, "warmup": 100}


# -- closed forms ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loc", [pytest.param(1.0, marks=pytest.mark.slow), 3.0])  # at 3 the ends of [-π, π] cut it
def test_an_angle_stays_on_its_circle(loc):
    """E cos(z - loc) = I₁(2) / I₀(2); its support is said to be the real line, over which its density repeats."""
    angle = dist.VonMises(torch.tensor(loc).double(), 2.0)
    one = {"one": torch.ones(1)}
    tree = mcmc(lambda one: pyro.sample("z", angle), one, chains=64, draws=100, warmup=100, engine="trace")
    z = tree["posterior"]["z"].values
    assert np.abs(z).max() <= math.pi
    first, second = (special.iv(k, 2.0) / special.iv(0, 2.0) for k in (1, 2))
    chains_agree(np.cos(z - loc), first, 0.5 + 0.5 * second - first**2)


def below(x):
    """A latent whose support depends on another: z_i ~ U(0, b)."""
    b = pyro.sample("b", dist.HalfNormal(5.0))
    with rows(x):
        z = pyro.sample("z", dist.Uniform(torch.zeros_like(b), b))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_a_support_that_depends_on_a_latent():
    """Bounds of one run would cut z off; moments by quadrature, with the z summed out one by one."""
    x = torch.tensor([7.0, 1.0]).double()
    tree = mcmc(below, {"x": x}, chains=64, draws=100, warmup=100, engine="trace")
    b, z = np.linspace(0.01, 25, 1000), np.linspace(0.0, 25, 2001)
    inside = (z < b[:, None]) / b[:, None]
    likelihood = stats.norm(z[:, None], 1).pdf(x.numpy())  # (z, 2)
    each = inside @ likelihood
    weight = np.exp(-(b**2) / 50) * each.prod(1)
    mean = np.average(b, weights=weight)
    chains_agree(tree["posterior"]["b"].values, mean, np.average((b - mean) ** 2, weights=weight))
    at = inside @ (likelihood * z[:, None]) / each, inside @ (likelihood * z[:, None] ** 2) / each
    first, second = (np.average(m[:, 0], weights=weight) for m in at)
    chains_agree(tree["posterior"]["z"].values[..., 0], first, second - first**2)


def test_its_transform_is_asked_of_each_run():
    program = Program.from_pair(below)
    with torch.no_grad():
        joint = log_joint(program.setup({"x": torch.ones(2).double()}), {"x": torch.ones(2).double()}, engine="eager")
    assert joint.moving == ("z",)
    u = torch.randn(5, 3).double()
    latents = joint.unflatten(u)
    assert (latents["z"] < latents["b"][:, None]).all()
    torch.testing.assert_close(joint.flatten(latents), u)
    b, z = latents["b"], latents["z"]
    log_p = dist.HalfNormal(5.0).log_prob(b) - 2 * b.log() + dist.Normal(z, 1.0).log_prob(torch.ones(2)).sum(1)
    jacobian = u[:, 0] + (z.log() + (b[:, None] - z).log() - b.log()[:, None]).sum(1)  # of exp, of b times a sigmoid
    torch.testing.assert_close(joint(u), log_p + jacobian)


def test_a_support_that_depends_on_a_summed_latent_is_refused():
    def model(x):
        k = pyro.sample("k", dist.Bernoulli(0.5))
        z = pyro.sample("z", dist.Uniform(torch.zeros(()), 1.0 + k))
        with rows(x):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(PpgenError, match="the support of 'z' depends on a discrete latent"):
        mcmc(model, {"x": X})


def test_a_bound_for_an_angle_is_one():
    """A normal on the whole line would take every copy of the circle, and its ELBO rise above log p(x) without end."""

    def model(x):
        m = pyro.sample("m", dist.VonMises(0.0, 0.1))
        with rows(x):
            pyro.sample("x", dist.Normal(m.cos(), 2.0), obs=x)

    x = torch.tensor([0.5, 0.2, -0.3])
    run = fit(model, {"x": x}, steps=200, lr=0.1, seed=0)
    m = torch.linspace(-math.pi, math.pi, 2001).double()
    each = dist.VonMises(0.0, 0.1).log_prob(m) + dist.Normal(m.cos()[:, None], 2.0).log_prob(x).sum(1)
    exact = float(each.logsumexp(0) + math.log(m[1] - m[0]))
    elbo, iw = (float(b.values.sum()) for b in loglik(run, {"x": x}, particles=500).bounds)
    assert exact - 0.5 < elbo < exact
    assert exact - 0.15 < iw < exact + 0.02


def test_a_normal_mean():
    exact = NormalMean().posterior(X)
    tree = mcmc(NormalMean(), {"x": X}, chains=64, draws=200, warmup=100)
    chains_agree(tree["posterior"]["m"].values, float(exact.loc), float(exact.variance))
    assert verdict(load_findings(tree)) == "fine"
    loo = sum(  # of the conjugate model
        stats.norm(float(m.loc), math.sqrt(float(m.variance) + 1.5**2)).logpdf(float(x))
        for i, x in enumerate(X)
        for m in [NormalMean().posterior(torch.cat([X[:i], X[i + 1 :]]))]
    )
    assert arviz_stats.loo(tree).elpd == pytest.approx(loo, abs=0.05)


@pytest.mark.parametrize("metric", ["diag", "dense"])
def test_a_collinear_regression(metric):
    x = normal(30, 2).double()
    x = torch.stack([x[:, 0], x[:, 0] + 0.1 * x[:, 1]], -1)
    y = x.sum(-1) + normal(30, seed=1)
    exact = Regression().posterior(x, y)
    tree = mcmc(Regression(), {"x": x, "y": y}, metric=metric, predictive=False, prior=False, **FEW)
    for i in range(2):
        chains_agree(tree["posterior"]["b"].values[..., i], float(exact.mean[i]), float(exact.covariance_matrix[i, i]))
    assert tree.attrs["metric"] == metric
    b = tree["posterior"]["b"].values
    loglik = stats.norm(b @ x.numpy().T, 1.0).logpdf(y.double().numpy())
    assert np.allclose(tree["log_likelihood"]["y"].values, loglik)


ALONE = {"predictive": False, "prior": False}  # a tree of the posterior's draws only


def test_constrained_latents():
    """Gamma and Beta by conjugacy, a simplex by Dirichlet's."""
    counts, k = torch.tensor([3.0, 0.0, 2.0, 4.0]), torch.tensor([0] * 12 + [1] * 3 + [2] * 5)

    def model(n, k):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("n", len(n)):
            pyro.sample("count", dist.Poisson(rate), obs=n)
        with pyro.plate("k_plate", len(k)):
            pyro.sample("k", dist.Categorical(p), obs=k)

    tree = mcmc(model, {"n": counts, "k": k}, chains=64, draws=200, warmup=150, engine="trace", **ALONE)
    exact = stats.gamma(2 + 9, scale=1 / (1 + 4))
    chains_agree(tree["posterior"]["rate"].values, exact.mean(), exact.var())
    exact = stats.beta(13, 10)
    chains_agree(tree["posterior"]["p"].values[..., 0], exact.mean(), exact.var())


def test_discrete_latents_are_summed_out():
    """A mixture by Pyro's enumeration, against the mean by quadrature."""
    x = torch.tensor([-1.0, 0.2, 0.4, 2.5])

    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 2.0))
        with rows(x):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(m + 2 * z, 1.0), obs=x)

    grid = np.linspace(-6, 6, 2001)
    each = np.log(0.7 * stats.norm(grid[:, None], 1).pdf(x) + 0.3 * stats.norm(grid[:, None] + 2, 1).pdf(x))
    w = special.softmax(each.sum(1) + stats.norm(0, 2).logpdf(grid))
    mean = (w * grid).sum()
    tree = mcmc(model, {"x": x}, **FEW)
    assert set(tree["posterior"].data_vars) == {"m", "z"}
    m, z = tree["posterior"]["m"].values[..., None], tree["posterior"]["z"].values
    ones = 0.3 * stats.norm(m + 2, 1).pdf(x) / (0.3 * stats.norm(m + 2, 1).pdf(x) + 0.7 * stats.norm(m, 1).pdf(x))
    error = np.sqrt((ones * (1 - ones)).mean((0, 1)) / z[..., 0].size)
    assert np.all(np.abs(z.mean((0, 1)) - ones.mean((0, 1))) < 4.5 * error)
    chains_agree(tree["posterior"]["m"].values, mean, (w * (grid - mean) ** 2).sum())


def test_engines_agree_and_one_seed_is_one_run():
    few = {"chains": 8, "draws": 10, "warmup": 20, "predictive": False, "prior": False}
    trees = [mcmc(EightSchools(), SCHOOLS, engine=e, **few) for e in ("trace", "trace", "eager")]
    first = trees[0]["posterior"]["theta"].values
    assert np.array_equal(first, trees[1]["posterior"]["theta"].values)
    assert np.allclose(first[:, 0], trees[2]["posterior"]["theta"].values[:, 0], atol=1e-6)
    assert torch.get_default_dtype() == torch.float32


def test_an_operation_that_cannot_be_batched_is_run_chain_by_chain():
    """A normal with gaps asks whether it has any."""

    def model(y):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", 20):
            pyro.sample("y", dist.NanMaskedNormal(m, 1.0), obs=y)

    y = torch.where(torch.arange(20) < 15, X, torch.nan)
    tree = mcmc(model, {"y": y}, chains=4, draws=40, warmup=20, predictive=False, prior=False)
    assert abs(tree["posterior"]["m"].values.mean() - float(y[:15].sum()) / 16) < 0.1


def _ordered(y):
    cut = pyro.sample("cut", dist.TransformedDistribution(dist.Normal(torch.zeros(2), 3.0).to_event(1), [_ORDER]))
    with pyro.plate("rows", 9):
        pyro.sample("y", dist.OrderedLogistic(torch.zeros(9), cut), obs=y)


def _counts(y):
    pyro.sample("y", dist.Multinomial(20, pyro.sample("p", dist.Dirichlet(torch.ones(3)))), obs=y)


def _filled(x, y):
    slope, gaps = (
        pyro.sample("slope", dist.Normal(0.0, 1.0)),
        pyro.sample("gaps", dist.Normal(torch.zeros(2), 1.0).to_event(1)),
    )
    full = x.clone()
    full[x.isnan()] = gaps
    with pyro.plate("rows", 5):
        pyro.sample("y", dist.Normal(slope * full, 1.0), obs=y)


_ORDER = dist.transforms.OrderedTransform()
_GAPS = torch.tensor([0.5, torch.nan, 1.0, torch.nan, -0.3])


@pytest.mark.parametrize(
    ("model", "data"),
    [
        (_ordered, {"y": torch.arange(9) % 3}),
        (_counts, {"y": torch.tensor([12.0, 0.0, 8.0])}),
        (_filled, {"x": _GAPS, "y": X[:5]}),
    ],
    ids=["ordered logistic", "multinomial", "gaps filled"],
)
def test_what_is_written_in_place_has_room_for_every_chain(model, data):
    program = Program.from_pair(model)
    many, one = (log_joint(program, data, engine=e) for e in ("trace", "eager"))
    u = torch.randn(6, many.dim, generator=torch.Generator().manual_seed(0))
    for got, want in zip(many.value_and_grad(u), one.value_and_grad(u), strict=True):
        assert torch.allclose(got, want, atol=1e-5)
    _, p, g, value = many.leapfrog(
        u, torch.ones_like(u), want, torch.tensor(0.1), torch.zeros(one.dim), torch.ones(one.dim)
    )
    assert torch.allclose(value, one(u + 0.1 * (1 + 0.05 * want)), atol=1e-4)


# -- the parts ---------------------------------------------------------------------------------------------


def test_the_pieces_of_chees():
    assert [_halton(i) for i in (1, 2, 3, 4, 5, 6)] == [0.5, 0.25, 0.75, 0.125, 0.625, 0.375]
    for warmup in (20, 50, 100, 400, 2000):
        ends = _windows(warmup)
        assert ends == sorted(set(ends)) and 0 < ends[-1] < warmup


def test_a_leapfrog_step_by_hand():
    joint = log_joint(Program.from_pair(NormalMean().model), {"x": X})
    y, p = torch.tensor([[0.3], [-1.0]]), torch.tensor([[0.5], [0.2]])
    centre, root, step = torch.tensor([0.4]), torch.tensor([0.7]), torch.tensor(0.1)

    def slope(y):
        u = centre + root * y
        return root * (-u / 4 + (X - u).sum(-1, keepdim=True) / 1.5**2)

    half = p + 0.05 * slope(y)
    there = y + 0.1 * half
    found = joint.leapfrog(y, p, slope(y), step, centre, root)
    for a, b in zip(found, (there, half + 0.05 * slope(there), slope(there)), strict=False):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[3], joint(centre + root * there), rtol=1e-4, atol=1e-4)
    dense = joint.leapfrog(y, p, slope(y), step, centre, root[:, None])
    torch.testing.assert_close(dense[0], found[0])


def test_a_proposal_by_hand():
    """Its acceptance is exp(−ΔH) at most 1, and the energy H of the state that is kept: where the chain was, or is."""
    target, frame = Evaluations(), Preconditioner(torch.zeros(3).double(), torch.ones(3).double())
    old = frame.chains(target, 1.5 * normal(400, 3, seed=1).double())
    new, p, outcome, moved = transition(target, old, frame, 1.25, 2, torch.Generator().manual_seed(4))
    generator = torch.Generator().manual_seed(4)
    y, start = old.y, torch.randn(400, 3, generator=generator, dtype=torch.float64)
    momentum = start
    for _ in range(2):  # leapfrog of ½ y² + ½ p²
        momentum = momentum - 0.625 * y
        y = y + 1.25 * momentum
        momentum = momentum - 0.625 * y
    before, after = (0.5 * (y**2 + p**2).sum(-1) for y, p in ((old.y, start), (y, momentum)))
    torch.testing.assert_close(moved.y, y)
    torch.testing.assert_close(p, momentum)
    torch.testing.assert_close(outcome.acceptance, (before - after).exp().clamp(max=1.0))
    accepted = torch.rand(400, generator=generator, dtype=torch.float64) < (before - after).exp()
    assert 100 < int(accepted.sum()) < 380
    torch.testing.assert_close(new.y, torch.where(accepted[:, None], y, old.y))
    torch.testing.assert_close(outcome.energy, torch.where(accepted, after, before))
    torch.testing.assert_close(new.lp, -0.5 * (new.y**2).sum(-1))


def test_dual_averaging_by_hand(monkeypatch):
    """Hoffman & Gelman's equation (6), γ = 0.05, t_0 = 10, κ = 0.75; it is the average that the draws are taken at."""
    step, mu, error, average = _Averaged(0.2), math.log(2.0), 0.0, math.log(0.2)
    for t, alpha in enumerate((0.9, 0.1, 0.5, 0.8, 0.7), 1):
        step.update(alpha)
        error = (1 - 1 / (t + 10)) * error + (0.651 - alpha) / (t + 10)
        log = mu - t**0.5 / 0.05 * error
        average = t**-0.75 * log + (1 - t**-0.75) * average
        assert math.log(step.current) == pytest.approx(log) and math.log(step.average) == pytest.approx(average)

    made: list[_Averaged] = []
    monkeypatch.setattr(chees_module, "_Averaged", lambda first: (made.append(_Averaged(first)), made[-1])[1])
    start, generator = normal(16, 4, seed=2).double(), torch.Generator().manual_seed(0)
    found = _run(Evaluations(), start, draws=5, warmup=100, generator=generator)
    sizes = found.stats["step_size"]
    assert (sizes == sizes[0, 0]).all() and float(sizes[0, 0]) == pytest.approx(made[-1].average)
    assert abs(made[-1].log - made[-1].log_average) > 0.01


def effects_of_few_groups(seed):
    """Means of four groups, known to 0.3: effects sd z, which are ever narrower in z as sd grows."""

    def model(y):
        sd = pyro.sample("sd", dist.HalfNormal(torch.tensor(4.0).to(y)))
        with pyro.plate("g", 4):
            z = pyro.sample("z", dist.Normal(torch.zeros(()).to(y), 1.0))
        with rows(y):
            pyro.sample("y", dist.Normal(sd * z, 0.3), obs=y)

    return model, {"y": torch.from_numpy(np.random.default_rng(seed).normal(0, 1.5, 4))}


def test_chains_that_diverge_while_they_learn_take_smaller_steps():
    """p(sd | y) is a quadrature over y_j ~ N(0, sd² + 0.09). At the usual step 197 of 16 000 draws diverged, a chain
    was stuck, and the sd of sd was half too large."""
    model, data = effects_of_few_groups(1)
    tree = mcmc(model, data, predictive=False, prior=False, seed=1)
    sd = np.linspace(1e-4, 40, 40_001)
    log_p = stats.norm.logpdf(data["y"].numpy()[:, None], 0, np.sqrt(sd**2 + 0.09)).sum(0) - sd**2 / 32
    p = np.exp(log_p - log_p.max()) / np.exp(log_p - log_p.max()).sum()
    mean = float(p @ sd)
    spread = float(p @ (sd - mean) ** 2) ** 0.5
    said = {f.measure: f for f in load_findings(tree)}
    assert {f.verdict for f in said.values()} == {"fine"}
    off = float(tree["posterior"]["sd"].mean()) - mean
    assert abs(off) < 3 * spread / said["ess_bulk"].figure ** 0.5 and spread == pytest.approx(0.844, abs=0.01)
    assert float(tree["posterior"]["sd"].std()) == pytest.approx(spread, rel=0.1)  # s.e. 4 %: the tail is long


def test_the_remedy_of_divergences_is_one_that_the_program_can_take(monkeypatch):
    """A program whose effects are non-centred already was told to move them so, which is refused."""
    monkeypatch.setattr(mcmc_diagnostics, "DIVERGING", -1.0)

    def centred(y):
        sd = pyro.sample("sd", dist.HalfNormal(torch.tensor(4.0).to(y)))
        with pyro.plate("g", 4):
            z = pyro.sample("z", dist.Normal(torch.zeros(()).to(y), sd))
        with rows(y):
            pyro.sample("y", dist.Normal(z, 3.0), obs=y)

    model, data = effects_of_few_groups(1)
    for program, words in ((model, "--through-guide"), (centred, "--noncentred all")):
        tree = mcmc(program, data, predictive=False, prior=False, chains=16, draws=100, warmup=100, seed=1)
        one = next(f for f in load_findings(tree) if f.measure == "divergences")
        assert one.verdict == "look" and words in one.remedy


def test_the_length_climbs_the_criterion():
    """Its gradient by log T is that of C(T) / T^κ, here a difference quotient along the exact flow of a normal."""
    half = normal(2, 500, 3, seed=3).double()
    y, p = (torch.cat([v, -v]) for v in half)  # means are 0 at every time

    def moved(time):
        return y * math.cos(time) + p * math.sin(time), p * math.cos(time) - y * math.sin(time)

    def criterion(time):
        return float((((moved(time)[0] ** 2).sum(-1) - (y**2).sum(-1)) ** 2).mean()) / 4

    for time in (0.7, 1.4, 2.9):
        h = 1e-5
        slope = (criterion(time * math.exp(h)) - criterion(time * math.exp(-h))) / (2 * h) - criterion(time) / 8
        length = _Length(2.0)
        length.update(y, *moved(time), torch.ones(1000).double(), time, 0.1)
        found = math.copysign((length.moments[1] / 0.05) ** 0.5, length.log - math.log(2.0))
        assert found == pytest.approx(slope, rel=1e-6), time


def test_one_refused_chain_does_not_set_the_step():
    alpha, none = torch.full((64,), 0.7), torch.zeros(64, dtype=torch.bool)
    assert _harmonic(alpha, none) == pytest.approx(0.7)
    alpha[0] = 0.0
    assert _harmonic(alpha, none) == pytest.approx(64 / (63 / 0.7 + 1 / 0.03))
    assert _harmonic(alpha, alpha == 0) == pytest.approx(0.7 * 63 / 64)  # one that diverges counts by its number


def test_moments_by_batches_are_those_of_all():
    u = normal(7, 20, 4, seed=4).double() * torch.tensor([1.0, 2.0, 0.1, 30.0]).double() + 100.0
    u[..., 1] += u[..., 0]
    seen = _Moments(4, u)
    for batch in u:
        seen.add(batch)
    torch.testing.assert_close(seen.mean, u.flatten(0, 1).mean(0))
    torch.testing.assert_close(seen.covariance, torch.cov(u.flatten(0, 1).mT))


@pytest.mark.slow
def test_a_compiled_step_reads_any_layout():
    """A Cholesky factor comes column by column, and compiled code does not look."""
    pytest.importorskip("torch._inductor")
    joints = [log_joint(EightSchools(), SCHOOLS, engine=e) for e in ("trace", "compile")]
    y, p, g = (normal(8, 10, seed=i) for i in range(3))
    root = torch.linalg.cholesky(torch.eye(10) + 0.5)
    for r in (root.contiguous(), root, root.mT.contiguous().mT):
        a, b = (j.leapfrog(y, p, g, torch.tensor(0.1), torch.zeros(10), r) for j in joints)
        for left, right in zip(a, b, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)


def test_pathfinder_finds_a_normal():
    """On a normal target the last approximation is the target: its ELBO is log Z."""
    A = torch.tensor([[2.0, 0.9], [0.9, 0.5]], dtype=torch.float64)
    exact = dist.MultivariateNormal(torch.tensor([3.0, -50.0]).double(), A)

    def target(u):
        return exact.log_prob(u), torch.linalg.solve(A, (exact.loc - u).mT).mT

    generator = torch.Generator().manual_seed(0)
    paths = pathfinder(target, 4 * torch.rand(200, 2, generator=generator).double() - 2, generator=generator)
    assert paths.kept == 200 and float(paths.elbo.median()) == pytest.approx(0.0, abs=0.05)
    assert torch.allclose(paths.mean, exact.loc, atol=0.2) and torch.allclose(paths.covariance, A, rtol=0.2)
    assert torch.allclose(paths.u.mean(0), exact.loc, atol=4.5 * 2**0.5 / 200**0.5)


class Evaluations:
    """A log joint that counts them: the standard normal of d dimensions, pulled up a funnel at u[0] where asked."""

    def __init__(self, funnel: bool = False):
        self.n, self.funnel = 0, funnel

    def __call__(self, u):
        self.n += 1
        if not self.funnel:
            return -0.5 * (u**2).sum(-1), -u
        inner = u.detach().requires_grad_()
        with torch.enable_grad():
            scale = inner[:, :1].exp()
            lp = -(inner[:, 0] ** 2) / 18 - (0.5 * (inner[:, 1:] / scale) ** 2 + scale.log()).sum(-1)
            (grad,) = torch.autograd.grad(lp.sum(), inner)
        return lp.detach(), grad

    def leapfrog(self, y, p, g, step, centre, root):
        return leapfrog_step(lambda u: self(u)[::-1], y, p, g, step, centre, root)


def test_a_path_ends_where_nothing_is_left_to_climb():
    """Nor does it go on up a funnel, which rises without end and has no mass there."""
    for funnel, most in ((False, 60), (True, 800)):
        target = Evaluations(funnel)
        start = 2 * normal(64, 8, seed=1).double() + 1
        paths = pathfinder(target, start, generator=torch.Generator().manual_seed(0))
        assert target.n < most and paths.kept > 50 and abs(paths.mean[0]) < 4, (funnel, target.n, paths.mean)


def test_a_path_waits_for_no_other():
    """One start of 64 lies where every step is halved many times: calls are those of the longest path alone."""

    def target(u):  # exp(u) - 40 u, from far up: steps of 1 overshoot
        target.calls += 1
        return 40 * u[:, 0] - u[:, 0].exp(), 40 - u.exp()

    calls = []
    for start in (torch.full((1, 1), 30.0).double(), torch.cat([torch.full((1, 1), 30.0), normal(63, 1)]).double()):
        target.calls = 0
        paths = pathfinder(target, start, generator=torch.Generator().manual_seed(0), enough=0.999)
        assert abs(float(paths.mean) - np.log(40)) < 0.1
        calls.append(target.calls)
    assert calls[1] < 1.5 * calls[0]


def test_a_warm_up_that_has_settled_ends():
    """On a normal, from far too small a scale as well; one of a single window goes its length."""
    for sd, warmup in ((1.0, 400), (1e-6, 400), (1.0, 20)):
        done: list[int] = []
        frame = Preconditioner(torch.zeros(4).double(), sd * torch.ones(4).double())
        found = _run(
            Evaluations(), sd * normal(64, 4, seed=2).double(), draws=200, warmup=warmup, frame=frame,
            generator=torch.Generator().manual_seed(0), report=done.append,
        )  # fmt: skip
        assert len(found.u) == 200 and done[-1] == 200 + warmup
        assert len(done) == 220 if warmup == 20 else 250 < len(done) < 350
        torch.testing.assert_close(found.g, -found.u)
        for z in found.u.movedim(-1, 0):
            chains_agree(z.T.numpy(), 0.0, 1.0)


@pytest.mark.parametrize("root", [(4,), (4, 4), (4, 3)], ids=str)
def test_slopes_of_the_coordinates_are_those_of_the_latents(double, root):
    own = torch.rand(root) + 0.5
    frame = Preconditioner(torch.zeros(4), own.tril() if root == (4, 4) else own)
    g = torch.randn(7, 4)
    torch.testing.assert_close(frame.slope(_back(g, frame.root)), g)


def test_a_proposal_that_cannot_be_evaluated_is_rejected():
    """The Cholesky factor exists for a > -1/2 alone: chains stay there, and find the posterior on that half-line."""

    def model(y):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        k = torch.eye(2) + a[..., None, None] * torch.ones(2, 2)
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), covariance_matrix=k), obs=y)

    y = torch.tensor([1.5, 1.0])
    tree = mcmc(model, {"y": y}, **FEW)
    grid = np.linspace(-0.499999, 6, 40001)
    lp = stats.norm.logpdf(grid) - 0.5 * np.log(1 + 2 * grid) - 0.25 * 2.5**2 / (1 + 2 * grid)
    w = special.softmax(lp)
    mean = (w * grid).sum()
    draws = tree["posterior"]["a"].values
    assert draws.min() > -0.5
    chains_agree(draws, mean, (w * (grid - mean) ** 2).sum())
    joint = log_joint(Program.from_pair(model), {"y": y})
    inside, outside = joint(torch.tensor([[0.1], [-0.7]]))
    assert torch.isfinite(inside) and not torch.isfinite(outside)


# -- the tree ----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
def test_the_tree_is_that_of_posterior():
    tree = mcmc(EightSchools(), SCHOOLS, chains=8, draws=50, warmup=60)
    guide = posterior(fit(EightSchools(), SCHOOLS, steps=1), SCHOOLS, draws=50)
    assert set(tree.children) == set(guide.children)
    for group in set(tree.children) - {"sample_stats"}:
        a, b = tree[group], guide[group]
        assert {n: v.dims for n, v in a.data_vars.items()} == {n: v.dims for n, v in b.data_vars.items()}
        assert {d: list(c.values) for d, c in a.coords.items() if d not in ("chain", "draw")} == {
            d: list(c.values) for d, c in b.coords.items() if d not in ("chain", "draw")
        }
    for group in tree.children.values():
        assert set(group.dims) == set(group.coords)
        assert all(np.isfinite(v.values).all() for v in group.data_vars.values())
    stats_ = tree["sample_stats"]
    names = {"lp", "energy", "diverging", "outside", "acceptance_rate", "n_steps", "step_size"}
    assert set(stats_.data_vars) == names and all(v.dims == ("chain", "draw") for v in stats_.data_vars.values())
    assert stats_["diverging"].dtype == bool
    post = {n: v.values for n, v in tree["posterior"].data_vars.items()}
    assert np.allclose(post["theta"], post["mu"][..., None] + post["tau"][..., None] * post["eta"])
    loglik = stats.norm(post["theta"], SCHOOLS["sigma"].double().numpy()).logpdf(SCHOOLS["y"].numpy())
    assert np.allclose(tree["log_likelihood"]["y"].values, loglik)
    lp = stats.norm(0, 5).logpdf(post["mu"]) + stats.halfcauchy(scale=5).logpdf(post["tau"]) + np.log(post["tau"])
    lp = lp + stats.norm.logpdf(post["eta"]).sum(-1) + loglik.sum(-1)
    assert np.allclose(stats_["lp"].values, lp)
    assert len(arviz_stats.summary(tree)) == 18


def test_a_run_is_sampled_at_its_learned_parameters(tmp_path):
    def model(x):
        prior = pyro.param("prior", torch.tensor(3.0), constraint=constraints.positive)
        m = pyro.sample("m", dist.Normal(0.0, prior))
        with rows(x):
            pyro.sample("x", dist.Normal(m, 1.5), obs=x)

    run = fit(Program.from_pair(model), {"x": X}, steps=0)
    exact = NormalMean(prior=3.0).posterior(X)
    tree = mcmc(run, {"x": X}, **FEW)
    chains_agree(tree["posterior"]["m"].values, float(exact.loc), float(exact.variance))
    assert tree["posterior"]["m"].dtype == np.float32


def test_float32_of_which_only_draws_ask_is_computed_in_float32():
    """log N(y; m, S) is computed of m in float64 and S in float32, and draws of it are not."""
    held = torch.tensor([[1.0, 0.5], [0.5, 2.0]])

    def model(y):
        m = pyro.sample("m", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.MultivariateNormal(m, held), obs=y)

    tree = mcmc(model, {"y": torch.randn(6, 2)}, chains=4, draws=10, warmup=20)
    assert tree["posterior"]["m"].dtype == np.float32


# -- bad input ---------------------------------------------------------------------------------------------


def flat(x=None):
    m = pyro.sample("m", Flat())
    pyro.sample("extra", Flat())
    with rows(x):
        pyro.sample("x", dist.Normal(m, 1.0), obs=x)


def sum_alone(x=None):
    a, b = pyro.sample("a", Flat()), pyro.sample("b", Flat())
    with rows(x):
        pyro.sample("x", dist.Normal(a + b, 1.0), obs=x)


def logistic(x, y=None):
    b = pyro.sample("b", Flat())
    with rows(x):
        pyro.sample("y", dist.Bernoulli(logits=b * x), obs=y)


def counted(x=None):
    n = pyro.sample("n", dist.Poisson(3.0))
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with rows(x):
        pyro.sample("x", dist.Normal(n + m, 1.0), obs=x)


def impossible(x=None):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with rows(x):
        pyro.sample("x", dist.Normal(m, math.inf), obs=x)


@pytest.mark.parametrize(
    "model, data, options, message",
    [
        (Gaussian(), {"x": X}, {}, "has no latent"),
        (counted, {"x": X}, {}, "latent 'n' is discrete.*Poisson has too many values"),
        (flat, {"x": X}, {}, "cannot be normalised.*extra to .inf"),
        (sum_alone, {"x": X}, {}, "cannot be normalised.*a (up|down), b (up|down)"),
        (
            logistic,
            {"x": X - 0.3, "y": (X > 0.3).float()},
            {"draws": 20, "warmup": 40},
            r"b to \+inf.*may separate the zeros from the ones of 'y'",
        ),
        (impossible, {"x": X}, {}, "not finite at any"),
        (NormalMean(), {"x": X}, {"chains": 1}, "chains is 1"),
        (NormalMean(), {"x": X}, {"draws": 0}, "draws is 0"),
        (NormalMean(), {"x": X}, {"kernel": "gibbs"}, "no kernel 'gibbs'"),
        (NormalMean(), {"x": X}, {"metric": "full"}, "metric is 'full'"),
        (NormalMean(), {"z": X}, {}, "column 'z'"),
    ],
)
def test_what_cannot_be_sampled_is_said(model, data, options, message):
    with pytest.raises(PpgenError, match=message):
        mcmc(model, data, **(FEW | options))


def _poisson(y):
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with rows(y):
        pyro.sample("y", dist.Poisson(rate), obs=y)


def _negative_scale(y):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with rows(y):
        pyro.sample("y", dist.Normal(m, -1.0), obs=y)


@pytest.mark.parametrize("method", [mcmc, infer, evidence])
def test_data_outside_of_the_support_are_refused(method):
    with pytest.raises(PpgenError, match=r"'y' .Poisson. has the support .* the data have 1.5"):
        method(_poisson, {"y": torch.tensor([1.0, 1.5, 2.0])})


def _slope(x, y=None):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    with rows(x):
        pyro.sample("y", dist.Normal(a * x, 1.0), obs=y)


@pytest.mark.parametrize("method", [mcmc, infer, evidence])
def test_values_and_parameters_that_repeat_each_other_are_refused(method):
    x, y = torch.linspace(0, 1, 5), torch.linspace(0, 2, 5)
    with pytest.raises(PpgenError, match=r"values of shape \(5, 1\).*make the two agree"):
        method(_slope, {"x": x, "y": y[:, None]})
    with pytest.raises(PpgenError, match="each is counted 5 times"):
        method(_slope, {"x": x[:, None], "y": y})


def test_draws_of_a_prior_are_said(caplog):
    with caplog.at_level("WARNING", "ppgen"):
        mcmc(_slope, {"x": torch.linspace(0, 1, 5)}, **FEW | {"chains": 4, "draws": 8, "warmup": 20, "engine": "trace"})
    assert any("no observed site and no factor" in message for message in caplog.messages)


@pytest.mark.parametrize("method", [mcmc, infer])
def test_a_density_that_is_finite_nowhere_is_refused(method):
    with pytest.raises(PpgenError, match="not finite at any of .* no scale is negative"):
        method(_negative_scale, {"y": torch.tensor([1.0, 2.0])})


def test_what_writes_over_what_it_has_read_is_told_the_way():
    def history(x):
        h = torch.zeros(3)
        h[0] = pyro.sample("s", dist.Normal(0.0, 1.0))
        for t in (1, 2):
            h[t] = h[0] * h[t - 1]
        pyro.sample("x", dist.Normal(h, 1.0).to_event(1), obs=x)

    with pytest.raises(PpgenError, match="writes over what it has read.*torch.stack it, or read h.t - 1..clone"):
        mcmc(history, {"x": torch.zeros(3)}, chains=4, draws=20, warmup=20)


def test_data_without_a_density_are_said_where_validation_is_off(caplog):
    with pyro.validation_enabled(False):
        infer(_poisson, {"y": torch.tensor([1.0, 1.5, 2.0])}, predictive=False, prior=False)
    assert "the data have 1.5" in caplog.text and "what is called log p(x) is none" in caplog.text


def test_heavy_tails_are_proper():
    def model(x):
        m = pyro.sample("m", dist.Cauchy(0.0, 1.0))
        pyro.sample("x", dist.Normal(m * 0, 1.0), obs=x)

    tree = mcmc(model, {"x": torch.tensor(0.0)}, **FEW | {"draws": 500})
    assert "tails of m are heavy" in tree.attrs["findings"]


def test_tails_of_a_deterministic_site_by_its_own_name():
    def model(x):
        a, b = pyro.sample("a", dist.Normal(1.0, 1.0)), pyro.sample("b", dist.Normal(0.0, 1.0))
        pyro.deterministic("b/a", b / a)

    tree = mcmc(model, {"x": torch.tensor(0.0)}, **FEW | {"draws": 500})
    assert "tails of b/a are heavy" in tree.attrs["findings"]


def test_a_latent_between_two_bounds_has_no_heavy_tail():
    """p(z) ∝ (1 + z)⁻² on (0, 10⁵): draws in the tail are like those of a Cauchy, and every moment is finite."""

    def model(x):
        z = pyro.sample("z", dist.Uniform(0.0, 1e5))
        pyro.factor("f", -2.0 * torch.log1p(z))

    tree = mcmc(model, {"x": torch.tensor(0.0)}, **FEW | {"draws": 500})
    z = tree.posterior["z"].values
    assert _tail_shape(z) > 0.5, "of the draws alone"
    assert "heavy (Pareto" not in tree.attrs["findings"]
    share = np.mean(z > 10.0)  # 1/11
    se = (share * (1 - share) / float(mcmc_diagnostics.statistic("ess", (z > 10.0) * 1.0))) ** 0.5
    assert se < 0.01 and abs(share - 1 / 11) < 4 * se


def test_tails_are_told_by_their_shape():
    """Student's t with ν degrees of freedom has tails of shape 1/ν: its sd is well defined from three on."""
    rng = np.random.default_rng(0)

    def draws(nu, n=100):
        return [rng.standard_t(nu, size=(64, 250)) for _ in range(n)]

    for nu in (1.0, 2.0, 4.0):
        k = np.array([_tail_shape(x) for x in draws(nu, 20)])
        assert k.mean() == pytest.approx(1 / nu, abs=0.1)
    assert _heavy_tails({"a": rng.normal(size=(64, 250, 3)), "b": np.ones((64, 250))}).verdict == "fine"
    assert {_heavy_tails({"a": x}).verdict for x in draws(8.0)} == {"fine"}
    said = str(_heavy_tails({"a": rng.normal(size=(64, 250)), "b": np.stack(draws(2.0, 2), -1)}))
    assert "tails of b[" in said and "those of 1 more" in said and "its sd is not determined" in said
    said = str(_heavy_tails({"c": draws(1.0, 1)[0]}))
    assert "its mean and sd are not determined" in said


def test_a_chain_that_is_stuck_is_named(caplog):
    """Two modes 60 standard deviations apart, of equal mass: no chain goes from one to the other."""

    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 100.0))
        pyro.sample("x", dist.Normal(m.abs(), 0.5), obs=x)

    with caplog.at_level(logging.WARNING, "ppgen"):
        tree = mcmc(model, {"x": torch.tensor(15.0)}, **FEW)
    assert "the chains do not agree: R-hat of m" in tree.attrs["findings"] and "R-hat" in caplog.text

    class Well:
        """N(0, 1), and for the last chain a place that nothing leaves."""

        labels = ("u[0]",)

        def unflatten(self, u):
            return {"u": u}

        def leapfrog(self, y, p, g, step, centre, root):
            p = p + 0.5 * step * g
            y = y + step * p
            u = centre + root * y
            lp = -0.5 * (u**2).sum(-1)
            lp = torch.cat([lp[:-1], torch.where(step > 0, -torch.inf, 0.0)[None]])
            return [y, p - 0.5 * step * u * root, -u * root, lp]

    paths = Paths(torch.randn(8, 1), torch.zeros(8), torch.zeros(1), torch.eye(1), 8)
    found = sample(Well(), paths, draws=50, warmup=40, metric="diag")
    assert any("chain 7 never moved" in str(said) for said in findings(found, Well())), found.u.std(0)


@pytest.mark.parametrize(("persistence", "bfmi"), [(0.9, 0.2), (0.8, 0.4)])
def test_energies_of_a_known_bfmi(persistence, bfmi):
    """An AR(1) energy has E (ΔE)² / var E = 2 (1 - persistence): said below 0.3, and how much it is; not above."""

    class Standard:
        labels = ("u[0]",)

        def unflatten(self, u):
            return {"u": u}

    generator = np.random.default_rng(0)
    energy = [generator.normal(size=8)]
    for _ in range(7999):
        energy.append(persistence * energy[-1] + math.sqrt(1 - persistence**2) * generator.normal(size=8))
    u = normal(8000, 8, 1).double()
    stats_ = {
        "lp": -0.5 * (u**2).sum(-1), "energy": torch.as_tensor(np.stack(energy)), "diverging": torch.zeros(8000, 8)
    }  # fmt: skip
    said = [f for f in findings(Draws(u, stats_, 0, torch.zeros(1), "diag"), Standard()) if f.verdict != "fine"]
    if bfmi > 0.3:
        assert said == []
    else:
        (sentence,) = said
        figure = float(re.search(r"E-BFMI is ([0-9.]+)", str(sentence))[1])
        assert figure == pytest.approx(bfmi, abs=0.011)  # it is given to two digits


# -- the edge of a support -------------------------------------------------------------------------------


def _below(x):
    """x_i ~ U(0, th) under th ~ U(0, 100): p(th | x) ~ th^-n above the largest x, and nothing below it."""
    th = pyro.sample("th", dist.Uniform(0.0, 100.0))
    with rows(x):
        pyro.sample("x", dist.Uniform(0.0, th), obs=x)


def _half_plane(one):
    th = pyro.sample("th", Flat(shape=(2,)))
    pyro.factor("f", torch.where(th[0] > 0, -0.5 * (th**2).sum(), torch.full((), -torch.inf)))


@pytest.mark.parametrize("name", [pytest.param("a largest value", marks=pytest.mark.slow), "half of a normal"])
def test_a_proposal_beyond_the_edge_is_no_divergence(name):
    if name == "a largest value":
        x = 3 * torch.rand(20, generator=torch.Generator().manual_seed(0)).double()
        tree = mcmc(_below, {"x": x}, prior=False, predictive=False)
        mean = 19 / 18 * float(x.max())  # of th^-20 from max x on
        found, sd = tree["posterior"]["th"].values, 0.062 * float(x.max())
    else:
        tree = mcmc(_half_plane, {"one": torch.ones(1)}, prior=False, predictive=False)
        mean, sd, found = (2 / math.pi) ** 0.5, (1 - 2 / math.pi) ** 0.5, tree["posterior"]["th"].values[..., 0]
    assert found.mean() == pytest.approx(mean, abs=0.15 * sd)
    said = {f.measure: f for f in load_findings(tree)}
    assert said["outside_support"].figure > 0.05 and "left the support and were refused" in str(said["outside_support"])
    assert said["divergences"].figure == 0 and said["stuck_chains"].verdict == "fine"
    assert int(tree["sample_stats"]["outside"].sum()) == said["outside_support"].details["count"]


def test_predictions_of_many_rows_are_of_evenly_spaced_draws(monkeypatch):
    """Each is made at the posterior's draw of its own number."""
    from ppgen.inference.sampling import mcmc as file

    monkeypatch.setattr(file, "MOST_PREDICTED", 8 * 60 * 5 // 6)
    monkeypatch.setattr(file, "LEAST_PREDICTED", 10)
    x = torch.tensor([1.0, 2.0, 0.5, 1.5, 1.0])

    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(x)):
            pyro.sample("noise", dist.Normal(m, 1.0), obs=x)
            pyro.sample("x", dist.Normal(m, 1e-6).mask(False), obs=x)

    tree = mcmc(model, {"x": x}, chains=8, draws=60, warmup=100, seed=0)
    predicted, m = tree["posterior_predictive"]["x"], tree["posterior"]["m"]
    assert dict(predicted.sizes) == {"chain": 8, "draw": 5, "data": 5} and list(predicted.draw) == [0, 12, 24, 36, 48]
    assert float(abs(predicted - m.sel(draw=predicted.draw)).max()) < 1e-4
    assert tree["prior"]["m"].sizes["draw"] == 5 and tree["posterior"]["m"].sizes["draw"] == 60
    log_lik = tree["log_likelihood"]["noise"]
    assert log_lik.dtype == np.float32 and list(log_lik.draw) == list(predicted.draw)
    density = stats.norm.logpdf(x.numpy(), m.sel(draw=predicted.draw).values[..., None], 1.0)
    np.testing.assert_allclose(log_lik.values, density, rtol=1e-5)
    assert len(loo(tree).values) == 5


def test_a_density_that_does_not_fall_is_refused_for_an_improper_prior_only():
    joint = log_joint(NormalMean(), {"x": X})
    found = Draws(normal(50, 4, 1), {}, 0, torch.zeros(1), "diag")

    def flat_on_the_left(u):
        return -u.clamp_min(0.0).squeeze(-1), torch.zeros_like(u)

    (said,) = _runs_away(joint, (), found, (), flat_on_the_left)
    assert said.measure == "runs_away" and said.verdict == "look" and said.figure == pytest.approx(math.log(100 / 3))
    assert "does not fall along m to -inf" in said.sentence
    with pytest.raises(PpgenError, match="cannot be normalised.*m to -inf"):
        _runs_away(joint, ("m",), found, (), flat_on_the_left)


def test_rounding_errors_far_out_are_no_density_that_rises():
    """A normal, beyond 20 what a Kalman filter of noise 1e-10 gives: rounding, which may be above the mode."""
    joint = log_joint(NormalMean(), {"x": X})
    found = Draws(normal(50, 4, 1), {}, 0, torch.zeros(1), "diag")

    def rounded(u):
        value = torch.where(u.abs() < 20, -0.5 * u**2, 1e4 * torch.sin(1e9 * u.double()).abs().to(u))
        return value.squeeze(-1), torch.zeros_like(u)

    assert _runs_away(joint, (), found, (), rounded) == []


def test_a_short_warm_up_does_not_make_a_proper_prior_improper():
    def model(x):
        m = pyro.sample("m", dist.Normal(torch.zeros(3), 1e4).to_event(1))
        pyro.sample("x", dist.Normal(m.sum(), 1.0), obs=x)

    tree = mcmc(model, {"x": torch.tensor(0.0)}, chains=4, warmup=20, draws=10, predictive=False, prior=False)
    assert dict(tree["posterior"]["m"].sizes) == {"chain": 4, "draw": 10, "m_dim_0": 3}


def test_draws_that_a_model_hides_are_traced():
    def model(x):
        a, b = (pyro.sample(name, dist.HalfCauchy(1.0)) for name in "ab")
        pair = BetaBinomialPair()
        p = pyro.sample("p", pair.latent(a, b))
        with rows(x):
            pyro.sample("x", pair.conditional(total_count=10, probs=p), obs=x)

    joint = log_joint(Program.from_pair(collapse_conjugate(model)), {"x": torch.tensor([3.0, 4.0])})
    u = normal(3, 2)
    value, grad = joint.value_and_grad(u)
    one = u[0].clone().requires_grad_()
    expected = joint.one(one)
    assert value[0].item() == pytest.approx(expected.item())
    assert torch.allclose(grad[0], torch.autograd.grad(expected, one)[0])


def test_a_density_that_is_drawn_outside_of_sites_is_refused():
    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        noise = dist.Normal(0.0, 1.0).sample()
        pyro.sample("x", dist.Normal(m + noise, 1.0), obs=x)

    with pytest.raises(PpgenError, match="drawn anew at each call.*pyro.sample site"):
        mcmc(model, {"x": torch.tensor(1.0)})


@pytest.mark.slow
def test_of_a_program_that_asks_for_values_fewer_chains_are_run(monkeypatch):
    monkeypatch.setattr(chees, "ALONE", chees.Numbers(5, 30, 20))

    def model(y):
        m = pyro.sample("m", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(m if m > 0 else 0 * m, 1.0), obs=y)

    y = 3 + torch.arange(-4.0, 5.0) / 4
    tree = mcmc(model, {"y": y}, predictive=False, prior=False)
    assert dict(tree["posterior"]["m"].sizes) == {"chain": 5, "draw": 30}
    assert abs(float(tree["posterior"]["m"].mean()) - 27 / 9.01) < 0.3


def test_what_chains_use_is_built_for_as_many_calls_as_they_take(monkeypatch):
    """Before it knows of them it is traced, not compiled."""
    monkeypatch.setattr(chees, "DEFAULTS", chees.Numbers(4, 4, 20))
    calls, build = [], LogJoint.build
    monkeypatch.setattr(LogJoint, "build", lambda self, *how: calls.append(self.calls) or build(self, *how))
    mcmc(NormalMean(), {"x": X}, predictive=False, prior=False)
    assert calls[0] >= 24  # the first that is built, which the chains use


def test_of_many_values_fewer_chains_are_run(monkeypatch):
    monkeypatch.setattr(kernels, "LONG_VALUES", X.numel() - 1)
    monkeypatch.setattr(chees, "LONG", chees.Numbers(4, 6, 20))
    few = mcmc(NormalMean(), {"x": X}, predictive=False, prior=False)
    asked = mcmc(NormalMean(), {"x": X}, chains=5, draws=7, warmup=20, predictive=False, prior=False)
    sizes = [tuple(t["posterior"].sizes[d] for d in ("chain", "draw")) for t in (few, asked)]
    assert sizes == [(4, 6), (5, 7)]
