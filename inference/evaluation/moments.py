r"""The guide's moments beside better ones: its own draws corrected by their weights, and draws of a reference.

    mean off   |E_q z − E z| / sd z          sd ratio   sd_q z / sd z

of each entry of each latent; where latents are local, of each of their dimensions over the rows: the root mean square
of the first, less what Monte Carlo error adds to it, and the geometric mean of the second. So a fault that all rows
share is seen where one row has too few draws for it, and hundreds of rows raise no false alarm. A correlation that the
guide has not is a wrong sd of z_i + z_j or z_i - z_j, each in units of its sd: so are global latents compared in pairs,
and two dimensions of a row's latents on average over the rows.

Thresholds, by what they do to a nominal 90% interval of a normal posterior: a mean that is 0.2 sd off leaves it a
coverage of 89%, an sd ratio of 1.1 one of 93%, its inverse 86%: as good as right. A mean 1 sd off leaves 74%, half the
sd 59%, twice the sd 99.9%: wrong. A figure is only off where it is so beyond its Monte Carlo error: 4 standard errors
from nothing (more among many entries, so that one right guide in a thousand is suspected) and 2 beyond the threshold.

The standard errors are those of the delta method. The guide's and the corrected moments are averages over the same
draws, and their difference is known better than either: with w_s the normalised weights, its influence function for the
sd is

    ψ_s = ((z_s − m_q)² / s_q² − 1) / 2 − S w_s ((z_s − m)² / s² − 1) / 2,    s.e. = sd(ψ) / √S

which is 0 for the exact guide. Those of a reference's chains are by batch means.

Sources: importance sampling as a check of variational posteriors: Yes, but Did It Work? (Yao et al. 2018,
arXiv:1802.02538), Validated Variational Inference via Practical Posterior Error Bounds (Huggins et al. 2020,
arXiv:1910.04102), which bounds errors of mean and sd; batch means: Batch Means and Spectral Variance Estimators in
Markov Chain Monte Carlo (Flegal and Jones 2010, arXiv:0811.1729).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ppgen.errors import PpgenError
from ppgen.inference.evaluation.psis import GOOD_K, effective, moments, smoothed, tail, threshold
from ppgen.inference.verdicts.findings import FINE, LOOK, VERDICTS, WRONG, Finding
from ppgen.run.shown import entry_names

if TYPE_CHECKING:  # they take a second to import
    import pandas as pd
    from xarray import DataArray, DataTree

MEAN_OFF, WRONG_MEAN = 0.2, 1.0  # sd
SD_RATIO, WRONG_SD = 1.1, 2.0
PAIRS, MOST_PAIRED = 20, 1000  # of latents, those whose correlations differ most; and of how many entries
CONSTANT = 1e-3  # sd of a sum of two standardized latents that are bound to each other, as entries of a simplex
SURE, BEYOND = 4.0, 2.0  # standard errors: from nothing, and beyond the threshold
FALSE_ALARMS = 0.001  # among all entries together
ROUNDING = 2e-7  # of a value in float32: an sd below it is that of a constant


class _Weights(NamedTuple):
    """Smoothed log weights of the tree's draws, (S, n), which of the n can be relied on, and the rows' dimension."""

    log_w: np.ndarray
    good: np.ndarray
    rows: str | None  # None: one weight a draw, n = 1


class _Better(NamedTuple):
    """Better moments of each entry; how far the guide's are off: mean in sd, log ratio of the sds; with their s.e."""

    mean: np.ndarray
    sd: np.ndarray
    off: np.ndarray
    off_se: np.ndarray
    log_ratio: np.ndarray
    log_ratio_se: np.ndarray


class _Deviation(NamedTuple):
    """How far one entry, or one dimension over the rows, is off, and its standard error."""

    where: str
    figure: float
    off: float
    se: float
    rows: int  # pooled; 0: an entry of its own


Deviations = tuple[list[_Deviation], list[_Deviation]]  # of means, of sds


