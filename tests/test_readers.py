"""Every format: round trip, a truncated copy, and each way a file can be wrong."""

from __future__ import annotations

import csv
import gzip
import json
import os
import struct
import sys
import warnings

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.numpy import save_file

from ppgen import data
from ppgen.data.files import readers
from ppgen.errors import PpgenError
from ppgen.run import sources

X = np.random.RandomState(0).randn(40, 3).astype(np.float32)
Y = np.arange(40) % 4


def idx(array, code):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write(path):
    """Write X (and Y, where the format has more than one column) and return the path."""
    name = path.name
    if name.endswith(".npz"):
        np.savez_compressed(path, x=X, y=Y)
    elif name.endswith(".npy"):
        np.save(path, X)
    elif ".csv" in name:
        with gzip.open(path, "wt") if name.endswith("gz") else path.open("w") as file:
            rows = csv.writer(file)
            rows.writerow(["x0", "x1", "x2", "y"])
            rows.writerows([*map(repr, map(float, x)), int(y)] for x, y in zip(X, Y, strict=True))
    elif ".json" in name:
        text = json.dumps({"x": X.tolist(), "y": Y.tolist(), "K": 4}).encode()
        path.write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    elif name.endswith(".nc"):
        dataset = xr.Dataset({"x": (("row", "column"), X), "y": ("row", Y)})
        dataset.to_netcdf(path, engine="h5netcdf")
    elif name.endswith(".safetensors"):
        save_file({"x": X, "y": Y}, path)
    else:
        content = idx(X, 13)
        path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    return path


FORMATS = [
    "a.npz",
    "a.npy",
    "a.csv",
    "a.csv.gz",
    "a.json",
    "a.json.gz",
    "a.nc",
    "a.safetensors",
    "x-idx2-ubyte",
    "x.idx2-ubyte.gz",
    "anything.dat",
    "anything.gz",
]


@pytest.mark.parametrize("name", FORMATS)
def test_round_trip(tmp_path, name):
    path = write(tmp_path / name)
    loaded = data.load(path, columns={"x": "x*"})
    assert torch.equal(loaded["x"], torch.from_numpy(X))
    if name.startswith("a.") and name != "a.npy":
        y = data.load(str(path))["y"]
        assert y.dtype == torch.int64 and torch.equal(y, torch.from_numpy(Y))


@pytest.mark.parametrize("keep", [0, 1, 20, 0.3, 0.7, -1])
@pytest.mark.parametrize("name", FORMATS)
def test_truncated(tmp_path, name, keep):
    whole = write(tmp_path / name).read_bytes()
    if keep == -1 and name == "a.csv":
        pytest.skip("all that is lost is the last line's end")
    at = int(keep * len(whole)) if isinstance(keep, float) else keep
    if name == "a.csv":  # a cut inside a cell's digits leaves a smaller table that is as good
        at = max(whole.rfind(b",", 0, at), 1) if at > 20 else at
    (tmp_path / name).write_bytes(whole[:at])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PpgenError) as caught:
            data.load(tmp_path / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [n for n in FORMATS if n.startswith("a.")])
def test_another_format_under_that_name(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04\x95\xff\x00 neither this nor that" * 9)
    with pytest.raises(PpgenError, match="cannot be read as"):
        data.load(tmp_path / name)


def test_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    import pandas as pd

    path = tmp_path / "a.parquet"
    pd.DataFrame({"a": X[:, 0], "y": Y, "g": ["u", "v"] * 20}).to_parquet(path)
    loaded = data.load(path)
    assert torch.equal(loaded["a"], torch.from_numpy(X[:, 0]))
    assert loaded["g"].tolist() == [0, 1] * 20
    content = path.read_bytes()
    for at in (0, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:at])
        with pytest.raises(PpgenError, match="cannot be read as parquet"):
            data.load(path)


def test_parquet_without_pyarrow_names_the_package(tmp_path, monkeypatch):
    for package in ("pyarrow", "fastparquet"):
        monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(PpgenError, match="pip install pyarrow"):
        data.load(tmp_path / "a.parquet")


