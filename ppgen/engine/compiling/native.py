"""Compiled code kept across runs: found by all that it depends on, and loaded without Inductor.

A file is one library with Inductor's C++ wrapper and kernels in it. Its name has a hash of the graph, the inputs'
layouts, versions, processor and compiler; and one of its own bytes, so that what was cut short is not loaded. It
appears by a rename, so that two processes may write the same.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

BYTES = 2**28  # of all files, at most; those that were loaded longest ago go first
_ENTRY = "inductor_entry_cpp"
_LOADED: dict[str, Callable[..., Any]] = {}


def key_of(graph: fx.GraphModule, inputs: Sequence[Tensor], settings: str = "") -> str:
    """What the compiled code of a graph is found by; "" where the graph holds tensors of its own.

    >>> from torch.fx.experimental.proxy_tensor import make_fx
    >>> graph = make_fx(torch.sin)(torch.ones(3))
    >>> key_of(graph, [torch.ones(3)]) == key_of(graph, [torch.ones(4)])
    False
    """
    if any(n.op == "get_attr" for n in graph.graph.nodes):
        return ""
    layouts = [(tuple(t.shape), t.stride(), t.dtype, t.device) for t in inputs]
    told = sorted(f"{k}={v}" for k, v in os.environ.items() if k.startswith("TORCHINDUCTOR_") and "CACHE_DIR" not in k)
    parts = [graph.code, layouts, settings, told, torch.get_num_threads(), *machine(os.environ.get("CXX", ""))]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:40]


@lru_cache
def machine(compiler: str) -> tuple[str, ...]:
    """Versions and processor."""
    known = Path("/proc/cpuinfo")
    flags = known.read_text().partition("\n\n")[0] if known.is_file() else platform.processor()
    lines = [x for x in flags.splitlines() if x.startswith(("flags", "Features", "model name"))] or [flags]
    return (compiler, torch.__version__, sys.version, torch.backends.cpu.get_cpu_capability(), *lines)


def folder() -> Path:
    """Of the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ppgen" / "native"


def is_known(key: str) -> bool:
    """Whether there is code under this key."""
    return bool(key) and (key in _LOADED or _file(key) is not None)


def load(key: str) -> Callable[..., Any] | None:
    """The C++ function under a key; None where there is none, or it is damaged or another user's."""
    if key in _LOADED or not key:
        return _LOADED.get(key)
    file = checked(key)
    if file is None:
        return None
    try:
        # As Inductor does before it loads what it has built.
        address = torch._C._dynamo.guards._torchinductor_pyobject_tensor_data_ptr  # type: ignore[attr-defined]
        os.environ["_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"] = str(address)
        spec = importlib.util.spec_from_file_location(f"{key}.{_ENTRY}", file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except (OSError, ImportError, AttributeError):
        return None
    _LOADED[key] = getattr(module, _ENTRY)
    return _LOADED[key]


def checked(key: str) -> Path | None:
    """The library under a key, as loaded now; None where there is none, or it is damaged or another user's."""
    file = _file(key)
    if file is None:
        return None
    with suppress(OSError):
        owned = not hasattr(os, "getuid") or file.stat().st_uid == os.getuid()
        if owned and hashlib.sha256(file.read_bytes()).hexdigest()[:16] == file.suffixes[-2][1:]:
            os.utime(file)
            return file
    return None


def keep(key: str, entry: Callable[..., Any]) -> None:
    """Copies the library that a function of Inductor's comes from; where it cannot be, the next run compiles again."""
    built = getattr(getattr(entry, "__self__", None), "__file__", None)
    if not key or built is None:
        return
    with suppress(OSError):
        put(key, Path(built).read_bytes())


def put(key: str, content: bytes) -> Path | None:
    """Writes a library under a key; None where that cannot be."""
    with suppress(OSError):
        folder().mkdir(parents=True, exist_ok=True)
        file = folder() / f"{key}.{hashlib.sha256(content).hexdigest()[:16]}.so"
        temporary = file.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_bytes(content)
        os.replace(temporary, file)
        with suppress(OSError):  # another process may make room as well
            for other in folder().glob(f"{key}.*.so"):  # a damaged one would be found first
                if other != file:
                    other.unlink(missing_ok=True)
            _make_room()
        return file
    return None


def pace() -> float:
    """How much longer the last compilation on this machine took than thought; 1 where there was none."""
    with suppress(OSError, ValueError):
        return min(max(float((folder() / "pace").read_text()), 0.1), 10.0)
    return 1.0


def keep_pace(ratio: float) -> None:
    """For `pace` of later runs."""
    with suppress(OSError):
        folder().mkdir(parents=True, exist_ok=True)
        (folder() / "pace").write_text(f"{ratio:.3g}")


def _file(key: str) -> Path | None:
    return next(folder().glob(f"{key}.*.so"), None)


def _make_room() -> None:
    files = sorted((f.stat().st_mtime, f.stat().st_size, f) for f in folder().glob("*.so"))
    excess = sum(size for _, size, _ in files) - BYTES
    for _, size, file in files:
        if excess <= 0:
            return
        file.unlink(missing_ok=True)
        excess -= size
