"""The run folder itself: when a fit may take it, what is first put there, and what a fit that failed leaves."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from ppgen.errors import PpgenError
from ppgen.run.example import write_example
from ppgen.run.files import write_atomic
from ppgen.run.lock import LOCK, is_lock, locked
from ppgen.run.trust import trust

_FILES = ("config.json", "program.py", "example.safetensors", "parameters.safetensors", "state.safetensors",
          "metrics.csv")  # fmt: skip
_TEMPORARY = re.compile(rf"\.({'|'.join(map(re.escape, _FILES))})\.\d+\.tmp")  # of a process that was killed


def free_folder(out: str | Path) -> Path:
    """The folder of a new run: absent, empty, or with what a fit that was killed before its first checkpoint left."""
    if not str(out):
        raise PpgenError("out is '', and the name of a folder is expected, as in --out runs/first")
    path = Path(out)
    if path.suffix == ".nc":
        raise PpgenError(
            f"{path} is the name of a netCDF file, and a fit leaves a folder; name it without .nc, as in "
            f"--out {path.with_suffix('')}"
        )
    if (path / "config.json").exists():
        raise PpgenError(
            f"{path} holds a run already; choose another folder, go on with it (--resume {path}), or remove it"
        )
    names = sorted(p.name for p in path.iterdir()) if path.is_dir() else []
    others = [n for n in names if not _is_own(n)] if LOCK in names and is_lock(path / LOCK, names) else names
    if others:
        raise PpgenError(
            f"{path} is no run, and holds {others[0]!r}, which a fit might write over; choose an empty folder, or one "
            "that is not there yet"
        )
    return path


def _is_own(name: str) -> bool:
    return name in (*_FILES, LOCK) or _TEMPORARY.fullmatch(name) is not None


@contextmanager
def new_folder(path: Path, example: Mapping[str, Tensor], spec: Mapping[str, Any], file: Path | None) -> Iterator[None]:
    """Holds a free folder's lock, and fills it. config.json follows the first checkpoint: a folder that has one can be
    resumed. A fit that ends before it takes away what was put there.

    Args:
        spec, file: of `describe_program`; the program is the user's own, and is trusted from now on.
    """
    with ExitStack() as after:
        if not path.exists():
            after.callback(_remove_empty, path)
        after.enter_context(locked(path))
        free_folder(path)  # again: another fit may have been here
        _sweep(path, _TEMPORARY.fullmatch)
        try:
            if file is not None:
                text = file.read_bytes()
                write_atomic(path / "program.py", text)
                trust(text, spec)
            write_example(path / "example.safetensors", example)
            yield
        finally:
            if not (path / "config.json").exists():
                _sweep(path, lambda name: name != LOCK and _is_own(name))


def _remove_empty(path: Path) -> None:
    with suppress(OSError):
        path.rmdir()


@contextmanager
def same_folder(path: Path) -> Iterator[None]:
    """Holds the lock of a run that goes on."""
    with locked(path) as holds:
        if holds:
            _sweep(path, _TEMPORARY.fullmatch)
        yield


def _sweep(path: Path, which: Any) -> None:
    for file in path.iterdir():
        if which(file.name):
            with suppress(OSError):
                file.unlink()
