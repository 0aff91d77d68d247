"""Pyro's own `loss_and_grads`, recorded: the loss and all gradients that it would add, as one graph of operations.

Parameters and tensors that the program holds keep their places: the graph reads what they are when it runs. Pyro's
loss is not written anew; `Tensor.backward` is recorded as the gradients that it would have added.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import pyro
import torch
from pyro import poutine
from torch import Tensor

from ppgen.engine.graphs.graph import aliases, is_in_place
from ppgen.engine.graphs.noise import python_randomness
from ppgen.engine.graphs.trace import Traced, Untraceable, trace
from ppgen.pyro_compat.arguments import Arguments
from ppgen.pyro_compat.watched import Watched

Loss = Callable[..., Any]


class Unready(Untraceable):
    """A program that makes parameters: it can be recorded when they are there."""


class Evaluated(NamedTuple):
    """What one run gives: the loss, or several of them, and the gradients of `Recorded.trained`."""

    losses: list[Any]  # tensors or numbers
    gradients: list[Tensor]


class Recorded:
    """A loss of a model and a guide on arguments of one shape.

    Attributes:
        traced: the graph. Its inputs: `trained`, the arguments' tensors; then its constants.
        trained: the tensors that a backward pass adds a gradient to.
        stepped: the parameters that Pyro's optimiser would be called with.
        changed: tensors that a run writes to (batch norm's statistics).
    """

    def __init__(self, loss: Loss, held: tuple[dict[str, Any], Sequence[str]], arguments: Arguments, *, gradient: bool):
        """
        Args:
            held: where the programs and the loss are, and their names there.

        Raises:
            Untraceable: the program needs values to decide what to do, or changes something that is no tensor.
        """
        self.gradient, self.arguments = gradient, arguments
        gathered: dict[int, tuple[Tensor, Tensor]] = {}

        def run(*tensors: Tensor) -> list[Tensor]:
            gathered.clear()
            args, kwargs = arguments.rebuild(tensors)
            with (
                torch.set_grad_enabled(gradient),
                _numbers_stay_tensors(),
                _gradients_gathered(gathered),
                poutine.trace(param_only=True) as capture,
            ):
                value = loss(*args, **kwargs)
            self._sites = {n: s["value"].unconstrained() for n, s in capture.trace.nodes.items()}
            self._tuple = type(value) if isinstance(value, tuple) else None
            self._losses = list(value) if isinstance(value, tuple) else [value]
            names = {id(p): n for n, p in reversed(self._sites.items())}
            self.trained = sorted((p for p, _ in gathered.values()), key=lambda p: names.get(id(p), "~"))
            losses = [v.detach() for v in self._losses if isinstance(v, Tensor)]
            return [*losses, *(gathered[id(p)][1] for p in self.trained)]

        examples = [t.detach() for t in arguments.tensors]  # one tensor given twice is two inputs
        self.watched = Watched(*held, arguments.objects)
        with python_randomness(), _left_alone(self.watched):
            traced = trace(run, examples)
        self._losses = [None if isinstance(v, Tensor) else v for v in self._losses]
        stepped = {id(p): p for p in self._sites.values()}
        self.stepped = list(stepped.values())
        self.foreign = [p for p in self.trained if id(p) not in stepped]
        own = dict(pyro.get_param_store().named_parameters())
        self._store = [(n, p) for n, p in self._sites.items() if own.get(n) is p]
        self._required = [(p, p.requires_grad) for p in {id(p): p for p in (*self.trained, *self.stepped)}.values()]
        self._arrange(traced, len(examples))

    def _arrange(self, traced: Traced, arguments: int) -> None:
        """Trained tensors in front of the graph's other inputs, and what it writes to."""
        graph = traced.graph
        inputs = [n for n in graph.graph.nodes if n.op == "placeholder"]
        places = {_place(p): i for i, p in enumerate(self.trained)}
        # What the program holds is read from its owner: its memory may be another one tomorrow.
        owners = {_place(t): t for t in (*self.watched.tensors(), *self.stepped)}
        at: dict[int, Any] = {}
        constants = []
        for node, constant in zip(inputs[arguments:], traced.constants, strict=True):
            i = places.get(_place(constant))
            if i is None:
                constants.append(owners.get(_place(constant), constant))
            else:
                at[i] = node
        if len(at) != len(self.trained):
            raise Untraceable("a parameter is not where the graph reads it")
        anchor = next(n for n in graph.graph.nodes if n not in set(at.values()))
        for i in range(len(self.trained)):
            anchor.prepend(at[i])
        graph.recompile()
        self.traced = Traced(graph, tuple(constants))
        inputs = [n for n in graph.graph.nodes if n.op == "placeholder"]
        written = [i for i, n in enumerate(inputs) if _written(n)]
        fixed = len(self.trained) + arguments
        if any(i < fixed for i in written):
            raise Untraceable("it changes its arguments or parameters in place")
        self.changed = [constants[i - fixed] for i in written]

    @property
    def single(self) -> bool:
        """Whether there is one loss, and it is a tensor."""
        return self._losses == [None] and self._tuple is None

    def __call__(self, tensors: Sequence[Tensor]) -> Evaluated:
        return self.outputs(self.traced(*self.trained, *tensors))

    def outputs(self, out: Sequence[Tensor]) -> Evaluated:
        rest = iter(out)
        losses = [next(rest) if v is None else v for v in self._losses]
        return Evaluated(losses, list(rest))

    def value(self, losses: Sequence[Any]) -> Any:
        """What Pyro returns: a number, or a tuple of them."""
        numbers = [v.item() if isinstance(v, Tensor) else v for v in losses]
        return numbers[0] if self._tuple is None else self._tuple(numbers)

    def outdated(self) -> str | None:
        """What is no longer as it was recorded, or None."""
        own = dict(pyro.get_param_store().named_parameters())
        for name, p in self._store:
            if own.get(name) is not p:
                return f"the parameter {name!r}"
        for p, required in self._required:
            if p.requires_grad is not required or _hooked(p):
                return "requires_grad or a hook of a parameter"
        return self.watched.changed()


@contextmanager
def _numbers_stay_tensors() -> Iterator[None]:
    """What Pyro adds up as Python numbers, a loss term by term, is added up in the same precision as tensors."""
    item = Tensor.item

    def as_tensor(self: Tensor) -> Any:
        if not sys._getframe(1).f_globals.get("__name__", "").startswith("pyro.infer"):
            return item(self)
        return self.detach().to(torch.float64) if self.is_floating_point() else self.detach()

    with mock.patch.object(Tensor, "item", as_tensor):
        yield


@contextmanager
def _gradients_gathered(gathered: dict[int, tuple[Tensor, Tensor]]) -> Iterator[None]:
    """A backward pass adds to these sums, and to no tensor's `grad`."""

    def backward(
        self: Tensor, gradient: Any = None, retain_graph: Any = None, create_graph: bool = False, inputs: Any = None
    ) -> None:
        if gradient is not None or create_graph or inputs is not None:
            raise Untraceable("its backward pass has arguments of its own")
        leaves = _leaves(self)
        found = torch.autograd.grad(self, leaves, retain_graph=retain_graph, allow_unused=True)
        for p, g in zip(leaves, found, strict=True):
            if g is not None:
                gathered[id(p)] = p, gathered[id(p)][1] + g if id(p) in gathered else g

    with mock.patch.object(Tensor, "backward", backward):
        yield


def _leaves(value: Tensor) -> list[Tensor]:
    """The tensors to whose `grad` a backward pass from this value would add."""
    todo, seen, found = [value.grad_fn], set(), {}
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:
            found[id(leaf)] = leaf
        todo += [n for n, _ in node.next_functions]
    return list(found.values())


@contextmanager
def _left_alone(watched: Watched) -> Iterator[None]:
    """What a run changes in the store, in tensors and in Python values is put back after it.

    Raises:
        Untraceable: it changed a Python value, or a parameter has a hook.
        Unready: it made parameters.
    """
    store = pyro.get_param_store()
    own = dict(store.named_parameters())
    if any(map(_hooked, own.values())):
        raise Untraceable("a parameter has a hook, which no replayed step would call")
    grads = [(p, p.grad) for p in own.values()]
    tensors = [(t, t._version, t.detach().clone()) for t in (*watched.tensors(), *own.values())]
    try:
        yield
    finally:
        name = watched.changed()
        watched.restore()
        for p, grad in grads:
            if p.grad is not grad:
                p.grad = grad
        for t, version, value in tensors:
            if t._version != version:
                t.detach().copy_(value)
        now = dict(store.named_parameters())
        if now.keys() != own.keys() or any(now[n] is not p for n, p in own.items()):
            kept = {n: c for n, c in store.get_state()["constraints"].items() if n in own}
            store.clear()
            store.set_state({"params": own, "constraints": kept})
            raise Unready("it makes parameters at each call")
    if name:
        raise Untraceable(f"it changes {name!r} itself, at each call")


def _hooked(p: Tensor) -> bool:
    """Whether something is called when a gradient arrives."""
    return bool(p._backward_hooks or p._post_accumulate_grad_hooks)


def _place(t: Tensor) -> tuple:
    return t.data_ptr(), t.shape, t.stride(), t.dtype


def _written(node: Any) -> bool:
    """Whether the graph writes to an input: batch norm does to its statistics, although its schema does not say so."""
    statistics = any("batch_norm" in str(u.target) and node in u.args[3:5] for u in node.users)
    return statistics or any(is_in_place(u) for u in aliases(node))
