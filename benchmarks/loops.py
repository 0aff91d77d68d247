"""Two models that are loops, as people write them, for `whole_calls.py`: GARCH(1, 1) and Lotka-Volterra by Runge-Kutta.

    python benchmarks/loops.py [--engine auto] [--steps 400]    # CPU seconds of fits of long loops

Data are drawn from the models. Truths: importance sampling in NumPy from a t of 7 degrees about the top, which shares
no code with ppgen.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import numpy as np
import pyro
import torch
from hard_targets import Target
from pyro.distributions import HalfNormal, LogNormal, Normal, Uniform
from scipy.optimize import minimize
from torch import Tensor

STEPS = 5  # of Runge-Kutta a year


def by_importance(
    log_p: Callable[[np.ndarray], np.ndarray],
    start: np.ndarray,
    out: Callable[[np.ndarray], np.ndarray],
    n: int = 40_000,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sd of out(u), u of density log_p, (n, dim) -> (n,).

    Raises:
        ValueError: fewer than a tenth of the draws are effective.
    """
    dim = len(start)
    top = minimize(lambda u: -log_p(u[None])[0], start, method="Nelder-Mead", options={"maxiter": 20_000, "xatol": 1e-6,
                   "fatol": 1e-8, "adaptive": True}).x  # fmt: skip
    h, e = 1e-4, np.eye(dim)
    pairs = [(i, j) for i in range(dim) for j in range(i + 1)]
    corners = np.array([top + h * (a * e[i] + b * e[j]) for i, j in pairs for a in (1, -1) for b in (1, -1)])
    values = log_p(corners).reshape(-1, 4) @ [1, -1, -1, 1] / (4 * h**2)
    curve = np.zeros((dim, dim))
    for (i, j), v in zip(pairs, values, strict=True):
        curve[i, j] = curve[j, i] = -v
    root, rng = np.linalg.cholesky(np.linalg.inv(curve)), np.random.default_rng(0)
    t = rng.normal(size=(n, dim)) * np.sqrt(7 / rng.chisquare(7, n))[:, None]
    u = top + t @ root.T
    log_w = log_p(u) + 0.5 * (7 + dim) * np.log1p((t**2).sum(-1) / 7)
    w = np.exp(log_w - log_w.max())
    w /= w.sum()
    if 1 / (w @ w) < n / 10:
        raise ValueError(f"{1 / (w @ w):.0f} of {n} draws are effective")
    x = out(u)
    mean = w @ x
    return mean, np.sqrt(w @ (x - mean) ** 2)


def normal(x: np.ndarray, loc: float | np.ndarray, sd: float | np.ndarray) -> np.ndarray:
    return -0.5 * ((x - loc) / sd) ** 2 - np.log(sd) - 0.5 * math.log(2 * math.pi)


# -- GARCH -------------------------------------------------------------------------------------------------


def garch_model(y: Tensor) -> None:
    """v_t = a + b (y_{t-1} - m)² + (1 - b) c v_{t-1},  y_t ~ N(m, v_t),  v_0 = 1."""
    m, a = pyro.sample("m", Normal(0.0, 1.0)), pyro.sample("a", HalfNormal(1.0))
    b, c = pyro.sample("b", Uniform(0.0, 1.0)), pyro.sample("c", Uniform(0.0, 1.0))
    off, v = (y - m) ** 2, torch.ones(())
    vs = [v]
    for t in range(1, len(y)):
        v = a + b * off[t - 1] + (1 - b) * c * v
        vs.append(v)
    pyro.sample("y", Normal(m, torch.stack(vs).sqrt()).to_event(1), obs=y)


def garch() -> Target:
    rng, y, v = np.random.default_rng(0), np.zeros(200), 1.0
    for t in range(200):
        v = 0.3 + 0.35 * (y[t - 1] - 0.5) ** 2 + 0.65 * 0.6 * v if t else 1.0
        y[t] = 0.5 + math.sqrt(v) * rng.normal()

    def natural(u: np.ndarray) -> np.ndarray:
        return np.stack([u[:, 0], np.exp(u[:, 1]), *(1 / (1 + np.exp(-u[:, 2:].T)))], -1)

    def log_p(u: np.ndarray) -> np.ndarray:
        m, a, b, c = natural(u).T
        v, total = np.ones(len(u)), normal(m, 0, 1) - a**2 / 2 + u[:, 1] + np.log(b * (1 - b) * c * (1 - c))
        for t in range(len(y)):
            v = a + b * (y[t - 1] - m) ** 2 + (1 - b) * c * v if t else v
            total = total + normal(y[t], m, np.sqrt(v))
        return total

    truth = by_importance(log_p, np.array([0.5, -1.0, -0.5, 0.5]), natural)
    return Target(garch_model, {"y": torch.tensor(y)}, lambda d: np.stack([d[n] for n in "mabc"], -1), *truth)


