"""Reference sampling: Hamiltonian Monte Carlo on the traced log joint, as the same DataTree that `posterior` gives.

    u: the latents on an unconstrained scale,  p(u | x) ∝ p(x, z(u)) |det ∂z/∂u|

The kernel is a file of `ppgen.inference.sampling.kernels`; every one starts from Pathfinder's draws. A log joint that
fails at a point rejects that proposal, never the run. What is wrong is logged; every check stands in the tree's
attribute "findings", which `load_findings` reads.

Sources: see kernels/, mcmc_diagnostics.py and ppgen/engine/density/pathfinder.py.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from ppgen.data import tensors
from ppgen.engine import LogJoint, log_joint
from ppgen.engine.density.joint import FUSED_DIM, in_blocks
from ppgen.engine.density.laplace import LaplaceMarginal
from ppgen.engine.density.pathfinder import Density, Paths, pathfinder, pathfinder_low_rank
from ppgen.engine.density.pullback import Pullback
from ppgen.errors import PpgenError, whole_number
from ppgen.inference.evaluation.estimates import Evidence
from ppgen.inference.evaluation.posterior import Groups, name_in, tree_of
from ppgen.inference.evaluation.psis import of_draws, threshold
from ppgen.inference.sampling import kernels
from ppgen.inference.sampling.hamiltonian import density_of
from ppgen.inference.sampling.kernels import DENSE_DIM, Draws
from ppgen.inference.sampling.kernels.smc import systematic
from ppgen.inference.sampling.mcmc_init import FALL, REACH, runaway, starts
from ppgen.inference.sampling.prepared import Prepared, prepared, prior_of, somewhere
from ppgen.inference.sampling.through import base_starts, brought_back, guide_weights, through_guide
from ppgen.inference.sampling.weighted import score, tails
from ppgen.inference.verdicts.findings import FINE, LOOK, WRONG, Finding, store_findings, with_words
from ppgen.inference.verdicts.mcmc_diagnostics import began_anew, findings, with_derived
from ppgen.inference.verdicts.mode_search import unseen_modes
from ppgen.inference.verdicts.report_checks import of_model
from ppgen.program import Program
from ppgen.run import Run
from ppgen.run.trees import tree_record
from ppgen.sites import is_deterministic, observed_columns, sample_sites
from ppgen.structure import Site, Structure
from ppgen.terms import run as run_once

if TYPE_CHECKING:  # it takes half a second to import
    from xarray import DataTree

log = logging.getLogger("ppgen")

LEAPFROGS, LEAPFROGS_THROUGH = 6, 4  # of an iteration, and of one in a guide's coordinates; they decide on compiling
MOST_PREDICTED, LEAST_PREDICTED = 2**22, 1000  # values of all draws' predictions together; draws
LEAST_OF_TAILS, VALUES_OF_TAILS = 2000, 2**22  # draws, and their values, that the fall of tails is told by
WIDE = 64  # vectors at once in the search for modes
CLOSE = 0.5  # the least share of effective weights of draws by Laplace's method


@torch.no_grad()
def mcmc(
    program: Run | Program | Callable[..., Any], data: Any, kernel: str = "chees", *, chains: int | None = None,
    draws: int | None = None, warmup: int | None = None, metric: str = "auto", engine: str = "auto",
    precision: str | None = None, marginal: str | Sequence[str] = (), through: bool = False,
    noncentred: str | Sequence[str] = (), seed: int = 0, predictive: bool = True, prior: bool = True,
    report: Callable[[int], None] | None = None,
) -> DataTree:  # fmt: skip
    """Draws from p(z | x), every chain on its own, with what `posterior` gives beside a guide's draws.

    Args:
        program: a program, a run (its learned parameters are held), or a plain Pyro model. Its guide is not used,
            but by `through`.
        data: the columns, all rows.
        kernel: a name of `ppgen.inference.sampling.kernels`.
        chains, draws, warmup: 64, 250, 400 for chees (in more than 1000 dimensions 16, 1000, 400, of more than 50 000
            values of data 16, 400, 400, one by one 8, 500, 400); 4, 1000, 500 for nuts. A settled warm-up ends.
        metric: diag, dense (of nuts, and of chees in more than 200 dimensions: low-rank corrections), or auto: dense
            where the posterior is small, or, by chees, found to be correlated.
        engine: eager (one chain at a time), trace, compile, or auto: compile where the run is long enough.
        precision: 64-true or 32-true; None: that of the program's parameters, else 64-true, or 32-true where the
            program holds float32 tensors that do not go together with it.
        marginal: latents in a plate, near normal given the rest, that Laplace's method integrates out: chains are of
            the others, these are drawn afterwards, and all resampled by their weights (`ppgen.engine.density.laplace`).
        through: whether chains move in the coordinates of the run's guide, a normal or a flow of all latents, and begin
            at its draws: for posteriors whose shape a metric does not mend, as a funnel's (`engine.density.pullback`).
        noncentred: latents z ~ Normal(loc, scale), or of that kind, that chains move by u = (z - loc) / scale: there is
            no funnel where the data say little of z. "all": those whose scale depends on other latents,
            but for the program's `centred_latents`, as a formula has where the rows of a group say much.
        seed: of starts, draws and predictions.
        predictive, prior: with the groups posterior_predictive, and prior and prior_predictive.
        report: called with the number of iterations done (chees).

    Returns:
        Groups posterior, log_likelihood, log_prior, observed_data, constant_data, posterior_predictive, prior,
        prior_predictive, and sample_stats: lp (nats, unconstrained scale), energy, diverging, outside (refused, as
        log p is minus infinity there), acceptance_rate, n_steps, step_size.

    Raises:
        PpgenError: no latent; a discrete latent that cannot be summed out; improper priors that the data do not close;
            a guide to go through that is no map of one normal vector.

    >>> import pyro, torch, ppgen
    >>> from pyro.distributions import Normal
    >>> def model(x):
    ...     m = pyro.sample("m", Normal(0.0, 2.0))
    ...     with ppgen.rows(x):
    ...         pyro.sample("x", Normal(m, 1.0), obs=x)
    >>> tree = mcmc(model, {"x": torch.tensor([1.0, 2.0])}, chains=16, draws=100, warmup=100)
    >>> dict(tree["posterior"]["m"].sizes)
    {'chain': 16, 'draw': 100}
    """
    _numbers(kernel, metric, 0, 0, chains, draws, warmup)
    seed = int(seed)
    inner = (marginal,) if isinstance(marginal, str) else tuple(marginal)
    _require_one_way(kernel, inner, through, noncentred)
    with prepared(program, data, seed, precision, guide=through) as made:
        joint = somewhere(lambda: log_joint(made.program, made.data, engine=engine, noncentred=noncentred))
        structure = made.structure(joint)
        outer = _coordinates(joint, made.program, inner, through)
        steps = LEAPFROGS_THROUGH if through else LEAPFROGS
        C, S, W = _numbers_of(joint, outer, steps, made.data, kernel, metric, chains, draws, warmup)
        found = run_chains(outer, kernel, C, S, W, structure=structure, metric=metric, seed=seed, report=report)
        target = _density(outer, kernel, C, metric)
        said: list[Finding] = []
        if isinstance(outer, Pullback):
            said.append(guide_weights(outer, target, seed))
            found, outer, target = brought_back(outer, found), joint, _density(joint, kernel, C, metric)
        said += _runs_away(outer, joint.improper, found, structure.sites, target) + began_anew(found, outer.place)
        if isinstance(outer, LaplaceMarginal):
            found, close = _completed(outer, found, seed)
            said.append(close)
        tree = tree_of_draws(made, structure, joint, found, predictive, prior)
        said += _checks(made, joint, found, structure, kernel, metric, seed)
        said = with_derived(said, derived(tree, structure, joint))
    tree.attrs |= {
        "kernel": kernel, "marginal": ", ".join(inner), "through": int(through),
        "noncentred": ", ".join(joint.noncentred), "seed": seed, "warmup": W, **_attributes(found),
    }  # fmt: skip
    _say(tree, said + of_model(tree))
    return tree


def _attributes(found: Draws) -> dict[str, Any]:
    said: dict[str, Any] = {"metric": found.metric, "leapfrog_steps": found.steps}
    if found.evidence is not None:
        said |= {"log_evidence": found.evidence.log_z, "log_evidence_se": found.evidence.se}
    return said


def _say(tree: DataTree, said: Sequence[Finding]) -> None:
    """The records, in the tree's own words, in its attributes; what is not fine in the log as well."""
    said = with_words(tree, said)
    store_findings(tree, said)
    for finding in said:
        if finding.verdict != FINE:
            log.warning("%s", finding.told)
        elif finding.measure == "negligible_modes":
            log.info("%s", finding)


