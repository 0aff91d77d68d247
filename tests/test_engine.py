"""The engines against Pyro's own ELBOs, against closed forms, and against each other."""

from __future__ import annotations

import logging
import logging.handlers
import math
import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import LOGISTIC, PROGRAMS, SCHOOLS, Case, Y
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate
from pyro.poutine.messenger import Messenger
from torch.fx.experimental.proxy_tensor import make_fx

from ppgen.data import n_rows
from ppgen.engine import compiled, describe, log_joint, trace, traced
from ppgen.engine.compiling import background, native, small
from ppgen.engine.compiling import compile as compilation
from ppgen.engine.compiling.compile import code_key
from ppgen.engine.compiling.fused import FusedStep
from ppgen.engine.compiling.optimisers import bias_corrections, functional
from ppgen.engine.compiling.small import _decompositions
from ppgen.engine.graphs.gradient import Gradient, shapes
from ppgen.engine.graphs.noise import Noise, _Draw
from ppgen.engine.graphs.trace import Traced, Untraceable
from ppgen.errors import PpgenError
from ppgen.inference import Objective, fit
from ppgen.inference.training import graph_runs
from ppgen.inference.training import step as step_module
from ppgen.inference.training.eager import Row, flushed
from ppgen.inference.training.optimise import make_fabric, make_optimizer
from ppgen.inference.training.step import Step
from ppgen.models import VAE, Diffusion
from ppgen.program import Program
from ppgen.run import Run
from ppgen.structure import inspect

SMALL = ("normal_normal", "vae_dropout", "exact_mixture")  # compiled in the ordinary suite


@pytest.fixture(autouse=True)
def no_validation():
    with pyro.validation_enabled(False):
        yield


def objective(case: Case) -> Objective:
    program = case.program()
    structure = inspect(program, case.data)
    if case.objective == "enumerate":
        discrete = tuple(s.name for s in structure.sites if s.discrete and s.role == "latent")
        structure = inspect(program, case.data, enumerated=discrete)
    n = case.rows or n_rows(case.data)
    return Objective(program, structure, n, objective=case.objective, particles=case.particles)


def seeded(seed: int, fn, *args):
    torch.manual_seed(seed)
    return fn(*args)


# -- the table -------------------------------------------------------------------------------------


class Minibatch(Messenger):
    """N/B as a scale of every site in a plate over the rows, for Pyro's own classes."""

    def __init__(self, scale: float, row_plates: frozenset[str]):
        super().__init__()
        self.factor, self.row_plates = scale, row_plates

    def _pyro_sample(self, msg):
        if any(f.name in self.row_plates and f.full_size in (None, f.size) for f in msg["cond_indep_stack"]):
            msg["scale"] = msg["scale"] * self.factor


def pyros_own(case: Case, o: Objective) -> torch.Tensor:
    """The loss by the ELBO class of Pyro's that stands for the objective, in nats a row."""
    weight = o.rows / n_rows(case.data)
    options = {
        "num_particles": o.particles,
        "vectorize_particles": o.particles > 1,
        "max_plate_nesting": o.structure.nesting,
    }
    elbo = {
        "sampled": Trace_ELBO,
        "analytic": TraceMeanField_ELBO,
        "enumerate": TraceEnum_ELBO,
    }[case.objective](**options)

    def part(name: str):
        def run():
            with Minibatch(weight, o.structure.row_plates):
                return o.program.call(name, case.data)

        return run

    model = config_enumerate(part("model")) if case.objective == "enumerate" else part("model")
    return elbo.differentiable_loss(model, part("guide")) / o.rows


@pytest.mark.parametrize("name", PROGRAMS)
def test_loss_and_gradients_are_those_of_pyro(name: str):
    """From one seed: to rounding against Pyro's ELBO classes, to the bit against the eager program."""
    case = PROGRAMS[name]
    o = objective(case)
    gradient = Gradient(o, case.data)
    ours = seeded(3, gradient, case.data)

    loss, elbo = seeded(3, o, case.data)
    eager = torch.autograd.grad(loss, gradient.trained)
    assert torch.equal(ours.loss, loss.detach()) and torch.equal(ours.elbo, elbo)
    assert all(map(torch.equal, ours.gradients, eager))

    if not case.pathwise:
        return  # held against exact gradients below
    reference = seeded(3, pyros_own, case, o)
    torch.testing.assert_close(ours.loss, reference.detach(), rtol=1e-5, atol=1e-5)
    theirs = torch.autograd.grad(reference, gradient.trained)
    size = max(float(g.abs().max()) for g in theirs)
    for mine, g in zip(ours.gradients, theirs, strict=True):
        torch.testing.assert_close(mine, g, rtol=1e-3, atol=2e-5 * size)


