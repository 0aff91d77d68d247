"""A recorded step carried out: the gradients to Pyro's optimisers, or gradients and updates as one compiled graph.

Pyro keeps a torch optimiser for each parameter. Their options and state stay in these objects, where `get_state`,
`save` and schedulers find them; a compiled step reads and writes them there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pyro.infer.util import torch_item, zero_grads
from pyro.optim import PyroOptim
from pyro.optim.clipped_adam import ClippedAdam
from pyro.optim.lr_scheduler import PyroLRScheduler
from torch import Tensor

from ppgen.engine.compiling.compile import compiled
from ppgen.engine.compiling.fused import FusedStep
from ppgen.engine.graphs.gradient import Evaluation
from ppgen.engine.graphs.trace import Untraceable
from ppgen.pyro_compat.recorded import Evaluated, Recorded

# From the arguments' tensors to the loss; None where it is not finite, and nothing was changed.
Run = Callable[[Sequence[Tensor]], Any]


def loss_only(recorded: Recorded, *, compile: bool = False) -> Run:
    """The value of a loss without gradients.

    Raises:
        Untraceable: it cannot be compiled.
    """
    evaluate = _compiled(recorded) if compile else recorded

    def run(tensors: Sequence[Tensor]) -> Any:
        kept = [c.clone() for c in recorded.changed]
        losses = evaluate(tensors).losses
        return recorded.value(losses) if finite(losses) else put_back(recorded.changed, kept)

    return run


def gradient_step(recorded: Recorded, optim: Any, *, compile: bool = False) -> Run:
    """Gradients from the graph, as it is or compiled; then Pyro's optimisers.

    Raises:
        Untraceable: it cannot be compiled.
    """
    stepped = set(recorded.stepped)
    evaluate = _compiled(recorded) if compile else recorded

    def run(tensors: Sequence[Tensor]) -> Any:
        kept = [c.clone() for c in recorded.changed]
        losses, gradients = evaluate(tensors)
        if not finite(losses):
            return put_back(recorded.changed, kept)
        for p, g in zip(recorded.trained, gradients, strict=True):
            p.grad = g.clone() if p.grad is None else p.grad.add_(g)
        optim(stepped)
        zero_grads(stepped)
        return recorded.value(losses)

    return run


def finite(losses: Sequence[Any]) -> bool:
    """Whether no loss is infinite or NaN."""
    return all(abs(torch_item(v)) < float("inf") for v in losses)


def _compiled(recorded: Recorded) -> Callable[[Sequence[Tensor]], Evaluated]:
    if recorded.changed:
        raise Untraceable("it writes to buffers")
    run: Any = None

    def evaluate(tensors: Sequence[Tensor]) -> Evaluated:
        nonlocal run
        held = [t.detach() for t in (*recorded.trained, *recorded.traced.constants)]
        n = len(recorded.trained)
        inputs = [*held[:n], *tensors, *held[n:]]
        run = run or compiled(recorded.traced.graph, inputs)
        return recorded.outputs(run(inputs))

    return evaluate


def put_back(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copies values kept before a run to where it wrote."""
    for t, value in zip(tensors, values, strict=True):
        t.detach().copy_(value)


