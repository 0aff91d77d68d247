"""Bounds on log p(x), one a file, found by the file's name: functions of the terms of K draws.

A file has

    SUMMARY     what it is, for `ppgen list`
    TERMS       which producer its terms come from: drawn, closed_form, summed, subsampled
    PATHWISE    whether every latent needs a reparametrization (optional)
    objective   (terms, setting) -> (target, bound): what is maximized, whose gradient is that of the (KL-weighted)
                bound, and the bound itself, both in nats over all N rows

Adding one is adding its file, and its row in the table of laws (tests/test_objectives.py).
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from ppgen.errors import PpgenError, nearest

__all__ = ["names", "named"]


def names() -> tuple[str, ...]:
    """The objectives: the files of this folder.

    >>> "iwae" in names()
    True
    """
    return tuple(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def named(name: str) -> ModuleType:
    """The objective of that name.

    Raises:
        PpgenError: there is none.
    """
    if name not in names():
        raise PpgenError(f"there is no objective {name!r}{nearest(name, names())}; they are {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")
