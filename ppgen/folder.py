"""The alternatives of one kind, one a file of a folder: the folder is the list, and a name is a file's name."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Collection
from types import ModuleType
from typing import Any, NamedTuple

from ppgen.errors import PpgenError, nearest, require_known


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

    def named(self, spec: str) -> ModuleType:
        """The file of that name, or of that of a call.

        Raises:
            PpgenError: there is none.
        """
        known, name = self.names(), spec.partition("(")[0]
        require_known(self.kind, name, known)
        return importlib.import_module(f"{self.package}.{name}")


def call_of(spec: str, kind: str, example: str) -> tuple[str, dict[str, Any]]:
    """A name and its keywords.

    Raises:
        PpgenError: text that cannot be read.

    >>> call_of("renyi(alpha=0.3)", "objective", "renyi(alpha=0.3)")
    ('renyi', {'alpha': 0.3})
    """
    name, _, rest = spec.partition("(")
    try:
        call = ast.parse(spec if rest else f"{name}()", mode="eval").body
        assert isinstance(call, ast.Call) and not call.args
        return name, {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except (SyntaxError, ValueError, AssertionError) as e:
        raise PpgenError(
            f"the {kind} {spec!r} cannot be read; write a name, or a name with keywords as in {example}"
        ) from e


def require_options(kind: str, made: Callable, options: Collection[str], but: Collection[str]) -> None:
    """
    Args:
        but: the parameters that are no options.
    """
    known = [k for k in inspect.signature(made).parameters if k not in but]
    for key in options:
        if key not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise PpgenError(f"the {kind} has no option {key!r}{nearest(key, known)}; {has}")
