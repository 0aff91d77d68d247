"""Writing and reading files that are never half there and never run code: atomic, JSON and safetensors."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ppgen.errors import PpgenError, reason


def write_atomic(path: str | Path, content: bytes | str) -> None:
    """Writes a temporary file beside `path`, syncs it and renames it: `path` is the old file or the new one."""
    path = Path(path)
    if isinstance(content, str):
        content = content.encode()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as e:
        raise PpgenError(f"{path} could not be written: {e.strerror or e}; choose another place, or free some") from e
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: str | Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, indent=2) + "\n")


def read_json(path: str | Path) -> Any:
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError as e:
        raise PpgenError(f"there is no file {path}; is it a run folder?") from e
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise PpgenError(f"{path} is no JSON ({reason(e)}); it is damaged: restore it, or fit again") from e


def write_tree(path: str | Path, tree: Any) -> None:
    """Saves a tree of dicts, lists, numbers, strings and tensors as one safetensors file, atomically.

    Tensors are safetensors entries; the rest of the tree stands as JSON in the file's header.
    """
    tensors: dict[str, Tensor] = {}
    skeleton = _pack(tree, "", tensors)
    write_atomic(path, save(tensors, metadata={"tree": json.dumps(skeleton)}))


def read_tree(path: str | Path) -> Any:
    """Reads what `write_tree` saved; nothing in the file is ever executed."""
    try:
        with safe_open(str(path), framework="pt") as f:
            skeleton = json.loads((f.metadata() or {})["tree"])
            tensors = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118 - not a dict
        return _unpack(skeleton, tensors)
    except FileNotFoundError as e:
        raise PpgenError(f"there is no file {path}; is it a run folder?") from e
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError, OSError) as e:
        raise PpgenError(f"{path} is no file of ppgen's, or is damaged ({reason(e)}); restore it, or fit again") from e


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
    """Writes an xarray DataTree as netCDF: a temporary file beside `path`, renamed once it is whole."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        tree.to_netcdf(temporary, engine="h5netcdf")
        os.replace(temporary, path)
    except OSError as e:
        raise PpgenError(f"{path} could not be written: {e.strerror or e}; choose another place, or free some") from e
    finally:
        temporary.unlink(missing_ok=True)


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
