"""The rows of a run that set its program up again: columns, and constants as far as a file holds them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ppgen.data import Table, as_tensors, is_literal, put_together
from ppgen.errors import PpgenError
from ppgen.run.files import read_tree, write_tree

_OBJECTS = "[objects]"  # no name of a column


def write_example(path: Path, example: Mapping[str, Any]) -> None:
    """Saves the rows; of functions and other objects their arguments' names."""
    arguments = put_together(example)
    held = {k: v for k, v in arguments.items() if _is_data(v)}
    objects = [k for k in arguments if k not in held]
    write_tree(path, held | ({_OBJECTS: objects} if objects else {}))


def read_example(path: Path, given: Mapping[str, Any]) -> Table:
    """Reads what `write_example` saved.

    Args:
        given: arguments that no file holds, by name.
    """
    held = read_tree(path)
    objects = held.pop(_OBJECTS, []) if isinstance(held, dict) else []
    for name in objects:
        if name not in given:
            raise PpgenError(
                f"the run {path.parent} was given the argument {name!r} as an object, which no file holds; pass it: "
                f"Run.load(path, program, given={{{name!r}: ...}}), or bind it to the model before the fit "
                "(functools.partial)"
            )
    return as_tensors({**held, **{k: given[k] for k in objects}})


def _is_data(value: Any) -> bool:
    if type(value) is dict:
        return all(is_literal(k) and _is_data(v) for k, v in value.items())
    if type(value) in (list, tuple):
        return all(map(_is_data, value))
    return isinstance(value, Tensor) or is_literal(value)
