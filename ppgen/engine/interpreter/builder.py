"""The instructions of a graph: where each value lies, and what is written when; see `interpreted`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from ppgen.engine.interpreter.instructions import CODES
from ppgen.engine.interpreter.operations import ELEMENTWISE, JOINED, PADDED, REDUCED, SAME_VALUES, Place, full_value

aten = torch.ops.aten

MOST_TURNS = 64  # of loops that are written out
ARENA, POOL = 0, 1  # the first bases: memory of our own, and scalars


class Unsupported(Exception):
    """A graph that stays with torch; the message says why."""


class _Value:
    """Where a tensor's values lie: a base, and a tensor without content that has its shape, strides and offset.

    Attributes:
        base: the number of a pointer.
        view: on the meta device.
    """

    __slots__ = ("base", "view")

    def __init__(self, base: int, view: Tensor):
        self.base, self.view = base, view


def _meta(size: int, shape: Sequence[int], offset: int = 0) -> Tensor:
    """A view of so many values without content."""
    base = torch.empty(max(size, 1), device="meta")
    return base.as_strided(shape, torch.empty(shape, device="meta").stride(), offset)


class Builder:
    """Writes the instructions of a program.

    Attributes:
        code: rows of integers; `stretches` says which of them are of a phase.
        pool, size, bases: scalars; how many values the arena has; how many pointers there are.
        read: nodes that torch gives and instructions read, with their bases.
        crossing: by phase, nodes that instructions give and torch reads, with bases and shapes.
        outside: by phase, the nodes that torch runs after its instructions.
    """

    def __init__(self, program: Any):
        self.p = program
        self.code: list[list[int]] = []
        self.stretches: list[tuple[int, int]] = []
        self.pool: list[float] = []
        self.places: dict[float, int] = {}
        self.size, self.bases = 8, 2
        self.read: dict[fx.Node, int] = {}
        self.crossing: list[list[tuple[fx.Node, int, torch.Size]]] = []
        self.outside: list[list[fx.Node]] = []
        self.values: dict[fx.Node, _Value] = {}
        self.free: dict[int, list[int]] = {}
        nodes = list(program.graph.graph.nodes)
        self.placeholders = [n for n in nodes if n.op == "placeholder"]
        self.output = nodes[-1]

    def emit(self) -> None:
        p, nodes = self.p, [n for n in self.p.graph.graph.nodes if n.op == "call_function"]
        phases = 1 + max((p.phase[n] for n in nodes), default=0)
        by_phase: list[list[fx.Node]] = [[] for _ in range(phases)]
        for n in nodes:
            by_phase[p.phase[n]].append(n)
        order = {n: i for i, n in enumerate(n for part in by_phase for n in part)}
        self.order = order
        self.fused = self._fused(nodes)
        self.last: dict[fx.Node, int] = {}
        for n in nodes:
            reader = self.fused.get(n, n)
            for i in n.all_input_nodes:
                root = p.root[i]
                self.last[root] = max(self.last.get(root, -1), order[n], order[reader])
        ends: dict[int, list[fx.Node]] = {}
        for root, i in self.last.items():
            ends.setdefault(i, []).append(root)
        for part in by_phase:
            start = len(self.code)
            self.crossing.append([])
            for n in part:
                if p.kind[n] == "own" and n not in self.fused:
                    self._one(n)
                for root in ends.get(order[n], ()):
                    self._release(root)
            self.stretches.append((start, len(self.code)))
            self.outside.append([n for n in part if p.kind[n] == "torch" or p.kind[n] == "view" and n in p.wanted])

    def _fused(self, nodes: Sequence[fx.Node]) -> dict[fx.Node, fx.Node]:
        """Gradients of single entries that are only added to something: the sums that take them in."""
        found = {}
        for n in nodes:
            users = list(n.users)
            if n.target not in PADDED or self.p.kind[n] != "own" or len(users) != 1 or n in self.p.wanted:
                continue
            add = users[0]
            if add.target is not aten.add.Tensor or add.kwargs or self.p.kind[add] != "own":
                continue
            others = [a for a in add.args if a is not n]
            if len(others) != 1 or not isinstance(others[0], fx.Node) or others[0] in found:
                continue
            other = others[0]
            own = self.p.kind[other] == "own" and other not in self.p.wanted and full_value(other) is None
            last = all(self.order[u] <= self.order[add] for u in other.users)
            same = self.p.phase[n] == self.p.phase[add] and self.p.like[other].shape == self.p.like[add].shape
            alone = all(self.p.kind[u] != "view" for u in other.users)
            if own and last and same and alone and add not in self.p.wanted:
                found[n] = add
        return found

    # -- memory ------------------------------------------------------------------------------------------

    def _room(self, node: fx.Node) -> _Value:
        """For a node's values, in the arena or, where torch reads them, in a tensor of their own."""
        shape = self.p.like[node].shape
        if node not in self.p.wanted:
            return self._own(shape)
        base, self.bases = self.bases, self.bases + 1
        self.crossing[-1].append((node, base, shape))
        return _Value(base, _meta(shape.numel(), shape))

    def _own(self, shape: torch.Size) -> _Value:
        size = _rounded(shape.numel())
        slots = self.free.get(size)
        if slots:
            at = slots.pop()
        else:
            at, self.size = self.size, self.size + size
        return _Value(ARENA, _meta(at + size, shape, at))

    def _release(self, root: fx.Node) -> None:
        value = self.values.get(root)
        if value is not None and value.base == ARENA and root not in self.p.wanted:
            self.free.setdefault(_rounded(value.view.numel()), []).append(int(value.view.storage_offset()))

    def _scalar(self, value: float | int | bool) -> _Value:
        number = float(value)
        if number not in self.places:  # each NaN is another
            self.places[number] = len(self.pool)
            self.pool.append(number)
        at = self.places[number]
        return _Value(POOL, _meta(at + 1, (), at))

    def value(self, node: Any) -> _Value:
        """Where a node's values lie, or a number's."""
        if not isinstance(node, fx.Node):
            return self._scalar(node)
        if node in self.values:
            return self.values[node]
        if self.p.kind[node] == "view":
            found = self._viewed(node)
        else:  # torch gives it
            self.read[node], self.bases = self.bases, self.bases + 1
            shape = self.p.like[node].shape
            found = _Value(self.read[node], _meta(shape.numel(), shape))
        self.values[node] = found
        return found

    def _viewed(self, node: fx.Node) -> _Value:
        source = self.value(node.args[0])
        if node.target in SAME_VALUES and node.target not in _RESHAPED:
            return source
        try:
            if node.target in _RESHAPED:
                return _Value(source.base, source.view.view(self.p.like[node].shape))
            target: Any = node.target
            view = target(source.view, *node.args[1:], **node.kwargs)
        except RuntimeError:  # strides that do not allow it
            shape = source.view.shape
            whole = self._own(shape)  # never given back
            self._write("copy", whole.view, whole.base, [source])
            return _Value(whole.base, whole.view.view(self.p.like[node].shape))
        return _Value(source.base, view)

    # -- instructions ------------------------------------------------------------------------------------

    def _one(self, node: fx.Node) -> None:
        """The instructions of a node."""
        target: Any = node.target
        args: Any = node.args
        kwargs: Any = node.kwargs
        number = full_value(node)
        if number is not None and node not in self.p.wanted:
            scalar = self._scalar(number)
            self.values[node] = _Value(scalar.base, scalar.view.expand(self.p.like[node].shape))
            return
        pad = next((n for n in node.all_input_nodes if self.fused.get(n) is node), None)
        if pad is not None and self._added(node, pad):
            return
        room = self._room(node)
        self.values[node] = room
        if number is not None:
            self._write("copy", room.view, room.base, [self._scalar(number)])
        elif target in JOINED:
            parts, dim = JOINED[target](*args, **kwargs)
            for part, where in self._parts(room.view, parts, dim, target is aten.stack.default):
                self._write("copy", where, room.base, [self.value(part)])
        elif target in PADDED:
            self._padded(node, room)
        elif target in REDUCED:
            self._reduced(node, room)
        else:
            self._expressed(ELEMENTWISE[target](*args, **kwargs) or (), room)

    def _parts(self, view: Tensor, parts: Sequence[fx.Node], dim: int, stacked: bool) -> list[tuple[fx.Node, Tensor]]:
        if stacked:
            return [(part, view.select(dim, i)) for i, part in enumerate(parts)]
        found, at = [], 0
        for part in parts:
            shape = self.p.like[part].shape
            if shape.numel() == 0 and len(shape) == 1:
                continue
            found.append((part, view.narrow(dim, at, shape[dim])))
            at += shape[dim]
        return found

    def _added(self, node: fx.Node, pad: fx.Node) -> bool:
        """x + (g at a place, else 0) as x[place] += g, where x is not needed any more; whether it was."""
        other = next(a for a in node.args if a is not pad)
        source, place, part, elsewhere = _placed(pad)
        x, g = self.value(other), self.value(source)
        whole = x.base == ARENA and x.view.is_contiguous() and self.last[other] == self.order[node]  # type: ignore[index]
        if not whole or self.p.root[source] is other or elsewhere:
            self.values[pad] = self._own(self.p.like[pad].shape)
            self._padded(pad, self.values[pad])
            return False
        g = _Value(g.base, part(g.view))
        self._write("add_to", place(x.view), x.base, [g])
        self.values[node] = x
        self.values[other] = _Value(-1, x.view)  # type: ignore[index]  # its memory is the sum's now
        return True

    def _padded(self, node: fx.Node, room: _Value) -> None:
        source, place, part, elsewhere = _placed(node)
        value = self.value(source)
        self._write("copy", room.view, room.base, [self._scalar(elsewhere)])
        self._write("copy", place(room.view), room.base, [_Value(value.base, part(value.view))])

    def _reduced(self, node: fx.Node, room: _Value) -> None:
        reduction: Any = REDUCED[node.target]  # type: ignore[index]
        how, first, source, dims, keepdim, divisor = reduction(*node.args, **node.kwargs)
        value = self.value(source)
        shape = value.view.shape
        over = {d % max(len(shape), 1) for d in dims} if dims else set(range(len(shape)))
        into = room.view
        if not keepdim:
            for d in sorted(over) if len(shape) else ():
                into = into.unsqueeze(d)
        self._write("copy", room.view, room.base, [self._scalar(first)])
        self._write(how, into.expand(shape), room.base, [value])
        if divisor:
            count = math.prod(shape[d] for d in over) if len(shape) else 1
            self._write("div", room.view, room.base, [room, self._scalar(count)])

    def _expressed(self, expression: tuple, room: _Value) -> None:
        name, *operands = expression
        found, temporary = [], []
        for operand in operands:
            if isinstance(operand, tuple):
                own = self._own(room.view.shape)
                temporary.append(own)
                self._expressed(operand, own)
                found.append(own)
            else:
                found.append(self.value(operand))
        self._write(name, room.view, room.base, found)
        for own in temporary:
            self.free.setdefault(_rounded(own.view.numel()), []).append(int(own.view.storage_offset()))

    def _write(self, name: str, into: Tensor, base: int, operands: Sequence[_Value]) -> None:
        shape = into.shape
        if into.numel() == 0:
            return
        bases = [base, *(o.base for o in operands)]
        views = [into, *(o.view.expand(shape) for o in operands)]
        while len(views) < 4:  # what is not read
            views.append(views[1])
            bases.append(bases[1])
        lengths, strides = _collapsed(shape, [v.stride() for v in views])
        for offsets, inner, steps in _outermost(lengths, strides):
            row = [CODES[name], *inner]
            for b, view, offset, step in zip(bases, views, offsets, steps, strict=True):
                row += [b, int(view.storage_offset()) + offset, *step]
            self.code.append(row)


