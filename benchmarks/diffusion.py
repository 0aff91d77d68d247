"""Diffusion: two-dimensional toys, and bits/dim of images. `benchmarks/denoisers.py` has speed beside its peers.

    python benchmarks/diffusion.py toys [NAME ...] [--steps 1500] [--schedule cosine]
    python benchmarks/diffusion.py images RUN [--rows 200] [--times 50] [--ode 40]   a run on images

toys: a classifier is trained to tell draws from data, and its accuracy on held-out halves is printed: 0.5 is chance.
images: the bound and the figure of the ODE on test rows, both bits/dim and both upper bounds on what the model spends,
and a grid of draws at 20 steps, RUN/draws.png.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def toy(name: str, n: int, seed: int) -> Tensor:
    """(n, 2) points of a distribution in the plane."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(n, 2))
    if name == "moons":
        a, side = rng.uniform(0, math.pi, n), rng.integers(0, 2, n)
        x = np.stack([np.cos(a) * (1 - 2 * side) + side, np.sin(a) * (1 - 2 * side) + side * 0.5], 1) * 2 + 0.1 * noise
    elif name == "rings":
        a, r = rng.uniform(0, 2 * math.pi, n), rng.choice([1.0, 2.0, 3.0], n)
        x = np.stack([np.cos(a), np.sin(a)], 1) * r[:, None] + 0.08 * noise
    elif name == "checkerboard":
        u = rng.uniform(-4, 4, n)
        v = rng.uniform(0, 2, n) + 2 * (np.floor(u / 2) % 2) + rng.choice([-4.0, 0.0], n)
        x = np.stack([u, v], 1)
    elif name == "eight_gaussians":
        a = rng.integers(0, 8, n) * math.pi / 4
        x = 3 * np.stack([np.cos(a), np.sin(a)], 1) + 0.3 * noise
    elif name == "pinwheel":
        arm = rng.integers(0, 5, n)
        radial, across = 0.3 * noise[:, 0] + 1, 0.1 * noise[:, 1]
        a = arm * 2 * math.pi / 5 + 0.25 * np.exp(radial)
        x = 2 * np.stack([radial * np.cos(a) - across * np.sin(a), radial * np.sin(a) + across * np.cos(a)], 1)
    elif name == "spirals":
        a = np.sqrt(rng.uniform(size=n)) * 3 * math.pi
        x = np.stack([-np.cos(a), np.sin(a)], 1) * a[:, None] * rng.choice([-1, 1], n)[:, None] / 3 + 0.1 * noise
    elif name == "swiss_roll":
        a = 1.5 * math.pi * (1 + 2 * rng.uniform(size=n))
        x = np.stack([np.cos(a), np.sin(a)], 1) * a[:, None] / 5 + 0.1 * noise
    else:  # waves
        u = rng.uniform(-4, 4, n)
        x = np.stack([u, 2 * np.sin(2 * u) + 0.2 * noise[:, 1]], 1)
    return torch.tensor(x, dtype=torch.float32)


TOYS = ("moons", "rings", "checkerboard", "eight_gaussians", "pinwheel", "spirals", "swiss_roll", "waves")


