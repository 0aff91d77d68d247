"""When a call of Pyro's is recorded, compiled, compared with Pyro's own, or left to Pyro.

A record is made for arguments of one shape. It is used as long as nothing that it holds has changed, and compared with
Pyro's own run when it is made, at its 100th call, and at every 1000th: a change that cannot be seen is found there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Hashable, Sequence
from typing import Any, Protocol

import torch
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor

from ppgen.engine.compiling import compile as compilation
from ppgen.engine.graphs.trace import Untraceable
from ppgen.errors import first_line
from ppgen.pyro_compat.arguments import Arguments, taken_apart
from ppgen.pyro_compat.recorded import Evaluated, Recorded, Unready
from ppgen.pyro_compat.updates import Run, finite, put_back

ENGINES = ("eager", "trace", "compile", "auto")
MOST = 16  # shapes, or values of arguments that are no tensors
FIRST, EVERY = 100, 1000  # calls of a record that are compared with Pyro's own
SHORT, AGAIN = 50, 3  # so many records in a row that were of use for fewer calls than this: Pyro's own from then on
STAKE = 150  # calls of Pyro's own that a record costs, about

log = logging.getLogger("ppgen")


class _Job(Protocol):
    """What is called again and again."""

    name: str

    def pyro(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Pyro's own."""

    def compared(self, args: tuple, kwargs: dict[str, Any], recorded: Recorded, ours: Evaluated) -> tuple[Any, str]:
        """Pyro's own, and in what the recorded run gave something else, or ''."""

    def record(self, arguments: Arguments) -> Recorded: ...

    def traced(self, recorded: Recorded) -> Run: ...

    def compiled(self, recorded: Recorded, tensors: Sequence[Tensor]) -> Run: ...


class _Replay:
    """A record and how it is run."""

    def __init__(self, recorded: Recorded, run: Run, *, settled: bool):
        self.recorded, self.run = recorded, run
        self.settled = settled  # whether no compilation is to be considered
        self.calls, self.seconds = 0, 0.0


class _Plan:
    """How calls with arguments of one kind are run."""

    def __init__(self) -> None:
        self.eager = False  # Pyro's own, for good
        self.calls = 0  # of Pyro's own since the last record
        self.replays: list[_Replay] = []  # the last one used first
        self.short = 0  # records in a row that were of use for a few calls only

    def current(self) -> _Replay | None:
        """A record of which nothing has changed."""
        for i, replay in enumerate(self.replays):
            if replay.recorded.outdated() is None:
                if i:
                    self.replays.insert(0, self.replays.pop(i))
                return replay
        return None


