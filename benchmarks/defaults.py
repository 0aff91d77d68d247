"""What `ppgen fit MODEL --data D` gives with no option beside, for each model of the catalogue, and what options give.

    python benchmarks/defaults.py [--only flow vae] [--sides default best] [--seconds 330] [--out FILE.jsonl]
    python benchmarks/defaults.py --table FILE.jsonl

D is a built-in data set, or a table that is drawn here from a seed. Each fit is a process of its own, of one thread,
which ends after so many CPU seconds (its share of a compilation in the background is not counted); what is then there
is a checkpoint, and is said to be unfinished. `best` has the options below: those of the model's page where it has a
fit of these data, else a longer fit at a tuned learning rate. What FILE has is not run again. Figures: the ELBO (of
what has no latent log p(x)) in nats, of held-out rows a row where latents are a row's own, else of all rows together;
the same draws for both sides.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

TUNED = "--lr 0.02 --schedule cosine --steps 10000"


class Entry(NamedTuple):
    data: str  # built in, or a function of this file
    best: str = TUNED
    spec: str | None = None  # what stands for MODEL; None: the entry's name
    columns: str | None = None
    rows: int | None = None  # held-out rows that are evaluated; None: all
    particles: int | None = 100


PAGE = "--batch-size 128 --lr 0.003 --schedule cosine"
CHAIN = PAGE + " --ema 0.995"
ENTRIES = {
    "eight_schools": Entry("eight_schools"),
    "linear_regression": Entry("lines"),
    "logistic_regression": Entry("votes"),
    "count_regression": Entry("counts"),
    "radon": Entry("houses"),
    "regression": Entry("groups", spec="y ~ x + (1 + x | g)"),
    "gaussian_mixture": Entry("clusters"),
    "hidden_markov": Entry("regimes"),
    "gaussian_process": Entry("curves"),
    "arma": Entry("series"),
    "state_space": Entry("sensors", "--lr 0.05 --schedule cosine --steps 2000"),
    "deep_markov": Entry("notes", "--lr 0.005 --schedule cosine --steps 3000 --batch-size 32"),
    "ppca": Entry("digits", "--lr 0.01 --schedule cosine --steps 10000"),
    "vae": Entry("digits", PAGE + " --steps 3000 --set dropout=0.1"),
    "clustering_vae": Entry("digits", PAGE + " --steps 3000"),
    "semi_supervised_vae": Entry("digits", PAGE + " --steps 3000"),
    "ladder_vae": Entry("digits", PAGE + " --steps 3000 --kl-warmup 300"),
    "masked_diffusion": Entry("digits", CHAIN + " --steps 3000", rows=100),
    "flow": Entry("moons", "--batch-size 256 --lr 0.003 --schedule cosine --steps 3000"),
    "flow_matching": Entry("moons", "--batch-size 256 --lr 0.003 --schedule cosine --ema 0.995 --steps 3000", rows=400),
    "diffusion": Entry("digits", CHAIN + " --steps 3000", rows=60),
    "ddpm": Entry("digits", CHAIN + " --steps 3000", rows=60),
    "vdm": Entry("digits", CHAIN + " --steps 3000", rows=60),
    "edm": Entry("digits", CHAIN + " --steps 3000", rows=60),
    "diffusion_bridge": Entry("spots", "--batch-size 256 --lr 0.003 --schedule cosine --ema 0.99 --steps 800", rows=99),
    "autoregressive": Entry("digits", "--batch-size 128 --lr 0.002 --schedule cosine --steps 1500"),
    "vq_vae": Entry("digits", PAGE + " --steps 3000"),
    "image_flow": Entry("digits", "--batch-size 128 --lr 0.002 --schedule cosine --steps 1500"),
}


# -- tables -----------------------------------------------------------------------------------------------------------


def lines(rng: np.random.Generator) -> dict[str, np.ndarray]:
    x = rng.normal(size=(500, 5))
    return {"x": x, "y": x @ [1.0, -0.5, 0.0, 2.0, 0.3] + 1.0 + rng.normal(size=500)}


def votes(rng: np.random.Generator) -> dict[str, np.ndarray]:
    x = rng.normal(size=(1000, 10))
    logits = x @ np.linspace(-1, 1, 10) + 0.3
    return {"x": x, "y": (rng.random(1000) < 1 / (1 + np.exp(-logits))).astype(float)}


def counts(rng: np.random.Generator) -> dict[str, np.ndarray]:
    x = rng.normal(size=(500, 3))
    return {"x": x, "y": rng.poisson(np.exp(x @ [0.4, -0.3, 0.1] + 1.0)).astype(float)}


def houses(rng: np.random.Generator) -> dict[str, np.ndarray]:
    county, floor = rng.integers(85, size=919), rng.integers(2, size=919)
    y = (1.4 + 0.3 * rng.normal(size=85))[county] - 0.6 * floor + 0.75 * rng.normal(size=919)
    return {"county": county, "floor": floor, "y": y}


def groups(rng: np.random.Generator) -> dict[str, np.ndarray]:
    g, x = rng.integers(20, size=400), rng.normal(size=400)
    a, b = 0.7 * rng.normal(size=20), 0.4 * rng.normal(size=20)
    return {"x": x, "g": np.array([f"g{i:02d}" for i in g]), "y": 0.5 + a[g] + (0.6 + b[g]) * x + rng.normal(size=400)}


def clusters(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"x": np.where(rng.random(600) < 0.3, rng.normal(-2.0, 0.6, 600), rng.normal(1.5, 1.0, 600))}


def regimes(rng: np.random.Generator) -> dict[str, np.ndarray]:
    state = np.zeros((20, 50), int)
    for t in range(1, 50):
        state[:, t] = np.where(rng.random(20) < 0.1, 1 - state[:, t - 1], state[:, t - 1])
    return {"y": 2.0 * state - 1.0 + 0.6 * rng.normal(size=(20, 50))}


def curves(rng: np.random.Generator) -> dict[str, np.ndarray]:
    x = np.sort(rng.uniform(-3, 3, 60))
    return {"x": x, "y": np.sin(2 * x) + 0.3 * rng.normal(size=60)}


def series(rng: np.random.Generator) -> dict[str, np.ndarray]:
    y, noise = np.zeros((10, 100)), 0.5 * rng.normal(size=(10, 100))
    for t in range(1, 100):
        y[:, t] = 0.2 + 0.7 * y[:, t - 1] + noise[:, t] + 0.3 * noise[:, t - 1]
    return {"y": y}


def sensors(rng: np.random.Generator) -> dict[str, np.ndarray]:
    turn = 0.99 * np.array([[0.921, -0.389], [0.389, 0.921]])
    z, x = rng.normal(size=(30, 2)), []
    for _ in range(40):
        z = z @ turn.T + 0.1 * rng.normal(size=(30, 2))
        x.append(z + 0.5 * rng.normal(size=(30, 2)))
    return {"x": np.stack(x, 1)}


def notes(rng: np.random.Generator) -> dict[str, np.ndarray]:
    note = (rng.integers(8, size=(300, 1)) + np.arange(12)) % 8
    one, both = np.eye(8), rng.random((300, 1, 1)) < 0.5
    return {"x": one[note] + both * one[(note + 2) % 8], "length": rng.integers(6, 13, 300).astype(float)}


def spots(rng: np.random.Generator) -> dict[str, np.ndarray]:
    def around(radius: float) -> np.ndarray:
        angle = rng.integers(8, size=4000) * np.pi / 4
        return radius * np.stack([np.cos(angle), np.sin(angle)], -1) + 0.15 * rng.normal(size=(4000, 2))

    return {"x0": around(0.8), "x": around(2.5)}


def table(name: str, folder: Path) -> str:
    """Where the data are: a name that is built in, or a file that is made here."""
    if name not in globals():
        return name
    columns = globals()[name](np.random.default_rng(0))
    if any(v.dtype.kind == "U" for v in columns.values()):
        path = folder / f"{name}.csv"
        rows = zip(*columns.values(), strict=True)
        path.write_text("\n".join([",".join(columns), *(",".join(map(str, r)) for r in rows)]) + "\n")
    else:
        path = folder / f"{name}.npz"
        np.savez(path, **columns)
    return str(path)


# -- fits -------------------------------------------------------------------------------------------------------------


def run_one(name: str, side: str, seconds: int, folder: Path) -> dict[str, Any]:
    """One fit in a process of its own, and the figure of what it left in the folder."""
    entry, run = ENTRIES[name], folder / f"{name}-{side}"
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "ppgen", "fit", entry.spec or name, "--data", table(entry.data, folder)]
    command += ["--columns", entry.columns] if entry.columns else []
    command += entry.best.split() if side == "best" else []
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    limit = f'ulimit -t {seconds}; exec "$@"'
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-c", limit, "bash", *command, "--out", str(run)], env=env, capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    said = {"model": name, "side": side, "cpu": round(cpu, 1), "wall": round(time.monotonic() - started, 1)}
    said |= {"rc": done.returncode, "first": done.stdout.splitlines()[:1], "error": done.stderr[-300:]}
    if not (run / "state.safetensors").is_file():
        return said
    config, rows = json.loads((run / "config.json").read_text()), (run / "metrics.csv").read_text().splitlines()
    said |= {"fit": config["fit"], "steps": int(rows[-1].split(",")[0]) if len(rows) > 1 else 0}
    figure = subprocess.run(
        [sys.executable, __file__, "--evaluate", name, str(run)], env=env, capture_output=True, text=True
    )
    found = json.loads(figure.stdout.splitlines()[-1]) if figure.returncode == 0 else {"error": figure.stderr[-300:]}
    return said | found


def evaluate(name: str, path: str) -> dict[str, Any]:
    """The ELBO of a run, and its standard error over rows."""
    import torch

    from ppgen.data import n_rows, take
    from ppgen.inference import loglik
    from ppgen.run import Run

    torch.set_num_threads(1)
    entry, run = ENTRIES[name], Run.load(path)
    data = run.data("test") if run.config["data"].get("split") == "train" else run.data()
    if entry.rows and n_rows(data) > entry.rows:
        data = take(data, slice(0, entry.rows))
    found = loglik(run, data, particles=entry.particles, seed=0).bounds[0]
    return {"figure": float(found.mean), "se": float(found.rows_se), "of": found.name}


def print_table(path: Path) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    by = {(r["model"], r["side"]): r for r in rows}  # the last of each
    print("| model, data | taken | steps | CPU s | no option | options | off |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for name, entry in ENTRIES.items():
        own, best = by.get((name, "default")), by.get((name, "best"))
        if own is None:
            continue
        o = own.get("fit", {})
        taken = f"{o.get('batch_size') or 'all'} rows, lr {o.get('lr', 0):.2g} {o.get('schedule')}"
        taken += f", ema {o['ema']}" if o.get("ema") else ""
        figures = [r.get("figure") if r else None for r in (own, best)]
        shown = ["" if f is None else f"{f:.2f}" for f in figures]
        off = "" if None in figures else f"{(figures[1] - figures[0]) / abs(figures[1]):+.1%}"
        ended = "" if own["rc"] == 0 else " (unfinished)"
        cells = [f"{name}, {entry.data}", taken, f"{own.get('steps')}{ended}", f"{own['cpu']:.0f}", *shown, off]
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(ENTRIES))
    parser.add_argument("--sides", nargs="*", default=["default", "best"])
    parser.add_argument("--seconds", type=int, default=330, help="CPU seconds of a fit, at most")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--runs", type=Path, help="where the run folders are left; by default they are not")
    parser.add_argument("--table", type=Path)
    parser.add_argument("--evaluate", nargs=2, help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.evaluate:
        print(json.dumps(evaluate(*o.evaluate)))
        return
    if o.table:
        print_table(o.table)
        return
    lines = o.out.read_text().splitlines() if o.out is not None and o.out.is_file() else []
    there = {(r["model"], r["side"]) for r in map(json.loads, lines)}
    for name in o.only:
        for side in o.sides:
            if (name, side) in there:
                continue
            with tempfile.TemporaryDirectory() as folder:
                line = json.dumps(run_one(name, side, o.seconds, o.runs or Path(folder)))
            print(line if o.out is None else f"{name} {side}", flush=True)
            if o.out is not None:
                with o.out.open("a") as file:
                    file.write(line + "\n")


if __name__ == "__main__":
    main()
