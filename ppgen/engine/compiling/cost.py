"""What a gradient step costs, counted and not timed: the same for the same program, so that a fit stays reproducible.

    seconds = 10 µs · calls of torch + 2.5 ns · values that these give + 30 ps · operations of products

What a forward pass has is counted; the rates are those of the whole step with its gradient, traced, on one thread of a
server's processor, measured on twelve programs of the catalogue: right to within a factor of two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import flop_registry

from ppgen.engine.graphs.without_dynamo import Mode

A_CALL, A_VALUE, AN_OPERATION = 1e-5, 2.5e-9, 30e-12  # seconds of a step, by what its forward pass has


class _Calls(TorchFunctionMode):
    """Counts calls of torch's functions that give tensors, and the values in these."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.values = 0, 0

    def __torch_function__(self, fn: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = fn(*args, **(kwargs or {}))
        given = [t.numel() for t in (out if isinstance(out, tuple | list) else (out,)) if isinstance(t, Tensor)]
        self.calls, self.values = self.calls + bool(given), self.values + sum(given)
        return out


class _Products(Mode):
    """Counts operations of products, by torch's formulas."""

    operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.operations += formula(*args, **(kwargs or {}), out_val=out)
        return out


def step_seconds(objective: nn.Module, batch: Mapping[str, Any]) -> float:
    """Seconds of a step on one thread, as counted in one forward pass; random state and buffers are left as they were.

    Args:
        objective: forward(batch) -> (loss, bound), as `ppgen.inference.Objective`.
        batch: the rows of a step.
    """
    before = [(b, b.clone()) for b in objective.buffers()]
    products, counted = _Products(), _Calls()
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), counted, products:
        objective(batch)
    with torch.no_grad():
        for buffer, value in before:
            buffer.copy_(value)
    return A_CALL * counted.calls + A_VALUE * counted.values + AN_OPERATION * products.operations
