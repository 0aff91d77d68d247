"""Folders of pictures -> bytes (rows, height, width) or (rows, channels, height, width); what an array of images is.

A folder holds .png, .jpg or .jpeg files, all of one size, in the order of their names; of a folder of folders the
names of these are the column y. Grey pictures have no dimension of channels; where some are grey and others in colour,
all are in colour. Pictures that are see-through somewhere are refused.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from ppgen.errors import PpgenError, reason
from ppgen.memory import require_memory

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger("ppgen")

SUFFIXES = (".png", ".jpg", ".jpeg")
CHANNELS = (1, 3, 4)  # that stand last in arrays of most libraries, and first in torch's
OTHERS = (".tif", ".tiff", ".gif", ".bmp", ".webp")  # pictures that are not read
SPLITS = {"train", "valid", "val", "validation", "test"}
SMALLEST = 5  # pixels a side, of an image that is told by its shape


def _pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder and of those in it, in the order of their names."""
    found = [*folder.iterdir(), *(p for inner in sorted(folder.iterdir()) if inner.is_dir() for p in inner.iterdir())]
    return sorted(p for p in found if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def read_images(folder: Path) -> dict[str, Any]:
    """x: bytes; y: the names of the folders that the pictures stand in, where they are folders of the folder."""
    paths = _pictures_in(folder)
    if not paths:
        deeper = next((p for p in sorted(folder.rglob("*")) if p.suffix.lower() in SUFFIXES), None)
        remedy = "give the path of one data file" if deeper is None else f"give {deeper.parent.parent}, which has them"
        raise PpgenError(f"{folder} is a folder without pictures ({', '.join(SUFFIXES)}); {remedy}")
    others = [p for p in folder.rglob("*") if p.suffix.lower() in OTHERS]
    if others:
        log.warning("%s: %d pictures of other kinds (%s) are left out", folder, len(others), others[0].name)
    labels = [p.parent.name if p.parent != folder else None for p in paths]
    if None in labels and any(labels):
        there = next(p for p in paths if p.parent != folder)
        raise PpgenError(
            f"{folder} has pictures beside folders of pictures ({there.parent.name}); put all of them into folders, "
            "whose names are the column y, or none"
        )
    if (named := {label for label in labels if label is not None}) and named <= SPLITS:
        raise PpgenError(
            f"the folders in {folder} are called {', '.join(sorted(named))}, as splits of the data are, and no labels; "
            f"give one of them ({folder / min(named)})"
        )
    first = _opened(paths[0])
    require_memory(3 * first.size * len(paths), f"{len(paths)} pictures in {folder}", "fit a part of them")
    pictures = [first, *map(_opened, paths[1:])]
    for path, picture in zip(paths, pictures, strict=True):
        if picture.shape[:2] != first.shape[:2]:
            sizes = [f"{p.shape[1]} x {p.shape[0]}" for p in (first, picture)]
            raise PpgenError(
                f"{folder}: {paths[0].name} has {sizes[0]} pixels and {path.name} has {sizes[1]} (width x height); "
                "make all pictures of one size"
            )
    if len({p.ndim for p in pictures}) > 1:
        log.warning("%s: some pictures are grey and others in colour: all are taken in colour", folder)
        pictures = [p if p.ndim == 3 else np.repeat(p[..., None], 3, 2) for p in pictures]
    x = np.stack(pictures)
    x = np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if x.ndim == 4 else x
    return {"x": x} | ({"y": labels} if any(labels) else {})


def _opened(path: Path) -> np.ndarray:
    """(height, width) of a grey picture, (height, width, 3) of one in colour."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            file.load()
            picture = _plain(ImageOps.exif_transpose(file), path)  # upright, as it is shown
    except PpgenError:
        raise
    except Exception as error:  # a damaged picture fails in many ways
        raise PpgenError(
            f"{path} cannot be read as a picture ({reason(error)}); it is damaged: copy it again"
        ) from error
    return np.asarray(picture)


def _plain(picture: Image, path: Path) -> Image:
    """Of 8 bits, grey or in colour."""
    if picture.mode.startswith(("I", "F")):
        raise PpgenError(f"{path} has more than 8 bits a pixel; write the numbers as .npy, or pictures of 8 bits")
    seen_through = picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info
    if seen_through and np.asarray(picture.convert("RGBA"))[..., 3].min() < 255:
        raise PpgenError(f"{path} is see-through in some pixels; put it on a background")
    return picture.convert("L" if picture.mode in ("1", "L", "LA") else "RGB")


def channels_first(name: str, x: Tensor) -> Tensor:
    """(rows, channels, height, width) of images with their channels last; others as they are.

    >>> import torch
    >>> channels_first("x", torch.zeros(2, 8, 9, 3)).shape
    torch.Size([2, 3, 8, 9])
    """
    if not _channels_last(x):
        return x
    log.info("column %r of shape %s has its channels last, and is turned to channels first", name, tuple(x.shape))
    return x.permute(0, 3, 1, 2).contiguous()


def _channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and x.shape[3] in CHANNELS and x.shape[1] not in CHANNELS and min(x.shape[1:3]) >= SMALLEST


def describe_images(x: Tensor) -> str:
    """What images an array holds: their size, where their channels stand, and from what to what values go; or "".

    >>> import torch
    >>> describe_images(torch.zeros(2, 3, 8, 9, dtype=torch.uint8))
    'images of 9 x 8 pixels, 3 channels, first; bytes'
    """
    if x.dim() not in (3, 4) or min(x.shape[-2:]) < 1 or x.is_complex() or not len(x):
        return ""
    last = _channels_last(x)
    if x.dim() == 4 and not last and x.shape[1] not in CHANNELS:
        return ""
    height, width = x.shape[1:3] if last else x.shape[-2:]
    if min(height, width) < SMALLEST or not (values := _range_of(x)):
        return ""
    n = x.shape[3 if last else 1] if x.dim() == 4 else 0
    channels = f", {n} channel{'s' if n > 1 else ''}, {'last' if last else 'first'}" if n else ""
    return f"images of {width} x {height} pixels{channels}; {values}"


def _range_of(x: Tensor) -> str:
    """The scale that pixels are on; "" where it is none of the usual ones."""
    if str(x.dtype) == "torch.uint8":
        return "bytes"
    low, high = float(x.min()), float(x.max())
    if low >= 0 and high <= 1:
        return "values in [0, 1]"
    if low >= -1 and high <= 1:
        return "values in [-1, 1]"
    if low >= 0 and high <= 255:
        return "values in [0, 255], which are to be divided by 255, or written as bytes"
    return ""
