"""Errors meant for people: one sentence, with the remedy in it."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Integral
from typing import Any

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2060-\u2064\ufeff\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_LENIENT: ContextVar[bool | None] = ContextVar("lenient", default=None)  # None: where there is no such option


class PpgenError(ValueError):
    """A mistake in what ppgen was given; the message is one sentence and names the remedy."""

    def __init__(self, message: object = ""):
        # one line: Pyro's trace raises every error anew, with its table of shapes appended
        super().__init__(visible(str(message).partition("\n")[0]))


@contextmanager
def lenient(yes: bool = True) -> Iterator[None]:
    """Within it, what `object_to` would refuse is a warning."""
    token = _LENIENT.set(yes)
    try:
        yield
    finally:
        _LENIENT.reset(token)


def object_to(sentence: str) -> None:
    """Refuses what can be run and is hardly right; of a fit, `strict=False` (--lenient) makes a warning of it."""
    yes = _LENIENT.get()
    if not yes:
        raise PpgenError(sentence if yes is None else f"{sentence}; strict=False (--lenient) goes on all the same")
    logging.getLogger("ppgen").warning("%s", sentence)


def visible(text: str) -> str:
    r"""The text with what a terminal would obey in place of showing it (escapes, bidirectional marks) spelled out.

    >>> print(visible("a\x1b[2Jb"))
    a\x1b[2Jb
    """
    return _UNSEEN.sub(lambda m: m[0].encode("unicode_escape").decode(), text)


def install(extra: str) -> str:
    """The command that installs an extra, for the end of a sentence. (`ppgen` on the index is another package.)

    >>> install("mcmc")
    "pip install 'ppgen-pyro[mcmc]'"
    """
    return f"pip install 'ppgen-pyro[{extra}]'"


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


def first_of(words: Sequence[str], most: int) -> str:
    """The first words of a list, for a sentence.

    >>> first_of(["a", "b", "c"], 2), first_of(["a", "b"], 2)
    ('a, b, ...', 'a, b')
    """
    return ", ".join(words[:most]) + ", ..." * (len(words) > most)


def whole_number(name: str, value: Any, least: int, of: str = "") -> int:
    """An option that is a whole number, Python's or NumPy's, as one of Python's.

    Args:
        of: what has this least number, for the sentence.
    """
    if not isinstance(value, Integral) or value < least:
        raise PpgenError(f"{name} is {value!r}; expected a whole number of at least {least}{of}")
    return int(value)


def require_known(kind: str, name: str, known: Collection[str]) -> None:
    """Refuses a name that is none of its kind."""
    if name not in known:
        raise PpgenError(f"there is no {kind} {name!r}{nearest(name, known)}; they are {', '.join(known)}")


def of_dtypes(error: Exception) -> bool:
    """Whether an operation of torch's was given tensors of two dtypes.

    >>> of_dtypes(RuntimeError("expected m1 and m2 to have the same dtype, but got: float != double"))
    True
    """
    return "dtype" in str(error) or "scalar type" in str(error)


def first_line(error: BaseException) -> str:
    """The first line of an error's message; the name of its type where it has none.

    >>> first_line(ValueError("no such value\\nat all")), first_line(AssertionError())
    ('no such value', 'AssertionError')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def lacking(needed: str, data: Mapping[str, Any], remedy: str) -> PpgenError:
    """Of data that have no column as a model needs it, or one of another shape.

    >>> print(lacking("Flow needs a column x", {"y": 1.0}, "name it with columns="))
    Flow needs a column x, and the data have {}; name it with columns=
    """
    shapes = {name: tuple(value.shape) for name, value in data.items() if hasattr(value, "shape")}
    return PpgenError(f"{needed}, and the data have {shapes}; {remedy}")


def reason(error: Exception) -> str:
    """Return the first line of a library's message, short enough to stand inside a sentence.

    >>> reason(OSError("truncated file.\\nCall stack follows"))
    'truncated file'
    """
    return first_line(error)[:160].rstrip(".: ")
