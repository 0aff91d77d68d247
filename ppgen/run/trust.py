"""Whose code a run folder's program.py is: it runs where the user has said so, and nowhere else.

The user's list is a folder, `$XDG_STATE_HOME/ppgen/trusted` (~/.local/state without that variable), with an empty file
for each program, named by the SHA-256 of all that decides which code runs: the text of the file, its path (program.py
for every run folder), the name in it that is built, and the arguments that it is given. Fits put their own programs on
it. PPGEN_TRUST=all lets every program run.

The text that was held against the list is the text that is run: the file is read once, without Python's caches, and
files beside it cannot be imported.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppgen import catalog
from ppgen.errors import PpgenError

log = logging.getLogger("ppgen")

_here: set[str] = set()  # what was trusted in this process


def _digest(text: bytes, spec: Mapping[str, Any]) -> str:
    """What the list holds of a program: its text, and `file`, `name` and `arguments` of its entry in config.json."""
    chosen = json.dumps([spec["file"], spec.get("name") or "", spec.get("arguments") or {}], sort_keys=True)
    return hashlib.sha256(b"\0".join((hashlib.sha256(text).digest(), chosen.encode()))).hexdigest()


def trust(text: bytes, spec: Mapping[str, Any], *, keep: bool = True) -> None:
    """Lets a program run from now on.

    Args:
        keep: on the user's list; else in this process alone. A list that cannot be written to is a warning.
    """
    name = _digest(text, spec)
    _here.add(name)
    if not keep:
        return
    try:
        folder = _list()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (folder / name).touch()
    except (OSError, RuntimeError) as e:  # a home that is not known is a RuntimeError
        log.warning(
            "the list of trusted programs cannot be written to (%s), so that other processes will not run this "
            "program out of its run folder; set XDG_STATE_HOME to a folder that can be, or PPGEN_TRUST=all", e,
        )  # fmt: skip


def _is_trusted(text: bytes, spec: Mapping[str, Any]) -> bool:
    name = _digest(text, spec)
    if os.environ.get("PPGEN_TRUST") == "all" or name in _here:
        return True
    try:
        return (_list() / name).is_file()
    except (OSError, RuntimeError):
        return False


def _list() -> Path:
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state") / "ppgen" / "trusted"


def program_text(path: Path, spec: Mapping[str, Any]) -> bytes:
    """program.py of a run folder."""
    if spec["file"] != "program.py":
        raise PpgenError(
            f"{path / 'config.json'} names the program {spec['file']!r}, and a run's program is program.py in its own "
            "folder; put the file there, read it, and set file to 'program.py'"
        )
    file = path / "program.py"
    if file.is_symlink():
        raise PpgenError(f"{file} is a link, and a run's program is a file in its own folder; copy it there")
    return _read(file)


def _read(file: Path) -> bytes:
    if file.exists() and not file.is_file():  # a pipe would be waited for
        raise PpgenError(f"{file} is no file; restore it, or fit again")
    try:
        return file.read_bytes()
    except OSError as e:
        raise PpgenError(f"{file} cannot be read: {e.strerror}; restore it, or fit again") from e


def find_in_run(path: Path, spec: Mapping[str, Any], *, trusted: bool = False) -> catalog.Found:
    """The program of a run folder's config: one of the catalogue, or its own where it may run.

    Args:
        spec: the entry `program` of config.json, with a model or a file.
        trusted: whether the caller trusts it; it does so for this process.
    """
    if spec.get("model"):
        return catalog.model(spec["model"])
    text = program_text(path, spec)
    if trusted:
        trust(text, spec, keep=False)
    if not _is_trusted(text, spec):
        raise PpgenError(
            f"{path} has a program of its own, program.py, which you have not trusted, and opening the run would run "
            f"it; ppgen trust {path} shows it and lets it run (in Python Run.load(path, trust=True))"
        )
    return catalog.find_in(path / "program.py", spec.get("name") or "", text, alone=True)


def find_file(spec: Mapping[str, Any], remedy: str) -> catalog.Found:
    """The program that a tree of draws names: one of the catalogue, or the user's file where it was trusted.

    Args:
        spec: as of `describe_program`, with the file's path.
        remedy: the end of a sentence for a file that was not.
    """
    if spec.get("model"):
        return catalog.model(spec["model"])
    file = Path(spec["file"])
    text = _read(file)
    if not _is_trusted(text, spec):
        raise PpgenError(
            f"the draws name the program {file}, which was changed since or never trusted, and would be run; {remedy}"
        )
    return catalog.find_in(file, spec.get("name") or "", text)
