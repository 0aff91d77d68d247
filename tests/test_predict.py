"""Posterior predictive at new rows and of new groups: closed forms, from runs and from chains alike.

    μ ~ N(0, 10²),  a_g ~ N(μ, TAU²),  y_i | a ~ N(a_{g_i} + x_i, SD²)

is jointly normal: new rows of an old group and of a new one have normal predictions that are known.
"""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from known import chains_agree, draws_agree, normal
from torch import tensor

import ppgen
from ppgen import Program, rows
from ppgen.errors import PpgenError
from ppgen.inference import fit, infer, mcmc, posterior, predict, sample
from ppgen.inference.evaluation.predict import summaries
from ppgen.models import CountRegression, LinearRegression, LogisticRegression, Radon
from ppgen.run.files import read_netcdf, write_netcdf

G, TAU, SD = 5, 1.5, 0.5
WORDS = ["ash", "elm", "fir", "oak", "yew"]
GROUP = torch.arange(G).repeat(6)
X = normal(6 * G)
Y = (3 + TAU * normal(G, seed=1))[GROUP] + X + SD * normal(6 * G, seed=2)
DATA = {"g": [WORDS[i] for i in GROUP], "x": X, "y": Y}


class Hierarchy(Program):
    """The model above; the guide is its posterior. `groups` as each program gets their number."""

    def __init__(self, how: str = "fixed", groups: int = G):
        super().__init__()
        self.how, self.groups = how, groups
        self.unit = torch.nn.Parameter(tensor(1.0))  # a fit wants a parameter

    def size(self, g):
        return {"fixed": 5, "constructor": self.groups, "data": int(g.max()) + 1 if self.how == "data" else 0}[self.how]

    def model(self, g, x, y=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("group", self.size(g)):
            a = pyro.sample("a", dist.Normal(mu, TAU))
        with rows(g):
            pyro.sample("y", dist.Normal(a[g] + x, SD), obs=y)

    def guide(self, g, x, y):
        n = torch.bincount(g).to(y)
        mean = torch.zeros(len(n)).to(y).index_add(0, g, y - x) / n
        own, above = SD**2 / n, TAU**2 + SD**2 / n
        mu = pyro.sample("mu", dist.Normal((mean / above).sum() * self.unit / (0.01 + (1 / above).sum()),
                                           (0.01 + (1 / above).sum()) ** -0.5))  # fmt: skip
        with pyro.plate("group", self.size(g)):
            weight = TAU**2 / (TAU**2 + own)
            pyro.sample("a", dist.Normal(weight * mean + (1 - weight) * mu, (weight * own).sqrt()))


def exact():
    """Mean and covariance of (mu, a_1, ..., a_G, a new group's a) given the data."""
    prior = (torch.full((G + 2, G + 2), 100.0) + TAU**2 * torch.eye(G + 2)).double()
    prior[0, 0] = 100.0
    design = torch.nn.functional.one_hot(GROUP + 1, G + 2).double()
    seen = design @ prior @ design.T + SD**2 * torch.eye(len(Y))
    gain = prior @ design.T @ torch.linalg.inv(seen)
    return (gain @ (Y - X).double()).float(), (prior - gain @ design @ prior).float()


MEAN, COV = exact()
HOW = ("fixed", "constructor", "data")


@cache
def run_of(how: str):
    return fit(Hierarchy(how), DATA, steps=0, engine="eager")


@cache
def tree_of():
    return mcmc(plain, DATA, chains=16, draws=250, warmup=150, engine="trace", predictive=False, prior=False)


def plain(g, x, y=None):
    return Hierarchy.model(Hierarchy(), g, x, y)


SOURCES = {how: lambda how=how: (run_of(how), {}) for how in HOW} | {
    "mcmc": lambda: (tree_of(), {"program": Program.from_pair(plain)})
}
DRAWS = {"fixed": 4000, "constructor": 4000, "data": 600, "mcmc": 4000}  # "data" is run draw by draw
every = pytest.mark.parametrize("source", SOURCES)


@every
def test_old_groups_by_their_words(source):
    """Only some of the words, in another order: their codes would be others in a table of their own."""
    run, how = SOURCES[source]()
    new = {"g": ["yew", "elm", "yew"], "x": tensor([0.0, 2.0, 1.0])}
    tree = predict(run, new, draws=DRAWS[source], **how)
    group = tensor([5, 2, 5])
    _agree(tree, MEAN[group] + new["x"], COV[group][:, group] + SD**2 * torch.eye(3))
    assert list(tree["predictions_constant_data"]["g"].values) == new["g"]
    assert (summaries(tree)[1]["g"], summaries(tree)[1]["row"]) == ("elm", 1)


def test_a_prediction_that_is_a_word_is_told_by_shares_of_words():
    class Grades(Program):
        def model(self, x, grade=None):
            b = pyro.sample("b", dist.Normal(0.0, 1.0))
            with rows(x):
                return pyro.sample("grade", dist.Categorical(logits=torch.stack([0 * x, b * x, x], -1)), obs=grade)

    data = {"x": torch.linspace(-1, 1, 12).tolist(), "grade": ["low", "high", "medium"] * 4}
    run = fit(Grades(), data, steps=0, engine="eager")
    tree = predict(run, {"x": torch.tensor([-3.0, 3.0])}, draws=200)
    first, second = (f["shares"] for f in summaries(tree))
    assert list(first) == ["low", "medium", "high"] and sum(second.values()) == pytest.approx(1)
    assert first["high"] < 0.1 < 0.4 < second["high"]


@every
def test_new_groups_are_refused_or_drawn(source):
    run, how = SOURCES[source]()
    new = {"g": ["yew", "box", "box", "bay"], "x": tensor([0.0, 2.0, 1.0, 0.0])}
    with pytest.raises(PpgenError, match=r"column 'g' has 'bay', 'box', which the fit did not see.*--new-groups draw"):
        predict(run, new, draws=40, **how)
    with pytest.raises(PpgenError, match=r"'g' has the group 6 in row 1.*fitted to 5 groups.*--new-groups draw"):
        predict(run, {"g": tensor([1, 6]), "x": torch.zeros(2)}, draws=40, **how)
    tree = predict(run, new, draws=DRAWS[source], new_groups="draw", **how)
    group = tensor([5, 6, 6, 6])
    cov = COV[group][:, group]
    cov[3, 1:3] = cov[1:3, 3] = COV[0, 0]  # two new groups share μ
    _agree(tree, MEAN[group] + new["x"], cov + SD**2 * torch.eye(4))
    assert list(tree["predictions_constant_data"]["g"].values) == new["g"]


def _agree(tree, mean, cov):
    """Means, variances and those of sums, which covariances show in."""
    y = torch.as_tensor(tree["predictions"]["y"].values).float()
    weights = [*torch.eye(len(mean)), *(torch.eye(len(mean))[0] + torch.eye(len(mean))[1:])]
    weights += [torch.eye(len(mean))[1] + torch.eye(len(mean))[-1]]
    for w in weights:
        if len(y) == 1:
            draws_agree(y[0] @ w, w @ mean, w @ cov @ w)
        else:
            chains_agree((y @ w).numpy(), float(w @ mean), float(w @ cov @ w))


def test_a_tree_and_its_program_go_through_files(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    found = ppgen.catalog.find(str(tmp_path / "program.py"))
    tree = mcmc(ppgen.catalog.build(found, {}), DATA, chains=8, draws=50, warmup=100, engine="trace")
    assert json.loads(tree.attrs["types"])["g"]["levels"] == WORDS
    assert list(tree["posterior"].coords["g"].values) == WORDS
    write_netcdf(tmp_path / "tree.nc", tree)
    opened = read_netcdf(tmp_path / "tree.nc")
    new = {"g": ["yew", "box"], "x": torch.zeros(2)}
    a, b = (predict(t, new, new_groups="draw", draws=400) for t in (tree, opened))
    assert a["predictions"]["y"].shape == (8, 50, 2) and a["predictions"].equals(b["predictions"])
    (tmp_path / "program.py").unlink()
    with pytest.raises(PpgenError, match=r"is not there; name it with program= \(--program FILE\)"):
        predict(opened, new)
    with pytest.raises(PpgenError, match="does not name its program"):
        predict(tree_of(), new)
    with pytest.raises(PpgenError, match="does not say what it is of"):
        predict(posterior(run_of("fixed"), DATA, draws=4), new)


@pytest.mark.parametrize("how", HOW)
def test_a_reopened_run_knows_its_number_of_groups(how, tmp_path):
    """Also where the rows tell it: then all of them are kept."""
    (tmp_path / "program.py").write_text(
        PROGRAM.replace(f'"g", {G}', f'"g", {G if how == "fixed" else "int(g.max()) + 1"}')
    )
    made = Radon(G) if how == "constructor" else ppgen.catalog.build(ppgen.catalog.find(f"{tmp_path}/program.py"), {})
    data = {"county": DATA["g"], "floor": GROUP % 2, "y": Y} if how == "constructor" else DATA
    run = fit(made, data, steps=2, engine="eager", out=tmp_path / "run")
    new = (
        {"county": ["yew", "box"], "floor": [0, 1]} if how == "constructor" else {"g": ["yew", "box"], "x": [0.0, 1.0]}
    )
    a, b = (predict(r, new, draws=20, new_groups="draw") for r in (run, ppgen.Run.load(tmp_path / "run")))
    assert a["predictions"].equals(b["predictions"])


PROGRAM = f"""import pyro, torch
from pyro.distributions import Normal

def model(g, x, y=None):
    mu = pyro.sample("mu", Normal(0.0, 10.0))
    with pyro.plate("g", {G}):
        a = pyro.sample("a", Normal(mu, {TAU}))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", Normal(a[g] + x, {SD}), obs=y)
"""


def test_a_reopened_run_has_the_words_of_its_fit(tmp_path):
    d = {"county": [WORDS[i] for i in GROUP], "floor": (GROUP % 2), "y": Y}
    run = fit(Radon(G), d, steps=3, engine="eager", out=tmp_path / "run")
    new = {"county": ["yew"], "floor": [1]}
    a, b = (predict(r, new, draws=20)["predictions"]["y"].values for r in (run, ppgen.Run.load(tmp_path / "run")))
    assert (a == b).all()
    assert (predict(run, {"county": tensor([4]), "floor": [1]}, draws=20)["predictions"]["y"].values == a).all()
    assert ppgen.Run.load(tmp_path / "run").program.types["county"].levels == tuple(WORDS)
    drawn = sample(run, 3, given={"county": pd.Series(["yew", "ash"]), "floor": tensor([0, 1])}, seed=0)
    assert drawn["y"].shape == (3, 2)


def test_text_in_place_of_numbers_is_refused_and_a_new_fit_has_new_words():
    table = {"county": GROUP, "floor": GROUP % 2, "y": Y}
    program = Radon(G)
    run = fit(program, table, steps=1, engine="eager")
    with pytest.raises(PpgenError, match=r"'county' is text \('ash', ...\), and was numbers at the fit"):
        predict(run, {"county": ["ash"], "floor": [1]}, draws=20)
    words = pd.Categorical([WORDS[i] for i in GROUP], WORDS[::-1])
    run = fit(
        program, pd.DataFrame({"county": words, "floor": GROUP.numpy() % 2, "y": Y.numpy()}), steps=1, engine="eager"
    )
    assert run.program.types["county"].levels == tuple(WORDS[::-1])
    assert run.config["data"]["types"]["county"]["levels"] == WORDS[::-1]


def crossed(g, t, y=None):
    """Two kinds of groups, and one of pairs."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    first, second = pyro.plate("first", 3, dim=-1), pyro.plate("second", 2, dim=-2)
    with first:
        a = pyro.sample("a", dist.Normal(mu, 0.3))
    with second:
        b = pyro.sample("b", dist.Normal(0.0, 0.6))
    with first, second:
        c = pyro.sample("c", dist.Normal(a, 0.2))
    with rows(g):
        pyro.sample("y", dist.Normal(b[t, 0] + c[t, g], 0.1), obs=y)


@pytest.mark.parametrize(
    "g, t, variance",
    [(3, 0, 0.3**2 + 0.2**2), (0, 2, 0.6**2 + 0.2**2), (4, 3, 0.3**2 + 0.6**2 + 0.2**2)],
)
def test_each_of_crossed_groups_can_be_new(g, t, variance):
    """Variances given all other latents, which are held at one point."""
    at = {"mu": 0.4, "a": tensor([1.0, 2.0, 3.0]), "b": tensor([[0.5], [-0.5]]), "c": torch.arange(6.0).reshape(2, 3)}

    def held(g, t, y=None):
        pyro.sample("mu", dist.Delta(pyro.param("mu0", tensor(0.4))))
        first, second = pyro.plate("first", 3, dim=-1), pyro.plate("second", 2, dim=-2)
        with first:
            pyro.sample("a", dist.Delta(at["a"]))
        with second:
            pyro.sample("b", dist.Delta(at["b"]))
        with first, second:
            pyro.sample("c", dist.Delta(at["c"]))

    data = {"g": torch.arange(6) % 3, "t": torch.arange(6) // 3, "y": torch.zeros(6)}
    program = Program.from_pair(crossed, held)
    run = fit(program, data, steps=0, engine="eager")
    with pytest.raises(PpgenError, match="--new-groups draw"):
        predict(run, {"g": tensor([g]), "t": tensor([t])}, draws=4)
    tree = predict(run, {"g": tensor([g, 1]), "t": tensor([t, 1])}, draws=3000, new_groups="draw")
    a = 0.4 if g > 2 else float(at["a"][g])
    b = 0.0 if t > 1 else float(at["b"][t, 0])
    expected, old = a + b, -0.5 + 4.0
    draws_agree(tree["predictions"]["y"].values[0], [expected, old], [variance + 0.01, 0.01])


def no_plate(g, y=None):
    a = pyro.sample("a", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with rows(g):
        pyro.sample("y", dist.Normal(a[g], 1.0), obs=y)


def sized_priors(g, y=None):
    with pyro.plate("group", 3):
        a = pyro.sample("a", dist.Normal(tensor([0.0, 1.0, 2.0]), 1.0))
    with rows(g):
        pyro.sample("y", dist.Normal(a[g], 1.0), obs=y)


class Embedded(Program):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Embedding(3, 1)

    def model(self, g, y=None):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with rows(g):
            pyro.sample("y", dist.Normal(m + self.a(g)[:, 0], 1.0), obs=y)


@pytest.mark.parametrize(
    "program, said",
    [
        (lambda: Program.from_pair(no_plate), r"the group 3 in row 1.*stand in no plate or are parameters"),
        (
            lambda: Program.from_pair(sized_priors),
            r"cannot be run with more groups.*plates 'group'.*priors inside of the plate",
        ),
        (Embedded, r"the group 3 in row 1.*stand in no plate or are parameters"),
    ],
    ids=["no plate", "priors of a size", "parameters"],
)
def test_groups_that_have_no_distribution_are_refused_in_one_sentence(program, said):
    data = {"g": torch.arange(12) % 3, "y": torch.randn(12)}
    run = fit(program(), data, steps=1, engine="eager")
    with pytest.raises(PpgenError, match=said):
        predict(run, {"g": tensor([1, 3])}, draws=4, new_groups="draw")


# -- columns that are left out, numbers as files give them -----------------------------------------


def optional(n, hits=None):
    p = pyro.sample("p", dist.Beta(2.0, 3.0))
    with pyro.plate("data", len(n)):
        pyro.sample("hits", dist.Binomial(n, p), obs=hits)


def needed(n, hits):
    optional(n, hits)


def beta_guide(n, hits):
    s = pyro.param("unit", tensor(1.0))
    pyro.sample("p", dist.Beta(s * (2.0 + hits.sum()), 3.0 + (n - hits).sum()))


TRIALS = {"n": torch.full((8,), 30), "hits": tensor([9, 8, 12, 7, 9, 10, 11, 6])}


@cache
def chains_of(model):
    return mcmc(model, TRIALS, chains=16, draws=250, warmup=100, engine="trace", predictive=False, prior=False)


@pytest.mark.parametrize("model", [optional, needed], ids=["hits=None", "hits"])
@pytest.mark.parametrize("new", [{}, {"hits": None}], ids=["left out", "None"])
def test_the_observed_column_may_be_left_out(model, new):
    n, hits = TRIALS["n"], TRIALS["hits"]
    run = fit(Program.from_pair(model, beta_guide), TRIALS, steps=0, engine="eager")
    a, b = 2.0 + float(hits.sum()), 3.0 + float((n - hits).sum())
    m = np.array([10, 50, 200])
    exact = (m * a / (a + b), m * a * b * (a + b + m) / ((a + b) ** 2 * (a + b + 1)))  # beta-binomial
    tree = predict(run, {"n": torch.as_tensor(m), **new}, draws=4000)
    draws_agree(tree["predictions"]["hits"].values[0], *exact)
    assert list(tree["predictions_constant_data"].data_vars) == ["n"]
    y = predict(chains_of(model), {"n": torch.as_tensor(m), **new}, draws=4000, program=Program.from_pair(model))
    for i in range(3):
        chains_agree(y["predictions"]["hits"].values[..., i], exact[0][i], exact[1][i])


@pytest.mark.parametrize("model", [LinearRegression, LogisticRegression, CountRegression])
def test_whole_numbers_are_taken_by_regressions(model):
    x = torch.arange(12).reshape(6, 2) % 3
    run = fit(model(2), {"x": x, "y": torch.arange(6) % 2}, steps=1, engine="eager")
    assert predict(run, {"x": x[:3]}, draws=3)["predictions"]["y"].shape == (1, 3, 3)


@pytest.mark.parametrize("of", [predict, lambda run, new, draws: sample(run, draws, given=new)])
def test_radon_predicts_a_floor_of_whole_numbers(of):
    d = {"county": GROUP, "floor": GROUP % 2, "y": Y}
    run = fit(Radon(G), d, steps=1, engine="eager")
    of(run, {"county": tensor([1]), "floor": tensor([0])}, draws=3)


# -- names and latents that a tree or another number of rows upsets --------------------------------


def slashed(x, y=None):
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with rows(x):
        pyro.sample("obs/y", dist.Normal(b * x, 0.1), obs=y)


def test_a_tree_whose_observed_site_has_a_slash_is_predicted_from():
    x = normal(8)
    program = Program.from_pair(slashed)
    tree = mcmc(program, {"x": x, "y": 2 * x}, chains=8, draws=10, warmup=20, predictive=False, prior=False)
    found = predict(tree, {"x": tensor([1.0, 2.0, 3.0])}, program=program)
    assert found["predictions"]["obs.y"].shape[-1] == 3


def kernel(x):
    return torch.exp(-0.5 * (x[:, None] - x) ** 2) + 1e-3 * torch.eye(len(x)).to(x)


def function_of_rows(x, y=None):
    f = pyro.sample("f", dist.MultivariateNormal(torch.zeros(len(x)), kernel(x)))
    with rows(x):
        pyro.sample("y", dist.Normal(f, 0.1), obs=y)


def coefficients(x, y=None):
    f = pyro.sample("f", dist.Normal(torch.zeros(6), 1.0).to_event(1))
    with rows(x):
        pyro.sample("y", dist.Normal(f.sum() * x, 0.1), obs=y)


POINTS = {"x": torch.linspace(0.0, 2.0, 6), "y": torch.linspace(0.0, 1.0, 6)}


def source_of(kind, model):
    if kind == "run":
        return fit(Program.from_pair(model), POINTS, steps=2, engine="eager")
    return mcmc(model, POINTS, chains=8, draws=10, warmup=20, predictive=False, prior=False)


@pytest.mark.parametrize("kind", ["run", "tree"])
def test_a_latent_as_long_as_the_rows_is_not_known_at_others(kind):
    source, program = source_of(kind, function_of_rows), Program.from_pair(function_of_rows)
    how = {"draws": 16, "program": program} if kind == "tree" else {"draws": 16}
    for x in (POINTS["x"] + 10, POINTS["x"][:3]):
        with pytest.raises(PpgenError, match="the latent 'f' of function_of_rows has the length .* write it within"):
            predict(source, {"x": x}, **how)
    x, y = POINTS["x"], POINTS["y"]
    for again in ({"x": x}, {"x": x, "y": y}, {"x": x, "y": y + 1}):  # what is observed is not used
        assert predict(source, again, **how)["predictions"]["y"].shape[-1] == 6


def test_a_latent_that_happens_to_be_as_long_as_the_rows_is_known_at_others():
    run = source_of("run", coefficients)
    assert not run.structure["f"].lengthens
    assert predict(run, {"x": POINTS["x"] + 10}, draws=4)["predictions"]["y"].shape == (1, 4, 6)


# -- counts that are too large ---------------------------------------------------------------------


def huge(y=None):
    log_rate = pyro.sample("log_rate", dist.Normal(45.0, 2.0))
    with rows(y):
        pyro.sample("y", dist.Poisson(log_rate.exp()), obs=y)


def test_poisson_counts_beyond_64_bits_are_their_rates():
    drawn = sample(Program.from_pair(huge), 2000, seed=0)
    rate = drawn["log_rate"].exp()
    assert (rate > 2**63).sum() > 500 and (drawn["y"] >= 0).all()
    torch.testing.assert_close(drawn["y"].flatten(), rate.flatten(), rtol=1e-5, atol=0)


def test_what_cannot_be_drawn_is_refused_with_its_number(caplog):
    def model(y=None):
        with rows(y):
            pyro.sample("y", dist.GammaPoisson(2.0, 1e-19), obs=y)

    with pytest.raises(PpgenError, match=r"\d+ of 50 draws of 'y' \(GammaPoisson\) are counts beyond"):
        sample(Program.from_pair(model), 50, seed=0)

    def infinite(y=None):
        with rows(y):
            pyro.sample("y", dist.Poisson(tensor(float("inf"))), obs=y)

    assert torch.isinf(sample(Program.from_pair(infinite), 3, seed=0)["y"]).all()
    assert "3 of 3 draws of 'y' are infinite" in caplog.text


# -- summaries -------------------------------------------------------------------------------------


def test_a_group_of_rows_is_summed_up_by_its_mean_within_each_draw():
    tree = predict(run_of("fixed"), {"g": ["yew", "elm", "yew"], "x": torch.zeros(3)}, draws=500)
    y = tree["predictions"]["y"].values[0]
    found = {f["g"]: f for f in summaries(tree, "g")}
    assert found["yew"]["rows"] == 2 and found["yew"]["mean"] == pytest.approx(y[:, [0, 2]].mean(), rel=1e-5)
    assert found["yew"]["sd"] == pytest.approx(y[:, [0, 2]].mean(1).std(ddof=1), rel=1e-5)
    assert found["elm"]["95%"] == pytest.approx(np.quantile(y[:, 1], 0.95), rel=1e-5)
    with pytest.raises(PpgenError, match="no column 'z' of the new rows to group by; they have g, x"):
        summaries(tree, "z")


@pytest.mark.parametrize(
    "how, said",
    [({"new_groups": "yes"}, "expected 'error'"), ({"draws": 0}, "at least 1")],
)
def test_what_is_asked_wrongly(how, said):
    with pytest.raises(PpgenError, match=said):
        predict(run_of("fixed"), {"g": ["yew"], "x": torch.zeros(1)}, **how)
    with pytest.raises(PpgenError, match="dict cannot be predicted from"):
        predict({}, {})


def test_a_tree_of_rows_that_a_loop_observes_one_by_one_is_predicted():
    def model(flips):
        p = pyro.sample("p", dist.Beta(2.0, 2.0))
        for i in range(len(flips)):
            pyro.sample(f"flip_{i}", dist.Bernoulli(p), obs=flips[i])

    data = {"flips": torch.tensor([1.0, 1.0, 0.0])}
    program = Program.from_pair(model)
    tree = mcmc(program, data, chains=4, warmup=20, draws=10)
    found = predict(tree, data, program=program)
    assert set(found.predictions.data_vars) == {"flip_0", "flip_1", "flip_2"}


@pytest.mark.parametrize("rows", ["other", "fitted"])
@pytest.mark.parametrize("locals_", [False, True])
def test_a_guide_that_reads_the_rows_keeps_its_globals_where_the_observed_column_is_given(rows, locals_, caplog):
    def model(x, y=None):
        a = pyro.sample("a", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            e = pyro.sample("e", dist.Normal(0.0, 0.1)) if locals_ else 0.0
            return pyro.sample("y", dist.Normal(a + x + e, 0.5), obs=y)

    def guide(x, y=None):
        pyro.sample("a", dist.Normal(pyro.param("loc", torch.tensor(2.0)), 0.01))
        with pyro.plate("data", len(x)):
            if locals_:
                pyro.sample("e", dist.Normal(0.1 * (y - x), 0.05))

    x = torch.linspace(0.0, 1.0, 40)
    run = fit(Program.from_pair(model, guide), {"x": x, "y": x + 2}, steps=1, lr=1e-6)
    given = {"x": x, "y": x + 2} if rows == "fitted" else {"x": x[:3], "y": x[:3] + 2}
    y = predict(run, given, draws=400)["predictions"]["y"]
    assert float(y.std(("chain", "draw")).max()) < 0.6
    assert float(abs(y.mean(("chain", "draw")) - given["x"].numpy() - 2 - 0.2 * locals_).max()) < 0.15
    assert not [r for r in caplog.records if "one after the other" in r.message]


def _data_is_a_column(data):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(data)):
        pyro.sample("y", dist.Normal(mu * data[:, 0], 0.7), obs=data[:, 1])


def _a_list(data):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    for i, x in enumerate(data):
        pyro.sample(f"y_{i}", dist.Normal(mu, 0.7), obs=x)


def _a_dict(batch):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(batch["x"])):
        pyro.sample("y", dist.Normal(mu * batch["x"], 0.7), obs=batch["y"])


def _a_function(x, y, link):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(link(mu * x), 0.7), obs=y)


X12 = torch.linspace(0.5, 1.5, 12)
ARGUMENTS = {
    _data_is_a_column: {"data": torch.stack([X12, X12], -1)},
    _a_list: {"data": list(X12)},
    _a_dict: {"batch": {"x": X12, "y": X12}},
    _a_function: {"x": X12, "y": X12, "link": torch.tanh},
}


@pytest.mark.parametrize("model", ARGUMENTS, ids=lambda f: f.__name__)
def test_a_tree_is_predicted_from_whatever_its_arguments_are(model, tmp_path):
    data, program = ARGUMENTS[model], Program.from_pair(model)
    tree = mcmc(program, data, chains=4, warmup=20, draws=5)
    write_netcdf(tmp_path / "t.nc", tree)
    found = predict(read_netcdf(tmp_path / "t.nc"), data, program=program)["predictions"]
    assert set(found.data_vars) == set(tree["observed_data"].data_vars)


def test_a_container_that_a_tree_does_not_keep_is_asked_for():
    program = Program.from_pair(_a_dict)
    tree = mcmc(program, ARGUMENTS[_a_dict], chains=4, warmup=20, draws=5)
    with pytest.raises(PpgenError, match="not what the argument 'batch' of _a_dict was; pass it"):
        predict(tree, {"x": X12}, program=program)


def test_a_column_that_is_called_as_its_dimension_is_kept_beside_it():
    tree = mcmc(Program.from_pair(_data_is_a_column), ARGUMENTS[_data_is_a_column], chains=4, warmup=20, draws=5)
    assert tree["constant_data"]["data_"].dims[0] == "data"
    assert json.loads(tree.attrs["original_names"]) == {"data_": "data"}
    again = ppgen.data.as_tensors(tree)
    assert torch.allclose(again["data"].float(), ARGUMENTS[_data_is_a_column]["data"])


# -- far outside of what was fitted ------------------------------------------------------------------


def test_rows_far_outside_of_the_fitted_range_are_said_and_groups_are_not(caplog, tmp_path):
    def model(g, x, t, y=None):
        with pyro.plate("group", 3):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with rows(x):
            pyro.sample("y", dist.Normal(a[g] + x[:, 0] + t, 1.0), obs=y)

    steps = torch.arange(12)
    data = {"g": steps % 3, "x": torch.stack([steps / 11, steps / 1e3], -1), "t": steps, "y": torch.zeros(12)}
    run = fit(Program.from_pair(model), data, steps=1, guide="AutoNormal", out=tmp_path / "run")
    far = {"g": tensor([0, 9]), "x": tensor([[2.0, 0.0], [0.5, -1.0]]), "t": tensor([23, 12])}
    near = {"g": tensor([9, 1]), "x": tensor([[1.9, 0.0], [-0.9, 0.02]]), "t": tensor([22, -11])}  # as far as wide
    for source in (run, type(run).load(tmp_path / "run", Program.from_pair(model))):
        caplog.clear()
        assert "extrapolated" not in predict(source, near, draws=2, new_groups="draw").attrs and not caplog.text
        told = json.loads(predict(source, far, draws=2, new_groups="draw").attrs["extrapolated"])
        assert [(b["column"], b["entry"], b["rows"]) for b in told] == [("x", 1, 1), ("t", None, 1)]
        assert told[1]["widths"] == pytest.approx(12 / 11) and told[1]["farthest"] == 23
        assert "x[1] is -1, and was 0 to 0.011 in the rows that were fitted (90.9 times" in caplog.text


def test_predictions_that_are_no_numbers_are_said(caplog):
    """log(x) of a new x below 0 was an empty row of the table, without a word."""

    def model(x, y=None):
        with rows(x):
            pyro.sample("y", dist.Normal(pyro.sample("b", dist.Normal(0.0, 1.0)) * x.log(), 1.0), obs=y)

    run = fit(Program.from_pair(model), {"x": torch.ones(4), "y": torch.zeros(4)}, steps=1, guide="AutoNormal")
    predict(run, {"x": torch.tensor([1.0, 2.0])}, draws=2)
    assert "finite" not in caplog.text
    predict(run, {"x": torch.tensor([1.0, 2.0, -1.0])}, draws=2)
    assert "predictions of y are no finite numbers in 1 of 3 rows, the first of which is 2" in caplog.text


@every
def test_a_tree_knows_the_range_of_what_was_fitted_as_a_run_does(source):
    run, how = SOURCES[source]()
    high = float(X.max())
    (told,) = json.loads(predict(run, {"g": ["yew"], "x": tensor([100.0])}, draws=2, **how).attrs["extrapolated"])
    assert (told["column"], told["high"]) == ("x", high) and told["widths"] == (100 - high) / (high - float(X.min()))


@pytest.mark.parametrize("likelihood", [dist.Binomial, dist.BetaBinomial], ids=["binomial", "beta-binomial"])
def test_numbers_of_trials_that_are_not_whole_are_refused(likelihood):
    """Of 2.5 trials torch draws 2.4 successes, and predictions had them."""

    def model(n, y=None):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        with rows(n, y):
            fn = dist.Binomial(n, p) if likelihood is dist.Binomial else dist.BetaBinomial(2 * p, 2 - 2 * p, n)
            pyro.sample("y", fn, obs=y)

    tree = mcmc(model, {"n": tensor([5.0, 6.0]), "y": tensor([2.0, 3.0])}, chains=4, draws=50, warmup=50)
    drawn = predict(tree, {"n": tensor([2.0, 3.0])}, program=model).predictions["y"].values
    assert set(np.unique(drawn)) == {0, 1, 2, 3}
    with pytest.raises(PpgenError, match="of 'y' is no whole number in row 1"):
        predict(tree, {"n": tensor([2.0, 2.5])}, program=model)


def test_trials_and_offsets_may_be_far_outside_of_the_fitted_ones():
    few = pd.DataFrame({"k": [1, 2, 3], "n": [4, 5, 6], "e": [1.0, 2.0, 3.0], "x": [0.1, 0.2, 0.5]})
    made = ppgen.models.regression("p(k, n) ~ x + offset(np.log(e))", "binomial", few)
    assert made.exposure == ("e", "n")
    assert ppgen.models.regression("p(k, n) ~ x + e + offset(np.log(e))", "binomial", few).exposure == ("n",)


def test_an_argument_that_the_fit_left_at_its_default_does_not_stand_for_the_fitted_rows():
    """Draws of a mixture at n new rows: those of the fitted rows have labels of their own. E y = 2 E w - 1."""

    def mixture(x=None, n=5):
        w = pyro.sample("w", dist.Beta(2.0, 2.0))
        with pyro.plate("rows", n if x is None else len(x)):
            k = pyro.sample("k", dist.Bernoulli(w), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(2 * k - 1, 0.1), obs=x)

    tree = mcmc(mixture, {"x": torch.tensor([1.0, 1.0, 1.0, 1.0, -1.0])}, chains=16, draws=50, predictive=False)
    for n in (3, 5):
        found = predict(tree, {"n": n}, program=mixture)["predictions"]["x"]
        assert found.shape == (16, 50, n)  # w ~ Beta(6, 3); the sd of a mean over 800 draws is 0.034
        assert abs(found.mean(("chain", "draw")).values - (2 * 6 / 9 - 1)).max() < 5 * 0.034


@pytest.mark.parametrize("kind", ["normal", "discrete"])
@pytest.mark.parametrize("n", [30, 5])
def test_a_guide_that_knows_the_fitted_rows_alone_draws_no_latents_of_new_ones(kind, n):
    """y_i ~ N(x_i + z_i, 0.1) with a guide of parameters by row: of z at new rows the prior is known, of sd 2."""
    N = 30
    z = torch.where(normal(N, seed=2) > 0, 4.0, 0.0)

    def model(x, y=None):
        with ppgen.rows(x):
            z = (
                4 * pyro.sample("z", dist.Bernoulli(0.5))
                if kind == "discrete"
                else pyro.sample("z", dist.Normal(2.0, 2.0))
            )
            pyro.sample("y", dist.Normal(z + x, 0.1), obs=y)

    def guide(x, y=None):
        loc = pyro.param("loc", z.clone())
        with pyro.plate("data", N):
            of = dist.Bernoulli(0.02 + 0.24 * loc) if kind == "discrete" else dist.Normal(loc, 0.1)
            pyro.sample("z", of)

    run = fit(Program.from_pair(model, guide), {"x": normal(N), "y": z}, steps=0, objective="Trace_ELBO")
    found = predict(run, {"x": torch.zeros(n), "y": torch.zeros(n)}, draws=2000)["predictions"]["y"].values[0]
    assert found.mean(0) == pytest.approx(2.0, abs=4.5 * 2 / 2000**0.5)
    assert found.std(0) == pytest.approx((2**2 + 0.1**2) ** 0.5, rel=0.08)


def test_a_guide_of_discrete_latents_that_reads_rows_draws_those_of_one_new_row():
    """z_i ~ Bernoulli(1/2), y_i ~ N(4 z_i, 1), and its posterior, Bernoulli(sigmoid(4 y_i - 8)): at y = 2.5."""

    def model(y=None):
        with ppgen.rows(y):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("y", dist.Normal(4 * z, 1.0), obs=y)

    def guide(y):
        with ppgen.rows(y):
            pyro.sample("z", dist.Bernoulli(logits=4 * y - 8 + 0 * pyro.param("one", torch.zeros(()))))

    run = fit(Program.from_pair(model, guide), {"y": normal(20)}, steps=0, objective="Trace_ELBO")
    found = predict(run, {"y": torch.tensor([2.5])}, draws=4000)["predictions"]["y"].values[0, :, 0]
    p = 1 / (1 + np.exp(-2.0))
    assert found.mean() == pytest.approx(4 * p, abs=4.5 * (1 + 16 * p * (1 - p)) ** 0.5 / 4000**0.5)


def test_predictions_by_a_guide_that_is_a_point_are_said_to_be_narrow(caplog):
    def model(x, y=None):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with rows(x):
            return pyro.sample("y", dist.Normal(a * x, 1.0), obs=y)

    data = {"x": torch.ones(3), "y": torch.zeros(3)}
    for guide, said in (("AutoNormal", False), ("AutoDelta", True)):
        caplog.clear()
        predict(fit(Program.from_pair(model), data, guide=guide, steps=2), {"x": torch.ones(2)}, draws=5)
        assert ("narrower than what is known" in caplog.text) == said


def late(x, y, t):
    a, b = (pyro.sample(n, dist.Normal(0.0, 1.0)) for n in "ab")
    with pyro.plate("rows", len(x)):
        pyro.factor("late", dist.Normal(a, 1.0).log_prob(t))
        pyro.sample("y", dist.Normal(a + b * x, 1.0), obs=y)


def test_a_column_that_a_factor_alone_reads_is_not_asked_for_at_other_rows():
    x = torch.linspace(-1.0, 1.0, 12)
    data = {"x": x, "y": 1.0 + 2.0 * x, "t": 1.0 - x}
    tree = infer(late, data)
    new = torch.tensor([0.0, 3.0, -1.0, 0.5, 2.0])
    drawn = predict(tree, {"x": new}, program=late)["predictions"]["y"].values.reshape(-1, 5)
    design = np.array([[1, 0], [0, 1], *[[1, float(v)] for v in x], *[[1, 0]] * 12], float)
    cov = np.linalg.inv(design.T @ design)
    mean = cov @ design.T @ np.concatenate([[0, 0], data["y"].numpy(), data["t"].numpy()])
    at = np.stack([np.ones(5), new.numpy()], 1)
    sd = np.sqrt(1 + np.einsum("ij,jk,ik->i", at, cov, at))
    assert np.abs((drawn.mean(0) - at @ mean) / sd).max() < 4 / np.sqrt(len(drawn))
    assert np.abs(drawn.std(0) / sd - 1).max() < 4 / np.sqrt(2 * len(drawn))


def test_a_plate_of_as_many_groups_as_rows_is_said_to_be_drawn_anew(caplog):
    """y: (groups, columns) at new columns x had effects of its groups from the prior, without a word."""

    def by_number(x, y=None):
        with pyro.plate("group", 3, dim=-2):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            with pyro.plate("column", x.shape[-1], dim=-1):
                return pyro.sample("y", dist.Normal(a + x, 1.0), obs=y)

    def by_rows(x, y=None):
        with rows(x):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            return pyro.sample("y", dist.Normal(a + x, 1.0), obs=y)

    wide = {"x": torch.ones(1, 5), "y": torch.zeros(3, 5)}, {"x": torch.zeros(1, 7)}
    long = {"x": torch.ones(5), "y": torch.zeros(5)}, {"x": torch.ones(7)}
    for model, (data, new), said in ((by_number, wide, True), (by_rows, long, False)):
        run = fit(Program.from_pair(model), data, steps=2)
        for at, expected in ((data, False), (new, said)):
            caplog.clear()
            predict(run, at, draws=5)
            assert ("is drawn anew, as of other rows" in caplog.text) == expected
