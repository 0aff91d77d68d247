"""Pyro's SVI, whose steps are recorded, and compiled where many are made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch
from pyro import infer
from pyro.infer.util import torch_item
from torch import Tensor

from ppgen.engine.compiling import compile as compilation
from ppgen.engine.graphs.trace import Untraceable
from ppgen.errors import require_known
from ppgen.pyro_compat.arguments import Arguments
from ppgen.pyro_compat.calls import ENGINES, Calls
from ppgen.pyro_compat.recorded import Evaluated, Recorded
from ppgen.pyro_compat.updates import FusedRun, Run, Together, gradient_step, loss_only


class SVI(infer.SVI):
    """`pyro.infer.SVI`: the same arguments, parameters, optimisers, random numbers and losses; faster.

    The first steps are Pyro's own. Then loss and gradients are recorded for arguments of these shapes and other
    values, compared with Pyro's own, and replayed; where many steps are made the whole step is compiled. What cannot
    be recorded runs as in Pyro, and the log says why.

    Args:
        model, guide, optim, loss, args, kwargs: as Pyro's.
        engine: eager (Pyro itself), trace (the same numbers, to the bit), compile (the same but for rounding), or auto:
            trace, and compile, when the steps that were made would have paid for it.
    """

    def __init__(self, model: Any, guide: Any, optim: Any, loss: Any, *args: Any, engine: str = "auto", **kwargs: Any):
        """
        Raises:
            PpgenError: no such engine, or `compile` without a C++ compiler.
        """
        super().__init__(model, guide, optim, loss, *args, **kwargs)
        require_known("engine", engine, ENGINES)
        if engine == "compile":
            compilation.require_compiler()
        if type(loss).__name__.startswith("Jit"):
            engine = "eager"  # Pyro records these itself
        self._step_job = _StepJob(self)
        self._steps, self._losses = Calls(self._step_job, engine), Calls(_LossJob(self), engine)

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """A gradient step; gives the loss in nats, as a number (or several, as Pyro's loss does)."""
        if not torch.is_grad_enabled():
            return self._step_job.pyro(args, kwargs)
        return self._steps(args, kwargs)

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> Any:
        """The loss in nats, without a step."""
        return self._losses(args, kwargs)


class _StepJob:
    """Steps of an SVI, as `Calls` makes them."""

    def __init__(self, svi: SVI):
        self.svi = svi
        self.name = f"SVI of {_name(svi.model)} and {_name(svi.guide)}"
        self._together: Together | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_together": None}  # as of `Calls`

    def pyro(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        if self._together is not None:
            self._together.dirty = True
        return infer.SVI.step(self.svi, *args, **kwargs)

    def record(self, arguments: Arguments) -> Recorded:
        svi = self.svi

        def loss(*args: Any, **kwargs: Any) -> Any:
            return svi.loss_and_grads(svi.model, svi.guide, *args, **kwargs)

        held = svi.__dict__, ("model", "guide", "loss_and_grads", "optim")
        recorded = Recorded(loss, held, arguments, gradient=True)
        if any(t.device.type != "cpu" for t in (*recorded.stepped, *arguments.tensors)):
            raise Untraceable("its tensors are on another device than the CPU")
        return recorded

    def compared(self, args: tuple, kwargs: dict[str, Any], recorded: Recorded, ours: Evaluated) -> tuple[Any, str]:
        found: list[str] = []
        pyros = self.svi.loss_and_grads

        def loss_and_grads(*a: Any, **k: Any) -> Any:
            touched = {id(p): p for p in (*recorded.trained, *recorded.stepped)}.values()
            before = [None if p.grad is None else p.grad.clone() for p in touched]
            loss = pyros(*a, **k)
            added = {id(p): _added(p.grad, b) for p, b in zip(touched, before, strict=True)}
            found.append(_other_losses(loss, ours) or _other_gradients(added, recorded, ours))
            return loss

        with mock.patch.object(self.svi, "loss_and_grads", loss_and_grads):
            value = self.pyro(args, kwargs)
        return value, found[0]

    def traced(self, recorded: Recorded) -> Run:
        run = gradient_step(recorded, self.svi.optim)
        return lambda tensors: self._moved(run, tensors)

    def _moved(self, run: Run, tensors: Sequence[Tensor]) -> Any:
        if self._together is not None:
            self._together.dirty = True
        return run(tensors)

    def compiled(self, recorded: Recorded, tensors: Sequence[Tensor]) -> Run:
        try:
            if self._together is None or [*map(id, self._together.parameters)] != [*map(id, recorded.trained)]:
                self._together = Together(self.svi.optim, recorded.trained)
            return FusedRun(recorded, self._together, tensors, self.traced(recorded))
        except Untraceable:
            run = gradient_step(recorded, self.svi.optim, compile=True)
            return lambda tensors: self._moved(run, tensors)


class _LossJob:
    """Losses of an SVI, as `Calls` makes them."""

    def __init__(self, svi: SVI):
        self.svi, self.name = svi, f"the loss of {_name(svi.model)} and {_name(svi.guide)}"

    def pyro(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        return infer.SVI.evaluate_loss(self.svi, *args, **kwargs)

    def record(self, arguments: Arguments) -> Recorded:
        svi = self.svi

        def loss(*args: Any, **kwargs: Any) -> Any:
            return svi.loss(svi.model, svi.guide, *args, **kwargs)

        return Recorded(loss, (svi.__dict__, ("model", "guide", "loss")), arguments, gradient=False)

    def compared(self, args: tuple, kwargs: dict[str, Any], recorded: Recorded, ours: Evaluated) -> tuple[Any, str]:
        value = self.pyro(args, kwargs)
        return value, _other_losses(value, ours)

    def traced(self, recorded: Recorded) -> Run:
        return loss_only(recorded)

    def compiled(self, recorded: Recorded, tensors: Sequence[Tensor]) -> Run:
        return loss_only(recorded, compile=True)


def _name(program: Any) -> str:
    return getattr(program, "__name__", None) or type(program).__name__


def _added(grad: Tensor | None, before: Tensor | None) -> Tensor | None:
    return grad if grad is None or before is None else grad - before


def _other_losses(losses: Any, ours: Evaluated) -> str:
    """What of the recorded losses is not Pyro's; a loss that is not finite is not compared."""
    theirs = losses if isinstance(losses, tuple) else (losses,)
    for a, b in zip(map(torch_item, theirs), map(torch_item, ours.losses), strict=True):
        if abs(a) < float("inf") and not abs(a - b) <= 1e-4 * max(abs(a), abs(b)) + 1e-6:
            return f"its recorded run gives another loss, {b:.6g} in place of {a:.6g}"
    return ""


def _other_gradients(added: dict[int, Tensor | None], recorded: Recorded, ours: Evaluated) -> str:
    """Which gradient of the recorded run is not Pyro's."""
    own = {id(p): g for p, g in zip(recorded.trained, ours.gradients, strict=True)}
    size = max([float(g.abs().max()) for g in added.values() if g is not None and g.numel()], default=0.0)
    for key, theirs in added.items():
        if theirs is None or not torch.isfinite(theirs).all():
            continue
        error = theirs - own[key] if key in own else theirs
        if error.numel() and float(error.abs().max()) > 1e-3 * max(float(theirs.abs().max()), 1e-6 * size):
            return "its recorded run gives another gradient"
    return ""
