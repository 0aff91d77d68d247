"""Operations that `torch.func.vmap` takes apart, kept whole: one pass over the draws where it makes several.

addmm(b, x, W) of S draws of x:              one product of all their rows, its b added on the way
binary cross-entropy of S draws of logits:   one kernel, where vmap writes out seven
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten


class _Addmm(torch.autograd.Function):
    @staticmethod
    def forward(b: Tensor, x: Tensor, w: Tensor) -> Tensor:
        return aten.addmm.default(b, x, w)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def vmap(info: Any, in_dims: Any, b: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, int]:
        if in_dims[0] is not None or in_dims[2] is not None or b.dim() != 1:
            return torch.func.vmap(aten.addmm.default, in_dims)(b, x, w), 0
        x = x.movedim(in_dims[1], 0)
        return aten.addmm.default(b, x.reshape(-1, x.shape[-1]), w).unflatten(0, x.shape[:2]), 0


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, target: Tensor) -> Tensor:
        return aten.binary_cross_entropy_with_logits.default(x, target, None, None, 0)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, target: Tensor) -> tuple[Tensor, int]:
        pairs = zip((x, target), in_dims, strict=True)
        both = [v.expand(info.batch_size, *v.shape) if d is None else v.movedim(d, 0) for v, d in pairs]
        return aten.binary_cross_entropy_with_logits.default(*both, None, None, 0), 0


def _addmm(b: Tensor, x: Tensor, w: Tensor) -> Tensor:
    return _Addmm.apply(b, x, w)


def _cross_entropy(x: Tensor, target: Tensor) -> Tensor:
    return _CrossEntropy.apply(x, target)


def kept_whole(graph: fx.GraphModule) -> fx.GraphModule:
    """The graph with these operations in the place of torch's; for draws that need no gradient."""
    if not any(_whole(n) for n in graph.graph.nodes):
        return graph
    graph = copy.deepcopy(graph)
    for node in graph.graph.nodes:
        if one := _whole(node):
            node.target, node.args = one, node.args[: 3 if one is _addmm else 2]
    graph.recompile()
    return graph


def _whole(node: fx.Node) -> Callable[..., Tensor] | None:
    if node.kwargs:
        return None
    if node.target is aten.addmm.default and len(node.args) == 3:
        return _addmm
    plain = node.args[2:] == (None, None, 0)  # no weights, and no sum
    return _cross_entropy if node.target is aten.binary_cross_entropy_with_logits.default and plain else None