def _numbers(kernel: str, metric: str, dim: int, values: int, *given: int | None) -> list[int]:
    """Of chains, draws and warm-up: those that are given, else the kernel's for so many latents and values of data."""
    file = kernels.named(kernel)
    usual = file.DEFAULTS
    if given[:2] == (None, None):
        kind = "LARGE" if dim > kernels.LARGE_DIM else "LONG" if values > kernels.LONG_VALUES else "DEFAULTS"
        usual = getattr(file, kind, usual)
    if metric not in ("diag", "dense", "auto"):
        raise PpgenError(f"metric is {metric!r}; expected diag, dense or auto")
    numbers = [d if g is None else g for g, d in zip(given, usual, strict=True)]
    least = file.LEAST._asdict().items()
    return [whole_number(k, n, low, f" for kernel {kernel!r}") for (k, low), n in zip(least, numbers, strict=True)]


def _require_one_way(kernel: str, inner: Sequence[str], through: bool, noncentred: str | Sequence[str]) -> None:
    if noncentred and (inner or through):
        raise PpgenError(
            "chains move in one kind of coordinates: leave out noncentred (--noncentred), or "
            f"{'through (--through-guide)' if through else 'marginal (--marginal)'}"
        )
    if not through:
        return
    if inner:
        raise PpgenError(
            f"marginal names {', '.join(inner)}, and the guide that chains are to go through has a place for all "
            "latents; leave one of the two out (--marginal, --through-guide)"
        )
    if hasattr(kernels.named(kernel), "begin"):
        raise PpgenError(
            f"kernel {kernel!r} begins at places of its own, and takes no coordinates of a guide; take kernel='chees', "
            "or leave through (--through-guide) out"
        )


