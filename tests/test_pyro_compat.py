"""ppgen.pyro_compat against pyro.infer: the same script from the same seed, step by step.

Each row of KINDS is a script's model, guide, loss and arguments, in the words of a Pyro user. Under `trace` losses
and parameters have to be Pyro's to the last bit but one (sums may be in another order); under `compile` the graph of
the whole step is run without its compiler, so that a row costs no seconds.
"""

from __future__ import annotations

import argparse
import collections
import copy
import dataclasses
import logging
import math
import random
import types
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import infer, optim, poutine
from pyro.infer import autoguide
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn
from torch.distributions import constraints

from ppgen import pyro_compat
from ppgen.engine.graphs.executable import executable
from ppgen.errors import PpgenError

Y = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12])
SIGMA = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18])
X = torch.linspace(-2, 2, 20)
COUNTS = torch.tensor([0.0, 1, 4, 2, 2, 0, 1, 3, 9, 3, 1, 0, 2, 2, 1, 0, 0, 1, 5, 2])


class Script(NamedTuple):
    """What a script makes: two programs, what each step is called with, and what else differs from the usual."""

    model: Any
    guide: Any
    calls: Callable[[int], tuple[tuple, dict]]
    loss: Any = None
    optim: Any = None


def schools(sigma, y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        return pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def always(*args: Any, **kwargs: Any) -> Callable[[int], tuple[tuple, dict]]:
    return lambda _: (args, kwargs)


def own_guide():
    def guide(sigma, y):
        loc = pyro.param("loc", torch.zeros(8))
        scale = pyro.param("scale", torch.ones(8), constraint=constraints.positive)
        pyro.sample("mu", dist.Normal(pyro.param("m", lambda: torch.randn(())), 1.0))
        pyro.sample("tau", dist.LogNormal(pyro.param("t", torch.tensor(0.5)), 0.3))
        with pyro.plate("schools", 8):
            pyro.sample("theta", dist.Normal(loc, scale))

    return Script(schools, guide, always(SIGMA, Y))


def autoguides(make: Any) -> Callable[[], Script]:
    return lambda: Script(schools, make(schools), always(SIGMA, Y))


def keyword_arguments():
    return Script(schools, autoguide.AutoNormal(schools), always(sigma=SIGMA, y=Y))


def module(dropout: float = 0.0) -> Script:
    class VAE(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 4))
            self.decoder = nn.Linear(2, 5)

        def model(self, x):
            pyro.module("decoder", self.decoder)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
                pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

        def guide(self, x):
            pyro.module("encoder", self.encoder)
            loc, scale = self.encoder(x).chunk(2, -1)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))

    vae = VAE()
    x = (torch.rand(10, 5) > 0.5).float()
    return Script(vae.model, vae.guide, always(x), infer.TraceMeanField_ELBO())


def batches_of_two_shapes() -> Script:
    script = module()
    x = (torch.rand(10, 5) > 0.5).float()
    return script._replace(calls=lambda i: ((x[:4], x[4:8], x[8:])[i % 3 :][:1], {}))


def batch_norm() -> Script:
    script = module()
    script.model.__self__.encoder.insert(0, nn.BatchNorm1d(5))
    return script


class Line(PyroModule):
    def __init__(self):
        super().__init__()
        self.linear = PyroModule[nn.Linear](1, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 1]).to_event(2))
        self.noise = PyroParam(torch.tensor(1.0), constraint=constraints.positive)

    def forward(self, x, y=None):
        mean = self.linear(x[:, None])[:, 0]
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(mean, self.noise), obs=y)


def pyro_module() -> Script:
    line = Line()
    return Script(line, autoguide.AutoDiagonalNormal(line), always(X, 2 * X + 0.3))


def subsampled() -> Script:
    def model(x, y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 20, subsample_size=6) as i:
            pyro.sample("y", dist.Normal(w * x[i], 1.0), obs=y[i])

    return Script(model, autoguide.AutoNormal(model), always(X, 2 * X))


def mixture(x):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("components", 2):
        rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Poisson(rate[k]), obs=x)


def enumerated() -> Script:
    guide = autoguide.AutoNormal(poutine.block(mixture, hide=["k"]))
    return Script(mixture, guide, always(COUNTS), infer.TraceEnum_ELBO(max_plate_nesting=1))


def markov(x):
    step = pyro.sample("step", dist.Dirichlet(torch.ones(2, 2)).to_event(1))
    z = 0
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z_{t}", dist.Categorical(step[z]), infer={"enumerate": "parallel"})
        pyro.sample(f"x_{t}", dist.Normal(z * 2.0 - 1.0, 1.0), obs=x[t])


def hidden_markov() -> Script:
    guide = autoguide.AutoDelta(poutine.block(markov, expose=["step"]))
    return Script(markov, guide, always(X[:5]), infer.TraceEnum_ELBO(max_plate_nesting=0))


