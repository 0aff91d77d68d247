"""A formula in place of a program on the command line: the way from a csv to predictions for new groups."""

import contextlib
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from ppgen.cli import app

pytest.importorskip("formulae")
FORMULA = "accidents ~ 1 + cars + (1 | town)"
FAST = ("--steps", "150", "--lr", "0.05", "--engine", "trace", "-q")


def ppgen(*arguments: str, cwd: object, code: int = 0) -> Result:
    with contextlib.chdir(str(cwd)):
        done = CliRunner().invoke(app, arguments)
    assert done.exit_code == code, done.output
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tables, and a run of the formula."""
    path = tmp_path_factory.mktemp("formula")
    rng = np.random.default_rng(0)
    town, cars = rng.integers(0, 6, 120), rng.uniform(0, 3, 120).round(2)
    y = rng.poisson(np.exp(0.3 + 0.3 * cars + rng.normal(0, 0.5, 6)[town]))
    # what the formula does not name may be anything
    table = pd.DataFrame({"town": [f"T{i}" for i in town], "cars": cars, "accidents": y, "note": [np.nan] * 120})
    table.to_csv(path / "t.csv", index=False)
    pd.DataFrame({"cars": [1.0, 1.0], "town": ["T3", "T77"]}).to_csv(path / "new.csv", index=False)
    ppgen("fit", FORMULA, "--family", "negbinomial", "--data", "t.csv", "--out", "run", *FAST, cwd=path)
    return path


def test_check_shows_the_sites(folder):
    done = ppgen("check", FORMULA, "--family", "negbinomial", "--data", "t.csv", "--json", cwd=folder)
    sites = {s["name"]: s for s in json.loads(done.stdout)["sites"]}
    assert sites["accidents"]["distribution"] == "GammaPoisson" and sites["r_town"]["plates"] == ["town"]


def test_rows_with_a_gap_on_the_right_are_left_out_where_that_is_asked_for(folder):
    table = pd.read_csv(folder / "t.csv")
    table.loc[[3, 5], "cars"] = np.nan
    table.to_csv(folder / "gaps.csv", index=False)
    how = (FORMULA, "--family", "negbinomial", "--data", "gaps.csv")
    ppgen("fit", *how, "--missing", "drop", "--out", "dropped", *FAST, cwd=folder)
    assert json.loads((folder / "dropped" / "config.json").read_text())["data"]["rows"] == 118
    said = ppgen("fit", *how, "--out", "none", *FAST, cwd=folder, code=2).output
    assert "'cars' has 2 missing cells" in said and "--missing drop" in said and "--missing impute" in said
    shown = ppgen("check", *how, "--missing", "impute", "--json", cwd=folder).stdout
    new = ("new", "--formula", *how)
    assert "is not printed; print that" in ppgen(*new, "--missing", "impute", cwd=folder, code=2).output
    assert "class AccidentsRegression" in ppgen(*new, "--missing", "drop", cwd=folder).output
    assert {"z_cars", "cars_unobserved", "sigma_cars"} <= {s["name"] for s in json.loads(shown)["sites"]}


def test_a_later_column_of_another_type_is_said_to_be_that(folder):
    (folder / "words.csv").write_text("cars,town\nmany,T3\n1.5,T3\n")
    said = ppgen("predict", "run", "--data", "words.csv", cwd=folder, code=2).output
    assert "'cars' holds numbers, but 'many' in row 0" in said and "--types" not in said


def test_new_towns_are_refused_by_name_or_drawn(folder):
    refused = ppgen("predict", "run", "--data", "new.csv", cwd=folder, code=2)
    assert "'town' has 'T77', which the fit did not see" in refused.stderr
    drawn = ppgen("predict", "run", "--data", "new.csv", "--new-groups", "draw", "--json", cwd=folder)
    rows = json.loads(drawn.stdout)["predictions"]
    assert [r["town"] for r in rows] == ["T3", "T77"] and rows[1]["sd"] > rows[0]["sd"]


@pytest.mark.slow
def test_what_is_made_of_a_run_of_a_formula(folder):
    ppgen("fit", "accidents ~ 1", "--family", "poisson", "--data", "t.csv", "--out", "pooled", *FAST, cwd=folder)
    for command in (["evaluate", "run"], ["diagnose", "run"], ["report", "run"], ["compare", "run", "pooled"]):
        ppgen(*command, cwd=folder)


@pytest.mark.slow
def test_a_run_is_opened_where_formulae_is_not(folder):
    code = "import sys; sys.modules['formulae'] = None; from ppgen.cli import main; main()"
    command = [sys.executable, "-c", code, "predict", "run", "--data", "t.csv", "-n", "20", "--json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=True)
    assert len(json.loads(done.stdout)["predictions"]) == 120


@pytest.mark.slow
def test_the_printed_program_is_fitted_to_the_same_numbers(folder):
    said = ("--formula", FORMULA, "--family", "negbinomial", "--data", "t.csv")
    printed = ppgen("new", *said, cwd=folder).stdout
    ppgen("new", "mine.py", *said, cwd=folder)
    assert "class Mine(ppgen.Program)" in (folder / "mine.py").read_text()
    assert (
        printed.replace("AccidentsRegression", "Mine").replace("FILE.py", "mine.py") == (folder / "mine.py").read_text()
    )
    done = {}
    for name, program in (("a", [FORMULA, "--family", "negbinomial"]), ("b", ["mine.py"])):
        ppgen("fit", *program, "--data", "t.csv", "--columns", "town=town,cars=cars,accidents=accidents", "--out", name,
              *FAST, "--precision", "64-true", cwd=folder)  # fmt: skip
        done[name] = pd.read_csv(folder / name / "metrics.csv")["elbo"].to_numpy()
    np.testing.assert_allclose(done["a"], done["b"], rtol=1e-9)


def test_infer_writes_a_file_that_is_no_formula(folder):
    ppgen("infer", "accidents ~ 1", "--family", "poisson", "--data", "t.csv", "-q", "--budget", "1", cwd=folder)
    assert (folder / "regression.nc").is_file()


@pytest.mark.parametrize(
    "command",
    [
        ("calibrate", "--simulations", "20", "--steps", "50"),
        ("gradients", "--objective", "sampled", "--repeats", "4"),
        ("evidence", "-q"),
    ],
    ids=lambda c: c[0],
)
def test_every_command_that_takes_a_formula_takes_its_family(folder, command):
    name, *options = command
    done = ppgen(name, "accidents ~ 1", "--family", "poisson", "--data", "t.csv", *options, "--json", cwd=folder)
    assert json.loads(done.stdout)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["check", "y ~ x", "--data", "t.csv"], "has no column 'y'"),
        (["check", "accidents ~ cars", "--family", "gama", "--data", "t.csv"], "no family 'gama'"),
        (["check", "accidents ~ cars", "--set", "scale=2", "--data", "t.csv"], "a formula has no setting 'scale'"),
        (["check", "accidents ~ cars", "--set", "missing=drop", "--data", "t.csv"], "no setting 'missing'"),
        (["check", "accidents ~ cars"], "there are no data"),
        (["new"], "there is no FILE to write"),
        (["new", "--formula", "accidents", "--data", "t.csv"], "is no formula"),
        (["check", "regression", "--data", "t.csv"], "a regression is named by its formula"),
    ],
)
def test_errors_are_one_sentence(folder, arguments, said):
    done = ppgen(*arguments, cwd=folder, code=2)
    assert said in done.stderr.replace("\n", " ") and "Traceback" not in done.stderr
