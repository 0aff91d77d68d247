"""Predictions of one observed column given another: against the conditional of a bivariate normal.

y_1 ~ N(mu, 1),  y_2 | y_1 ~ N(y_1, SD)
"""

from __future__ import annotations

from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import tensor

import ppgen
from ppgen import Program
from ppgen.errors import PpgenError
from ppgen.inference import fit, mcmc, predict, sample

SD = 0.1
DATA = {"x": torch.zeros(4), "a": tensor([0.0, 1.0, -1.0, 0.5]), "b": tensor([0.1, 1.1, -0.9, 0.4])}
NEW = {"x": torch.zeros(2)}


class Pair(Program):
    """`a`, and `b` around it."""

    def model(self, x, a=None, b=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with ppgen.rows(x):
            y = pyro.sample("y", dist.Normal(mu + x, 1.0), obs=a)
            pyro.sample("b", dist.Normal(y, SD), obs=b)


class Shared(Program):
    """Both around a latent of their row, which `b` given tells and the model's prior of the row does not know."""

    def model(self, x, a=None, b=None):
        with ppgen.rows(x):
            u = pyro.sample("u", dist.Normal(0.0, 1.0))
            pyro.sample("a", dist.Normal(u + x, SD), obs=a)
            pyro.sample("b", dist.Normal(u, SD), obs=b)


class Groups(Program):
    def model(self, g, a=None, b=None):
        with pyro.plate("groups", 2):
            level = pyro.sample("level", dist.Normal(0.0, 1.0))
        with ppgen.rows(g):
            y = pyro.sample("a", dist.Normal(level[g], 1.0), obs=a)
            pyro.sample("b", dist.Normal(y, SD), obs=b)


def test_a_column_is_predicted_given_another():
    given = tensor([30.0, -20.0])
    tree = predict(fit(Pair(), DATA, steps=1, engine="eager"), NEW | {"a": given}, draws=2000)
    predictions = tree["predictions"]
    assert list(predictions.data_vars) == ["b"]
    mean, sd = predictions["b"].mean(("chain", "draw")).values, predictions["b"].std(("chain", "draw")).values
    assert abs(mean - given.numpy()).max() < 5 * SD / 2000**0.5
    assert abs(sd / SD - 1).max() < 5 / (2 * 2000) ** 0.5
    assert (tree["predictions_constant_data"]["a"].values == given.numpy()).all()


def test_chains_predict_given_a_column_of_fitted_groups_and_say_it_of_new_ones(caplog):
    data = {"g": tensor([0, 0, 1, 1]), "a": DATA["a"], "b": DATA["b"]}
    tree = mcmc(Groups(), data, chains=4, draws=100, warmup=50, predictive=False, prior=False)
    new = {"g": tensor([1, 0]), "a": tensor([30.0, -20.0])}
    found = predict(tree, new, program=Groups())["predictions"]
    assert list(found.data_vars) == ["b"]
    assert abs(found["b"].mean(("chain", "draw")).values - new["a"].numpy()).max() < 5 * SD / 400**0.5
    drawn = predict(tree, new | {"g": tensor([0, 2])}, program=Groups(), new_groups="draw")["predictions"]
    assert set(drawn.data_vars) == {"a", "b"}
    assert "not conditioned on the given column 'a'" in caplog.text


def test_all_columns_given_or_none_are_all_predicted():
    run = fit(Pair(), DATA, steps=1, engine="eager")
    for given in ({}, {"a": torch.zeros(2), "b": torch.zeros(2)}):
        assert set(predict(run, NEW | given, draws=5)["predictions"].data_vars) == {"y", "b"}


@pytest.mark.parametrize(
    "program, given",
    [(Pair(), {"b": tensor([30.0, -20.0])}), (Shared(), {"b": tensor([30.0, -20.0])})],
    ids=["the cause given its effect", "a latent of the row"],
)
def test_a_column_that_cannot_be_held_is_said(program, given, caplog):
    run = fit(program, DATA, steps=1, engine="eager")
    predictions = predict(run, NEW | given, draws=50)["predictions"]
    assert len(predictions.data_vars) == 2
    assert f"not conditioned on the given column '{next(iter(given))}'" in caplog.text


class Rare(Program):
    """An effect of a cause that hardly any draw has: a switch, or a count."""

    def __init__(self, cause: str):
        super().__init__()
        self.cause = cause

    def model(self, x, a=None, b=None):
        with ppgen.rows(x):
            rate = torch.full((len(x),), 0.001)
            k = pyro.sample("b", dist.Bernoulli(rate) if self.cause == "switch" else dist.Poisson(rate), obs=b)
            pyro.sample("a", dist.Normal(10 * k + x, SD), obs=a)


@pytest.mark.parametrize("cause", ["switch", "count"])
def test_a_rare_cause_of_a_given_column_is_seen(cause, caplog):
    run = fit(Rare(cause), DATA | {"b": tensor([0.0, 1.0, 0.0, 0.0])}, steps=1, engine="eager")
    predictions = predict(run, {"x": torch.zeros(1), "a": tensor([10.0])}, draws=20)["predictions"]
    assert set(predictions.data_vars) == {"a", "b"}
    assert "not conditioned on the given column 'a'" in caplog.text


class Loop(Program):
    def model(self, x, a=None, b=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        for i in pyro.plate("data", len(x)):
            y = pyro.sample(f"a_{i}", dist.Normal(mu + x[i], 1.0), obs=None if a is None else a[i])
            pyro.sample(f"b_{i}", dist.Normal(y, SD), obs=None if b is None else b[i])


def test_rows_of_a_loop_are_predicted_given_another_column():
    given = tensor([30.0, -20.0, 10.0, 0.0])
    found = predict(fit(Loop(), DATA, steps=1, engine="eager"), {"x": torch.zeros(4), "a": given}, draws=400)
    for i, value in enumerate(given.tolist()):
        assert abs(float(found["predictions"][f"b_{i}"].mean()) - value) < 5 * SD / 400**0.5
        assert f"a_{i}" not in found["predictions"]


class Chain(Program):
    """A latent of the row, and `a`, `b` and `c`, each around the one before."""

    def model(self, x, a=None, b=None, c=None):
        with ppgen.rows(x):
            y = pyro.sample("u", dist.Normal(0.0, 1.0))
            for name, column in (("a", a), ("b", b), ("c", c)):
                y = pyro.sample(name, dist.Normal(y + x, SD), obs=column)


def test_a_column_that_depends_on_one_that_cannot_be_held_is_said_too(caplog):
    run = fit(Chain(), DATA | {"c": DATA["b"]}, steps=1, engine="eager")
    predictions = predict(run, NEW | {"a": tensor([30.0, 30.0]), "b": tensor([30.0, 30.0])}, draws=20)["predictions"]
    assert set(predictions.data_vars) == {"a", "b", "c"}
    assert "not conditioned on the given columns 'a', 'b'" in caplog.text


class Through(Program):
    """`a` of positive numbers, observed by its logarithm, and `b` around that; `c` in two sites, both around `b`."""

    def __init__(self, cause: bool = True):
        super().__init__()
        self.cause = cause

    def model(self, x, a=None, b=None, c=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with ppgen.rows(x):
            own = pyro.sample("u", dist.Normal(mu, 1.0)) if not self.cause else mu
            y = pyro.sample("y", dist.Normal(own + x, SD), obs=None if a is None else a.log())
            y = pyro.sample("b", dist.Normal(y, SD), obs=b)
            for i in range(2):
                pyro.sample(f"c_{i}", dist.Normal(y, SD), obs=None if c is None else c[:, i])


FITTED = {"x": torch.zeros(4), "a": DATA["a"].exp(), "b": DATA["b"], "c": torch.stack([DATA["b"], DATA["b"]], 1)}


def test_a_column_that_is_observed_by_its_logarithm_is_held():
    run = fit(Through(), FITTED, steps=1, engine="eager")
    found = predict(run, NEW | {"a": tensor([30.0, 0.2])}, draws=2000)["predictions"]
    assert set(found.data_vars) == {"b", "c_0", "c_1"}
    error = found["b"].mean(("chain", "draw")).values - tensor([30.0, 0.2]).log().numpy()
    assert abs(error).max() < 5 * SD / 2000**0.5


@pytest.mark.parametrize("column", ["a", "c"])
def test_a_column_that_is_observed_in_part_or_by_its_logarithm_and_cannot_be_held_is_said(column, caplog):
    run = fit(Through(cause=False), FITTED, steps=1, engine="eager")
    found = predict(run, NEW | {column: FITTED[column][:2]}, draws=20)["predictions"]
    assert set(found.data_vars) == {"y", "b", "c_0", "c_1"}
    assert f"not conditioned on the given column '{column}'" in caplog.text


class Encoded(Shared):
    """With a guide that reads the columns of `reads`: u | a, b is a normal of the sum over those that are there."""

    def __init__(self, reads: str = "ab"):
        super().__init__()
        self.reads = reads

    def guide(self, x, a=None, b=None):
        seen = [v for name, v in (("a", a), ("b", b)) if v is not None and name in self.reads]
        precision = 1 + len(seen) / SD**2
        with ppgen.rows(x):
            pyro.sample("u", dist.Normal(sum(seen, torch.zeros(len(x))) / SD**2 / precision, precision**-0.5))


class Needing(Encoded):
    """Whose guide cannot do without either."""

    def guide(self, x, a=None, b=None):
        with ppgen.rows(x):
            pyro.sample("u", dist.Normal((a + b) / 2, SD))


def test_a_guide_that_takes_a_given_column_alone_conditions_on_it(caplog):
    run = fit(Encoded(), DATA, steps=0, engine="eager")
    given = tensor([3.0, -2.0])
    found = predict(run, NEW | {"b": given}, draws=4000)["predictions"]
    assert list(found.data_vars) == ["a"] and "not conditioned" not in caplog.text
    shrunk, sd = given.numpy() / (1 + SD**2), (SD**2 + SD**2 / (1 + SD**2)) ** 0.5  # of a given b, in closed form
    assert abs(found["a"].mean(("chain", "draw")).values - shrunk).max() < 5 * sd / 4000**0.5
    assert abs(found["a"].std(("chain", "draw")).values / sd - 1).max() < 5 / (2 * 4000) ** 0.5


@pytest.mark.parametrize("program", [Encoded("a"), Encoded(""), Needing()], ids=["reads a", "reads none", "needs both"])
def test_a_given_column_that_the_guide_does_not_read_is_said(program, caplog):
    run = fit(program, DATA, steps=0, engine="eager")
    found = predict(run, NEW | {"b": tensor([30.0, -20.0])}, draws=20)["predictions"]
    assert set(found.data_vars) == {"a", "b"}
    assert "not conditioned on the given column 'b'" in caplog.text


def test_a_guide_of_covariates_alone_does_not_stand_for_a_given_column(caplog):
    class Blind(Shared):
        def guide(self, x):
            with ppgen.rows(x):
                pyro.sample("u", dist.Normal(x, 1.0))

    predict(fit(Blind(), DATA, steps=0, engine="eager"), NEW | {"b": tensor([30.0, -20.0])}, draws=20)
    assert "not conditioned on the given column 'b'" in caplog.text


class Threshold(Program):
    def model(self, x, a=None, b=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with ppgen.rows(x):
            y = pyro.sample("y", dist.Bernoulli(logits=mu + x), obs=None if a is None else (a > 2).float())
            pyro.sample("b", dist.Normal(5 * y, SD), obs=b)


def test_a_column_that_is_observed_by_a_threshold_is_held():
    data = {"x": torch.zeros(4), "a": tensor([1.0, 3.0, 1.0, 4.0]), "b": tensor([0.0, 5.0, 0.0, 5.0])}
    found = predict(fit(Threshold(), data, steps=1, engine="eager"), NEW | {"a": tensor([3.5, 0.0])}, draws=50)
    assert list(found["predictions"]) == ["b"]
    assert abs(found["predictions"]["b"].mean(("chain", "draw")).values - [5.0, 0.0]).max() < 5 * SD / 50**0.5


@pytest.mark.parametrize("reads", [False, True], ids=["the site's value", "the column"])
def test_a_column_that_is_read_beside_its_site_is_not_stood_in_for(reads):
    """`b` around the column, not around the site's value: without the column, its fitted rows are no new ones."""

    def model(x, a, b=None):
        mu = pyro.sample("mu", dist.Normal(0.0, a.std()))  # a prior of the data, which the posterior's draws replace
        with ppgen.rows(x):
            y = pyro.sample("a", dist.Normal(mu + x, 1.0), obs=a)
            pyro.deterministic("residual", a - mu)
            pyro.sample("b", dist.Normal(a if reads else y, SD), obs=b)

    run = fit(Program.from_pair(model), DATA, steps=1, engine="eager")
    with pytest.raises(PpgenError, match="needs the column 'a'") if reads else nullcontext():
        assert set(predict(run, NEW, draws=5)["predictions"]) == {"a", "b"}
    with pytest.raises(PpgenError, match="cannot be run without the column 'a'") if reads else nullcontext():
        sample(run, 2, given={"x": torch.zeros(4)})
