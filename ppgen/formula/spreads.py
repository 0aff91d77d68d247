"""The spread of a column of a design, by which the prior of its coefficient is scaled.

A coefficient says what its column does while the others stay as they are. Of a column that shares its variables with
other terms (x beside x:g or I(x**2)) that is its residual, by least squares, on all terms of these variables: where x
is a year, the coefficient of g beside x:g is that of the year 0, far from all rows, and its prior is as wide.

Columns have spreads about their means where something else stands for the mean, an intercept or all levels of a factor,
else about 0.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from ppgen.formula.design import Matrix, Part, matrix, width
from ppgen.formula.expressions import as_written

_NOTHING = 1e-9  # of a column, which the others tell all of
_SINGULAR = 1e-13  # of a correlation matrix, an eigenvalue that is rounding: 1e-16 from doubles, 1e-14 from float32
_FAR = 20  # sds from a column's mean to 0


def spans_constant(own: Matrix) -> bool:
    """Whether some columns add up to one: the intercept's, or all levels of a factor."""
    return any(_level(term) for term in own["terms"])


def spreads(own: Matrix, columns: Mapping[str, Tensor], like: Tensor, intercept: bool) -> list[float]:
    """Root mean squares of what the related columns do not tell of each; its own sd where they tell it all, and 1 of a
    constant.

    Args:
        intercept: whether there is an intercept beside the columns.
    """
    if not own["terms"]:
        return []
    parts = [term for term in own["terms"] for _ in range(math.prod(map(width, term)))]
    x = matrix(own, columns, like)
    constant = 1e-12 * x.abs().amax(0)
    if intercept:
        x = x - x.mean(0)
    size = x.square().mean(0).sqrt()
    x = x / size.where(size > 0, 1)
    found = []
    for i, term in enumerate(parts):
        known = set[str]().union(*(_variables(other) for other in own["terms"] if _related(term, other)))
        near = [other is not term or _level(term) for other in parts]
        others = [j for j, other in enumerate(parts) if j != i and near[j] and _variables(other) <= known]
        rest = _residual(x[:, i], x[:, others]) if others else 1.0
        spread = float(size[i]) * (rest if rest > _NOTHING else 1.0)
        found.append(spread if spread > constant[i] else 1.0)
    return found


def untold(own: Matrix, columns: Mapping[str, Tensor], like: Tensor, intercept: bool) -> list[str]:
    """The labels of columns of whose coefficients the data tell none alone: linear functions of each other, or of the
    intercept. None where there are as many columns as rows, as then all are."""
    if not own["terms"]:
        return []
    x = matrix(own, columns, like)
    x = x[x.isfinite().all(1)]
    if len(x) <= x.shape[1] + intercept:
        return []
    most = x.abs().amax(0)
    x = x - x.mean(0) if intercept else x
    size = x.square().mean(0).sqrt()
    alone = size <= 1e-12 * most
    x = (x / size.where(~alone, 1))[:, ~alone]
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    together = torch.zeros_like(alone)
    together[~alone] = (vectors[:, values < _SINGULAR].abs() > 1e-3).any(-1)
    return [label for label, one in zip(own["labels"], (alone | together).tolist(), strict=True) if one]


def far_from_zero(own: Matrix, columns: Mapping[str, Tensor], like: Tensor) -> list[tuple[str, float, float]]:
    """The columns of numbers beside an intercept that have 0 far outside: as a formula names them, mean and sd."""
    numbers = [term for term in own["terms"] if len(term) == 1 and term[0].keys() == {"x"}]
    x = {term[0]["x"]: matrix({"terms": [term], "labels": []}, columns, like) for term in numbers}
    found = [(name, float(v.mean()), float(v.std(correction=0))) for name, v in x.items()] if [] in own["terms"] else []
    return [(as_written(name), mean, sd) for name, mean, sd in found if abs(mean) > _FAR * sd > 0]


def _residual(y: Tensor, x: Tensor) -> float:
    """The root mean square of y less its projection on the columns of x."""
    u, s, _ = torch.linalg.svd(x, full_matrices=False)
    u = u[:, s > 1e-12 * s.max()]
    for _ in range(2):  # the second time for what rounding left
        y = y - u @ (u.mT @ y)
    return float(y.square().mean().sqrt())


def _related(a: list[Part], b: list[Part]) -> bool:
    """Whether two terms share a variable, or one stands for the level that the other's numbers are measured from."""
    return bool(_variables(a) & _variables(b)) or _level(a) and _numeric(b) or _level(b) and _numeric(a)


def _variables(term: list[Part]) -> set[str]:
    named = {name for part in term if "x" in part for name in _named(part["x"])}
    return named | {part["codes"] for part in term if "codes" in part}


@lru_cache(4096)
def _named(x: str) -> frozenset[str]:
    """The names in an expression; terms are compared pair by pair."""
    return frozenset(n.id for n in ast.walk(ast.parse(x)) if isinstance(n, ast.Name)) - {"torch"}


def _level(term: list[Part]) -> bool:
    return all(part.get("indicators", [0, 1])[1] == 0 for part in term)


def _numeric(term: list[Part]) -> bool:
    return any("x" in part for part in term)
