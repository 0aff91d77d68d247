"""What a step is counted to cost: products by their operations, and nothing of it left behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ppgen.engine.compiling.cost import A_CALL, A_VALUE, AN_OPERATION, step_seconds


class Loss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(30, 20))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, batch):
        self.seen.add_(1.0)
        return (batch["x"] @ self.w).sum(), torch.randn(())


def test_calls_values_and_operations_are_those_of_the_forward_pass():
    found = step_seconds(Loss(), {"x": torch.ones(10, 30)})
    calls, values, operations = 4, 1 + 200 + 1 + 1, 2 * 10 * 30 * 20  # add_, @, sum, randn
    assert found == pytest.approx(calls * A_CALL + values * A_VALUE + operations * AN_OPERATION)


def test_it_leaves_buffers_and_random_state_as_they_were():
    loss, before = Loss(), torch.get_rng_state()
    first, second = (step_seconds(loss, {"x": torch.ones(10, 30)}) for _ in range(2))
    assert first == second and loss.seen == 0 and torch.equal(torch.get_rng_state(), before)
    assert loss.w.grad is None
