r"""A flow for images, on dequantised pixels: Glow at several scales, or TarFlow.

    z ~ N(0, I_D),   v = cells(m + s f_θ(z)),   x = the level whose cell holds v
    guide:  v = k(x) + u, u uniform on [0, 1)^D, or u = sigmoid(μ(x) + σ(x) ε), ε ~ N(0, I_D) ("variational")

f_θ: glow steps (ActNorm, invertible 1x1 convolution, affine coupling) between squeezes, half of the channels leaving
after each scale; or blocks of affine maps of patches, by a transformer of the patches before (tarflow); m and s the
mean and standard deviation of all pixels' logits, kept with the parameters; `cells` the sigmoid from ℝ to index units.
All Jacobians are counted. E[log p(v) - log q(v | x)] <= log P(x) is the ELBO.

Uniform noise in the end cells, where the logit runs to ±∞, is far from what affine maps of a normal can follow: most
pixels of MNIST are 0, and lose half a bit each. μ and σ, a small network's, let the noise be what the flow finds easy.

Sources: Glow (Kingma & Dhariwal, 2018, arXiv:1807.03039); Density estimation using Real NVP (Dinh et al., 2017,
arXiv:1605.08803) for scales and logit; Normalizing Flows are Capable Generative Models (Zhai et al., 2024,
arXiv:2412.06329), TarFlow; Flow++ (Ho et al., 2019, arXiv:1902.00275) for noise that is learned.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro
import torch
from pyro.distributions import Normal, TorchDistribution, TransformedDistribution
from torch import Tensor
from torch.distributions import AffineTransform, ComposeTransform, ReshapeTransform
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

import ppgen
from ppgen.data.files.images import channels_first
from ppgen.distributions import grid
from ppgen.distributions.dequantize import Cell, Quantised, find_grid, logit_cells, require_grid
from ppgen.errors import PpgenError, lacking, nearest
from ppgen.transforms import glow, tarflow
from ppgen.transforms.images.glow import small_net
from ppgen.transforms.images.multiscale import convolve

DEQUANTISE = ("uniform", "variational")
FAMILIES = ("glow", "tarflow")
WIDE = 1.6  # the sigmoid of N(0, 1.6²) is uniform but for a few hundredths of a nat


class ImageFlow(ppgen.Program):
    """P(x) of images with values on a grid.

    The column is x, (N, C H W) flat or (N, C, H, W); draws are flat.

    Args:
        shape: (C, H, W), height and width divisible by 2^scales.
        scales: of glow: squeezes, each to half the height and width.
        steps: glow steps a scale, or blocks of tarflow.
        hidden: channels of the couplings' networks, or the width of the transformers.
        levels, low, high: the grid of pixel values.
        dequantise: "uniform" noise, or "variational": its distribution given x is learned.
        margin: a of the logit, see `ppgen.distributions.dequantize.logit_cells`. Pixels are mostly at the ends of their
            range, and a small a spreads the cells there over as much of ℝ as those in the middle.
        family: "glow", or "tarflow", of which a draw takes one pass of each transformer for every patch.
        patch, layers, bins: of tarflow: the side of a patch, layers of each transformer, and bins of the splines by
            which each pixel is mapped given those before it, in its patch too; 0: affine maps given the patches before.

    Raises:
        PpgenError: a shape that cannot be squeezed so often; data of another size, or on no grid.
    """

    rows_a_step = 128

    zero: Tensor
    loc: Tensor
    scale: Tensor
    prepared: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        scales: int = 2,
        steps: int = 8,
        hidden: int = 64,
        levels: int = 256,
        low: float = 0.0,
        high: float = 1.0,
        margin: float = 1e-5,
        dequantise: str = "uniform",
        family: str = "glow",
        patch: int = 2,
        layers: int = 2,
        bins: int = 0,
    ):
        super().__init__()
        self.shape = torch.Size(shape)
        self.shapes = {"x": self.shape}
        require_grid(low, high, levels)
        if len(self.shape) != 3 or not 0 < margin < 0.5:
            raise PpgenError(
                f"ImageFlow got shape={tuple(shape)}, margin={margin}; expected (channels, height, width) and "
                "0 < margin < 0.5"
            )
        if dequantise not in DEQUANTISE:
            raise PpgenError(f"dequantise is {dequantise!r}; expected one of {', '.join(DEQUANTISE)}")
        if family not in FAMILIES:
            raise PpgenError(f"family is {family!r}{nearest(family, FAMILIES)}; expected one of {', '.join(FAMILIES)}")
        if family == "glow":
            self.transform = glow(shape, scales, steps, hidden)
        else:
            self.transform = tarflow(shape, steps, patch, hidden, layers, bins=bins)
        self.noise = None
        if dequantise == "variational":
            self.noise = small_net(4 * self.shape[0], hidden, 8 * self.shape[0])
        self.levels, self.low, self.high, self.margin = levels, low, high, margin
        size = self.shape.numel()
        self.register_buffer("zero", torch.zeros(size), persistent=False)
        self.register_buffer("loc", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.register_buffer("prepared", torch.zeros(()))

    @classmethod
    def from_data(cls, data: dict[str, Tensor]) -> dict[str, Any]:
        """Shape, scales and grid; flat rows are taken for square grey images."""
        x = data.get("x")
        if x is None or x.dim() not in (2, 3, 4):
            needed = "a column x of images, (rows, pixels), (rows, height, width) or (rows, channels, height, width)"
            raise lacking(f"ImageFlow needs {needed}", data, "name it with columns= (--columns x=...)")
        x = channels_first("x", x)
        grey = x.shape[1:] if x.dim() == 3 else (math.isqrt(x.shape[1]),) * 2
        shape = tuple(x.shape[1:]) if x.dim() == 4 else (1, *grey)
        if x.dim() == 2 and shape[1] ** 2 != x.shape[1]:
            raise PpgenError(
                f"the rows of x have {x.shape[1]} values, which make no square grey image; say shape=(channels, "
                "height, width) (--set)"
            )
        found = find_grid(x)
        if found is None:
            raise PpgenError(
                "the values of x lie on no grid of up to 256 levels, as pixels do; for continuous values take the "
                "model flow"
            )
        scales = 1 + (shape[1] % 4 == 0 and shape[2] % 4 == 0)
        return {"shape": list(shape), "scales": scales, **dict(zip(("low", "high", "levels"), found, strict=True))}

    def model(self, x: Tensor | None = None) -> Tensor:
        """p(v, x)."""
        with ppgen.rows(x):
            v = pyro.sample("v", self.density())
            quantised = Quantised(v, self.low, self.high, self.levels)
            return pyro.sample("x", quantised, obs=None if x is None else self._flat(x))

    def guide(self, x: Tensor | None = None) -> None:
        """q(v | x)."""
        if x is not None:
            with ppgen.rows(x):
                pyro.sample("v", self.dequantised(x))

    def density(self) -> TorchDistribution:
        """p(v), v in index units."""
        flat = ReshapeTransform(self.shape, torch.Size((self.shape.numel(),)))
        pixels = AffineTransform(self.loc, self.scale, event_dim=1)
        parts = [self.transform, flat, pixels, *logit_cells(self.levels, self.margin)]
        return TransformedDistribution(Normal(self.zero, self.zero + 1).to_event(1), parts)

    def dequantised(self, x: Tensor) -> Cell:
        """q(v | x), v in x's cell."""
        k = grid(self.low, self.high, self.levels).position(self._flat(x)).round()
        if self.noise is None:
            return Cell(k)
        images = ((k + 0.5) / self.levels * 4 - 2).reshape(*k.shape[:-1], *self.shape)
        out = convolve(self.noise, pixel_unshuffle(images, 2))
        loc, log_scale = (pixel_shuffle(part, 2).flatten(-3) for part in out.chunk(2, -3))
        return Cell(k, Normal(WIDE * loc, (3 * (log_scale / 3).tanh()).exp() * WIDE).to_event(1))

    def setup(self, data: dict[str, Tensor], *args: Any, **kwargs: Any) -> ImageFlow:
        """Before the first step: ActNorm layers begin with these rows; see `Program.setup`."""
        if "x" in data:
            self.prepare(data)
        if self.training and "x" in data:
            with torch.no_grad(), torch.random.fork_rng():
                self.density().log_prob(self.dequantised(data["x"]).sample())
        super().setup(data, *args, **kwargs)
        return self

    @torch.no_grad()
    def prepare(self, data: dict[str, Tensor]) -> ImageFlow:
        """Records mean and standard deviation of all pixels' logits in these rows (10 000 at most), once.

        Of all, not of each: a pixel that is nearly always 0 has a logit that hardly varies but for the noise, which a
        scale of its own would blow up to the size of the strokes beside it.
        """
        if self.prepared:
            return self
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            v = self.dequantised(data["x"][:10_000]).sample()
        logits = ComposeTransform(logit_cells(self.levels, self.margin)).inv(v.double())
        self.loc.fill_(logits.mean())
        self.scale.fill_(logits.std())
        self.prepared.fill_(1)
        return self

    def _flat(self, x: Tensor) -> Tensor:
        x = x.to(self.zero.dtype)
        flat = x.flatten(-3) if x.shape[-3:] == self.shape else x
        if flat.shape[-1] != self.shape.numel():
            raise PpgenError(
                f"the images are of shape {tuple(self.shape)}, {self.shape.numel()} values, and x is of shape "
                f"{tuple(x.shape)}"
            )
        return flat