class Trap:
    """Says so when it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was run",)


@pytest.mark.parametrize("name", ["a.npz", "a.npy", "a.pkl", "a.pt", "a.csv", "a.json"])
def test_pickles_are_never_run(tmp_path, name):
    path, objects = tmp_path / name, np.array([Trap()], dtype=object)
    if name == "a.npz":
        np.savez(path, x=objects)
    elif name == "a.npy":
        np.save(path, objects, allow_pickle=True)
    else:
        objects.dump(path)
    with pytest.raises(PpgenError, match="pickle|cannot be read"):
        data.load(path)


def test_bare_pickle_under_a_numpy_name(tmp_path):
    np.array([Trap()], dtype=object).dump(tmp_path / "a.npy")
    with pytest.raises(PpgenError, match="does not begin like a numpy file"):
        data.load(tmp_path / "a.npy")


def test_csv_without_header_is_one_matrix(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("1,2.5,0\n3,4.5,1\n")
    assert data.load(path)["x"].tolist() == [[1, 2.5, 0], [3, 4.5, 1]]
    chosen = data.load(path, columns="x=0+1,y=2")
    assert chosen["x"].tolist() == [[1, 2.5], [3, 4.5]] and chosen["y"].tolist() == [0, 1]
    assert data.load(path, columns={"z": "x"})["z"].shape == (2, 3)


def test_a_row_of_data_in_the_place_of_names_is_said(tmp_path, caplog):
    path = tmp_path / "a.csv"
    path.write_text("country,1990,2000\nCH,1,2\n")
    data.load(path)
    assert not caplog.records
    path.write_text("3,ash\n4,elm\n")
    data.load(path)
    assert "gives the names of its columns, of which one is '3'" in caplog.text


def test_csv_dtypes_and_text(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes('\ufeff"",n,x, flag ,county\n1,1,0.5,True,"Lake, N"\n\n2,2,NA,False,AITKIN\n'.encode())
    loaded = data.load(path)
    assert list(loaded) == ["index", "n", "x", "flag", "county"]
    assert loaded["n"].dtype == torch.int64 and loaded["x"].dtype == torch.float32
    assert loaded["x"].isnan().tolist() == [False, True]
    assert loaded["flag"].tolist() == [True, False]
    assert loaded["county"].tolist() == [1, 0]
    torch.set_default_dtype(torch.float64)
    try:
        assert data.load(path)["x"].dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


CSV = {
    "text in a bare table": ("1,2\n3,abc\n", "column '1'.*'abc' in row 1"),
    "long row": ("a,b\n1,2\n3,4,5\n", "line 3 has 3 cells, expected 2"),
    "short row": ("a,b\n1,2\n3\n5,6\n", "line 3 has 1 cells, expected 2"),
    "open quote": ('a,b\n1,"2\n', "cannot be read as csv"),
    "empty": ("", "it is empty"),
    "blank": ("\n\n", "it is empty"),
    "no rows": ("a,b\n", "all-zero-length"),
    "zero bytes": ("a\0,\0b\0\n\0", "zero bytes"),
    "no header": ("1.5,ash\n2.5,elm\n", "has '1.5', as a row of data has"),
    "header twice": ("a,a\n1,2\n", "two columns are called 'a'"),
}


@pytest.mark.parametrize("case", CSV, ids=str)
def test_csv_refused(tmp_path, case):
    text, message = CSV[case]
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(PpgenError, match=message):
        data.load(tmp_path / "a.csv")


def test_csv_bad_column_can_be_left_out(tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n1,2\n3,abc\n")
    table = data.load(tmp_path / "a.csv")
    assert list(table) == ["a"] and table.types["b"].kind == "unclear"
    for ask in (lambda: table["b"], lambda: data.load(tmp_path / "a.csv", columns="y=b")):
        with pytest.raises(PpgenError, match="column 'b'.*'abc' in row 1"):
            ask()
    assert data.load(tmp_path / "a.csv", columns="y=a")["y"].tolist() == [1, 3]


JSON = {
    "ragged": ('{"x": [[1, 2], [3]]}', "column 'x'.*ragged"),
    "list": ("[1, 2]", "top level is a list"),
    "empty": ("{}", "no columns"),
    "zero rows": ('{"x": [], "y": []}', "all-zero-length"),
    "a name twice": ('{"x": [1, 2], "x": [3, 4]}', "two values called 'x'; give each"),
    "two documents": ('{"x": 1} {"x": 2}', "cannot be read as json"),
}


@pytest.mark.parametrize("case", JSON, ids=str)
def test_json_refused(tmp_path, case):
    text, message = JSON[case]
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(PpgenError, match=message):
        data.load(tmp_path / "a.json")


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_row_of_json_lines_with_a_name_twice_is_refused(tmp_path, pack):
    """pandas takes the last value, without a word."""
    file = tmp_path / ("a.jsonl" if pack is bytes else "a.jsonl.gz")
    file.write_bytes(pack(b'{"x": 1, "y": 2}\n\n{"x": 3, "y": 4, "x": 5}\n'))
    with pytest.raises(PpgenError, match="line 3: an object has two values called 'x'"):
        data.load(file)
    file.write_bytes(pack(b'{"x": 1, "y": 2}\n\n{"x": 3, "y": 4}\n'))
    assert data.load(file)["x"].tolist() == [1, 3]


def test_numbers_of_json_lines_are_read_to_their_last_digit(tmp_path):
    """pandas' own reader of them loses it in some."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=500).tolist()
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"x": x, "n": None if i == 3 else i}) + "\n" for i, x in enumerate(values)))
    found = readers._json_lines(file)
    assert np.asarray(found["x"]).tolist() == values and np.isnan(np.asarray(found["n"], float)[3])


