"""Fitted to one file, asked about another: fewer, other and reordered words, other columns, other spellings."""

from __future__ import annotations

import json
import logging
import re

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
import xarray as xr
from pyro.distributions import Bernoulli, Beta, Normal
from typer.testing import CliRunner

import ppgen
from ppgen import catalog, cli, data
from ppgen.errors import PpgenError
from ppgen.inference import fit, loglik, posterior, predict
from ppgen.run import Run

PROGRAM = """
import pyro, torch, ppgen
from pyro.distributions import Normal


class Growth(ppgen.Program):
    def model(self, town, grade, day, size, y=None):
        with pyro.plate("towns", 4):
            level = pyro.sample("level", Normal(0.0, 5.0))
        slope = pyro.sample("slope", Normal(torch.zeros(3), 5.0).to_event(1))
        with ppgen.rows(town):
            mean = level[town] + slope[..., 0] * grade + slope[..., 1] * day / 100 + slope[..., 2] * size
            return pyro.sample("y", Normal(mean, 1.0), obs=y)
"""
TRAIN = """town;grade;day;size;y;note;seen
Ulm;ok;2024-01-02;1,5;3,2;a;2024-02-30
Bonn;bad;2024-01-12;2,5;1,2;b;?
Köln;good;2024-02-02;1000,25;5,5;c;x
Ulm;bad;2024-01-05;3,5;1,5;d;
Trier;good;2024-01-07;4,25;2,5;e;7
"""
# files that say the same: Ulm, ok, day 1, 1.5 and Trier, bad, day 34, 3
SAME = {
    "fewer words": "town,grade,day,size\nUlm,ok,2024-01-03,1.5\nTrier,bad,2024-02-05,3.0\n",
    "other order of columns": "size,day,grade,town\n1.5,2024-01-03,ok,Ulm\n3.0,2024-02-05,bad,Trier\n",
    "ints for floats": "town,grade,day,size\nUlm,ok,2024-01-03,1.5\nTrier,bad,2024-02-05,3\n",
    "decimal commas": "town;grade;day;size\nUlm;ok;2024-01-03;1,5\nTrier;bad;2024-02-05;3\n",
    "another column": "id,town,grade,day,size\nq,Ulm,ok,2024-01-03,1.5\nr,Trier,bad,2024-02-05,3.0\n",
    "codes of words": "town,grade,day,size\n3,1,2024-01-03,1.5\n2,0,2024-02-05,3.0\n",
    "blanks": "town, grade, day, size\nUlm , ok, 2024-01-03, 1.5\nTrier, bad , 2024-02-05, 3.0\n",
}
OTHER = {
    "an unseen word": ("town,grade,day,size\nUlm,ok,2024-01-03,1.5\nAachen,ok,2024-01-03,1.5\n", "'town' has 'Aachen'"),
    "an unseen grade": ("town,grade,day,size\nUlm,fine,2024-01-03,1.5\n", "'grade' has 'fine'"),
    "another case": ("town,grade,day,size\nulm,ok,2024-01-03,1.5\n", "'town' has 'ulm'.*did you mean 'Ulm'"),
    "words for numbers": (
        "town,grade,day,size\nUlm,ok,2024-01-03,large\n",
        "'size' holds numbers, but 'large' in row 0 .*; correct that cell: the column was numbers at the fit",
    ),
    "days in another form": (
        "town,grade,day,size\nUlm,ok,03/01/2024,1.5\n",
        "'day' holds dates, but '03/01/2024'.*write all of them as 2024-01-31: the column was dates at the fit",
    ),
    "days as numbers": ("town,grade,day,size\nUlm,ok,17,1.5\n", "'day' holds dates, but '17'"),
    "a gap": (
        "town,grade,day,size\nUlm,ok,2024-01-03,?\n",
        "'size' .* has 1 NaN values.*; leave these rows out, or fill",
    ),
    "a gap among words": ("town,grade,day,size\n?,ok,2024-01-03,1.5\n", "'town' .* has 1 NaN values"),
    "true for words": (
        "town,grade,day,size\nTrue,ok,2024-01-03,1.5\n",
        "'town' was words at the fit .*is true or false",
    ),
    "no such column": ("town,grade,day\nUlm,ok,2024-01-03\n", "needs the column 'size'"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("kept")
    (path / "growth.py").write_text(PROGRAM)
    (path / "train.csv").write_text(TRAIN)
    done = invoke(path, "fit", "growth.py", "--data", "train.csv", "--steps", 3, "--engine", "eager", "--out", "run")
    assert done.exit_code == 0, done.output
    return path


def invoke(path, *words):
    names = [str(path / w) if (path / str(w)).exists() or w == "run" else str(w) for w in words]
    return CliRunner().invoke(cli.app, names)


def predicted(path, text):
    (path / "new.csv").write_text(text)
    return invoke(path, "predict", "run", "--data", "new.csv", "--draws", 5, "--json", "--out", path / "p.nc")


@pytest.mark.parametrize("case", SAME)
def test_another_file_that_says_the_same_has_the_same_predictions(folder, case):
    done = predicted(folder, SAME[case])
    assert done.exit_code == 0, done.output
    with xr.open_datatree(folder / "p.nc") as tree:
        found = tree.load()
    expected = reference(folder)
    np.testing.assert_array_equal(found.predictions.y, expected.predictions.y)
    given = found.predictions_constant_data
    assert given.town.values.tolist() == ["Ulm", "Trier"] and given.day.values.tolist() == [1, 34]


def test_a_frame_in_memory_says_the_same_as_a_file(folder):
    frame = pd.DataFrame(
        {
            "day": pd.to_datetime(["2024-01-03", "2024-02-05"]),
            "town": pd.Categorical(["Ulm", "Trier"], ["Trier", "Ulm", "Bonn"]),
            "grade": ["ok", "bad"],
            "size": ["1,5", "3,0"],
            "note": [None, "x"],
        }
    )
    found = predict(Run.load(folder / "run"), frame, draws=5)
    np.testing.assert_array_equal(found["predictions"]["y"], reference(folder)["predictions"]["y"])


class Coin(ppgen.Program):
    def model(self, y=None):
        p = pyro.sample("p", Beta(1.0, 1.0))
        with ppgen.rows(y):
            return pyro.sample("y", Bernoulli(p), obs=y)


@pytest.mark.parametrize("cells", [["yes", "no", "yes"], [True, False, True], [1, 0, 1], ["1", "0", "1"]], ids=str)
def test_two_values_are_observed_by_a_bernoulli(cells):
    bounds = []
    for column in (pd.DataFrame({"y": cells}), {"y": torch.tensor([1.0, 0.0, 1.0])}):
        bounds.append(fit(Coin(), column, steps=3, engine="eager", seed=0).rows[-1]["elbo"])
    assert bounds[0] == pytest.approx(bounds[1])


def reference(folder):
    """The same rows by the codes, days and numbers of the fit."""
    run = Run.load(folder / "run")
    return predict(run, {"town": [3, 2], "grade": [1, 0], "day": [1.0, 34.0], "size": [1.5, 3.0]}, draws=5)


@pytest.mark.parametrize("case", OTHER)
def test_another_file_that_cannot_be_read_so_is_one_sentence(folder, case):
    text, said = OTHER[case]
    done = predicted(folder, text)
    assert done.exit_code == 2 and re.search(said, done.stderr), done.output
    assert done.stderr.strip().count("ppgen: ") <= 2 and "Traceback" not in done.output
    assert not re.search("--types|--missing|--lenient", done.stderr), "predict has no such option"


def test_codes_of_words_in_a_later_file_are_a_warning(folder, caplog):
    codes = {"town": [0, 1, 2], "grade": ["ok"] * 3, "day": ["2024-01-03"] * 3, "size": [1.5, 2.5, 3.5]}
    with caplog.at_level(logging.WARNING, "ppgen"):
        predict(Run.load(folder / "run"), pd.DataFrame(codes), draws=2)
    assert "'town' was words at the fit, and is passed as numbers" in caplog.text
    assert "0 is 'Bonn', 1 is 'Köln'" in caplog.text


def test_a_likelihood_needs_the_observed_column(folder):
    (folder / "new.csv").write_text("town,grade,day,size\nUlm,ok,2024-01-03,1.5\n")
    done = invoke(folder, "evaluate", "run", "--data", "new.csv")
    assert done.exit_code == 2 and "no column 'y', which Growth was fitted to" in done.stderr, done.output


def test_none_beside_censoring_and_on_a_scale_is_no_doubtful_word():
    for words in (["none", "right"] * 5, ["none", "mild", "severe"] * 4):
        assert not data.as_tensors(pd.DataFrame({"c": words})).types["c"].notes
    assert "'none' is taken as a word" in data.as_tensors(pd.DataFrame({"c": ["none", "oak"]})).types["c"].notes[0]


def test_a_run_keeps_the_types_with_levels_and_units(folder):
    kept = json.loads((folder / "run" / "config.json").read_text())["data"]["types"]
    assert set(kept) == {"town", "grade", "day", "size", "y"}
    assert kept["town"]["levels"] == ["Bonn", "Köln", "Trier", "Ulm"]
    assert kept["grade"] == {"name": "grade", "kind": "ordered", "levels": ["bad", "ok", "good"]}
    assert kept["day"]["unit"] == "days since 2024-01-02" and kept["size"]["form"] == "comma"


def test_columns_that_the_program_does_not_take_are_left_out_and_said(folder, caplog):
    run_data = data.load(folder / "train.csv")
    assert run_data.types["seen"].kind == "unclear" and run_data.types["note"].kind == "categorical"
    program = catalog.build(catalog.find(str(folder / "growth.py")), {})
    with caplog.at_level(logging.INFO, "ppgen"):
        run = fit(program, run_data, steps=1, engine="eager")
    assert "'note', 'seen' of the data are taken by no argument of model(town, grade, day, size, y)" in caplog.text
    assert set(run.example) == {"town", "grade", "day", "size", "y"}


def test_groups_are_labelled_by_their_words_whatever_their_plate_is_called(folder):
    run = Run.load(folder / "run")
    tree = posterior(run, run.data(), draws=3)
    assert tree.posterior["level"].dims[-1] == "towns"
    assert tree.posterior.towns.values.tolist() == ["Bonn", "Köln", "Trier", "Ulm"]
    assert tree.posterior["slope_dim_0"].values.tolist() == [0, 1, 2]  # three, as the grades, which index nothing


def test_a_new_word_is_a_new_group_only_where_the_model_has_groups(folder):
    run = Run.load(folder / "run")
    new = {"town": ["Aachen", "Ulm"], "grade": ["ok", "bad"], "day": [1.0, 2.0], "size": [1.0, 1.0]}
    tree = predict(run, new, draws=200, new_groups="draw")
    sd = tree["predictions"]["y"].std(("chain", "draw")).values
    assert sd[0] > 3 and tree["predictions_constant_data"]["town"].values.tolist() == ["Aachen", "Ulm"]
    with pytest.raises(PpgenError, match="'grade' has 'fine'.*takes its words as numbers, not as groups"):
        predict(run, new | {"grade": ["fine", "bad"]}, draws=2, new_groups="draw")


def test_what_may_be_wrong_with_a_column_is_in_the_log_of_a_fit(folder):
    (folder / "gap.csv").write_text(TRAIN.replace("1,5;3,2", "?;3,2"))
    done = invoke(folder, "fit", "growth.py", "--data", "gap.csv", "--steps", 1, "--out", folder / "none")
    assert "the column 'size': '?' is taken as a missing cell" in done.stderr, done.output
    assert "'size' of shape (5,) has 1 NaN values" in done.stderr and done.exit_code == 2


def test_a_mistyped_name_is_asked_about(folder):
    (folder / "wrong.csv").write_text("twon,grade,day,size,y\nUlm,ok,2024-01-03,1.5,2.5\n")
    done = invoke(folder, "fit", "growth.py", "--data", "wrong.csv", "--steps", 1, "--out", folder / "none")
    assert done.exit_code == 2 and "did you mean 'twon'" in done.stderr


def test_the_same_rows_in_one_file_and_in_two_have_the_same_likelihood(folder):
    run = Run.load(folder / "run")
    whole = loglik(run, run.data(), particles=3).best.values
    table = pd.read_csv(folder / "train.csv", sep=";", decimal=",")[::-1]
    again = loglik(run, table, particles=3).best.values
    np.testing.assert_allclose(whole.sum(), again.sum(), rtol=1e-4)


def test_words_that_are_numbers_in_a_later_file_are_words(tmp_path):
    frame = pd.DataFrame({"town": ["10", "2b", "7", "2b"] * 5})
    table = data.as_tensors(frame, "town=categorical")
    later = data.recoded(data.as_tensors(pd.DataFrame({"town": [7, 10]})), table.types)
    assert later["town"].tolist() == [table.types["town"].levels.index(w) for w in ("7", "10")]
    asked = data.as_tensors(pd.DataFrame({"town": [7, 10]}), table.types)
    assert asked["town"].tolist() == later["town"].tolist()


# -- digits that float32 does not hold -----------------------------------------------------------------


def test_numbers_that_float32_rounds_away_stay_double(tmp_path, caplog):
    """Metres north of the equator, and seconds since 1970: what varies is behind the seventh digit."""
    north = 5_712_000 + 0.01 * np.arange(200)
    frame = pd.DataFrame({"north": north, "plain": np.linspace(0.1, 0.9, 200)})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_csv(tmp_path / "b.csv", index=False, sep=";", decimal=",")
    for name in ("a.csv", "b.csv"):
        table = data.load(tmp_path / name)
        assert table["north"].dtype == torch.float64 and table["plain"].dtype == torch.float32
        np.testing.assert_allclose(table["north"].numpy(), north, rtol=1e-12)

    def model(north):
        m = pyro.sample("m", Normal(5_712_001.0, 1.0))
        with ppgen.rows(north):
            pyro.sample("north", Normal(m, 0.577), obs=north)

    caplog.set_level("INFO", "ppgen")
    run = fit(model, {"north": table["north"]}, steps=1)
    assert run.config["fit"]["precision"] == "64-true" and "float32 rounds away" in caplog.text
