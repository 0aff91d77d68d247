"""Operations on little that Inductor would call from torch's library, written out so that they fuse; and the reverse.

A call costs a microsecond and the memory of its result; and with the first call in it, a graph's other buffers leave
the stack as well. Dirichlets (cumulative sums and products over a few categories) and Markov chains (products of K x K
matrices) are full of them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

aten = torch.ops.aten

WORK = 2048  # operations, at most: beyond them torch's own are faster
NARROW = 64  # columns of a matrix, or rows, up to which a loop over them is slow
MEDIUM = 2**17, 2**22  # its numbers: below them calls cost more than the loop, and beyond them all waits for the memory


def _decompositions() -> dict[Any, Callable[..., Any]]:
    """By operation; each gives NotImplemented where there is much to do."""
    own: dict[Any, Callable[..., Any]] = {
        aten.cumsum.default: _cumsum, aten.cumprod.default: _cumprod, aten.mm.default: _mm, aten.bmm.default: _bmm,
        aten.mv.default: _mv,
    }  # fmt: skip
    from torch._inductor.decomposition import decompositions as inductors

    written = {op: _first(fn, inductors.get(op)) for op, fn in own.items()}
    norm = aten.native_group_norm_backward.default
    return written | ({norm: _as_given(inductors[norm])} if norm in inductors else {})


def written_out() -> AbstractContextManager[Any]:
    """Inductor writes out these as well. (A table handed to it would keep it from its cache.)"""
    from torch._inductor.decomposition import decompositions as inductors

    return mock.patch.dict(inductors, _decompositions())


def _first(fn: Callable[..., Any], other: Callable[..., Any] | None) -> Callable[..., Any]:
    def decomposed(*args: Any, **kwargs: Any) -> Any:
        found = fn(*args, **kwargs)
        return other(*args, **kwargs) if found is NotImplemented and other is not None else found

    return decomposed


def _as_given(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Gradients of a group norm in the dtypes of what they are gradients of, as the operation gives them: those that
    Inductor writes out are float32 in mixed precision, and what follows has operands of two dtypes."""

    def decomposed(grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, *rest: Any) -> Any:
        like = (x, x if weight is None else weight, x if weight is None else weight)
        found = zip(fn(grad, x, mean, rstd, weight, *rest), like, strict=True)
        return tuple(None if g is None else g.to(t.dtype) for g, t in found)

    return decomposed


def _accumulated(x: Tensor, dim: int, neutral: int, dtype: Any) -> tuple[Tensor, int] | None:
    """x[j] where j <= i and the neutral element elsewhere, with j in a dimension behind i's."""
    if x.dim() == 0 or x.numel() * x.shape[dim] > WORK:
        return None
    x, dim = x if dtype is None else x.to(dtype), dim % x.dim()
    x = x.to(torch.int64) if not x.is_floating_point() and not x.is_complex() else x
    i = torch.arange(x.shape[dim], device=x.device)
    before = (i[:, None] >= i).view(*i.shape, *i.shape, *[1] * (x.dim() - dim - 1))
    return torch.where(before, x.unsqueeze(dim), neutral), dim + 1


def _cumsum(x: Tensor, dim: int, *, dtype: Any = None) -> Any:
    found = _accumulated(x, dim, 0, dtype)
    return NotImplemented if found is None else found[0].sum(found[1])


def _cumprod(x: Tensor, dim: int, *, dtype: Any = None) -> Any:
    found = _accumulated(x, dim, 1, dtype)
    return NotImplemented if found is None else found[0].prod(found[1])


def _mm(a: Tensor, b: Tensor) -> Any:
    if a.shape[0] * a.shape[1] * b.shape[1] > WORK:
        return NotImplemented
    return (a[:, :, None] * b).sum(1)


def _mv(a: Tensor, v: Tensor) -> Any:
    """Inductor writes it as a loop, fused with what is around; torch's is up to twice as fast for narrow ones."""
    few, many = MEDIUM
    return (a @ v[:, None])[:, 0] if min(a.shape) <= NARROW and few <= a.numel() <= many else NotImplemented


def _bmm(a: Tensor, b: Tensor) -> Any:
    if a.shape[0] * a.shape[1] * a.shape[2] * b.shape[2] > WORK:
        return NotImplemented
    return (a[:, :, :, None] * b[:, None]).sum(2)
