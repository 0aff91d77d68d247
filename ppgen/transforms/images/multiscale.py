r"""Images: squeeze, and the multi-scale arrangement in which half of the channels leave after each level.

Source: Density estimation using Real NVP (Dinh et al., 2017, arXiv:1605.08803), section 3.6; the conditional scale
and location of the part that leaves are Glow's (Kingma & Dhariwal, 2018, arXiv:1807.03039).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ppgen.errors import PpgenError
from ppgen.transforms.change_of_variables import FlowTransform, Pair

__all__ = ["Multiscale", "Split", "Squeeze"]


def begin_at_zero(layer: nn.Conv2d) -> None:
    """Weights and bias 0: what the layer feeds begins as the identity."""
    for p in layer.parameters():
        nn.init.zeros_(p)


def convolve(network: nn.Module, images: Tensor) -> Tensor:
    """What convolutions make of (..., C, H, W), in the images' dtype also where they are computed in mixed precision.

    Channels lie last in memory meanwhile, which the kernels for processors want.
    """
    h = images.reshape(-1, *images.shape[-3:]).to(memory_format=torch.channels_last)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            weight = layer.weight.to(memory_format=torch.channels_last)
            h = nn.functional.conv2d(h, weight, layer.bias, padding=layer.padding)
        elif isinstance(layer, nn.ReLU):
            h = layer(h)
    return h.to(images.dtype).reshape(*images.shape[:-3], *h.shape[-3:])


class Squeeze(FlowTransform):
    """Each 2x2 block of pixels becomes four channels: (C, H, W) -> (4 C, H/2, W/2) in the density direction.

    Args:
        shape: (C, H, W) with even H and W.

    >>> Squeeze((1, 4, 6)).pull(torch.zeros(1, 4, 6))[0].shape
    torch.Size([4, 2, 3])
    """

    def __init__(self, shape: Sequence[int]):
        if len(shape) != 3 or shape[1] % 2 or shape[2] % 2:
            raise PpgenError(
                f"Squeeze got the shape {tuple(shape)}; expected (channels, height, width) with even height and width"
            )
        c, h, w = shape
        super().__init__(shape, base_shape=(4 * c, h // 2, w // 2))

    def pull(self, x: Tensor, context: Tensor | None = None) -> Pair:
        return nn.functional.pixel_unshuffle(x, 2), x.new_zeros(x.shape[:-3])

    def push(self, z: Tensor, context: Tensor | None = None) -> Pair:
        return nn.functional.pixel_shuffle(z, 2), z.new_zeros(z.shape[:-3])


class HalfCoupling(FlowTransform):
    """z_b = (x_b - m(x_a)) exp(-s(x_a)) on the halves of the channels, |s| < `bound`.

    `network` gives m and s of x_a, the first `keep` channels.
    """

    keep: int
    bound: float
    network: nn.Module

    def _given(self, a: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_scale = convolve(self.network, a).chunk(2, -3)
        return loc, self.bound * (log_scale / self.bound).tanh()

    def pull(self, x: Tensor, context: Tensor | None = None) -> Pair:
        a, b = x[..., : self.keep, :, :], x[..., self.keep :, :, :]
        loc, log_scale = self._given(a)
        return torch.cat((a, (b - loc) * (-log_scale).exp()), -3), -log_scale.flatten(-3).sum(-1)

    def push(self, z: Tensor, context: Tensor | None = None) -> Pair:
        a, b = z[..., : self.keep, :, :], z[..., self.keep :, :, :]
        loc, log_scale = self._given(a)
        return torch.cat((a, loc + log_scale.exp() * b), -3), log_scale.flatten(-3).sum(-1)


class Split(HalfCoupling):
    """The second half of the channels, standardised given the first.

    With a standard normal base, that is N(m(x_a), exp(s(x_a))²) for the half that leaves.

    Args:
        shape: (C, H, W), C even.
    """

    def __init__(self, shape: Sequence[int]):
        super().__init__(shape)
        if shape[0] % 2:
            raise PpgenError(f"Split got {shape[0]} channels; expected an even number, as after a Squeeze")
        self.keep, self.bound = shape[0] // 2, 3.0
        self.network = nn.Conv2d(self.keep, 2 * self.keep, 3, padding=1)
        begin_at_zero(self.network)


class Multiscale(FlowTransform):
    """Levels of transforms of images; after each but the last, half of the channels go straight to the base.

    z is a vector: what left after the first level, ..., what the last level gives.

    Args:
        levels: for each, the transforms in the order in which the density direction applies them.
    """

    def __init__(self, levels: Sequence[Sequence[FlowTransform]]):
        size = levels[0][0].shape.numel()
        super().__init__(levels[0][0].shape, base_shape=(size,))
        self.levels = nn.ModuleList(nn.ModuleList(level) for level in levels)
        ends = [level[-1].base_shape for level in levels]
        for end, level in zip(ends, levels[1:], strict=False):
            if (end[0] // 2, *end[1:]) != tuple(level[0].shape):
                raise PpgenError(
                    f"Multiscale: a level ends with {tuple(end)}, of which half the channels go on, and the next "
                    f"begins with {tuple(level[0].shape)}"
                )
        self.ends = ends

    def pull(self, x: Tensor, context: Tensor | None = None) -> Pair:
        ladj, left = x.new_zeros(x.shape[:-3]), []
        for i, level in enumerate(self.levels):
            for t in level:  # type: ignore[attr-defined]
                x, step = t.pull(x)
                ladj = ladj + step
            if i < len(self.levels) - 1:
                x, out = x.chunk(2, -3)
                left.append(out.flatten(-3))
        return torch.cat((*left, x.flatten(-3)), -1), ladj

    def push(self, z: Tensor, context: Tensor | None = None) -> Pair:
        sizes = [e.numel() // 2 for e in self.ends[:-1]] + [self.ends[-1].numel()]
        *left, x = z.split(sizes, -1)
        x = x.reshape(*z.shape[:-1], *self.ends[-1])
        ladj = z.new_zeros(z.shape[:-1])
        for i in reversed(range(len(self.levels))):
            if i < len(self.levels) - 1:
                c, h, w = self.ends[i]
                x = torch.cat((x, left[i].reshape(*z.shape[:-1], c // 2, h, w)), -3)
            for t in reversed(self.levels[i]):  # type: ignore[call-overload]
                x, step = t.push(x)
                ladj = ladj + step
        return x, ladj
