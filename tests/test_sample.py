"""Draws from the model: their distribution against theory, what can be held fixed, and what is refused."""

from __future__ import annotations

import math
from contextlib import nullcontext
from importlib import import_module

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from known import SCHOOLS, Gaussian, NormalMean, Regression, binary, draws_agree, normal, ppca
from pyro.nn import PyroModule, PyroSample
from torch import nn

from ppgen import PpgenError, Program, rows
from ppgen.inference import compare, diagnose, fit, loglik, posterior, reconstruct, report, sample
from ppgen.models import VAE, EightSchools

# -- the joint -------------------------------------------------------------------------------------


def test_draws_of_ppca_are_those_of_its_joint():
    program = ppca()
    found = sample(program, 20_000, seed=1)
    assert {k: tuple(v.shape) for k, v in found.items()} == {"z": (20_000, 2), "x": (20_000, 4)}
    w, mu, sigma = program.W.detach(), program.mu.detach(), program.sigma.item()
    draws_agree(found["z"], [0.0, 0.0], [1.0, 1.0])
    draws_agree(found["x"], mu, (w @ w.T).diagonal() + sigma**2)
    noise = found["x"] - mu - found["z"] @ w.T  # z and x of one row belong together
    draws_agree(noise, [0.0] * 4, [sigma**2] * 4)
    cross = found["z"][:, :1] * (found["x"] - mu)  # E[z_1 (x - mu)] = first column of W
    se = cross.std(0) / len(cross) ** 0.5
    assert ((cross.mean(0) - w[:, 0]).abs() < 4 * se).all()


def test_blocks_of_rows_are_one_sample(monkeypatch):
    monkeypatch.setattr(import_module("ppgen.inference.evaluation.sample"), "CHUNK", 300)
    draws_agree(sample(Gaussian(), 5000, seed=2)["x"], 0.5, 4.0)


def test_a_program_with_global_latents_draws_data_sets():
    found = sample(EightSchools(), 2000, given={"sigma": SCHOOLS["sigma"]}, seed=0)
    assert {k: tuple(v.shape) for k, v in found.items()} == {
        "mu": (2000,), "tau": (2000,), "eta": (2000, 8), "theta": (2000, 8), "y": (2000, 8)
    }  # fmt: skip
    draws_agree(found["mu"], 0.0, 25.0)
    draws_agree(found["eta"], [0.0] * 8, [1.0] * 8)
    assert torch.allclose(found["theta"], found["mu"][:, None] + found["tau"][:, None] * found["eta"])
    draws_agree((found["y"] - found["theta"]) / SCHOOLS["sigma"], [0.0] * 8, [1.0] * 8)
    # tau ~ HalfCauchy(5) has no mean: its median is 5
    assert abs((found["tau"] < 5).float().mean().item() - 0.5) < 4 * 0.5 / 2000**0.5


def test_global_latents_and_no_column_draw_one_row():
    found = sample(NormalMean(), 1000, seed=0)
    assert found["m"].shape == (1000,) and found["x"].shape == (1000, 1)
    draws_agree(found["x"][:, 0], 0.0, 2.0**2 + 1.5**2)


@settings(max_examples=15, deadline=None)
@given(n=st.integers(1, 40), seed=st.integers(0, 2**31))
def test_n_leads_and_a_seed_repeats(n, seed):
    program = ppca()
    before = torch.get_rng_state()
    a, b = (sample(program, n, seed=seed) for _ in range(2))
    assert all(len(v) == n and torch.equal(v, b[k]) for k, v in a.items())
    assert torch.equal(before, torch.get_rng_state())


def test_without_a_seed_torchs_random_state_goes_on():
    program = ppca()
    torch.manual_seed(5)
    a, b = sample(program, 3), sample(program, 3)
    torch.manual_seed(5)
    assert torch.equal(sample(program, 3)["x"], a["x"]) and not torch.equal(a["x"], b["x"])


