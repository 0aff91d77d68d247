"""Arguments of a program that are no single tensor: what is passed through as it is, and tensors inside containers.

A program's data are a flat mapping of names. Numbers, words, None, functions and any object that no tensor holds stand
in it as they are: constants. A dict, a tuple or a list with tensors inside is taken apart: its tensors are columns,
named `batch[x]` or `xs[0]`, and under its own name stands a `Nested`, which puts it together again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

_LITERALS = (bool, int, float, str, type(None))


class _Leaf(NamedTuple):
    """The place of a column in a container."""

    column: str


class Nested:
    """A container whose tensors are columns of their own.

    Attributes:
        tree: the container, with the columns' names where its tensors stood.
    """

    def __init__(self, tree: Any):
        self.tree = tree

    def filled(self, data: Mapping[str, Any]) -> Any:
        """The container, with the tensors of these data in it."""
        return _mapped(self.tree, lambda leaf, _: data[leaf.column] if isinstance(leaf, _Leaf) else leaf)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Nested) and bool(self.tree == other.tree)

    def __repr__(self) -> str:
        return f"Nested({self.tree!r})"

    __hash__ = None  # type: ignore[assignment]


def is_literal(value: Any) -> bool:
    """Whether it is a number, a word or None of Python's own: what is written down as it is."""
    return type(value) in _LITERALS


def tensors(data: Mapping[str, Any]) -> dict[str, Tensor]:
    """The columns, without the constants."""
    return {k: v for k, v in data.items() if isinstance(v, Tensor)}


def is_container(value: Any) -> bool:
    """Whether tensors inside it are columns."""
    return isinstance(value, dict | list | tuple) and not isinstance(value, PackedSequence)


def holds_tensors(value: Any) -> bool:
    """Whether a container has a tensor in it, however deep."""
    if is_container(value):
        return any(map(holds_tensors, value.values() if isinstance(value, dict) else value))
    return isinstance(value, Tensor)


def taken_apart(name: str, value: Any, tensor: Callable[[str, Any], Any]) -> dict[str, Any]:
    """A container -> its columns by name, and under its own name how to put it together.

    Args:
        tensor: makes a column of what is no container; what it leaves as it is, stays inside.
    """
    columns: dict[str, Any] = {}

    def leaf(x: Any, path: str) -> Any:
        made = tensor(path, x)
        if isinstance(made, Tensor):
            columns[path] = made
            return _Leaf(path)
        return made

    tree = _mapped(value, leaf, name)
    return {**columns, name: Nested(tree)}


def put_together(data: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments as a program takes them."""
    return {
        k: v.filled(data) if isinstance(v, Nested) else v for k, v in data.items() if argument_of(k, data) == k
    }  # fmt: skip


def argument_of(column: str, data: Mapping[str, Any]) -> str:
    """The argument that a column belongs to: itself, or the container that it was taken out of.

    >>> argument_of("batch[x]", {"batch": Nested({}), "batch[x]": 0})
    'batch'
    """
    argument = column.partition("[")[0]
    return argument if isinstance(data.get(argument), Nested) else column


def _mapped(value: Any, f: Callable[[Any, str], Any], path: str = "") -> Any:
    """The container with f(leaf, its name) in place of each leaf."""
    if isinstance(value, _Leaf) or not is_container(value):
        return f(value, path)
    if isinstance(value, dict):
        items = {k: _mapped(v, f, f"{path}[{k}]") for k, v in value.items()}
        return items if type(value) is dict else _like(value, items)
    made = [_mapped(v, f, f"{path}[{i}]") for i, v in enumerate(value)]
    if hasattr(value, "_fields"):
        return type(value)(*made)
    return made if type(value) is list else type(value)(made)


def _like(value: dict, items: dict) -> dict:
    copy = value.copy()  # a defaultdict, an OrderedDict: with what it knows besides
    copy.update(items)
    return copy
