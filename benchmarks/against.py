"""CPU time a training step in two checkouts, taking turns on one core: what a change did to speed.

    taskset -c 0 python benchmarks/against.py OLD_TREE NEW_TREE [--only eight nsf] [--columns eager trace compile]

One process a tree, each with its own benchmarks/engine.py and flows.py; while one works the other waits, and turns are
short, so that what else the machine does falls on both. Printed: medians of CPU time in µs, their ratio, and the median
and the middle half of the ratios of neighbouring turns. One thread.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

FLOWS = ("nsf", "maf", "realnvp")
TURN = 0.15  # seconds of CPU time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trees", nargs="+", help="the old tree, and the new one")
    parser.add_argument("--only", nargs="*", default=[""], help="parts of rows' names")
    parser.add_argument("--columns", nargs="*", default=["eager", "trace", "compile"])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return work(Path(options.trees[0]))
    both = [Worker(tree) for tree in options.trees]
    print(f"{'row':34} {'engine':8} {'old':>9} {'new':>9}  ratio   turns (middle half)")
    for row in both[1].ask("rows"):
        if not any(part in row for part in options.only):
            continue
        for column in options.columns:
            if any(w.ask("make", row, column) is None for w in both):
                continue
            pairs = []
            for i in range(options.repeats):
                turn = [w.ask("turn") for w in (both if i % 2 else both[::-1])]
                pairs.append(turn if i % 2 else turn[::-1])
            old, new = (statistics.median(t) for t in zip(*pairs, strict=True))
            low, middle, high = statistics.quantiles([b / a for a, b in pairs], n=4)
            turns = f"{middle:.3f} ({low:.3f} to {high:.3f})"
            print(f"{row:34} {column:8} {old:9.0f} {new:9.0f}  {new / old:.3f}   {turns}", flush=True)


class Worker:
    def __init__(self, tree: str) -> None:
        one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker", tree], text=True, cwd=tree,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **one, "PYTHONPATH": tree},
        )  # fmt: skip

    def ask(self, *words: str):
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps(words), file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith("= "):
                return json.loads(line[2:])
        raise SystemExit("a worker ended")


def work(tree: Path) -> None:
    import torch

    sys.path.insert(0, str(tree / "benchmarks"))
    import engine
    import flows
    import pyro
    from programs import ENTRIES

    torch.set_num_threads(1)
    pyro.enable_validation(False)
    rows = flows.data(2048, 0)

    def make(row: str, column: str):
        torch.manual_seed(0)
        torch._dynamo.reset()
        if row in ENTRIES:
            return engine._contestant(column, ENTRIES[row]())
        one = flows.of_ppgen(row, rows, column)
        batch = rows[: flows.BATCH]

        def run(n: int) -> None:
            for _ in range(n):
                one.step(batch)

        return run

    def seconds(n: int) -> float:
        started = time.process_time()
        run(n)
        return time.process_time() - started

    for line in sys.stdin:
        what, *words = json.loads(line)
        answer = None
        if what == "rows":
            answer = [*ENTRIES, *FLOWS]
        elif what == "make" and not (words[0] in FLOWS and words[1] == "compile"):
            run = make(*words)
            least = 70 if words[1] == "compile" else 5  # a chunk of compiled steps
            run(least)
            n = least * max(1, int(TURN / seconds(least)))
            answer = n
        elif what == "turn":
            answer = seconds(n) / n * 1e6
        print("=", json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
