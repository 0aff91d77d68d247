"""Values read from a file held against a dataclass: the first that is missing or of another type is named.

Types are those of the dataclass's fields: bool, int, float (an int is one), Count (an int of at least 1), str, None,
Any, other classes, Literal, list, dict, unions, dataclasses. The same dataclass gives a JSON schema.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from ppgen.errors import PpgenError

_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: "null"}
_JSON = {bool: "boolean", int: "integer", float: "number", str: "string", NoneType: "null"}

Count = Annotated[int, "at least 1"]

log = logging.getLogger("ppgen")


def validate(value: Any, kind: Any, where: str, *, exact: bool = False) -> None:
    """
    Args:
        kind: a dataclass, or another type of the list above.
        where: what a sentence begins with: the file.
        exact: whether keys that no field has are refused; else they are a warning, as somebody's own notes may be.

    Raises:
        PpgenError: a key that is missing, or a value of another type, with its place, what it is and what it should be.
    """
    unknown: list[str] = []
    problem = _problem(value, kind, "", unknown)
    if unknown and not problem:
        if exact:
            problem = f"it has {unknown[0]}, which is no key there"
        else:
            log.warning("%s has %s, which is no key there, and is not read", where, unknown[0])
    if problem:
        raise PpgenError(f"{where} is damaged: {problem}; restore it, or fit again")


def _problem(value: Any, kind: Any, place: str, unknown: list[str]) -> str | None:
    origin, inner = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return _problem_of_fields(value, kind, place, unknown)
    if origin is list and isinstance(value, list):
        return _first(_problem(v, inner[0], f"{place}[{i}]", unknown) for i, v in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return _first(
            _problem(k, inner[0], f"a key of {place}", unknown) or _problem(v, inner[1], _at(place, k), unknown)
            for k, v in value.items()
        )
    if origin in (Union, UnionType):
        problems = [_problem(value, k, place, unknown) for k in inner]
        deeper = [p for p, k in zip(problems, inner, strict=True) if is_dataclass(k) and isinstance(value, Mapping)]
        return None if None in problems else deeper[0] if deeper else _unlike(value, kind, place)
    return None if _is(value, kind) else _unlike(value, kind, place)


def _is(value: Any, kind: Any) -> bool:
    if kind is Any:
        return True
    if kind is Count:
        return type(value) is int and value >= 1
    if get_origin(kind) is Literal:
        return any(type(value) is type(k) and value == k for k in get_args(kind))
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, (int, float) if kind is float else get_origin(kind) or kind)


def _problem_of_fields(value: Any, kind: Any, place: str, unknown: list[str]) -> str | None:
    if not isinstance(value, Mapping):
        return _unlike(value, kind, place)
    hints = get_type_hints(kind, include_extras=True)
    for f in fields(kind):
        if f.name not in value and f.default is MISSING and f.default_factory is MISSING:
            return f"{_at(place, f.name)} is missing, and {_expected(hints[f.name])} is expected"
    unknown.extend(_at(place, name) for name in value if name not in hints)
    return _first(_problem(v, hints[k], _at(place, k), unknown) for k, v in value.items() if k in hints)


def _first(problems: Any) -> str | None:
    return next((p for p in problems if p), None)


def _at(place: str, key: Any) -> str:
    return f"{place}.{key}" if place else str(key)


def _unlike(value: Any, kind: Any, place: str) -> str:
    text = repr(value)
    shown = text if len(text) < 60 else f"{text[:57]}..."
    return f"{place or 'it'} is {shown}, and {_expected(kind)} is expected"


def _expected(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Count:
        return "a whole number of at least 1"
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin in (Union, UnionType):
        return " or ".join(map(_expected, inner))
    if is_dataclass(kind) or kind is dict or origin in (dict, Mapping):
        return "an object of keys and values"
    if kind is list or origin is list:
        return "a list"
    return _WORDS.get(kind) or f"a {getattr(kind, '__name__', kind)}"


def json_schema(kind: Any) -> dict[str, Any]:
    """The JSON schema of a dataclass."""
    origin, inner = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        hints = get_type_hints(kind, include_extras=True)
        needed = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
        return {
            "type": "object",
            "properties": {f.name: json_schema(hints[f.name]) for f in fields(kind)},
            "required": needed,
        }
    if origin is Literal:
        return {"enum": list(inner)}
    if origin in (Union, UnionType):
        return {"anyOf": [json_schema(k) for k in inner]}
    if origin is list:
        return {"type": "array", "items": json_schema(inner[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": json_schema(inner[1])}
    if kind is Count:
        return {"type": "integer", "minimum": 1}
    return {} if kind is Any else {"type": _JSON[kind]}
