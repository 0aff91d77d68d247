"""Regression by a formula on tables of known truth: how often 90% intervals hold it; and beside bambi.

    python benchmarks/regression.py [--sets 100] [--only gaussian nested] [--seconds 3600] [--out F]
    python benchmarks/regression.py --table F
    python benchmarks/regression.py --exact 400 [--beside 30]

Ten models. The truth is drawn from the stated priors, and the response from it by numpy, so that 90% of the intervals
should hold it: over 100 sets the target is 90 +- 4%. The draws are those of ChEES-HMC (32 chains of 25 after a warm-up
of 120), without the checks that `mcmc` makes of them. With --out, lines that the file has are not run again; --seconds:
after which no further set is begun. --exact: of poisson, the intervals by importance sampling in numpy from a t
distribution at the mode, 4 096 points of a net, over so many sets; and the draws' intervals beside them.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats
import torch

from ppgen.engine.density.joint import log_joint
from ppgen.inference.sampling.mcmc import run_chains
from ppgen.inference.sampling.prepared import prepared
from ppgen.models import Regression, regression

CHAINS, DRAWS, WARMUP = 32, 25, 120
N = 150
PRIORS = {"Intercept": (0.5, 0.7), "beta": 0.5}
Truth = dict[str, float]
Made = tuple[pd.DataFrame, Truth]


class Drawn:
    """A table and a truth, as they are drawn: columns x and u, intercept and slopes from `PRIORS`."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng(seed)
        self.table = pd.DataFrame({"x": self.rng.normal(size=N), "u": self.rng.integers(0, 2, N).astype(float)})
        self.truth: Truth = {}

    def gamma(self, name: str, shape: float, rate: float) -> float:
        self.truth[name] = float(self.rng.gamma(shape, 1 / rate))
        return self.truth[name]

    def exponential(self, name: str, mean: float) -> float:
        self.truth[name] = float(self.rng.exponential(mean))
        return self.truth[name]

    def eta(self, intercept: bool = True) -> np.ndarray:
        """α + (x - mean) β."""
        beta = self.rng.normal(0, PRIORS["beta"], 2)
        self.truth |= {"beta[x]": float(beta[0]), "beta[u]": float(beta[1])}
        x = self.table[["x", "u"]].to_numpy()
        eta = (x - x.mean(0)) @ beta
        if intercept:
            alpha = self.rng.normal(*PRIORS["Intercept"])
            self.truth["Intercept"] = float(alpha - x.mean(0) @ beta)
            eta = eta + alpha
        return eta

    def varying(self, name: str, codes: np.ndarray, scale: float = 0.7) -> np.ndarray:
        """Intercepts of groups, with a HalfNormal spread."""
        sd = abs(self.rng.normal(0, scale))
        self.truth[f"sd_{name}[Intercept]"] = float(sd)
        return self.rng.normal(0, sd, codes.max() + 1)[codes]

    def with_y(self, y: np.ndarray) -> Made:
        self.table["y"] = y
        return self.table, self.truth


def gaussian(seed: int) -> Made:
    d = Drawn(seed)
    return d.with_y(d.rng.normal(d.eta(), d.exponential("sigma", 1.0)))


def student(seed: int) -> Made:
    d = Drawn(seed)
    eta, sigma, nu = d.eta(), d.exponential("sigma", 1.0), d.gamma("nu", 2, 0.1)
    return d.with_y(eta + sigma * d.rng.standard_t(nu, N))


def logistic(seed: int) -> Made:
    d = Drawn(seed)
    return d.with_y((d.rng.random(N) < 1 / (1 + np.exp(-d.eta()))).astype(int))


def poisson(seed: int) -> Made:
    d = Drawn(seed)
    return d.with_y(d.rng.poisson(np.exp(d.eta())))


def negative_binomial(seed: int) -> Made:
    d = Drawn(seed)
    mean, phi = np.exp(d.eta()), d.gamma("phi", 2, 0.1)
    return d.with_y(d.rng.poisson(d.rng.gamma(phi, mean / phi)))


