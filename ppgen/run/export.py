"""Draws of a model as files: .npz holds every site, .csv the observed ones, a row a draw."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from ppgen.errors import PpgenError
from ppgen.run.files import write_atomic

SUFFIXES = (".png", ".npz", ".csv")


def check_suffix(path: Path, suffixes: Iterable[str] = SUFFIXES) -> None:
    """Refuses a file name before any work is done for it."""
    if path.suffix.lower() not in suffixes:
        raise PpgenError(f"{path} names no format that can be written; let it end in {', '.join(suffixes)}")
    if not path.parent.is_dir():
        raise PpgenError(f"there is no folder {path.parent} to write {path.name} into; make it first")


def write_draws(path: Path, drawn: Mapping[str, Tensor], observed: Iterable[str]) -> None:
    """Writes draws of `ppgen.inference.sample`, n leading, atomically.

    Args:
        path: .npz (arrays by site, their shapes kept), or .csv (columns x_0, x_1, ... of the observed sites).
    """
    arrays = {name: value.detach().cpu().numpy() for name, value in drawn.items()}
    out = io.BytesIO()
    if path.suffix.lower() == ".npz":
        np.savez_compressed(out, **arrays)  # type: ignore[arg-type]
        write_atomic(path, out.getvalue())
        return
    # as text in numpy, which writes a float32 in as few digits as it has
    flat = {name: arrays[name].reshape(len(arrays[name]), -1).astype(str) for name in observed if name in arrays}
    head = [name if v.shape[1] == 1 else f"{name}_{i}" for name, v in flat.items() for i in range(v.shape[1])]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(zip(*(column for v in flat.values() for column in v.T.tolist()), strict=True))
    write_atomic(path, text.getvalue())