def score_function() -> Script:
    def model(y):
        k = pyro.sample("k", dist.Poisson(3.0))
        pyro.sample("y", dist.Normal(k, 1.0), obs=y)

    def guide(y):
        pyro.sample("k", dist.Poisson(pyro.param("rate", torch.tensor(3.0), constraint=constraints.positive)))

    return Script(model, guide, always(torch.tensor(4.0)), infer.Trace_ELBO(num_particles=3))


def vectorized_particles() -> Script:
    loss = infer.Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    return Script(schools, autoguide.AutoNormal(schools), always(SIGMA, Y), loss)


def arguments_that_are_no_tensors() -> Script:
    def model(data, options, name="y", *, robust=False):
        mu = pyro.sample("mu", dist.Normal(0.0, options["scale"]))
        with pyro.plate("data", len(data["y"])):
            family = dist.StudentT(4.0, mu, 1.0) if robust else dist.Normal(mu, 1.0)
            pyro.sample(name, family, obs=data["y"])

    def calls(i):
        return ({"y": X}, {"scale": 3}), {"robust": i % 2 == 1}

    return Script(model, autoguide.AutoNormal(model), calls)


def annealing() -> Script:
    def model(beta, y):
        with poutine.scale(scale=beta):
            mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    def guide(beta, y):
        with poutine.scale(scale=beta):
            pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 0.5))

    return Script(model, guide, lambda i: ((min(1.0, 0.1 + i / 20), X), {}))


def attribute_that_changes() -> Script:
    """A number that the script changes, and the program reads."""

    class Model:
        scale = 1.0

        def __call__(self, y):
            mu = pyro.sample("mu", dist.Normal(0.0, self.scale))
            with pyro.plate("data", len(y)):
                pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    model = Model()

    def calls(i):
        model.scale = 1.0 if i < 6 else 2.0
        return (X,), {}

    return Script(model, autoguide.AutoNormal(model), calls)


def tensor_changed_in_place() -> Script:
    scale, box = torch.ones(()), {"y": X}

    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, scale))
        with pyro.plate("data", len(box["y"])):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=box["y"])

    def calls(i):
        scale.fill_(1.0 + i)
        if i == 7:
            box["y"] = X + 1
        return (), {}

    return Script(model, autoguide.AutoNormal(model), calls)


