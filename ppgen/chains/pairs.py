r"""Pairs of rows of two sets that lie close: optimal transport between minibatches.

    π = argmin over permutations of  Σ_i |a_i − b_π(i)|²

Each set keeps its rows, and so its distribution; of two batches of n the pairs are draws of a coupling that goes to
the optimal transport plan as n grows. Training on such pairs makes the paths between them straighter.

Source: Improving and generalizing flow-based generative models with minibatch optimal transport (Tong et al., 2023,
arXiv:2302.00482); the assignment: scipy.optimize.linear_sum_assignment.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor


@cache
def _operator() -> Callable[[Tensor], Tensor]:
    """An operation of its own, which is recorded as one: made where it is needed, as torch takes 0.1 s for it."""

    @torch.library.custom_op("ppgen::optimal_pairs", mutates_args=())
    def assigned(cost: Tensor) -> Tensor:
        """The column of each row, (n, n) -> (n,)."""
        from scipy.optimize import linear_sum_assignment

        return torch.as_tensor(linear_sum_assignment(cost.detach().cpu().double().numpy())[1], device=cost.device)

    assigned.register_fake(lambda cost: cost.new_empty(len(cost), dtype=torch.long))
    return assigned


def optimal_pairs(a: Tensor, b: Tensor, label: Tensor | None = None) -> Tensor:
    """Which row of b each row of a is paired with: b[optimal_pairs(a, b)], of least total squared distance.

    Args:
        a, b: (n, D). The time goes with n³: 10 ms for 256 rows, 0.2 s for 1 000.
        label: (n,), within which pairs are made: of each label a and b then keep their rows.

    >>> optimal_pairs(torch.tensor([[0.0], [5.0]]), torch.tensor([[6.0], [1.0]]))
    tensor([1, 0])
    """
    a, b = a.detach(), b.detach()
    cost = (a**2).sum(-1)[:, None] + (b**2).sum(-1) - 2 * a @ b.T
    if label is not None:
        cost = torch.where(label[:, None] == label, cost, torch.inf)
    return _operator()(cost)
