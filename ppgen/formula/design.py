"""Design matrices of a regression: what is kept of them as JSON, and their columns at any rows.

A term is a product of parts, row by row; a matrix, its terms side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NotRequired, TypedDict

import torch
from torch import Tensor

from ppgen.formula.expressions import compute, names, piecewise

STARTS = 4  # of the search that a fit begins at, as columns are of any units


class Part(TypedDict):
    """One of: an expression; polynomials between breaks of one; by an argument's codes, the rows of a matrix, or one
    column for each of n levels, of which the first may be left out: [n, 0 or 1]."""

    x: NotRequired[str]
    breaks: NotRequired[list[float]]
    coefs: NotRequired[list[list[list[float]]]]
    codes: NotRequired[str]
    contrasts: NotRequired[list[list[float]]]
    indicators: NotRequired[list[int]]


class Matrix(TypedDict):
    """Terms, of parts (none: the intercept's column of ones), and a label for each column."""

    terms: list[list[Part]]
    labels: list[str]


class Group(TypedDict):
    """Effects that vary over groups.

    name: of their plate and sites.  codes: the argument.  correlated: whether the columns' effects are.
    centred: by column, whether its effects are latents themselves (`ppgen.formula.centring`); else none is.
    """

    name: str
    codes: str
    size: int
    matrix: Matrix
    correlated: bool
    centred: NotRequired[list[bool]]


class Response(TypedDict):
    """y: the column.  trials: a column or a number, or None.  status: of censoring, a column or None; status_of: what
    its codes mean, where it is words."""

    y: str
    trials: str | float | None
    status: str | None
    status_of: list[float] | None
    categories: int


class Gap(TypedDict):
    """A column with missing cells that is a term by itself (`ppgen.formula.gaps`).

    name: its argument.  place: its column in the design.  binary: whether it is 0 and 1.  beside: the columns of the
    design that its model has, and their means.  fill: what stands in its gaps until they are drawn.  rows: with gaps.
    """

    name: str
    place: int
    binary: bool
    beside: list[int]
    means: list[float]
    fill: float
    rows: list[int]


class Design(TypedDict):
    """What a formula is at a table.

    levels: of an argument of codes, [columns, values, whether new groups may be drawn].  means: of the columns.
    gaps: of columns whose missing cells are drawn; a run of an earlier version has none.
    """

    response: Response
    intercept: bool
    matrix: Matrix
    means: list[float]
    offsets: list[str]
    groups: list[Group]
    levels: dict[str, tuple[Sequence[str], Sequence[str], bool]]
    arguments: list[str]
    gaps: NotRequired[list[Gap]]


def matrix(own: Matrix, columns: Mapping[str, Tensor], like: Tensor) -> Tensor:
    """The columns side by side, (N, D), in the dtype of `like`.

    Args:
        columns: by the names of the arguments; codes are whole numbers.
    """
    n = len(next(iter(columns.values())))
    return torch.cat([_term(term, columns, like, n) for term in own["terms"]], -1)


def width(part: Part) -> int:
    """How many columns it has."""
    if "indicators" in part:
        n, first = part["indicators"]
        return n - first
    table = part["contrasts"] if "codes" in part else part["coefs"][0] if "coefs" in part else [[0.0]]
    return len(table[0])


def _term(parts: list[Part], columns: Mapping[str, Tensor], like: Tensor, n: int) -> Tensor:
    return row_product(*(_part(part, columns, like) for part in parts)) if parts else like.new_ones(n, 1)


def row_product(first: Tensor, *others: Tensor) -> Tensor:
    """All products of a column of each, row by row: (N, A), (N, B) -> (N, A B), the last the fastest."""
    for other in others:
        first = (first[:, :, None] * other[:, None, :]).flatten(1)
    return first


def _part(part: Part, columns: Mapping[str, Tensor], like: Tensor) -> Tensor:
    if "indicators" in part:
        n, first = part["indicators"]
        return torch.eye(n).to(like)[:, first:][columns[part["codes"]]]
    if "codes" in part:
        return like.new_tensor(part["contrasts"])[columns[part["codes"]]]
    x = compute(part["x"], {k: v.to(like) for k, v in columns.items()})
    if "breaks" in part:
        return piecewise(x, like.new_tensor(part["breaks"]), like.new_tensor(part["coefs"]))
    return x[:, None]


def exposure(design: Design) -> tuple[str, ...]:
    """The columns of trials and offsets that are of no term that has an effect."""
    matrices = [design["matrix"], *(g["matrix"] for g in design["groups"])]
    parts = [part for own in matrices for term in own["terms"] for part in term]
    effects = set().union(*({p["codes"]} if "codes" in p else names(p["x"]) for p in parts))
    trials = design["response"]["trials"]
    plain = set().union(*map(names, design["offsets"])) | ({trials} if isinstance(trials, str) else set())
    return tuple(sorted(plain - effects))


def dimensions(design: Design, family: str) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """The names of the dimensions of a site's value, by site, and what they are labelled with."""
    response = design["response"]
    several = ["category"] if family == "categorical" else []
    coords = {"term": design["matrix"]["labels"]}
    dims = {"beta": ["term", *several]} | ({"alpha": several, "Intercept": several} if several else {})
    words = design["levels"].get(response["y"], (None, None, None))[1]
    categories = list(words) if words else [str(k) for k in range(response["categories"])]
    if family == "categorical":
        coords["category"] = categories[1:]
    if family == "ordered":
        dims |= {"shares": ["category"], "cutpoints": ["below"]}
        coords |= {"category": categories, "below": categories[:-1]}
    for gap in design.get("gaps", []):
        dims |= {f"beta_{gap['name']}": [f"{gap['name']}_term"]}
        coords[f"{gap['name']}_term"] = [design["matrix"]["labels"][i] for i in gap["beside"]]
    for group in design["groups"]:
        name, labels = group["name"], group["matrix"]["labels"]
        dims |= dict.fromkeys((f"sd_{name}", f"z_{name}", f"r_{name}"), [f"{name}_term"])
        coords[f"{name}_term"] = labels
        if group["correlated"]:
            dims |= dict.fromkeys((f"chol_{name}", f"corr_{name}"), [f"{name}_term", f"{name}_term_"])
            coords[f"{name}_term_"] = labels
        if name != group["codes"]:  # else the words of the argument are its labels
            coords[name] = list(design["levels"][group["codes"]][1])
    return dims, coords
