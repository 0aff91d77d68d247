"""Every model of the catalogue against every law, and every algorithm against one conjugate target.

A model or an algorithm is a file; its row here is what makes it part of the catalogue. A file without a row fails.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from known import (
    ALIKE,
    MODELS,
    Gaussian,
    GuidedNormalMean,
    KnownChain,
    NormalMean,
    draws_agree,
    few,
    normal,
    subsampled,
    weights,
)
from pyro import poutine
from pyro.infer import Trace_ELBO
from scipy import special
from torch import Tensor

from ppgen import PpgenError, Program, Run, catalog
from ppgen.check import check
from ppgen.check.agreement import observed_in_support
from ppgen.data import n_rows, row_columns, take
from ppgen.draws import one_draw
from ppgen.engine import log_joint
from ppgen.engine.compiling.cost import step_seconds
from ppgen.engine.density.pathfinder import pathfinder
from ppgen.inference import (
    Guided,
    calibrate,
    diagnose,
    distil,
    fit,
    gradient_noise,
    infer,
    linear_weight,
    loglik,
    posterior,
    predict,
    reconstruct,
    report,
    resume,
    sample,
)
from ppgen.inference.diffusion.elbo_decomposition import elbo_decomposition
from ppgen.inference.diffusion.impute import impute
from ppgen.inference.diffusion.ode import ode_loglik
from ppgen.inference.diffusion.path_weights import chain_weights
from ppgen.inference.diffusion.samplers import SAMPLERS, sample_diffusion
from ppgen.inference.diffusion.variance_error import variance_error
from ppgen.inference.evaluation.compare import compare, loo
from ppgen.inference.evaluation.compiled_sampler import compiled_sampler
from ppgen.inference.evaluation.ecdf_bands import p_value
from ppgen.inference.evaluation.moments import compare_moments
from ppgen.inference.objective import Objective
from ppgen.inference.pyro_objective import PyroObjective
from ppgen.inference.report.corner import corner_figure
from ppgen.inference.report.figures import figure_of, save
from ppgen.inference.report.interpolation import _between, interpolation_figure
from ppgen.inference.report.model_graph import _edges_of
from ppgen.inference.report.plot import plot
from ppgen.inference.report.sample_plots import observed_values
from ppgen.inference.report.tree_plots import _latents_figure, plot_tree
from ppgen.inference.sampling.bridge import bridge_sampling
from ppgen.inference.sampling.evidence import evidence
from ppgen.inference.sampling.hamiltonian import Preconditioner, transition
from ppgen.inference.sampling.kernels import Draws
from ppgen.inference.sampling.mcmc import mcmc
from ppgen.inference.sampling.mcmc_init import runaway, starts
from ppgen.inference.sampling.negligible import negligible_modes
from ppgen.inference.sampling.prepared import prepared, prior_of
from ppgen.inference.sampling.weighted import mixture_of
from ppgen.inference.training import defaults
from ppgen.inference.training.guide_init import start_at
from ppgen.inference.training.refit import refit
from ppgen.inference.trend import rise
from ppgen.inference.verdicts.findings import load_findings, verdict, worst_first
from ppgen.inference.verdicts.guide_checks import weight_checks
from ppgen.inference.verdicts.mcmc_diagnostics import findings
from ppgen.inference.verdicts.mode_search import unseen_modes
from ppgen.inference.verdicts.moved import moved
from ppgen.inference.verdicts.predictive_statistics import statistics
from ppgen.inference.verdicts.report_checks import report_checks
from ppgen.sites import sample_sites
from ppgen.structure import inspect
from ppgen.terms import run

ROOT = Path(__file__).resolve().parent.parent


def ready(name: str) -> tuple[Program, dict[str, Tensor]]:
    """A fresh program, its guide made."""
    factory, data = MODELS[name]
    torch.manual_seed(0)
    return fit(factory(), data, steps=0).program, data


@torch.no_grad()
def pyro_elbos(program: Program, data: dict[str, Tensor], draws: int) -> np.ndarray:
    """The ELBO of one draw each, nats over all rows, by Pyro's Trace_ELBO."""
    pair = (lambda: program.call("model", data)), (lambda: program.call("guide", data))
    with pyro.validation_enabled(False):
        return np.array([-Trace_ELBO().loss(*pair) for _ in range(draws)])


EACH = few(MODELS, *(MODELS.keys() - ALIKE))


@pytest.fixture(params=EACH)
def name(request):
    return request.param


# -- the laws --------------------------------------------------------------------------------------


def test_it_says_what_it_is(name):
    found = catalog.find(name.split()[0])
    program = MODELS[name][0]()
    assert isinstance(program, found.target) and type(program).__doc__
    assert set(program.columns) >= set(MODELS[name][1])


def test_its_contract_holds(name):
    program, data = ready(name)
    structure = check(program, data)
    assert structure.names("observed")


