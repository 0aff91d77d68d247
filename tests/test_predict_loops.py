"""Predictions where values have to be put back in their places: rows of a sequential plate, times beyond the fitted
ones (Kalman filter), plates with dims."""

from __future__ import annotations

from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import tensor

from ppgen import Program
from ppgen.cli.output import _minibatches
from ppgen.errors import PpgenError
from ppgen.inference import fit, infer, mcmc, predict

WIDE, SD = 30.0, 0.1
ROWS = {"x": torch.zeros(4), "a": tensor([10.0, -10.0, 20.0, -20.0])}
NEW = {"x": tensor([1.0, 2.0])}


def plate(x, a=None):
    for i in pyro.plate("data", len(x)):
        row(i, x, a)


def vectorized(x, a=None):
    mean = pyro.sample("mean", dist.Normal(0.0, WIDE))
    with pyro.plate("data", len(x)):
        pyro.sample("a", dist.Normal(mean + x, SD), obs=a)


def loop(x, a=None):
    for i in range(len(x)):
        row(i, x, a)


def row(i, x, a):
    u = pyro.sample(f"u_{i}", dist.Normal(0.0, WIDE))
    pyro.sample(f"a_{i}", dist.Normal(u + x[i], SD), obs=None if a is None else a[i])


@pytest.mark.parametrize("by", ["chains", "guide"])
def test_new_rows_of_a_sequential_plate_have_latents_of_their_own(by, caplog):
    if by == "guide":
        fitted, n = fit(Program.from_pair(plate), ROWS, steps=20, lr=0.1, engine="eager"), 1000
        found = predict(fitted, NEW, draws=n)["predictions"]
    else:
        fitted, n = mcmc(plate, ROWS, chains=16, draws=50, warmup=50, predictive=False, prior=False), 800
        found = predict(fitted, NEW, program=plate)["predictions"]
    for i, x in enumerate(NEW["x"].tolist()):
        assert abs(float(found[f"a_{i}"].mean()) - x) < 5 * WIDE / n**0.5
        assert abs(float(found[f"a_{i}"].std()) / WIDE - 1) < 5 / (2 * n) ** 0.5
    assert "loop" not in caplog.text
    again = predict(fitted, {"x": ROWS["x"]}, program=None if by == "guide" else plate)["predictions"]
    assert abs(float(again["a_0"].mean()) - 10) < (1.0 if by == "chains" else 10.0)  # the fitted rows keep theirs


def test_rows_of_a_loop_that_is_no_plate_are_said_to_be_the_fitted_ones(caplog):
    run = fit(Program.from_pair(loop), ROWS, steps=1, engine="eager")
    predict(run, {"x": torch.zeros(6)}, draws=10)  # the fitted rows, and two more
    assert "loop" not in caplog.text
    predict(run, NEW, draws=10)
    assert "are those of the fitted rows" in caplog.text and "'u_0'" in caplog.text


def test_a_number_of_classes_that_the_data_tell_is_that_of_the_fit():
    """p ~ Dirichlet(1, 1, 1) and counts of 2, 3 and 1: the mean of p is (3, 4, 2) / 9."""

    def classes(x, y):
        p = pyro.sample("p", dist.Dirichlet(torch.ones(int(y.max()) + 1)))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(p), obs=y)

    data = {"x": torch.zeros(6), "y": tensor([0, 1, 2, 1, 1, 0])}
    tree = mcmc(classes, data, chains=16, draws=100, warmup=100, predictive=False, prior=False)
    found = predict(tree, {"x": torch.zeros(2)}, program=classes)["predictions"]["y"].values
    for value, share in enumerate((3 / 9, 4 / 9, 2 / 9)):
        assert abs((found == value).mean() - share) < 5 * (share * (1 - share) / 1600) ** 0.5


