"""When a call of Pyro's is recorded, compiled, compared with Pyro's own, or left to Pyro.

A record is made for arguments of one shape. It is used as long as nothing that it holds has changed, and compared with
Pyro's own run when it is made, at its 100th call, and at every 1000th: a change that cannot be seen is found there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

import torch
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor

from ppgen.engine import compile as compilation
from ppgen.engine.trace import Untraceable
from ppgen.pyro_compat.arguments import Arguments, taken_apart
from ppgen.pyro_compat.recorded import Recorded
from ppgen.pyro_compat.updates import Run, put_back

ENGINES = ("eager", "trace", "compile", "auto")
MOST = 16  # shapes, or values of arguments that are no tensors
FIRST, EVERY = 100, 1000  # calls of a record that are compared with Pyro's own
SHORT, AGAIN = 50, 3  # so many records in a row that were of use for fewer calls than this: Pyro's own from then on
STAKE = 150  # calls of Pyro's own that a record costs, about

log = logging.getLogger("ppgen")


class Job(Protocol):
    """What is called again and again."""

    name: str

    def pyro(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Pyro's own."""

    def compared(self, args: tuple, kwargs: dict[str, Any], recorded: Recorded, own: Any) -> tuple[Any, str]:
        """Pyro's own, and in what the recorded run gave something else, or ''."""

    def record(self, arguments: Arguments) -> Recorded: ...

    def traced(self, recorded: Recorded) -> Run: ...

    def compiled(self, recorded: Recorded, tensors: Sequence[Tensor]) -> Run: ...


class _Plan:
    """How calls with arguments of one kind are run."""

    def __init__(self) -> None:
        self.recorded: Recorded | None = None
        self.run: Run | None = None  # None: Pyro's own
        self.eager = False  # for good
        self.settled = False  # no compilation to be considered
        self.calls = self.seconds = self.short = 0.0


