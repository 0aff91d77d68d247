"""A formula at a table: the columns against formulae's own, old rows and new; what is refused; the printed program."""

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from known import log_joint_at
from scipy.special import expit

import ppgen
from ppgen import PpgenError
from ppgen.formula.blocks import parse
from ppgen.formula.design import matrix
from ppgen.formula.expressions import compute, translated
from ppgen.formula.source import program_text
from ppgen.models import regression
from ppgen.run import prepare_columns

formulae = pytest.importorskip("formulae")
RNG = np.random.default_rng(7)
N = 60


def table(n: int = N) -> pd.DataFrame:
    own = pd.DataFrame({
        "x": RNG.normal(size=n), "u": RNG.uniform(1, 3, n), "k": RNG.choice([1, 3, 5], n),
        "g": RNG.choice(list("abcd"), n), "h": RNG.choice(list("pqr"), n), "flag": RNG.random(n) < 0.5,
    })  # fmt: skip
    own["grade"] = pd.Categorical(RNG.choice(["low", "mid", "high"], n), ["low", "mid", "high"], ordered=True)
    return own.assign(y=RNG.normal(size=n), c=RNG.poisson(2.0, n), t=RNG.exponential(1.0, n), n=5)


TABLE = table()
TERMS = [
    "1", "x + u", "k + u", "0 + x", "x - 1", "x*g", "g:h", "x:g:h", "0 + g + g:h", "grade + x:grade", "flag + C(k)",
    "C(k, Treatment(3))",
    "S(g)*u", "T(h, 'q')", "C(h, Sum)", "np.log(u) + exp(x)", "{x**2} + I(x + u)", "center(x) + scale(u)",
    "standardize(x):g",
    "np.log(u):center(x)", "bs(x, df=5)", "bs(x, df=4, degree=2, center=False) + g", "poly(u, 3)",
    "bs(x, df=6, intercept=True) - 1",
    "poly(x, 2, raw=True)", "(x + u + g)**2", "x/g", "sqrt(u) + abs(x)",
]  # fmt: skip


@pytest.mark.parametrize("terms", TERMS)
def test_new_rows_have_the_columns_that_formulae_gives_them(terms):
    program = regression(f"y ~ {terms}", data=TABLE)
    functions = {"np": np, "exp": np.exp, "sqrt": np.sqrt, "abs": np.abs}
    theirs = formulae.design_matrices(terms, TABLE, extra_namespace=functions).common
    new = table(15)
    expected = theirs.evaluate_new_data(new)
    own = program.design["matrix"]
    keep = [i for i, label in enumerate(theirs.as_dataframe().columns) if label != "Intercept"]
    assert own["labels"] == [theirs.as_dataframe().columns[i] for i in keep]
    if not own["terms"]:
        return
    columns = prepare_columns(new, program, torch.float64)
    found = matrix(own, columns, torch.zeros((), dtype=torch.float64))
    np.testing.assert_allclose(found, np.asarray(expected)[:, keep], atol=1e-9)


CALLS = {
    "I((x - 5)**2)": lambda x, u: (x - 5) ** 2,
    "{(x - u) * u}": lambda x, u: (x - u) * u,
    "np.log((u + 1) / (2 * u))": lambda x, u: np.log((u + 1) / (2 * u)),
    "center(x / (u + 1))": lambda x, u: x / (u + 1) - (TABLE["x"] / (TABLE["u"] + 1)).mean(),
    "offset(log((u + 3) / 2))": lambda x, u: np.log((u + 3) / 2),
    "offset(x - (u - 1))": lambda x, u: x - (u - 1),
    "offset(log(u) / (u + 1))": lambda x, u: np.log(u) / (u + 1),
    "offset(2)": lambda x, u: 2.0 + 0 * x,
}


