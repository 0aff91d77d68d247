"""Splines and orthogonal polynomials of a formula (`bs`, `poly`) as polynomials between knots, which JSON can hold."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from ppgen.errors import PpgenError
from ppgen.formula.design import Part


def polynomials(component: Any, columns: Mapping[str, Tensor]) -> Part:
    """The columns of a call of `bs` or `poly`, by their values at as many points between two knots as there are powers.

    Args:
        component: formulae's, evaluated.
        columns: the numbers that it was evaluated at.
    """
    call = ast.parse(component.name, mode="eval").body
    assert isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
    column = ast.unparse(call.args[0])
    if column not in columns:
        raise PpgenError(f"{component.name!r} is of an expression; compute {column!r} as a column of the table")
    x, spline = columns[column].numpy(), call.func.id == "bs"
    names = ["df", "knots", "degree", "intercept"] if spline else ["degree", "raw"]
    options = dict(zip(names, map(ast.literal_eval, call.args[1:]), strict=False))
    options |= {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    degree = options.get("degree", 3 if spline else 1)
    inner = _inner_knots(x, options, degree) if spline else []
    breaks = [float(options.get("lower_bound", x.min())), *inner, float(options.get("upper_bound", x.max()))]
    coefs = [_powers(component, column, *ends, degree) for ends in zip(breaks, breaks[1:], strict=False)]
    return {"x": column, "breaks": breaks[:-1], "coefs": coefs}


def _inner_knots(x: np.ndarray, options: Mapping[str, Any], degree: int) -> list[float]:
    if options.get("knots") is not None:
        return [float(k) for k in options["knots"]]
    center = not options["intercept"] if options.get("intercept") is not None else options.get("center", True)
    n = int(options["df"]) - degree - (0 if center else 1)
    return [float(q) for q in np.percentile(x, 100 * np.linspace(0, 1, n + 2)[1:-1])]


def _powers(component: Any, column: str, left: float, right: float, degree: int) -> list[list[float]]:
    """The coefficients of powers of x - left that hold up to the right end: (powers, columns)."""
    import pandas as pd

    share = np.linspace(0.0, 1.0, degree + 3)[1:-1]
    new = pd.DataFrame({column: left + share * (right - left)})
    values = np.asarray(component.eval_new_data(new), float).reshape(len(share), -1)
    found = np.linalg.solve(np.vander(share, increasing=True), values)
    return (found / (right - left) ** np.arange(degree + 1)[:, None]).tolist()
