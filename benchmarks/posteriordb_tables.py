"""Data and reference draws of 23 posteriors of posteriordb, and how far draws are from these: neither torch nor Pyro.

`read(folder, name)` gives one. Its density is a program of that name in `posteriordb` (Pyro), `posteriors_numpyro` and
`posteriors_pymc`, so that a peer can be run in an environment of its own.

Source: posteriordb, a database of Bayesian posterior inference (Magnusson et al. 2024, arXiv:2407.04967).
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Data = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """One posterior.

    Attributes:
        density: the name of the program.
        arrays: its arguments.
        names: of the coordinates of the reference, as theta[3].
        reference: (chains, draws, dim), float64.
    """

    name: str
    density: str
    arrays: Mapping[str, np.ndarray]
    names: list[str]
    reference: np.ndarray

    def stacked(self, draws: Mapping[str, np.ndarray]) -> np.ndarray:
        """Draws by site (chain, draw, ...) as (chain, draw, dim), in the order of the reference."""
        parts = []
        for name in self.names:
            site, _, index = name.partition("[")
            parts.append(draws[site][..., int(index[:-1]) - 1] if index else draws[site])
        return np.stack(parts, -1)


def read(folder: str | Path, name: str) -> Table:
    """
    Args:
        folder: with index.json, data/ and draws/.
        name: as in `NAMES`.
    """
    folder = Path(folder)
    if not (folder / "index.json").exists():
        raise SystemExit(f"{folder} has no index.json; pass the folder of posteriordb with --data-dir")
    entry = json.loads((folder / "index.json").read_text())[name]
    with gzip.open(folder / "data" / f"{entry['data']}.json.gz", "rt") as f:
        raw = json.load(f)
    reference = np.load(folder / "draws" / f"{entry['reference']}.npz")
    density, columns = _MODELS[entry["model"]]
    arrays = {k: np.asarray(v, float) for k, v in columns(raw).items()}
    return Table(name, density, arrays, [str(n) for n in reference["names"]], reference["draws"].astype(float))


# -- how far draws are from the reference ------------------------------------------------------------------


def cpu() -> float:
    """CPU seconds of this process, all threads, and of those that it ran, as a C++ compiler."""
    return sum(os.times()[:4])


def reported(draws: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """With what the model makes of its latents."""
    if "theta_trans" in draws:
        draws["theta"] = draws["mu"][..., None] + draws["tau"][..., None] * draws["theta_trans"]
    return draws


def errors(p: Table, x: np.ndarray) -> dict[str, float]:
    """Of draws (chain, draw, dim), against the reference."""
    r, x = p.reference.reshape(-1, len(p.names)), x.reshape(-1, len(p.names))
    return {
        "mean": float(np.abs((x.mean(0) - r.mean(0)) / r.std(0)).max()),
        "log_sd": float(np.abs(np.log(x.std(0) / r.std(0))).max()),
    }


def chained(p: Table, x: np.ndarray, seconds: float) -> dict[str, float]:
    """`errors`, the least bulk ESS of any coordinate, that of a CPU second, and the largest R-hat of several chains."""
    from arviz_stats.base import array_stats

    each = [np.ascontiguousarray(x[..., i]) for i in range(x.shape[-1])]
    ess = min(float(array_stats.ess(e)) for e in each)
    found = errors(p, x) | {"seconds": seconds, "ess": ess, "ess_s": ess / seconds}
    return found | ({"rhat": max(float(array_stats.rhat(e)) for e in each)} if len(x) > 1 else {})


# -- the arguments of each program -------------------------------------------------------------------------


def _columns(y: str, *features: Any, log: bool = False) -> Callable[[Data], dict[str, np.ndarray]]:
    """(1, features) as X, and y; a feature is a column's name or a function of the data."""

    def make(raw: Data) -> dict[str, np.ndarray]:
        raw = {k: np.asarray(v, float) for k, v in raw.items()}
        X = [f(raw) if callable(f) else raw[f] for f in features]
        target = raw[y]
        if log:
            X, target = [x if set(x) <= {0.0, 1.0} else np.log(x) for x in X], np.log(target)
        return {"X": np.stack([np.ones_like(target), *X], -1), "y": target}

    return make


def _log10_earnings(raw: Data) -> dict[str, np.ndarray]:
    made = _columns("earn", "height")(raw)
    return made | {"y": np.log10(made["y"])}


