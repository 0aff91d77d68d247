r"""Elementwise transforms: ActNorm, a fixed standardisation, and the mixtures of Gaussianisation.

Sources: Glow (Kingma & Dhariwal, 2018, arXiv:1807.03039), section 3.1; Gaussianization Flows (Meng et al., 2020,
arXiv:2003.01941).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import zuko
from torch import Tensor, nn
from zuko.utils import unpack

from ppgen.transforms.change_of_variables import Conditional, FlowTransform, Pair, gather
from ppgen.transforms.univariate.mixture import Gaussianize


class ActNorm(FlowTransform):
    """z = (x - loc) exp(-log_scale) for each feature, or each channel of images.

    The first batch that is pulled in training mode sets loc and log_scale so that z has mean 0 and standard deviation
    1; from then on they are parameters like any other. That this has happened is saved and loaded with them.

    Args:
        shape: D, or (C, H, W).
    """

    def __init__(self, shape: int | Sequence[int]):
        super().__init__((shape,) if isinstance(shape, int) else shape)
        self.loc = nn.Parameter(torch.zeros(self.shape[0]))
        self.log_scale = nn.Parameter(torch.zeros(self.shape[0]))
        self.register_buffer("ready", torch.zeros(()))
        self.is_ready = False  # `ready` for Python's eyes: a traced program must not ask a tensor

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.is_ready = bool(self.ready > 0)

    @torch.no_grad()
    def _begin(self, x: Tensor) -> None:
        rows = x.reshape(-1, self.shape[0], self.shape[1:].numel()).movedim(1, 0).flatten(1)
        if rows.shape[1] < 2:
            return
        self.loc.copy_(rows.mean(1))
        self.log_scale.copy_(rows.std(1).clamp_min(1e-6).log())
        self.ready.fill_(1)
        self.is_ready = True

    def _of(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sites = (1,) * (len(self.shape) - 1)
        ladj = self.log_scale.sum() * self.shape[1:].numel()
        ladj = ladj.expand(x.shape[: x.dim() - len(self.shape)])
        return self.loc.reshape(-1, *sites), self.log_scale.reshape(-1, *sites), ladj

    def pull(self, x: Tensor, context: Tensor | None = None) -> Pair:
        if self.training and not self.is_ready:
            self._begin(x)
        loc, log_scale, ladj = self._of(x)
        return (x - loc) * (-log_scale).exp(), -ladj

    def push(self, z: Tensor, context: Tensor | None = None) -> Pair:
        loc, log_scale, ladj = self._of(z)
        return loc + log_scale.exp() * z, ladj


WIDTH = 0.8


class Mixtures(FlowTransform):
    """z_i = Φ⁻¹(F_i(x_i)) with F_i a mixture of normals: makes each marginal Gaussian.

    Args:
        features: D.
        context: features of a context on which the mixtures depend, through a network with widths `hidden`.
        components: of each mixture.
    """

    def __init__(self, features: int, context: int = 0, components: int = 8, hidden: Sequence[int] = (64, 64)):
        super().__init__((features,), context)
        self.shapes = [torch.Size((components,))] * 2
        if context:
            self.network = zuko.nn.MLP(context, 2 * components * features, hidden_features=hidden)
        # a mixture that is about N(0, 1), so that the transform begins near the identity far out as well, by components
        # none like another: quantiles of N(0, 1 - h²), each of standard deviation h
        h = WIDTH if components > 1 else 1.0
        centres = torch.special.ndtri((torch.arange(components) + 0.5) / components) * (1 - h**2) ** 0.5
        # in memory the components come first, so that what is compiled runs over features and rows within each
        self.shift = nn.Parameter((-centres / h)[:, None].repeat(1, features).mT)
        self.scale = nn.Parameter(torch.full((components, features), -math.log(h)).mT)

    def _functions(self, context: Tensor | None) -> Gaussianize:
        if context is None:
            return Gaussianize(self.shift, self.scale)
        phi = self.network(context).to(context.dtype).unflatten(-1, (self.shape[0], -1))
        shift, scale = unpack(phi, self.shapes)
        return Gaussianize(self.shift + shift, self.scale + scale)

    def pull(self, x: Tensor, context: Tensor | None = None) -> Pair:
        z, ladj = self._functions(context).call_and_ladj(x)
        return z, ladj.sum(-1)

    def push(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, None]:
        return self._functions(context).inv(z), None


def gaussianization(
    features: int, context: int = 0, hidden: Sequence[int] = (64, 64), components: int = 8
) -> FlowTransform | Conditional:
    """One layer of Gaussianisation, inverted by Newton's steps; put an `Orthogonal` between two."""
    return gather(Mixtures(features, context, components, hidden))
