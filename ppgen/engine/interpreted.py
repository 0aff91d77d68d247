"""Graphs of thousands of small operations, run by an interpreter of our own: nothing is compiled for a graph.

torch takes 2 µs to call an operation, whatever its size, so that a loop of 200 steps, unrolled, takes 10 ms and more.
Here its elementwise operations, sums and copies on small tensors become instructions on one piece of memory, 50 ns
each; views are strides and cost nothing. What else a graph has (products of matrices, draws, large tensors) torch runs
between stretches of instructions. Sums and elementary functions may differ from torch's in the last place.
"""

from __future__ import annotations

import copy
import logging
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from ppgen.engine.graph import aliases, is_in_place, is_view
from ppgen.engine.instructions import C_TYPES, CODES, INTEGERS, SLOW, library
from ppgen.engine.operations import ELEMENTWISE, JOINED, PADDED, REDUCED, SAME_VALUES, Place, full_value

log = logging.getLogger("ppgen")

aten = torch.ops.aten

LEAST = 0.7  # the share of a graph's operations that must become instructions
MOST_VALUES, MOST_SLOW = 2**16, 2**9  # of an operation's result; of one whose function torch vectorises and we do not
MOST_TURNS = 64  # of loops that are written out
NEAR = {torch.float64: 1e-8, torch.float32: 1e-3}  # how near to torch's results ours have to be, relatively
_ARENA, _POOL = 0, 1  # the first bases: memory of our own, and scalars


class Unsupported(Exception):
    """A graph that stays with torch; the message says why."""


def interpreted(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any] | None:
    """The graph as a function of as many tensors as it has placeholders; None where torch runs it as well or better.

    It is run both ways on these inputs, and on others near them, and compared. What reads numbers of another type, as
    whole ones, which float32 has not all of, stays with torch.

    >>> from torch.fx.experimental.proxy_tensor import make_fx
    >>> def loop(x):
    ...     for _ in range(100):
    ...         x = 0.9 * x + 0.1 * x.cos()
    ...     return [x]
    >>> run = interpreted(make_fx(loop)(torch.ones(3)), [torch.ones(3)])
    >>> run(torch.ones(3))[0].allclose(loop(torch.ones(3))[0])
    True
    """
    try:
        program = _Program(graph, inputs)
        for at in (inputs, [_moved(x) for x in inputs]):  # a step away as well
            if not _agree(graph, program, at):
                log.info("not interpreted: its results are others than torch's")
                return None
    except (Unsupported, RuntimeError) as e:  # torch's, where an operation asks for a layout that ours has not
        log.info("not interpreted: %s", e)
        return None
    return program


def _moved(x: Tensor) -> Tensor:
    if not x.is_floating_point():
        return x
    return x * 1.1 + 0.1 * torch.linspace(0, 1, x.numel(), dtype=x.dtype, device=x.device).reshape(x.shape)


