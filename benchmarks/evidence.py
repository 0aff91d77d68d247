"""log p(x) and separated modes by tempered SMC and from both sides, beside closed forms and quadrature.

    python benchmarks/evidence.py modes [--seeds 10] [--only "two modes"] [--out F]
    python benchmarks/evidence.py sides [--seeds 100] [--only conjugate] [--out F]

modes: targets of benchmarks/hard_targets.py whose log Z is known. The share of a mode, in standard errors of the
islands, log Z in its own, CPU seconds of the whole call. sides: every figure of `evidence` against the exact value. A
seed holds where lower bounds are below it, upper ones above, and estimates at it, within 3 standard errors (shares
within 4). With --out, lines that the file has are not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from hard_targets import MOG, TARGETS, begun, keep, label_switching
from pyro.distributions import MultivariateNormal, Normal

from ppgen.data import load
from ppgen.inference import evidence, mcmc
from ppgen.models import EightSchools

Share = Callable[[dict[str, np.ndarray]], np.ndarray]  # draws by site (chain, draw, ...) -> whether in the mode


def near(points: np.ndarray) -> Share:
    """Whether the nearest mode of a mixture is the first."""
    return lambda d: np.linalg.norm(d["x"][:, :, None] - points, axis=-1).argmin(-1) == 0


def log_z_of_labels() -> float:
    """By quadrature of one of the six copies."""
    y = label_switching().data["y"]
    grid = [torch.linspace(c - 1.5, c + 1.5, 81).double() + float(y[20 * i : 20 * i + 20].mean() - c)
            for i, c in enumerate((-4.0, 0.0, 4.0))]  # fmt: skip
    lp = torch.cat([
        torch.logsumexp(Normal(m[:, None], 1.0).log_prob(y[:, None]) - math.log(3), -1).sum(-1)
        + Normal(0.0, 5.0).log_prob(m).sum(-1)
        for m in torch.cartesian_prod(*grid).split(5000)
    ])  # fmt: skip
    return float(torch.logsumexp(lp, 0)) + 3 * math.log(3.0 / 80) + math.log(6)


def log_z_of_square() -> float:
    y = 4 + torch.randn(30, generator=torch.Generator().manual_seed(0)).double()
    t = torch.linspace(-4, 4, 8001).double()
    lp = Normal(0.0, 5.0).log_prob(t) + Normal(t[:, None] ** 2, 1.0).log_prob(y).sum(-1)
    return float(torch.logsumexp(lp, 0)) + math.log(1e-3)


def narrow(d: dict[str, np.ndarray]) -> np.ndarray:
    return (d["x"] ** 2).sum(-1) < 1


MODES: dict[str, tuple[Callable[[], float], float, Share]] = {  # log Z, the share of a mode, and which it is
    "two modes": (lambda: 0.0, 0.7, lambda d: d["x"][..., 0] < 20),
    "theta squared": (log_z_of_square, 0.5, lambda d: d["th"] < 0),
    "wide and narrow, 10-D": (lambda: 0.0, 0.5, narrow),
    "MoG40": (lambda: 0.0, 1 / 40, near(MOG)),
    "label switching": (log_z_of_labels, 1 / 6, lambda d: (np.diff(d["mu"], axis=-1) > 0).all(-1)),
}


def of_modes(name: str, seed: int) -> dict[str, Any]:
    target, (log_z, share, inside) = TARGETS[name](), MODES[name]
    began = time.process_time()
    tree = mcmc(target.model, target.data, "smc", seed=seed, predictive=False, prior=False)
    seconds = time.process_time() - began
    values = {n: v.values for n, v in tree["posterior"].data_vars.items()}
    each = inside(values).mean(-1)
    se = each.std(ddof=1) / len(each) ** 0.5
    own = tree.attrs["log_evidence_se"]
    z, off = (each.mean() - share) / se, tree.attrs["log_evidence"] - log_z()
    holds = abs(z) < 4 and abs(off) < 3 * own + 1e-3
    return {
        "share": each.mean(),
        "share_z": z,
        "log_z_off": off,
        "log_z_se": own,
        "seconds": seconds,
        "holds": bool(holds),
    }


def conjugate() -> tuple[Any, Any, float]:
    x = torch.tensor([1.0, 2.5, -0.3, 0.8]).double()

    def model(x: torch.Tensor) -> None:
        m = pyro.sample("m", Normal(0.0, 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", Normal(m, 1.0), obs=x)

    return model, {"x": x}, float(MultivariateNormal(torch.zeros(4), torch.eye(4) + 4.0).log_prob(x))


def regression() -> tuple[Any, Any, float]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(50, 4, generator=g).double()
    y = x @ torch.tensor([1.0, -2.0, 0.0, 0.5]).double() + torch.randn(50, generator=g).double()

    def model(x: torch.Tensor, y: torch.Tensor) -> None:
        b = pyro.sample("b", Normal(torch.zeros(4), 3.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", Normal(x @ b, 1.0), obs=y)

    cov = torch.eye(50).double() + 9 * x @ x.mT
    return model, {"x": x, "y": y}, float(MultivariateNormal(torch.zeros(50).double(), cov).log_prob(y))


SIDES: dict[str, Callable[[], tuple[Any, Any, float]]] = {
    "conjugate normal": conjugate,
    "linear regression": regression,
    "eight schools": lambda: (EightSchools(), load("eight_schools"), -31.3114),
    "three labels": lambda: (*label_switching()[:2], log_z_of_labels()),
}


def of_sides(name: str, seed: int) -> dict[str, Any]:
    model, data, exact = SIDES[name]()
    began = time.process_time()
    found = evidence(model, data, seed=seed)
    row: dict[str, Any] = {"seconds": time.process_time() - began, "holds": True}
    for t in found.table():
        off, slack = t["nats"] - exact, 3 * t["se"] + 1e-3
        row |= {t["name"]: off, f"{t['name']}_se": t["se"]}
        row["holds"] &= {"lower": off < slack, "upper": off > -slack}.get(t["kind"], abs(off) < slack)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("modes", "sides"))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", nargs="*", default=[""], help="parts of names")
    parser.add_argument("--out", type=Path, help="JSON lines, read and appended to")
    options = parser.parse_args()
    measure, names = (of_modes, MODES) if options.what == "modes" else (of_sides, SIDES)
    rows = begun(options.out)
    for seed in range(options.seeds):
        for name in names:
            done = any(r["name"] == name and r["seed"] == seed for r in rows)
            if done or not any(part in name for part in options.only):
                continue
            rows.append({"name": name, "seed": seed} | {k: _plain(v) for k, v in measure(name, seed).items()})
            print(json.dumps(rows[-1]), flush=True)
            keep(rows[-1], options.out)
    for name in names:
        mine = [r for r in rows if r["name"] == name]
        if mine:
            held, seconds = sum(r["holds"] for r in mine), float(np.median([r["seconds"] for r in mine]))
            print(f"{name:24} holds in {held} of {len(mine)} seeds, {seconds:.1f} CPU s")


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool) else float(value)


if __name__ == "__main__":
    main()