def _placed(node: fx.Node) -> tuple[fx.Node, Place, Place, float]:
    """See `PADDED`."""
    padded: Any = PADDED[node.target]  # type: ignore[index]
    return padded(*node.args, **node.kwargs)


_RESHAPED = {aten.view.default, aten.reshape.default, aten._unsafe_view.default}


def _rounded(n: int) -> int:
    return max(8, -(-n // 8) * 8)


def _collapsed(shape: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[list[int], list[list[int]]]:
    """Lengths and strides of as few loops as do the same."""
    lengths: list[int] = []
    steps: list[list[int]] = [[] for _ in strides]
    for i, n in enumerate(shape):
        if n == 1:
            continue
        if lengths and all(own[-1] == s[i] * n for own, s in zip(steps, strides, strict=True)):
            lengths[-1] *= n
            for own, s in zip(steps, strides, strict=True):
                own[-1] = s[i]
        else:
            lengths.append(n)
            for own, s in zip(steps, strides, strict=True):
                own.append(s[i])
    return lengths, steps


def _outermost(lengths: list[int], strides: list[list[int]]) -> list[tuple[list[int], list[int], list[list[int]]]]:
    """Offsets, three lengths, and three strides of each operand, for each turn of the loops outside of the three.

    These are the shortest: in which order loops are nested does not count.

    Raises:
        Unsupported: more turns than are worth writing out.
    """
    outside = sorted(range(len(lengths)), key=lengths.__getitem__)[: max(0, len(lengths) - 3)]
    within = [i for i in range(len(lengths)) if i not in outside]
    none = 3 - len(within)
    inner = [1] * none + [lengths[i] for i in within]
    steps = [[0] * none + [s[i] for i in within] for s in strides]
    outer = [lengths[i] for i in outside]
    if math.prod(outer) > MOST_TURNS:
        raise Unsupported("an operation on tensors of many dimensions")
    turns = np.ndindex(*outer)
    return [
        ([sum(t * s[i] for t, i in zip(turn, outside, strict=True)) for s in strides], inner, steps) for turn in turns
    ]
