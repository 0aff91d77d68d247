r"""A causal transformer: what is said of the i-th of a sequence depends on those before it alone.

    h⁰_0 = a learned start,  h⁰_i = E x_{i−1},  each plus a learned vector of its place
    h  ←  h + A(norm(h)),   h  ←  h + MLP(norm(h))                 layer by layer
    A:  softmax(Q Kᵀ / √d + mask) V,  the mask −∞ above the diagonal; heads side by side

Sources: Attention Is All You Need (Vaswani et al., 2017, arXiv:1706.03762); the norms come first, as in On Layer
Normalization in the Transformer Architecture (Xiong et al., 2020, arXiv:2002.04745).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ppgen.errors import PpgenError
from ppgen.nets.mlp import MLP, initialise


class CausalTransformer(nn.Module):
    """A sequence to what is said of each of its elements, and of the next: (..., n, inputs) -> (..., n + 1, outputs).

    Output i is a function of the inputs 0, ..., i − 1. Of a whole sequence the last input is left out.

    Args:
        inputs, outputs: sizes of the last dimension.
        length: the most outputs; n is at most one less.
        width: of the layers.
        layers, heads: their number; the width is a multiple of the heads.
        output_gain: as for `ppgen.nets.MLP`; with 0 all outputs are 0 at first.

    Raises:
        PpgenError: a size below 1; a width that is no multiple of the heads.

    >>> CausalTransformer(3, 5, length=8)(torch.zeros(2, 7, 3)).shape
    torch.Size([2, 8, 5])
    """

    mask: Tensor

    def __init__(
        self, inputs: int, outputs: int, length: int, width: int = 64, layers: int = 2, heads: int = 4,
        output_gain: float = 1.0,
    ):  # fmt: skip
        super().__init__()
        if min(inputs, outputs, length, width, layers, heads) < 1 or width % heads:
            raise PpgenError(
                f"CausalTransformer got inputs={inputs}, outputs={outputs}, length={length}, width={width}, "
                f"layers={layers}, heads={heads}; pass sizes of at least 1, and a width that is a multiple of heads"
            )
        self.embedding = initialise(nn.Linear(inputs, width), 1.0)
        self.start = nn.Parameter(torch.zeros(width))
        self.places = nn.Parameter(0.1 * torch.randn(length, width))
        self.layers = nn.ModuleList(_Layer(width, heads, layers) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.last = initialise(nn.Linear(width, outputs), output_gain)
        mask = torch.full((length, length), -math.inf).triu(1)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[-2] + 1
        start = self.start.expand(*x.shape[:-2], 1, -1)
        h = torch.cat([start, self.embedding(x)], -2) + self.places[:n]
        for layer in self.layers:
            h = layer(h, self.mask[:n, :n])
        return self.last(self.norm(h))


class _Layer(nn.Module):
    """One layer of attention and one MLP, each added to what goes in: (..., n, width) -> the same."""

    def __init__(self, width: int, heads: int, layers: int):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv = initialise(nn.Linear(width, 3 * width), 1.0)
        gain = (2 * layers) ** -0.5  # branches that start small: the sum keeps its size with depth
        self.out = initialise(nn.Linear(width, width), gain)
        self.mlp = MLP(width, width, (4 * width,), "gelu", output_gain=gain)

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norms[0](h)).unflatten(-1, (3, self.heads, -1)).movedim(-2, -4).unbind(-2)
        weights = (q @ k.mT / q.shape[-1] ** 0.5 + mask).softmax(-1)
        h = h + self.out((weights @ v).movedim(-3, -2).flatten(-2))
        return h + self.mlp(self.norms[1](h))
