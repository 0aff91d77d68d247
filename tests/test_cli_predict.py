"""`ppgen predict`: of runs and of files of mcmc, in words, by groups; and what `ppgen sample` conditions on."""

from __future__ import annotations

import json

import pytest
import xarray as xr
from typer.testing import CliRunner

from ppgen import cli

PROGRAM = """import pyro
from pyro.distributions import Normal

import ppgen

def model(county, floor, y=None):
    mu = pyro.sample("mu", Normal(0.0, 5.0))
    with pyro.plate("county", 3):
        a = pyro.sample("a", Normal(mu, 1.0))
    with ppgen.rows(county):
        return pyro.sample("y", Normal(a[county] + floor, 0.1), obs=y)
"""
EFFECTS = {"ash": -1.0, "elm": 0.0, "oak": 1.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run and a file of chains, in a folder with new rows."""
    path = tmp_path_factory.mktemp("predict")
    (path / "program.py").write_text(PROGRAM)
    rows = [f"{c},{i % 2},{e + i % 2 + 0.01 * (i % 3 - 1):.3f}" for c, e in EFFECTS.items() for i in range(12)]
    (path / "train.csv").write_text("county,floor,y\n" + "\n".join(rows) + "\n")
    (path / "new.csv").write_text("county,floor,state\noak,0,A\nash,1,A\noak,1,B\n")
    (path / "birch.csv").write_text("county,floor\nbirch,0\noak,0\n")
    invoke(path, "fit", "program.py", "--data", "train.csv", "--steps", 400, "--lr", 0.05, "--out", "run", "-q")
    few = ("--chains", 8, "--draws", 50, "--warmup", 80)
    invoke(path, "mcmc", "program.py", "--data", "train.csv", *few, "--engine", "trace", "-q")
    return path


def invoke(path, *args, code=0):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        result = CliRunner().invoke(cli.app, [str(a) for a in args])
    assert result.exit_code == code, result.output
    return result.stdout if not code else result.stderr


def test_the_table_of_all_rows_as_csv(folder):
    many = "county,floor\n" + "oak,0\nash,1\n" * 15
    (folder / "many.csv").write_text(many)
    found = json.loads(invoke(folder, "predict", "run", "--data", "many.csv", "--out", "rows.csv", "--json"))
    lines = (folder / "rows.csv").read_text().splitlines()
    head = lines[0].split(",")
    assert len(lines) == 31 and head == list(found["predictions"][0])
    rows = [dict(zip(head, line.split(","), strict=True)) for line in lines[1:]]
    assert [r["county"] for r in rows] == ["oak", "ash"] * 15
    assert [float(r["mean"]) for r in rows] == [f["mean"] for f in found["predictions"]]
    assert not (folder / "run" / "predictions.nc").exists()


@pytest.mark.parametrize("source, draws", [("run", 1000), ("program.nc", 400)])
def test_new_rows_in_words(folder, source, draws):
    found = json.loads(invoke(folder, "predict", source, "--data", "new.csv", "--group-by", "state", "--json"))
    by = {f["state"]: f for f in found["predictions"]}
    assert by["A"]["mean"] == pytest.approx(0.5, abs=0.05) and by["A"]["rows"] == 2
    assert by["B"]["mean"] == pytest.approx(2.0, abs=0.1) and by["B"]["5%"] < 2.0 < by["B"]["95%"]
    assert found["conditions_on"] == "the fitted data"
    with xr.open_datatree(folder / found["out"]) as tree:
        assert tree["predictions"]["y"].size == draws * 3
        assert list(tree["predictions_constant_data"]["county"].values) == ["oak", "ash", "oak"]
        assert list(tree["predictions_constant_data"]["state"].values) == ["A", "A", "B"]


@pytest.mark.parametrize("source", ["run", "program.nc"])
def test_a_word_that_was_not_seen(folder, source):
    said = invoke(folder, "predict", source, "--data", "birch.csv", code=2)
    assert "'county' has 'birch', which the fit did not see" in said and "--new-groups draw" in said
    text = invoke(folder, "predict", source, "--data", "birch.csv", "--new-groups", "draw", "--out", "p.nc")
    assert "birch" in text and "draws given the fitted data" in text and "predictions p.nc" in text
    found = json.loads(invoke(folder, "predict", source, "--data", "birch.csv", "--new-groups", "draw", "--json"))
    birch, oak = found["predictions"]
    assert birch["county"] == "birch" and birch["sd"] > 5 * oak["sd"] and oak["mean"] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("run",), "there are no new rows to predict; name them with --data"),
        (("run", "--data", "birch.csv", "--program", "program.py"), "--program is for a file of draws, and run"),
        (("run", "--data", "birch.csv", "--new-groups", "maybe"), "expected 'error', or 'draw'"),
        (("run", "--data", "birch.csv", "--out", "p.txt"), "let it end in .nc"),
        (("run/posterior.nc", "--data", "birch.csv"), "there is no file run/posterior.nc"),
    ],
)
def test_errors_are_one_sentence(folder, arguments, said):
    assert said in invoke(folder, "predict", *arguments, code=2)


def test_a_program_that_moved_is_named(folder, tmp_path):
    (tmp_path / "other.py").write_text(PROGRAM)
    a, b = (
        json.loads(
            invoke(folder, "predict", "program.nc", "--data", "birch.csv", "--new-groups", "draw", "--json", *more)
        )
        for more in ((), ("--program", tmp_path / "other.py"))
    )
    assert a["predictions"] == b["predictions"]


def test_columns_are_gathered_as_they_were_for_the_fit(folder):
    (folder / "table.csv").write_text("a,b,target\n" + "".join(f"{i % 3},{i % 2},{i % 5}.5\n" for i in range(30)))
    (folder / "rows.csv").write_text("a,b\n1,0\n2,1\n")
    chosen = ("--columns", "x=a+b,y=target")
    few = ("--chains", 8, "--draws", 20, "--warmup", 100, "--engine", "trace", "-q")
    invoke(folder, "mcmc", "linear_regression", "--data", "table.csv", *chosen, *few)
    invoke(folder, "fit", "linear_regression", "--data", "table.csv", *chosen, "--steps", 1, "--out", "linear", "-q")
    invoke(folder, "infer", "linear_regression", "--data", "table.csv", *chosen, "--out", "answer.nc", "-q")
    for source in ("linear", "linear_regression.nc", "answer.nc"):
        found = json.loads(invoke(folder, "predict", source, "--data", "rows.csv", "-n", 40, "--json"))
        assert [f["row"] for f in found["predictions"]] == [0, 1]


def test_sample_says_what_it_conditions_on(folder):
    text = invoke(folder, "sample", "run", "--given", "train.csv", "--out", "s.npz", "-n", 2)
    assert "given county, floor, y" in text
    assert "mu, a from the prior, not from the fitted data; to predict: ppgen predict run" in text
    found = json.loads(invoke(folder, "sample", "run", "--given", "train.csv", "--out", "s.npz", "-n", 2, "--json"))
    assert found["conditions_on"] == ["county", "floor", "y"] and found["prior"] == ["mu", "a"]
    assert "Latents are drawn from the prior" in " ".join(invoke(folder, "sample", "--help").split())


def test_the_draws_that_are_counted_are_those_that_there_are(folder):
    """8 chains of 50: of each the same number, and no more than there are."""
    for asked, there in ((3, 8), (20, 16), (10**6, 400)):
        said = json.loads(invoke(folder, "predict", "program.nc", "--data", "new.csv", "-n", asked, "--json"))
        tree = xr.open_datatree(folder / "program-predictions.nc")
        assert said["draws"] == tree.predictions["y"][..., 0].size == there
        tree.close()


def test_the_share_of_a_word_takes_the_place_of_no_other_column(tmp_path):
    """Of a word "row" it stood in for the number of the row."""
    from ppgen.cli.predict import _write_table

    rows = [{"row": i, "site": "g", "shares": {"a": 0.25, "row": 0.75}} for i in range(2)]
    _write_table(tmp_path / "t.csv", rows)
    assert (tmp_path / "t.csv").read_text().splitlines() == [
        "row,site,a,share of row",
        "0,g,0.25,0.75",
        "1,g,0.25,0.75",
    ]
