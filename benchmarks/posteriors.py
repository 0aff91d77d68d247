"""How near every way to a posterior comes to reference draws, and at what cost: 23 posteriors of posteriordb.

    python benchmarks/posteriors.py --data-dir DIR [--methods chees nuts flow numpyro] [--only kidiq] [--out F]

For each posterior and method: the largest error of a mean in reference sd, the largest error of log sd, the largest
R-hat (chains) or k-hat (guides, and their draws corrected by PSIS), CPU seconds, and the least bulk effective draws of
any coordinate a CPU second. `process_time` counts every thread. Seconds are warm-up and draws; those of tracing and
compiling stand beside them.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import posteriordb
import torch

METHODS = ("chees", "nuts", "normal", "mvn", "flow", "numpyro", "pyro")
GUIDES = {"normal": "AutoNormal", "mvn": "AutoMultivariateNormal", "flow": "flow"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True, help="the folder of posteriordb")
    parser.add_argument("--methods", nargs="+", default=["chees"], choices=METHODS)
    parser.add_argument("--only", nargs="*", default=[""], help="parts of posteriors' names")
    parser.add_argument("--steps", type=int, default=500, help="of a guide's fit: the same for every posterior")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON lines, one a posterior and method")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("ppgen").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    run = {
        "chees": chees, "nuts": nuts, "numpyro": numpyro_nuts, "pyro": pyro_nuts,
        **{name: lambda p, o, g=guide: guided(p, o, g) for name, guide in GUIDES.items()},
    }  # fmt: skip
    print(f"{'posterior':28} {'method':14} mean/sd log sd   R-hat  k-hat build s    CPU s   ESS   ESS/s  remarks")
    for name in posteriordb.NAMES:
        if not any(part in name for part in options.only):
            continue
        posterior = posteriordb.load(options.data_dir, name)
        for method in options.methods:
            try:
                rows = run[method](posterior, options)
            except Exception as e:  # the table goes on
                rows = [{"method": method, "remark": f"{type(e).__name__}: {e}"[:90]}]
            for row in rows:
                row = {"posterior": name, **row}
                print(line(row), flush=True)
                if options.out:
                    with options.out.open("a") as f:
                        f.write(json.dumps(row) + "\n")


def line(row: dict[str, Any]) -> str:
    def cell(key: str, form: str) -> str:
        width = int(form.split(".")[0])
        return format(row[key], form) if row.get(key) is not None else " " * (width - 1) + "-"

    cells = [cell(k, f) for k, f in (
        ("mean", "7.3f"), ("log_sd", "6.3f"), ("rhat", "7.3f"), ("khat", "6.2f"), ("build", "7.1f"),
        ("seconds", "8.2f"), ("ess", "6.0f"), ("ess_s", "7.0f"),
    )]  # fmt: skip
    return f"{row['posterior'].split('-')[-1][:28]:28} {row['method']:14} {' '.join(cells)}  {row.get('remark', '')}"


def errors(p: posteriordb.Posterior, x: np.ndarray) -> dict[str, float]:
    """Of draws (chain, draw, dim), against the reference."""
    r, x = p.reference.reshape(-1, len(p.names)), x.reshape(-1, len(p.names))
    return {
        "mean": float(np.abs((x.mean(0) - r.mean(0)) / r.std(0)).max()),
        "log_sd": float(np.abs(np.log(x.std(0) / r.std(0))).max()),
    }


def chained(p: posteriordb.Posterior, x: np.ndarray, seconds: float) -> dict[str, float]:
    from arviz_stats.base import array_stats

    each = [np.ascontiguousarray(x[..., i]) for i in range(x.shape[-1])]
    ess = min(float(array_stats.ess(e)) for e in each)
    found = errors(p, x) | {"seconds": seconds, "ess": ess, "ess_s": ess / seconds}
    return found | ({"rhat": max(float(array_stats.rhat(e)) for e in each)} if len(x) > 1 else {})


# -- ppgen -------------------------------------------------------------------------------------------------


def chees(p: posteriordb.Posterior, options: argparse.Namespace) -> list[dict[str, Any]]:
    return [_chains(p, "chees", 64, 250, 400, options.seed)]


def nuts(p: posteriordb.Posterior, options: argparse.Namespace) -> list[dict[str, Any]]:
    return [_chains(p, "nuts", 4, 1000, 500, options.seed)]


def _chains(p: posteriordb.Posterior, kernel: str, C: int, S: int, W: int, seed: int) -> dict[str, Any]:
    """Twice: the first time, of a few draws, builds the graphs."""
    from ppgen.engine import log_joint
    from ppgen.inference.mcmc import findings, run_chains
    from ppgen.run import default_dtype

    with default_dtype(torch.float64):
        torch.manual_seed(seed)
        begun = time.process_time()
        joint = log_joint(p.program().setup(p.columns), p.columns, engine="auto", calls=10**6)
        if kernel == "chees":
            y = torch.zeros(C, joint.dim)
            root = torch.eye(joint.dim)  # these posteriors are small: the metric is dense
            joint.leapfrog(y, y, y, torch.tensor(0.0), y[0], root)
        else:
            joint.value_and_grad(torch.zeros(joint.dim))
        built = time.process_time()
        found = run_chains(joint, kernel, C, S, W, seed=seed)
        done = time.process_time()
        x = p.stacked(_reported(p, {n: v.movedim(0, 1).numpy() for n, v in joint.unflatten(found.u).items()}))
        said = findings(found, joint)
    row = chained(p, x, done - built) | {"build": built - begun}
    divergent = int(found.stats["diverging"].sum())
    remark = f"{found.steps} leapfrog steps, {divergent} divergent" + "".join(f"; {s.split(':')[0]}" for s in said)
    return {"method": kernel, "remark": remark[:150], "findings": said} | row


def _reported(p: posteriordb.Posterior, draws: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """With what the model makes of its latents."""
    if "theta_trans" in draws:
        draws["theta"] = draws["mu"][..., None] + draws["tau"][..., None] * draws["theta_trans"]
    return draws


def guided(p: posteriordb.Posterior, options: argparse.Namespace, guide: str) -> list[dict[str, Any]]:
    """The guide's draws, and the same corrected by their smoothed importance weights, whatever k-hat is."""
    from ppgen.inference import fit, posterior
    from ppgen.inference.psis import resampled, smoothed

    short = next(k for k, v in GUIDES.items() if v == guide)
    begun = time.process_time()
    run = fit(
        p.program(), p.columns, steps=options.steps, lr=0.01, schedule="cosine", particles=16, guide=guide,
        precision="64-true", seed=options.seed, starts=8,
    )  # fmt: skip
    seconds = time.process_time() - begun
    rows = []
    tree = posterior(run, p.columns, draws=10_000, predictive=False, prior=False, seed=options.seed)
    log_w, k = smoothed((tree["sample_stats"]["log_p"] - tree["sample_stats"]["log_q"]).values.reshape(-1, 1))
    x = p.stacked(_reported(p, {n: v.values for n, v in tree["posterior"].data_vars.items()}))
    rows.append({"method": short, "khat": float(k[0]), "seconds": seconds} | errors(p, x))
    chosen = resampled(log_w[:, 0], 10_000, np.random.default_rng(options.seed))
    rows.append({"method": f"{short} + PSIS", "khat": float(k[0]), "seconds": seconds} | errors(p, x[:, chosen]))
    return rows


