"""Predictions as a table: a mean, an sd and an interval of each, or the share of each word."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ppgen.errors import PpgenError
from ppgen.inference.evaluation.posterior import name_in

if TYPE_CHECKING:  # it takes half a second to import
    from xarray import DataTree


INTERVAL = (0.05, 0.95)  # quantiles of the intervals that are shown


def summaries(tree: DataTree, by: str | None = None) -> list[dict[str, Any]]:
    """Mean, sd and interval (5% to 95%) of every prediction, or of their mean over the rows of a group; of a prediction
    that is a word, the share of the draws with each word.

    Args:
        by: a column of predictions_constant_data; a mean over its rows is taken within each draw.
    """
    row_dim, found = str(tree.attrs["row_dim"]), []
    label = _labels(tree, by) if by is not None else None
    words, levels = _text(tree, row_dim), json.loads(tree.attrs.get("words", "{}"))
    for name, values in tree["predictions"].dataset.data_vars.items():
        if row_dim not in values.dims:
            rows = [("", values.values.reshape(np.prod(values.shape[:2]), 1, -1))]
        else:
            flat = values.transpose("chain", "draw", row_dim, ...).values
            flat = flat.reshape(flat.shape[0] * flat.shape[1], flat.shape[2], -1).astype(float)
            index = values[row_dim].values
            rows = [(index[i], flat[:, [i]]) for i in range(flat.shape[1])]
            if label is not None:
                rows = [(w, flat[:, label == w]) for w in np.unique(label)]
        for place, (key, part) in enumerate(rows):
            for entry in range(part.shape[-1]):
                at, own = entry if part.shape[-1] > 1 else None, levels.get(name, ())
                one = _summary(str(name), key, part[..., entry], at, by, own)
                found.append(one if by is not None or key == "" else {"row": one["row"], **words[place], **one})
    return found


def _text(tree: DataTree, row_dim: str) -> list[dict[str, str]]:
    """The words of each new row, by column."""
    group = tree.children.get("predictions_constant_data")
    columns = {} if group is None else {str(n): v for n, v in group.dataset.data_vars.items() if v.dims == (row_dim,)}
    text = {n: v.values for n, v in columns.items() if v.dtype.kind in "UOT"}
    rows = tree["predictions"].sizes.get(row_dim, 0)
    return [{n: str(v[i]) for n, v in text.items()} for i in range(rows)]


def _summary(
    name: str, key: Any, values: np.ndarray, entry: int | None, by: str | None, words: Sequence[str]
) -> dict[str, Any]:
    mean = values.astype(float).mean(1)
    low, high = np.quantile(mean, INTERVAL)
    site = name if entry is None else f"{name}[{entry}]"
    key = key.item() if isinstance(key, np.generic) else key
    about = {"row": key} if by is None else {by: key, "rows": values.shape[1]}
    if words:
        return {"site": site, **about, "shares": {w: float((values == code).mean()) for code, w in enumerate(words)}}
    figures = {"mean": float(mean.mean()), "sd": float(mean.std(ddof=1)) if len(mean) > 1 else float("nan")}
    return {"site": site, **about, **figures, "5%": float(low), "95%": float(high)}


def _labels(tree: DataTree, by: str) -> np.ndarray:
    group = tree.children.get("predictions_constant_data")
    found = group.dataset.data_vars if group is not None else {}
    by = name_in(tree, by)
    if by not in found:
        raise PpgenError(
            f"there is no column {by!r} of the new rows to group by; they have {', '.join(map(str, found)) or 'none'}"
        )
    return found[by].values
