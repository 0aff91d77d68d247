"""Tables with gaps and a known truth: how often 90% intervals hold it, beside the fit to the complete table.

    python benchmarks/gaps.py [--sets 60] [--only "y, by x" ...] [--seconds 3600] [--out F]
    python benchmarks/gaps.py --table F
    python benchmarks/gaps.py --closed-form 100

y ~ Intercept + x + u of 50 rows, gaussian, where x is a line of u with noise. Slopes and scales are drawn from the
stated priors, and the table from them by numpy; a third of the cells of y or of x then go missing: completely at
random (MCAR), or by what is seen of the row (MAR), for y by x, for x by y. Of x by y, the complete rows alone are a
selection by y, and their fit is biased. The draws are those of ChEES-HMC, as in benchmarks/regression.py. With --out,
lines that the file has are not run again; --seconds: after which no further set is begun.

--closed-form: the same posteriors without ppgen, in numpy. The missing cells are integrated out, which for y leaves its
seen rows, and for x a normal distribution of y given u (tests/test_formula_gaps.py holds ppgen's log joint to it); the
rest is drawn by adaptive importance sampling.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.linalg
import torch

from ppgen.engine.density.joint import log_joint
from ppgen.inference.sampling.mcmc import run_chains
from ppgen.inference.sampling.prepared import prepared
from ppgen.models import Regression, regression

CHAINS, DRAWS, WARMUP = 32, 20, 80
N = 50
PRIORS = {"Intercept": (0.0, 10.0), "beta": 0.7, "sigma": 1.0}
OF_X = {"alpha_x": (0.0, 10.0), "beta_x": 0.7, "sigma_x": 1.0}
SHOWN = ("Intercept", "beta[x]", "beta[u]", "sigma")
# name: (the column with gaps, the column that they go by, what is done)
CASES: dict[str, tuple[str, str | None, tuple[str, ...]]] = {
    "y, completely at random": ("y", None, ("mask", "impute", "drop")),
    "y, by x": ("y", "x", ("mask", "impute", "drop")),
    "x, completely at random": ("x", None, ("impute", "drop")),
    "x, by y": ("x", "y", ("impute", "drop")),
}


def drawn(seed: int) -> tuple[pd.DataFrame, dict[str, float]]:
    """A complete table and its truth."""
    rng = np.random.default_rng(seed)
    slopes, of_x = rng.normal(0, 0.7, 2), rng.normal(0, 0.7)
    sigma, sigma_x = rng.exponential(1.0, 2)
    intercept, mean = rng.normal(0, 1.0, 2)
    u = rng.normal(size=N)
    x = mean + of_x * u + rng.normal(0, sigma_x, N)
    y = rng.normal(intercept + slopes[0] * x + slopes[1] * u, sigma)
    truth = dict(zip(SHOWN, map(float, (intercept, *slopes, sigma)), strict=True))
    return pd.DataFrame({"x": x, "u": u, "y": y}), truth


def with_gaps(table: pd.DataFrame, column: str, by: str | None, seed: int) -> pd.DataFrame:
    """The table without a third of the cells of a column, or, by another one, more where that is high."""
    rng = np.random.default_rng(seed + 1_000_000)
    share = np.full(N, 1 / 3)
    if by is not None:
        high = (table[by] - table[by].mean()) / table[by].std()
        share = 1 / (1 + np.exp(1.0 - 2.0 * high.to_numpy()))
    return table.assign(**{column: table[column].where(rng.random(N) >= share)})


def draws_of(table: pd.DataFrame, missing: str, seed: int) -> dict[str, np.ndarray]:
    """Draws of what has a truth, flat."""
    gaps = missing == "impute" and bool(table["x"].isna().any())
    program: Regression = regression("y ~ x + u", data=table, priors=PRIORS | (OF_X if gaps else {}), missing=missing)
    with prepared(program, table, seed) as made:
        joint = log_joint(made.program, made.data, engine="trace")
        with torch.no_grad():
            u = run_chains(joint, "chees", CHAINS, DRAWS, WARMUP, seed=seed).u.flatten(0, 1)
            z = {k: v.numpy() for k, v in joint.unflatten(u).items()}
    means = np.array(program.design["means"])
    values = (z["alpha"] - z["beta"] @ means, z["beta"][:, 0], z["beta"][:, 1], z["sigma"])
    return dict(zip(SHOWN, values, strict=True))


def closed_form(table: pd.DataFrame, missing: str, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Points and their weights of the same posterior: Intercept, slopes, log sigma, and those of x given u."""
    x, u, y = (table[name].to_numpy() for name in "xuy")
    seen = ~np.isnan(x)
    kept = ~np.isnan(y) & (seen | (missing == "impute"))
    x, u, y, seen = x[kept], u[kept], y[kept], seen[kept]
    of_x = not seen.all()
    design = np.column_stack([np.ones(seen.sum()), x[seen], u[seen]])
    loc, cov = _line(design, y[seen])
    if of_x:
        other, wide = _line(np.column_stack([design[:, 0], u[seen]]), x[seen])
        loc, cov = np.append(loc, other), scipy.linalg.block_diag(cov, wide)

    def log_p(t: np.ndarray) -> np.ndarray:
        a, b, c, s = (v[:, None] for v in (*t.T[:3], np.exp(t[:, 3])))
        values, sds = x, s
        f = -((t[:, 0] / 10) ** 2 + ((t[:, 1:3] / 0.7) ** 2).sum(1)) / 2 + t[:, 3] - s[:, 0]
        if of_x:
            mean, s_x = t[:, 4:5] + t[:, 5:6] * u, np.exp(t[:, 6:7])
            f += -((t[:, 4] / 10) ** 2 + (t[:, 5] / 0.7) ** 2) / 2 + t[:, 6] - s_x[:, 0]
            f += np.where(seen, -(((np.where(seen, x, 0) - mean) / s_x) ** 2) / 2 - np.log(s_x), 0.0).sum(1)
            values, sds = np.where(seen, x, mean), np.where(seen, s, np.hypot(s, b * s_x))
        return f - (((y - a - b * values - c * u) / sds) ** 2 / 2 + np.log(sds)).sum(1)

    rng, chol = np.random.default_rng(seed), 1.3 * np.linalg.cholesky(cov)
    for n in (1000, 1000, 1000, 1000, 4000):
        z = rng.normal(size=(n, len(loc))) / np.sqrt(rng.chisquare(5, (n, 1)) / 5)
        t = loc + z @ chol.T
        log_w = log_p(t) + (5 + len(loc)) / 2 * np.log1p((z**2).sum(1) / 5)
        w = np.exp(log_w - log_w.max())
        w /= w.sum()
        kind = np.minimum(w, 20 / n)  # a few heavy points make no covariance
        loc = kind @ t / kind.sum()
        chol = np.linalg.cholesky(np.cov(t.T, aweights=kind) + 1e-12 * np.eye(len(loc))) * 1.1
    return dict(zip(SHOWN, (*t.T[:3], np.exp(t[:, 3])), strict=True)), w


