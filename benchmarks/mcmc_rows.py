"""What `mcmc` takes beside its chains, and how much memory, as rows grow: logistic regression of 10 features.

    python benchmarks/mcmc_rows.py [--rows 1000 10000 100000] [--cap 600]

Each row is a process of its own, with the defaults of `mcmc`: CPU seconds of the call, of its chains (with starts,
Pathfinder and compiling), the share of all the rest, the largest resident memory, and the size of the tree's groups.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from importlib import import_module
from typing import Any


def run_one(n: int) -> None:
    import numpy as np
    import torch

    from ppgen.inference import mcmc
    from ppgen.models import LogisticRegression

    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 10))
    y = (rng.random(n) < 1 / (1 + np.exp(-(x @ np.linspace(-1, 1, 10) + 0.3)))).astype(float)
    file, chains = import_module("ppgen.inference.sampling.mcmc"), [0.0]
    own = file.run_chains

    def timed(*args: Any, **options: Any) -> Any:
        started = time.process_time()
        found = own(*args, **options)
        chains[0] += time.process_time() - started
        return found

    file.run_chains = timed  # type: ignore[attr-defined]
    before = time.process_time()
    tree = mcmc(LogisticRegression(10), {"x": torch.tensor(x).float(), "y": torch.tensor(y).float()})
    cpu, peak = time.process_time() - before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    sizes = {g: tree[g].to_dataset().nbytes / 1e6 for g in tree.children}
    groups = ", ".join(f"{g} {size:.0f}" for g, size in sizes.items() if size >= 1)
    print(f"| {n} | {cpu:.1f} | {chains[0]:.1f} | {1 - chains[0] / cpu:.0%} | {peak:.2f} | {groups} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--cap", type=int, default=600, help="CPU seconds of a row, at most")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.one:
        run_one(o.one)
        return
    print("| rows | CPU s | chains | the rest | peak GB | MB of groups |\n|--:|--:|--:|--:|--:|---|")
    for n in o.rows:
        command = f'ulimit -t {o.cap}; exec "$@"'
        done = subprocess.run(
            ["bash", "-c", command, "bash", sys.executable, __file__, "--one", str(n)], capture_output=True, text=True
        )
        print(done.stdout.strip() or f"| {n} | {done.stderr.strip()[-300:]} |", flush=True)


if __name__ == "__main__":
    main()
