"""The targets of `whole_calls.py` in NumPyro, each the same density: NUTS, 4 chains.

    python benchmarks/whole_calls_numpyro.py --truth DIR [--only groups] [--draws 1000] [--out F] [--moments DIR]

In an environment of NumPyro's; DIR is what `whole_calls.py --export DIR` wrote. CPU seconds are those of a process's
first call, compiling included, and without it; chains are vectorised, warm-up and draws of a number, the metric
diagonal. Columns are those of `whole_calls.py`. With --out, targets that the file has are not run again. With
--moments, means and sds of each latent are kept with their Monte Carlo errors, for `whole_calls.py --beside DIR`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS
from posteriordb_tables import cpu
from posteriors_numpyro import compiling  # it has XLA take one thread

JITTER = 1e-10
H = 0.2  # of a year, a step of Runge-Kutta
SCALES = {"a": (1.0, 0.5), "b": (0.05, 0.05), "c": (1.0, 0.5), "d": (0.05, 0.05)}
Latents = dict[str, np.ndarray]


def schools(y: Any, sd: Any) -> None:
    m, s = numpyro.sample("m", dist.Normal(0, 5)), numpyro.sample("s", dist.HalfCauchy(5))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(numpyro.sample("a", dist.Normal(m, s)), sd), obs=y)


def process(x: Any, k: Any) -> None:
    rho, alpha = numpyro.sample("rho", dist.Gamma(25.0, 4.0)), numpyro.sample("alpha", dist.HalfNormal(2.0))
    z = numpyro.sample("z", dist.Normal(jnp.zeros(len(x)), 1.0).to_event(1))
    cov = alpha**2 * jnp.exp(-0.5 * ((x[:, None] - x) / rho) ** 2) + JITTER * jnp.eye(len(x))
    f = numpyro.deterministic("f", jnp.linalg.cholesky(cov) @ z)
    numpyro.sample("k", dist.Poisson(jnp.exp(f)).to_event(1), obs=k)


def groups(likelihood: Callable[[Any], Any], centred: bool = True) -> Callable[..., None]:
    """Effects drawn about their mean, or, not centred, as a standard normal."""

    def model(y: Any) -> None:
        m, s = numpyro.sample("m", dist.Normal(0, 2)), numpyro.sample("s", dist.HalfNormal(2))
        with numpyro.plate("rows", len(y)):
            a = numpyro.sample("a", dist.Normal(m, s)) if centred else numpyro.deterministic(
                "a", m + s * numpyro.sample("a_", dist.Normal(0, 1)))  # fmt: skip
            numpyro.sample("y", likelihood(a), obs=y)

    return model


def normal_groups(y: Any) -> None:
    m, s = numpyro.sample("m", dist.Normal(0, 5)), numpyro.sample("s", dist.HalfNormal(2))
    e = numpyro.sample("e", dist.HalfNormal(2))
    with numpyro.plate("rows", len(y)):
        a = numpyro.sample("a", dist.Normal(m, s))
        numpyro.sample("y", dist.Normal(a[:, None], e).to_event(1), obs=y)


def row_effects(y: Any) -> None:
    m, s = numpyro.sample("m", dist.Normal(0, 5)), numpyro.sample("s", dist.HalfNormal(2))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(numpyro.sample("z", dist.Normal(m, s)), 1.0), obs=y)


def simplex(counts: Any) -> None:
    p = numpyro.sample("p", dist.Dirichlet(jnp.full(20, 0.5)))
    numpyro.factor("f", (counts * jnp.log(jnp.maximum(p, 1e-300))).sum())


def correlated(loc: Any, precision: Any) -> None:
    off = numpyro.sample("u", dist.ImproperUniform(dist.constraints.real_vector, (), (1000,))) - loc
    numpyro.factor("normal", -0.5 * ((off @ precision) * off).sum())


def garch(y: Any) -> None:
    m, a = numpyro.sample("m", dist.Normal(0, 1)), numpyro.sample("a", dist.HalfNormal(1))
    b, c = numpyro.sample("b", dist.Uniform(0, 1)), numpyro.sample("c", dist.Uniform(0, 1))

    def step(v: Any, off: Any) -> Any:
        v = a + b * off + (1 - b) * c * v
        return v, v

    _, later = jax.lax.scan(step, 1.0, (y[:-1] - m) ** 2)
    v = jnp.concatenate([jnp.ones(1), later])
    numpyro.sample("y", dist.Normal(m, jnp.sqrt(v)).to_event(1), obs=y)


def lotka_volterra(log_y: Any) -> None:
    theta = [numpyro.sample(n, dist.LogNormal(jnp.log(loc), sd / loc)) for n, (loc, sd) in SCALES.items()]
    start = [numpyro.sample(n, dist.LogNormal(jnp.log(10.0), 1.0)) for n in ("h0", "l0")]
    s = numpyro.sample("s", dist.LogNormal(-1.0, 1.0))
    a, b, c, d = theta

    def growth(z: Any) -> Any:
        return jnp.stack([(a - b * z[1]) * z[0], (-c + d * z[0]) * z[1]])

    def step(z: Any, _: Any) -> Any:
        k1 = growth(z)
        k2 = growth(z + H / 2 * k1)
        k3 = growth(z + H / 2 * k2)
        z = z + H / 6 * (k1 + 2 * k2 + 2 * k3 + growth(z + H * k3))
        return z, z

    first = jnp.stack(start)
    _, later = jax.lax.scan(step, first, None, length=round((len(log_y) - 1) / H))
    z = jnp.concatenate([first[None], later[round(1 / H) - 1 :: round(1 / H)]])
    numpyro.sample("log_y", dist.Normal(jnp.log(z), s).to_event(2), obs=log_y)


def stacked(*names: str, log: str = "") -> Callable[[Latents], np.ndarray]:
    """Latents (chain, draw, ...) one beside the other, of one the log."""

    def put(d: Latents) -> np.ndarray:
        parts = [np.log(d[n]) if n == log else d[n] for n in names]
        return np.concatenate([v.reshape(*v.shape[:2], -1) for v in parts], -1)

    return put


def binomial(trials: int) -> Callable[[Any], Any]:
    return lambda a: dist.Binomial(trials, logits=a)


def poisson(a: Any) -> Any:
    return dist.Poisson(jnp.exp(a))


OF_GROUPS = stacked("m", "s", "a")
MODELS: dict[str, tuple[Callable[..., None], Callable[[Latents], np.ndarray]]] = {
    "eight schools, centred": (schools, stacked("m", "s", "a", log="s")),
    "GP of 11 counts": (process, stacked("rho", "alpha", "f")),
    "Poisson, 500 groups": (groups(poisson), OF_GROUPS),
    "logistic, 500 groups": (groups(binomial(10)), OF_GROUPS),
    "few counts: Poisson": (groups(poisson, centred=False), OF_GROUPS),
    "few counts: one trial": (groups(binomial(1), centred=False), OF_GROUPS),
    "normal, 300 groups": (normal_groups, stacked("m", "s", "e", "a")),
    "5 000 row effects": (row_effects, stacked("m", "s", "z")),
    "simplex, 20-D": (simplex, stacked("p")),
    "normal, 1 000-D": (correlated, stacked("u")),
    "garch, 200 steps": (garch, stacked(*"mabc")),
    "Lotka-Volterra, 20 years": (lotka_volterra, stacked(*SCALES, "h0", "l0", "s")),
}


def judged(x: np.ndarray, mean: np.ndarray, sd: np.ndarray) -> dict[str, float]:
    """As in `whole_calls.py`."""
    from arviz_stats.base import array_stats

    flat, each = x.reshape(-1, x.shape[-1]), [np.ascontiguousarray(x[..., i]) for i in range(x.shape[-1])]
    return {
        "mean": float(np.abs((flat.mean(0) - mean) / sd).max()),
        "log_sd": float(np.abs(np.log(flat.std(0) / sd)).max()),
        "rhat": max(float(array_stats.rhat(e)) for e in each),
        "ess": min(float(array_stats.ess(e)) for e in each),
    }


def kept_moments(x: np.ndarray, path: Path) -> None:
    """Mean and sd of each latent of (chain, draw, latents), and their Monte Carlo standard errors."""
    from arviz_stats.base import array_stats

    flat, each = x.reshape(-1, x.shape[-1]), [np.ascontiguousarray(x[..., i]) for i in range(x.shape[-1])]
    errors = {f"{of}_se": [float(array_stats.mcse(e, method=of)) for e in each] for of in ("mean", "sd")}
    np.savez(path, mean=flat.mean(0), sd=flat.std(0), **errors)


def measured(name: str, folder: Path, draws: int, seed: int, cap: int, moments: Path | None, sender: Any) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (cap, cap))
    numpyro.enable_x64()
    model, functions = MODELS[name]
    truth = np.load(folder / f"{name}.npz")
    data = {k[5:]: truth[k] for k in truth.files if k.startswith("data_")}
    sampler = MCMC(NUTS(model), num_warmup=draws, num_samples=draws, num_chains=4, chain_method="vectorized",
                   progress_bar=False)  # fmt: skip
    begun = cpu()
    with compiling() as spent:
        sampler.run(jax.random.PRNGKey(seed), **data)
        jax.block_until_ready(sampler.get_samples())
    seconds = cpu() - begun
    values = {n: np.asarray(v) for n, v in sampler.get_samples(group_by_chain=True).items()}
    row = judged(functions(values), truth["mean"], truth["sd"])
    if moments is not None:
        moments.mkdir(parents=True, exist_ok=True)
        kept_moments(functions(values), moments / f"{name}.npz")
    sender.send(row | {"seconds": seconds, "compiling": sum(spent)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--truth", type=Path, required=True, help="the folder that whole_calls.py wrote")
    parser.add_argument("--only", nargs="*", default=[""], help="parts of targets' names")
    parser.add_argument("--draws", type=int, default=1000, help="of each chain, and of its warm-up")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cap", type=int, default=200, help="CPU seconds")
    parser.add_argument("--out", type=Path, help="JSON lines, read and appended to")
    parser.add_argument("--moments", type=Path, help="a folder for means and sds with their errors")
    options = parser.parse_args()
    done = [json.loads(line) for line in options.out.open()] if options.out and options.out.exists() else []
    print(
        "| target | mean, sd / log sd | R-hat | ESS | CPU s | compiling | ESS a CPU s |\n|---|--:|--:|--:|--:|--:|--:|"
    )
    for name in MODELS:
        if not any(part in name for part in options.only):
            continue
        own = {"target": name, "draws": options.draws, "seed": options.seed}
        row = next((r for r in done if own.items() <= r.items()), None)
        if row is None:
            row = own | apart(name, options)
            if options.out:
                with options.out.open("a") as f:
                    f.write(json.dumps(row) + "\n")
        print(shown(row), flush=True)


def apart(name: str, options: argparse.Namespace) -> dict[str, float]:
    """In a process of its own; a row of gaps where it was cut."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    args = (name, options.truth, options.draws, options.seed, options.cap, options.moments, there)
    process = context.Process(target=measured, args=args)
    process.start()
    there.close()
    try:
        return here.recv()
    except EOFError:
        return {}
    finally:
        process.join()


def shown(row: dict[str, Any]) -> str:
    if "mean" not in row:
        return f"| {row['target']} | | | | | | |"
    per = row["ess"] / row["seconds"]
    return (
        f"| {row['target']} | {row['mean']:.3f} / {row['log_sd']:.3f} | {row['rhat']:.3f} | {row['ess']:.0f} "
        f"| {row['seconds']:.1f} | {row['compiling']:.1f} | {per:.0f} |"
    )


if __name__ == "__main__":
    main()
