r"""The score function for every latent, whether or not it has a reparametrization (REINFORCE).

    ∇_φ E_q f(z, φ) = E_q [(f − b) ∇_φ log q(z) + ∂f/∂φ],    b the mean of f over the other draws

It needs no derivative of the model with respect to its latents. A point mass (`Delta`) is not drawn, and keeps its
path.

Sources: Black Box Variational Inference (Ranganath et al. 2014, arXiv:1401.0118); Buy 4 REINFORCE Samples, Get a
Baseline for Free! (Kool et al. 2019).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyro.poutine.messenger import Messenger

from ppgen.draws import one_draw
from ppgen.program import Program
from ppgen.sites import is_delta
from ppgen.structure import Structure
from ppgen.terms import Term

SUMMARY = "the score function for every latent"
DRAWS = 2
PATHWISE = False
PATHS = False


def draw(program: Program, data: Mapping[str, Any], structure: Structure, *, closed_form: bool = False) -> list[Term]:
    """The terms of a draw without paths."""
    with _Detached():
        return one_draw(program, data, structure, closed_form=closed_form)


class _Detached(Messenger):
    """Takes the path from every draw, and marks its site infer["detached"]."""

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if not msg["is_observed"] and not is_delta(msg):
            msg["value"], msg["infer"] = msg["value"].detach(), {**msg["infer"], "detached": True}
