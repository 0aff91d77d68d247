"""The multilayer perceptron, plain or residual, and the activations by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from torch import Tensor, nn

from ppgen.errors import PpgenError, nearest

__all__ = ["MLP", "activation_module", "activations"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "relu": nn.ReLU,
    "selu": nn.SELU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


def activations() -> tuple[str, ...]:
    """The names of the activations.

    >>> "silu" in activations()
    True
    """
    return tuple(_ACTIVATIONS)


def activation_module(name: str) -> nn.Module:
    """The activation of that name.

    Raises:
        PpgenError: there is none.
    """
    if name not in _ACTIVATIONS:
        raise PpgenError(
            f"there is no activation {name!r}{nearest(str(name), _ACTIVATIONS)}; take one of {', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]()


Layer = TypeVar("Layer", nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


def initialise(layer: Layer, gain: float) -> Layer:
    """Weights of variance gain² / fan-in and no bias, so that signals keep their size with depth.

    Gain √2 for a layer before a rectifier-like activation, as in Delving Deep into Rectifiers (He et
    al., 2015, arXiv:1502.01852), and 1 before none.
    """
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    if isinstance(layer, nn.ConvTranspose2d):  # each output pixel sees kernel² / stride² taps
        taps = layer.weight[0, 0].numel() / (layer.stride[0] * layer.stride[1])
        fan_in = layer.in_channels * taps
    else:
        fan_in = layer.weight[0].numel()
    nn.init.normal_(layer.weight, std=gain / fan_in**0.5)
    return layer


def gain_of(activation: str) -> float:
    """√2 for the rectifiers and their smooth kin, which lose half the variance; 1 for the rest."""
    rectifiers = ("relu", "leaky_relu", "elu", "gelu", "silu", "softplus")
    return 2**0.5 if activation in rectifiers else 1.0


class MLP(nn.Module):
    """A multilayer perceptron on the last dimension: (..., inputs) -> (..., outputs).

    Args:
        inputs, outputs: sizes of the last dimension.
        hidden: widths of the hidden layers; () is a linear map.
        activation: name of the nonlinearity after each hidden layer, see `activations`.
        dropout: probability of zeroing a hidden unit while training.
        residual: adds to every hidden layer its input, where the two are as wide.
        output_gain: standard deviation, roughly, of what comes out at first for inputs of unit size.

    Raises:
        PpgenError: no such activation; a dropout outside [0, 1).

    >>> import torch
    >>> MLP(3, 2)(torch.zeros(7, 5, 3)).shape
    torch.Size([7, 5, 2])
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        hidden: Sequence[int] = (200, 200),
        activation: str = "relu",
        dropout: float = 0.0,
        residual: bool = False,
        output_gain: float = 1.0,
    ):
        super().__init__()
        widths = (inputs, *([hidden] if isinstance(hidden, int) else hidden))
        if min(*widths, outputs) < 1:
            raise PpgenError(
                f"MLP got inputs={inputs}, outputs={outputs}, hidden={tuple(widths[1:])}; pass widths of at least 1"
            )
        if not 0 <= dropout < 1:
            raise PpgenError(f"MLP got dropout={dropout}; pass a probability, 0 <= dropout < 1")
        gain = gain_of(activation)
        pairs = list(zip(widths, widths[1:], strict=False))
        layers = [initialise(nn.Linear(i, o), gain) for i, o in pairs]
        self.skip = [residual and i == o for i, o in pairs]
        for layer, skip in zip(layers, self.skip, strict=True):
            if skip:  # branches that start small: the sum keeps its size with depth
                layer.weight.data.mul_(sum(self.skip) ** -0.5)
        self.layers = nn.ModuleList(layers)
        self.activation = activation_module(activation)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.last = initialise(nn.Linear(widths[-1], outputs), output_gain)

    def hidden(self, x: Tensor) -> Tensor:
        """What the last layer sees, (..., the last hidden width)."""
        for layer, skip in zip(self.layers, self.skip, strict=True):
            h = self.dropout(self.activation(layer(x)))
            x = x + h if skip else h
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.hidden(x))
