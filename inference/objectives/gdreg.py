r"""`dreg`, and the prior's parameters by doubly reparametrized gradients as well.

    θ of p(z):  ∇_θ = Σ_k [w̃_k ∇_z log p(x|z_k) − w̃_k² ∇_z log w_k] · ∇_θ T(ε_k; θ),   ε_k = T⁻¹(z_k; θ) held
    the rest of θ, and φ:  as `dreg`

z = T(ε; θ) is the prior's own reparametrization, m_θ + s_θ ε for a normal one. In place of the score ∇_θ log p_θ(z_k)
stands how the weight changes as the prior moves under z_k. Unbiased for the gradient of `iwae`.

Source: Generalized Doubly Reparameterized Gradient Estimators (Bauer & Mnih 2021, arXiv:2101.11046), section 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyro import poutine
from pyro.distributions import Normal
from torch import Tensor

from ppgen.draws import one_draw, parameters_held
from ppgen.errors import PpgenError
from ppgen.inference.gradients.sticking import at_fixed_parameters
from ppgen.inference.objectives.dreg import objective
from ppgen.program import Program
from ppgen.sites import sample_sites
from ppgen.structure import Structure
from ppgen.terms import Term, guide_run, run

__all__ = ["draw", "objective"]

SUMMARY = "iwae with doubly reparametrized gradients of the guide and of a normal prior"
TERMS = "drawn"
PATHWISE = True
DRAWS = 1


def draw(program: Program, data: Mapping[str, Any], structure: Structure, *, closed_form: bool = False) -> list[Term]:
    """The terms of a draw: `log_prob` at the fixed draw as the prior moves it, the prior's own term held; `target`
    along the guide's path, less the prior's.

    Raises:
        PpgenError: another number of latents than one, or a prior that is not normal; a guide with dropout.
    """
    q = guide_run(program, data)
    held = at_fixed_parameters(program, data, q, "objective='gdreg'")
    name, moved = _moved(program, data, q, structure)
    with parameters_held(program):
        along = one_draw(program, data, structure, q=_at(held, name, held.nodes[name]["value"] - moved))
    terms = one_draw(program, data, structure, q=_at(q, name, q.nodes[name]["value"].detach() + moved))
    return [
        (t._replace(log_prob=t.log_prob.detach()) if t.role == "prior" else t)._replace(target=a.log_prob)
        for t, a in zip(terms, along, strict=True)
    ]


def _moved(program: Program, data: Mapping[str, Any], q: poutine.Trace, structure: Structure) -> tuple[str, Tensor]:
    """The latent, and T(ε; θ) less its value: 0, with the gradient of the prior's parameters."""
    if len(structure.latents) == 1:
        (name,) = structure.latents
        fn = sample_sites(run(program, data, q=q).p)[name]["fn"]
        while hasattr(fn, "base_dist"):
            fn = fn.base_dist
        if isinstance(fn, Normal):
            z = q.nodes[name]["value"].detach()
            path = fn.loc + fn.scale * ((z - fn.loc) / fn.scale).detach()
            return name, path - path.detach()
    raise PpgenError(
        f"objective='gdreg' moves one latent with a normal prior, and {program.name} has the latents "
        f"{', '.join(structure.latents) or 'none'} or another prior; take objective='dreg'"
    )


def _at(q: poutine.Trace, name: str, value: Tensor) -> poutine.Trace:
    """The run with another value of that latent."""
    fixed = q.copy()
    fixed.nodes[name] = {**q.nodes[name], "value": value}
    return fixed
