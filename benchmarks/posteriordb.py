"""23 posteriors of posteriordb as Pyro programs: Stan's definitions, with flat priors where Stan has none.

`load(folder)` gives each as a program, its data and its reference draws. Sites have the names of Stan's parameters.

Source: posteriordb, a database of Bayesian posterior inference (Magnusson et al. 2024, arXiv:2407.04967), whose folder
of models, data and reference draws `load` reads.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from ppgen import PpgenError, Program
from ppgen.distributions import Flat

Data = dict[str, Any]


class Posterior(NamedTuple):
    """One posterior: `columns` are the arguments of `model`; `reference` is (chains, draws, dim), float64."""

    name: str
    model: Callable
    columns: dict[str, Tensor]
    names: list[str]
    reference: np.ndarray

    def program(self) -> Program:
        return Program.from_pair(self.model)

    def stacked(self, draws: dict[str, np.ndarray]) -> np.ndarray:
        """Draws by site (chain, draw, ...) as (chain, draw, dim), in the order of the reference."""
        parts = []
        for name in self.names:
            site, _, index = name.partition("[")
            parts.append(draws[site][..., int(index[:-1]) - 1] if index else draws[site])
        return np.stack(parts, -1)


def load(folder: str | Path, name: str) -> Posterior:
    """
    Args:
        folder: with index.json, data/ and draws/.
        name: as in `NAMES`.
    """
    folder = Path(folder)
    if not (folder / "index.json").exists():
        raise PpgenError(f"{folder} has no index.json; pass the folder of posteriordb with --data-dir")
    entry = json.loads((folder / "index.json").read_text())[name]
    with gzip.open(folder / "data" / f"{entry['data']}.json.gz", "rt") as f:
        raw = json.load(f)
    reference = np.load(folder / "draws" / f"{entry['reference']}.npz")
    model, columns = _MODELS[entry["model"]]
    data = {k: torch.as_tensor(v).double() for k, v in columns(raw).items()}
    return Posterior(name, model, data, [str(n) for n in reference["names"]], reference["draws"].astype(float))


# -- regressions -------------------------------------------------------------------------------------------


def _dot(X: Tensor, beta: Tensor) -> Tensor:
    """X β: (N, K), (..., 1, K) -> (..., N); the 1 is the place of the plate of rows."""
    return X @ beta if beta.dim() == 1 else beta.squeeze(-2) @ X.mT


def flat_regression(X: Tensor, y: Tensor | None = None) -> None:
    """β, σ flat; y ~ N(X β, σ)."""
    beta = pyro.sample("beta", Flat(shape=(X.shape[-1],)))
    sigma = pyro.sample("sigma", Flat(constraints.positive))
    with pyro.plate("data", len(X)):
        pyro.sample("y", dist.Normal(_dot(X, beta), sigma), obs=y)


def cauchy_regression(X: Tensor, y: Tensor | None = None) -> None:
    """As `flat_regression`, σ ~ HalfCauchy(2.5)."""
    beta = pyro.sample("beta", Flat(shape=(X.shape[-1],)))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    with pyro.plate("data", len(X)):
        pyro.sample("y", dist.Normal(_dot(X, beta), sigma), obs=y)


def blr(X: Tensor, y: Tensor | None = None) -> None:
    beta = pyro.sample("beta", dist.Normal(torch.zeros(X.shape[-1]), 10.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(10.0))
    with pyro.plate("data", len(X)):
        pyro.sample("y", dist.Normal(_dot(X, beta), sigma), obs=y)


def diamonds(X: Tensor, y: Tensor | None = None) -> None:
    """brms: standard normal slopes of centred columns."""
    b = pyro.sample("b", dist.Normal(torch.zeros(X.shape[-1]), 1.0).to_event(1))
    intercept = pyro.sample("Intercept", dist.StudentT(3.0, 8.0, 10.0))
    sigma = pyro.sample("sigma", dist.FoldedDistribution(dist.StudentT(3.0, 0.0, 10.0)))
    with pyro.plate("data", len(X)):
        pyro.sample("y", dist.Normal(intercept + _dot(X, b), sigma), obs=y)


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


# -- series ------------------------------------------------------------------------------------------------


def arK(lagged: Tensor, y: Tensor | None = None) -> None:
    """y_t ~ N(α + Σ_k β_k y_{t-k}, σ), t > K."""
    alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = pyro.sample("beta", dist.Normal(torch.zeros(lagged.shape[-1]), 10.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    with pyro.plate("data", len(lagged)):
        pyro.sample("y", dist.Normal(alpha + _dot(lagged, beta), sigma), obs=y)


def _lagged(raw: Data) -> dict[str, np.ndarray]:
    y, K = np.asarray(raw["y"]), raw["K"]
    return {"lagged": np.stack([y[K - k : len(y) - k] for k in range(1, K + 1)], -1), "y": y[K:]}


def arma11(y: Tensor) -> None:
    """ε_t = y_t - μ - φ y_{t-1} - θ ε_{t-1}, with y_0 = μ and ε_0 = 0; ε_t ~ N(0, σ)."""
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    phi = pyro.sample("phi", dist.Normal(0.0, 2.0))
    theta = pyro.sample("theta", dist.Normal(0.0, 2.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    mu, phi, theta, sigma = (v[..., None] for v in (mu, phi, theta, sigma))
    first = (y[:1] - mu - phi * mu).expand(mu.shape)
    noise = torch.cat([first, y[1:] - mu - phi * y[:-1]], -1)
    shift, power = 1, -theta
    while shift < y.shape[-1]:  # the recursion of T steps in log2 T
        noise = noise + power * torch.nn.functional.pad(noise[..., :-shift], (shift, 0))
        shift, power = 2 * shift, power * power
    pyro.factor("noise", dist.Normal(0.0, sigma).log_prob(noise).sum(-1))


def hmm_example(y: Tensor) -> None:
    mu = pyro.sample("mu", Flat(constraints.positive_ordered_vector, (2,)))
    theta1 = pyro.sample("theta1", Flat(constraints.simplex, (2,)))
    theta2 = pyro.sample("theta2", Flat(constraints.simplex, (2,)))
    pyro.factor("mu_prior", dist.Normal(torch.tensor([3.0, 10.0]), 1.0).log_prob(mu).sum(-1))
    emission = dist.Normal(mu[..., None, :], 1.0).log_prob(y[:, None])
    pyro.factor("y", _forward(torch.stack([theta1, theta2], -2).log(), emission))


def hmm_drive(u: Tensor, v: Tensor, alpha: Tensor) -> None:
    theta1 = pyro.sample("theta1", dist.Dirichlet(alpha[0]))
    theta2 = pyro.sample("theta2", dist.Dirichlet(alpha[1]))
    phi = pyro.sample("phi", Flat(constraints.positive_ordered_vector, (2,)))
    rate = pyro.sample("lambda", Flat(constraints.positive_ordered_vector, (2,)))
    prior = dist.Normal(torch.tensor([0.0, 3.0]), 1.0)
    pyro.factor("prior", (prior.log_prob(phi) + prior.log_prob(rate)).sum(-1))
    emission = dist.Exponential(phi[..., None, :]).log_prob(u[:, None])
    emission = emission + dist.Exponential(rate[..., None, :]).log_prob(v[:, None])
    pyro.factor("uv", _forward(torch.stack([theta1, theta2], -2).log(), emission))


def _forward(transition: Tensor, emission: Tensor) -> Tensor:
    """log Σ over paths, by products of pairs: transition (..., K, K), emission (..., T, K) -> (...)."""
    steps = transition[..., None, :, :] + emission[..., 1:, None, :]
    while steps.shape[-3] > 1:
        n = steps.shape[-3]
        pairs = torch.logsumexp(steps[..., 0 : n - 1 : 2, :, :, None] + steps[..., 1:n:2, None, :, :], -2)
        steps = torch.cat([pairs, steps[..., n - 1 :, :, :]], -3) if n % 2 else pairs
    return torch.logsumexp(emission[..., 0, :, None] + steps[..., 0, :, :], (-1, -2))


# -- others ------------------------------------------------------------------------------------------------


def eight_schools_centered(sigma: Tensor, y: Tensor | None = None) -> None:
    mu, tau = pyro.sample("mu", dist.Normal(0.0, 5.0)), pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(sigma)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def eight_schools_noncentered(sigma: Tensor, y: Tensor | None = None) -> None:
    mu, tau = pyro.sample("mu", dist.Normal(0.0, 5.0)), pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(sigma)):
        theta = pyro.deterministic("theta", mu + tau * pyro.sample("theta_trans", dist.Normal(0.0, 1.0)))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def low_dim_gauss_mix(y: Tensor) -> None:
    mu = pyro.sample("mu", Flat(constraints.ordered_vector, (2,)))
    sigma = pyro.sample("sigma", dist.HalfNormal(torch.full((2,), 2.0)).to_event(1))
    theta = pyro.sample("theta", dist.Beta(5.0, 5.0))
    pyro.factor("mu_prior", dist.Normal(0.0, 2.0).log_prob(mu).sum(-1))
    weights = torch.stack([theta, 1 - theta], -1).log()
    parts = dist.Normal(mu[..., None, :], sigma[..., None, :]).log_prob(y[:, None]) + weights[..., None, :]
    pyro.factor("y", torch.logsumexp(parts, -1).sum(-1))


def gp_regr(x: Tensor, y: Tensor) -> None:
    """The diagonal's noise is σ, not σ²."""
    rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))[..., None, None]
    alpha = pyro.sample("alpha", dist.HalfNormal(2.0))[..., None, None]
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))[..., None, None]
    k = alpha**2 * torch.exp(-0.5 * ((x[:, None] - x) / rho) ** 2) + sigma * torch.eye(len(x))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), covariance_matrix=k), obs=y)