@pytest.mark.parametrize(
    ("text", "message"),
    [("[1]", "line 2 is a list; expected an object"), ('{"x":', "line 2, column 6: Expecting value")],
)
def test_a_line_that_is_no_object_is_named(tmp_path, text, message):
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n' + text + "\n")
    with pytest.raises(PpgenError, match=message):
        data.load(tmp_path / "a.jsonl")


def test_json_as_stan_writes_it(tmp_path):
    (tmp_path / "a.json").write_text('{"J": 3, "y": [28, 8, -3], "sigma": [15.0, 10, 16]}')
    loaded = data.load(tmp_path / "a.json")
    assert type(loaded["J"]) is int and loaded["J"] == 3
    assert loaded["y"].dtype == torch.int64 and loaded["sigma"].dtype == torch.float32
    assert data.row_columns(loaded) == ("y", "sigma")


def test_netcdf_groups(tmp_path):
    tree = xr.DataTree.from_dict(
        {
            "posterior": xr.Dataset({"mu": (("chain", "draw"), np.zeros((2, 9)))}),
            "observed_data": xr.Dataset({"y": ("school", [1.0, 2.0])}),
            "constant_data": xr.Dataset({"sigma": ("school", [3.0, 4.0])}),
        }
    )
    tree.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    loaded = data.load(tmp_path / "a.nc")
    assert {name: c.tolist() for name, c in loaded.items()} == {"sigma": [3, 4], "y": [1, 2]}
    tree["/posterior"].to_netcdf(tmp_path / "b.nc", engine="h5netcdf")
    assert list(data.load(tmp_path / "b.nc")) == ["mu"]


IDX = [("B", 8), ("b", 9), ("i2", 11), ("i4", 12), ("f4", 13), ("f8", 14)]


@pytest.mark.parametrize(("dtype", "code"), IDX)
def test_idx_types(tmp_path, dtype, code):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    (tmp_path / "x-idx3-ubyte").write_bytes(idx(array, code))
    assert np.array_equal(data.load(tmp_path / "x-idx3-ubyte")["x"].numpy(), array)


def test_damaged_gzip(tmp_path):
    """A wrong byte inside is another error of the library than an end that comes too soon."""
    for name in (n for n in FORMATS if n.endswith("gz")):
        content = bytearray(write(tmp_path / name).read_bytes())
        content[10:40] = b"\xff" * 30
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PpgenError, match=name):
            data.load(tmp_path / name)