class Calls:
    """Calls of a job: `calls(args, kwargs)` gives what Pyro gives."""

    def __init__(self, job: _Job, engine: str):
        self.job, self.engine = job, engine
        self._plans: dict[Hashable, _Plan] = {}
        self._kinds: dict[Hashable, Hashable] = {}
        self._floats: bool | None = False  # whether floats are inputs; None: they cannot be
        self._said: set[str] = set()
        self._last: Arguments | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Records stay behind when an SVI is copied or pickled."""
        return {**vars(self), "_plans": {}, "_kinds": {}, "_last": None}

    def __call__(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        if self.engine == "eager" or am_i_wrapped():
            return self.job.pyro(args, kwargs)
        arguments = self._last
        if kwargs or arguments is None or not arguments.same(args):
            self._last = arguments = taken_apart(args, kwargs, floats=bool(self._floats))
        plan = self._plans.get(_key(arguments))
        if plan is None:
            plan, arguments = self._new(arguments, args, kwargs)
        if plan is None or plan.eager:
            return self.job.pyro(args, kwargs)
        if (replay := plan.current()) is not None:
            return self._replayed(plan, replay, arguments, args, kwargs)
        # Not at the first call, at which programs make their parameters.
        if plan.calls >= (STAKE if self.engine == "auto" else 1):
            return self._first(plan, arguments, args, kwargs)
        plan.calls += 1
        return self.job.pyro(args, kwargs)

    def _new(self, arguments: Arguments, args: tuple, kwargs: dict[str, Any]) -> tuple[_Plan | None, Arguments]:
        """A plan for arguments that are not known yet; floats that differ from call to call become inputs."""
        if arguments.refused:
            self._say(arguments.refused)
            return None, arguments
        if self._floats is False:
            inputs = taken_apart(args, kwargs, floats=True)
            if self._kinds.setdefault(inputs.key, arguments.key) != arguments.key:
                self._floats, arguments = True, inputs
        key = _key(arguments)
        if key not in self._plans and len(self._plans) >= MOST:
            self._say(f"its arguments have more than {MOST} shapes or values")
            return None, arguments
        return self._plans.setdefault(key, _Plan()), arguments

    # -- recording ---------------------------------------------------------------------------------

    def _first(self, plan: _Plan, arguments: Arguments, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Records, and makes this call both ways."""
        started = time.perf_counter()
        if plan.replays:
            why = plan.replays[0].recorded.outdated()
            plan.short = plan.short + 1 if plan.replays[0].calls < SHORT else 0
            log.info("%s: %s is another one; recorded anew", self.job.name, why)
            if plan.short >= AGAIN:
                plan.eager, plan.replays = True, []
                self._say(f"{why} changes again and again; a tensor or a float may, as an argument")
                return self.job.pyro(args, kwargs)
        try:
            recorded = self.job.record(arguments)
        except Unready as e:
            plan.calls, plan.short = 0, plan.short + 1
            if plan.short >= AGAIN:
                plan.eager = True
                self._say(str(e))
            return self.job.pyro(args, kwargs)
        except Untraceable as e:
            if self._floats:
                self._floats = None
                self._plans.clear()
            else:
                plan.eager = True
                self._say(str(e))
            return self.job.pyro(args, kwargs)
        value, why = self._both(recorded, arguments, args, kwargs)
        plan.calls = 0
        if not finite(value if isinstance(value, tuple) else (value,)):
            return value  # nothing to compare
        changed = recorded.outdated()
        if why or changed:
            plan.eager = True
            self._say(why or f"it changes {changed!r} itself, at each call")
            return value
        plan.replays.insert(0, _Replay(recorded, self.job.traced(recorded), settled=self.engine == "trace"))
        del plan.replays[AGAIN:]
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
        buffers = zip(changed, recorded.changed, strict=True)
        if not why and not all(torch.allclose(a, b, rtol=1e-3, equal_nan=True) for a, b in buffers):
            why = "its recorded run leaves other values in its buffers"
        return value, why

    # -- replaying ---------------------------------------------------------------------------------

    def _replayed(self, plan: _Plan, replay: _Replay, arguments: Arguments, args: tuple, kwargs: dict[str, Any]) -> Any:
        replay.calls += 1
        if replay.calls == FIRST or not replay.calls % EVERY:
            value, why = self._both(replay.recorded, arguments, args, kwargs)
            if why:
                plan.eager, plan.replays = True, []
                ago = min(replay.calls, EVERY)
                self._say(f"{why}, other than {ago} calls ago: it reads something that changed unseen")
            return value
        start = torch.get_rng_state()
        if replay.settled:
            value = replay.run(arguments.tensors)
        elif self._pays(replay):
            value = self._compiled(replay, arguments)
        else:
            started = time.perf_counter()
            value = replay.run(arguments.tensors)
            replay.seconds += time.perf_counter() - started
        if value is not None:
            return value
        torch.set_rng_state(start)  # not finite: Pyro's own warnings and errors
        return self.job.pyro(args, kwargs)

    def _pays(self, replay: _Replay) -> bool:
        """Whether to compile: at once if asked to, or when half the time that it takes has been spent on such calls."""
        operations = len(replay.recorded.traced)
        if self.engine == "compile":
            return True
        if compilation.compiler() is None or operations > compilation.TOO_LARGE:
            replay.settled = True
            return False
        return replay.seconds > 0.5 * compilation.estimated_seconds(operations)

    def _compiled(self, replay: _Replay, arguments: Arguments) -> Any:
        """Compiles, and makes this call by the compiled step; it must take the random numbers that the graph takes."""
        replay.settled, traced, recorded, started = True, replay.run, replay.recorded, time.perf_counter()
        start, kept = torch.get_rng_state(), [c.clone() for c in recorded.changed]
        recorded(arguments.tensors)
        end = torch.get_rng_state()
        put_back(recorded.changed, kept)
        torch.set_rng_state(start)
        try:
            replay.run = self.job.compiled(recorded, arguments.tensors)
            value = replay.run(arguments.tensors)
        except Exception as e:  # Inductor has many ways to fail, and none is worth a fit
            log.warning("%s is replayed without compilation: %s", self.job.name, first_line(e))
            replay.run = traced
            return traced(arguments.tensors)
        took = time.perf_counter() - started
        log.info("%s: compiled %s operations in %.1f s", self.job.name, len(recorded.traced), took)
        if value is not None and not torch.equal(end, torch.get_rng_state()):
            replay.run = traced
            torch.set_rng_state(end)
            log.warning("%s is replayed without compilation: compiled it draws other random numbers", self.job.name)
        return value

    def _say(self, why: str) -> None:
        if why not in self._said:
            self._said.add(why)
            log.warning("%s runs as in Pyro: %s", self.job.name, why)


def _key(arguments: Arguments) -> Hashable:
    """What a record depends on beside the values that the program reads."""
    return arguments.key, torch.get_default_dtype(), torch.is_autocast_enabled("cpu")
