"""The Python values that a program reads: a recorded run holds them as they were, and is made anew when one changes.

Read are closures, globals, defaults, bound objects and their attributes, containers of them, modules with their parts.
Of a tensor it matters which one it is; its content does not, for a recorded run reads it in place.
"""

from __future__ import annotations

import functools
import itertools
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyro
import pyro.nn
from pyro import poutine
from torch import Tensor, nn

from ppgen.pyro_compat.arguments import SCALARS, SMALL

MOST = 1000  # values; of what lies beyond them a change is seen by the regular comparison only
INTERNAL = {k for k in vars(pyro.nn.PyroModule()) if k != "training"}
MADE_AT_EACH_CALL = (poutine.Trace, pyro.plate)  # autoguides keep what they last made


class Watched:
    """The values that some functions and objects read, as they are now.

    Args:
        holder: the functions and objects by name; that they are the same is watched as well.
        names: which of them; all if left out.
        objects: others.
    """

    def __init__(self, holder: dict[str, Any], names: Iterable[str] = (), objects: Iterable[Any] = ()):
        self._entries: list[tuple[Any, Any, Any, str]] = []  # dict, key, value, name
        self._elements: list[tuple[list, int, Any, str]] = []
        self._cells: list[tuple[Any, Any, str]] = []
        self._sizes: list[tuple[Any, int, str]] = []
        self._arrays: list[tuple[np.ndarray, bytes, str]] = []
        self._seen: dict[int, Any] = {}
        self._shapes: list[tuple[Tensor, Any, str]] = []
        roots = [v for v, _ in self._items(holder, tuple(names or holder), "")]
        todo = [(v, getattr(v, "__name__", type(v).__name__)) for v in (*roots, *objects)]
        while todo:
            value, name = todo.pop(0)
            if id(value) in self._seen or isinstance(value, SCALARS):
                continue
            self._seen[id(value)] = value
            if isinstance(value, Tensor):
                self._shapes.append((value, value.shape, name))
            else:
                todo += self._parts(value, name)

    def changed(self) -> str | None:
        """The name of a value that is another one now, or None."""
        for container, key, value, name in self._entries:
            if (now := container.get(key)) is not value and _other(now, value):
                return name
        for elements, index, value, name in self._elements:
            now = elements[index] if index < len(elements) else None
            if now is not value and _other(now, value):
                return name
        for cell, value, name in self._cells:
            if (now := _content(cell)) is not value and _other(now, value):
                return name
        for container, size, name in self._sizes:
            if len(container) != size:
                return name
        for tensor, shape, name in self._shapes:
            if tensor.shape != shape:
                return name
        return next((name for array, content, name in self._arrays if array.tobytes() != content), None)

    def restore(self) -> None:
        """Puts back what a run has changed, as far as it was there before."""
        for container, key, value, _ in self._entries:
            if container.get(key) is not value and isinstance(container, dict):
                container[key] = value
        for cell, value, _ in self._cells:
            if _content(cell) is not value:
                cell.cell_contents = value
        for container, size, _ in self._sizes:
            if isinstance(container, list):
                del container[size:]

    def tensors(self) -> list[Tensor]:
        """The tensors among them."""
        return [t for t, _, _ in self._shapes]

    # -- what is read ------------------------------------------------------------------------------

    def _parts(self, value: Any, name: str) -> Iterator[tuple[Any, str]]:
        if len(self._entries) > MOST:
            return
        if isinstance(value, types.FunctionType):
            yield from self._function(value)
        elif isinstance(value, types.MethodType):
            yield from ((value.__func__, name), (value.__self__, type(value.__self__).__name__))
        elif isinstance(value, functools.partial):
            yield from ((v, name) for v in (value.func, *value.args, *value.keywords.values()))
        elif isinstance(value, nn.Module):
            yield from self._module(value, name)
        elif isinstance(value, dict):
            self._sizes.append((value, len(value), name))
            yield from self._items(value, list(value), name)
        elif isinstance(value, list):
            self._sizes.append((value, len(value), name))
            yield from self._items(value, range(len(value)), name)
        elif isinstance(value, (tuple, frozenset)):
            yield from ((v, name) for v in value)
        elif isinstance(value, np.ndarray):
            if value.nbytes <= SMALL:
                self._arrays.append((value, value.tobytes(), name))
        elif isinstance(value, (set, type, types.ModuleType)):
            return
        elif hasattr(value, "__dict__"):
            own, home = vars(value), type(value).__module__
            # What a library's object keeps is its own matter; but Pyro's handlers hold programs and data.
            whole = _written_by_the_author(home) or home.startswith("pyro.poutine")
            keys = [k for k, v in own.items() if whole or isinstance(v, (*SCALARS, Tensor)) and k[0] != "_"]
            yield from self._items(own, keys, name)
            yield from self._class(type(value))

    def _function(self, fn: types.FunctionType) -> Iterator[tuple[Any, str]]:
        for key, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=False):
            self._cells.append((cell, _content(cell), key))
            yield _content(cell), key
        yield from ((v, fn.__name__) for v in (*(fn.__defaults__ or ()), *(fn.__kwdefaults__ or {}).values()))
        if not _written_by_the_author(fn.__globals__.get("__name__", "")):  # __module__ may be copied by a decorator
            return
        names = set(_names(fn.__code__))
        yield from self._items(fn.__globals__, [n for n in names if n in fn.__globals__], "")
        for module in (fn.__globals__.get(n) for n in names):
            if isinstance(module, types.ModuleType) and _written_by_the_author(module.__name__):
                yield from self._items(vars(module), [n for n in names if n in vars(module)], module.__name__)

    def _module(self, module: nn.Module, name: str) -> Iterator[tuple[Any, str]]:
        own = vars(module)
        for part in ("_forward_hooks", "_forward_pre_hooks"):
            self._sizes.append((own[part], len(own[part]), f"a hook of {name}"))
        for part in ("_parameters", "_buffers", "_modules"):
            self._sizes.append((own[part], len(own[part]), name))
            yield from self._items(own[part], list(own[part]), name)
        simple = [k for k, v in own.items() if isinstance(v, (*SCALARS, types.FunctionType, types.MethodType))]
        whole = list(own) if _written_by_the_author(type(module).__module__) else simple
        keys = [k for k in whole if k not in INTERNAL and not k.startswith("_pyro")]
        yield from self._items(own, keys, name)
        yield from self._class(type(module))

    def _class(self, cls: type) -> Iterator[tuple[Any, str]]:
        """Methods and constants of a class that the author wrote."""
        for c in cls.__mro__:
            if id(c) in self._seen or not _written_by_the_author(c.__module__):
                continue
            self._seen[id(c)] = c
            for key, v in vars(c).items():
                v = v.__func__ if isinstance(v, (staticmethod, classmethod)) else v
                v = v.fget if isinstance(v, property) else v
                if isinstance(v, types.FunctionType):
                    yield v, key
                elif isinstance(v, SCALARS) and not key.startswith("__"):
                    self._entries.append((vars(c), key, v, f"{c.__name__}.{key}"))

    def _items(self, container: Any, keys: Iterable[Any], name: str) -> Iterator[tuple[Any, str]]:
        for key in itertools.islice(keys, MOST):
            value = container[key]
            if isinstance(value, (types.ModuleType, type, *MADE_AT_EACH_CALL)):
                continue
            path = f"{name}.{key}" if name and isinstance(key, str) else f"{name}[{key}]" if name else str(key)
            (self._elements if isinstance(container, list) else self._entries).append((container, key, value, path))
            yield value, path


def _other(now: Any, before: Any) -> bool:
    """Whether two objects that are not the same differ: numbers and text by their value, methods by what they bind."""
    if isinstance(before, types.MethodType) and isinstance(now, types.MethodType):
        return now.__func__ is not before.__func__ or now.__self__ is not before.__self__
    return type(now) is not type(before) or not isinstance(now, SCALARS) or not (now == before or now != now)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not yet bound
        return None


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


@functools.cache
def _written_by_the_author(module: str) -> bool:
    """Whether a module is neither Python's nor an installed library's nor ppgen's."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if module in sys.builtin_module_names or module.split(".")[0] in ("ppgen", "pyro", "torch"):
        return False
    return file is None or "site-packages" not in file and not file.startswith(sysconfig.get_path("stdlib"))
