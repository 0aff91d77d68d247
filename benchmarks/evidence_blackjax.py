"""The targets of `evidence.py modes` by BlackJAX's adaptive tempered SMC, beside the lines of that benchmark.

    python benchmarks/evidence.py modes --export F.npz
    python benchmarks/evidence_blackjax.py --truth F.npz [--ours F.jsonl] [--seeds 10] [--out G.jsonl]

In an environment of BlackJAX's. As many particles (8 000), from the prior; HMC in the particles' covariance, three
moves a temperature, trajectories of length 1.6, the step following an acceptance of 0.8, and the temperature that
leaves 0.7 of the particles effective: the settings of ppgen's. Errors are root mean squares over the seeds; CPU seconds
the median of calls that have nothing left to compile, and of the first, with its compiling.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from blackjax.smc import extend_params, resampling
from jax.scipy.special import logsumexp
from jax.scipy.stats import norm
from posteriordb_tables import cpu

jax.config.update("jax_enable_x64", True)
PARTICLES, KEEP, MOVES, LENGTH, ACCEPTANCE, MAX_STEPS = 8000, 0.7, 3, 1.6, 0.8, 64
Density = Callable[[Any], Any]


class Target(NamedTuple):
    """A normal prior of that sd about 0, the likelihood, and which particles are in the mode that is looked at."""

    dim: int
    width: float
    likelihood: Density
    inside: Density


def mixture(weights: Any, locs: Any, sds: Any, width: float, inside: Density) -> Target:
    """As `hard_targets.mixture`."""
    weights, locs, sds = (jnp.asarray(v, float) for v in (weights, locs, sds))

    def likelihood(x: Any) -> Any:
        each = norm.logpdf(x, locs, sds[:, None]).sum(-1) + jnp.log(weights)
        return logsumexp(each) - norm.logpdf(x, 0.0, width).sum()

    return Target(locs.shape[1], width, likelihood, inside)


def targets(truth: Any) -> dict[str, Target]:
    mog, labels, square = (jnp.asarray(truth[n]) for n in ("mog", "labels", "square"))

    def of_labels(x: Any) -> Any:
        return (logsumexp(norm.logpdf(labels[:, None], x, 1.0), axis=-1) - math.log(3)).sum()

    return {
        "two modes": mixture([0.7, 0.3], [[0.0], [40.0]], [1, 1], 60.0, lambda x: x[:, 0] < 20),
        "theta squared": Target(
            1, 5.0, lambda x: norm.logpdf(square, x**2, 1.0).sum(), lambda x: x[:, 0] < 0
        ),
        "wide and narrow, 10-D": mixture(
            [0.5, 0.5], np.zeros((2, 10)), [1, 0.1], 5.0, lambda x: (x**2).sum(-1) < 1
        ),
        "MoG40": mixture(
            np.full(40, 1 / 40), mog, np.ones(40), 60.0,
            lambda x: jnp.linalg.norm(x[:, None] - mog, axis=-1).argmin(-1) == 0,
        ),
        "label switching": Target(3, 5.0, of_labels, lambda x: (jnp.diff(x, axis=-1) > 0).all(-1)),
    }  # fmt: skip


def sampled(target: Target) -> Callable[[int], tuple[Any, Any, float]]:
    """A function of a seed: particles, their weights, log Z."""

    def prior(x: Any) -> Any:
        return norm.logpdf(x, 0.0, target.width).sum()

    hmc = blackjax.hmc
    kernel = blackjax.adaptive_tempered_smc.build_kernel(
        prior, target.likelihood, hmc.build_kernel(), hmc.init, resampling.systematic, KEEP
    )

    @jax.jit
    def step(key: Any, state: Any, size: Any) -> tuple[Any, Any, Any]:
        covariance = jnp.atleast_2d(jnp.cov(state.particles.T, aweights=state.weights))
        count = jnp.clip(jnp.ceil(LENGTH / size), 1, MAX_STEPS).astype(int)
        own = {"step_size": size, "inverse_mass_matrix": covariance, "num_integration_steps": count}
        state, info = kernel(key, state, MOVES, extend_params(own))
        size = size * jnp.exp(info.update_info.acceptance_rate.mean() - ACCEPTANCE)
        return state, info.log_likelihood_increment, size

    def run(seed: int) -> tuple[Any, Any, float]:
        key, first = jax.random.split(jax.random.PRNGKey(seed))
        state = blackjax.adaptive_tempered_smc.init(target.width * jax.random.normal(first, (PARTICLES, target.dim)))
        size, log_z = jnp.asarray(0.5), 0.0
        while state.tempering_param < 1.0:
            key, own = jax.random.split(key)
            state, more, size = step(own, state, size)
            log_z += float(more)
        return state.particles, state.weights, log_z

    return run


def measured(name: str, target: Target, truth: Any, seeds: int) -> list[dict[str, Any]]:
    run, rows = sampled(target), []
    log_z, share = truth[f"{name}: log Z, share"]
    for seed in range(seeds):
        begun = cpu()
        x, w, own = run(seed)
        seconds = cpu() - begun
        rows.append({"name": name, "seed": seed, "share": float((w * target.inside(x)).sum()), "seconds": seconds,
                     "share_off": float((w * target.inside(x)).sum() - share), "log_z_off": own - log_z})  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    return rows


def lines(path: Path | None) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.open()] if path and path.exists() else []


def summary(rows: list[dict[str, Any]], share: float) -> str:
    """Root mean squares over seeds, and the median CPU seconds of what had nothing to compile."""
    log_z = np.sqrt(np.mean([r["log_z_off"] ** 2 for r in rows]))
    mode = np.sqrt(np.mean([(r["share"] - share) ** 2 for r in rows]))
    seconds = [r["seconds"] for r in sorted(rows, key=lambda r: r["seed"])]
    return f"{log_z:.4f} | {mode:.4f} | {np.median(seconds[1:]):.1f} ({seconds[0]:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--truth", type=Path, required=True, help="what evidence.py modes --export wrote")
    parser.add_argument("--ours", type=Path, help="lines of evidence.py modes")
    parser.add_argument("--only", nargs="*", default=[""], help="parts of names")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, help="JSON lines, read and appended to")
    options = parser.parse_args()
    truth, rows = np.load(options.truth), lines(options.out)
    for name, target in targets(truth).items():
        if any(part in name for part in options.only) and not any(r["name"] == name for r in rows):
            rows += (new := measured(name, target, truth, options.seeds))
            if options.out:
                with options.out.open("a") as f:
                    f.writelines(json.dumps(r) + "\n" for r in new)
    print("| target | BlackJAX: log Z off | share off | CPU s (first) | ppgen: log Z off | share off | CPU s (first) |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name in targets(truth):
        share = float(truth[f"{name}: log Z, share"][1])
        both = [[r for r in found if r["name"] == name] for found in (rows, lines(options.ours))]
        print(f"| {name} | " + " | ".join(summary(b, share) if b else " | | " for b in both) + " |")


if __name__ == "__main__":
    main()
