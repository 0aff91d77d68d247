"""A function traced once: its tensor operations as a plain ATen graph, with no Pyro and no Python of the program left.

The function runs once and is recorded as it runs (`ppgen.engine.graphs.record`), which refuses what reads a value.
Where it does, or where inputs are large, it runs under `make_fx` on tensors that have a shape and a dtype but no
content, so that nothing of the data can be baked into the graph: a line that needs the content (`if z > 0:`, `.item()`,
`.numpy()`) is an error there, and the error names the line.
"""

from __future__ import annotations

import contextlib
import linecache
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import takewhile
from pathlib import Path
from traceback import walk_tb
from types import FrameType, TracebackType
from typing import Any
from unittest import mock

import pyro
import torch
from pyro.poutine.indep_messenger import IndepMessenger
from torch import Tensor, fx
from torch.distributions import dirichlet as dirichlets
from torch.distributions import von_mises
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from ppgen.engine.graphs.executable import executable
from ppgen.engine.graphs.graph import simplify
from ppgen.engine.graphs.record import Unseen, has_content, let_out, may_be_read, record
from ppgen.engine.graphs.von_mises import drawn_von_mises
from ppgen.engine.graphs.without_dynamo import plain_gradients
from ppgen.frames import owner
from ppgen.handlers import without_validation

log = logging.getLogger("ppgen")


class Untraceable(Exception):
    """A function that cannot be traced; the message says which line, and why."""


class Traced:
    """A traced function of tensors.

    Attributes:
        graph: the `torch.fx.GraphModule`; its placeholders are the function's tensors, then `constants`.
        constants: tensors that the function made or closed over.
        outputs: one entry an output: None where the function gave none.
    """

    def __init__(self, graph: fx.GraphModule, constants: tuple[Tensor, ...]):
        self.graph, self.constants = graph, constants
        self._run = executable(graph)

    def __call__(self, *inputs: Tensor) -> Any:
        return self._run(*inputs, *self.constants)

    def __len__(self) -> int:
        """How many operations the graph has."""
        return sum(n.op == "call_function" for n in self.graph.graph.nodes)


def trace(
    fn: Callable[..., Any], inputs: Sequence[Tensor], *, differentiable: bool = False, held: bool = False
) -> Traced:
    """Traces `fn(*inputs)`, which gives a tensor or a list of tensors (None allowed).

    The graph is specialised to the shapes and dtypes of the inputs; random draws stay in it, and take
    from torch's generator what the function itself would have taken.

    Args:
        differentiable: whether gradients are to be taken through the graph: it then keeps what stops them.
        held: as `record` has it: the values of what the function closes over may be read.

    Raises:
        Untraceable: the function needs a value, not a shape, to decide what to do next.
    """

    def traced(*tensors: Tensor) -> Any:
        with _Stopped() if differentiable else nullcontext():
            return fn(*tensors)

    def run(make: Callable[..., fx.GraphModule], **mode: Any) -> fx.GraphModule:
        with (
            _quiet(),
            mock.patch.object(torch, "binomial", _binomial),
            mock.patch.object(von_mises, "_rejection_sample", drawn_von_mises),
            mock.patch.object(dirichlets, "_Dirichlet", _Dirichlet if differentiable else _PlainDirichlet),
            torch.random.fork_rng(devices=[]),
            torch.enable_grad(),
        ):
            return make(traced, inputs, **mode)

    try:
        with _no_way_out(), plain_gradients():
            return Traced(*simplify(run(record, held=held), differentiable=differentiable))
    except Unseen as e:
        raise Untraceable(_blame(e)) from e
    except Exception as e:  # tensors without content then, in their own time
        log.debug("not recorded: %s", e)
    try:
        with _no_way_out(has_content), fakes_told_in_debug():  # `tolist` of others would end the process
            graph = run(_made, tracing_mode="fake", _allow_non_fake_inputs=True)
    except Exception:  # some constants must have their content (the places of a mask): then all tensors may have theirs
        try:
            with _no_way_out():
                graph = run(_made, tracing_mode="real")
            _require_shapes(graph)
        except Exception as e:
            raise e if isinstance(e, Untraceable) else Untraceable(_blame(e)) from e
    return Traced(*simplify(graph, differentiable=differentiable))


@contextmanager
def fakes_told_in_debug() -> Iterator[None]:
    """What torch tells on stderr, with a traceback, of an operation that fails on tensors without content is a record
    of ours at the level of debugging: another way is taken then, or the failure is said in a sentence."""

    def told(theirs: logging.LogRecord) -> bool:
        log.debug("%s", theirs.getMessage(), exc_info=theirs.exc_info)
        return False

    logger = logging.getLogger("torch._subclasses.fake_tensor")
    logger.addFilter(told)
    try:
        yield
    finally:
        logger.removeFilter(told)


