"""Whether to believe a guide: importance weights, what the latents carry, moments beside better ones, and findings.

    w = p(x, z) / q(z | x),  z ~ q      k-hat: Pareto shape of the largest weights, ESS = (Σ w)² / Σ w²

k-hat < 0.7: the guide is close enough for its draws to be corrected by their weights. Above, where q is narrower than
the posterior, averages over its draws cannot be trusted. In many dimensions (an encoder's 20 or 50) k-hat > 0.7 is
common for a good encoder too; the gap between importance-weighted bound and ELBO then says what it costs in nats.

Sources: Pareto smoothed importance sampling (Vehtari et al. 2024, arXiv:1507.02646); Yes, but Did It Work? (Yao et
al. 2018, arXiv:1802.02538); active units: Importance Weighted Autoencoders (Burda et al. 2016, arXiv:1509.00519).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from ppgen.chains.chain import require_few_states
from ppgen.data import take
from ppgen.draws import Many
from ppgen.engine import log_joint
from ppgen.engine.density.joint import in_blocks
from ppgen.errors import PpgenError
from ppgen.inference.evaluation.estimates import Evidence, LogLik
from ppgen.inference.evaluation.loglik import NoWeights, loglik, require_no_point
from ppgen.inference.evaluation.moments import compare_moments
from ppgen.inference.evaluation.posterior import name_in, posterior
from ppgen.inference.evaluation.psis import pareto_k, tail, threshold
from ppgen.inference.evaluation.sample import dtype_of_program, ready, require_run
from ppgen.inference.sampling.prepared import prior_of
from ppgen.inference.sampling.weighted import guide_tails, guide_vectors, heavy_tail
from ppgen.inference.verdicts.findings import Finding, store_findings, verdict, with_words
from ppgen.inference.verdicts.guide_checks import bound_gap, conclusion, inactive_units, weight_checks
from ppgen.inference.verdicts.mode_search import unseen_modes
from ppgen.inference.verdicts.moved import moved
from ppgen.inference.verdicts.report_checks import of_model
from ppgen.program import Program
from ppgen.run import Run, prepare_columns
from ppgen.run.shown import summarized
from ppgen.sites import is_delta
from ppgen.structure import Site, Structure
from ppgen.terms import run as run_once

if TYPE_CHECKING:  # they take a second to import
    import pandas as pd
    from xarray import DataTree

log = logging.getLogger("ppgen")

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
        findings: one a check; the first is all of them in one: whether to believe the posterior. Printed, each is a
            sentence. They stand in the tree's attributes, too.
        moments: mean and sd of each latent as the guide has them, corrected by the importance weights where k-hat
            allows it, and of the reference draws where some were given.
    """

    tree: DataTree
    summary: pd.DataFrame
    bounds: LogLik
    khat: np.ndarray
    ess: np.ndarray
    kl: dict[str, np.ndarray]
    active: dict[str, np.ndarray]
    findings: list[Finding]
    moments: pd.DataFrame

    def __repr__(self) -> str:  # no arrays
        return "\n".join([self.summary.to_string(), repr(self.bounds), *map(str, self.findings)])

    @property
    def verdict(self) -> str:
        """The worst of the findings: fine, look or wrong."""
        return verdict(self.findings)


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
        NoWeights: a program that has no latents; a guide without spread; a log-density that is itself drawn.
        PpgenError: a program that was not fitted.
    """
    require_run(run, "diagnose")
    program = run.program
    data = prepare_columns(data, program, dtype_of_program(program))
    s = run.structure
    if not s.latents:
        raise NoWeights(f"{program.name} has no latents, so nothing to diagnose: its log p(x) is exact; evaluate it")
    require_few_states(program)
    local = not s.globals
    more = take(data, slice(0, 10 * rows), s.row_columns) if local and not program.fixed_rows else data
    few = take(data, slice(0, rows), s.row_columns) if local and not program.fixed_rows else data
    if not _has_spread(run, few):
        with ready(run, few, seed):
            require_no_point(program, few, run_once(program, few), run_once(program, few), s)
        raise _no_spread(program, s.latents)
    ll = loglik(run, more, particles=particles, seed=seed, keep_weights=True)
    assert ll.log_w is not None and ll.ess is not None
    khat = pareto_k(ll.log_w)
    tree = posterior(run, few, draws=draws, seed=seed)
    if all(bool((v == v[:, :1]).all()) for v in (tree.posterior[name_in(tree, n)].values for n in s.latents)):
        raise _no_spread(program, s.latents)
    kl, active = {}, {}
    with ready(run, more, seed):
        if s.locals:
            t = run_once(program, more)
            kl = {n: v for n in s.locals if (v := _kl(t.q.nodes[n], t.p.nodes[n], s)) is not None}
        if ll.per == "row" and ll.rows > 1:
            active = {n: v > ACTIVE for n, v in _activity(program, more, s).items()}
    asked = tail(khat, ll.ess, ll.particles)
    table, compared = compare_moments(tree, asked, reference)
    checks = [bound_gap(ll), *weight_checks(ll, khat), *compared]
    with ready(run, data, seed):
        checks += _unseen(program, data, s.sites, tree, ll, float(asked.max()), seed)
    if s.by_row and "sample_stats" in tree and asked.max() < threshold(ll.particles):
        with ready(run, few, seed):
            checks += [f] if (f := guide_tails(program, few, s, *_drawn(tree, s.latents))) is not None else []
    seen = of_model(tree)
    said = with_words(tree, [conclusion(ll, khat, checks), *checks, *seen, *inactive_units(active)])
    store_findings(tree, said)
    summary = summarized(tree, kind="stats")  # ESS and R-hat mean nothing for a guide's independent draws
    return Diagnosis(tree, summary, ll, khat, ll.ess, kl, active, said, table)


def _has_spread(run: Run, data: Mapping[str, Tensor]) -> bool:
    """Whether its guide gives more than one value of some latent, as it does not of a VQ-VAE's codes."""
    with ready(run, data, 0):
        one, two = (run_once(run.program, data).q.nodes for _ in range(2))
    names = run.structure.latents
    return not all(
        n in one and n in two and _is_sure(one[n]) and torch.equal(one[n]["value"], two[n]["value"]) for n in names
    )