# -- peers -------------------------------------------------------------------------------------------------


def pyro_nuts(p: posteriordb.Posterior, options: argparse.Namespace) -> list[dict[str, Any]]:
    import pyro
    from pyro.infer import MCMC, NUTS

    from ppgen.run import default_dtype

    with default_dtype(torch.float64), pyro.validation_enabled(False):
        pyro.set_rng_seed(options.seed)
        begun = time.process_time()
        sampler = MCMC(NUTS(p.model), num_samples=300, warmup_steps=300, disable_progbar=True)
        sampler.run(**p.columns)
        seconds = time.process_time() - begun
        draws = {n: v.numpy() for n, v in sampler.get_samples(group_by_chain=True).items()}
    return [{"method": "Pyro NUTS"} | chained(p, p.stacked(_reported(p, draws)), seconds)]


def numpyro_nuts(p: posteriordb.Posterior, options: argparse.Namespace) -> list[dict[str, Any]]:
    """NUTS at its defaults, one chain; and 4 and 64 vectorised. The second run of a compiled sampler is timed."""
    import jax
    import numpyro
    from numpyro.infer import MCMC, NUTS

    numpyro.enable_x64()
    model = _numpyro_model(p)
    if model is None:
        return [{"method": "NumPyro", "remark": "not written"}]
    data = {k: np.asarray(v) for k, v in p.columns.items()}
    rows = []
    for chains, draws in ((1, 1000), (4, 1000), (64, 250)):
        begun = time.process_time()
        sampler = MCMC(
            NUTS(model), num_warmup=1000 if chains < 64 else 400, num_samples=draws, num_chains=chains,
            chain_method="vectorized" if chains > 1 else "sequential", progress_bar=False, jit_model_args=True,
        )  # fmt: skip
        sampler.run(jax.random.PRNGKey(options.seed + 1), **data)
        middle = time.process_time()
        sampler.run(jax.random.PRNGKey(options.seed), **data)
        found = {n: np.asarray(v) for n, v in sampler.get_samples(group_by_chain=True).items()}
        seconds = time.process_time() - middle
        method = "NumPyro" + (f" x {chains}" if chains > 1 else "")
        build = max(middle - begun - seconds, 0.0)
        rows.append({"method": method, "build": build} | chained(p, p.stacked(_reported(p, found)), seconds))
    return rows


