r"""Densities for discrete data: a latent v whose cell is the observed value.

    v ~ density on ℝ^D (a flow),   x = the level whose cell holds v:   P(x) = ∫_cell(x) p(v) dv
    guide:  v = k(x) + u,  u in [0, 1)^D uniform, or from a flow given x (variational dequantisation)

so that E_q[log p(v) - log q(v | x)] <= log P(x): an ELBO like any other, tightened by importance weights, and the log
of a probability: nats over D ln 2 are bits/dim. Level k has the cell [k, k + 1); the two end cells reach to ±∞.

Sources: A note on the evaluation of generative models (Theis et al., 2016, arXiv:1511.01844); Flow++ (Ho et al., 2019,
arXiv:1902.00275).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution, TransformedDistribution, Uniform
from torch import Tensor
from torch.distributions import AffineTransform, SigmoidTransform, Transform, constraints

from ppgen.data import blocks
from ppgen.distributions import grid
from ppgen.distributions.expanding import Expanding
from ppgen.errors import PpgenError, lacking

__all__ = ["Cell", "Quantised", "find_grid", "grid_arguments", "logit_cells"]


class Quantised(Expanding):
    """The level whose cell holds v: a certain event given v, of probability 1 or 0.

    Args:
        v: positions in index units, (..., D).
        low, high, levels: the grid of values, level k being low + k (high - low) / (levels - 1).

    >>> Quantised(torch.tensor([[0.3, 254.9, 300.0]]), 0.0, 1.0, 256).sample() * 255
    tensor([[  0., 254., 255.]])
    """

    expanded = {"v": 1}

    def __init__(self, v: Tensor, low: float = 0.0, high: float = 1.0, levels: int = 256, validate_args: Any = None):
        self.v, self.grid = v, grid(low, high, levels)
        super().__init__(v.shape[:-1], v.shape[-1:], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        return constraints.independent(self.grid, 1)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        with torch.no_grad():
            k = self.v.floor().clamp(0, self.grid.levels - 1)
            return self.grid.value(k).expand(torch.Size(sample_shape) + self.v.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        k = self.grid.position(value).round()
        # cells are closed on both sides: k + u, u < 1, may be rounded to k + 1
        above = (self.v >= k) | (k <= 0)
        below = (self.v <= k + 1) | (k >= self.grid.levels - 1)
        inside = (above & below).all(-1)
        return torch.where(inside, 0.0, -torch.inf).to(self.v.dtype)


class Cell(TransformedDistribution):
    """q(v | x): v = k(x) + u, u uniform on [0, 1)^D or u = sigmoid(w), w from a flow.

    Args:
        k: levels of the data, (..., D), as floats.
        noise: the distribution of w on ℝ^D, batch (...); None for uniform u.

    >>> Cell(torch.zeros(5, 3)).log_prob(torch.full((5, 3), 0.7))
    tensor([0., 0., 0., 0., 0.])
    """

    def __init__(self, k: Tensor, noise: TorchDistribution | None = None):
        if noise is None:
            noise = Uniform(torch.zeros_like(k), torch.ones_like(k), validate_args=False).to_event(1)
            parts: list[Transform] = [AffineTransform(k, 1.0, event_dim=1)]
        else:
            parts = [SigmoidTransform(), AffineTransform(k, 1.0, event_dim=1)]
        super().__init__(noise, parts, validate_args=False)
        self.k, self.uniform = k, len(parts) == 1

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Cell:
        batch_shape = torch.Size(batch_shape)
        noise = None if self.uniform else self.base_dist.expand(batch_shape)
        return Cell(self.k.expand(batch_shape + self.event_shape), noise)

    def log_prob(self, value: Tensor) -> Tensor:
        """log q(v | x) in nats, batch (...)."""
        if not self.uniform:
            return super().log_prob(value)
        u = value - self.k  # 1 is let pass: k + u may have been rounded up to it
        return torch.where(((u >= 0) & (u <= 1)).all(-1), 0.0, -torch.inf).to(value)

    @property
    def support(self) -> constraints.Constraint:
        # All that the model's v can be: outside the cell the likelihood is 0, so that covering the cell is enough.
        return constraints.real_vector


def logit_cells(levels: int, margin: float) -> list[Transform]:
    """Transforms from ℝ to index units v: v/L = (sigmoid(y) - a) / (1 - 2 a), with their Jacobians.

    Args:
        levels: L.
        margin: a, so that the edges 0 and L are no infinities.
    """
    width = levels / (1 - 2 * margin)
    return [SigmoidTransform(), AffineTransform(-margin * width, width)]


def find_grid(x: Tensor) -> tuple[float, float, int] | None:
    """The coarsest grid (low, high, levels <= 256) on which all values of x lie, or None.

    Whole numbers lie on 0, 1, ..., of bytes up to 255 where one is above 31; fractions on k/n in [0, 1] or 2k/n - 1 in
    [-1, 1]. One fraction alone makes no grid.

    >>> find_grid(torch.tensor([[0, 3], [7, 1]]))
    (0.0, 7.0, 8)
    >>> find_grid(torch.tensor([-1.0, 0.5, 1.0]))
    (-1.0, 1.0, 5)
    >>> find_grid(torch.randn(4, 2)) is None
    True
    """
    values = torch.unique(x.flatten()[:1_000_000]).double()
    if not 1 <= len(values) <= 256:
        return None
    least, most = min(b.min().item() for b in blocks(x)), max(b.max().item() for b in blocks(x))
    whole = not x.is_floating_point() or all(bool((b == b.round()).all()) for b in blocks(x))
    if least >= 0 and most <= 255 and whole:
        top = 255 if most > 31 else max(int(most), 1)
        return 0.0, float(top), top + 1
    low = 0.0 if least >= 0 else -1.0
    if least < -1 or most > 1 or len(values) == 1:
        return None
    for n in range(1, 256):
        step = (1 - low) / n
        if _whole((values - low) / step) and all(_whole((b.double() - low) / step) for b in blocks(x)):
            return low, 1.0, n + 1
    return None


def _whole(position: Tensor) -> bool:
    return bool(((position - position.round()).abs() < 1e-3).all())


def require_grid(low: float, high: float, levels: int) -> None:
    """Raises PpgenError where the grid is none."""
    if levels < 2 or not low < high:
        raise PpgenError(
            f"the grid of values has low={low}, high={high}, levels={levels}; expected low < high and at least 2 levels"
        )


def grid_arguments(name: str, data: Mapping[str, Tensor], otherwise: str) -> dict[str, Any]:
    """The arguments of a model of categories: features, levels, low and high, as the column x has them.

    Args:
        name: of the model. otherwise: of one for continuous values.

    Raises:
        PpgenError: no column x, or one that is on no grid.
    """
    found = find_grid(data["x"]) if "x" in data and data["x"].dim() > 1 else None
    if found is None:
        needed = f"{name} needs a column x, (rows, features), of values on a grid such as 0, 1, 2, ..."
        raise lacking(needed, data, f"take the model {otherwise} for continuous values")
    low, high, levels = found
    return {"features": list(data["x"].shape[1:]), "levels": levels, "low": low, "high": high}
