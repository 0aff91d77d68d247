r"""Which of several models predicts better: one table across families, with paired differences.

    loo        Σ_i log p(x_i | x_{-i}), by Pareto-smoothed importance sampling over posterior draws: defined where
               what the rows share (global latents) was inferred and each row has a likelihood given it
    held out   Σ_i log p(x_i) of rows that were not fitted: exact, an importance-weighted lower bound, or (where
               latents are global) the log of the mean of p(x_i | z) over posterior draws

The difference of two models on the same rows has the standard error √n sd(d_i), d_i the difference at row i, which is
far smaller than those of the two: rows that are hard are hard for both.

Sources: Practical Bayesian model evaluation using leave-one-out cross-validation and WAIC (Vehtari et al. 2017,
arXiv:1507.04544); Bayesian leave-one-out cross-validation for large data (Magnusson et al. 2019, arXiv:1904.10679), for
draws of an approximate posterior.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppgen.check.missing import validate
from ppgen.data import n_rows, tensors
from ppgen.data.same_rows import matching_rows
from ppgen.draws import Many, one_draw
from ppgen.enumerated import drawn_discrete
from ppgen.errors import PpgenError
from ppgen.inference.evaluation.estimates import warn_of_scales
from ppgen.inference.evaluation.loglik import loglik, require_observed
from ppgen.inference.evaluation.posterior import posterior
from ppgen.inference.evaluation.psis import GOOD_K, smoothed
from ppgen.inference.evaluation.sample import dtype_of_program, ready
from ppgen.inference.verdicts.findings import FINE, LOOK, Finding
from ppgen.run import Run, prepare_columns
from ppgen.sites import given_value, sample_sites
from ppgen.terms import guide_run, latents_of, model_run, total

if TYPE_CHECKING:
    from xarray import DataTree


class Score(NamedTuple):
    """One model's log predictive density.

    Attributes:
        kind: loo, exact, estimate or lower.
        values: nats, one a row.
        se: Monte Carlo standard error of their sum.
        bad: rows whose k-hat is above 0.7, for loo.
        observed: what was predicted, flat: scores are compared on the same values only.
        rows: columns with a value a row, by which rows in another order are told.
    """

    kind: str
    values: np.ndarray
    se: float
    bad: int
    observed: np.ndarray
    rows: Mapping[str, np.ndarray] = {}

    def __repr__(self) -> str:  # no arrays: a comparison is printed whole
        return f"Score({self.kind}, {self.total:.2f} nats, {len(self.values)} rows)"

    @property
    def total(self) -> float:
        return float(self.values.sum())

    @property
    def rows_se(self) -> float:
        """Standard error of the total over rows."""
        return _sum_se(self.values)


class _Comparison(NamedTuple):
    """What `compare` returns.

    Attributes:
        scores: by name, the best first.
        differences: by name, (difference from the best, its standard error), in nats over all rows: of the rows, in
            pairs, and of the draws.
        findings: what the table says, and what to beware of; printed, each is a sentence.
    """

    scores: dict[str, Score]
    differences: dict[str, tuple[float, float]]
    findings: list[Finding]

    def __repr__(self) -> str:  # no arrays
        behind = {n: f", {d:.2f} ± {se:.2g} from the best" for n, (d, se) in self.differences.items() if d}
        scores = (f"{name}: {s.total:.2f} nats ({s.kind}){behind.get(name, '')}" for name, s in self.scores.items())
        return "\n".join([*scores, *map(str, self.findings)])

    def table(self) -> list[dict[str, Any]]:
        """One dict a model."""
        return [
            {
                "name": name, "kind": s.kind, "nats": s.total, "rows_se": s.rows_se, "se": s.se,
                "per_row": s.total / len(s.values), "rows": len(s.values), "difference": self.differences[name][0],
                "difference_se": self.differences[name][1], "bad_k": s.bad,
            }
            for name, s in self.scores.items()
        ]  # fmt: skip


def compare(scores: Mapping[str, Score | DataTree | Run]) -> _Comparison:
    """Compares scores (of `loo` or `held_out`) on the same rows, in whatever order.

    Args:
        scores: by name; of draws of `infer`, `mcmc` or `posterior` their `loo`, of a run its score.

    Raises:
        PpgenError: fewer than two; what is no score; scores of other rows or values; loo beside held-out rows.
    """
    if not isinstance(scores, Mapping) or len(scores) < 2:
        got = f"{len(scores)}" if isinstance(scores, Mapping) else f"a {type(scores).__name__}"
        raise PpgenError(f"compare got {got}; name two runs or more, {{name: posterior(run, data), ...}}")
    found = {name: _as_score(name, s) for name, s in scores.items()}
    first_name, first = next(iter(found.items()))
    known = {name: _in_order_of(first, s) for name, s in found.items()}
    for name, s in known.items():
        if (s.kind == "loo") != (first.kind == "loo"):
            raise PpgenError(
                f"{first_name!r} is scored by {_words(first)} and {name!r} by {_words(s)}, which are about other rows; "
                "score both on held-out rows (--split test, or --data)"
            )
        both = s.observed.size and first.observed.size  # none where the likelihood is a factor
        if len(s.values) != len(first.values) or both and s.observed.shape != first.observed.shape:
            raise PpgenError(
                f"{first_name!r} is scored on {len(first.values)} rows ({first.observed.size} values) and {name!r} on "
                f"{len(s.values)} ({s.observed.size}); score both on the same rows"
            )
        if both and not np.allclose(s.observed, first.observed, rtol=1e-5, atol=1e-6, equal_nan=True):
            raise PpgenError(
                f"{first_name!r} and {name!r} predict other values (other rows, or scaled?), and densities "
                "of different things cannot be compared; score both on the same data"
            )
    order = dict(sorted(known.items(), key=lambda item: -item[1].total))
    best = next(iter(order.values()))
    differences = {n: (s.total - best.total, _difference_se(s, best)) for n, s in order.items()}
    return _Comparison(order, differences, _findings(order, differences))


def _difference_se(one: Score, other: Score) -> float:
    """Of the rows, in pairs, and of what other draws of each model would change; 0 of a score and itself."""
    own = 0.0 if one is other else math.hypot(one.se, other.se)
    return math.hypot(_sum_se(one.values - other.values), own)


def _as_score(name: str, of: Score | DataTree | Run) -> Score:
    """A score of what is one, or has one; else it is refused."""
    if isinstance(of, Score):
        return of
    if isinstance(of, Run):
        if of.config["data"].get("source") is None:
            raise PpgenError(
                f"{name!r} is a run of data in memory, which it does not keep; name posterior(run, data), or "
                "held_out(run, data) of ppgen.inference.evaluation.compare, in its place"
            )
        return _score(of)
    if not hasattr(of, "children"):
        raise PpgenError(
            f"compare got {type(of).__name__} for {name!r}; expected a score (loo or held_out of "
            "ppgen.inference.evaluation.compare), draws of a posterior, or a run"
        )
    return loo(of)


def _in_order_of(first: Score, s: Score) -> Score:
    """The score with its rows in the order of another's, where they are the same rows."""
    if s.observed.shape != first.observed.shape or np.allclose(s.observed, first.observed, 1e-5, 1e-6, equal_nan=True):
        return s
    places = matching_rows(first.rows, s.rows)
    if places is None or len(places) != len(s.values):
        return s
    return s._replace(values=s.values[places], observed=first.observed)


