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
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from ppgen.chain import require_few_states
from ppgen.data import take
from ppgen.draws import Many
from ppgen.errors import PpgenError
from ppgen.inference.estimates import LogLik
from ppgen.inference.loglik import loglik
from ppgen.inference.posterior import posterior
from ppgen.inference.psis import GOOD_K, moments, pareto_k, smoothed
from ppgen.inference.sample import dtype_of_program, ready
from ppgen.program import Program
from ppgen.run import Run, prepare_columns
from ppgen.sites import is_delta
from ppgen.structure import Structure
from ppgen.terms import run as run_once

if TYPE_CHECKING:  # they take a second to import
    import pandas as pd
    from xarray import DataTree

MEAN_DRAWS = 200  # for a posterior mean that is not known in closed form
ACTIVE = 0.01  # variance over rows of a latent's posterior mean, above which it is active (Burda et al. 2016)


class Diagnosis(NamedTuple):
    """What `diagnose` returns.

    Attributes:
        tree: the posterior's DataTree (on the first rows, where latents are local).
        summary: ArviZ's table of the latents: mean, sd and interval.
        bounds: ELBO and importance-weighted bound on the rows.
        khat, ess: one a row where every latent is local, else one for the data set; khat is -inf where all weights
            are equal: the guide is the posterior.
        kl: KL(q, p) in nats of each latent dimension, mean over rows, by site; only where both are factorised.
        active: by site, which dimensions of the latent are active; for local latents on two rows or more.
        findings: sentences; the first says whether to believe the posterior.
        moments: mean and sd of each latent as the guide has them, corrected by the importance weights where latents are
            global and k-hat allows it, and of the reference draws where some were given.
    """

    tree: DataTree
    summary: pd.DataFrame
    bounds: LogLik
    khat: np.ndarray
    ess: np.ndarray
    kl: dict[str, np.ndarray]
    active: dict[str, np.ndarray]
    findings: list[str]
    moments: pd.DataFrame


@torch.no_grad()
def diagnose(
    run: Run,
    data: Any,
    *,
    draws: int = 1000,
    rows: int = 100,
    particles: int = 1000,
    reference: DataTree | None = None,
    seed: int | None = 0,
) -> Diagnosis:
    """Diagnoses a run's guide on data.

    Args:
        run: the run.
        data: the columns.
        draws: draws of the posterior in the tree.
        rows: where latents are local: the first rows go into the tree, ten times as many into k-hat and KL.
        particles: importance weights a row.
        reference: a DataTree of the same posterior, such as `mcmc` gives, to stand beside the guide's.

    Raises:
        PpgenError: a program without latents.
    """
    program = run.program
    data = prepare_columns(data, program, dtype_of_program(program))
    s = run.structure
    if not s.latents:
        raise PpgenError(f"{program.name} has no latents, so nothing to diagnose: its log p(x) is exact; evaluate it")
    require_few_states(program)
    local = not s.globals
    more = take(data, slice(0, 10 * rows), s.row_columns) if local and not program.fixed_rows else data
    few = take(data, slice(0, rows), s.row_columns) if local and not program.fixed_rows else data
    ll = loglik(run, more, particles=particles, seed=seed, keep_weights=True)
    assert ll.log_w is not None and ll.ess is not None
    khat = pareto_k(ll.log_w)
    tree = posterior(run, few, draws=draws, seed=seed)
    kl, active = {}, {}
    with ready(run, more, seed):
        if s.locals:
            t = run_once(program, more)
            kl = {n: v for n in s.locals if (v := _kl(t.q.nodes[n], t.p.nodes[n], s)) is not None}
        if ll.per == "row" and ll.rows > 1:
            active = {n: v > ACTIVE for n, v in _activity(program, more, s).items()}
    table = compare_moments(tree, khat, reference)
    said = [*_findings(ll, khat, active), *_said_of(table)]
    return Diagnosis(tree, summarise(tree), ll, khat, ll.ess, kl, active, said, table)


def compare_moments(tree: DataTree, khat: np.ndarray, reference: DataTree | None = None) -> pd.DataFrame:
    """Mean and sd of each entry of each latent: the guide's, the corrected ones, the reference draws'.

    Raises:
        PpgenError: the reference has none of the latents, or one of another shape.
    """
    import pandas as pd

    group = tree["posterior"].dataset
    stats = tree["sample_stats"].dataset if "sample_stats" in tree.children else None
    others = reference["posterior"].dataset if reference is not None else None
    log_w = None
    if stats is not None and stats["log_p"].ndim == 2 and len(khat) == 1 and khat[0] < GOOD_K:
        log_w = smoothed((stats["log_p"] - stats["log_q"]).values[0][:, None])[0][:, 0]
    parts = []
    for name, value in group.data_vars.items():
        table = dict(zip(("mean", "sd"), moments(value.values), strict=True))
        if log_w is not None:
            table |= dict(zip(("corrected_mean", "corrected_sd"), moments(value.values, log_w), strict=True))
        if others is not None and name in others:
            other = others[name].values
            if other.shape[2:] != value.shape[2:]:
                raise PpgenError(
                    f"the reference's {name!r} has the shape {other.shape[2:]} and the guide's {value.shape[2:]}; pass "
                    "draws of the same posterior"
                )
            flat = other.reshape(1, -1, *other.shape[2:])
            table |= dict(zip(("reference_mean", "reference_sd"), moments(flat), strict=True))
        labels = [name] if value.ndim == 2 else [f"{name}[{', '.join(map(str, i))}]" for i in _labels(value)]
        parts.append(pd.DataFrame(table, index=labels))
    found = pd.concat(parts)
    if others is not None and "reference_mean" not in found:
        raise PpgenError(
            f"the reference has none of the latents {', '.join(map(str, group.data_vars))}; pass draws of the same "
            "posterior"
        )
    return found


