r"""Glow: steps of ActNorm, invertible 1x1 convolution and affine coupling by a convolutional net, at several scales.

Source: Glow: Generative Flow with Invertible 1x1 Convolutions (Kingma & Dhariwal, 2018, arXiv:1807.03039).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ppgen.errors import PpgenError
from ppgen.transforms.change_of_variables import FlowTransform
from ppgen.transforms.images.multiscale import HalfCoupling, Multiscale, Split, Squeeze, begin_at_zero
from ppgen.transforms.linear import conv1x1
from ppgen.transforms.univariate.elementwise import ActNorm

__all__ = ["ConvCoupling", "glow", "glow_step"]


def small_net(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Glow's network: 3x3, 1x1 and 3x3 convolutions, the last of them zero to begin with."""
    last = nn.Conv2d(hidden, outputs, 3, padding=1)
    begin_at_zero(last)
    return nn.Sequential(
        nn.Conv2d(inputs, hidden, 3, padding=1), nn.ReLU(), nn.Conv2d(hidden, hidden, 1), nn.ReLU(), last
    )


class ConvCoupling(HalfCoupling):
    """A `HalfCoupling` with |s| < 2; the identity to begin with.

    Args:
        shape: (C, H, W), C >= 2.
        hidden: channels of the network's two hidden layers (3x3 and 1x1).
    """

    def __init__(self, shape: Sequence[int], hidden: int = 64):
        super().__init__(shape)
        if shape[0] < 2:
            raise PpgenError(f"ConvCoupling got {shape[0]} channel; expected two at least: squeeze the images first")
        self.keep, self.bound = shape[0] // 2, 2.0
        self.network = small_net(self.keep, hidden, 2 * (shape[0] - self.keep))


def glow_step(shape: Sequence[int], hidden: int = 64) -> list[FlowTransform]:
    """ActNorm, 1x1 convolution and coupling of images of one shape, in the order of the density direction."""
    return [ActNorm(shape), conv1x1(shape), ConvCoupling(shape, hidden)]


def glow(shape: Sequence[int], levels: int = 2, steps: int = 4, hidden: int = 64) -> Multiscale:
    """The multi-scale flow of images from a vector of as many standard normals.

    Args:
        shape: (C, H, W), height and width divisible by 2^levels.
        levels: squeezes; half of the channels leave after each but the last.
        steps: glow steps a level.
        hidden: channels of the networks.

    >>> import torch
    >>> from pyro.distributions import Normal, TransformedDistribution
    >>> p = TransformedDistribution(Normal(torch.zeros(64), 1.0).to_event(1), [glow((1, 8, 8)).eval()])
    >>> p.log_prob(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5])
    """
    c, h, w = shape
    if levels < 1 or h % 2**levels or w % 2**levels:
        raise PpgenError(
            f"glow got levels={levels} for images of {h}x{w}; expected at least 1, and sides divisible by 2^levels"
        )
    parts: list[list[FlowTransform]] = []
    for i in range(levels):
        squeeze = Squeeze((c, h, w))
        c, h, w = squeeze.base_shape
        level: list[FlowTransform] = [squeeze]
        for _ in range(steps):
            level += glow_step((c, h, w), hidden)
        if i < levels - 1:
            level.append(Split((c, h, w)))
            c //= 2
        parts.append(level)
    return Multiscale(parts)
