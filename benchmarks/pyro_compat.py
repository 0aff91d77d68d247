"""Steps a second of ppgen.pyro_compat.SVI beside pyro.infer.SVI, on the same programs, in one process, taking turns.

    taskset -c 0 python benchmarks/pyro_compat.py [--repeats 7] [--only eight VAE] [--engines trace compile]

A step is Pyro's: loss, gradient, an Adam update, the loss as a number. Medians of CPU time (`time.process_time`) over
the turns; ratios are of neighbouring turns, with their middle half. One thread, values not validated (which favours
Pyro).
`to pay` is how many steps it takes until recording and compiling (CPU time, the C++ compiler's with it) have paid for
themselves. The last table is a whole fit of so many steps from nothing, with what `auto` decides, in CPU time as well.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import infer
from pyro.infer.autoguide import AutoNormal

from ppgen import pyro_compat

sys.path.insert(0, str(Path(__file__).parent))
from programs import ENTRIES, Entry

ROWS = (
    "eight schools", "logistic regression", "radon-like", "mixture, enumerated", "HMM of 12 steps, enumerated",
    "VAE 784-64", "VAE 784-400", "deep Markov",
)  # fmt: skip
TURN = 0.2  # seconds of CPU time
ELBOS = {"sampled": infer.Trace_ELBO, "analytic": infer.TraceMeanField_ELBO, "enumerate": infer.TraceEnum_ELBO}


class Fit:
    """An SVI with a parameter store of its own: several take turns in one process."""

    def __init__(self, entry: Entry, svi: Any, **options: Any):
        pyro.set_rng_seed(0)
        self.state: Any = {"params": {}, "constraints": {}}
        program, self.columns = entry.program(), list(entry.data.values())
        model, guide = programs(program, entry)
        self.svi = svi(model, guide, pyro.optim.Adam({"lr": 1e-3}), ELBOS[entry.objective](), **options)

    def __call__(self, steps: int) -> None:
        with pyro.get_param_store().scope(self.state) as self.state:
            for _ in range(steps):
                self.loss = self.svi.step(*self.columns)

    def seconds(self, steps: int) -> float:
        started = time.process_time()
        self(steps)
        return time.process_time() - started


def chain(module: Any, **options: Any) -> float:
    """CPU time of 100 draws of NUTS, after as many of warm-up, from the same seed."""
    pyro.set_rng_seed(0)
    entry = ENTRIES["eight schools"]()
    kernel = module.NUTS(entry.program().pair[0], ignore_jit_warnings=True, **options)
    mcmc = module.MCMC(kernel, num_samples=100, disable_progbar=True)
    started = cpu()
    mcmc.run(*entry.data.values())
    return cpu() - started


def cpu() -> float:
    """CPU time of this process and of those that it has waited for."""
    return sum(os.times()[:4])


def programs(program: Any, entry: Entry) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Model and guide as a Pyro user writes them."""
    if entry.guide:
        model = program.pair[0]
        return model, AutoNormal(pyro.poutine.block(model, hide=list(entry.hide)))

    def model(x):
        pyro.module("program", program)
        program.model(x)

    def guide(x):
        pyro.module("program", program)
        program.guide(x)

    return model, guide


def race(name: str, options: argparse.Namespace) -> list[str]:
    """Rows of the table of steps."""
    entry = ENTRIES[name]()
    fits = {"Pyro": Fit(entry, infer.SVI)}
    begun: dict[str, float] = {}
    for engine in options.engines:
        fits[engine] = Fit(entry, pyro_compat.SVI, engine=engine)
        started = cpu()
        fits[engine](5)  # recorded and compiled
        begun[engine] = cpu() - started
    fits["Pyro"](5)
    counts = {}
    for column, fit in fits.items():
        fit(20)
        counts[column] = max(3, int(TURN / max(fit.seconds(20) / 20, 1e-6)))
    turns: dict[str, list[float]] = {column: [] for column in fits}
    for _ in range(options.repeats):
        for column, fit in fits.items():
            turns[column].append(fit.seconds(counts[column]) / counts[column])
    own = statistics.median(turns["Pyro"])
    rows = [f"| {name} | Pyro | {own * 1e6:,.0f} | {1 / own:,.0f} | | | |"]
    for engine in options.engines:
        took = statistics.median(turns[engine])
        ratios = [a / b for a, b in zip(turns["Pyro"], turns[engine], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        pays = begun[engine] / max(own - took, 1e-9)
        rows.append(
            f"| | {engine} | {took * 1e6:,.0f} | {1 / took:,.0f} | {middle:.1f} ({low:.1f} to {high:.1f}) "
            f"| {begun[engine]:.1f} | {pays:,.0f} |"
        )
    return rows


def whole(name: str, steps: int) -> str:
    """One fit after the other, each from nothing, with what `auto` decides."""
    entry, took = ENTRIES[name](), []
    for svi in (infer.SVI, pyro_compat.SVI):
        started = cpu()
        fit = Fit(entry, svi)
        fit(steps)
        took.append(cpu() - started)
    return f"| {name} | {steps:,} | {took[0]:.1f} | {took[1]:.1f} | {took[0] / took[1]:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", nargs="*", default=ROWS, help="parts of programs' names")
    parser.add_argument("--engines", nargs="*", default=["trace", "compile"])
    parser.add_argument("--whole", type=int, nargs="*", default=[3000], help="steps of whole fits")
    parser.add_argument("--mcmc", action="store_true", help="chains of NUTS as well")
    parser.add_argument("--out", help="the page that the tables are written to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pyro.enable_validation(False)
    logging.getLogger("pyro").setLevel(logging.WARNING)
    names = [n for n in ENTRIES if any(part in n for part in options.only)]
    lines: list[str] = []

    def say(*rows: str) -> None:
        lines.extend(rows)
        print(*rows, sep="\n", flush=True)
        if options.out:
            Path(options.out).write_text(HEAD + "\n".join(lines) + "\n")

    say(
        "| program | SVI | µs a step | steps a second | Pyro's time / its | first 5 steps, s | steps to pay |",
        "|---|---|---:|---:|---:|---:|---:|",
    )
    for name in names:
        say(*race(name, options))
    if options.mcmc:
        say("", "| NUTS, 100 draws of eight schools | Pyro, s | ppgen, s | ratio |", "|---|---:|---:|---:|")
        for label, flags in (("as it is: the same draws", {}), ("jit_compile=True", {"jit_compile": True})):
            a, b = chain(infer, **flags), chain(pyro_compat, **flags)
            say(f"| {label} | {a:.1f} | {b:.1f} | {a / b:.1f} |")
    if options.whole:
        say("", "| a whole fit | steps | Pyro, s | auto, s | ratio |", "|---|---:|---:|---:|---:|")
    for steps in options.whole:
        for name in names:
            say(whole(name, steps))


HEAD = """# A Pyro script's SVI, measured

Written by `python benchmarks/pyro_compat.py --mcmc --out docs/benchmarks/pyro_compat.md`, which says what is measured:
CPU time, one thread, `pyro.infer.SVI` and `ppgen.pyro_compat.SVI` taking turns. Some of the compiled code was found in
its cache: where the first five steps of `compile` took less than three seconds.

"""


if __name__ == "__main__":
    main()
