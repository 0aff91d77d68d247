"""22 of the 23 posteriors of `posteriordb` in PyMC, each the same density, with nutpie and Pathfinder: for
`posteriors_peers.py`.

PyMC pins other versions of NumPy and ArviZ than ppgen does, and wants an environment of its own, so nothing of ppgen is
imported here, nor torch. Warm-up and draws are timed; compiling stands apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import pymc as pm
import pytensor.tensor as pt
from posteriordb_tables import Table, cpu
from pymc.distributions.transforms import ordered
from pytensor.compile import FunctionMaker

DRAWS = 4000  # of Pathfinder: resampled from as many of each of its four paths, at its other defaults


def sampled(p: Table, seed: int) -> tuple[dict[str, np.ndarray], float, float]:
    """nutpie, 4 chains one after the other, 1 000 + 1 000: draws by site, CPU seconds, and those of compiling."""
    import nutpie

    model = made(p)
    begun = cpu()
    compiled = nutpie.compile_pymc_model(model)
    built = cpu()
    found = nutpie.sample(compiled, draws=1000, tune=1000, chains=4, cores=1, seed=seed, progress_bar=False)
    done = cpu()
    return {n: v.values for n, v in found.posterior.data_vars.items()}, done - built, built - begun


def pathfinder(p: Table, seed: int) -> tuple[dict[str, np.ndarray], float, float, float]:
    """PyMC's multi-path Pathfinder with PSIS: draws by site, CPU seconds, those of compiling, and Pareto's k."""
    import pymc_extras

    model = made(p)
    begun = cpu()
    with _compiling() as spent:
        found = pymc_extras.fit_pathfinder(
            model, num_draws=DRAWS, num_draws_per_path=DRAWS, random_seed=seed, progressbar=False, cores=1,
            concurrent=None, display_summary=False,
        )  # fmt: skip
    build = sum(spent)
    draws = {n: v.values for n, v in found.posterior.data_vars.items()}
    khat = next((float(g["pareto_k"]) for g in found.values() if "pareto_k" in getattr(g, "data_vars", {})), math.nan)
    return draws, cpu() - begun - build, build, khat


@contextmanager
def _compiling() -> Iterator[list[float]]:
    """CPU seconds of building Pathfinder's graph and of compiling it and any other."""
    from pymc_extras.inference.pathfinder import pathfinder as module

    spent: list[float] = []
    depth = 0

    def timed(fn: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal depth
            begun, depth = cpu(), depth + 1
            try:
                return fn(*args, **kwargs)
            finally:
                depth -= 1
                if not depth:
                    spent.append(cpu() - begun)

        return call

    parts = [(module, "make_single_pathfinder_fn"), (FunctionMaker, "__init__"), (FunctionMaker, "create")]
    with ExitStack() as stack:
        for owner, name in parts:
            stack.enter_context(mock.patch.object(owner, name, timed(getattr(owner, name))))
        yield spent


# -- the models --------------------------------------------------------------------------------------------


def made(p: Table) -> pm.Model:
    with pm.Model() as model:
        MODELS[p.density](**p.arrays)
    return model


def flat_regression(X: Any, y: Any) -> None:
    pm.Normal("y", X @ pm.Flat("beta", shape=X.shape[1]), pm.HalfFlat("sigma"), observed=y)


def cauchy_regression(X: Any, y: Any) -> None:
    pm.Normal("y", X @ pm.Flat("beta", shape=X.shape[1]), pm.HalfCauchy("sigma", 2.5), observed=y)


def blr(X: Any, y: Any) -> None:
    beta = pm.Normal("beta", 0, 10, shape=X.shape[1])
    pm.Normal("y", X @ beta, pm.HalfNormal("sigma", 10), observed=y)


def diamonds(X: Any, y: Any) -> None:
    b, intercept = pm.Normal("b", 0, 1, shape=X.shape[1]), pm.StudentT("Intercept", nu=3, mu=8, sigma=10)
    pm.Normal("y", intercept + X @ b, pm.HalfStudentT("sigma", nu=3, sigma=10), observed=y)


def ark(lagged: Any, y: Any) -> None:
    alpha, beta = pm.Normal("alpha", 0, 10), pm.Normal("beta", 0, 10, shape=lagged.shape[1])
    pm.Normal("y", alpha + lagged @ beta, pm.HalfCauchy("sigma", 2.5), observed=y)


def arma11(y: Any) -> None:
    mu, sigma = pm.Normal("mu", 0, 10), pm.HalfCauchy("sigma", 2.5)
    phi, theta = pm.Normal("phi", 0, 2), pm.Normal("theta", 0, 2)
    noise = pt.concatenate([(y[0] - mu - phi * mu)[None], y[1:] - mu - phi * y[:-1]])
    shift, power = 1, -theta
    while shift < len(y):
        noise = noise + power * pt.concatenate([pt.zeros(shift), noise[:-shift]])
        shift, power = 2 * shift, power * power
    pm.Potential("noise", pm.logp(pm.Normal.dist(0, sigma), noise).sum())


def eight_schools_noncentered(sigma: Any, y: Any) -> None:
    mu, tau = pm.Normal("mu", 0, 5), pm.HalfCauchy("tau", 5)
    theta = pm.Deterministic("theta", mu + tau * pm.Normal("theta_trans", 0, 1, shape=len(y)))
    pm.Normal("y", theta, sigma, observed=y)


def eight_schools_centered(sigma: Any, y: Any) -> None:
    theta = pm.Normal("theta", pm.Normal("mu", 0, 5), pm.HalfCauchy("tau", 5), shape=len(y))
    pm.Normal("y", theta, sigma, observed=y)


def low_dim_gauss_mix(y: Any) -> None:
    mu = pm.Flat("mu", shape=2, transform=ordered, initval=np.array([-1.0, 1.0]))
    pm.Potential("prior", pm.logp(pm.Normal.dist(0, 2), mu).sum())
    sigma, theta = pm.HalfNormal("sigma", 2, shape=2), pm.Beta("theta", 5, 5)
    parts = pm.logp(pm.Normal.dist(mu, sigma), y[:, None]) + pt.log(pt.stack([theta, 1 - theta]))
    pm.Potential("y", pt.logaddexp(parts[:, 0], parts[:, 1]).sum())


def gp_regr(x: Any, y: Any) -> None:
    rho, alpha, sigma = pm.Gamma("rho", 25, 4), pm.HalfNormal("alpha", 2), pm.HalfNormal("sigma", 1)
    k = alpha**2 * pt.exp(-0.5 * ((x[:, None] - x) / rho) ** 2) + sigma * np.eye(len(x))
    pm.MvNormal("y", np.zeros(len(x)), cov=k, observed=y)


def hmm_example(y: Any) -> None:
    mu = _positive_ordered("mu", [1.0, 2.0])
    rows = [pm.Dirichlet(n, np.ones(2)) for n in ("theta1", "theta2")]
    pm.Potential("prior", pm.logp(pm.Normal.dist(np.array([3.0, 10.0]), 1), mu).sum())
    pm.Potential("y", _forward(rows, pm.logp(pm.Normal.dist(mu, 1), y[:, None]), len(y)))


def hmm_drive(u: Any, v: Any, alpha: Any) -> None:
    rows = [pm.Dirichlet(n, alpha[i]) for i, n in enumerate(("theta1", "theta2"))]
    phi, rate = (_positive_ordered(n, [0.0, 1.0]) for n in ("phi", "lambda"))
    for n, each in (("phi", phi), ("lambda", rate)):
        pm.Potential(f"prior_{n}", pm.logp(pm.Normal.dist(np.array([0.0, 3.0]), 1), each).sum())
    emission = pt.log(phi) - phi * u[:, None] + pt.log(rate) - rate * v[:, None]
    pm.Potential("uv", _forward(rows, emission, len(u)))


def _positive_ordered(name: str, at: list[float]) -> Any:
    """0 < x_1 < x_2, flat: the exponential of ordered values, with its Jacobian."""
    w = pm.Flat(f"{name}_log", shape=2, transform=ordered, initval=np.array(at))
    pm.Potential(f"{name}_jacobian", w.sum())
    return pm.Deterministic(name, pt.exp(w))


def _forward(rows: list[Any], emission: Any, n: int) -> Any:
    """log Σ over paths, by products of pairs: emission (T, K)."""
    steps = pt.log(pt.stack(rows)) + emission[1:, None, :]
    n -= 1
    while n > 1:
        pairs = pt.logsumexp(steps[0 : n - 1 : 2, :, :, None] + steps[1:n:2, None, :, :], axis=-2)
        steps = pt.concatenate([pairs, steps[n - 1 :]]) if n % 2 else pairs
        n = (n + 1) // 2
    return pt.logsumexp(emission[0, :, None] + steps[0])


MODELS: dict[str, Callable[..., None]] = {
    "flat_regression": flat_regression,
    "cauchy_regression": cauchy_regression,
    "blr": blr,
    "diamonds": diamonds,
    "arK": ark,
    "arma11": arma11,
    "eight_schools_noncentered": eight_schools_noncentered,
    "eight_schools_centered": eight_schools_centered,
    "low_dim_gauss_mix": low_dim_gauss_mix,
    "gp_regr": gp_regr,
    "hmm_example": hmm_example,
    "hmm_drive": hmm_drive,
}
