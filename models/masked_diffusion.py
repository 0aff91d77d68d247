r"""Masked diffusion of categorical data: values are hidden one by one, and a network fills them in again.

    z_t: (D,) of 0, ..., K − 1 or K, the mask        α_t = 1 − t,  z_0 = x,  z_1 all masks
    q(z_t | x)       each value stays with probability α_t, or is the mask
    q(z_s | z_t, x)  what is seen stays; a mask becomes x with probability (α_s − α_t) / (1 − α_t), or stays
    p_θ(z_s | z_t)   the same with x_d ~ softmax(f_θ(z_t)_d) in the place of x
    KL               (α_s − α_t) / (1 − α_t) Σ_{d masked} −log p_θ(x_d | z_t);      1/t Σ ... a unit of time as T → ∞

So −ELBO of the limit is a weighted sum of cross-entropies: over the number of masks it is that of an autoregressive
model whose order is drawn, and it depends on no schedule. Nothing else is lost: z_0 is x, and z_1 is known.

Sources: Structured Denoising Diffusion Models in Discrete State-Spaces (Austin et al., 2021, arXiv:2107.03006),
absorbing states; Simplified and Generalized Masked Diffusion for Discrete Data (Shi et al., 2024, arXiv:2406.04329).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro
import torch
from pyro.distributions import Categorical, TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import log_softmax, one_hot

import ppgen
from ppgen.chains.chain import Chain, flat_rows
from ppgen.distributions import GridCategorical, grid
from ppgen.distributions.dequantize import grid_arguments
from ppgen.errors import PpgenError
from ppgen.nets import MLP

AT_ONCE = 0.5  # values a step, up to which draws are taken to reveal one at a time
SMALLEST = 1e-6  # time: the cost of a unit of time has 1/t in it


class MaskedDiffusion(Chain):
    """A diffusion model of x on a grid of levels that are told apart by name, not by size.

    The column is x, (N, D) or (N, *features), values low, ..., high on a grid of K = levels.

    Args:
        features: D, or the shape of one datum. Draws are flat.
        levels, low, high: K, the first and the last level.
        hidden: widths of the residual layers of the network, which sees which value is which, and no time.
        steps: T of the explicit chain; 0 trains its limit T → ∞, the chain then having 64 steps. The ELBO that is shown
            is then the limit's, whose draws reveal one value at a time; a step of 64 reveals D / 64 in the mean, each
            without a look at the others, so that draws are of a somewhat lower log p(x): `sample` says so.

    Raises:
        PpgenError: an argument out of range; a column of another size.
    """

    rows_a_step = 256
    guide_is_fixed = True

    def __init__(
        self, features: int | Sequence[int], levels: int = 2, low: float = 0.0, high: float = 1.0,
        hidden: Sequence[int] = (256, 256), steps: int = 0,
    ):  # fmt: skip
        super().__init__()
        self.shape = torch.Size((features,) if isinstance(features, int) else features)
        if not self.shape or min(self.shape) < 1 or levels < 2 or not low < high or steps < 0:
            raise PpgenError(
                f"MaskedDiffusion got features={tuple(self.shape)}, levels={levels}, low={low}, high={high}, "
                f"steps={steps}; expected features of at least 1, at least 2 levels, low < high and steps of at least 0"
            )
        self.shapes = {"x": self.shape}
        self.levels, self.low, self.high = levels, float(low), float(high)
        self.support = constraints.independent(grid(low, high, levels), 1)
        self.steps, self.limit = steps or 64, steps == 0
        size = math.prod(self.shape)
        self.net: nn.Module = MLP(size * (levels + 1), size * levels, hidden, "silu", residual=True, output_gain=0.1)
        self.register_buffer("zero", torch.zeros(size), persistent=False)

    @classmethod
    def from_data(cls, data: dict[str, Tensor]) -> dict[str, Any]:
        """The features, and the grid of levels.

        Raises:
            PpgenError: no column x, or one that is on no grid.
        """
        return grid_arguments("MaskedDiffusion", data, "diffusion")

    # -- the program -------------------------------------------------------------------------------------

    def model(self, x: Tensor | None = None) -> Tensor:
        """p_θ(x, z_0..z_1)."""
        with ppgen.rows(x):
            z = pyro.sample(f"z_{self.steps}", self.base())
            for i, (s, t) in zip(reversed(range(self.steps)), self.grid(), strict=True):
                z = pyro.sample(f"z_{i}", self.reverse(z, s, t))
            return pyro.sample("x", self.likelihood(z), obs=None if x is None else self.values(x))

    def guide(self, x: Tensor) -> None:
        """q(z | x)."""
        with ppgen.rows(x):
            z = pyro.sample(f"z_{self.steps}", self.forward(x, 1.0))
            for i, (s, t) in zip(reversed(range(self.steps)), self.grid(), strict=True):
                z = pyro.sample(f"z_{i}", self.posterior(z, x, s, t))

    def draws_apart(self) -> str | None:
        """That the steps of draws reveal many values at once, where the bound is of draws that reveal each alone."""
        size, at_once = len(self.zero), len(self.zero) / self.steps
        if not self.limit or at_once <= AT_ONCE:
            return None
        return (
            f"draws of {self.name} reveal {at_once:.2g} value(s) a step ({size} in {self.steps}), none with a look at "
            "the others; its bound is of draws that reveal one at a time. For draws closer to these set the program's "
            f"steps, run.program.steps = {math.ceil(size / AT_ONCE)}"
        )

    def predict(self, z: Tensor) -> Tensor:
        """log p_θ(x_d = k | z_t), (..., D) of 0, ..., K -> (..., D, K)."""
        seen = one_hot(z.long(), self.levels + 1).to(self.zero.dtype)
        return log_softmax(self.net(seen.flatten(-2)).reshape(*z.shape, self.levels), -1)

    # -- the four conditionals --------------------------------------------------------------------------

    def base(self, **columns: Tensor) -> TorchDistribution:
        """p(z_1): masks."""
        return self._known(torch.full_like(self.zero, self.levels))

    def forward(self, x: Tensor, t: Tensor | float, **columns: Tensor) -> TorchDistribution:
        """q(z_t | x)."""
        return self._hiding(self._log_one_hot(x), self.time(t))

    def posterior(self, z: Tensor, x: Tensor, s: Tensor | float, t: Tensor | float) -> TorchDistribution:
        """q(z_s | z_t, x)."""
        return self._between(z, self._log_one_hot(x), s, t)

    def reverse(self, z: Tensor, s: Tensor | float, t: Tensor | float, **columns: Tensor) -> TorchDistribution:
        """p_θ(z_s | z_t)."""
        return self._between(z, self.predict(z), s, t)

    def likelihood(self, z: Tensor, **columns: Tensor) -> TorchDistribution:
        """p(x | z_0): x is z_0."""
        return GridCategorical(one_hot(z.long(), self.levels + 1)[..., :-1].log(), self.low, self.high).to_event(1)

    # -- the same in closed form -------------------------------------------------------------------------

    def cost(self, x: Tensor, z: Tensor, s: Tensor, t: Tensor, **columns: Tensor) -> Tensor:
        """KL(q(z_s | z_t, x), p_θ(z_s | z_t)) in nats."""
        return (t - s) / t * self._cross_entropy(x, z)

    def rate(self, x: Tensor, z: Tensor, t: Tensor, **columns: Tensor) -> Tensor:
        """Nats a unit of time."""
        return self._cross_entropy(x, z) / t.clamp(min=SMALLEST)

    def _cross_entropy(self, x: Tensor, z: Tensor) -> Tensor:
        """Σ_{d masked} −log p_θ(x_d | z), (...)."""
        k, log_p = self.positions(x), self.predict(z)
        k = k.expand(z.shape)[..., None]
        return -(log_p.gather(-1, k)[..., 0] * (z == self.levels)).sum(-1)

    def _between(self, z: Tensor, log_x: Tensor, s: Tensor | float, t: Tensor | float) -> TorchDistribution:
        """z_s given z_t, where what is hidden is drawn by log_x, (..., D, K)."""
        hidden = self._hiding(log_x, self.time(s) / self.time(t)).base_dist.logits
        seen = one_hot(z.long(), self.levels + 1).to(hidden.dtype).log()
        hidden, seen = torch.broadcast_tensors(hidden, seen)
        return Categorical(logits=torch.where((z == self.levels)[..., None], hidden, seen)).to_event(1)

    def _hiding(self, log_x: Tensor, share: Tensor) -> TorchDistribution:
        """A value by log_x, (..., D, K), or with a probability of `share`, (...), the mask."""
        share = share[..., None, None]
        kept = log_x + torch.log1p(-share)
        return Categorical(logits=torch.cat([kept, share.log().expand(*kept.shape[:-1], 1)], -1)).to_event(1)

    def _known(self, z: Tensor) -> TorchDistribution:
        return Categorical(logits=one_hot(z.long(), self.levels + 1).to(self.zero.dtype).log()).to_event(1)

    # -- data --------------------------------------------------------------------------------------------

    def values(self, x: Tensor) -> Tensor:
        """x flat, as floats."""
        return flat_rows(x, self.shape, self.zero, "MaskedDiffusion")

    def positions(self, x: Tensor) -> Tensor:
        """Which level each value is: (..., *features) -> (..., D) of 0, ..., K − 1."""
        return ((self.values(x) - self.low) * ((self.levels - 1) / (self.high - self.low))).round().long()

    def _log_one_hot(self, x: Tensor) -> Tensor:
        return one_hot(self.positions(x), self.levels).to(self.zero.dtype).log()
