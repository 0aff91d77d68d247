"""Files that other packages write: Excel, HDF5, AnnData, Matlab, and what polars writes."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from scipy.io import savemat

from ppgen import data
from ppgen.errors import PpgenError

X = np.random.default_rng(0).normal(size=(6, 3))


def workbook(path, rows, merged=(), sheets=()):
    book = pytest.importorskip("openpyxl").Workbook()
    for row in rows:
        book.active.append(row)
    for cells in merged:
        book.active.merge_cells(cells)
    for name in sheets:
        book.create_sheet(name)
    book.save(path)
    return path


def test_cells_of_a_workbook_are_what_excel_shows(tmp_path, caplog):
    rows = [
        ["x", "town", "day", "flag", "code", "price", "at", None, 2001],
        [1.5, "Ulm", dt.datetime(2024, 1, 2), True, "007", "$1,234.5", dt.time(10, 30), None, 3],
        [None, None, None, None, None, None, None, None, None],
        [None, "Bonn", dt.datetime(2024, 1, 5), False, "012", "$6", dt.time(11, 0), None, 4],
    ]
    found = data.load(workbook(tmp_path / "a.xlsx", rows, sheets=["more"]))
    assert list(found) == ["x", "town", "day", "flag", "code", "price", "at", "2001"]
    assert found["x"].isnan().tolist() == [False, True] and found["town"].tolist() == [1, 0]
    assert found["day"].tolist() == [0, 3] and found["flag"].tolist() == [True, False]
    assert found.types["code"].levels == ("007", "012") and found["price"].tolist() == [1234.5, 6]
    assert found["at"].tolist() == [37800, 39600] and found["2001"].tolist() == [3, 4]
    assert "has 2 sheets, and the first, 'Sheet', is read" in caplog.text


WORKBOOKS = {
    "a title": ([["Report", None, None], ["a", "b", "c"], [1, 2, 3]], "as a title does"),
    "one name twice": ([["a", "a"], [1, 2]], "two columns are called 'a'"),
    "names alone": ([["a", "b"]], "its first sheet has no rows"),
    "nothing": ([], "its first sheet has no rows"),
    "words among numbers": ([["a"], [1], ["two"], [3]], "'a' holds numbers, but 'two' in row 1"),
}


@pytest.mark.parametrize("case", WORKBOOKS)
def test_a_workbook_that_cannot_be_read_is_one_sentence(case, tmp_path):
    rows, message = WORKBOOKS[case]
    with pytest.raises(PpgenError, match=message) as caught:
        data.load(workbook(tmp_path / "a.xlsx", rows))["a"]
    assert "\n" not in str(caught.value)


def test_the_first_sheet_with_rows_is_read_and_formulas_need_values(tmp_path, caplog):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.append(["read me"])
    rows = book.create_sheet("rows")
    for row in (["a", "b"], [1, 2], [3, 4]):
        rows.append(row)
    book.save(tmp_path / "a.xlsx")
    assert data.load(tmp_path / "a.xlsx")["b"].tolist() == [2, 4] and "the first with rows, 'rows'" in caplog.text
    rows["C1"], rows["C2"], rows["C3"] = "c", "=A2*2", "=A3*2"
    book.save(tmp_path / "a.xlsx")
    with pytest.raises(PpgenError, match="the column 'c' holds formulas .'=A2[*]2'. without values"):
        data.load(tmp_path / "a.xlsx")


def test_merged_cells_and_errors_of_a_workbook_are_said(tmp_path):
    cells = [("S", 1), (None, "#N/A"), (None, 3), ("N", 4), (None, 5), (None, "#REF!")]
    rows = [["region", "n", "k"], *([*row, i] for i, row in enumerate(cells))]
    found = data.load(workbook(tmp_path / "a.xlsx", rows, merged=["A2:A4", "A5:A7"]))
    assert "as merged cells are written" in found.types["region"].notes[0]
    assert found["n"].isnan().tolist() == [False, True, False, False, False, True] and len(found["k"]) == 6


def test_arrays_of_hdf5(tmp_path, caplog):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"], file["group/y"], file["K"] = X, np.arange(6), 4
        file["words"], file["fixed"] = ["b", "a", "b", "a", "b", "a"], np.array([b"u", b"v"] * 3)
        file["flag"] = np.array([True, False] * 3)
        file["table"] = np.array([(i, i / 2) for i in range(6)], dtype=[("i", "i4"), ("v", "f8")])
        file["none"], file["complex"] = h5py.Empty("f4"), np.ones(6, complex)
        kinds = h5py.enum_dtype({"low": 0, "high": 1}, basetype="i1")
        file.create_dataset("grade", data=np.arange(6) % 2, dtype=kinds)
    found = data.load(tmp_path / "a.h5")
    np.testing.assert_array_equal(found["x"], X)
    assert (
        found["group.y"].tolist() == list(range(6)) and found["K"] == 4 and found["flag"].tolist() == [True, False] * 3
    )
    assert found["words"].tolist() == [1, 0] * 3 and found.types["fixed"].levels == ("u", "v")
    assert found["i"].tolist() == list(range(6)) and found["v"].tolist() == [i / 2 for i in range(6)]
    assert found.types["grade"].levels == ("low", "high") and found.types["group.y"].kind == "count"
    assert not {"none", "complex"} & set(found)
    assert "'none' is empty" in caplog.text and "'complex' holds complex128" in caplog.text
    content = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "a.h5").write_bytes(content[: len(content) // 2])
    with pytest.raises(PpgenError, match="cannot be read as h5"):
        data.load(tmp_path / "a.h5")


def test_variables_of_matlab(tmp_path):
    names = np.array(["a", "bb", "c", "a", "c", "a"], dtype=object)
    savemat(
        tmp_path / "a.mat", {"x": X, "y": np.arange(6), "names": names, "title": "words", "k": 3.0, "s": {"u": X[0]}}
    )
    found = data.load(tmp_path / "a.mat")
    np.testing.assert_array_equal(found["x"], X)
    np.testing.assert_array_equal(found["s.u"], X[0])
    assert found["y"].tolist() == list(range(6)) and found["names"].tolist() == [0, 1, 2, 0, 2, 0]
    assert found["title"] == "words" and found["k"] == 3.0 and found.types["y"].kind == "count"
    people = np.array([(1.0, "a"), (2.0, "b")], dtype=[("age", "O"), ("name", "O")])
    savemat(tmp_path / "b.mat", {"p": people, "counts": sparse.csc_matrix(np.eye(2))})
    found = data.load(tmp_path / "b.mat")
    assert found["p.age"].tolist() == [1, 2] and found.types["p.name"].levels == ("a", "b")
    assert found["counts"].tolist() == [[1, 0], [0, 1]]


def test_a_matlab_file_that_is_hdf5_is_transposed(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.mat", "w", userblock_size=512) as file:
        file["x"], file["y"] = X.T, np.arange(6.0)[None]
    with (tmp_path / "a.mat").open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file")
    found = data.load(tmp_path / "a.mat")
    np.testing.assert_array_equal(found["x"], X)
    assert found["y"].tolist() == list(range(6))


def test_what_polars_holds_and_writes(tmp_path):
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame(
        {
            "x": [1.5, None, 2.5],
            "price": pl.Series(["1.5", "2.5", "3.5"]).cast(pl.Decimal(10, 2)),
            "at": [dt.time(1, 2), None, dt.time(3, 4)],
            "took": [dt.timedelta(hours=1)] * 3,
            "stamp": [dt.datetime(2024, 1, 1, 12), None, dt.datetime(2024, 1, 2)],
            "flag": [True, None, False],
            "grade": pl.Series(["lo", "hi", "lo"], dtype=pl.Enum(["lo", "hi"])),
            "many": [[1, 2], [3], [4]],
        }
    )
    found = data.as_tensors(frame)
    nan = float("nan")
    expected = {"x": [1.5, nan, 2.5], "price": [1.5, 2.5, 3.5], "at": [3720, nan, 11040], "took": [3600] * 3,
                "stamp": [0.5, nan, 1], "flag": [1, nan, 0], "grade": [0, 1, 0]}  # fmt: skip
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values)
    assert found.types["grade"].kind == "ordered" and "holds list" in found.types["many"].why
    frame.select("x", "grade").write_parquet(tmp_path / "a.parquet")
    frame.select("x", "grade").write_ipc(tmp_path / "a.feather")
    for name in ("a.parquet", "a.feather"):
        again = data.load(tmp_path / name)
        assert again["grade"].tolist() == [0, 1, 0] and again["x"].isnan().tolist() == [False, True, False], name
    assert data.as_tensors(frame.lazy().select("x"))["x"].isnan().tolist() == [False, True, False]


@pytest.mark.slow
def test_a_file_of_annotated_data(tmp_path):
    """Sparse counts, words with a gap, an order, matrices of obsm; whole, and left in its file."""
    anndata = pytest.importorskip("anndata")
    counts = sparse.csr_matrix(np.random.default_rng(0).poisson(1, (6, 4)).astype("f4"))
    obs = pd.DataFrame(
        {
            "batch": pd.Categorical(["a", "b", None, "a", "b", "a"]),
            "age": pd.Categorical(["young", "old"] * 3, ["young", "old"], ordered=True),
            "n": range(6),
        },
        index=pd.Index([f"cell {i}" for i in range(6)], dtype=object),
    )
    made = anndata.AnnData(counts, obs, pd.DataFrame(index=pd.Index(list("wxyz"), dtype=object)))
    made.obsm["pca"], made.obsm["sparse"] = X, sparse.csr_matrix(np.eye(6))
    if hasattr(anndata.settings, "allow_write_nullable_strings"):
        anndata.settings.allow_write_nullable_strings = True
    made.write_h5ad(tmp_path / "a.h5ad")
    kept = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    for found in (data.load(tmp_path / "a.h5ad"), data.as_tensors(made), data.as_tensors(kept)):
        assert torch.equal(found["x"], torch.as_tensor(counts.toarray())) and torch.equal(
            found["sparse"], torch.eye(6).double()
        )
        np.testing.assert_array_equal(found["pca"], X)
        np.testing.assert_array_equal(found["batch"], [0, 1, np.nan, 0, 1, 0])
        assert found.types["age"].kind == "ordered" and found["age"].tolist() == [0, 1] * 3
    content = (tmp_path / "a.h5ad").read_bytes()
    (tmp_path / "b.h5ad").write_bytes(content[: len(content) // 3])
    with pytest.raises(PpgenError, match="cannot be read as h5ad"):
        data.load(tmp_path / "b.h5ad")