def accuracy(a: Tensor, b: Tensor) -> float:
    """Of a classifier that tells a from b, on the half that it has not seen."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    x = torch.cat([a, b]).numpy()
    y = np.repeat([0, 1], len(a))
    order = np.random.default_rng(0).permutation(len(x))
    half = len(x) // 2
    model = HistGradientBoostingClassifier(max_iter=100, random_state=0).fit(x[order[:half]], y[order[:half]])
    return float(model.score(x[order[half:]], y[order[half:]]))


def toys(names: list[str], steps: int, schedule: str, batch: int) -> None:
    from ppgen.inference import fit, loglik
    from ppgen.inference.diffusion.samplers import sample_diffusion
    from ppgen.models import Diffusion

    print(f"{'':16s}{'accuracy':>10s}{'chance':>9s}{'nats, bound':>13s}{'± rows':>8s}{'CPU s':>7s}", flush=True)
    for name in names or TOYS:
        x, test, more = (toy(name, 10_000, seed) for seed in (0, 1, 2))
        began = time.process_time()
        torch.manual_seed(0)
        how = {"batch_size": batch, "lr": 2e-3, "schedule": "cosine", "ema": 0.998, "engine": "trace"}
        run = fit(Diffusion(2, hidden=(128,) * 3, steps=0, schedule=schedule), {"x": x}, steps=steps, **how)
        seconds = time.process_time() - began
        drawn = sample_diffusion(run, 10_000, "ancestral", 200, seed=0)
        bound = loglik(run, {"x": test[:1000]}, particles=50).best
        print(
            f"{name:16s}{accuracy(test, drawn):10.3f}{accuracy(test, more):9.3f}{bound.mean:13.3f}{bound.rows_se:8.3f}"
            f"{seconds:7.0f}",
            flush=True,
        )


def images(path: str, rows: int, times: int, ode: int, tolerance: float, data_dir: str | None) -> None:
    """The bound on test rows, and the ODE's figure on the first `ode` of them, with the difference of the two there."""
    from ppgen import data
    from ppgen.chains.gaussian_chain import GaussianChain
    from ppgen.inference.diffusion.elbo_decomposition import chain_elbo
    from ppgen.inference.diffusion.ode import ode_loglik
    from ppgen.inference.diffusion.samplers import sample_diffusion
    from ppgen.inference.report.figures import save
    from ppgen.inference.report.sample_plots import samples_figure
    from ppgen.run import Run, prepare_columns

    run = Run.load(path)
    source = run.config["data"]
    x = data.load(source["source"], "test", data_dir=data_dir or source.get("data_dir"))["x"]
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:rows]]
    began = time.process_time()
    found = chain_elbo(run, {"x": x}, times=times)
    b = found.best
    scale = 1 / ((found.dims or 1) * math.log(2))
    print(
        f"{path}: elbo, a lower bound on log P(x): {-b.mean * scale:.4f} bits/dim, Monte Carlo "
        f"± {b.mean_se * scale:.4f}, rows ± {b.rows_se * scale:.4f}, {len(x)} test rows, "
        f"{time.process_time() - began:.0f} CPU s",
        flush=True,
    )
    if ode:
        began = time.process_time()
        program = run.program
        assert isinstance(program, GaussianChain)
        torch.manual_seed(0)
        flow = ode_loglik(program.eval(), prepare_columns({"x": x[:ode]}, program, run.dtype), tolerance=tolerance)
        gain = scale * (b.values[:ode] - flow.values)
        print(
            f"{path}: ode, a lower bound on log P(x): {-flow.mean * scale:.4f} bits/dim, rows "
            f"± {flow.rows_se * scale:.4f}, {ode} of the rows; there {gain.mean():+.4f} ± "
            f"{gain.std() / math.sqrt(ode):.4f} beside the elbo; tolerance {tolerance:g}, "
            f"{time.process_time() - began:.0f} CPU s",
            flush=True,
        )
    began = time.process_time()
    drawn = sample_diffusion(run, 64, "dpmpp", 20, seed=0)
    print(f"64 draws at 20 steps in {time.process_time() - began:.1f} CPU s")
    figure = samples_figure(run, drawn={"x": drawn})
    if figure is not None:
        print(save(figure, Path(path) / "draws.png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="toys", choices=["toys", "images"])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--schedule", default="loglinear")
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--ode", type=int, default=0, help="rows whose figure by the ODE is computed")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--data-dir")
    o = parser.parse_args()
    torch.set_num_threads(1)
    if o.what == "toys":
        toys(o.names, o.steps, o.schedule, o.batch_size)
    else:
        for path in o.names:
            images(path, o.rows, o.times, o.ode, o.tolerance, o.data_dir)


if __name__ == "__main__":
    main()
