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

from pyro import poutine
from pyro.infer import config_enumerate
from torch import Tensor

from ppgen.draws import one_draw
from ppgen.errors import PpgenError
from ppgen.program import Program
from ppgen.sites import sample_sites
from ppgen.structure import Structure
from ppgen.terms import Term, guide_run

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
