"""Arithmetic of columns as text: `torch.log(x + 1.0)`, checked and computed without running it as code.

A call in a formula (`np.log(x)`, `center(x)`, `I(x**2)`) is written as such a text once, with the constants of the
table that was fitted in it, so that new rows are transformed by the same ones.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ppgen.errors import PpgenError

__all__ = ["FUNCTIONS", "as_written", "compute", "names", "piecewise", "translated"]

# of numpy as of torch
FUNCTIONS = ("abs", "arctan", "cos", "exp", "expm1", "log", "log10", "log1p", "log2", "sin", "sqrt", "square", "tan",
             "tanh")  # fmt: skip
_BINARY = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}  # fmt: skip
_STANDARD = ("scale", "standardize")


def compute(text: str, columns: Mapping[str, Tensor]) -> Tensor:
    """The value of an expression at these columns.

    >>> compute("torch.log(x) ** 2.0 - 1.0", {"x": torch.tensor([1.0, 2.0])})
    tensor([-1.0000, -0.5195])
    """
    return _value(ast.parse(text, mode="eval").body, columns)


def names(text: str) -> set[str]:
    """The columns that an expression names.

    >>> sorted(names("torch.log(x) * y + 1.0"))
    ['x', 'y']
    """
    return {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)} - {"torch"}


def _value(node: ast.expr, columns: Mapping[str, Tensor]) -> Any:
    match node:
        case ast.Name(id=name):
            return columns[name]
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_value(inner, columns)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)](_value(left, columns), _value(right, columns))
        case ast.Call(func=ast.Attribute(value=ast.Name(id="torch"), attr=name), args=[inner]) if name in FUNCTIONS:
            return getattr(torch, name)(_value(inner, columns))
    raise PpgenError(f"{ast.unparse(node)!r} is no arithmetic of columns; expected + - * / ** and {_known()}")


def translated(call: str, columns: Mapping[str, Tensor]) -> str:
    """A call of a formula as an expression.

    Args:
        columns: of the table that is fitted, for means and spreads.

    Raises:
        PpgenError: a function that is not known here, or has no finite value in some row.

    >>> translated("np.log(x) + center(x)", {"x": torch.tensor([1.0, 3.0])})
    'torch.log(x) + (x - 2.0)'
    """
    text = ast.unparse(_translate(ast.parse(call, mode="eval").body, columns))
    _finite(text, columns)
    return text


def _finite(text: str, columns: Mapping[str, Tensor]) -> Tensor:
    """Refuses a logarithm or a root of what has none, a quotient by zero."""
    value = torch.as_tensor(compute(text, columns))
    bad = (~value.isfinite()).nonzero()
    if len(bad):
        first = tuple(bad[0].tolist())
        where = " and ".join(f"{n} = {columns[n][first].item():.6g}" for n in sorted(names(text)))
        raise PpgenError(
            f"{as_written(text)} is no finite number in {len(bad)} of {value.numel()} rows, the first of which has "
            f"{where or 'no column'}; leave these rows out, or write a function that is defined there"
        )
    return value


def as_written(text: str) -> str:
    """An expression as a formula takes it.

    >>> as_written("torch.log(x) + 1.0")
    'np.log(x) + 1.0'
    """
    return re.sub(r"\btorch\.", "np.", text)


def _translate(node: ast.expr, columns: Mapping[str, Tensor]) -> ast.expr:
    match node:
        case ast.Name() | ast.Constant():
            return node
        case ast.UnaryOp(op=ast.USub() as op, operand=inner):
            return ast.UnaryOp(op, _translate(inner, columns))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return ast.BinOp(_translate(left, columns), op, _translate(right, columns))
        case ast.Call(func=ast.Name(id="I"), args=[inner]):
            return _translate(inner, columns)
        case ast.Call(func=ast.Name(id="center"), args=[inner]):
            return _standard(_translate(inner, columns), columns, spread=False)
        case ast.Call(func=ast.Name(id=name), args=[inner]) if name in _STANDARD:
            return _standard(_translate(inner, columns), columns, spread=True)
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(value=ast.Name(id="np" | "numpy"), attr=name),
                      args=[inner]) if name in FUNCTIONS:  # fmt: skip
            return ast.parse(f"torch.{name}({ast.unparse(_translate(inner, columns))})", mode="eval").body
    raise PpgenError(
        f"the formula has {ast.unparse(node)}, which is none of {_known()}, center, scale, bs, poly, C, S, T, offset "
        "and I(+ - * / **); compute it as a column of the table, and name that"
    )


def _standard(inner: ast.expr, columns: Mapping[str, Tensor], spread: bool) -> ast.expr:
    text = ast.unparse(inner)
    value = _finite(text, columns)
    text = f"({text} - {value.mean().item()!r})"
    return ast.parse(f"{text} / {value.std(correction=0).item()!r}" if spread else text, mode="eval").body


def _known() -> str:
    return ", ".join(FUNCTIONS)


def piecewise(x: Tensor, breaks: Tensor, coefs: Tensor) -> Tensor:
    """Polynomials between breaks, the outer ones going on: (N,) -> (N, columns).

    Args:
        breaks: left ends of the intervals, (K,), of which the first holds below as well.
        coefs: of powers of x less the left end, (K, powers, columns).
    """
    place = (x[:, None] >= breaks[1:]).sum(-1)
    away = x - breaks[place]
    powers = torch.stack([away**k for k in range(coefs.shape[1])], -1)
    return (powers[:, :, None] * coefs[place]).sum(1)
