"""Whole commands from cold processes, beside scripts in NumPyro and in plain Pyro that do the same.

    python benchmarks/felt.py [--peer PYTHON] [--repeats 3] [--only fit mcmc] [--cap 120] [--out felt.jsonl]
    python benchmarks/felt.py --table felt.jsonl

CPU seconds (user and system) of one thread, medians. ppgen cold: with an empty cache of compiled code; a compilation
in the background that outlives the command is stopped, and its seconds are left out. ppgen warm: with the code that
`--engine compile` left. NumPyro is run by --peer, a Python that has it, and keeps no compiled code. Methods and repeats
take turns. What takes more than --cap seconds of CPU is cut, and said to be.

fit: 2 000 steps of mean-field variational inference; mcmc: ppgen's 64 chains of 250 draws (chees) to a file and a
table, NumPyro's NUTS with 4 vectorised chains of 1 000 draws and its table, Pyro's NUTS with one such chain.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

COMMANDS = {
    "check": "check eight_schools --data eight_schools",
    "fit": "fit eight_schools --data eight_schools",
    "regression": "fit logistic_regression --data rows.csv --columns y=y,x=a+b+c+d+e",
    "mcmc": "mcmc eight_schools --data eight_schools",
}
COLUMNS = ("ppgen cold", "ppgen warm", "NumPyro", "Pyro")

SCHOOLS = """
y = [28.0, 8, -3, 7, -1, 1, 18, 12]
sd = [15.0, 10, 16, 11, 9, 11, 10, 18]
data = (array(y), array(sd))
def model(y, sd):
    mu = sample("mu", dist.Normal(0.0, 5.0))
    tau = sample("tau", dist.HalfCauchy(5.0))
    with plate("schools", 8):
        eta = sample("eta", dist.Normal(0.0, 1.0))
        sample("y", dist.Normal(mu + tau * eta, sd), obs=y)
"""
REGRESSION = """
import numpy as np
t = np.genfromtxt("rows.csv", delimiter=",", skip_header=1, dtype=np.float32)
data = (array(t[:, 0]), array(t[:, 1:]))
def model(y, x):
    w = sample("w", dist.Normal(zeros(5), 1.0).to_event(1))
    b = sample("b", dist.Normal(0.0, 1.0))
    with plate("rows", len(y)):
        sample("y", dist.Bernoulli(logits=x @ w + b), obs=y)
"""
PYRO = """
import pyro, torch, pyro.distributions as dist
from pyro import sample, plate
from torch import zeros
array = torch.as_tensor
torch.set_num_threads(1)
"""
NUMPYRO = """
import jax, numpyro, numpyro.distributions as dist
from jax.numpy import array, zeros
from numpyro import sample, plate
"""
TASKS = {
    ("Pyro", "check"): "print(pyro.infer.Trace_ELBO().loss(model, pyro.infer.autoguide.AutoNormal(model), *data))",
    ("Pyro", "fit"): """
guide = pyro.infer.autoguide.AutoNormal(model)
svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), pyro.infer.Trace_ELBO())
print(sum([svi.step(*data) for _ in range(2000)][-200:]) / 200, guide.median())
""",
    ("Pyro", "mcmc"): """
m = pyro.infer.MCMC(pyro.infer.NUTS(model), num_samples=1000, warmup_steps=500, disable_progbar=True)
m.run(*data)
m.summary()
""",
    ("NumPyro", "check"): """
found = numpyro.handlers.trace(numpyro.handlers.seed(model, 0)).get_trace(*data)
values = {k: s["value"] for k, s in found.items() if s["type"] == "sample" and not s["is_observed"]}
print(numpyro.infer.util.log_density(model, data, {}, values)[0])
""",
    ("NumPyro", "fit"): """
from numpyro.infer import SVI, Trace_ELBO, autoguide
svi = SVI(model, autoguide.AutoNormal(model), numpyro.optim.Adam(0.02), Trace_ELBO())
found = svi.run(jax.random.PRNGKey(0), 2000, *data, progress_bar=False)
print(found.losses[-200:].mean(), found.params)
""",
    ("NumPyro", "mcmc"): """