def late_parameters() -> Script:
    epoch = {"now": 0}

    def guide(sigma, y):
        pyro.sample("mu", dist.Normal(pyro.param("m", torch.tensor(1.0)), 1.0))
        shift = pyro.param("late", torch.tensor(0.2)) if epoch["now"] >= 5 else 0.0
        pyro.sample("tau", dist.LogNormal(pyro.param("t", torch.tensor(0.5)) + shift, 0.3))
        with pyro.plate("schools", 8):
            pyro.sample("theta", dist.Normal(pyro.param("loc", torch.zeros(8)), 1.0))

    def calls(i):
        epoch["now"] = i
        return (SIGMA, Y), {}

    return Script(schools, guide, lambda i: calls(5 * (i // 5)))


def frozen_parameter() -> Script:
    script = own_guide()

    def calls(i):
        if i == 6:
            pyro.param("m").unconstrained().requires_grad_(False)
        return (SIGMA, Y), {}

    return script._replace(calls=calls)


def several_losses() -> Script:
    def model(y):
        p = pyro.sample("p", dist.Beta(2.0, 2.0))
        with pyro.plate("data", 5):
            z = pyro.sample("z", dist.Bernoulli(p))
            pyro.sample("y", dist.Normal(z, pyro.param("noise", torch.tensor(1.0))), obs=y)

    def guide(y):
        pyro.sample("p", dist.Beta(pyro.param("a", torch.tensor(2.0), constraint=constraints.positive), 2.0))
        with pyro.plate("data", 5):
            q = pyro.param("q", torch.full((5,), 0.4), constraint=constraints.unit_interval)
            pyro.sample("z", dist.Bernoulli(q))

    loss = infer.ReweightedWakeSleep(num_particles=3, max_plate_nesting=1, vectorize_particles=True)
    return Script(model, guide, always(X[:5]), loss)


def custom_loss() -> Script:
    def loss(model, guide, *args):
        q = poutine.trace(guide).get_trace(*args)
        p = poutine.trace(poutine.replay(model, q)).get_trace(*args)
        return q.log_prob_sum() - p.log_prob_sum()

    return own_guide()._replace(loss=loss)


def train_and_eval() -> Script:
    script = module(dropout=0.3)
    vae, (args, _) = script.model.__self__, script.calls(0)

    def calls(i):
        vae.train(i % 8 < 5)
        return args, {}

    return script._replace(calls=calls)


KINDS: dict[str, Callable[[], Script]] = {
    "own guide, constrained parameters": own_guide,
    "AutoNormal": autoguides(autoguide.AutoNormal),
    "AutoMultivariateNormal": autoguides(autoguide.AutoMultivariateNormal),
    "AutoDelta": autoguides(autoguide.AutoDelta),
    "AutoIAFNormal": autoguides(lambda m: autoguide.AutoIAFNormal(m, hidden_dim=[12])),
    "keyword arguments": keyword_arguments,
    "pyro.module": module,
    "dropout": lambda: module(dropout=0.3),
    "batch norm": batch_norm,
    "batches of two shapes": batches_of_two_shapes,
    "PyroModule": pyro_module,
    "subsampled plate": subsampled,
    "enumerated mixture": enumerated,
    "enumerated chain": hidden_markov,
    "score function, particles": score_function,
    "vectorized particles": vectorized_particles,
    "arguments that are no tensors": arguments_that_are_no_tensors,
    "annealing by an argument": annealing,
    "an attribute that changes": attribute_that_changes,
    "a closed-over tensor that changes": tensor_changed_in_place,
    "parameters that appear late": late_parameters,
    "a parameter that is frozen": frozen_parameter,
    "wake-sleep, a loss for each phase": several_losses,
    "a loss of one's own": custom_loss,
    "train and eval": train_and_eval,
    "ClippedAdam": lambda: own_guide()._replace(optim=lambda: optim.ClippedAdam({"lr": 0.05, "lrd": 0.97})),
    "SGD with momentum": lambda: own_guide()._replace(optim=lambda: optim.SGD({"lr": 1e-3, "momentum": 0.9})),
    "options by parameter": lambda: own_guide()._replace(
        optim=lambda: optim.Adam(lambda name: {"lr": 0.1 if name == "loc" else 0.01})
    ),
    "clipped gradients": lambda: own_guide()._replace(optim=lambda: optim.Adam({"lr": 0.05}, {"clip_norm": 0.5})),
}


IDS = [k.replace(" ", "-") for k in KINDS]


class Fitted(NamedTuple):
    losses: list[Any]
    params: dict[str, torch.Tensor]
    state: dict[str, Any]
    random: torch.Tensor


def fitted(kind: Callable[[], Script], svi: Any, steps: int = 11, between: Any = None, **options: Any) -> Fitted:
    pyro.clear_param_store()
    pyro.set_rng_seed(3)
    script = kind()
    optimizer = script.optim() if script.optim else optim.Adam({"lr": 0.05})
    fit = svi(script.model, script.guide, optimizer, script.loss or infer.Trace_ELBO(), **options)
    losses = []
    for i in range(steps):
        args, kwargs = script.calls(i)
        losses.append(fit.step(*args, **kwargs))
        if between:
            losses.append(between(fit, optimizer, i, args, kwargs))
    store = pyro.get_param_store()
    params = {n: v.detach().clone() for n, v in store.items()}
    return Fitted(losses, params, optimizer.get_state(), torch.get_rng_state())


def assert_same(ours: Fitted, pyros: Fitted, tolerance: float) -> None:
    assert torch.equal(ours.random, pyros.random), "other random numbers were drawn"
    for i, (a, b) in enumerate(zip(ours.losses, pyros.losses, strict=True)):
        assert type(a) is type(b)
        if b is not None:
            message = f"another loss at {i}"
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True, err_msg=message)
    assert list(ours.params) == list(pyros.params)
    for name, value in pyros.params.items():
        torch.testing.assert_close(ours.params[name], value, rtol=10 * tolerance, atol=10 * tolerance, equal_nan=True)
    assert ours.state.keys() == pyros.state.keys()


@pytest.fixture
def replays(caplog):
    """Says how often a record was made."""
    caplog.set_level(logging.INFO, "ppgen")
    return lambda: [r.getMessage() for r in caplog.records if r.levelno >= logging.INFO]


@pytest.fixture
def uncompiled(monkeypatch):
    """Graphs are run as they are, in place of what Inductor makes of them."""

    def interpreted(graph, inputs):
        run = executable(copy.deepcopy(graph))
        return lambda arguments: run(*arguments)

    monkeypatch.setattr("ppgen.engine.compiling.fused.compiled", interpreted)
    monkeypatch.setattr("ppgen.pyro_compat.updates.compiled", interpreted)


@pytest.mark.parametrize("kind", KINDS.values(), ids=IDS)
def test_traced_steps_are_pyros(kind, replays):
    assert_same(fitted(kind, pyro_compat.SVI, engine="trace"), fitted(kind, infer.SVI), 1e-6)
    said = replays()
    assert any("recorded in" in s for s in said) and not any("as in Pyro" in s for s in said), said


COMPILED = (
    "AutoNormal", "pyro.module", "batch norm", "batches of two shapes", "subsampled plate", "score function, particles",
    "annealing by an argument", "parameters that appear late", "a closed-over tensor that changes", "ClippedAdam",
    "SGD with momentum", "options by parameter",
)  # fmt: skip


@pytest.mark.parametrize("kind", [KINDS[k] for k in COMPILED], ids=[k.replace(" ", "-") for k in COMPILED])
def test_compiled_steps_are_pyros(kind, uncompiled):
    assert_same(fitted(kind, pyro_compat.SVI, engine="compile"), fitted(kind, infer.SVI), 2e-5)


def test_losses_are_evaluated_as_pyro_does(uncompiled):
    def between(svi, optimizer, i, args, kwargs):
        return svi.evaluate_loss(*args, **kwargs)

    pyros = fitted(own_guide, infer.SVI, between=between)
    for engine in ("trace", "compile"):
        assert_same(fitted(own_guide, pyro_compat.SVI, between=between, engine=engine), pyros, 2e-5)


def test_auto_begins_as_pyro_and_goes_on_recorded(monkeypatch, replays, uncompiled):
    monkeypatch.setattr("ppgen.pyro_compat.calls.STAKE", 3)
    monkeypatch.setattr("ppgen.engine.compiling.compile.estimated_seconds", lambda operations: 0.0)
    ours = fitted(own_guide, pyro_compat.SVI)
    assert_same(ours, fitted(own_guide, infer.SVI), 2e-5)
    assert "recorded" in replays()[0] and "compiled" in replays()[1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["own guide, constrained parameters", "options by parameter", "dropout"])
def test_steps_that_inductor_compiles_are_pyros(kind, replays):
    """The whole step, and a gradient alone."""
    assert_same(fitted(KINDS[kind], pyro_compat.SVI, engine="compile"), fitted(KINDS[kind], infer.SVI), 1e-4)
    assert "compiled" in replays()[-1]


@pytest.mark.slow
def test_a_compiled_potential_is_the_same():
    draws = []
    for module, options in ((pyro_compat, {"jit_compile": True}), (infer, {})):
        pyro.set_rng_seed(0)
        kernel = module.NUTS(schools, max_tree_depth=3, **options)
        chain = module.MCMC(kernel, num_samples=5, warmup_steps=5, disable_progbar=True)
        chain.run(SIGMA, Y)
        draws.append(chain.get_samples()["theta"])
    torch.testing.assert_close(*draws, rtol=1e-2, atol=1e-2)


SCHEDULES = {
    "exponential": lambda: optim.ExponentialLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.8}
    ),
    "one cycle": lambda: optim.OneCycleLR(
        {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "max_lr": 0.2, "total_steps": 40}
    ),
}


@pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("engine", ["trace", "compile"])
def test_a_schedule_moves_the_learning_rate(make, engine, uncompiled):
    def between(svi, optimizer, i, args, kwargs):
        if i % 2:
            optimizer.step()

    def fit(svi, **options):
        return fitted(lambda: own_guide()._replace(optim=make), svi, between=between, **options)

    assert_same(fit(pyro_compat.SVI, engine=engine), fit(infer.SVI), 2e-5)


def test_options_and_state_that_a_script_sets_are_used(uncompiled):
    """A learning rate by hand, of all parameters and of one; a state that is loaded back."""

    def fit(svi, **options):
        states: list[Any] = []

        def between(svi, optimizer, i, args, kwargs):
            own = list(optimizer.optim_objs.values())
            if i == 3:
                states.extend(copy.deepcopy(o.state_dict()) for o in own)
            if i == 5:
                for o in own:
                    o.param_groups[0]["lr"] = 0.2
            if i == 6:
                for o, state in zip(own, states, strict=True):
                    o.load_state_dict(state)
            if i == 8:
                own[0].param_groups[0]["lr"] = 0.01

        return fitted(own_guide, svi, between=between, **options)

    assert_same(fit(pyro_compat.SVI, engine="compile"), fit(infer.SVI), 2e-5)


def test_two_fits_of_the_same_parameters(uncompiled):
    """Each lays parameters out anew, and finds where the other has put them."""

    def fit(svi, **options):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        script = own_guide()
        a = svi(script.model, script.guide, optim.Adam({"lr": 0.05}), infer.Trace_ELBO(), **options)
        b = svi(script.model, script.guide, optim.SGD({"lr": 1e-3}), infer.Trace_ELBO(num_particles=2), **options)
        return [f.step(SIGMA, Y) for _ in range(8) for f in (a, b)]

    np.testing.assert_allclose(fit(pyro_compat.SVI, engine="compile"), fit(infer.SVI), rtol=2e-5)


@pytest.mark.parametrize("engine", ["trace", "compile"])
def test_saved_and_loaded(engine, uncompiled, tmp_path):
    """Parameters and optimisers, as Pyro saves them, go on in a new SVI, of either kind."""

    def halves(first, second, **options):
        pyro.clear_param_store()
        pyro.set_rng_seed(3)
        script, losses = own_guide(), []
        for i, svi in enumerate((first, second)):
            optimizer = optim.Adam({"lr": 0.05})
            if i:
                pyro.clear_param_store()
                pyro.get_param_store().load(tmp_path / "params")
                optimizer.load(tmp_path / "optim")
            fit = svi(script.model, script.guide, optimizer, infer.Trace_ELBO(), **options)
            losses += [fit.step(SIGMA, Y) for _ in range(6)]
            pyro.get_param_store().save(tmp_path / "params")
            optimizer.save(tmp_path / "optim")
        return losses

    pyros = halves(infer.SVI, infer.SVI)
    np.testing.assert_allclose(halves(pyro_compat.SVI, pyro_compat.SVI, engine=engine), pyros, rtol=1e-5)