def test_another_series_is_not_said_to_be_the_fitted_one(caplog):
    def series(y):
        for t in range(len(y)):
            u = pyro.sample(f"u_{t}", dist.Normal(0.0, WIDE))
            pyro.sample(f"y_{t}", dist.Normal(u, SD), obs=y[t])

    run = fit(Program.from_pair(series), {"y": ROWS["a"]}, steps=1, engine="eager")
    predict(run, {"y": ROWS["a"]}, draws=5)
    assert "loop" not in caplog.text
    predict(run, {"y": ROWS["a"] + 1}, draws=5)
    assert "are those of the fitted rows" in caplog.text


STEP, NOISE, Y = 0.5, 0.3, tensor([0.0, 0.5, 1.2, 1.0, 1.8, 2.3])


def level(times, y=None):
    now = pyro.sample("level_0", dist.Normal(0.0, 1.0))
    for t in range(times):
        now = pyro.sample(f"level_{t}", dist.Normal(now, STEP)) if t else now
        pyro.sample(f"y_{t}", dist.Normal(now, NOISE), obs=y[t] if y is not None and t < len(y) else None)


def filtered():
    """Mean and variance of the last level: a Kalman filter."""
    mean, var = 0.0, 1.0
    for t, y in enumerate(Y.tolist()):
        var += STEP**2 * (t > 0)
        gain = var / (var + NOISE**2)
        mean, var = mean + gain * (y - mean), var * (1 - gain)
    return mean, var


@pytest.mark.parametrize("given", [{}, {"y": Y}], ids=["times alone", "with the series"])
def test_times_beyond_the_fitted_ones_are_forecast(given):
    tree = mcmc(level, {"times": 6, "y": Y}, chains=32, draws=100, warmup=200, predictive=False, prior=False)
    found, (mean, var) = predict(tree, {"times": 8} | given, program=level)["predictions"], filtered()
    assert set(found) == {f"y_{t}" for t in range(0 if not given else 6, 8)}
    for t in (6, 7):
        sd = (var + (t - 5) * STEP**2 + NOISE**2) ** 0.5
        assert abs(float(found[f"y_{t}"].mean()) - mean) < 5 * sd / 1500**0.5  # effective draws of the chains, at least
        assert abs(float(found[f"y_{t}"].std()) / sd - 1) < 5 / (2 * 1500) ** 0.5


def items(y):
    people, tests = pyro.plate("people", y.shape[0], dim=-2), pyro.plate("tests", y.shape[1], dim=-1)
    with people:
        a = pyro.sample("a", dist.Normal(0.0, 10.0))
    with tests:
        b = pyro.sample("b", dist.Normal(0.0, 10.0))
    with people, tests:
        pyro.sample("y", dist.Normal(a + b, SD), obs=y)


@pytest.mark.parametrize("tests", [3, 4], ids=["as many as people", "more than people"])
def test_chains_of_a_plate_with_a_dim_are_those_of_its_rows(tests):
    y = tensor([[5.0], [0.0], [-5.0]]) + torch.arange(float(tests))
    tree = mcmc(items, {"y": y}, chains=16, draws=50, warmup=200, predictive=False, prior=False)
    found = predict(tree, {"y": y}, program=items)["predictions"]["y"]
    assert found.shape == (16, 50, 3, tests)
    assert (
        abs(found.mean(("chain", "draw")).values - y.numpy()).max() < 1.5 * SD
    )  # y_ij ~ a_i + b_j: s.e. of SD at most


@pytest.mark.parametrize("by", ["chains", "guide"])
def test_no_columns_are_one_new_row(by):
    y = tensor([[50.0], [50.0], [50.0]]) + torch.arange(4.0)
    if by == "guide":
        fitted, named = fit(Program.from_pair(items), {"y": y}, steps=1, engine="eager"), None
    else:
        fitted, named = mcmc(items, {"y": y}, chains=4, draws=50, warmup=20, predictive=False, prior=False), items
    assert predict(fitted, {}, program=named, draws=50)["predictions"]["y"].shape[2:] == (1, 4)


