"""Whether the ELBO was still rising where a fit ended.

The gain of its last tenth over the tenth before, beside its standard error; and of the line through its last quarter,
which noise hides less. Where the learning rate falls, the last tenth hardly moves whatever is left to gain, and noise
that goes away with the rate is a small gain of its own: there it is the last quarter beside the one before, and a gain
of a hundredth counts, or of a thirtieth of all that the fit has gained: of an ELBO of -2 000 000 that began at
-2 500 000 the first is more than is left to see.
"""

from __future__ import annotations

import logging
import math
from typing import NamedTuple

import numpy as np

from ppgen.engine.density.batch_and_match import MOST
from ppgen.run import Run

FEWEST = 20  # rows of metrics that tell
ERRORS, SHARE, SHARE_FALLING = 3.0, 1e-4, 0.01  # gains that count: standard errors, and shares of the ELBO
LEAST_FALLING = 0.02  # nats
SHARE_GAINED, LEAST_GAINED = 0.03, 1.0  # of all that the fit has gained; nats
STARTS = 4  # that the remedy names

log = logging.getLogger("ppgen")


class _Rise(NamedTuple):
    """In nats a row where log p(x) is a sum over rows, else of the data set.

    Attributes:
        gain: of the last part over the one before, or within it.
        most: a gain that is none.
        se: its standard error.
        part: the share of the steps that the last part is.
    """

    gain: float
    most: float
    se: float
    part: float

    @property
    def rising(self) -> bool:
        return self.gain > self.most


def rise(run: Run) -> _Rise | None:
    """The rise of the ELBO, of held-out rows where these say what is kept; None of too few rows of metrics."""
    o, recorded = run.config["fit"], run.config["data"]
    held_out = bool(o["patience"] and recorded.get("valid_rows"))
    elbo = run.metrics["valid_elbo" if held_out else "elbo"]
    n = recorded.get("valid_rows") if held_out else recorded["rows"]
    elbo = elbo[np.isfinite(elbo)] / (n if run.structure.by_row else 1)
    if len(elbo) < FEWEST:
        return None
    falling = o["schedule"] != "constant"
    part = max(2, len(elbo) // (4 if falling else 10))
    last, before = elbo[-part:], elbo[-2 * part : -part]
    se = float(np.hypot(last.std(ddof=1), before.std(ddof=1)) / part**0.5)
    size = abs(float(last.mean()))
    gained = max(SHARE_GAINED * float(last.mean() - elbo[0]), LEAST_GAINED)
    least = max(min(SHARE_FALLING * size, gained), LEAST_FALLING) if falling else SHARE * size
    found = _Rise(float(last.mean() - before.mean()), max(ERRORS * se, least), se, 0.25 if falling else 0.1)
    return found if falling or found.rising else _along(elbo[-max(3, len(elbo) // 4) :], SHARE * size)


def _along(elbo: np.ndarray, least: float) -> _Rise:
    """The rise of a line through the last quarter; `least` is a gain in a tenth that counts."""
    t = np.linspace(-0.5, 0.5, len(elbo))
    gain = float(t @ elbo / (t @ t))
    off = elbo - elbo.mean() - gain * t
    se = float(np.sqrt(off @ off / (len(t) - 2) / (t @ t)))
    return _Rise(gain, max(ERRORS * se, 2.5 * least), se, 0.25)


def warn_if_rising(run: Run) -> None:
    """Says that a fit is not converged, and what to do."""
    found = rise(run)
    if found is None or not found.rising:
        return
    o, unit = run.config["fit"], "nats a row" if run.structure.by_row else "nats"
    more = 2 * o["steps"]
    way = f"go on with ppgen fit --resume {run.path} --steps {more}"
    if run.path is None:
        way = f"fit with steps={more}, lr={o['lr']:g}, schedule={o['schedule']!r}"
    if _begins_anywhere(run):
        way = f"begin where a search ends (starts={STARTS}, --starts {STARTS})"
    log.warning(
        "not converged: the ELBO rose by %.3g ± %.1g %s in the last %s of the steps; %s",
        found.gain, found.se, unit, "quarter" if found.part == 0.25 else "tenth", way,
    )  # fmt: skip


def _begins_anywhere(run: Run) -> bool:
    """Whether the guide could begin where a search ends, and did not: far from there no number of steps is enough."""
    if run.config["fit"]["starts"] or not hasattr(run.program._autoguide, "start_at"):
        return False
    return sum(math.prod(run.structure[n].value_shape) for n in run.structure.latents) <= MOST