def _coordinates(
    joint: LogJoint, program: Program, inner: Sequence[str], through: bool
) -> LogJoint | LaplaceMarginal | Pullback:
    """What the chains are to be of."""
    if through:
        return through_guide(joint, program)
    return somewhere(lambda: LaplaceMarginal(joint, inner)) if inner else joint


def run_chains(
    joint: LogJoint | LaplaceMarginal | Pullback,
    kernel: str,
    chains: int,
    draws: int,
    warmup: int,
    *,
    structure: Structure | None = None,
    metric: str = "auto",
    seed: int = 0,
    report: Callable[[int], None] | None = None,
) -> Draws:
    """The chains alone, on the unconstrained scale: starts, Pathfinder, the kernel.

    Args:
        joint: the log joint; torch's default dtype is that of its data.
        structure: of the program, where it is known; else it is taken to have flat priors.
    """
    generator = torch.Generator().manual_seed(seed)
    sites = structure.sites if structure is not None else ()
    file = kernels.named(kernel)
    target = _density(joint, kernel, chains, metric)
    prior = None if isinstance(joint, Pullback) else prior_of(joint, sites)
    if isinstance(joint, Pullback):
        start = base_starts(target, chains, joint.dim, generator)
    elif hasattr(file, "begin"):
        start = file.begin(joint, chains, prior, generator)
    else:
        start = _paths(target, chains, joint.dim, prior, generator)
    return file.sample(joint, start, draws=draws, warmup=warmup, metric=metric, generator=generator, report=report)


def _paths(
    target: Density, chains: int, dim: int, prior: Callable[[int], Tensor] | None, generator: torch.Generator
) -> Paths:
    """Pathfinder's, by whole matrices where they are small."""
    start = starts(lambda u: target(u)[0], chains, dim, prior, generator)
    return (pathfinder if dim <= DENSE_DIM else pathfinder_low_rank)(target, start, generator=generator)


