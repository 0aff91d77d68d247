"""A U-Net on images that know what time it is, for chains of latents, sized by its arguments.

Sources: U-Net (Ronneberger et al., 2015, arXiv:1505.04597); as a denoiser, Denoising Diffusion Probabilistic Models (Ho
et al., 2020, arXiv:2006.11239); Fourier features of the input, Variational Diffusion Models (Kingma et al., 2021,
arXiv:2107.00630); squares of pixels read as one, Improving Diffusion Model Efficiency Through Patching (Luhman and
Luhman, 2022, arXiv:2207.04316).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pixel_shuffle, pixel_unshuffle, scaled_dot_product_attention, silu

from ppgen.errors import PpgenError
from ppgen.nets.mlp import initialise
from ppgen.nets.time import TimeEmbedding, waves


class UNet(nn.Module):
    """f(z, u, label): (..., C H W), (...) -> (..., outputs C H W), flat images in and out.

    Each level has `blocks` residual blocks (group norm, convolution, scale and shift by the time) on the way down and
    again on the way up, with a skip connection each; below `attention` x `attention` they are followed by
    self-attention of one head. At first the output is 0.

    Args:
        shape: (C, H, W); H and W divisible by 2^(levels - 1).
        outputs: numbers a value; the first number of every value comes first.
        widths: channels of the levels, each of half the side of the one before.
        blocks: residual blocks a level.
        attention: largest side with self-attention, 0 for none.
        classes: number of labels, 0 for none.
        fourier: exponents n of sin(2ⁿ π z) and cos(2ⁿ π z) that are appended to the input's channels: they tell
            neighbouring grey levels apart. Each is let through at the times when it is more than noise: a factor of
            the time's own, learned.
        patch: side P of the squares of pixels that are read as one: (P² C, H / P, W / P) inside.

    Raises:
        PpgenError: a shape that cannot be halved so often.

    >>> UNet((1, 8, 8), widths=(8, 16))(torch.zeros(3, 2, 64), torch.rand(3, 2)).shape
    torch.Size([3, 2, 64])
    """

    layout = torch.channels_last  # in memory, in which a training step takes 0.85 of the time (benchmarks/denoisers.py)

    def __init__(
        self,
        shape: Sequence[int],
        outputs: int = 1,
        widths: Sequence[int] = (32, 64, 64),
        blocks: int = 1,
        attention: int = 8,
        classes: int = 0,
        fourier: Sequence[int] = (),
        patch: int = 1,
    ):
        super().__init__()
        factor = max(patch, 1) * 2 ** (len(widths) - 1)
        if len(shape) != 3 or shape[1] % factor or shape[2] % factor or not widths or min(blocks, patch) < 1:
            raise PpgenError(
                f"UNet got shape={tuple(shape)}, widths={tuple(widths)}, blocks={blocks}, patch={patch}; expected "
                f"(channels, height, width) whose height and width {factor} divides, and at least one block"
            )
        self.shape, self.outputs, self.patch = torch.Size(shape), outputs, patch
        channels, embed = shape[0] * patch**2, 4 * widths[0]
        self.fourier = tuple(fourier)
        self.time = TimeEmbedding(embed, classes)
        self.gate = initialise(nn.Linear(embed, 2 * len(self.fourier)), 1.0) if self.fourier else None
        self.first = _conv(channels * (1 + 2 * len(self.fourier)), widths[0])
        self.down, self.up, self.shrink, self.grow = (nn.ModuleList() for _ in range(4))
        skips, width = [widths[0]], widths[0]
        sides = [max(shape[1:]) // (patch * 2**i) for i in range(len(widths))]
        for level, (w, side) in enumerate(zip(widths, sides, strict=True)):
            for _ in range(blocks):
                self.down.append(_Block(width, w, embed, side <= attention))
                width = w
                skips.append(width)
            last = level == len(widths) - 1
            self.shrink.append(nn.Identity() if last else _conv(width, width, stride=2))
            if not last:
                skips.append(width)
        self.middle = _Block(width, width, embed, sides[-1] <= attention)
        for level, (w, side) in reversed(list(enumerate(zip(widths, sides, strict=True)))):
            for _ in range(blocks + 1):
                self.up.append(_Block(width + skips.pop(), w, embed, side <= attention))
                width = w
            self.grow.append(_conv(width, width) if level else nn.Identity())
        self.norm = _norm(width)
        self.last = _conv(width, outputs * channels, gain=0.0)
        self.blocks = blocks

    def forward(self, z: Tensor, u: Tensor, label: Tensor | None = None) -> Tensor:
        lead = z.shape[:-1]
        e = self.time(u.expand(lead), None if label is None else label.expand(lead))
        h = pixel_unshuffle(z.reshape(-1, *self.shape), self.patch)
        e = e.reshape(len(h), -1)
        if self.gate is not None:
            open_ = torch.sigmoid(self.gate(e)).to(h.dtype)[..., None, None].split(1, 1)
            h = torch.cat([h, *(g * w for g, w in zip(open_, waves(h, self.fourier), strict=True))], 1)
        h = self.first(h).contiguous(memory_format=self.layout)
        skips, levels = [h], len(self.shrink)
        for level in range(levels):
            for block in self.down[level * self.blocks : (level + 1) * self.blocks]:
                h = block(h, e)
                skips.append(h)
            if level < levels - 1:
                h = self.shrink[level](h)
                skips.append(h)
        h = self.middle(h, e)
        for level in range(levels):
            for block in self.up[level * (self.blocks + 1) : (level + 1) * (self.blocks + 1)]:
                h = block(torch.cat([h, skips.pop()], 1), e)
            if level < levels - 1:
                h = self.grow[level](interpolate(h, scale_factor=2.0, mode="nearest"))
        with torch.autocast(h.device.type, enabled=False):  # what comes out is not rounded in mixed precision
            h = self.last(silu(self.norm(h.to(self.last.weight.dtype))))
        return pixel_shuffle(h, self.patch).reshape(*lead, -1)


class _Block(nn.Module):
    """x + conv(silu(scale · norm(conv(silu(norm x))) + shift)), then attention where asked."""

    def __init__(self, inputs: int, outputs: int, embed: int, attention: bool):
        super().__init__()
        self.norm1, self.norm2 = _norm(inputs), _norm(outputs)
        self.conv1, self.conv2 = _conv(inputs, outputs, gain=2**0.5), _conv(outputs, outputs, gain=0.1)
        self.film = initialise(nn.Linear(embed, 2 * outputs), 0.1)
        self.skip = nn.Identity() if inputs == outputs else initialise(nn.Conv2d(inputs, outputs, 1), 1.0)
        self.attention = _Attention(outputs) if attention else None

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        scale, shift = self.film(e)[..., None, None].chunk(2, 1)
        h = self.conv1(silu(self.norm1(x)))
        h = self.skip(x) + self.conv2(silu(self.norm2(h) * (1 + scale) + shift))
        return h if self.attention is None else self.attention(h)


class _Attention(nn.Module):
    """x + self-attention over the pixels, one head."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = _norm(channels)
        self.qkv = initialise(nn.Conv2d(channels, 3 * channels, 1), 1.0)
        self.out = initialise(nn.Conv2d(channels, channels, 1), 0.1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).mT.chunk(3, -1)
        h = scaled_dot_product_attention(q, k, v)
        return x + self.out(h.mT.reshape(x.shape))


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(channels, 8), channels)


def _conv(inputs: int, outputs: int, stride: int = 1, gain: float = 1.0) -> nn.Conv2d:
    return initialise(nn.Conv2d(inputs, outputs, 3, stride, 1), gain)
