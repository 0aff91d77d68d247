"""A function recorded while it runs on real tensors: each operation below autograd becomes a node of a graph.

What make_fx gives too, without the symbolic shapes and the compiler that it imports (1.5 s) and with a tenth of its
time an operation. Nothing of the inputs can get into the graph unseen: an operation that hands a value of theirs out of
torch, or whose result has a shape by their values, ends the recording, as does what is not plain (storages, subclasses
of tensors).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any
from weakref import ref

import torch
from torch import Tensor, fx, nn
from torch.fx._lazy_graph_module import _LazyGraphModule

from ppgen.engine.graphs.without_dynamo import Mode

aten = torch.ops.aten

BYTES = 2**24  # of inputs, at most: an operation on more costs more to run than to record
BYTES_OF_ONE = 2**25  # of a result: what is closed over may be large
_PLAIN = (int, float, complex, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)


class Unrecordable(Exception):
    """An operation that a recording on real tensors cannot have."""


class Unseen(Unrecordable):
    """Values that went where no recording follows them."""


def record(fn: Callable[..., Any], inputs: Sequence[Tensor], *, held: bool = False) -> fx.GraphModule:
    """The graph of `fn(*inputs)`, a tensor or a list of tensors (None allowed), for inputs of these shapes.

    Tensors that it closes over are attributes of the graph, themselves; of the inputs it gets copies. Nodes have the
    shape and the strides of their value as `meta["val"]`, a tensor without content.

    Args:
        held: what it closes over keeps its values as long as the graph is used: they may be read, `a[group[i]]`.

    Raises:
        Unrecordable: it takes a value out of torch, or has operations that are not plain.
    """
    if sum(t.nbytes for t in inputs) > BYTES or any(t.device.type != "cpu" for t in inputs):
        raise Unrecordable("large inputs, or some that are not on the CPU")
    recorder = _Recorder(held)
    copies = [_copy(t) for t in inputs]
    for i, t in enumerate(copies):
        recorder.hold(t, recorder.graph.placeholder(f"arg{i}_1"), follows=True)
    caches = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)  # a weight that was cast before the recording is not in it
    _running.append(recorder)
    try:
        with recorder:
            out = fn(*copies)
    finally:
        _running.pop()
        torch.set_autocast_cache_enabled(caches)
    recorder.graph.output(recorder.given(out))
    return _LazyGraphModule(recorder.root, recorder.graph)  # its Python is written when somebody asks for it


def may_be_read(tensor: Tensor) -> bool:
    """Whether what runs now is recorded, and the tensor's values may be taken out of torch in it."""
    if not _running or torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return False
    return _running[-1].held and not _running[-1].follows(tensor)


def has_content(tensor: Tensor) -> bool:
    """Whether it has values of its own, beside fake tensors and what stands for a batch of them."""
    return type(tensor) in (Tensor, nn.Parameter) and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor has values of its own, and nothing is recorded: they may be looked at."""
    return not _running and has_content(tensor)


def let_out(tensor: Tensor) -> None:
    """Another library has the tensor's memory from now on, as `.numpy()` gives it: nothing is written there."""
    if _running:
        _running[-1].let_out(tensor)


_running: list[_Recorder] = []


def _copy(t: Tensor) -> Tensor:
    """In memory of its own, with its strides; what repeats one number in many places cannot be written to."""
    if any(stride == 0 and size > 1 for size, stride in zip(t.shape, t.stride(), strict=True)):
        own = t.detach()
    else:
        own = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device).copy_(t.detach())
    return own.requires_grad_(t.requires_grad)


