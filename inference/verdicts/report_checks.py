"""The checks on a run's page: how training ended, the guide, the posterior predictive, calibration.

A statistic of the data is off where P(T(x_rep) >= T(x)) is outside 0.01 to 0.99, x_rep drawn from the posterior
predictive: of a model that is right these probabilities crowd about 1/2 (they use the data twice), so that an alarm at
1% a side is rarer still. Whether the ELBO was still rising is told by `ppgen.inference.trend`.

Source: Posterior Predictive Assessment of Model Fitness via Realized Discrepancies (Gelman, Meng and Stern 1996).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ppgen.inference.trend import rise
from ppgen.inference.verdicts.findings import FINE, LOOK, WRONG, Finding, worst_first
from ppgen.run import Run

if TYPE_CHECKING:
    from xarray import DataTree

    from ppgen.inference.evaluation.diagnose import Diagnosis

RARE = 0.01  # probability of a statistic, on either side


class Check(NamedTuple):
    """A statistic of the observed data beside the posterior predictive: p is P(T(x_rep) >= T(x))."""

    site: str
    statistic: str
    observed: float
    predicted: tuple[float, float]  # the central 90%
    p: float

    @property
    def off(self) -> bool:
        return not RARE <= self.p <= 1 - RARE


STATISTICS: dict[str, Any] = {"mean": np.mean, "sd": np.std, "least": np.min, "largest": np.max}


def predictive_checks(tree: DataTree, sites: int = 4) -> list[Check]:
    """Mean, sd, least and largest value of each observed site, beside those of data sets drawn from the posterior."""
    found: list[Check] = []
    if not {"posterior_predictive", "observed_data"} <= set(tree.children):
        return found
    drawn, seen = tree["posterior_predictive"].dataset, tree["observed_data"].dataset
    for name in list(seen.data_vars)[:sites]:
        if name not in drawn:
            continue
        x = seen[name].values.astype(float).ravel()
        many = drawn[name].values.astype(float)
        many = many.reshape(many.shape[0] * many.shape[1], -1)
        for words, fn in STATISTICS.items():
            if len(x) < 2 and words != "mean":
                continue
            t, r = float(fn(x)), fn(many, axis=1)
            p = float((r > t).mean() + 0.5 * (r == t).mean())
            low, high = np.quantile(r, [0.05, 0.95])
            found.append(Check(str(name), words, t, (float(low), float(high)), p))
    return found


def report_checks(
    run: Run, diagnosis: Diagnosis | None = None, checks: Sequence[Check] = (),
    calibration: Sequence[Finding] | None = None,
) -> list[Finding]:  # fmt: skip
    """All findings of a run, the worst first; what was not checked is a "look"."""
    found = _training(run)
    if diagnosis is not None:
        found += diagnosis.findings
    found += _predictive(checks)
    if calibration is not None:
        found += calibration
    elif diagnosis is not None:
        found.append(Finding("calibration", "", np.nan, np.nan, LOOK))
    return worst_first(found)


def _training(run: Run) -> list[Finding]:
    """Whether the fit was long enough, in nats a row where log p(x) is a sum over rows, and whether steps failed."""
    m, converged = run.metrics, run.config.get("converged")
    found = []
    if converged is not None:
        found.append(Finding("converged", "", float(converged), 1.0, FINE if converged else WRONG))
    elif (r := rise(run)) is not None:
        said = {"se": r.se, "per": "row" if run.structure.by_row else "data set", "part": r.part}
        found.append(Finding("elbo_trend", "", r.gain, r.most, LOOK if r.rising else FINE, said))
    bad = int(m["bad_steps"][-1]) if len(m["bad_steps"]) else 0
    if bad:
        found.append(Finding("bad_steps", "", float(bad), 0.0, LOOK))
    return found


def _predictive(checks: Sequence[Check]) -> list[Finding]:
    """Of each observed site, its most extreme probability."""
    found = []
    for site in dict.fromkeys(c.site for c in checks):
        here = [c for c in checks if c.site == site]
        p = min(min(c.p, 1 - c.p) for c in here)
        off = [
            {"statistic": c.statistic, "observed": c.observed, "low": c.predicted[0], "high": c.predicted[1], "p": c.p}
            for c in here
            if c.off
        ]
        said = {"off": off, "statistics": [c.statistic for c in here]}
        found.append(Finding("predictive", site, p, RARE, LOOK if off else FINE, said))
    return found
