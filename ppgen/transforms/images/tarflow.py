r"""TarFlow: blocks of autoregressive maps of patches, each conditioned by a causal transformer.

    x_i: the i-th patch of the image, C p² values         z_i = (x_i − μ_i(x_<i)) exp(−α_i(x_<i)),   |α| < 2
    log |det ∂z/∂x| = −Σ_i Σ α_i(x_<i);                    every other block takes the patches in the reverse order

or, pixel j of a patch after the other, z_ij = f(x_ij; θ_ij(x_<i, x_i,<j)), f a monotone rational-quadratic spline.

The density takes one pass of each transformer, a draw one for each patch.

Sources: Normalizing Flows are Capable Generative Models (Zhai et al., 2024, arXiv:2412.06329), affine maps. Its noise
of the data and the denoising of its draws are left out: these are draws from p. Neural Spline Flows (Durkan et al.,
2019, arXiv:1906.04032).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from ppgen.errors import PpgenError
from ppgen.nets import CausalTransformer
from ppgen.transforms.autoregressive import Autoregressive
from ppgen.transforms.change_of_variables import FlowTransform, Pair
from ppgen.transforms.images.multiscale import Multiscale
from ppgen.transforms.univariate.splines import Spline, spline_shapes


class PatchAutoregressive(FlowTransform):
    """One block; the identity, or with splines near it, to begin with.

    Args:
        shape: (C, H, W), height and width divisible by the patch's side.
        patch: p, the side of a patch.
        width, layers, heads: of the transformer, see `ppgen.nets.CausalTransformer`.
        backward: whether the last patch comes first.
        bins: of the splines; 0: affine maps, whose pixels do not depend on others of their patch.

    Raises:
        PpgenError: a shape that is no whole number of patches; one bin.
    """

    def __init__(
        self, shape: Sequence[int], patch: int = 2, width: int = 64, layers: int = 2, heads: int = 4,
        backward: bool = False, bins: int = 0,
    ):  # fmt: skip
        super().__init__(shape)
        c, h, w = shape
        if patch < 1 or h % patch or w % patch:
            raise PpgenError(
                f"PatchAutoregressive got images of {h}x{w} and patch={patch}; expected sides divisible by the patch's"
            )
        if bins < 0 or bins == 1:
            raise PpgenError(f"PatchAutoregressive got bins={bins}; expected 0 for affine maps, or at least 2")
        self.patch, self.backward, self.rows = patch, backward, h // patch
        size, length = c * patch**2, (h // patch) * (w // patch)
        said = width if bins else 2 * size
        self.net = CausalTransformer(size, said, length, width, layers, heads, output_gain=float(bins > 0))
        self.within: FlowTransform
        if bins:
            self.within = Autoregressive(size, said, Spline, spline_shapes(bins), hidden=(2 * width,))
        else:
            self.within = _Affine(size)

    def patches(self, x: Tensor) -> Tensor:
        """(..., C, H, W) -> (..., patches, C p²), in this block's order."""
        parts = pixel_unshuffle(x, self.patch).flatten(-2).mT
        return parts.flip(-2) if self.backward else parts

    def image(self, patches: Tensor) -> Tensor:
        """The inverse of `patches`."""
        parts = patches.flip(-2) if self.backward else patches
        return pixel_shuffle(parts.mT.unflatten(-1, (self.rows, -1)), self.patch)

    def pull(self, x: Tensor, context: Tensor | None = None) -> Pair:
        patches = self.patches(x)
        z, ladj = self.within.pull(patches, self.net(patches[..., :-1, :]).to(x.dtype))
        return self.image(z), ladj.sum(-1)

    def push(self, z: Tensor, context: Tensor | None = None) -> Pair:
        left = self.patches(z)
        patches = left[..., :0, :]
        for i in range(left.shape[-2]):
            patch, _ = self.within.push(left[..., i, :], self.net(patches)[..., -1, :].to(z.dtype))
            patches = torch.cat([patches, patch[..., None, :]], -2)
        x = self.image(patches)
        return x, -self.pull(x)[1]


class _Affine(FlowTransform):
    """x = μ + e^α z of vectors, μ and α from a context of twice their size."""

    def __init__(self, features: int):
        super().__init__((features,), 2 * features)

    def pull(self, x: Tensor, context: Tensor | None = None) -> Pair:
        loc, log_scale = self._given(context)
        return (x - loc) * (-log_scale).exp(), -log_scale.sum(-1)

    def push(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, None]:
        loc, log_scale = self._given(context)
        return loc + log_scale.exp() * z, None

    def _given(self, context: Tensor | None) -> Pair:
        assert context is not None
        loc, log_scale = context.chunk(2, -1)
        return loc, 2 * (log_scale / 2).tanh()


def tarflow(
    shape: Sequence[int], blocks: int = 4, patch: int = 2, width: int = 64, layers: int = 2, heads: int = 4,
    bins: int = 0,
) -> Multiscale:  # fmt: skip
    """The flow of images from a vector of as many standard normals.

    Args:
        shape: (C, H, W), height and width divisible by the patch's side.
        blocks: their number; the order of the patches alternates.
        patch, width, layers, heads, bins: of each, see `PatchAutoregressive`.

    >>> from pyro.distributions import Normal, TransformedDistribution
    >>> p = TransformedDistribution(Normal(torch.zeros(64), 1.0).to_event(1), [tarflow((1, 8, 8), blocks=2)])
    >>> p.log_prob(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5])
    """
    if blocks < 1:
        raise PpgenError(f"tarflow got blocks={blocks}; expected at least 1")
    orders = [i % 2 > 0 for i in range(blocks)]
    return Multiscale([[PatchAutoregressive(shape, patch, width, layers, heads, back, bins) for back in orders]])
