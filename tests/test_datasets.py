"""The named data sets: what they hold, and where the ones that are not built in are looked for."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest
import torch

from ppgen import data
from ppgen.errors import PpgenError

TOYS = ["moons", "rings", "checkerboard"]
RANDOM = np.random.RandomState(0)
IMAGES = RANDOM.randint(256, size=(50, 28, 28)).astype(np.uint8)
LABELS = RANDOM.randint(10, size=50).astype(np.uint8)
ARRAYS = {
    "x_train": IMAGES[:40],
    "y_train": LABELS[:40],
    "x_test": IMAGES[40:],
    "y_test": LABELS[40:],
}
FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}


def write_idx(folder, ending=""):
    folder.mkdir(parents=True, exist_ok=True)
    for key, file in FILES.items():
        array = ARRAYS[key]
        content = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        content += array.tobytes()
        (folder / (file + ending)).write_bytes(gzip.compress(content) if ending else content)


def test_digits():
    digits = data.load("digits")
    assert digits["x"].shape == (1797, 64) and digits["x"].dtype == torch.float32
    assert set((digits["x"] * 16).unique().tolist()) == set(range(17))
    assert digits["y"].dtype == torch.int64 and set(digits["y"].tolist()) == set(range(10))


def test_eight_schools():
    schools = data.load("eight_schools")
    assert schools["y"].tolist() == [28, 8, -3, 7, -1, 1, 18, 12]
    assert schools["sigma"].tolist() == [15, 10, 16, 11, 9, 11, 10, 18]
    assert {c.dtype for c in schools.values()} == {torch.float32}
    with pytest.raises(PpgenError, match="8 rows.*use split 'all'"):
        data.load("eight_schools", "train")


@pytest.mark.parametrize("name", TOYS)
def test_toys_are_the_same_whatever_the_seed(name):
    torch.manual_seed(1)
    np.random.seed(1)
    first = data.load(name, seed=1)["x"]
    assert first.shape == (10_000, 2) and first.dtype == torch.float32
    assert torch.equal(first, data.load(name, seed=2)["x"])


def test_checkerboard_is_uniform_on_its_squares():
    square = data.load("checkerboard")["x"].floor().long()
    assert (square.sum(1) % 2 == 0).all() and square.min() == -2 and square.max() == 1
    counts = torch.bincount((square + 2) @ torch.tensor([4, 1]), minlength=16)
    counts = counts[counts > 0]
    assert len(counts) == 8
    # each count is binomial(10 000, 1/8), standard deviation 33
    assert (counts - 1250).abs().max() < 4 * 33


def test_rings_and_moons_lie_where_they_should():
    radius = data.load("rings")["x"].norm(dim=1)
    assert ((radius - 1).abs().minimum((radius - 2).abs()) < 0.5).all()
    x = data.load("moons")["x"]
    upper = (x.norm(dim=1) - 1).abs()
    lower = ((x - torch.tensor([1.0, 0.5])).norm(dim=1) - 1).abs()
    assert (upper.minimum(lower) < 0.5).all()


@pytest.mark.parametrize("place", ["mnist.npz", "mnist/mnist.npz", "mnist/", "mnist/.gz", "MNIST/raw/", "/", "/.gz"])
def test_mnist_is_found(tmp_path, place, monkeypatch):
    if place.endswith("npz"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        np.savez(tmp_path / place, **ARRAYS)
    else:
        folder, _, ending = place.rpartition("/")
        write_idx(tmp_path / folder.strip("/"), ending)
    monkeypatch.setenv("PPGEN_DATA", str(tmp_path))
    test = data.load("mnist", "test")
    assert test["x"].shape == (10, 784) and test["x"].dtype == torch.float32
    assert torch.equal(test["x"], torch.from_numpy(IMAGES[40:]).reshape(10, 784).float() / 255)
    assert test["y"].tolist() == LABELS[40:].tolist() and test["y"].dtype == torch.int64
    assert len(data.load("mnist", "train", data_dir=tmp_path)["x"]) == 36
    assert len(data.load("mnist", "valid", data_dir=tmp_path)["x"]) == 4
    assert torch.equal(data.load("mnist")["y"], torch.from_numpy(LABELS).long()), "'all' keeps the order of the source"
    assert data.splits("mnist") == ("train", "valid", "test")


def test_fashion_is_not_mistaken_for_mnist(tmp_path):
    """The four files have the same names; what lies in the folder itself is told by its name."""
    for name, other in (("mnist", "fashion"), ("fashion", "mnist")):
        folder = tmp_path / f"my-{name}"
        write_idx(folder)
        assert len(data.load(name, data_dir=folder)["x"]) == 50
        with pytest.raises(PpgenError, match=f"'{other}' is not in"):
            data.load(other, data_dir=folder)
    write_idx(tmp_path / "FashionMNIST" / "raw", ".gz")
    assert len(data.load("fashion", data_dir=tmp_path)["x"]) == 50
    np.savez(tmp_path / "fashion-mnist.npz", **ARRAYS)
    assert len(data.load("fashion", "test", data_dir=tmp_path)["x"]) == 10


@pytest.mark.parametrize("name", ["mnist", "fashion", "binarized_mnist"])
def test_absent_says_what_to_put_where(tmp_path, name, monkeypatch):
    monkeypatch.delenv("PPGEN_DATA", raising=False)
    with pytest.raises(PpgenError, match=f"needs a data directory; put {name}.npz.*--data-dir"):
        data.load(name)
    with pytest.raises(PpgenError, match=f"{name}' is not in {tmp_path}"):
        data.load(name, data_dir=tmp_path)


def test_one_of_the_four_files_is_missing(tmp_path):
    write_idx(tmp_path / "mnist")
    (tmp_path / "mnist" / FILES["y_test"]).unlink()
    with pytest.raises(PpgenError, match="t10k-labels-idx1-ubyte does not exist"):
        data.load("mnist", data_dir=tmp_path)


def test_labels_do_not_match_images(tmp_path):
    np.savez(tmp_path / "mnist.npz", **{**ARRAYS, "y_train": LABELS[:39]})
    with pytest.raises(PpgenError, match="'train' differ in length.*x 40, y 39"):
        data.load("mnist", data_dir=tmp_path)


@pytest.mark.parametrize("arrays", [{"images": IMAGES}, {"x_train": IMAGES[:, :20], "x_test": IMAGES[:, :20]}])
def test_not_the_file_it_should_be(tmp_path, arrays):
    np.savez(tmp_path / "mnist.npz", **arrays)
    with pytest.raises(PpgenError, match="mnist.*expected.*original file"):
        data.load("mnist", data_dir=tmp_path)


def test_binarized_mnist(tmp_path):
    bits = {s: RANDOM.rand(n, 784) < 0.3 for s, n in (("train", 20), ("valid", 5), ("test", 6))}
    packed = {split: np.packbits(b, axis=1) for split, b in bits.items()}
    (tmp_path / "binarized_mnist").mkdir()
    np.savez(tmp_path / "binarized_mnist" / "binarized_mnist.npz", **packed)
    for split, b in bits.items():
        x = data.load("binarized_mnist", split, data_dir=tmp_path)["x"]
        assert x.dtype == torch.float32 and np.array_equal(x.numpy(), b)
    joined = data.load("binarized_mnist", data_dir=tmp_path)["x"]
    assert np.array_equal(joined.numpy(), np.concatenate(list(bits.values())))
    by_path = data.load(tmp_path / "binarized_mnist" / "binarized_mnist.npz", "test")["x"]
    assert by_path.shape == (6, 98) and by_path.dtype == torch.uint8, "packing is not guessed"


def test_names():
    assert {"digits", "eight_schools", "mnist", "fashion", *TOYS} <= set(data.names())
    assert all("\n" not in line for line in data.names().values())
