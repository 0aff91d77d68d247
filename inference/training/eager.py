"""A gradient step, the program interpreted at each: what the other engines are held against."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppgen.engine.graphs.gradient import Evaluation
from ppgen.engine.graphs.without_dynamo import take_step
from ppgen.inference.objective import Objective
from ppgen.inference.training.optimise import averaged


class StepResult(NamedTuple):
    elbo: float  # nats over all rows
    grad_norm: float  # of the loss in nats a row, before clipping
    finite: bool  # False: nothing was changed


class Row(NamedTuple):
    """What differs from step to step, beside the batch."""

    lr: float
    kl_weight: float
    step: int  # 1 for the first


Run = Callable[[Sequence[Mapping[str, Tensor]], Sequence[Row]], list[StepResult]]


class EagerStep:
    """Moves the parameters once a row, and says how.

    Attributes:
        chunk: how many rows a call should have.
        layouts: of compiled steps, for batches of several shapes.
        uncounted: whether torch's optimiser has made steps that compiled ones have not counted.
    """

    def __init__(
        self, objective: Any, optimizer: Any, fabric: Any, *, clip: float | None = None,
        ema: dict[str, Tensor] | None = None, ema_decay: float | None = None,
    ):  # fmt: skip
        """
        Args:
            objective, optimizer, fabric: as `Fabric.setup` gave them.
            clip: largest norm of the gradient.
            ema: the averages of the program's state, by name; changed in place, by `ema_decay`.
        """
        self.wrapped, self.wrapped_optimizer, self.fabric = objective, optimizer, fabric
        self.objective: Objective = getattr(objective, "module", objective)
        self.optimizer: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
        self.parameters = [p for p in self.objective.parameters() if p.requires_grad]
        self.clip, self.ema, self.decay = clip, ema, ema_decay
        self.places = [(p, p.data) for p in self.parameters]
        self.layouts: dict[tuple[int, ...], Any] = {}
        self.uncounted, self.chunk = False, 1

    def eager_steps(self, batches: Sequence[Mapping[str, Tensor]], rows: Sequence[Row]) -> list[StepResult]:
        return [self.eager(b, r) for b, r in zip(batches, rows, strict=True)]

    def eager(self, batch: Mapping[str, Tensor], row: Row) -> StepResult:
        self.set_lr(row.lr)
        buffers = {n: b.clone() for n, b in self.objective.named_buffers()}
        _, result = self.gradients(batch, row.kl_weight)
        if result.finite:
            if isinstance(self.optimizer, torch.optim.LBFGS):
                self.wrapped_optimizer.step(lambda: self.gradients(batch, row.kl_weight)[0])
            else:
                take_step(self.wrapped_optimizer)
            self.uncounted = True
            self.average(row)
        else:
            with torch.no_grad():
                for name, buffer in self.objective.named_buffers():
                    buffer.copy_(buffers[name])
        return result

    def gradients(self, batch: Mapping[str, Tensor], kl_weight: float) -> tuple[Tensor, StepResult]:
        self.wrapped_optimizer.zero_grad()
        with self.objective.program.growing():
            loss, elbo = self.wrapped(batch, kl_weight)
        self._adopt()
        if loss.requires_grad:
            self.fabric.backward(loss)
        if self.fabric.world_size > 1:  # the gradients are averaged by DDP: so is what is said of them
            loss, elbo = self.fabric.all_reduce(torch.stack([loss.detach(), elbo.detach()]), reduce_op="mean")
        trained = [p for p in self.parameters if p.grad is not None]
        result, gradients = self.measured(loss.detach(), elbo, [p.grad for p in trained if p.grad is not None])
        for p, g in zip(trained, gradients, strict=True):
            p.grad = g
        return loss, result

    def _adopt(self) -> None:
        """Trains the parameters that appeared in this step, too."""
        trained = [p for p in self.objective.parameters() if p.requires_grad]
        if len(trained) != len(self.parameters):
            own = set(map(id, self.parameters))
            self.places += [(p, p.data) for p in trained if id(p) not in own]
            self.parameters = trained
            self.optimizer.param_groups[0]["params"] = list(trained)  # in the order that a resumed fit has

    def measured(self, loss: Tensor, elbo: Tensor, gradients: list[Tensor]) -> tuple[StepResult, list[Tensor]]:
        """What is said of a step, and its gradients, clipped; one wait for the device."""
        norms = torch._foreach_norm(gradients) if gradients else ()
        loss_, elbo_, *parts = torch.stack([t.to(elbo.dtype) for t in (loss, elbo, *norms)]).tolist()
        norm = math.hypot(*parts)
        finite = math.isfinite(loss_) and math.isfinite(norm)
        if self.clip is not None and norm > self.clip and finite:
            gradients = list(torch._foreach_mul(gradients, self.clip / (norm + 1e-6)))
        return StepResult(elbo_, norm, finite), gradients

    def shared(self, value: Evaluation) -> Evaluation:
        """Loss, ELBO and gradients averaged over the processes, in one exchange."""
        if self.fabric.world_size == 1:
            return value
        own = [value.loss, value.elbo, *value.gradients]
        mean = self.fabric.all_reduce(torch.cat([t.reshape(-1) for t in own]), reduce_op="mean")
        parts = [m.view(t.shape).to(t.dtype) for m, t in zip(mean.split([t.numel() for t in own]), own, strict=True)]
        return value._replace(loss=parts[0], elbo=parts[1], gradients=parts[2:])

    def everywhere(self, holds: bool) -> bool:
        """Whether it holds in every process: they go on alike, or they would wait for each other for ever."""
        if self.fabric.world_size == 1:
            return holds
        return bool(self.fabric.all_reduce(torch.tensor(float(holds)), reduce_op="mean") == 1.0)

    def set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def average(self, row: Row) -> None:
        if self.ema is not None and self.decay is not None:
            averaged(self.ema, self.objective.program.state_dict(), self.decay, row.step)

    def tensors(self) -> list[Tensor]:
        return [*self.objective.parameters(), *self.objective.buffers()]

    def release(self) -> None:
        """Puts parameters back where they were: a compiled step gathers small ones into one vector."""
        for p, place in self.places:
            if p.data_ptr() != place.data_ptr():
                p.data = place.copy_(p.data)


_SUBNORMAL, _ONE = np.float32(1e-40), np.float32(1.0)


@contextmanager
def flushed() -> Iterator[None]:
    """Numbers below 1e-38 count as 0. Adam's averages get there where a gradient vanishes (a ReLU that is never on),
    and arithmetic on them takes the processor a hundred times as long: up to half of a step."""
    before = bool(_SUBNORMAL * _ONE == 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