def test_a_vector_of_all_times_is_not_known_at_more_of_them():
    def walk(times, y=None):
        steps = pyro.sample("steps", dist.Normal(torch.zeros(times), STEP).to_event(1))
        n = times if y is None else len(y)
        pyro.sample("y", dist.Normal(steps.cumsum(0)[:n], NOISE).to_event(1), obs=y)

    run = fit(Program.from_pair(walk), {"times": 6, "y": Y}, steps=1, engine="eager")
    assert predict(run, {"times": 6}, draws=5)["predictions"]["y"].shape[2:] == (6,)
    with pytest.raises(PpgenError, match=r"'steps' has the shape \(6,\) in the posterior and \(8,\) here"):
        predict(run, {"times": 8}, draws=5)


@pytest.mark.parametrize("program, takes", [(plate, False), (loop, False), (vectorized, True)])
def test_check_says_whether_a_batch_of_rows_can_be_weighed(program, takes):
    """As a fit takes it, or refuses it in its first steps."""
    run = fit(Program.from_pair(program), ROWS, steps=1, engine="eager")
    assert _minibatches(run).startswith("yes") == takes
    with nullcontext() if takes else pytest.raises(PpgenError):
        fit(Program.from_pair(program), ROWS, steps=1, batch_size=2, engine="eager")


def levels(y, lengths=None):
    """Local levels of several series: z_t ~ N(z_{t-1}, 1), y_t ~ N(z_t, 0.5); of some the last times are not there."""
    with pyro.plate("series", len(y)):
        z = torch.zeros(len(y))
        for t in range(y.shape[1]):
            there = torch.ones(len(y), dtype=torch.bool) if lengths is None else t < lengths
            with poutine.mask(mask=there):
                z = pyro.sample(f"z_{t}", dist.Normal(z, 1.0))
                pyro.sample(f"y_{t}", dist.Normal(z, 0.5), obs=y[:, t])


@pytest.mark.parametrize("by_length", [False, True])
@pytest.mark.parametrize("by", ["draws", "guide"])
def test_series_in_a_plate_go_on_from_their_fitted_times(by, by_length):
    y = tensor([[1.0, 2.0, 4.0], [-1.0, 0.5, -3.0], [8.0, 7.0, 9.0]])
    data = {"y": y} | ({"lengths": tensor([3, 3, 3])} if by_length else {})
    new = {"y": torch.cat([y, torch.zeros(3, 2)], 1)} | ({"lengths": tensor([5, 5, 5])} if by_length else {})
    if by == "draws":
        found = predict(infer(levels, data), new, program=levels)["predictions"]
    else:
        run = fit(levels, data, guide="AutoMultivariateNormal", steps=2000, lr=0.03, schedule="cosine")
        found = predict(run, new, draws=4000)["predictions"]
    mean, var = torch.zeros(3), 0.0
    for t in range(3):  # Kalman's filter
        gain = (var + 1) / (var + 1 + 0.25)
        mean, var = mean + gain * (y[:, t] - mean), (1 - gain) * (var + 1)
    for ahead, name in ((1, "y_3"), (2, "y_4")):
        drawn, sd = found[name].values.reshape(-1, 3), (var + ahead + 0.25) ** 0.5
        assert abs(drawn.mean(0) - mean.numpy()).max() < (0.1 if by == "draws" else 0.2)
        assert abs(drawn.std(0) / sd - 1).max() < 0.06


def test_other_series_have_states_of_their_own():
    y = tensor([[1.0, 2.0, 4.0], [-1.0, 0.5, -3.0]])
    other = torch.cat([y.flip(0), torch.zeros(2, 1)], 1)
    drawn = predict(infer(levels, {"y": y}), {"y": other}, program=levels)["predictions"]["y_0"].values.reshape(-1, 2)
    assert abs(drawn.mean(0)).max() < 5 * 1.25**0.5 / len(drawn) ** 0.5
