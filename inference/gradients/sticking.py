r"""Sticking the landing: as pathwise, without the derivative of log q with respect to its parameters.

    ∇_φ E_ε [log p(x, z) − log q_φ'(z)],  z = g(ε, φ), φ' = φ held constant

What is left out, ∂/∂φ log q_φ(z) at a fixed z, has mean zero. At q = p(z | x) every draw's gradient is zero, where that
of `pathwise` has the variance of what is left out. A KL in closed form has no log q that is drawn: take the objective
"sampled".

Source: Sticking the Landing: Simple, Lower-Variance Gradient Estimators for Variational Inference (Roeder, Wu, Duvenaud
2017, arXiv:1703.09194).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyro import poutine
from torch import nn

from ppgen.draws import one_draw, parameters_held
from ppgen.errors import PpgenError
from ppgen.program import Program
from ppgen.sites import sample_sites
from ppgen.structure import Structure
from ppgen.terms import Term, guide_run, term

SUMMARY = "pathwise, log q with its parameters held (sticking the landing)"
DRAWS = 1
PATHWISE = False


def draw(program: Program, data: Mapping[str, Any], structure: Structure, *, closed_form: bool = False) -> list[Term]:
    """The terms of a draw, log q of a second run of the guide at the same draw, whose parameters are constants.

    Raises:
        PpgenError: the second run would be another one, for a dropout.
    """
    q = guide_run(program, data)
    held = at_fixed_parameters(program, data, q, "gradient='sticking'")
    log_q = {n: term(s, "guide").log_prob for n, s in sample_sites(held, factors=True, deterministic=False).items()}
    found = one_draw(program, data, structure, closed_form=closed_form, q=q)
    return [t._replace(log_prob=log_q[t.site]) if t.role == "guide" else t for t in found]


def at_fixed_parameters(program: Program, data: Mapping[str, Any], q: poutine.Trace, asked: str) -> poutine.Trace:
    """The guide's run once more at the draws of q, its parameters constants.

    Raises:
        PpgenError: it would be another run, for a dropout.
    """
    if any(isinstance(m, nn.Dropout) and m.p and m.training for m in program.modules()):
        raise PpgenError(
            f"{asked} runs the guide twice at one draw, and {program.name} has dropout, which differs between the two; "
            "take another gradient and objective (pathwise, iwae), or no dropout"
        )
    with parameters_held(program):
        return poutine.trace(poutine.replay(lambda: program.call("guide", data), trace=q)).get_trace()
