"""One leapfrog step of many chains, in coordinates in which the metric is the identity.

u = centre + root y,   p += step/2 ∇_y log p,   y += step p,   p += step/2 ∇_y log p
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppgen.engine.density.pathfinder import Density


def leapfrog_step(both, y, p, g, step, centre, root):  # traced: no annotations
    """One step, where both(u) gives gradient and value of the log joint at each chain."""
    p = p + 0.5 * step * g
    y = y + step * p
    grad, value = both(centre + outward(y, root))
    g = _back(grad, root)
    return [y, p + 0.5 * step * g, g, value]


def large_step(
    both: Density, y: Tensor, p: Tensor, g: Tensor, step: Tensor, centre: Tensor, root: Tensor
) -> list[Tensor]:
    """The same of many large vectors: as few passes over them as there can be without a graph."""
    h = float(step)
    p = torch.add(p, g, alpha=0.5 * h)
    y = torch.add(y, p, alpha=h)
    value, slope = both(torch.addcmul(centre, y, root) if root.dim() == 1 else centre + outward(y, root))
    slope = _back(slope, root)
    return [y, p.add_(slope, alpha=0.5 * h), slope, value]


def outward(y, root):
    """root y of each row of y.

    Args:
        root: (dim,), a diagonal; (dim, dim); or (dim, 1 + rank), [d, B] for diag(d) (I + B Bᵀ).
    """
    if root.dim() == 1:
        return y * root
    if root.shape[0] == root.shape[1]:
        return y @ root.mT
    B = root[:, 1:]
    return (y + (y @ B) @ B.mT) * root[:, 0]


def _back(g, root):
    """rootᵀ g of each row of g; arguments as for `outward`."""
    if root.dim() == 1:
        return g * root
    if root.shape[0] == root.shape[1]:
        return g @ root
    g, B = g * root[:, 0], root[:, 1:]
    return g + (g @ B) @ B.mT
