"""Errors meant for people: one sentence, with the remedy in it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["PpgenError", "nearest"]


class PpgenError(ValueError):
    """A mistake in what ppgen was given; the message is one sentence and names the remedy."""


def nearest(name: str, names: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest of ``names``, or ``""`` if none is close.

    >>> nearest("digit", ["digits", "moons"])
    "; did you mean 'digits'?"
    >>> nearest("zebra", ["digits", "moons"])
    ''
    """
    folded = {str(candidate).lower(): str(candidate) for candidate in names}
    close = difflib.get_close_matches(str(name).lower(), folded, n=1)
    return f"; did you mean {folded[close[0]]!r}?" if close else ""