def _compiled_against_eager(name: str) -> None:
    case, steps = PROGRAMS[name], 5
    o = objective(case)
    optimizer = torch.optim.SGD(o.parameters(), lr=1e-3)
    torch.manual_seed(3)
    eager = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss, elbo = o(case.data)
        loss.backward()
        eager.append(
            [float(elbo), float(torch.nn.utils.get_total_norm([p.grad for p in o.parameters() if p.grad is not None]))]
        )
        optimizer.step()
    expected = {n: p.detach().clone() for n, p in o.named_parameters()}

    o = objective(case)
    fused = FusedStep(Gradient(o, case.data), torch.optim.SGD(o.parameters(), lr=1e-3)).build(case.data)
    results = seeded(3, fused, [case.data] * steps, [(1e-3, 1.0, 1.0)] * steps)
    np.testing.assert_allclose([r[:2] for r in results], eager, rtol=2e-4)
    for n, p in o.named_parameters():  # and with it every gradient: SGD adds them up
        torch.testing.assert_close(p.detach(), expected[n], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_compiled_steps_are_the_eager_ones(name: str):
    _compiled_against_eager(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in PROGRAMS if n not in SMALL])
def test_compiled_steps_are_the_eager_ones_for_every_program(name: str):
    if name == "spline_flow":  # masks of Pyro's spline: a fit runs its trace
        with pytest.raises(Exception, match="nonzero|Dynamic|data-dependent"):
            _compiled_against_eager(name)
    else:
        _compiled_against_eager(name)


# -- score functions and closed forms --------------------------------------------------------------


def _mean_gradient(name: str, particles: int = 4000, repeats: int = 12) -> tuple[np.ndarray, np.ndarray]:
    case = PROGRAMS[name]
    o = objective(case._replace(particles=particles))
    gradient = Gradient(o, case.data)
    draws = []
    for seed in range(repeats):
        (g,) = seeded(seed, gradient, case.data).gradients
        draws.append((g * o.rows).numpy())
    return np.mean(draws, 0), np.std(draws, 0, ddof=1) / math.sqrt(repeats)


def test_score_function_of_a_bernoulli_is_unbiased():
    o = objective(PROGRAMS["bernoulli_score"])
    x = PROGRAMS["bernoulli_score"].data["x"]
    (free,) = o.program.parameters()
    q = torch.distributions.transform_to(dist.constraints.unit_interval)(free)
    prior, loss = dist.Bernoulli(0.3), 0.0
    for z, p in ((0.0, 1 - q), (1.0, q)):
        joint = prior.log_prob(torch.tensor(z)) + dist.Normal(z, 3.0).log_prob(x).sum()
        loss = loss - p * (joint - p.log())
    (exact,) = torch.autograd.grad(loss, free)
    mean, error = _mean_gradient("bernoulli_score")
    assert abs(mean - exact.numpy()) <= 4 * error + 1e-6
    assert error < 0.02 * abs(exact.numpy()) + 0.01


def test_score_function_of_local_poissons_is_unbiased():
    o = objective(PROGRAMS["local_poisson_score"])
    x = PROGRAMS["local_poisson_score"].data["x"]
    (free,) = o.program.parameters()
    q = dist.Poisson(free.exp())
    k = torch.arange(60.0)[:, None]
    joint = dist.Poisson(2.0).log_prob(k) + dist.Normal(k, 2.0).log_prob(x)
    loss = -(q.log_prob(k).exp() * (joint - q.log_prob(k))).sum()
    (exact,) = torch.autograd.grad(loss, free)
    mean, error = _mean_gradient("local_poisson_score")
    assert (np.abs(mean - exact.numpy()) <= 4 * error).all()
    assert (error < 0.02 * np.abs(exact.numpy()) + 0.02).all()


def test_closed_forms():
    """Discrete latents summed out, a MAP loss, and the evidence of a Gaussian."""
    o = objective(PROGRAMS["exact_mixture"])
    x = PROGRAMS["exact_mixture"].data["x"]
    p, loc = torch.tensor([0.3, 0.7]), torch.tensor([-1.0, 0.5])
    exact = -(p.log() + dist.Normal(loc, 1.0).log_prob(x[:, None])).logsumexp(-1).mean()
    torch.testing.assert_close(Gradient(o, {"x": x})({"x": x}).loss, exact)

    o = objective(PROGRAMS["map_estimate"])
    z = next(o.parameters()).detach()
    exact = -(dist.Normal(0.0, 2.0).log_prob(z) + dist.Normal(z, 1.0).log_prob(Y).sum()) / len(Y)
    torch.testing.assert_close(Gradient(o, {"x": Y})({"x": Y}).loss, exact)

    # q = p(z | x): the loss is minus the log evidence, whatever is drawn, and the gradient of N(m, s) is 0 in the mean.
    case = PROGRAMS["normal_normal"]._replace(objective="sampled")
    o = objective(case)
    precision = torch.tensor(1 / 4 + len(Y))
    with torch.no_grad():
        guide = o.program.autoguide
        guide.locs.z_unconstrained.copy_(Y.sum() / precision) if hasattr(
            guide.locs, "z_unconstrained"
        ) else guide.locs.z.copy_(Y.sum() / precision)
        guide.scales.z_unconstrained.copy_((precision.rsqrt()).expm1().log())
    covariance = torch.eye(len(Y)) + 4.0
    evidence = dist.MultivariateNormal(torch.zeros(len(Y)), covariance).log_prob(Y)
    for seed in range(3):
        torch.testing.assert_close(seeded(seed, Gradient(o, {"x": Y}), {"x": Y}).elbo, evidence, rtol=1e-4, atol=1e-4)


