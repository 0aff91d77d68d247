r"""Continuous transforms: z = x(1), dx/dt = v(x, t), log |det ∂z/∂x| = ∫ tr ∂v/∂x dt.

The trace is exact (D backward passes), or Hutchinson's unbiased estimate εᵀ ∂v/∂x ε with one ε a call (FFJORD).
The solver is zuko's adaptive Dormand-Prince with checkpointed adjoint gradients; it chooses its steps for a batch
as a whole, so that values of one row differ by its tolerances between batches, and its graph cannot be traced.

Sources: Neural Ordinary Differential Equations (Chen et al., 2018, arXiv:1806.07366); FFJORD (Grathwohl et al., 2018,
arXiv:1810.01367).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor
from zuko.flows.continuous import FFJTransform
from zuko.transforms import FreeFormJacobianTransform

from ppgen.transforms.wrap import Conditional, FlowTransform, Pair, full_precision, gather

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

    def _flow(self, context: Tensor | None) -> FreeFormJacobianTransform:
        # all parameters, in eval mode too: those left out here would silently get no gradient
        phi = [*self.field.parameters()] + ([] if context is None else [context])
        f = partial(self.field.f, c=context)
        return FreeFormJacobianTransform(
            f, *self.field.times.unbind(), phi=phi, atol=self.atol, rtol=self.rtol, exact=self.exact
        )

    @full_precision
    def pull(self, x: Tensor, context: Tensor | None = None) -> Pair:
        return self._flow(context).call_and_ladj(x)

    @full_precision
    def push(self, z: Tensor, context: Tensor | None = None) -> Pair:
        return self._flow(context).inv.call_and_ladj(z)


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
