"""One posterior, by the cheapest method that can be believed: a ladder of methods, each with its checks.

    gaussian   batch and match from Pathfinder's paths, no gradient step; importance weights; places that were not
               seen become further normals of the proposal
    noncentred the same in the coordinates u = (z - loc) / scale of latents whose scale depends on other latents, and
               chains of ChEES-HMC in these where the normals do not do
    chees      ChEES-HMC, 64 chains, or 16 of long data
    laplace    the normals for the few latents that others depend on, which are integrated out by Laplace's method,
               drawn given the few, and weighed again
    flow       a flow guide, fitted, its draws weighted
    smc        tempered SMC: where modes are separated

Where chains take long, as of more than 300 latents, or one vector at a time, `laplace` comes before `noncentred`, and
`flow` before `chees`.

A rung is a function of a `_Problem` that gives an `_Outcome`. The first outcome that is settled is the answer: every
check is fine, or what is not is a fact of the posterior (a latent without an sd), which no other method would change.
Where none is, the one of the best verdict is returned, and says so. Whether the model gives data like the observed is
asked at the end, of the answer: it is no question of the method (`ppgen/inference/verdicts/report_checks.py`).

Sources: `ppgen/engine/density/batch_and_match.py`, `ppgen/engine/density/pathfinder.py`, `weighted.py`, `kernels/`.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppgen.engine import LogJoint, log_joint
from ppgen.engine.density.batch_and_match import MOST, Gaussian, batch_and_match, best_gaussian, gaussian_of_draws
from ppgen.engine.density.joint import BLOCK, in_blocks
from ppgen.engine.density.laplace import LaplaceMarginal
from ppgen.engine.density.pathfinder import Density
from ppgen.errors import PpgenError
from ppgen.inference.evaluation.posterior import posterior
from ppgen.inference.evaluation.psis import resampled
from ppgen.inference.evaluation.sample import as_program, program_of
from ppgen.inference.sampling.kernels import Draws
from ppgen.inference.sampling.mcmc import derived, mcmc, tree_of_draws
from ppgen.inference.sampling.mcmc_init import starts
from ppgen.inference.sampling.prepared import Prepared, prepared, prior_of, somewhere, vectors_of
from ppgen.inference.sampling.weighted import (
    ALIKE,
    Drawn,
    Mixture,
    Weighted,
    completed,
    importance_weights,
    is_unbounded,
    mixture_of,
)
from ppgen.inference.training.fit import fit
from ppgen.inference.verdicts.findings import (
    FINE,
    OF_MODEL,
    VERDICTS,
    Finding,
    is_settled,
    load_findings,
    model_verdict,
    store_findings,
    verdict,
    with_words,
)
from ppgen.inference.verdicts.mcmc_diagnostics import with_derived
from ppgen.inference.verdicts.moved import moved
from ppgen.inference.verdicts.report_checks import of_model
from ppgen.program import Program
from ppgen.run import Run
from ppgen.structure import Structure

if TYPE_CHECKING:  # it takes half a second to import
    from xarray import DataTree

log = logging.getLogger("ppgen")

CALLS, WORTH = 500, 1.0  # of the log joint, and the seconds for all of them from which on it is compiled
DRAWS = 4000  # a round
KEPT = 4000  # draws of the answer, resampled by their weights
ROUNDS = 4  # of draws, at the most
DOUBLED = 2  # times that draws are doubled for the sake of a latent's tails
MIXTURES = 8  # proposals that are tried, each with the places that the one before had not seen
STARTS = 16
PLACES = 256  # where the log joint is finite, for the moments of a first normal where paths find none
FEW = 50  # latents that remain where the others are integrated out
STEPS, RATE, PARTICLES = 600, 0.01, 16  # of the flow's fit


class _Problem(NamedTuple):
    """What a rung is given.

    Attributes:
        given: the program or run, and its data, as the user passed them.
        made: the same, set up.
        joint, target: the log joint, and itself and its gradient at any number of vectors.
        ends: when it has to be done, by `time.monotonic`; None: whenever.
        groups: which groups the tree has, as keywords.
    """

    given: tuple[Any, Any]
    made: Prepared
    structure: Structure
    joint: Any  # LogJoint | LaplaceMarginal
    target: Density
    seed: int
    ends: float | None
    groups: dict[str, Any]

    def in_time(self, *_: Any) -> None:
        """
        Raises:
            OutOfTime: the budget is spent.
        """
        if self.ends is not None and time.monotonic() > self.ends:
            raise _OutOfTime


class _Outcome(NamedTuple):
    """The draws of a rung as a tree, when they are asked for, and its findings."""

    tree: Callable[[], DataTree]
    findings: list[Finding]
    joint: Any  # LogJoint | LaplaceMarginal: whose vector was drawn

    @property
    def verdict(self) -> str:
        return verdict(self.findings)

    @property
    def settled(self) -> bool:
        return is_settled(self.findings)


class _OutOfTime(PpgenError):
    """The budget is spent: no fault of the program that it ends."""


Rung = Callable[[_Problem], _Outcome]


def infer(
    program: Run | Program | Callable[..., Any],
    data: Any,
    *,
    budget: float | None = None,
    seed: int = 0,
    predictive: bool = True,
    prior: bool = True,
    report: Callable[[str], None] | None = None,
) -> DataTree:
    """Draws from p(z | x) by the first method whose draws can be believed, with its name and its certificate.

    Args:
        program: a program, a plain Pyro model, or a run, whose learned parameters are held.
        data: the columns, all rows.
        budget: seconds after which no further method is begun, and one that can be stopped is.
        seed: of everything.
        predictive, prior: with the groups posterior_predictive, and prior and prior_predictive.
        report: called with the name of each method as it begins.

    Returns:
        What `posterior` and `mcmc` give, and in its attributes: method; verdict, the worst of the findings on the draws
        ("fine": to be believed; "look"; "wrong"); model, what the data say of the model ("look": they contradict it);
        seconds; tried, JSON of each method with its verdict, its seconds, and what was not fine; findings.

    Raises:
        PpgenError: parameters that were not learned yet; no latent; a discrete latent that cannot be summed out; a
            posterior that cannot be normalised; no method that came to an end.

    >>> import pyro, torch, ppgen
    >>> from pyro.distributions import Normal
    >>> def model(x):
    ...     m = pyro.sample("m", Normal(0.0, 2.0))
    ...     with ppgen.rows(x):
    ...         pyro.sample("x", Normal(m, 1.0), obs=x)
    >>> tree = infer(model, {"x": torch.tensor([1.0, 2.0])})
    >>> tree.attrs["method"], tree.attrs["verdict"]
    ('gaussian', 'fine')
    """
    program = as_program(program)
    if budget is not None and not budget >= 0:
        raise PpgenError(f"budget is {budget!r}; expected seconds, 0 or more (--budget)")
    seed, began = int(seed), time.monotonic()
    with prepared(program, data, seed, learned=True) as made:
        joint = _joint(made)
        structure = made.structure(joint)
        ends = None if budget is None else began + budget
        groups = {"predictive": predictive, "prior": prior}
        target = joint.value_and_grad if joint.engine == "eager" else in_blocks(joint.value_and_grad)
        problem = _Problem((program, data), made, structure, joint, target, seed, ends, groups)
        name, outcome, tried = _climb(problem, report)
        tree = outcome.tree()
        said = with_derived(outcome.findings, derived(tree, structure, outcome.joint))
        outcome = outcome._replace(findings=with_words(tree, said))
        seen = [f for f in load_findings(tree) if f.measure in OF_MODEL] or with_words(tree, of_model(tree))
        tried = [t | {"why": [_in_words(tree, why) for why in t["why"]]} for t in tried]
        tried = [t | {"verdict": outcome.verdict} if t["method"] == name else t for t in tried]
    seconds = time.monotonic() - began
    tree.attrs |= {
        "method": name, "verdict": outcome.verdict, "model": model_verdict(seen), "seconds": round(seconds, 3),
        "seed": seed, "tried": json.dumps(tried, ensure_ascii=False),
    }  # fmt: skip
    store_findings(tree, [*outcome.findings, *seen])
    for finding in seen:
        if finding.verdict != FINE:
            log.warning("%s", finding.told)
    if not outcome.settled:
        worst = "; ".join(str(f) for f in outcome.findings if f.verdict != FINE)
        log.warning("no method gave draws that can be believed; these are of %s: %s", name, worst)
    return tree


def _climb(problem: _Problem, report: Callable[[str], None] | None) -> tuple[str, _Outcome, list[dict[str, Any]]]:
    """The name and outcome of the first rung that is settled, or the best; and what was tried, with the findings why.

    Raises:
        PpgenError: no rung came to an end.
    """
    tried: list[dict[str, Any]] = []
    best: tuple[str, _Outcome] | None = None
    ladder = LADDER if problem.joint.dim <= MOST and problem.joint.engine != "eager" else SLOW
    for rung in ladder:
        name = rung.__name__
        began = time.monotonic()
        try:
            problem.in_time()
            if report is not None:
                report(name)
            outcome = rung(problem)
            why = [] if outcome.settled else [f for f in outcome.findings if f.verdict != FINE]
            tried.append({"method": name, "verdict": outcome.verdict, "why": why})
        except _OutOfTime:
            tried.append({"method": name, "verdict": "none", "why": ["the budget was spent"]})
            outcome = None
        except (PpgenError, torch.linalg.LinAlgError) as e:  # type: ignore[attr-defined]
            if name == ladder[-1].__name__ and best is None:
                raise
            tried.append({"method": name, "verdict": "none", "why": [str(e)]})
            outcome = None
        tried[-1]["seconds"] = round(time.monotonic() - began, 3)
        if outcome is None:
            continue
        if outcome.settled:
            return name, outcome, tried
        if best is None or VERDICTS.index(outcome.verdict) >= VERDICTS.index(best[1].verdict):
            best = name, outcome
    if best is None:
        raise PpgenError(f"no method came to an end within the budget: {_said(tried)}; give more seconds (--budget)")
    return *best, tried


def _in_words(tree: DataTree, why: Finding | str) -> str:
    return why if isinstance(why, str) else str(with_words(tree, [why])[0])


def _said(tried: Sequence[Mapping[str, Any]]) -> str:
    return "; ".join(f"{t['method']}: {str(t['why'][0]).split(';')[0] if t['why'] else t['verdict']}" for t in tried)


def _joint(made: Prepared) -> LogJoint:
    """The log joint, traced; compiled where its calls take so long that it is worth it; as it stands where an operation
    takes one vector at a time."""
    joint = somewhere(lambda: log_joint(made.program, made.data))
    u = torch.zeros(BLOCK, joint.dim)
    try:
        before, _ = joint.value_and_grad(u)
    except PpgenError as e:
        log.info("%s; it is run one vector at a time", e)
        joint = log_joint(made.program, made.data, engine="eager")
        joint.require_same_sites()
        return joint
    began = time.perf_counter()
    again, _ = joint.value_and_grad(u)
    took = time.perf_counter() - began
    apart = torch.nan_to_num(again - before, nan=0.0, posinf=0.0, neginf=0.0).abs().max()
    if float(apart) > 1e-3 * (1 + float(torch.nan_to_num(before[0].abs(), posinf=0.0))):
        raise PpgenError(
            f"the log joint of {made.program.name} is drawn anew at each call (two at one place differ by {apart:.2g} "
            "nats), and cannot be climbed or sampled; give each site a log_prob that is a function of its value"
        )
    if CALLS * took < WORTH:
        return joint
    return somewhere(lambda: log_joint(made.program, made.data, engine="auto", calls=CALLS))


# -- the rungs -----------------------------------------------------------------------------------------------


@torch.no_grad()
def gaussian(problem: _Problem) -> _Outcome:
    """Weighted draws of a normal that batch and match finds, and of further ones where it has missed places."""
    if problem.joint.dim > MOST:
        raise PpgenError(f"{problem.joint.dim} latents are too many for a normal with all covariances, at most {MOST}")
    return _outcome(problem, _with_tails(problem, *_by_normals(problem)))


def noncentred(problem: _Problem) -> _Outcome:
    """`gaussian`, where hierarchical latents are independent of their scale before the data are seen; else chains."""
    made = problem.made
    joint = somewhere(lambda: log_joint(made.program, made.data, noncentred="all"))
    if not joint.noncentred:
        raise PpgenError(
            f"{made.program.name} has no latent whose scale depends on other latents, but for those of which the data "
            "say so much that they are better centred"
        )
    if joint.dim <= MOST:
        found = gaussian(problem._replace(joint=joint, target=in_blocks(joint.value_and_grad)))
        if found.settled:
            return found
    return _sampled(problem, "chees", joint)


@torch.no_grad()
def laplace(problem: _Problem) -> _Outcome:
    """Weighted draws of the few latents that others depend on, by normals, and of the others given them."""
    joint = problem.joint
    many = [n for n, b in joint.blocks.items() if b.stop - b.start > 1 and is_unbounded(b)]
    few = sum(b.stop - b.start for n, b in joint.blocks.items() if n not in many)
    if not many or not 0 < few <= FEW:
        raise PpgenError(f"{problem.made.program.name} has no few latents that many others depend on")
    outer = somewhere(lambda: LaplaceMarginal(joint, many))
    of_few = problem._replace(joint=outer, target=in_blocks(outer.value_and_grad))
    generator = torch.Generator().manual_seed(problem.seed)
    found, drawn = _by_normals(of_few, adapt=True)
    done = completed(found, drawn, outer, problem.target, generator)
    for _ in range(ROUNDS - 1):  # normals nearer to the marginal as the weights have it
        if done.findings[0].verdict == FINE or done.few or done.effective < ALIKE:
            break
        problem.in_time()
        adapted = drawn.mixture.adapted(done.u[:, outer.places], done.w)
        drawn = Drawn.of(adapted, of_few.target, DRAWS, generator)
        done = completed(found, drawn, outer, problem.target, generator)
    return _outcome(problem, done)


def _by_normals(problem: _Problem, adapt: bool = False) -> tuple[Weighted, Drawn]:
    joint, target, seed = problem.joint, problem.target, problem.seed
    generator = torch.Generator().manual_seed(seed)
    first = best_gaussian(target, joint.dim, starts=STARTS, seed=seed)
    if first is None:  # every normal on the way reaches beyond the support
        prior = prior_of(joint, problem.structure.sites)
        u = starts(lambda u: target(u)[0], PLACES, joint.dim, prior, generator)
        first, adapt = gaussian_of_draws(target, u, generator), True
    parts = [(first.loc, first.scale_tril)]
    for left in reversed(range(MIXTURES)):
        mixture = mixture_of(parts, target, generator)
        found, drawn = _enough(problem, mixture, generator, adapt)
        if found.settled or not found.unseen or not left:
            break
        problem.in_time()
        parts = list(zip(mixture.means, mixture.roots, strict=True))
        parts += [_matched(target, m, L, generator) for m, L in found.unseen]
    return found, drawn


def _enough(problem: _Problem, mixture: Mixture, generator: torch.Generator, adapt: bool) -> tuple[Weighted, Drawn]:
    """Draws of the mixture, weighed; more of them where that would do; to adapt, else of one that is nearer."""
    drawn = Drawn.of(mixture, problem.target, DRAWS, generator)
    for _ in range(ROUNDS - 1):
        found = _weigh(problem, drawn, further=False)
        if not found.few and (not adapt or found.findings[0].verdict == FINE or found.effective < ALIKE):
            break
        problem.in_time()
        mixture = mixture if found.few else mixture.adapted(found.u, found.w)
        drawn = drawn.joined(Drawn.of(mixture, problem.target, DRAWS, generator))
    return _weigh(problem, drawn, further=True), drawn


def _with_tails(problem: _Problem, found: Weighted, drawn: Drawn) -> Weighted:
    """More draws of the same normals, where nothing is amiss but that too few of them are in a latent's tails."""
    generator = torch.Generator().manual_seed(problem.seed + 1)
    for _ in range(DOUBLED):
        if not found.settled or not any(f.measure == "tail_khat" and math.isnan(f.figure) for f in found.findings):
            break
        problem.in_time()
        drawn = drawn.extended(problem.target, len(drawn.u), generator)
        found = found.renewed(_weigh(problem, drawn, further=False), problem.joint, problem.target, drawn.g)
    return found