@pytest.mark.parametrize("engine", ["trace", "compile"])
def test_the_store_is_cleared_between_fits(engine, uncompiled):
    def between(svi, optimizer, i, args, kwargs):
        if i == 6:
            pyro.clear_param_store()
        if i == 9:
            pyro.get_param_store()["loc"] = torch.full((8,), 2.0)

    pyros = fitted(own_guide, infer.SVI, between=between)
    assert_same(fitted(own_guide, pyro_compat.SVI, between=between, engine=engine), pyros, 2e-5)


@pytest.mark.parametrize("engine", ["trace", "compile"])
def test_a_gradient_of_ones_own_is_added_to(engine, uncompiled):
    """A penalty whose backward pass comes before the step."""

    def between(svi, optimizer, i, args, kwargs):
        if i % 3 == 1:
            (0.1 * pyro.param("loc").pow(2).sum()).backward()

    pyros = fitted(own_guide, infer.SVI, between=between)
    assert_same(fitted(own_guide, pyro_compat.SVI, between=between, engine=engine), pyros, 2e-5)


def blowing_up() -> Script:
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    def guide(y):
        pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 0.1))

    return Script(model, guide, lambda i: ((torch.tensor(1.0 if i != 7 else math.nan),), {}))


@pytest.mark.parametrize("engine", ["trace", "compile"])
def test_a_nan_loss_warns_as_in_pyro(engine, uncompiled):
    def said(svi, **options):
        with pyro.validation_enabled(False), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pyro.enable_validation(False)
            fit = fitted(blowing_up, svi, steps=9, **options)
        return fit, [str(w.message) for w in caught if "NaN" in str(w.message)]

    ours, warned = said(pyro_compat.SVI, engine=engine)
    pyros, expected = said(infer.SVI)
    assert math.isnan(ours.losses[7]) and warned == expected
    assert_same(ours, pyros, 1e-5)


def test_a_value_out_of_the_support_is_pyros_error():
    """The loss is NaN: the step is Pyro's own, and Pyro looks at values."""
    with pytest.raises(ValueError, match="support"):
        fitted(blowing_up, pyro_compat.SVI, steps=9, engine="trace")


# -- what cannot be recorded runs as in Pyro ------------------------------------------------------------


def branching() -> Script:
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        scale = 2.0 if mu > 0 else 1.0
        pyro.sample("y", dist.Normal(mu, scale), obs=y)

    return Script(model, autoguide.AutoNormal(model), always(torch.tensor(1.0)))


def randomly_many_sites() -> Script:
    def model(y):
        total, i = torch.zeros(()), 0
        while pyro.sample(f"more_{i}", dist.Bernoulli(0.4)).item() and i < 5:
            total, i = total + 1.0, i + 1
        pyro.sample("y", dist.Normal(total * pyro.param("w", torch.tensor(1.0)), 1.0), obs=y)

    def guide(y):
        i = 0
        while pyro.sample(f"more_{i}", dist.Bernoulli(pyro.param("p", torch.tensor(0.5)))).item() and i < 5:
            i += 1

    return Script(model, guide, always(torch.tensor(2.0)))


def python_randomness() -> Script:
    def model(y):
        mu = pyro.sample("mu", dist.Normal(random.random(), 1.0))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    return Script(model, autoguide.AutoNormal(model), always(torch.tensor(1.0)))


def counting() -> Script:
    class Model:
        calls = 0

        def __call__(self, y):
            self.calls += 1
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0 + self.calls / 10))
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    model = Model()
    return Script(model, autoguide.AutoNormal(model), always(torch.tensor(1.0)))


def collecting() -> Script:
    """What a script reads after the step would be missing."""
    kept = []

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        kept.append(mu.detach())
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    return Script(model, autoguide.AutoNormal(model), always(torch.tensor(1.0)))


def hooked() -> Script:
    """As Pyro's introduction does to watch the norms of gradients."""
    norms: list[float] = []

    def calls(i):
        if i == 1:
            for value in dict(pyro.get_param_store().named_parameters()).values():
                value.register_hook(lambda g: norms.append(g.norm()))
        assert len(norms) == max(0, i - 1) * 4
        return (SIGMA, Y), {}

    return own_guide()._replace(calls=calls)


OWN = {
    "a branch on a value": (branching, "mu > 0"),
    "a random number of sites": (randomly_many_sites, "more_"),
    "Python's random": (python_randomness, "another loss"),
    "a count of calls": (counting, "'Model.calls' itself"),
    "a list that grows": (collecting, "'kept' itself"),
    "a hook on a parameter": (hooked, "has a hook"),
}


