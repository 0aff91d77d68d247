"""A convolutional encoder and its mirror image, for square images given as flat feature vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ppgen.errors import PpgenError
from ppgen.nets.mlp import activation_module, gain_of, initialise


class ConvEncoder(nn.Module):
    """Strided convolutions, then a dense layer: (..., channels · side² + context) -> (..., outputs).

    The image lies flat in the last dimension, channel first, row by row; `context` further entries
    after it (a label, say) go to the dense layer. The side is halved, rounding up, once a width.

    Args:
        side: of the image, at least 8.
        outputs: size of the last dimension that comes out.
        channels: of the image.
        widths: channels of the layers, one a halving.
        context: entries of the input that are no pixels.
        activation: its name, see `ppgen.nets.activations`.
        dropout: probability of zeroing a unit of the dense layer while training.
        dense: width of the dense layer.

    Raises:
        PpgenError: a side below 8; more halvings than the side allows; no such activation.

    >>> ConvEncoder(28, 40)(torch.zeros(3, 2, 784)).shape
    torch.Size([3, 2, 40])
    """

    def __init__(
        self,
        side: int,
        outputs: int,
        channels: int = 1,
        widths: Sequence[int] = (32, 64),
        context: int = 0,
        activation: str = "relu",
        dropout: float = 0.0,
        dense: int = 200,
    ):
        super().__init__()
        sides, gain = _sides(side, widths), gain_of(activation)
        self.image = (channels, side, side)
        layers: list[nn.Module] = []
        for i, o in zip((channels, *widths), widths, strict=False):
            # 4 x 4 taps at stride 2 cover every pixel equally often; 3 x 3 do not
            layers += [nn.ZeroPad2d((1, 2, 1, 2)), nn.Conv2d(i, o, 4, 2)]
            layers += [activation_module(activation)]
        self.convolutions = nn.Sequential(*layers)
        self.context = context
        flat = widths[-1] * sides[-1] ** 2
        self.dense = nn.Sequential(
            nn.Linear(flat + context, dense),
            activation_module(activation),
            nn.Dropout(dropout) if dropout else nn.Identity(),
        )
        self.last = initialise(nn.Linear(dense, outputs), 1.0)
        for module in (*self.convolutions, *self.dense):
            if hasattr(module, "weight"):
                initialise(module, gain)

    def forward(self, x: Tensor) -> Tensor:
        lead, pixels = x.shape[:-1], math.prod(self.image)
        images, context = x[..., :pixels], x[..., pixels:]
        h = self.convolutions(images.reshape(-1, *self.image)).flatten(1)
        h = h.reshape(*lead, h.shape[-1])
        return self.last(self.dense(torch.cat([h, context], -1) if self.context else h))


class ConvDecoder(nn.Module):
    """The mirror image of `ConvEncoder`: (..., inputs) -> (..., outputs · channels · side²).

    The last dimension that comes out is a flat image of channels x side x side, and of `outputs`
    such numbers each: as many as the likelihood of one value has parameters, the first parameter of
    every value first.

    Args:
        inputs: size of the last dimension that goes in.
        side, channels: of the image, the side at least 8.
        outputs: numbers a value.
        widths: channels of the layers, those of the encoder, in its order.
        activation, dropout, dense: as for the encoder.
        output_gain: as for `ppgen.nets.MLP`.

    Raises:
        PpgenError: as for the encoder.

    >>> ConvDecoder(20, 8)(torch.zeros(3, 2, 20)).shape
    torch.Size([3, 2, 64])
    """

    def __init__(
        self,
        inputs: int,
        side: int,
        channels: int = 1,
        outputs: int = 1,
        widths: Sequence[int] = (32, 64),
        activation: str = "relu",
        dropout: float = 0.0,
        dense: int = 200,
        output_gain: float = 1.0,
    ):
        super().__init__()
        sides, gain = _sides(side, widths), gain_of(activation)
        widths = tuple(widths)[::-1]
        self.start = (widths[0], sides[-1], sides[-1])
        self.dense = nn.Sequential(
            nn.Linear(inputs, dense),
            activation_module(activation),
            nn.Dropout(dropout) if dropout else nn.Identity(),
            nn.Linear(dense, math.prod(self.start)),
            activation_module(activation),
        )
        out = (*widths[1:], outputs * channels)
        *inner, last = (nn.ConvTranspose2d(i, o, 4, 2, 1) for i, o in zip(widths, out, strict=True))
        for module in (*self.dense, *inner):
            if hasattr(module, "weight"):
                initialise(module, gain)
        self.convolutions = nn.ModuleList([*inner, initialise(last, output_gain)])
        self.sides = sides[-2::-1]
        self.activation = activation_module(activation)

    def forward(self, z: Tensor) -> Tensor:
        lead = z.shape[:-1]
        h = self.dense(z).reshape(-1, *self.start)
        for i, (layer, side) in enumerate(zip(self.convolutions, self.sides, strict=True)):
            h = layer(self.activation(h) if i else h)[..., :side, :side]
        h = h.flatten(1)
        return h.reshape(*lead, h.shape[-1])


def _sides(side: int, widths: Sequence[int]) -> list[int]:
    """The side of the image before and after each halving, which rounds up."""
    if side < 8:
        raise PpgenError(f"the convolutional nets got side={side}; pass 8 or more, or take an MLP")
    if not widths or min(widths) < 1:
        raise PpgenError(f"the convolutional nets got widths={tuple(widths)}; pass some, all >= 1")
    sides = [side]
    for _ in widths:
        sides.append((sides[-1] + 1) // 2)
    if sides[-2] < 2:
        raise PpgenError(
            f"the convolutional nets got side={side} and {len(widths)} widths, which halve it below "
            "2; pass fewer widths"
        )
    return sides