@pytest.mark.parametrize(("terms", "x"), [("g/u", lambda u: u), ("g/log((u + 1) / 2)", lambda u: np.log((u + 1) / 2))])
def test_a_slope_within_each_level_has_the_columns_of_its_levels(terms, x):
    program = regression(f"y ~ {terms}", data=TABLE)
    new = table(15)
    levels = (new["g"].to_numpy()[:, None] == np.array(list("abcd"))).astype(float)
    expected = np.hstack([levels[:, 1:], levels * x(new["u"].to_numpy())[:, None]])
    found = matrix(program.design["matrix"], prepare_columns(new, program, torch.float64), torch.zeros(()).double())
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("call", CALLS)
def test_parentheses_within_a_call_are_kept(call):
    """formulae's names of calls are without them; of offsets nothing else had been asked."""
    own, new = regression(f"y ~ {call}", data=TABLE).design, table(15)
    columns = {k: torch.tensor(new[k].to_numpy()) for k in ("x", "u")}
    like = torch.zeros((), dtype=torch.float64)
    if own["offsets"]:
        found = torch.as_tensor(compute(own["offsets"][0], columns))
    else:
        found = matrix(own["matrix"], columns, like)[:, 0]
    np.testing.assert_allclose(found.expand(15), CALLS[call](new["x"], new["u"]), atol=1e-9)
    assert own["matrix"]["labels"] in ([], [call.replace("{", "I(").replace("}", ")").replace("**", " ** ")])


FORMULAS = [
    ("y ~ x + (1 + x | g)", "gaussian"),
    ("y ~ 0 + g + np.log(u)", "student"), ("c ~ x*grade + offset(u)", "poisson"),
    ("c ~ bs(x, df=4) + (x || h)", "negbinomial"), ("flag ~ C(k) + (1 | g/h)", "bernoulli"),
    ("p(c, n) ~ x:u", "binomial"),
    ("p(c, 20) ~ S(g)", "binomial"), ("grade ~ x + (1 | k)", "ordered"), ("h ~ x + g", "categorical"),
    ("h ~ 1", "categorical"), ("censored(t, flag) ~ x + (0 + grade | g)", "weibull"), ("t ~ x", "exponential"),
    ("t ~ x", "lognormal"), ("t ~ scale(x)", "gamma"), ("c ~ x", "zero_inflated_poisson"),
    ("c ~ 1", "zero_inflated_negbinomial"), ("v ~ x", "beta"),
]  # fmt: skip


@pytest.mark.parametrize(("formula", "family"), FORMULAS, ids=[f"{family}: {f}" for f, family in FORMULAS])
def test_the_printed_program_has_the_same_log_joint(tmp_path, formula, family):
    own = TABLE.assign(v=RNG.beta(2, 2, N), c=TABLE["c"].clip(upper=5))
    made = regression(formula, family, own)
    file = tmp_path / "printed.py"
    file.write_text(program_text(made.formula, made.family, made.design, made.priors, "Printed", file.name))
    printed = ppgen.catalog.build(ppgen.catalog.find(str(file)), {})
    assert printed.columns == made.columns
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        data = prepare_columns(own, made, torch.float64)
        again = prepare_columns(own, printed, torch.float64)
        assert all(torch.equal(data[k], again[k]) for k in data)
        torch.manual_seed(3)
        with torch.no_grad():
            trace = pyro.poutine.trace(made.model).get_trace(**data)
        z = {n: trace.nodes[n]["value"] for n in trace.stochastic_nodes}
        assert log_joint_at(printed, z, again) == pytest.approx(log_joint_at(made, z, data), abs=1e-6)
    finally:
        torch.set_default_dtype(before)


def test_cutpoints_are_told_where_all_columns_are_0():
    """P(y <= k) = σ(cutpoint_k - x β), by scipy, of what is in the tree."""
    program = regression("grade ~ x + u", "ordered", data=TABLE)
    columns = prepare_columns(TABLE, program, torch.float64)
    sites = pyro.poutine.trace(program.model).get_trace(**{k: columns[k] for k in ("x", "u", "grade")}).nodes
    eta = TABLE[["x", "u"]].to_numpy() @ sites["beta"]["value"].numpy()
    below = expit(sites["cutpoints"]["value"].numpy() - eta[:, None])
    np.testing.assert_allclose(sites["grade"]["fn"].probs.cumsum(-1)[:, :2], below, atol=1e-9)


