"""What `engine="auto"` makes of fits of several lengths, beside the engine that would have been best.

    python benchmarks/auto.py [--steps 300 1000 2000 3000 10000 30000] [--only eight VAE] [--repeats 3] [--built]

Every fit runs in a process of its own, one thread, so that what tracing and compiling need (Inductor's import, the
C++ compiler's time) counts; imports of ppgen and Pyro are left out. The engines take turns; medians are printed:
seconds of the whole fit, and CPU seconds, without those of a compilation in the background that outlives the fit.
The cache of compiled code is empty at each start (`cold`), or has the code (`warm`). Regret: auto's seconds over those
of the best of the three others, which pay for compilation in the cold column and load the code in the warm one.

--built, for a machine that others use: no cell is run whole. CPU seconds of short fits give each engine's start and
step, and cells are built of these, as of a machine with two cores of its own: start + steps x step; auto with an empty
cache takes traced steps while another process, which imports and compiles, runs beside it, and compiled ones after that
(with the rule of `ppgen.inference.training.step`). Only auto with the code there is run, up to 3 000 steps.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NAMES = ("eight schools", "logistic regression", "probabilistic PCA", "VAE 784-64-20", "spline flow", "deep Markov")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[300, 1000, 2000, 3000, 10000, 30000])
    parser.add_argument("--only", nargs="*", default=list(NAMES), help="parts of the names in programs.py")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--built", action="store_true", help="of measured starts and steps")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, engine, steps = options.one
        print(*_one(name, engine, int(steps)))
        return
    heads = "eager s | trace s | compile s, cold | warm | auto s, cold | warm | regret, cold | warm | CPU s | warm"
    print(f"| program | steps | {heads} |")
    print("|---|" + "--:|" * 11)
    for name in options.only:
        with tempfile.TemporaryDirectory() as kept:
            if options.built:
                _print_built(name, options.steps, kept)
                continue
            _run(name, "compile", 5, kept)
            for steps in options.steps:
                _print_row(name, steps, options.repeats, kept)


def _print_row(name: str, steps: int, repeats: int, kept: str) -> None:
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for _ in range(repeats):
        for engine in ("eager", "trace", "compile", "auto"):
            for cache in ("cold", "warm") if engine in ("compile", "auto") else ("cold",):
                with tempfile.TemporaryDirectory() as empty:
                    result = _run(name, engine, steps, kept if cache == "warm" else empty)
                found.setdefault((engine, cache), []).append(result[:2])
    wall = {k: statistics.median(r[0] for r in v) for k, v in found.items()}
    cpu = {k: statistics.median(r[1] for r in v) for k, v in found.items()}
    eager, trace = wall["eager", "cold"], wall["trace", "cold"]
    regret = {c: wall["auto", c] / min(eager, trace, wall["compile", c]) for c in ("cold", "warm")}
    figures = [eager, trace, *(wall[e, c] for e in ("compile", "auto") for c in ("cold", "warm"))]
    _print(name, steps, [*figures, *regret.values(), cpu["auto", "cold"], cpu["auto", "warm"]])


def _print(name: str, steps: int, figures: list[float]) -> None:
    print(f"| {name} | {steps} | {' | '.join(f'{x:.2f}' for x in figures)} |", flush=True)


def _print_built(name: str, lengths: list[int], kept: str) -> None:
    """Rows of cells that are built; the parts go to stderr."""
    cold = _run(name, "compile", 5, kept, background="0")[1]
    start, step = {}, {}
    for engine, few, many in (("eager", 10, 210), ("trace", 110, 1_110), ("compile", 110, 10_110)):
        a, b = (_run(name, engine, n, kept, background="0")[1] for n in (few, many))
        step[engine] = (b - a) / (many - few)
        start[engine] = a - few * step[engine]
    with tempfile.TemporaryDirectory() as empty:
        _, looked, gain = _run(name, "auto", 1000, empty, background="0")
    begin = max(looked - 1000 * step["trace"], start["trace"])  # with the look at what could be compiled
    ready = begin + cold + _imports()  # another process has made the code
    parts = {"start": start, "step": step, "compile, cold": cold, "auto": begin, "ready": ready}
    print(name, json.dumps(parts, default=float), file=sys.stderr, flush=True)
    warm: dict[int, float] = {}
    for n in lengths:
        eager, trace, there = (start[e] + n * step[e] for e in ("eager", "trace", "compile"))
        made = cold + (n - 5) * step["compile"]
        traced = begin + n * step["trace"]
        saves = n * gain >= 1.5  # BACKGROUND_SECONDS of training/step.py
        change = max(ready, begin)
        left = n - (change - begin) / step["trace"]
        auto = change + start["compile"] - start["trace"] + left * step["compile"] if saves and left > 0 else traced
        near = max(warm, default=0)
        warm[n] = _run(name, "auto", n, kept)[1] if n <= 3000 else warm[near] + (n - near) * step["compile"]
        regret = auto / min(eager, trace, made), warm[n] / min(eager, trace, there)
        _print(name, n, [eager, trace, made, there, auto, warm[n], *regret, auto, warm[n]])


def _imports() -> float:
    """CPU seconds until the other process can compile, beside Inductor's import, which compiling includes."""
    before = _cpu()
    subprocess.run([sys.executable, "-c", "from ppgen.engine import background"], check=True)
    return _cpu() - before


def _run(name: str, engine: str, steps: int, cache: str, background: str = "1") -> tuple[float, float, float]:
    """Seconds, CPU seconds, and what `auto` thinks that a compiled step saves."""
    command = [sys.executable, __file__, "--one", name, engine, str(steps)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": cache, "PPGEN_BACKGROUND": background}
    said = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
    seconds, cpu, gain = map(float, said.splitlines()[-1].split())
    return seconds, cpu, gain


class _Gain(logging.Handler):
    """Hears what `auto` weighs."""

    a_step = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        if "would save" in record.msg:
            _, saved, left, _ = record.args
            self.a_step = saved / max(left, 1)


def _one(name: str, engine: str, steps: int) -> tuple[float, float, float]:
    import torch

    sys.path.insert(0, str(Path(__file__).parent))
    from programs import ENTRIES

    from ppgen.engine import background
    from ppgen.inference import fit

    torch.set_num_threads(1)
    torch.manual_seed(0)
    logger, gain = logging.getLogger("ppgen"), _Gain()
    logger.addHandler(gain)
    logger.setLevel(logging.DEBUG)
    entry = next(make for full, make in ENTRIES.items() if name in full)()
    program = entry.program()
    started, cpu = time.perf_counter(), _cpu()
    fit(program, entry.data, steps=steps, objective=entry.objective, guide=entry.guide, engine=engine)
    took = time.perf_counter() - started, _cpu() - cpu, gain.a_step
    for child in background.CHILDREN:  # it would take the processor from the next
        child.kill()
    return took


def _cpu() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


if __name__ == "__main__":
    main()
