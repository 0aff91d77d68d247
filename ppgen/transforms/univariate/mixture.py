"""The quantile of x under a mixture of normals, as a normal score: what `gaussianization` applies to every feature."""

from __future__ import annotations

import math
from functools import reduce

import torch
from torch import Tensor

from ppgen import normal
from ppgen.transforms.change_of_variables import Pair
from ppgen.transforms.univariate import Univariate
from ppgen.transforms.univariate.roots import implicit, root


class Gaussianize(Univariate):
    r"""f(x) = Φ⁻¹(1/K Σ_k Φ(e^{a_k} x + b_k)): the quantile of x under a mixture, as a normal score.

    Computed through logarithms of the smaller tail, so that it stays increasing and finite far out.
    Source: Gaussianization Flows (Meng et al., 2020, arXiv:2003.01941).

    Args:
        shift: b, (..., K).
        scale: a, (..., K).
    """

    def __init__(self, shift: Tensor, scale: Tensor):
        super().__init__()
        self.shift, self.log_scale = shift, scale

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x, (D, ...), and b, a and e^a, (K, D, ...): what is done entry by entry then runs over rows that are
        neighbours, however few features there are."""
        new = (1,) * (x.dim() - self.shift.dim() + 1)
        b, a = (
            p.movedim(-1, 0).reshape(p.shape[-1], *new, *p.shape[:-1]).movedim(-1, 1)
            for p in (self.shift, self.log_scale)
        )
        return x.movedim(-1, 0).contiguous(), b, a, a.exp()

    def call_and_ladj(self, x: Tensor) -> Pair:
        y, ladj = self._gaussianize(*self._parts(x))
        return y.movedim(0, -1), ladj.movedim(0, -1)

    def _gaussianize(self, x: Tensor, b: Tensor, a: Tensor, scale: Tensor) -> Pair:
        """y and log ∂y/∂x. No gradient goes through the tails: the derivatives of both are known, and are put in as
        the slopes of linear terms whose value is 0."""
        u = x * scale + b
        with torch.no_grad():
            y = _mixture_score(u)
            ratio = (y - u) * (y + u) / 2  # log φ(u_k) / φ(y)
            peak = ratio.amax(0)
            weights = (ratio - peak).exp() / len(u)
            shares = weights * scale
            slope = shares.sum(0)
            weights = weights * peak.clamp_max(80.0).exp()  # ∂y/∂u_k
        ladj = slope.log() + peak
        if torch.is_grad_enabled():
            shares = shares / slope
            move = u - u.detach()
            ladj = ladj + ((y * weights - shares * u.detach()) * move + shares * (a - a.detach())).sum(0)
            y = y + (weights * move).sum(0)
        return y, ladj

    def _inverse(self, y: Tensor) -> Tensor:
        """The root of the logarithm of the smaller tail less that of a normal's beyond y."""
        y, *parts = self._parts(y)
        with torch.no_grad():
            tail = _Tail(y, parts[0], parts[2])
            x = root(tail, *tail.start(), lambda low, high: (low + high) / 2, steps=20)
        return implicit(lambda x: self._gaussianize(x, *parts), x, y).movedim(0, -1)


class _Tail:
    """The smaller tail of a mixture, relative to a normal's beyond a score y; by one erfc and one exp a component.

    Where Φ(-|y|) underflows, tails are as their densities, in error by 1 / y²; what lies nearer to 0 than where that
    begins is cut to what is far too much in any case. Component by component, not as one array: what a compiler makes
    of that is one loop over the rows.
    """

    def __init__(self, y: Tensor, b: Tensor, scale: Tensor):
        self.y, self.parts = y, list(zip(b.unbind(), scale.unbind(), strict=True))
        self.side = torch.where(y < 0, 1.0, -1.0).to(y)
        self.score, end = -y.abs(), normal.erfc_end(y)
        self.far = self.score < -end
        self.cut = torch.where(self.far, -end, math.inf).to(y)
        log_cdf = normal.log_cdf(self.score)
        self.hazard = normal.hazard(self.score, log_cdf)
        self.inverse = torch.where(self.far, 0.0, -log_cdf).exp() / 2

    def start(self) -> tuple[Tensor, Tensor, Tensor]:
        """The mean, the least and the greatest of the components' quantiles; the mixture's lies between the two."""
        each = [(self.y - b) / scale for b, scale in self.parts]
        return _mean(each), reduce(torch.minimum, each), reduce(torch.maximum, each)

    def __call__(self, x: Tensor) -> Pair:
        """log of the mean of Φ(u) / Φ(y) over the components, u = x scale + b, and its derivative by x; both with the
        sign that makes them rise with x, where Φ is 1 - Φ in the upper tail."""
        densities, tails = [], []
        for b, scale in self.parts:
            u = torch.minimum(self.side * (x * scale + b), self.cut)
            densities.append(((self.score - u) * (self.score + u) / 2).clamp_max(80.0).exp())  # φ(u) / φ(y)
            tails.append(torch.special.erfc(u * -(0.5**0.5)))
        share = torch.where(self.far, _mean(densities), _mean(tails) * self.inverse)
        slope = _mean([d * scale for d, (_, scale) in zip(densities, self.parts, strict=True)])
        return self.side * share.log(), slope * self.hazard / share


def _mean(values: list[Tensor]) -> Tensor:
    return reduce(torch.add, values) / len(values)


def _mixture_score(u: Tensor) -> Tensor:
    """Φ⁻¹(1/K Σ_k Φ(u_k)), u (K, ...), by the smaller of the two tails, and by Mills' ratio where erfc underflows."""
    lower, upper = (torch.special.erfc(u * c).mean(0) for c in (-(0.5**0.5), 0.5**0.5))
    side = torch.where(lower < upper, 1.0, -1.0).to(u)
    v, end = side * u, normal.erfc_end(u)
    t = -v.clamp_max(-end)
    least = t.amin(0)
    far = (normal.mills(t) * ((least - t) * (least + t) / 2).exp()).mean(0).log() + normal.log_density(least)
    near = (torch.minimum(lower, upper) / 2).log()
    return side * normal.quantile(torch.where(least > end, far, near))
