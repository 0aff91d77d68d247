"""The progress of a fit: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from ppgen.console import console, is_terminal, number, say

Report = Callable[[dict[str, float]], None]

LINES = 10  # plain lines a fit, at least
SECONDS = 30.0  # at most between two of them


@contextmanager
def progress(total: int, stream: TextIO, quiet: bool = False) -> Iterator[Report | None]:
    """What `fit(report=)` is given: it shows step, ELBO and its moving standard error, steps/s, time left.

    Args:
        total: the number of steps, where no row says another.
        stream: where it is shown; a bar where this is a terminal.
    """
    if quiet:
        yield None
    elif is_terminal(stream):
        with _bar(total, stream) as report:
            yield report
    else:
        yield _lines(total, stream)


@contextmanager
def counter(what: str, stream: TextIO, quiet: bool = False) -> Iterator[Callable[..., None] | None]:
    """A report(done, of how many, if known) for work that is counted: a bar on a terminal, nothing elsewhere."""
    if quiet or not is_terminal(stream):
        yield None
        return
    from rich.progress import Progress

    with Progress(console=console(stream), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total=None: bar.update(task, completed=done, total=total)


@contextmanager
def _bar(total: int, stream: TextIO) -> Iterator[Report]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=console(stream)) as bar:
        task = bar.add_task("fit", total=total, figures="first steps")
        clock = _Clock(total)

        def report(row: dict[str, float]) -> None:
            clock.total = int(row.get("steps", total))
            bar.update(task, completed=row["step"], total=clock.total, figures=_figures(row, clock))

        yield report


def _lines(total: int, stream: TextIO) -> Report:
    clock, last = _Clock(total), [time.monotonic(), 0.0]

    def report(row: dict[str, float]) -> None:
        total = clock.total = int(row.get("steps", clock.total))
        text, now, step = _figures(row, clock), time.monotonic(), row["step"]
        if step < total and step - last[1] < total / LINES and now - last[0] < SECONDS:
            return
        last[:] = now, step
        say(f"step {int(step):>{len(str(total))}}/{total}  {text}", stream)

    return report


def _figures(row: dict[str, float], clock: _Clock) -> str:
    """One row of metrics in words: the ELBO in nats a row, or of the whole data set where a latent is global."""
    rows = row.get("per", 1)
    unit = "nats a row" if rows > 1 else "nats"
    parts = []
    if "elbo" in row:
        error = row["elbo_se"] / rows if "elbo_se" in row else None
        parts.append(f"ELBO {number(row['elbo'] / rows, error)} {unit}")
    if "valid_elbo" in row:
        parts.append(f"valid {number(row['valid_elbo'] / row.get('valid_per', rows))}")
    if row.get("bad_steps"):
        parts.append(f"{int(row['bad_steps'])} bad steps")
    return "  ".join([*parts, *clock.tick(row["step"])])


class _Clock:
    """Steps a second since the last rows, and the time that is left at that speed."""

    def __init__(self, total: int):
        self.total = total
        self.seen: list[tuple[float, float]] = []

    def tick(self, step: float) -> list[str]:
        self.seen = [*self.seen[-9:], (time.monotonic(), step)]
        (t0, s0), (t1, s1) = self.seen[0], self.seen[-1]
        if s1 <= s0 or t1 <= t0:
            return []
        speed = (s1 - s0) / (t1 - t0)
        left = max(self.total - step, 0) / speed
        return [f"{speed:.3g} steps/s"] + ([f"{duration(left)} left"] if left else [])


def duration(seconds: float) -> str:
    """
    >>> duration(75), duration(3700)
    ('1:15', '1:01:40')
    """
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"