# -- a fit under each engine -----------------------------------------------------------------------


def _fitted(name: str, engine: str, **options) -> tuple[Program, list[dict]]:
    case = PROGRAMS[name]
    program = case.program()
    run = fit(program, case.data, engine=engine, objective=case.objective, particles=case.particles, lr=1e-2, **options)
    return program, run.rows


OPTIONS = {"steps": 30, "ema": 0.9, "kl_warmup": 10, "clip": 0.5, "schedule": "cosine", "log_every": 7}


@pytest.mark.parametrize(
    "optimizer", ["Adam", "AdamW(weight_decay=0.1)", "SGD(momentum=0.9, nesterov=True)", "Adagrad"]
)
def test_trace_fits_to_the_bit_like_eager(optimizer: str):
    eager, rows = _fitted("vae_batch_norm", "eager", optimizer=optimizer, **OPTIONS)
    ours, own = _fitted("vae_batch_norm", "trace", optimizer=optimizer, **OPTIONS)
    assert rows == own
    assert all(map(torch.equal, eager.state_dict().values(), ours.state_dict().values()))


@pytest.mark.parametrize(
    "spec",
    [
        "Adam(weight_decay=0.1)",
        "AdamW(weight_decay=0.1)",
        "SGD(momentum=0.9, nesterov=True)",
        "SGD(momentum=0.5)",
        "RMSprop(momentum=0.5, weight_decay=0.1)",
    ],
)
def test_optimisers_as_functions_are_torchs(spec: str):
    """The arithmetic of a compiled step, without compiling it."""
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5]).double())
    theirs = make_optimizer(spec, [p], 0.1)
    update, names, _ = functional(theirs)
    q, state = p.detach().clone(), {n: torch.zeros_like(p) for n in names}
    for t in range(1, 12):
        g, lr = torch.sin(t * torch.tensor([1.0, 2.0, 3.0]).double()), torch.tensor(0.1 / t).double()
        theirs.param_groups[0]["lr"] = 0.1 / t
        p.grad = g.clone()
        theirs.step()
        options = theirs.param_groups[0]
        corrections = bias_corrections(torch.tensor(t).double(), options.get("betas", (0.9, 0.999)))
        q, state = update(q, g, state, corrections, lr, options)
        torch.testing.assert_close(q, p.detach())


@pytest.mark.parametrize("optimizer", ["Adam"])
def test_compile_fits_like_eager(optimizer: str):
    eager, rows = _fitted("vae", "eager", optimizer=optimizer, **OPTIONS)
    ours, own = _fitted("vae", "compile", optimizer=optimizer, **OPTIONS)
    for a, b in zip(rows, own, strict=True):
        assert a.keys() == b.keys()
        np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=1e-3)
    for a, b in zip(eager.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer",
    [
        "SGD(momentum=0.9, nesterov=True)",
        "AdamW(weight_decay=0.1)",
        "RMSprop(momentum=0.5)",
        "Adagrad",
        "Adam(amsgrad=True)",
    ],
)
def test_compile_fits_like_eager_with_every_optimizer(optimizer: str):
    test_compile_fits_like_eager(optimizer)


