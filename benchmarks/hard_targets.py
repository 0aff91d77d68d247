"""Sixteen posteriors that are known and hard: what each method gives, and what it says of it.

    python benchmarks/hard_targets.py [--methods normal flow bam chees nuts infer] [--only funnel] [--seeds 1]
        [--cap 60] [--seconds 3600] [--out F]

An answer is right where every mean is within 0.1 sd and every log sd within 0.15 of the truth (of functions that have
an sd), near within 0.3, and off beyond. It is believed where the verdict is "fine". The table counts believed and
right, believed and near, flagged (not believed, right or not), and silent: believed and off. What takes more CPU
seconds than --cap is cut. Truths are closed forms, exact draws or quadrature. With --out, lines that the file has are
not run again; --seconds: after which no further one is begun.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from pyro.distributions import (
    Binomial,
    Dirichlet,
    HalfCauchy,
    HalfNormal,
    LKJCholesky,
    MultivariateNormal,
    Normal,
    StudentT,
    Uniform,
)
from torch import Tensor

from ppgen import rows
from ppgen.distributions import Flat

ONE = {"one": torch.ones(1).double()}
Functions = Callable[[dict[str, np.ndarray]], np.ndarray]  # draws by site (draws, ...) -> (draws, functions)


class Target(NamedTuple):
    """A model, its data, functions of its latents, and their means and sds."""

    model: Callable[..., Any]
    data: dict[str, Tensor]
    functions: Functions
    mean: np.ndarray
    sd: np.ndarray


def of_draws(model: Callable, data: dict[str, Tensor], functions: Functions, exact: dict[str, np.ndarray]) -> Target:
    """The truth from a million independent draws."""
    x = functions(exact)
    return Target(model, data, functions, x.mean(0), x.std(0))


def of_grid(density: Callable[[np.ndarray], np.ndarray], grid: np.ndarray) -> tuple[float, float]:
    """Mean and sd of an unnormalised log-density on an even grid."""
    lp = density(grid)
    w = np.exp(lp - lp.max())
    mean = (w * grid).sum() / w.sum()
    return float(mean), float(((w * (grid - mean) ** 2).sum() / w.sum()) ** 0.5)


N = 400_000
RNG = np.random.default_rng(0)


def funnel() -> Target:
    """v ~ N(0, 3), x_1 ... x_9 ~ N(0, e^(v/2))."""

    def model(one: Tensor) -> None:
        v = pyro.sample("v", Normal(0.0, 3.0))
        pyro.sample("x", Normal(torch.zeros(9), (v / 2).exp()).to_event(1))
        pyro.factor("nothing", torch.zeros(()))

    v = 3 * RNG.normal(size=N)
    exact = {"v": v, "x": np.exp(v / 2)[:, None] * RNG.normal(size=(N, 1))}
    return of_draws(model, ONE, lambda d: np.stack([d["v"], np.arcsinh(d["x"][:, 0])], -1), exact)


def banana() -> Target:
    def model(one: Tensor) -> None:
        a = pyro.sample("a", Normal(0.0, 10.0))
        pyro.sample("b", Normal(0.03 * (a**2 - 100), 1.0))
        pyro.factor("nothing", torch.zeros(()))

    a = 10 * RNG.normal(size=N)
    exact = {"a": a, "b": 0.03 * (a**2 - 100) + RNG.normal(size=N)}
    return of_draws(model, ONE, lambda d: np.stack([d["a"], d["b"]], -1), exact)


def mixture(weights: list[float], locs: np.ndarray, sds: list[float], box: float) -> Target:
    """Normals in a flat box, by a factor."""
    w, m, s = torch.tensor(weights).double(), torch.tensor(locs).double(), torch.tensor(sds).double()
    dim = m.shape[1]

    def model(one: Tensor) -> None:
        x = pyro.sample("x", Normal(torch.zeros(dim), box).to_event(1))
        each = Normal(m, s[:, None]).log_prob(x).sum(-1) + w.log()
        pyro.factor("f", torch.logsumexp(each, -1) - Normal(0.0, box).log_prob(x).sum(-1))

    which = RNG.choice(len(weights), N, p=weights)
    exact = {"x": locs[which] + np.array(sds)[which][:, None] * RNG.normal(size=(N, dim))}
    return of_draws(model, ONE, lambda d: d["x"], exact)


def label_switching() -> Target:
    y = torch.cat([c + torch.randn(20, generator=torch.Generator().manual_seed(0)) for c in (-4.0, 0.0, 4.0)]).double()

    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", Normal(torch.zeros(3), 5.0).to_event(1))
        pyro.factor("y", torch.logsumexp(Normal(mu, 1.0).log_prob(y[:, None]) - math.log(3), -1).sum())

    grid = [torch.linspace(c - 1.5, c + 1.5, 61).double() + float(y[20 * i : 20 * i + 20].mean() - c)
            for i, c in enumerate((-4.0, 0.0, 4.0))]  # fmt: skip
    mu = torch.cartesian_prod(*grid)
    lp = torch.cat([
        torch.logsumexp(Normal(m[:, None], 1.0).log_prob(y[:, None]) - math.log(3), -1).sum(-1)
        + Normal(0.0, 5.0).log_prob(m).sum(-1)
        for m in mu.split(5000)
    ])  # fmt: skip
    w = lp.softmax(0)
    first, second = float((w[:, None] * mu).sum() / 3), float((w[:, None] * mu**2).sum() / 3)
    sd = (second - first**2) ** 0.5
    return Target(model, {"y": y}, lambda d: d["mu"], np.full(3, first), np.full(3, sd))


def theta_squared() -> Target:
    y = 4 + torch.randn(30, generator=torch.Generator().manual_seed(0)).double()

    def model(y: Tensor) -> None:
        th = pyro.sample("th", Normal(0.0, 5.0))
        pyro.factor("f", Normal(th**2, 1.0).log_prob(y).sum())

    mean, sd = of_grid(lambda t: -(t**2) / 50 - 0.5 * ((y.numpy() - t[:, None] ** 2) ** 2).sum(-1),
                       np.linspace(-4, 4, 8001))  # fmt: skip
    return Target(model, {"y": y}, lambda d: d["th"][:, None], np.array([mean]), np.array([sd]))


def correlated() -> Target:
    """100 dimensions, correlations 0.95^|i - j|, sds from 0.01 to 100."""
    i = torch.arange(100).double()
    sd = 10 ** torch.linspace(-2, 2, 100).double()
    cov = 0.95 ** (i[:, None] - i).abs() * sd[:, None] * sd

    def model(one: Tensor) -> None:
        pyro.sample("x", MultivariateNormal(torch.zeros(100), covariance_matrix=cov))
        pyro.factor("nothing", torch.zeros(()))

    return Target(model, ONE, lambda d: d["x"], np.zeros(100), sd.numpy())


def student() -> Target:
    def model(one: Tensor) -> None:
        pyro.sample("t", StudentT(torch.full((5,), 2.0), 0.0, 1.0).to_event(1))
        pyro.factor("nothing", torch.zeros(()))

    exact = {"t": RNG.standard_t(2, size=(N, 5))}
    return of_draws(model, ONE, lambda d: np.arcsinh(d["t"]), exact)


def horseshoe() -> Target:
    """y_i ~ N(b_i, 1), b_i ~ N(0, 0.1 l_i), l_i ~ HalfCauchy: 200 coefficients of which ten are not zero."""
    large = torch.tensor([4.0, -5.0, 6.0, 3.0, -8.0]).repeat(2)
    y = torch.cat([large, 0.5 * torch.linspace(-2, 2, 190)]).double()

    def model(y: Tensor) -> None:
        scale = pyro.sample("scale", HalfCauchy(torch.ones(200)).to_event(1))
        z = pyro.sample("z", Normal(torch.zeros(200), 1.0).to_event(1))
        b = pyro.deterministic("b", 0.1 * scale * z)
        pyro.factor("y", Normal(b, 1.0).log_prob(y).sum())

    log_l = np.linspace(-12, 12, 4001)
    variance = 0.01 * np.exp(2 * log_l)
    prior = log_l - np.log1p(np.exp(2 * log_l))
    means, sds = [], []
    for v in y.numpy():
        lw = prior - 0.5 * np.log1p(variance) - 0.5 * v**2 / (1 + variance)
        w = np.exp(lw - lw.max()) / np.exp(lw - lw.max()).sum()
        shrink = variance / (1 + variance)
        mean = (w * shrink * v).sum()
        means.append(mean)
        sds.append(((w * (shrink + (shrink * v) ** 2)).sum() - mean**2) ** 0.5)
    return Target(model, {"y": y}, lambda d: d["b"], np.array(means), np.array(sds))


def groups() -> Target:
    """y_j ~ Binomial(10, sigmoid(m + s z_j)), z_j ~ N(0, 1), m ~ N(0, 2), s ~ HalfNormal(2): 500 groups."""
    z = np.random.default_rng(0).normal(size=500)
    y = np.random.default_rng(1).binomial(10, 1 / (1 + np.exp(0.5 - z)))

    def model(y: Tensor) -> None:
        m = pyro.sample("m", Normal(0.0, 2.0))
        s = pyro.sample("s", HalfNormal(2.0))
        with rows(y):
            each = pyro.sample("z", Normal(0.0, 1.0))
            pyro.sample("y", Binomial(10, logits=m + s * each), obs=y)

    nodes, w = np.polynomial.hermite_e.hermegauss(60)
    m, s = (v.ravel() for v in np.meshgrid(np.linspace(-1.2, 0.4, 81), np.linspace(0.6, 1.6, 81)))
    at = m[:, None] + s[:, None] * nodes
    counts = np.arange(11)
    # (grid, counts, nodes) of the likelihood of a group, up to a constant
    each = np.exp(counts[:, None] * at[:, None] - 10 * np.logaddexp(0, at)[:, None]) * w
    marginal = each.sum(-1)
    lp = np.log(marginal) @ np.bincount(y, minlength=11) - m**2 / 8 - s**2 / 8
    p = np.exp(lp - lp.max()) / np.exp(lp - lp.max()).sum()
    first, second = (p @ ((each * nodes**power).sum(-1) / marginal) for power in (1, 2))
    means, squares = [p @ m, p @ s, *first[y]], [p @ m**2, p @ s**2, *second[y]]
    sd = np.sqrt(np.array(squares) - np.array(means) ** 2)
    return Target(model, {"y": torch.tensor(y).double()}, _of_rows, np.array(means), sd)


def row_effects() -> Target:
    """y_i ~ N(z_i, 1), z_i ~ N(m, s), m ~ N(0, 5), s ~ HalfNormal(2): 5 000 rows."""
    y = 1 + 2**0.5 * np.random.default_rng(0).normal(size=5000)

    def model(y: Tensor) -> None:
        m = pyro.sample("m", Normal(0.0, 5.0))
        s = pyro.sample("s", HalfNormal(2.0))
        with rows(y):
            pyro.sample("y", Normal(pyro.sample("z", Normal(m, s)), 1.0), obs=y)

    m, s = (v.ravel() for v in np.meshgrid(np.linspace(0.8, 1.2, 201), np.linspace(0.7, 1.3, 201)))
    v = 1 + s**2
    lp = -2500 * np.log(v) - 0.5 * (((y - y.mean()) ** 2).sum() + 5000 * (y.mean() - m) ** 2) / v - m**2 / 50 - s**2 / 8
    p = np.exp(lp - lp.max()) / np.exp(lp - lp.max()).sum()
    a, b = s**2 / v, m / v  # E[z | m, s, y] = a y + b, and its variance is a
    moments = [p @ x for x in (a, b, a**2, a * b, b**2)]
    mean_z = moments[0] * y + moments[1]
    square_z = moments[0] + moments[2] * y**2 + 2 * moments[3] * y + moments[4]
    mean = np.array([p @ m, p @ s, *mean_z])
    square = np.array([p @ m**2, p @ s**2, *square_z])
    return Target(model, {"y": torch.tensor(y)}, _of_rows, mean, np.sqrt(square - mean**2))


def _of_rows(d: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([d["m"][:, None], d["s"][:, None], d["z"]], 1)


def simplex() -> Target:
    counts = torch.tensor([50.0, 30, 20, 10, 5, 5, 2, 2, 1, 1, *[0.0] * 10]).double()

    def model(counts: Tensor) -> None:
        p = pyro.sample("p", Dirichlet(torch.full((20,), 0.5)))
        pyro.factor("f", (counts * p.clamp_min(1e-300).log()).sum())

    a = counts.numpy() + 0.5
    m = a / a.sum()
    return Target(model, {"counts": counts}, lambda d: d["p"], m, (m * (1 - m) / (a.sum() + 1)) ** 0.5)


def lkj() -> Target:
    def model(one: Tensor) -> None:
        pyro.sample("L", LKJCholesky(5, torch.tensor(1.0)))
        pyro.factor("nothing", torch.zeros(()))

    return Target(model, ONE, lambda d: d["L"][:, 1:, 0], np.zeros(4), np.full(4, 1 / math.sqrt(6)))


def at_a_bound() -> Target:
    """x on (0, 1), density e^(-20 x)."""

    def model(one: Tensor) -> None:
        x = pyro.sample("x", Uniform(0.0, 1.0))
        pyro.factor("f", -20 * x)

    mean, sd = of_grid(lambda x: -20 * x, (np.arange(100_000) + 0.5) / 100_000)
    return Target(model, ONE, lambda d: d["x"][:, None], np.array([mean]), np.array([sd]))


def spike_slab() -> Target:
    """b_i under 0.9 N(0, 0.05) + 0.1 N(0, 5), y_i ~ N(b_i, 1), eight of them."""
    y = torch.tensor([0.1, -0.5, 1.0, 2.0, 3.0, -4.0, 0.0, 6.0]).double()

    def prior(b: Tensor) -> Tensor:
        spike, slab = Normal(0.0, 0.05).log_prob(b) + math.log(0.9), Normal(0.0, 5.0).log_prob(b) + math.log(0.1)
        return torch.logaddexp(spike, slab)

    def model(y: Tensor) -> None:
        b = pyro.sample("b", Flat(shape=(8,)))
        pyro.factor("f", prior(b).sum() + Normal(b, 1.0).log_prob(y).sum())

    grid = np.linspace(-15, 15, 60_001)
    log_prior = prior(torch.tensor(grid)).numpy()
    moments = [of_grid(lambda b, v=v: log_prior - 0.5 * (v - b) ** 2, grid) for v in y.tolist()]
    return Target(model, {"y": y}, lambda d: d["b"], *(np.array(m) for m in zip(*moments, strict=True)))


MOG = np.random.default_rng(1).uniform(-40, 40, (40, 2))
TARGETS: dict[str, Callable[[], Target]] = {
    "funnel, 10-D": funnel,
    "banana": banana,
    "two modes": lambda: mixture([0.7, 0.3], np.array([[0.0], [40.0]]), [1.0, 1.0], 60.0),
    "MoG40": lambda: mixture([1 / 40] * 40, MOG, [1.0] * 40, 60.0),
    "wide and narrow, 10-D": lambda: mixture([0.5, 0.5], np.zeros((2, 10)), [1.0, 0.1], 5.0),
    "label switching": label_switching,
    "theta squared": theta_squared,
    "correlated, 100-D": correlated,
    "Student's t, 2": student,
    "horseshoe, 200": horseshoe,
    "logistic, 500 groups": groups,
    "5 000 row effects": row_effects,
    "simplex, 20-D": simplex,
    "LKJ, 5": lkj,
    "mass at a bound": at_a_bound,
    "spike and slab": spike_slab,
}


# -- methods -------------------------------------------------------------------------------------------


def guided(guide: str, steps: int) -> Callable[[Target, int], tuple[Any, str]]:
    def run(t: Target, seed: int) -> tuple[Any, str]:
        from ppgen import Program
        from ppgen.inference import diagnose, fit

        fitted = fit(
            Program.from_pair(t.model), t.data, guide=guide, steps=steps, lr=0.02, schedule="cosine", particles=16,
            precision="64-true", seed=seed, starts=8,
        )  # fmt: skip
        found = diagnose(fitted, t.data, draws=4000, seed=seed)
        return found.tree, found.verdict

    return run


def chains(kernel: str) -> Callable[[Target, int], tuple[Any, str]]:
    def run(t: Target, seed: int) -> tuple[Any, str]:
        from ppgen.inference import mcmc
        from ppgen.inference.verdicts.findings import load_findings, verdict

        tree = mcmc(t.model, t.data, kernel, seed=seed, predictive=False, prior=False)
        return tree, verdict(load_findings(tree))

    return run


def inferred(t: Target, seed: int) -> tuple[Any, str]:
    from ppgen.inference import infer

    tree = infer(t.model, t.data, seed=seed, predictive=False, prior=False)
    return tree, tree.attrs["verdict"]


METHODS = {
    "normal": guided("AutoNormal", 1000), "flow": guided("flow", 500), "bam": guided("bam", 0),
    "chees": chains("chees"), "nuts": chains("nuts"), "infer": inferred,
}  # fmt: skip


class Cut(BaseException):
    """The cap on CPU seconds is reached; no `except Exception` takes it."""


@contextmanager
def at_most(cap: float) -> Iterator[None]:
    """
    Raises:
        Cut: after so many CPU seconds.
    """

    def cut(*_: Any) -> None:
        raise Cut

    signal.signal(signal.SIGPROF, cut)
    signal.setitimer(signal.ITIMER_PROF, cap)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def measured(name: str, method: str, seed: int, cap: float) -> dict[str, Any]:
    target, began = TARGETS[name](), time.process_time()
    row: dict[str, Any] = {"target": name, "method": method, "seed": seed}
    try:
        with at_most(cap):
            tree, said = METHODS[method](target, seed)
    except Cut:
        return row | {"verdict": "none", "outcome": "cut", "remark": f" (more than {cap:g} CPU s)"}
    except Exception as e:
        return row | {"verdict": "refused", "outcome": "flagged", "remark": f"{type(e).__name__}: {e}"[:200]}
    values = {n: v.values.reshape(-1, *v.shape[2:]) for n, v in tree["posterior"].data_vars.items()}
    x = target.functions(values)
    mean = float(np.abs((x.mean(0) - target.mean) / target.sd).max())
    log_sd = float(np.abs(np.log(x.std(0) / target.sd)).max())
    right = "right" if mean <= 0.1 and log_sd <= 0.15 else "near" if max(mean, log_sd) <= 0.3 else "silent"
    row |= {"verdict": said, "mean": mean, "log_sd": log_sd, "seconds": time.process_time() - began}
    by = f" ({tree.attrs['method']})" if "method" in tree.attrs else ""
    return row | {"outcome": right if said == "fine" else "flagged", "remark": by}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--only", nargs="*", default=[""], help="parts of targets' names")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--cap", type=float, default=60.0, help="CPU seconds of a method on a target")
    parser.add_argument("--seconds", type=float, default=math.inf, help="after which no further run is begun")
    parser.add_argument("--out", type=Path, help="JSON lines, read and appended to")
    options = parser.parse_args()
    rows = begun(options.out)
    for row in runs(options, {(r["target"], r["method"], r["seed"]) for r in rows}):
        rows.append(row)
        off = f"mean {row['mean']:7.3f} log sd {row['log_sd']:6.3f} {row['seconds']:7.1f} s" if "mean" in row else ""
        print(f"{row['target']:22} {row['method']:7} {row['seed']} {row['verdict']:8} {row['outcome']:8} {off}"
              f"{row.get('remark', '')[:90]}", flush=True)  # fmt: skip
        keep(row, options.out)
    kinds = ("right", "near", "flagged", "silent", "cut")
    print(f"\n{'':10}" + "".join(f"{k:>9}" for k in kinds))
    for method in METHODS:
        mine = [r["outcome"] for r in rows if r["method"] == method]
        print(f"{method:10}" + "".join(f"{mine.count(k):9}" for k in kinds))


def begun(out: Path | None) -> list[dict[str, Any]]:
    """One thread, float64, no warnings; and the lines that the file has already."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    logging.getLogger("ppgen").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    return [json.loads(line) for line in out.open()] if out and out.exists() else []


def keep(row: dict[str, Any], out: Path | None) -> None:
    """Adds a line to the file."""
    if out:
        with out.open("a") as f:
            f.write(json.dumps(row) + "\n")


def runs(options: argparse.Namespace, done: set[tuple[str, str, int]]) -> Iterator[dict[str, Any]]:
    began = time.monotonic()
    for seed in range(options.seeds):
        for method in options.methods:
            for name in TARGETS:
                wanted = any(part in name for part in options.only) and (name, method, seed) not in done
                if wanted and time.monotonic() - began < options.seconds:
                    yield measured(name, method, seed, options.cap)


if __name__ == "__main__":
    main()