def _runs_away(
    joint: LogJoint | LaplaceMarginal, improper: Sequence[str], found: Draws, sites: Sequence[Site], target: Density
) -> list[Finding]:
    """Whether the density falls along the directions in which the draws spread.

    Where every prior is proper, what does not fall is a density that is unbounded somewhere, or draws that are much
    narrower than the posterior: a finding.
    """
    if found.evidence is not None and joint.proper:
        return []  # particles that began at a proper prior cannot run away
    dim = found.u.shape[-1]
    flat = found.u.reshape(-1, dim)
    sd = flat.std(0).clamp_min(1e-12)
    directions = [found.growth] if bool(found.growth.any()) else []
    if dim <= DENSE_DIM:
        correlation = torch.cov((flat / sd).mT).reshape(dim, dim)
        directions.append(torch.linalg.eigh(correlation)[1][:, -1] * sd)
    where = torch.stack(directions) if directions else sd.diag()[:0]
    if (one := runaway(lambda u: target(u)[0], flat.mean(0), sd, where)) is None:
        return []
    v, rise = one
    direction = _name_direction(joint.labels, v)
    if not improper:
        return [Finding("runs_away", direction, rise, -FALL, LOOK, {"sds": REACH[1]})]
    binary = [s.name for s in sites if s.role == "observed" and s.distribution in ("Bernoulli", "Binomial")]
    separated = "".join(
        f" (a column, or a combination of them, may separate the zeros from the ones of {n!r})" for n in binary[:1]
    )
    raise PpgenError(
        f"the posterior of {joint.program.name} cannot be normalised: its density does not fall along "
        f"{direction}{separated}; give the latent a proper prior, such as Normal(0, 10)"
    )


def _density(joint: LogJoint | LaplaceMarginal | Pullback, kernel: str, chains: int, metric: str) -> Density:
    """The log joint and its gradient at any number of vectors, by the graph that the kernel's chains use."""
    if hasattr(file := kernels.named(kernel), "begin"):
        return in_blocks(joint.value_and_grad, file.BLOCK)
    dim = joint.dim
    if not file.TOGETHER:
        return _one_by_one(joint)
    if dim > FUSED_DIM:
        return in_blocks(joint.value_and_grad, chains)
    return density_of(joint, chains, torch.eye(dim) if metric != "diag" and dim <= DENSE_DIM else torch.ones(dim))


def _numbers_of(
    joint: LogJoint, outer: LogJoint | LaplaceMarginal | Pullback, steps: int, data: Mapping[str, Any], kernel: str,
    metric: str, *given: int | None,
) -> list[int]:  # fmt: skip
    """As `_numbers`; fewer where such chains turn out to be run one after the other, as of a program that asks for
    values. The log joint is told of how many calls, at these steps a draw, it has to be fast."""
    values = sum(v.numel() for v in tensors(data).values())
    found, file = _numbers(kernel, metric, outer.dim, values, *given), kernels.named(kernel)
    joint.calls = steps * (found[1] + found[2]) * (1 if file.TOGETHER else found[0])
    if given[:2] == (None, None) and outer is joint and hasattr(file, "ALONE") and joint.dim <= FUSED_DIM:
        _density(joint, kernel, found[0], metric)(torch.zeros(found[0], joint.dim))
        return [*file.ALONE[:2], found[2]] if joint.alone else found
    return found


def _one_by_one(joint: LogJoint | LaplaceMarginal | Pullback) -> Density:
    def density(u: Tensor) -> tuple[Tensor, Tensor]:
        parts = [joint.value_and_grad(row) for row in u]
        return torch.stack([lp for lp, _ in parts]), torch.stack([g for _, g in parts])

    return density


def _checks(
    made: Prepared, joint: LogJoint, found: Draws, structure: Structure, kernel: str, metric: str, seed: int
) -> list[Finding]:
    """What is asked of the draws of every kernel, and a search for what they have not seen."""
    said, chains = [_remedied(f, made, joint) for f in findings(found, joint, joint.bounded)], found.u.shape[1]
    if found.evidence is not None:
        target, u = in_blocks(joint.value_and_grad), found.u.flatten(0, 1)
        said = [_heavier(f, joint, target, found) if f.measure == "tail_khat" else f for f in said]
        one = score(u, torch.full((len(u),), 1 / len(u)), target(u)[1], joint.labels)
        said.append(replace(one, details={**one.details, "of": "particles"}))
        return said + _unseen(joint, target, found, said, structure.sites, seed)
    enough = chains >= WIDE // 4 or joint.dim > FUSED_DIM
    wide = kernels.named(kernel).TOGETHER and enough and joint.engine != "eager"
    traced = joint if wide else log_joint(made.program, made.data, engine="trace", noncentred=joint.noncentred)
    target = _density(traced, "chees", chains if wide else WIDE, metric)
    said = [_heavier(f, traced, target, found) if f.measure == "tail_khat" else f for f in said]
    return said + _unseen(traced, target, found, said, structure.sites, seed)


