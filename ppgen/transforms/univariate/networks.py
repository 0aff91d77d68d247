"""Increasing functions that are networks, or integrals of networks, one for each feature."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import zuko
from torch import Tensor, nn
from torch.distributions import Transform

from ppgen.transforms.change_of_variables import Pair, full_precision
from ppgen.transforms.univariate import PositiveIntegral, Univariate


class OfFeatures(nn.Module):
    """Functions with networks of their own, one for each feature, that a signal from the masked network modulates."""

    network: nn.Module

    def _layers(self, features: Tensor | slice) -> list[Pair]:
        linear = (layer for layer in self.network.children() if isinstance(layer, zuko.nn.Linear))
        return [(layer.weight[features], layer.bias[features]) for layer in linear]

    def of(self, features: Tensor | slice) -> Callable[..., Transform]:
        """Those of some features, made from their parameters."""
        raise NotImplementedError

    def forward(self, *parameters: Tensor) -> Transform:
        return self.of(slice(None))(*parameters)


class Networks(OfFeatures):
    """Increasing networks."""

    def __init__(self, features: int, signal: int, hidden: Sequence[int]):
        super().__init__()
        self.network = zuko.nn.MonotonicMLP(1 + signal, 1, hidden_features=hidden, stack=features)

    def of(self, features: Tensor | slice) -> Callable[..., Transform]:
        return partial(_IncreasingNetwork, self._layers(features))


class Integrands(OfFeatures):
    """Integrals of positive networks, between e⁻⁷ and e⁷."""

    def __init__(self, features: int, signal: int, hidden: Sequence[int], points: int):
        super().__init__()
        # smooth, as the quadrature's error falls with the smoothness of what is integrated
        self.network = zuko.nn.MLP(1 + signal, 1, hidden_features=hidden, activation=nn.SiLU, stack=features)
        self.points = points

    def of(self, features: Tensor | slice) -> Callable[..., Transform]:
        layers = self._layers(features)

        def make(signal: Tensor, constant: Tensor) -> Transform:
            return PositiveIntegral(partial(_density, layers, signal), constant, self.points)

        return make


def _density(layers: list[Pair], signal: Tensor, x: Tensor) -> Tensor:
    """What `Integrands` integrate, at points x, (P, ..., D)."""
    (weight, bias), *rest = layers
    h = _signalled(weight, bias, signal, x / 10).flatten(2)
    for weight, bias in rest:
        h = torch.baddbmm(bias[..., None], weight, nn.functional.silu(h))
    return (7 * (h[:, 0].mT.reshape(x.shape) / 7).tanh()).exp()


class _IncreasingNetwork(Univariate):
    """A monotone network: positive weights, activations that grow without bound on both sides.

    The derivative is carried forward beside the value, so that no second backward pass is needed. Inside, arrays are
    (D, units, rows): one product of matrices for each feature, rows in a line.
    Source: Neural Autoregressive Flows (Huang et al., 2018, arXiv:1804.00779), with zuko's network.

    Args:
        layers: weights and biases, one network of 1 + S inputs for each feature.
        signal: (..., S), what it depends on beside x.
    """

    def __init__(self, layers: list[Pair], signal: Tensor):
        super().__init__()
        self.layers, self.signal = layers, signal

    @full_precision
    def call_and_ladj(self, x: Tensor) -> Pair:
        (weight, bias), *rest = self.layers
        weight = weight.abs()
        h, dh = _signalled(weight, bias, self.signal, x[None])[:, :, 0], weight[..., :1]
        for weight, bias in rest:  # elu(h) for one half of the units, -elu(-h) for the other
            half = h.shape[1] // 2
            side = torch.cat((h.new_ones(half), -h.new_ones(half)))[:, None]
            t = side * h
            slope = t.clamp_max(0).exp()
            weight = weight.abs()
            h = torch.baddbmm(bias[..., None], weight, side * (t.clamp_min(0) + slope - 1))
            dh = weight @ (dh * slope)
        return h[:, 0].mT.reshape(x.shape), dh[:, 0].log().mT.reshape(x.shape)


def _signalled(weight: Tensor, bias: Tensor, signal: Tensor, x: Tensor) -> Tensor:
    """The first layer of one network for each feature, of x and a signal that all points have in common.

    Args:
        weight, bias: (D, H, 1 + S) and (D, H).
        signal: (..., D, S).
        x: (P, ..., D).

    Returns:
        (D, H, P, N), the rows last, N of them.
    """
    points, features = len(x), x.shape[-1]
    signal = signal.expand(*x.shape[1:], -1).reshape(-1, *signal.shape[-2:]).permute(1, 2, 0)
    shared = torch.baddbmm(bias[..., None], weight[..., 1:], signal)
    return weight[..., :1, None] * x.reshape(points, -1, features).permute(2, 0, 1)[:, None] + shared[:, :, None]
