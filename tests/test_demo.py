"""`ppgen demo`: every command of the tour is one of the command line's, and the tour leaves what it says."""

import shlex

import pytest
import typer
from typer.testing import CliRunner

from ppgen import cli
from ppgen.cli import demo

COMMANDS = [line for _, lines in demo.TOUR for line in lines]


@pytest.mark.parametrize("line", COMMANDS)
def test_the_tours_commands_can_be_typed(line):
    """Parsed by the command line itself, options and all."""
    words = shlex.split(shlex.join(demo._words(line, 10)))  # as it is shown
    group = typer.main.get_command(cli.app)
    with group.make_context("ppgen", list(words)) as context:
        name, command, rest = group.resolve_command(context, words)
        assert command.make_context(name, list(rest), parent=context).params


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("")
    result = CliRunner().invoke(cli.app, ["demo", "--out", str(tmp_path)])
    assert result.exit_code == 2 and [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_the_table_has_the_slope_that_is_said(tmp_path):
    import numpy as np
    import pandas as pd

    demo._write_clinics(tmp_path / "t.csv")
    table = pd.read_csv(tmp_path / "t.csv")
    centred = table[["days", "dose"]] - table.groupby("clinic")[["days", "dose"]].transform("mean")
    slope = (centred.days * centred.dose).sum() / (centred.dose**2).sum()
    se = 2 / np.sqrt((centred.dose**2).sum())
    assert len(table) == 120 and abs(slope + 1.5) < 3 * se


@pytest.mark.slow
def test_the_tour(tmp_path):
    result = CliRunner().invoke(cli.app, ["demo", "--out", str(tmp_path / "tour"), "--steps", "200"])
    assert result.exit_code == 0, result.output
    made = {p.name for p in (tmp_path / "tour").iterdir()}
    assert made == {"clinics.csv", "clinics.nc", "digits", "digits.png", "moons", "schools.nc"}
    assert (tmp_path / "tour" / "digits" / "report.html").is_file()
