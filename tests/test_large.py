"""Data larger than memory: opened and not loaded, read by column, in blocks; results that would not fit."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from pyro.distributions import Normal
from safetensors.numpy import save_file

import ppgen
from ppgen import data, memory
from ppgen.data.files import csv, large, readers
from ppgen.data.files.large import Deferred, _mapping
from ppgen.errors import PpgenError
from ppgen.inference import fit, posterior
from ppgen.models import VAE

X = np.random.RandomState(0).randn(2500, 3).astype(np.float32)

PEAK = """
import sys, threading, time
from ppgen.cli import app
peak = [0]

def watch():
    while True:
        peak[0] = max(peak[0], *(int(s.split()[1]) for s in open("/proc/self/status") if s.startswith("VmRSS")))
        time.sleep(0.02)

threading.Thread(target=watch, daemon=True).start()
try:
    app(sys.argv[1:])
except SystemExit as e:
    print("exit", e.code, "peak", peak[0] // 1024)
"""


def peak_of(*args) -> tuple[int, int, str]:
    """Exit code and largest resident memory in MB of a command, and what it said."""
    done = subprocess.run([sys.executable, "-c", PEAK, *map(str, args)], capture_output=True, text=True, check=True)
    words = done.stdout.split()
    return int(words[-3]), int(words[-1]), done.stdout + done.stderr


@pytest.fixture
def mapped(tmp_path, monkeypatch):
    """A small file that is mapped, as a large one would be."""
    monkeypatch.setattr(large, "MAP_FROM", 0)
    np.save(tmp_path / "x.npy", X)
    return data.load(tmp_path / "x.npy")["x"], tmp_path / "x.npy"


def test_a_large_npy_is_mapped_and_says_what_it_would_say_in_memory(mapped):
    x, _ = mapped
    assert _mapping(x) is not None and torch.equal(x, torch.from_numpy(X))
    index = torch.tensor([2499, 0, -1, 7, 7])
    assert torch.equal(data.take({"x": x}, index)["x"], torch.from_numpy(X)[index])
    assert torch.equal(data.take({"x": x}, slice(3, 5))["x"], torch.from_numpy(X)[3:5])
    assert torch.equal(large.taken(x[100:], index % 100), torch.from_numpy(X)[100:][index % 100])


def test_the_file_is_never_written_to_and_a_written_column_is_left_alone(mapped):
    x, path = mapped
    before = path.read_bytes()
    x[3] = 7.0
    large._release(x)
    assert path.read_bytes() == before and (x[3] == 7).all()
    assert (data.take({"x": x}, torch.tensor([3]))["x"] == 7).all()


def test_a_mapped_file_that_is_cut_short_is_said(mapped, tmp_path):
    x, path = mapped
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(PpgenError, match="cut short while it was in use"):
        data.take({"x": x}, torch.tensor([2400]))
    with pytest.raises(PpgenError, match="cut short"):
        data.load(path)


def test_blocks_give_what_the_whole_gives(monkeypatch):
    x = torch.from_numpy(X.copy())
    whole, finger = large.moments(x), data.fingerprint({"x": x})
    monkeypatch.setattr(large, "BLOCK", 1000)
    assert len(list(large.blocks(x))) == 31
    for a, b in zip(whole, large.moments(x), strict=True):
        assert torch.allclose(a, b, rtol=1e-12)
    assert data.fingerprint({"x": x}) == finger
    x[1700, 1] = torch.nan
    with pytest.raises(PpgenError, match="1 NaN values, the first in row 1700"):
        data.validate({"x": x})


@pytest.mark.parametrize("name", ["a.npz", "a.parquet", "a.safetensors"])
def test_only_the_columns_that_are_named_are_read(tmp_path, monkeypatch, name):
    if name == "a.npz":
        np.savez_compressed(tmp_path / name, x=X, other=X, y=X[:, 0])
    elif name == "a.parquet":
        pd.DataFrame({"x": X[:, 0], "other": X[:, 1], "y": X[:, 2]}).to_parquet(tmp_path / name)
    else:
        save_file({"x": X, "other": X, "y": X[:, 0]}, tmp_path / name)
    read = []
    monkeypatch.setattr(Deferred, "read", lambda self, own=Deferred.read: read.append(self.name) or own(self))
    found = data.load(tmp_path / name, columns="x=x,y=y")
    assert read == ["x", "y"] and len(found["x"]) == 2500
    assert torch.equal(data.load(tmp_path / name)["y"], found["y"])


def test_what_does_not_fit_is_refused_by_its_header(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as archive, archive.open("x.npy", "w") as f:
        shape = {"descr": "<f4", "fortran_order": False, "shape": (100, 1000, 1000)}
        np.lib.format.write_array_header_1_0(f, shape)  # and nothing after it: it is not read
    monkeypatch.setattr(memory, "_available", lambda: 10**8)
    with pytest.raises(PpgenError, match=r"'x' takes 400 MB of memory \(400000000 bytes\), and 100 MB are free.*\.npy"):
        data.load(tmp_path / "bomb.npz")


def test_a_look_reads_the_first_rows_only(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "LARGE", 1000)
    np.savez(tmp_path / "a.npz", x=X, scale=X[:5, 0])
    pd.DataFrame(X, columns=list("abc")).to_csv(tmp_path / "a.csv", index=False)
    pd.DataFrame(X, columns=list("abc")).to_parquet(tmp_path / "a.parquet")
    np.save(tmp_path / "a.npy", X)
    save_file({"x": X}, tmp_path / "a.safetensors")
    for name in ("a.npz", "a.csv", "a.parquet", "a.npy", "a.safetensors"):
        few = data.load(tmp_path / name, rows=20)
        first = few["x"] if "x" in few else torch.stack([few[c] for c in "abc"], -1)
        assert torch.equal(first, torch.from_numpy(X[:20])), name
    assert len(data.load(tmp_path / "a.npz", rows=20)["scale"]) == 5


def test_a_csv_in_pieces_is_the_csv_as_a_whole(tmp_path, monkeypatch):
    """Columns change their kind from piece to piece: whole numbers, then fractions; empty cells; words."""
    rows = [
        (i, i if i < 1500 else i + 0.5, "" if i == 1200 else i, f"w{i % 3}", i < 1200 or "" if i > 10 else True)
        for i in range(2400)
    ]
    text = "a,b,c,d,e\n" + "".join(",".join(map(str, row)) + "\n" for row in rows)
    (tmp_path / "t.csv").write_text(text)
    whole = csv.read_csv(tmp_path / "t.csv")
    monkeypatch.setattr(csv, "CELLS", 5)
    monkeypatch.setattr(csv, "SMALL", 0)
    monkeypatch.setattr(csv, "BLOCK", 100)
    pieces = csv.read_csv(tmp_path / "t.csv")
    assert whole.pop(csv.MARK) == pieces.pop(csv.MARK) == "."
    for name, column in whole.items():
        pd.testing.assert_series_equal(column, pieces[name])


def test_a_zip_that_unpacks_beyond_memory_is_refused(tmp_path, monkeypatch):
    import gzip

    (tmp_path / "a.json.gz").write_bytes(gzip.compress(b'{"x": [' + b"0, " * 2**24 + b"0]}"))
    monkeypatch.setattr(memory, "_SMALL", 0)
    monkeypatch.setattr(memory, "_available", lambda: 10**7)
    with pytest.raises(PpgenError, match="what it unpacks to takes .* of memory"):
        readers.read(tmp_path / "a.json.gz")


def test_a_posterior_that_does_not_fit_is_refused_with_its_bytes(monkeypatch):
    class Local(ppgen.Program):
        def model(self, y=None):
            with ppgen.rows(y):
                z = pyro.sample("z", Normal(0.0, 1.0))
                return pyro.sample("y", Normal(z, 1.0), obs=y)

    y = torch.randn(500)
    run = fit(Local(), {"y": y}, steps=1, engine="eager")
    monkeypatch.setattr(memory, "_SMALL", 0)
    monkeypatch.setattr(memory, "_available", lambda: 10**6)
    with pytest.raises(PpgenError, match=r"1000 draws of Local.*\(\d+ bytes\), and 1 MB are free.*--draws.* or rows"):
        posterior(run, {"y": y}, draws=1000)
    assert posterior(run, {"y": y}, draws=20).posterior.z.shape == (1, 20, 500)


@pytest.mark.slow
def test_a_small_zip_of_a_gigabyte_is_checked_in_little_memory(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as f:
        np.lib.format.write_array_header_1_0(f, {"descr": "<f4", "fortran_order": False, "shape": (1_000_000, 256)})
        for _ in range(1000):
            f.write(bytes(1_024_000))
    assert (tmp_path / "bomb.npz").stat().st_size < 2e6
    code, peak, said = peak_of("check", "ppca", "-d", tmp_path / "bomb.npz")
    assert code == 0 and "first 10000 of 1000000 rows" in said and peak < 700, (code, peak, said)


@pytest.mark.slow
def test_minibatches_of_ten_gigabytes_take_little_memory(tmp_path):
    """A sparse file of 10 GB, its rows numbers here and there, fitted from the shell."""
    x = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.float32, shape=(2_500_000, 1000))
    for start in range(0, len(x), 100_000):
        x[start : start + 50] = X[start % 2000 :][:50, :1] * np.linspace(-1, 1, 1000, dtype=np.float32)
    x.flush()
    del x
    how = ("--set", "latent=2", "--set", "hidden=(32,)", "--steps", "300", "--batch-size", "128", "-q")
    code, peak, said = peak_of("fit", "vae", "-d", tmp_path / "x.npy", *how, "--out", tmp_path / "run")
    assert code == 0 and peak < 1500, (code, peak, said)


def resident() -> float:
    """Resident memory of this process in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(s.split()[1]) / 1024 for s in lines if s.startswith("VmRSS"))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["eager", "trace", "compile"])
def test_memory_is_flat_over_20_000_steps(tmp_path, engine):
    """From step 2 000 on, with batches, held-out rows, an average and checkpoints."""
    seen = {}
    fit(VAE(3, 2, (16,), likelihood="normal"), {"x": X}, valid={"x": X[:100]}, steps=20_000, batch_size=64, ema=0.99,
        engine=engine, log_every=200, checkpoint_every=1000, out=tmp_path / "run",
        report=lambda row, *_: seen.update({row["step"]: resident()}))  # fmt: skip
    later = {step: mb for step, mb in seen.items() if step >= 2000}
    growth = max(later.values()) - later[2000]
    print(f"{engine}: {later[2000]:.1f} MB at step 2000, {growth:+.1f} MB at most until step {max(later)}")
    assert max(later) == 20_000 and growth < 5, later
