"""Losses that are no function of terms: Pyro's own ELBO classes, and any function (model, guide, *args) -> loss.

They are run as Pyro runs them, eagerly, on the program's parts with the data as arguments; the bound that is reported
is minus the loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro.infer
import torch
from torch import Tensor, nn

from ppgen.check import running_of
from ppgen.data import put_together
from ppgen.engine.graphs.trace import Untraceable
from ppgen.errors import PpgenError
from ppgen.inference import objectives
from ppgen.program import Program
from ppgen.structure import Structure


def is_ours(objective: str) -> bool:
    """Whether a name, with or without keywords, is one of ppgen's objectives."""
    return objective.partition("(")[0] in objectives.names()


def loss_of(objective: Any) -> Any:
    """Pyro's loss that a name of `pyro.infer` means, or the loss itself; None for an objective of ppgen's."""
    if objective is None or isinstance(objective, str) and is_ours(objective):
        return None
    _require_loss(objective)
    if isinstance(objective, str):
        made = getattr(pyro.infer, objective, None)
        if isinstance(made, type) and hasattr(made, "loss_and_grads") or made is pyro.infer.EnergyDistance:
            return _made(made)
    if isinstance(objective, str):
        objectives.named(objective)
    if type(objective).__name__.startswith("Jit"):
        raise PpgenError(
            f"{_name(objective)} records a program's global parameters, and ppgen's are its own; take "
            f"{_name(objective).removeprefix('Jit')}, or an objective of ppgen's, which is recorded by itself"
        )
    if not callable(objective) and not hasattr(objective, "loss_and_grads"):
        raise PpgenError(
            f"objective is {objective!r}; expected a name ({', '.join(objectives.names())}, or a class of pyro.infer), "
            "one of Pyro's ELBO objects, or a function (model, guide, *args) -> loss"
        )
    return objective


def _require_loss(objective: Any) -> None:
    """Refuses one of Pyro's algorithms that are no loss of a model and a guide, with what is near it here."""
    name = objective if isinstance(objective, str) else type(objective).__name__
    if name == "CSIS":
        raise PpgenError(
            "CSIS is no loss but an algorithm with a step of its own; its loss, the guide on draws from the model, is "
            "objective=pyro.infer.ReweightedWakeSleep(insomnia=0.0, model_has_params=False, num_particles=16)"
        )
    if name == "SVGD":
        raise PpgenError(
            "SVGD moves particles and has no guide and no loss; draws of the posterior are what mcmc and infer give, "
            "and pyro.infer.SVGD runs as it is"
        )


def _made(kind: Any) -> Any:
    """By name, with what Pyro has no default for: a kernel, several particles at once."""
    given: dict[str, Any] = {}
    if kind is pyro.infer.Trace_MMD:
        from pyro.contrib.gp.kernels import RBF  # 50 ms

        given = {"kernel": RBF(1), "num_particles": 16}
    elif kind is pyro.infer.TraceTailAdaptive_ELBO:
        given = {"num_particles": 16, "vectorize_particles": True}
    try:
        return loss_of(kind(**given))
    except TypeError as e:
        raise PpgenError(f"objective {kind.__name__!r} {str(e).partition('() ')[2]}; pass the object itself") from e


def name_of(objective: Any) -> str:
    """What config.json calls it."""
    return objective if isinstance(objective, str) else f"{_name(objective)} (an object)"


def _name(loss: Any) -> str:
    return getattr(loss, "__name__", type(loss).__name__)


class _Part:
    """A part of a program as Pyro's losses call it: with positional arguments, and the attributes of what is called."""

    def __init__(self, program: Program, part: str, names: list[str]):
        self._program, self._name, self._names = program, part, names

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._program.call(self._name, {**dict(zip(self._names, args, strict=False)), **kwargs})

    def __getattr__(self, name: str) -> Any:
        own = getattr(self._program, self._name)
        replaced = self._program._autoguide if self._name == "guide" else None
        return getattr(own if replaced is None else replaced, name)


class PyroObjective(nn.Module):
    """A loss of a program, as `ppgen.inference.objective.Objective` is a bound.

    Args:
        loss: an object with `differentiable_loss`, or with `loss_and_grads`, as Pyro's have, or a function.
        rows: N, the number of rows of the whole data set.
    """

    program: Program

    def __init__(self, program: Program, structure: Structure, rows: int, loss: Any):
        super().__init__()
        self.program, self.structure, self.rows, self.loss = program, structure, max(rows, 1), loss

    def prepare(self, batch: Mapping[str, Any]) -> None:
        raise Untraceable(f"the loss {_name(self.loss)} is run as Pyro runs it")

    def forward(self, batch: Mapping[str, Any], kl_weight: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
        """Loss in nats a row, and minus the loss of all rows."""
        given = put_together(batch)
        names = [n for n in self.program.columns if n in given]
        model, guide = (_Part(self.program, part, names) for part in ("model", "guide"))
        args, kwargs = [given[n] for n in names], {k: v for k, v in given.items() if k not in names}
        with running_of(self.program, batch):
            if hasattr(self.loss, "loss") and not any(p.requires_grad for p in self.program.parameters()):
                loss = self._value(model, guide, *args, **kwargs)
            elif hasattr(self.loss, "differentiable_loss") and not self._adapts:
                loss = self.loss.differentiable_loss(model, guide, *args, **kwargs)
            elif hasattr(self.loss, "loss_and_grads"):
                loss = self._with_gradients(model, guide, *args, **kwargs)
            else:
                loss = self.loss(model, guide, *args, **kwargs)
        if not isinstance(loss, Tensor):
            raise PpgenError(f"the loss {_name(self.loss)} gives {loss!r}; expected a tensor with a gradient")
        return loss / self.rows, -loss.detach()

    @property
    def _adapts(self) -> bool:
        """Whether it is the tail-adaptive divergence, of which Pyro tells the gradient and no value."""
        return isinstance(self.loss, pyro.infer.TraceTailAdaptive_ELBO)

    def _value(self, *args: Any, **kwargs: Any) -> Tensor:
        """Without a gradient; that of the ELBO where the loss has none."""
        loss = pyro.infer.Trace_ELBO.loss if self._adapts else type(self.loss).loss
        return torch.as_tensor(loss(self.loss, *args, **kwargs))

    def _with_gradients(self, *args: Any, **kwargs: Any) -> Tensor:
        """A loss that writes its gradients by itself, as one tensor that has them."""
        if not torch.is_grad_enabled():
            return self._value(*args, **kwargs)
        before = {p: p.grad for p in self.program.parameters()}
        for p in before:
            p.grad = None
        value = self.loss.loss_and_grads(*args, **kwargs)
        if self._adapts:
            value = self._value(*args, **kwargs)
        value = value[0] if isinstance(value, tuple) else value  # wake-sleep: that of the model, that of the guide
        now = list(self.program.parameters())  # and those that appeared in this step
        parts = [(p * p.grad).sum() for p in now if p.grad is not None]
        for p in now:
            p.grad = before.get(p)
        path = torch.stack(parts).sum() if parts else torch.zeros(())
        return torch.as_tensor(value).detach() + path - path.detach()
