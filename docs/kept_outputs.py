"""What the examples gave, kept in docs/_build/outputs, so that the site in a second language runs nothing again.

A block's key is a hash of the page's blocks up to it, of every file of the package and of the version of every
installed distribution: a block is run again unless all of these are as they were. `make clean` forgets everything.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import sys
from dataclasses import dataclass, field
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("ppgen", "inference", "models", "docs/run_directive.py", "docs/kept_outputs.py")


@dataclass(frozen=True)
class Result:
    """What one block printed, and the pictures that it made."""

    output: str
    pictures: list[Path] = field(default_factory=list)


@functools.cache
def source_key() -> str:
    """The hash of what decides an example's output besides its code."""
    digest = hashlib.sha256(sys.version.encode())
    for top in SOURCES:
        for path in sorted([ROOT / top] if (ROOT / top).is_file() else (ROOT / top).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    for line in sorted(f"{d.metadata['Name']} {d.version}" for d in distributions()):
        digest.update(line.encode())
    return digest.hexdigest()


def next_key(key: str, *block: object) -> str:
    """The key of a block after the one with `key` ("" before the first)."""
    return hashlib.sha256(json.dumps([key or source_key(), *block]).encode()).hexdigest()[:20]


class Outputs:
    """The results of one page's blocks, in `folder/page`."""

    def __init__(self, folder: Path, page: str):
        self.folder = folder / page
        self.seen: set[str] = set()

    def load(self, key: str) -> Result | None:
        """The result with this key; None where there is none, or a picture of it is gone."""
        self.seen.add(key)
        path = self.folder / f"{key}.json"
        if not path.is_file():
            return None
        record = json.loads(path.read_text())
        result = Result(record["output"], [self.folder / name for name in record["pictures"]])
        return result if all(p.is_file() for p in result.pictures) else None

    def save(self, key: str, output: str, pictures: list[Path]) -> Result:
        """Keeps copies of the pictures, and the output."""
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = [self.folder / f"{key}-{i}{path.suffix}" for i, path in enumerate(pictures, 1)]
        for path, copy in zip(pictures, kept, strict=True):
            shutil.copyfile(path, copy)
        record = {"output": output, "pictures": [p.name for p in kept]}
        (self.folder / f"{key}.json").write_text(json.dumps(record))
        return Result(output, kept)

    def prune(self) -> None:
        """Deletes what no block of the page asked for."""
        for path in self.folder.glob("*"):
            if path.stem.split("-")[0] not in self.seen:
                path.unlink()
