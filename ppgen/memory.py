"""How much memory there is, and a sentence where something would not fit."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from ppgen.errors import PpgenError

_SMALL = 2**28  # bytes that are not asked about


def _available() -> int | None:
    """Bytes that this process may still take without swapping; None where the system does not say."""
    found = [_of_system(), _of_group()]
    known = [n for n in found if n is not None]
    return min(known) if known else None


def require_memory(size: int, what: str, remedy: str) -> None:
    """Refuses work for which so many bytes are not there."""
    if size <= _SMALL:
        return
    free = _available()
    if free is not None and size > free:
        raise PpgenError(
            f"{what} takes {_in_words(size)} of memory ({size} bytes), and {_in_words(free)} are free; {remedy}"
        )


def _in_words(size: int) -> str:
    """
    >>> _in_words(1_500_000_000), _in_words(20_000)
    ('1.5 GB', '20 kB')
    """
    for unit, one in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= one:
            return f"{size / one:.3g} {unit}"
    return f"{size} bytes"


def _of_system() -> int | None:
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with suppress(OSError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _of_group() -> int | None:
    """What the control group of a container leaves."""
    root = Path("/sys/fs/cgroup")
    for most, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):  # no group, or "max"
            return max(0, int((root / most).read_text()) - int((root / used).read_text()))
    return None