class Noisy(Program):
    """Dropout, which must be off when a fitted program is sampled."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.5))

    def model(self, x=None):
        with rows(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(self.layer(z[..., None])[..., 0], 1e-6), obs=x)


def test_a_program_is_sampled_in_eval_mode_and_left_in_its_own():
    program = Noisy()
    found = sample(program, 500, seed=0)
    assert torch.allclose(found["x"], program.layer[0](found["z"][:, None])[:, 0], atol=1e-4)
    assert program.training


# -- held fixed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("z", [torch.tensor([1.0, -1.0]), torch.tensor([[1.0, -1.0]])])
def test_a_latent_held_fixed_for_all_draws(z):
    program = ppca()
    found = sample(program, 8000, given={"z": z}, seed=0)
    assert torch.equal(found["z"], z.expand(8000, 2))
    mean = (program.mu + program.W @ z.reshape(2)).detach()
    draws_agree(found["x"], mean, [program.sigma.item() ** 2] * 4)


def test_a_latent_held_fixed_one_a_draw(monkeypatch):
    monkeypatch.setattr(import_module("ppgen.inference.evaluation.sample"), "CHUNK", 7)
    z = normal(20, 2)
    assert torch.equal(sample(ppca(), 20, given={"z": z})["z"], z)


def test_an_observed_column_is_held():
    program, x = ppca(), normal(5, 4)
    found = sample(program, 5, given={"x": x}, seed=0)
    assert torch.equal(found["x"], x) and found["z"].shape == (5, 2)


def pair_model(x):
    theta = pyro.param("theta", torch.tensor(0.5))
    with pyro.plate("images", x.shape[0]):
        z = pyro.sample("latent", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("obs", dist.Normal(theta * z, 1.0).to_event(1), obs=x)


def pair_guide(x):
    scale = pyro.param("scale", torch.tensor(1.0))
    with pyro.plate("images", x.shape[0]):
        pyro.sample("latent", dist.Normal(x, scale).to_event(1))


def test_a_pair_that_cannot_do_without_its_data():
    """Pyro's own examples take x without a default: a run knows what it looks like, and draws it."""
    x = normal(30, 3)
    run = fit(Program.from_pair(pair_model, pair_guide), {"x": x}, steps=0)
    found = sample(run, 6000, seed=0)
    assert {k: tuple(v.shape) for k, v in found.items()} == {"latent": (6000, 3), "obs": (6000, 3)}
    draws_agree(found["obs"], [0.0] * 3, [1.25] * 3)
    held = sample(run, 30, given={"x": x})  # the column of a site by another name
    assert torch.equal(held["obs"], x)
    with pytest.raises(PpgenError, match="cannot be run without the column 'x'; pass it"):
        sample(run.program, 5)


@pytest.mark.parametrize("y", [torch.tensor(2), torch.tensor([2]), torch.tensor([2] * 40)])
def test_a_label_is_given(y):
    torch.manual_seed(0)
    program = VAE(features=6, latent=2, hidden=(8,), classes=3)
    program.decoder.requires_grad_(False)
    z = normal(40, 2)
    found = sample(program, 40, given={"y": y, "z": z}, seed=0)
    assert found["x"].shape == (40, 6) and "y" not in found
    labels = torch.full((40,), 2)
    assert torch.equal(found["x"], sample(program, 40, given={"y": labels, "z": z}, seed=0)["x"])
    other = sample(program, 40, given={"y": torch.tensor(1), "z": z}, seed=0)
    assert not torch.equal(found["x"], other["x"])


def test_labels_of_another_number_draw_data_sets():
    program = VAE(features=6, latent=2, hidden=(8,), classes=3)
    assert sample(program, 10, given={"y": torch.tensor([0, 1, 2])})["x"].shape == (10, 3, 6)


def test_global_sites_one_a_draw_or_one_for_all():
    mu, sigma = torch.linspace(-5.0, 5.0, 10), SCHOOLS["sigma"]
    found = sample(EightSchools(), 10, given={"sigma": sigma, "mu": mu, "eta": torch.zeros(8)})
    assert torch.equal(found["mu"], mu)
    assert torch.allclose(found["theta"], mu[:, None].expand(10, 8))
    found = sample(EightSchools(), 10, given={"sigma": sigma, "mu": torch.tensor(3.0)})
    assert torch.equal(found["mu"], torch.full((10,), 3.0))
    found = sample(
        EightSchools(), 8, given={"sigma": sigma, "eta": torch.arange(8.0)}
    )  # 8 schools, 8 draws: one for all
    assert torch.equal(found["eta"], torch.arange(8.0).expand(8, 8))


