"""Whose code a line is: told by its module, wherever the file lies."""

from __future__ import annotations

import site
import sysconfig
from functools import lru_cache
from pathlib import Path
from types import FrameType

_TORCH = ("torch", "functorch")
_GENERATED = ("<eval_with_key>", "<string>", "<frozen", "<traced program>")


def owner(frame: FrameType) -> str:
    """The kind of a frame's code.

    Returns: "torch"; "library": Pyro's, ppgen's, whatever is installed; "model": of the catalogue; "own": the author's.

    >>> line = compile("__import__('sys')._getframe()", "my_model.py", "eval")
    >>> owner(eval(line, {"__name__": "my_model"}))
    'own'
    """
    if frame.f_code.co_filename.startswith(_GENERATED):
        return "torch"
    package = str(frame.f_globals.get("__package__") or frame.f_globals.get("__name__") or "")
    top = package.partition(".")[0]
    if top in _TORCH:
        return "torch"
    if package == "ppgen.models" or package.startswith("ppgen.models."):
        return "model"
    if top in ("ppgen", "pyro") or _installed(frame.f_code.co_filename):
        return "library"
    return "own"


@lru_cache(maxsize=1024)
def _installed(file: str) -> bool:
    """Whether it lies where Python or a package is installed."""
    path = Path(file)
    return any(path.is_relative_to(place) for place in _places())


@lru_cache(maxsize=1)
def _places() -> tuple[Path, ...]:
    paths = sysconfig.get_paths()
    found = [paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    return tuple(map(Path, [*found, site.getusersitepackages()]))
