"""Writing and reading files that are never half there, never run code, and tell when they were damaged.

A safetensors file written here has in its header the SHA-256 of the file, taken with zeros in the digest's place. It
stands within the file, so that the two are replaced together.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ppgen.errors import PpgenError, reason
from ppgen.memory import require_memory


def write_atomic(path: str | Path, content: bytes | memoryview | str) -> None:
    """Writes a temporary file beside `path`, syncs it and renames it: `path` is the old file or the new one."""
    path = Path(path)
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as e:
        raise PpgenError(f"{path} could not be written: {e.strerror}; choose another place, or free some") from e
    finally:
        with suppress(OSError):
            temporary.unlink()


def make_folder(path: Path, what: str = "the folder") -> None:
    """Makes a folder and those that it stands in; refuses where it cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise PpgenError(f"{what} {path} could not be made: {e.strerror}; choose another place") from e


def _sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str | Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=2) + "\n")


def write_csv(path: str | Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    write_atomic(path, text.getvalue())


def read_json(path: str | Path) -> Any:
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError as e:
        raise PpgenError(f"there is no file {path}; is it a run folder?") from e
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as e:
        raise PpgenError(f"{path} is no JSON ({reason(e)}); it is damaged: restore it, or fit again") from e


def write_tree(path: str | Path, tree: Any) -> None:
    """Saves a tree of dicts, lists, numbers, strings and tensors as one safetensors file, atomically."""
    write_atomic(path, tree_bytes(tree))


def tree_bytes(tree: Any) -> bytes:
    """What `write_tree` writes: tensors are safetensors entries; the rest stands as JSON in the file's header."""
    tensors: dict[str, Tensor] = {}
    skeleton = _pack(tree, "", tensors)
    content = save(tensors, metadata={"tree": f"{_ZEROS} {json.dumps(skeleton)}"})
    digest = hashlib.sha256(content).hexdigest().encode()
    return _DIGEST.sub(digest, content, count=1)


def read_tree(path: str | Path) -> Any:
    """Reads what `write_tree` saved; nothing in the file is ever executed."""
    try:
        with safe_open(str(path), framework="pt") as f:
            header = (f.metadata() or {})["tree"]
            digest, _, text = ("", "", header) if header.startswith("{") else header.partition(" ")  # "": of 0.1
            if digest and digest != _digest(path):
                raise ValueError("its bytes are not those that were written")
            skeleton = json.loads(text)
            tensors = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118 - not a dict
        return _unpack(skeleton, tensors)
    except FileNotFoundError as e:
        raise PpgenError(f"there is no file {path}; is it a run folder?") from e
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError, OSError, RecursionError) as e:
        raise PpgenError(f"{path} is no file of ppgen's, or is damaged ({reason(e)}); restore it, or fit again") from e


_ZEROS = 64 * "0"
_DIGEST = re.compile(rb'(?<="tree":")[0-9a-f]{64}(?= )')  # within a JSON string the quotes have backslashes


def _digest(path: str | Path) -> str:
    """The SHA-256 of a safetensors file with zeros in place of the digest in its header."""
    found = hashlib.sha256()
    with open(path, "rb") as f:
        length = f.read(8)
        found.update(length)
        found.update(_DIGEST.sub(_ZEROS.encode(), f.read(int.from_bytes(length, "little")), count=1))
        while part := f.read(2**20):
            found.update(part)
    return found.hexdigest()


def _pack(tree: Any, key: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, Tensor):
        key = key or "tensor"
        tensors[key] = tree.detach().cpu().contiguous().clone()
        return {"tensor": key}
    if isinstance(tree, np.ndarray):
        return {"array": _pack(torch.from_numpy(np.ascontiguousarray(tree)), key, tensors)}
    if isinstance(tree, dict):
        return {"dict": [[k, _pack(v, f"{key}/{k}" if key else str(k), tensors)] for k, v in tree.items()]}
    if isinstance(tree, (list, tuple)):
        items = [_pack(v, f"{key}/{i}", tensors) for i, v in enumerate(tree)]
        return {"tuple" if isinstance(tree, tuple) else "list": items}
    return {"value": tree}


def _unpack(node: Any, tensors: dict[str, Tensor]) -> Any:
    ((kind, value),) = node.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "array":
        return _unpack(value, tensors).numpy()
    if kind == "dict":
        return {k: _unpack(v, tensors) for k, v in value}
    if kind in ("list", "tuple"):
        items = [_unpack(v, tensors) for v in value]
        return tuple(items) if kind == "tuple" else items
    return value


def write_netcdf(path: str | Path, tree: Any) -> None:
    """Writes an xarray DataTree as netCDF, atomically.

    It is put together in memory: HDF5 ends the process where a disk is full.
    """
    require_memory(tree.nbytes, f"what is written to {path}", "take fewer draws, or fewer rows")
    write_atomic(path, tree.to_netcdf(engine="h5netcdf"))


def read_netcdf(path: str | Path) -> Any:
    """Reads a DataTree with a group posterior, whole."""
    from xarray import load_datatree

    try:
        tree = load_datatree(path, engine="h5netcdf")
    except FileNotFoundError as e:
        raise PpgenError(f"there is no file {path}; name a netCDF file, such as the posterior.nc of a run") from e
    except (OSError, ValueError) as e:
        raise PpgenError(f"{path} cannot be read as netCDF ({reason(e)}); name a posterior.nc") from e
    if "posterior" not in tree.children:
        raise PpgenError(f"{path} has no group posterior; name a file that ppgen diagnose or ppgen mcmc wrote")
    return tree
