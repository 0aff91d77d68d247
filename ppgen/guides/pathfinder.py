r"""Pathfinder: a mixture of normals, one a path up the log joint, with no step of a gradient.

    u ~ Σ_i α_i N(μ_i, H_i),   z_i = biject_to(support_i)(u_i)

N(μ_i, H_i) is the normal of the highest ELBO on path i (`ppgen.engine.pathfinder`). The weights α are those of the
mixture nearest to the posterior, by draws of all paths and their importance weights w = p / Σ_j α_j N_j,

    α_i ← Σ_s w_s α_i N_i(u_s) / Σ_j α_j N_j(u_s),    Σ_s w_s = 1

so that a path that ended where there is no mass has none. Paths of different modes keep both. With one start it is
single-path Pathfinder. Importance resampling over all paths is `posterior(run, data, corrected=True)`.

Sources: Pathfinder: Parallel quasi-Newton variational inference (Zhang, Carpenter, Gelman, Vehtari 2022,
arXiv:2108.03782); the weights: Adaptive importance sampling in general mixture classes (Cappé et al. 2008,
arXiv:0710.4242).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from pyro.distributions import Categorical, MixtureSameFamily, MultivariateNormal
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from ppgen.engine.batch_and_match import MOST, REACH
from ppgen.engine.pathfinder import HOPELESS, Density, climb, mixture_weights
from ppgen.errors import PpgenError
from ppgen.guides._vector import VectorGuide

SUMMARY = "a mixture of normals, one a path up the log joint, no steps needed (Pathfinder)"
STARTS = 20
BATCHES = {"batches": True}


class Guide(VectorGuide):
    """The guide; see above, and `flow.Guide` for the arguments."""

    means: Tensor
    roots: Tensor
    log_weights: nn.Parameter

    def __init__(
        self,
        sites: Mapping[str, dict[str, Any]],
        over_rows: Mapping[str, int],
        data: Mapping[str, Tensor],
        rows: tuple[str, ...] = (),
        *,
        batches: bool = False,
    ):
        super().__init__("pathfinder", sites, batches)
        self.require_few(MOST)
        self._hold(torch.zeros(1, self.dim), torch.eye(self.dim)[None], torch.zeros(1))

    def _hold(self, means: Tensor, roots: Tensor, log_weights: Tensor) -> None:
        self.register_buffer("means", means.contiguous())
        self.register_buffer("roots", roots.contiguous())
        self.log_weights = nn.Parameter(log_weights)

    def _load_from_state_dict(self, state: Mapping[str, Any], prefix: str, *args: Any) -> None:
        means = state.get(f"{prefix}means")
        if means is not None and means.shape != self.means.shape:  # as many paths as were found
            paths = [state[f"{prefix}{name}"] for name in ("means", "roots", "log_weights")]
            self._hold(*(v.to(self.means.dtype).clone() for v in paths))
        super()._load_from_state_dict(state, prefix, *args)

    def law(self) -> TorchDistribution:
        normals = MultivariateNormal(self.means, scale_tril=self.roots)
        return MixtureSameFamily(Categorical(logits=self.log_weights), normals)

    def search(self, target: Density, values: Mapping[str, slice], *, starts: int, seed: int) -> None:
        """
        Args:
            values: where each latent stands in the vectors that `target` takes.

        Raises:
            PpgenError: no path found a normal.
        """
        generator = torch.Generator().manual_seed(seed)
        first = REACH * (2 * torch.rand(starts, self.dim, generator=generator).to(self.means) - 1)
        paths = climb(target, first, generator=generator)
        good = torch.isfinite(paths.elbo) & (paths.elbo > paths.elbo.max() - max(HOPELESS, self.dim))
        if not good.any():
            raise PpgenError(
                f"none of {starts} paths found a normal, as the log joint is finite at none of their starts; check the "
                "data and the priors, or take more starts (--starts)"
            )
        means, roots = paths.mean[good], paths.root[good]
        log_weights = mixture_weights(target, means, roots, generator)
        kept = log_weights > log_weights.max() - math.log(1e6)
        rows = roots[kept][:, (index := self.order(values))]
        self._hold(means[kept][:, index], torch.linalg.cholesky(rows @ rows.mT), log_weights[kept])
