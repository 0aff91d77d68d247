r"""Masked autoregressive transforms: z_i = f(x_i; θ_i(x_<i)), f increasing, θ from one masked network.

The density takes one pass of the network and sampling D passes (`maf` and its kin); for an inverse autoregressive
transform (`iaf`) it is the reverse. `passes=2` makes two groups, which is a coupling: fast both ways.

Sources: Masked Autoregressive Flow (Papamakarios et al., 2017, arXiv:1705.07057); Improved Variational Inference
with Inverse Autoregressive Flow (Kingma et al., 2016, arXiv:1606.04934). The masked networks are zuko's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints
from zuko.flows.autoregressive import MaskedAutoregressiveTransform
from zuko.utils import broadcast, unpack

from ppgen.transforms import univariate as u
from ppgen.transforms.change_of_variables import Conditional, FlowTransform, Inverse, Pair, gather
from ppgen.transforms.conditioner import START, entries
from ppgen.transforms.univariate.networks import Integrands, Networks, OfFeatures
from ppgen.transforms.univariate.splines import Circular, Spline, spline_shapes

Order = Sequence[int] | Tensor | None


class Autoregressive(FlowTransform):
    """An autoregressive transform of (..., D) vectors.

    Args:
        features: D.
        context: features of the context that θ depends on, 0 for none.
        univariate: makes the increasing functions from their parameters, each of shape (..., D, *shape).
        shapes: of these parameters, for one feature.
        hidden: widths of the masked network.
        order: the place of each feature in the order; 0, 1, ... if None.
        passes: groups of features that are conditionally independent within; D if None.
        activation: of the masked network; ReLU if None.
    """

    def __init__(
        self,
        features: int,
        context: int = 0,
        univariate: Callable[..., Transform] = u.MonotonicAffineTransform,
        shapes: Sequence[Sequence[int]] = ((), ()),
        hidden: Sequence[int] = (64, 64),
        order: Order = None,
        passes: int | None = None,
        activation: Callable[[], nn.Module] | None = None,
    ):
        super().__init__((features,), context)
        order = None if order is None else torch.as_tensor(order)
        self.conditioner = MaskedAutoregressiveTransform(
            features, context, univariate=univariate, shapes=shapes, hidden_features=hidden, order=order, passes=passes,
            activation=activation,
        )  # fmt: skip
        if hasattr(self.conditioner, "hyper") and not isinstance(univariate, OfFeatures):
            with torch.no_grad():
                self.conditioner.hyper[-1].weight.mul_(START)
                self.conditioner.hyper[-1].bias.mul_(START)
        self._plan()
        self.register_load_state_dict_post_hook(_plan_anew)  # the order is loaded with the parameters

    def _plan(self) -> None:
        """When each hidden unit can be computed in the passes of the inverse: in pass i, what depends on the features
        of passes before i only. Units are sorted by that, so that each is computed once and not in every pass."""
        c = self.conditioner
        features = self.shape[0]
        groups = getattr(c, "order", None)
        if groups is None:  # one feature: nothing to condition on but the context
            self.passes = 1
            return
        self.passes = c.passes
        known = torch.cat((groups, groups.new_full((self.context,), -1)))
        self._keep("sorted0", known.argsort(stable=True))
        for i in range(self.passes):
            self._keep(f"group{i}", (groups == i).nonzero()[:, 0])
        self._keep("back", torch.cat([getattr(self, f"group{i}") for i in range(self.passes)]).argsort())
        self.counts = []
        for n, layer in enumerate(list(c.hyper)[:-1:2]):
            known = torch.where(layer.mask, known, -1).amax(1)
            self._keep(f"sorted{n + 1}", known.argsort(stable=True))
            self.counts.append([int((known < i).sum()) for i in range(self.passes)])
        assert len(c.hyper[-1].bias) == features * c.total

    def _keep(self, name: str, index: Tensor) -> None:
        self.register_buffer(name, index, persistent=False)

    def _functions(self, x: Tensor, context: Tensor | None) -> Any:
        c = self.conditioner
        h = x if context is None else torch.cat(broadcast(x, context, ignore=1), -1)
        *layers, last = c.hyper
        for layer in layers:
            h = layer(h)
        phi = entries(h, last.mask * last.weight, last.bias, c.total)
        return c.univariate(*unpack(phi, c.shapes))

    def pull(self, x: Tensor, context: Tensor | None = None) -> Pair:
        if not hasattr(self.conditioner, "passes"):
            return self.conditioner(context).call_and_ladj(x)
        z, ladj = self._functions(x, context).call_and_ladj(x)
        return z, ladj.sum(-1)

    def push(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, None]:
        c = self.conditioner
        if not hasattr(c, "passes"):  # one feature: nothing to condition on but the context
            return c(context).inv(z), None
        return self._substitute(z, context), None

    def _substitute(self, z: Tensor, context: Tensor | None) -> Tensor:
        """The inverse, one group of features after the other; every unit of the network is computed once."""
        c = self.conditioner
        *hidden, last = list(c.hyper)[::2]
        activations = list(c.hyper)[1::2]
        orders = [getattr(self, f"sorted{n}") for n in range(len(hidden) + 1)]
        weights, biases = [], []
        for layer, rows, columns in zip(hidden, orders[1:], orders, strict=False):
            weights.append(_sorted(layer.mask * layer.weight, columns)[rows])
            biases.append(layer.bias[rows])
        out = _sorted(last.mask * last.weight, orders[-1]).unflatten(0, (-1, c.total))
        shift = last.bias.unflatten(0, (-1, c.total))
        # what is known of each layer so far: inputs first, the context's before the features
        known = [z[..., :0] if context is None else context.expand(*z.shape[:-1], -1)]
        known += [z[..., :0] for _ in hidden]
        found = []
        for i in range(self.passes):
            for n, (weight, bias, activation) in enumerate(zip(weights, biases, activations, strict=True)):
                before, now = known[n + 1].shape[-1], self.counts[n][i]
                if now > before:
                    new = nn.functional.linear(known[n], weight[before:now, : known[n].shape[-1]], bias[before:now])
                    known[n + 1] = torch.cat((known[n + 1], activation(new)), -1)
            index = getattr(self, f"group{i}")
            weight = out[index].flatten(0, 1)[:, : known[-1].shape[-1]]
            phi = nn.functional.linear(known[-1], weight, shift[index].flatten())
            phi = phi.to(z.dtype).unflatten(-1, (-1, c.total))
            functions = c.univariate.of(index) if isinstance(c.univariate, OfFeatures) else c.univariate
            x = functions(*unpack(phi, c.shapes)).inv(z[..., index])
            known[0] = torch.cat((known[0], x), -1)
            found.append(x)
        return torch.cat(found, -1)[..., self.back]


def _sorted(weight: Tensor, columns: Tensor) -> Tensor:
    """weight[:, columns], by a product: Inductor (torch 2.13) miscompiles the gradient of the index."""
    return weight @ torch.eye(len(columns)).to(weight)[columns].mT


def _plan_anew(module: Autoregressive, _: object) -> None:
    module._plan()


class _Circular(Autoregressive):
    """On the torus [-π, π)^D; the masked networks see the angles."""

    @property
    def domain(self) -> constraints.Constraint:  # type: ignore[override]
        return constraints.independent(Circular.domain, 1)

    codomain = domain


def maf(
    features: int, context: int = 0, hidden: Sequence[int] = (64, 64), order: Order = None, passes: int | None = None
) -> FlowTransform | Conditional:
    """Masked autoregressive affine transform: z_i = exp(a_i(x_<i)) x_i + b_i(x_<i). One pass for the density.

    Args as `Autoregressive`; with context > 0 a conditional transform.

    >>> from pyro.distributions import Normal, TransformedDistribution
    >>> base = Normal(torch.zeros(3), 1.0).to_event(1)
    >>> TransformedDistribution(base, [maf(3), maf(3, order=[2, 1, 0])]).log_prob(torch.zeros(5, 3)).shape
    torch.Size([5])
    """
    return gather(Autoregressive(features, context, hidden=hidden, order=order, passes=passes))


def iaf(
    features: int, context: int = 0, hidden: Sequence[int] = (64, 64), order: Order = None, passes: int | None = None,
    activation: Callable[[], nn.Module] | None = None,
) -> FlowTransform | Conditional:  # fmt: skip
    """Inverse autoregressive affine transform: x_i = exp(a_i(z_<i)) z_i + b_i(z_<i). One pass to sample.

    With a smooth activation, as `torch.nn.ELU`, its density has a continuous gradient.
    """
    return gather(
        Inverse(Autoregressive(features, context, hidden=hidden, order=order, passes=passes, activation=activation))
    )


def spline(
    features: int, context: int = 0, hidden: Sequence[int] = (64, 64), order: Order = None, passes: int | None = None,
    bins: int = 8, bound: float = 5.0,
) -> FlowTransform | Conditional:  # fmt: skip
    """Neural spline transform: rational-quadratic with `bins` bins on [-bound, bound], the identity outside.

    Source: Neural Spline Flows (Durkan et al., 2019, arXiv:1906.04032).
    """
    functions = partial(Spline, bound=bound)
    return gather(Autoregressive(features, context, functions, spline_shapes(bins), hidden, order, passes))


def circular_spline(
    features: int, context: int = 0, hidden: Sequence[int] = (64, 64), order: Order = None, passes: int | None = None,
    bins: int = 8,
) -> FlowTransform | Conditional:  # fmt: skip
    """Neural spline transform of D angles in [-π, π); take a uniform base.

    Source: Normalizing Flows on Tori and Spheres (Rezende et al., 2020, arXiv:2002.02428).
    """
    return gather(_Circular(features, context, Circular, spline_shapes(bins), hidden, order, passes))


def naf(
    features: int, context: int = 0, hidden: Sequence[int] = (64, 64), order: Order = None, passes: int | None = None,
    signal: int = 16, units: Sequence[int] = (32, 32),
) -> FlowTransform | Conditional:  # fmt: skip
    """Neural autoregressive transform: f is a network with positive weights, inverted by Newton's steps.

    Args:
        signal: numbers by which the masked network modulates it.
        units: its widths, even.

    Source: Neural Autoregressive Flows (Huang et al., 2018, arXiv:1804.00779).
    """
    functions = Networks(features, signal, units)
    return gather(Autoregressive(features, context, functions, ((signal,),), hidden, order, passes))


def unaf(
    features: int, context: int = 0, hidden: Sequence[int] = (64, 64), order: Order = None, passes: int | None = None,
    signal: int = 16, units: Sequence[int] = (32, 32), points: int = 32,
) -> FlowTransform | Conditional:  # fmt: skip
    """Unconstrained monotonic transform: f is the integral of a positive network, inverted by Newton's steps.

    Args:
        points: of the quadrature.

    Source: Unconstrained Monotonic Neural Networks (Wehenkel & Louppe, 2019, arXiv:1908.05164).
    """
    functions = Integrands(features, signal, units, points)
    return gather(Autoregressive(features, context, functions, ((signal,), ()), hidden, order, passes))


def sos(
    features: int, context: int = 0, hidden: Sequence[int] = (64, 64), order: Order = None, passes: int | None = None,
    degree: int = 4, polynomials: int = 3,
) -> FlowTransform | Conditional:  # fmt: skip
    """Sum-of-squares polynomial transform, straight beyond ±10, inverted by Newton's steps.

    Source: Sum-of-Squares Polynomial Flow (Jaini et al., 2019, arXiv:1905.02325).
    """
    shapes = ((polynomials, degree + 1), ())
    return gather(Autoregressive(features, context, u.SumOfSquares, shapes, hidden, order, passes))


def bernstein(
    features: int, context: int = 0, hidden: Sequence[int] = (64, 64), order: Order = None, passes: int | None = None,
    degree: int = 16, bound: float = 5.0,
) -> FlowTransform | Conditional:  # fmt: skip
    """Bernstein polynomial transform on [-bound, bound], the identity outside, inverted by Newton's steps.

    Source: Short-Term Density Forecasting with Bernstein-Polynomial Normalizing Flows (Arpogaus et al., 2022,
    arXiv:2204.13939).
    """
    functions = partial(u.Bernstein, bound=bound)
    return gather(Autoregressive(features, context, functions, ((degree - 4,),), hidden, order, passes))
