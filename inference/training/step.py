"""Gradient steps, run as the engine says.

eager     the program is interpreted at every step
trace     its tensor operations, recorded once, are run: the same numbers, to the bit
compile   the whole step is one compiled graph, several steps a call: the same numbers, but for rounding
auto      eager at first; then trace, then compile, where the steps that are left earn the time back
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppgen.check import bad_number
from ppgen.engine import compile as compilation
from ppgen.engine.fused import FusedStep
from ppgen.engine.gradient import Evaluation, Gradient, shapes
from ppgen.engine.noise import python_randomness
from ppgen.engine.optimisers import functional
from ppgen.engine.trace import Untraceable
from ppgen.errors import PpgenError, nearest
from ppgen.inference.objective import Objective
from ppgen.inference.pyro_objective import PyroObjective
from ppgen.inference.training.optimise import averaged, ema_decay
from ppgen.terms import run

ENGINES = ("eager", "trace", "compile", "auto")
MAX_BAD_STEPS = 10  # so many losses in a row that are not finite end the fit
MAX_TRACES = 4  # shapes of a batch that are traced; further ones run eagerly
PROBES = 3  # steps that `auto` times before it decides
CALL_SECONDS = 0.1  # a call of several steps lasts no longer, so that a signal is heard

log = logging.getLogger("ppgen")


class _StepResult(NamedTuple):
    elbo: float  # nats over all rows
    grad_norm: float  # of the loss in nats a row, before clipping
    finite: bool  # False: nothing was changed


class Row(NamedTuple):
    """What differs from step to step, beside the batch."""

    lr: float
    kl_weight: float
    step: int  # 1 for the first


@dataclass
class Engines:
    """Which engine runs what. It is in a checkpoint, so that a resumed run computes each step as the unbroken one does.

    Attributes:
        asked: the engine, as `auto` has decided so far.
        runs: the engine of each shape of batch.
        seconds, eager_seconds, trace_next: what `auto` has timed, and whether its next step is traced.
    """

    asked: str
    runs: dict[str, str] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    eager_seconds: float = 0.0
    trace_next: bool = False

    def decided(self, engine: str) -> Engines:
        """What `auto` has come to; times are forgotten, which differ from run to run."""
        return Engines(engine, self.runs)


Run = Callable[[Sequence[Mapping[str, Tensor]], Sequence[Row]], list[_StepResult]]


class Step:
    """Moves the parameters once a row: step(batches, rows) -> one `_StepResult` a row.

    Attributes:
        chunk: how many rows a call should have.
        running: the engine that ran the last step.
    """

    def __init__(
        self,
        objective: Any,
        optimizer: Any,
        fabric: Any,
        *,
        engine: str = "auto",
        clip: float | None = None,
        warm_up: bool = False,
        ema: dict[str, Tensor] | None = None,
        ema_decay: float | None = None,
        steps: int = 0,
        engines: Mapping[str, Any] | None = None,
    ):
        """
        Args:
            objective, optimizer, fabric: as `Fabric.setup` gave them.
            engine: one of `ENGINES`.
            clip: largest norm of the gradient.
            warm_up: whether the KL weight of a row may differ from 1.
            ema: the averages of the program's state, by name; changed in place, by `ema_decay`.
            steps: how many there will be; `auto` weighs them.
            engines: those of the checkpoint that the fit goes on from.

        Raises:
            PpgenError: no such engine; `compile` without a C++ compiler.
        """
        if engine not in ENGINES:
            raise PpgenError(f"there is no engine {engine!r}{nearest(engine, ENGINES)}; they are {', '.join(ENGINES)}")
        if engine == "compile":
            compilation.require_compiler()
        self.wrapped, self.wrapped_optimizer, self.fabric = objective, optimizer, fabric
        self.objective: Objective = getattr(objective, "module", objective)
        self.optimizer: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
        self.parameters = [p for p in self.objective.parameters() if p.requires_grad]
        self.clip, self.warm_up, self.ema, self.decay, self.steps = clip, warm_up, ema, ema_decay, steps
        self._places = [(p, p.data) for p in self.parameters]
        self.engines, self.running, self.chunk = Engines(engine), "eager", 1
        if engines is not None:
            self.engines = Engines(**engines)
        self._runs: dict[tuple, Run] = {}
        self.layouts: dict[tuple[int, ...], Any] = {}  # of compiled steps, for batches of several shapes
        self.uncounted = False  # whether torch's optimiser has made steps that compiled ones have not counted
        why = self._unsupported()
        if why and engine in ("trace", "compile"):
            log.warning("engine %s: %s; steps run eagerly", engine, why)
        if why:
            self.engines.asked = "eager"

    def __call__(self, batches: Sequence[Mapping[str, Tensor]], rows: Sequence[Row]) -> list[_StepResult]:
        with _flushed():
            return self._steps(batches, rows)

    def _steps(self, batches: Sequence[Mapping[str, Tensor]], rows: Sequence[Row]) -> list[_StepResult]:
        results: list[_StepResult] = []
        while len(results) < len(rows):
            i = len(results)
            key = (shapes(batches[i]), self.objective.training)
            run = self._runs.get(key)
            if run is None or self.engines.asked == "auto":
                results += self._considered(key, batches[i], rows[i])
                continue
            j = i + 1
            while j < len(rows) and (batches[j] is batches[i] or shapes(batches[j]) == key[0]):
                j += 1
            results += run(batches[i:j], rows[i:j])
        return results

    # -- which engine ------------------------------------------------------------------------------

    def _unsupported(self) -> str | None:
        if self.fabric.device.type != "cpu":
            return f"device {self.fabric.device.type}"
        precision = str(getattr(self.fabric._precision, "precision", "32-true"))
        if precision not in ("32-true", "64-true", "bf16-mixed"):
            return f"precision {precision}"
        if isinstance(self.optimizer, torch.optim.LBFGS):
            return "LBFGS evaluates the loss as often as it likes"
        if not self.parameters:
            return "nothing is trained"
        return None

    def _considered(self, key: tuple, batch: Mapping[str, Tensor], row: Row) -> list[_StepResult]:
        """A step with no graph yet for it, or one that `auto` has under observation."""
        if key not in self._runs and _label(key) in self.engines.runs:
            self._again(key, batch, row)
        if self.engines.asked == "auto":
            return self._auto(key, batch, row)
        if key in self._runs:
            return self._runs[key]([batch], [row])
        if self.engines.asked == "eager":
            self._runs[key] = self._eager_steps
        elif len(self.engines.runs) >= MAX_TRACES:
            self._fall_back(key, f"batches of more than {MAX_TRACES} shapes; give rows one shape, or a batch_size")
        else:
            return [self._first(key, batch, row)]
        return self._runs[key]([batch], [row])

    def _use(self, key: tuple, engine: str, run: Run) -> None:
        """Runs batches of these shapes so from now on."""
        self._runs[key], self.running = run, engine
        if len(self.engines.runs) < MAX_TRACES:
            self.engines.runs[_label(key)] = engine

    def _first(self, key: tuple, batch: Mapping[str, Tensor], row: Row, *, compiled: bool | None = None) -> _StepResult:
        """Traces (and compiles); the step itself is run eagerly, and the graph must give the same gradient."""
        compiled = self.engines.asked == "compile" if compiled is None else compiled
        start = torch.get_rng_state()
        gradient = self._traced(key, batch)
        if gradient is None:
            return self._eager(batch, row)
        before = [t.detach().clone() for t in self._tensors()]
        result = self._eager(batch, row)
        if self._agrees(key, gradient, batch, row, result, before, start):
            self._run_graph(key, gradient, batch, compiled)
        return result

    def _again(self, key: tuple, batch: Mapping[str, Tensor], row: Row) -> None:
        """Traces (and compiles) what the checkpoint says was, and holds it against an eager gradient; makes no step."""
        engine = self.engines.runs[_label(key)]
        if engine == "eager":
            self._use(key, "eager", self._eager_steps)
            return
        start = torch.get_rng_state()
        gradient = self._traced(key, batch)
        if gradient is None:
            return
        before = [t.detach().clone() for t in self._tensors()]
        with python_randomness():
            _, result = self._gradients(batch, row.kl_weight)
        with torch.no_grad():
            _copy(self._tensors(), before)
        torch.set_rng_state(start)
        if self._agrees(key, gradient, batch, row, result, before, start):
            self._run_graph(key, gradient, batch, engine == "compile")

    def _traced(self, key: tuple, batch: Mapping[str, Tensor]) -> Gradient | None:
        """The gradient's graph; None, and eager steps, where there is none."""
        gradient, why = None, ""
        with python_randomness():
            try:
                precision = self.fabric._precision.forward_context
                gradient = Gradient(self.objective, batch, warm_up=self.warm_up, precision=precision)
            except Untraceable as e:
                why = str(e)
        if self._everywhere(gradient is not None):
            return gradient
        self._fall_back(key, f"it cannot be traced: {why or 'another process says why'}")
        return None

    def _agrees(
        self, key: tuple, gradient: Gradient, batch: Mapping[str, Tensor], row: Row, eager: _StepResult,
        before: list[Tensor], start: Tensor,
    ) -> bool:  # fmt: skip
        """Whether the graph gives the eager gradient, in every process; else steps are eager."""
        if len(self._tensors()) != len(before):
            self._fall_back(key, "a parameter appeared at this step")
            return False
        why = self._differs(gradient, batch, row, eager, before, start)
        if self._everywhere(why is None):
            return True
        self._fall_back(
            key,
            f"its trace gives {why or 'other numbers in another process'}: does the program draw from Python's or "
            "NumPy's random, or count its calls?",
        )
        return False

    def _run_graph(self, key: tuple, gradient: Gradient, batch: Mapping[str, Tensor], compiled: bool) -> None:
        if compiled:
            self._compile(key, gradient, batch)
        else:
            self._use(key, "trace", _TraceRun(self, gradient))
            self.chunk = 1

    def _differs(
        self,
        gradient: Gradient,
        batch: Mapping[str, Tensor],
        row: Row,
        eager: _StepResult,
        before: list[Tensor],
        start: Tensor,
    ) -> str | None:
        """Runs the graph from the random state and the parameters of the eager step; what it gave else, or None."""
        if not eager.finite:
            return None  # nothing to compare; the next shape, or the end of the fit, is near
        now = [t.detach().clone() for t in self._tensors()]
        grads = [p.grad for p in gradient.trained]
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            _copy(self._tensors(), before)
            torch.set_rng_state(start)
            value = self._shared(gradient(batch, row.kl_weight))
            (elbo, norm, _), ours = self._measured(value.loss, value.elbo, value.gradients)
            _copy(self._tensors(), now)
        if not _near(elbo, eager.elbo):
            return f"another ELBO, {elbo:.6g} against {eager.elbo:.6g}"
        if not _near(norm, eager.grad_norm):
            return f"another gradient, of norm {norm:.6g} against {eager.grad_norm:.6g}"
        for p, g, own in zip(gradient.trained, grads, ours, strict=True):
            if g is None or (g - own).abs().max() > 1e-3 * max(float(g.abs().max()), 1e-6 * eager.grad_norm):
                name = next(n for n, q in self.objective.named_parameters() if q is p)
                return f"another gradient of {name.removeprefix('program.')}"
        return None

    def _compile(self, key: tuple, gradient: Gradient, batch: Mapping[str, Tensor]) -> None:
        started = time.perf_counter()
        try:
            if functional(self.optimizer) is None or self.fabric.world_size > 1:
                self._use(key, "compile", _TraceRun(self, gradient, _compiled(gradient, batch)))
                self.chunk = 1
            else:
                self._use(key, "compile", _FusedRun(self, gradient, batch))
            log.info("compiled %s operations in %.1f s", len(gradient.traced), time.perf_counter() - started)
        except Exception as e:  # Inductor has many ways to fail, and none is worth a fit
            reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
            log.warning("engine compile: %s; steps run as engine trace", reason)
            self.release()
            self._use(key, "trace", _TraceRun(self, gradient))
            self.chunk = 1

    def release(self) -> None:
        """Puts parameters back where they were: a compiled step gathers small ones into one vector."""
        for p, place in self._places:
            if p.data_ptr() != place.data_ptr():
                p.data = place.copy_(p.data)

    def _fall_back(self, key: tuple, why: str) -> None:
        log.warning("engine %s: %s runs eagerly, for %s", self.engines.asked, self.objective.program.name, why)
        self._use(key, "eager", self._eager_steps)
        self.chunk = 1
        if self.engines.asked == "auto":
            self.engines = self.engines.decided("eager")

    # -- auto --------------------------------------------------------------------------------------

    def _auto(self, key: tuple, batch: Mapping[str, Tensor], row: Row) -> list[_StepResult]:
        """One step; and once enough are timed, the decision.

        Tracing is worth its seconds where Pyro's share of the steps to come exceeds them; compiling, where
        what the graph's operations cost beyond their work does. Nothing is staked but what tracing has saved, and 5%.
        """
        left = self.steps - row.step
        run = self._runs.get(key)
        if run is None and self.engines.trace_next:
            self.engines.seconds = []
            return [self._first(key, batch, row, compiled=False)]
        started = time.perf_counter()
        results = (run or self._eager_steps)([batch], [row])
        self.engines.seconds.append(time.perf_counter() - started)
        if len(self.engines.seconds) <= PROBES:
            return results
        took = self.fabric.broadcast(min(self.engines.seconds[1:]))  # all processes decide alike
        self.engines.seconds = []
        if run is None:
            self.engines.eager_seconds = took
            if not _worth_tracing(took, left, len(self.objective.structure.sites)):
                self.engines = self.engines.decided("eager")
                return results
            self.engines.trace_next = True
        elif isinstance(run, _TraceRun):
            if took > self.engines.eager_seconds:
                self._use(key, "eager", self._eager_steps)
                self.engines = self.engines.decided("eager")
            elif not _worth_compiling(self.engines.eager_seconds, took, left, len(run.gradient.traced)):
                self.engines = self.engines.decided("trace")
            elif compilation.compiler() is None:
                _say_no_compiler()
                self.engines = self.engines.decided("trace")
            else:
                self.engines = self.engines.decided("compile")
                self._compile(key, run.gradient, batch)
        return results

    # -- eager -------------------------------------------------------------------------------------

    def _eager_steps(self, batches: Sequence[Mapping[str, Tensor]], rows: Sequence[Row]) -> list[_StepResult]:
        return [self._eager(b, r) for b, r in zip(batches, rows, strict=True)]

    def _gradients(self, batch: Mapping[str, Tensor], kl_weight: float) -> tuple[Tensor, _StepResult]:
        self.wrapped_optimizer.zero_grad()
        with self.objective.program.growing():
            loss, elbo = self.wrapped(batch, kl_weight)
        self._adopt()
        if loss.requires_grad:
            self.fabric.backward(loss)
        if self.fabric.world_size > 1:  # the gradients are averaged by DDP: so is what is said of them
            loss, elbo = self.fabric.all_reduce(torch.stack([loss.detach(), elbo.detach()]), reduce_op="mean")
        trained = [p for p in self.parameters if p.grad is not None]
        result, gradients = self._measured(loss.detach(), elbo, [p.grad for p in trained if p.grad is not None])
        for p, g in zip(trained, gradients, strict=True):
            p.grad = g
        return loss, result

    def _adopt(self) -> None:
        """Trains the parameters that appeared in this step, too."""
        trained = [p for p in self.objective.parameters() if p.requires_grad]
        if len(trained) != len(self.parameters):
            own = set(map(id, self.parameters))
            self._places += [(p, p.data) for p in trained if id(p) not in own]
            self.parameters = trained
            self.optimizer.param_groups[0]["params"] = list(trained)  # in the order that a resumed fit has

    def _measured(self, loss: Tensor, elbo: Tensor, gradients: list[Tensor]) -> tuple[_StepResult, list[Tensor]]:
        """What is said of a step, and its gradients, clipped; one wait for the device."""
        norms = torch._foreach_norm(gradients) if gradients else ()
        loss_, elbo_, *parts = torch.stack([t.to(elbo.dtype) for t in (loss, elbo, *norms)]).tolist()
        norm = math.hypot(*parts)
        finite = math.isfinite(loss_) and math.isfinite(norm)
        if self.clip is not None and norm > self.clip and finite:
            gradients = list(torch._foreach_mul(gradients, self.clip / (norm + 1e-6)))
        return _StepResult(elbo_, norm, finite), gradients

    def _eager(self, batch: Mapping[str, Tensor], row: Row) -> _StepResult:
        self._set_lr(row.lr)
        buffers = {n: b.clone() for n, b in self.objective.named_buffers()}
        _, result = self._gradients(batch, row.kl_weight)
        if result.finite:
            if isinstance(self.optimizer, torch.optim.LBFGS):
                self.wrapped_optimizer.step(lambda: self._gradients(batch, row.kl_weight)[0])
            else:
                self.wrapped_optimizer.step()
            self.uncounted = True
            self._average(row)
        else:
            with torch.no_grad():
                for name, buffer in self.objective.named_buffers():
                    buffer.copy_(buffers[name])
        return result

    def _shared(self, value: Evaluation) -> Evaluation:
        """Loss, ELBO and gradients averaged over the processes, in one exchange."""
        if self.fabric.world_size == 1:
            return value
        own = [value.loss, value.elbo, *value.gradients]
        mean = self.fabric.all_reduce(torch.cat([t.reshape(-1) for t in own]), reduce_op="mean")
        parts = [m.view(t.shape).to(t.dtype) for m, t in zip(mean.split([t.numel() for t in own]), own, strict=True)]
        return value._replace(loss=parts[0], elbo=parts[1], gradients=parts[2:])

    def _everywhere(self, holds: bool) -> bool:
        """Whether it holds in every process: they go on alike, or they would wait for each other for ever."""
        if self.fabric.world_size == 1:
            return holds
        return bool(self.fabric.all_reduce(torch.tensor(float(holds)), reduce_op="mean") == 1.0)

    def _set_lr(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def _average(self, row: Row) -> None:
        if self.ema is not None and self.decay is not None:
            averaged(self.ema, self.objective.program.state_dict(), self.decay, row.step)

    def _tensors(self) -> list[Tensor]:
        return [*self.objective.parameters(), *self.objective.buffers()]


_SUBNORMAL, _ONE = np.float32(1e-40), np.float32(1.0)


@contextmanager
def _flushed() -> Iterator[None]:
    """Numbers below 1e-38 count as 0. Adam's averages get there where a gradient vanishes (a ReLU that is never on),
    and arithmetic on them takes the processor a hundred times as long: up to half of a step."""
    before = bool(_SUBNORMAL * _ONE == 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def make_step(objective: Any, optimizer: Any, fabric: Any, **options: Any) -> Step:
    """The step of a fit: see `Step`."""
    return Step(objective, optimizer, fabric, **options)


class _TraceRun:
    """The gradient from the graph (as it is, or compiled), the update by torch's optimiser."""

    def __init__(self, step: Step, gradient: Gradient, run: Callable[..., Any] | None = None):
        self.step, self.gradient = step, gradient
        self._run = run or gradient.traced

    def __call__(self, batches: Sequence[Mapping[str, Tensor]], rows: Sequence[Row]) -> list[_StepResult]:
        return [self._one(b, r) for b, r in zip(batches, rows, strict=True)]

    def _one(self, batch: Mapping[str, Tensor], row: Row) -> _StepResult:
        step, gradient = self.step, self.gradient
        value = step._shared(gradient.outputs(self._run(*gradient.inputs(batch, row.kl_weight))))
        result, gradients = step._measured(value.loss, value.elbo, value.gradients)
        if result.finite:
            step._set_lr(row.lr)
            for p, g in zip(gradient.trained, gradients, strict=True):
                p.grad = g
            step.optimizer.step()
            step.uncounted = True
            if gradient.changed:
                with torch.no_grad():
                    _copy(gradient.changed, value.buffers)
            step._average(row)
        return result


def _compiled(gradient: Gradient, batch: Mapping[str, Tensor]) -> Callable[..., Any]:
    """The gradient's graph, compiled: for the optimisers that have no functional form."""
    constants = gradient.traced.constants
    run = compilation.compiled(gradient.traced.graph, [*gradient.inputs(batch), *constants])
    return lambda *inputs: run([*inputs, *constants])


class _FusedRun:
    """The whole step compiled."""

    def __init__(self, step: Step, gradient: Gradient, batch: Mapping[str, Tensor]):
        self.step = step
        averages = None
        if step.ema is not None:
            names = {
                id(p): n.removeprefix("program.") for n, p in step.objective.named_parameters(remove_duplicate=False)
            }
            averages = [step.ema[names[id(p)]] for p in gradient.parameters]
        self.fused = FusedStep(gradient, step.optimizer, clip=step.clip, averages=averages, layouts=step.layouts)
        self.fused.build(batch)
        step.chunk = self.fused.chunk if not self._buffers() else 1

    def _buffers(self) -> bool:
        """Whether averages of buffers are to be kept, which the graph leaves to the loop."""
        return self.step.ema is not None and bool(self.fused.gradient.changed)

    def __call__(self, batches: Sequence[Mapping[str, Tensor]], rows: Sequence[Row]) -> list[_StepResult]:
        step = self.step
        decay = step.decay
        table = [(r.lr, r.kl_weight, ema_decay(decay, r.step) if decay else 1.0) for r in rows]
        started = time.perf_counter()
        if step.uncounted and not self.fused.layout.stale:
            self.fused.layout.count()
        step.uncounted = False
        results = [_StepResult(e, n, f == 1.0) for e, n, f in self.fused(batches, table)]
        seconds = (time.perf_counter() - started) / len(rows)
        if self._buffers() and results[-1].finite:
            own = {id(p) for p in step.objective.program.parameters()}
            buffers = {n: t for n, t in step.objective.program.state_dict(keep_vars=True).items() if id(t) not in own}
            averaged({n: step.ema[n] for n in buffers}, buffers, decay, rows[-1].step)  # type: ignore[index, arg-type]
        elif step.chunk > 1:
            step.chunk = max(1, min(self.fused.chunk, int(CALL_SECONDS / seconds)))
        return results


def _label(key: tuple) -> str:
    """A key of `Step` as a checkpoint has it.

    >>> _label(((("x", torch.Size([8, 2]), (2, 1), torch.float32),), True))
    'x (8, 2) (2, 1) torch.float32'
    """
    columns, training = key
    words = [f"{c[0]} {tuple(c[1])} {c[2]} {c[3]}" if len(c) == 4 else c[0] for c in columns]  # constants by name
    return "; ".join(words) + ("" if training else "; eval")


def _copy(to: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for a, b in zip(to, values, strict=True):
        a.detach().copy_(b)


def _near(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-3 * max(abs(a), abs(b)) + 1e-6


def _worth_tracing(eager: float, left: int, sites: int) -> bool:
    """Pyro's share of a step is about 0.2 ms a site, and at most half of it; tracing costs a second and some steps."""
    share = min(2e-4 * sites, 0.5 * eager)
    return left * share > 2 * (1.5 + 20 * eager)


def _worth_compiling(eager: float, traced: float, left: int, operations: int) -> bool:
    """An operation of a graph costs about 1.5 µs beside its work; what tracing has saved may be staked."""
    if operations > compilation.TOO_LARGE:
        return False
    cost = compilation.estimated_seconds(operations)
    gain = min(1.5e-6 * operations, 0.9 * traced)
    return left * gain > 1.5 * cost and cost < left * (eager - traced + 0.05 * eager)


_SAID: set[str] = set()


def _say_no_compiler() -> None:
    if "compiler" not in _SAID:
        _SAID.add("compiler")
        log.warning("engine auto: there is no C++ compiler to compile with (g++), so that steps run as engine trace")


def bad_site(objective: Objective | PyroObjective, batch: Mapping[str, Tensor], random_state: Tensor) -> str:
    """Which site's log-probability is not finite: the step is run again from its random state."""
    parameters = {n: p for n, p in objective.program.named_parameters() if not torch.isfinite(p).all()}
    if parameters:
        return f"the parameter {next(iter(parameters))!r} is not finite"
    with torch.random.fork_rng(), torch.no_grad():
        torch.set_rng_state(random_state)
        try:
            t = run(objective.program, batch)
        except Exception as e:
            return f"{type(e).__name__}: {str(e).splitlines()[0]}"
        for part_trace, part in ((t.q, "guide"), (t.p, "model")):
            for name, site in part_trace.nodes.items():
                if site["type"] != "sample":
                    continue
                if site["value"].is_floating_point() and not torch.isfinite(site["value"]).all():
                    return f"the value of the site {name!r} of the {part} went bad"
                bad = bad_number(site["fn"].log_prob(site["value"]))
                if bad:
                    return f"log_prob at the site {name!r} of the {part} is {bad}"
    return "every site is finite, and a gradient is not"
