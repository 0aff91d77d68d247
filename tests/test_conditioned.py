"""Programs whose latents `poutine.condition` holds: against the predictive normal of a mean with a known noise.

mu ~ N(0, 1),  s ~ HalfNormal(5) held at SD,  y_i ~ N(mu, s):  y_new ~ N(m, v + SD²), v = 1 / (1 + n / SD²)
"""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import tensor

from ppgen import PpgenError, Program
from ppgen.inference import calibrate, fit, loglik, mcmc, posterior, predict
from ppgen.inference.evaluation.compare import loo

SD = 0.3
Y = tensor([1.0, 1.2, 0.7, 1.3, 0.9])
V = 1 / (1 + len(Y) / SD**2)
PREDICTIVE, PRIOR = (V + SD**2) ** 0.5, (1 + SD**2) ** 0.5


def model(x, y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    s = pyro.sample("s", dist.HalfNormal(5.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(mu + 0 * x, s), obs=y)


def inside(x, y=None):
    with poutine.condition(data={"s": tensor(SD)}):
        model(x, y)


def guide(x, y=None):
    pyro.sample("mu", dist.Normal(V * Y.sum() / SD**2, V**0.5))


def all_conditioned(x):
    poutine.condition(model, {"s": tensor(SD), "y": Y})(x)


HELD = {
    "by a decorator": (poutine.condition(model, {"s": tensor(SD)}), {"y": Y}),
    "within": (inside, {"y": Y}),
    "beside conditioned data": (all_conditioned, {}),
}


@pytest.mark.parametrize("program, column", HELD.values(), ids=HELD)
def test_a_conditioned_latent_is_not_drawn_anew(program, column):
    data = {"x": torch.zeros(5)} | column
    run = fit(Program.from_pair(program, guide), data, steps=0, engine="eager")
    tree = posterior(run, data, draws=4000)
    error = 4 / (2 * 4000) ** 0.5  # of a relative sd, s.e. times 4
    assert list(tree.posterior_predictive) == ["y"] and list(tree.prior) == ["mu"]
    assert abs(tree.posterior_predictive["y"].std(("chain", "draw")).values / PREDICTIVE - 1).max() < error
    assert abs(tree.prior_predictive["y"].std(("chain", "draw")).values / PRIOR - 1).max() < error
    found = predict(run, {"x": torch.zeros(2)} if column else data, draws=4000)["predictions"]
    assert list(found) == ["y"]
    assert abs(found["y"].std(("chain", "draw")).values / PREDICTIVE - 1).max() < error


def test_chains_hold_it_and_their_tree_takes_the_function():
    program, column = HELD["by a decorator"]
    tree = mcmc(program, {"x": torch.zeros(5)} | column, chains=16, draws=100, warmup=100)
    for found in (tree.posterior_predictive, predict(tree, {"x": torch.zeros(2)}, program=program)["predictions"]):
        assert list(found) == ["y"]
        assert abs(found["y"].std(("chain", "draw")).values / PREDICTIVE - 1).max() < 5 / (2 * 800) ** 0.5


def test_a_conditioned_latent_is_no_row_of_leave_one_out_and_none_of_a_minibatch():
    program, column = HELD["by a decorator"]
    data = {"x": torch.zeros(5)} | column
    tree = mcmc(program, data, chains=16, draws=100, warmup=100, prior=False)
    assert list(tree.log_likelihood) == list(tree.observed_data) == ["y"]
    sums = [(Y.sum() - y) / SD**2 for y in Y]
    v = 1 / (1 + (len(Y) - 1) / SD**2)
    exact = [float(dist.Normal(v * s, (v + SD**2) ** 0.5).log_prob(y)) for s, y in zip(sums, Y, strict=True)]
    assert loo(tree).values == pytest.approx(exact, abs=0.1)  # by PSIS, of 1600 draws
    run = fit(Program.from_pair(program), data, batch_size=2, steps=3, engine="eager")
    assert run.structure["s"].role == "fixed" and loglik(run, data, particles=10).per == "data set"


def test_conditioned_data_are_drawn_where_no_other_site_is_observed():
    def joint():
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu, SD))

    run = fit(Program.from_pair(poutine.condition(joint, {"y": tensor(1.0)})), {}, steps=1, engine="eager")
    assert list(posterior(run, {}, draws=50).posterior_predictive) == ["y"]


