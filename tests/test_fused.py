"""The compiled step beside the graph that it was made from."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ppgen.engine.compiling.fused import FusedStep
from ppgen.engine.graphs.trace import Untraceable, trace


def step_of(update, *tensors):
    """A step whose values are the first tensor, and whose state is the second."""
    step = object.__new__(FusedStep)
    step.layout = SimpleNamespace(values=[tensors[0]])
    step.traced = trace(update, [t.clone() for t in tensors])
    return step


def in_bfloat16(w, m, x):
    m.copy_((x.bfloat16() * w.bfloat16()).sum(0).float())


def in_float32(w, m, x):
    m.copy_((x * w).sum(0))


def agree(x, w, factor=1.0):
    """Whether a step in float32, of another factor, passes for the graph in bfloat16."""
    tensors = [w, torch.zeros(8), x]
    step_of(in_bfloat16, *tensors)._agree(lambda t: in_float32(t[0], t[1], factor * t[2]), tensors, [0, 1])


def test_a_compiled_step_that_computes_otherwise_is_refused():
    w, x = torch.randn(2, 64, 8, generator=torch.Generator().manual_seed(0))
    agree(x, w)
    with pytest.raises(Untraceable, match="other numbers than the graph"):
        agree(x, w, 1.5)


def test_a_compiled_step_may_round_otherwise_where_terms_cancel():
    """What is left of a sum of 0 is the rounding to bfloat16: it was compared as if it were a number."""
    w, x = torch.randn(2, 64, 8, generator=torch.Generator().manual_seed(0))
    agree(x - (x * w).sum(0) / (w * w).sum(0) * w, w)
