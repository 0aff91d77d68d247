r"""TarFlow: blocks of autoregressive affine maps of patches, each conditioned by a causal transformer.

    x_i: the i-th patch of the image, C p² values         z_i = (x_i − μ_i(x_<i)) exp(−α_i(x_<i)),   |α| < 2
    log |det ∂z/∂x| = −Σ_i Σ α_i(x_<i);                    every other block takes the patches in the reverse order

The density takes one pass of each transformer, a draw one for each patch. The first patch's μ and α are plain
parameters.

Source: Normalizing Flows are Capable Generative Models (Zhai et al., 2024, arXiv:2412.06329). Its noise of the data and
the denoising of its draws are left out: these are draws from p.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from ppgen.errors import PpgenError
from ppgen.nets import CausalTransformer
from ppgen.transforms.change_of_variables import FlowTransform, Pair
from ppgen.transforms.images.multiscale import Multiscale


class PatchAutoregressive(FlowTransform):
    """One block; the identity to begin with.

    Args:
        shape: (C, H, W), height and width divisible by the patch's side.
        patch: p, the side of a patch.
        width, layers, heads: of the transformer, see `ppgen.nets.CausalTransformer`.
        backward: whether the last patch comes first.

    Raises:
        PpgenError: a shape that is no whole number of patches.
    """

    def __init__(
        self, shape: Sequence[int], patch: int = 2, width: int = 64, layers: int = 2, heads: int = 4,
        backward: bool = False,
    ):  # fmt: skip
        super().__init__(shape)
        c, h, w = shape
        if patch < 1 or h % patch or w % patch:
            raise PpgenError(
                f"PatchAutoregressive got images of {h}x{w} and patch={patch}; expected sides divisible by the patch's"
            )
        self.patch, self.backward, self.rows = patch, backward, h // patch
        size, length = c * patch**2, (h // patch) * (w // patch)
        self.net = CausalTransformer(size, 2 * size, length, width, layers, heads, output_gain=0.0)

    def patches(self, x: Tensor) -> Tensor:
        """(..., C, H, W) -> (..., patches, C p²), in this block's order."""
        parts = pixel_unshuffle(x, self.patch).flatten(-2).mT
        return parts.flip(-2) if self.backward else parts

    def image(self, patches: Tensor) -> Tensor:
        """The inverse of `patches`."""
        parts = patches.flip(-2) if self.backward else patches
        return pixel_shuffle(parts.mT.unflatten(-1, (self.rows, -1)), self.patch)

    def given(self, before: Tensor) -> Pair:
        """μ and α of the first n + 1 patches, given the first n: (..., n, C p²) -> (..., n + 1, C p²) each."""
        loc, log_scale = self.net(before).to(before.dtype).chunk(2, -1)
        return loc, 2 * (log_scale / 2).tanh()

    def pull(self, x: Tensor, context: Tensor | None = None) -> Pair:
        patches = self.patches(x)
        loc, log_scale = self.given(patches[..., :-1, :])
        return self.image((patches - loc) * (-log_scale).exp()), -log_scale.flatten(-2).sum(-1)

    def push(self, z: Tensor, context: Tensor | None = None) -> Pair:
        left = self.patches(z)
        x, ladj = left[..., :0, :], left.new_zeros(left.shape[:-2])
        for i in range(left.shape[-2]):
            loc, log_scale = (v[..., -1, :] for v in self.given(x))
            x = torch.cat([x, (loc + log_scale.exp() * left[..., i, :])[..., None, :]], -2)
            ladj = ladj + log_scale.sum(-1)
        return self.image(x), ladj


def tarflow(
    shape: Sequence[int], blocks: int = 4, patch: int = 2, width: int = 64, layers: int = 2, heads: int = 4
) -> Multiscale:
    """The flow of images from a vector of as many standard normals.

    Args:
        shape: (C, H, W), height and width divisible by the patch's side.
        blocks: their number; the order of the patches alternates.
        patch, width, layers, heads: of each, see `PatchAutoregressive`.

    >>> from pyro.distributions import Normal, TransformedDistribution
    >>> p = TransformedDistribution(Normal(torch.zeros(64), 1.0).to_event(1), [tarflow((1, 8, 8), blocks=2)])
    >>> p.log_prob(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5])
    """
    if blocks < 1:
        raise PpgenError(f"tarflow got blocks={blocks}; expected at least 1")
    return Multiscale([[PatchAutoregressive(shape, patch, width, layers, heads, i % 2 > 0) for i in range(blocks)]])
