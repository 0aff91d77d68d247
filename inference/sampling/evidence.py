r"""log p(x) of a model whose latents are shared by the rows, from both sides, and between them.

    elbo     E_N[log p̃ − log N]            N: the normal of the draws; a lower bound
    iw       log 1/K Σ_k w_k               w = p̃ / q; a lower bound in expectation
    bridge   Z = E_q[p̃ h] / E_p[q h]       an estimate (`bridge.py`)
    smc      Π_t mean w_t                  an estimate (`kernels/smc.py`)
    eubo     E_p[log w]                    = log p(x) + KL(p ‖ q); an upper bound

p̃(u) = p(x, z(u)) |det ∂z/∂u|. q is a mixture of normals and t distributions: of half of the posterior's draws, and of
the places where climbs end. The other half of the draws makes the bridge and the upper bound: q does not know them. Of
a run, elbo and iw are those of its guide.

The upper bound is one as far as the draws are draws of the posterior: those that miss a mode bound what they have seen.

Sources: Importance weighted autoencoders (Burda et al. 2016, arXiv:1509.00519); Sandwiching the marginal likelihood
using bidirectional Monte Carlo (Grosse, Ghahramani, Adams 2015, arXiv:1511.02543); Beyond ELBOs: a large-scale
evaluation of variational methods for sampling (Blessing et al. 2024, arXiv:2406.07423).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from ppgen.engine import LogJoint, log_joint
from ppgen.engine.density.joint import in_blocks
from ppgen.engine.density.pathfinder import Density
from ppgen.errors import PpgenError
from ppgen.inference.evaluation.estimates import Bound, Evidence, warn_of_scales
from ppgen.inference.evaluation.loglik import loglik
from ppgen.inference.evaluation.posterior import name_in
from ppgen.inference.evaluation.sample import as_program
from ppgen.inference.sampling.bridge import bridge_sampling
from ppgen.inference.sampling.hamiltonian import root_of
from ppgen.inference.sampling.kernels import DENSE_DIM
from ppgen.inference.sampling.kernels.smc import BLOCK
from ppgen.inference.sampling.mcmc import mcmc
from ppgen.inference.sampling.prepared import Prepared, prepared, prior_of, somewhere, vectors_of
from ppgen.inference.sampling.weighted import Mixture, mixture_of
from ppgen.inference.verdicts.findings import FINE, WRONG, Finding, load_findings
from ppgen.inference.verdicts.mcmc_diagnostics import statistic
from ppgen.inference.verdicts.mode_search import climbs, places, starts_around
from ppgen.program import Program
from ppgen.run import Run
from ppgen.sites import is_factor, sample_sites
from ppgen.terms import run as run_once

if TYPE_CHECKING:  # it takes half a second to import
    from xarray import DataTree

log = logging.getLogger("ppgen")

WEIGHTS = 4000  # draws of q
ROOM = -5.0  # standard errors of what should be above, less what should be below


class EvidenceBounds(NamedTuple):
    """What `evidence` returns.

    Attributes:
        bounds: elbo, iw, bridge, smc where it was run, eubo; each one figure for all rows, in nats.
        flat: latents whose prior is flat, or scaled or masked: no density. log p(x) then is known up to a constant that
            no data tell, and is not to be compared with another model's.
        observed: the observed values that count, and how much each does, (2, values): models are compared on the same.
        findings: of the posterior's draws, and whether the bounds leave room for log p(x).
    """

    bounds: tuple[Bound, ...]
    flat: tuple[str, ...]
    observed: np.ndarray
    findings: list[Finding]

    def __repr__(self) -> str:  # no arrays
        return "\n".join(
            [*(f"{r['name']}: {r['nats']:.2f} ± {r['se']:.2g}" for r in self.table()), *map(str, self.findings)]
        )

    @property
    def best(self) -> Bound:
        """The estimate with the least error."""
        return min((b for b in self.bounds if b.kind == "estimate"), key=lambda b: float(b.se[0]))

    def table(self) -> list[dict[str, Any]]:
        """One dict a figure: what `ppgen evidence` prints."""
        return [{"name": b.name, "kind": b.kind, "nats": float(b.values[0]), "se": float(b.se[0])} for b in self.bounds]


@torch.no_grad()
def evidence(
    program: Run | Program | Callable[..., Any],
    data: Any,
    *,
    draws: DataTree | None = None,
    seed: int = 0,
    report: Callable[[int], None] | None = None,
) -> EvidenceBounds:
    """log p(x), latents integrated out: bounds from both sides, and estimates between them, with their errors.

    Args:
        program: a program, a plain Pyro model, or a run: its learned parameters are held, and its guide gives the
            lower bounds.
        data: the columns, all rows.
        draws: of the posterior, a tree of `mcmc` or `infer` for the same program and data; None: tempered SMC draws
            them, and gives an estimate of its own.
        seed: of everything.
        report: called with the number of moves done (SMC).

    Raises:
        PpgenError: what `mcmc` raises; draws of another program, or of a guide.

    >>> import pyro, torch
    >>> from pyro.distributions import Normal
    >>> def model(x):
    ...     m = pyro.sample("m", Normal(0.0, 2.0))
    ...     pyro.sample("x", Normal(m, 1.0), obs=x)
    >>> found = evidence(model, {"x": torch.tensor(1.0)})
    >>> exact = float(Normal(0.0, 5.0**0.5).log_prob(torch.tensor(1.0)))
    >>> all(abs(float(b.values[0]) - exact) < 0.02 for b in found.bounds)
    True
    """
    program, seed = as_program(program), int(seed)
    smc = draws is None
    if draws is None:
        draws = mcmc(program, data, "smc", seed=seed, predictive=False, prior=False, report=report)
    with prepared(program, data, seed) as made:
        joint = somewhere(lambda: log_joint(made.program, made.data))
        target = in_blocks(joint.value_and_grad, BLOCK)
        u = _unconstrained(joint, draws)
        structure = made.structure(joint)
        generator = torch.Generator().manual_seed(seed)
        half = u[::2].flatten(0, 1)
        normal = half.mean(0), root_of(torch.cov(half.mT).reshape(joint.dim, -1), len(half))
        q = _proposal(target, normal, half, prior_of(joint, structure.sites), generator)
        bounds = [_elbo(target, normal, generator), *_bounds(target, q, u[1::2], generator)]
        flat = joint.improper
        once = somewhere(lambda: run_once(made.program, made.data, guide=False))
        sites = sample_sites(once.p, factors=True, deterministic=False)
        observed = _observed(sites)
        if not smc:
            _require_same(observed, draws)
    if smc:
        own = Evidence(float(draws.attrs["log_evidence"]), float(draws.attrs["log_evidence_se"]))
        bounds = [*bounds[:-1], _bound("smc", "estimate", own), bounds[-1]]
    if isinstance(program, Run) and program.program.has_guide:
        bounds[:2] = _of_guide(program, made, seed)
    else:
        warn_of_scales(sites)
    said = [*load_findings(draws), _room(bounds)]
    if said[-1].verdict != FINE:
        log.warning("%s", said[-1].told)
    return EvidenceBounds(tuple(bounds), flat, observed, said)


def _observed(sites: Mapping[str, Any]) -> np.ndarray:
    """Sorted by value: the programs may name and order them otherwise."""
    values, weights = [np.zeros(0)], [np.zeros(0)]
    for site in sites.values():
        if not site["is_observed"] or is_factor(site):
            continue
        shape = site["value"].shape
        weight = torch.as_tensor(site["scale"]) * torch.as_tensor(True if site["mask"] is None else site["mask"])
        weight = weight.reshape(weight.shape + (1,) * site["fn"].event_dim).expand(shape)
        values.append(site["value"].double().numpy().ravel())
        weights.append(weight.double().numpy().ravel())
    both = np.stack([np.concatenate(values), np.concatenate(weights)])
    both = both[:, both[1] != 0]
    return both[:, np.lexsort(both[::-1])]


def _require_same(observed: np.ndarray, tree: DataTree) -> None:
    """Refuses draws that are of other data."""
    if "observed_data" not in tree.children:
        return
    group = tree["observed_data"].dataset.data_vars.values()
    theirs = np.concatenate([np.zeros(0), *(v.values.ravel().astype(float) for v in group)])
    found = np.isin(observed[0].astype(np.float32), theirs.astype(np.float32))
    if len(theirs) < observed.shape[1] or not found.all():
        raise PpgenError(
            f"the draws are of other data ({(~found).sum()} of {observed.shape[1]} observed values are not among "
            "theirs); take draws for these data, or leave draws (--draws) out"
        )


def _room(bounds: list[Bound]) -> Finding:
    """Whether the lower bounds are below the upper one, and the estimates between them, by their errors."""
    by_name = {b.name: (float(b.values[0]), float(b.se[0])) for b in bounds}
    top, top_se = by_name["eubo"]
    below = [(v, se) for n, (v, se) in by_name.items() if n != "eubo" and v != -math.inf]  # an ELBO may be: no clash
    worst = min((top - v) / math.hypot(se, top_se, 1e-3) for v, se in below)
    low, low_se = by_name["iw"]
    worst = min(worst, *((v - low) / math.hypot(se, low_se, 1e-3) for n, (v, se) in by_name.items()
                         if n in ("bridge", "smc")))  # fmt: skip
    return Finding("bounds", "", worst, ROOM, FINE if worst >= ROOM else WRONG)


def _unconstrained(joint: LogJoint, tree: DataTree) -> Tensor:
    """(chains, draws, dim)."""
    if not hasattr(tree, "attrs"):
        raise PpgenError(
            f"draws is {type(tree).__name__}; expected a tree of mcmc or infer (ppgen.run.files.read_netcdf)"
        )
    if not {"kernel", "method"} & set(tree.attrs):
        raise PpgenError(
            "these draws are a guide's, and bounds from above need the posterior's; take those of ppgen mcmc or ppgen "
            "infer, or leave draws (--draws) out"
        )
    group: Any = tree["posterior"]
    if missing := [n for n in joint.latents if name_in(tree, n) not in group]:
        raise PpgenError(
            f"the draws have no latent {missing[0]!r}, and {joint.program.name} has; take draws of this program"
        )
    u = vectors_of(joint, tree)
    if len(u) == 1:  # one chain of independent draws: halves of it
        u = u[0][: u.shape[1] // 2 * 2].reshape(2, -1, joint.dim)
    return u


def _proposal(
    target: Density,
    normal: tuple[Tensor, Tensor],
    u: Tensor,
    prior: Callable[[int], Tensor] | None,
    generator: torch.Generator,
) -> Mixture:
    """A mixture of the normal of draws (n, dim), and of those of the places where climbs end."""
    found = []
    if u.shape[1] <= DENSE_DIM:
        found = places(target, climbs(target, starts_around(u, prior, generator), u, generator))
    return mixture_of([normal, *((n.m, n.L) for n in found)], target, generator)


def _elbo(target: Density, normal: tuple[Tensor, Tensor], generator: torch.Generator) -> Bound:
    """Of the normal of the draws alone: the tails of the mixture, which weights want, cost an ELBO much."""
    q = MultivariateNormal(normal[0], scale_tril=normal[1])
    z = torch.randn(WEIGHTS, len(normal[0]), generator=generator, dtype=normal[0].dtype)
    v = normal[0] + z @ normal[1].mT
    log_w = torch.nan_to_num(target(v)[0], nan=-torch.inf) - q.log_prob(v)
    return _bound("elbo", "lower", Evidence(float(log_w.mean()), float(log_w.std()) / WEIGHTS**0.5))


def _bounds(target: Density, q: Mixture, u: Tensor, generator: torch.Generator) -> list[Bound]:
    """iw, bridge and eubo; u: draws of the posterior, (chains, draws, dim)."""
    v = q.draw(WEIGHTS, generator)
    at_q, at_p = (torch.nan_to_num(target(x)[0], nan=-torch.inf) - q.log_prob(x) for x in (v, u.flatten(0, 1)))
    by_chain = at_p.reshape(u.shape[:2]).numpy()
    effective = float(statistic("ess", by_chain, method="mean"))
    effective = effective if math.isfinite(effective) else float(at_p.numel())
    log_z = float(torch.logsumexp(at_q, 0)) - math.log(WEIGHTS)
    w = (at_q - at_q.max()).exp()
    return [
        _bound("iw", "lower", Evidence(log_z, float(w.std() / w.mean()) / WEIGHTS**0.5)),
        _bound("bridge", "estimate", bridge_sampling(at_q, at_p, effective)),
        _bound("eubo", "upper", Evidence(float(at_p.mean()), float(at_p.std()) / min(effective, at_p.numel()) ** 0.5)),
    ]


def _bound(name: str, kind: str, figure: Evidence) -> Bound:
    return Bound(name, kind, np.array([figure.log_z]), np.array([figure.se]))


def _of_guide(run: Run, made: Prepared, seed: int) -> list[Bound]:
    """The guide's own bounds, of all rows."""
    found = loglik(run, made.data, seed=seed)
    return [
        _bound(b.name, b.kind, Evidence(float(b.values.sum()), float(np.sqrt((b.se**2).sum())))) for b in found.bounds
    ]


