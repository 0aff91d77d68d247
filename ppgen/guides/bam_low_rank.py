r"""Batch and match in hundreds of dimensions: a normal whose covariance is a diagonal and a few factors.

    u ~ N(μ, Ψ + Λ Λᵀ),   z_i = biject_to(support_i)(u_i),   (μ, Ψ, Λ): see `ppgen.engine.density.low_rank`

`fit(..., guide="bam_low_rank", steps=0)` gives it as it was found; steps go on from there by the ELBO, in units of the
found standard deviations.

Source: Batch, match, and patch: low-rank approximations for score-based variational inference (Modi, Cai, Saul 2024,
arXiv:2410.22292).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro.distributions import LowRankMultivariateNormal
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from ppgen.engine.density.low_rank import low_rank_gaussian
from ppgen.engine.density.pathfinder import Density
from ppgen.errors import PpgenError
from ppgen.guides._vector import VectorGuide

SUMMARY = "a normal of a diagonal and a few factors, matched to scores, no steps needed (batch, match and patch)"
STARTS = 4
BATCHES = {"batches": True}


class Guide(VectorGuide):
    """The guide; see above, and `flow.Guide` for the other arguments.

    Args:
        rank: factors; no more than there are entries of the latents.

    Raises:
        PpgenError: a rank below 1; minibatches.
    """

    start_loc: Tensor
    start_factor: Tensor
    start_sd: Tensor

    def __init__(self, sites: Mapping[str, dict[str, Any]], *rest: Any, rank: int = 32, batches: bool = False):
        super().__init__("bam_low_rank", sites, batches)
        if rank < 1:
            raise PpgenError(f"the rank of the guide bam_low_rank is {rank}; take a whole number of at least 1")
        self.spec = f"bam_low_rank(rank={rank})"
        rank = min(rank, self.dim)
        self.register_buffer("start_loc", torch.zeros(self.dim))
        self.register_buffer("start_factor", torch.zeros(self.dim, rank))
        self.register_buffer("start_sd", torch.ones(self.dim))
        self.loc, self.log_sd = nn.Parameter(torch.zeros(self.dim)), nn.Parameter(torch.zeros(self.dim))
        self.factor = nn.Parameter(torch.zeros(self.dim, rank))

    def law(self) -> TorchDistribution:
        sd = self.start_sd
        loc, factor = self.start_loc + sd * self.loc, self.start_factor + sd[:, None] * self.factor
        return LowRankMultivariateNormal(loc, factor, (sd * self.log_sd.exp()).square())

    def search(self, target: Density, values: Mapping[str, slice], *, starts: int, seed: int) -> None:
        """
        Args:
            values: where each latent stands in the vectors that `target` takes.
        """
        found = low_rank_gaussian(target, self.dim, self.factor.shape[1], starts=starts, seed=seed)
        if found is None:
            raise PpgenError(
                "no normal was found, as the log joint is not finite at half of the draws of any normal around zero; "
                "check the data and the priors, or take --guide flow"
            )
        index = self.order(values)
        self.start_loc.copy_(found.loc[index])
        self.start_factor.copy_(found.factor[index])
        self.start_sd.copy_(found.diagonal[index].sqrt())
