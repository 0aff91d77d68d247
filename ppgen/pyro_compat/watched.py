"""The Python values that a program reads: a recorded run holds them as they were, and is made anew when one changes.

Read are closures, globals, defaults, bound objects and their attributes, containers of them, modules with their parts.
Of a tensor it matters which one it is; its content does not, for a recorded run reads it in place.
"""

from __future__ import annotations

import argparse
import collections
import dis
import functools
import operator
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

MISSING = object()
LONG = 100  # entries of a dict, from which on they are compared as a whole
METHODS = (types.FunctionType, staticmethod, classmethod)
NAMESPACES = (types.SimpleNamespace, argparse.Namespace, functools.partial)  # of libraries, what they keep is not
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
        self._rows: list[tuple[Any, tuple, str]] = []  # lists and what else has an order
        self._sets: list[tuple[set, frozenset, str]] = []
        self._cells: list[tuple[Any, Any, str]] = []
        self._sizes: list[tuple[Any, int, frozenset, str]] = []
        self._absent: dict[int, tuple[Any, set[str], str]] = {}  # names that were looked up in vain
        self._arrays: list[tuple[np.ndarray, bytes, str]] = []
        self._seen: dict[int, Any] = {}
        self._classes: dict[int, type] = {}  # by their namespaces
        self._shapes: list[tuple[Tensor, Any, str]] = []
        roots = [v for v, _ in self._items(holder, tuple(names or holder), "")]
        todo = collections.deque((v, getattr(v, "__name__", type(v).__name__)) for v in (*roots, *objects))
        while todo:
            value, name = todo.popleft()
            if isinstance(value, SCALARS) or id(value) in self._seen:
                continue
            self._seen[id(value)] = value
            if isinstance(value, Tensor):
                self._shapes.append((value, value.shape, name))
            elif len(self._entries) + len(self._rows) + len(self._cells) <= MOST:
                todo.extend(self._parts(value, name))

    def changed(self) -> str | None:
        """The name of a value that is another one now, or None."""
        for container, key, value, name in self._entries:
            if (now := container.get(key, MISSING)) is not value and _other(now, value):
                return name
        for cell, value, name in self._cells:
            if (now := _content(cell)) is not value and _other(now, value):
                return name
        for container, size, _, name in self._sizes:
            if len(container) != size:
                return name
        for keys, absent, name in self._absent.values():
            if not keys.isdisjoint(absent):
                return name + min(absent.intersection(keys))
        for tensor, shape, name in self._shapes:
            if tensor.shape != shape:
                return name
        return self._changed_content() if self._rows or self._sets or self._arrays else None

    def _changed_content(self) -> str | None:
        for row, values, name in self._rows:
            if len(row) != len(values):
                return name
            if not all(map(operator.is_, row, values)):
                others = (i for i, (a, b) in enumerate(zip(row, values, strict=True)) if a is not b and _other(a, b))
                if (i := next(others, None)) is not None:
                    return f"{name}[{i}]"
        for elements, before, name in self._sets:
            if elements != before:
                return name
        return next((name for array, content, name in self._arrays if array.tobytes() != content), None)

    def restore(self) -> None:
        """Puts back what a run has changed, as far as it was there before."""
        for container, key, value, _ in self._entries:
            if container.get(key, MISSING) is not value:
                self._put(container, key, value)
        for container, size, keys, _ in self._sizes:
            if len(container) != size:
                for key in [k for k in container if k not in keys]:
                    self._put(container, key, MISSING)
        for cell, value, _ in self._cells:
            if (now := _content(cell)) is not value:
                _fill(cell, now, value)
        for row, values, _ in self._rows:
            if isinstance(row, (list, collections.deque)) and [*map(id, row)] != [*map(id, values)]:
                row.clear()
                row.extend(values)
        for elements, before, _ in self._sets:
            if elements != before:
                elements.clear()
                elements.update(before)

    def _put(self, container: Any, key: Any, value: Any) -> None:
        """An entry as it was; a class gives a view of its own only."""
        owner = self._classes.get(id(container))
        if isinstance(container, dict):
            container.pop(key, None) if value is MISSING else container.__setitem__(key, value)
        elif owner is not None:
            type.__delattr__(owner, key) if value is MISSING else type.__setattr__(owner, key, value)

    def tensors(self) -> list[Tensor]:
        """The tensors among them."""
        return [t for t, _, _ in self._shapes]

    # -- what is read ------------------------------------------------------------------------------

    def _parts(self, value: Any, name: str) -> Iterator[tuple[Any, str]]:
        if isinstance(value, types.FunctionType):
            yield from self._function(value)
        elif isinstance(value, types.MethodType):
            yield from ((value.__func__, name), (value.__self__, type(value.__self__).__name__))
        elif isinstance(value, functools.partial):
            yield from ((v, name) for v in (value.func, *value.args, *value.keywords.values()))
            yield from self._object(value, name)
        elif isinstance(value, nn.Module):
            yield from self._module(value, name)
        elif isinstance(value, type):
            yield from self._class(value)
        elif isinstance(value, np.ndarray):
            if value.nbytes <= SMALL:
                self._arrays.append((value, value.tobytes(), name))
        elif not isinstance(value, types.ModuleType):
            yield from self._elements(value, name)
            yield from self._object(value, name)

    def _elements(self, value: Any, name: str) -> Iterator[tuple[Any, str]]:
        """What a container holds."""
        if isinstance(value, (dict, types.MappingProxyType)):
            if len(value) > LONG:
                self._rows.append((value.keys(), tuple(value), name))
                self._rows.append((value.values(), tuple(value.values()), name))
                yield from ((v, name) for v in value.values())
            else:
                self._size(value, name)
                yield from self._items(value, list(value), name)
        elif isinstance(value, (list, collections.deque)):
            self._rows.append((value, tuple(value), name))
            yield from ((v, f"{name}[{i}]") for i, v in enumerate(value) if not isinstance(v, SCALARS))
        elif isinstance(value, (tuple, frozenset, set)):
            if isinstance(value, set):
                self._sets.append((value, frozenset(value), name))
            yield from ((v, name) for v in value)

    def _object(self, value: Any, name: str) -> Iterator[tuple[Any, str]]:
        """Attributes. What a library's object keeps is its own matter; but Pyro's handlers hold programs and data."""
        own, home = getattr(value, "__dict__", None), type(value).__module__
        authors = _written_by_the_author(home) or isinstance(value, NAMESPACES)
        if isinstance(own, dict):
            if authors:
                self._size(own, name)
            whole = authors or home.startswith("pyro.poutine")
            keys = [k for k, v in own.items() if whole or isinstance(v, (*SCALARS, Tensor)) and k[0] != "_"]
            yield from self._items(own, keys, name)
        if authors:
            yield from self._slots(value, name)
            yield from self._class(type(value))

    def _slots(self, value: Any, name: str) -> Iterator[tuple[Any, str]]:
        slotted = [c for c in type(value).__mro__ if "__slots__" in vars(c)]  # a class in C has members of other use
        for key, slot in ((k, v) for c in slotted for k, v in vars(c).items()):
            if isinstance(slot, types.MemberDescriptorType):
                cell = _Slot(value, slot)
                self._cells.append((cell, _content(cell), f"{name}.{key}"))
                yield _content(cell), f"{name}.{key}"

    def _function(self, fn: types.FunctionType) -> Iterator[tuple[Any, str]]:
        for key, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=False):
            self._cells.append((cell, _content(cell), key))
            yield _content(cell), key
        yield from ((v, fn.__name__) for v in (*(fn.__defaults__ or ()), *(fn.__kwdefaults__ or {}).values()))
        home = fn.__globals__.get("__name__", "")  # __module__ may be copied by a decorator, from the author's function
        if _written_by_the_author(home) or _written_by_the_author(fn.__module__ or ""):
            self._size(vars(fn), fn.__name__)
            yield from self._items(vars(fn), list(vars(fn)), fn.__name__)
        if not _written_by_the_author(home):
            return
        codes = list(_codes(fn.__code__))
        own, names, texts = _globals(codes), {n for c in codes for n in c.co_names}, _texts(codes)
        yield from self._looked_up(fn.__globals__, own | texts if {"globals", "eval"} & own else own, "")
        for module in [fn.__globals__.get(n) for n in own]:
            if isinstance(module, types.ModuleType) and _written_by_the_author(module.__name__):
                reads = names | texts if {"getattr", "hasattr", "vars"} & own else names
                yield from self._looked_up(vars(module), reads, f"{module.__name__}.")

    def _looked_up(self, space: dict[str, Any], names: set[str], prefix: str) -> Iterator[tuple[Any, str]]:
        """Names in a module, and that others are not there."""
        _, absent, _ = self._absent.setdefault(id(space), (space.keys(), set(), prefix))
        absent |= names - space.keys()
        yield from self._items(space, [n for n in names if n in space], prefix[:-1])

    def _module(self, module: nn.Module, name: str) -> Iterator[tuple[Any, str]]:
        own = vars(module)
        self._size(own, name)
        for part in ("_forward_hooks", "_forward_pre_hooks"):
            self._size(own[part], f"a hook of {name}")
        for part in ("_parameters", "_buffers", "_modules"):
            self._size(own[part], name)
            yield from self._items(own[part], list(own[part]), name)
        simple = [k for k, v in own.items() if isinstance(v, (*SCALARS, types.FunctionType, types.MethodType))]
        whole = list(own) if _written_by_the_author(type(module).__module__) else simple
        keys = [k for k in whole if k not in INTERNAL and not k.startswith("_pyro")]
        yield from self._items(own, keys, name)
        yield from self._class(type(module))

    def _class(self, cls: type) -> Iterator[tuple[Any, str]]:
        """Methods and other attributes of a class that the author wrote."""
        for c in cls.__mro__:
            if c in self._classes.values() or not _written_by_the_author(c.__module__):
                continue
            space = vars(c)
            self._classes[id(space)] = c
            self._size(space, c.__name__)
            keys = [k for k, v in space.items() if not k.startswith("__") or isinstance(v, METHODS)]
            for v, path in self._items(space, keys, c.__name__):
                v = v.__func__ if isinstance(v, (staticmethod, classmethod)) else v
                v = v.func if isinstance(v, functools.cached_property) else v
                yield v.fget if isinstance(v, property) else v, path

    def _size(self, container: Any, name: str) -> None:
        self._sizes.append((container, len(container), frozenset(container), name))

    def _items(self, container: Any, keys: Iterable[Any], name: str) -> Iterator[tuple[Any, str]]:
        for key in keys:
            value = container[key]
            if isinstance(value, MADE_AT_EACH_CALL):
                continue
            path = f"{name}.{key}" if name and isinstance(key, str) else f"{name}[{key}]" if name else str(key)
            self._entries.append((container, key, value, path))
            yield value, path


