r"""Masked convolutions: what comes out at a place depends on the places before it alone, row by row, left to right.

    u⁰ = A * x + h,     A: taps strictly before the place, h: features of the whole image, from elsewhere
    u  ←  u + W (a ⊙ σ(b)),   (a, b) = B * u           layer by layer; B: the place itself, too
    out = W₂ silu(W₁ silu(u))                          1 x 1 convolutions

The kernels have no rows below the place: of (r + 1) x (2 r + 1) taps, r or r + 1 are zero.

Sources: Pixel Recurrent Neural Networks (van den Oord, Kalchbrenner, Kavukcuoglu 2016, arXiv:1601.06759), the masks A
and B; Conditional Image Generation with PixelCNN Decoders (van den Oord et al., 2016, arXiv:1606.05328), the gates.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad, silu

from ppgen.errors import PpgenError
from ppgen.nets.mlp import initialise


class MaskedConvNet(nn.Module):
    """Images, and features of as many places, to what is said of each place: (..., C, H, W) -> (..., outputs, H, W).

    The output at a place is a function of the image's places before it, in the order of the rows, and of the features
    of these and of itself.

    Args:
        inputs: C. outputs: numbers a place.
        width: channels of the layers, and of the features.
        layers: gated layers, each of which sees one place further.
        window: r of the first layer: so many rows up, and so many places to both sides.
        dropout: probability of zeroing a gated channel of a whole image while training.
        output_gain: as for `ppgen.nets.MLP`.

    Raises:
        PpgenError: a size below 1, or no dropout in [0, 1).

    >>> MaskedConvNet(1, 2, width=8)(torch.zeros(3, 5, 1, 6, 6), torch.zeros(3, 5, 8, 6, 6)).shape
    torch.Size([3, 5, 2, 6, 6])
    """

    def __init__(
        self, inputs: int, outputs: int, width: int = 64, layers: int = 4, window: int = 3, dropout: float = 0.0,
        output_gain: float = 1.0,
    ):  # fmt: skip
        super().__init__()
        if min(inputs, outputs, width, layers, window) < 1 or not 0 <= dropout < 1:
            raise PpgenError(
                f"MaskedConvNet got inputs={inputs}, outputs={outputs}, width={width}, layers={layers}, "
                f"window={window}, dropout={dropout}; pass sizes of at least 1, and 0 <= dropout < 1"
            )
        self.first = _Causal(inputs, width, window, itself=False)
        self.layers = nn.ModuleList(_Layer(width, layers, dropout) for _ in range(layers))
        self.hidden = initialise(nn.Conv2d(width, width, 1), 2**0.5)
        self.last = initialise(nn.Conv2d(width, outputs, 1), output_gain)

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        lead = x.shape[:-3]
        u = self.first(x.reshape(-1, *x.shape[-3:]).to(memory_format=torch.channels_last))
        if h is not None:
            u = u + h.reshape(-1, *h.shape[-3:])
        for layer in self.layers:
            u = layer(u)
        out = self.last(silu(self.hidden(silu(u))))
        return out.reshape(*lead, *out.shape[-3:])


class _Layer(nn.Module):
    """u + W (a ⊙ σ(b)), (a, b) = B * u."""

    def __init__(self, width: int, layers: int, dropout: float):
        super().__init__()
        self.conv = _Causal(width, 2 * width, 1, itself=True)
        self.dropout = nn.Dropout2d(dropout) if dropout else nn.Identity()
        self.out = initialise(nn.Conv2d(width, width, 1), layers**-0.5)  # the sum keeps its size with depth

    def forward(self, u: Tensor) -> Tensor:
        a, b = self.conv(u).chunk(2, 1)
        return u + self.out(self.dropout(a * b.sigmoid()))


class _Causal(nn.Module):
    """A convolution of the places before, and where `itself` of the place: (N, C, H, W) -> (N, outputs, H, W)."""

    mask: Tensor

    def __init__(self, inputs: int, outputs: int, reach: int, *, itself: bool):
        super().__init__()
        self.reach = reach
        conv = initialise(nn.Conv2d(inputs, outputs, (reach + 1, 2 * reach + 1)), 1.0)
        mask = torch.ones_like(conv.weight[:1, :1])
        mask[..., -1, reach + itself :] = 0.0
        self.weight = nn.Parameter(conv.weight.detach() * (mask.numel() / mask.sum()) ** 0.5 * mask)
        self.bias = conv.bias
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        r = self.reach
        weight = (self.weight * self.mask).to(memory_format=torch.channels_last)
        return conv2d(pad(x, (r, r, r, 0)), weight, self.bias)