@torch.no_grad()
def _score(run: Run, data: Any = None, *, draws: int = 4000, particles: int = 1000, seed: int = 0) -> Score:
    """LOO of the rows that were fitted where it is defined (and `data` is None), else of held-out `data`.

    Args:
        data: rows that were not fitted; None takes the fitted ones.
        draws: of the posterior, where latents are global.
        particles: importance weights a row, where latents are local.
    """
    s = run.structure
    if data is None and s.globals:
        tree = posterior(run, run.data(), draws=draws, seed=seed, predictive=False, prior=False)
        return loo(tree)
    return held_out(run, run.data() if data is None else data, draws=draws, particles=particles, seed=seed)


def loo(tree: DataTree) -> Score:
    """Leave-one-out by PSIS, of a guide's draws (whose log_p and log_q it takes) or of a sampler's."""
    if "log_likelihood" not in tree.children:
        raise PpgenError("these draws have no group log_likelihood, from which LOO is computed; score held-out rows")
    sites = tree["log_likelihood"].dataset.data_vars
    ndims = {v.ndim for v in sites.values()}
    if not sites or ndims == {2}:
        raise PpgenError("no observed site has a likelihood for each row, so that leave-one-out is not defined")
    if name := tree.attrs.get("scaled"):
        raise PpgenError(
            f"poutine.scale multiplies the log-probability of {name!r}, so that draws without a row are not these, "
            "weighted by its density: no LOO here; score a program without the scale"
        )
    total = _by_row(sites, str(tree.attrs.get("row_dim", "data")))
    log_lik = total.transpose("chain", "draw", ...).values.astype(np.float64)
    if (none := np.isinf(log_lik).any((0, 1))).any():
        raise PpgenError(
            f"the likelihood of row {none.argmax()} is 0 or infinite at some of the draws, whose weight without that "
            "row cannot be told: no LOO here; score held-out rows (held_out of ppgen.inference.evaluation.compare)"
        )
    S, n = log_lik.shape[0] * log_lik.shape[1], log_lik.shape[2]
    log_w, r_eff = np.zeros(log_lik.shape[:2]), 1.0
    stats = tree["sample_stats"].dataset if "sample_stats" in tree.children else None
    if stats is not None and "log_q" in stats:
        log_w = (stats["log_p"] - stats["log_q"]).values.astype(np.float64)
        if log_w.ndim != 2:
            raise PpgenError("the latents are one a row, so that leaving a row out leaves its latents out: no LOO here")
    else:
        r_eff = _efficiency(tree["posterior"].dataset, total)
    weights, khat = smoothed((log_w[..., None] - log_lik).reshape(S, n), r_eff)
    values = np.logaddexp.reduce(weights + log_lik.reshape(S, n), 0)
    observed = _observed_values(tree, total).astype(float)
    bad = int((khat > GOOD_K).sum())
    return Score("loo", values, _loo_se(log_lik, log_w), bad, observed, _rows_of(tree, total))


