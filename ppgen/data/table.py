"""Columns by name, with the words behind the codes of those that were text."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

Words = Mapping[str, tuple[str, ...]]


class Table(dict[str, Any]):
    """Columns by name, and the words behind the codes of those that were text, in the order of the codes.

    >>> Table({"group": [1, 0]}, {"group": ["a", "b"]}).words
    {'group': ('a', 'b')}
    """

    def __init__(self, columns: Mapping[str, Any] | None = None, words: Words | None = None):
        super().__init__(columns or {})
        self.words = {name: tuple(own) for name, own in (words or {}).items() if name in self}

    def only(self, names: Collection[str]) -> Table:
        """The columns of these names, with their words."""
        return Table({k: v for k, v in self.items() if k in names}, self.words)
