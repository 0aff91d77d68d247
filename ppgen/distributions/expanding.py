"""The `expand` of distributions that are what their parameters are: a copy, with these expanded."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints


class Expanding(TorchDistribution):
    """A distribution whose other attributes are the same for all of a batch.

    Attributes:
        expanded: parameters by name, tensors or distributions (or None), with the number of dimensions that belong to
            one value.
    """

    expanded: Mapping[str, int] = {}
    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(self, batch_shape: Sequence[int] = (), event_shape: Sequence[int] = (), validate_args: Any = None):
        super().__init__(torch.Size(batch_shape), torch.Size(event_shape), validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Self:
        new, shape = copy.copy(self), torch.Size(batch_shape)
        for name, dims in self.expanded.items():
            value = getattr(self, name)
            whole = shape + value.shape[value.dim() - dims :] if isinstance(value, Tensor) else shape
            setattr(new, name, None if value is None else value.expand(whole))
        new._batch_shape = shape
        return new
