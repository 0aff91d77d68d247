"""NUTS through nutpie (extra `mcmc`): the reference for one chain at a time, on the traced gradient.

Source: The No-U-Turn Sampler (Hoffman & Gelman 2014, arXiv:1111.4246); nutpie's adaptation of the metric:
Fisher HMC (Seyboldt, Carlson, Carpenter 2026, and nutpie's documentation).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ppgen.engine import LogJoint
from ppgen.engine.density.pathfinder import Paths
from ppgen.errors import PpgenError, install
from ppgen.inference.sampling.kernels import SMALL_DIM, Draws, Numbers

SUMMARY = "NUTS through nutpie: a few chains, one after the other"
DEFAULTS = Numbers(chains=4, draws=1000, warmup=500)
LEAST = Numbers(chains=1, draws=4, warmup=20)
TOGETHER = False

_STATS = {
    "lp": "logp",
    "energy": "energy",
    "acceptance_rate": "mean_tree_accept",
    "diverging": "diverging",
    "n_steps": "n_steps",
    "step_size": "step_size",
}


def sample(
    joint: LogJoint, paths: Paths, *, draws: int, warmup: int, metric: str = "auto",
    generator: torch.Generator | None = None, report: Callable[[int], None] | None = None,
) -> Draws:  # fmt: skip
    """Runs the chains one after the other; see `kernels`.

    Args:
        metric: dense is nutpie's low-rank correction of the diagonal one, for correlated posteriors.
        generator: its seed is nutpie's.

    Raises:
        PpgenError: nutpie is not installed.
    """
    try:
        import nutpie
        from nutpie.compiled_pyfunc import from_pyfunc
    except ImportError as e:
        raise PpgenError(
            f"kernel 'nuts' runs through nutpie, which is not installed; {install('mcmc')}, or take "
            "kernel='chees' (--kernel chees)"
        ) from e
    chains, dim = paths.u.shape
    dense = metric == "dense" or metric == "auto" and dim <= SMALL_DIM
    seed = 0 if generator is None else generator.initial_seed()
    points = iter(paths.u.double().numpy())

    def density(u: np.ndarray) -> tuple[float, np.ndarray]:
        value, grad = joint.value_and_grad(torch.from_numpy(np.ascontiguousarray(u)).to(paths.u))
        return float(value), grad.double().numpy()

    def expand(*_: Any) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
        return lambda u: {"u": np.asarray(u, np.float64)}

    model = from_pyfunc(
        dim, lambda: density, expand, [np.dtype("float64")], [(dim,)], ["u"],
        make_initial_point_fn=lambda _: next(points),
    )  # fmt: skip
    trace: Any = nutpie.sample(
        model, draws=draws, tune=warmup, chains=chains, cores=1, seed=seed, progress_bar=False, save_warmup=False,
        low_rank_modified_mass_matrix=dense,
    )  # fmt: skip
    u = torch.from_numpy(trace.posterior["u"].values.copy()).movedim(0, 1)
    stats = {
        k: torch.from_numpy(np.asarray(trace.sample_stats[v].values).astype(_dtype(k))).T for k, v in _STATS.items()
    }
    return Draws(u, stats, int(stats["n_steps"].sum()) // chains, torch.zeros(dim), "dense" if dense else "diag")


def _dtype(name: str) -> type:
    return {"diverging": bool, "n_steps": np.int64}.get(name, np.float64)