def _numpyro_model(p: posteriordb.Posterior) -> Callable[..., None] | None:
    """The same density in NumPyro, where it is short to write."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.distributions import constraints

    real, positive = constraints.real, constraints.positive

    def regression(X, y, beta=None, sigma=None, name="beta", intercept=None):  # type: ignore[no-untyped-def]
        prior = beta or dist.ImproperUniform(real, (), (X.shape[1],))
        b = numpyro.sample(name, prior)
        a = numpyro.sample("Intercept", intercept) if intercept is not None else 0.0
        s = numpyro.sample("sigma", sigma or dist.ImproperUniform(positive, (), ()))
        numpyro.sample("y", dist.Normal(a + X @ b, s), obs=y)

    def wide(X: Any, y: Any) -> None:
        regression(X, y, dist.Normal(0, 10).expand([X.shape[1]]).to_event(1), dist.HalfNormal(10.0))

    def diamonds(X: Any, y: Any) -> None:
        half = dist.FoldedDistribution(dist.StudentT(3.0, 0.0, 10.0))
        regression(X, y, dist.Normal(0, 1).expand([X.shape[1]]).to_event(1), half, "b", dist.StudentT(3.0, 8.0, 10.0))

    def ark(lagged: Any, y: Any) -> None:
        b = dist.Normal(0, 10).expand([lagged.shape[1]]).to_event(1)
        alpha = numpyro.sample("alpha", dist.Normal(0.0, 10.0))
        beta, sigma = numpyro.sample("beta", b), numpyro.sample("sigma", dist.HalfCauchy(2.5))
        numpyro.sample("y", dist.Normal(alpha + lagged @ beta, sigma), obs=y)

    def schools(sigma: Any, y: Any, centred: bool = False) -> None:
        mu, tau = numpyro.sample("mu", dist.Normal(0, 5)), numpyro.sample("tau", dist.HalfCauchy(5))
        if centred:
            theta = numpyro.sample("theta", dist.Normal(mu, tau).expand([len(sigma)]))
        else:
            theta = mu + tau * numpyro.sample("theta_trans", dist.Normal(0, 1).expand([len(sigma)]))
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)

    def mixture(y: Any) -> None:
        mu = numpyro.sample("mu", dist.ImproperUniform(constraints.ordered_vector, (), (2,)))
        numpyro.factor("prior", dist.Normal(0, 2).log_prob(mu).sum())
        sigma = numpyro.sample("sigma", dist.HalfNormal(2.0).expand([2]))
        theta = numpyro.sample("theta", dist.Beta(5.0, 5.0))
        parts = dist.Normal(mu, sigma).log_prob(y[:, None]) + jnp.log(jnp.stack([theta, 1 - theta]))
        numpyro.factor("y", jnp.logaddexp(parts[:, 0], parts[:, 1]).sum())

    def gp(x: Any, y: Any) -> None:
        rho, alpha = numpyro.sample("rho", dist.Gamma(25.0, 4.0)), numpyro.sample("alpha", dist.HalfNormal(2.0))
        sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
        k = alpha**2 * jnp.exp(-0.5 * ((x[:, None] - x) / rho) ** 2) + sigma * jnp.eye(len(x))
        numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(len(x)), covariance_matrix=k), obs=y)

    return {
        posteriordb.flat_regression: lambda X, y: regression(X, y),
        posteriordb.cauchy_regression: lambda X, y: regression(X, y, sigma=dist.HalfCauchy(2.5)),
        posteriordb.blr: wide,
        posteriordb.diamonds: diamonds,
        posteriordb.arK: ark,
        posteriordb.eight_schools_noncentered: schools,
        posteriordb.eight_schools_centered: lambda sigma, y: schools(sigma, y, True),
        posteriordb.low_dim_gauss_mix: mixture,
        posteriordb.gp_regr: gp,
    }.get(p.model)


if __name__ == "__main__":
    main()
