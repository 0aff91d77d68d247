"""ATen's operations as expressions of `instructions`.

An expression is (instruction, operand, ...), and an operand a node, a number or another expression.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from ppgen.engine.interpreter.instructions import BINARY, UNARY

aten = torch.ops.aten

Expression = tuple[Any, ...] | None  # None: torch runs it

SAME_VALUES = {
    aten.clone.default, aten.alias.default, aten.detach.default, aten.view.default, aten.reshape.default,
    aten._unsafe_view.default, aten.lift_fresh_copy.default, aten.contiguous.default,
}  # fmt: skip


def _unary(name: str) -> Callable[..., Expression]:
    return lambda x: (name, x)


def _binary(name: str) -> Callable[..., Expression]:
    return lambda x, y: (name, x, y)


def _sum(name: str, back: bool = False) -> Callable[..., Expression]:
    def expression(x: Any, y: Any, alpha: Any = 1) -> Expression:
        x, y = (y, x) if back else (x, y)
        if alpha == 1:
            return (name, x, y)
        return ("axpy", x, y, alpha if name == "add" else -alpha) if not back else None

    return expression


def _power(x: Any, k: Any) -> Expression:
    simple = {0.5: ("sqrt", x), 1: ("copy", x), 2: ("mul", x, x), 3: ("mul", ("mul", x, x), x), -1: ("reciprocal", x)}
    return simple.get(k, ("pow", x, k)) if not isinstance(k, fx.Node) else ("pow", x, k)


def _clamp(x: Any, low: Any = None, high: Any = None) -> Expression:
    found = x if low is None else ("maximum", x, low)
    found = found if high is None else ("minimum", found, high)
    return found if isinstance(found, tuple) else ("copy", x)


def _softplus(x: Any, beta: float = 1, threshold: float = 20) -> Expression:
    return ("softplus", x) if (beta, threshold) == (1, 20) else None


def _softplus_backward(g: Any, x: Any, beta: float, threshold: float) -> Expression:
    return ("softplus_backward", g, x) if (beta, threshold) == (1, 20) else None


def _converted(x: Any, *, dtype: torch.dtype | None = None, **_: Any) -> Expression:
    return ("ne", x, 0) if dtype == torch.bool else ("copy", x)


def _elementwise() -> dict[Any, Callable[..., Expression]]:
    found: dict[Any, Callable[..., Expression]] = {}
    for table, make in ((UNARY, _unary), (BINARY, _binary)):
        for name in table:
            packet = getattr(aten, name, None)
            for overload in ("default", "Tensor", "Scalar"):
                if packet is not None and overload in packet.overloads():
                    found[getattr(packet, overload)] = make(name)
    for overload in ("Tensor", "Scalar"):
        found[getattr(aten.add, overload)] = _sum("add")
        found[getattr(aten.sub, overload)] = _sum("sub")
        found[getattr(aten.rsub, overload)] = _sum("sub", back=True)
        found[getattr(aten.bitwise_and, overload)] = _binary("logical_and")
        found[getattr(aten.bitwise_or, overload)] = _binary("logical_or")
    found |= {
        aten.bitwise_not.default: _unary("logical_not"),
        aten.pow.Tensor_Scalar: _power,
        aten.pow.Tensor_Tensor: _binary("pow"),
        aten.pow.Scalar: _binary("pow"),
        aten.clamp.default: _clamp,
        aten.clamp.Tensor: _clamp,
        aten.clamp_min.default: _clamp,
        aten.clamp_max.default: lambda x, high: ("minimum", x, high),
        aten.softplus.default: _softplus,
        aten.softplus_backward.default: _softplus_backward,
        aten.threshold_backward.default: lambda g, x, k: ("threshold_backward", g, x, k),
        aten.where.self: lambda m, x, y: ("where", m, x, y),
        aten.where.ScalarOther: lambda m, x, y: ("where", m, x, y),
        aten.where.ScalarSelf: lambda m, x, y: ("where", m, x, y),
        aten.masked_fill.Scalar: lambda x, m, k: ("where", m, k, x),
        aten.masked_fill.Tensor: lambda x, m, k: ("where", m, k, x),
        aten._to_copy.default: _converted,
        aten.copy.default: lambda x, y, non_blocking=False: ("copy", y),
        aten.addcmul.default: lambda x, y, z, value=1: ("axpy", x, y, z) if value == 1 else None,
    }
    return found


ELEMENTWISE = _elementwise()


def full_value(node: fx.Node) -> float | None:
    """The number that fills all of a node's tensor; None where there is none."""
    value: Any = None
    if node.target in (aten.zeros_like.default, aten.zeros.default, aten.new_zeros.default):
        value = 0.0
    elif node.target in (aten.ones_like.default, aten.ones.default, aten.new_ones.default):
        value = 1.0
    elif node.target in (aten.full_like.default, aten.full.default):
        value = node.args[1]
    elif node.target is aten.new_full.default:
        value = node.args[2]
    elif node.target is aten.scalar_tensor.default:
        value = node.args[0]
    return float(value) if isinstance(value, (int, float)) else None


def _joined(parts: Any, dim: int = 0) -> tuple[Any, int]:
    return parts, dim


JOINED = {aten.cat.default: _joined, aten.stack.default: _joined}

Place = Callable[[Tensor], Tensor]


def _one_entry(g: Any, sizes: Any, dim: int, index: int) -> tuple[Any, Place, Place, float]:
    return g, lambda whole: whole.select(dim, index), _all, 0.0


def _some_entries(g: Any, sizes: Any, dim: int, start: int, end: int, step: int) -> tuple[Any, Place, Place, float]:
    return g, lambda whole: aten.slice.Tensor(whole, dim, start, end, step), _all, 0.0


def _padded(x: Any, pad: Any, value: float = 0.0) -> tuple[Any, Place, Place, float]:
    """Ends of the last dimensions, the last one first; those below zero are cut off."""
    ends = [(int(low), int(high)) for low, high in zip(pad[::2], pad[1::2], strict=True)]

    def inner(view: Tensor, sign: int) -> Tensor:
        for i, (low, high) in enumerate(ends):
            low, high, n = max(sign * low, 0), max(sign * high, 0), view.shape[-1 - i]
            view = view.narrow(-1 - i, low, n - low - high)
        return view

    return x, lambda whole: inner(whole, 1), lambda source: inner(source, -1), float(value)


def _all(source: Tensor) -> Tensor:
    return source


# What lies at a place of a larger tensor: whose values, the place, the part of them, and what is elsewhere.
PADDED = {
    aten.select_backward.default: _one_entry,
    aten.slice_backward.default: _some_entries,
    aten.constant_pad_nd.default: _padded,
}


def _reduction(how: str, first: float, divided: bool = False) -> Callable[..., Any]:
    def reduced(x: Any, dims: Any = None, keepdim: bool = False, dtype: Any = None) -> Any:
        return how, first, x, [dims] if isinstance(dims, int) else dims, keepdim, divided

    return reduced


REDUCED = {
    aten.sum.default: _reduction("add_to", 0.0),
    aten.sum.dim_IntList: _reduction("add_to", 0.0),
    aten.mean.default: _reduction("add_to", 0.0, divided=True),
    aten.mean.dim: _reduction("add_to", 0.0, divided=True),
    aten.amax.default: _reduction("max_to", float("-inf")),
    aten.amin.default: _reduction("min_to", float("inf")),
}