def _age(k: int) -> Callable[[Data], np.ndarray]:
    return lambda raw: (raw["age_discrete"] == k).astype(float)


def _centred(raw: Data) -> dict[str, np.ndarray]:
    X = np.asarray(raw["X"], float)[:, 1:]
    return {"X": X - X.mean(0), "y": raw["Y"]}


def _lagged(raw: Data) -> dict[str, np.ndarray]:
    y, K = np.asarray(raw["y"]), raw["K"]
    return {"lagged": np.stack([y[K - k : len(y) - k] for k in range(1, K + 1)], -1), "y": y[K:]}


STEPS = 2  # errors below 0.4 %, beside a noise of 13 %


def _pharmaco(raw: Data) -> dict[str, Any]:
    return {"times": raw["times"], "dose": raw["D"], "volume": raw["V"], "C_hat": raw["C_hat"]}


def _pick(*names: str) -> Callable[[Data], Data]:
    return lambda raw: {n: raw[n] for n in names}


def _mesquite(log: bool) -> Callable[[Data], dict[str, np.ndarray]]:
    return _columns("weight", "diam1", "diam2", "canopy_height", "total_height", "density", "group", log=log)


_NES = ("real_ideo", "race_adj", _age(2), _age(3), _age(4), "educ1", "gender", "income")

_MODELS: dict[str, tuple[str, Callable[[Data], Data]]] = {
    "arK": ("arK", _lagged),
    "arma11": ("arma11", _pick("y")),
    "hmm_drive_0": ("hmm_drive", _pick("u", "v", "alpha")),
    "diamonds": ("diamonds", _centred),
    "earn_height": ("flat_regression", _columns("earn", "height")),
    "log10earn_height": ("flat_regression", _log10_earnings),
    "logearn_logheight_male": ("flat_regression", _columns("earn", "height", "male", log=True)),
    "eight_schools_centered": ("eight_schools_centered", _pick("sigma", "y")),
    "eight_schools_noncentered": ("eight_schools_noncentered", _pick("sigma", "y")),
    "gp_regr": ("gp_regr", _pick("x", "y")),
    "hmm_example": ("hmm_example", _pick("y")),
    "kidscore_interaction": (
        "cauchy_regression",
        _columns("kid_score", "mom_hs", "mom_iq", lambda raw: raw["mom_hs"] * raw["mom_iq"]),
    ),
    "kidscore_momhs": ("cauchy_regression", _columns("kid_score", "mom_hs")),
    "kidscore_momhsiq": ("cauchy_regression", _columns("kid_score", "mom_hs", "mom_iq")),
    "kidscore_momiq": ("cauchy_regression", _columns("kid_score", "mom_iq")),
    "low_dim_gauss_mix": ("low_dim_gauss_mix", _pick("y")),
    "logmesquite": ("flat_regression", _mesquite(True)),
    "logmesquite_logvolume": (
        "flat_regression",
        _columns("weight", lambda raw: raw["diam1"] * raw["diam2"] * raw["canopy_height"], log=True),
    ),
    "mesquite": ("flat_regression", _mesquite(False)),
    "nes": ("flat_regression", _columns("partyid7", *_NES)),
    "one_comp_mm_elim_abs": ("one_comp_mm_elim_abs", _pharmaco),
    "blr": ("blr", _pick("X", "y")),
}

NAMES = (
    "arK-arK", "arma-arma11", "bball_drive_event_0-hmm_drive_0", "diamonds-diamonds", "earnings-earn_height",
    "earnings-log10earn_height", "earnings-logearn_logheight_male", "eight_schools-eight_schools_centered",
    "eight_schools-eight_schools_noncentered", "gp_pois_regr-gp_regr", "hmm_example-hmm_example",
    "kidiq-kidscore_interaction", "kidiq-kidscore_momhs", "kidiq-kidscore_momhsiq", "kidiq-kidscore_momiq",
    "low_dim_gauss_mix-low_dim_gauss_mix", "mesquite-logmesquite", "mesquite-logmesquite_logvolume",
    "mesquite-mesquite", "nes1980-nes", "nes2000-nes", "one_comp_mm_elim_abs-one_comp_mm_elim_abs", "sblrc-blr",
)  # fmt: skip