# -- Lotka-Volterra ----------------------------------------------------------------------------------------


def growth(z, theta):  # of tensors and arrays alike: hares z[0] and lynx z[1]
    a, b, c, d = theta
    return [(a - b * z[1]) * z[0], (-c + d * z[0]) * z[1]]


def years(z, theta, n):
    """The state at 0, 1, ..., n - 1 years."""
    found, h = [z], 1 / STEPS
    for _ in range((n - 1) * STEPS):
        k1 = growth(z, theta)
        k2 = growth([x + h / 2 * k for x, k in zip(z, k1, strict=True)], theta)
        k3 = growth([x + h / 2 * k for x, k in zip(z, k2, strict=True)], theta)
        k4 = growth([x + h * k for x, k in zip(z, k3, strict=True)], theta)
        z = [x + h / 6 * (p + 2 * q + 2 * r + s) for x, p, q, r, s in zip(z, k1, k2, k3, k4, strict=True)]
        found.append(z)
    return found[::STEPS]


SCALES = {"a": (1.0, 0.5), "b": (0.05, 0.05), "c": (1.0, 0.5), "d": (0.05, 0.05)}


def lotka_model(log_y: Tensor) -> None:
    """log y ~ N(log z(t), s) of both kinds, (years, 2)."""
    theta = [pyro.sample(n, LogNormal(math.log(loc), sd / loc)) for n, (loc, sd) in SCALES.items()]
    start = [pyro.sample(n, LogNormal(math.log(10.0), 1.0)) for n in ("h0", "l0")]
    s = pyro.sample("s", LogNormal(-1.0, 1.0))
    z = torch.stack([torch.stack(each) for each in years(start, theta, len(log_y))])
    pyro.sample("log_y", Normal(z.log(), s).to_event(2), obs=log_y)


def lotka_volterra() -> Target:
    with np.errstate(all="ignore"):
        z = np.array(years([30.0, 5.0], [0.55, 0.028, 0.8, 0.024], 20))
    log_y = np.log(z) + 0.25 * np.random.default_rng(0).normal(size=z.shape)
    loc = np.array([math.log(v[0]) for v in SCALES.values()] + [math.log(10.0)] * 2 + [-1.0])
    sd = np.array([v[1] / v[0] for v in SCALES.values()] + [1.0] * 3)

    def log_p(u: np.ndarray) -> np.ndarray:  # all latents are log-normal: of their logs
        with np.errstate(all="ignore"):
            values = np.exp(u).T
            z = np.log(np.array(years(list(values[4:6]), list(values[:4]), 20)))
            total = normal(u, loc, sd).sum(-1) + normal(log_y[..., None], z, values[6]).sum((0, 1))
        return np.where(np.isfinite(total), total, -np.inf)

    start = np.log([0.55, 0.028, 0.8, 0.024, 30.0, 5.0, 0.25])
    truth = by_importance(log_p, start, np.exp)
    names = [*SCALES, "h0", "l0", "s"]
    return Target(lotka_model, {"log_y": torch.tensor(log_y)}, lambda d: np.stack([d[n] for n in names], -1), *truth)


# -- fits --------------------------------------------------------------------------------------------------


def sites_model(y: Tensor) -> None:
    """Two sites a row."""
    s = pyro.sample("s", Normal(0.0, 1.0)).exp()
    for i, y_i in enumerate(y):
        z = pyro.sample(f"z{i}", Normal(0.0, s))
        pyro.sample(f"y{i}", Normal(z, 1.0), obs=y_i)


def main() -> None:
    from ppgen import Program
    from ppgen.inference import fit
    from ppgen.inference.training.step import Step

    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    torch.set_num_threads(1)
    inner, ends = Step._steps, []

    def timed(self, batches, rows):
        results = inner(self, batches, rows)
        ends.append(time.process_time())
        return results

    Step._steps = timed  # type: ignore[method-assign]
    print("| | to the end of the first step, s | to the end, s | ms of each of the last 50 steps |\n|---|--:|--:|--:|")
    for name, model, rows in (("loop of 1 000 steps", garch_model, 1000), ("200 sites", sites_model, 200)):
        ends.clear()
        torch.manual_seed(0)
        start = time.process_time()
        fit(Program.from_pair(model), {"y": torch.randn(rows)}, steps=options.steps, lr=1e-2, engine=options.engine)
        late = 20 * (ends[-1] - ends[-51])
        print(f"| {name} | {ends[0] - start:.1f} | {ends[-1] - start:.1f} | {late:.1f} |", flush=True)


if __name__ == "__main__":
    main()
