"""The last layer of a network that says, for every feature, which increasing function transforms it."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["HIDDEN", "START", "entries"]

# The last layer begins at this share of its usual size: a transform then begins near the identity, and a stack of
# them near the base, from where fits get further in the same number of steps than from a random map.
START = 0.1

# Hidden layers begin at this share of what keeps the size of signals, which is the usual size of torch's layers: in
# the same number of steps couplings get further (0.07 nats in benchmarks/flows.py, nsf_coupling, after 300 steps).
HIDDEN = 6**-0.5


def entries(h: Tensor, weight: Tensor, bias: Tensor, total: int) -> Tensor:
    """The parameters of D functions from a linear layer, (..., H) -> (..., D, total).

    In memory the rows come last: what is then done entry by entry with x, over all rows of one parameter, reads
    numbers that are neighbours, however few features there are.

    Args:
        h: the last hidden layer.
        weight, bias: (D total, H) and (D total,).
        total: parameters of one function.
    """
    rows = torch.addmm(bias[:, None], weight, h.reshape(-1, h.shape[-1]).mT)
    n = h.dim() - 1
    rows = rows.to(weight.dtype)  # networks may have been computed in mixed precision, what acts on x is not
    return rows.reshape(-1, total, *h.shape[:-1]).permute(*range(2, n + 2), 0, 1)
