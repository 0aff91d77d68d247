"""CPU seconds of reading and typing a table of 100 000 rows and 15 columns, beside pandas.read_csv.

python benchmarks/tables.py
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ppgen.data import load

ROWS = 100_000


def table() -> pd.DataFrame:
    """Six columns of numbers, four of counts, three of words, days, and a name for every row."""
    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {f"x{i}": rng.normal(size=ROWS).round(4) for i in range(6)}
    columns |= {f"n{i}": rng.poisson(4, ROWS) for i in range(4)}
    columns |= {f"g{i}": rng.choice(["ash", "elm", "oak", "beech"], ROWS) for i in range(3)}
    columns["day"] = pd.date_range("2000-01-01", periods=ROWS, freq="h").strftime("%Y-%m-%d")
    columns["id"] = [f"u{i:06d}" for i in range(ROWS)]
    return pd.DataFrame(columns)


def seconds(call: Callable[[], Any]) -> float:
    """The least CPU time of seven calls."""
    took = []
    for _ in range(7):
        begun = time.process_time()
        call()
        took.append(time.process_time() - begun)
    return min(took)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, frame in (("with names of rows", table()), ("without", table().drop(columns="id"))):
            path = Path(folder) / "t.csv"
            frame.to_csv(path, index=False)
            ours, theirs = seconds(lambda: load(path)), seconds(lambda: pd.read_csv(path))  # noqa: B023
            print(f"{name}: load {ours:.3f} s, pandas.read_csv {theirs:.3f} s, {ours / theirs:.1f} times")


if __name__ == "__main__":
    main()
