"""Splits, rows, minibatches, checks and fingerprints."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppgen import data
from ppgen.errors import PpgenError

SPLITS = ("train", "valid", "test")


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("n", [10, 11, 19, 1797])
def test_seeded_split_is_a_partition(tmp_path, n):
    path = save(tmp_path / "a.npz", x=np.arange(n), k=np.arange(3))
    parts = [data.load(path, split) for split in SPLITS]
    assert sorted(torch.cat([p["x"] for p in parts]).tolist()) == list(range(n))
    assert all(torch.equal(p["k"], torch.arange(3)) for p in parts), "constants are whole"
    sizes = [len(p["x"]) for p in parts]
    assert min(sizes) >= 1 and abs(sizes[0] - 0.8 * n) < 1 and abs(sizes[1] - 0.1 * n) < 1
    assert data.load(path)["x"].tolist() == list(range(n)), "'all' is the source as it is"
    assert data.splits(path) == ()


def test_split_depends_on_its_seed_alone(tmp_path):
    path = save(tmp_path / "a.npz", x=np.arange(100))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = data.load(path, "train")["x"]
    assert torch.equal(state, torch.get_rng_state()), "the global generator is not touched"
    torch.manual_seed(2)
    assert torch.equal(first, data.load(path, "train")["x"])
    assert not torch.equal(first, data.load(path, "train", seed=1)["x"])
    assert first.tolist() != sorted(first.tolist())


def test_too_few_rows_to_split(tmp_path):
    path = save(tmp_path / "a.npz", x=np.arange(9))
    with pytest.raises(PpgenError, match="9 rows.*use split 'all'"):
        data.load(path, "test")


def test_splits_of_the_file(tmp_path):
    path = save(
        tmp_path / "a.npz",
        train=np.zeros((30, 2)),
        valid=np.ones((4, 2)),
        test=np.full((5, 2), 2.0),
        y_train=np.arange(30),
        y_valid=np.arange(4),
        y_test=np.arange(5),
        width=np.array(2),
        scale=np.array([1.0, 2.0]),
    )
    assert data.splits(path) == SPLITS
    for i, (split, n) in enumerate(zip(SPLITS, (30, 4, 5), strict=True)):
        part = data.load(path, split)
        assert part["x"].shape == (n, 2) and (part["x"] == i).all()
        assert part["y"].tolist() == list(range(n))
        assert part["width"] == 2 and part["scale"].tolist() == [1, 2]
        assert data.row_columns(part) == ("x", "y")
    joined = data.load(path)
    assert joined["x"][:, 0].tolist() == [0] * 30 + [1] * 4 + [2] * 5
    assert joined["scale"].shape == (2,)
    assert data.load(path, "test", columns={"label": "y"})["label"].tolist() == list(range(5))


@pytest.mark.parametrize("n", [2, 9, 10, 57])
def test_valid_is_held_out_of_train(tmp_path, n):
    path = save(tmp_path / "a.npz", x_train=np.arange(n), x_test=np.arange(100, 104))
    train, valid, test = (data.load(path, split)["x"].tolist() for split in SPLITS)
    assert sorted(train + valid) == list(range(n)) and len(valid) == max(1, n // 10)
    assert test == [100, 101, 102, 103]
    assert data.load(path)["x"].tolist() == [*range(n), *test]
    assert data.splits(path) == SPLITS


SPLIT_ERRORS = {
    "unknown split": ({"x": np.ones(20)}, "tset", "no split 'tset' .did you mean 'test'"),
    "no test": ({"x_train": np.ones(9), "x_valid": np.ones(2)}, "test", "no split 'test'"),
    "one row": ({"x_train": np.ones(1), "x_test": np.ones(2)}, "train", "one row in train"),
    "lengths": (
        {"x_train": np.ones(9), "y_train": np.ones(8), "x_test": np.ones(2)},
        "train",
        "'train' differ in length.*x 9, y 8",
    ),
    "constant as long as a split": (
        {"x_train": np.ones(9), "x_test": np.ones(2), "w": np.ones(5)},
        "test",
        "w 5 belongs to no split",
    ),
    "label of one split only": (
        {"x_train": np.ones(9), "y_train": np.ones(9), "x_test": np.ones(2)},
        "all",
        "'y' is not the same",
    ),
    "widths": (
        {"x_train": np.ones((9, 2)), "x_test": np.ones((4, 3))},
        "all",
        "'x' is not the same",
    ),
    "named twice": (
        {"x_val": np.ones(3), "x_valid": np.ones(3), "x_train": np.ones(9)},
        "train",
        "'x' of split 'valid' twice",
    ),
}


@pytest.mark.parametrize("case", SPLIT_ERRORS, ids=str)
def test_split_errors(tmp_path, case):
    arrays, split, message = SPLIT_ERRORS[case]
    with pytest.raises(PpgenError, match=message):
        data.load(save(tmp_path / "a.npz", **arrays), split)


def test_no_train_is_no_split(tmp_path):
    path = save(tmp_path / "a.npz", x_test=np.ones(20), y_test=np.ones(20))
    assert data.splits(path) == ()
    assert data.load(path, columns="x=x_test")["x"].shape == (20,)


def test_rows_and_constants():
    columns = {"x": torch.ones(6, 2), "y": torch.arange(6), "w": torch.ones(2), "k": torch.ones(())}
    assert data.n_rows(columns) == 6 and data.row_columns(columns) == ("x", "y")
    for index in (torch.tensor([4, 1]), slice(2, 4)):
        part = data.take(columns, index)
        assert torch.equal(part["y"], columns["y"][index]) and part["x"].shape == (2, 2)
        assert part["w"] is columns["w"] and part["k"] is columns["k"]
    scalars = {"n": torch.tensor(10), "y": torch.tensor(7)}
    assert data.n_rows(scalars) == 1 and data.row_columns(scalars) == ()


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 40), st.integers(1, 90), st.integers(-5, 2**40), st.integers(0, 30))
def test_batches_are_one_stream_of_permutations(n, size, seed, first):
    """Batch by batch, from any step on, equals the stream written out at once."""
    steps = range(first, first + 3)
    stream = torch.cat([data.batch_index(s, n, size, seed) for s in steps])
    assert stream.dtype == torch.int64 and len(stream) == 3 * size
    epochs = range(first * size // n, math.ceil((first + 3) * size / n))
    whole = torch.cat([data.batch_index(e, n, n, seed) for e in epochs])
    start = first * size - epochs[0] * n
    assert torch.equal(stream, whole[start : start + 3 * size])
    assert all(sorted(epoch.tolist()) == list(range(n)) for epoch in whole.split(n))


def test_batches_follow_the_seed_and_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    a, b = (torch.cat([data.batch_index(e, 99, 99, seed) for e in range(3)]) for seed in (0, 1))
    assert torch.equal(state, torch.get_rng_state())
    epochs = [*a.split(99), *b.split(99)]
    assert len({tuple(e.tolist()) for e in epochs}) == 6, "no epoch of one seed is in another"


def test_batch_is_a_copy():
    first = data.batch_index(0, 20, 20, 0)
    expected = first.clone()
    first.zero_()
    assert torch.equal(data.batch_index(0, 20, 20, 0), expected)


def test_batch_order_is_fixed_for_good():
    """A run resumed under a later version has to see the same rows."""
    assert data.batch_index(0, 10, 10, 0).tolist() == [3, 2, 4, 7, 5, 6, 8, 9, 1, 0]


def test_each_row_comes_equally_often_at_each_place():
    first = torch.tensor([int(data.batch_index(e, 10, 10, 3)[0]) for e in range(3000)])
    counts = torch.bincount(first, minlength=10).double()
    # chi-squared with 9 degrees of freedom: 0.9999 quantile 33.7
    assert ((counts - 300) ** 2 / 300).sum() < 33.7


def test_a_batch_costs_microseconds():
    data.batch_index(0, 1_000_000, 100, 0)
    start = time.perf_counter()
    for step in range(1000):
        data.batch_index(step, 1_000_000, 100, 0)
    assert time.perf_counter() - start < 1.0


@pytest.mark.parametrize("arguments", [(-1, 5, 1), (0, 0, 1), (0, 5, 0)])
def test_no_such_batch(arguments):
    with pytest.raises(PpgenError, match="no minibatch"):
        data.batch_index(*arguments, seed=0)


NAN, INF = float("nan"), float("inf")
BROKEN = {
    "no rows": ({"x": torch.ones(0, 3), "y": torch.ones(0)}, r"all-zero-length.*x \(0, 3\)"),
    "nan": (
        {"y": torch.ones(3), "x": torch.tensor([[1.0, 2], [NAN, 1], [NAN, NAN]])},
        r"'x' of shape \(3, 2\) has 3 NaN values, the first in row 1",
    ),
    "infinite": ({"x": torch.tensor([1.0, 2.0, -INF])}, "1 infinite values, the first in row 2"),
    "both": ({"x": torch.tensor([INF, NAN])}, "1 NaN and 1 infinite values, the first in row 0"),
    "scalar": ({"x": torch.ones(2), "k": torch.tensor(NAN)}, "'k' of shape"),
    "objects": ({"x": np.array([{}], dtype=object)}, "'x'.*holds dict"),
    "lengths": ({"x": torch.ones(100, 2), "y": torch.ones(99)}, "x has 100 rows and y has 99"),
}


@pytest.mark.parametrize("case", BROKEN, ids=str)
def test_validate_names_what_is_wrong(case):
    columns, message = BROKEN[case]
    with pytest.raises(PpgenError, match=message):
        data.validate(columns)


@pytest.mark.parametrize(
    "columns",
    [
        {"x": torch.ones(3, 2), "y": torch.tensor([1, 2, 3]), "b": torch.tensor([True])},
        {"x": torch.ones(29), "y": torch.ones(30, 29)},  # times beside one curve a row
        {"y": torch.ones(100), "u": torch.ones(99)},
        {"x": torch.ones(3, 2, dtype=torch.uint8), "empty": torch.ones(0)},
        {"n": torch.tensor(10), "y": torch.tensor(7)},
    ],
    ids=["rows", "curves", "groups", "empty constant", "scalars"],
)
def test_validate_passes(columns):
    data.validate(columns)


def test_fingerprint():
    columns = {"x": torch.arange(6.0).reshape(3, 2), "k": torch.tensor(3), "b": torch.ones(0)}
    found = data.fingerprint(columns)
    assert found["columns"]["x"]["shape"] == [3, 2]
    assert found["columns"]["k"]["dtype"] == "int64"
    assert {len(c["sha256"]) for c in found["columns"].values()} == {16} == {len(found["sha256"])}
    assert data.fingerprint(dict(reversed(columns.items()))) == found
    strided = {**columns, "x": columns["x"].T.contiguous().T}
    assert data.fingerprint(strided) == found, "content counts, not how it lies in memory"
    zeros = {data.fingerprint({"x": torch.zeros(4, dtype=t)})["sha256"] for t in (torch.float32, torch.int32)}
    assert len(zeros) == 2, "the same bytes of another type are other data"


@pytest.mark.parametrize(
    "other",
    [
        {"x": torch.arange(6.0).reshape(2, 3)},
        {"x": torch.arange(6).reshape(3, 2)},
        {"x": torch.arange(6.0).reshape(3, 2).double()},
        {"x": torch.arange(6.0).reshape(3, 2).nextafter(torch.tensor(9.0))},
        {"z": torch.arange(6.0).reshape(3, 2)},
        {"x": torch.arange(6.0, dtype=torch.bfloat16).reshape(3, 2)},
    ],
    ids=["shape", "integer", "double", "last bit", "name", "bfloat16"],
)
def test_fingerprint_tells_apart(other):
    mine = data.fingerprint({"x": torch.arange(6.0).reshape(3, 2)})
    assert data.fingerprint(other)["sha256"] != mine["sha256"]