def test_idx_with_bytes_to_spare(tmp_path):
    (tmp_path / "x-idx2-ubyte").write_bytes(idx(X, 13) + b"\0")
    with pytest.raises(PpgenError, match=r"497 bytes|bytes where shape \(40, 3\) needs"):
        data.load(tmp_path / "x-idx2-ubyte")


def test_paths(tmp_path, monkeypatch):
    (tmp_path / "radon.cvs").write_text("a\n1\n")
    np.save(tmp_path / "faces.npy", X)
    with pytest.raises(PpgenError, match="unknown extension '.cvs' .did you mean '.csv'"):
        data.load(tmp_path / "radon.cvs")
    with pytest.raises(PpgenError, match="did you mean 'faces.npy'"):
        data.load(tmp_path / "face.npy")
    with pytest.raises(PpgenError, match="did you mean 'digits'"):
        data.load("digit")
    with pytest.raises(PpgenError, match="one of digits, eight_schools"):
        data.load(tmp_path / "qqqq" / "zzzz.npy")
    with pytest.raises(PpgenError, match="is a folder"):
        data.load(tmp_path)
    with pytest.raises(PpgenError, match="expected a name or a path"):
        data.load({"x": X})
    monkeypatch.setenv("HOME", str(tmp_path))
    assert torch.equal(data.load("~/faces.npy")["x"], torch.from_numpy(X))


def test_empty_npz(tmp_path):
    np.savez(tmp_path / "a.npz")
    with pytest.raises(PpgenError, match="no columns"):
        data.load(tmp_path / "a.npz")


def test_a_csv_in_pieces_is_that_read_at_once(tmp_path, monkeypatch):
    """A piece is constant, which float32 would do for by itself, in a column that it rounds away; and others."""
    from ppgen.data.files import csv as module

    n = 4000
    near = np.where(np.arange(n) < 2000, 0.001 * np.arange(n), 5_712_000 + 0.01 * np.arange(n))
    far = np.where(np.arange(n) < 2000, 5_712_000 + 0.01 * np.arange(n), 1e9 * np.arange(n))
    steady = 20_000_001 + 0.01 * np.maximum(np.arange(n) - 1000, 0)
    lines = [
        f"{a!r},{b!r},{c!r},{i % 7}"
        for i, (a, b, c) in enumerate(zip(*map(np.ndarray.tolist, (near, far, steady)), strict=True))
    ]
    (tmp_path / "a.csv").write_text("\n".join(["near,far,steady,n", *lines]) + "\n")
    whole = data.load(tmp_path / "a.csv")
    monkeypatch.setattr(module, "SMALL", 0)
    monkeypatch.setattr(module, "CELLS", 4000)
    parts = data.load(tmp_path / "a.csv")
    assert [c.dtype for c in whole.values()] == [torch.float32, torch.float32, torch.float64, torch.int64]
    for name, column in whole.items():
        torch.testing.assert_close(parts[name], column, rtol=0, atol=0)


def test_a_word_that_is_asked_for_is_no_missing_cell_of_a_csv(tmp_path):
    (tmp_path / "a.csv").write_text("c,x\nDE,1\nNA,NA\nFR,3\n")
    table = data.load(tmp_path / "a.csv", types="c=categorical:DE<FR<NA")
    assert table["c"].tolist() == [0, 2, 1] and table["x"].isnan().tolist() == [False, True, False]


def test_a_pipe_is_refused_by_the_name_that_was_given(tmp_path):
    pipe, link = tmp_path / "rows.csv", tmp_path / "stdin"
    os.mkfifo(pipe)
    link.symlink_to(pipe)  # as /dev/stdin is one to what has no name
    for spec in (str(pipe), str(link), "-"):
        with pytest.raises(PpgenError, match=f"^{spec} is no file but a pipe or a device, .* to a file first"):
            data.load(spec)
    assert sources._absolute(str(link), None) == str(link)
