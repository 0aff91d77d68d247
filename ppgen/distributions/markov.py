"""A Markov chain of diagonal normals as one distribution: drawn step by step, its density at all steps at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Normal, constraints, kl_divergence, register_kl

Step = Callable[[Tensor, int | slice], tuple[Tensor, Tensor]]


class MarkovNormal(TorchDistribution):
    r"""A series z_1 ... z_T of vectors, each normal given the one before.

        p(z) = Π_t N(z_t; m_t(z_{t-1}), diag(s_t(z_{t-1})²))^{w_t}         z: (T, k)

    with w_t = 0 where a step counts for nothing: after a series has ended.

    Args:
        step: (z_before, t) -> (m, s): of vectors (..., k) for one t, or of series (..., T, k) for `slice(None)`.
        start: z_0, (k,).
        duration: T.
        weights: w, (..., T) of 0 and 1; None: all count.
        batch_shape: of the chains.

    The KL of two of them is the sum of the normals' KLs given z_{t-1}, at the q's last draw: unbiased, and without the
    noise of log q(z) − log p(z).

    >>> steady = MarkovNormal(lambda z, t: (0.9 * z, torch.ones_like(z)), torch.zeros(2), 5)
    >>> steady.log_prob(steady.sample((3,))).shape
    torch.Size([3])
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(
        self,
        step: Step,
        start: Tensor,
        duration: int,
        weights: Tensor | None = None,
        batch_shape: Any = (),
        validate_args: bool | None = None,
    ):
        self.step, self.start, self.weights = step, start, weights
        self.path: Tensor | None = None  # the last draw
        super().__init__(torch.Size(batch_shape), torch.Size((duration, *start.shape)), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> MarkovNormal:
        return MarkovNormal(self.step, self.start, self.event_shape[0], self.weights, batch_shape, validate_args=False)

    def steps(self, z: Tensor) -> Normal:
        """The normals of z_1 ... z_T given the vectors before: (..., T, k) -> of that shape."""
        first = self.start.expand(*z.shape[:-2], 1, z.shape[-1])
        return Normal(*self.step(torch.cat([first, z[..., :-1, :]], -2), slice(None)), validate_args=False)

    def counted(self, values: Tensor) -> Tensor:
        """(..., T, k) -> (...): the sum over the steps that count."""
        each = values.sum(-1)
        return (each if self.weights is None else each * self.weights).sum(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """(..., T, k) -> (...)."""
        return self.counted(self.steps(value).log_prob(value))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape + self.event_shape
        noise = torch.randn(shape, dtype=self.start.dtype, device=self.start.device)
        z, path = self.start.expand(*shape[:-2], shape[-1]), []
        for t in range(shape[-2]):
            loc, scale = self.step(z, t)
            z = loc + scale * noise[..., t, :]
            path.append(z)
        self.path = torch.stack(path, -2)
        return self.path


@register_kl(MarkovNormal, MarkovNormal)
def _kl(q: MarkovNormal, p: MarkovNormal) -> Tensor:
    z = q.rsample() if q.path is None else q.path
    return q.counted(kl_divergence(q.steps(z), p.steps(z)))
