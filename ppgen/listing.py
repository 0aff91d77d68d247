"""What files say of themselves, read without running them: `ppgen list` answers before torch could be imported."""

from __future__ import annotations

import ast
import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Any


def names(package: str) -> list[str]:
    """The modules of a package whose names begin with no underscore.

    >>> names("ppgen.inference.gradients")
    ['enumerated', 'pathwise', 'score', 'sticking']
    """
    return sorted(p.stem for p in _folder(package).glob("*.py") if not p.name.startswith("_"))


def first_line(package: str, file: str) -> str:
    """Of a module's docstring."""
    return (ast.get_docstring(_read(package, file)) or "").split("\n")[0]


def constant(package: str, file: str, name: str) -> Any:
    """What a module gives a name; of a call its keywords.

    >>> constant("ppgen.inference.sampling.kernels", "nuts", "DEFAULTS")
    {'chains': 4, 'draws': 1000, 'warmup': 500}
    """
    body = _read(package, file).body
    (value,) = (n.value for n in body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == name)
    if isinstance(value, ast.Call):
        return {str(k.arg): ast.literal_eval(k.value) for k in value.keywords}
    return ast.literal_eval(value)


@lru_cache
def _read(package: str, file: str) -> ast.Module:
    return ast.parse((_folder(package) / f"{file}.py").read_text(encoding="utf-8"))


def _folder(package: str) -> Path:
    """Where a package of ppgen lies, of which ppgen alone is imported: models/ and inference/ lie elsewhere."""
    top, rooms = package.split(".")[:2], package.split(".")[2:]
    spec = importlib.util.find_spec(".".join(top))
    assert spec is not None and spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations)), *rooms)