class _Recorder(Mode):
    """Makes a node of each operation.

    Attributes:
        graph: what was recorded so far.
        root: has the tensors that the function closed over, and literals.
        held: whether their values may be read.
    """

    def __init__(self, held: bool) -> None:
        super().__init__()
        self.held = held
        self.graph, self.root = fx.Graph(), nn.Module()
        # By the address of a tensor that is still there, with where its memory lay.
        self._nodes: dict[int, tuple[ref[Tensor], fx.Node, int]] = {}
        self._constants: list[Tensor] = []
        self._let_out: list[Tensor] = []
        self._outer: set[int] = set()  # where the memory of both lies
        self._following: set[fx.Node] = set()  # whose values follow from those of inputs, or are drawn
        self._written: set[int] = set()  # memory that such values were written to

    def hold(self, tensor: Tensor, node: fx.Node, *, follows: bool = False) -> None:
        """From now on the tensor is the value of the node, which follows from those of inputs, or does not.

        Raises:
            Unrecordable: it is large, and new.
        """
        new = node.op == "call_function" and tensor.nbytes > BYTES_OF_ONE
        if new and tensor.untyped_storage().nbytes() > BYTES_OF_ONE and _memory(tensor) not in self._outer:
            raise Unrecordable(f"{node.target} gives {tensor.nbytes / 2**20:.0f} MiB")
        node.meta["val"] = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        self._nodes[id(tensor)] = (ref(tensor), node, _memory(tensor))
        if follows:
            self._following.add(node)

    def node_of(self, tensor: Tensor) -> fx.Node | None:
        """None: nothing that was recorded made it.

        Raises:
            Unseen: another tensor's memory was put in the place of its own, `t.data = z`.
        """
        found = self._nodes.get(id(tensor))
        if found is None or found[0]() is not tensor:
            return None
        if found[2] != _memory(tensor):
            raise Unseen("a tensor was given another's memory")
        return found[1]

    def let_out(self, tensor: Tensor) -> None:
        """See the function of this name."""
        self._let_out.append(tensor)
        self._outer.add(_memory(tensor))

    def given(self, value: Any) -> Any:
        """An argument with nodes in the place of tensors.

        Raises:
            Unrecordable: one that is neither a tensor nor a plain value.
        """
        if isinstance(value, Tensor):
            return self.node_of(value) or self._constant(value)
        if isinstance(value, (list, tuple)):
            return type(value)([self.given(v) for v in value])
        if isinstance(value, _PLAIN):
            return value
        raise Unrecordable(f"a {type(value).__name__} among the arguments")

    def _constant(self, tensor: Tensor) -> fx.Node:
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.grad_fn is not None:  # the latter may be made of inputs
            raise Unrecordable(f"a {type(tensor).__name__} of another's making among the tensors")
        name = f"_{'param' if isinstance(tensor, nn.Parameter) else 'tensor'}_constant{len(self._constants)}"
        self._constants.append(tensor)  # held: another tensor must not get its address
        self._outer.add(_memory(tensor))
        setattr(self.root, name, tensor)
        node = self.graph.get_attr(name)
        self.hold(tensor, node)
        return node

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, torch._ops.OpOverload):
            raise Unrecordable(f"{func} is no single operation")
        if _is_made_of_others(func):
            with self:
                return func.decompose(*args, **kwargs)
        if func is aten.lift_fresh.default:
            func = aten.lift_fresh_copy.default
        written = _written(func, args, kwargs)
        if any(self.node_of(t) is None or _memory(t) in self._outer for t in written):
            raise Unrecordable(f"{func} writes to a tensor that the function closes over, or has let out of torch")
        if torch.Tag.data_dependent_output in func.tags and all(map(may_be_read, _tensors(args))):
            return func(*args, **kwargs)
        own, named = tuple(self.given(a) for a in args), {k: self.given(v) for k, v in kwargs.items()}
        node = self.graph.create_node("call_function", func, name=func.overloadpacket.__name__)
        node.args = own  # given with the rest, they would be searched for SymInts, which takes longer
        if named:
            node.kwargs = named
        given = _tensors((*args, *kwargs.values()))
        self._require_plain(func, args, given)
        follows = torch.Tag.nondeterministic_seeded in func.tags or any(map(self.follows, given))
        if follows:
            self._written.update(map(_memory, written))
        # What raises for one matrix of many is not asked: its factor is not what is recorded.
        out = None if func is aten._linalg_check_errors.default else func(*args, **kwargs)
        self._note(out, node, follows)
        return out

    def follows(self, tensor: Tensor) -> bool:
        """Whether its values follow from those of inputs, or are drawn."""
        node = self.node_of(tensor)
        return node in self._following or bool(self._written) and _memory(tensor) in self._written

    def _require_plain(self, func: Any, args: Any, given: list[Tensor]) -> None:
        """
        Raises:
            Unrecordable: the operation gives a value, or a shape that depends on those of inputs.
        """
        if torch.Tag.data_dependent_output in func.tags:
            raise Unrecordable(f"{func} takes a value out of torch")
        if torch.Tag.dynamic_output_shape not in func.tags:
            return
        deciding = given
        if func is aten.index.Tensor:
            deciding = [t for t in _tensors(args[1]) if t.dtype in (torch.bool, torch.uint8)]
        if any(map(self.follows, deciding)):
            raise Unrecordable(f"the shape of what {func} gives depends on values")

    def _note(self, out: Any, node: fx.Node, follows: bool) -> None:
        if isinstance(out, Tensor):
            self.hold(out, node, follows=follows)
        elif isinstance(out, (list, tuple)):
            for i, part in enumerate(out):
                own = self.graph.call_function(operator.getitem, (node, i))
                if isinstance(part, Tensor):
                    self.hold(part, own, follows=follows)
                elif part is not None:
                    raise Unrecordable(f"{node.target} gives a {type(part).__name__}")
        elif out is not None:
            raise Unrecordable(f"{node.target} gives a {type(out).__name__}")


class Largest(Mode):
    """The entries of the largest tensor that is made within."""

    entries = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.entries = max([self.entries, *(t.numel() for t in _tensors(out))])
        return out


@cache
def _is_made_of_others(func: Any) -> bool:
    """Whether autograd takes an operation apart, and the CPU has none of its own for it."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return has(func.name(), "CompositeImplicitAutograd") and not has(func.name(), "CPU")


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for v in value for t in _tensors(v)] if isinstance(value, (list, tuple)) else []


def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """What an operation writes to."""
    if not func._schema.is_mutable:
        return []
    given = [(of, args[i] if i < len(args) else kwargs.get(of.name)) for i, of in enumerate(func._schema.arguments)]
    return [t for of, value in given if of.alias_info is not None and of.alias_info.is_write for t in _tensors(value)]
