"""Tables with gaps and a known truth: how often 90% intervals hold it, beside the fit to the complete table.

    python benchmarks/gaps.py [--sets 60] [--only "y, at random" ...] [--seconds 3600] [--out F]
    python benchmarks/gaps.py --table F

y ~ Intercept + x + u of 50 rows, gaussian, where x is a line of u with noise. Slopes and scales are drawn from the
stated priors, and the table from them by numpy; a third of the cells of y or of x then go missing: completely at
random (MCAR), or by what is seen of the row (MAR), for y by x, for x by y. Of x by y, the complete rows alone are a
selection by y, and their fit is biased. The draws are those of ChEES-HMC, as in benchmarks/regression.py. With --out,
lines that the file has are not run again; --seconds: after which no further set is begun.
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
import torch

from ppgen.engine.joint import log_joint
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
    o = parser.parse_args()
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