def ordered(seed: int) -> Made:
    d = Drawn(seed)
    eta, shares = d.eta(intercept=False), d.rng.dirichlet(np.ones(4))
    below = np.cumsum(shares)[:-1]
    d.truth |= {f"shares[{k}]": float(s) for k, s in enumerate(shares)}
    at = np.log(below / (1 - below))[None] - eta[:, None] < np.log(1 / d.rng.random(N) - 1)[:, None]
    words = np.array(["a", "b", "c", "d"])
    table, truth = d.with_y(at.sum(1))
    # without a category the model is one of fewer, and its truth another: that set is drawn again
    if len(set(table["y"])) < 4:
        return ordered(seed + 100_000)
    return table.assign(y=pd.Categorical(words[table["y"]], words, ordered=True)), truth


def zero_inflated(seed: int) -> Made:
    d = Drawn(seed)
    mean, gate = np.exp(d.eta()), float(d.rng.beta(2, 2))
    d.truth["gate"] = gate
    return d.with_y(np.where(d.rng.random(N) < gate, 0, d.rng.poisson(mean)))


def survival(seed: int) -> Made:
    d = Drawn(seed)
    scale, shape = np.exp(d.eta()), d.gamma("shape", 2, 1)
    time_, end = scale * d.rng.weibull(shape, N), d.rng.exponential(3.0, N)
    d.table["status"] = np.where(time_ > end, "right", "none")
    return d.with_y(np.minimum(time_, end).clip(1e-30))


def crossed_nested(seed: int) -> Made:
    d = Drawn(seed)
    school, item = d.rng.integers(0, 12, N), d.rng.integers(0, 10, N)
    room = 2 * school + d.rng.integers(0, 2, N)
    d.table["school"] = [f"s{i}" for i in school]
    d.table["room"] = [f"r{i % 2}" for i in room]
    d.table["item"] = [f"i{i}" for i in item]
    eta = d.eta() + d.varying("school", school) + d.varying("school_room", room) + d.varying("item", item)
    return d.with_y(d.rng.normal(eta, d.exponential("sigma", 1.0)))


def correlated_slopes(seed: int) -> Made:
    d = Drawn(seed)
    group = d.rng.integers(0, 15, N)
    d.table["g"] = [f"g{i}" for i in group]
    eta, sd, corr = d.eta(), abs(d.rng.normal(0, 0.7, 2)), float(d.rng.uniform(-1, 1))
    d.truth |= {"sd_g[Intercept]": float(sd[0]), "sd_g[x]": float(sd[1]), "corr_g": corr}
    chol = np.array([[1.0, 0.0], [corr, math.sqrt(1 - corr**2)]])
    r = d.rng.normal(size=(15, 2)) @ (sd[:, None] * chol).T
    eta = eta + r[group, 0] + r[group, 1] * d.table["x"].to_numpy()
    return d.with_y(d.rng.normal(eta, d.exponential("sigma", 1.0)))


# name: (draws a table and its truth, formula, family, priors beside `PRIORS`)
MODELS: dict[str, tuple[Callable[[int], Made], str, str, dict[str, Any]]] = {
    "gaussian": (gaussian, "y ~ x + u", "gaussian", {"sigma": 1.0}),
    "student": (student, "y ~ x + u", "student", {"sigma": 1.0}),
    "logistic": (logistic, "y ~ x + u", "bernoulli", {}),
    "poisson": (poisson, "y ~ x + u", "poisson", {}),
    "negative binomial": (negative_binomial, "y ~ x + u", "negbinomial", {}),
    "ordered": (ordered, "y ~ x + u", "ordered", {}),
    "zero-inflated": (zero_inflated, "y ~ x + u", "zero_inflated_poisson", {}),
    "survival": (survival, "censored(y, status) ~ x + u", "weibull", {}),
    "crossed and nested": (
        crossed_nested, "y ~ x + u + (1 | school/room) + (1 | item)", "gaussian", {"sigma": 1.0, "sd": 0.7},
    ),
    "correlated slopes": (correlated_slopes, "y ~ x + u + (1 + x | g)", "gaussian", {"sigma": 1.0, "sd": 0.7}),
}  # fmt: skip


