"""Rewriting of ATen graphs that leaves every result as it is, to the bit."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten

# An input as it is: the same values, the same memory. Removed, nothing changes.
_SAME = {aten.detach.default, aten.alias.default}
_SAME_IF_SHAPE = {aten.expand.default, aten.view.default, aten.reshape.default, aten._unsafe_view.default}


def simplify(graph: fx.GraphModule, *, differentiable: bool = False) -> tuple[fx.GraphModule, tuple[Tensor, ...]]:
    """Drops dead nodes and no-ops, turns the tensors that the graph holds into inputs, and returns these tensors.

    Args:
        differentiable: whether gradients will be taken through it: `detach` is then no no-op.
    """
    no_ops = _SAME - {aten.detach.default} if differentiable else _SAME
    g = graph.graph
    for node in g.nodes:
        if node.op == "get_attr" and all(user.target is aten.lift_fresh_copy.default for user in node.users):
            node.meta["literal"] = True  # written as a literal, `torch.tensor(0.5)`
    for node in list(g.nodes):
        same = node.target in no_ops or (node.target in _SAME_IF_SHAPE and _same_shape(node))
        if same or node.target is aten.lift_fresh_copy.default and not any(is_in_place(n) for n in aliases(node)):
            node.replace_all_uses_with(node.args[0])
            g.erase_node(node)
    _drop_unused(g)
    _fold(graph)
    _fill_masks(g)
    _clamp_by_copy(g, differentiable)
    _drop_unused(g)
    constants = _lift_constants(graph)
    for node in g.nodes:  # the rest of what tracing noted is bound to that trace, and would confuse a second one
        value = node.meta.get("val")
        plain = isinstance(value, Tensor) and all(isinstance(n, int) for n in value.shape)
        like = {"like": (value.shape, value.dtype, value.is_contiguous())} if plain else {}
        node.meta.clear()  # to set `meta` itself costs a look-up of the node in the graph's tables
        node.meta.update(like)
    graph.recompile()
    return graph, constants


def _drop_unused(g: fx.Graph) -> None:
    """Nodes that nothing uses, but for those that write, and those that draw: the others' draws would be others.

    (As `eliminate_dead_code` does it, which asks anew at every node, and lints the graph first.)
    """
    known: dict[Any, bool] = {}
    for node in reversed(g.nodes):
        if node.users or node.op in ("placeholder", "output"):
            continue
        plain = isinstance(node.target, torch._ops.OpOverload)
        effect = known.get(node.target) if plain else None
        effect = node.is_impure() if effect is None else effect
        if plain:
            known[node.target] = effect
        if not effect:
            g.erase_node(node)


def _fold(graph: fx.GraphModule) -> None:
    """Computes what depends on literals alone, and turns a mask that is known into places that are known.

    (Tensors that the function closed over are no literals: somebody may change them in place.)
    """
    g = graph.graph
    known: dict[fx.Node, Tensor] = {}
    for node in list(g.nodes):
        if node.op == "get_attr" and re.fullmatch(r"_tensor_constant\d+", str(node.target)):
            literal = getattr(graph, node.target)
            # A literal is a scalar, or a list that somebody typed.
            if node.meta.get("literal") and isinstance(literal, Tensor):
                known[node] = literal
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if node.target in _MASKED:
            _known_places(graph, node, known)
        pure = not is_in_place(node) and torch.Tag.nondeterministic_seeded not in node.target.tags
        if not pure or not all(n in known for n in node.all_input_nodes) or any(is_in_place(n) for n in aliases(node)):
            continue
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or not all(isinstance(n, int) for n in value.shape) or value.numel() > 4096:
            continue
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: known[n])
        with torch.no_grad():
            result = node.target(*args, **kwargs)
        if isinstance(result, Tensor):
            known[node] = result
    for i, (node, value) in enumerate(known.items()):
        if node.op == "call_function" and any(user not in known for user in node.users):
            name = f"_folded_{i}"
            graph.register_buffer(name, value)
            with g.inserting_before(node):
                constant = g.get_attr(name)
                constant.meta = dict(node.meta)
            node.replace_all_uses_with(constant)


_MASKED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


def _known_places(graph: fx.GraphModule, node: fx.Node, known: dict[fx.Node, Tensor]) -> None:
    places: list[fx.Node | None] = []
    indices: Any = node.args[1]
    for n in indices:
        if n is None or n not in known or known[n].dtype != torch.bool:
            places.append(n)
            continue
        for j, index in enumerate(known[n].nonzero(as_tuple=True)):
            name = f"_places_{node.name}_{len(places)}_{j}"
            graph.register_buffer(name, index)
            with graph.graph.inserting_before(node):
                places.append(graph.graph.get_attr(name))
    node.args = (node.args[0], places, *node.args[2:])


def _fill_masks(g: fx.Graph) -> None:
    """`x[mask] = scalar` as `x.copy_(where(mask, scalar, x))`, without looking for the places of the mask."""
    for node in list(g.find_nodes(op="call_function", target=aten.index_put_.default)):
        x, indices, value, *accumulate = node.args
        assert isinstance(indices, (list, tuple))
        into, mask, scalar = (n.meta.get("val") if isinstance(n, fx.Node) else None for n in (x, indices[0], value))
        if len(indices) != 1 or any(accumulate) or into is None or mask is None or scalar is None:
            continue
        if mask.dtype != torch.bool or scalar.dim() or scalar.dtype != into.dtype:
            continue
        with g.inserting_before(node):
            where: Any = indices[0]
            for _ in range(into.dim() - mask.dim()):
                where = g.call_function(aten.unsqueeze.default, (where, -1))
            _written(g, node, aten.where.self, (where, value, x))


def _clamp_by_copy(g: fx.Graph, differentiable: bool) -> None:
    """`x.clamp_(min)` as `x.copy_(x.clamp(min))`, where no gradient goes through x.

    torch draws from a gamma by the first, and `torch.func.vmap` runs that one by one, with a warning.
    """
    for node in list(g.find_nodes(op="call_function", target=aten.clamp_.default)):
        x = node.args[0]
        if not differentiable or isinstance(x, fx.Node) and x.target is aten.detach.default:
            with g.inserting_before(node):
                _written(g, node, aten.clamp.default, node.args, **node.kwargs)


def _written(g: fx.Graph, node: fx.Node, target: Any, args: tuple, **kwargs: Any) -> None:
    """Puts a result, copied to the first argument of a node, in the node's place."""
    made = g.call_function(target, args, kwargs)
    written = g.call_function(aten.copy_.default, (node.args[0], made))
    made.meta, written.meta = dict(node.meta), dict(node.meta)
    node.replace_all_uses_with(written)
    g.erase_node(node)