def _made(fn: Callable[..., Any], inputs: Sequence[Tensor], **mode: Any) -> fx.GraphModule:
    from torch.fx.experimental.proxy_tensor import make_fx

    return make_fx(fn, **mode)(*inputs)


@contextmanager
def _quiet() -> Iterator[None]:
    """Validation off: it reads values. Pyro guards what else reads values by asking whether torch.jit traces."""

    def tracing() -> bool | None:
        # torch.distributions asks too, and would draw in another way than it does eagerly.
        return _caller().startswith("pyro.") or None

    def masked_select(self: Tensor, mask: Tensor) -> Tensor:
        # How TraceEnum_ELBO leaves out what has probability 0 before it takes an inner product.
        return torch.where(mask, self, 0.0) if _caller() == "pyro.infer.util" else select(self, mask)

    def counted(self: Any) -> Iterator[int]:
        """`for i in pyro.plate(...)` over all of it counts; Pyro takes the numbers out of a tensor."""
        if getattr(self, "subsample_size", self.size) != self.size:
            yield from iterate(self)
            return
        self._vectorized, self.dim = False, None
        for i in range(self.size):
            self.next_context()
            with self:
                yield i

    select, iterate = Tensor.masked_select, IndepMessenger.__iter__
    with (
        without_validation(),
        mock.patch.object(torch._C, "_get_tracing_state", tracing),
        mock.patch.object(Tensor, "masked_select", masked_select),
        _Places(),
        mock.patch.object(IndepMessenger, "__iter__", counted),
        # A prior that was made while validation was on keeps it.
        mock.patch.object(torch.distributions.Distribution, "_validate_sample", lambda self, value: None),
        mock.patch.object(pyro.util, "torch_isnan", lambda x: False),
        mock.patch.object(pyro.util, "torch_isinf", lambda x: False),
    ):
        yield


class _Places(TorchFunctionMode):
    """`x[k]` of a drawn k is looked up. (`Tensor.__getitem__` itself stays: put in place and taken away again, it would
    leave behind a tensor that `torch.tensor([x[0], 1.0])` takes for a list.)"""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not Tensor.__getitem__ or (at := _place_read(args[1])) is None:
            return func(*args, **(kwargs or {}))
        listed = tuple(p.reshape(1) if isinstance(p, Tensor) else p for p in _tuple(args[1]))
        return func(args[0], listed).squeeze(at)


def _place_read(places: Any) -> int | None:
    """The dimension of k in `x[k]`, `x[j, k]` or `x[:, k]`, a whole number in a tensor, whose value torch would take
    out to look there; None where there is none, or the value may be read, or the places are of another form."""
    each = _tuple(places)
    before = len(list(takewhile(lambda p: isinstance(p, slice), each)))
    ones = list(takewhile(_is_one, each[before:]))
    rest = each[before + len(ones) :]
    read = any(isinstance(p, Tensor) and not may_be_read(p) for p in ones) and all(isinstance(p, slice) for p in rest)
    return before if read else None


def _is_one(place: Any) -> bool:
    if isinstance(place, Tensor):
        return place.dim() == 0 and not place.is_floating_point() and place.dtype not in (torch.bool, torch.uint8)
    return isinstance(place, int) and not isinstance(place, bool)


def _tuple(places: Any) -> tuple[Any, ...]:
    return places if isinstance(places, tuple) else (places,)


class _Stopped(TorchFunctionMode):
    """What is computed within `torch.no_grad()` is detached: a graph of operations has no `no_grad`.

    (Within a `torch.autograd.Function`, gradients are off too; its operations stay as they are, and are compared.)
    """

    depth = 0

    def __enter__(self) -> Any:
        enter, leave = torch.no_grad.__enter__, torch.no_grad.__exit__

        def entered(block: Any) -> None:
            self.depth += 1
            enter(block)

        def left(block: Any, *exc: Any) -> None:
            self.depth -= 1
            leave(block, *exc)

        self._patch = mock.patch.multiple(torch.no_grad, __enter__=entered, __exit__=left)
        self._patch.start()
        return super().__enter__()

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        self._patch.stop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not self.depth or torch.is_grad_enabled():
            return out
        return tree_map_only(Tensor, lambda t: t if any(t is a for a in args) else t.detach(), out)


def _binomial(count: Tensor, prob: Tensor) -> Tensor:
    """torch.binomial of counts that are as many as the probabilities, however many draws: it has no other batches."""
    return _drawn_binomial(count + torch.zeros_like(prob), prob + torch.zeros_like(count))


_drawn_binomial = torch.binomial