def compare_moments(
    tree: DataTree, khat: np.ndarray, reference: DataTree | None = None
) -> tuple[pd.DataFrame, list[Finding]]:
    """Mean and sd of each entry of each latent, the guide's and better ones, and what they say of the guide.

    Args:
        tree: of `posterior`.
        khat: of the guide's weights, one for the data set or one a row; the tree's rows are the first of these.
        reference: a DataTree of the same posterior.

    Returns:
        A table: mean and sd; corrected_mean and corrected_sd where k-hat allows it (nan in other rows); reference_mean
        and reference_sd where a reference was given. And findings: mean_off and sd_ratio, beside each of these.
    """
    import pandas as pd

    group = tree["posterior"].dataset
    others = reference["posterior"].dataset if reference is not None else None
    weights = _weights(tree, khat)
    parts = []
    kinds = ["corrected"] if reference is None else ["corrected", "reference"]
    deviations: dict[str, Deviations] = {kind: ([], []) for kind in kinds}
    for name, value in group.data_vars.items():
        x = value.values[0].reshape(value.shape[1], -1).astype(np.float64)
        index, rows = _by_row(value, weights.rows)
        better = {}
        if weights.good.any() and (rows or weights.rows is None):
            better["corrected"] = _corrected(x, index, weights)
        if others is not None and name in others:
            better["reference"] = _referred(x, _same(value, others[name]))
        table = dict(zip(("mean", "sd"), moments(x[None]), strict=True))
        for kind, b in better.items():
            b = b._replace(off=np.where(b.sd <= ROUNDING * np.abs(b.mean), np.nan, b.off))  # what does not vary
            table |= {f"{kind}_mean": b.mean, f"{kind}_sd": b.sd}
            labels = entry_names(value, without=weights.rows if rows else None)
            for known, new in zip(deviations[kind], _deviations(b, index, labels, rows), strict=True):
                known += new
        parts.append(pd.DataFrame(table, index=entry_names(value)))
    found = pd.concat(parts)
    if weights.good.any():
        deviations["corrected"][1].extend(_pairs(group, weights))
    if others is not None and "reference_mean" not in found:
        raise PpgenError(
            f"the reference has none of the latents {', '.join(map(str, group.data_vars))}; pass draws of the same "
            "posterior"
        )
    said = [_finding(kind, deviations[kind], i, weights) for i in (0, 1) for kind in deviations]
    return found, [f for f in said if f is not None]


def _weights(tree: DataTree, khat: np.ndarray) -> _Weights:
    """Those of the tree's own draws; none can be relied on where it has no log_p and log_q."""
    if "sample_stats" not in tree.children:
        return _Weights(np.zeros((0, 1)), np.zeros(1, bool), None)
    stats = tree["sample_stats"].dataset
    log_w = (stats["log_p"] - stats["log_q"]).values[0]
    rows = str(stats["log_p"].dims[2]) if log_w.ndim == 2 else None
    smooth, own = smoothed(log_w.reshape(len(log_w), -1))
    own = tail(own, effective(smooth), len(log_w))
    return _Weights(smooth, (own < threshold(len(log_w))) & ~(khat[: len(own)] >= GOOD_K), rows)


def _by_row(value: DataArray, rows: str | None) -> tuple[np.ndarray, int]:
    """Places of (row, dimension) among the entries of (chain, draw, ...), and how many rows there are, if any."""
    index = np.arange(value[0, 0].size).reshape(value.shape[2:])
    if rows is None or rows not in value.dims:
        return index.reshape(1, -1), 0
    index = np.moveaxis(index, value.dims.index(rows) - 2, 0)
    return index.reshape(len(index), -1), len(index)


def _same(value: DataArray, other: DataArray) -> np.ndarray:
    """The reference's draws, (chains, draws, entries)."""
    if other.shape[2:] != value.shape[2:]:
        raise PpgenError(
            f"the reference's {value.name!r} has the shape {other.shape[2:]} and the guide's {value.shape[2:]}; pass "
            "draws of the same posterior"
        )
    return other.values.reshape(*other.shape[:2], -1).astype(np.float64)


