"""Figures for log p(x): what `ppgen.inference.loglik` and the bounds of chains return."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ppgen.sites import scaled_site
from ppgen.structure import Structure

log = logging.getLogger("ppgen")


def warn_of_scales(sites: Mapping[str, Mapping[str, Any]], structure: Structure | None = None) -> None:
    """Says where figures for log p(x) are of no density of x: a site's is taken to a power.

    Args:
        structure: of a pair whose guide weighs its draws.
    """
    if structure is not None and structure.weighed:
        log.warning(
            "poutine.scale weighs rows: log p(x) of each, and its bounds, are multiplied by the row's weight, so that "
            "they are not to be compared with those of other weights, or of none"
        )
    elif structure is not None and structure.off_scale:
        log.warning(
            "poutine.scale multiplies log q of %r by another number than other sites have: no figure is a bound on "
            "log p(x); scale all sites of model and guide alike, or the model's alone", structure.off_scale,
        )  # fmt: skip
    elif name := scaled_site(sites):
        log.warning(
            "poutine.scale multiplies the log-probability of %r: what is called log p(x) is the logarithm of an "
            "integral of densities to powers, and is not to be compared with that of other scales, or of none", name,
        )  # fmt: skip


class Bound(NamedTuple):
    """A figure for log p(x).

    Attributes:
        name: exact, estimate, elbo or iw; of `evidence` also bridge, smc, eubo.
        kind: exact, estimate, lower (a lower bound in expectation), or upper.
        values: nats, one a row; or one for the whole data set, where some latent is global.
        se: the Monte Carlo standard error of each value, 0 where exact.
    """

    name: str
    kind: str
    values: np.ndarray
    se: np.ndarray

    def __repr__(self) -> str:  # no arrays
        kind = {"lower": "lower bound", "upper": "upper bound"}.get(self.kind, self.kind)
        name = kind if self.name == self.kind else f"{self.name} ({kind})"
        error = "" if self.kind == "exact" else f" ± {self.mean_se:.2g}"
        return f"{name}: {self.mean:.2f}{error} nats"

    @property
    def mean(self) -> float:
        """Nats, averaged over the values."""
        return float(self.values.mean())

    @property
    def mean_se(self) -> float:
        """Monte Carlo standard error of `mean`: what other draws of z would change on the same rows."""
        return float(np.sqrt((self.se**2).sum()) / len(self.se))

    @property
    def rows_se(self) -> float:
        """Standard error of `mean` as an estimate for new rows: spread over rows and Monte Carlo; nan for one value."""
        n = len(self.values)
        return float(self.values.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan


class Evidence(NamedTuple):
    """An estimate of log p(x), all rows and all latents, in nats, and its standard error."""

    log_z: float
    se: float


class LogLik(NamedTuple):
    """What `loglik` returns.

    Attributes:
        bounds: the exact value, or the ELBO and the importance-weighted bound.
        per: "row" or "data set": what one value is for.
        rows: number of rows.
        particles: K.
        ess: effective number of the K weights, by value; None where exact.
        dims: D, observed values a row, where they are discrete: bits/dim is then defined. Else None.
        log_w: the log weights, (K, values), where they were asked for.
        noise: a site whose log-density differs at the same latents, as the program draws what is no site; "" for none.
    """

    bounds: tuple[Bound, ...]
    per: str
    rows: int
    particles: int
    ess: np.ndarray | None
    dims: int | None
    log_w: np.ndarray | None = None
    noise: str = ""

    def __repr__(self) -> str:  # no arrays
        return "\n".join(f"{b} a {self.per}" for b in self.bounds)

    @property
    def best(self) -> Bound:
        """The tightest figure: exact, or the importance-weighted bound."""
        return self.bounds[-1]

    def bits_per_dim(self, bound: Bound) -> float | None:
        """−log p(x) / (D ln 2), None where the observed values are continuous."""
        if self.dims is None:
            return None
        scale = self.rows / len(bound.values)  # values for the whole set hold all rows
        return -bound.mean / scale / (self.dims * math.log(2))

    def table(self) -> list[dict[str, Any]]:
        """One dict a bound: what `ppgen evaluate` prints."""
        return [
            {
                "name": b.name,
                "kind": b.kind,
                "nats": b.mean,
                "se": b.mean_se,
                "rows_se": b.rows_se,
                "per": self.per,
                "rows": self.rows,
                "particles": self.particles if b.kind == "lower" else 1,
                "bits_per_dim": self.bits_per_dim(b),
            }
            for b in self.bounds
        ]
