r"""Columns on the right of a formula with missing cells: each has a small model of its own, given the other columns.

    x_i ~ N(α_x + (w_i - means) β_x, σ_x²)                    of numbers
    x_i ~ Bernoulli, logit P(x_i = 1) = α_x + (w_i - means) β_x      of two values

w: the columns of the design without gaps, then the numbers with gaps that stand before it. So the columns with gaps
have a joint distribution given the others, and y has its own given all. Missing cells are latents; seen cells are a
factor: they are no observed sites, since a prediction is made given them.

Sources: Statistical Analysis with Missing Data (Little & Rubin 2019), chapters 8 and 11, for the factored likelihood.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppgen.errors import PpgenError
from ppgen.formula.design import Design, Gap, Matrix, matrix, width
from ppgen.formula.priors import GapPriors
from ppgen.gaps import COVARIATE


def plain_names(tree: ast.expr) -> list[str]:
    """The columns that are terms by themselves.

    >>> plain_names(ast.parse("1 + x + u*g + log(v) - 1", mode="eval").body)
    ['x']
    """
    match tree:
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return plain_names(left) + plain_names(right)
        case ast.BinOp(left=left, op=ast.Sub(), right=ast.Constant()):
            return plain_names(left)
        case ast.Name(id=name):
            return [name]
    return []


def gaps_of(own: Matrix, table: Mapping[str, Tensor], gone: Mapping[str, Tensor], real: Collection[str]) -> list[Gap]:
    """What is kept of the columns with gaps: numbers first, then that of two values.

    Args:
        own: the design without its intercept.
        table: columns and codes, gaps filled.
        gone: where cells are missing, by column.
        real: columns that are numbers, though they may have but two values.
    """
    places = {name: _place(own, name, int(where.sum())) for name, where in gone.items()}
    binary = [n for n in gone if n not in real and bool(((table[n] == 0) | (table[n] == 1)).all())]
    if len(binary) > 1:
        words = [n for n in binary if not any(part.get("x") == n for term in own["terms"] for part in term)]
        other = next((n for n in binary if n not in words), None)
        raise PpgenError(
            f"the columns {binary[0]!r} and {binary[1]!r} have two values each and missing cells both, of which one "
            "can be drawn; leave these rows out (--missing drop)"
            + (f", or give one a linear model (--types {other}=real)" if other else "")
        )
    order = [n for n in gone if n not in binary] + binary
    columns = matrix(own, table, torch.zeros((), dtype=torch.float64))
    whole = [i for i in range(columns.shape[1]) if i not in places.values()]
    made: list[Gap] = []
    for k, name in enumerate(order):
        beside = whole + [places[n] for n in order[:k]]
        seen = table[name][~gone[name]].double()
        made.append({
            "name": name, "place": places[name], "binary": name in binary, "beside": beside,
            "means": columns[:, beside].mean(0).tolist(), "fill": 0.0 if name in binary else float(seen.mean()),
            "rows": gone[name].nonzero()[:, 0].tolist(),
        })  # fmt: skip
    return made


def _place(own: Matrix, name: str, missing: int) -> int:
    """The column of the design that a column with gaps is."""
    i = 0
    for term in own["terms"]:
        part = term[0]
        if len(term) == 1 and (part.get("x") == name or part.get("codes") == name and part.get("indicators") == [2, 1]):
            return i
        i += math.prod(map(width, term))
    raise PpgenError(
        f"the column {name!r} has {missing} missing cells, which are drawn in a column of numbers, or of two words "
        "beside an intercept; leave these rows out (--missing drop), or fill the cells in"
    )


def filled(gaps: Sequence[Gap], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The columns with a number in every cell; codes are whole numbers."""
    made = dict(given)
    for gap in gaps:
        x = given[gap["name"]]
        if x.is_floating_point():
            x = torch.where(x.isnan(), torch.full_like(x, gap["fill"]), x)
            made[gap["name"]] = x.long() if gap["binary"] else x
    return made


def missing_cells(
    design: Design, priors: Mapping[str, GapPriors], given: Mapping[str, Tensor], zero: Tensor, rows: Any
) -> dict[int, Tensor]:
    """By column of the design, what its missing cells are beyond what `filled` puts there: (N,), 0 where it is seen.

    Args:
        given: the columns, nan where a cell is missing.
        rows: the plate of the rows.
    """
    gaps = design["gaps"]
    columns = matrix(design["matrix"], filled(gaps, given), zero)
    beyond: dict[int, Tensor] = {}
    for gap in gaps:
        name, x = gap["name"], given[gap["name"]].to(zero)
        w = columns[:, gap["beside"]] - zero.new_tensor(gap["means"])
        loc = _line(gap, priors[name], w, beyond, zero)
        seen = ~x.isnan()
        value = torch.where(seen, x, torch.full_like(x, gap["fill"]))
        if gap["binary"]:
            of_x = of_cells = dist.Bernoulli(logits=loc)
        else:
            sigma = pyro.sample(f"sigma_{name}", dist.Exponential(zero + priors[name]["rate"]))
            of_x = dist.Normal(loc, sigma)
            # of rows that are seen, which nothing depends on, a law that depends on nothing
            of_cells = dist.Normal(torch.where(seen, zero, loc), torch.where(seen, zero + 1.0, sigma))
        with rows:
            drawn = pyro.sample(f"z_{name}", of_cells, infer={"enumerate": "parallel"} if gap["binary"] else {})
            pyro.deterministic(f"{name}_unobserved", drawn)
            density = torch.where(seen, of_x.log_prob(value), zero)
            pyro.sample(
                f"seen_{name}", dist.Unit(density), obs=density.new_empty(*density.shape, 0), infer={COVARIATE: True}
            )
        beyond[gap["place"]] = torch.where(seen, zero, drawn - gap["fill"])
    return beyond


def _line(gap: Gap, own: GapPriors, w: Tensor, beyond: Mapping[int, Tensor], zero: Tensor) -> Tensor:
    """α_x + w β_x, (N,)."""
    loc: Tensor = pyro.sample(f"alpha_{gap['name']}", dist.Normal(zero + own["alpha"][0], own["alpha"][1]))
    if not gap["beside"]:
        return loc.expand(len(w))
    beta = pyro.sample(f"beta_{gap['name']}", dist.Normal(zero, zero.new_tensor(own["slopes"])).to_event(1))
    loc = loc + w @ beta
    for i, place in enumerate(gap["beside"]):
        if place in beyond:
            loc = loc + beyond[place] * beta[i]
    return loc
