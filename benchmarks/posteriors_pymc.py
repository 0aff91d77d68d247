"""nutpie on PyMC, the same density as in `posteriordb`, for two posteriors that are short to write: a peer apart.

    python benchmarks/posteriors_pymc.py --data-dir DIR

PyMC pins other versions of NumPy and ArviZ than ppgen does, and wants an environment of its own, with pymc, nutpie and
arviz-stats; so nothing of ppgen is imported here. Nor is torch. Warm-up and draws of 4 chains on one core are timed,
4 x (1000 + 1000); compiling stands apart.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import nutpie
import pymc as pm
from arviz_stats.base import array_stats

Data = dict[str, Any]


def eight_schools(raw: Data) -> pm.Model:
    with pm.Model() as model:
        mu, tau = pm.Normal("mu", 0, 5), pm.HalfCauchy("tau", 5)
        theta = pm.Deterministic("theta", mu + tau * pm.Normal("theta_trans", 0, 1, shape=len(raw["y"])))
        pm.Normal("y", theta, raw["sigma"], observed=raw["y"])
    return model


def ark(raw: Data) -> pm.Model:
    y, K = np.asarray(raw["y"], float), raw["K"]
    lagged = np.stack([y[K - k : len(y) - k] for k in range(1, K + 1)], -1)
    with pm.Model() as model:
        alpha, beta = pm.Normal("alpha", 0, 10), pm.Normal("beta", 0, 10, shape=K)
        pm.Normal("y", alpha + lagged @ beta, pm.HalfCauchy("sigma", 2.5), observed=y[K:])
    return model


MODELS = {"eight_schools-eight_schools_noncentered": eight_schools, "arK-arK": ark}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="the folder of posteriordb")
    folder = parser.parse_args().data_dir
    index = json.loads((folder / "index.json").read_text())
    for name, make in MODELS.items():
        with gzip.open(folder / "data" / f"{index[name]['data']}.json.gz", "rt") as f:
            model = make(json.load(f))
        begun = sum(os.times()[:4])
        compiled = nutpie.compile_pymc_model(model)
        built = sum(os.times()[:4])
        found = nutpie.sample(compiled, draws=1000, tune=1000, chains=4, cores=1, seed=0, progress_bar=False)
        seconds = sum(os.times()[:4]) - built
        reference = np.load(folder / "draws" / f"{index[name]['reference']}.npz")
        names, draws = [str(n) for n in reference["names"]], reference["draws"].astype(float)
        x = np.stack([_entry(found.posterior, n) for n in names], -1)
        off = np.abs((x.mean((0, 1)) - draws.mean((0, 1))) / draws.std((0, 1))).max()
        ess = min(float(array_stats.ess(np.ascontiguousarray(x[..., i]))) for i in range(len(names)))
        print(
            f"{name:44} mean off by {off:.3f} sd, compiling {built - begun:.1f} s, {seconds:.2f} s, "
            f"ESS {ess:.0f}, {ess / seconds:.0f} a CPU second",
            flush=True,
        )


def _entry(posterior: Any, name: str) -> np.ndarray:
    """(chains, draws) of one of the reference's coordinates, as theta[3]."""
    site, _, index = name.partition("[")
    return posterior[site].values[..., int(index[:-1]) - 1] if index else posterior[site].values


if __name__ == "__main__":
    main()
