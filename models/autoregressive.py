r"""An autoregressive model of categorical data: a transformer gives the probabilities of a value from those before it.

    P(x) = Π_d softmax(f_θ(x_1, ..., x_{d−1}))_{x_d}         x: (D,) values on a grid of K levels, told apart by name

The probability of a row is exact and takes one pass of the network; a draw takes D, one value after the other.

Source: Attention Is All You Need (Vaswani et al., 2017, arXiv:1706.03762), its decoder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import one_hot

import ppgen
from ppgen.chains.chain import flat_rows
from ppgen.distributions import GridCategorical, grid
from ppgen.distributions.dequantize import grid_arguments
from ppgen.distributions.expanding import Expanding
from ppgen.errors import PpgenError
from ppgen.nets import CausalTransformer


class Autoregressive(ppgen.Program):
    """P(x) of rows of values on a grid, in the order of the columns.

    The column is x, (N, D) or (N, *features), values low, ..., high on a grid of K = levels. Nothing is latent.

    Args:
        features: D, or the shape of one datum. Draws are flat.
        levels, low, high: K, the first and the last level.
        width, layers, heads: of the transformer, see `ppgen.nets.CausalTransformer`.

    Raises:
        PpgenError: an argument out of range; a column of another size.
    """

    rows_a_step = 256
    zero: Tensor

    def __init__(
        self, features: int | Sequence[int], levels: int = 2, low: float = 0.0, high: float = 1.0, width: int = 64,
        layers: int = 2, heads: int = 4,
    ):  # fmt: skip
        super().__init__()
        self.shape = torch.Size((features,) if isinstance(features, int) else features)
        if not self.shape or min(self.shape) < 1 or levels < 2 or not low < high:
            raise PpgenError(
                f"Autoregressive got features={tuple(self.shape)}, levels={levels}, low={low}, high={high}; expected "
                "features of at least 1, at least 2 levels and low < high"
            )
        self.shapes = {"x": self.shape}
        self.grid = grid(low, high, levels)
        size = math.prod(self.shape)
        self.net = CausalTransformer(levels, levels, size, width, layers, heads, output_gain=0.1)
        self.register_buffer("zero", torch.zeros(size), persistent=False)

    @classmethod
    def from_data(cls, data: dict[str, Tensor]) -> dict[str, Any]:
        """The features, and the grid of levels.

        Raises:
            PpgenError: no column x, or one that is on no grid.
        """
        return grid_arguments("Autoregressive", data, "flow")

    def model(self, x: Tensor | None = None) -> Tensor:
        """P(x)."""
        with ppgen.rows(x):
            obs = None if x is None else flat_rows(x, self.shape, self.zero, "Autoregressive")
            return pyro.sample("x", _AutoregressiveCategorical(self), obs=obs)

    def given(self, x: Tensor) -> GridCategorical:
        """P(x_d | those before it) of the first n + 1 values: (..., n) -> batch shape (..., n + 1)."""
        seen = one_hot(self.grid.position(x).round().long(), self.grid.levels).to(self.zero.dtype)
        return GridCategorical(self.net(seen), self.grid.low, self.grid.high)


class _AutoregressiveCategorical(Expanding):
    """The distribution of a row, one value given those before it: event shape (D,).

    Args:
        program: an `Autoregressive`.
    """

    def __init__(self, program: Autoregressive):
        self.program = program
        super().__init__(torch.Size(), program.zero.shape)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        return constraints.independent(self.program.grid, 1)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        grid = self.program.grid
        with torch.no_grad():
            x = self.program.zero.new_zeros(torch.Size(sample_shape) + self.batch_shape + (0,))
            for _ in range(len(self.program.zero)):
                logits = self.program.given(x).logits[..., -1:, :]
                x = torch.cat([x, GridCategorical(logits, grid.low, grid.high).sample()], -1)
            return x

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        log_p = self.program.given(value[..., :-1]).log_prob(value).sum(-1)
        return log_p.expand(torch.broadcast_shapes(log_p.shape, self.batch_shape))
