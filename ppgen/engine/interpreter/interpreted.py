"""Graphs of thousands of small operations, run by an interpreter of our own: nothing is compiled for a graph.

torch takes 2 µs to call an operation, whatever its size, so that a loop of 200 steps, unrolled, takes 10 ms and more.
Here its elementwise operations, sums and copies on small tensors become instructions on one piece of memory, 50 ns
each; views are strides and cost nothing. What else a graph has (products of matrices, draws, large tensors) torch runs
between stretches of instructions. Sums and elementary functions may differ from torch's in the last place.
"""

from __future__ import annotations

import copy
import logging
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from ppgen.engine.graphs.graph import aliases, is_in_place, is_view
from ppgen.engine.interpreter.builder import ARENA, POOL, Builder, Unsupported
from ppgen.engine.interpreter.instructions import C_TYPES, INTEGERS, SLOW, library
from ppgen.engine.interpreter.operations import ELEMENTWISE, JOINED, PADDED, REDUCED, SAME_VALUES, full_value

log = logging.getLogger("ppgen")

aten = torch.ops.aten

LEAST = 0.7  # the share of a graph's operations that must become instructions
MOST_VALUES, MOST_SLOW = 2**16, 2**9  # of an operation's result; of one whose function torch vectorises and we do not
NEAR = {torch.float64: 1e-8, torch.float32: 1e-3}  # how near to torch's results ours have to be, relatively


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
        self.builder = Builder(self)
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
        self._bases[ARENA], self._bases[POOL] = self._arena.data_ptr(), self._pool.data_ptr()
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
                if value.dtype != self.dtype or not value.is_contiguous():
                    value = value.to(self.dtype).contiguous()
                    held.append(value)
                bases[b.read[node]] = value.data_ptr()

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
