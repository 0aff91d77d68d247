"""The data sets that are known by name: built in, or found in a data directory.

``load_raw(name, data_dir)`` gives raw columns by split (``{"all": …}`` where there is none).
The two-dimensional toys come from numpy's frozen ``RandomState``, so they are the same arrays on
every machine and in every version.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ppgen.data.files.readers import by_split, read
from ppgen.errors import PpgenError

__all__ = ["NAMES", "WITH_SPLITS", "finish", "load_raw"]

NAMES = {
    "digits": "handwritten digits, 1 797 of 8 x 8 pixels in [0, 1], labels (scikit-learn)",
    "eight_schools": "effects of coaching in eight schools and their standard errors (Rubin, 1981)",
    "moons": "2-D toy: two interleaved half circles, 10 000 points",
    "rings": "2-D toy: two concentric rings, 10 000 points",
    "checkerboard": "2-D toy: uniform on every other square of a 4 x 4 board, 10 000 points",
    "mnist": "handwritten digits, 70 000 of 28 x 28 pixels in [0, 1], labels (in a data directory)",
    "fashion": "Fashion-MNIST, 70 000 of 28 x 28 pixels in [0, 1], labels (in a data directory)",
    "binarized_mnist": "MNIST binarised once, 50 000 / 10 000 / 10 000 (in a data directory)",
}
WITH_SPLITS = ("digits", "mnist", "fashion", "binarized_mnist")

_FOLDERS = {
    "mnist": ("mnist", "MNIST/raw"),
    "fashion": ("fashion", "fashion_mnist", "fashion-mnist", "FashionMNIST/raw"),
    "binarized_mnist": ("binarized_mnist",),
}
_IDX = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}


def load_raw(name: str, data_dir: str | Path | None = None) -> dict[str, dict[str, Any]]:
    """Read the named data set as raw columns of each split; images are still bytes."""
    if name in _FOLDERS:
        path, raw = _images(name, data_dir)
        groups = by_split(path, raw)
        if not all("x" in group for group in groups.values()):
            raise PpgenError(
                f"{path} has the arrays {', '.join(raw)}, expected those of data set {name!r}: "
                f"x_train, y_train, … or train, valid, test; get the original file"
            )
        return groups
    return {"all": _BUILT_IN[name]()}


def finish(name: str | None, columns: dict[str, Any]) -> dict[str, Any]:
    """Bring the images of one split into their final form; other columns pass through.

    ``mnist``, ``fashion``: x (N, 28, 28) bytes -> (N, 784) float32, exactly k / 255.
    ``binarized_mnist``: x (N, 98), eight pixels a byte -> (N, 784) float32 of 0 and 1.
    """
    if name not in _FOLDERS:
        return columns
    x = np.asarray(columns["x"])
    x = x.reshape(len(x), -1)
    if name == "binarized_mnist":
        x = np.unpackbits(x.astype(np.uint8), axis=1) if x.shape[1] == 98 else x
    highest = 1 if name == "binarized_mnist" else 255
    if x.shape[1] != 784 or x.max(initial=0) > highest:
        raise PpgenError(
            f"the file of data set {name!r} has {x.shape[1]} values an image and a largest value "
            f"of {x.max(initial=0)}, expected 784 and at most {highest}; get the original file"
        )
    return {**columns, "x": x.astype(np.float32) / np.float32(highest)}


def _images(name: str, data_dir: str | Path | None) -> tuple[Path, dict[str, Any]]:
    folder = data_dir or os.environ.get("PPGEN_DATA")
    root = Path(folder).expanduser() if folder else None
    for place in [root / part for part in (*_FOLDERS[name], ".")] if root else ():
        for file in [place / f"{Path(part).parts[0]}.npz" for part in _FOLDERS[name]]:
            if file.is_file():
                return file, read(file)
        # MNIST and Fashion-MNIST use the same four names: in the root, its own name has to tell.
        if place == root and ("fashion" in root.name.lower()) != (name == "fashion"):
            continue
        found = {key: _first(place, file) for key, file in _IDX.items()}
        if found["x_train"] and name != "binarized_mnist":
            return place, {key: read(path or place / _IDX[key])["x"] for key, path in found.items()}
    looked = f"is not in {root}" if root else "needs a data directory"
    contents = "train, valid, test" if name == "binarized_mnist" else ", ".join(_IDX)
    idx = f", or the folder {name}/ with {', '.join(_IDX.values())} (.gz or not),"
    raise PpgenError(
        f"data set {name!r} {looked}; put {name}.npz (arrays {contents}){'' if name == 'binarized_mnist' else idx} "
        "into a folder, and name that folder with data_dir (--data-dir) or the variable PPGEN_DATA"
    )


def _first(place: Path, file: str) -> Path | None:
    dotted = file.replace("-idx", ".idx")
    names = [n + ending for n in (file, dotted) for ending in ("", ".gz")]
    return next((place / n for n in names if (place / n).is_file()), None)


def _digits() -> dict[str, Any]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise PpgenError(
            "data set 'digits' comes with scikit-learn, which is not installed; run: pip install scikit-learn"
        ) from error
    bunch = load_digits()
    return {"x": (bunch.data / 16).astype(np.float32), "y": bunch.target.astype(np.int64)}


def _eight_schools() -> dict[str, Any]:
    """Points gained and their standard errors: Rubin, Estimation in parallel randomized
    experiments, Journal of Educational Statistics 6 (1981)."""
    y = np.array([28, 8, -3, 7, -1, 1, 18, 12], np.float32)
    return {"y": y, "sigma": np.array([15, 10, 16, 11, 9, 11, 10, 18], np.float32)}


def _moons(n: int = 10_000, noise: float = 0.1) -> dict[str, Any]:
    """(cos t, sin t) or (1 - cos t, 1/2 - sin t), t ~ U(0, pi), plus N(0, noise^2)."""
    random = np.random.RandomState(0)
    t, other = np.pi * random.rand(n), random.rand(n) < 0.5
    x = np.where(other, 1 - np.cos(t), np.cos(t)), np.where(other, 0.5 - np.sin(t), np.sin(t))
    return {"x": (np.stack(x, axis=1) + noise * random.randn(n, 2)).astype(np.float32)}


def _rings(n: int = 10_000, noise: float = 0.08) -> dict[str, Any]:
    """r (cos t, sin t), r = 1 or 2 with equal probability, t ~ U(0, 2 pi), plus N(0, noise^2)."""
    random = np.random.RandomState(0)
    t, r = 2 * np.pi * random.rand(n), 1 + (random.rand(n) < 0.5)
    x = np.stack([r * np.cos(t), r * np.sin(t)], axis=1)
    return {"x": (x + noise * random.randn(n, 2)).astype(np.float32)}


def _checkerboard(n: int = 10_000) -> dict[str, Any]:
    """Uniform on the 8 squares of side 1 of [-2, 2]^2 where floor(x1) + floor(x2) is even; its
    entropy is log 8 = 2.079 nats."""
    random = np.random.RandomState(0)
    row, step, inside = random.randint(4, size=n), random.randint(2, size=n), random.rand(n, 2)
    x = np.stack([2 * step + row % 2 + inside[:, 0] - 2, row + inside[:, 1] - 2], axis=1)
    return {"x": x.astype(np.float32)}


_BUILT_IN: dict[str, Callable[[], dict[str, Any]]] = {
    "digits": _digits,
    "eight_schools": _eight_schools,
    "moons": _moons,
    "rings": _rings,
    "checkerboard": _checkerboard,
}