def _labels(value: Any) -> list[tuple]:
    from itertools import product

    return list(product(*(value[d].values.tolist() for d in value.dims[2:])))


def _said_of(table: pd.DataFrame) -> list[str]:
    """What the corrected and the reference moments say of the guide's."""
    said = []
    for kind, words in (("corrected", "corrected by its weights"), ("reference", "the reference draws'")):
        if f"{kind}_mean" not in table:
            continue
        scale = table[f"{kind}_sd"].where(table[f"{kind}_sd"] > 0)
        off = ((table["mean"] - table[f"{kind}_mean"]).abs() / scale).fillna(0.0)
        wide = np.log(table["sd"].where(table["sd"] > 0) / scale).abs().fillna(0.0)
        said.append(
            f"Beside the moments {words}, the guide's mean is off by at most {off.max():.2f} sd ({off.idxmax()}), and "
            f"its sd by at most {np.expm1(wide.max()):.0%} ({wide.idxmax()})."
        )
    return said


def summarise(tree: DataTree) -> pd.DataFrame:
    """ArviZ's summary without ESS and R-hat, which mean nothing for a guide's independent draws."""
    from arviz_stats import summary  # type: ignore[attr-defined]

    return summary(tree, kind="stats", round_to="none")


def _kl(q: dict, p: dict, structure: Structure) -> np.ndarray | None:
    """KL(q, p) of each dimension of one latent, mean over rows; None where they are not factorised."""
    if is_delta(q):  # an autoguide's value: its density stands elsewhere
        return None
    a, b = (_factors(site["fn"]) for site in (q, p))
    if a.event_shape or b.event_shape:
        return None
    try:
        value = kl_divergence(a, b)
    except NotImplementedError:
        return None
    return _rows_first(value.expand(q["fn"].shape()), q, structure).mean(0).numpy()


def _factors(fn: Any) -> Any:
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return fn


def _rows_first(value: Tensor, site: dict, structure: Structure) -> Tensor:
    """(rows, dimensions)."""
    row = next(f.dim for f in site["cond_indep_stack"] if f.name in structure.row_plates)
    value = value.movedim(row - site["fn"].event_dim, 0)
    return value.reshape(len(value), -1)


def _activity(program: Program, data: Mapping[str, Tensor], structure: Structure) -> dict[str, np.ndarray]:
    """Variance over rows of E_q[z | x], by latent and dimension."""
    sites = run_once(program, data).q.nodes
    means: dict[str, Tensor] = {}
    for name in structure.locals:
        try:
            if not is_delta(sites[name]):
                means[name] = sites[name]["fn"].mean
        except NotImplementedError:
            continue
    drawn = [n for n in structure.locals if n not in means or torch.isnan(means[n]).any()]
    if drawn:

        def one() -> list[Tensor]:
            q = run_once(program, data).q.nodes
            return [q[n]["value"].to(torch.get_default_dtype()) for n in drawn]

        means |= {n: v.mean(0) for n, v in zip(drawn, Many(one, name=program.name)(MEAN_DRAWS), strict=True)}
    full = {n: means[n].expand(sites[n]["fn"].shape()) for n in structure.locals}
    return {n: _rows_first(v, sites[n], structure).var(0).numpy() for n, v in full.items()}


def _findings(ll: LogLik, khat: np.ndarray, active: dict[str, np.ndarray]) -> list[str]:
    gap = max(ll.best.mean - ll.bounds[0].mean, 0.0)
    what = "a row" if ll.per == "row" else "for the data set"
    bad = float((khat > GOOD_K).mean())
    k = float(khat.max())
    ess = float(np.median(ll.ess))  # type: ignore[arg-type]
    count = f"{ess:.0f} of {ll.particles} draws count after weighting"
    said = []
    if k == -np.inf:
        said.append("The guide is the posterior: all importance weights are equal; draws and bounds can be believed.")
    elif bad == 0 and ess > ll.particles / 2:
        said.append(
            f"The guide is close to the posterior: k-hat is at most {k:.2f} (good below {GOOD_K}), and {count}; "
            "draws and bounds can be believed."
        )
    elif bad == 0:
        said.append(
            f"The guide covers the posterior without being close to it: k-hat is at most {k:.2f} (good below "
            f"{GOOD_K}), but {count}; bounds can be believed, and draws once they are weighted by log_p - log_q."
        )
    elif len(khat) == 1:
        said.append(
            f"The guide misses part of the posterior: k-hat is {k:.2f} (good below {GOOD_K}), and {count}; do not "
            "trust its spread, and try a richer guide (--guide flow)."
        )
    else:
        said.append(
            f"k-hat is above {GOOD_K} for {bad:.0%} of the rows, and {count} in the median row: single draws are fine "
            "for reconstructions, while posterior spreads of those rows are not to be trusted."
        )
    said.append(
        f"The importance-weighted bound lies {gap:.3g} nats {what} above the ELBO: that much of the bound's gap is "
        "the guide's."
    )
    for name, units in active.items():
        if not units.all():
            idle = int((~units).sum())
            said.append(
                f"{idle} of {len(units)} dimensions of {name!r} {'is' if idle == 1 else 'are'} inactive: the posterior "
                "is the prior for every row; a smaller latent, or a KL warm-up (--kl-warmup), would do."
            )
    return said