def _agree(graph: fx.GraphModule, program: Callable[..., Any], inputs: Sequence[Tensor]) -> bool:
    """Whether each value is torch's but for rounding: of itself, and a little of the largest beside it."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        state = torch.get_rng_state()
        theirs = fx.Interpreter(graph).run(*inputs)
        torch.set_rng_state(state)
        ours = program(*inputs)
    for a, b in zip(_list(theirs), _list(ours), strict=True):
        near = NEAR.get(a.dtype, 0.0)
        scale = float(a.nan_to_num(0.0, 0.0, 0.0).abs().max()) if a.numel() and near else 0.0
        if a.dtype != b.dtype or not torch.allclose(a, b, rtol=near, atol=1e-2 * near * scale, equal_nan=True):
            return False
    return True


def _list(value: Any) -> list[Tensor]:
    return [v for v in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(v, Tensor)]


class _Shapes(fx.Interpreter):
    """Runs the graph once and notes what its nodes give."""

    def __init__(self, graph: fx.GraphModule):
        super().__init__(graph)
        self.found: dict[fx.Node, Any] = {}  # on the meta device; None of what is no tensor

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.found[n] = value.to("meta") if isinstance(value, Tensor) else None
        return value


def _shapes(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> dict[fx.Node, Any]:
    shapes = _Shapes(graph)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        shapes.run(*inputs)
    return shapes.found


class _Value:
    """Where a tensor's values lie: a base, and a tensor without content that has its shape, strides and offset.

    Attributes:
        base: the number of a pointer.
        view: on the meta device.
    """

    __slots__ = ("base", "view")

    def __init__(self, base: int, view: Tensor):
        self.base, self.view = base, view


def _meta(size: int, shape: Sequence[int], strides: Sequence[int] | None = None, offset: int = 0) -> Tensor:
    """A view of so many values without content."""
    base = torch.empty(max(size, 1), device="meta")
    return base.as_strided(shape, _contiguous(shape) if strides is None else strides, offset)


def _contiguous(shape: Sequence[int]) -> list[int]:
    strides = [1] * len(shape)
    for i in range(len(shape) - 2, -1, -1):
        strides[i] = strides[i + 1] * max(shape[i + 1], 1)
    return strides


class _Program:
    """The plan of a graph: stretches of instructions, and between them what torch runs."""

    def __init__(self, graph: fx.GraphModule, inputs: Sequence[Tensor]):
        writes = any(is_in_place(n) for n in graph.graph.nodes)
        self.graph = _without_writes(copy.deepcopy(graph)) if writes else graph
        nodes = list(self.graph.graph.nodes)
        if any(
            n.op in ("get_attr", "call_module", "call_method") or n.target is aten.as_strided.default for n in nodes
        ):
            raise Unsupported("the graph holds tensors or modules of its own, or strided views")
        self.like = _shapes(self.graph, inputs)
        if writes:  # a write keeps the type of what it is written to: of a comparison, real numbers
            before = {n.name: t for n, t in _shapes(graph, inputs).items()}
            if any(t is not None and t.dtype != before[n.name].dtype for n, t in self.like.items()):
                raise Unsupported("a value is written to a tensor of another type")
        kinds = [t.dtype for t in self.like.values() if t is not None and t.dtype in C_TYPES]
        if not kinds:
            raise Unsupported("it has no real numbers")
        self.dtype = max(C_TYPES, key=kinds.count)
        self.kind = {n: self._kind(n) for n in nodes}
        calls = sum(n.op == "call_function" for n in nodes)
        if sum(self.kind[n] in ("own", "view") for n in nodes) < LEAST * calls:
            raise Unsupported("too few of its operations are small ones on real numbers")
        run = library(self.dtype)
        if run is None:
            raise Unsupported("there is no C++ compiler")
        self._lay_out(nodes)
        self.builder = _Builder(self)
        self.builder.emit()
        self._finish(run)

    def _kind(self, node: fx.Node) -> str:
        """input, output, view (of whatever it is a view of), own (instructions), or torch."""
        like = self.like.get(node)
        if node.op in ("placeholder", "output"):
            return "input" if node.op == "placeholder" else "output"
        if is_in_place(node):
            raise Unsupported(f"{node.target} writes to a tensor")
        source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        source = None if source is None or self.like.get(source) is None else source
        if like is None or node.target is operator.getitem:
            return "torch"
        if source is not None and (node.target in SAME_VALUES or is_view(node)):
            return "view" if like.dtype == self.like[source].dtype else "torch"
        if like.dtype not in (self.dtype, torch.bool) or like.numel() > MOST_VALUES:
            return "torch"
        if full_value(node) is not None:
            return "own"
        if any(
            t is None or t.dtype not in (self.dtype, torch.bool) or t.numel() > MOST_VALUES
            for t in map(self.like.get, node.all_input_nodes)
        ):
            return "torch"
        if like.dtype == self.dtype and (node.target in JOINED or node.target in PADDED or node.target in REDUCED):
            return "own"
        if node.target not in ELEMENTWISE:
            return "torch"
        expression = ELEMENTWISE[node.target](*node.args, **node.kwargs)
        if expression is None or (like.numel() > MOST_SLOW and _names(expression) & SLOW):
            return "torch"
        if like.dtype == torch.bool and expression[0] not in _TRUTH:
            return "torch"
        return "own"

    def _lay_out(self, nodes: Sequence[fx.Node]) -> None:
        """In which stretch each node is, and what torch needs."""
        self.phase: dict[fx.Node, int] = {}
        self.root: dict[fx.Node, fx.Node] = {}  # whose memory a view's is
        drawn = 0
        for n in nodes:
            kind = self.kind[n]
            self.root[n] = self.root[n.args[0]] if kind == "view" else n  # type: ignore[index]
            inputs = [self.phase[i] + (self.kind[self.root[i]] == "torch") for i in n.all_input_nodes]
            self.phase[n] = max(inputs, default=0) if kind != "view" else self.phase[n.args[0]]  # type: ignore[index]
            if kind == "torch" and torch.Tag.nondeterministic_seeded in getattr(n.target, "tags", ()):
                self.phase[n] = drawn = max(drawn, self.phase[n])
                if any(not self.like[i].is_contiguous() for i in n.all_input_nodes if self.like[i] is not None):
                    raise Unsupported(f"{n.target} draws in the order of another tensor's memory")
        self.wanted: set[fx.Node] = set()
        for n in reversed(nodes):
            if self.kind[n] in ("torch", "output") or n in self.wanted and self.kind[n] == "view":
                self.wanted.update(n.all_input_nodes)

    def _finish(self, run: Callable[..., Any]) -> None:
        """Tables as the library reads them, and the steps of a call."""
        b = self.builder
        self._code = np.ascontiguousarray(np.array(b.code, dtype=np.int32).reshape(-1, INTEGERS))
        self._pool = torch.tensor(b.pool or [0.0], dtype=self.dtype)
        self._arena = torch.empty(b.size, dtype=self.dtype)
        self._bases = np.zeros(b.bases, dtype=np.uint64)
        self._bases[_ARENA], self._bases[_POOL] = self._arena.data_ptr(), self._pool.data_ptr()
        self._run, size = run, INTEGERS * 4
        self._at = [(self._code.ctypes.data + size * start, stop - start) for start, stop in b.stretches]

    def __call__(self, *inputs: Tensor) -> Any:
        with torch.no_grad():
            return self._called(inputs)

    def _called(self, inputs: Sequence[Tensor]) -> Any:
        env: dict[fx.Node, Any] = {}
        bases, b = self._bases, self.builder
        held: list[Any] = []  # until the call ends

        def set_base(node: fx.Node, value: Tensor) -> None:
            env[node] = value
            if node in b.read:
                own = value.to(self.dtype).contiguous()
                held.append(own)
                bases[b.read[node]] = own.data_ptr()

        for node, value in zip(b.placeholders, inputs, strict=True):
            set_base(node, value)
        for p, (at, count) in enumerate(self._at):
            made = [(n, base, torch.empty(shape, dtype=self.dtype)) for n, base, shape in b.crossing[p]]
            for _, base, room in made:
                bases[base] = room.data_ptr()
            if count:
                self._run(at, count, bases.ctypes.data)
            held.append(made)
            for node, _, room in made:
                env[node] = room if self.like[node].dtype == self.dtype else room.bool()
            for node in b.outside[p]:
                args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), env.__getitem__)
                # Our results lie in order, and torch's as their inputs do: what is a view there may be none here.
                target = aten.reshape.default if node.target in _VIEWED else node.target
                set_base(node, target(*args, **kwargs))  # type: ignore[operator]
        (result,) = b.output.args
        return fx.node.map_arg(result, env.__getitem__)


_VIEWED = {aten.view.default, aten._unsafe_view.default}
_TRUTH = {"eq", "ne", "lt", "le", "gt", "ge", "isnan", "logical_not", "logical_and", "logical_or", "logical_xor",
          "copy", "where"}  # fmt: skip


def _names(expression: Any) -> set[str]:
    """Of the instructions of an expression."""
    if not isinstance(expression, tuple):
        return set()
    return {expression[0]}.union(*(_names(e) for e in expression[1:]))


class _Builder:
    """Writes the instructions of a program.

    Attributes:
        code: rows of integers; `stretches` says which of them are of a phase.
        pool, size, bases: scalars; how many values the arena has; how many pointers there are.
        read: nodes that torch gives and instructions read, with their bases.
        crossing: by phase, nodes that instructions give and torch reads, with bases and shapes.
        outside: by phase, the nodes that torch runs after its instructions.
    """

    def __init__(self, program: _Program):
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
        return _Value(_ARENA, _meta(at + size, shape, None, at))

    def _release(self, root: fx.Node) -> None:
        value = self.values.get(root)
        if value is not None and value.base == _ARENA and root not in self.p.wanted:
            self.free.setdefault(_rounded(value.view.numel()), []).append(int(value.view.storage_offset()))

    def _scalar(self, value: float | int | bool) -> _Value:
        number = float(value)
        if number not in self.places:  # each NaN is another
            self.places[number] = len(self.pool)
            self.pool.append(number)
        at = self.places[number]
        return _Value(_POOL, _meta(at + 1, (), (), at))

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
        whole = x.base == _ARENA and x.view.is_contiguous() and self.last[other] == self.order[node]  # type: ignore[index]
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


def _without_writes(graph: fx.GraphModule) -> fx.GraphModule:
    """What is written in place to a tensor that the graph has made, and that nothing shares, is a new tensor."""
    g = graph.graph
    for node in list(g.nodes):
        if not is_in_place(node) or node.op != "call_function":
            continue
        target: Any = node.target
        written: Any = node.args[0]
        packet = getattr(aten, target._opname.removesuffix("_"), None) if target._opname.endswith("_") else None
        plain = getattr(packet, target._overloadname, None)
        if plain is None or not isinstance(written, fx.Node) or written.op == "placeholder" or is_view(written):
            continue
        if any(u.op == "call_function" and is_view(u) and not is_in_place(u) for u in aliases(written)):
            continue
        node.target = plain
        later = False
        for user in list(g.nodes):
            if later and user in written.users:
                user.replace_input_with(written, node)
            later = later or user is node
    g.lint()
    graph.recompile()
    return graph