class Together:
    """Pyro's optimisers, one a parameter, as one torch optimiser that shares their state.

    Attributes:
        dirty: whether steps were made by other means since the last one of a `FusedRun`.
    """

    def __init__(self, optim: Any, parameters: Sequence[Tensor]):
        """
        Raises:
            Untraceable: they are not of one kind with one set of options.
        """
        if type(optim) not in (PyroOptim, PyroLRScheduler):
            raise Untraceable(f"{type(optim).__name__} is an optimiser of its own")
        if any(p not in optim.optim_objs or optim.grad_clip[p] is not None for p in parameters):
            raise Untraceable("gradients are clipped parameter by parameter")
        self.own = [getattr(o, "optimizer", o) for o in (optim.optim_objs[p] for p in parameters)]
        if any(type(o) is not type(self.own[0]) or len(o.param_groups) != 1 for o in self.own):
            raise Untraceable("the parameters have optimisers of several kinds")
        self.parameters, self.groups = list(parameters), [o.param_groups[0] for o in self.own]
        self._expected = [{**g, "lr": self.lr} for g in self.groups]
        options = _options(self.groups[0])
        if any(_options(g) != options for g in self.groups) or not self.alike():
            raise Untraceable("the parameters have options of their own")
        self.optimizer = type(self.own[0])(self.parameters, lr=self.lr)
        self.optimizer.param_groups[0].update(options)
        self._clipped = type(self.own[0]) is ClippedAdam
        self.layouts: dict[tuple[int, ...], Any] = {}
        self.dirty = True
        self._layout: Any = None
        self._read()

    @property
    def lr(self) -> float:
        return float(self.groups[0]["lr"])

    def alike(self) -> bool:
        """Whether all have one learning rate, and other options are as they were."""
        self.groups = [o.param_groups[0] for o in self.own]  # others after load_state_dict
        lr = self.groups[0]["lr"]
        if lr != self._expected[0]["lr"]:
            for e in self._expected:
                e["lr"] = lr
        return self.groups == self._expected

    def ready(self, fused: FusedStep) -> bool:
        """Makes parameters, state and counts those of Pyro's optimisers; False if a gradient waits to be added to."""
        if any(o.state is not s for o, s in zip(self.own, self._states, strict=True)):  # somebody loaded one
            self._read()
            self._layout = None
            self.layouts.clear()
        if fused.layout is not self._layout or fused.layout.stale:
            fused.lay_out()
        if fused.layout is not self._layout:
            self._layout = fused.layout
            self._bind()
        if self.dirty:
            self._zeros = [(p, p.grad, 0 if p.grad is None else p.grad._version) for p in self.parameters]
            if any(g is not None and g.any() for _, g, _ in self._zeros):
                return False
            fused.layout.count()
            self.dirty = False
        return all(p.grad is g and (g is None or g._version == v) for p, g, v in self._zeros)

    def _read(self) -> None:
        for p, o in zip(self.parameters, self.own, strict=True):
            self.optimizer.state[p] = o.state[p]
        self._states = [o.state for o in self.own]

    def _bind(self) -> None:
        self._bound = []
        for p, o in zip(self.parameters, self.own, strict=True):
            state = self.optimizer.state[p]
            if self._clipped:  # which counts in Python
                state["step"] = int(state["step"])
            o.state[p] = state
            self._bound.append(state)

    def count(self, steps: int) -> None:
        """ClippedAdam's own: its count, and the decay of its learning rate."""
        if self._clipped:
            for g, s in zip(self.groups, self._bound, strict=True):
                g["lr"] *= g["lrd"] ** steps
                s["step"] += steps


def _options(group: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in group.items() if k not in ("params", "lr", "initial_lr")}


class FusedRun:
    """A `Run`: draws, loss, gradients and updates as one compiled graph."""

    warm_up, others, changed = False, (), ()  # what `FusedStep` reads of a gradient, with the next lines of __init__

    def __init__(self, recorded: Recorded, together: Together, tensors: Sequence[Tensor], otherwise: Run):
        """
        Args:
            otherwise: makes the steps that the graph cannot make.

        Raises:
            Untraceable: there is no such graph for the optimiser or the loss.
        """
        trained = set(map(id, recorded.trained))
        if recorded.changed or recorded.foreign or not recorded.single:
            raise Untraceable("it writes to buffers, has gradients that Pyro does not use, or several losses")
        if any(p.grad is not None for p in recorded.stepped if id(p) not in trained):
            raise Untraceable("parameters move that the loss does not depend on")
        self.recorded, self.together, self.otherwise = recorded, together, otherwise
        self.traced, self.trained, self.parameters = recorded.traced, recorded.trained, recorded.trained
        self.columns = list(range(len(tensors)))
        self.fused = FusedStep(self, together.optimizer, layouts=together.layouts)  # type: ignore[arg-type]
        self.fused.build(dict(enumerate(tensors)))  # type: ignore[arg-type]
        together.dirty = True
        together.ready(self.fused)

    def outputs(self, out: Sequence[Tensor]) -> Evaluation:
        (loss,), gradients = self.recorded.outputs(out)
        return Evaluation(loss, loss, gradients, [])

    def __call__(self, tensors: Sequence[Tensor]) -> Any:
        together = self.together
        if not together.alike() or not together.ready(self.fused):
            together.dirty = True
            return self.otherwise(tensors)
        before = together.lr
        together.count(1)
        loss, _, good = self.fused.one(tensors, together.lr)
        if good:
            return loss
        together.count(-1)
        for g in together.groups:
            g["lr"] = before
        return None
