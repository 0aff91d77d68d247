r"""Residual transforms: z = x + g(x) with Lip(g) < 1, inverted by Banach's fixed point x <- z - g(x).

    log |det (I + J)| = Σ_{k>=1} (-1)^{k+1} tr(J^k) / k

In up to `exact_up_to` dimensions the determinant is computed as it is. Beyond, the series is estimated without bias:
the trace by Hutchinson's vᵀ J^k v, its end by Russian roulette, each term divided by the probability that it is kept.

Sources: Invertible Residual Networks (Behrmann et al., 2019, arXiv:1811.00995); Residual Flows for Invertible
Generative Modeling (Chen et al., 2019, arXiv:1906.02735).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ppgen.transforms.wrap import Conditional, FlowTransform, Pair, gather

__all__ = ["Residual", "residual"]


class Residual(FlowTransform):
    """One residual block on (..., D) vectors.

    Args:
        features: D.
        context: features of a context that g depends on as well (without a bound on its slope there).
        hidden: widths of g.
        lipschitz: bound on the spectral norm of each layer of g, below 1.
        exact_up_to: largest D for which the determinant is computed and not estimated.
        terms: of the series that are always computed; the roulette begins after them.
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        hidden: Sequence[int] = (64, 64),
        lipschitz: float = 0.97,
        exact_up_to: int = 8,
        terms: int = 4,
    ):
        super().__init__((features,), context)
        widths = (features, *hidden, features)
        pairs = list(zip(widths, widths[1:], strict=False))
        self.weights = nn.ParameterList(nn.init.orthogonal_(torch.empty(o, i)) for i, o in pairs)
        self.biases = nn.ParameterList(torch.zeros(o) for _, o in pairs)
        self.given = nn.Linear(context, widths[1]) if context else None
        self.lipschitz, self.exact, self.terms = lipschitz, features <= exact_up_to, terms

    def _weights(self) -> list[Tensor]:
        # The norm itself, not a power iteration's lower bound of it: the bound on g holds at every step.
        return [w * (self.lipschitz / torch.linalg.matrix_norm(w, 2)).clamp_max(1.0) for w in self.weights]

    def _residual(self, x: Tensor, context: Tensor | None, weights: list[Tensor]) -> Tensor:
        for i, (w, b) in enumerate(zip(weights, self.biases, strict=True)):
            if i:
                x = nn.functional.silu(x) / 1.1  # "LipSwish": its slope stays within ±1
            x = nn.functional.linear(x, w, b)
            if i == 0 and self.given is not None:
                x = x + self.given(context)
        return x

    def pull(self, x: Tensor, context: Tensor | None = None) -> Pair:
        weights = self._weights()
        with torch.enable_grad():
            at = x if x.requires_grad else x.detach().requires_grad_()
            g = self._residual(at, context, weights)
            ladj = self._exact(at, g) if self.exact else self._series(at, g)
        if not torch.is_grad_enabled():
            g, ladj = g.detach(), ladj.detach()
        return x + g, ladj

    def _exact(self, x: Tensor, g: Tensor) -> Tensor:
        return torch.linalg.slogdet(torch.eye(x.shape[-1]).to(x) + _jacobian(x, g)).logabsdet

    def _series(self, x: Tensor, g: Tensor) -> Tensor:
        # terms beyond the fixed ones: each is kept with probability 1/2 given the one before
        extra = int(torch.empty(()).geometric_(0.5).item()) - 1
        v = torch.randn_like(x)
        w, total = v, torch.zeros_like(x[..., 0])
        for k in range(1, self.terms + extra + 1):
            (w,) = torch.autograd.grad(g, x, w, create_graph=True)
            kept = 0.5 ** max(k - self.terms, 0)
            total = total + (-1) ** (k + 1) / (k * kept) * (w * v).sum(-1)
        return total

    def push(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, None]:
        with torch.no_grad():
            weights = self._weights()
            x = z
            tolerance = 4 * torch.finfo(z.dtype).eps
            for _ in range(1000):
                step = z - self._residual(x, context, weights) - x
                x = x + step
                if bool((step.abs() <= tolerance * (1 + x.abs())).all()):
                    break
        if not torch.is_grad_enabled():
            return x, None
        # one Newton step through which the gradients are those of the implicit function
        weights = self._weights()
        at = x.detach().requires_grad_()
        jacobian = torch.eye(x.shape[-1]).to(x) + _jacobian(at, self._residual(at, context, weights)).detach()
        error = x + self._residual(x, context, weights) - z
        return x - torch.linalg.solve(jacobian, error[..., None])[..., 0], None


def _jacobian(x: Tensor, y: Tensor) -> Tensor:
    """∂y/∂x of shape (..., D, D), rows independent."""
    rows = [torch.autograd.grad(y_i.sum(), x, create_graph=True)[0] for y_i in y.unbind(-1)]
    return torch.stack(rows, -2)


def residual(
    features: int, context: int = 0, hidden: Sequence[int] = (64, 64), lipschitz: float = 0.97
) -> FlowTransform | Conditional:
    """A residual transform; see `Residual`."""
    return gather(Residual(features, context, hidden, lipschitz))
