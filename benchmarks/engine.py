"""CPU time a gradient step: Pyro, ppgen's engines, PyTorch by hand, NumPyro; and what it takes to start.

    python benchmarks/engine.py [--threads 1 2] [--repeats 5] [--only eight vae] [--out docs/benchmarks]

One process for each number of threads; in it the contestants take turns, and the medians of the turns are printed.
A step is gradient and Adam update on one fixed batch, with the ELBO read by the program that runs it. CPU time
(`time.process_time`) counts every thread and leaves out what else the machine does. "By hand" is plain PyTorch with
the same estimator and torch.optim.Adam; "compiled" is the same with its loss under torch.compile. "graph" is what
`trace` runs, in a bare loop: the traced loss and gradient, and torch.optim.Adam.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

COLUMNS = ("Pyro SVI", "eager", "trace", "graph", "compile", "by hand", "by hand, compiled", "NumPyro")
TURN = 0.15  # seconds of CPU time that a turn lasts
STARTS = ("eight schools", "VAE 784-64-20, batch 32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="parts of programs' names")
    parser.add_argument("--columns", nargs="*", default=list(COLUMNS))
    parser.add_argument("--out", default="docs/benchmarks", help="folder of the table and the plot")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--start", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.start:
        print(json.dumps(_start(*options.start)))
        return
    if options.worker:
        Path(options.worker).write_text(json.dumps(_race(options)))
        return
    results = {}
    for threads in options.threads:
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "result.json"
            flags = [f for o in ("only", "columns") if getattr(options, o) for f in (f"--{o}", *getattr(options, o))]
            command = [sys.executable, __file__, "--worker", str(target), "--threads", str(threads)]
            subprocess.run([*command, "--repeats", str(options.repeats), *flags], env=_environment(threads), check=True)
            results[threads] = json.loads(target.read_text())
    starts = {} if options.only else _starts()
    text = _report(results, starts, options)
    print(text)
    folder = Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "engine.md").write_text(text)
    (folder / "engine.json").write_text(json.dumps({"steps": results, "starts": starts}, indent=1))
    _plot(results[min(results)], folder / "engine.png")


def _environment(threads: int) -> dict[str, str]:
    xla = f"--xla_cpu_multi_thread_eigen={'false' if threads == 1 else 'true'} intra_op_parallelism_threads={threads}"
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "XLA_FLAGS": xla}


# -- contestants: each gives a function of n that makes n steps --------------------------------------


def _race(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    import pyro
    import torch

    sys.path.insert(0, str(Path(__file__).parent))
    from programs import ENTRIES

    torch.set_num_threads(options.threads[0])
    pyro.enable_validation(False)
    table: dict[str, dict[str, float]] = {}
    for name, make in ENTRIES.items():
        if options.only and not any(part in name for part in options.only):
            continue
        runs: dict[str, tuple[Callable[[int], None], int]] = {}
        for column in options.columns:
            torch.manual_seed(0)
            if column == "NumPyro" and not find_spec("numpyro"):
                continue
            run = _contestant(column, make())
            if run is not None:
                n = getattr(run, "steps_a_call", 70 if column == "compile" else 5)
                run(max(n, 5))  # warm
                run(n)
                started = time.process_time()
                run(n)
                each = (time.process_time() - started) / n
                runs[column] = run, n * max(1, int(TURN / max(each * n, 1e-6)))
        times: dict[str, list[float]] = {column: [] for column in runs}
        for _ in range(options.repeats):
            for column, (run, n) in runs.items():
                started = time.process_time()
                run(n)
                times[column].append((time.process_time() - started) / n * 1e6)
        table[name] = {column: statistics.median(t) for column, t in times.items()}
        print(f"{name:34s}", *(f"{c} {t:.0f}" for c, t in table[name].items()), sep="  ", flush=True)
    return table


def _contestant(column: str, entry) -> Callable[[int], None] | None:
    if column in ("eager", "trace", "compile"):
        return _ppgen(entry, column)
    if column == "Pyro SVI":
        return _svi(entry)
    if column == "graph":
        return _graph(entry)
    if column == "NumPyro":
        return _numpyro(entry)
    return _by_hand(entry, compiled=column != "by hand")


def _objective(entry):
    from ppgen.data import n_rows
    from ppgen.inference import Objective
    from ppgen.structure import inspect

    program = entry.program().setup(entry.data, entry.guide, entry.hide)
    structure = inspect(program, entry.data, enumerated=entry.hide)
    return Objective(program, structure, n_rows(entry.data), objective=entry.objective)


def _graph(entry) -> Callable[[int], None]:
    import torch

    from ppgen.engine.graphs.gradient import Gradient

    gradient = Gradient(_objective(entry), entry.data)
    optimizer, inputs = torch.optim.Adam(gradient.trained, lr=1e-3), gradient.inputs(entry.data)

    def run(n: int) -> None:
        for _ in range(n):
            value = gradient.outputs(gradient.traced(*inputs))
            for p, g in zip(gradient.trained, value.gradients, strict=True):
                p.grad = g
            optimizer.step()
            value.elbo.item()

    return run


def _ppgen(entry, engine: str) -> Callable[[int], None]:
    from ppgen.inference.training.optimise import make_fabric, make_optimizer
    from ppgen.inference.training.step import Row, Step

    objective = _objective(entry)
    fabric = make_fabric("cpu", "32-true")
    wrapped, optimizer = fabric.setup(objective, make_optimizer("Adam", list(objective.parameters()), 1e-3))
    step = Step(wrapped, optimizer, fabric, engine=engine)

    def run(n: int) -> None:
        done = 0
        while done < n:
            k = min(step.chunk, n - done)
            step([entry.data] * k, [Row(1e-3, 1.0, done + i + 1) for i in range(k)])
            done += k
        if step.running != engine:
            raise SystemExit(f"engine {engine} was not used")

    step([entry.data], [Row(1e-3, 1.0, 1)])
    return run


def _svi(entry) -> Callable[[int], None]:
    import pyro
    from pyro.infer import SVI, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
    from pyro.infer.autoguide import AutoNormal

    pyro.clear_param_store()
    program, names = entry.program(), list(entry.data)
    if entry.guide:
        model = program.pair[0]
        guide = AutoNormal(pyro.poutine.block(model, hide=list(entry.hide)))
    else:
        # SVI takes functions whose modules are declared
        def model(*columns):
            pyro.module("program", program)
            program.model(**dict(zip(names, columns, strict=True)))

        def guide(*columns):
            pyro.module("program", program)
            program.guide(*columns)

    elbo = {"sampled": Trace_ELBO, "analytic": TraceMeanField_ELBO, "enumerate": TraceEnum_ELBO}[entry.objective]()
    svi, columns = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), elbo), list(entry.data.values())

    def run(n: int) -> None:
        for _ in range(n):
            svi.step(*columns)

    return run


def _by_hand(entry, compiled: bool) -> Callable[[int], None] | None:
    import torch

    if entry.by_hand is None:
        return None
    parameters, loss = entry.by_hand()
    if compiled:
        torch._dynamo.reset()
        loss = torch.compile(loss)
    optimizer = torch.optim.Adam(parameters, lr=1e-3)

    def run(n: int) -> None:
        for _ in range(n):
            optimizer.zero_grad()
            value = loss()
            value.backward()
            optimizer.step()
            value.item()

    return run


def _numpyro(entry) -> Callable[[int], None] | None:
    if entry.numpyro is None:
        return None
    import jax
    from numpyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
    from numpyro.infer.autoguide import AutoNormal
    from numpyro.optim import Adam

    model, data = entry.numpyro()
    guide = getattr(model, "guide", None) or AutoNormal(model)
    elbo = TraceMeanField_ELBO() if entry.objective == "analytic" else Trace_ELBO()
    svi = SVI(model, guide, Adam(1e-3), elbo)
    state = svi.init(jax.random.PRNGKey(0), **data)
    one = jax.jit(lambda s: svi.update(s, **data))
    jax.block_until_ready(one(state))
    started = time.process_time()
    jax.block_until_ready(one(state))
    chunk = 70 if time.process_time() - started < 0.1 else 1
    many = jax.jit(lambda s: jax.lax.scan(lambda s, _: svi.update(s, **data), s, None, length=chunk))

    def run(n: int) -> None:
        nonlocal state
        for _ in range(math.ceil(n / chunk)):
            state, losses = many(state)
        jax.block_until_ready(losses)

    run.steps_a_call = chunk  # type: ignore[attr-defined]
    return run


# -- start and memory ------------------------------------------------------------------------------


def _start(name: str, engine: str) -> dict[str, float]:
    """Seconds to the end of the first step, by the clock and of CPU (the C++ compiler's too), and peak memory."""
    import resource

    import torch

    sys.path.insert(0, str(Path(__file__).parent))
    from programs import ENTRIES

    torch.set_num_threads(1)
    entry = ENTRIES[name]()
    import ppgen.inference.training.step  # noqa: F401 - imported before the clock starts

    def cpu() -> float:
        own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
        return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime

    before, cpu_before = time.perf_counter(), cpu()
    run = _ppgen(entry, engine)
    found = {"seconds": time.perf_counter() - before, "cpu": cpu() - cpu_before}
    run(50)
    return {**found, "MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def _starts() -> dict[str, dict[str, dict[str, float]]]:
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in STARTS:
        found[name] = {}
        with tempfile.TemporaryDirectory() as cache:
            environment = {**_environment(1), "XDG_CACHE_HOME": cache}
            for label, engine in (
                ("eager", "eager"),
                ("trace", "trace"),
                ("compile, cold", "compile"),
                ("compile, cached", "compile"),
            ):
                command = [sys.executable, __file__, "--start", name, engine]
                out = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
                found[name][label] = json.loads(out.splitlines()[-1])
    return found


# -- report ----------------------------------------------------------------------------------------


def _report(results: dict, starts: dict, options: argparse.Namespace) -> str:
    lines = ["# The engine, measured", ""]
    lines += ["Written by `benchmarks/engine.py`, which says what is measured. Medians of CPU time a step, in µs.", ""]
    for threads, table in results.items():
        columns = [c for c in options.columns if any(c in row for row in table.values())]
        lines += [f"## {threads} thread{'s' if int(threads) > 1 else ''}", ""]
        lines += ["| program | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
        for name, row in table.items():
            lines.append(f"| {name} | " + " | ".join(f"{row[c]:,.0f}" if c in row else "–" for c in columns) + " |")
        if threads == min(results):
            alt = "The same times on a logarithmic axis: each program a line, each column a marker"
            lines += ["", f"![{alt}](engine.png)"]
        if {"trace", "graph"} <= set(columns):
            shares = [f"{name} {row['trace'] / row['graph'] - 1:+.1%}" for name, row in table.items() if "graph" in row]
            lines += ["", f"What `trace` costs beyond its graph: {', '.join(shares)}."]
        lines += ["", "Ratios of `compile` (below 1: faster than the peer):", ""]
        peers = [c for c in ("Pyro SVI", "by hand", "by hand, compiled", "NumPyro") if c in columns]
        if "compile" in columns and peers:
            lines += ["| program | " + " | ".join(peers) + " |", "|---|" + "---:|" * len(peers)]
            for name, row in table.items():
                cells = [f"{row['compile'] / row[c]:.3f}" if c in row and "compile" in row else "–" for c in peers]
                lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    if starts:
        lines += ["## To the first step, and memory", "", "One thread; imports left out.", ""]
        lines += ["| program | engine | seconds | CPU seconds | peak MiB |", "|---|---|---:|---:|---:|"]
        for name, rows in starts.items():
            lines += [
                f"| {name} | {label} | {r['seconds']:.1f} | {r['cpu']:.1f} | {r['MiB']:.0f} |"
                for label, r in rows.items()
            ]
        lines.append("")
    return "\n".join(lines)


def _plot(table: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from ppgen.style import settings

    matplotlib.rcParams.update(settings())
    figure, axes = plt.subplots(figsize=(8, 0.5 * len(table) + 1.5))
    columns = [c for c in COLUMNS if any(c in row for row in table.values())]
    for column, marker in zip(columns, "os^vDP<>", strict=False):
        points = [(row[column], j) for j, row in enumerate(table.values()) if column in row]
        axes.plot(*zip(*points, strict=True), marker, label=column, alpha=0.8)
    axes.set(xscale="log", xlabel="CPU time a step, µs", yticks=range(len(table)), yticklabels=list(table))
    axes.invert_yaxis()
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, bbox_inches="tight", dpi=120)


if __name__ == "__main__":
    main()
