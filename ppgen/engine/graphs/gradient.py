"""The gradient of an objective, traced: parameters, buffers, a batch in; loss, ELBO, gradients, new buffers out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.stateless import _reparametrize_module

from ppgen.engine.graphs.trace import Traced, trace


class Evaluation(NamedTuple):
    """What one evaluation of a `Gradient` gives."""

    loss: Tensor
    elbo: Tensor
    gradients: list[Tensor]  # one a parameter in `Gradient.trained`
    buffers: list[Tensor]  # the new value of each buffer in `Gradient.changed`


class Gradient:
    """∇ objective, as a graph for batches of one shape.

    Attributes:
        traced: the graph. Its inputs: `tensors()` of the module, the KL weight if any, the batch's tensors.
        trained: the parameters that the loss depends on.
        changed: the buffers that a step changes (batch norm's statistics).
        frozen: the module's other tensors, read only.
    """

    def __init__(
        self,
        objective: nn.Module,
        batch: Mapping[str, Any],
        *,
        warm_up: bool = False,
        precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ):
        """
        Args:
            objective: forward(batch, kl_weight) -> (loss, elbo), as `ppgen.inference.Objective`.
            batch: tensors of the shapes to come.
            warm_up: whether the KL weight is an input, and 1 otherwise.
            precision: what the objective runs under: torch.autocast for mixed precision.

        Raises:
            Untraceable: the program cannot be traced.
        """
        self.warm_up = warm_up
        self.columns = [k for k, v in batch.items() if isinstance(v, Tensor)]
        rest = {k: v for k, v in batch.items() if k not in self.columns}
        parameters = {n: p for n, p in objective.named_parameters() if p.requires_grad}
        others: dict[str, Tensor] = {n: p for n, p in objective.named_parameters() if not p.requires_grad}
        others |= dict(objective.named_buffers())
        names = list(parameters)
        used: list[bool] = []
        changed: list[str] = [k for k in _batch_norm_buffers(objective) if k in others]

        def run(*inputs: Tensor) -> list[Tensor]:
            n, m = len(names), len(names) + len(others)
            theta = {k: t.detach().requires_grad_() for k, t in zip(names, inputs[:n], strict=True)}
            fixed = dict(zip(others, inputs[n:m], strict=True))
            fixed |= {k: fixed[k].clone() for k in changed}
            before = {k: (t, t._version) for k, t in fixed.items()}
            columns = dict(zip(self.columns, inputs[m + warm_up :], strict=True))
            with _reparametrize_module(objective, {**theta, **fixed}, tie_weights=True):
                with precision():
                    loss, elbo = objective({**columns, **rest}, inputs[m] if warm_up else 1.0)
                after = {k: _get(objective, k) for k in fixed}
            new = [k for k, (t, version) in before.items() if after[k] is not t or t._version != version]
            changed.extend(k for k in new if k not in changed)
            gradients = torch.autograd.grad(loss, list(theta.values()), allow_unused=True)
            used[:] = [g is not None for g in gradients]
            return [
                loss.detach(),
                elbo,
                *(g for g in gradients if g is not None),
                *(after[k].detach() for k in changed),
            ]

        prepare: Any = getattr(objective, "prepare", None)
        if prepare is not None:
            with precision():
                prepare(batch)  # what the objective records itself, it records of real tensors
        inputs = [p.detach() for p in parameters.values()] + [t.detach() for t in others.values()]
        inputs += [torch.ones(())] * warm_up + [batch[k] for k in self.columns]
        self.traced: Traced = trace(run, inputs)
        if set(changed) - set(
            _batch_norm_buffers(objective)
        ):  # once more, so that the buffers themselves are left alone
            self.traced = trace(run, inputs)
        # Some modules keep what they last made (an autoguide its plates): something with a content, then.
        with (
            torch.enable_grad(),
            torch.random.fork_rng(devices=[]),
            _reparametrize_module(objective, {k: t.clone() for k, t in objective.named_buffers()}, tie_weights=True),
        ):
            objective(batch)
        self.parameters = list(parameters.values())
        self.trained = [p for p, u in zip(self.parameters, used, strict=True) if u]
        self.others = list(others.values())
        self.changed = [others[k] for k in changed]

    def inputs(self, batch: Mapping[str, Any], kl_weight: float = 1.0) -> list[Tensor]:
        """The graph's inputs as they are now, but for its constants."""
        kl = [torch.tensor(kl_weight)] if self.warm_up else []
        return [p.detach() for p in self.parameters] + self.others + kl + [batch[k] for k in self.columns]

    def outputs(self, out: Sequence[Tensor]) -> Evaluation:
        n = 2 + len(self.trained)
        return Evaluation(out[0], out[1], list(out[2:n]), list(out[n:]))

    def __call__(self, batch: Mapping[str, Any], kl_weight: float = 1.0) -> Evaluation:
        return self.outputs(self.traced(*self.inputs(batch, kl_weight)))


def shapes(batch: Mapping[str, Any]) -> tuple:
    """What a graph is specialised to: shapes of tensors, and constants themselves."""
    return tuple(
        (k, v.shape, v.stride(), v.dtype) if isinstance(v, Tensor) else (k, _Held(v)) for k, v in batch.items()
    )


class _Held:
    """A constant as part of a key: numbers and words by value, other objects by themselves."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        a, b = self.value, other.value if isinstance(other, _Held) else other
        return a is b or type(a) is type(b) and isinstance(a, bool | int | float | str) and a == b

    def __hash__(self) -> int:
        return hash(self.value) if isinstance(self.value, bool | int | float | str) else id(self.value)


def _batch_norm_buffers(module: nn.Module) -> list[str]:
    """Batch norm writes to its statistics behind autograd's back: their version tells nothing."""
    return [
        f"{name}.{buffer}" if name else buffer
        for name, m in module.named_modules()
        if isinstance(m, nn.modules.batchnorm._NormBase) and m.training
        for buffer, value in m.named_buffers(recurse=False)
        if value is not None
    ]


def _get(module: nn.Module, name: str) -> Tensor:
    path, _, leaf = name.rpartition(".")
    return getattr(module.get_submodule(path), leaf)
