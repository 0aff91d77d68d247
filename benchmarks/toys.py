"""Eight toys in the plane: data, the density of a flow and draws from it, side by side in one picture.

    python benchmarks/toys.py [--steps 300] [--out docs/benchmarks/toys.png]

Each flow is fitted to 20 000 points by `ppgen.fit`; the table gives the exact log-likelihood of 5 000 others, and for
those toys whose density is known, what the true density would give them.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from ppgen.inference import fit, loglik, sample
from ppgen.models import Flow
from ppgen.style import BLUE, DENSITY, GREY

Toy = Callable[[np.random.Generator, int], np.ndarray]


def moons(g: np.random.Generator, n: int) -> np.ndarray:
    t, side = math.pi * g.random(n), g.integers(2, size=n)
    x = np.stack([np.cos(t), np.sin(t)], 1)
    return np.where(side[:, None] == 1, [1.0, 0.5] - x, x) + 0.1 * g.normal(size=(n, 2))


def rings(g: np.random.Generator, n: int) -> np.ndarray:
    t, r = 2 * math.pi * g.random(n), g.integers(1, 4, size=n) + 0.1 * g.normal(size=n)
    return np.stack([r * np.cos(t), r * np.sin(t)], 1)


def checkerboard(g: np.random.Generator, n: int) -> np.ndarray:
    column, row = g.integers(4, size=n), 2 * g.integers(2, size=n)
    return np.stack([column, row + column % 2], 1) - 2 + g.random((n, 2))


def pinwheel(g: np.random.Generator, n: int) -> np.ndarray:
    arm, x = g.integers(5, size=n), g.normal(size=(n, 2)) * [0.3, 0.05] + [1.0, 0.0]
    angle = 2 * math.pi * arm / 5 + 0.25 * np.exp(x[:, 0])
    c, s = np.cos(angle), np.sin(angle)
    return 2 * np.stack([c * x[:, 0] - s * x[:, 1], s * x[:, 0] + c * x[:, 1]], 1)


def spirals(g: np.random.Generator, n: int) -> np.ndarray:
    t, side = np.sqrt(g.random(n)) * 3 * math.pi, 2 * g.integers(2, size=n) - 1
    x = np.stack([-np.cos(t) * t, np.sin(t) * t], 1) / 3
    return side[:, None] * x + 0.1 * g.normal(size=(n, 2))


def eight_gaussians(g: np.random.Generator, n: int) -> np.ndarray:
    t = math.pi / 4 * g.integers(8, size=n)
    return 3 * np.stack([np.cos(t), np.sin(t)], 1) + 0.3 * g.normal(size=(n, 2))


def swiss_roll(g: np.random.Generator, n: int) -> np.ndarray:
    t = 1.5 * math.pi * (1 + 2 * g.random(n))
    return np.stack([t * np.cos(t), t * np.sin(t)], 1) / 4 + 0.1 * g.normal(size=(n, 2))


def waves(g: np.random.Generator, n: int) -> np.ndarray:
    x = 6 * g.random(n) - 3
    return np.stack([x, np.sin(2 * x) + 0.15 * g.normal(size=n)], 1)


TOYS: dict[str, Toy] = {
    f.__name__.replace("_", " "): f
    for f in (moons, rings, checkerboard, pinwheel, spirals, eight_gaussians, swiss_roll, waves)
}


def true_log_density(name: str, x: np.ndarray) -> np.ndarray | None:
    """In nats, where it has a closed form."""
    if name == "checkerboard":
        return np.full(len(x), -math.log(8))
    if name == "eight gaussians":
        t = math.pi / 4 * np.arange(8)
        centres = 3 * np.stack([np.cos(t), np.sin(t)], 1)
        squares = ((x[:, None] - centres) ** 2).sum(-1) / 0.3**2
        return np.log(np.exp(-squares / 2).mean(1) / (2 * math.pi * 0.3**2))
    if name == "rings":
        r = np.linalg.norm(x, axis=1)
        radial = np.mean([np.exp(-(((r - k) / 0.1) ** 2) / 2) for k in (1, 2, 3)], 0) / (0.1 * math.sqrt(2 * math.pi))
        return np.log(radial / (2 * math.pi * r))
    if name == "waves":
        e = (x[:, 1] - np.sin(2 * x[:, 0])) / 0.15
        return -math.log(6) - e**2 / 2 - math.log(0.15 * math.sqrt(2 * math.pi))
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--bins", type=int, default=16)
    parser.add_argument("--family", default="nsf_coupling")
    parser.add_argument("--transforms", type=int, default=6)
    parser.add_argument("--engine", default="trace")
    parser.add_argument("--out", type=Path)
    o = parser.parse_args()
    torch.set_num_threads(1)
    figure = Figure(figsize=(12.4, 8.6), layout="constrained")
    axes = figure.subplots(4, 6)
    began = time.process_time()
    for k, (name, toy) in enumerate(TOYS.items()):
        g = np.random.default_rng(0)
        train, test = (torch.from_numpy(toy(g, n)).float() for n in (20_000, 5000))
        torch.manual_seed(0)
        # matrices between the couplings: no direction is the favourite
        flow = Flow(2, family=o.family, transforms=o.transforms, mix="lu", settings={"bins": o.bins, "bound": 4.0})
        run = fit(flow, {"x": train}, steps=o.steps, batch_size=512, lr=4e-3, schedule="cosine", clip=5.0, ema=0.99,
                  engine=o.engine)  # fmt: skip
        found = loglik(run, {"x": test}).best
        true = true_log_density(name, test.double().numpy())
        known = "" if true is None else f"; the true density {true.mean():.3f}"
        print(f"{name:16} {found.mean:.3f} ± {found.rows_se:.3f} nats a row, {found.kind}{known}", flush=True)
        row = axes[k // 2, 3 * (k % 2) : 3 * (k % 2) + 3]
        _draw(row, name, test.numpy(), flow, sample(run, len(test), seed=0)["x"].numpy(), head=k < 2)
    print(f"{time.process_time() - began:.0f} s of CPU time, 1 thread")
    if o.out:
        figure.savefig(o.out, dpi=100)
        print(o.out)


def _draw(axes: np.ndarray, name: str, x: np.ndarray, flow: Flow, draws: np.ndarray, head: bool) -> None:
    low, high = x.min(0) - 0.4, x.max(0) + 0.4
    u, v = (torch.linspace(float(low[i]), float(high[i]), 200) for i in range(2))
    with torch.no_grad():
        density = flow.log_prob(torch.cartesian_prod(u, v)).exp().reshape(200, 200).T
    axes[0].plot(*x.T, ".", ms=1.2, color=GREY, rasterized=True)
    axes[1].pcolormesh(u, v, density, cmap=DENSITY, rasterized=True)
    axes[2].plot(*draws.T, ".", ms=1.2, color=BLUE, rasterized=True)
    for axis, title in zip(axes, ("data", "density learned", "draws"), strict=True):
        axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xticks=[], yticks=[])
        if head:
            axis.set_title(title)
    axes[0].set_ylabel(name)


if __name__ == "__main__":
    main()