def _remedied(f: Finding, made: Prepared, joint: LogJoint) -> Finding:
    """Of divergences with the latents that could be moved non-centred, and are not."""
    if f.measure != "divergences" or f.verdict == FINE:
        return f
    could = somewhere(lambda: log_joint(made.program, made.data, engine=joint.engine, noncentred="all")).noncentred
    return replace(f, details={**f.details, "centred": ", ".join(n for n in could if n not in joint.noncentred)})


def _heavier(tail_khat: Finding, joint: LogJoint, target: Density, found: Draws) -> Finding:
    """Of two estimates of the heaviest tail: by the largest draws, and by how the density falls among them."""
    if tail_khat.verdict != FINE:
        return tail_khat
    u = found.u.flatten(0, 1)
    every = -(-len(u) // max(LEAST_OF_TAILS, VALUES_OF_TAILS // u.shape[1]))
    u, chains = u[::every], torch.arange(found.u.shape[1]).repeat(len(found.u))[::every]
    try:
        known = (found.stats["lp"].flatten()[::every], found.g.flatten(0, 1)[::every]) if found.g is not None else None
        w = torch.full((len(u),), 1 / len(u)).to(u)
        lp, g = known or target(u)
        if score(u, w, g, joint.labels).verdict != FINE:  # steps or edges, which no slope tells
            return tail_khat
        by_slope = tails(joint, u, w, lp, g, target, at_edges=-math.inf, chains=chains)
    except PpgenError:  # it cannot be traced
        return tail_khat
    return by_slope if by_slope.verdict != FINE else tail_khat


def _completed(outer: LaplaceMarginal, found: Draws, seed: int) -> tuple[Draws, Finding]:
    """Draws of all latents, and how close to their posterior Laplace's method is: weights of p(φ, θ) / (L(φ) N(θ)).

    Each chain is resampled by its weights, in its order, so that what Laplace's method is off by, which hundreds of
    groups add up to a part of an sd of φ, is not in the draws; log Z is that of L(φ) times the mean weight.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = [outer.complete(u, generator) for u in found.u]
    log_w = torch.stack([w for _, w in parts]).double()  # (draws, chains)
    smooth, khat, ess = of_draws(log_w.flatten().numpy())
    most, share = threshold(log_w.numel()), ess / log_w.numel()
    graded = WRONG if khat > 1 or share < 0.1 else LOOK if not khat <= most or share < CLOSE else FINE
    said = {"share": share, "least": CLOSE, "latents": ", ".join(outer.inner)}
    one = Finding("laplace", outer.inner[0], khat if math.isfinite(khat) else share, most, graded, said)
    u, by_chain = torch.stack([u for u, _ in parts]), torch.as_tensor(smooth).reshape(log_w.shape).mT
    index = systematic(by_chain, generator)
    u = u.transpose(0, 1).flatten(0, 1)[index].reshape(*by_chain.shape, -1).transpose(0, 1)
    return found._replace(u=u, g=None, evidence=found.evidence and _weighed(found.evidence, log_w.flatten())), one


def _weighed(evidence: Evidence, log_w: Tensor) -> Evidence:
    """log Z of draws that are weighted once more."""
    mean = float(torch.logsumexp(log_w, 0)) - math.log(len(log_w))
    relative = float((log_w - log_w.max()).exp().std()) / math.exp(mean - float(log_w.max()))
    return Evidence(evidence.log_z + mean, math.hypot(evidence.se, relative / len(log_w) ** 0.5))


def _unseen(
    joint: LogJoint, target: Density, found: Draws, checks: Sequence[Finding], sites: Sequence[Site], seed: int
) -> list[Finding]:
    """Whether the posterior has mass where no chain went; nothing where there are too many dimensions to search.

    The joint is a traced one: thousands of single runs of an eager program would take longer than its chains.
    """
    effective = next(f.figure for f in checks if f.measure == "ess_bulk")
    chains = float(found.u.shape[1])
    independent = effective if effective > chains else chains
    prior = prior_of(joint, sites)
    try:
        one = unseen_modes(
            target,
            found.u.flatten(0, 1),
            independent,
            evidence=found.evidence,
            prior=prior,
            name=joint.place,
            seed=seed,
        )
    except PpgenError as e:  # it cannot be traced
        one = Finding("unseen_modes", "", math.nan, math.nan, LOOK, {"reason": str(e).split(";")[0]})
    return [] if one is None else [one]


def derived(tree: DataTree, structure: Structure, joint: LogJoint) -> dict[str, np.ndarray]:
    """The draws of sites that are functions of the vector that was drawn, and no place in it: deterministic ones, and
    latents that are non-centred."""
    names = {s.name for s in structure.sites if s.role == "deterministic"}.union(joint.noncentred)
    own: Any = tree["posterior"]
    return {n: own[name_in(tree, n)].values for n in names if name_in(tree, n) in own}


def tree_of_draws(
    made: Prepared, structure: Structure, joint: LogJoint, found: Draws, predictive: bool = True, prior: bool = True
) -> DataTree:
    """The draws through the model: deterministic sites, log-likelihood, predictions.

    Log-likelihoods, predictions and draws from the prior are made for every draw as long as they have no more than
    `MOST_PREDICTED` values; else for evenly spaced ones of each chain, `LEAST_PREDICTED` at least, whose numbers are
    their coordinate. Log-likelihoods and predictions of rows are then in float32.
    """
    from xarray import DataTree

    run, program, data, _ = made
    S, C, _ = found.u.shape
    latents = {n: v.movedim(1, 0) for n, v in joint.unflatten(found.u).items()}
    here = sample_sites(somewhere(lambda: run_once(program, data, guide=False)).p, factors=True)
    values = sum(s["value"].numel() for s in here.values() if s["is_observed"] and not is_deterministic(s))
    every = max(1, min(-(-C * S * values // MOST_PREDICTED), C * S // LEAST_PREDICTED, S))

    def groups(every: int, **what: bool) -> dict[str, dict[str, np.ndarray]]:
        own = {n: v[:, ::every].flatten(0, 1) for n, v in latents.items()}
        drawn = Groups(program, data, structure, latents={n: v[0] for n, v in own.items()}, **what)
        tensors = drawn(len(next(iter(own.values()))), own)
        return {
            g: {n: v.reshape(C, -1, *v.shape[1:]).numpy() for n, v in group.items()} for g, group in tensors.items()
        }

    def both(prior: bool) -> dict[str, dict[str, np.ndarray]]:
        if every == 1:
            return groups(1, predictive=predictive, prior=prior)
        few = groups(every, predictive=predictive, prior=prior, posterior=False, single=True)
        return groups(1, predictive=False, prior=False, pointwise=False) | few

    try:
        arrays = both(prior)
    except LinAlgError:  # at some draw from the prior
        if not prior:
            raise
        log.info("%s cannot be run at every draw from its prior: the tree has no prior groups", program.name)
        arrays = both(False)
    arrays["sample_stats"] = {n: v.T.numpy() for n, v in found.stats.items()}
    tree = tree_of(program, structure, here, arrays, data)
    if every > 1:
        log.info(
            "log-likelihoods and predictions are of every %dth draw: predict(tree, data) makes predictions of all",
            every,
        )
        for name in ("log_likelihood", "posterior_predictive", "prior", "prior_predictive"):
            if name in tree.children:
                tree[name] = DataTree(tree[name].to_dataset().assign_coords(draw=np.arange(0, S, every)))
    tree.attrs |= tree_record(run, program, structure, data, observed_columns(here, data))
    return tree


def _name_direction(labels: Sequence[str], v: Tensor) -> str:
    """`b[2] to +inf`, or `a up and b down`: which entries of which latents a direction moves.

    Args:
        labels: of the entries of the unconstrained vector.
    """
    big = (v.abs() > 0.2 * v.abs().max()).nonzero()[:, 0].tolist()
    if len(big) == 1:
        return f"{labels[big[0]]} to {'+' if v[big[0]] > 0 else '-'}inf on its unconstrained scale"
    named = [f"{labels[i]} {'up' if v[i] > 0 else 'down'}" for i in big[:4]]
    more = f" and {len(big) - 4} more" if len(big) > 4 else ""
    return f"{', '.join(named)}{more}, together"
