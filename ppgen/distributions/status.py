r"""Values of which some are known only to lie beyond what was recorded: times at which a study ended, say.

log p(x) = log f(x) where status is 0,   log P(X >= x) where it is 1,   log P(X <= x) where it is -1
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import constraints

from ppgen.distributions.expanding import Expanding
from ppgen.distributions.tails import tails


class WithStatus(Expanding):
    """A distribution d of values that are seen (0), or censored from the right (1) or from the left (-1), by row.

    `Censored` is for bounds that are known of every row; here the recorded value is the bound. Draws are d's, of the
    values themselves: a status says what is known of a recorded value, and none of a draw.

    Args:
        d: one number with a cdf: Normal, LogNormal, Exponential, Weibull, Gamma, ...
        status: of d's batch; None where all are seen.

    >>> from pyro.distributions import Exponential
    >>> d = WithStatus(Exponential(torch.tensor([0.5, 0.5])), torch.tensor([0.0, 1.0]))
    >>> d.log_prob(torch.tensor([1.0, 3.0]))  # log 0.5 - 0.5, and log P(X >= 3) = -1.5
    tensor([-1.1931, -1.5000])
    """

    expanded = {"base": 0, "status": 0}

    def __init__(self, d: Any, status: Tensor | None = None, validate_args: bool | None = None):
        shape = d.batch_shape if status is None else np.broadcast_shapes(d.batch_shape, status.shape)
        self.base, self.status = d.expand(shape), status
        super().__init__(shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:
        return bool(self.base.has_rsample)

    @constraints.dependent_property(event_dim=0)
    def support(self) -> Any:
        return self.base.support

    def log_prob(self, value: Tensor) -> Tensor:
        seen = self.base.log_prob(value)
        if self.status is None:
            return seen
        below, above = tails(self.base, value)
        return torch.where(self.status > 0, above, torch.where(self.status < 0, below, seen))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        with torch.no_grad():
            return self.base.sample(torch.Size(sample_shape))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.base.rsample(torch.Size(sample_shape))

    @property
    def mean(self) -> Tensor:
        return self.base.mean

    @property
    def variance(self) -> Tensor:
        return self.base.variance