class _Slot:
    """An attribute that has a slot, in place of a dict's entry, as a cell."""

    def __init__(self, owner: Any, descriptor: types.MemberDescriptorType):
        self.owner, self.descriptor = owner, descriptor

    @property
    def cell_contents(self) -> Any:
        return self.descriptor.__get__(self.owner)

    @cell_contents.setter
    def cell_contents(self, value: Any) -> None:
        self.descriptor.__set__(self.owner, value)

    @cell_contents.deleter
    def cell_contents(self) -> None:
        self.descriptor.__delete__(self.owner)


def _other(now: Any, before: Any) -> bool:
    """Whether two objects that are not the same differ: numbers and text by their value, methods by what they bind."""
    if isinstance(before, types.MethodType) and isinstance(now, types.MethodType):
        return now.__func__ is not before.__func__ or now.__self__ is not before.__self__
    return type(now) is not type(before) or not isinstance(now, SCALARS) or not (now == before or now != now)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except (ValueError, AttributeError):  # not yet bound
        return MISSING


def _fill(cell: Any, now: Any, value: Any) -> None:
    if value is not MISSING:
        cell.cell_contents = value
    elif now is not MISSING:
        del cell.cell_contents


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """Code, and that of the functions within."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _globals(codes: list[types.CodeType]) -> set[str]:
    lines = (i for c in codes for i in dis.get_instructions(c))
    return {i.argval for i in lines if "GLOBAL" in i.opname or i.opname == "LOAD_NAME"}


def _texts(codes: list[types.CodeType]) -> set[str]:
    """Texts that could be names."""
    return {t for c in codes for t in c.co_consts if isinstance(t, str) and t.isidentifier()}


@functools.cache
def _written_by_the_author(module: str) -> bool:
    """Whether a module is neither Python's nor an installed library's nor ppgen's."""
    file = getattr(sys.modules.get(module), "__file__", None)
    if module in sys.builtin_module_names or module.split(".")[0] in ("ppgen", "pyro", "torch"):
        return False
    return file is None or "site-packages" not in file and not file.startswith(sysconfig.get_path("stdlib"))
