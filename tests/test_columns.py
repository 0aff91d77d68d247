"""Anything with columns -> tensors: dtypes, text, gathering, and what is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from ppgen.data.columns import as_tensors, parse_columns, select
from ppgen.errors import PpgenError

DTYPES = [
    (np.zeros(3, np.float64), torch.float64),
    (np.zeros(3, np.float32), torch.float32),
    (np.zeros(3, np.float16), torch.float16),
    (np.zeros(3, ">f8"), torch.float64),
    (np.zeros(3, ">i4"), torch.int64),
    (np.zeros(3, np.int8), torch.int64),
    (np.zeros(3, np.uint16), torch.int64),
    (np.zeros(3, np.uint8), torch.int64),
    (np.zeros((3, 4), np.uint8), torch.uint8),
    (np.zeros(3, bool), torch.bool),
    (np.float64(2.0), torch.float64),
    ([1, 2.5], torch.float32),
    ([True, False], torch.bool),
    (torch.zeros(3, dtype=torch.bfloat16), torch.bfloat16),
    (torch.zeros(3, dtype=torch.int32), torch.int64),
    ([torch.zeros(2), torch.ones(2)], torch.float32),
]


@pytest.mark.parametrize(("value", "dtype"), DTYPES, ids=lambda v: str(v)[:24])
def test_dtype(value, dtype):
    column = as_tensors({"x": value})["x"]
    assert column.dtype == dtype
    assert column.shape == (() if np.ndim(value) == 0 else np.shape(torch.as_tensor(column)))


@pytest.mark.parametrize("view", [np.arange(6.0)[::-2], np.arange(6.0).reshape(2, 3).T])
def test_strided_and_read_only_arrays(view):
    view.flags.writeable = False
    assert np.array_equal(as_tensors(view)["x"].numpy(), view)


def test_bare_values_are_x():
    for bare in (torch.ones(2, 3), np.ones((2, 3)), [[1.0] * 3] * 2, pd.Series([1.0, 2.0])):
        assert list(as_tensors(bare)) == ["x"]


def test_tensor_that_asks_for_gradients_is_detached():
    assert not as_tensors(torch.ones(2, requires_grad=True))["x"].requires_grad


def test_frame():
    frame = pd.DataFrame(
        {
            "a": [1.5, 2.5],
            "n": [1, 2],
            "flag": [True, False],
            "text": ["z", "b"],
            "size": pd.Categorical(["small", "large"], categories=["small", "large"]),
            "maybe": pd.array([1, None], dtype="Int64"),
            3: [0, 1],
        }
    )
    columns = as_tensors(frame)
    assert list(columns) == ["a", "n", "flag", "text", "size", "maybe", "3"]
    assert columns["a"].dtype == torch.float64
    assert columns["text"].tolist() == [1, 0]
    assert columns["size"].tolist() == [0, 1], "a categorical keeps its own order"
    assert columns["maybe"][0] == 1 and columns["maybe"].isnan().tolist() == [False, True]
    matrix = as_tensors({"x": frame[["a", "n"]], "y": frame["text"]})
    assert matrix["x"].tolist() == [[1.5, 1.0], [2.5, 2.0]]
    assert matrix["y"].tolist() == [1, 0]


def test_dataset_and_tree():
    dataset = xr.Dataset({"y": ("row", [1.0, 2.0])}, coords={"row": ["a", "b"]})
    constants = xr.Dataset({"sigma": ("row", [3.0, 4.0])})
    assert as_tensors(dataset)["y"].tolist() == [1.0, 2.0]
    tree = xr.DataTree.from_dict({"observed_data": dataset, "constant_data": constants})
    assert set(as_tensors(tree)) == {"y", "sigma"}
    with pytest.raises(PpgenError, match="posterior"):
        as_tensors(xr.DataTree.from_dict({"posterior": dataset}))


def test_text_that_spells_numbers_is_numbers():
    columns = as_tensors({"a": ["2", "10"], "b": ["0.5", "1e3"], "c": [b"u", b"t"]})
    assert columns["a"].tolist() == [2, 10] and columns["a"].dtype == torch.int64
    assert columns["b"].tolist() == [0.5, 1000.0] and columns["b"].dtype == torch.float32
    assert as_tensors({"a": ["1_0", "b"]})["a"].tolist() == [0, 1]


REFUSED = {
    "a name": ("digits", "ppgen.data.load"),
    "nothing": (None, "expected columns"),
    "ragged": ({"x": [[1], [1, 2]]}, "'x'.*ragged"),
    "number and text": ({"x": ["1", "2", "abc"]}, "'abc' in row 2"),
    "objects": ({"x": np.array([{}, {}], dtype=object)}, "'x'.*holds dict"),
    "nested object array": ({"x": np.array([[1], [1, 2]], dtype=object)}, "'x'.*holds list"),
    "text in two dimensions": ({"x": [["a", "b"]]}, r"shape \(1, 2\)"),
    "sparse": ({"x": torch.eye(3).to_sparse()}, "to_dense"),
    "unsigned overflow": ({"x": np.array([2**64 - 1], np.uint64)}, "64 bits"),
    "long double": ({"x": np.zeros(2, np.longdouble)}, "float128.*float64|longdouble"),
    "one name twice": (pd.DataFrame([[1, 2]], columns=["a", "a"]), "two columns.*'a'"),
}


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_refused(case):
    data, message = REFUSED[case]
    with pytest.raises(PpgenError, match=message):
        as_tensors(data)


GAPS = {
    "none in a list": ({"x": [1.0, None]}, [1, np.nan]),
    "masked": ({"x": np.ma.masked_array([1.0, 2.0], [0, 1])}, [1, np.nan]),
    "masked matrix": ({"x": np.ma.masked_array([[1, 2]], [[0, 1]])}, [[1, np.nan]]),
    "a category": (pd.DataFrame({"x": pd.Categorical(["a", None])}), [0, np.nan]),
    "a boolean": (pd.DataFrame({"x": [True, None, False]}), [1, np.nan, 0]),
    "a date": ({"x": np.array(["2020-01-01", "NaT", "2020-01-03"], "M8[D]")}, [0, np.nan, 2]),
    "words for none": ({"x": ["1", "?", "None"]}, [1, np.nan, np.nan]),
}


@pytest.mark.parametrize("case", GAPS, ids=str)
def test_a_missing_cell_is_nan(case):
    data, expected = GAPS[case]
    np.testing.assert_array_equal(as_tensors(data)["x"], expected)


def test_parse_columns():
    assert parse_columns("x=pixels,y=label") == {"x": "pixels", "y": "label"}
    assert parse_columns(" x = a + b ") == {"x": ["a", "b"]}
    assert parse_columns("x=pixel*,when=a=b") == {"x": "pixel*", "when": "a=b"}


@pytest.mark.parametrize("text", ["", "x", "x=", "=a", "x=a+", "x=a,,y=b", "x=a,x=b"])
def test_parse_columns_refuses(text):
    with pytest.raises(PpgenError, match="columns="):
        parse_columns(text)


RAW = {
    "p1": np.array([1, 2]),
    "p0": np.array([0.5, 1.5], np.float32),
    "m": np.ones((2, 3), np.float32),
    "g": np.array(["u", "v"]),
    "k": np.ones(5),
    "s": np.float64(1),
}


def test_select_renames_and_gathers():
    chosen = select(RAW, {"x": ["p0", "p1", "m"], "y": "g", "z": ["p1"]})
    assert chosen["x"].tolist() == [[0.5, 1, 1, 1, 1], [1.5, 2, 1, 1, 1]]
    assert chosen["x"].dtype == torch.float32
    assert chosen["y"].tolist() == [0, 1]
    assert chosen["z"].shape == (2, 1)
    assert set(chosen) == {"x", "y", "z"}
    assert torch.equal(select(RAW, "x=p*")["x"], select(RAW, {"x": ["p1", "p0"]})["x"])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"x": "P0"}, "no column 'P0' .did you mean 'p0'"),
        ({"x": "income"}, "no column 'income'; it has p1, p0"),
        ({"x": ["p0", "q*"]}, r"no column 'q\*'"),
        ({"x": ["p0", "g"]}, "'g'.*text.*argument of its own"),
        ({"x": ["p0", "k"]}, r"differ in length \(p0 \(2,\), k \(5,\)\)"),
        ({"x": ["p0", "s"]}, "differ in length"),
        ({"x": []}, "empty list"),
    ],
)
def test_select_refuses(columns, message):
    with pytest.raises(PpgenError, match=message):
        select(RAW, columns, "the table")


def test_rows_as_dicts():
    assert as_tensors([{"x": 1.5, "g": "b"}, {"x": 2.0, "g": "a"}])["g"].tolist() == [1, 0]
    assert as_tensors([{"x": torch.ones(2)}, {"x": torch.zeros(2)}])["x"].shape == (2, 2)
    for loader in (torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(3))), iter([{"x": 1.0}])):
        with pytest.raises(PpgenError, match="gives batches of its own, expected all rows by column"):
            as_tensors(loader)


def test_series_of_the_same_rows_in_another_order_are_refused():
    x, y = pd.Series([1.0, 2.0, 3.0], index=["a", "b", "c"]), pd.Series([3.0, 1.0, 2.0], index=["c", "a", "b"])
    with pytest.raises(PpgenError, match="'x' and 'y' have the same index in another order"):
        as_tensors({"x": x, "y": y})
    assert as_tensors({"x": x, "y": y.reset_index(drop=True)})["y"].tolist() == [3.0, 1.0, 2.0]
    assert as_tensors(pd.DataFrame({"x": x, "y": y}))["y"].tolist() == [1.0, 2.0, 3.0]