class _Dirichlet:
    """A Dirichlet draw whose gradient is written in operations: torch's own has its gradient outside of the graph.

    x + s − x Σ s with s = D (α − sg α) is x, and has the implicit derivative of torch's `_Dirichlet_backward`. D, which
    torch has no batched form of, is left out within `torch.no_grad()`.
    """

    @staticmethod
    def apply(concentration: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return torch._sample_dirichlet(concentration)
        fixed = concentration.detach()
        x = torch._sample_dirichlet(fixed)
        slope = torch._dirichlet_grad(x, fixed, fixed.sum(-1, True).expand_as(fixed))
        s = slope * (concentration - fixed)
        return x + s - x * s.sum(-1, True)


class _PlainDirichlet:
    """The draw alone where no gradient is asked for, as within a log joint, which torch.func differentiates."""

    @staticmethod
    def apply(concentration: Tensor) -> Tensor:
        draw = _Dirichlet.apply if concentration.requires_grad else torch._sample_dirichlet
        return draw(concentration)


@contextmanager
def _no_way_out(readable: Callable[[Tensor], bool] = may_be_read) -> Iterator[None]:
    """Nothing may take out of torch unseen what tensors hold that are not readable.

    `torch.tensor([z, 1.0])` reads z as a number where no recording sees it.
    """

    def guarded(own: Callable[..., Any], number: bool) -> Callable[..., Any]:
        def read(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            if not readable(self) and (not number or _unseen(torch._C.DispatchKey.Python)):
                raise Untraceable(_blame_here())
            if not number and own is not _tolist:
                let_out(self)
            return own(self, *args, **kwargs)

        return read

    with contextlib.ExitStack() as stack:
        for name in (*_COPIED_OUT, *_AS_NUMBER):
            own = guarded(getattr(Tensor, name), name in _AS_NUMBER)
            stack.enter_context(mock.patch.object(Tensor, name, own))
        yield


_COPIED_OUT = ("numpy", "tolist", "__array__", "__dlpack__")
_tolist = Tensor.tolist
_AS_NUMBER = ("__float__", "__int__", "__index__", "__bool__", "__complex__")
_unseen = torch._C._dispatch_tls_is_dispatch_key_excluded


def _require_shapes(graph: fx.GraphModule) -> None:
    """Raises Untraceable where the shape of something depends on the content of an input."""
    tainted: set[fx.Node] = set()
    for node in graph.graph.nodes:
        if node.op == "placeholder" or any(n in tainted for n in node.all_input_nodes):
            tainted.add(node)
        if torch.Tag.dynamic_output_shape not in getattr(node.target, "tags", ()):
            continue
        deciding = node.all_input_nodes
        if node.target in (torch.ops.aten.index.Tensor, torch.ops.aten.masked_select.default):
            deciding = [n for n in deciding if getattr(n.meta.get("val"), "dtype", None) in (torch.bool, torch.uint8)]
        if tainted.intersection(deciding):
            raise Untraceable(f"{node.target}: the shape of its result depends on the values")


def _caller() -> str:
    """The module that called the function that asks."""
    return sys._getframe(2).f_globals.get("__name__", "")


# -- errors ----------------------------------------------------------------------------------------


def _blame(error: BaseException) -> str:
    """`file.py:12: if z > 0:` (what went wrong): the program's own line, deepest in the traceback."""
    frame = _own_frame(error.__traceback__)
    reason = _reason(error)
    if frame is None:
        return reason
    return f"{_where(*frame)} ({reason})"


def _blame_here() -> str:
    """As `_blame`, of the line that is running now."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and _kind(frame) != "own":
        frame = frame.f_back
    own = None if frame is None else (frame.f_code.co_filename, frame.f_lineno)
    reason = "it takes the tensor out of torch"
    return reason if own is None else f"{_where(*own)} ({reason})"


def _where(file: str, line: int) -> str:
    return f"{Path(file).name}:{line}: `{linecache.getline(file, line).strip()}`"


def _kind(frame: FrameType) -> str:
    """Whose code a frame runs: the author's own, a library's, or torch's."""
    kind = owner(frame)
    return "own" if kind == "model" else kind


def _own_frame(tb: TracebackType | None) -> tuple[str, int] | None:
    found = {_kind(frame): (frame.f_code.co_filename, n) for frame, n in walk_tb(tb)}
    return found.get("own") or found.get("library")


def _reason(error: BaseException) -> str:
    name = type(error).__name__
    text = str(error)
    if name in ("DataDependentOutputException", "GuardOnDataDependentSymNode") or "_local_scalar_dense" in text:
        return "it needs the value of a tensor, which differs from step to step"
    if name in ("DynamicOutputShapeException",):
        return "the shape of its result depends on the values"
    if "numpy" in text or "tolist" in text or "data pointer" in text:
        return "it takes the tensor out of torch"
    first = text.strip().splitlines()[0] if text.strip() else ""
    return f"{name}: {first}" if first else name
