"""How often what is right is not believed: chains that begin in their target, and guides that are nearly exact.

    python benchmarks/false_alarms.py [--runs 300] [--guides 100] [--data-sets 100]

Chains: 64 of 250 draws of AR(1) in two latents, of autocorrelation time tau, begun in their target. Flagged is a run
whose effective draws are 400 or more and of which a check is not fine. At most 1% may be.

Guides: a normal mean, whose posterior is known, and a guide whose sd is 0.97 to 1.05 times, and whose mean is up to
0.05 sd, beside it. Flagged is one that `diagnose` does not call fine. At most 2% may be.

Models: data sets of 10, 30 and 200 rows, drawn from models whose posterior is a closed form, beside 1000 draws from
their posterior predictive. Flagged is one that `predictive_checks` says is off; of right models at most 2% may be.
"""

from __future__ import annotations

import argparse
import logging
import math
import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import pyro
import torch
from arviz_base import from_dict
from pyro.distributions import Normal
from torch import Tensor

import ppgen
from ppgen.inference import diagnose, fit
from ppgen.inference.sampling.kernels import Draws
from ppgen.inference.verdicts.findings import FINE
from ppgen.inference.verdicts.mcmc_diagnostics import GOOD_ESS, findings
from ppgen.inference.verdicts.report_checks import predictive_checks

TAUS = (1.0, 3.5, 10.0, 30.0)
GUIDES = {"exact": (1.0, 0.0), "a little wide": (1.05, 0.05), "a little narrow": (0.97, 0.05)}
CHAINS, DRAWS = 64, 250
ROWS, PREDICTED = (10, 30, 200), 1000


class _Latents:
    labels = ("u[0]", "u[1]")

    def unflatten(self, u: Tensor) -> dict[str, Tensor]:
        return {"u": u}


def chains(tau: float, seed: int) -> tuple[bool, list[str]]:
    """Whether there are 400 effective draws, and the checks that are not fine."""
    rho, rng = (tau - 1) / (tau + 1), np.random.default_rng(seed)
    u, energy = rng.normal(size=(DRAWS, CHAINS, 2)), rng.normal(size=(DRAWS, CHAINS))
    for i in range(1, DRAWS):
        u[i] = rho * u[i - 1] + (1 - rho**2) ** 0.5 * u[i]
    none = torch.zeros(DRAWS, CHAINS, dtype=torch.bool)
    stats = {"lp": torch.tensor(-0.5 * (u**2).sum(-1)), "energy": torch.tensor(energy), "diverging": none}
    found = findings(Draws(torch.tensor(u), stats, 0, torch.zeros(2), "diag"), _Latents())
    enough = all(f.figure >= GOOD_ESS for f in found if f.measure.startswith("ess"))
    return enough, [f.measure for f in found if f.verdict != FINE]