def one_comp_mm_elim_abs(times: Tensor, dose: Tensor, volume: Tensor, C_hat: Tensor | None = None) -> None:
    """dC/dt = exp(-k_a t) k_a D/V - V_m/V C / (K_m + C), by Runge-Kutta of order 4, `STEPS` steps a measurement."""
    k_a, K_m, V_m, sigma = (pyro.sample(n, dist.HalfCauchy(1.0)) for n in ("k_a", "K_m", "V_m", "sigma"))

    steps = torch.cat([times[:1], times.diff()]).repeat_interleave(STEPS) / STEPS
    starts = steps.cumsum(0) - steps
    at = starts[:, None] + steps[:, None] * torch.tensor([0.0, 0.5, 1.0])
    k, rate = k_a[..., None, None], V_m / volume
    absorbed = torch.exp(-k * at) * k * (dose / volume) - rate[..., None, None]  # (..., steps, 3): of time alone
    lost = rate * K_m

    def slope(inflow: Tensor, C: Tensor) -> Tensor:
        return inflow + lost / (K_m + C)  # V_m/V C / (K_m + C) = V_m/V - V_m/V K_m / (K_m + C)

    C, found = torch.zeros_like(k_a), []
    for i, h in enumerate(steps.unbind()):
        a, b, c = absorbed[..., i, :].unbind(-1)
        k1 = slope(a, C)
        k2 = slope(b, C + h / 2 * k1)
        k3 = slope(b, C + h / 2 * k2)
        k4 = slope(c, C + h * k3)
        C = C + h / 6 * (k1 + 2 * (k2 + k3) + k4)
        if (i + 1) % STEPS == 0:
            found.append(C)
    C = torch.stack(found, -1)
    mean = C.clamp_min(1e-12).log()  # the concentration is positive; its approximation need not be
    pyro.sample("C_hat", dist.LogNormal(mean, sigma[..., None]).to_event(1), obs=C_hat)