class Calls:
    """Calls of a job: `calls(args, kwargs)` gives what Pyro gives."""

    def __init__(self, job: Job, engine: str):
        self.job, self.engine = job, engine
        self._plans: dict[Hashable, _Plan] = {}
        self._kinds: set[Hashable] = set()
        self._floats: bool | None = False  # whether floats are inputs; None: they cannot be
        self._said: set[str] = set()
        self._last: Arguments | None = None

    def __call__(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        if self.engine == "eager" or am_i_wrapped():
            return self.job.pyro(args, kwargs)
        arguments = self._last
        if kwargs or arguments is None or not arguments.same(args):
            self._last = arguments = taken_apart(args, kwargs, floats=bool(self._floats))
        plan = self._plans.get((arguments.key, torch.get_default_dtype()))
        if plan is None:
            plan, arguments = self._new(arguments, args, kwargs)
        if plan is None or plan.eager:
            return self.job.pyro(args, kwargs)
        if plan.run is not None:
            assert plan.recorded is not None
            if (why := plan.recorded.outdated()) is None:
                return self._replayed(plan, arguments, args, kwargs)
            self._outdated(plan, why)
        if self._due(plan):
            return self._first(plan, arguments, args, kwargs)
        plan.calls += 1
        return self._timed(plan, lambda: self.job.pyro(args, kwargs))

    def _new(self, arguments: Arguments, args: tuple, kwargs: dict[str, Any]) -> tuple[_Plan | None, Arguments]:
        """A plan for arguments that are not known yet; floats that differ from call to call become inputs."""
        if arguments.refused:
            self._say(arguments.refused)
            return None, arguments
        if self._floats is False:
            inputs = taken_apart(args, kwargs, floats=True)
            if inputs.key in self._kinds:
                self._floats, arguments = True, inputs
            self._kinds.add(inputs.key)
        key = arguments.key, torch.get_default_dtype()
        if key not in self._plans and len(self._plans) >= MOST:
            self._say(f"its arguments have more than {MOST} shapes or values")
            return None, arguments
        return self._plans.setdefault(key, _Plan()), arguments

    def _timed(self, plan: _Plan, call: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        value = call()
        plan.seconds += time.perf_counter() - started
        return value

    def _due(self, plan: _Plan) -> bool:
        """Whether it is to be recorded: not at the first call, at which programs make their parameters."""
        return plan.calls >= (STAKE if self.engine == "auto" else 1)

    # -- recording ---------------------------------------------------------------------------------

    def _first(self, plan: _Plan, arguments: Arguments, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Records, and makes this call both ways."""
        started = time.perf_counter()
        try:
            recorded = self.job.record(arguments)
        except Untraceable as e:
            if self._floats:
                self._floats = None
                self._plans.clear()
            else:
                plan.eager = True
                self._say(str(e))
            return self.job.pyro(args, kwargs)
        value, why = self._both(recorded, arguments, args, kwargs)
        changed = recorded.outdated()
        if why or changed:
            plan.eager = True
            self._say(why or f"it changes {changed!r} itself, at each call")
            return value
        plan.recorded, plan.run, plan.calls = recorded, self.job.traced(recorded), 0
        plan.settled = self.engine == "trace"
        log.info("%s: recorded in %.1f s", self.job.name, time.perf_counter() - started)
        return value

    def _both(self, recorded: Recorded, arguments: Arguments, args: tuple, kwargs: dict[str, Any]) -> tuple[Any, str]:
        """Pyro's own call, after the recorded one from the same random state; and what the latter gave else."""
        kept = [c.clone() for c in recorded.changed]
        start = torch.get_rng_state()
        ours = recorded(arguments.tensors)
        end, changed = torch.get_rng_state(), [c.clone() for c in recorded.changed]
        put_back(recorded.changed, kept)
        torch.set_rng_state(start)
        value, why = self.job.compared(args, kwargs, recorded, ours)
        if not why and not torch.equal(end, torch.get_rng_state()):
            why = "its recorded run draws other random numbers"
        if not why and not all(torch.allclose(a, b, rtol=1e-3, equal_nan=True) for a, b in zip(changed, recorded.changed, strict=True)):
            why = "its recorded run leaves other values in its buffers"
        return value, why

    def _outdated(self, plan: _Plan, why: str) -> None:
        log.info("%s: %s is another one; recorded anew", self.job.name, why)
        plan.short = plan.short + 1 if plan.calls < SHORT else 0
        plan.recorded, plan.run, plan.calls, plan.seconds = None, None, 0, 0
        if plan.short >= AGAIN:
            plan.eager = True
            self._say(f"{why} changes again and again; given as an argument, a tensor or float may")

    # -- replaying ---------------------------------------------------------------------------------

    def _replayed(self, plan: _Plan, arguments: Arguments, args: tuple, kwargs: dict[str, Any]) -> Any:
        assert plan.recorded is not None and plan.run is not None
        plan.calls += 1
        if plan.calls == FIRST or not plan.calls % EVERY:
            value, why = self._both(plan.recorded, arguments, args, kwargs)
            if why:
                plan.eager, plan.run, plan.recorded = True, None, None
                self._say(f"{why}, which it did not {min(int(plan.calls), EVERY)} calls ago: it reads something that changed unseen")
            return value
        start = torch.get_rng_state()
        if not plan.settled:
            if self._pays(plan):
                return self._compile(plan, arguments, args, kwargs)
            value = self._timed(plan, lambda: plan.run(arguments.tensors))
        else:
            value = plan.run(arguments.tensors)
        if value is not None:
            return value
        torch.set_rng_state(start)  # Pyro's own warnings and errors
        return self.job.pyro(args, kwargs)

    def _pays(self, plan: _Plan) -> bool:
        """Whether to compile: at once if asked to, or when half the time that it takes has been spent on such calls."""
        assert plan.recorded is not None
        operations = len(plan.recorded.traced)
        if self.engine == "compile":
            return True
        if compilation.compiler() is None or operations > compilation.TOO_LARGE:
            plan.settled = True
            return False
        return plan.seconds > 0.5 * compilation.estimated_seconds(operations)

    def _compile(self, plan: _Plan, arguments: Arguments, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Compiles, and makes this call by the compiled step; it must take the random numbers that the graph takes."""
        assert plan.recorded is not None and plan.run is not None
        plan.settled, traced, started = True, plan.run, time.perf_counter()
        start, kept = torch.get_rng_state(), [c.clone() for c in plan.recorded.changed]
        plan.recorded(arguments.tensors)
        end = torch.get_rng_state()
        put_back(plan.recorded.changed, kept)
        torch.set_rng_state(start)
        try:
            plan.run = self.job.compiled(plan.recorded, arguments.tensors)
            value = plan.run(arguments.tensors)
        except Exception as e:  # Inductor has many ways to fail, and none is worth a fit
            log.warning("%s is replayed without compilation: %s", self.job.name, _line(e))
            plan.run, value = traced, None
        log.info("%s: compiled %s operations in %.1f s", self.job.name, len(plan.recorded.traced), time.perf_counter() - started)
        if value is None:
            torch.set_rng_state(start)
            return self.job.pyro(args, kwargs)
        if not torch.equal(end, torch.get_rng_state()):
            plan.run = traced
            torch.set_rng_state(end)
            log.warning("%s is replayed without compilation: compiled it draws other random numbers", self.job.name)
        return value

    def _say(self, why: str) -> None:
        if why not in self._said:
            self._said.add(why)
            log.warning("%s runs as in Pyro: %s", self.job.name, why)


def _line(e: BaseException) -> str:
    return str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
