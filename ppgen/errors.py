"""Errors meant for people: one sentence, with the remedy in it."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["PpgenError", "lenient", "nearest", "object_to", "reason"]

_LENIENT: ContextVar[bool] = ContextVar("lenient", default=False)


class PpgenError(ValueError):
    """A mistake in what ppgen was given; the message is one sentence and names the remedy."""

    def __init__(self, message: object = ""):
        # one line: Pyro's trace raises every error anew, with its table of shapes appended
        super().__init__(str(message).partition("\n")[0])


@contextmanager
def lenient(yes: bool = True) -> Iterator[None]:
    """Within it, what `object_to` would refuse is a warning."""
    token = _LENIENT.set(yes)
    try:
        yield
    finally:
        _LENIENT.reset(token)


def object_to(sentence: str) -> None:
    """Refuses what can be run and is hardly right; `strict=False` (--lenient) makes a warning of it."""
    if not _LENIENT.get():
        raise PpgenError(f"{sentence}; strict=False (--lenient) goes on all the same")
    logging.getLogger("ppgen").warning("%s", sentence)


def nearest(name: str, names: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the closest of ``names``, or ``""`` if none is close.

    >>> nearest("digit", ["digits", "moons"])
    " (did you mean 'digits'?)"
    >>> nearest("zebra", ["digits", "moons"])
    ''
    """
    folded = {str(candidate).lower(): str(candidate) for candidate in names}
    close = difflib.get_close_matches(str(name).lower(), folded, n=1)
    return f" (did you mean {folded[close[0]]!r}?)" if close else ""


def reason(error: Exception) -> str:
    """Return the first line of a library's message, short enough to stand inside a sentence.

    >>> reason(OSError("truncated file.\\nCall stack follows"))
    'truncated file'
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:160].rstrip(".: ")