def _efficiency(latents: Any, total: Any) -> float:
    """The effective share of a sampler's draws, a mean over latents, as ArviZ's LOO takes it."""
    from arviz_stats import ess  # type: ignore[attr-defined]

    if total.sizes["chain"] == 1:
        return 1.0
    if total.sizes["draw"] < latents.sizes["draw"]:  # of many rows fewer draws have a likelihood
        latents = latents.sel(draw=total["draw"])
    each = ess(latents, method="mean").data_vars.values()
    share = float(np.hstack([v.values.ravel() for v in each]).mean()) / (total.sizes["chain"] * total.sizes["draw"])
    return share if share > 0 else 1.0  # nan of draws that are all the same


def _loo_se(log_lik: np.ndarray, log_w: np.ndarray) -> float:
    """Monte Carlo standard error of Σ_i −log(Σ_s w_s / p(x_i | z_s) / Σ_s w_s), by what each draw adds to it: the rows
    share their draws. Of log-likelihoods, (chain, draw, rows), and log weights, (chain, draw)."""
    from arviz_stats.base import array_stats  # type: ignore[attr-defined]

    def shares(log: np.ndarray) -> np.ndarray:
        weight = np.exp(log - log.max((0, 1)))
        return weight / weight.mean((0, 1))

    added = shares(log_w[..., None] - log_lik).sum(-1) - log_lik.shape[-1] * shares(log_w)
    spread = float(added.std())
    return 0.0 if spread == 0 else spread / math.sqrt(float(array_stats.ess(added, method="mean")))


def _observed_values(tree: DataTree, total: Any) -> np.ndarray:
    """The observed values of the rows that have a log-likelihood; none where the model has factors only."""
    if "observed_data" not in tree.children:
        return np.zeros(0)
    row_dim = total.dims[-1]
    values = tree["observed_data"].dataset.data_vars.values()
    seen = [v.sel({row_dim: total[row_dim]}) if row_dim in v.dims else v for v in values]
    return np.concatenate([v.values.ravel() for v in seen])


def _rows_of(tree: DataTree, total: Any) -> dict[str, np.ndarray]:
    """The columns of the rows that have a log-likelihood."""
    dim = total.dims[-1]
    found = {}
    for group in [g for g in ("observed_data", "constant_data") if g in tree.children]:
        for name, v in tree[group].dataset.data_vars.items():
            if dim in v.dims:
                found[str(name)] = v.sel({dim: total[dim]}).transpose(dim, ...).values
    return found


def _by_row(sites: Mapping[Any, Any], row_dim: str) -> Any:
    """The log-likelihoods of all sites, summed over everything but chain, draw and the rows' dimension: `row_dim`, or
    where the sites lack that the innermost that they share."""
    shared = [d for d in next(iter(sites.values())).dims if all(d in v.dims for v in sites.values())]
    rows = [d for d in shared if d not in ("chain", "draw")]
    if not rows:
        raise PpgenError("the observed sites stand in no common plate, so that there are no rows to leave out")
    keep = ("chain", "draw", row_dim if row_dim in rows else rows[-1])
    return sum(v.sum([d for d in v.dims if d not in keep]) for v in sites.values())


