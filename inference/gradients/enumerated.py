r"""The guide's discrete latents summed over, the others along the paths of their draws.

    E_q(d) f(d, z_d) = Σ_d q(d | x) f(d, z_d),      z_d = g(ε, φ, d)

f is each term of the ELBO: its sum over all values of d has the gradient of q(d | x) in it, without a score function.
A term is weighed by the discrete latents that it depends on, the others' probabilities sum to one. What Pyro's
TraceEnum_ELBO does where a guide asks for it, for batches of rows and several draws as well.

Sources: Local Expectation Gradients for Black Box Variational Inference (Titsias & Lázaro-Gredilla 2015,
arXiv:1503.01494); Semi-Supervised Learning with Deep Generative Models (Kingma et al. 2014, arXiv:1406.5298).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.infer import config_enumerate
from torch import Tensor

from ppgen.draws import one_draw
from ppgen.enumerated import repeatable, trials, where_it_is
from ppgen.errors import PpgenError
from ppgen.program import Program
from ppgen.sites import sample_sites
from ppgen.structure import Structure
from ppgen.terms import Term, guide_run, holding, run, terms

SUMMARY = "the guide's discrete latents summed over, the others along their paths"
DRAWS = 1
PATHWISE = False
SUMS = True  # no latent is left to the score function


class _Summed(NamedTuple):
    """A discrete latent of the guide: its dimension, counted from the right, and q at all of its values."""

    dim: int
    q: Tensor

    def touches(self, value: Tensor) -> bool:
        return value.dim() >= -self.dim and value.shape[self.dim] > 1


def draw(program: Program, data: Mapping[str, Any], structure: Structure, *, closed_form: bool = False) -> list[Term]:
    """The terms of a draw, their means over the guide's discrete latents.

    Raises:
        PpgenError: a latent that can neither be summed over nor has a path; one that the model sums out as well; a
            term outside of the plates of the latents that it depends on.
    """
    everything = poutine.enum(first_available_dim=-1 - structure.nesting)
    q = everything(config_enumerate(lambda: guide_run(program, data), default="parallel"))()
    summed, left = [], structure.summed
    for name, site in sample_sites(q, deterministic=False).items():
        dim = site["infer"].get("_enumerate_dim")
        if dim is not None:
            summed.append(_Summed(dim, site["fn"].log_prob(site["value"]).exp()))
        elif not getattr(site["fn"], "has_rsample", False) and not site["is_observed"]:
            left = (*left, name)
    if left:
        raise PpgenError(
            f"gradient='enumerated' sums over the guide's discrete latents, and cannot over {left[0]!r} of "
            f"{program.name}; take gradient='pathwise'"
        )
    return [
        _mean(t, summed, structure.nesting) for t in one_draw(program, data, structure, closed_form=closed_form, q=q)
    ]


def require(program: Program, data: Mapping[str, Any], structure: Structure) -> None:
    """At one value of the guide's discrete latents, each term is what a run of the model at it has.

    Raises:
        PpgenError: it is not: the model reads a place of a latent, which here is a place among its values.
    """
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        one = sample_sites(guide_run(program, data), deterministic=False)
        discrete = {n: s["fn"] for n, s in one.items() if s["fn"].has_enumerate_support and not s["is_observed"]}
        latents = {n: s["value"] for n, s in one.items() if n not in discrete and not s["is_observed"]}
        everything = poutine.enum(first_available_dim=-1 - structure.nesting)
        held = holding(latents)(lambda: guide_run(program, data))
        q = everything(config_enumerate(held, default="parallel"))()
        for values in trials(discrete):
            summed = [_at(q.nodes[n], v) for n, v in values.items() if "_enumerate_dim" in q.nodes[n]["infer"]]
            plain, ends = _by_site(program, data, latents | values)
            drawn, its_ends = repeatable(lambda: one_draw(program, data, structure, q=q))
            for t in drawn:
                here = plain.get(t.site) if t.role != "guide" else None
                if here is None or not here.isfinite().all():
                    continue
                finite = t._replace(log_prob=t.log_prob.nan_to_num(neginf=-1e30))
                off = float((here.sum() - _mean(finite, summed, structure.nesting).log_prob.double().sum()).abs())
                most = 1e-3 + 3e-6 * float(here.abs().sum())
                if off <= most:
                    continue
                again, _ = _by_site(program, data, latents | values)
                if not (torch.equal(ends, its_ends) and abs(float(again[t.site].sum() - here.sum())) <= most):
                    return  # what dropout draws, say, is of another shape, or no two runs have the same terms
                raise PpgenError(
                    f"gradient='enumerated' cannot sum over {', '.join(map(repr, values))} of {program.name}: the "
                    f"term of {t.site!r} at one value is off by {off:.2g} nats, as it is where the model reads a "
                    "place of a latent (k[0], k[group]); take gradient='score'"
                )


def _by_site(
    program: Program, data: Mapping[str, Any], latents: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], Tensor]:
    """The terms of a run at these latents, in double precision, and the generator's state after it."""
    t, ends = repeatable(lambda: run(program, data, latents=latents))
    return {each.site: each.log_prob.double() for each in terms(t)}, ends


def _at(site: Mapping[str, Any], value: Tensor) -> _Summed:
    """All weight on one value."""
    return _Summed(site["infer"]["_enumerate_dim"], where_it_is(site, value).to(torch.get_default_dtype()))


def _mean(t: Term, summed: Sequence[_Summed], nesting: int) -> Term:
    """The term's mean over the latents that it depends on, and those that these depend on."""
    extra = t.log_prob.dim() - nesting
    own = [s for s in summed if s.touches(t.log_prob)]
    if extra <= 0 or not own:
        return t._replace(pathwise=True)
    while more := [s for s in summed if not any(s is o for o in own) and any(s.touches(o.q) for o in own)]:
        own += more
    weight = own[0].q
    for s in own[1:]:
        weight = weight * s.q
    value = weight * t.log_prob
    if value.shape[value.dim() - nesting :] != t.log_prob.shape[extra:]:
        raise PpgenError(
            f"the term of {t.site!r} stands outside of the plates of a discrete latent that it depends on, over which "
            "gradient='enumerated' cannot sum; take gradient='score'"
        )
    value = value.sum(list(range(value.dim() - nesting)))
    return t._replace(log_prob=value, log_density=value, dims=t.dims[extra:], pathwise=True)
