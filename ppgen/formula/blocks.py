"""The text of a formula taken apart: response, common terms, and the blocks of group effects (terms | factor)."""

from __future__ import annotations

import ast
import keyword
from typing import NamedTuple

from ppgen.errors import PpgenError
from ppgen.formula.elsewhere import require_own_calls

_CENSORED = ("censored",)
_PROPORTION = ("p", "prop", "proportion")


class Block(NamedTuple):
    """Group effects: the columns of each factor, outermost first; whether the effects of a group are correlated."""

    terms: str
    factors: list[tuple[str, ...]]
    correlated: bool


class Formula(NamedTuple):
    """y: the response. level: of y that is a success. trials, status: what stands beside it."""

    y: str
    level: str | None
    trials: str | float | None
    status: str | None
    common: str
    blocks: list[Block]


def parse(text: str) -> Formula:
    """
    Raises:
        PpgenError: no response, or one that is no column; a call of another package's formulas; a bar outside of
            parentheses of its own; a factor that is no column.

    >>> parse("t ~ x + (1 + x | school/room)").blocks
    [Block(terms='1 + x', factors=[('school',), ('school', 'room')], correlated=True)]
    """
    left, tilde, right = text.partition("~")
    if not tilde or not left.strip() or not right.strip():
        raise PpgenError(f"{text!r} is no formula; expected a response and terms, as in 'y ~ 1 + x + (1 | group)'")
    require_own_calls(text)
    common: list[str] = []
    blocks: list[Block] = []
    for piece in _split(right, "+"):
        if not _has_bar(piece):
            common.append(piece)
        elif piece.startswith("(") and _end(piece) == len(piece) - 1:
            blocks.append(_block(piece[1:-1], text))
        else:
            raise PpgenError(
                f"the formula {text!r} has {piece!r}, and group effects stand in parentheses of their own, added to "
                "the rest: (1 + x | group)"
            )
    return Formula(*_response(left.strip(), text), " + ".join(common) or "1", blocks)


def _response(left: str, text: str) -> tuple[str, str | None, str | float | None, str | None]:
    try:
        node = ast.parse(left, mode="eval").body
    except SyntaxError:
        node = None
    match node:
        case ast.Name(id=name):
            return name, None, None, None
        case ast.Subscript(value=ast.Name(id=name), slice=ast.Constant(value=level)):
            return name, str(level), None, None
        case ast.Subscript(value=ast.Name(id=name), slice=ast.Name(id=level)):
            return name, level, None, None
        case ast.Call(func=ast.Name(id=call), args=[ast.Name(id=name), ast.Name(id=other)]) if call in _CENSORED:
            return name, None, None, other
        case ast.Call(func=ast.Name(id=call), args=[ast.Name(id=name), other]) if call in _PROPORTION:
            if isinstance(other, ast.Name):
                return name, None, other.id, None
            if isinstance(other, ast.Constant) and isinstance(other.value, int | float):
                return name, None, float(other.value), None
    raise PpgenError(
        f"the response of {text!r} is {left!r}; expected the name of a column, y['yes'], p(successes, trials) or "
        "censored(time, status); compute anything else as a column of the table (a name is letters, digits and _)"
    )


def _block(inner: str, text: str) -> Block:
    parts = _split(inner, "|")
    correlated = len(parts) == 2
    if len(parts) == 3 and not parts[1]:  # ||
        parts = [parts[0], parts[2]]
    if len(parts) != 2 or not all(parts):
        raise PpgenError(f"the formula {text!r} has ({inner}), expected (terms | group) or (terms || group)")
    factors: list[tuple[str, ...]] = []
    for factor in _split(parts[1], "+"):
        nested = [n.strip() for n in factor.strip("() ").split("/")]
        for i in range(len(nested)):
            factors.append(tuple(c.strip() for n in nested[: i + 1] for c in n.split(":")))
    for name in (c for factor in factors for c in factor):
        if not name.isidentifier() or keyword.iskeyword(name):
            raise PpgenError(
                f"the formula {text!r} groups by {name!r}; expected columns, as in (1 | school/room), whose names are "
                "letters, digits and _, and no words of Python's (--columns gives others)"
            )
    return Block(parts[0], factors, correlated)


def _split(text: str, mark: str) -> list[str]:
    """Cut at a mark that stands in no parentheses and no quotes."""
    parts, depth, quote = [""], 0, ""
    for c in text:
        if quote:
            quote = "" if c == quote else quote
        elif c in "\"'`":
            quote = c
        depth += 0 if quote else (c in "([{") - (c in ")]}")
        if c == mark and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += c
    return [part.strip() for part in parts]


def _has_bar(piece: str) -> bool:
    quoted = False
    for c in piece:
        quoted ^= c in "\"'"
        if c == "|" and not quoted:
            return True
    return False


def _end(piece: str) -> int:
    """Where the parenthesis that a text begins with is closed."""
    depth = 0
    for i, c in enumerate(piece):
        depth += (c == "(") - (c == ")")
        if depth == 0:
            return i
    return -1