def test_the_optimizer_of_a_compiled_step_goes_on_elsewhere():
    """Its state is torch's own: saved, loaded and used by torch's step."""
    case = PROGRAMS["normal_normal"]
    straight = objective(case)
    optimizer = torch.optim.Adam(straight.parameters(), lr=1e-2)

    def eager(o: Objective, by: torch.optim.Optimizer, seed: int) -> None:
        by.zero_grad()
        seeded(seed, o, case.data)[0].backward()
        by.step()

    for seed in range(4):
        eager(straight, optimizer, seed)

    o = objective(case)
    before = torch.optim.Adam(o.parameters(), lr=1e-2)
    eager(o, before, 0)
    fused = FusedStep(Gradient(o, case.data), before).build(case.data)
    for seed in (1, 2):
        seeded(seed, fused, [case.data], [(1e-2, 1.0, 1.0)])
    after = torch.optim.Adam(o.parameters(), lr=1e-2)
    after.load_state_dict(before.state_dict())
    assert float(after.state[next(o.parameters())]["step"]) == 3
    eager(o, after, 3)
    for a, b in zip(o.parameters(), straight.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def _step(
    program: Program, data: dict, engine: str, precision: str = "32-true", objective: str = "sampled", **options
) -> Step:
    fabric = make_fabric("cpu", precision)
    program.setup(data)
    o = Objective(program, inspect(program, data), n_rows(data), objective=objective)
    optimizer = make_optimizer("Adam", list(o.parameters()), 1e-2)
    wrapped, optimizer = fabric.setup(o, optimizer)
    return Step(wrapped, optimizer, fabric, engine=engine, **options)


def _line(x):
    m = pyro.param("m", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(m, 1.0), obs=x)


@pytest.mark.parametrize("engine", ["eager", "trace", "compile"])
def test_bad_steps_change_nothing(engine: str):
    good, bad = {"x": Y}, {"x": Y.clone().index_fill_(0, torch.tensor([3]), math.nan)}
    step = _step(Program.from_pair(_line), good, engine)
    rows = [Row(1e-2, 1.0, k) for k in range(1, 4)]
    assert [r.finite for r in step([good, good], rows[:2])] == [True, True]
    (parameter,) = step.parameters
    before = parameter.detach().clone()
    assert [r.finite for r in step([bad, bad], rows[:2])] == [False, False]
    assert torch.equal(parameter, before)
    assert step([good], rows[2:])[0].finite and not torch.equal(parameter, before)
    assert float(step.optimizer.state[parameter]["step"]) == 3


def test_a_fused_step_counts_the_eager_steps_between(monkeypatch):
    """Batches of a shape that is not compiled are steps of Adam's as well: of its bias corrections too."""
    monkeypatch.setattr(graph_runs, "compiled", lambda graph, *_: lambda inputs: Traced(graph, ())(*inputs))
    whole, part = {"x": Y}, {"x": Y[:5]}
    batches = [whole, whole, part, part, whole, part, whole, whole]
    rows = [Row(1e-2, 1.0, k) for k in range(1, len(batches) + 1)]
    found = []
    for engine in ("eager", "compile"):
        step = _step(Program.from_pair(_line), whole, engine)
        step._runs[(shapes(part), True)] = step.eager_steps
        step(batches, rows)
        found.append(step.parameters[0].detach())
    assert step.running == "compile"
    torch.testing.assert_close(*found, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("engine", ["trace", pytest.param("compile", marks=pytest.mark.slow)])
def test_mixed_precision(engine: str):
    """bf16-mixed: matrix products and convolutions in bfloat16, by every engine; data stay as they are."""

    def program() -> Program:
        torch.manual_seed(0)
        how = {"likelihood": "discrete", "prediction": "levels", "steps": 0, "net": "unet", "hidden": (8, 8)}
        return Diffusion((1, 8, 8), **how)

    x = {"x": torch.randint(0, 256, (16, 64)) / 255}  # rounded to bfloat16 these are off the grid
    rows = [Row(1e-3, 1.0, k) for k in range(1, 4)]
    found = []
    for name in ("eager", engine):
        step = _step(program(), x, name, precision="bf16-mixed", objective="subsampled")
        with pyro.validation_enabled(True):
            results = seeded(1, step, [x] * 3, rows)
        assert step.running == name
        found.append(([r.elbo for r in results], [p.detach() for p in step.parameters]))
    (eager, values), (other, ours) = found
    if engine == "trace":
        assert eager == other and all(map(torch.equal, values, ours))
    np.testing.assert_allclose(eager, other, rtol=0.02)
    step = _step(program(), x, "eager", objective="subsampled")
    exact = [r.elbo for r in seeded(1, step, [x] * 3, rows)]
    assert exact != eager
    np.testing.assert_allclose(exact, eager, rtol=0.02)


def test_a_bfloat16_rounding_is_no_other_gradient(caplog: pytest.LogCaptureFixture):
    """Scaled to 50 000 rows, sums of bfloat16 numbers in another order differ by a few roundings."""
    torch.manual_seed(0)
    x = {"x": (torch.rand(50_000, 40) < 0.2).float()}
    vae = VAE(40, latent=8, hidden=(32,), prior="flow")
    fit(vae, x, steps=3, batch_size=200, kl_warmup=1250, precision="bf16-mixed", engine="trace", seed=0)
    assert "eagerly" not in caplog.text


def test_draws_follow_the_seed_and_differ_at_every_step():
    case = PROGRAMS["normal_normal"]._replace(objective="sampled")
    gradient = Gradient(objective(case), case.data)
    first = [float(seeded(1, gradient, case.data).elbo), *(float(gradient(case.data).elbo) for _ in range(4))]
    again = [float(seeded(1, gradient, case.data).elbo), *(float(gradient(case.data).elbo) for _ in range(4))]
    assert first == again and len(set(first)) == 5


@given(st.lists(st.lists(st.integers(1, 5), max_size=2), min_size=1, max_size=4), st.integers(1, 4), st.booleans())
@settings(max_examples=30, deadline=None)
def test_noise_drawn_ahead_is_the_same_stream(shapes: list[list[int]], steps: int, uniform: bool):
    fill = torch.Tensor.uniform_ if uniform else torch.Tensor.normal_
    draws = [_Draw(fill, (), tuple(s), torch.float32) for s in shapes]
    noise = Noise(draws, steps)
    torch.manual_seed(7)
    ahead = [noise.split(tensors) for tensors in noise.take(steps)]
    ahead = [[t.clone() for t in one] for one in ahead]
    torch.manual_seed(7)
    for one in ahead:
        for draw, tensor in zip(draws, one, strict=True):
            assert torch.equal(tensor, fill(torch.empty(draw.shape)))


# -- what cannot be traced -------------------------------------------------------------------------


def _branching(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    scale = 2.0 if z > 0 else 1.0  # a branch on a value
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, scale), obs=x)


def _numpy(x):
    z = pyro.sample("z", dist.Normal(float(np.mean(x.tolist())), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize("model, line", [(_branching, "if z > 0"), (_numpy, "x.tolist()")])
def test_what_cannot_be_traced_runs_eagerly_and_its_line_is_named(model, line, caplog):
    expected = fit(Program.from_pair(model), {"x": Y}, steps=5, engine="eager")
    with caplog.at_level(logging.WARNING, "ppgen"):
        run = fit(Program.from_pair(model), {"x": Y}, steps=5, engine="trace")
    assert run.rows == expected.rows
    (message,) = [r.getMessage() for r in caplog.records]
    assert "test_engine.py:" in message and line in message and "eagerly" in message


def _pythons_random(x):
    z = pyro.sample("z", dist.Normal(random.random(), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize("engine", ["trace", "compile"])
def test_pythons_randomness_is_found_out(engine, caplog):
    """A trace would have one number of Python's for all steps."""
    expected = fit(Program.from_pair(_pythons_random), {"x": Y}, steps=5, engine="eager")
    with caplog.at_level(logging.WARNING, "ppgen"):
        run = fit(Program.from_pair(_pythons_random), {"x": Y}, steps=5, engine=engine)
    assert run.rows == expected.rows
    (message,) = [r.getMessage() for r in caplog.records]
    assert "random" in message and "eagerly" in message


def test_new_shapes_are_traced_a_few_times(caplog):
    step = _step(Program.from_pair(_line), {"x": Y}, "trace")
    with caplog.at_level(logging.WARNING, "ppgen"):
        for rows in (20, 10, 20, 5, 4, 3, 2):
            step([{"x": Y[:rows]}], [Row(1e-2, 1.0, 1)])
    (message,) = [r.getMessage() for r in caplog.records if "shapes" in r.getMessage()][:1]
    assert "4 shapes" in message


# -- auto ------------------------------------------------------------------------------------------


def test_auto_leaves_short_runs_alone():
    step = _step(Program.from_pair(_line), {"x": Y}, "auto", steps=20)
    for k in range(1, 8):
        step([{"x": Y}], [Row(1e-2, 1.0, k)])
    assert step.running == "eager"


def test_auto_traces_at_once():
    step = _step(Program.from_pair(_line), {"x": Y}, "auto", steps=200)
    step([{"x": Y}], [Row(1e-2, 1.0, 1)])
    assert step.running == "trace"


@pytest.fixture
def every_gain_counts(monkeypatch, tmp_path):
    """As if each fit were long; nothing has been compiled before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(step_module, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(step_module, "BACKGROUND_SECONDS", 0.0)
    monkeypatch.setattr(native, "_LOADED", {})


def _auto(engine: str = "auto", steps: int = 200) -> Run:
    return fit(Program.from_pair(_line), {"x": Y}, steps=steps, lr=1e-2, engine=engine)


def test_auto_without_a_compiler_stays_with_the_trace_and_says_so_once(every_gain_counts, monkeypatch, caplog):
    step_module._say_no_compiler.cache_clear()
    monkeypatch.setattr("ppgen.engine.compiling.compile.shutil.which", lambda name: None)
    with caplog.at_level(logging.WARNING, "ppgen"):
        run = _auto()
        _auto(steps=120)
    assert run.rows[-1]["elbo"] == _auto("eager").rows[-1]["elbo"]  # to the bit
    assert ["g++" in r.getMessage() for r in caplog.records] == [True]


@pytest.mark.slow
def test_auto_takes_the_code_that_is_there(every_gain_counts, monkeypatch, caplog):
    _auto("compile", 10)
    monkeypatch.setattr(native, "_LOADED", {})
    monkeypatch.setattr(compilation, "_compile", lambda *_: pytest.fail("compiled again"))
    caplog.set_level(logging.INFO, "ppgen")
    run = _auto()
    assert "compiled" in caplog.text
    np.testing.assert_allclose(run.rows[-1]["elbo"], _auto("eager").rows[-1]["elbo"], rtol=1e-5)


@pytest.mark.slow
def test_auto_compiles_in_the_background_and_changes_over(every_gain_counts, monkeypatch, caplog):
    """The fit goes on once the other process has ended, whichever would have been first."""
    begin = background.start

    def ended(*args):
        child = begin(*args)
        child.wait()
        return child

    monkeypatch.setenv("PPGEN_BACKGROUND", "1")
    monkeypatch.setattr(background, "start", ended)
    monkeypatch.setattr(step_module, "POLL_SECONDS", 0.0)
    caplog.set_level(logging.INFO, "ppgen")
    run = _auto()
    said = [r.getMessage() for r in caplog.records]
    assert "in the background" in said[0] and "compiled" in said[1]
    np.testing.assert_allclose(run.rows[-1]["elbo"], _auto("compile").rows[-1]["elbo"], rtol=1e-5)


@pytest.mark.slow
def test_the_compiled_log_joint_is_kept_for_the_next_run(every_gain_counts):
    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    joint = log_joint(Program.from_pair(model), {"x": Y}, engine="compile")
    joint.value_and_grad(torch.zeros(4, joint.dim))
    assert len(list(native.folder().glob("*.so"))) == 1


@pytest.mark.slow
def test_compiled_code_is_kept_for_what_it_was_made_for(every_gain_counts, monkeypatch):
    """Another shape or number of threads is other code; a file that was cut short is made again; old ones go."""
    graph, x = trace(lambda x: [(x * 2).sum(-1)], [torch.ones(5, 3)]).graph, torch.rand(5, 3)
    torch.testing.assert_close(compiled(graph, [x])([x])[0], (x * 2).sum(-1))
    key = code_key(graph, [x])
    assert native.is_known(key) and key != code_key(graph, [x.mT.contiguous().mT])
    with monkeypatch.context() as other:
        other.setattr(torch, "get_num_threads", lambda: 3)
        assert key != code_key(graph, [x])
    (file,) = native.folder().glob("*.so")
    monkeypatch.setattr(native, "_LOADED", {})
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert native.load(key) is None
    torch.testing.assert_close(compiled(graph, [x])([x])[0], (x * 2).sum(-1))
    assert native.load(key) is not None and file.read_bytes() == whole
    monkeypatch.setattr(native, "BYTES", 1)
    native._make_room()
    assert not native.is_known("another") and not list(native.folder().glob("*.so"))


def test_how_long_compiling_takes_is_told_by_the_last_time(monkeypatch, tmp_path):
    """In CPU seconds, the compiler's too; what was found in a cache tells nothing, nor does an empty file."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    at_first = compilation.estimated_seconds(100)
    thought = at_first - compilation._IMPORT
    for child, pace in ((2 * thought, 3.0), (0.1, 3.0)):
        clock = iter([(1.0, 0.0, 1.0, 0.0, 0.0), (1.0 + thought, 0.0, 1.0 + child, 0.0, 9e9)])
        monkeypatch.setattr(compilation.os, "times", lambda clock=clock: next(clock))
        with compilation._paced(100):
            pass
        assert compilation.estimated_seconds(100) == pytest.approx(compilation._IMPORT + pace * thought)
    (native.folder() / "pace").write_text("")
    assert compilation.estimated_seconds(100) == at_first


def test_compile_without_a_compiler_is_an_error(monkeypatch):
    monkeypatch.setattr("ppgen.engine.compiling.compile.shutil.which", lambda name: None)
    with pytest.raises(PpgenError, match="install g\\+\\+"):
        fit(Program.from_pair(_line), {"x": Y}, steps=5, engine="compile")


# -- functions beside the step ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["eight_schools", "logistic_low_rank", "hierarchical", "gaussian_process", "counts"])
def test_log_joint_of_many_chains(name: str):
    case = PROGRAMS[name]
    eager = log_joint(case.program(), case.data, engine="eager")
    joint = log_joint(case.program(), case.data)
    u = 0.5 * torch.randn(5, joint.dim)
    value, grad = joint.value_and_grad(u)
    for k in range(5):
        v, g = eager.value_and_grad(u[k])
        torch.testing.assert_close(value[k], v, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(grad[k], g, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(joint(u), value)
    torch.testing.assert_close(joint.flatten(joint.unflatten(u)), u, rtol=1e-3, atol=1e-3)


def test_log_joint_is_the_density():
    """Eight schools, written out, with τ = exp u."""
    joint = log_joint(PROGRAMS["eight_schools"].program(), SCHOOLS)
    u = torch.randn(joint.dim)
    z = joint.unflatten(u)
    by_hand = dist.Normal(0.0, 5.0).log_prob(z["mu"]) + dist.HalfCauchy(5.0).log_prob(z["tau"]) + z["tau"].log()
    by_hand = by_hand + dist.Normal(z["mu"], z["tau"]).log_prob(z["theta"]).sum()
    by_hand = by_hand + dist.Normal(z["theta"], SCHOOLS["sigma"]).log_prob(SCHOOLS["y"]).sum()
    torch.testing.assert_close(joint(u), by_hand)


def test_one_failed_factorisation_is_one_chains_affair():
    def model(y):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        k = torch.eye(2) + a * torch.ones(2, 2)  # positive definite for a > -1/2 alone
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), covariance_matrix=k), obs=y)

    joint = log_joint(Program.from_pair(model), {"y": torch.tensor([0.3, -0.2])})
    value, grad = joint.value_and_grad(torch.tensor([[0.5], [-3.0], [1.0]]))
    assert torch.isfinite(value).tolist() == [True, False, True]
    assert torch.isfinite(grad[:, 0]).tolist() == [True, False, True]


def test_a_discrete_latent_has_no_place_in_a_log_joint():
    with pytest.raises(PpgenError, match="'z' is discrete"):
        log_joint(PROGRAMS["bernoulli_score"].program(), PROGRAMS["bernoulli_score"].data)


def test_describe():
    found = describe(objective(PROGRAMS["vae_batch_norm"]), PROGRAMS["vae_batch_norm"].data)
    assert found["traces"] and found["size"] == sum(found["operations"].values())
    assert found["operations"]["aten.addmm.default"] == 4 and found["random"]["ahead"]
    assert {b.split(".")[-1] for b in found["buffers"]} == {"running_mean", "running_var", "num_batches_tracked"}
    assert found["unused"] == [] and "decoder.0.weight" in found["parameters"]
    program = Program.from_pair(_branching).setup({"x": Y}, "AutoNormal")
    found = describe(Objective(program, inspect(program, {"x": Y}), 20), {"x": Y})
    assert not found["traces"] and "if z > 0" in found["reason"]


def test_traced_functions_fall_back_on_themselves():
    def branch(x):
        return x if x.sum() > 0 else -x

    assert traced(branch, [torch.ones(3)]) is branch

    def chance(x):
        return x + random.random()

    assert traced(chance, [torch.ones(3)]) is chance
    weight = torch.ones(3)
    fast = traced(lambda x: (x * weight).sum(), [torch.ones(3)])
    weight.mul_(2)  # parameters keep their place
    assert float(fast(torch.ones(3))) == 6.0


def test_distributions_that_validate_are_traced():
    """A PyroModule keeps its priors, and these what Pyro's validation was when they were made."""
    with pyro.validation_enabled(True):
        prior = dist.Normal(0.0, 1.0)
    traced_prior = trace(lambda x: prior.log_prob(x), [torch.ones(3)])
    assert torch.equal(traced_prior(torch.zeros(3)), prior.log_prob(torch.zeros(3)))


def test_a_trace_refuses_shapes_that_depend_on_values():
    with pytest.raises(Untraceable, match="test_engine.py"):
        trace(lambda x: x[: int(x.sum())], [torch.ones(3)])


def test_the_program_is_left_as_it_was():
    """Nothing of a trace stays in it: no tensor without a content, no parameter of another kind, no random state."""
    case = PROGRAMS["logistic_low_rank"]
    o = objective(case)
    state, python = torch.get_rng_state(), random.getstate()
    before = {k: v.clone() for k, v in o.state_dict().items()}
    Gradient(o, LOGISTIC)
    assert torch.equal(torch.get_rng_state(), state) and random.getstate() == python
    assert all(torch.equal(v, before[k]) for k, v in o.state_dict().items())
    torch.save(o.state_dict(), "/dev/null")
    o.program.call("guide", LOGISTIC)


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("op", ["cumsum", "cumprod"])
def test_short_accumulations_are_written_out(op: str, dim: int):
    out = _decompositions()[getattr(torch.ops.aten, op).default]
    x = torch.randn(3, 5, 4, dtype=torch.float64)
    x[1, 2, 3] = torch.inf
    for values in (x, torch.randint(-3, 4, (3, 5, 4)), torch.tensor([True, False, True]).expand(2, 2, 3)):
        expected = getattr(torch, op)(values, dim)
        torch.testing.assert_close(out(values, dim), expected, rtol=1e-12, atol=0)
    assert out(x, dim, dtype=torch.float32).dtype == torch.float32
    assert out(torch.randn(50), 0) is NotImplemented


def test_small_matrix_products_are_written_out():
    table, a = _decompositions(), torch.randn(6, 3, 4, dtype=torch.float64)
    for b in (torch.randn(6, 4, 2, dtype=torch.float64), torch.randn(6, 2, 4, dtype=torch.float64).mT):
        torch.testing.assert_close(table[torch.ops.aten.bmm.default](a, b), a @ b)
        torch.testing.assert_close(table[torch.ops.aten.mm.default](a[0], b[0]), a[0] @ b[0])
    large = torch.randn(64, 64)
    assert table[torch.ops.aten.mm.default](large, large) is NotImplemented


def test_a_narrow_matrix_times_a_vector_is_torchs(monkeypatch):
    times = _decompositions()[torch.ops.aten.mv.default]
    a, v = torch.randn(1 << 13, 20, dtype=torch.float64), torch.randn(20, dtype=torch.float64)
    graph = make_fx(times)(a, v)
    assert torch.ops.aten.mm.default in {n.target for n in graph.graph.nodes}
    assert torch.ops.aten.mm.default in {n.target for n in make_fx(times)(a.T, a[:, 0].clone()).graph.nodes}
    torch.testing.assert_close(graph(a, v), a @ v, rtol=1e-12, atol=0)
    for medium, narrow in (((1 << 18, 1 << 20), 64), ((1, 1 << 17), 64), ((1, 1 << 20), 19)):
        monkeypatch.setattr(small, "MEDIUM", medium)
        monkeypatch.setattr(small, "NARROW", narrow)
        assert torch.ops.aten.mm.default not in {n.target for n in make_fx(times)(a, v).graph.nodes}


@pytest.mark.parametrize("before", [False, True])
def test_a_step_leaves_the_processor_as_it_was(before: bool):
    tiny = torch.tensor(1e-40)
    torch.set_flush_denormal(before)
    try:
        with flushed():
            assert tiny * 1 == 0
        assert bool(tiny * 1 == 0) == before
    finally:
        torch.set_flush_denormal(False)


def test_what_chains_would_gain_from_compiled_code_is_made_for_the_next_run(monkeypatch, tmp_path):
    """They do not change over midway, where rounding would be another trajectory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    begun: list = []
    monkeypatch.setattr("ppgen.engine.compiling.tiers.background.start", lambda *a: begun.append(a))
    monkeypatch.setattr("ppgen.engine.compiling.tiers._saved", lambda *_: 2.0)
    joint = log_joint(Program.from_pair(_two), {"x": Y}, engine="auto", calls=100)
    expected = log_joint(Program.from_pair(_two), {"x": Y}).value_and_grad(torch.zeros(3, 1))
    assert all(torch.allclose(a, b) for a, b in zip(joint.value_and_grad(torch.zeros(3, 1)), expected, strict=True))
    assert len(begun) == 1 and begun[0][2]


def test_a_log_joint_that_cannot_be_compiled_is_traced(monkeypatch, caplog):
    """Inductor fails at what it has no kernel for, a mask as an index: chains run all the same."""
    caplog.set_level("INFO", "ppgen")

    def fails(*_):
        raise RuntimeError("aten.nonzero.default\nand more")

    monkeypatch.setattr("ppgen.engine.compiling.tiers.compiled", fails)
    joint = log_joint(Program.from_pair(_two), {"x": Y}, engine="compile")
    value, grad = joint.value_and_grad(torch.zeros(3, 1))
    assert value.shape == (3,) and grad.shape == (3, 1)
    assert "is not compiled (aten.nonzero.default)" in caplog.text


def _two(x):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(m, 1.0), obs=x)


def test_a_mask_that_an_operation_in_place_only_reads_is_known():
    def lower(v: torch.Tensor) -> torch.Tensor:
        mask = torch.arange(3) < torch.arange(3)[:, None]
        out = v.new_zeros(3, 3)
        out[mask] = v
        return out + out[mask].sum()

    graph = trace(lower, [torch.ones(3)]).graph
    places = [n for node in graph.graph.nodes if "index" in str(node.target) for n in node.args[1]]
    assert len(places) == 4
    assert torch.equal(trace(lower, [torch.ones(3)])(torch.arange(3.0)), lower(torch.arange(3.0)))


@pytest.mark.parametrize("how", ["trace", "compile"])
def test_what_torch_says_of_fake_tensors_is_not_for_who_fits_a_model(how):
    """Its traceback stood on stderr above our sentence."""
    seen, theirs = logging.handlers.BufferingHandler(100), logging.getLogger("torch._subclasses.fake_tensor")
    inputs = [torch.ones(2, 3), torch.ones(2, 3)]
    theirs.addHandler(seen)
    try:
        with pytest.raises(Exception, match=r"2x3 and 2x3|\[2, 3\]"):
            if how == "trace":
                trace(lambda a, b: a @ b, inputs)
            else:
                graph = torch.fx.Graph()
                nodes = graph.placeholder("a"), graph.placeholder("b")
                graph.output((graph.call_function(torch.ops.aten.mm.default, nodes),))
                compiled(torch.fx.GraphModule({}, graph), inputs)
    finally:
        theirs.removeHandler(seen)
    assert not seen.buffer
