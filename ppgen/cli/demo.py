"""`ppgen demo`: the whole tour in one command, which shows the commands that it stands for."""

from __future__ import annotations

import contextlib
import importlib.util
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from ppgen.cli.options import app, out_option
from ppgen.console import say
from ppgen.errors import PpgenError, install

TABLE = "clinics.csv"
FORMULA = "days ~ dose + (1 | clinic)"
TOUR: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "1. Images: a variational autoencoder, a flow its prior, learns handwritten digits, and draws some.",
        (
            "fit vae --data digits --set latent=8 --set prior=flow --set dropout=0.1 --batch-size 128 --steps {steps}"
            " --lr 0.003 --schedule cosine --out digits --quiet",
            "sample digits -n 64 --out digits.png",
            "evaluate digits --particles 100",
        ),
    ),
    (
        "2. A density: a normalizing flow, whose log p(x) is exact.",
        ("fit flow --data moons --batch-size 256 --steps {flow_steps} --out moons --quiet", "plot moons"),
    ),
    (
        "3. Eight schools: the posterior of a hierarchical model, and whether to believe it.",
        ("infer eight_schools --data eight_schools --out schools.nc --quiet",),
    ),
    (
        "4. A table with a formula: days to recover, by dose and clinic (made up, with a slope of -1.5).",
        ("infer {formula} --data clinics.csv --out clinics.nc --quiet",),
    ),
    ("5. A page to send to a colleague.", ("report digits",)),
)


@app.command(short_help="The whole tour, in one command.")
def demo(
    out: Annotated[Path, out_option("A new folder for all that it makes.", "DIR")] = Path("ppgen-demo"),
    steps: Annotated[int, typer.Option(min=1, help="Of the autoencoder; the flow takes a quarter.")] = 3000,
    seconds: Annotated[bool, typer.Option(help="Say how long each command took.")] = True,
) -> None:
    """Digits, a flow, eight schools, a table with a formula and a report: about two minutes on two cores.

    Each command is shown as one would type it in the folder, and then run there.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise PpgenError(f"{out} is there already; name a new folder with --out, or remove it")
    out.mkdir(parents=True, exist_ok=True)
    say(f"cd {shlex.quote(str(out))}")
    begin = time.monotonic()
    with contextlib.chdir(out):
        _write_clinics(Path(TABLE))
        for title, commands in TOUR:
            say(f"\n{title}")
            if "{formula}" in commands[0] and importlib.util.find_spec("formulae") is None:
                say(f"Left out: formulas are read by the package formulae; {install('formula')}")
                continue
            for line in commands:
                _run(_words(line, steps), seconds)
    say(
        f"\nThe tour took {time.monotonic() - begin:.0f} s. "
        f"Look at digits.png, moons/plots and digits/report.html in {out}."
    )


def _words(line: str, steps: int) -> list[str]:
    """The words of a command of the tour."""
    values = {"steps": str(steps), "flow_steps": str(max(1, steps // 4)), "formula": shlex.quote(FORMULA)}
    return shlex.split(line.format(**values))


def _run(words: list[str], seconds: bool) -> None:
    """Shows a command, and runs it in this process; its errors are this command's."""
    say(f"$ ppgen {shlex.join(words)}", sys.stdout)
    begin = time.monotonic()
    group = typer.main.get_command(app)
    with group.make_context("ppgen", list(words)) as context:
        group.invoke(context)
    if seconds:
        say(f"({time.monotonic() - begin:.0f} s)")


def _write_clinics(path: Path) -> None:
    """120 patients of 8 clinics: days = 20 + u_clinic - 1.5 dose + noise, u ~ N(0, 3), noise ~ N(0, 2)."""
    import numpy as np

    rng = np.random.default_rng(0)
    clinic, dose = np.repeat(np.arange(8), 15), rng.uniform(0, 4, 120)
    days = 20 + rng.normal(0, 3, 8)[clinic] - 1.5 * dose + rng.normal(0, 2, 120)
    lines = [f"{d:.2f},{x:.2f},{'ABCDEFGH'[c]}" for d, x, c in zip(days, dose, clinic, strict=True)]
    path.write_text("\n".join(["days,dose,clinic", *lines]) + "\n", encoding="utf-8")
