"""Batch and match: a normal with all covariances, found with no step of a gradient.

    u ~ N(μ, Σ),   z_i = biject_to(support_i)(u_i),   (μ, Σ): see `ppgen.engine.density.batch_and_match`

`fit(..., guide="bam", steps=0)` gives it as it was found; steps go on from there by the ELBO, in units of the found.

Source: Batch and match: black-box variational inference with a score-based divergence (Cai et al. 2024,
arXiv:2402.14758).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro.distributions import MultivariateNormal
from pyro.distributions.torch_distribution import TorchDistribution
from torch import nn

from ppgen.engine.density.batch_and_match import MOST, best_gaussian
from ppgen.engine.density.pathfinder import Density
from ppgen.errors import PpgenError
from ppgen.guides._started import Started
from ppgen.guides._vector import VectorGuide

SUMMARY = "a normal matched to the scores of the log joint, no steps needed (batch and match)"
STARTS = 8
BATCHES = {"batches": True}


class Guide(Started, VectorGuide):
    """The guide; see above, and `flow.Guide` for the arguments."""

    def __init__(self, sites: Mapping[str, dict[str, Any]], *rest: Any, batches: bool = False):
        super().__init__("bam", sites, batches)
        self.require_few(MOST)
        self.loc = nn.Parameter(torch.zeros(self.dim))
        self.log_diagonal = nn.Parameter(torch.zeros(self.dim))
        self.lower = nn.Parameter(torch.zeros(self.dim, self.dim))

    def law(self) -> TorchDistribution:
        scale_tril = self.log_diagonal.exp().diag() + self.lower.tril(-1)
        loc, scale_tril = self.started(self.loc, scale_tril)
        return MultivariateNormal(loc, scale_tril=scale_tril)

    def search(self, target: Density, values: Mapping[str, slice], *, starts: int, seed: int) -> None:
        """
        Args:
            values: where each latent stands in the vectors that `target` takes.
        """
        found = best_gaussian(target, self.dim, starts=starts, seed=seed)
        if found is None:
            raise PpgenError(
                f"no normal was found from {starts} starts, as the log joint is finite at none of them; check the data "
                "and the priors, or take more starts (--starts)"
            )
        rows = found.scale_tril[(index := self.order(values))]
        self.keep_start(found.loc[index], torch.linalg.cholesky(rows @ rows.T))
