"""Calls and signs of brms, mgcv, lme4 and R in a formula that mean nothing here, and what to write for each."""

from __future__ import annotations

import re

from ppgen.errors import PpgenError

_CURVE = "write bs(x, df=5) or poly(x, 3), whose coefficients have the priors of the others"
_SURFACE = "write bs(x, df=5) + bs(z, df=5) + x:z, or compute the columns of a surface in the table"
_COLUMN = "compute it as a column of the table, and name that"
_PROGRAM = "print the program of the rest (ppgen new --formula), and write it in there"
_LATER = f"{_COLUMN} (its first rows have gaps: --missing drop)"

# name: (what it is, what to do)
_CALLS: dict[str, tuple[str, str]] = {
    "mo": ("brms' monotonic effect of an ordered column",
           "name the column itself (a coefficient for each level but the first), or a column of its codes (a line)"),
    "s": ("a penalized spline of mgcv and brms", _CURVE),
    "gp": ("a Gaussian process of brms", _CURVE),
    "hsgp": ("a Gaussian process of bambi", _CURVE),
    "ns": ("a natural spline of R", _CURVE),
    "te": ("a tensor product spline of mgcv", _SURFACE),
    "ti": ("a tensor product spline of mgcv", _SURFACE),
    "t2": ("a tensor product spline of mgcv and brms", _SURFACE),
    "lag": ("an earlier row's value, and rows have no order here", _LATER),
    "lead": ("a later row's value, and rows have no order here", _COLUMN),
    "diff": ("a difference of rows, and rows have no order here", _LATER),
    "factor": ("R's levels", "write C(x)"),
    "as.factor": ("R's levels", "write C(x)"),
    "relevel": ("R's choice of the first level", "write C(x, Treatment('level'))"),
    "ifelse": ("a choice by rows", _COLUMN),
    "cut": ("a column in classes", _COLUMN),
    "me": ("a column with measurement error, of brms", _PROGRAM),
    "mi": ("a column with missing cells, of brms", "name the column itself, with --missing impute"),
    "cs": ("an effect for each category, of brms", _PROGRAM),
    "mm": ("groups of which a row has several, of brms", _PROGRAM),
    "gr": ("brms' options of a group", "name the column of the group itself"),
    "ar": ("correlation of residuals in time, of brms", _PROGRAM),
    "ma": ("correlation of residuals in time, of brms", _PROGRAM),
    "arma": ("correlation of residuals in time, of brms", _PROGRAM),
    "car": ("correlation of residuals in space, of brms", _PROGRAM),
}  # fmt: skip
_RESPONSES = {
    "cens": "censored(t, c)",
    "trials": "p(y, n)",
    "cbind": "p(y, n), n the successes and failures together",
    "Surv": "censored(t, c), where c is none or right",
}


def require_own_calls(text: str) -> None:
    """Refuses a call that formulas of another package have, and these do not."""
    left, _, right = text.partition("~")
    for name, written in _calls(left):
        if name in _RESPONSES:
            raise PpgenError(
                f"the response has {written!r}, as brms and R write it; write {_RESPONSES[name]}, columns of the table"
            )
    for name, written in _calls(right):
        if name in _CALLS:
            what, instead = _CALLS[name]
            raise PpgenError(f"{written!r} is {what}, which formulas do not have here; {instead}")


def _calls(text: str) -> list[tuple[str, str]]:
    """The name and text of each call, outermost first.

    >>> _calls("x + s(log(x), k=5)")
    [('s', 's(log(x), k=5)'), ('log', 'log(x)')]
    """
    found = []
    for match in re.finditer(r"(?<![\w.])([A-Za-z_][\w.]*)\(", text):
        depth, end = 0, len(text)
        for i in range(match.end() - 1, len(text)):
            depth += (text[i] == "(") - (text[i] == ")")
            if depth == 0:
                end = i + 1
                break
        found.append((match[1], text[match.start() : end]))
    return found
