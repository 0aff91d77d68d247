r"""Coupling transforms: z_a = x_a, z_b = f(x_b; θ(x_a)). Fast in both directions.

Sources: NICE (Dinh et al., 2014, arXiv:1410.8516); Density estimation using Real NVP (Dinh et al., 2017,
arXiv:1605.08803); Neural Spline Flows (Durkan et al., 2019, arXiv:1906.04032).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from zuko.utils import broadcast, unpack

from ppgen.errors import PpgenError
from ppgen.nets import MLP
from ppgen.transforms import univariate as u
from ppgen.transforms.change_of_variables import Conditional, FlowTransform, Pair, gather
from ppgen.transforms.conditioner import HIDDEN, START, entries
from ppgen.transforms.univariate.splines import Spline, spline_shapes


class Coupling(FlowTransform):
    """A coupling of (..., D) vectors, D >= 2.

    Args:
        features: D.
        context: features of the context that θ depends on beside x_a.
        univariate, shapes: the increasing functions and the shapes of their parameters, as in `Autoregressive`.
        hidden: widths of the network from x_a to θ.
        mask: D booleans, true where x passes unchanged; every second feature if None.
        net: further keywords of the network, a `ppgen.nets.MLP`: activation, residual, dropout.

    Raises:
        PpgenError: a mask that keeps all or none.
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        univariate: Callable[..., Any] = u.MonotonicAffineTransform,
        shapes: Sequence[Sequence[int]] = ((), ()),
        hidden: Sequence[int] = (64, 64),
        mask: Sequence[bool] | Tensor | None = None,
        **net: Any,
    ):
        super().__init__((features,), context)
        keep = torch.arange(features) % 2 == 1 if mask is None else torch.as_tensor(mask).bool()
        if keep.shape != (features,) or not 0 < keep.sum() < features:
            raise PpgenError(
                f"a coupling of {features} feature(s) got the mask {keep.int().tolist()}; expected {features} booleans "
                "of both values: one part is transformed given the other"
            )
        a, b = keep.nonzero()[:, 0], (~keep).nonzero()[:, 0]
        self.register_buffer("a", a)
        self.register_buffer("b", b)
        self.register_buffer("back", torch.cat((a, b)).argsort(), persistent=False)
        self.univariate, self.shapes = univariate, [torch.Size(s) for s in shapes]
        self.total = sum(s.numel() for s in self.shapes)
        self.network = MLP(len(a) + context, len(b) * self.total, hidden, output_gain=START, **net)
        with torch.no_grad():
            for p in self.network.layers.parameters():
                p.mul_(HIDDEN)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.back = torch.cat((self.a, self.b)).argsort()

    def _functions(self, a: Tensor, context: Tensor | None) -> Any:
        h = a if context is None else torch.cat(broadcast(a, context, ignore=1), -1)
        last = self.network.last
        phi = entries(self.network.hidden(h), last.weight, last.bias, self.total)
        return self.univariate(*unpack(phi, self.shapes))

    def pull(self, x: Tensor, context: Tensor | None = None) -> Pair:
        a, b = x[..., self.a], x[..., self.b]
        z, ladj = self._functions(a, context).call_and_ladj(b)
        return torch.cat((a, z), -1)[..., self.back], ladj.sum(-1)

    def push(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        a, b = z[..., self.a], z[..., self.b]
        functions = self._functions(a, context)
        x = functions.inv(b)
        return torch.cat((a, x), -1)[..., self.back], -functions.log_abs_det_jacobian(x, b).sum(-1)


Mask = Sequence[bool] | Tensor | None


def nice(
    features: int, context: int = 0, hidden: Sequence[int] = (64, 64), mask: Mask = None, **net: Any
) -> FlowTransform | Conditional:
    """Additive coupling: z_b = x_b + m(x_a). Volume-preserving."""
    return gather(Coupling(features, context, u.AdditiveTransform, ((),), hidden, mask, **net))


def realnvp(
    features: int, context: int = 0, hidden: Sequence[int] = (64, 64), mask: Mask = None, **net: Any
) -> FlowTransform | Conditional:
    """Affine coupling: z_b = exp(a(x_a)) x_b + b(x_a)."""
    return gather(Coupling(features, context, hidden=hidden, mask=mask, **net))


def spline_coupling(
    features: int, context: int = 0, hidden: Sequence[int] = (64, 64), mask: Mask = None, bins: int = 8,
    bound: float = 5.0, **net: Any,
) -> FlowTransform | Conditional:  # fmt: skip
    """Rational-quadratic coupling on [-bound, bound], the identity outside."""
    functions = partial(Spline, bound=bound)
    return gather(Coupling(features, context, functions, spline_shapes(bins), hidden, mask, **net))