@pytest.mark.parametrize("formula", ["y ~ (1 | g)", "y ~ (x | g)", "y ~ (u | g)", "y ~ (u || g)"])
def test_the_printed_program_of_centred_effects_has_the_same_log_joint(tmp_path, formula):
    g = RNG.integers(0, 6, 600)
    x, level, slope = RNG.normal(size=600), RNG.normal(size=6), RNG.normal(size=6)
    own = pd.DataFrame({"g": np.array(list("abcdef"))[g], "x": x, "u": RNG.normal(size=600)})
    own["y"] = level[g] + slope[g] * x + RNG.normal(size=600)
    made = regression(formula, data=own)
    assert made.design["groups"][0]["centred"] == [True, "x" in formula][: 1 + ("1" not in formula)]
    file = tmp_path / "printed.py"
    file.write_text(program_text(made.formula, made.family, made.design, made.priors, "Printed", file.name))
    printed = ppgen.catalog.build(ppgen.catalog.find(str(file)), {})
    data, again = (prepare_columns(own, p, torch.float32) for p in (made, printed))
    torch.manual_seed(3)
    with torch.no_grad():
        trace = pyro.poutine.trace(made.model).get_trace(**data)
    z = {n: trace.nodes[n]["value"] for n in trace.stochastic_nodes}
    assert log_joint_at(printed, z, again) == pytest.approx(log_joint_at(made, z, data), rel=1e-5)


