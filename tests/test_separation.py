"""Regressions whose likelihood has no maximum are told, and no others: against scipy's maximum between wide bounds."""

import time

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import linprog, minimize

from ppgen.formula.separation import _is_bounded
from ppgen.models import regression

pytest.importorskip("formulae")
END = 40.0  # of a coefficient of columns from -2 to 2, near which only a likelihood without a maximum comes

# η and y, and whether a value is censored -> -log p(y)
LOSSES = {
    "bernoulli": lambda eta, y, c: np.logaddexp(0, eta) - y * eta,
    "poisson": lambda eta, y, c: np.exp(eta) - y * eta,
    "exponential": lambda eta, y, c: y * np.exp(-eta) + (1 - c) * eta,
}


def table(family: str, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    n = 9
    own = pd.DataFrame(
        {"x": rng.integers(-2, 3, n), "g": rng.permutation(list("aaabbbccc")), "c": rng.integers(0, 2, n)}
    )
    y = {
        "bernoulli": rng.permutation([0, 1] + list(rng.integers(0, 2, n - 2))),
        "poisson": rng.poisson(0.5, n),
        "exponential": rng.exponential(1.0, n),
    }
    return own.assign(y=y[family])


def has_no_maximum(own: pd.DataFrame, family: str) -> bool:
    x = np.column_stack([np.ones(len(own)), own["x"], own["g"] == "b", own["g"] == "c"]).astype(float)
    y, c = own["y"].to_numpy(), own["c"].to_numpy()
    loss = lambda b: LOSSES[family](x @ b, y, c).sum()  # noqa: E731
    found = minimize(
        loss, np.zeros(4), bounds=[(-END, END)] * 4, options={"maxiter": 10000, "ftol": 1e-15, "gtol": 1e-9}
    )
    return bool(np.abs(found.x).max() > END / 4)


def told(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if "the likelihood has no maximum" in r.getMessage()]


@pytest.mark.parametrize("family", list(LOSSES))
def test_a_likelihood_without_a_maximum_is_told_and_no_other(family, caplog):
    seen = set()
    for seed in range(16):
        own = table(family, seed)
        caplog.clear()
        regression(("censored(y, c)" if family == "exponential" else "y") + " ~ x + g", family, own)
        expected = has_no_maximum(own, family)
        assert bool(told(caplog)) == expected, seed
        seen.add(expected)
    assert seen == {True, False}


N, G = 40, np.array(list("abcd") * 10)
Y = np.arange(N) // 4 % 2
OTHERS = {
    "a level of failures": ("y ~ g", "bernoulli", np.where(G == "c", 0, Y), "g[c]: "),
    "of some of the trials": ("p(y, 5) ~ 0 + g", "binomial", np.where(G == "c", 5, Y), "g[c]: "),
    "no count but 0": ("y ~ 1", "poisson", np.zeros(N, int), "Intercept: "),
    "a level of counts of 0": ("y ~ g", "negbinomial", np.where(G == "b", 0, Y), "g[b]: "),
    "a spread that is learned": ("y ~ 1 + (1 | g)", "bernoulli", np.where(G == "c", 0, Y), ""),
    "some of each": ("y ~ g", "bernoulli", Y, ""),
}


@pytest.mark.parametrize("case", list(OTHERS))
def test_its_columns_are_named(case, caplog):
    formula, family, y, said = OTHERS[case]
    regression(formula, family, pd.DataFrame({"g": G, "y": y}))
    found = told(caplog)
    assert (found[0].startswith(said) if said else not found) and len(found) <= 1, found


def test_rows_that_most_rows_do_not_tell_of_are_seen(caplog):
    """Of 50 000 rows three have a level, all failures: looked at as a whole, in less than a second."""
    rng = np.random.default_rng(0)
    own = pd.DataFrame({f"v{i}": rng.normal(size=50_000) for i in range(5)} | {"y": rng.integers(0, 2, 50_000)})
    own["rare"] = np.isin(np.arange(50_000), [7, 700, 7000]).astype(float)
    regression("y ~ rare + v0 + v1 + v2 + v3 + v4", "bernoulli", own.assign(y=own["y"] * (own["rare"] == 0)))
    assert told(caplog)[0].startswith("rare: ")


def test_designs_of_many_columns_are_told_soon():
    """200 columns of 3 000 rows took a linear program 3 CPU seconds, one of 40 000 rows more."""
    rng = np.random.default_rng(0)
    x = np.column_stack([np.ones(3000), rng.normal(size=(3000, 199))])
    signs = np.where(rng.random(3000) < 1 / (1 + np.exp(-x[:, 1])), 1.0, -1.0)
    began = time.process_time()
    assert _is_bounded(x, signs) and time.process_time() - began < 1
    assert not _is_bounded(x, np.sign(x[:, 1]))


def test_what_newtons_method_calls_bounded_has_no_direction_of_a_linear_program():
    """Also with rows of both bounds, against a linear program of scipy."""
    rng, seen = np.random.default_rng(0), []
    for _ in range(100):
        n, p = rng.integers(4, 14), rng.integers(1, 4)
        x = np.column_stack([np.ones(n), rng.integers(-2, 3, (n, p))])
        signs = rng.integers(-1, 2, n)
        one, free = signs[:, None] * x, signs == 0
        found = linprog(-one.sum(0), -one, np.zeros(n), x[free], np.zeros(free.sum()), bounds=(-1, 1))
        seen.append(-found.fun < 1e-6)
        assert _is_bounded(x, signs) == seen[-1]
    assert 10 < sum(seen) < 90