class Pixels(Program):
    """A plate of 3 pixels left of the rows: rows are not the leading dimension of a value."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.01))

    def model(self, x=None):
        with pyro.plate("pixel", 3, dim=-2), rows(x):
            z = pyro.sample("z", dist.Normal(torch.arange(3.0)[:, None], 1.0))
            twice = pyro.deterministic("twice", 2 * z)
            pyro.sample("x", dist.Normal(twice, self.scale), obs=x)


def test_rows_that_are_not_the_leading_dimension():
    found = sample(Pixels(), 5000, seed=0)
    assert {tuple(v.shape) for v in found.values()} == {(5000, 3)}
    draws_agree(found["z"], [0.0, 1.0, 2.0], [1.0] * 3)
    assert torch.equal(found["twice"], 2 * found["z"])
    z = normal(20, 3)
    held = sample(Pixels(), 20, given={"z": z})
    assert torch.equal(held["z"], z) and torch.allclose(held["x"], 2 * z, atol=0.06)


def test_constants_are_passed_whole():
    class Table(Program):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.tensor(0.0))

        def model(self, t, x=None):
            with rows(x):
                pyro.sample("x", dist.Normal(t.sum() + self.a, 1.0), obs=x)

    t = torch.tensor([1.0, 2.0, 4.0])
    run = fit(Table(), {"t": t, "x": normal(50)}, steps=0)
    draws_agree(sample(run, 3000, given={"t": t}, seed=0)["x"], 7.0, 1.0)
    draws_agree(sample(run, 3, given={"t": t}, seed=0)["x"], 7.0, 1.0)  # as many draws as t is long


class Twice(Program):
    def __init__(self):
        super().__init__()
        self.mu = nn.Parameter(torch.tensor(0.0))

    def model(self, x=None):
        with rows(x):
            z = pyro.sample("z", dist.Normal(self.mu, 1.0))
        with rows(x):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


class TwoLayers(Program):
    """Two PyroModules beside each other, whose sites have one name."""

    def __init__(self):
        super().__init__()
        self.one, self.two = (PyroModule[nn.Linear](2, 2, bias=False) for _ in range(2))
        for layer in (self.one, self.two):
            layer.weight = PyroSample(dist.Normal(0.0, 1.0).expand([2, 2]).to_event(2))

    def model(self, x=None):
        pyro.sample("x", dist.Normal(self.two(self.one(torch.ones(2))), 1.0).to_event(1), obs=x)


# -- refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "program, n, held, message",
    [
        (Twice, 3, {}, "Twice uses the name 'data' twice in one run"),
        (TwoLayers, 3, {}, "prior of 'weight' in one and two, .* put both into one PyroModule: self.net = PyroModule"),
        (ppca, 0, {}, "n is 0"),
        (ppca, 2.5, {}, "n is 2.5"),
        (ppca, 5, {"zz": torch.zeros(2)}, "'zz' is neither a column nor a site of PPCA .did you mean 'z'"),
        (ppca, 5, {"z": torch.zeros(3)}, r"'z' has the shape \(3,\); expected \(2,\) for all draws, or \(5, 2\)"),
        (EightSchools, 5, {}, "cannot be run without the column 'sigma'"),
        (EightSchools, 5, {"sigma": SCHOOLS["sigma"], "theta": torch.zeros(8)}, "'theta' is neither"),
        (lambda: VAE(6, 2, (8,), classes=3), 5, {}, "pass a column y"),
        (ppca, 5, {"x": torch.zeros(5, 3)}, "'x' is given values of shape"),
        (Regression, 2, {"y": torch.zeros(2)}, "column 'x'"),
    ],
)
def test_what_cannot_be_sampled_is_said(program, n, held, message):
    with pytest.raises(PpgenError, match=message):
        sample(program(), n, given=held)


def test_a_bare_function_is_sampled_and_else_named():
    def one():
        return pyro.sample("x", dist.Normal(3.0, 1.0))

    draws_agree(sample(one, 3000, seed=0)["x"], 3.0, 1.0)
    for call in (posterior, loglik, diagnose):
        with pytest.raises(PpgenError, match="one is neither a run nor a program: fit it first"):
            call(one, {"x": torch.zeros(2)})
    for call, what in ((lambda p: diagnose(p, {"x": torch.zeros(2, 3)}), "diagnose"), (report, "report")):
        with pytest.raises(PpgenError, match=f"{what} takes a run, and PPCA is a program"):
            call(ppca())
    with pytest.raises(PpgenError, match="compare got a function; name two runs or more"):
        compare(one)


# -- reconstruct -----------------------------------------------------------------------------------


def test_reconstruction_is_the_mean_given_a_draw_of_the_guide():
    program, x = ppca(), normal(4, 4)
    often = {"x": x.repeat(2000, 1)}
    many = reconstruct(program, often, seed=0)["x"].reshape(2000, 4, 4)
    posterior = program.posterior(x)
    mean = (program.mu + posterior.mean @ program.W.T).detach()
    var = (program.W @ posterior.covariance_matrix @ program.W.T).diagonal(dim1=-2, dim2=-1).detach()
    draws_agree(many, mean, var.expand(4, 4))
    noisy = reconstruct(program, often, seed=1, mean=False)["x"].reshape(2000, 4, 4)
    draws_agree(noisy, mean, var.expand(4, 4) + program.sigma.item() ** 2)


def test_categories_have_no_mean():
    class Kinds(Program):
        def __init__(self):
            super().__init__()
            self.logits = nn.Parameter(torch.tensor([0.0, 1.0, 2.0]))

        def model(self, k=None):
            with rows(k):
                pyro.sample("k", dist.Categorical(logits=self.logits), obs=k)

    found = reconstruct(Kinds(), {"k": torch.tensor([0, 1, 2, 2])}, seed=0)["k"]
    assert found.shape == (4,) and set(found.tolist()) <= {0, 1, 2}


def test_reconstruction_of_other_rows_than_an_autoguide_knows():
    run = fit(EightSchools(), SCHOOLS, steps=1)
    few = {k: v[:5] for k, v in SCHOOLS.items()}
    with pytest.raises(PpgenError, match="AutoNormal has one posterior for each of the 8 rows .* these data have 5"):
        reconstruct(run, few)


@pytest.mark.parametrize("ask", [posterior, loglik])
def test_an_autoguide_at_other_values_of_as_many_rows_is_said(ask, caplog):
    """Latents of the fitted rows were given for those of others, without a word."""
    run = fit(EightSchools(), SCHOOLS, steps=1)
    ask(run, {k: v.double() for k, v in SCHOOLS.items()})
    assert "has one posterior for each of the rows" not in caplog.text
    for other in ({k: v.flip(0) for k, v in SCHOOLS.items()}, SCHOOLS | {"y": SCHOOLS["y"] + 1}):
        caplog.clear()
        ask(run, other)
        assert "AutoNormal has one posterior for each of the rows" in caplog.text


def test_grey_images_under_bernoulli_are_refused():
    run = fit(VAE(6, 2, (8,)), {"x": binary()}, steps=1)
    with pytest.raises(PpgenError, match="'x'.*Bernoulli"):
        reconstruct(run, {"x": torch.full((4, 6), 0.5)})
    assert not math.isnan(float(reconstruct(run, {"x": binary(3, 6)}, seed=1)["x"].sum()))


# -- observed one by one ---------------------------------------------------------------------------


def tosses(x):
    p = pyro.sample("p", dist.Beta(2.0, 6.0))
    for i in range(len(x)):
        pyro.sample(f"x_{i}", dist.Bernoulli(p), obs=x[i])


def moved(x):
    p = pyro.sample("p", dist.Normal(0.0, 1.0))
    centred = x - x.mean()
    for i in range(len(x)):
        pyro.sample(f"x_{i}", dist.Normal(p * centred[i], 1.0), obs=x[i])


def test_rows_that_are_observed_one_by_one_are_all_drawn():
    run = fit(Program.from_pair(tosses), {"x": torch.tensor([1, 0, 1, 1, 0])}, steps=2)
    found = sample(run, 4000, seed=0)
    assert set(found) == {"p", *(f"x_{i}" for i in range(5))}
    for i in range(5):
        assert float(found[f"x_{i}"].mean()) == pytest.approx(0.25, abs=4 * 0.01)


def test_a_column_whose_values_are_read_stands_in_for_nothing():
    """Differences within a column, too: no constant may be added to it to find out."""
    run = fit(Program.from_pair(moved), {"x": torch.randn(5)}, steps=2)
    with pytest.raises(PpgenError, match="cannot be run without the column 'x'"):
        sample(run, 4)


# -- what is held -------------------------------------------------------------------------------------------


class _Pair(Program):
    """a ~ N(0, 1), b | a ~ N(a, 1), y | b ~ N(b, 1); or with the value of a row's own."""

    def __init__(self, local: bool):
        super().__init__()
        self.local = local

    def model(self, y=None, x=None):
        with rows(y, x) if self.local else nullcontext():
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(a if x is None else a + x, 1.0))
            with nullcontext() if self.local else rows(y):
                pyro.sample("y", dist.Normal(b, 1.0), obs=y)


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("held", ["a", "b", "y", "x"])
def test_a_given_column_that_depends_on_what_is_drawn_is_said(local, held, caplog):
    """b given y = 2 has mean 4 / 3, and was drawn about 0, without a word; to hold b is an intervention."""
    drawn = sample(_Pair(local), 4000, given={held: torch.tensor([2.0]) if held in "xy" else torch.tensor(2.0)}, seed=0)
    assert ("does not condition on the given column 'y'," in caplog.text) == (held == "y")
    assert held == "y" or "does not condition" not in caplog.text
    if held == "b":
        assert abs(float(drawn["a"].mean())) < 4.5 / 4000**0.5
