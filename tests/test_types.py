"""What a column of a table is: 20 small files with known truth, two public tables, overrides, and what is said."""

from __future__ import annotations

import json
import os
import re
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from ppgen import cli, data
from ppgen.data import ColumnType, as_tensors, parse_types
from ppgen.data.cells.scales import CALENDARS, SCALES, known_order
from ppgen.data.cells.types import type_of_record
from ppgen.errors import PpgenError

DRAWN = np.random.default_rng(0)
N = 60
WORDS = ["ash", "elm", "oak"]

# cells of a column, its kind, and what else is known of it
TRUTH = {
    "real": ([f"{v:.3f}" for v in DRAWN.normal(size=N)], "real", {}),
    "whole numbers below 0": ([str(v) for v in range(-30, 30)], "real", {"low": -30}),
    "positive": ([f"{v:.3f}" for v in DRAWN.exponential(size=N) + 0.01], "positive", {}),
    "shares": ([f"{v:.3f}" for v in DRAWN.beta(2, 2, N)], "bounded", {}),
    "counts": ([str(v) for v in DRAWN.poisson(4, N)], "count", {"low": 0}),
    "years": ([str(1960 + i % 40) for i in range(N)], "count", {"low": 1960, "high": 1999}),
    "0 and 1": ([str(i % 2) for i in range(N)], "binary", {"levels": ()}),
    "true and false": ([str(i % 3 == 0) for i in range(N)], "binary", {"levels": ()}),
    "yes and no": (["yes" if i % 3 else "no" for i in range(N)], "binary", {"levels": ("no", "yes")}),
    "words": ([WORDS[i % 3] for i in range(N)], "categorical", {"levels": ("ash", "elm", "oak")}),
    "words with gaps": (["?" if i % 7 == 0 else WORDS[i % 3] for i in range(N)], "categorical", {"missing": 9}),
    "a scale": (["low", "high", "medium"] * 20, "ordered", {"levels": ("low", "medium", "high")}),
    "answers": (["disagree", "agree", "neutral"] * 20, "ordered", {"levels": ("disagree", "neutral", "agree")}),
    "months": (["Mar", "Feb", "Dec"] * 20, "categorical", {"levels": ("Feb", "Mar", "Dec")}),
    "days": ([f"2024-{1 + i % 12:02d}-{1 + i % 28:02d}" for i in range(N)], "date", {"unit": "days since 2024-01-01"}),
    "times": ([f"{i // 60:02d}:{i % 60:02d}:30" for i in range(N)], "duration", {"unit": "seconds", "low": 30}),
    "names": ([f"person {i}" for i in range(N)], "text", {}),
    "sentences": (["It was seen in the wood, near the old oak, at dusk." if i % 2 else "It was not seen, though we "
                   "looked for it for a long time." for i in range(N)], "binary", {}),
    "codes with zeros": (["000", "010", "020", "030"] * 15, "categorical", {"levels": ("000", "010", "020", "030")}),
    "amounts": ([f"${1000 + 7 * i:,}.50" for i in range(N)], "positive", {"unit": "$", "low": 1000.5}),
    "shares in percent": ([f"{i}%" for i in range(1, N + 1)], "count", {"unit": "%", "high": 60}),
    "decimal commas": ([f"{i},5" for i in range(N)], "positive", {"form": "comma", "high": 59.5}),
    "numbers and words": ([*["1"] * 30, *["many"] * 30], "unclear", {}),
    "nothing": (["NA"] * N, "real", {"missing": N}),
}  # fmt: skip


@pytest.mark.parametrize("case", TRUTH)
def test_the_type_of_a_file_with_known_truth(case, tmp_path):
    cells, kind, known = TRUTH[case]
    pd.DataFrame({"c": cells, "other": DRAWN.normal(size=N)}).to_csv(tmp_path / "t.csv", index=False)
    found = data.load(tmp_path / "t.csv").types["c"]
    assert found.kind == kind, found
    assert {k: getattr(found, k) for k in known} == known
    assert found.why


