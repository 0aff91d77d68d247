r"""Pathfinder: a mixture of normals, one a path up the log joint, with no step of a gradient.

    u ~ Σ_i α_i N(μ_i, H_i),   z_i = biject_to(support_i)(u_i)

N(μ_i, H_i) is the normal of the highest ELBO on path i (`ppgen.engine.density.pathfinder`). The weights α are those of
the mixture nearest to the posterior, by draws of all paths and their importance weights w = p / Σ_j α_j N_j,

    α_i ← Σ_s w_s α_i N_i(u_s) / Σ_j α_j N_j(u_s),    Σ_s w_s = 1

so that a path that ended where there is no mass has none. Paths of different modes keep both. With one start it is
single-path Pathfinder. Importance resampling over all paths is `posterior(run, data, corrected=True)`. Of more than 300
entries H is kept as a diagonal and a few columns, by L-BFGS (`ppgen.engine.density.inverse_hessian`).

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
from torch.distributions import constraints

from ppgen.engine.density.batch_and_match import MOST, REACH
from ppgen.engine.density.inverse_hessian import LowRank
from ppgen.engine.density.pathfinder import (
    HOPELESS,
    WEIGHED,
    Density,
    climb,
    climb_low_rank,
    mixture_weights,
    weights_of_draws,
)
from ppgen.errors import PpgenError
from ppgen.guides._vector import VectorGuide

SUMMARY = "a mixture of normals, one a path up the log joint, no steps needed (Pathfinder)"
STARTS = 20
BATCHES = {"batches": True}


class _LowRankNormal(TorchDistribution):
    """Normals N(loc, D^½ (I + P diag(stretch² − 1) Pᵀ) D^½), a batch of them, (n, dim)."""

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, root: LowRank):
        self.loc, self.root = loc, root
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        along = self.root.basis.square() @ (self.root.stretch.square() - 1)[..., None]
        return self.root.sd.square() * (1 + along[..., 0])

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        noise = torch.randn(self._extended_shape(torch.Size(sample_shape))).to(self.loc)
        return self.loc + self.root.spread(noise)

    def log_prob(self, value: Tensor) -> Tensor:
        """Of values (..., n or 1, dim), one normal after the other: never (..., n, dim) at once."""
        columns = value.expand(*value.shape[:-2], len(self.loc), value.shape[-1]).unbind(-2)
        return torch.stack([self._log_prob(k, v) for k, v in enumerate(columns)], -1)

    def _log_prob(self, k: int, value: Tensor) -> Tensor:
        """Of the normal k, values (..., dim)."""
        stretch = self.root.stretch[k]
        e = (value - self.loc[k]) / self.root.sd[k]
        square = e.square().sum(-1) - ((e @ self.root.basis[k]).square() * (1 - stretch**-2)).sum(-1)
        return -0.5 * square - self.root.volume()[k] - 0.5 * self.loc.shape[-1] * math.log(2 * math.pi)


class Guide(VectorGuide):
    """The guide; see above, and `flow.Guide` for the arguments."""

    means: Tensor
    log_weights: nn.Parameter

    def __init__(self, sites: Mapping[str, dict[str, Any]], *rest: Any, batches: bool = False):
        super().__init__("pathfinder", sites, batches)
        self.few = self.dim <= MOST
        none = torch.zeros(1, self.dim)
        flat = LowRank(torch.ones(1, self.dim), none[..., None], torch.ones(1, 1))
        self._hold(none, {"roots": torch.eye(self.dim)[None]} if self.few else flat._asdict(), torch.zeros(1))

    def _hold(self, means: Tensor, shape: Mapping[str, Tensor], log_weights: Tensor) -> None:
        for name, value in {"means": means, **shape}.items():
            self.register_buffer(name, value.contiguous())
        self.log_weights = nn.Parameter(log_weights)

    def _load_from_state_dict(self, state: Mapping[str, Any], prefix: str, *args: Any) -> None:
        means = state.get(f"{prefix}means")
        if means is not None and means.shape != self.means.shape:  # as many paths as were found
            own = {n: state[f"{prefix}{n}"].to(self.means.dtype).clone() for n in (*self._buffers, "log_weights")}
            self._hold(own.pop("means"), own, own.pop("log_weights"))
        super()._load_from_state_dict(state, prefix, *args)

    def law(self) -> TorchDistribution:
        each: Any = dict(self._buffers)
        means = each.pop("means")
        normals = (
            MultivariateNormal(means, scale_tril=each["roots"]) if self.few else _LowRankNormal(means, LowRank(**each))
        )
        return MixtureSameFamily(Categorical(logits=self.log_weights), normals)

    def search(self, target: Density, values: Mapping[str, slice], *, starts: int, seed: int) -> None:
        """
        Args:
            values: where each latent stands in the vectors that `target` takes.
        """
        generator = torch.Generator().manual_seed(seed)
        first = REACH * (2 * torch.rand(starts, self.dim, generator=generator).to(self.means) - 1)
        paths: Any = (climb if self.few else climb_low_rank)(target, first, generator=generator)
        good = torch.isfinite(paths.elbo) & (paths.elbo > paths.elbo.max() - max(HOPELESS, self.dim))
        if not good.any():
            raise PpgenError(
                f"none of {starts} paths found a normal, as the log joint is finite at none of their starts; check the "
                "data and the priors, or take more starts (--starts)"
            )
        means, index = paths.mean[good], self.order(values)
        if self.few:
            roots = paths.root[good]
            log_weights = mixture_weights(target, means, roots, generator)
            kept = _kept(log_weights)
            rows = roots[kept][:, index]
            shape = {"roots": torch.linalg.cholesky(rows @ rows.mT)}
        else:
            root = paths.root.taken(good)
            log_weights = _weights(target, means, root, generator)
            kept = _kept(log_weights)
            root = root.taken(kept)
            shape = {"sd": root.sd[:, index], "basis": root.basis[:, index], "stretch": root.stretch}
        self._hold(means[kept][:, index], shape, log_weights[kept])


def _kept(log_weights: Tensor) -> Tensor:
    """Those of some weight."""
    return log_weights > log_weights.max() - math.log(1e6)


def _weights(target: Density, means: Tensor, root: LowRank, generator: torch.Generator) -> Tensor:
    """`mixture_weights` of normals in many dimensions."""
    noise = torch.randn(WEIGHED, *means.shape, generator=generator, dtype=means.dtype)
    u = (means + root.spread(noise)).flatten(0, 1)
    return weights_of_draws(target, u, _LowRankNormal(means, root).log_prob(u[:, None]))
