"""Whether to believe a guide: importance weights, what the latents carry, and a plain sentence on what is wrong.

    w = p(x, z) / q(z | x),  z ~ q      k-hat: Pareto shape of the largest weights, ESS = (Σ w)² / Σ w²

k-hat < 0.7: the guide is close enough for its draws to be corrected by their weights. Above, where q is narrower than
the posterior, averages over its draws cannot be trusted. In many dimensions (an encoder's 20 or 50) k-hat > 0.7 is
common for a good encoder too; the gap between importance-weighted bound and ELBO then says what it costs in nats.

Sources: Pareto smoothed importance sampling (Vehtari et al. 2024, arXiv:1507.02646); Yes, but Did It Work? (Yao et
al. 2018, arXiv:1802.02538); active units: Importance Weighted Autoencoders (Burda et al. 2016, arXiv:1509.00519).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.distributions import kl_divergence
from xarray import DataTree

from ppgen.data import n_rows, take
from ppgen.errors import PpgenError
from ppgen.inference.loglik import LogLik, loglik
from ppgen.inference.posterior import posterior
from ppgen.inference.sample import dtype_of_program, seeded
from ppgen.run import Run, default_dtype, prepare_columns
from ppgen.structure import trace_pair

GOOD_K = 0.7
ACTIVE = 0.01  # variance over rows of a latent's posterior mean, above which it is active (Burda et al. 2016)


class Diagnosis(NamedTuple):
    """What `diagnose` returns.

    Attributes:
        tree: the posterior's DataTree (on the first rows, where latents are local).
        summary: ArviZ's table of the latents: mean, sd and interval.
        bounds: ELBO and importance-weighted bound on the rows.
        khat, ess: one a row where every latent is local, else one for the data set.
        kl: KL(q, p) in nats of each latent dimension, mean over rows, by site; only where both are factorised.
        active: by site, which dimensions of the latent are active.
        findings: sentences; the first says whether to believe the posterior.
    """

    tree: DataTree
    summary: pd.DataFrame
    bounds: LogLik
    khat: np.ndarray
    ess: np.ndarray
    kl: dict[str, np.ndarray]
    active: dict[str, np.ndarray]
    findings: list[str]


@torch.no_grad()
def diagnose(
    run: Run, data: Any, *, draws: int = 1000, rows: int = 100, particles: int = 1000, seed: int | None = 0
) -> Diagnosis:
    """Diagnoses a run's guide on data.

    Args:
        run: the run.
        data: the columns.
        draws: draws of the posterior in the tree.
        rows: where latents are local: the first rows go into the tree, ten times as many into k-hat and KL.
        particles: importance weights a row.

    Raises:
        PpgenError: a program without latents.
    """
    program = run.program
    data = prepare_columns(data, program, dtype_of_program(program))
    s = run.structure
    if not s.latents:
        raise PpgenError(f"{program.name} has no latents, so nothing to diagnose: its log p(x) is exact; evaluate it")
    local = not s.globals
    more = take(data, slice(0, 10 * rows), s.row_columns) if local and program._autoguide is None else data
    few = take(data, slice(0, rows), s.row_columns) if local and program._autoguide is None else data
    ll = loglik(run, more, particles=particles, seed=seed, keep_weights=True)
    assert ll.log_w is not None and ll.ess is not None
    khat = pareto_k(ll.log_w)
    tree = posterior(run, few, draws=draws, seed=seed)
    kl = _kl(run, more, seed)
    active = {n: _activity(run, more, n, seed) > ACTIVE for n in s.locals} if ll.per == "row" else {}
    return Diagnosis(tree, summarise(tree), ll, khat, ll.ess, kl, active, _findings(ll, khat, active))


def pareto_k(log_w: np.ndarray) -> np.ndarray:
    """Pareto k-hat of the weights, (K, n) -> (n,). nan where all weights are equal: the guide is exact.

    ArviZ's `psislw` is made for leave-one-out and takes negative log weights.
    """
    from arviz_stats.base import array_stats

    k = np.empty(log_w.shape[1])
    for i, column in enumerate(log_w.T.astype(np.float64)):
        spread = column.max() - column.min()
        k[i] = -np.inf if spread < 1e-6 else array_stats.psislw(-column)[1]
    return k


def summarise(tree: DataTree) -> pd.DataFrame:
    """ArviZ's summary without ESS and R-hat, which mean nothing for a guide's independent draws."""
    from arviz_stats import summary

    return summary(tree, kind="stats", round_to="none")


def _kl(run: Run, data: Mapping[str, Tensor], seed: int | None) -> dict[str, np.ndarray]:
    program = run.program
    with seeded(seed), default_dtype(dtype_of_program(program)):
        t = trace_pair(program, data)
        found = {}
        for name in run.structure.locals:
            q, p = t.q.nodes[name]["fn"], t.p.nodes[name]["fn"]
            while hasattr(q, "base_dist") and type(q).__name__ == "Independent":
                q = q.base_dist
            while hasattr(p, "base_dist") and type(p).__name__ == "Independent":
                p = p.base_dist
            try:
                value = kl_divergence(q, p)
            except NotImplementedError:
                continue
            found[name] = value.reshape(n_rows(data, run.structure.row_columns), -1).mean(0).numpy()
    return found


def _activity(run: Run, data: Mapping[str, Tensor], name: str, seed: int | None) -> np.ndarray:
    """Variance over rows of E_q[z | x], by dimension."""
    program = run.program
    with seeded(seed), default_dtype(dtype_of_program(program)):
        fn = trace_pair(program, data).q.nodes[name]["fn"]
        try:
            mean = fn.mean
        except NotImplementedError:
            mean = torch.stack([trace_pair(program, data).q.nodes[name]["value"] for _ in range(50)]).mean(0)
    return mean.reshape(n_rows(data, run.structure.row_columns), -1).var(0).numpy()


def _findings(ll: LogLik, khat: np.ndarray, active: dict[str, np.ndarray]) -> list[str]:
    elbo, iw = ll.bounds[0], ll.bounds[-1]
    gap = iw.mean - elbo.mean
    what = "a row" if ll.per == "row" else "for the data set"
    k = float(np.max(khat[np.isfinite(khat)], initial=-np.inf))
    bad = float((khat > GOOD_K).mean())
    ess = float(np.median(ll.ess))  # type: ignore[arg-type]
    said = []
    if bad == 0:
        said.append(
            f"The guide is close to the posterior: k-hat is at most {k:.2f} (good below {GOOD_K}), and {ess:.0f} of "
            f"{ll.particles} draws count after weighting; draws and bounds can be believed."
        )
    elif len(khat) == 1:
        said.append(
            f"The guide misses part of the posterior: k-hat is {k:.2f} (good below {GOOD_K}), and {ess:.0f} of "
            f"{ll.particles} draws "
            "count after weighting; do not trust its spread, and try a richer guide (--guide AutoMultivariateNormal)."
        )
    else:
        said.append(
            f"k-hat is above {GOOD_K} for {bad:.0%} of the rows, and {ess:.0f} of {ll.particles} draws count after "
            "weighting in the "
            "median row: single draws are fine for reconstructions, while posterior spreads of those rows are not to "
            "be trusted."
        )
    said.append(
        f"The importance-weighted bound lies {gap:.3g} nats {what} above the ELBO: that much of the bound's gap is "
        "the guide's."
    )
    for name, units in active.items():
        if not units.all():
            said.append(
                f"{int((~units).sum())} of {len(units)} dimensions of {name!r} are inactive: their posterior is the "
                "prior for every row; "
                "a smaller latent, or a KL warm-up (--kl-warmup), would do."
            )
    return said
