"""Gradient steps, run as the engine says.

eager     the program is interpreted at every step
trace     its tensor operations, recorded once, are run: the same numbers, to the bit
compile   the whole step is one compiled graph, several steps a call: the same numbers, but for rounding
auto      trace from the first step on; compile as soon as the code is there: from an earlier run, or made in the
          background meanwhile, where the steps that are left are worth it; until then, and where a graph is too large
          to be compiled, `interpret` where that pays: the same numbers as trace, but for rounding
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from subprocess import Popen
from typing import Any

import torch
from torch import Tensor

from ppgen.check import bad_number
from ppgen.engine.compiling import background, native
from ppgen.engine.compiling import compile as compilation
from ppgen.engine.compiling.tiers import by_interpreter
from ppgen.engine.graphs.gradient import Gradient, shapes
from ppgen.engine.graphs.noise import python_randomness
from ppgen.engine.graphs.trace import Untraceable
from ppgen.errors import first_line, require_known
from ppgen.inference.objective import Objective
from ppgen.inference.pyro_objective import PyroObjective
from ppgen.inference.training.eager import EagerStep, Row, Run, StepResult, flushed
from ppgen.inference.training.graph_runs import Code, FusedRun, TraceRun
from ppgen.terms import run

ENGINES = ("eager", "trace", "compile", "auto")
MAX_BAD_STEPS = 10  # so many losses in a row that are not finite end the fit
MAX_TRACES = 4  # shapes of a batch that are traced; further ones run eagerly
WORTH_TRACING = 100  # steps: tracing takes about as long as 60 eager ones, and saves the better half of each
MANY = 1000  # operations, below which no step is interpreted: what a clock says of so few is not the same twice
PROBES = 3  # traced steps that `auto` times
LOOK_SECONDS, BACKGROUND_SECONDS = 0.1, 1.5  # to be gained by compiled code: to look for it, to have it made
POLL_SECONDS = 0.25  # between two looks at whether the code is there

log = logging.getLogger("ppgen")


@dataclass
class Engines:
    """Which engine runs what. It is in a checkpoint, so that a resumed run computes each step as the unbroken one does.

    Attributes:
        asked: the engine; eager where no other is possible.
        runs: the engine of each shape of batch.
        settled: the shapes for which `auto` looks for no other.
    """

    asked: str
    runs: dict[str, str] = field(default_factory=dict)
    settled: list[str] = field(default_factory=list)


@dataclass
class _Trial:
    """What `auto` knows of steps that are traced, and may be compiled: their seconds, and the code that is made."""

    gradient: Gradient
    seconds: list[float] = field(default_factory=list)
    weighed: bool = False  # whether the interpreter was
    code: Code | None = None
    child: Popen | None = None
    asked_at: float = 0.0


class Step(EagerStep):
    """Moves the parameters once a row: step(batches, rows) -> one `StepResult` a row.

    Attributes:
        running: the engine that ran the last step.
    """

    def __init__(
        self, objective: Any, optimizer: Any, fabric: Any, *, engine: str = "auto", warm_up: bool = False,
        steps: int = 0, engines: Mapping[str, Any] | None = None, **options: Any,
    ):  # fmt: skip
        """
        Args:
            objective, optimizer, fabric, options: see `EagerStep`.
            engine: one of `ENGINES`.
            warm_up: whether the KL weight of a row may differ from 1.
            steps: how many there will be; `auto` weighs them.
            engines: those of the checkpoint that the fit goes on from.

        Raises:
            PpgenError: no such engine; `compile` without a C++ compiler.
        """
        require_known("engine", engine, ENGINES)
        if engine == "compile":
            compilation.require_compiler()
        super().__init__(objective, optimizer, fabric, **options)
        self.warm_up, self.steps = warm_up, steps
        self.engines, self.running = Engines(engine), "eager"
        if engines is not None:
            self.engines = Engines(**engines)
        self._runs: dict[tuple, Run] = {}
        self._trials: dict[tuple, _Trial] = {}
        why = self._unsupported()
        if why and engine in ("trace", "compile"):
            log.warning("engine %s: %s; steps run eagerly", engine, why)
        if why:
            self.engines.asked = "eager"

    def __call__(self, batches: Sequence[Mapping[str, Tensor]], rows: Sequence[Row]) -> list[StepResult]:
        with flushed():
            return self._steps(batches, rows)

    def _steps(self, batches: Sequence[Mapping[str, Tensor]], rows: Sequence[Row]) -> list[StepResult]:
        results: list[StepResult] = []
        while len(results) < len(rows):
            i = len(results)
            key = (shapes(batches[i]), self.objective.training)
            run = self._runs.get(key)
            if run is None or key in self._trials:
                results += self._considered(key, batches[i], rows[i])
                continue
            j = i + 1
            while j < len(rows) and (batches[j] is batches[i] or shapes(batches[j]) == key[0]):
                j += 1
            results += run(batches[i:j], rows[i:j])
        return results

    # -- which engine ------------------------------------------------------------------------------

    @property
    def precision(self) -> str:
        return str(getattr(self.fabric._precision, "precision", "32-true"))

    def _unsupported(self) -> str | None:
        if self.fabric.device.type != "cpu":
            return f"device {self.fabric.device.type}"
        if self.precision not in ("32-true", "64-true", "bf16-mixed"):
            return f"precision {self.precision}"
        if isinstance(self.optimizer, torch.optim.LBFGS):
            return "LBFGS evaluates the loss as often as it likes"
        if not self.parameters:
            return "nothing is trained"
        return None

    def _considered(self, key: tuple, batch: Mapping[str, Tensor], row: Row) -> list[StepResult]:
        """A step with no graph yet for it, or one that `auto` has under observation."""
        auto = self.engines.asked == "auto"
        if key not in self._runs and _label(key) in self.engines.runs:
            self._again(key, batch, row)
        elif key not in self._runs and auto and self.steps - row.step < WORTH_TRACING:
            log.debug("engine auto: eager steps, as a trace pays off from %d steps on", WORTH_TRACING)
            self._use(key, "eager", self.eager_steps)
        if key in self._trials:
            return self._watched(key, batch, row)
        if key in self._runs:
            return self._runs[key]([batch], [row])
        if self.engines.asked == "eager":
            self._runs[key] = self.eager_steps
        elif len(self.engines.runs) >= MAX_TRACES:
            self._fall_back(key, f"batches of more than {MAX_TRACES} shapes; give rows one shape, or a batch_size")
        else:
            return [self._first(key, batch, row)]
        return self._runs[key]([batch], [row])

    def _use(self, key: tuple, engine: str, run: Run) -> None:
        """Runs batches of these shapes so from now on."""
        self._runs[key], self.running = run, engine
        self.chunk = run.chunk if isinstance(run, FusedRun) else 1
        if len(self.engines.runs) < MAX_TRACES or _label(key) in self.engines.runs:
            self.engines.runs[_label(key)] = engine

    def _first(self, key: tuple, batch: Mapping[str, Tensor], row: Row) -> StepResult:
        """Traces (and compiles); the step itself is run eagerly, and the graph must give the same gradient."""
        start = torch.get_rng_state()
        gradient = self._traced(key, batch)
        if gradient is None:
            return self.eager(batch, row)
        before = [t.detach().clone() for t in self.tensors()]
        result = self.eager(batch, row)
        if self._agrees(key, gradient, batch, row, result, before, start):
            self._run_graph(key, gradient, batch, self.engines.asked)
        return result

    def _again(self, key: tuple, batch: Mapping[str, Tensor], row: Row) -> None:
        """Traces (and compiles) what the checkpoint says was, and holds it against an eager gradient; makes no step."""
        engine = self.engines.runs[_label(key)]
        if engine == "eager":
            self._use(key, "eager", self.eager_steps)
            return
        start = torch.get_rng_state()
        gradient = self._traced(key, batch)
        if gradient is None:
            return
        before = [t.detach().clone() for t in self.tensors()]
        with python_randomness():
            _, result = self.gradients(batch, row.kl_weight)
        with torch.no_grad():
            _copy(self.tensors(), before)
        torch.set_rng_state(start)
        if self._agrees(key, gradient, batch, row, result, before, start):
            self._run_graph(key, gradient, batch, engine)

    def _traced(self, key: tuple, batch: Mapping[str, Tensor]) -> Gradient | None:
        """The gradient's graph; None, and eager steps, where there is none."""
        gradient, why, started = None, "", time.thread_time()
        with python_randomness():
            try:
                precision = self.fabric._precision.forward_context
                gradient = Gradient(self.objective, batch, warm_up=self.warm_up, precision=precision)
            except Untraceable as e:
                why = str(e)
        if self.everywhere(gradient is not None):
            if gradient is not None:
                asked, seconds = self.engines.asked, time.thread_time() - started
                log.debug("engine %s: traced %d operations in %.2f s", asked, len(gradient.traced), seconds)
            return gradient
        self._fall_back(key, f"it cannot be traced: {why or 'another process says why'}")
        return None

    def _agrees(
        self, key: tuple, gradient: Gradient, batch: Mapping[str, Tensor], row: Row, eager: StepResult,
        before: list[Tensor], start: Tensor,
    ) -> bool:  # fmt: skip
        """Whether the graph gives the eager gradient, in every process; else steps are eager."""
        if len(self.tensors()) != len(before):
            self._fall_back(key, "a parameter appeared at this step")
            return False
        why = self._differs(gradient, batch, row, eager, before, start)
        if self.everywhere(why is None):
            return True
        self._fall_back(
            key,
            f"its trace gives {why or 'other numbers in another process'}: does the program draw from Python's or "
            "NumPy's random, or count its calls?",
        )
        return False

    def _run_graph(self, key: tuple, gradient: Gradient, batch: Mapping[str, Tensor], engine: str) -> None:
        if engine == "compile":
            self._compile(key, gradient, batch)
            return
        self._use(key, "trace", TraceRun(self, gradient))
        if engine == "interpret":
            self._interpret(key, gradient, batch)
        if self.engines.asked == "auto" and _label(key) not in self.engines.settled:
            self._trials[key] = _Trial(gradient, weighed=engine == "interpret")

    def _differs(
        self,
        gradient: Gradient,
        batch: Mapping[str, Tensor],
        row: Row,
        eager: StepResult,
        before: list[Tensor],
        start: Tensor,
    ) -> str | None:
        """Runs the graph from the random state and the parameters of the eager step; what it gave else, or None."""
        if not eager.finite:
            return None  # nothing to compare; the next shape, or the end of the fit, is near
        now = [t.detach().clone() for t in self.tensors()]
        grads = [p.grad for p in gradient.trained]
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            _copy(self.tensors(), before)
            torch.set_rng_state(start)
            value = self.shared(gradient(batch, row.kl_weight))
            (elbo, norm, _), ours = self.measured(value.loss, value.elbo, value.gradients)
            _copy(self.tensors(), now)
        if not _near(elbo, eager.elbo):
            return f"another ELBO, {elbo:.6g} against {eager.elbo:.6g}"
        if not _near(norm, eager.grad_norm):
            return f"another gradient, of norm {norm:.6g} against {eager.grad_norm:.6g}"
        # sums in another order differ by roundings of what the networks compute in
        near = 8 * torch.finfo(torch.bfloat16).eps if self.precision == "bf16-mixed" else 1e-3
        for p, g, own in zip(gradient.trained, grads, ours, strict=True):
            if g is None or (g - own).abs().max() > near * max(float(g.abs().max()), 1e-6 * eager.grad_norm):
                name = next(n for n, q in self.objective.named_parameters() if q is p)
                return f"another gradient of {name.removeprefix('program.')}"
        return None

    def _compile(self, key: tuple, gradient: Gradient, batch: Mapping[str, Tensor], code: Code | None = None) -> None:
        started = time.perf_counter()
        try:
            self._use(key, "compile", (code or Code(self, gradient, batch)).compile())
            log.info("compiled %s operations in %.1f s", len(gradient.traced), time.perf_counter() - started)
        except Exception as e:  # Inductor has many ways to fail, and none is worth a fit
            log.warning("engine compile: %s; steps run as engine trace", first_line(e))
            self.release()
            self._use(key, "trace", TraceRun(self, gradient))

    def _fall_back(self, key: tuple, why: str) -> None:
        level = logging.INFO if self.engines.asked == "auto" else logging.WARNING
        log.log(level, "engine %s: %s runs eagerly, for %s", self.engines.asked, self.objective.program.name, why)
        self._use(key, "eager", self.eager_steps)

    # -- auto --------------------------------------------------------------------------------------

    def _watched(self, key: tuple, batch: Mapping[str, Tensor], row: Row) -> list[StepResult]:
        """A traced step; and once enough are timed, or the code has been made, the decision."""
        trial = self._trials[key]
        started = time.thread_time()
        results = self._runs[key]([batch], [row])
        trial.seconds.append(time.thread_time() - started)
        now = time.perf_counter()
        if trial.child is not None:
            if now - trial.asked_at > POLL_SECONDS:
                trial.asked_at = now
                self._poll(key, trial, batch)
        elif len(trial.seconds) > PROBES and self._stays(key, trial, batch, self.steps - row.step):
            self._settle(key)
        return results

    def _stays(self, key: tuple, trial: _Trial, batch: Mapping[str, Tensor], left: int) -> bool:
        """Looks for code that is there, then at the interpreter; has code made where it is worth it."""
        seconds, operations = min(trial.seconds[1:]), len(trial.gradient.traced)
        gain = left * min(7e-6 * operations, 0.9 * seconds)  # what an operation of a graph costs beside its work
        log.debug(
            "engine auto: a step by %s takes %.2f ms; compiled code would save %.1f s of the %d steps left, and takes "
            "%.0f s to make", self.running, 1e3 * seconds, gain, left, compilation.estimated_seconds(operations),
        )  # fmt: skip
        if self.fabric.world_size > 1 or gain < LOOK_SECONDS:
            log.debug("engine auto: steps stay with %s", self.running)
            return True
        if operations <= compilation.TOO_LARGE and trial.code is None:
            try:
                trial.code = Code(self, trial.gradient, batch)
            except Exception as e:
                log.info("engine auto: steps are not compiled: %s", first_line(e))
        if trial.code is not None and native.is_known(trial.code.key):
            log.debug("engine auto: this step was compiled before")
            self._compile(key, trial.gradient, batch, trial.code)
            return True
        if not trial.weighed:
            trial.weighed = True
            if self._interpret(key, trial.gradient, batch, left):
                trial.seconds = []
                return False
        return not self._begins(trial, gain)

    def _begins(self, trial: _Trial, gain: float) -> bool:
        """Whether compilation in the background has begun; not where it is not worth it or cannot be."""
        if trial.code is None or gain < BACKGROUND_SECONDS:
            log.debug("engine auto: steps stay with %s; code is made where it saves %g s, of up to %d operations",
                      self.running, BACKGROUND_SECONDS, compilation.TOO_LARGE)  # fmt: skip
            return False
        if compilation.compiler() is None:
            _say_no_compiler()
            return False
        trial.child = background.start(trial.code.graph, trial.code.inputs, trial.code.key)
        if trial.child is None:
            log.debug("engine auto: steps stay with %s; this fit compiles nothing in the background", self.running)
            return False
        log.info("engine auto: compiling in the background, %.1f ms a step until then", 1e3 * min(trial.seconds[1:]))
        return True

    def _interpret(self, key: tuple, gradient: Gradient, batch: Mapping[str, Tensor], left: int | None = None) -> bool:
        """Goes on with the interpreter where that pays, or was recorded (`left` is None); whether it does."""
        started = time.thread_time()
        run, _ = by_interpreter(gradient.traced, gradient.inputs(batch), left, MANY)
        if run is None:
            if left is None:
                log.warning("the checkpoint's steps were interpreted, which cannot be here: they go on by trace")
            return False
        self._use(key, "interpret", TraceRun(self, gradient, run))
        log.info("engine auto: %d operations are interpreted from now on, written in %.1f s", len(gradient.traced),
                 time.thread_time() - started)  # fmt: skip
        return True

    def _poll(self, key: tuple, trial: _Trial, batch: Mapping[str, Tensor]) -> None:
        assert trial.code is not None and trial.child is not None
        ended = trial.child.poll() is not None  # asked first: code that comes in between is seen
        if native.is_known(trial.code.key):
            log.debug("engine auto: the code is there after %d more steps", len(trial.seconds))
            self._compile(key, trial.gradient, batch, trial.code)
            self._settle(key)
        elif ended:
            log.info("engine auto: nothing came of compiling in the background; steps stay with %s", self.running)
            self._settle(key)

    def _settle(self, key: tuple) -> None:
        del self._trials[key]
        self.engines.settled.append(_label(key))


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


@cache
def _say_no_compiler() -> None:
    """Once a process."""
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
            return f"{type(e).__name__}: {first_line(e)}"
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
