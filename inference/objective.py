"""One bound of one program, as a torch module that a step can be taken on.

The terms of K draws come from a producer (`ppgen.draws`, or the program's own), the bound from a file of
`ppgen.inference.objectives`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ppgen.data import n_rows
from ppgen.draws import ManyTerms, one_draw, stacked_terms
from ppgen.engine.gradient import shapes
from ppgen.errors import PpgenError
from ppgen.inference import objectives
from ppgen.inference.bounds import Setting
from ppgen.program import Program
from ppgen.structure import Structure
from ppgen.terms import Term


class Objective(nn.Module):
    """One bound of one program, as a torch module: forward(batch) gives the loss and the bound.

    Args:
        program: the pair, set up and checked.
        structure: what `ppgen.check.check` returned.
        rows: N, the number of rows of the whole data set.
        elbo: the name of an objective (`ppgen.inference.objectives`).
        particles: K, draws of z a step.

    Raises:
        PpgenError: no such objective, or one that the program has no terms for.
    """

    program: Program

    def __init__(
        self, program: Program, structure: Structure, rows: int, *, elbo: str = "analytic", particles: int = 1
    ):
        super().__init__()
        self.bound: Any = objectives.named(elbo)
        if particles < 1:
            raise PpgenError(f"particles is {particles}; expected at least 1")
        if self.bound.TERMS == "subsampled" and not program.subsamples:
            raise PpgenError(
                f"elbo={elbo!r} draws terms of the ELBO of a chain of latents, and {program.name} is none; leave elbo "
                "out, or take elbo='analytic'"
            )
        self.program, self.structure, self.rows, self.elbo = program, structure, max(rows, 1), elbo
        score = [s for s in structure.sites if s.name in structure.latents and not s.reparametrised]
        if getattr(self.bound, "PATHWISE", False) and score:
            raise PpgenError(
                f"the latent {score[0].name!r} has no reparametrisation, which elbo={elbo!r} needs; take "
                "elbo='analytic'"
            )
        self.particles = max(particles, 2) if score and not structure.summed else particles
        self._many: dict[tuple, ManyTerms] = {}

    def forward(self, batch: Mapping[str, Any], kl_weight: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
        """Loss in nats a row, to be minimised, and the bound in nats over all N rows, with no gradient.

        Args:
            batch: B rows of the N, whose terms are weighed by N/B.
            kl_weight: multiplies the latent terms in the loss only (KL warm-up).
        """
        n_over_b = self.rows / n_rows(batch, self.structure.row_columns)
        setting = Setting.of(self.structure, n_over_b, kl_weight)
        target, bound = self.bound.objective(self.terms(batch), setting)
        return -target / self.rows, bound.detach()

    def terms(self, batch: Mapping[str, Any]) -> list[Term]:
        """The terms of K draws."""
        if self.bound.TERMS == "subsampled":
            return self.program.subsampled_terms(dict(batch), self.particles)
        if self.particles == 1:
            return stacked_terms(one_draw(self.program, batch, self.structure, closed_form=self._closed_form))
        return self._recorded(batch)(self.particles, batch)

    def prepare(self, batch: Mapping[str, Any]) -> None:
        """Records one draw for batches of this shape, where several are made at once."""
        if self.particles > 1 and self.bound.TERMS != "subsampled":
            self._recorded(batch)

    def _recorded(self, batch: Mapping[str, Any]) -> ManyTerms:
        key = (shapes(batch), self.training)
        if key not in self._many:
            self._many[key] = ManyTerms(self.program, batch, self.structure, closed_form=self._closed_form, train=True)
        return self._many[key]

    @property
    def _closed_form(self) -> bool:
        return self.bound.TERMS == "closed_form"


def default_objective(program: Program) -> str:
    """The objective of a fit that was asked for none."""
    return "subsampled" if program.subsamples else "analytic"
