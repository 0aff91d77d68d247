"""What data are, so that a later run can tell whether they are the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ppgen.data.arguments import is_literal
from ppgen.data.files.large import blocks


def fingerprint(data: Mapping[str, Any]) -> dict[str, Any]:
    """What the data are, so that a later run can tell whether they are the same; of constants, numbers and words.

    Returns ``{"columns": {name: {"shape", "dtype", "sha256"}}, "sha256"}``; each hash is the first
    16 hexadecimal digits of SHA-256 of the content, and the order of the columns does not matter.
    """
    columns: dict[str, dict[str, Any]] = {}
    for name in sorted(data):
        if not isinstance(data[name], Tensor):
            columns |= _fingerprint_of_constant(name, data[name])
            continue
        column = data[name].detach().cpu()
        shape, dtype = list(column.shape), str(column.dtype).removeprefix("torch.")
        digest = hashlib.sha256(f"{shape} {dtype} ".encode())
        for block in blocks(column):
            digest.update(block.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        columns[name] = {"shape": shape, "dtype": dtype, "sha256": digest.hexdigest()[:16]}
    total = hashlib.sha256(repr([(n, c["sha256"]) for n, c in columns.items()]).encode())
    return {"columns": columns, "sha256": total.hexdigest()[:16]}


def _fingerprint_of_constant(name: str, value: Any) -> dict[str, Any]:
    if not is_literal(value):
        return {}
    digest = hashlib.sha256(f"{type(value).__name__} {value!r}".encode())
    return {name: {"shape": [], "dtype": type(value).__name__, "sha256": digest.hexdigest()[:16]}}
