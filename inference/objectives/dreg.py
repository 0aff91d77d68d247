r"""The importance-weighted bound, the guide by doubly reparametrized gradients: a signal that grows with K.

    ∇_φ = Σ_k w̃_k² ∂ log w_k/∂z_k ∂z_k/∂φ,   ∇_θ = Σ_k w̃_k ∇_θ log w_k at fixed z_k,   w̃_k = w_k / Σ_j w_j

Unbiased for the gradient of `iwae`, whose signal for the guide falls as K grows. At q = p(z | x) every draw's gradient
of φ is zero. With a weight c of log p(z) − log q(z), w̃_k (1 − c + c w̃_k) stands for w̃_k²: its share c has the score.

Source: Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives (Tucker, Lawson, Gu, Maddison 2019,
arXiv:1810.04152).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyro import poutine
from torch import Tensor

from ppgen.draws import one_draw, parameters_held
from ppgen.inference.bounds import Setting, log_mean_exp, log_weights, of_weights, over_rows, times, with_gradient_of
from ppgen.inference.gradients.sticking import at_fixed_parameters
from ppgen.program import Program
from ppgen.structure import Structure
from ppgen.terms import Term, guide_run

SUMMARY = "iwae with doubly reparametrized gradients of the guide"
TERMS = "drawn"
PATHWISE = True
DRAWS = 1


def draw(program: Program, data: Mapping[str, Any], structure: Structure, *, closed_form: bool = False) -> list[Term]:
    """The terms of a draw: `log_prob` at a fixed draw, with gradients to the parameters; `target` along its path.

    Raises:
        PpgenError: the second run would be another one, for a dropout.
    """
    q = guide_run(program, data)
    held = at_fixed_parameters(program, data, q, "objective='dreg'")
    return fixed_and_along(program, data, structure, q, held)


def fixed_and_along(
    program: Program, data: Mapping[str, Any], structure: Structure, q: poutine.Trace, path: poutine.Trace
) -> list[Term]:
    """The terms of q's draw held fixed, with gradients to the parameters; in `target` those of `path`, along the draw,
    the model's parameters held."""
    with parameters_held(program):
        along = one_draw(program, data, structure, q=path)
    fixed = q.copy()
    for name, site in q.nodes.items():
        if site["type"] == "sample":
            fixed.nodes[name] = {**site, "value": site["value"].detach()}
    terms = one_draw(program, data, structure, q=fixed)
    return [t._replace(target=moved.log_prob) for t, moved in zip(terms, along, strict=True)]


def model_weights(terms: Sequence[Term], s: Setting) -> Tensor:
    """log p(x, z_k) of such terms at their fixed draws, as it is trained on."""
    return log_weights([t._replace(target=None) for t in terms if t.role != "guide"], s, target=True)


def objective(terms: Sequence[Term], s: Setting) -> tuple[Tensor, Tensor]:
    """The importance-weighted bound, with the gradients above of the same with KL-weighted terms."""
    along = log_weights(terms, s, target=True)
    weights = along.detach().softmax(0)
    twice = weights * (1 - times(s.kl_weight, 1 - weights))
    surrogate = (weights * model_weights(terms, s) + twice * along).sum(0)
    target, bound = of_weights(log_mean_exp, terms, s)
    return with_gradient_of(target, over_rows(surrogate, s)), bound