@pytest.mark.parametrize(("kind", "reason"), OWN.values(), ids=OWN)
def test_what_cannot_be_recorded_runs_as_in_pyro_and_is_said_once(kind, reason, replays):
    assert_same(fitted(kind, pyro_compat.SVI, engine="trace"), fitted(kind, infer.SVI), 1e-7)
    (said,) = replays()
    assert "runs as in Pyro: " in said and reason in said


def test_a_value_that_changes_at_each_step_ends_the_records(replays):
    def kind():
        box = {"beta": 1.0}

        def model(y):
            mu = pyro.sample("mu", dist.Normal(0.0, box["beta"]))
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

        def calls(i):
            box["beta"] = 1.0 + i
            return (torch.tensor(1.0),), {}

        return Script(model, autoguide.AutoNormal(model), calls)

    assert_same(fitted(kind, pyro_compat.SVI, engine="trace"), fitted(kind, infer.SVI), 1e-6)
    assert "box.beta changes again and again" in replays()[-1]


def test_what_changes_unseen_is_found_by_the_regular_comparison(monkeypatch, replays):
    """A large array's content is looked at by nobody; Pyro's run says at the next comparison that it is another one."""
    monkeypatch.setattr("ppgen.pyro_compat.calls.FIRST", 4)
    array = np.ones(1000)

    def kind():
        array[:] = 1.0

        def model(y):
            mu = pyro.sample("mu", dist.Normal(0.0, float(array[0])))
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

        def calls(i):
            array[:] = 1.0 if i < 5 else 3.0
            return (torch.tensor(1.0),), {}

        return Script(model, autoguide.AutoNormal(model), calls)

    fitted(kind, pyro_compat.SVI, engine="trace")
    assert "changed unseen" in replays()[-1]


def test_buffers_are_written_as_pyro_does():
    """Batch norm's statistics, and a tensor that the program counts in."""

    def fit(svi, **options):
        count, kept = torch.zeros(()), []

        def kind():
            script = batch_norm()
            norm = script.model.__self__.encoder[0]
            kept.append(norm)

            def model(x):
                count.add_(1.0)
                return script.model(x)

            return script._replace(model=model)

        fitted(kind, svi, **options)
        return count, kept[0]

    (count, norm), (pyros, expected) = fit(pyro_compat.SVI, engine="trace"), fit(infer.SVI)
    assert count == pyros == 11 and norm.num_batches_tracked == expected.num_batches_tracked == 11
    torch.testing.assert_close(norm.running_mean, expected.running_mean)
    torch.testing.assert_close(norm.running_var, expected.running_var)


def test_a_small_arrays_content_is_looked_at(replays):
    def kind():
        array = np.ones(1)

        def model(y):
            mu = pyro.sample("mu", dist.Normal(0.0, float(array[0])))
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

        def calls(i):
            array[:] = 1.0 if i < 5 else 3.0
            return (torch.tensor(1.0),), {}

        return Script(model, autoguide.AutoNormal(model), calls)

    assert_same(fitted(kind, pyro_compat.SVI, engine="trace"), fitted(kind, infer.SVI), 1e-6)
    assert any("array is another one" in s for s in replays())


class Settings:
    """A class as a namespace."""

    scale = 1.0


def reads_scale(of: Any) -> float:
    return getattr(of, "scale", 1.0)


def attribute(of: Any) -> tuple[Callable[[], float], Callable[[], Any]]:
    return lambda: reads_scale(of), lambda: setattr(of, "scale", 3.0)


def of_a_class():
    class Local:
        scale = 1.0

    return attribute(Local)


def of_a_class_of_the_module():
    Settings.scale = 1.0
    return lambda: Settings.scale, lambda: setattr(Settings, "scale", 3.0)


def in_a_classs_list():
    class Local:
        scales = [1.0]

    return lambda: Local.scales[0], lambda: Local.scales.__setitem__(0, 3.0)


def over_a_classs_default():
    class Local:
        scale = 1.0

    return attribute(Local())


def over_a_modules_default():
    class Net(nn.Module):
        scale = 1.0

    return attribute(Net())


def of_a_function():
    def scaled():
        return getattr(scaled, "scale", 1.0)

    return scaled, lambda: setattr(scaled, "scale", 3.0)


def of_a_decorated_function():
    @infer.config_enumerate
    def scaled():
        return getattr(scaled, "scale", 1.0)

    return scaled, lambda: setattr(scaled, "scale", 3.0)


def in_a_slot():
    @dataclasses.dataclass(slots=True)
    class Options:
        scale: float = 1.0

    return attribute(Options())


def in_an_empty_slot():
    class Options:
        __slots__ = ("scale",)

    return attribute(Options())


def a_global_that_was_not_there():
    globals().pop("LATER", None)
    return lambda: 3.0 if "LATER" in globals() else 1.0, lambda: globals().update(LATER=True)


