"""One fit at a time in a run folder: a file `lock` with the process and its machine, held under flock(2).

The system (a Unix) lets go of it when the process ends in whatever way, so that a lock which is left behind by a killed
fit is taken over at once; and a number that another process has by now is no matter. A folder that another machine's
fit left its lock in may lie on a disk where locks do not reach from one machine to the other: that is refused.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ppgen.errors import PpgenError
from ppgen.run.files import make_folder

LOCK = "lock"

log = logging.getLogger("ppgen")


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Makes the folder if need be, and holds its lock. Of the processes of one torchrun, the first holds it for all.

    Yields:
        Whether this process holds it.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and int(os.environ.get("RANK", 0)) > 0:
        yield False
        return
    file = folder / LOCK
    make_folder(folder, "the run folder")
    try:
        descriptor = _take(file)
    except OSError as e:  # no right to write there, or a folder or a link of that name
        raise PpgenError(f"{file} could not be made: {e.strerror}; remove what is there, or take another place") from e
    try:
        yield True
    finally:
        with suppress(OSError):
            file.unlink()
        os.close(descriptor)


def is_lock(file: Path, names: Collection[str]) -> bool:
    """Whether a file of that name is a fit's lock: with its record; or empty and alone, of a fit killed at once.

    Args:
        names: of the folder.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # `locked` says what is wrong with it
        return True
    try:
        return bool(_record(descriptor)) or (os.fstat(descriptor).st_size == 0 and len(names) == 1)
    except OSError:  # a folder
        return True
    finally:
        os.close(descriptor)


def _take(file: Path) -> int:
    """Opens the lock file, locked, with this process's record in it."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            _flock(descriptor, file)
            if _is_at(descriptor, file):  # else its holder has removed it since
                _refuse_other_machine(descriptor, file)
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _flock(descriptor: int, file: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _record(descriptor)
        who = f"process {holder.get('pid')} on {holder.get('host')}" if holder else "another process"
        raise PpgenError(
            f"a fit is at work in {file.parent} ({who}); wait for its end, stop it, or choose another folder"
        ) from None
    except OSError as e:  # a file system without locks
        log.warning("%s cannot be locked (%s): take care that no other fit works there", file.parent, e.strerror)


def _is_at(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file))
    except FileNotFoundError:
        return False


def _refuse_other_machine(descriptor: int, file: Path) -> None:
    holder = _record(descriptor)
    if holder and holder.get("host") != socket.gethostname():
        raise PpgenError(
            f"a fit of process {holder.get('pid')} on the machine {holder.get('host')} has left its lock in "
            f"{file.parent}; remove {file} once you know that it has ended"
        )


def _record(descriptor: int) -> dict[str, Any]:
    try:
        found = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:  # empty: killed before it was written
        return {}
    return found if isinstance(found, dict) and "pid" in found and "host" in found else {}
