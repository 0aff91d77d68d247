"""How a traced function is run where many calls are expected: by torch, by the interpreter, or compiled."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ppgen.engine import background
from ppgen.engine.compile import TOO_LARGE, code_key, compiled, compiler, estimated_seconds
from ppgen.engine.interpreter.instructions import SECONDS, SECONDS_A_NODE, is_built
from ppgen.engine.interpreter.interpreted import interpreted
from ppgen.engine.native import is_known
from ppgen.engine.trace import Traced

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
        run, a_call = _interpreted(traced, example, calls)
        saved, taken = _saved(len(traced), a_call, calls), estimated_seconds(len(traced))
        said = "%s: compiled, %d calls of %d operations would save %.1f s, and compiling takes %.0f s"
        log.debug(said, name, calls, len(traced), saved, taken)
        if saved <= taken:
            if saved > WORTH_KEEPING:  # for the next run: a change midway would be another trajectory
                background.start(traced.graph, inputs, key)
            return run
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


def _interpreted(traced: Traced, example: Sequence[Tensor], calls: int) -> tuple[Callable[..., Any], float]:
    """The graph by our interpreter, where that pays, else as it is; and the seconds of a call, where they count."""
    if compiler() is None:
        return traced, 0.0
    by_torch = seconds_of(traced, example)
    if not pays(len(traced), by_torch, calls, example[0].dtype):
        return traced, by_torch
    ours = interpreted(traced.graph, [*example, *traced.constants])
    if ours is None:
        return traced, by_torch

    def run(*u: Tensor) -> Any:
        return ours(*u, *traced.constants)

    took = seconds_of(run, example)
    return (traced, by_torch) if by_torch < took else (run, took)


def pays(operations: int, a_call: float, calls: int, dtype: torch.dtype, least: int = SMALLEST) -> bool:
    """Whether so many calls, interpreted, earn back what it takes to write the instructions of a graph.

    Args:
        a_call: seconds of one by torch.
        dtype: of the library, which is built once a machine.
        least: operations, below which nothing is asked.
    """
    cost = SECONDS_A_NODE * operations + (0.0 if is_built(dtype) else SECONDS)
    return operations >= least and compiler() is not None and FASTER * calls * a_call >= cost


def _saved(operations: int, a_call: float, calls: int) -> float:
    """Seconds that compiled calls, at a fifth of the time, would save; 0 where there is no compiling."""
    return 0.0 if compiler() is None or operations > TOO_LARGE else FASTER * calls * a_call


def seconds_of(run: Callable[..., Any], example: Sequence[Tensor]) -> float:
    """Of a call, the second one, in this thread: what else the machine does is left out."""
    run(*example)
    start = time.thread_time()
    run(*example)
    return time.thread_time() - start
