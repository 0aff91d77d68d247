"""The alternatives of one kind, one a file of a folder: the folder is the list, and a name is a file's name."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import NamedTuple

from ppgen.errors import PpgenError, nearest


class Folder(NamedTuple):
    """The files of a package; one whose name begins with an underscore is no alternative.

    Attributes:
        package: its `__name__`.
        kind: what each file is one of, for the message.

    >>> Folder("ppgen.inference.objectives", "objective").named("iwae").TERMS
    'drawn'
    """

    package: str
    kind: str

    def names(self) -> tuple[str, ...]:
        """The names of the files."""
        path = importlib.import_module(self.package).__path__
        return tuple(m.name for m in pkgutil.iter_modules(path) if not m.name.startswith("_"))

    def named(self, name: str) -> ModuleType:
        """The file of that name.

        Raises:
            PpgenError: there is none.
        """
        known = self.names()
        if name not in known:
            raise PpgenError(f"there is no {self.kind} {name!r}{nearest(name, known)}; they are {', '.join(known)}")
        return importlib.import_module(f"{self.package}.{name}")