class BayesFactors(NamedTuple):
    """log p(x) of several models on the same data, the best first.

    Attributes:
        log_evidence: by name.
        differences: by name, (log Bayes factor against the best, its standard error), in nats.
        flat: names of models with a flat prior, whose figure is not to be compared.
    """

    log_evidence: dict[str, Bound]
    differences: dict[str, tuple[float, float]]
    flat: tuple[str, ...]

    def __repr__(self) -> str:  # no arrays
        behind = {n: f", log Bayes factor {d:.2f} ± {se:.2g}" for n, (d, se) in self.differences.items() if d}
        figures = {n: f"{float(b.values[0]):.2f} ± {float(b.se[0]):.2g}" for n, b in self.log_evidence.items()}
        return "\n".join(f"{n}: log p(x) {figure}{behind.get(n, '')}" for n, figure in figures.items())

    def table(self) -> list[dict[str, Any]]:
        """One dict a model."""
        return [
            {
                "name": name, "by": b.name, "nats": float(b.values[0]), "se": float(b.se[0]),
                "log_bayes_factor": self.differences[name][0], "log_bayes_factor_se": self.differences[name][1],
                "flat": name in self.flat,
            }
            for name, b in self.log_evidence.items()
        ]  # fmt: skip


def bayes_factors(found: Mapping[str, EvidenceBounds]) -> BayesFactors:
    """Compares models by log p(x): log BF = log p(x | A) − log p(x | B).

    Raises:
        PpgenError: fewer than two; models of other data.
    """
    if len(found) < 2:
        raise PpgenError(f"a Bayes factor is of two models, and got {len(found)}; name another")
    (name, one), *others = found.items()
    for other, e in others:
        both = one.observed.size and e.observed.size  # none where the likelihood is a factor
        if both and (one.observed.shape != e.observed.shape or not np.allclose(one.observed, e.observed)):
            raise PpgenError(
                f"{name!r} and {other!r} explain other values ({one.observed.shape[1]} and {e.observed.shape[1]} that "
                "count), and a Bayes factor is of two models of the same data; give both the same data and units"
            )
    best = {n: e.best for n, e in sorted(found.items(), key=lambda item: -float(item[1].best.values[0]))}
    first = next(iter(best.values()))
    differences = {
        n: (float(b.values[0] - first.values[0]), 0.0 if b is first else float(np.hypot(b.se[0], first.se[0])))
        for n, b in best.items()
    }
    return BayesFactors(best, differences, tuple(n for n, e in found.items() if e.flat))
