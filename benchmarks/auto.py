"""What `engine="auto"` makes of fits of several lengths: CPU seconds of the whole fit beside those under `eager`.

    python benchmarks/auto.py [--steps 100 1000 10000] [--only eight VAE] [--repeats 3]

Every fit runs in a process of its own, one thread, so that what tracing and compiling need (Inductor's import, the
C++ compiler's time) counts; imports of ppgen and Pyro are left out. The two engines take turns; medians are printed.
The cache of compiled code is empty at each start (`cold`) or kept from the first repeat (`warm`). The promise is a
ratio of at most 1.05.
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

NAMES = ("eight schools", "logistic regression", "probabilistic PCA", "VAE 784-64-20", "deep Markov")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 1000, 10000])
    parser.add_argument("--only", nargs="*", default=list(NAMES), help="parts of the names in programs.py")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, engine, steps = options.one
        print(_one(name, engine, int(steps)))
        return
    print("| program | steps | eager s | auto s, cold | auto s, warm | auto / eager, cold | warm |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name in options.only:
        for steps in options.steps:
            found: dict[str, list[float]] = {"eager": [], "cold": [], "warm": []}
            with tempfile.TemporaryDirectory() as kept:
                for _ in range(options.repeats):
                    with tempfile.TemporaryDirectory() as empty:
                        found["eager"].append(_run(name, "eager", steps, empty))
                        found["cold"].append(_run(name, "auto", steps, empty))
                    found["warm"].append(_run(name, "auto", steps, kept))
            found["warm"] = found["warm"][1:] or found["warm"]
            eager, cold, warm = (statistics.median(found[k]) for k in ("eager", "cold", "warm"))
            print(
                f"| {name} | {steps} | {eager:.2f} | {cold:.2f} | {warm:.2f} | {cold / eager:.2f} "
                f"| {warm / eager:.2f} |",
                flush=True,
            )


def _run(name: str, engine: str, steps: int, cache: str) -> float:
    command = [sys.executable, __file__, "--one", name, engine, str(steps)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": cache}
    said = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
    return float(said.splitlines()[-1])


def _one(name: str, engine: str, steps: int) -> float:
    import torch

    sys.path.insert(0, str(Path(__file__).parent))
    from programs import ENTRIES

    from ppgen.inference import fit

    torch.set_num_threads(1)
    torch.manual_seed(0)
    entry = next(make for full, make in ENTRIES.items() if name in full)()
    program = entry.program()
    started = _cpu()
    fit(program, entry.data, steps=steps, objective=entry.objective, guide=entry.guide, engine=engine)
    return _cpu() - started


def _cpu() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


if __name__ == "__main__":
    main()
