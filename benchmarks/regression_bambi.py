"""Three regressions beside bambi: the same tables, the same priors; posterior means, and CPU seconds of the whole call.

    python benchmarks/regression_bambi.py ours DIR      with ppgen's Python
    python benchmarks/regression_bambi.py bambi DIR     with a Python that has bambi (0.17)
    python benchmarks/regression_bambi.py table DIR

Each by its defaults: ppgen's mcmc (ChEES, 64 chains of 250), bambi's fit on one core (NUTS, 2 chains of 1000 after
1000). The call is from the formula to the draws, compilation included. Means agree where they differ by less than four
standard errors.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

N = 300
MODELS = {
    "logistic": ("y ~ x + u", "bernoulli", "bernoulli"),
    "negative binomial, intercepts that vary": ("y ~ x + u + (1 | g)", "negbinomial", "negativebinomial"),
    "gaussian, slopes that vary": ("y ~ x + u + (x || g)", "gaussian", "gaussian"),
}


def table(name: str) -> pd.DataFrame:
    rng = np.random.default_rng(list(MODELS).index(name))
    x, u, g = rng.normal(size=N), rng.integers(0, 2, N), rng.integers(0, 15, N)
    eta = 0.4 + 0.6 * x - 0.5 * u
    if name == "logistic":
        y = (rng.random(N) < 1 / (1 + np.exp(-eta))).astype(int)
    elif name.startswith("negative"):
        y = rng.poisson(rng.gamma(4.0, np.exp(eta + rng.normal(0, 0.5, 15)[g]) / 4.0))
    else:
        y = rng.normal(eta + rng.normal(0, 0.5, 15)[g] + rng.normal(0, 0.3, 15)[g] * x, 0.8)
    return pd.DataFrame({"x": x, "u": u, "g": [f"g{i:02d}" for i in g], "y": y})


def seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def ours(name: str) -> Any:
    from ppgen.inference import mcmc
    from ppgen.models import regression

    formula, family, _ = MODELS[name]
    priors = {"Intercept": (0.0, 2.5), "beta": 1.0}
    priors |= {"sd": 1.0} if "|" in formula else {}
    priors |= {"sigma": 1.0} if family == "gaussian" else {}
    data = table(name)
    tree = mcmc(regression(formula, family, data, priors), data, predictive=False, prior=False)
    draws = tree["posterior"].dataset
    found = {"Intercept": draws["Intercept"], "x": draws["beta"].sel(term="x"), "u": draws["beta"].sel(term="u")}
    for group in [n for n in ("sd_g", "sd_g_2") if n in draws]:
        (dim,) = (d for d in draws[group].dims if d not in ("chain", "draw"))
        found |= {f"sd {label}": draws[group].sel({dim: label}) for label in draws[group][dim].values}
    found |= {n: draws[n] for n in ("phi", "sigma") if n in draws}
    return {k: v.values for k, v in found.items()}


def bambis(name: str) -> Any:
    import bambi

    formula, _, family = MODELS[name]
    formula = formula.replace("(x || g)", "(1 | g) + (0 + x | g)")
    prior = bambi.Prior
    priors: dict[str, Any] = {"Intercept": prior("Normal", mu=0, sigma=2.5)}
    priors |= {n: prior("Normal", mu=0, sigma=1.0) for n in ("x", "u")}
    spread = prior("Normal", mu=0, sigma=prior("HalfNormal", sigma=1.0))
    priors |= {n: spread for n in ("1|g", "x|g") if n[0] in ("1x" if "x |" in formula else "1") and "|" in formula}
    priors |= {"alpha": prior("Gamma", alpha=2, beta=0.1)} if family == "negativebinomial" else {}
    priors |= {"sigma": prior("Exponential", lam=1.0)} if family == "gaussian" else {}
    model = bambi.Model(formula, table(name), family=family, priors=priors)
    draws = model.fit(cores=1, random_seed=1, progressbar=False).posterior
    names = {"1|g_sigma": "sd Intercept", "x|g_sigma": "sd x", "alpha": "phi"}
    return {names.get(n, n): draws[n].values for n in draws if draws[n].ndim == 2}


def summary(draws: Any) -> dict[str, list[float]]:
    """Mean, sd and the standard error of the mean, by the means of chains."""
    found = {}
    for name, value in draws.items():
        chains = value.shape[0]
        batches = value.reshape(chains, -1) if chains >= 16 else value.reshape(chains * 10, -1)
        error = batches.mean(1).std(ddof=1) / len(batches) ** 0.5
        found[name] = [float(value.mean()), float(value.std()), float(error)]
    return found


def write(which: str, folder: Path) -> None:
    for name in MODELS:
        begun = seconds()
        draws = {"ours": ours, "bambi": bambis}[which](name)
        line = {"seconds": seconds() - begun, "means": summary(draws)}
        file = folder / f"{which}-{list(MODELS).index(name)}.json"
        file.write_text(json.dumps(line))
        print(name, json.dumps(line))


def show(folder: Path) -> None:
    print("| model | of | ppgen | bambi | apart, s.e. | CPU s, ppgen | CPU s, bambi |\n|---|---|---|---|---|---|---|")
    for i, name in enumerate(MODELS):
        a, b = (json.loads((folder / f"{which}-{i}.json").read_text()) for which in ("ours", "bambi"))
        first = True
        for k, (mean, sd, error) in a["means"].items():
            other, other_sd, other_error = b["means"][k]
            z = abs(mean - other) / (error**2 + other_error**2) ** 0.5
            times = f"{a['seconds']:.1f} | {b['seconds']:.1f}" if first else " | "
            shown = f"{mean:.3f} ± {sd:.3f} | {other:.3f} ± {other_sd:.3f} | {z:.1f}"
            print(f"| {name if first else ''} | {k} | {shown} | {times} |")
            first = False


if __name__ == "__main__":
    which, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    show(folder) if which == "table" else write(which, folder)