def a_global_that_was_looked_for():
    globals().pop("LATER", None)

    def read():
        try:
            return LATER
        except NameError:
            return 1.0

    return read, lambda: globals().update(LATER=3.0)


def in_a_set():
    active: set[str] = set()
    return lambda: 3.0 if "wide" in active else 1.0, lambda: active.add("wide")


def another_frozenset():
    class Local:
        active: frozenset[str] = frozenset()

    return lambda: 3.0 if "wide" in Local.active else 1.0, lambda: setattr(Local, "active", frozenset(["wide"]))


def in_a_deque():
    row = collections.deque([1.0, 2.0])
    return lambda: row[0], lambda: row.rotate()


def far_in_a_list():
    row = [1.0] * 2000
    return lambda: row[1500], lambda: row.__setitem__(1500, 3.0)


def far_in_a_dict():
    row = dict.fromkeys(range(2000), 1.0)
    return lambda: row[1500], lambda: row.__setitem__(1500, 3.0)


CHANGES: dict[str, Callable[[], tuple[Callable[[], float], Callable[[], Any]]]] = {
    "a class's attribute": of_a_class,
    "an attribute of a class of the module": of_a_class_of_the_module,
    "a list that a class holds": in_a_classs_list,
    "an attribute over a class's default": over_a_classs_default,
    "an nn.Module's attribute over its class's": over_a_modules_default,
    "an attribute that was not there": lambda: attribute(types.SimpleNamespace()),
    "an attribute of a library's namespace": lambda: attribute(argparse.Namespace(scale=1.0)),
    "a function's attribute": of_a_function,
    "a decorated function's attribute": of_a_decorated_function,
    "a slot of a dataclass": in_a_slot,
    "a slot that was empty": in_an_empty_slot,
    "a global that was not there": a_global_that_was_not_there,
    "a global that was looked for": a_global_that_was_looked_for,
    "a set": in_a_set,
    "another frozenset": another_frozenset,
    "a deque": in_a_deque,
    "far in a list": far_in_a_list,
    "far in a dict": far_in_a_dict,
}


@pytest.mark.parametrize("make", CHANGES.values(), ids=[k.replace(" ", "-") for k in CHANGES])
def test_a_python_value_that_changes_makes_a_new_record(make, replays):
    def kind():
        read, change = make()

        def model(y):
            mu = pyro.sample("mu", dist.Normal(0.0, read()))
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

        def guide(y):
            pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.5)), 1.0))

        def calls(i):
            if i == 4:
                change()
            return (torch.tensor(1.0),), {}

        return Script(model, guide, calls)

    assert_same(fitted(kind, pyro_compat.SVI, 7, engine="trace"), fitted(kind, infer.SVI, 7), 1e-6)
    said = replays()
    assert sum("recorded in" in s for s in said) == 2 and not any("as in Pyro" in s for s in said), said


def test_slots_of_an_argument_are_watched(replays):
    @dataclasses.dataclass(slots=True)
    class Options:
        scale: float = 1.0

    def kind():
        options = Options()

        def model(options, y):
            mu = pyro.sample("mu", dist.Normal(0.0, options.scale))
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

        def calls(i):
            options.scale = 1.0 if i < 4 else 3.0
            return (options, torch.tensor(1.0)), {}

        return Script(model, autoguide.AutoDelta(model), calls)

    assert_same(fitted(kind, pyro_compat.SVI, 7, engine="trace"), fitted(kind, infer.SVI, 7), 1e-6)
    assert any("Options.scale is another one" in s for s in replays())


@pytest.mark.parametrize("count", ["in a class", "in a slot", "in a new attribute", "in a set", "in a deque"])
def test_what_a_program_changes_itself_is_left_as_pyro_does(count, replays):
    """A record is tried, and what it did to Python values is put back."""

    class Counts:
        n = 0

    class Slotted:
        __slots__ = ("n",)

    def fit(svi, **options):
        Counts.n, slotted, seen = 0, Slotted(), Counts()
        slotted.n = 0
        holds: dict[str, Any] = {"set": set(), "deque": collections.deque()}

        def model(y):
            if count == "in a class":
                Counts.n += 1
            elif count == "in a slot":
                slotted.n += 1
            elif count == "in a new attribute":
                setattr(seen, f"n_{len(vars(seen))}", 1)
            elif count == "in a set":
                holds["set"].add(len(holds["set"]))
            else:
                holds["deque"].append(1)
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

        def guide(y):
            pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.5)), 1.0))

        fitted(lambda: Script(model, guide, always(torch.tensor(1.0))), svi, 5, **options)
        return Counts.n, slotted.n, vars(seen), holds

    assert fit(pyro_compat.SVI, engine="trace") == fit(infer.SVI)
    assert "itself, at each call" in replays()[-1]


