"""The 23 posteriors of `posteriordb` in NumPyro, each the same density, with its NUTS and SVI: for `posteriors.py`
and `posteriors_peers.py`.

Warm-up and draws are timed, as of ppgen's sampler, or a fit; the CPU seconds in which JAX traces, lowers and compiles
are taken off, and stand apart.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
from posteriordb_tables import STEPS, Table

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import lax
from jax._src import compiler
from jax._src.interpreters import mlir
from jax._src.interpreters import partial_eval as pe
from numpyro.distributions import constraints
from numpyro.infer import MCMC, NUTS, SVI, Trace_ELBO, autoguide

numpyro.enable_x64()
REAL, POSITIVE = constraints.real, constraints.positive

# chains, draws, warm-up and a dense metric: its default, then what may be its best
SETTINGS = {
    "1": (1, 1000, 1000, False),
    "4": (4, 1000, 1000, False),
    "64": (64, 250, 400, False),
    "4 dense": (4, 1000, 1000, True),
    "64 dense": (64, 250, 400, True),
}


def sampled(p: Table, setting: str, seed: int) -> tuple[dict[str, np.ndarray], float, float]:
    """Draws by site, CPU seconds of warm-up and draws, and those of tracing and compiling; chains are vectorised."""
    chains, draws, warmup, dense = SETTINGS[setting]
    sampler = MCMC(
        NUTS(MODELS[p.density], dense_mass=dense), num_warmup=warmup, num_samples=draws, num_chains=chains,
        chain_method="vectorized" if chains > 1 else "sequential", progress_bar=False,
    )  # fmt: skip
    begun = time.process_time()
    with compiling() as spent:
        sampler.run(jax.random.PRNGKey(seed), **p.arrays)
        jax.block_until_ready(sampler.get_samples())
    build = sum(spent)
    seconds = time.process_time() - begun - build
    return {n: np.asarray(v) for n, v in sampler.get_samples(group_by_chain=True).items()}, seconds, build


def fitted(p: Table, guide: str, steps: int, seed: int) -> tuple[dict[str, np.ndarray], float, float]:
    """10 000 draws of one of its autoguides, fitted as ppgen's are but for the start, and CPU seconds as `sampled`."""
    made = getattr(autoguide, guide)(MODELS[p.density])
    adam = numpyro.optim.Adam(lambda i: 0.005 * (1 + jnp.cos(jnp.pi * i / steps)))
    svi = SVI(MODELS[p.density], made, adam, Trace_ELBO(num_particles=16))
    begun = time.process_time()
    with compiling() as spent:
        found = svi.run(jax.random.PRNGKey(seed), steps, progress_bar=False, **p.arrays)
        jax.block_until_ready(found.params)
    build = sum(spent)
    seconds = time.process_time() - begun - build
    draws = made.sample_posterior(jax.random.PRNGKey(seed + 1), found.params, sample_shape=(10_000,))
    return {n: np.asarray(v)[None] for n, v in draws.items()}, seconds, build


@contextmanager
def compiling() -> Iterator[list[float]]:
    """CPU seconds that JAX spends on tracing, lowering and compiling: it tells when each ends, and how long it was."""
    spent: list[float] = []
    parts = [(pe, "trace_to_jaxpr"), (mlir, "lower_jaxpr_to_module"), (compiler, "compile_or_get_cached")]
    depth = 0

    def timed(fn: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal depth
            begun, depth = time.process_time(), depth + 1
            try:
                return fn(*args, **kwargs)
            finally:
                depth -= 1
                if not depth:
                    spent.append(time.process_time() - begun)

        call.__dict__.update({n: getattr(fn, n) for n in ("evict_weakref",) if hasattr(fn, n)})
        return call

    with ExitStack() as stack:
        for module, name in parts:
            stack.enter_context(mock.patch.object(module, name, timed(getattr(module, name))))
        yield spent


# -- the models --------------------------------------------------------------------------------------------


def _normal(n: int, sd: float) -> dist.Distribution:
    return dist.Normal(0, sd).expand([n]).to_event(1)


def _flat(constraint: Any, *shape: int) -> dist.Distribution:
    return dist.ImproperUniform(constraint, (), shape)


def flat_regression(X: Any, y: Any) -> None:
    beta, sigma = numpyro.sample("beta", _flat(REAL, X.shape[1])), numpyro.sample("sigma", _flat(POSITIVE))
    numpyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)


def cauchy_regression(X: Any, y: Any) -> None:
    beta, sigma = numpyro.sample("beta", _flat(REAL, X.shape[1])), numpyro.sample("sigma", dist.HalfCauchy(2.5))
    numpyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)


def blr(X: Any, y: Any) -> None:
    beta, sigma = numpyro.sample("beta", _normal(X.shape[1], 10)), numpyro.sample("sigma", dist.HalfNormal(10.0))
    numpyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)


def diamonds(X: Any, y: Any) -> None:
    b = numpyro.sample("b", _normal(X.shape[1], 1))
    intercept = numpyro.sample("Intercept", dist.StudentT(3.0, 8.0, 10.0))
    sigma = numpyro.sample("sigma", dist.FoldedDistribution(dist.StudentT(3.0, 0.0, 10.0)))
    numpyro.sample("y", dist.Normal(intercept + X @ b, sigma), obs=y)


def ark(lagged: Any, y: Any) -> None:
    alpha = numpyro.sample("alpha", dist.Normal(0.0, 10.0))
    beta, sigma = numpyro.sample("beta", _normal(lagged.shape[1], 10)), numpyro.sample("sigma", dist.HalfCauchy(2.5))
    numpyro.sample("y", dist.Normal(alpha + lagged @ beta, sigma), obs=y)