# -- better moments ------------------------------------------------------------------------------------


def _corrected(x: np.ndarray, index: np.ndarray, weights: _Weights) -> _Better:
    """By the weights of each row; nan in rows whose weights cannot be relied on. x: (S, entries)."""
    found = _Better(*np.full((len(_Better._fields), x.shape[1]), np.nan))
    for places, good, log_w in zip(index, weights.good, weights.log_w.T, strict=True):
        if good:
            for whole, part in zip(found, _weighted(x[:, places], log_w), strict=True):
                whole[places] = part
    return found


def _weighted(x: np.ndarray, log_w: np.ndarray) -> _Better:
    (mean, sd), (better, better_sd) = moments(x[None]), moments(x[None], log_w)
    w = len(x) * np.exp(log_w)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):  # of a latent that does not vary
        z, t = (x - better) / better_sd, (x - mean) / sd
        influence = (x - mean) / better_sd - w * z
        spread = (t**2 - 1) / 2 - w * (z**2 - 1) / 2
        root = len(x) ** 0.5
        off = (mean - better) / better_sd
        return _Better(better, better_sd, off, influence.std(0) / root, np.log(sd / better_sd), spread.std(0) / root)


def _referred(x: np.ndarray, y: np.ndarray) -> _Better:
    """By a reference's draws, (chains, draws, entries)."""
    (mean, sd), (better, better_sd) = moments(x[None]), moments(y.reshape(1, -1, y.shape[-1]))
    with np.errstate(divide="ignore", invalid="ignore"):
        t, z = (x - mean) / sd, (y - better) / better_sd
        off_se = np.hypot(_batch_se(x[:, None] - mean), _batch_se(y - better)) / better_sd
        log_ratio_se = np.hypot(_batch_se(t[:, None] ** 2), _batch_se(z**2)) / 2
        return _Better(better, better_sd, (mean - better) / better_sd, off_se, np.log(sd / better_sd), log_ratio_se)