def _line(design: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the sampling begins: coefficients, given the sd of least squares, and log sd; and their covariance."""
    n, k = design.shape
    sd = math.sqrt(((y - design @ np.linalg.lstsq(design, y, rcond=None)[0]) ** 2).sum() / (n - k))
    cov = np.zeros((k + 1, k + 1))
    cov[:k, :k] = np.linalg.inv(design.T @ design / sd**2 + np.diag([0.01] + [1 / 0.49] * (k - 1)))
    cov[k, k] = 1 / (2 * (n - k))
    return np.append(cov[:k, :k] @ design.T @ y / sd**2, math.log(sd)), cov


def _held(values: np.ndarray, w: np.ndarray, truth: float) -> bool:
    return bool(0.05 <= w[values <= truth].sum() <= 0.95)


def one_closed_form(case: str, seed: int) -> list[dict[str, Any]]:
    """As `one`, of `closed_form`; the draws' effective number beside."""
    complete, truth = drawn(seed)
    column, by, hows = CASES.get(case, ("y", None, ("error",)))
    gaps = complete if case == "none" else with_gaps(complete, column, by, seed)
    lines = []
    for how in hows if column == "x" or case == "none" else ("mask",):  # of y they are one posterior
        begun = time.process_time()
        found, w = closed_form(gaps, how, seed)
        seconds = time.process_time() - begun
        held = {k: _held(v, w, truth[k]) for k, v in found.items()}
        error = {k: float(w @ v - truth[k]) for k, v in found.items()}
        error["beta[x]"] *= math.copysign(1.0, truth["beta[x]"])
        lines.append({"case": case, "how": how, "seed": seed, "held": held, "error": error, "seconds": seconds,
                      "effective": float(1 / (w @ w))})  # fmt: skip
    return lines


def one(case: str, seed: int) -> list[dict[str, Any]]:
    """Of a set, by what was done: which truths the intervals hold, the errors of the means, and the CPU's seconds."""
    complete, truth = drawn(seed)
    column, by, hows = CASES.get(case, ("y", None, ("error",)))
    gaps = complete if case == "none" else with_gaps(complete, column, by, seed)
    lines = []
    for how in hows:
        begun = time.process_time()
        found = draws_of(gaps, how, seed)
        seconds = time.process_time() - begun
        held = {k: bool(np.quantile(v, 0.05) <= truth[k] <= np.quantile(v, 0.95)) for k, v in found.items()}
        error = {k: float(v.mean() - truth[k]) for k, v in found.items()}
        # a fall of the slope's size, whatever its sign
        error["beta[x]"] *= math.copysign(1.0, truth["beta[x]"])
        lines.append({"case": case, "how": how, "seed": seed, "held": held, "error": error, "missing":
                      int(gaps[column].isna().sum()), "seconds": round(seconds, 2)})  # fmt: skip
    return lines


def table(lines: Iterable[dict[str, Any]]) -> str:
    """Coverage by case and by what was done, with binomial errors; and the mean errors of two of the means."""
    rows = [
        "| gaps | fit | sets | intervals that hold the truth | Intercept | beta[x] | error of the mean, Intercept | "
        "beta[x], away from 0 | CPU s |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines = list(lines)
    for case, hows in (("none", ("error",)), *((k, v[2]) for k, v in CASES.items())):
        for how in hows:
            own = [line for line in lines if (line["case"], line["how"]) == (case, how)]
            if not own:
                continue
            shown = [_share([v for line in own for v in line["held"].values()], len(SHOWN))]
            shown += [_share([line["held"][k] for line in own], 1) for k in SHOWN[:2]]
            shown += [_mean([line["error"][k] for line in own]) for k in SHOWN[:2]]
            seconds = np.median([line["seconds"] for line in own])
            fit = "complete table" if case == "none" else how
            rows.append(f"| {case} | {fit} | {len(own)} | {' | '.join(shown)} | {seconds:.1f} |")
    return "\n".join(rows)


def _share(held: list[bool], each: int) -> str:
    """A share in percent, with its standard error by the spread over sets (one interval a set: binomial)."""
    by_set = np.reshape(held, (-1, each)).mean(1)
    p, n = by_set.mean(), len(by_set)
    error = by_set.std() / math.sqrt(n) if each > 1 else math.sqrt(p * (1 - p) / n)
    return f"{100 * p:.1f} ± {100 * error:.1f}%"


def _mean(errors: list[float]) -> str:
    return f"{np.mean(errors):+.3f} ± {np.std(errors) / math.sqrt(len(errors)):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=60)
    parser.add_argument("--only", nargs="*", default=["none", *CASES], choices=["none", *CASES])
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--out", type=Path, help="JSON lines, read and appended to")
    parser.add_argument("--table", type=Path, help="prints the table of such a file, and runs nothing")
    parser.add_argument("--closed-form", type=int, help="sets of which numpy's posteriors are shown")
    o = parser.parse_args()
    if o.closed_form:
        found = [line for s in range(o.closed_form) for case in ("none", *CASES) for line in one_closed_form(case, s)]
        print(table(found), f"\nleast effective number of draws: {min(line['effective'] for line in found):.0f}")
        return
    file = o.table or o.out
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file and file.is_file() else []
    if o.table is None:
        torch.set_num_threads(1)
        done, begun = {(line["case"], line["seed"]) for line in lines}, time.monotonic()
        for seed in range(o.sets):
            for case in o.only:
                if (case, seed) in done or time.monotonic() - begun > o.seconds:
                    continue
                made = one(case, seed)
                lines += made
                if o.out:
                    with o.out.open("a") as f:
                        f.write("".join(json.dumps(line) + "\n" for line in made))
    print(table(lines))


if __name__ == "__main__":
    main()