def _weigh(problem: _Problem, drawn: Drawn, further: bool) -> Weighted:
    prior = prior_of(problem.joint, problem.structure.sites)
    log_q = drawn.mixture.log_prob(drawn.u)
    return importance_weights(
        problem.joint, problem.target, drawn.u, log_q, at=(drawn.lp, drawn.g), prior=prior, seed=problem.seed,
        further=further,
    )  # fmt: skip


def _matched(target: Density, m: Tensor, L: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    q = batch_and_match(target, Gaussian(m, L, -torch.inf), generator)
    return q.loc, q.scale_tril


def _outcome(problem: _Problem, found: Weighted) -> _Outcome:
    """The draws resampled by their weights: one chain of independent ones."""

    def tree() -> DataTree:
        rng = np.random.default_rng(problem.seed)
        index = torch.as_tensor(resampled(found.w.double().log().numpy(), KEPT, rng))
        u, lp = found.u[index][:, None], found.lp[index][:, None]
        draws = Draws(u, {"lp": lp}, 0, torch.zeros(problem.joint.dim), "dense")
        return tree_of_draws(problem.made, problem.structure, problem.joint, draws, **problem.groups)

    return _Outcome(tree, found.findings, problem.joint)


def flow(problem: _Problem) -> _Outcome:
    """Weighted draws of a flow guide."""
    run = copy.deepcopy(problem.given[0])
    fitted = fit(
        program_of(run), problem.made.data, guide="flow", steps=STEPS, lr=RATE, schedule="cosine", particles=PARTICLES,
        precision="64-true" if torch.get_default_dtype() == torch.float64 else "32-true", seed=problem.seed,
        objective="enumerate" if problem.structure.summed else None, report=problem.in_time, log_every=20,
    )  # fmt: skip
    drawn = posterior(fitted, problem.made.data, draws=2 * DRAWS, predictive=False, prior=False, seed=problem.seed)
    if "sample_stats" not in drawn:
        raise PpgenError("the flow's draws have no weights")
    joint: Any = problem.joint
    stats: Any = drawn["sample_stats"]
    u = vectors_of(joint, drawn)[0]
    log_w = torch.as_tensor((stats["log_p"] - stats["log_q"]).values[0])
    if log_w.dim() > 1:
        log_w = log_w.sum(-1)
    finite = torch.isfinite(u).all(-1)
    u = torch.where(finite[:, None], u, 0.0)
    log_q = torch.where(finite, problem.target(u)[0] - log_w.to(u), -torch.inf)
    prior = prior_of(joint, problem.structure.sites)
    found = importance_weights(joint, problem.target, u, log_q, prior=prior, seed=problem.seed)
    if found.settled:  # a flow has no heavy part that reaches beyond what it has learned
        still = moved(problem.target, found.u, found.w, joint.labels, seed=problem.seed)
        found = found._replace(findings=[*found.findings, still])
    return _outcome(problem, found)


def chees(problem: _Problem) -> _Outcome:
    """Chains, from starts of their own: those of a guide that was not believed would be where it was."""
    return _sampled(problem, "chees", problem.joint)


def smc(problem: _Problem) -> _Outcome:
    """Islands of particles, by tempering: every mode in its proportion."""
    return _sampled(problem, "smc", problem.joint)


def _sampled(problem: _Problem, kernel: str, joint: LogJoint) -> _Outcome:
    given, data = problem.given
    level, quiet = log.level, logging.ERROR
    log.setLevel(quiet)  # what is not fine is said of the answer
    try:
        made = mcmc(
            given, data, kernel, noncentred=joint.noncentred, seed=problem.seed, report=problem.in_time,
            **problem.groups,
        )  # fmt: skip
    finally:
        log.setLevel(level)
    own = [f for f in load_findings(made) if f.measure not in OF_MODEL]  # which no method changes
    return _Outcome(lambda: made, own, joint)


LADDER: tuple[Rung, ...] = (gaussian, noncentred, chees, laplace, flow, smc)
SLOW: tuple[Rung, ...] = (gaussian, laplace, noncentred, flow, chees, smc)  # where chains take long
