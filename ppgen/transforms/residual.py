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

from ppgen.transforms.change_of_variables import Conditional, FlowTransform, Pair, full_precision, gather

__all__ = ["Residual", "residual"]


class Residual(FlowTransform):
    """One residual block on (..., D) vectors.

    Args:
        features: D.
        context: features of a context that g depends on as well (without a bound on its slope there).
        hidden: widths of g.
        lipschitz: bound on the spectral norm of each layer of g, below 1: see `_spectral_bound`.
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
        return [w * (self.lipschitz / _spectral_bound(w)).clamp_max(1.0) for w in self.weights]

    def _network(self, x: Tensor, context: Tensor | None, weights: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """g of the columns x, (D, N), and the slopes of its hidden layers, (H, N) each."""
        slopes = []
        for i, (w, b) in enumerate(zip(weights, self.biases, strict=True)):
            if i:  # silu / 1.1, "LipSwish": its slope stays within ±1
                share = x.sigmoid()
                slopes.append(share * (1 + x * (1 - share)) / 1.1)
                x = x * share / 1.1
            x = torch.addmm(b[:, None], w, x)
            if i == 0 and self.given is not None:
                assert context is not None
                x = x + self.given(context).reshape(-1, len(b)).mT
        return x, slopes

    def _columns(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if context is not None:
            context = context.expand(*x.shape[:-1], -1)
        return x.reshape(-1, x.shape[-1]).mT, context

    @full_precision
    def pull(self, x: Tensor, context: Tensor | None = None) -> Pair:
        weights = self._weights()
        columns, context = self._columns(x, context)
        g, slopes = self._network(columns, context, weights)
        ladj = _log_det(jacobian(weights, slopes)) if self.exact else self._series(weights, slopes)
        return x + g.mT.reshape(x.shape), ladj.reshape(x.shape[:-1])

    def _series(self, weights: list[Tensor], slopes: list[Tensor]) -> Tensor:
        # terms beyond the fixed ones: each is kept with probability 1/2 given the one before
        extra = int(torch.empty(()).geometric_(0.5).item()) - 1
        v = torch.randn(self.shape[0], slopes[0].shape[-1]).to(slopes[0])
        w, total = v, torch.zeros_like(v[0])
        for k in range(1, self.terms + extra + 1):
            for weight, slope in zip(reversed(weights), [*reversed(slopes), None], strict=True):
                w = weight.mT @ w
                w = w if slope is None else slope * w
            kept = 0.5 ** max(k - self.terms, 0)
            total = total + (-1) ** (k + 1) / (k * kept) * (w * v).sum(0)
        return total

    @full_precision
    def push(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, None]:
        columns, context = self._columns(z, context)
        with torch.no_grad():
            weights = self._weights()
            x = columns
            tolerance = 4 * torch.finfo(z.dtype).eps
            for _ in range(1000):
                step = columns - self._network(x, context, weights)[0] - x
                x = x + step
                if bool((step.abs() <= tolerance * (1 + x.abs())).all()):
                    break
        if torch.is_grad_enabled():  # one Newton step through which the gradients are those of the implicit function
            weights = self._weights()
            g, slopes = self._network(x, context, weights)
            slope = (torch.eye(len(x)).to(x)[..., None] + jacobian(weights, slopes).detach()).movedim(-1, 0)
            x = x - torch.linalg.solve(slope, (x + g - columns).mT[..., None])[..., 0].mT
        return x.mT.reshape(z.shape), None


SQUARINGS = 6


def _spectral_bound(w: Tensor) -> Tensor:
    """An upper bound on the spectral norm of a matrix, too large by 1.7% at most for one of 64 rows.

    The Schatten norm of order p = 2^(k + 2), (Σ σᵢᵖ)^(1 / p), by k squarings of G = wᵀw: unlike a power iteration's
    lower bound it holds at every step, unlike singular values it is cheap and smooth. Its gradient, a multiple of
    w G^(p/2 - 1), comes from the same squares.

    Source: Efficient Bound of Lipschitz Constant for Convolutional Layers by Gram Iteration (Delattre et al., 2023,
    arXiv:2305.16173).
    """
    with torch.no_grad():
        wide, tiny = w.shape[0] < w.shape[1], torch.finfo(w.dtype).tiny
        power = w @ w.mT if wide else w.mT @ w
        product, log_norm = power, torch.zeros_like(w[0, 0])
        for k in range(SQUARINGS + 1):
            power = power @ power if k else power
            size = power.square().sum().sqrt().clamp_min(tiny)
            power = power / size
            product = product @ power if k else power
            log_norm = log_norm + size.log() / 2 ** (k + 1)
        bound, slope = log_norm.exp(), product @ w if wide else w @ product
        slope = slope * (bound / (slope * w).sum().clamp_min(tiny))  # a norm is what its gradient makes of w
    return bound + ((w - w.detach()) * slope).sum()


def jacobian(weights: list[Tensor], slopes: list[Tensor]) -> Tensor:
    """w_L diag(s_L) ... diag(s_1) w_1 for each column of the slopes (H, N): (D, D, N)."""
    first, *rest = weights
    product = first[..., None].expand(*first.shape, slopes[0].shape[-1])
    for weight, slope in zip(rest, slopes, strict=True):
        product = weight @ (slope[:, None] * product).flatten(1)
        product = product.reshape(len(weight), first.shape[1], -1)
    return product


def _log_det(j: Tensor) -> Tensor:
    """log det(I + J) of J, (D, D, N), |J| < 1: by elimination, which needs no pivots as xᵀ(I + J)x > 0."""
    a = torch.eye(len(j)).to(j)[..., None] + j
    total = a[0, 0].log()
    while len(a) > 1:
        a = a[1:, 1:] - a[1:, :1] * (a[:1, 1:] / a[0, 0])
        total = total + a[0, 0].log()
    return total


def residual(
    features: int, context: int = 0, hidden: Sequence[int] = (64, 64), lipschitz: float = 0.97
) -> FlowTransform | Conditional:
    """A residual transform; see `Residual`."""
    return gather(Residual(features, context, hidden, lipschitz))