def test_draws_have_the_shape_of_the_data_and_lie_in_the_support(name):
    program, data = ready(name)
    structure = check(program, data)
    observed = structure.names("observed")
    n = n_rows(data)
    drawn = sample(program, n, given={k: v for k, v in data.items() if k not in observed}, seed=0)
    if structure.globals:  # n data sets: the first
        drawn = {k: v[0] for k, v in drawn.items()}
    again = data | {k: drawn[k].to(data[k].dtype) for k in observed}
    latents = {k: drawn[k] for k in structure.latents}
    model = poutine.condition(lambda: program.call("model", again), latents)
    sites = sample_sites(poutine.trace(model).get_trace())
    for column in observed:
        told = not structure.globals or any(len(v) == n for k, v in data.items() if k not in observed and v.dim())
        assert drawn[column].shape == (data[column].shape if told else data[column][:1].shape)
        observed_in_support(column, sites[column])
        assert torch.isfinite(sites[column]["fn"].log_prob(sites[column]["value"])).all()


def test_every_parameter_has_a_finite_gradient(name):
    program, data = ready(name)
    structure = check(program, data)
    loss, _ = Objective(program, structure, n_rows(data))(data)
    parameters = dict(program.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    for key, g in zip(parameters, gradients, strict=True):
        assert g is not None and torch.isfinite(g).all(), key
    assert any((g != 0).any() for g in gradients)


def test_the_guides_draws_are_values_of_the_model(name):
    """Where the guide draws what the model cannot have, the ELBO is minus infinity."""
    program, data = ready(name)
    structure = check(program, data)
    for _ in range(20):
        t = run(program, data)
        for site in structure.latents:
            node = t.p.nodes[site]
            assert node["fn"].support.check(node["value"]).all()
            assert torch.isfinite(node["fn"].log_prob(node["value"])).all()


def test_a_batch_stands_for_all_rows(name):
    """At the same latents, the weighted log joint of the batches of a partition is on average that of all rows."""
    program, data = ready(name)
    structure = check(program, data)
    n, rows = n_rows(data), row_columns(data)

    def joint(batch, latents, weight):
        found = one_draw(program, batch, structure, latents=latents)
        return float(sum(t.weight(structure.row_plates, weight) * t.log_prob.sum() for t in found).detach())

    drawn = run(program, data).q.nodes
    latents = {k: drawn[k]["value"].detach() for k in structure.latents}
    full = joint(data, latents, 1.0)
    batches = [torch.arange(i, i + n // 2) for i in (0, n // 2)]
    parts = [
        joint(take(data, i, rows), {k: v[i] if structure.is_local(k) else v for k, v in latents.items()}, n / len(i))
        for i in batches
    ]
    assert np.mean(parts) == pytest.approx(full, rel=1e-4)
    assert abs(parts[0] - parts[1]) > 1e-6


def test_engines_agree(name):
    _, data = MODELS[name]
    runs = {}
    for engine in ("eager", "trace"):
        torch.manual_seed(0)
        runs[engine] = fit(MODELS[name][0](), data, steps=4, lr=0.01, engine=engine, log_every=1)
    for key, value in runs["eager"].program.state_dict().items():
        assert torch.allclose(value, runs["trace"].program.state_dict()[key], rtol=1e-4, atol=1e-5), key
    assert np.allclose(runs["eager"].metrics["elbo"], runs["trace"].metrics["elbo"], rtol=1e-5)


def test_one_seed_one_fit_and_it_comes_back(name, tmp_path):
    _, data = MODELS[name]
    runs = []
    for i in range(2):
        torch.manual_seed(0)
        runs.append(fit(MODELS[name][0](), data, steps=3, seed=5, out=tmp_path / str(i)))
    loaded = Run.load(tmp_path / "0")
    state = runs[0].program.state_dict()
    for other in (runs[1], loaded):
        assert other.program.state_dict().keys() == state.keys()
        assert all(torch.equal(v, state[k]) for k, v in other.program.state_dict().items())
    observed = runs[0].structure.names("observed")
    given = {k: v for k, v in data.items() if k not in observed}
    a, b = (sample(r, n_rows(data), given=given, seed=0) for r in (runs[0], loaded))
    assert a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


def test_float64(name):
    factory, data = MODELS[name]
    data = {k: v.double() if v.is_floating_point() else v for k, v in data.items()}
    run = fit(factory(), data, steps=2, precision="64-true")
    assert all(p.dtype == torch.float64 for p in run.program.parameters())
    assert loglik(run, data, particles=3).best.values.dtype == np.float64
    assert torch.get_default_dtype() == torch.float32


def test_bounds_on_its_log_likelihood(name):
    """They are made of weights whose mean is Pyro's own ELBO; without latents it is Pyro's log p(x) itself."""
    program, data = ready(name)
    found = loglik(program, data, particles=120, keep_weights=True)
    n, width = n_rows(data), sum(v[0].numel() for v in data.values())
    times = max(1, 120 // width) if found.per == "row" else 1  # copies of the rows: so many draws at once
    pyros = pyro_elbos(program, take(data, torch.arange(n).repeat(times)) if times > 1 else data, 20) / times
    first = found.bounds[0].values.sum()
    if not check(program, data).latents:
        assert [b.kind for b in found.bounds] == ["exact"]
        assert first == pytest.approx(pyros, rel=1e-5)
        return
    elbo, iw = found.bounds
    assert np.allclose(elbo.values, found.log_w.mean(0), rtol=1e-5)
    assert np.allclose(iw.values, special.logsumexp(found.log_w, 0) - math.log(120), rtol=1e-5)
    error = math.hypot(math.sqrt((elbo.se**2).sum()), pyros.std(ddof=1) / 20**0.5)
    error += 2e-7 * abs(first)  # a guide of one value leaves only rounding
    assert abs(first - pyros.mean()) < 5 * error
    few = special.logsumexp(found.log_w[100:], 0) - math.log(20)  # of some of the draws: a tighter bound for all that
    assert few.sum() > first - 5 * error


def test_its_bits_per_dim_are_of_the_values_in_a_row(name):
    """Only where every observed site is discrete; as many dims as its columns have numbers a row."""
    program, data = ready(name)
    observed = check(program, data).names("observed")
    sites = sample_sites(poutine.trace(lambda: program.call("model", data)).get_trace())
    found = loglik(program, data, particles=2)
    if not all(sites[column]["fn"].support.is_discrete for column in observed):
        assert found.dims is None and found.bits_per_dim(found.best) is None
        return
    values = sum(data[column].numel() for column in observed)
    bits = -found.best.values.sum() / math.log(2) / values
    assert found.bits_per_dim(found.best) == pytest.approx(bits, rel=1e-6)


@pytest.mark.filterwarnings("error")
def test_its_posterior_is_a_tree_of_arvizs_schema(name):
    program, data = ready(name)
    latents = check(program, data).latents
    if not latents:
        with pytest.raises(PpgenError, match="no latent to infer"):
            posterior(program, data)
        return
    tree = posterior(program, data, draws=7)
    drawn = {"posterior", "posterior_predictive", "prior", "prior_predictive", "log_likelihood", "log_prior"}
    assert set(tree.children) - {"constant_data"} == drawn | {"sample_stats", "observed_data"}
    assert set(tree["log_prior"].data_vars) == set(latents)
    for key, group in tree.children.items():
        assert set(group.dims) == set(group.coords), "every dimension has a coordinate"
        missing = {k: v.isnan().numpy() for k, v in data.items() if key == "observed_data"}
        assert all((np.isfinite(v.values) | missing.get(k, False)).all() for k, v in group.data_vars.items())
    assert set(tree["posterior"].data_vars) >= set(latents)
    assert all(dict(v.sizes).items() >= {"chain": 1, "draw": 7}.items() for v in tree["posterior"].data_vars.values())


def test_its_reconstructions_have_the_shape_of_the_data(name):
    program, data = ready(name)
    found = reconstruct(program, data, seed=0)
    assert list(found) == list(check(program, data).names("observed"))
    for column, x in found.items():
        assert x.shape == data[column].shape and torch.isfinite(x).all()
        assert torch.equal(x, reconstruct(program, data, seed=0)[column])


@settings(max_examples=5, deadline=None)
@given(n=st.integers(1, 7), seed=st.integers(0, 1000))
@pytest.mark.parametrize("model", EACH)
def test_any_number_of_rows(model, n, seed):
    """One step on n rows, one included."""
    factory, data = MODELS[model]
    index = torch.randint(n_rows(data), (n,), generator=torch.Generator().manual_seed(seed))
    run = fit(factory(), take(data, index), steps=1, seed=seed)
    assert math.isfinite(run.metrics["elbo"][-1])


# -- one conjugate target --------------------------------------------------------------------------

X = normal(20) + 1.0
EXACT = NormalMean().posterior(X)
EVIDENCE = NormalMean().log_evidence(X)


def of_fit(folder):
    run = fit(NormalMean(), {"x": X}, steps=500, lr=0.05, schedule="cosine", particles=8)
    assert abs(run.metrics["elbo"][-1] - EVIDENCE) < 0.1
    m = posterior(run, {"x": X}, draws=2000)["posterior"]["m"].values
    assert abs(m.mean() - float(EXACT.loc)) < 0.1 * float(EXACT.scale) and abs(m.std() / float(EXACT.scale) - 1) < 0.1


def of_train(folder):
    options = {"lr": 0.05, "schedule": "cosine", "particles": 8, "seed": 1}
    whole = fit(NormalMean(), {"x": X}, steps=200, **options)
    fit(NormalMean(), {"x": X}, steps=200, checkpoint_every=80, out=folder / "run", **options)
    again = resume(folder / "run", {"x": X})
    assert np.array_equal(whole.metrics["elbo"], again.metrics["elbo"])
    assert abs(again.metrics["elbo"][-1] - EVIDENCE) < 0.2


def of_compare(folder):
    a, b = (
        loo(posterior(GuidedNormalMean(sd=s), {"x": X}, draws=2000, predictive=False, prior=False)) for s in (1.5, 5.0)
    )
    found = compare({"right": a, "wide": b})
    assert list(found.scores) == ["right", "wide"] and found.differences["wide"][0] < -5


def of_calibrate(folder):
    assert calibrate(GuidedNormalMean(), {"x": X}, simulations=100, refit=False).passes
    assert not calibrate(GuidedNormalMean(width=0.5), {"x": X}, simulations=100, refit=False).passes


def of_refit(folder):
    program = NormalMean().setup({"x": X}, "AutoNormal")
    structure = check(program, {"x": X})
    (values,) = refit(program, structure, {"x": X}, {"x": X[None]}, steps=400, lr=0.1, particles=8)
    assert abs(float(values["autoguide.locs.m_unconstrained"]) - float(EXACT.loc)) < 0.15 * float(EXACT.scale)


def of_guide_init(folder):
    program = NormalMean().double().setup({"x": X.double()}, "AutoNormal")
    assert start_at(program, {"x": X.double()}, starts=2, seed=0)
    loc, scale = (float(v.detach()) for v in program.autoguide._get_loc_and_scale("m"))
    assert loc == pytest.approx(float(EXACT.loc), abs=1e-3)
    assert scale == pytest.approx(float(EXACT.scale), rel=1e-3)


def of_ecdf_bands(folder):
    u = np.random.default_rng(0).random(200)
    assert p_value(u) > 0.01 and p_value(u**2) < 0.01


def of_report(folder):
    run = fit(GuidedNormalMean(), {"x": X}, steps=0)
    assert "The guide is the posterior" in report(run, {"x": X}, folder / "report.html").read_text()


def of_model_graph(folder):
    program = NormalMean()
    assert _edges_of(program, {"x": X}, fit(program, {"x": X}, steps=0).structure) == [("m", "x")]


def of_report_checks(folder):
    run = fit(GuidedNormalMean(), {"x": X}, steps=0)
    assert verdict(report_checks(run, diagnose(run, {"x": X}, draws=500))) == "look"  # calibration was not checked
    calibrated = calibrate(run, {"x": X}, simulations=100, refit=False).findings
    assert verdict(report_checks(run, diagnose(run, {"x": X}, draws=500), calibration=calibrated)) == "fine"


def of_predictive_statistics(folder):
    """Of data of the model, beside draws of the exact predictive, each statistic is one among equals."""
    x, rng = X.numpy(), np.random.default_rng(0)
    m = rng.normal(float(EXACT.loc), float(EXACT.scale), (2000, 1))
    drawn = m + rng.normal(size=(2000, len(x)))
    found = statistics(x, drawn, True, {})
    assert found["mean"][0] == pytest.approx(x.mean()) and found["sd"][1] == pytest.approx(drawn.std(1))
    assert all(0.01 < (ours >= theirs).mean() < 0.99 for ours, theirs in found.values())


def of_psis(folder):
    tree = posterior(GuidedNormalMean(width=1.5), {"x": X}, draws=3000, corrected=True)
    draws_agree(tree["posterior"]["m"].values[0], EXACT.loc, EXACT.variance)


def of_converge(folder):
    run = fit(NormalMean(), {"x": X}, until="converged", lr=0.1, particles=8, steps=6000, engine="trace")
    m = posterior(run, {"x": X}, draws=4000)["posterior"]["m"].values
    assert abs(m.mean() - float(EXACT.loc)) < 0.2 * float(EXACT.scale)


def of_objective(folder):
    program = GuidedNormalMean(width=1.2)
    objective = Objective(program, check(program, {"x": X}), len(X), objective="iwae", particles=2000)
    with torch.no_grad():
        assert float(objective({"x": X})[1]) == pytest.approx(EVIDENCE, abs=0.02)


def of_bounds(folder):
    """log w of an exact guide: the evidence, each."""
    program = GuidedNormalMean()
    log_w = weights(program, {"x": X}, check(program, {"x": X}), 20)
    assert torch.allclose(log_w, torch.full((20,), EVIDENCE).to(log_w), atol=1e-3)


def of_estimates(folder):
    """A figure for the data set: its mean is itself, and its spread over rows is not known."""
    bound = loglik(GuidedNormalMean(), {"x": X}, particles=50).best
    assert bound.mean == pytest.approx(EVIDENCE, abs=1e-3) and math.isnan(bound.rows_se)


def of_figures(folder):
    """What pictures are made of is matplotlib's: a figure with axes."""
    figure, (axis,) = figure_of(2.0, 1.0)
    axis.plot([0, 1])
    assert save(figure, folder / "f.png").read_bytes().startswith(b"\x89PNG")


def of_sample_plots(folder):
    """The observed values are those of the data, under the site's name."""
    run = fit(NormalMean(), {"x": X}, steps=0)
    seen, _ = observed_values(run, {"x": X})
    assert torch.equal(seen["x"], X)


def of_interpolation(folder):
    """A number is no image; the points of a line are even steps from one row to the other."""
    assert interpolation_figure(fit(NormalMean(), {"x": X}, steps=0), {"x": X}) is None
    assert torch.allclose(_between(torch.tensor([[1.0], [9.0]]), 1)[:, 0], torch.arange(1.0, 10.0))


def of_loglik(folder):
    iw = loglik(GuidedNormalMean(width=1.2), {"x": X}, particles=5000).best
    assert abs(iw.mean - EVIDENCE) < 4 * iw.mean_se


def of_posterior(folder):
    tree = posterior(GuidedNormalMean(), {"x": X}, draws=3000)
    draws_agree(tree["posterior"]["m"].values[0], EXACT.loc, EXACT.variance)


def of_predict(folder):
    run = fit(GuidedNormalMean(), {"x": X}, steps=0)
    new = predict(run, {}, draws=2000)["predictions"]["x"].values[0, :, 0]
    draws_agree(new, EXACT.loc, float(EXACT.variance) + 1.5**2)


def of_infer(folder):
    tree = infer(NormalMean(), {"x": X}, seed=0)
    assert tree.attrs["verdict"] == "fine"
    draws_agree(tree["posterior"]["m"].values.ravel()[::4], EXACT.loc, EXACT.variance)


def of_prepared(folder):
    """Within it a program computes in float64, and afterwards as before; draws from the prior are the prior's."""
    program = NormalMean()
    with prepared(program, {"x": X}, 0) as made:
        joint = log_joint(made.program, made.data)
        draw = prior_of(joint, made.structure(joint).sites)
        assert made.data["x"].dtype == torch.get_default_dtype() == torch.float64
        draws_agree(draw(2000)[:, 0], 0.0, 4.0)
    assert torch.get_default_dtype() == torch.float32


def of_weighted(folder):
    """Draws of a mixture that is the posterior count in full; of one 1.5 times as wide they are weighed right."""
    joint = log_joint(NormalMean().double(), {"x": X.double()})
    generator = torch.Generator().manual_seed(0)
    for width, least in ((1.0, 0.8), (1.5, 0.5)):
        parts = [(EXACT.loc.double().reshape(1), (width * EXACT.scale).double().reshape(1, 1))]
        q = mixture_of(parts, joint.value_and_grad, generator)
        u = q.draw(4000, generator)
        log_w = (joint(u) - q.log_prob(u)).double()
        w = torch.softmax(log_w, 0)
        assert float(1 / (w**2).sum()) > least * len(w)
        assert float((w[:, None] * u).sum()) == pytest.approx(float(EXACT.loc), abs=0.05 * float(EXACT.scale))


def of_pyro_objective(folder):
    """At the exact posterior Trace_ELBO is log p(x), whatever is drawn."""
    program = GuidedNormalMean().setup({"x": X})
    loss, bound = PyroObjective(program, inspect(program, {"x": X}), len(X), Trace_ELBO())({"x": X})
    assert float(bound) == pytest.approx(EVIDENCE, abs=1e-3)
    assert float(loss.detach()) == pytest.approx(-EVIDENCE / len(X), abs=1e-4)


def of_chain_terms(folder):
    known = KnownChain()
    drawn = subsampled(known, {"x": known.data.sample((20_000,))}).elbo.detach()
    assert abs(float(drawn.mean()) - known.expected_elbo()) < 4 * float(drawn.std()) / 20_000**0.5


def of_ode(folder):
    known = KnownChain(low=-12.0, high=14.0)
    x = known.data.sample((20,))
    assert ode_loglik(known, {"x": x}).values == pytest.approx(known.data.log_prob(x).numpy(), abs=0.01)


def of_elbo_decomposition(folder):
    known = KnownChain(steps=30)
    found = elbo_decomposition(known, {"x": known.data.sample((3000,))}, intervals=30)
    assert abs(found.elbo - known.expected_elbo()) < 4 * found.elbo_se


def of_path_weights(folder):
    known = KnownChain(low=-4.0)
    x = known.data.sample((20,))
    log_w = chain_weights(known, {"x": x}, particles=1000, steps=150)
    # z_0 and x given z_0 have a noise of e^-4 each
    cov = known.data.covariance_matrix + 2 * math.exp(-4) * torch.eye(2).double()
    exact = torch.distributions.MultivariateNormal(known.mean, cov).log_prob(x)
    assert torch.allclose(log_w.logsumexp(0) - math.log(1000), exact, atol=0.12)


def of_chain_plots(folder):
    run = fit(MODELS["diffusion u-net"][0](), MODELS["diffusion u-net"][1], steps=2, out=folder / "run", log_every=1)
    names = {p.stem for p in plot(run, MODELS["diffusion u-net"][1])}
    assert names == {"elbo", "samples", "chain", "ledger"}


def of_impute(folder):
    known = KnownChain()
    x = torch.tensor([[0.0, math.nan]]).double().repeat(1000, 1)
    c = known.data.covariance_matrix
    mean = known.mean[1] - c[1, 0] / c[0, 0] * known.mean[0]
    drawn = impute(known, x, particles=50, steps=80, seed=0)[0, :, 1]
    draws_agree(drawn, mean, c[1, 1] - c[1, 0] ** 2 / c[0, 0])


def of_samplers(folder):
    known = KnownChain()
    draws_agree(sample_diffusion(known, 4000, "dpmpp", 60, seed=0), known.mean, known.data.variance)


@torch.no_grad()
def of_variance_error(folder):
    """Of one step of `ancestral`, whose mean and variance are those of its conditional."""
    known = KnownChain(mean=(0.0, 0.0), factor=((1.0, 0.0), (0.0, 1.0)))
    p = known.reverse(torch.tensor([[0.0, 0.0], [1.0, 1.0]]).double(), 0.0, 1.0).base_dist
    _, alpha, sigma = known.coefficients(0.0)
    variance = float((p.loc[1, 0] ** 2 * known.base().base_dist.variance[0] + p.variance[0, 0]) / (alpha**2 + sigma**2))
    assert variance_error(known, SAMPLERS["ancestral"], 1) == pytest.approx(variance - 1)


def of_guidance(folder):
    """x ~ N(0, 1) in the first coordinate, y = 1 with a noise of 1: N(1/2, 1/2)."""
    known = KnownChain(mean=(0.0, 0.0), factor=((1.0, 0.0), (0.0, 1.0)))
    weight = linear_weight(known, torch.tensor([[1.0, 0.0]]), torch.ones(1), 1.0)
    draws_agree(sample_diffusion(Guided(known, weight), 2000, "dpmpp", 60, seed=0)[:, 0], 0.5, 0.5)


def of_distil(folder):
    """x ~ N(0, 1) on a variance-preserving chain: its ODE stands still."""
    known = KnownChain(mean=(0.0,), factor=((1.0,),), low=-8.0, high=4.0)
    made = distil(known, {"x": X[:, None].double()}, steps=1)
    z = torch.ones(1, 1).double()
    ways = (("ode", known), ("ddim", known), ("consistency", made))
    ode, ddim, made_of_it = (float(SAMPLERS[name](program, 1, z).detach()) for name, program in ways)
    assert abs(ode - 1) < 1e-3 and abs(made_of_it - ddim) < 0.01 and made.samplers == ("consistency",)


def of_sample(folder):
    found = sample(GuidedNormalMean(), 2000, seed=0)
    draws_agree(found["m"], 0.0, 4.0)
    draws_agree(found["x"][:, 0] - found["m"], 0.0, 1.5**2)


def of_diagnose(folder):
    run = fit(GuidedNormalMean(), {"x": X}, steps=0)
    assert "The guide is the posterior" in str(diagnose(run, {"x": X}, draws=50, particles=200).findings[0])


def of_plot(folder):
    run = fit(NormalMean(), {"x": X}, steps=30, out=folder / "run")
    written = plot(run, {"x": X})
    assert written and all(p.read_bytes().startswith(b"\x89PNG") for p in written)


def of_optimise(folder):
    for optimizer in ("SGD(momentum=0.9)", "Adam", "AdamW(weight_decay=0.0)", "RMSprop"):
        run = fit(
            NormalMean(), {"x": X}, steps=300, lr=0.05, schedule="cosine", particles=8, optimizer=optimizer, clip=1.0
        )
        assert abs(run.metrics["elbo"][-1] - EVIDENCE) < 0.2, optimizer


def of_defaults(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(defaults, "STEPS", 400)
        run = fit(NormalMean(), {"x": X}, particles=4, engine="trace")
    m = posterior(run, {"x": X}, draws=2000)["posterior"]["m"].values
    assert abs(m.mean() - float(EXACT.loc)) < 0.15 * float(EXACT.scale) and abs(m.std() / float(EXACT.scale) - 1) < 0.1


def of_cost(folder):
    """Steps of more rows are counted to cost more, in proportion where products are what they cost."""
    program = GuidedNormalMean()
    few, many = ({"x": X[:1].expand(n).clone()} for n in (10, 300_010))
    bound = Objective(program, fit(program, few, steps=0).structure, 10)
    one, other = (step_seconds(bound, rows) for rows in (few, many))
    assert 1e-5 < one < 0.01 and 5e-4 < other - one < 1.0


def of_trend(folder):
    """A fit that has just begun is rising, and one that has ended is not."""
    how = {"lr": 0.05, "particles": 32, "engine": "trace"}
    runs = [fit(GuidedNormalMean(width=0.03), {"x": X}, steps=n, log_every=n // 30, **how) for n in (60, 360)]
    assert [rise(run).rising for run in runs] == [True, False]


def of_state(folder):
    """What a checkpoint keeps is enough: 20 steps and 20 more are 40, to the bit."""
    whole = fit(NormalMean(), {"x": X}, steps=40, out=folder / "whole")
    fit(NormalMean(), {"x": X}, steps=20, out=folder / "half")
    again = resume(folder / "half", {"x": X}, steps=40)
    pairs = zip(whole.program.parameters(), again.program.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs) and again.metrics["elbo"][-1] == whole.metrics["elbo"][-1]


def of_eager(folder):
    """A step of SGD is the gradient of the closed-form ELBO: −KL(N(μ, s²), posterior) + log p(x)."""
    first_step("eager", 1)


def of_graph_runs(folder):
    """And so it is by the graph."""
    first_step("trace", 2)


def of_gradient_noise(folder):
    """At the posterior nothing is left of a gradient along the path, and all of one by the score function."""
    run = fit(GuidedNormalMean(), {"x": X}, steps=0)
    (path, score), _ = gradient_noise(run, {"x": X}, choices=["sampled sticking", "sampled score"], repeats=10)
    assert path.noise < 1e-5 < score.noise


def of_step(folder):
    """And so it is by the engine that is chosen."""
    first_step("auto", 1)


def first_step(engine, steps):
    """A graph runs from the second on; what the first moves of the width is little beside what is asked for."""
    program = GuidedNormalMean(width=1.5)
    before = float(program.log_width.detach())
    fit(program, {"x": X}, steps=steps, lr=0.1 / steps, optimizer="SGD", particles=50_000, engine=engine)
    slope = (1 - 1.5**2) / len(X)  # of the loss −ELBO / N in log(width), up to its sign
    assert float(program.log_width.detach()) - before == pytest.approx(0.1 * slope, rel=0.05)


def sampled(**options):
    tree = mcmc(NormalMean(), {"x": X}, predictive=False, prior=False, **options)
    m = tree["posterior"]["m"].values
    assert abs(m.mean() - float(EXACT.loc)) < 0.1 * float(EXACT.scale) and abs(m.std() / float(EXACT.scale) - 1) < 0.1


def of_mcmc(folder):
    sampled(chains=32, draws=100, warmup=60)


def of_chees(folder):
    sampled(chains=16, draws=200, warmup=60, metric="diag")


def of_through(folder):
    """Chains in the coordinates of a guide that is narrow and elsewhere."""
    run = fit(NormalMean(), {"x": X}, guide="AutoNormal", steps=0)
    tree = mcmc(run, {"x": X}, through=True, chains=32, draws=100, warmup=60, predictive=False, prior=False)
    m = tree["posterior"]["m"].values
    assert abs(m.mean() - float(EXACT.loc)) < 0.1 * float(EXACT.scale) and abs(m.std() / float(EXACT.scale) - 1) < 0.1


def of_negligible(folder):
    """Chains around the posterior's middle stay; those of a density that has next to nothing there leave."""
    z = torch.randn(40, 8, 1, generator=torch.Generator().manual_seed(0)).double()
    u = z * EXACT.scale + EXACT.loc + 15 * EXACT.scale * (torch.arange(8) > 5)[:, None]

    def target(u):
        off = torch.cat([u - EXACT.loc, u - EXACT.loc - 15 * EXACT.scale], -1) / EXACT.scale
        each = -0.5 * off**2 + torch.tensor([0.0, -20.0])
        return torch.logsumexp(each, -1), -(each.softmax(-1) * off).sum(-1, keepdim=True) / EXACT.scale

    begun = negligible_modes(target, u, target(u.flatten(0, 1))[0].reshape(40, 8), torch.Generator().manual_seed(0))
    assert begun.chains.tolist() == [6, 7] and math.exp(-20) < begun.share < 10 * math.exp(-20)


def of_smc(folder):
    """The posterior and the evidence of a conjugate model."""
    tree = mcmc(NormalMean(), {"x": X}, "smc", chains=16, draws=150, predictive=False, prior=False)
    m = tree["posterior"]["m"].values
    assert abs(m.mean() - float(EXACT.loc)) < 0.1 * float(EXACT.scale) and abs(m.std() / float(EXACT.scale) - 1) < 0.1
    assert abs(tree.attrs["log_evidence"] - EVIDENCE) < 4 * tree.attrs["log_evidence_se"] < 0.2


def of_hamiltonian(folder):
    """A leapfrog step errs by the cube of its length, and as many of the proposals are accepted as e^-ΔH says."""
    joint = log_joint(NormalMean(), {"x": X})
    scale = EXACT.scale.reshape(1)
    frame = Preconditioner(EXACT.loc.reshape(1), scale)
    start = frame.chains(joint, EXACT.sample((4000,))[:, None])
    new, _, outcome, _ = transition(joint, start, frame, 0.5, 3, torch.Generator().manual_seed(9))
    draws_agree(frame.out(new.y)[:, 0], EXACT.loc, EXACT.variance)
    assert 0.95 < float(outcome.acceptance.mean()) < 1.0 and not outcome.diverging.any()


def of_bridge(folder):
    q = torch.distributions.Normal(EXACT.loc + EXACT.scale, 2 * EXACT.scale)
    at_q, at_p = (EVIDENCE + EXACT.log_prob(u) - q.log_prob(u) for u in (q.sample((4000,)), EXACT.sample((4000,))))
    log_z, se = bridge_sampling(at_q, at_p)
    assert abs(log_z - EVIDENCE) < 4 * se < 0.1


def of_evidence(folder):
    """Both bounds hold, and both estimates are the evidence."""
    for b in evidence(NormalMean(), {"x": X}).bounds:
        off = float(b.values[0]) - EVIDENCE
        slack = 4 * float(b.se[0]) + 1e-3
        assert {"lower": off < slack, "upper": off > -slack}.get(b.kind, abs(off) < slack < 0.1), b.name


def of_nuts(folder):
    pytest.importorskip("nutpie")
    sampled(kernel="nuts", chains=4, draws=1500, warmup=100)


def of_pathfinder(folder):
    joint = log_joint(NormalMean(), {"x": X})
    paths = pathfinder(joint.value_and_grad, normal(32, 1))
    assert (
        abs(float(paths.mean) - float(EXACT.loc)) < 0.02
        and abs(float(paths.covariance) / float(EXACT.variance) - 1) < 0.05
    )
    assert float(paths.elbo.median()) == pytest.approx(EVIDENCE, abs=0.1)


def of_mcmc_diagnostics(folder):
    """Nothing is wrong with independent draws of the posterior; a chain that is elsewhere is."""
    joint = log_joint(NormalMean(), {"x": X})
    m = EXACT.sample((1000, 8))[..., None]
    stats_ = {"lp": joint(m), "energy": torch.rand(1000, 8), "diverging": torch.zeros(1000, 8, dtype=torch.bool)}
    found = Draws(m, stats_, 0, torch.zeros(1), "diag")
    assert {f.verdict for f in findings(found, joint)} == {"fine"}
    apart = m.clone()
    apart[:, 3] += 20 * EXACT.scale
    said = worst_first(findings(found._replace(u=apart, stats=stats_ | {"lp": joint(apart)}), joint))
    assert "chain 3 stands apart" in str(said[0]) and "R-hat of m" in str(said[1])


def of_mode_search(folder):
    """Of draws of the posterior nothing is missing; of draws that are 10 sd away all of it is."""
    joint = log_joint(NormalMean(), {"x": X})
    m = EXACT.sample((4000, 1))

    def of_prior(n):
        return 2 * normal(n, 1)

    assert unseen_modes(joint.value_and_grad, m, 4000.0, prior=of_prior, name=joint.place).verdict == "fine"
    away = unseen_modes(joint.value_and_grad, m + 10 * EXACT.scale, 4000.0, prior=of_prior)
    assert away.verdict == "wrong" and away.figure > 0.99


def of_moved(folder):
    """Draws of the posterior stay under moves, and draws of half its width do not."""
    joint = log_joint(NormalMean(), {"x": X})
    m, w = EXACT.sample((4000, 1)), torch.full((4000,), 1 / 4000)
    assert moved(joint.value_and_grad, m, w, joint.labels).verdict == "fine"
    narrow = EXACT.loc + 0.5 * (m - EXACT.loc)
    assert moved(joint.value_and_grad, narrow, w, joint.labels).verdict == "wrong"


def of_findings(folder):
    """Written with the posterior, and read again: the same records."""
    found = diagnose(fit(GuidedNormalMean(width=2.5), {"x": X}, steps=0), {"x": X})
    assert load_findings(found.tree) == found.findings and verdict(found.findings) == "wrong"


def of_finding_words(folder):
    found = diagnose(fit(GuidedNormalMean(), {"x": X}, steps=0), {"x": X}, draws=50).findings
    assert all(f.sentence and not f.remedy for f in found)


def of_guide_checks(folder):
    """ESS of weights p / q, q twice as wide: K √(2 · 2² − 1) / 2²."""
    _, ess = weight_checks(loglik(GuidedNormalMean(width=2.0), {"x": X}, particles=20_000), np.zeros(1))
    assert ess.figure == pytest.approx(20_000 * 7**0.5 / 4, rel=0.02) and ess.verdict == "fine"


def of_moments(folder):
    tree = posterior(GuidedNormalMean(width=1.5), {"x": X}, draws=10_000, predictive=False, prior=False)
    table, (off, ratio) = compare_moments(tree, np.zeros(1))
    assert ratio.figure == pytest.approx(1.5, abs=4 * ratio.details["se"] * 1.5) and off.figure < 0.05
    assert table.loc["m", "corrected_sd"] == pytest.approx(float(EXACT.scale), rel=0.03)


def of_tree_plots(folder):
    tree = posterior(GuidedNormalMean(), {"x": X}, draws=500, prior=False)
    files = plot_tree(tree, folder)
    assert [f.name for f in files] == ["latents.png", "predictive.png"]
    median = float(_latents_figure(tree).axes[0].collections[-1].get_offsets()[0, 0])
    assert abs(median - float(tree["posterior"]["m"].median())) < 1e-6


def of_mcmc_init(folder):
    joint = log_joint(NormalMean(), {"x": X})
    u = starts(joint, 16, 1, lambda n: normal(n, 1) * 2, torch.Generator().manual_seed(0))
    assert (joint(u) > joint(normal(16, 1) * 2).mean()).all()
    assert runaway(joint, EXACT.loc[None], EXACT.scale[None], torch.ones(1, 1)) is None


def of_compiled_sampler(folder):
    """The prior predictive of a model without latents, drawn from its traced graph."""
    draw = compiled_sampler(Gaussian(0.5, 2.0), 4000, engine="trace")
    draws_agree(draw(seed=0)["x"], 0.5, 4.0)


def of_corner(folder):
    """Draws of the guide beside draws of the posterior: regions of the same place and size."""
    tree = posterior(GuidedNormalMean(), {"x": X}, draws=2000, predictive=False, prior=False)
    ours = np.stack((tree["posterior"]["m"].values[0], np.random.default_rng(0).normal(size=2000)), 1)
    exact = EXACT.sample((2000,)).numpy()
    figure = corner_figure(np.stack((exact, ours[:, 1]), 1), ours, ["m", "noise"])
    assert len([axis for axis in figure.axes if axis.axison]) == 3


CONJUGATE = {name.removeprefix("of_"): test for name, test in list(globals().items()) if name.startswith("of_")}


@pytest.mark.parametrize("algorithm", list(CONJUGATE))
def test_on_a_conjugate_target(algorithm, tmp_path):
    pyro.set_rng_seed(0)
    CONJUGATE[algorithm](tmp_path)


# -- no file without a row -------------------------------------------------------------------------


def members(folder: str) -> set[str]:
    """The files of a catalogue, its rooms included; test_objectives.py and test_gradients.py have their own tables."""
    files = (ROOT / folder).rglob("*.py")
    return {p.stem for p in files if not p.stem.startswith("_") and p.parent.name not in ("objectives", "gradients")}


def test_every_model_has_a_row():
    missing = members("models") - {name.split()[0] for name in MODELS}
    assert not missing, f"add rows for {sorted(missing)} to MODELS in tests/known.py"


def test_every_algorithm_has_a_row():
    missing = members("inference") - set(CONJUGATE)
    assert not missing, f"write of_{min(missing)}(folder) in tests/test_models.py: it on the conjugate target"