@torch.no_grad()
def held_out(run: Run, data: Any, *, draws: int = 4000, particles: int = 1000, seed: int = 0) -> Score:
    """log p(x_i) of each row of data."""
    program, s = run.program, run.structure
    data = prepare_columns(data, program, dtype_of_program(program))
    require_observed(run, data)
    validate(program, data)
    if s.globals:
        if s.locals:
            raise PpgenError(
                f"{program.name} has latents of a row ({s.locals[0]!r}) beside shared ones ({s.globals[0]!r}), for "
                "which neither LOO nor a held-out likelihood is offered; write the model with the local ones summed out"
            )
        values, error = _predictive(run, data, draws, seed)
        return Score("estimate", values, error, 0, _observed(run, data), _columns(data, len(values)))
    found = loglik(run, data, particles=particles, seed=seed)
    if found.per != "row":
        raise PpgenError(f"{program.name} has no log-likelihood by row, so that it cannot be compared row by row")
    best = found.best
    values, error = np.asarray(best.values, float), float(np.sqrt((best.se**2).sum()))
    return Score(best.kind, values, error, 0, _observed(run, data), _columns(data, len(values)))


def _columns(data: Mapping[str, Any], n: int) -> dict[str, np.ndarray]:
    """The columns with a value for each of n rows."""
    return {k: v.double().numpy() for k, v in tensors(data).items() if v.dim() and len(v) == n}


def _predictive(run: Run, data: Mapping[str, Any], draws: int, seed: int) -> tuple[np.ndarray, float]:
    """log 1/S Σ_s p(x_i | z_s), z_s from the guide as it was fitted, and the standard error of its sum."""
    program, s = run.program, run.structure
    for name in s.names("observed"):
        if not s.is_local(name):
            raise PpgenError(f"the observed site {name!r} stands in no plate over the rows; there are no rows")

    with ready(run, data, seed, guide=False), torch.random.fork_rng():
        warn_of_scales(sample_sites(model_run(program, data)))

    def one() -> list[Tensor]:
        q = guide_run(program, run.example)
        held = {n: v for n, v in latents_of(q).items() if n in s.globals}
        if s.summed:
            shared = tuple(n for n in s.summed if not s.is_local(n))
            held |= drawn_discrete(program, run.example, s.nesting, held, shared) if shared else {}
        found = one_draw(program, data, s, latents=held)
        return [total([t for t in found if t.role in ("likelihood", "summed")], keep=s.row_plates)]

    with ready(run, run.example, seed):
        (log_p,) = Many(one, name=program.name)(draws)
    log_p = log_p.double()
    values = log_p.logsumexp(0) - math.log(len(log_p))
    relative = (log_p - values).exp()  # p(x_i | z_s) over its mean
    error = (relative - 1).sum(1).std() / math.sqrt(len(log_p))  # the rows share z_s
    return values.numpy(), float(error)


def _observed(run: Run, data: Mapping[str, Any]) -> np.ndarray:
    few = {k: v.double().numpy().ravel() for k, v in tensors(data).items()}
    with ready(run, data, None, guide=False), torch.random.fork_rng():
        sites = sample_sites(model_run(run.program, data))
    seen = {given_value(sites[n]).data_ptr() for n in run.structure.names("observed")}
    found = [few[k] for k, v in tensors(data).items() if v.data_ptr() in seen]
    return np.concatenate(found) if found else np.zeros(n_rows(data))


def _sum_se(values: np.ndarray) -> float:
    n = len(values)
    return float(values.std(ddof=1) * math.sqrt(n)) if n > 1 else math.nan


def _words(s: Score) -> str:
    return "leave-one-out of the rows fitted" if s.kind == "loo" else "held-out rows"


def _findings(scores: dict[str, Score], differences: dict[str, tuple[float, float]]) -> list[Finding]:
    """Whether the best two can be told apart; rows whose LOO is not to be relied on; bounds of several kinds."""
    best, top = next(iter(scores.items()))
    other, (gap, se) = next((n, d) for n, d in differences.items() if n != best)
    told = gap != 0 and (not se > 0 or abs(gap) > 4 * se)
    said = {"other": other, "se": se, "rows": len(top.values)}
    found = [Finding("score_difference", best, -gap, 4 * se, FINE if told else LOOK, said)]
    for name, s in scores.items():
        if s.bad:
            rows = {"rows": len(s.values), "khat_threshold": GOOD_K}
            found.append(Finding("loo_khat", name, float(s.bad), 0.0, LOOK, rows))
    lower = [n for n, s in scores.items() if s.kind == "lower"]
    if lower and len(lower) < len(scores):
        found.append(Finding("bound_kinds", "", float(len(lower)), 0.0, LOOK, {"lower": lower}))
    return found
