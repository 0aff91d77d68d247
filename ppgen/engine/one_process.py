"""What the loop needs of Lightning Fabric's interface, for one process on the CPU: Fabric takes 1.4 s to import."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

Value = TypeVar("Value")


class _Precision(NamedTuple):
    precision: str

    @staticmethod
    def forward_context() -> Any:
        return nullcontext()


class OneProcess:
    """Does what a `Fabric` of one process on the CPU would do, at a true precision."""

    device = torch.device("cpu")
    world_size, global_rank, is_global_zero = 1, 0, True

    def __init__(self, precision: str):
        """
        Args:
            precision: 32-true or 64-true.
        """
        self._precision = _Precision(precision)

    def setup(self, module: nn.Module, optimizer: Any) -> tuple[nn.Module, Any]:
        """Both as they are; parameters of 64-true are float64, as with Fabric."""
        return (module.double() if self._precision.precision == "64-true" else module), optimizer

    @staticmethod
    def backward(loss: Tensor) -> None:
        loss.backward()

    @staticmethod
    def broadcast(value: Value) -> Value:
        return value

    @staticmethod
    def all_gather(tensor: Tensor) -> Tensor:
        return tensor
