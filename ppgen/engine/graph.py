"""Rewriting of ATen graphs that leaves every result as it is, to the bit."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, fx

aten = torch.ops.aten

# An input as it is: the same values, the same memory. Removed, nothing changes.
_SAME = {aten.detach.default, aten.alias.default}
_SAME_IF_SHAPE = {aten.expand.default, aten.view.default, aten.reshape.default, aten._unsafe_view.default}


def simplify(graph: fx.GraphModule) -> tuple[fx.GraphModule, tuple[Tensor, ...]]:
    """Drops dead nodes and no-ops, turns the tensors that the graph holds into inputs, and returns these tensors."""
    g = graph.graph
    for node in list(g.nodes):
        same = node.target in _SAME or (node.target in _SAME_IF_SHAPE and _same_shape(node))
        if same:
            node.replace_all_uses_with(node.args[0])
            g.erase_node(node)
        elif node.target is aten.lift_fresh_copy.default and not any(is_in_place(n) for n in _aliases(node)):
            node.replace_all_uses_with(node.args[0])
            g.erase_node(node)
    g.eliminate_dead_code()
    constants = _lift_constants(graph)
    for node in g.nodes:  # the rest of what tracing noted is bound to that trace, and would confuse a second one
        value = node.meta.get("val")
        plain = isinstance(value, Tensor) and all(isinstance(n, int) for n in value.shape)
        node.meta = {"like": (value.shape, value.dtype, value.is_contiguous())} if plain else {}
    g.lint()
    graph.recompile()
    return graph, constants


def _same_shape(node: fx.Node) -> bool:
    before, after = node.args[0].meta.get("val"), node.meta.get("val")
    return (
        isinstance(before, Tensor)
        and isinstance(after, Tensor)
        and all(isinstance(n, int) for n in (*before.shape, *after.shape))
        and before.shape == after.shape
        and before.stride() == after.stride()
    )


def _aliases(node: fx.Node) -> Iterator[fx.Node]:
    """Users of a node, and of what may share its memory."""
    todo, seen = [node], set()
    while todo:
        for user in todo.pop().users:
            if user in seen:
                continue
            seen.add(user)
            yield user
            if user.op == "call_function" and (is_in_place(user) or _is_view(user)):
                todo.append(user)


def is_in_place(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _is_view(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is None or any(r.alias_info is not None for r in schema.returns)


def _lift_constants(graph: fx.GraphModule) -> tuple[Tensor, ...]:
    g = graph.graph
    last = [n for n in g.nodes if n.op == "placeholder"][-1:]
    constants: list[Tensor] = []
    nodes: dict[str, fx.Node] = {}
    for node in list(g.nodes):
        if node.op != "get_attr":
            continue
        if node.target not in nodes:
            value = getattr(graph, node.target)
            if not isinstance(value, Tensor):  # a subgraph of a higher-order operator
                continue
            with g.inserting_after(last[-1]) if last else g.inserting_before(next(iter(g.nodes))):
                nodes[node.target] = g.placeholder(f"constant_{len(constants)}")
            last = [nodes[node.target]]
            constants.append(value.detach())
        node.replace_all_uses_with(nodes[node.target])
        g.erase_node(node)
    return tuple(constants)
