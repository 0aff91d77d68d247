"""Draws of a von Mises distribution as one operation of a graph.

torch draws until every entry is accepted, which reads values, so that neither a recording nor torch.func.vmap can have
it. As one operation, its loop is inside, and the numbers are those that torch draws from the same random state.

Source: Efficient simulation of the von Mises distribution (Best and Fisher, 1979), in torch.distributions.von_mises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.distributions import von_mises

_own = von_mises._rejection_sample


def drawn_von_mises(loc: Tensor, concentration: Tensor, proposal_r: Tensor, x: Tensor) -> Tensor:
    """What `torch.distributions.von_mises._rejection_sample` gives, as one operation.

    The last argument is a draw of no numbers: it takes none from the generator, and differs from draw to draw of a
    plate that vmap makes. Without it, a von Mises of constants would be drawn once for all of them.
    """
    return _operator()(loc, concentration, proposal_r, x, torch.rand(0, device=x.device))


@cache
def _operator() -> Callable[..., Tensor]:
    """Made where it is needed, as torch takes 0.1 s for it."""

    @torch.library.custom_op("ppgen::von_mises", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
    def drawn(loc: Tensor, concentration: Tensor, proposal_r: Tensor, x: Tensor, each: Tensor) -> Tensor:
        return _own(loc, concentration, proposal_r, x)

    def batched(info: Any, in_dims: Sequence[int | None], *tensors: Tensor) -> tuple[Tensor, int]:
        draws, dims = info.batch_size, tensors[3].dim() - (in_dims[3] is not None)

        def leading(t: Tensor, at: int | None) -> Tensor:
            t = t.movedim(at, 0) if at is not None else t.expand(draws, *t.shape)
            return t.reshape(draws, *[1] * (dims + 1 - t.dim()), *t.shape[1:])

        whole = [leading(t, at) for t, at in zip(tensors[:4], in_dims[:4], strict=True)]
        return drawn(*whole, tensors[4]), 0

    drawn.register_fake(lambda loc, concentration, proposal_r, x, each: torch.empty_like(x))
    drawn.register_vmap(batched)
    return drawn
