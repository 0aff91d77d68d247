"""A graph of operations as one Python function."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from operator import attrgetter
from typing import Any

import torch
from torch import fx

_LITERAL = (int, bool, str, type(None))


def executable(graph: fx.GraphModule, *, gradient: bool = False) -> Callable[..., Any]:
    """The graph as one Python function, each operation bound beforehand; under no_grad unless a gradient is wanted.

    A value is let go after the last operation that uses it. (`GraphModule.forward` looks up `torch.ops.aten.add.Tensor`
    anew, at every node of every call, and writes the Python of 20 000 nodes three times as slowly.)
    """
    bound: dict[str, Any] = {}
    by_id: dict[int, str] = {}
    values: dict[fx.Node, str] = {}

    def name_of(value: Any) -> str:
        if id(value) not in by_id:
            by_id[id(value)] = f"c{len(bound)}"
            bound[by_id[id(value)]] = value  # held here, so that nothing else gets its id
        return by_id[id(value)]

    def text(value: Any) -> str:
        if isinstance(value, fx.Node):
            return values[value]
        if isinstance(value, (list, tuple)):
            inner = "".join(f"{text(v)}, " for v in value)
            return f"[{inner}]" if isinstance(value, list) else f"({inner})"
        if type(value) in _LITERAL or type(value) is float and math.isfinite(value):
            return repr(value)
        return name_of(value)

    inputs, lines = [], []
    dying = _last_uses(graph.graph)
    for i, node in enumerate(graph.graph.nodes):
        values[node] = f"v{i}"
        if node.op == "placeholder":
            inputs.append(values[node])
        elif node.op == "output":
            lines.append(f"return {text(node.args[0])}")
        elif node.op == "get_attr":
            lines.append(f"{values[node]} = {name_of(attrgetter(node.target)(graph))}")
        else:
            given = [text(a) for a in node.args] + [f"{k}={text(v)}" for k, v in node.kwargs.items()]
            target = node.target._op if isinstance(node.target, torch._ops.OpOverload) else node.target
            lines.append(f"{values[node]} = {name_of(target)}({', '.join(given)})")
            if gone := [values[n] for n in (dying[node] if node.users else (*dying[node], node))]:
                lines.append(f"del {', '.join(gone)}")
    exec(compile(f"def forward({', '.join(inputs)}):\n " + "\n ".join(lines), "<traced program>", "exec"), bound)
    forward = bound["forward"]

    def run(*inputs: Any) -> Any:
        with nullcontext() if gradient else torch.no_grad():
            return forward(*inputs)

    return run


def _last_uses(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """Of each operation the values that no later one uses."""
    seen: set[fx.Node] = set()
    dying = {}
    for node in reversed(graph.nodes):
        dying[node] = [n for n in node.all_input_nodes if n not in seen]
        seen.update(dying[node])
    return dying
