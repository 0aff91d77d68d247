"""What `engine="auto"` makes of fits of several lengths, beside the engine that would have been best.

    python benchmarks/auto.py [--steps 300 1000 2000 3000 10000 30000] [--only eight VAE] [--repeats 3] [--built]

Every fit runs in a process of its own, one thread, so that what tracing and compiling need (Inductor's import, the
C++ compiler's time) counts; imports of ppgen and Pyro are left out. The engines take turns; medians are printed:
seconds of the whole fit, and CPU seconds, without those of a compilation in the background that outlives the fit.
The cache of compiled code is empty at each start (`cold`), or has the code (`warm`). Regret: auto's seconds over those
of the best of the three others, which pay for compilation in the cold column and load the code in the warm one.

--built, for a machine that others use: no cell is run whole. CPU seconds of the first steps of fits give each engine's
start and step, and cells are built of these, as of a machine with two cores of its own: start + steps x step; auto with
an empty cache takes traced or interpreted steps while another process, which imports and compiles, runs beside it, and
compiled ones after that (with the rule of `ppgen.inference.training.step`). Only auto with the code there is run, up to
3 000 steps.
"""

from __future__ import annotations

import argparse
import contextlib
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
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, engine, *numbers = options.one
        print(*_one(name, engine, *map(int, numbers)))
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
    for engine, n in (("eager", 200), ("trace", 1_000), ("compile", 10_000)):
        _, _, start[engine], step[engine], _ = _run(name, engine, n, kept, background="0", until=n)
    imports = _imports()
    parts = {"start": start, "step": step, "compile, cold": cold, "imports": imports}
    print(name, json.dumps(parts, default=float), file=sys.stderr, flush=True)
    warm: dict[int, float] = {}
    for n in lengths:
        eager, trace, there = (start[e] + n * step[e] for e in ("eager", "trace", "compile"))
        made = cold + (n - 5) * step["compile"]
        with tempfile.TemporaryDirectory() as empty:
            _, auto, begin, each, saves = _run(name, "auto", n, empty, background="0", until=600)
        if n > 600:
            ready = max(begin, start["trace"]) + cold + imports  # another process has made the code
            left = n - max(ready - begin, 0) / each
            compiled = ready + start["compile"] - start["trace"] + left * step["compile"]
            auto = compiled if saves >= 1.5 and left > 0 else begin + n * each  # BACKGROUND_SECONDS of training/step.py
            print(name, n, "auto, cold", json.dumps([begin, each, saves, ready]), file=sys.stderr, flush=True)
        near = max(warm, default=0)
        warm[n] = _run(name, "auto", n, kept)[1] if n <= 3000 else warm[near] + (n - near) * step["compile"]
        regret = auto / min(eager, trace, made), warm[n] / min(eager, trace, there)
        _print(name, n, [eager, trace, made, there, auto, warm[n], *regret, auto, warm[n]])


def _imports() -> float:
    """CPU seconds until the other process can compile, beside Inductor's import, which compiling includes."""
    before = _cpu()
    subprocess.run([sys.executable, "-c", "from ppgen.engine import background"], check=True)
    return _cpu() - before


def _run(
    name: str, engine: str, steps: int, cache: str, background: str = "1", until: int = 10**9
) -> tuple[float, ...]:
    """As `_one`, in a process of its own."""
    command = [sys.executable, __file__, "--one", name, engine, str(steps), str(until)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": cache, "PPGEN_BACKGROUND": background}
    said = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
    return tuple(map(float, said.splitlines()[-1].split()))


class _Saving(logging.Handler):
    """Hears what `auto` weighs, last."""

    seconds = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        if "would save" in record.msg:
            self.seconds = record.args[2]


class _Enough(Exception):
    pass


def _one(name: str, engine: str, steps: int, until: int) -> tuple[float, ...]:
    """A fit that ends after `until` steps: seconds and CPU seconds; CPU seconds of its start, and of a step of the
    later half; what `auto` thinks that compiled code saves."""
    import torch

    sys.path.insert(0, str(Path(__file__).parent))
    from programs import ENTRIES

    from ppgen.engine.compiling import background
    from ppgen.inference import fit
    from ppgen.inference.training.step import Step

    torch.set_num_threads(1)
    torch.manual_seed(0)
    logger, saving = logging.getLogger("ppgen"), _Saving()
    logger.addHandler(saving)
    logger.setLevel(logging.DEBUG)
    entry = next(make for full, make in ENTRIES.items() if name in full)()
    program = entry.program()
    inner, marks = Step._steps, []

    def timed(self, batches, rows):
        results = inner(self, batches, rows)
        marks.append((rows[-1].step, _cpu() - cpu))
        if rows[-1].step >= until:
            raise _Enough
        return results

    Step._steps = timed
    started, cpu = time.perf_counter(), _cpu()
    with contextlib.suppress(_Enough):
        fit(program, entry.data, steps=steps, objective=entry.objective, guide=entry.guide, engine=engine)
    took = time.perf_counter() - started, _cpu() - cpu
    (n, last), (m, half) = marks[-1], next(mark for mark in marks if mark[0] >= marks[-1][0] / 2)
    a_step = (last - half) / max(n - m, 1)
    for child in background.CHILDREN:  # it would take the processor from the next
        child.kill()
    return *took, last - n * a_step, a_step, saving.seconds


def _cpu() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


if __name__ == "__main__":
    main()