REFUSED = {
    "no formula": ("y", "gaussian", "'y' is no formula"),
    "a family": ("y ~ x", "poison", "no family 'poison' \\(did you mean 'poisson'\\?\\)"),
    "a column": ("y ~ z", "gaussian", "the formula names 'z', and the data have"),
    "missing cells": ("y ~ gap", "gaussian", "'gap' has 1 missing cells"),
    "parentheses alone": (
        "y ~ log(u / (k + 1)) + log(u / k + 1)",
        "gaussian",
        "differ by their parenth",
    ),
    "an unknown call": ("y ~ lagged(x)", "gaussian", "the terms 'lagged\\(x\\)' cannot be read"),
    "an earlier row": ("y ~ lag(x)", "gaussian", "'lag\\(x\\)' is an earlier row's value.*; compute it as a column"),
    "a smooth of mgcv": ("y ~ u + s(x, k=5)", "gaussian", "'s\\(x, k=5\\)' is a penalized spline.*; write bs\\(x, df"),
    "a monotonic effect": ("y ~ mo(g)*x", "gaussian", "'mo\\(g\\)' is brms' monotonic effect.*; name the column"),
    "R's levels": ("y ~ as.factor(k)", "gaussian", "'as.factor\\(k\\)' is R's levels.*; write C\\(x\\)"),
    "options of a group": ("y ~ (1 | gr(g, by=h))", "gaussian", "'gr\\(g, by=h\\)' is brms' options of a group"),
    "brms' censoring": ("t | cens(flag) ~ x", "weibull", "'cens\\(flag\\)'.*; write censored\\(t, c\\)"),
    "an effect of a group twice": ("y ~ (1 | g) + (x | g)", "gaussian", "'Intercept' of 'g'.*; write 0 \\+ x in"),
    "a term twice": ("y ~ (1 | g) + (1 | g/h)", "gaussian", "'Intercept' of 'g'.*; leave one of them out"),
    "an unknown numpy call": ("y ~ np.cumsum(x)", "gaussian", "np.cumsum\\(x\\), which is none of"),
    "syntax": ("y ~ x +* u", "gaussian", "cannot be read; expected columns and calls"),
    "a power": ("y ~ u + x**2", "gaussian", "'x \\*\\* 2' in a formula is 'x' itself.*write I\\(x"),
    "the response on both sides": ("y ~ x + y", "gaussian", "the response 'y' of .* stands on the right as well"),
    "the response as a group": ("y ~ x + (1 | y)", "gaussian", "the response 'y' of .* stands on the right as well"),
    "a condition": ("y ~ x if u else g", "gaussian", "'x if u else g' is no term; compute it as a column"),
    "a comparison": ("y ~ x > 0", "gaussian", "'x > 0' is no term; compute it as a column"),
    "a bar outside": ("y ~ x | g", "gaussian", "group effects stand in parentheses of their own"),
    "a bar in a product": ("y ~ x*(1 | g)", "gaussian", "group effects stand in parentheses of their own"),
    "a word of Python's": ("y ~ x + (1 | class)", "gaussian", "groups by 'class'; expected columns"),
    "a computed factor": ("y ~ x + (1 | C(k))", "gaussian", "groups by 'C\\(k"),
    "one group": ("y ~ (1 | n)", "gaussian", "'n' has one group"),
    "a computed response": ("log(t) ~ x", "gaussian", "the response of .* is 'log\\(t\\)'"),
    "words as numbers": ("g ~ x", "gaussian", "'g' is words \\('a', ...\\), and gaussian takes finite numbers"),
    "a response of one value": ("n ~ x", "student", "'n' is 5 in every row.*; name a response that varies"),
    "one value by levels": ("n ~ 0 + g", "gaussian", "'n' is 5 in every row"),
    "one value by groups": ("n ~ 0 + x + (1 | g)", "gaussian", "'n' is 5 in every row"),
    "one level": ("y ~ x + one", "gaussian", "'one' has the one level 'k' in these data"),
    "one level in a product": ("y ~ x + g + one:g", "gaussian", "'one' has the one level 'k' in these data"),
    "one level of numbers": ("y ~ x + C(n)", "gaussian", "'n' has the one level"),
    "a logarithm of what has none": ("y ~ u + log(x)", "gaussian", "np.log\\(x\\) is no finite number in .* has x = -"),
    "the scale of such": ("y ~ scale(sqrt(x))", "gaussian", "np.sqrt\\(x\\) is no finite number"),
    "an offset of such": ("c ~ u + offset(log(x))", "poisson", "np.log\\(x\\) is no finite number"),
    "numbers below zero": ("y ~ x", "gamma", "'y' is -.* in row .*and gamma takes numbers above 0"),
    "fractions as counts": ("t ~ x", "poisson", "and poisson takes counts"),
    "more than two": ("g ~ x", "bernoulli", "'g' has 4 values \\(a, b, c, d\\), and bernoulli takes two"),
    "categories by other numbers": ("k ~ x", "ordered", "'k' is the numbers 1, 3, 5"),
    "knots": ("y ~ bs(x, knots=[0, 1])", "gaussian", "have knots as a list.*write df="),
    "half a trial": ("p(c, u) ~ x", "binomial", "the trials 'u' of 'c' are no whole number in row 0"),
    "half a trial of all": ("p(c, 8.5) ~ x", "binomial", "the trials 8.5 of 'c' are no whole number;"),
    "no trials": ("c ~ x", "binomial", "has no trials"),
    "trials of another": ("p(c, n) ~ x", "poisson", "'c' has trials"),
    "censored counts": ("censored(c, flag) ~ x", "poisson", "poisson has no censored"),
    "a status": ("censored(t, k) ~ x", "weibull", "the status 'k' has '3'"),
    "no such success": ("g['z'] ~ x", "bernoulli", "'g' has 4 values"),
    "effects of a categorical": ("g ~ x + (1 | h)", "categorical", "categorical has no group effects"),
    "a site of the family": ("sigma ~ x", "gaussian", "the column 'sigma' is called like a site"),
    "the intercept's name": ("y ~ u + Intercept", "gaussian", "the column 'Intercept' is called like a site"),
    "a site's name": ("beta ~ x", "gaussian", "the column 'beta' is called like a site"),
}


def test_a_column_of_one_level_may_stand_for_the_intercept():
    own = TABLE.assign(one="k")
    assert regression("y ~ 0 + one + x", "gaussian", own).design["matrix"]["labels"] == ["one[k]", "x"]


def test_what_is_proposed_for_others_calls_is_read():
    for terms in ("bs(x, df=5)", "poly(x, 3)", "bs(x, df=5) + bs(u, df=5) + x:u", "C(k)", "C(g, Treatment('b'))",
                  "(1 | g) + (0 + x | g)", "(x || g)"):  # fmt: skip
        regression(f"y ~ {terms}", "gaussian", TABLE)