def _is_sure(site: Mapping[str, Any]) -> bool:
    """Whether it could have drawn no other value."""
    fn = site["fn"]
    return is_delta(site) or fn.support.is_discrete and bool((fn.log_prob(site["value"]) == 0).all())


def _no_spread(program: Program, names: Sequence[str]) -> NoWeights:
    return NoWeights(
        f"the guide of {program.name} has no spread: it gives one value of {names[0]!r}, whose weights cannot tell how "
        "far the posterior is; its bound holds all the same (ppgen evaluate)"
    )


def _unseen(
    program: Program,
    data: Mapping[str, Tensor],
    sites: Sequence[Site],
    tree: DataTree,
    ll: LogLik,
    khat: float,
    seed: int | None,
) -> list[Finding]:
    """Whether the guide's weighted draws stay under moves, and whether the posterior has tails or mass that they have
    not seen.

    Nothing where weights are a row's own, where they are known to be unreliable, or where the log joint is no function
    of continuous latents alone.
    """
    if ll.per == "row" or ll.ess is None or not khat < threshold(ll.particles) or "sample_stats" not in tree:
        return []
    try:
        joint = log_joint(program, data)
    except PpgenError as e:
        log.info("modes that the guide has not seen were not searched for: %s", e)
        return []
    drawn, log_w = _drawn(tree, joint.latents)
    u, w = guide_vectors(joint, drawn, log_w[:, 0])
    best = ll.best
    target, seed = in_blocks(joint.value_and_grad), int(seed or 0)  # one graph, however many climbs are under way
    still = moved(target, u, w, joint.labels, seed=seed)
    found = unseen_modes(
        target, u, float(1 / (w**2).sum()),
        evidence=Evidence(best.mean, best.mean_se), weights=w, prior=prior_of(joint, sites),
        name=joint.place, seed=seed,
    )  # fmt: skip
    return [f for f in (still, heavy_tail(joint, target, u, w), found) if f is not None]


def _drawn(tree: DataTree, latents: Sequence[str]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The draws of latents, (S, plates, event), and their log weights, (S, rows or 1)."""
    group, stats = cast(Any, tree["posterior"]), cast(Any, tree["sample_stats"])
    log_w = (stats["log_p"].values - stats["log_q"].values)[0]
    return {n: group[name_in(tree, n)].values[0] for n in latents}, log_w.reshape(len(log_w), -1)


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