class Guided(ppgen.Program):
    """m ~ N(0, 1), x_i ~ N(m, 1), and a guide beside the posterior."""

    def __init__(self, width: float, off: float):
        super().__init__()
        self.width, self.off = torch.nn.Parameter(torch.tensor(width)), off

    def model(self, x: Tensor) -> None:
        m = pyro.sample("m", Normal(0.0, 1.0))
        with ppgen.rows(x):
            pyro.sample("x", Normal(m, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        sd = 1 / math.sqrt(len(x) + 1)
        pyro.sample("m", Normal(x.sum() / (len(x) + 1) + self.off * sd, self.width * sd))


def guide(width: float, off: float, seed: int) -> list[str]:
    """The checks that are not fine."""
    x = {"x": 1 + torch.randn(20, generator=torch.Generator().manual_seed(seed))}
    found = diagnose(fit(Guided(width, off), x, steps=0, seed=seed), x, seed=seed)
    return [f.measure for f in found.findings if f.verdict != FINE]


# -- models: rows -> data, (n,), and draws of the posterior predictive, (S, n) ---------------------------


def normal_regression(
    rng: np.random.Generator, n: int, degrees: float = math.inf, carried: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Of errors of t's `degrees` and of an autocorrelation."""
    x = np.stack([np.ones(n), rng.normal(size=n)], 1)
    noise = rng.normal(size=n) if degrees == math.inf else rng.standard_t(degrees, n)
    for i in range(1, n):
        noise[i] = carried * noise[i - 1] + math.sqrt(1 - carried**2) * noise[i]
    y = x @ rng.normal(size=2) + rng.gamma(2.0, 0.5) * noise
    cov = np.linalg.inv(x.T @ x)
    best = cov @ x.T @ y
    sd = np.sqrt(np.square(y - x @ best).sum() / rng.chisquare(n - 2, PREDICTED))[:, None]
    beta = best + sd * (rng.normal(size=(PREDICTED, 2)) @ np.linalg.cholesky(cov).T)
    return y, beta @ x.T + sd * rng.normal(size=(PREDICTED, n))


def poisson(rng: np.random.Generator, n: int, spread: float = math.inf) -> tuple[np.ndarray, np.ndarray]:
    rate = rng.gamma(1.0, 3.0)
    y = rng.poisson(rate if spread == math.inf else rng.gamma(spread, rate / spread, n), n)
    return y, rng.poisson(rng.gamma(y.sum() + 1, 1 / (n + 1 / 3), PREDICTED)[:, None], (PREDICTED, n))


def binomial(rng: np.random.Generator, n: int, spread: float = math.inf) -> tuple[np.ndarray, np.ndarray]:
    trials, p = rng.integers(1, 20, n), rng.uniform()
    y = rng.binomial(trials, p if spread == math.inf else rng.beta(spread * p, spread * (1 - p), n))
    drawn = rng.beta(1 + y.sum(), 1 + (trials - y).sum(), PREDICTED)[:, None]
    return y, rng.binomial(trials, drawn, (PREDICTED, n))


def exponential(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    y = rng.exponential(1 / rng.gamma(2.0, 1.0), n)
    return y, rng.exponential(1 / rng.gamma(2 + n, 1 / (1 + y.sum()), PREDICTED)[:, None], (PREDICTED, n))


def groups(rng: np.random.Generator, n: int, of: int = 8) -> tuple[np.ndarray, np.ndarray]:
    member = np.eye(of)[np.sort(rng.integers(0, of, n))]
    y = member @ rng.normal(size=of) + rng.normal(size=n)
    cov = np.linalg.inv(member.T @ member + np.eye(of))
    level = cov @ member.T @ y + rng.normal(size=(PREDICTED, of)) @ np.linalg.cholesky(cov).T
    return y, level @ member.T + rng.normal(size=(PREDICTED, n))


def random_walk(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Its levels are latent: what is drawn given them is near the observed, and as smooth."""
    prior = np.minimum.outer(np.arange(1.0, n + 1), np.arange(1.0, n + 1))
    y = rng.multivariate_normal(np.zeros(n), prior) + rng.normal(size=n)
    gain = prior @ np.linalg.inv(prior + np.eye(n))
    return y, rng.multivariate_normal(gain @ y, prior - gain @ prior, PREDICTED) + rng.normal(size=(PREDICTED, n))


RIGHT = {"normal regression": normal_regression, "Poisson": poisson, "binomial": binomial, "exponential": exponential,
         "groups in order": groups, "random walk": random_walk}  # fmt: skip
OFF = {
    "t of 2.5 degrees as normal": partial(normal_regression, degrees=2.5),
    "errors of correlation 0.6 as independent": partial(normal_regression, carried=0.6),
    "negative binomial (1.5) as Poisson": partial(poisson, spread=1.5),
    "beta-binomial (4) as binomial": partial(binomial, spread=4.0),
}


def model(make: Callable[..., tuple[np.ndarray, np.ndarray]], rows: int, seed: int) -> list[str]:
    """The statistics that are off."""
    y, drawn = make(np.random.default_rng(seed), rows)
    groups_of = {"posterior_predictive": {"y": drawn[None].astype(float)}, "observed_data": {"y": y.astype(float)}}
    return [c.statistic for c in predictive_checks(from_dict(groups_of)) if c.off]


def _line(name: str, flagged: list[list[str]]) -> str:
    said = sorted({m for f in flagged for m in f})
    count = sum(bool(f) for f in flagged)
    return f"{name:28} {count:4} of {len(flagged):4} flagged ({count / max(len(flagged), 1):.1%}) {', '.join(said)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=300, help="of chains, for each autocorrelation time")
    parser.add_argument("--guides", type=int, default=100, help="seeds of each guide")
    parser.add_argument("--data-sets", type=int, default=100, help="of each model and number of rows")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("ppgen").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    for tau in TAUS:
        runs = [chains(tau, seed) for seed in range(options.runs)]
        print(_line(f"chains, tau {tau:g}", [flagged for enough, flagged in runs if enough]), flush=True)
    for name, (width, off) in GUIDES.items():
        print(_line(f"guide, {name}", [guide(width, off, seed) for seed in range(options.guides)]), flush=True)
    for kind, models in (("right", RIGHT), ("wrong", OFF)):
        for name, make in models.items():
            for rows in ROWS:
                flagged = [model(make, rows, seed) for seed in range(options.data_sets)]
                print(_line(f"{kind}: {name}, {rows} rows", flagged), flush=True)


if __name__ == "__main__":
    main()
