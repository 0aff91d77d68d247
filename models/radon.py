"""Radon in houses of many counties: a hierarchical regression whose intercepts share what they know.

    μ ~ N(0, 10²),  b ~ N(0, 10²),  τ ~ HalfCauchy(1),  σ ~ HalfCauchy(1)
    α_j = μ + τ z_j,  z_j ~ N(0, 1)                 j = 1..J counties, non-centred
    y_i ~ N(α_{county i} + b floor_i, σ²)           y: log radon, floor: 0 basement, 1 first floor

Source: Data Analysis Using Regression and Multilevel/Hierarchical Models (Gelman & Hill 2007), chapter 12.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pyro
import torch
from pyro.distributions import HalfCauchy, Normal
from torch import Tensor

import ppgen
from ppgen.errors import PpgenError

log = logging.getLogger("ppgen")


class Radon(ppgen.Program):
    """Varying intercepts of groups, one slope. It has no guide: a fit gives it an autoguide.

    Args:
        counties: J; the column county holds 0 .. J - 1.
        names: of the counties, for tables and plots.
    """

    def __init__(self, counties: int, names: Sequence[str] | None = None):
        super().__init__()
        if counties < 1:
            raise PpgenError(f"Radon got counties={counties}; expected at least 1")
        self.counties, self.categories = counties, {"county": counties}
        self.coords = {"county": list(names)} if names else {}

    @classmethod
    def from_data(cls, data: dict[str, Tensor]) -> dict[str, Any]:
        """The number of counties."""
        if "county" not in data or data["county"].is_floating_point():
            raise PpgenError(
                f"Radon needs a column county of whole numbers from 0, and the data have {', '.join(data) or 'none'}; "
                "name it with columns= (--columns county=...)"
            )
        words = getattr(data, "words", {}).get("county", ())  # of all rows, of which these may be a part
        counties = max(int(data["county"].max()) + 1, len(words))
        if counties > 10 * len(data["county"]) + 1000:
            log.warning(
                "the column county goes up to %d in %d rows, and each number up to it is a county of its own; number "
                "those that there are from 0, or write them as words", counties - 1, len(data["county"]),
            )  # fmt: skip
        return {"counties": counties}

    def model(self, county: Tensor, floor: Tensor, y: Tensor | None = None) -> Tensor:
        """p(y, μ, b, τ, σ, z | county, floor), with columns of shape (N,)."""
        floor = floor if floor.is_floating_point() else floor.to(torch.get_default_dtype())
        zero = floor.new_zeros(())
        mu = pyro.sample("mu", Normal(zero, 10.0))
        b = pyro.sample("b", Normal(zero, 10.0))
        tau = pyro.sample("tau", HalfCauchy(zero + 1.0))
        sigma = pyro.sample("sigma", HalfCauchy(zero + 1.0))
        with pyro.plate("county", self.counties):
            z = pyro.sample("z", Normal(zero, 1.0))
            alpha = pyro.deterministic("alpha", mu + tau * z)
        with ppgen.rows(county):
            return pyro.sample("y", Normal(alpha[..., county] + b * floor, sigma), obs=y)
