r"""The PixelCNN: images on a grid of levels, one patch of pixels given those before it, by masked convolutions.

    P(x) = Π_i softmax(f_θ(x_1, ..., x_{i−1}, h)_i)_{k(x_i)}         x_i: a patch of p x p pixels, row by row

k(x_i), 0, ..., K^(C p²) − 1, numbers the values that a patch of C channels with K levels can have. With p = 1 that is
the PixelCNN of the paper; with p = 2, of binary images, each factor is the joint probability of four pixels, and the
convolutions go over a quarter of the places. h: features of each place that the image is conditioned on, if any.

The probability of a row is exact and takes one pass of the network; a draw takes one for each patch.

Sources: Pixel Recurrent Neural Networks (van den Oord, Kalchbrenner, Kavukcuoglu 2016, arXiv:1601.06759); Conditional
Image Generation with PixelCNN Decoders (van den Oord et al., 2016, arXiv:1606.05328), for h.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

import ppgen
from ppgen.chains.chain import flat_rows
from ppgen.distributions import grid
from ppgen.distributions.dequantize import grid_arguments
from ppgen.distributions.expanding import Expanding
from ppgen.errors import PpgenError
from ppgen.nets import MaskedConvNet

MOST = 1024  # values of a patch


class PixelCNN(ppgen.Program):
    """P(x) of images with values on a grid. Nothing is latent.

    The columns are x, (N, *features) or flat, and, with `context`, h, (N, context, H / p, W / p): with one, the model
    is a likelihood for others, `ppgen.sample("x", PixelCNN(..., context=True), obs=x, h=h)`. Draws are flat.

    Args:
        features: (C, H, W), (H, W), or D, a square image of one channel.
        levels, low, high: K, the first and the last level.
        patch: p, the side of a patch, which divides H and W.
        width, layers, window, dropout: of the network, see `ppgen.nets.MaskedConvNet`.
        context: whether there is a column h, of `width` channels.

    Raises:
        PpgenError: an argument out of range; patches that can have more than 1 024 values; a column of another size.
    """

    rows_a_step = 128
    zero: Tensor
    powers: Tensor

    def __init__(
        self, features: int | Sequence[int], levels: int = 2, low: float = 0.0, high: float = 1.0, patch: int = 1,
        width: int = 64, layers: int = 4, window: int = 3, dropout: float = 0.0, context: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.shape = torch.Size((features,) if isinstance(features, int) else features)
        self.shapes = {"x": self.shape}
        self.grid, self.patch, self.width, self.context = grid(low, high, levels), patch, width, context
        self.image = _image(self.shape)
        c, height, side = self.image
        if patch < 1 or height % patch or side % patch:
            raise PpgenError(f"PixelCNN got patch={patch} for images of {height} x {side}; take one that divides both")
        pixels = c * patch**2
        if levels**pixels > MOST:
            raise PpgenError(
                f"PixelCNN got levels={levels}, patch={patch} and {c} channels: {levels}^{pixels} values of a patch, "
                f"and {MOST} at most are told apart; take a smaller patch, or fewer levels"
            )
        self.places = (height // patch, side // patch)
        self.net = MaskedConvNet(pixels, levels**pixels, width, layers, window, dropout, output_gain=0.1)
        self.register_buffer("powers", float(levels) ** torch.arange(pixels), persistent=False)
        self.register_buffer("zero", torch.zeros(self.shape.numel()), persistent=False)

    @classmethod
    def from_data(cls, data: dict[str, Tensor]) -> dict[str, Any]:
        """The features, and the grid of levels.

        Raises:
            PpgenError: no column x, or one that is on no grid.
        """
        return grid_arguments("PixelCNN", data, "image_flow")

    def model(self, x: Tensor | None = None, h: Tensor | None = None) -> Tensor:
        """P(x), or P(x | h)."""
        if self.context and h is None:
            raise PpgenError("PixelCNN(context=True) is conditional on features h, and got none; pass a column h")
        with ppgen.rows(x, h):
            obs = None if x is None else flat_rows(x, self.shape, self.zero, "PixelCNN")
            return pyro.sample("x", _PixelCategorical(self, h), obs=obs)

    def patches(self, x: Tensor) -> Tensor:
        """Flat images as positions 0, ..., K − 1 of the grid, by patches: (..., D) -> (..., C p², H / p, W / p)."""
        positions = self.grid.position(x).round().reshape(*x.shape[:-1], *self.image)
        return pixel_unshuffle(positions, self.patch)

    def flat(self, patches: Tensor) -> Tensor:
        """The inverse of `patches`."""
        return self.grid.value(pixel_shuffle(patches, self.patch).flatten(-3))

    def log_probs(self, patches: Tensor, h: Tensor | None = None) -> Tensor:
        """log P of all values of each patch given those before it: (..., C p², H / p, W / p) -> (..., K^(C p²), H / p,
        W / p)."""
        units = 2.0 / (self.grid.levels - 1) * patches - 1.0
        if h is not None:
            lead = torch.broadcast_shapes(units.shape[:-3], h.shape[:-3])
            units, h = units.expand(*lead, -1, -1, -1), h.expand(*lead, -1, -1, -1)
        return self.net(units, h).to(units.dtype).log_softmax(-3)

    def numbers(self, patches: Tensor) -> Tensor:
        """k of each patch: (..., C p², H / p, W / p) -> (..., H / p, W / p), whole numbers."""
        return (patches * self.powers[:, None, None]).sum(-3).long()

    def values(self, numbers: Tensor) -> Tensor:
        """The inverse of `numbers`."""
        k = numbers[..., None, :, :].to(self.powers.dtype)
        return (k / self.powers[:, None, None]).floor() % self.grid.levels


class _PixelCategorical(Expanding):
    """The distribution of a flat image, one patch given those before it: event shape (D,).

    Args:
        program: a `PixelCNN`.
        h: its features, (..., width, H / p, W / p).
    """

    def __init__(self, program: PixelCNN, h: Tensor | None = None):
        self.program, self.h = program, h
        super().__init__(torch.Size() if h is None else h.shape[:-3], program.zero.shape)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        return constraints.independent(self.program.grid, 1)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        program, lead = self.program, torch.Size(sample_shape) + self.batch_shape
        x = program.patches(program.zero.expand(*lead, -1))
        for i in range(program.places[0]):
            for j in range(program.places[1]):
                p = program.log_probs(x[..., : i + 1, :], self._up_to(i))[..., i, j].exp()
                k = torch.multinomial(p.reshape(math.prod(lead), -1), 1).reshape(*lead, 1, 1)
                x[..., i, j] = program.values(k)[..., 0, 0]
        return program.flat(x)

    def _up_to(self, i: int) -> Tensor | None:
        return None if self.h is None else self.h[..., : i + 1, :]

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        patches = self.program.patches(value)
        log_p, k = self.program.log_probs(patches, self.h), self.program.numbers(patches)[..., None, :, :]
        lead = torch.broadcast_shapes(log_p.shape[:-3], k.shape[:-3])
        of_patches = log_p.expand(*lead, -1, -1, -1).gather(-3, k.expand(*lead, -1, -1, -1))
        log_p = of_patches.flatten(-3).sum(-1)
        return log_p.expand(torch.broadcast_shapes(log_p.shape, self.batch_shape))


def _image(shape: torch.Size) -> tuple[int, int, int]:
    """Channels, height and width of an image of that shape."""
    if len(shape) == 1 and math.isqrt(shape[0]) ** 2 == shape[0] > 0:
        return 1, math.isqrt(shape[0]), math.isqrt(shape[0])
    if len(shape) in (2, 3) and min(shape) > 0:
        return shape[0] if len(shape) == 3 else 1, shape[-2], shape[-1]
    raise PpgenError(
        f"PixelCNN got features={tuple(shape)}; pass (channels, height, width), (height, width) or the pixels of a "
        "square image"
    )
