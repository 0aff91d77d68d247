"""The checks on a run's page: how training ended, the guide, the posterior predictive, calibration.

A statistic of the data is off where P(T(x_rep) >= T(x)) is outside 0.002 to 0.998, x_rep drawn from the posterior
predictive, and one of a single value, as the largest, outside 0.001 to 0.999. Of a model that is right these
probabilities crowd about 1/2 (they use the data twice), but for those of single values and of neighbors in many rows,
which are uniform: of right models of six families something is off for 0.1% at 30 rows, of four for 0.6% at 1 000 and
of two for 1.0 ± 0.3% at 100 000. Of fewer than 250 draws none is. Of k sites the bounds are divided by k, as far as the
draws can tell it, and the sites of a loop are one, y_0 ... y_29.
Whether the ELBO was still rising is told by `ppgen.inference.trend`.

Source: Posterior Predictive Assessment of Model Fitness via Realized Discrepancies (Gelman, Meng and Stern 1996).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from ppgen.inference.trend import rise
from ppgen.inference.verdicts.findings import FINE, LOOK, WRONG, Finding, worst_first
from ppgen.inference.verdicts.predictive_statistics import ALONG, RESIDUALS, SINGLE, Orders, blocks, statistics
from ppgen.run import Run
from ppgen.sites import stem

if TYPE_CHECKING:
    from xarray import DataTree

RARE = 0.002  # probability of a statistic, on either side, of one site
MOST_SITES = 16
LOOP = 4  # sites of a common stem that are one, where they have more than a value each: from more than these on
MOST_COLUMNS = 16
MOST_DRAWS = 4000  # data sets that statistics are taken of, and of
MOST_VALUES, LEAST_DRAWS = 2**23, 1000  # more values so many


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
        return self.p < self.rare or (self.p > 1 - self.rare and not self.upper)

    @property
    def upper(self) -> bool:
        """Whether it is of residuals."""
        return self.statistic in RESIDUALS or self.statistic.startswith(ALONG)


def predictive_checks(tree: DataTree) -> list[Check]:
    """Statistics of each observed site beside those of data sets drawn from the posterior: mean, sd, least and largest
    value, of counts the share of zeros; the spread of the residuals, and the largest.

    Left out are values that are missing or masked, and sites that are censored by a column or observe an event: what is
    drawn there is no recorded time, and what is observed there no record.
    """
    found: list[Check] = []
    unrecorded = json.loads(tree.attrs.get("unrecorded", "[]"))
    sites = [n for n in _observed_and_drawn(tree) if n not in unrecorded]
    groups = _loops(tree, sites)
    for where, names in list(groups.items())[:MOST_SITES]:
        x, draws, kept = zip(*(_compared(tree, n) for n in names), strict=True)
        one = tree["observed_data"].dataset[names[0]]
        ordered = one.size == max(one.shape if len(names) == 1 else (1,), default=1)
        by = _sorted(tree, where, kept[0]) if ordered else {}
        together = np.concatenate(draws, 1) if len(draws) > 1 else draws[0]
        found += _checks(where, np.concatenate(x), together, ordered, by, min(len(groups), MOST_SITES))
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
        if len(names) > 1 and (math.prod(shape) == 1 or len(names) > LOOP):
            found[f"{names[0]} ... {names[-1]}"] = names
        else:
            found |= {n: [n] for n in names}
    return found


def _sorted(tree: DataTree, name: str, kept: np.ndarray) -> dict[str, np.ndarray]:
    """The orders of a site's rows that are kept by each number that is given with them, ties in any order.

    Of a column as it stands: where the observed value is a function of several, residuals go with these.
    """
    if name not in json.loads(tree.attrs.get("direct", "[]")) or "constant_data" not in tree.children:
        return {}
    n, rng = tree["observed_data"].dataset[name].size, np.random.default_rng(0)
    found: dict[str, np.ndarray] = {}
    for column, v in tree["constant_data"].dataset.data_vars.items():
        if v.dtype.kind not in "biuf" or v.ndim not in (1, 2) or len(v) != n:
            continue
        values = v.values.reshape(n, -1)[kept].astype(float)
        for i, one in enumerate(values.T[:MOST_COLUMNS]):
            if np.isfinite(one).all() and np.ptp(one) > 0 and len(found) < MOST_COLUMNS:
                found[f"{column}[{i}]" if v.ndim > 1 else str(column)] = np.lexsort((rng.permutation(len(one)), one))
    return found


def _compared(tree: DataTree, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The values of a site that count, (n,), those of S data sets, (S, n), and their places."""
    x = _values(tree, "observed_data", name)
    shape = x.shape
    drawn = _values(tree, "posterior_predictive", name)
    drawn = drawn.reshape(drawn.shape[0] * drawn.shape[1], -1)
    if drawn.shape[1] != x.size:  # what is drawn is not what was observed
        return x.ravel()[:0], drawn[:, :0], np.arange(0)
    most = min(MOST_DRAWS, max(LEAST_DRAWS, MOST_VALUES // max(x.size, 1)))
    drawn = drawn[:: max(len(drawn) // most, 1)]
    x = x.ravel().astype(float)
    known = _counted(tree, name, shape).ravel() & np.isfinite(x) & _finite(drawn)
    return x[known], drawn if known.all() else drawn[:, known], np.flatnonzero(known)


def _finite(drawn: np.ndarray) -> np.ndarray:
    """Which values are finite in every data set, (S, n) -> (n,)."""
    return np.logical_and.reduce([np.isfinite(block).all(0) for block in blocks(drawn)], axis=0)


def _counted(tree: DataTree, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Which values are not masked: one of those has a term of its log-likelihood, in a row that is there."""
    if (masked := json.loads(tree.attrs.get("masked", "{}")).get(name)) is not None:
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(masked), np.uint8), count=math.prod(shape))
        return ~bits.astype(bool).reshape(shape)
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


def _checks(name: str, x: np.ndarray, drawn: np.ndarray, ordered: bool, by: Orders, sites: int) -> list[Check]:
    """Of a site's values, (n,), and those of S data sets, (S, n), one of so many sites; ordered: one a row, or a step
    of a loop; by: other orders of the rows, by name."""
    if not len(x) or not len(drawn):
        return []
    found = []
    for words, (t, r) in statistics(x, drawn, ordered, by).items():
        p = float(((r > t).sum() + 0.5 * (r == t).sum() + 0.5) / (len(r) + 1))
        low, high = np.quantile(r, [0.05, 0.95])
        found.append(Check(name, words, t, (float(low), float(high)), p, _rare(words, sites, len(r))))
    return found


def _rare(statistic: str, sites: int, draws: int) -> float:
    """The bound of a probability, of one of so many sites; no less than what the draws can tell."""
    return max(RARE / sites / (2 if statistic in SINGLE else 1), min(RARE, 0.51 / (draws + 1)))


def report_checks(
    run: Run,
    diagnosis: _Diagnosed | None = None,
    calibration: Sequence[Finding] | None = None,
    *,
    unweighed: str = "",
) -> list[Finding]:
    """All findings of a run, the worst first; what was not checked is a "look".

    Args:
        unweighed: why there is no diagnosis: "point", its guide gives one value of the latents; "drawn", a log-density
            is itself drawn.
    """
    found = _training(run)
    if unweighed:
        found.append(Finding("guide", "", np.nan, np.nan, LOOK, {"unweighed": unweighed}))
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
        p = min(c.p if c.upper else min(c.p, 1 - c.p) for c in here)
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
        x, drawn, _ = _compared(tree, name)
        step = max(-(-drawn.size // MOST_VALUES), 1)
        x, drawn = x[::step], drawn[:, ::step].astype(float)
        if not x.size or (drawn == drawn.round()).all():  # counts, which may be certain
            continue
        dtype = "float32" if (x.astype(np.float32) == x).all() else "float64"
        sd, apart = float(np.median((drawn - drawn[0]).std(0))), float(np.median(np.spacing(np.abs(x).astype(dtype))))
        if sd < apart:
            found.append(Finding("resolution", name, sd, apart, LOOK, {"dtype": dtype}))
    return found
