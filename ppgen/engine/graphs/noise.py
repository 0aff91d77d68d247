"""Random draws that need nothing but a shape, taken out of a graph and handed to it as inputs.

They are drawn beforehand by the same calls, in the same order, from torch's generator, so that every engine
sees the same stream of random numbers; and a compiled graph without calls in it fuses into few kernels.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from ppgen.engine.graphs.graph import aliases, is_in_place

aten = torch.ops.aten

_EMPTY = {
    aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default, aten.zeros.default,
    aten.zeros_like.default, aten.ones_like.default, aten.full.default,
}  # fmt: skip
_NORMAL = {aten.randn.default, aten.randn_like.default}
_UNIFORM = {aten.rand.default, aten.rand_like.default}
_FILL = {
    aten.normal_.default: Tensor.normal_,
    aten.uniform_.default: Tensor.uniform_,
    aten.exponential_.default: Tensor.exponential_,
    aten.bernoulli_.float: Tensor.bernoulli_,
    aten.cauchy_.default: Tensor.cauchy_,
    aten.log_normal_.default: Tensor.log_normal_,
    aten.geometric_.default: Tensor.geometric_,
}


@dataclass(frozen=True)
class _Draw:
    """One draw: `fill(empty(shape), *args)`."""

    fill: Any
    args: tuple[float, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def many(self, n: int, device: torch.device | None = None) -> Tensor:
        """n of it, (n, *shape)."""
        return self.fill(torch.empty(n, *self.shape, dtype=self.dtype, device=device), *self.args)


def hoist(traced: fx.GraphModule) -> tuple[fx.GraphModule, list[_Draw], bool]:
    """A copy of a traced graph that takes its draws as inputs, after all others; the draws; and whether these are all.

    A draw that depends on a value (a Gamma's, a Bernoulli's of a tensor) stays in the graph, and with it
    those that follow, so that the order is kept.
    """
    graph = copy.deepcopy(traced)
    draws: list[_Draw] = []
    complete = True
    inputs = [n for n in graph.graph.nodes if n.op == "placeholder"]
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
            continue
        draw = _draw(node)
        if draw is None:
            complete = False
            break
        with graph.graph.inserting_after(inputs[-1]) if inputs else graph.graph.inserting_before():
            inputs.append(graph.graph.placeholder(f"noise_{len(draws)}"))
        source = node.args[0] if node.target in _FILL else node
        source.replace_all_uses_with(inputs[-1], delete_user_cb=lambda user, node=node: user is not node)
        node.replace_all_uses_with(inputs[-1])
        if any(is_in_place(user) for user in aliases(inputs[-1]) if user is not node):  # dropout scales its mask so
            with graph.graph.inserting_before(node):
                own = graph.graph.call_function(aten.clone.default, (inputs[-1],))
            inputs[-1].replace_all_uses_with(own, delete_user_cb=lambda user, own=own: user is not own)
        graph.graph.erase_node(node)
        if source is not node:
            graph.graph.erase_node(source)
        draws.append(draw)
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()
    return graph, draws, complete


def _draw(node: fx.Node) -> _Draw | None:
    if "like" not in node.meta or node.kwargs.get("generator") is not None:
        return None
    shape, dtype, contiguous = node.meta["like"]
    if not contiguous or not dtype.is_floating_point:
        return None
    if node.target in _NORMAL or node.target in _UNIFORM:
        return _Draw(Tensor.normal_ if node.target in _NORMAL else Tensor.uniform_, (), tuple(shape), dtype)
    if node.target not in _FILL or any(isinstance(a, fx.Node) for a in node.args[1:]):
        return None
    source = node.args[0]
    # Memory fresh from the allocator, written by this draw alone, before anybody reads it.
    if not isinstance(source, fx.Node) or source.target not in _EMPTY:
        return None
    if any(user is not node and (user < node or is_in_place(user)) for user in source.users):
        return None
    arguments: Any = node.args[1:]
    return _Draw(_FILL[node.target], tuple(arguments), tuple(shape), dtype)


class Noise:
    """Draws for up to K steps at once, in the order in which K runs of the program would take them."""

    def __init__(self, draws: list[_Draw], steps: int):
        self.draws, self.steps = draws, steps
        # Fewer than 16 normals are drawn one by one by torch, and so is any number into memory with gaps:
        # one call then gives what many small ones would have given.
        self.stream = bool(draws) and all(
            d.fill is Tensor.normal_ and not d.args and d.size < 16 and d.dtype == draws[0].dtype for d in draws
        )
        if self.stream:
            self.total = sum(d.size for d in draws)
            self.gaps = torch.empty(steps * self.total, 2, dtype=draws[0].dtype)
        else:
            self.buffers = [torch.empty(steps, d.size, dtype=d.dtype) for d in draws]
            self.views = [[b[k].view(d.shape) for b, d in zip(self.buffers, draws, strict=True)] for k in range(steps)]

    def take(self, steps: int) -> list[tuple[Tensor, ...]]:
        """The tensors of each step: one for all of its draws in a stream, else one a draw."""
        if not self.draws:
            return [()] * steps
        if self.stream:
            drawn = self.gaps[: steps * self.total, 0].normal_().contiguous().view(steps, self.total)
            return [(row,) for row in drawn.unbind(0)]
        for views in self.views[:steps]:
            for view, draw in zip(views, self.draws, strict=True):
                draw.fill(view, *draw.args)
        return [tuple(views) for views in self.views[:steps]]

    def split(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        """One tensor a draw, of the draw's shape, from one step's tensors."""
        if not self.stream:
            return list(inputs)
        parts = inputs[0].split([d.size for d in self.draws])
        return [part.view(d.shape) for part, d in zip(parts, self.draws, strict=True)]

    @staticmethod
    def bytes_a_step(draws: list[_Draw]) -> int:
        return sum(d.size * d.dtype.itemsize for d in draws)


@contextmanager
def python_randomness() -> Iterator[None]:
    """Advances Python's and NumPy's generators meanwhile, so that a program that reads them is detected."""
    python, numpy = random.getstate(), np.random.get_state()
    random.random(), np.random.random()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