def test_a_fit_is_copied_without_its_records():
    script = own_guide()
    svi = pyro_compat.SVI(script.model, script.guide, optim.SGD({"lr": 0.0}), infer.Trace_ELBO(), engine="trace")
    for _ in range(3):
        svi.step(SIGMA, Y)
    pyro.set_rng_seed(0)
    expected = svi.step(SIGMA, Y)
    pyro.set_rng_seed(0)
    assert math.isclose(copy.deepcopy(svi).step(SIGMA, Y), expected, rel_tol=1e-6)


def test_within_a_handler_steps_are_pyros():
    def fit(svi, **options):
        with poutine.scale(scale=0.5):
            return fitted(own_guide, svi, **options)

    assert_same(fit(pyro_compat.SVI, engine="trace"), fit(infer.SVI), 1e-7)


def test_there_is_no_such_engine():
    with pytest.raises(PpgenError, match="there is no engine 'tracer'.*'trace'"):
        pyro_compat.SVI(schools, schools, optim.Adam({"lr": 0.1}), infer.Trace_ELBO(), engine="tracer")


def test_other_names_are_those_of_pyro():
    from ppgen.pyro_compat import MCMC, Predictive, Trace_ELBO, TraceGraph_ELBO, autoguide, config_enumerate

    assert (Trace_ELBO, TraceGraph_ELBO, MCMC) == (infer.Trace_ELBO, infer.TraceGraph_ELBO, infer.MCMC)
    assert autoguide is infer.autoguide and config_enumerate is infer.config_enumerate
    assert issubclass(Predictive, infer.Predictive)
    with pytest.raises(AttributeError, match="Trace_ELBOW"):
        pyro_compat.Trace_ELBOW  # noqa: B018


# -- MCMC and predictions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["NUTS", "HMC"])
def test_the_same_chain_from_the_same_seed(kernel, capsys):
    def run(module):
        pyro.set_rng_seed(0)
        options = {"num_steps": 4} if kernel == "HMC" else {"max_tree_depth": 4}
        chain = module.MCMC(
            getattr(module, kernel)(schools, **options), num_samples=15, warmup_steps=10, disable_progbar=True
        )
        chain.run(SIGMA, Y)
        chain.summary()
        return chain, capsys.readouterr().out

    (ours, printed), (pyros, expected) = run(pyro_compat), run(infer)
    assert printed == expected and "theta[7]" in printed
    for name, draws in pyros.get_samples().items():
        torch.testing.assert_close(ours.get_samples()[name], draws, rtol=1e-5, atol=1e-5)
    assert ours.diagnostics()["divergences"] == pyros.diagnostics()["divergences"]


def test_chains_of_discrete_latents_are_the_same():
    def run(module):
        pyro.set_rng_seed(0)
        kernel = module.NUTS(mixture, max_plate_nesting=1, max_tree_depth=3)
        chain = module.MCMC(kernel, num_samples=5, warmup_steps=5, num_chains=1, disable_progbar=True)
        chain.run(COUNTS)
        return chain.get_samples()

    ours, pyros = run(pyro_compat), run(infer)
    for name, draws in pyros.items():
        torch.testing.assert_close(ours[name], draws, rtol=1e-4, atol=1e-4)


def test_a_chain_whose_potential_branches_is_pyros(caplog):
    script = branching()
    draws = []
    for module in (pyro_compat, infer):
        pyro.set_rng_seed(0)
        chain = module.MCMC(module.NUTS(script.model), num_samples=4, warmup_steps=4, disable_progbar=True)
        chain.run(torch.tensor(1.0))
        draws.append(chain.get_samples()["mu"])
    assert torch.equal(*draws)
    assert "NUTS runs as in Pyro" in caplog.text and "mu > 0" in caplog.text


def of_the_prior() -> dict[str, Any]:
    return {"num_samples": 40}


def of_draws() -> dict[str, Any]:
    shapes = {"mu": (40,), "tau": (40,), "theta": (40, 8)}
    return {"posterior_samples": {n: torch.rand(s) for n, s in shapes.items()}, "return_sites": ("y", "_RETURN")}


def of_a_guide() -> dict[str, Any]:
    guide = autoguide.AutoNormal(schools)
    guide(SIGMA, Y)
    return {"guide": guide, "num_samples": 40}


def of_a_guide_in_parallel() -> dict[str, Any]:
    return of_a_guide() | {"parallel": True}


@pytest.mark.parametrize("make", [of_the_prior, of_draws, of_a_guide, of_a_guide_in_parallel], ids=lambda f: f.__name__)
def test_the_same_predictions_from_the_same_seed(make):
    options, found = make(), []
    for module in (pyro_compat, infer):
        pyro.set_rng_seed(1)
        found.append(module.Predictive(schools, **options)(SIGMA))
    assert found[0].keys() == found[1].keys()
    for name, values in found[1].items():
        assert torch.equal(found[0][name], values), name


def test_predictions_of_a_program_that_counts_are_pyros():
    script, found = counting(), []
    for module in (pyro_compat, infer):
        pyro.set_rng_seed(1)
        script.model.calls = 0
        found.append(module.Predictive(script.model, num_samples=40)(None)["y"])
    assert torch.equal(*found)