def test_data_are_simulated_with_the_conditioned_value():
    class Pair(Program):
        def model(self, x, y=None):
            inside(x, y)

        def guide(self, x, y):
            pyro.sample("mu", dist.Normal(V * y.sum() / SD**2, V**0.5))

    found = calibrate(Pair(), {"x": torch.zeros(5), "y": Y}, simulations=200, refit=False)
    assert found.names == ["mu", "log p(x | z)"] and found.passes


def covariates_observed(x, y):
    """y[i] ~ N(mu + 0 x[i], s), the covariate observed as well; the data, and no plate around them, conditioned."""

    def joint():
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        s = pyro.sample("s", dist.HalfNormal(5.0))
        seen = pyro.sample("x", dist.Normal(torch.zeros(len(x)), 1.0).to_event(1), obs=x)
        pyro.sample("y", dist.Normal(mu + 0 * seen, s).to_event(1))

    poutine.condition(joint, {"y": y, "s": tensor(SD)})()


def no_plate(y):
    def joint():
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        s = pyro.sample("s", dist.HalfNormal(5.0))
        pyro.sample("y", dist.Normal(mu, s).expand([len(y)]).to_event(1))

    poutine.condition(joint, {"y": y, "s": tensor(SD)})()


@pytest.mark.parametrize("program", [covariates_observed, no_plate])
def test_a_column_that_is_conditioned_is_data_and_the_latent_beside_it_is_not(program):
    x = {"x": torch.zeros(5)} if program is covariates_observed else {}
    data = x | {"y": Y}
    run = fit(Program.from_pair(program, lambda y, x=None: guide(x, y)), data, steps=0, engine="eager")
    tree = posterior(run, data, draws=4000)
    assert {*tree.posterior_predictive} == {*tree.log_likelihood} == {*data}
    error = 4 / (2 * 4000) ** 0.5  # of a relative sd, s.e. times 4
    assert abs(tree.posterior_predictive["y"].std(("chain", "draw")).values / PREDICTIVE - 1).max() < error


@pytest.mark.parametrize("value, said", [(torch.log, True), (torch.zeros_like, False)], ids=["data", "held at 0"])
@pytest.mark.parametrize("run", [fit, mcmc])
def test_data_that_are_held_as_a_latent_are_told(run, value, said, caplog):
    """x_i ~ N(a, 1) by obs=, and log y_i ~ N(b + x_i, 1) by a condition on y.log(): right posteriors, no LOO of y."""

    def joint(x):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(a, 1.0), obs=x)
            pyro.sample("log_y", dist.Normal(b + x, 1.0))

    def program(x, y):
        poutine.condition(joint, {"log_y": value(y)})(x)

    how = {"steps": 1} if run is fit else {"chains": 4, "warmup": 20, "draws": 5}
    run(program, {"x": Y, "y": Y.exp()}, **how)
    assert ("'log_y' is conditioned on what the program computes" in caplog.text) == said


@pytest.mark.parametrize("n", (3, 1))
def test_a_latent_that_is_held_at_one_value_a_row_is_named_at_another_number_of_rows(n):
    """torch's "size of tensor a must match" named neither; one value for all rows is held at any number of them."""

    def local(x, y=None):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(a + u + 0 * x, SD), obs=y)

    held = {k: poutine.condition(local, {"u": torch.full((k,), 2.0)}) for k in (1, 5)}
    data = {"x": torch.zeros(5), "y": Y}
    few = {"x": torch.zeros(n), "y": Y[:n]}
    runs = {k: fit(program, data, steps=0, guide="AutoNormal", engine="eager") for k, program in held.items()}
    with pytest.raises(PpgenError, match=f"'u' is conditioned on 5 values, and the plate 'data' .* {n} here"):
        loglik(runs[5], few, particles=5)
    tree = posterior(runs[1], few, draws=4000)
    a, y = tree.posterior["a"].values[0], tree.posterior_predictive["y"].values[0]
    off = y - 2.0 - a[:, None]  # is N(0, SD)
    assert y.shape == (4000, n) and abs(off.mean()) < 4 * SD / off.size**0.5
    assert abs(off.std() / SD - 1) < 4 / (2 * off.size) ** 0.5