def arma11(y: Any) -> None:
    mu, sigma = numpyro.sample("mu", dist.Normal(0.0, 10.0)), numpyro.sample("sigma", dist.HalfCauchy(2.5))
    phi, theta = (numpyro.sample(n, dist.Normal(0.0, 2.0)) for n in ("phi", "theta"))
    first = y[0] - mu - phi * mu
    noise = jnp.concatenate([first[None], y[1:] - mu - phi * y[:-1]])
    shift, power = 1, -theta
    while shift < len(y):
        noise = noise + power * jnp.concatenate([jnp.zeros(shift), noise[:-shift]])
        shift, power = 2 * shift, power * power
    numpyro.factor("noise", dist.Normal(0.0, sigma).log_prob(noise).sum())


def eight_schools_noncentered(sigma: Any, y: Any) -> None:
    mu, tau = numpyro.sample("mu", dist.Normal(0, 5)), numpyro.sample("tau", dist.HalfCauchy(5))
    theta = mu + tau * numpyro.sample("theta_trans", dist.Normal(0, 1).expand([len(sigma)]))
    numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def eight_schools_centered(sigma: Any, y: Any) -> None:
    mu, tau = numpyro.sample("mu", dist.Normal(0, 5)), numpyro.sample("tau", dist.HalfCauchy(5))
    theta = numpyro.sample("theta", dist.Normal(mu, tau).expand([len(sigma)]))
    numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def low_dim_gauss_mix(y: Any) -> None:
    mu = numpyro.sample("mu", _flat(constraints.ordered_vector, 2))
    numpyro.factor("prior", dist.Normal(0, 2).log_prob(mu).sum())
    sigma, theta = numpyro.sample("sigma", dist.HalfNormal(2.0).expand([2])), numpyro.sample("theta", dist.Beta(5, 5))
    parts = dist.Normal(mu, sigma).log_prob(y[:, None]) + jnp.log(jnp.stack([theta, 1 - theta]))
    numpyro.factor("y", jnp.logaddexp(parts[:, 0], parts[:, 1]).sum())


def gp_regr(x: Any, y: Any) -> None:
    rho, alpha = numpyro.sample("rho", dist.Gamma(25.0, 4.0)), numpyro.sample("alpha", dist.HalfNormal(2.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    k = alpha**2 * jnp.exp(-0.5 * ((x[:, None] - x) / rho) ** 2) + sigma * jnp.eye(len(x))
    numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(len(x)), covariance_matrix=k), obs=y)


def hmm_example(y: Any) -> None:
    mu = numpyro.sample("mu", _flat(constraints.positive_ordered_vector, 2))
    rows = [numpyro.sample(n, dist.Dirichlet(jnp.ones(2))) for n in ("theta1", "theta2")]
    numpyro.factor("prior", dist.Normal(jnp.array([3.0, 10.0]), 1.0).log_prob(mu).sum())
    numpyro.factor("y", _forward(rows, dist.Normal(mu, 1.0).log_prob(y[:, None])))


def hmm_drive(u: Any, v: Any, alpha: Any) -> None:
    rows = [numpyro.sample(n, dist.Dirichlet(alpha[i])) for i, n in enumerate(("theta1", "theta2"))]
    phi, rate = (numpyro.sample(n, _flat(constraints.positive_ordered_vector, 2)) for n in ("phi", "lambda"))
    prior = dist.Normal(jnp.array([0.0, 3.0]), 1.0)
    numpyro.factor("prior", (prior.log_prob(phi) + prior.log_prob(rate)).sum())
    emission = dist.Exponential(phi).log_prob(u[:, None]) + dist.Exponential(rate).log_prob(v[:, None])
    numpyro.factor("uv", _forward(rows, emission))


def _forward(rows: list[Any], emission: Any) -> Any:
    """The forward algorithm: log Σ over paths."""
    transition = jnp.log(jnp.stack(rows))

    def step(alpha: Any, e: Any) -> tuple[Any, None]:
        return jax.nn.logsumexp(alpha[:, None] + transition, 0) + e, None

    last, _ = lax.scan(step, emission[0], emission[1:])
    return jax.nn.logsumexp(last)


def one_comp_mm_elim_abs(times: Any, dose: Any, volume: Any, C_hat: Any) -> None:
    k_a, K_m, V_m, sigma = (numpyro.sample(n, dist.HalfCauchy(1.0)) for n in ("k_a", "K_m", "V_m", "sigma"))
    n = STEPS
    h = jnp.repeat(jnp.concatenate([times[:1], jnp.diff(times)]), n, total_repeat_length=n * len(times)) / n
    at = (jnp.cumsum(h) - h)[:, None] + h[:, None] * jnp.array([0.0, 0.5, 1.0])
    absorbed = jnp.exp(-k_a * at) * k_a * dose / volume

    def slope(inflow: Any, C: Any) -> Any:
        return inflow - V_m / volume * C / (K_m + C)

    def step(C: Any, now: Any) -> tuple[Any, Any]:
        h, (a, b, c) = now
        k1 = slope(a, C)
        k2 = slope(b, C + h / 2 * k1)
        k3 = slope(b, C + h / 2 * k2)
        k4 = slope(c, C + h * k3)
        C = C + h / 6 * (k1 + 2 * (k2 + k3) + k4)
        return C, C

    _, found = lax.scan(step, jnp.zeros_like(k_a), (h, tuple(absorbed.T)))
    numpyro.sample("C_hat", dist.LogNormal(jnp.log(jnp.clip(found[n - 1 :: n], 1e-12)), sigma), obs=C_hat)


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
    "one_comp_mm_elim_abs": one_comp_mm_elim_abs,
}
