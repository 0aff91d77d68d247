r"""Continuous transforms: z = x(1), dx/dt = v(x, t), log |det ∂z/∂x| = ∫ tr ∂v/∂x dt.

The trace is exact, or Hutchinson's unbiased estimate εᵀ ∂v/∂x ε with one ε a call (FFJORD).
The solver is torchdiffeq's adaptive Dormand-Prince, and gradients are those of the steps it took; it chooses them for a
batch as a whole, so that values of one row differ by its tolerances between batches, and its graph cannot be traced.

Sources: Neural Ordinary Differential Equations (Chen et al., 2018, arXiv:1806.07366); FFJORD (Grathwohl et al., 2018,
arXiv:1810.01367).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from zuko.flows.continuous import FFJTransform

from ppgen.errors import PpgenError
from ppgen.transforms.change_of_variables import Conditional, FlowTransform, Pair, full_precision, gather
from ppgen.transforms.residual import jacobian

__all__ = ["Continuous", "cnf", "ffjord"]


class Continuous(FlowTransform):
    """The flow of a vector field given by a network of (x, context, sines and cosines of t).

    Args:
        features: D.
        context: features of the context.
        hidden: widths of the network.
        exact: the trace itself, or its unbiased estimate.
        atol, rtol: tolerances of the solver.
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        hidden: Sequence[int] = (64, 64),
        exact: bool = True,
        atol: float = 1e-6,
        rtol: float = 1e-5,
    ):
        super().__init__((features,), context)
        self.field = FFJTransform(features, context, hidden_features=hidden)
        self.exact, self.atol, self.rtol = exact, atol, rtol

    def _rate(self, t: Tensor, x: Tensor, context: Tensor | None) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """v(x, t), the slopes of its hidden layers, and the weights by which x comes to v through them."""
        first, *rest = list(self.field.ode)[::2]
        angles = self.field.freqs * t
        by_t, by_x, by_context = first.weight.split((2 * len(angles), x.shape[-1], self.context), -1)
        h = x @ by_x.mT + (first.bias + by_t @ torch.cat((angles.cos(), angles.sin())))
        h = h if context is None else h + context @ by_context.mT
        slopes = []
        for layer in rest:
            slopes.append(h.clamp_max(0).exp())
            h = layer(h.clamp_min(0) + slopes[-1] - 1)  # elu
        return h, slopes, [by_x, *(layer.weight for layer in rest)]

    def _integrate(self, x: Tensor, start: Tensor, end: Tensor, context: Tensor | None, trace: bool = True) -> Pair:
        noise = None if self.exact or not trace else torch.randn_like(x)

        def rates(t: Tensor, state: Tensor) -> Tensor:
            rate, slopes, weights = self._rate(t, state[..., : x.shape[-1]], context)
            return torch.cat((rate, SHARE * _trace(weights, slopes, noise)[..., None]), -1) if trace else rate

        def again(t: Tensor, state: Tensor) -> Tensor:
            return checkpoint(rates, t, state, use_reentrant=False, preserve_rng_state=False)

        width = max(layer.out_features for layer in list(self.field.ode)[::2])
        large = torch.is_grad_enabled() and x[..., 0].numel() * width > LARGE
        zeros = torch.zeros_like(x[..., :1])
        options = {"first_step": FIRST * (end - start).abs(), "norm": _largest}
        times = torch.stack((start, end)).to(x.dtype)
        moved = solve(
            again if large else rates, torch.cat((x, zeros), -1) if trace else x, times,
            rtol=self.rtol, atol=self.atol, options=options,
        )  # fmt: skip
        return (moved[..., :-1], moved[..., -1] / SHARE) if trace else (moved, zeros[..., 0])

    @full_precision
    def pull(self, x: Tensor, context: Tensor | None = None) -> Pair:
        start, end = self.field.times.unbind()
        return self._integrate(x, start, end, context)

    @full_precision
    def push(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        start, end = self.field.times.unbind()
        if torch.is_grad_enabled():  # a guide's draw, whose density is asked for next
            return self._integrate(z, end, start, context)
        return self._integrate(z, end, start, context, trace=False)[0], None


SHARE = 0.01  # at which errors of the log-determinant count beside those of x
FIRST = 0.1  # of the way, the first step tried
LARGE = 2**20  # values of a layer beyond which it is computed again for the gradient, and not kept at each step


def solve(
    rates: Callable[[Tensor, Any], Any], state: Any, times: Tensor, *, rtol: float, atol: float,
    options: dict[str, Any] | None = None,
) -> Any:  # fmt: skip
    """The state at the second time, by Dormand-Prince steps; the last of them ends there.

    Args:
        rates: (t, state) -> d state / dt.
        state: a tensor, or a tuple of tensors.
        times: (2,), of start and end.
        rtol, atol: relative and absolute tolerance.
        options: of torchdiffeq's dopri5.

    Raises:
        PpgenError: the state or its rate is not finite, or changes too fast for any step.
    """
    from torchdiffeq import odeint

    try:
        states = odeint(rates, state, times, rtol=rtol, atol=atol, options={"step_t": times[1:], **(options or {})})
    except AssertionError as e:
        raise PpgenError(
            f"the ODE cannot be solved ({e}): its field is not finite, or too steep; take a smaller lr, clip=1, or "
            "float64 (precision='64-true')"
        ) from e
    return tuple(s[-1] for s in states) if isinstance(states, tuple) else states[-1]


def _largest(state: Tensor) -> Tensor:
    """The error that counts: every row keeps the tolerances, not their mean."""
    return state.abs().max()


def _trace(weights: list[Tensor], slopes: list[Tensor], noise: Tensor | None) -> Tensor:
    """tr ∂v/∂x for each row, carried forward with no backward pass; or its estimate εᵀ ∂v/∂x ε."""
    if noise is not None:
        moved = noise @ weights[0].mT
        for weight, slope in zip(weights[1:], slopes, strict=True):
            moved = (slope * moved) @ weight.mT
        return (noise * moved).sum(-1)
    if len(slopes) == 2:  # tr W₃ S₂ W₂ S₁ W₁ = Σᵢⱼ s₂ᵢ (W₂)ᵢⱼ (W₁ W₃)ⱼᵢ s₁ⱼ
        first, second, last = weights
        return ((slopes[1] @ (second * (first @ last).mT)) * slopes[0]).sum(-1)
    columns = [slope.reshape(-1, slope.shape[-1]).mT for slope in slopes]
    return jacobian(weights, columns).diagonal().sum(-1).reshape(slopes[0].shape[:-1])


def cnf(
    features: int, context: int = 0, hidden: Sequence[int] = (64, 64), atol: float = 1e-6, rtol: float = 1e-5
) -> FlowTransform | Conditional:
    """Continuous transform with the exact trace."""
    return gather(Continuous(features, context, hidden, True, atol, rtol))


def ffjord(
    features: int, context: int = 0, hidden: Sequence[int] = (64, 64), atol: float = 1e-6, rtol: float = 1e-5
) -> FlowTransform | Conditional:
    """Continuous transform with Hutchinson's estimate: log-densities are unbiased estimates, not values."""
    return gather(Continuous(features, context, hidden, False, atol, rtol))
