"""What every command shares: errors in one sentence, exit codes, JSON, tables.

Exit codes: 0; 2 the user's error (one sentence on stderr); 130 stopped with Ctrl-C; 1 a fault of ppgen's own, or
nobody reads the output any more (`ppgen list | head -1`).
`--debug`, anywhere on the line, shows the traceback of any of them; `-v`, likewise, what is logged at level DEBUG.
"""

from __future__ import annotations

import errno
import io
import json
import logging
import math
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any, TextIO

from typer import Exit
from typer.core import TyperGroup

from ppgen.errors import PpgenError, reason, visible

_NO_MEMORY = re.compile("allocate memory|not enough memory|out of memory")  # torch, of the CPU and of a GPU

_VERBOSE = {"-v", "--verbose"}

WIDE = 160  # columns, where the output is no terminal: tables are not cut


class Commands(TyperGroup):
    """The group of all commands, which turns what they raise into a sentence and an exit code."""

    def main(  # type: ignore[override]  # its arguments differ from version to version
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> Any:
        words = list(sys.argv[1:] if args is None else args)
        debug = "--debug" in words
        verbose = bool(_VERBOSE & set(words))
        words = [w for w in words if w not in {"--debug", *_VERBOSE}]
        _quiet_libraries(debug, logging.DEBUG if verbose else logging.INFO)
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # where the encoding has no ±, a ? stands for it
        try:
            with _only_json() if "--json" in words else nullcontext():
                code = super().main(words, "ppgen", **{**extra, "standalone_mode": False})
            sys.stdout.flush()
        except BrokenPipeError:  # `ppgen list | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 1
        except Exception as error:
            if debug:
                traceback.print_exc()
            code, sentence = _explain(error)
            say(f"ppgen: {sentence}", sys.stderr)
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say("ppgen: stopped", sys.stderr)
            raise Exit(130) from None


def _explain(error: Exception) -> tuple[int, str]:
    """The exit code and the sentence of an error."""
    if isinstance(error, PpgenError):
        return 2, " ".join(str(error).split())
    if hasattr(error, "format_message"):  # the command line itself was wrong
        message = error.format_message().strip()
        command = getattr(getattr(error, "ctx", None), "command_path", "ppgen")
        return 2, f"{message.rstrip('.')}; {command} --help lists what it takes"
    if isinstance(error, OSError) and error.filename:
        return 2, f"{error.filename}: {error.strerror}; choose another place"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return 2, f"{error.strerror}; make room, or write elsewhere"
    first = (str(error).strip() or "no message").splitlines()[0]
    if isinstance(error, MemoryError) or isinstance(error, RuntimeError) and _NO_MEMORY.search(first):
        return 2, f"there is not enough memory ({reason(error)}); take fewer draws, particles or rows at a time"
    return 1, (
        f"unexpected {type(error).__name__}: {first}; this is a fault of ppgen's: see where with --debug, and report it"
    )


def _quiet_libraries(debug: bool, level: int) -> None:
    """Warnings of libraries are for developers; what ppgen logs is for the user."""
    if not debug:
        warnings.simplefilter("ignore")
    logger = logging.getLogger("ppgen")
    if not any(isinstance(h, _Notes) for h in logger.handlers):
        logger.addHandler(_Notes())
    logger.setLevel(level)


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(f"ppgen: {record.getMessage()}", sys.stderr)


def say(text: object = "", stream: TextIO | None = None) -> None:
    """A line on stdout, or another stream: names that come from data or programs reach no terminal as commands."""
    print(visible(str(text)), file=stream, flush=stream is not None)


def is_terminal(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def console(stream: TextIO | None = None) -> Any:
    """A rich console on stdout, wide enough for whole tables where it is no terminal."""
    from rich.console import Console

    stream = sys.stdout if stream is None else stream
    width = None if is_terminal(stream) or "COLUMNS" in os.environ else WIDE
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)


def print_table(head: Sequence[str], rows: Iterable[Sequence[Any]], title: str | None = None) -> None:
    """A table and a blank line; columns of numbers are aligned to the right."""
    from rich import box
    from rich.table import Table

    rows = [[cell(value) for value in row] for row in rows]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for i, name in enumerate(head):
        numeric = bool(rows) and all(_is_number(row[i]) for row in rows)
        table.add_column(visible(name), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    screen = console()
    if title:
        screen.print(visible(title), style="bold", soft_wrap=True)
    with screen.capture() as text:
        screen.print(table)
    print("\n".join(line.rstrip() for line in text.get().splitlines()), end="\n\n")


def cell(value: Any) -> str:
    """A cell of a table: a figure, a dash where there is none, or words."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return number(value) if isinstance(value, float) else visible(str(value))


def _is_number(text: str) -> bool:
    return text[:1] in "–-" or text[:1].isdigit()


def number(value: float, error: float | None = None) -> str:
    """A figure with as many digits as it can bear, and with its standard error where there is one.

    >>> number(-1234.5678), number(0.012345), number(float("inf"))
    ('-1234.57', '0.01235', 'inf')
    >>> number(-1.7304, 0.0021), number(-4512.3, 12.0)
    ('-1.7304 ± 0.0021', '-4512 ± 12')
    """
    if not math.isfinite(value):
        return str(value)
    if error is None or not math.isfinite(error) or error <= 0:
        return f"{value:.2f}" if abs(value) >= 10 else f"{value:.4g}"
    digits = min(max(0, 1 - math.floor(math.log10(error))), 6)
    return f"{value:.{digits}f} ± {error:.{digits}f}"


_asked: list[TextIO] = []  # stdout, while JSON alone is to go there


@contextmanager
def _only_json() -> Iterator[None]:
    """What a user's program prints goes to stderr."""
    _asked.append(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _asked.pop()


def print_json(value: Any) -> None:
    """JSON that any reader takes: nan and infinity become null."""
    print(json.dumps(_plain(value), indent=2, allow_nan=False), file=_asked[-1] if _asked else None)


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
