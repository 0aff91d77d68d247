"""Coefficients that the rows bound on one side alone, so that how far they are from 0 is what their priors say.

A row is a direction that its likelihood grows in without end: a success and a time that is censored from the right by
larger η, a failure, a count of 0 and a value that is censored from the left by smaller ones; any other row bounds η on
both sides. There is no maximum of the likelihood where some d has

    s_i x_i · d >= 0 where s_i = 1 or -1,   x_i · d = 0 where s_i = 0,   and not 0 in all rows,

which a linear program tells. So it is of a level that only failures have, and of classes that a column separates.

Source: On the existence of maximum likelihood estimates in logistic regression models (Albert & Anderson 1984).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ppgen.formula.design import Design, matrix
from ppgen.formula.families import FAMILIES

_STEPS = 25  # of Newton's method
_NONE = 1e-3  # a sum of rows along d that is none
_MOST = 2_000_000  # entries of a design that is looked at as a whole


def unbounded(design: Design, family: str, rows: Mapping[str, Tensor]) -> list[str]:
    """The labels of a linear function of the columns that the likelihood grows along; none where it has a maximum.

    Where effects vary over groups nothing is said: their spread is learned.
    """
    signs = _signs(design, family, rows)
    if signs is None:
        return []
    columns = {k: v for k, v in rows.items() if v.dim()}
    x = np.ones((len(signs), 1 if design["intercept"] else 0))
    if design["matrix"]["terms"]:
        own = matrix(design["matrix"], columns, torch.zeros((), dtype=torch.float64)).numpy()
        x = np.hstack([x, (own - own.mean(0)) if design["intercept"] else own])
    labels = ["Intercept"] * design["intercept"] + design["matrix"]["labels"]
    kept = np.isfinite(x).all(1) & np.isfinite(signs)
    x, signs = x[kept], signs[kept]
    size = np.sqrt((x**2).mean(0)) if len(x) else np.zeros(x.shape[1])
    x = x / np.where(size > 0, size, 1)
    if not x.size or x.size > _MOST or _is_bounded(x, signs):
        return []
    way = _direction(x, signs)
    found = [label for label, d in zip(labels, way, strict=True) if d]
    return [label for label in found if label != "Intercept"] or found  # which moves with the means of the columns


def _signs(design: Design, family: str, rows: Mapping[str, Tensor]) -> np.ndarray | None:
    """Where each row's likelihood grows without end: 1 up, -1 down, 0 nowhere; nan of a row that says nothing."""
    response, kind = design["response"], FAMILIES[family].kind
    if design["groups"] or design.get("gaps"):
        return None
    y = rows[response["y"]].double()
    if response["status"]:
        status = rows[response["status"]]
        of = response["status_of"]
        return (status.double() if of is None else torch.tensor(of, dtype=torch.float64)[status.long()]).numpy()
    if kind == "counts":
        return (-(y == 0).double()).numpy()
    if kind not in ("binary", "trials"):
        return None
    trials = 1.0 if kind == "binary" else response["trials"]
    n = rows[trials].double() if isinstance(trials, str) else torch.full_like(y, float(trials or 0))
    signs = (y == n).double() - (y == 0).double()
    return signs.where(n > 0, torch.nan).numpy()


def _is_bounded(x: np.ndarray, signs: np.ndarray) -> bool:
    """Whether Newton's method tells that there is a maximum, as it does sooner than a linear program.

    Of log L(b) = Σ log σ(s_i x_i · b) the gradient is g = Σ w_i s_i x_i with w_i = σ(-s_i x_i · b) > 0, so that along
    a d that no row falls in, Σ s_i x_i · d <= g · d / min w: nothing, where g is 0.
    """
    free = signs == 0
    lengths, ways = np.linalg.eigh(x[free].T @ x[free])
    ways = ways[:, lengths <= 1e-12 * len(x)]  # where the rows of both bounds do not change
    rows = (signs[:, None] * x)[~free] @ ways
    if not rows.size:
        return True
    b = np.zeros(rows.shape[1])
    for _ in range(_STEPS):
        w = 1 / (1 + np.exp(np.minimum(rows @ b, 500)))
        g = w @ rows
        if np.abs(g).sum() * x.shape[1] ** 0.5 < _NONE * w.min():
            return True
        b = b + np.linalg.lstsq((rows * (w * (1 - w))[:, None]).T @ rows, g, rcond=None)[0]
    return False


def _direction(x: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """The d of the largest Σ s_i x_i · d among entries from -1 to 1, or zeros where it is 0."""
    from scipy.optimize import linprog

    one, free = signs[:, None] * x, signs == 0
    fixed = np.linalg.qr(x[free], mode="r")
    found = linprog(-one.sum(0), -one[~free], np.zeros((~free).sum()), fixed, np.zeros(len(fixed)), bounds=(-1, 1))
    if found.x is None or -found.fun < _NONE or np.abs(found.x).max() < 0.5:
        return np.zeros(x.shape[1])
    return np.where(np.abs(found.x) > 1e-6, found.x, 0.0)
