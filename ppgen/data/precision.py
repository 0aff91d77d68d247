"""Which precision the columns of some data ask for."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from torch import Tensor

from ppgen.data.arguments import tensors
from ppgen.data.cells.typed import fits_float32
from ppgen.data.columns import as_tensors
from ppgen.data.files.large import blocks, moments

log = logging.getLogger("ppgen")

LARGE_COUNT = 50_000  # n, from which on the terms of a log-pmf, of size n log n, are rounded by 0.03 nats in float32


def precision_for(data: Any, device: str) -> str:
    """64-true by torch's default dtype, or where a column asks for it, which is said: whole numbers beyond
    `LARGE_COUNT`, and numbers that vary by less than float32 can tell; else 32-true."""
    if torch.get_default_dtype() == torch.float64:
        return "64-true"
    for name, column in tensors(as_tensors(data)).items() if device == "cpu" else ():
        if column.numel() and not column.is_complex() and column.dtype != torch.bool:
            if column.dtype == torch.float64 and (why := _lost_in_float32(column)):
                log.info("column %r %s: computed in float64 (precision=32-true keeps float32)", name, why)
                return "64-true"
            most = max(float(block.abs().max()) for block in blocks(column))
            if most >= LARGE_COUNT and all(bool((b == b.round()).all()) for b in blocks(column)):
                log.info(
                    "column %r has whole numbers of up to %.3g, whose log-probabilities float32 rounds by %.2g nats: "
                    "computed in float64 (precision=32-true keeps float32)", name, most, most * math.log(most) * 2**-24,
                )  # fmt: skip
                return "64-true"
    return "32-true"


def _lost_in_float32(column: Tensor) -> str:
    mean, sd = (m.flatten() for m in moments(column))
    for m, s in zip(mean.tolist(), sd.tolist(), strict=True):
        if not fits_float32(m, s):
            return f"varies by {s:.3g} around {m:.6g}, which float32 rounds away"
    return ""


def wide(value: Tensor) -> Tensor:
    """In float64, where the device has it: for what is a small difference of large numbers."""
    return value if value.device.type == "mps" else value.double()
