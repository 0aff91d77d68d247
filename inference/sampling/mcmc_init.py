"""Where chains may start, and whether there is a posterior to start in.

Starts: for each chain the best of several draws, half from Uniform(-2, 2) in the unconstrained space and half from
the prior, so that neither a heavy-tailed prior nor one far from 0 leaves a chain where nothing is finite. Where the
log joint is finite at none of them, as where data bound a support from beyond the prior's draws, these are spread.

Impropriety: along a ray u₀ + t v a density that can be normalised falls faster than 1/t. Where log p + log t does not
fall far out, that direction runs away: a flat prior that the likelihood does not close, coefficients
that separate a binary outcome, two sums of which only one is seen. What is there beyond the range of its floats, as a
Kalman filter of noise 1e-10 is, is no density: it is another number at the next place.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ppgen.errors import PpgenError

CANDIDATES = 8  # a chain
SPREAD = (3.0, 10.0, 30.0)  # of the starts' distances from their middle, in half of the entries, where none is finite
FALL = 1.0  # nats of log p + log t between the two; a Cauchy tail falls by 3.5, a flat one rises by 3.5
NUDGES = (1e-6, -1e-6, 2e-6, -2e-6)  # of t, by which a density that is computed changes little, and rounding errors do
REACH = (3.0, 100.0)  # t, in standard deviations: no farther, since a direction is only known as well as the draws tell

Value = Callable[[Tensor], Tensor]


def nowhere(tried: int) -> PpgenError:
    """The error of a log joint that is finite at none of the places that were tried."""
    return PpgenError(
        f"the log joint is not finite at any of {tried} starting points; check that the data lie in the support of the "
        "likelihood, and that no scale is negative, zero or infinite"
    )


def starts(
    value: Value, chains: int, dim: int, prior: Callable[[int], Tensor] | None, generator: torch.Generator
) -> Tensor:
    """(chains, dim), each the best of `CANDIDATES`.

    Args:
        value: the log joint of (chains, dim) vectors at once.
        prior: n draws from the prior, unconstrained; None where there is none.

    Raises:
        PpgenError: the log joint is finite nowhere that was tried.
    """
    best, top, tried = torch.zeros(chains, dim), torch.full((chains,), -torch.inf), 0
    for spread in (1.0, *SPREAD):
        for i in range(CANDIDATES):
            if spread > 1 and bool(torch.isfinite(top).any()):
                break
            from_prior = prior if i % 2 else None
            u = from_prior(chains) if from_prior else 4 * torch.rand(chains, dim, generator=generator) - 2
            if spread > 1:
                middle = u.median(0).values
                wide = torch.rand(chains, dim, generator=generator) < 0.5
                u = torch.where(wide, middle + spread * (u - middle), u)
            lp = value(u)
            lp = torch.where(torch.isfinite(lp), lp, -torch.inf)
            better = lp > top
            best, top, tried = torch.where(better[:, None], u, best), torch.where(better, lp, top), tried + chains
    alive = torch.isfinite(top)
    if not alive.any():
        raise nowhere(tried)
    places = alive.nonzero()[:, 0]
    return torch.where(alive[:, None], best, best[places[torch.arange(chains) % len(places)]])


def runaway(value: Value, centre: Tensor, sd: Tensor, directions: Tensor) -> tuple[Tensor, float] | None:
    """The first direction along which the density cannot be normalised, and the change of log p + log t along it, in
    nats; None where there is none.

    Args:
        value: the log joint of (n, dim) vectors.
        centre, sd: (dim,), of the draws so far.
        directions: (n, dim), in units of the draws; each axis, up and down, is tried after them.
    """
    dim = len(centre)
    axes = torch.eye(dim).to(sd) * sd[:, None]
    tried = torch.cat([directions, -directions, axes, -axes])
    near, far = (value(centre + t * tried) for t in REACH)
    change = far - near + torch.log(torch.tensor(REACH[1] / REACH[0]))
    bad = torch.isfinite(near) & torch.isfinite(far) & (change > -FALL)
    for nudge in NUDGES:
        if not bad.any():
            break
        off = (value(centre + REACH[1] * (1 + nudge) * tried[bad]) - far[bad]).abs()
        bad[bad.clone()] = off <= FALL + 0.1 * change[bad].abs()  # nan is none
    first = int(bad.nonzero()[0, 0]) if bad.any() else None
    return None if first is None else (tried[first], float(change[first]))
