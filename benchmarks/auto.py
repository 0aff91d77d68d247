"""What `engine="auto"` makes of fits of several lengths, beside the engine that would have been best.

    python benchmarks/auto.py [--steps 300 1000 2000 3000 10000 30000] [--only eight VAE] [--repeats 3]

Every fit runs in a process of its own, one thread, so that what tracing and compiling need (Inductor's import, the
C++ compiler's time) counts; imports of ppgen and Pyro are left out. The engines take turns; medians are printed:
seconds of the whole fit, and CPU seconds, without those of a compilation in the background that outlives the fit.
The cache of compiled code is empty at each start (`cold`), or has the code (`warm`). Regret: auto's seconds over those
of the best of the three others, which pay for compilation in the cold column and load the code in the warm one.
"""

from __future__ import annotations

import argparse
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
                found.setdefault((engine, cache), []).append(result)
    wall = {k: statistics.median(r[0] for r in v) for k, v in found.items()}
    cpu = {k: statistics.median(r[1] for r in v) for k, v in found.items()}
    eager, trace = wall["eager", "cold"], wall["trace", "cold"]
    regret = {c: wall["auto", c] / min(eager, trace, wall["compile", c]) for c in ("cold", "warm")}
    figures = [eager, trace, *(wall[e, c] for e in ("compile", "auto") for c in ("cold", "warm"))]
    figures += [*regret.values(), cpu["auto", "cold"], cpu["auto", "warm"]]
    print(f"| {name} | {steps} | {' | '.join(f'{x:.2f}' for x in figures)} |", flush=True)


def _run(name: str, engine: str, steps: int, cache: str) -> tuple[float, float]:
    command = [sys.executable, __file__, "--one", name, engine, str(steps)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": cache}
    said = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
    seconds, cpu = said.splitlines()[-1].split()
    return float(seconds), float(cpu)


def _one(name: str, engine: str, steps: int) -> tuple[float, float]:
    import torch

    sys.path.insert(0, str(Path(__file__).parent))
    from programs import ENTRIES

    from ppgen.engine import background
    from ppgen.inference import fit

    torch.set_num_threads(1)
    torch.manual_seed(0)
    entry = next(make for full, make in ENTRIES.items() if name in full)()
    program = entry.program()
    started, cpu = time.perf_counter(), _cpu()
    fit(program, entry.data, steps=steps, objective=entry.objective, guide=entry.guide, engine=engine)
    took = time.perf_counter() - started, _cpu() - cpu
    for child in background.CHILDREN:  # it would take the processor from the next
        child.kill()
    return took


def _cpu() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


if __name__ == "__main__":
    main()