def test_a_response_of_one_value_that_the_effects_cannot_give_has_a_sigma():
    """The least squares of 5 on x are far from 0."""
    assert regression("n ~ 0 + x", "gaussian", data=TABLE).formula == "n ~ 0 + x"


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_cannot_be_is_one_sentence(case):
    formula, family, message = REFUSED[case]
    own = TABLE.assign(gap=[np.nan, *TABLE["x"][1:]], beta=TABLE["y"], sigma=TABLE["y"], one="k", Intercept=TABLE["x"])
    with pytest.raises(PpgenError, match=message) as error:
        regression(formula, family, own)
    assert "\n" not in str(error.value)


def test_without_formulae_the_pip_line_is_said(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "formulae", None)
    with pytest.raises(PpgenError, match=r"formulae, which is not installed; pip install 'ppgen-pyro\[formula\]'"):
        regression("y ~ x", data=TABLE)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"z": 1.0}, "nothing called 'z' with a prior.*there are Intercept, x, beta, sigma, sd_g"),
        ({"x": -1.0}, "'x' has the scale -1"),
        ({"x": (1, 2, 3)}, "a scale, or a pair of location and scale"),
        ({"sd_g": (5, 1)}, "'sd_g' has the location 5, and stands about 0"),
        ({"sigma": (1, 2)}, "1 positive numbers, the mean of Exponential"),
        ('{"x": 0.5', "expected scales, or pairs of location and scale, by name"),
    ],
)
def test_priors_that_cannot_be(stated, message):
    with pytest.raises(PpgenError, match=message):
        regression("y ~ x + (1 | g)", data=TABLE, priors=stated)


def test_stated_priors_stand_in_place_of_those_by_scale():
    stated = {"Intercept": (1, 2), "beta": 0.5, "g": 0.1, "sd_h": 0.3, "sigma": 4.0}
    said = regression("y ~ x + g + (1 | h)", data=TABLE, priors=stated).describe_priors()
    assert said["Intercept"] == "Normal(1, 2)" and said["x"] == "Normal(0, 0.5)" and said["g[b]"] == "Normal(0, 0.1)"
    assert said["sd_h[Intercept]"] == "HalfNormal(0.3)" and said["sigma"] == "Exponential(0.25)"


@pytest.mark.parametrize("missing", ["error", "impute"])
def test_each_prior_is_stated_by_the_name_that_it_is_said_by(missing):
    gaps = ["x", "flag"] if missing == "impute" else []
    own = TABLE.assign(sigma=TABLE["x"] ** 2, flag=TABLE["flag"].astype(float))
    own.loc[3, gaps] = np.nan
    asked = (
        ("y ~ x + flag + sigma + g + (1 + x | h)" if not gaps else "y ~ x + flag + sigma + g + (1 | h)"),
        "gaussian",
        own,
    )
    said = regression(*asked, missing=missing).describe_priors()
    assert "beta[sigma]" in said and "sigma" in said and len(said) > 8
    for name in [n for n in said if not n.startswith("corr")]:
        stated = regression(*asked, {name: 123.0}, missing=missing).describe_priors()
        changed = [n for n in said if stated[n] != said[n]]
        assert changed == [name] and ("123" in stated[name] or "0.00813" in stated[name])  # a mean of 123 is a rate


def test_priors_follow_the_scales_of_the_data():
    one = regression("y ~ x", data=TABLE).priors
    other = regression("y ~ x", data=TABLE.assign(y=1000 * TABLE["y"], x=TABLE["x"] / 10)).priors
    assert other["slopes"][0][1] == pytest.approx(1e4 * one["slopes"][0][1], rel=0.02)
    assert other["intercept"][1] == pytest.approx(1e3 * one["intercept"][1], rel=0.02)


FAR = ["year*g", "g + year:g", "year*u", "year + I(year**2)", "year*u*g", "0 + g", "0 + g + year", "0 + u", "C(year)",
       "0 + year*g", "bs(year, df=5) + g", "tiny"]  # fmt: skip


