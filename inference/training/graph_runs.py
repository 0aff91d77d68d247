"""Steps that are run by a graph: the gradient's, and torch's optimiser; or the whole step, compiled."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ppgen.engine.compiling.compile import code_key, compiled
from ppgen.engine.compiling.fused import FusedStep
from ppgen.engine.compiling.optimisers import functional
from ppgen.engine.graphs.gradient import Gradient
from ppgen.engine.graphs.without_dynamo import take_step
from ppgen.inference.training.eager import EagerStep, Row, Run, StepResult
from ppgen.inference.training.optimise import averaged, ema_decay

CALL_SECONDS = 0.1  # a call of several steps lasts no longer, so that a signal is heard


class TraceRun:
    """The gradient from the graph (as it is, interpreted, or compiled), the update by torch's optimiser."""

    def __init__(self, step: EagerStep, gradient: Gradient, run: Callable[..., Any] | None = None):
        self.step, self.gradient = step, gradient
        self._run = run or gradient.traced

    def __call__(self, batches: Sequence[Mapping[str, Tensor]], rows: Sequence[Row]) -> list[StepResult]:
        return [self._one(b, r) for b, r in zip(batches, rows, strict=True)]

    def _one(self, batch: Mapping[str, Tensor], row: Row) -> StepResult:
        step, gradient = self.step, self.gradient
        value = step.shared(gradient.outputs(self._run(*gradient.inputs(batch, row.kl_weight))))
        result, gradients = step.measured(value.loss, value.elbo, value.gradients)
        if result.finite:
            step.set_lr(row.lr)
            for p, g in zip(gradient.trained, gradients, strict=True):
                p.grad = g
            take_step(step.optimizer)
            step.uncounted = True
            with torch.no_grad():
                for buffer, new in zip(gradient.changed, value.buffers, strict=True):
                    buffer.detach().copy_(new)
            step.average(row)
        return result


class FusedRun:
    """The whole step compiled."""

    def __init__(self, step: EagerStep, fused: FusedStep):
        self.step, self.fused = step, fused
        self.chunk = fused.chunk if not self._buffers() else 1

    def _buffers(self) -> bool:
        """Whether averages of buffers are to be kept, which the graph leaves to the loop."""
        return self.step.ema is not None and bool(self.fused.gradient.changed)

    def __call__(self, batches: Sequence[Mapping[str, Tensor]], rows: Sequence[Row]) -> list[StepResult]:
        step = self.step
        decay = step.decay
        table = [(r.lr, r.kl_weight, ema_decay(decay, r.step) if decay else 1.0) for r in rows]
        started = time.perf_counter()
        if step.uncounted and not self.fused.layout.stale:
            self.fused.layout.count()
        step.uncounted = False
        results = [StepResult(e, n, f == 1.0) for e, n, f in self.fused(batches, table)]
        seconds = (time.perf_counter() - started) / len(rows)
        if self._buffers() and results[-1].finite:
            own = {id(p) for p in step.objective.program.parameters()}
            buffers = {n: t for n, t in step.objective.program.state_dict(keep_vars=True).items() if id(t) not in own}
            averaged({n: step.ema[n] for n in buffers}, buffers, decay, rows[-1].step)  # type: ignore[index, arg-type]
        elif step.chunk > 1:
            step.chunk = max(1, min(self.fused.chunk, int(CALL_SECONDS / seconds)))
        return results


class Code:
    """What there is to compile for steps on batches of one shape: the whole step, where its optimiser can be part of it
    and no other process has to be heard; else the gradient.

    Attributes:
        graph, inputs: for `compiled`.
        key: what the code is kept under.

    Raises:
        Untraceable: a step that is no graph.
    """

    def __init__(self, step: EagerStep, gradient: Gradient, batch: Mapping[str, Tensor]):
        self._step, self._gradient, self._fused = step, gradient, None
        if functional(step.optimizer) is None or step.fabric.world_size > 1:
            self.graph = gradient.traced.graph
            self.inputs = [*gradient.inputs(batch), *gradient.traced.constants]
        else:
            averages = None
            if step.ema is not None:
                names = {
                    id(p): n.removeprefix("program.")
                    for n, p in step.objective.named_parameters(remove_duplicate=False)
                }
                averages = [step.ema[names[id(p)]] for p in gradient.parameters]
            self._fused = FusedStep(gradient, step.optimizer, clip=step.clip, averages=averages, layouts=step.layouts)
            self.graph, self.inputs = self._fused.record(batch)
        self.key = code_key(self.graph, self.inputs)

    def compile(self) -> Run:
        """The steps, by code that is there or is made now.

        Raises:
            Untraceable: compiled, it gives other numbers than its graph.
        """
        run = compiled(self.graph, self.inputs, self.key)
        if self._fused is not None:
            return FusedRun(self._step, self._fused.run_by(run))
        constants = self._gradient.traced.constants
        return TraceRun(self._step, self._gradient, lambda *inputs: run([*inputs, *constants]))