STEPS = 2  # errors below 0.4 %, beside a noise of 13 %


def _pharmaco(raw: Data) -> dict[str, Any]:
    return {"times": raw["times"], "dose": raw["D"], "volume": raw["V"], "C_hat": raw["C_hat"]}


def _pick(*names: str) -> Callable[[Data], Data]:
    return lambda raw: {n: raw[n] for n in names}


def _mesquite(log: bool) -> Callable[[Data], dict[str, np.ndarray]]:
    return _columns("weight", "diam1", "diam2", "canopy_height", "total_height", "density", "group", log=log)


_NES = ("real_ideo", "race_adj", _age(2), _age(3), _age(4), "educ1", "gender", "income")

_MODELS: dict[str, tuple[Callable, Callable[[Data], Data]]] = {
    "arK": (arK, _lagged),
    "arma11": (arma11, _pick("y")),
    "hmm_drive_0": (hmm_drive, _pick("u", "v", "alpha")),
    "diamonds": (diamonds, _centred),
    "earn_height": (flat_regression, _columns("earn", "height")),
    "log10earn_height": (flat_regression, _log10_earnings),
    "logearn_logheight_male": (flat_regression, _columns("earn", "height", "male", log=True)),
    "eight_schools_centered": (eight_schools_centered, _pick("sigma", "y")),
    "eight_schools_noncentered": (eight_schools_noncentered, _pick("sigma", "y")),
    "gp_regr": (gp_regr, _pick("x", "y")),
    "hmm_example": (hmm_example, _pick("y")),
    "kidscore_interaction": (
        cauchy_regression,
        _columns("kid_score", "mom_hs", "mom_iq", lambda raw: raw["mom_hs"] * raw["mom_iq"]),
    ),
    "kidscore_momhs": (cauchy_regression, _columns("kid_score", "mom_hs")),
    "kidscore_momhsiq": (cauchy_regression, _columns("kid_score", "mom_hs", "mom_iq")),
    "kidscore_momiq": (cauchy_regression, _columns("kid_score", "mom_iq")),
    "low_dim_gauss_mix": (low_dim_gauss_mix, _pick("y")),
    "logmesquite": (flat_regression, _mesquite(True)),
    "logmesquite_logvolume": (
        flat_regression,
        _columns("weight", lambda raw: raw["diam1"] * raw["diam2"] * raw["canopy_height"], log=True),
    ),
    "mesquite": (flat_regression, _mesquite(False)),
    "nes": (flat_regression, _columns("partyid7", *_NES)),
    "one_comp_mm_elim_abs": (one_comp_mm_elim_abs, _pharmaco),
    "blr": (blr, _pick("X", "y")),
}

NAMES = (
    "arK-arK", "arma-arma11", "bball_drive_event_0-hmm_drive_0", "diamonds-diamonds", "earnings-earn_height",
    "earnings-log10earn_height", "earnings-logearn_logheight_male", "eight_schools-eight_schools_centered",
    "eight_schools-eight_schools_noncentered", "gp_pois_regr-gp_regr", "hmm_example-hmm_example",
    "kidiq-kidscore_interaction", "kidiq-kidscore_momhs", "kidiq-kidscore_momhsiq", "kidiq-kidscore_momiq",
    "low_dim_gauss_mix-low_dim_gauss_mix", "mesquite-logmesquite", "mesquite-logmesquite_logvolume",
    "mesquite-mesquite", "nes1980-nes", "nes2000-nes", "one_comp_mm_elim_abs-one_comp_mm_elim_abs", "sblrc-blr",
)  # fmt: skip
