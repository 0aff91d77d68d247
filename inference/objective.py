"""One bound of one program, as a torch module that a step can be taken on.

The terms of K draws come from a producer (`ppgen.draws`, or the program's own) by way of a file of
`ppgen.inference.gradients`, the bound from one of `ppgen.inference.objectives`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from ppgen.data import n_rows
from ppgen.draws import ManyTerms
from ppgen.engine.graphs.gradient import shapes
from ppgen.errors import PpgenError
from ppgen.inference import gradients, objectives
from ppgen.inference.bounds import Setting
from ppgen.inference.pyro_objective import PyroObjective
from ppgen.program import Program
from ppgen.structure import Structure
from ppgen.terms import Term, Traces, drawn_density, stacked_terms, terms

log = logging.getLogger("ppgen")


class Objective(nn.Module):
    """One bound of one program, as a torch module: forward(batch) gives the loss and the bound.

    Args:
        program: the pair, set up and checked.
        structure: what `ppgen.check.check` returned.
        rows: N, the number of rows of the whole data set.
        objective, gradient: names of a bound (`ppgen.inference.objectives`) and of an estimator of its gradient
            (`ppgen.inference.gradients`).
        particles: K, draws of z a step.

    Raises:
        PpgenError: no such objective or estimator, or some that do not go together or with the program.
    """

    program: Program

    def __init__(
        self,
        program: Program,
        structure: Structure,
        rows: int,
        *,
        objective: str = "analytic",
        gradient: str = "pathwise",
        particles: int = 1,
    ):
        super().__init__()
        self.name, self.bound = objective, cast(Any, objectives.named(objective))
        self.formula = objectives.formula(objective)
        own, alone = getattr(self.bound, "GRADIENT", gradient), hasattr(self.bound, "draw")
        if (alone or own != gradient) and gradient != "pathwise":
            raise PpgenError(f"objective={objective!r} has a gradient of its own; leave gradient={gradient!r} out")
        self.estimator: Any = self.bound if alone else gradients.named(own)
        if particles < 1:
            raise PpgenError(f"particles is {particles}; expected at least 1")
        if self.bound.TERMS == "subsampled" and not program.subsamples:
            raise PpgenError(
                f"objective={objective!r} draws terms of the ELBO of a chain of latents, and {program.name} is none; "
                "leave objective out, or take objective='analytic'"
            )
        self.program, self.structure, self.rows = program, structure, max(rows, 1)
        drawn = () if program.guide_is_fixed else structure.sites
        latents = set(structure.latents)
        score = [s for s in drawn if s.name in latents and not s.reparametrised]
        if self.bound.PATHWISE and score:
            raise PpgenError(
                f"the latent {score[0].name!r} has no reparametrisation, which objective={objective!r} needs; take "
                "objective='vimco', the importance-weighted bound by score functions, or 'analytic'"
            )
        if self.bound.PATHWISE and not self.estimator.PATHWISE:
            raise PpgenError(
                f"objective={objective!r} needs complete derivatives along the paths of its draws, which "
                f"gradient={gradient!r} does not have; take gradient='pathwise'"
            )
        others = score and not structure.summed and not getattr(self.estimator, "SUMS", False)  # their mean
        least = max(self.estimator.DRAWS if structure.latents else 1, 2 if others else 1)
        self.particles = max(particles, least)
        self._many: dict[tuple, ManyTerms] = {}

    def forward(self, batch: Mapping[str, Any], kl_weight: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
        """Loss in nats a row, to be minimised, and the bound in nats over all N rows, with no gradient.

        Args:
            batch: B rows of the N, whose terms are weighed by N/B.
            kl_weight: multiplies the latent terms in the loss only (KL warm-up).

        Raises:
            PpgenError: see `require_all_rows`.
        """
        self.require_all_rows(n := n_rows(batch, self.structure.row_columns))
        n_over_b = self.rows / n
        setting = Setting.of(self.structure, n_over_b, kl_weight)
        terms = self.terms(batch)
        target, bound = self.formula(terms, setting.weighed(terms, self.structure))
        return -target / self.rows, bound.detach()

    def require_all_rows(self, rows: int, what: str = "batch_size (--batch-size)", *, trained: bool = False) -> None:
        """
        Args:
            rows: how many a step passes.
            what: passes them, in words.
            trained: whether the gradient matters, not the bound alone.

        Raises:
            PpgenError: these are a part of the N rows, which share latents, and the bound is a function of the weights
                of all: the N/B-th power of a weight is drawn then, and its mean too large, so that there is no bound.
        """
        part = self.structure.subsampled or rows != self.rows and not self.structure.by_row
        learned = getattr(self.bound, "OF_A_PART", "") if trained else ""
        if part and (learned or self.particles > 1 and not getattr(self.bound, "MEAN", False)):
            what = "subsample_size" if self.structure.subsampled else what
            raise PpgenError(
                f"objective={self.name!r} needs all rows in each step, as they share latents: of a part of them "
                f"{learned or 'it is no bound on log p(x)'}; leave {what} out, or take objective='analytic' "
                "(--objective analytic)"
            )

    def require_densities(self, once: Traces) -> None:
        """
        Args:
            once: a run of the pair.

        Raises:
            PpgenError: a log-density is itself drawn, as that of a long chain is, and the bound is a function of
                weights: the mean of exp(log w + noise) is too large by any number of nats.
        """
        free = cast(Any, self.formula).keywords.get("free_bits")
        if free and all(t.role != "kl" for t in terms(once, closed_form=True, alike=self.structure.alike)):
            log.warning(
                "free_bits=%g did nothing: they are of a KL in closed form, and no latent of %s has one (its prior or "
                "its guide is no plain distribution); take beta or kl_warmup", free, self.program.name,
            )  # fmt: skip
        if getattr(self.bound, "MEAN", False):
            return
        if name := self.structure.off_scale:
            log.warning(
                "poutine.scale multiplies log q of %r by another number than other sites have, and objective=%r is a "
                "function of weights p / q: it is no bound on log p(x); scale all sites of model and guide alike, or "
                "the model's alone, or take objective='analytic'", name, self.name,
            )  # fmt: skip
        if drawn := drawn_density(once):
            raise PpgenError(
                f"{drawn}: objective={self.name!r} would be no bound on log p(x); leave objective (--objective) out"
            )

    def terms(self, batch: Mapping[str, Any]) -> list[Term]:
        """The terms of K draws."""
        if self.bound.TERMS == "subsampled":
            return self.program.subsampled_terms(dict(batch), self.particles)
        if self.particles == 1:
            found = self.estimator.draw(self.program, batch, self.structure, closed_form=self._closed_form)
            return stacked_terms([found])
        return self._recorded(batch)(self.particles, batch)

    def prepare(self, batch: Mapping[str, Any]) -> None:
        """Records one draw for batches of this shape, where several are made at once."""
        if self.particles > 1 and self.bound.TERMS != "subsampled":
            self._recorded(batch)

    def _recorded(self, batch: Mapping[str, Any]) -> ManyTerms:
        key = (shapes(batch), self.training)
        if key not in self._many:
            self._many[key] = ManyTerms(
                self.program, batch, self.structure, closed_form=self._closed_form, draw=self.estimator.draw, train=True
            )
        return self._many[key]

    @property
    def _closed_form(self) -> bool:
        return self.bound.TERMS == "closed_form"


def make_objective(
    program: Program, structure: Structure, rows: int, o: Mapping[str, Any], loss: Any = None
) -> Objective | PyroObjective:
    """What a fit with these options trains: a bound, or another loss."""
    if loss is not None:
        return PyroObjective(program, structure, rows, loss)
    how = {k: o[k] for k in ("objective", "gradient", "particles")}
    return Objective(program, structure, rows, **how)