def _batch_se(y: np.ndarray) -> np.ndarray:
    """Standard error of the mean of chains (C, T, entries) by batch means, of √T draws each."""
    C, T, n = y.shape
    length = int(T**0.5)
    batches = y[:, : T // length * length].reshape(-1, length, n).mean(1)
    return batches.std(0, ddof=1) / len(batches) ** 0.5


def _pairs(group: Any, weights: _Weights) -> list[_Deviation]:
    """The sums and differences of two entries, each in units of its sd, whose sd is off: of the global latents, or of
    two dimensions of a row's on average over the rows."""
    parts, labels = [], []
    for v in group.data_vars.values():
        index, rows = _by_row(v, weights.rows)
        if weights.rows is not None and not rows:
            continue
        parts.append(v.values[0].reshape(v.shape[1], -1)[:, index[weights.good]].astype(np.float64))  # (S, rows, own)
        labels += entry_names(v, without=weights.rows)
    x, log_w = np.concatenate(parts, -1).swapaxes(0, 1), weights.log_w[:, weights.good].T  # (rows, S, entries)
    own, better = ([np.stack(m) for m in zip(*found, strict=True)] for found in (
        [moments(one[None]) for one in x], [moments(one[None], w) for one, w in zip(x, log_w, strict=True)]
    ))  # fmt: skip
    vary = np.flatnonzero(np.all([sd > ROUNDING * np.abs(mean) for mean, sd in (own, better)], (0, 1)))
    vary = vary[: int(MOST_PAIRED / len(x) ** 0.5)]
    if len(vary) < 2:
        return []
    t, z = ((x[..., vary] - m[:, None, vary]) / sd[:, None, vary] for m, sd in (own, better))
    apart = sum(a.T @ a / len(a) - (b.T * np.exp(w)) @ b for a, b, w in zip(t, z, log_w, strict=True))
    first, second = np.triu_indices(len(vary), 1)
    most = np.argsort(-np.abs(apart)[first, second])[:PAIRS]
    found, sure, n = [], _sure(len(vary) ** 2), len(x)
    for i, j in zip(first[most], second[most], strict=True):
        both = np.stack([z[..., i] + z[..., j], z[..., i] - z[..., j]], -1)
        of_rows = _Better(*np.stack([_weighted(one, w) for one, w in zip(both, log_w, strict=True)], 1))
        for place, sign in enumerate("+-"):
            ratio = float(of_rows.log_ratio[:, place].mean())
            se = float((of_rows.log_ratio_se[:, place] ** 2).sum() ** 0.5 / n)
            label = f"{labels[vary[i]]} {sign} {labels[vary[j]]}, in units of their sds"
            one = _Deviation(label, float(np.exp(ratio)), abs(ratio), se, n if weights.rows is not None else 0)
            known = (of_rows.sd[:, place] > CONSTANT).all()
            if known and _grade(one, np.log(SD_RATIO), np.log(WRONG_SD), sure) != FINE:
                found.append(one)
    return found


# -- what they say -------------------------------------------------------------------------------------


def _deviations(b: _Better, index: np.ndarray, labels: Iterable[str], rows: int) -> Deviations:
    """Of each entry; of each dimension over the rows, where there are rows."""
    means, sds = [], []
    for places, label in zip(index.T, labels, strict=True):
        off, off_se, log_ratio, log_ratio_se = (v[places] for v in b[2:])
        known = np.isfinite(off)
        n = int(known.sum())
        if not n:
            continue
        off, off_se, log_ratio, log_ratio_se = (v[known] for v in (off, off_se, log_ratio, log_ratio_se))
        if rows:
            square, error = off**2 - off_se**2, off_se**2
            rms = max(float(square.mean()), 0.0) ** 0.5
            se = (4 * square.clip(min=0) * error + 2 * error**2).sum() ** 0.5 / n / (2 * rms) if rms else np.inf
        else:
            rms, se = abs(float(off[0])), float(off_se[0])
        means.append(_Deviation(label, rms, rms, float(se), n if rows else 0))
        ratio = float(log_ratio.mean())
        # a guide without spread has no error in it
        off, se = abs(ratio), float((np.nan_to_num(log_ratio_se) ** 2).sum() ** 0.5 / n)
        sds.append(_Deviation(label, float(np.exp(ratio)), off, se, n if rows else 0))
    return means, sds


def _finding(kind: str, deviations: Deviations, i: int, weights: _Weights) -> Finding | None:
    """The worst of means (i = 0) or sds (1); that moments could not be compared is said once."""
    measure = ("mean_off", "sd_ratio")[i]
    look, wrong = ((MEAN_OFF, WRONG_MEAN), (np.log(SD_RATIO), np.log(WRONG_SD)))[i]
    good = (MEAN_OFF, SD_RATIO)[i]
    many = deviations[i]
    if not many:
        if i == 0:
            return None
        reason = "its draws have no weights" if not len(weights.log_w) else (
            "no latent varies" if weights.good.any() else "its weights are too uneven to correct them"
        )  # fmt: skip
        uneven = bool(len(weights.log_w)) and not weights.good.any()
        return Finding(measure, "", np.nan, good, LOOK, {"beside": kind, "reason": reason, "rows": 0, "uneven": uneven})
    sure = _sure(len(many))
    graded = [(_grade(d, look, wrong, sure), d) for d in many]
    grade, worst = min(graded, key=lambda g: (VERDICTS.index(g[0]), -g[1].off))
    said = {"beside": kind, "se": worst.se, "rows": worst.rows}
    return Finding(measure, worst.where, worst.figure, good, grade, said)


def _sure(n: int) -> float:
    """Standard errors beyond which one of n figures is off: 4, or more for many."""
    from scipy.stats import norm

    return max(SURE, float(norm.isf(FALSE_ALARMS / (2 * n))))


def _grade(d: _Deviation, look: float, wrong: float, sure: float) -> str:
    if not d.off > sure * d.se:
        return FINE
    return WRONG if d.off > wrong + BEYOND * d.se else LOOK if d.off > look + BEYOND * d.se else FINE