def program_of(name: str, table: pd.DataFrame) -> Regression:
    _, formula, family, more = MODELS[name]
    shared = {k: v for k, v in PRIORS.items() if k != "Intercept" or family != "ordered"}
    return regression(formula, family, table, priors=shared | more)


def draws_of(program: Regression, table: pd.DataFrame, seed: int) -> dict[str, np.ndarray]:
    """Draws of what has a truth, flat."""
    with prepared(program, table, seed) as made:
        calls = 15 * (DRAWS + WARMUP)
        joint = log_joint(made.program, made.data, engine="compile", calls=calls)
        with torch.no_grad():
            u = run_chains(joint, "chees", CHAINS, DRAWS, WARMUP, seed=seed).u.flatten(0, 1)
            z = {k: v.numpy() for k, v in joint.unflatten(u).items()}
    design, found = program.design, {}
    for i, label in enumerate(design["matrix"]["labels"]):
        found[f"beta[{label}]"] = z["beta"][:, i]
    if "alpha" in z:
        found["Intercept"] = z["alpha"] - z["beta"] @ np.array(design["means"])
    for group in design["groups"]:
        name = group["name"]
        for i, label in enumerate(group["matrix"]["labels"]):
            found[f"sd_{name}[{label}]"] = z[f"sd_{name}"][:, i]
        if group["correlated"]:
            found[f"corr_{name}"] = z[f"chol_{name}"][:, 1, 0]
    if "shares" in z:
        found |= {f"shares[{k}]": z["shares"][:, k] for k in range(z["shares"].shape[-1])}
    return found | {k: z[k] for k in program.priors["beside"]}


def one(name: str, seed: int) -> dict[str, Any]:
    """Which truths the 90% intervals of a set hold, and the seconds of the CPU."""
    table, truth = MODELS[name][0](seed)
    begun = time.process_time()
    found = draws_of(program_of(name, table), table, seed)
    seconds = time.process_time() - begun
    held = {k: bool(np.quantile(v, 0.05) <= truth[k] <= np.quantile(v, 0.95)) for k, v in found.items()}
    return {"model": name, "seed": seed, "held": held, "seconds": round(seconds, 2)}


def table(lines: Iterable[dict[str, Any]]) -> str:
    """Coverage by model: of all its intervals, and of the worst one."""
    rows = [
        "| model | sets | intervals that hold the truth | least, most of one | CPU s a fit |",
        "|---|---|---|---|---|",
    ]
    lines = list(lines)
    for name in MODELS:
        own = [line for line in lines if line["model"] == name]
        if not own:
            continue
        each = {k: np.mean([line["held"][k] for line in own]) for k in own[0]["held"]}
        low, high = min(each, key=each.__getitem__), max(each, key=each.__getitem__)
        rows.append(
            f"| {name} | {len(own)} | {100 * np.mean(list(each.values())):.1f}% | {low} {100 * each[low]:.0f}%, {high} "
            f"{100 * each[high]:.0f}% | {np.median([line['seconds'] for line in own]):.1f} |"
        )
    return "\n".join(rows)


def exact_intervals(table: pd.DataFrame) -> dict[str, tuple[float, float, float]]:
    """Of the poisson model: the 5% and 95% quantiles of each coefficient, and its sd, by importance sampling."""
    x, y = table[["x", "u"]].to_numpy(), table["y"].to_numpy()
    design, sds = np.column_stack([np.ones(N), x - x.mean(0)]), np.array([PRIORS["Intercept"][1], 0.5, 0.5])
    loc = np.array([PRIORS["Intercept"][0], 0.0, 0.0])

    def log_p(t: np.ndarray) -> np.ndarray:
        eta = t @ design.T
        return eta @ y - np.exp(eta).sum(1) - (((t - loc) / sds) ** 2).sum(1) / 2

    mode = np.array([math.log(y.mean() + 0.1), 0.0, 0.0])
    for _ in range(50):
        mean = np.exp(design @ mode)
        hessian = (design * mean[:, None]).T @ design + np.diag(sds**-2.0)
        step = np.linalg.solve(hessian, design.T @ (y - mean) - (mode - loc) / sds**2)
        mode = mode + step * min(1.0, 1.0 / np.abs(step).max())
    net = scipy.stats.qmc.Sobol(4, seed=0).random(4_096)
    z = scipy.stats.norm.ppf(net[:, :3]) / np.sqrt(scipy.stats.chi2(5).ppf(net[:, 3:]) / 5)
    t = mode + z @ np.linalg.inv(np.linalg.cholesky(hessian))
    log_w = log_p(t) + 4.0 * np.log1p((z**2).sum(1) / 5)  # of a t with 5 degrees of freedom in three dimensions
    w = np.exp(log_w - log_w.max())
    values = {"Intercept": t[:, 0] - t[:, 1:] @ x.mean(0), "beta[x]": t[:, 1], "beta[u]": t[:, 2]}
    return {k: _summary(v, w / w.sum()) for k, v in values.items()}


