"""A column's type with its values: how numbers, days and codes are made of what a cell says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from ppgen.data.cells.number_notes import describe_numbers
from ppgen.data.cells.types import ColumnType

if TYPE_CHECKING:
    import pandas as pd

ROUNDING = 1e-3  # of an sd
LAST_YEAR = 2_932_532.0  # 9999-01-01, in days since then


class Typed(NamedTuple):
    """A column's type, and its values: codes or numbers, nan where a cell is missing; None where it is unclear."""

    type: ColumnType
    values: np.ndarray | None


def blank(name: str, asked: ColumnType | None) -> ColumnType:
    return ColumnType(name, "real") if asked is None else replace(asked, name=name)


def fits_float32(mean: float, sd: float) -> bool:
    """Whether float32 holds how numbers vary: its rounding is below 1e-3 of their sd; of a constant anything does."""
    return not sd > 0 or (abs(mean) + 3 * sd) * 2**-24 <= ROUNDING * sd


def default_float(values: np.ndarray) -> np.ndarray:
    """In torch's default dtype, unless that rounds what varies away."""
    finite = values[np.isfinite(values)]
    if len(finite) and not fits_float32(float(finite.mean()), float(finite.std())):
        return values.astype(float, copy=False)
    return values.astype(str(torch.get_default_dtype()).removeprefix("torch."), copy=False)


def coded(codes: np.ndarray) -> np.ndarray:
    """Codes; as floats with nan where a cell is missing."""
    return default_float(np.where(codes < 0, np.nan, codes)) if (codes < 0).any() else codes


def days_of(dates: pd.Series) -> np.ndarray:
    """Days since 1970, of years from 1 to 9999."""
    import pandas as pd  # a third of a second, for data without dates as well

    return ((dates - pd.Timestamp("1970-01-01").as_unit("us")) / pd.Timedelta(1, "D")).to_numpy(float)


def of_days(name: str, days: np.ndarray, asked: ColumnType | None, form: str, notes: list[str]) -> Typed:
    """Days since the epoch -> days since the first, or since the day of the type that was asked for."""
    if np.isnan(days).all():
        return Typed(replace(blank(name, asked), kind="date", why="no cell has a day"), default_float(days))
    kept = asked.unit.rpartition(" since ")[2] if asked is not None and asked.unit else ""
    first = np.datetime64(kept, "D") if kept else np.datetime64(int(np.floor(np.nanmin(days))), "D")
    since = days - float(first.astype(np.int64))
    if np.nanmax(days) >= LAST_YEAR:
        notes = [*notes, "has days in the year 9999, as is written where there is none; write NA if so"]
    whole = bool(np.all(np.isnan(since) | (since == np.round(since))))
    made = ColumnType(
        name, "date", unit=f"days since {first}", form=form, low=float(np.nanmin(since)),
        high=float(np.nanmax(since)), why=f"dates of the form {form}", notes=tuple(notes),
    )  # fmt: skip
    return Typed(made, default_float(since) if whole else since)


def of_numbers(name: str, values: np.ndarray, asked: ColumnType | None, notes: Sequence[str] = ()) -> Typed:
    found = describe_numbers(name, values)
    made = found if asked is None else replace(
        asked, name=name, low=found.low, high=found.high, notes=found.notes,
        kind=found.kind if asked.kind == "real" and not asked.why else asked.kind,
        why=asked.why or found.why,
    )  # fmt: skip
    if asked is not None and asked.kind == "duration":
        made = replace(made, why=asked.why or "lengths of time, in seconds")
    elif asked is not None and asked.unit and not asked.why:
        made = replace(made, why=f"{found.why}, written with {asked.unit}")
    return Typed(replace(made, notes=(*notes, *made.notes)), values)