TABLES = Path(os.environ.get("PPGEN_TABLES", "/work/shared/data/tables"))
NUMBERS = ("count", "real", "positive", "bounded")
WITH_WORDS = ("categorical", "binary", "ordered")
KINDS = {
    "adult": dict.fromkeys(
        ["workclass", "education", "marital-status", "occupation", "relationship", "race", "sex", "native-country",
         "Salary"], WITH_WORDS)
    | dict.fromkeys(["age", "fnlwgt", "education-num", "capital-gain", "capital-loss", "hours-per-week"], NUMBERS),
    "shoppers": dict.fromkeys(
        ["Month", "OperatingSystems", "Browser", "Region", "TrafficType", "VisitorType", "Weekend", "Revenue"],
        WITH_WORDS)
    | dict.fromkeys(
        ["Administrative", "Administrative_Duration", "Informational", "Informational_Duration", "ProductRelated",
         "ProductRelated_Duration", "BounceRates", "ExitRates", "PageValues", "SpecialDay"], NUMBERS),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_the_types_of_public_tables_need_no_override(name):
    file = TABLES / f"{name}.csv.gz"
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    found = data.load(file).types
    assert found.keys() == KINDS[name].keys()
    assert {n: t.kind for n, t in found.items() if t.kind not in KINDS[name][n]} == {}
    assert all(t.why for t in found.values())
    if name == "adult":
        gaps = {n: t.missing for n, t in found.items() if t.missing}
        assert gaps == {"workclass": 1836, "occupation": 1843, "native-country": 583}
        assert "goes with 'education' one to one" in found["education-num"].notes[0]
        assert "99999 stands in 159 rows, apart from the others" in found["capital-gain"].notes[0]


def test_numbers_are_never_numbered_anew():
    """Whatever kind they are taken for: only words are codes."""
    region = DRAWN.permutation(np.repeat(np.arange(1, 10), [400, 90, 200, 100, 30, 80, 60, 35, 45]))
    table = as_tensors(pd.DataFrame({"region": region}))
    assert table.types["region"].kind == "categorical" and not table.types["region"].levels
    assert table["region"].tolist() == region.tolist()
    asked = as_tensors(pd.DataFrame({"region": region}), "region=categorical")
    assert asked["region"].tolist() == (region - 1).tolist() and asked.types["region"].levels[0] == "1"


@pytest.mark.parametrize("rate", [1.0, 4.0, 9.0])
def test_counts_are_no_codes(rate):
    for seed in range(20):
        counts = np.random.default_rng(seed).poisson(rate, 2000)
        assert as_tensors(pd.DataFrame({"n": counts})).types["n"].kind == "count", seed


NOTES = {
    "a leading zero": (["01", "02", "03"] * 10, "'01' has a leading zero"),
    "a constant": ([2.5] * 30, "is 2.5 in every row"),
    "an index": (list(range(30)), "counts the rows"),
    "an outlier": ([*np.linspace(0.5, 1, 29), 1e6], "1e[+]06 is far from the others"),
    "a stand-in": ([*np.linspace(1, 9, 29), -999], "-999 stands in 1 row, apart from the others"),
    "capitals": (["Male", "male", "Female"] * 10, "'Male' and 'male' differ by capitals alone"),
    "a stray number": ([*[f"w{i % 12}" for i in range(36)], "17"], "'17' in row 36 looks like a number among words"),
    "a question mark": ([*["1", "2"] * 10, "?"], "'[?]' is taken as a missing cell"),
    "days as numbers": ([20240100 + i for i in range(1, 31)], "looks like days written as numbers"),
    "a constant word": (["DE"] * 30, "is 'DE' in every row"),
    "a constant day": (["2024-01-02"] * 30, "is the same day in every row"),
    "a shuffled index": ([7 * i % 30 for i in range(30)], "has another number in each row, as an index does"),
    "an outlier of whole numbers": ([*[i % 5 for i in range(60)], 100_000], "1e[+]05 is far from the others"),
    "9 for none": ([0, 1, 9, 1, 0] * 10, "9 stands in 10 rows, apart from the others"),
    "infinite": ([1.5, np.inf, 2.0], "has 1 infinite values"),
}


@pytest.mark.parametrize("case", NOTES)
def test_what_may_be_wrong_is_said(case):
    cells, note = NOTES[case]
    found = as_tensors(pd.DataFrame({"c": cells})).types["c"]
    assert len(found.notes) == 1 and re.search(note, found.notes[0]), found.notes


def test_large_numbers_that_differ_are_no_constant():
    found = as_tensors(pd.DataFrame({"c": [123456789012345678, 123456789012345679]})).types["c"]
    assert not found.notes


def test_a_mask_is_a_gap_and_no_word():
    found = as_tensors({"c": np.ma.array([1, 2], mask=[0, 1])}).types["c"]
    assert found.missing == 1 and not found.notes


def test_columns_that_say_the_same_are_said():
    g = DRAWN.permutation(["a", "b", "c"] * 10)
    x = DRAWN.normal(size=30)
    frame = pd.DataFrame({"g": g, "code": pd.Series(g).map({"a": 7, "b": 9, "c": 8}), "x": x, "again": x})
    found = as_tensors(frame).types
    assert found["code"].notes == ("goes with 'g' one to one, as its code or its name does",)
    assert found["again"].notes == ("holds the same as 'x'",)
    assert not found["g"].notes and not found["x"].notes


def test_numbers_far_from_zero_are_held_against_others_by_how_they_vary():
    """Numbers of 16 digits, such as keys or times; as many bytes had been asked for as they are large."""
    g = DRAWN.permutation(["a", "b", "c"] * 10)
    code = 10**16 + pd.Series(g).map({"a": 7, "b": 9, "c": 8})
    found = as_tensors(pd.DataFrame({"g": g, "code": code})).types
    assert found["code"].notes == ("goes with 'g' one to one, as its code or its name does",)


# -- said otherwise --------------------------------------------------------------------------------

ASKED = {
    "order": ("c=ordered:c<a<b", ["a", "b", "c"], [1, 2, 0]),
    "numbers as words": ("c=categorical", [10, 5, 10], [1, 0, 1]),
    "numbers in an order": ("c=ordered:10<5", [10, 5, 10], [0, 1, 0]),
    "text as numbers": ("c=real", ["007", "010"], [7, 10]),
    "comma": ("c=real:comma", ["1,234", "5,678"], [1.234, 5.678]),
    "point": ("c=real:point", ["1,234", "5,678"], [1234, 5678]),
    "month first": ("c=date:%m/%d/%Y", ["01/02/2024", "03/02/2024"], [0, 60]),
    "days as numbers": ("c=date:%Y%m%d", [20240102, 20240201], [0, 30]),
    "a format with a comma": ("c=date:%b %d, %Y", ["Jan 2, 2024", "Feb 1, 2024"], [0, 30]),
    "true and false in an order": ("c=ordered:True<False", [True, False], [0, 1]),
    "true and false as words": ("c=categorical", [True, False], [1, 0]),
    "two numbers": ("c=binary", [1, 2, 1], [0, 1, 0]),
    "numbers as they are written": ("c=ordered:3.0<1.0", [3.0, 1.0], [0, 1]),
    "words with signs": ('c=ordered:"<18"<"18, 19"<20+', ["18, 19", "<18", "20+"], [1, 0, 2]),
    "days of eight digits": ("c=date", [20240102, 20240201], [0, 30]),
    "a word for none that is one": ("c=categorical:NA<EU", ["EU", "NA"], [1, 0]),
}


@pytest.mark.parametrize("case", ASKED)
def test_a_type_that_is_asked_for(case):
    types, cells, expected = ASKED[case]
    np.testing.assert_allclose(as_tensors(pd.DataFrame({"c": cells}), types)["c"], expected, rtol=1e-6)


WRONG = {
    "no kind": ("c=ordinal", ["a"], r"there is no kind 'ordinal'.*the kinds are real"),
    "not of the form": ("c", ["a"], "not of the form column=kind; write for example income=positive"),
    "one word twice": ("c=ordered:a<a", ["a"], "no list of words, each once"),
    "no such column": ("d=real", ["1"], "no column 'd' to give a type"),
    "twice": ("c=real,c=count", ["1"], "gives 'c' twice"),
    "a word beyond": ("c=ordered:a<b", ["a", "c"], "holds 'c', which is none of its levels a<b"),
    "below 0": ("c=positive", [1.5, -2.0], "said to be positive .*goes from -2 to 1.5"),
    "above 1": ("c=bounded", [0.5, 2.0], "said to be bounded"),
    "words as numbers": ("c=real", ["a", "b"], "'c' is said to hold numbers, but has 'a' in row 0"),
    "numbers as words": ("c=ordered:a<b", [1, 2], "'c' is numbers, and none of its levels is a number"),
    "another format": ("c=date:%d/%m/%Y", ["2024-01-02"], "'2024-01-02' in row 0"),
    "no form of days": ("c=date:%q", ["2024-01-02"], "'%q' is no format of dates"),
    "counts with parts": ("c=count", [1.5, 2.0], "said to be count .*and has 1.5"),
    "three values": ("c=binary", [1, 2, 3], "said to be binary .*has 3 values"),
    "no detail": ("c=text:a", ["a"], "text takes no 'a'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_type_that_cannot_be_is_one_sentence(case):
    types, cells, message = WRONG[case]
    with pytest.raises(PpgenError, match=message) as caught:
        as_tensors({"c": cells}, types)
    assert "\n" not in str(caught.value)


def test_a_record_is_read_as_it_was_written():
    for own in (*parse_types("a=ordered:x<y,b=date:%d/%m/%Y,c=positive").values(), ColumnType("d", "real", unit="$")):
        again = type_of_record(json.loads(json.dumps(own.kept())))
        assert (again.name, again.kind, again.levels, again.unit, again.form) == (
            own.name, own.kind, own.levels, own.unit, own.form)  # fmt: skip


@pytest.mark.parametrize("scale", [*SCALES, *CALENDARS], ids=lambda s: s[0])
def test_every_scale_is_known_in_any_order_and_capitals(scale):
    words = [step.partition("|")[0].title() for step in scale]
    assert known_order(words[::-1]) is not None and known_order([*words, "else"]) is None
    assert known_order(words[:2][::-1]) is not None


# -- where tables come from ------------------------------------------------------------------------

FRAME = {"x": [1.5, None, 2.5], "g": ["b", None, "a"], "n": [1, 2, 3], "flag": [True, False, True]}


@pytest.mark.parametrize("package", ["polars", "pyarrow"])
def test_a_frame_of_another_library_is_that_of_pandas(package):
    module = pytest.importorskip(package)
    found = as_tensors((module.DataFrame if package == "polars" else module.table)(FRAME))
    expected = as_tensors(pd.DataFrame(FRAME))
    assert list(found) == list(expected) and found.words == expected.words
    for name, column in expected.items():
        torch.testing.assert_close(found[name], column, equal_nan=True)
        assert found.types[name].kind == expected.types[name].kind


def test_an_enum_of_polars_keeps_its_order():
    pl = pytest.importorskip("polars")
    levels = pl.Series(["hi", "lo"], dtype=pl.Enum(["lo", "hi"]))
    frame = pl.DataFrame({"g": levels, "d": pl.Series(["2024-01-01"] * 2).str.to_date()})
    found = as_tensors(frame)
    assert found["g"].tolist() == [1, 0] and found.types["g"].kind == "ordered"
    assert found.types["d"].unit == "days since 2024-01-01"


def test_pandas_says_what_it_knows():
    frame = pd.DataFrame({
        "grade": pd.Categorical(["ok", "bad"], ["bad", "ok"], ordered=True),
        "stamp": pd.to_datetime(["2024-01-01 12:00", "2024-01-02 00:00"]).tz_localize("Europe/Berlin"),
        "span": pd.to_timedelta(["1h", "2h"]),
        "month": pd.period_range("2024-01", periods=2, freq="M"),
        "few": pd.arrays.SparseArray([0, 1.5]),
        "price": [Decimal("1.5"), None],
    })  # fmt: skip
    found = as_tensors(frame)
    assert found.types["grade"].kind == "ordered" and found["grade"].tolist() == [1, 0]
    assert found["stamp"].tolist() == pytest.approx([11 / 24, 23 / 24])  # in UTC
    assert found["span"].tolist() == [3600, 7200] and found.types["span"].unit == "seconds"
    assert found["month"].tolist() == [0, 31]
    assert found["few"].tolist() == [0, 1.5] and found["price"].tolist()[0] == 1.5


def test_the_columns_of_annotated_data_are_those_of_obs():
    class AnnData:
        X = np.ones((3, 2))
        obs = pd.DataFrame({"batch": ["b", "a", "b"]})
        obsm = {"pca": np.zeros((3, 2))}

    found = as_tensors(AnnData())
    assert list(found) == ["x", "batch", "pca"] and found["batch"].tolist() == [1, 0, 1]


def test_a_column_of_annotated_data_does_not_stand_in_for_the_counts(caplog):
    class AnnData:
        X = np.ones((3, 2))
        obs = pd.DataFrame({"x": [0.5, 1.5, 2.5]})
        obsm = {"x": np.zeros((3, 4))}

    found = as_tensors(AnnData())
    assert [tuple(found[name].shape) for name in ("x", "obs.x", "obsm.x")] == [(3, 2), (3,), (3, 4)]
    assert "obs has a column 'x' beside one of that name" in caplog.text


def test_a_decimal_mark_that_is_asked_for_holds_where_points_look_like_decimals(tmp_path):
    (tmp_path / "t.csv").write_text("a;b\n1.234;x\n5.678;y\n")
    assert data.load(tmp_path / "t.csv", types="a=real:comma")["a"].tolist() == [1234, 5678]
    (tmp_path / "t.csv").write_text("a;b\n1.234;x\n12.5;y\n")
    with pytest.raises(PpgenError, match=r"said to hold numbers, but has '12\.5' in row 1"):
        data.load(tmp_path / "t.csv", types="a=real:comma")


def test_thousands_of_a_fit_are_those_of_a_later_file(tmp_path):
    (tmp_path / "t.csv").write_text("a;b\n1.234;0,5\n5.678;1,5\n")
    (tmp_path / "new.csv").write_text("a;b\n9.876;2\n")
    kept = data.load(tmp_path / "t.csv").types
    later = {name: type_of_record(own.kept()) for name, own in kept.items()}
    assert data.load(tmp_path / "new.csv", types=later)["a"].tolist() == [9876]
    (tmp_path / "t.csv").write_text("a;b\n1.234;x\n5.678;y\n")  # nothing tells of a mark
    later = {name: type_of_record(own.kept()) for name, own in data.load(tmp_path / "t.csv").types.items()}
    (tmp_path / "new.csv").write_text("a;b\n9,5;x\n")
    assert data.load(tmp_path / "new.csv", types=later)["a"].tolist() == [9.5]


def test_the_index_of_a_table_is_a_column_where_it_has_a_name(tmp_path, caplog):
    frame = pd.DataFrame({"y": [1.5, 2.5]}, index=pd.Index(["b", "a"], name="town"))
    frame.to_parquet(tmp_path / "t.parquet")
    for found in (as_tensors(frame), data.load(tmp_path / "t.parquet")):
        assert found["town"].tolist() == [1, 0] and found["y"].tolist() == [1.5, 2.5]
    assert list(as_tensors(frame.reset_index(drop=True))) == ["y"]


def test_rows_and_tables_of_json(tmp_path):
    frame = pd.DataFrame({"g": ["b", "a"], "x": [1.5, None], "n": [1, 2]})
    for how in (None, "records"):
        frame.to_json(tmp_path / "t.json", orient=how)
        found = data.load(tmp_path / "t.json")
        assert found["g"].tolist() == [1, 0] and found["n"].tolist() == [1, 2] and found.types["x"].missing == 1
    (tmp_path / "t.json").write_text('{"x": [1, 2], "prior": {"scale": 2.0}}')
    assert data.load(tmp_path / "t.json")["prior"] == {"scale": 2.0}


def test_an_array_with_fields_is_a_table(tmp_path):
    array = np.array([(1, "b", 0.5), (2, "a", 1.5)], dtype=[("n", "i4"), ("g", "U3"), ("x", "f8")])
    assert as_tensors(array)["g"].tolist() == [1, 0]
    np.save(tmp_path / "t.npy", array)
    assert data.load(tmp_path / "t.npy")["x"].tolist() == [0.5, 1.5]


def test_columns_without_a_value_are_no_error():
    frame = pd.DataFrame({"d": pd.Series([None, None], dtype="datetime64[ns]"), "g": [None, None], "x": [np.nan] * 2})
    found = as_tensors(frame)
    assert all(column.isnan().all() for column in found.values()) and len(found) == 3
    assert as_tensors(pd.DataFrame({"n": [1234567.0, 2.5]}), "n=categorical").types["n"].levels == ("2.5", "1234567")


def test_a_frame_of_a_table_has_its_words():
    table = as_tensors(pd.DataFrame({"g": ["b", None, "a"], "x": [1.0, 2.0, 3.0], "r": ["low", "high", "low"]}))
    frame = table.frame()
    assert frame["g"].tolist() == ["b", np.nan, "a"] or frame["g"].isna().tolist() == [False, True, False]
    assert frame["r"].cat.ordered is False and frame["r"].tolist() == ["low", "high", "low"]
    assert frame["x"].tolist() == [1.0, 2.0, 3.0]


# -- the command line ------------------------------------------------------------------------------


def test_check_shows_the_types_of_a_table(tmp_path):
    (tmp_path / "t.csv").write_text("g,x,bad\noak,1.5,1\nash,?,two\nelm,2.5,3\n")
    call = lambda *a: CliRunner().invoke(cli.app, ["check", "--data", str(tmp_path / "t.csv"), *a])  # noqa: E731
    done = call()
    assert done.exit_code == 0 and "categorical" in done.output and "ash, elm, oak" in done.output, done.output
    assert "- x: '?' is taken as a missing cell" in done.output and "'two' in row 1" in done.output
    found = json.loads(call("--json", "--types", "g=ordered:oak<elm<ash").output)["columns"]
    assert found["g"]["kind"] == "ordered" and found["g"]["levels"] == ["oak", "elm", "ash"]
    assert found["x"]["missing"] == 1 and found["bad"]["kind"] == "unclear"
    done = call("--types", "g=ordered:oak<elm")
    assert done.exit_code == 2 and "holds 'ash', which is none of its levels" in done.stderr
    assert CliRunner().invoke(cli.app, ["check"]).exit_code == 2
