r"""The model by `iwae` of all K draws, the guide by `miwae` of M groups of them: a tight bound, and a signal for both.

    θ:  ∇_θ log 1/K Σ_k w_k,      φ:  ∇_φ 1/M Σ_m log 1/L Σ_l w_ml,      K = M L

The bound that is reported is that of all K draws.

Source: Tighter Variational Bounds are Not Necessarily Better (Rainforth et al. 2018, arXiv:1802.04537), section 6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ppgen.inference.bounds import Setting, log_mean_exp, log_weights, of_weights, over_rows, with_gradient_of
from ppgen.inference.objectives.dreg import fixed_and_along, model_weights
from ppgen.inference.objectives.miwae import grouped
from ppgen.program import Program
from ppgen.structure import Structure
from ppgen.terms import Term, guide_run

SUMMARY = "the model by iwae, the guide by miwae: piwae(groups=2)"
TERMS = "drawn"
PATHWISE = True
DRAWS = 1


def draw(program: Program, data: Mapping[str, Any], structure: Structure, *, closed_form: bool = False) -> list[Term]:
    """The terms of a draw: `log_prob` at a fixed draw, with gradients to the parameters; `target` along its path, with
    gradients to the guide's alone."""
    q = guide_run(program, data)
    return fixed_and_along(program, data, structure, q, q)


def objective(terms: Sequence[Term], s: Setting, *, groups: int = 2) -> tuple[Tensor, Tensor]:
    """The bound of all draws, with the gradients above of the same with KL-weighted terms.

    Raises:
        PpgenError: draws that cannot be divided into so many groups.
    """
    along = log_weights(terms, s, target=True)
    for_model = (along.detach().softmax(0) * model_weights(terms, s)).sum(0)
    for_guide = grouped(along, groups, "piwae")
    target, bound = of_weights(log_mean_exp, terms, s)
    return with_gradient_of(target, over_rows(for_model + for_guide, s)), bound
