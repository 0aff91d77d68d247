"""NUTS through nutpie (extra `mcmc`): the reference for one chain at a time, on the traced gradient.

Source: The No-U-Turn Sampler (Hoffman & Gelman 2014, arXiv:1111.4246); nutpie's adaptation of the metric:
Fisher HMC (Seyboldt, Carlson, Carpenter 2026, and nutpie's documentation).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppgen.errors import PpgenError
from ppgen.inference.sampling.chees import Draws

_STATS = {
    "lp": "logp",
    "energy": "energy",
    "acceptance_rate": "mean_tree_accept",
    "diverging": "diverging",
    "n_steps": "n_steps",
    "step_size": "step_size",
}


def nuts(
    value_and_grad: Callable[[Tensor], tuple[Tensor, Tensor]],
    start: Tensor,
    *,
    draws: int,
    warmup: int,
    dense: bool = False,
    seed: int = 0,
) -> Draws:
    """Runs the chains one after the other.

    Args:
        value_and_grad: log joint and gradient of one unconstrained vector, (dim,) -> (), (dim,).
        start: (chains, dim).
        dense: with nutpie's low-rank correction of the diagonal metric, for correlated posteriors.

    Raises:
        PpgenError: nutpie is not installed.
    """
    try:
        import nutpie
        from nutpie.compiled_pyfunc import from_pyfunc
    except ImportError as e:
        raise PpgenError(
            "kernel 'nuts' runs through nutpie, which is not installed; pip install 'ppgen[mcmc]', or take "
            "kernel='chees' (--kernel chees)"
        ) from e
    chains, dim = start.shape
    points = iter(start.double().numpy())

    def density(u: np.ndarray) -> tuple[float, np.ndarray]:
        value, grad = value_and_grad(torch.from_numpy(np.ascontiguousarray(u)).to(start))
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
