"""The checks on a run's page: how training ended, the guide, the posterior predictive, calibration.

A statistic of the data is off where P(T(x_rep) >= T(x)) is outside 0.002 to 0.998, x_rep drawn from the posterior
predictive: of a model that is right these probabilities crowd about 1/2 (they use the data twice), so that at 0.2% a
side the seven statistics together are off for less than one right model in fifty. Of fewer than 250 draws none is. Of
more than four sites the 0.2% is that of four, and the sites of a loop are one, y_0 ... y_29.
Residuals are z = (x - E x_rep) / sd x_rep, value by value: their spread tells dispersion that the values' own sd, which
is that of the covariates as well, does not. Whether the ELBO was still rising is told by `ppgen.inference.trend`.

Source: Posterior Predictive Assessment of Model Fitness via Realized Discrepancies (Gelman, Meng and Stern 1996).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from ppgen.inference.trend import rise
from ppgen.inference.verdicts.findings import FINE, LOOK, WRONG, Finding, worst_first
from ppgen.run import Run
from ppgen.sites import stem

if TYPE_CHECKING:
    from xarray import DataTree

RARE, SITES = 0.002, 4  # probability of a statistic, on either side, of so many sites
MOST_SITES = 16
RESIDUALS = ("spread of the residuals", "largest residual")
MOST_DRAWS, MOST_VALUES = 1000, 2**23  # data sets that statistics are taken of, and their values


class _Diagnosed(Protocol):
    """What `diagnose` returns, which reads this file."""

    @property
    def findings(self) -> list[Finding]: ...


class Check(NamedTuple):
    """A statistic of the observed data beside the posterior predictive: p is P(T(x_rep) >= T(x))."""

    site: str
    statistic: str
    observed: float
    predicted: tuple[float, float]  # the central 90%
    p: float
    rare: float = RARE

    @property
    def off(self) -> bool:
        """Residuals are smaller than the model's where it has adapted to the values that it is held against, so that
        only larger ones count."""
        return self.p < self.rare or (self.p > 1 - self.rare and self.statistic not in RESIDUALS)


def predictive_checks(tree: DataTree) -> list[Check]:
    """Statistics of each observed site beside those of data sets drawn from the posterior: mean, sd, least and largest
    value, of counts the share of zeros; the spread of the residuals, and the largest.

    Left out are values that are missing or masked, and sites that are censored by a column: what is drawn there is no
    recorded time.
    """
    found: list[Check] = []
    censored = json.loads(tree.attrs.get("censored", "[]"))
    sites = [n for n in _observed_and_drawn(tree) if n not in censored]
    groups = _loops(tree, sites)
    rare = RARE * min(1.0, SITES / max(min(len(groups), MOST_SITES), 1))
    for where, names in list(groups.items())[:MOST_SITES]:
        x, draws = zip(*(_compared(tree, n) for n in names), strict=True)
        found += [c._replace(rare=rare) for c in _checks(where, np.concatenate(x), np.concatenate(draws, 1))]
    return found


def _observed_and_drawn(tree: DataTree) -> list[str]:
    if not {"posterior_predictive", "observed_data"} <= set(tree.children):
        return []
    drawn = tree["posterior_predictive"].data_vars
    return [str(n) for n in tree["observed_data"].data_vars if n in drawn]


def _loops(tree: DataTree, sites: Sequence[str]) -> dict[str, list[str]]:
    """The sites by what they are called together: those of a loop that have a value each, or are many."""
    alike: dict[tuple, list[str]] = {}
    for name in sites:
        alike.setdefault((stem(name), tree["observed_data"].dataset[name].shape), []).append(name)
    found = {}
    for (_, shape), names in alike.items():
        if len(names) > 1 and (math.prod(shape) == 1 or len(names) > SITES):
            found[f"{names[0]} ... {names[-1]}"] = names
        else:
            found |= {n: [n] for n in names}
    return found


def _compared(tree: DataTree, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The values of a site that count, (n,), and those of S data sets, (S, n): of many, evenly spaced ones."""
    x = _values(tree, "observed_data", name)
    drawn = _values(tree, "posterior_predictive", name)
    drawn = drawn.reshape(drawn.shape[0] * drawn.shape[1], -1)
    if drawn.shape[1] != x.size:  # what is drawn is not what was observed
        return x.ravel()[:0], drawn[:, :0]
    drawn = drawn[:: max(len(drawn) // MOST_DRAWS, 1)]
    some = slice(None, None, -(-drawn.size // MOST_VALUES))
    counted = _counted(tree, name, x.shape).ravel()[some]
    x, drawn = x.ravel()[some].astype(float), drawn[:, some].astype(float)
    known = counted & np.isfinite(x) & np.isfinite(drawn).all(0)
    return x[known], drawn[:, known]


def _counted(tree: DataTree, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Which values are not masked: one of those has a term of its log-likelihood, in a row that is there."""
    if "log_likelihood" not in tree.children or name not in tree["log_likelihood"].dataset:
        return np.ones(shape, bool)
    found, own = tree["log_likelihood"].dataset[name].isel(chain=0), tree["observed_data"].dataset[name]
    some = (found != 0).any("draw")
    less = {d: own[d] for d in some.dims if d in own.sizes and some.sizes[d] < own.sizes[d]}
    counted = some.reindex(less, fill_value=False).values
    if counted.shape != shape[: counted.ndim] or not counted.any():
        return np.ones(shape, bool)
    return np.broadcast_to(counted.reshape(counted.shape + (1,) * (len(shape) - counted.ndim)), shape)


def _values(tree: DataTree, group: str, name: str) -> np.ndarray:
    return tree[group].dataset[name].values


def _checks(name: str, x: np.ndarray, drawn: np.ndarray) -> list[Check]:
    if not len(x) or not len(drawn):
        return []
    values = np.concatenate([x[None], drawn])
    found = []
    for words, fn in _statistics(values).items():
        t, *rest = fn(values)
        r = np.array(rest)
        p = float(((r > t).sum() + 0.5 * (r == t).sum() + 0.5) / (len(r) + 1))
        low, high = np.quantile(r, [0.05, 0.95])
        found.append(Check(name, words, float(t), (float(low), float(high)), p))
    return found


def _statistics(values: np.ndarray) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Functions of data sets, (S, n) -> (S,), that say something of the first of these, which is one among equals: the
    means and sds of the residuals are over all."""
    x = values[0]
    found: dict[str, Callable[[np.ndarray], np.ndarray]] = {"mean": lambda v: v.mean(1)}
    if len(x) == 1:
        return found
    found |= {"sd": lambda v: v.std(1), "least": lambda v: v.min(1), "largest": lambda v: v.max(1)}
    if x.min() == 0 and x.max() > 1 and (x == x.round()).all():
        found["share of zeros"] = lambda v: (v == 0).mean(1)
    loc, scale = values.mean(0), values.std(0)
    sure = scale > 0

    def residuals(v: np.ndarray) -> np.ndarray:
        return (v[:, sure] - loc[sure]) / scale[sure]

    if sure.any():
        spread, largest = RESIDUALS
        found[spread] = lambda v: np.square(residuals(v)).mean(1) ** 0.5
        found[largest] = lambda v: np.abs(residuals(v)).max(1)
    return found


def report_checks(
    run: Run, diagnosis: _Diagnosed | None = None, calibration: Sequence[Finding] | None = None
) -> list[Finding]:
    """All findings of a run, the worst first; what was not checked is a "look"."""
    found = _training(run)
    if diagnosis is not None:
        found += diagnosis.findings
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


def predictive(checks: Sequence[Check]) -> list[Finding]:
    """Of each observed site, its most extreme probability."""
    found = []
    for site in dict.fromkeys(c.site for c in checks):
        here = [c for c in checks if c.site == site]
        p = min(c.p if c.statistic in RESIDUALS else min(c.p, 1 - c.p) for c in here)
        off = [
            {"statistic": c.statistic, "observed": c.observed, "low": c.predicted[0], "high": c.predicted[1], "p": c.p}
            for c in here
            if c.off
        ]
        said = {"off": off, "statistics": [c.statistic for c in here]}
        found.append(Finding("predictive", site, p, here[0].rare, LOOK if off else FINE, said))
    return found


def of_model(tree: DataTree) -> list[Finding]:
    """What the data say of the model that a tree is of."""
    return predictive(predictive_checks(tree)) + resolution(tree)


def resolution(tree: DataTree) -> list[Finding]:
    """Observed sites whose draws spread by less than two neighbouring numbers are apart, of float32 where all values
    are of it: what is learned of their scale, and the standard errors, are then of rounding."""
    found = []
    for name in _observed_and_drawn(tree):
        x, drawn = _compared(tree, name)
        if not x.size or (drawn == drawn.round()).all():  # counts, which may be certain
            continue
        dtype = "float32" if (x.astype(np.float32) == x).all() else "float64"
        sd, apart = float(np.median((drawn - drawn[0]).std(0))), float(np.median(np.spacing(np.abs(x).astype(dtype))))
        if sd < apart:
            found.append(Finding("resolution", name, sd, apart, LOOK, {"dtype": dtype}))
    return found