def _summary(values: np.ndarray, w: np.ndarray) -> tuple[float, float, float]:
    order = np.argsort(values)
    low, high = np.interp([0.05, 0.95], np.cumsum(w[order]), values[order])
    mean = w @ values
    return float(low), float(high), float(np.sqrt(w @ (values - mean) ** 2))


def exact(sets: int, beside: int) -> None:
    """Prints the coverage of the exact intervals, and how far the draws' ends are from theirs."""
    held: list[dict[str, bool]] = []
    ends, widths = [], []
    for seed in range(sets):
        made, truth = poisson(seed)
        found = exact_intervals(made)
        held.append({k: low <= truth[k] <= high for k, (low, high, _) in found.items()})
        if seed < beside:
            draws = draws_of(program_of("poisson", made), made, seed)
            for k, (low, high, sd) in found.items():
                own = np.quantile(draws[k], [0.05, 0.95])
                ends += [(own[0] - low) / sd, (own[1] - high) / sd]
                widths.append((own[1] - own[0]) / (high - low))
    for k in held[0]:
        p = np.mean([h[k] for h in held])
        print(f"{k}: {100 * p:.1f} ± {100 * math.sqrt(p * (1 - p) / sets):.1f}% over {sets} sets, "
              f"{100 * np.mean([h[k] for h in held[:100]]):.0f}% over the first {min(sets, 100)}")  # fmt: skip
    each = [np.mean(list(h.values())) for h in held]
    print(f"all: {100 * np.mean(each):.1f} ± {100 * np.std(each) / math.sqrt(sets):.1f}% over {sets} sets, "
          f"{100 * np.mean(each[:100]):.1f}% over the first {min(sets, 100)}")  # fmt: skip
    if beside:
        print(f"ends of the draws' intervals over {beside} sets, in sds from these: mean {np.mean(ends):+.3f}, root "
              f"mean square {np.sqrt(np.mean(np.square(ends))):.3f}; widths, of theirs: {np.mean(widths):.3f} ± "
              f"{np.std(widths) / math.sqrt(len(widths)):.3f}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=100)
    parser.add_argument("--only", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--out", type=Path, help="JSON lines, read and appended to")
    parser.add_argument("--table", type=Path, help="prints the table of such a file, and runs nothing")
    parser.add_argument("--exact", type=int, help="sets of poisson whose intervals are found without chains")
    parser.add_argument("--beside", type=int, default=30, help="of these, sets whose draws are held against them")
    o = parser.parse_args()
    if o.exact:
        exact(o.exact, min(o.exact, o.beside))
        return
    file = o.table or o.out
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file and file.is_file() else []
    if o.table is None:
        torch.set_num_threads(1)
        done, begun = {(line["model"], line["seed"]) for line in lines}, time.monotonic()
        for seed in range(o.sets):
            for name in o.only:
                if (name, seed) in done or time.monotonic() - begun > o.seconds:
                    continue
                lines.append(one(name, seed))
                if o.out:
                    with o.out.open("a") as f:
                        f.write(json.dumps(lines[-1]) + "\n")
    print(table(lines))


if __name__ == "__main__":
    main()
