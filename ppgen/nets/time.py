"""Networks that know what time it is: f(z, u, label), for chains of latents."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ppgen.errors import PpgenError
from ppgen.nets.mlp import initialise

__all__ = ["TimeEmbedding", "TimeMLP"]

SLOWEST, FASTEST = 0.5, 100.0  # radians a unit of time


class TimeEmbedding(nn.Module):
    """Sines and cosines of a time u in [0, 1], and a label, through a small network: (...) -> (..., features).

    Frequencies stop where the features are still smooth, so that an ODE through the network can be solved in few steps.

    Args:
        features: of what comes out.
        classes: number of labels, 0 for none. Label number `classes` means that the label is not known.

    >>> TimeEmbedding(32, classes=3)(torch.rand(5), torch.tensor([0, 1, 2, 3, 3])).shape
    torch.Size([5, 32])
    """

    frequencies: Tensor

    def __init__(self, features: int, classes: int = 0):
        super().__init__()
        waves = torch.logspace(math.log10(SLOWEST), math.log10(FASTEST), max(features // 2, 4))
        self.register_buffer("frequencies", waves, persistent=False)
        self.first = initialise(nn.Linear(2 * len(waves), features), 2**0.5)
        self.second = initialise(nn.Linear(features, features), 2**0.5)
        self.label = nn.Embedding(classes + 1, features) if classes else None

    def forward(self, u: Tensor, label: Tensor | None = None) -> Tensor:
        angle = u[..., None] * self.frequencies
        h = self.second(nn.functional.silu(self.first(torch.cat([angle.sin(), angle.cos()], -1))))
        if self.label is not None and label is not None:
            h = h + self.label(label)
        return nn.functional.silu(h)


def waves(z: Tensor, exponents: Sequence[int]) -> list[Tensor]:
    """sin(2ⁿ π z) for each exponent n, then cos(2ⁿ π z)."""
    angles = [2.0**n * math.pi * z for n in exponents]
    return [*(a.sin() for a in angles), *(a.cos() for a in angles)]


class TimeMLP(nn.Module):
    """A residual perceptron whose layers are scaled and shifted by the time: (..., D), (...) -> (..., outputs).

    Args:
        features: D.
        outputs: of the last dimension that comes out; at first it is 0.
        hidden: width of each residual block; one width for all, and a list's length says how many blocks.
        classes: number of labels, 0 for none.
        fourier: exponents n of sin(2ⁿ π z) and cos(2ⁿ π z) that are appended to the input: without them a perceptron
            is slow to learn what changes over a small part of the data's range.

    Raises:
        PpgenError: widths that differ.

    >>> TimeMLP(2, 2)(torch.zeros(7, 5, 2), torch.rand(7, 5)).shape
    torch.Size([7, 5, 2])
    """

    def __init__(
        self,
        features: int,
        outputs: int,
        hidden: Sequence[int] = (128, 128, 128),
        classes: int = 0,
        fourier: Sequence[int] = (),
    ):
        super().__init__()
        widths = tuple(hidden)
        if not widths or len(set(widths)) > 1 or widths[0] < 1:
            raise PpgenError(
                f"TimeMLP got hidden={widths}; expected one width, once a residual block, as in (128, 128, 128)"
            )
        width = widths[0]
        self.time = TimeEmbedding(width, classes)
        self.fourier = tuple(fourier)
        self.first = initialise(nn.Linear(features * (1 + 2 * len(self.fourier)), width), 1.0)
        self.inner = nn.ModuleList(initialise(nn.Linear(width, width), 2**0.5) for _ in widths)
        self.outer = nn.ModuleList(initialise(nn.Linear(width, width), len(widths) ** -0.5) for _ in widths)
        self.film = nn.ModuleList(initialise(nn.Linear(width, 2 * width), 0.1) for _ in widths)
        self.last = initialise(nn.Linear(width, outputs), 0.0)

    def forward(self, z: Tensor, u: Tensor, label: Tensor | None = None) -> Tensor:
        e, silu = self.time(u, label), nn.functional.silu
        h = self.first(torch.cat([z, *waves(z, self.fourier)], -1))
        for inner, outer, film in zip(self.inner, self.outer, self.film, strict=True):
            scale, shift = film(e).chunk(2, -1)
            h = h + outer(silu(inner(silu(h)) * (1 + scale) + shift))
        return self.last(silu(h))
