"""How a traced function is run where many calls are expected: by torch, by the interpreter, or compiled."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ppgen.engine.compiling import background
from ppgen.engine.compiling.compile import TOO_LARGE, code_key, compiled, compiler, estimated_seconds
from ppgen.engine.compiling.native import is_known
from ppgen.engine.graphs.noise import Noise, hoist
from ppgen.engine.graphs.trace import Traced
from ppgen.engine.interpreter.instructions import SECONDS, SECONDS_A_NODE, is_built
from ppgen.engine.interpreter.interpreted import interpreted

log = logging.getLogger("ppgen")

FASTER = 0.8  # of the time of a call, which compiled code saves
WORTH_KEEPING = 1.5  # seconds that compiled code would save, from which on it is made for the next run
SMALLEST = 30  # operations of a graph that may be interpreted


def fastest(traced: Traced, example: Sequence[Tensor], engine: str, calls: int, name: str) -> Callable[..., Any]:
    """
    Args:
        example: its inputs.
        engine: compile, or auto: compiled where that is earned back, or was done before.
        calls: how many are expected.
        name: of the program, for the log.
    """
    inputs = [*(x.clone() for x in example), *traced.constants]
    key = code_key(traced.graph, inputs)
    if engine == "auto" and not is_known(key):
        run, a_call = (None, 0.0) if compiler() is None else by_interpreter(traced, example, calls)
        saved, taken = _saved(len(traced), a_call, calls), estimated_seconds(len(traced))
        said = "%s: compiled, %d calls of %d operations would save %.1f s, and compiling takes %.0f s"
        log.debug(said, name, calls, len(traced), saved, taken)
        if saved <= taken:
            if saved > WORTH_KEEPING:  # for the next run: a change midway would be another trajectory
                background.start(traced.graph, inputs, key)
            return run or traced
    started, before = time.perf_counter(), is_known(key)
    try:
        run = compiled(traced.graph, inputs, key)
    except Exception as e:  # Inductor has many ways to fail: a mask as an index, for one
        why = str(e).strip().splitlines()
        log.info("the log joint of %s is not compiled (%s): its trace is run", name, *why[:1] or [""])
        return traced
    log.debug("%s: its log joint is %s in %.1f s", name, "loaded, compiled before," if before else "compiled",
              time.perf_counter() - started)  # fmt: skip
    return lambda *u: run([*u, *traced.constants])


def by_interpreter(
    traced: Traced, example: Sequence[Tensor], calls: int | None, least: int = SMALLEST
) -> tuple[Callable[..., Any] | None, float]:
    """The graph by the interpreter of small operations, its draws made beforehand by torch, in their order.

    Args:
        calls: how many there will be; None: it need not pay.
        least: operations, below which nothing is asked.

    Returns:
        None where torch runs the graph as well or better; and the seconds of a call by the better one.
    """
    with torch.random.fork_rng(devices=[]):
        by_torch = math.inf if calls is None else _seconds_of(traced, example)
        if calls is not None and not _pays(len(traced), by_torch, calls, example[0].dtype, least):
            return None, by_torch
        graph, draws, _ = hoist(traced.graph)
        noise = Noise(draws, 1)

        def drawn() -> Sequence[Tensor]:
            return noise.split(noise.take(1)[0]) if draws else ()

        ours = interpreted(graph, [*example, *traced.constants, *drawn()])
        if ours is None:
            return None, by_torch

        def run(*inputs: Tensor) -> Any:
            return ours(*inputs, *traced.constants, *drawn())

        took = _seconds_of(run, example)
    return (run, took) if took < by_torch else (None, by_torch)


def _pays(operations: int, a_call: float, calls: int, dtype: torch.dtype, least: int) -> bool:
    """Whether so many calls, interpreted, earn back what it takes to write the instructions of a graph.

    Args:
        a_call: seconds of one by torch.
        dtype: of the library, which is built once a machine.
    """
    cost = SECONDS_A_NODE * operations + (0.0 if is_built(dtype) else SECONDS)
    return operations >= least and compiler() is not None and FASTER * calls * a_call >= cost


def _saved(operations: int, a_call: float, calls: int) -> float:
    """Seconds that compiled calls, at a fifth of the time, would save; 0 where there is no compiling."""
    return 0.0 if compiler() is None or operations > TOO_LARGE else FASTER * calls * a_call


def _seconds_of(run: Callable[..., Any], example: Sequence[Tensor]) -> float:
    """Of a call, the second one, in this thread: what else the machine does is left out."""
    run(*example)
    start = time.thread_time()
    run(*example)
    return time.thread_time() - start
