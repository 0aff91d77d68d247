"""What a step is called with: tensors, which are inputs of a recorded run, and all else, which is part of it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

SCALARS = (int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device, torch.Size)
DICTS = (dict, OrderedDict)
SMALL = 4096  # bytes of a NumPy array whose content is compared at each call

Rebuild = Callable[[Sequence[Tensor]], tuple[tuple, dict[str, Any]]]


class Arguments(NamedTuple):
    """The arguments of one call, taken apart.

    tensors: the inputs; key: what a recorded run is specialised to; objects: what else was found, compared by its
    identity in the key; rebuild: tensors -> (args, kwargs); refused: why such arguments are not recorded, or ''.
    """

    tensors: list[Tensor]
    key: Any
    objects: list[Any]
    rebuild: Rebuild
    refused: str
    flat: bool  # whether the arguments are the tensors, one by one

    def same(self, args: tuple) -> bool:
        """Whether other positional arguments are these tensors themselves, of the same shapes still."""
        return self.flat and len(args) == len(self.tensors) and all(
            a is t and a.shape == shape and a.stride() == stride and not a.requires_grad
            for a, t, (shape, stride, _, _) in zip(args, self.tensors, self.key[1][1:], strict=True)
        )  # fmt: skip


def taken_apart(args: tuple, kwargs: dict[str, Any], *, floats: bool = False) -> Arguments:
    """Finds the tensors in arguments, within tuples, lists and dicts of any depth.

    Args:
        floats: whether numbers of type float become inputs too, as tensors without dimensions.
    """
    tensors: list[Tensor] = []
    objects: list[Any] = []
    refused: list[str] = []

    def key_of(value: Any) -> Hashable:
        if isinstance(value, Tensor):
            if value.requires_grad:
                refused.append("an argument requires a gradient")
            tensors.append(value)
            return value.shape, value.stride(), value.dtype, value.device
        if floats and type(value) is float:
            tensors.append(torch.tensor(value, dtype=torch.float64))
            return float
        if isinstance(value, SCALARS):
            return type(value), value
        if isinstance(value, (tuple, list)):
            return type(value), *(key_of(v) for v in value)
        if type(value) in DICTS:
            return type(value), *((k, key_of(v)) for k, v in value.items())
        if isinstance(value, np.ndarray):
            if value.nbytes > SMALL:
                refused.append("an argument is a NumPy array; torch.as_tensor(...) of it would be recorded")
                return None
            return value.dtype.str, value.shape, value.tobytes()
        objects.append(value)
        return type(value), id(value)

    key = key_of((args, kwargs))

    def rebuild(inputs: Sequence[Tensor]) -> tuple[tuple, dict[str, Any]]:
        rest = iter(inputs)

        def again(value: Any) -> Any:
            if isinstance(value, Tensor) or floats and type(value) is float:
                return next(rest)
            if isinstance(value, torch.Size):
                return value
            if isinstance(value, tuple) and hasattr(value, "_fields"):
                return type(value)(*(again(v) for v in value))
            if isinstance(value, (tuple, list)):
                return type(value)(again(v) for v in value)
            if type(value) in DICTS:
                return type(value)((k, again(v)) for k, v in value.items())
            return value

        return again((args, kwargs))

    flat = not kwargs and not refused and all(isinstance(a, Tensor) for a in args)
    return Arguments(tensors, key, objects, rebuild, refused[0] if refused else "", flat)
