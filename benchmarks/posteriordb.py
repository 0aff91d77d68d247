"""23 posteriors of posteriordb as Pyro programs: Stan's definitions, with flat priors where Stan has none.

`load(folder, name)` gives each as a program, its data and its reference draws (`posteriordb_tables`). Sites have the
names of Stan's parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import posteriordb_tables
import pyro
import pyro.distributions as dist
import torch
from posteriordb_tables import NAMES, STEPS
from pyro.distributions import constraints
from torch import Tensor

from ppgen import Program
from ppgen.distributions import Flat

__all__ = ["NAMES", "Posterior", "load"]


@dataclass(frozen=True)
class Posterior(posteriordb_tables.Table):
    """One posterior: `columns` are the arguments of `model`."""

    model: Callable
    columns: dict[str, Tensor]

    def program(self) -> Program:
        return Program.from_pair(self.model)


def load(folder: str | Path, name: str) -> Posterior:
    """
    Args:
        folder: with index.json, data/ and draws/.
        name: as in `NAMES`.
    """
    table = posteriordb_tables.read(folder, name)
    columns = {k: torch.as_tensor(v).double() for k, v in table.arrays.items()}
    return Posterior(**vars(table), model=globals()[table.density], columns=columns)


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


# -- series ------------------------------------------------------------------------------------------------


def arK(lagged: Tensor, y: Tensor | None = None) -> None:
    """y_t ~ N(α + Σ_k β_k y_{t-k}, σ), t > K."""
    alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta = pyro.sample("beta", dist.Normal(torch.zeros(lagged.shape[-1]), 10.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    with pyro.plate("data", len(lagged)):
        pyro.sample("y", dist.Normal(alpha + _dot(lagged, beta), sigma), obs=y)


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