def in_own_memory(graph: fx.GraphModule) -> fx.GraphModule:
    """A copy of the graph that takes one more tensor first: what it writes in place lies in memory made like that one.

    Of a tensor that `torch.func.vmap` maps over, the memory has room for all of them.
    """
    graph = copy.deepcopy(graph)
    g = graph.graph
    with g.inserting_before(next(iter(g.nodes))):
        like = g.placeholder("like")
    after = next(n for n in g.nodes if n.op != "placeholder")
    for node in list(g.nodes):
        if (
            node is like
            or "like" not in node.meta
            or node.op == "call_function"
            and (is_in_place(node) or is_view(node))
        ):
            continue
        if not any(is_in_place(n) for n in aliases(node)):
            continue
        shape, dtype, _ = node.meta["like"]
        with g.inserting_before(after) if node.op == "placeholder" else g.inserting_after(node):
            room = g.call_function(aten.new_zeros.default, (like, list(shape)), {"dtype": dtype})
        with g.inserting_after(room):
            own = g.call_function(aten.copy_.default, (room, node))
        node.replace_all_uses_with(own, delete_user_cb=lambda user, own=own: user is not own)
    g.lint()
    graph.recompile()
    return graph


def _same_shape(node: fx.Node) -> bool:
    source: Any = node.args[0]
    before, after = source.meta.get("val"), node.meta.get("val")
    return (
        isinstance(before, Tensor)
        and isinstance(after, Tensor)
        and all(isinstance(n, int) for n in (*before.shape, *after.shape))
        and before.shape == after.shape
        and before.stride() == after.stride()
    )


def aliases(node: fx.Node) -> Iterator[fx.Node]:
    """Users of a node, and of what may share its memory, but for those that write elsewhere and only read it."""
    todo, seen = [node], set()
    while todo:
        shared = todo.pop()
        for user in shared.users:
            if user in seen or is_in_place(user) and not _writes_to(user, shared):
                continue
            seen.add(user)
            yield user
            if user.op == "call_function" and (is_in_place(user) or is_view(user)):
                todo.append(user)


def is_in_place(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _writes_to(user: fx.Node, node: fx.Node) -> bool:
    """Whether an operation that writes in place may write to this argument."""
    schema: Any = getattr(user.target, "_schema", None)
    for i, of in enumerate(schema.arguments):
        given = user.args[i] if i < len(user.args) else user.kwargs.get(of.name)
        many = given if isinstance(given, (list, tuple)) else [given]
        if of.alias_info is not None and any(n is node for n in many):
            return True
    return False


def is_view(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is None or any(r.alias_info is not None for r in schema.returns)


def forgiving(graph: fx.GraphModule) -> fx.GraphModule:
    """A Cholesky factorisation that fails gives NaN to its own chain, where torch raises for all of them."""
    g = graph.graph
    for check in [n for n in g.nodes if n.target is aten._linalg_check_errors.default]:
        info = check.args[0]
        factor = info.args[0]
        if factor.target is aten.linalg_cholesky_ex.default:
            part = next((n for n in factor.users if n.args[1] == 0), None)
            if part is not None:
                with g.inserting_after(info if _later(g, info, part) else part):
                    bad = g.call_function(aten.ne.Scalar, (info, 0))
                with g.inserting_after(bad):
                    row = g.call_function(aten.unsqueeze.default, (bad, -1))
                with g.inserting_after(row):
                    matrix = g.call_function(aten.unsqueeze.default, (row, -1))
                with g.inserting_after(matrix):
                    masked = g.call_function(aten.masked_fill.Scalar, (part, matrix, float("nan")))
                part.replace_all_uses_with(masked, delete_user_cb=lambda user, masked=masked: user is not masked)
        g.erase_node(check)
    g.lint()
    graph.recompile()
    return graph


def _later(g: fx.Graph, a: fx.Node, b: fx.Node) -> bool:
    order = {n: i for i, n in enumerate(g.nodes)}
    return order[a] > order[b]


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
    for name in [*dict(graph.named_parameters(recurse=False)), *dict(graph.named_buffers(recurse=False))]:
        delattr(graph, name)  # compiled, the graph would take each as one more input
    return tuple(constants)
