r"""PixelVAE: a hierarchical VAE whose likelihood is a PixelCNN, conditioned on features that the latents give.

    z_L ~ N(0, I),   z_i | z_{i+1} as in `LadderVAE`,   x | z ~ Π_i P(x_i | x_1, ..., x_{i−1}, f_θ(h_1)_i)
    guide:  z_L | x,  z_i | z_{i+1}, x from the top down, as there

f_θ gives `width` features of each place. The latents tell what is where, the PixelCNN how strokes go on, which needs
no latent; all but the latents is exact. It is a program of programs: a `LadderVAE` without its likelihood, and
`ppgen.sample("x", PixelCNN(...), obs=x, h=features)`.

Sources: PixelVAE: A Latent Variable Model for Natural Images (Gulrajani et al., 2016, arXiv:1611.05013); Variational
Lossy Autoencoder (Chen et al., 2016, arXiv:1611.02731), on what is left to the latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import ppgen
from ppgen.chains.chain import flat_rows
from ppgen.errors import PpgenError
from ppgen.models.ladder_vae import LadderVAE
from ppgen.models.pixel_cnn import PixelCNN
from ppgen.nets import MLP, ConvDecoder

DECODER_GAIN = 0.1  # of the features at first: the likelihood begins near one that knows no latent
LEAST = 8  # side of a convolutional net's image


class PixelVAE(ppgen.Program):
    """A VAE with L latents z_1, ..., z_L, and a PixelCNN in place of independent pixels.

    The column is x, (N, *features) or flat, square images with values on a grid. Draws are flat.

    Args:
        features, levels, low, high: as for `PixelCNN`.
        latent: k_1, ..., k_L, from the bottom up.
        hidden: widths of the ladder's layers, from the bottom up; as many as latents.
        patch, width, layers, window, dropout: of the `PixelCNN`.
        net: "mlp" or "conv": what reads x, and what gives the features where they have a side of 8 at least.
        convolutions: channels of its layers, each of half the side.
        activation: of the networks beside the PixelCNN.
        prior: p(z_L): "normal", "flow" or "diffusion", as for `LadderVAE`.

    Raises:
        PpgenError: an argument out of range.
    """

    rows_a_step = 128

    def __init__(
        self, features: int | Sequence[int], latent: Sequence[int] = (32, 16), hidden: Sequence[int] = (256, 128),
        levels: int = 2, low: float = 0.0, high: float = 1.0, patch: int = 1, width: int = 64, layers: int = 3,
        window: int = 3, dropout: float = 0.0, net: str = "conv", convolutions: Sequence[int] = (32, 64),
        activation: str = "silu", prior: str = "normal",
    ):  # fmt: skip
        super().__init__()
        self.pixels = PixelCNN(features, levels, low, high, patch, width, layers, window, dropout, context=True)
        self.shapes, (side, other) = self.pixels.shapes, self.pixels.places
        if side != other:
            raise PpgenError(f"PixelVAE got features={tuple(self.pixels.shape)}; its networks take square images")
        likelihood = "bernoulli" if levels == 2 else "categorical"
        self.ladder = LadderVAE(
            self.pixels.shape.numel(), latent, hidden, "residual", True, activation, likelihood=likelihood,
            levels=levels, low=low, high=high, net=net, channels=self.pixels.image[0], convolutions=convolutions,
            prior=prior,
        )  # fmt: skip
        how: dict[str, Any] = {"activation": activation, "output_gain": DECODER_GAIN}
        if net == "mlp" or side < LEAST:
            decoder: torch.nn.Module = MLP(hidden[0], width * side**2, (hidden[0],), **how)
        else:
            widths = tuple(convolutions)[patch.bit_length() - 1 :] or tuple(convolutions)[-1:]
            decoder = ConvDecoder(hidden[0], side, width, widths=widths, **how)
        self.ladder.base.decoder = decoder  # features, in place of independent pixels

    @classmethod
    def from_data(cls, data: dict[str, Tensor]) -> dict[str, Any]:
        """As for `PixelCNN`: the features, and the grid of levels."""
        return PixelCNN.from_data(data)

    def model(self, x: Tensor | None = None) -> Tensor:
        """p(x, z_1, ..., z_L)."""
        with ppgen.rows(x):
            h = self.features(self.ladder.latents())
            return ppgen.sample("x", self.pixels, obs=x, h=h)

    def guide(self, x: Tensor) -> None:
        """q(z_L | x) Π_i q(z_i | z_{i+1}, x)."""
        self.ladder.guide(flat_rows(x, self.pixels.shape, self.pixels.zero, "PixelVAE"))

    def features(self, h: Tensor) -> Tensor:
        """f_θ: h_1, (..., width), -> (..., channels, side, side)."""
        return self.ladder.base.decoder(h).unflatten(-1, (self.pixels.width, *self.pixels.places))
