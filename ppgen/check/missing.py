"""Columns with NaN: an accident, or missing values that the model leaves out by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppgen import data as data_module
from ppgen.handlers import without_validation
from ppgen.program import Program
from ppgen.terms import model_run

TRIES = 3  # draws from the prior: one of them may have no likelihood


def validate(program: Program, data: Mapping[str, Any], *, fits: bool = False) -> None:
    """As `ppgen.data.validate`, but that NaN is a warning where the model masks it or fills it in.

    Args:
        fits: whether the program is fitted to them, so that `missing` (--missing) can be said.

    Raises:
        PpgenError: the data are not those of a program; NaN that reaches the log joint, or its gradient.
    """

    def leaves_out() -> bool:
        return any(_leaves_out(program, data) for _ in range(TRIES))

    data_module.validate(data, leaves_out, said=bool(program.gaps), fits=fits)


def _leaves_out(program: Program, data: Mapping[str, Any]) -> bool:
    """Whether the log joint at a draw from the prior is finite, and its gradient: a mask alone keeps NaN in that."""
    latents = _Latents()
    try:
        with program.collecting(), torch.enable_grad(), without_validation(), latents:
            total = model_run(program, data).log_prob_sum()
            learnt = [p for p in program.parameters() if p.requires_grad]
            grads = torch.autograd.grad(total, [*latents.values, *learnt], allow_unused=True)
    except Exception:  # said where the program is run
        return False
    return all(bool(torch.isfinite(t).all()) for t in (total, *grads) if t is not None)


class _Latents(Messenger):
    """Makes every continuous latent a leaf of the gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[Tensor] = []

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        value = msg["value"]
        if not msg["is_observed"] and isinstance(value, Tensor) and value.is_floating_point():
            msg["value"] = value.detach().requires_grad_()
            self.values.append(msg["value"])