from numpyro.infer import MCMC, NUTS
m = MCMC(NUTS(model), num_warmup=500, num_samples=1000, num_chains=4, chain_method="vectorized", progress_bar=False)
m.run(jax.random.PRNGKey(0), *data)
m.print_summary()
""",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="a Python that has NumPyro; without it that column is left out")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(COMMANDS))
    parser.add_argument("--cap", type=int, default=120, help="CPU seconds of a process")
    parser.add_argument("--out", type=Path, default=Path("felt.jsonl"))
    parser.add_argument("--table", type=Path, metavar="FILE", help="print the table of a file, and run nothing")
    options = parser.parse_args()
    if options.table:
        _print(options.table)
        return
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # what outlives a command becomes a child of this process
    with tempfile.TemporaryDirectory() as place, tempfile.TemporaryDirectory() as kept:
        _write_rows(Path(place) / "rows.csv")
        for name in options.only:
            if name != "check":
                _ppgen(name, place, 10 * options.cap, kept, "--engine", "compile")
        cut: set[tuple[str, str]] = set()
        for _ in range(options.repeats):
            for name in options.only:
                for method, seconds in _measured(name, options, place, kept, cut):
                    cut |= {(name, method)} if seconds is None else set()
                    line = {"command": name, "method": method, "seconds": seconds, "cap": options.cap}
                    with options.out.open("a") as file:
                        file.write(json.dumps(line) + "\n")
    _print(options.out)


def _measured(
    name: str, options: argparse.Namespace, place: str, kept: str, cut: set[tuple[str, str]]
) -> Iterator[tuple[str, float | None]]:
    """(method, CPU seconds or None where it was cut) of each that was not cut before."""
    cap = options.cap
    with tempfile.TemporaryDirectory() as empty:
        yield COLUMNS[0], _ppgen(name, place, cap, empty)
    yield COLUMNS[1], _ppgen(name, place, cap, kept)
    task = "fit" if name == "regression" else name
    program = REGRESSION if name == "regression" else SCHOOLS
    for method, python, head in (("NumPyro", options.peer, NUMPYRO), ("Pyro", sys.executable, PYRO)):
        if python is not None and (name, method) not in cut:
            yield method, _seconds([python, "-c", head + program + TASKS[method, task]], place, cap, {})


def _ppgen(name: str, place: str, cap: int, cache: str, *more: str) -> float | None:
    command = [sys.executable, "-c", "from ppgen.cli import main; main()", *COMMANDS[name].split(), *more]
    with tempfile.TemporaryDirectory() as out:
        to = [] if name == "check" else ["--out", f"{out}/found.nc" if name == "mcmc" else f"{out}/run"]
        return _seconds([*command, *to], place, cap, {"XDG_CACHE_HOME": cache})


def _seconds(command: list[str], place: str, cap: int, own: dict[str, str]) -> float | None:
    """CPU seconds of a process with the children that it has waited for."""
    env = {**os.environ, **own, "OMP_NUM_THREADS": "1"}
    env["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).resolve().parents[1]), env.get("PYTHONPATH", "")])
    before = _cpu()
    process = subprocess.Popen(
        command, cwd=place, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (cap, cap + 1)),
    )  # fmt: skip
    assert process.stderr is not None
    said = process.stderr.read()
    rc = process.wait()
    mine = _cpu() - before
    for child in _left_behind():
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if rc not in (0, -signal.SIGXCPU, -signal.SIGKILL):
        raise SystemExit(f"{' '.join(command[-6:])}: {said[-800:]}")
    return mine if rc == 0 else None


def _left_behind() -> list[int]:
    """Processes that a command has left to this one."""
    found = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [int(pid) for pid in found]


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _write_rows(path: Path) -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 5))
    y = rng.random(1000) < 1 / (1 + np.exp(-x @ rng.normal(size=5)))
    rows = "\n".join(",".join([str(int(a)), *(f"{v:.5f}" for v in b)]) for a, b in zip(y, x, strict=True))
    path.write_text(f"y,a,b,c,d,e\n{rows}\n")


def _print(path: Path) -> None:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    print("| command | " + " | ".join(COLUMNS) + " | runs |\n|---|" + "---:|" * (len(COLUMNS) + 1))
    for name, command in COMMANDS.items():
        own = [x for x in lines if x["command"] == name]
        if not own:
            continue
        cells = [_cell([x for x in own if x["method"] == method]) for method in COLUMNS]
        print(f"| `ppgen {command}` | {' | '.join(cells)} | {sum(x['method'] == COLUMNS[0] for x in own)} |")


def _cell(lines: list[dict]) -> str:
    if not lines:
        return "–"
    if any(x["seconds"] is None for x in lines):
        return f"> {lines[0]['cap']}"
    return f"{statistics.median(x['seconds'] for x in lines):.1f}"


if __name__ == "__main__":
    main()