@pytest.mark.parametrize("terms", FAR)
def test_priors_reach_the_coefficients_far_from_zero(terms):
    """Of years, dollars and units that are small, by least squares: none is further than its prior."""
    own = TABLE.assign(year=RNG.integers(2005, 2020, N), tiny=1e-15 * TABLE["x"])
    bend = 0.05 * (own["year"] - 2012) * (own["u"] + (own["g"] == "b") + (own["year"] - 2012) / 3)
    own["y"] = 1_234_567 + 100 * (bend + TABLE["x"] + RNG.normal(0, 0.3, N))
    program = regression(f"y ~ {terms}", data=own)
    columns = {k: v for k, v in prepare_columns(own, program, torch.float64).items() if k != "y"}
    x = matrix(program.design["matrix"], columns, torch.zeros((), dtype=torch.float64)).numpy()
    level = own["y"].mean() if program.design["intercept"] else 0.0
    x = x - x.mean(0) if program.design["intercept"] else x
    q, r = np.linalg.qr(x)
    loc, scale = np.array(program.priors["slopes"]).T
    assert (np.abs(np.linalg.solve(r, q.T @ (own["y"] - level)) - loc) < 2 * scale).all()
    assert abs(program.priors["intercept"][0] - own["y"].mean()) < 0.01 * own["y"].std()


def test_group_effects_at_a_zero_that_is_far_away_are_said(caplog):
    own = TABLE.assign(year=RNG.integers(2005, 2020, N))
    with caplog.at_level("WARNING", "ppgen"):
        regression("y ~ year + (center(year) | g) + (0 + year | h) + (u | k)", data=own)
        assert not caplog.messages
        regression("y ~ year + (year | g)", data=own.assign(year=own["year"] - 1700))
    assert len(caplog.messages) == 1 and "write center(year)" in caplog.messages[0]
    with pytest.raises(PpgenError, match=r"where year is 0, far from its 201.*; write center\(year\), for"):
        regression("y ~ year + (year | g)", data=own)
    with pytest.raises(PpgenError, match=r"write center\(np.log\(year\)\), for"):
        regression("y ~ (np.log(year) | g)", data=own)
    regression("y ~ (center(np.log(year)) | g)", data=own)


def test_events_that_are_taken_for_censored_rows_are_said(caplog):
    own = TABLE.assign(event=(TABLE["x"] > 0).astype(int), c=0)
    with caplog.at_level("WARNING", "ppgen"):
        regression("censored(t, c) ~ u", "weibull", own.assign(c=own["event"]))
        assert not caplog.messages
        regression("censored(t, event) ~ u", "weibull", own)
    assert "event: 1 is right censored, which" in caplog.messages[0]


def test_bars_and_slashes():
    formula = parse("y ~ 1 + x + (x || g) + (1 | a/b/c) + (0 + z | a:b)")
    assert formula.common == "1 + x"
    assert [(b.terms, b.factors, b.correlated) for b in formula.blocks] == [
        ("x", [("g",)], False),
        ("1", [("a",), ("a", "b"), ("a", "b", "c")], True),
        ("0 + z", [("a", "b")], True),
    ]


def test_an_expression_is_not_run_as_code():
    for text in ("__import__('os')", "x.__class__", "torch.load(x)", "(lambda: 1)()", "[x]"):
        with pytest.raises(PpgenError, match="is no arithmetic of columns"):
            compute(text, {"x": torch.ones(2)})
    assert translated("I((x - 1)**2)", {"x": torch.ones(2)}) == "(x - 1) ** 2"


def test_a_success_is_named():
    own = TABLE.assign(vote=np.where(TABLE["flag"], "yes", "no"))
    data = {
        s: prepare_columns(own, regression(f"vote{s} ~ x", "bernoulli", own), torch.float64) for s in ("", "['no']")
    }
    assert torch.equal(data[""]["vote"], torch.as_tensor(own["flag"].to_numpy()).long())
    assert torch.equal(data["['no']"]["vote"], 1 - data[""]["vote"])
