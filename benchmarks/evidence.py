"""log p(x) and separated modes by tempered SMC and from both sides, beside closed forms and quadrature.

    python benchmarks/evidence.py modes [--seeds 10] [--only "two modes"] [--out F]
    python benchmarks/evidence.py modes --export F.npz    # data and truths for evidence_blackjax.py
    python benchmarks/evidence.py sides [--seeds 100] [--only conjugate] [--draws 500] [--out F]
    python benchmarks/evidence.py factors [--seeds 10] [--out F]

modes: targets of benchmarks/hard_targets.py whose log Z is known. The share of a mode, in standard errors of the
islands, log Z in its own, CPU seconds of the whole call. sides: every figure of `evidence` against the exact value. A
seed holds where lower bounds are below it, upper ones above, and estimates at it, within 3 standard errors (shares
within 4). apart: the largest difference of two of iw, bridge and smc, in its standard errors. factors: log Bayes
factors of nested regressions against their closed form. With --out, lines that the file has are not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from hard_targets import MOG, TARGETS, begun, keep, label_switching
from pyro.distributions import Bernoulli, MultivariateNormal, Normal, Poisson

from ppgen.data import load
from ppgen.inference import bayes_factors, evidence, mcmc
from ppgen.models import EightSchools, Radon

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


def exported(path: Path) -> None:
    y = {"labels": label_switching().data["y"], "square": TARGETS["theta squared"]().data["y"], "mog": MOG}
    truth = {f"{name}: log Z, share": (log_z(), share) for name, (log_z, share, _) in MODES.items()}
    np.savez(path, **{n: np.asarray(v) for n, v in (y | truth).items()})


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


def radon() -> tuple[Any, Any, float]:
    """85 counties of very different sizes, 919 houses: given τ and σ the rows are jointly normal."""
    rng = np.random.default_rng(0)
    sizes = rng.multinomial(919 - 85, rng.dirichlet(np.full(85, 0.5))) + 1
    county, floor = np.repeat(np.arange(85), sizes), (rng.random(919) < 0.17).astype(float)
    y = rng.normal(1.5, 0.33, 85)[county] - 0.67 * floor + rng.normal(0.0, 0.73, 919)
    data = {"county": torch.tensor(county), "floor": torch.tensor(floor), "y": torch.tensor(y)}
    tau, sigma = np.linspace(0.0, 1.2, 241)[1:], np.linspace(0.6, 0.9, 121)
    lp = np.array([[radon_at(t, s, sizes, floor, y) for s in sigma] for t in tau])
    prior = 2 * math.log(2 / math.pi) - np.log1p(tau**2)[:, None] - np.log1p(sigma**2)
    cells = math.log((tau[1] - tau[0]) * (sigma[1] - sigma[0]))
    return Radon(85), data, float(np.logaddexp.reduce((lp + prior).ravel()) + cells)


def radon_at(tau: float, sigma: float, sizes: np.ndarray, floor: np.ndarray, y: np.ndarray) -> float:
    """log p(y | τ, σ): the covariance of the counties' intercepts and the noise, and mean and slope, by Woodbury's."""
    starts = np.cumsum(sizes) - sizes
    A = np.stack([np.ones_like(y), floor], 1)
    shrink = tau**2 / (sigma**2 + sizes * tau**2)
    sums = np.add.reduceat(np.column_stack([A, y]), starts)
    both = np.column_stack([A, y])
    inner = (both.T @ both - (shrink[:, None] * sums).T @ sums) / sigma**2
    log_det = 2 * (len(y) - len(sizes)) * math.log(sigma) + np.log(sigma**2 + sizes * tau**2).sum()
    precision = inner[:2, :2] + np.eye(2) / 100
    log_det += 2 * math.log(100) + np.linalg.slogdet(precision)[1]
    quadratic = inner[2, 2] - inner[2, :2] @ np.linalg.solve(precision, inner[:2, 2])
    return -0.5 * (quadratic + log_det + len(y) * math.log(2 * math.pi))


def generalized(poisson: bool) -> tuple[Any, Any, float]:
    """Three coefficients of a logistic, or of a Poisson, regression of 60 rows: by quadrature."""
    rng = np.random.default_rng(0)
    X = np.column_stack([np.ones(60), rng.normal(size=(60, 2))])
    eta = X @ np.array([0.5, 0.8, -0.6])
    y = rng.poisson(np.exp(eta)) if poisson else rng.random(60) < 1 / (1 + np.exp(-eta))
    X, y = torch.tensor(X), torch.tensor(y).double()

    def model(X: torch.Tensor, y: torch.Tensor) -> None:
        eta = X @ pyro.sample("b", Normal(torch.zeros(3), 2.0).to_event(1))
        with pyro.plate("data", len(X)):
            pyro.sample("y", Poisson(eta.exp()) if poisson else Bernoulli(logits=eta), obs=y)

    axis = torch.linspace(-3.5, 4.5, 161).double()
    b = torch.cartesian_prod(axis, axis, axis)
    lp = torch.cat([rows_of(X, y, part, poisson) for part in b.split(100_000)]) + Normal(0.0, 2.0).log_prob(b).sum(-1)
    return model, {"X": X, "y": y}, float(torch.logsumexp(lp, 0)) + 3 * math.log(0.05)


def rows_of(X: torch.Tensor, y: torch.Tensor, b: torch.Tensor, poisson: bool) -> torch.Tensor:
    eta = b @ X.mT
    return (eta @ y - eta.exp().sum(-1) - torch.lgamma(y + 1).sum() if poisson
            else eta @ y - torch.nn.functional.softplus(eta).sum(-1))  # fmt: skip


SIDES: dict[str, Callable[[], tuple[Any, Any, float]]] = {
    "conjugate normal": conjugate,
    "linear regression": regression,
    "eight schools": lambda: (EightSchools(), load("eight_schools"), -31.3114),
    "three labels": lambda: (*label_switching()[:2], log_z_of_labels()),
    "radon, 85 counties": radon,
    "logistic regression": lambda: generalized(False),
    "Poisson regression": lambda: generalized(True),
}


def of_sides(name: str, seed: int, draws: int | None = None) -> dict[str, Any]:
    """By tempered SMC, of so many particles an island where that is given."""
    model, data, exact = SIDES[name]()
    began = time.process_time()
    if draws is None:
        table = evidence(model, data, seed=seed).table()
    else:
        tree = mcmc(model, data, "smc", draws=draws, seed=seed, predictive=False, prior=False)
        own = {"nats": tree.attrs["log_evidence"], "se": tree.attrs["log_evidence_se"]}
        table = [*evidence(model, data, draws=tree, seed=seed).table(), {"name": "smc", "kind": "estimate"} | own]
    row: dict[str, Any] = {"seconds": time.process_time() - began, "holds": True}
    for t in table:
        off, slack = t["nats"] - exact, 3 * t["se"] + 1e-3
        row |= {t["name"]: off, f"{t['name']}_se": t["se"]}
        row["holds"] &= {"lower": off < slack, "upper": off > -slack}.get(t["kind"], abs(off) < slack)
    row["apart"] = max(
        abs(row[a] - row[b]) / math.hypot(row[f"{a}_se"], row[f"{b}_se"])
        for a, b in (("iw", "bridge"), ("iw", "smc"), ("bridge", "smc"))
    )
    return row


def nested(columns: int) -> tuple[Any, dict[str, torch.Tensor], float]:
    """y ~ N(X b, 1), 40 rows, by the first columns of X; only two have an effect."""
    g = torch.Generator().manual_seed(0)
    X = torch.cat([torch.ones(40, 1), torch.randn(40, 3, generator=g)], 1).double()
    y = X @ torch.tensor([1.0, 0.6, 0.0, 0.0]).double() + torch.randn(40, generator=g).double()

    def model(X: torch.Tensor, y: torch.Tensor) -> None:
        b = pyro.sample("b", Normal(torch.zeros(columns), 1.0).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", Normal(X[:, :columns] @ b, 1.0), obs=y)

    own = X[:, :columns]
    cov = torch.eye(40).double() + own @ own.mT
    return model, {"X": X, "y": y}, float(MultivariateNormal(torch.zeros(40).double(), cov).log_prob(y))


FACTORS = {f"{n} columns": n for n in (1, 3, 4)}  # each against two


def of_factors(name: str, seed: int) -> dict[str, Any]:
    """The log Bayes factor of two columns over a model with fewer, or with more."""
    began = time.process_time()
    one, other = nested(2), nested(FACTORS[name])
    both = {str(i): evidence(m, data, seed=seed) for i, (m, data, _) in enumerate((one, other))}
    figures = bayes_factors(both).table()
    by_name = {t["name"]: t for t in figures}
    factor = by_name["1"]["log_bayes_factor"] - by_name["0"]["log_bayes_factor"]
    se = max(t["log_bayes_factor_se"] for t in figures)
    off = factor - (other[2] - one[2])
    return {"exact": other[2] - one[2], "off": off, "se": se, "seconds": time.process_time() - began,
            "holds": abs(off) < 3 * se + 1e-3}  # fmt: skip


KINDS: dict[str, tuple[Callable[[str, int], dict[str, Any]], Iterable[str]]] = {
    "modes": (of_modes, MODES), "sides": (of_sides, SIDES), "factors": (of_factors, FACTORS),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=KINDS)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", nargs="*", default=[""], help="parts of names")
    parser.add_argument("--draws", type=int, help="particles of an island, of sides")
    parser.add_argument("--out", type=Path, help="JSON lines, read and appended to")
    parser.add_argument("--export", type=Path, help="a file for the data and truths of modes")
    options = parser.parse_args()
    if options.export:
        begun(None)
        return exported(options.export)
    measure, names = KINDS[options.what]
    measure = partial(measure, draws=options.draws) if options.draws else measure
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
