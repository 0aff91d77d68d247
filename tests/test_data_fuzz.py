"""Random data files and random command lines: exit code 0 or 2, one sentence, and nothing half-written."""

from __future__ import annotations

import gzip
import json
import random
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from ppgen import cli
from ppgen.run import Run

quick = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
long = settings(max_examples=1000, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def run_line(words: list[str]) -> tuple[int, str]:
    """Exit code, and what stood on stderr besides progress and notes.

    Raises:
        AssertionError: a fault of ppgen's, a traceback, an error of more than a sentence.
    """
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code in (0, 2), f"{words}: {done.output[-600:]} {done.exception!r}"
    assert "Traceback" not in done.output and "fault of ppgen" not in done.output, f"{words}: {done.output[-600:]}"
    if done.exit_code == 2:
        assert done.stderr.rstrip().splitlines()[-1].startswith("ppgen: "), f"{words}: {done.stderr[-600:]}"
    assert not any(c in done.output for c in "\x1b\x07\x00"), repr(done.output)
    return done.exit_code, done.stderr


def require_whole(folder: Path) -> None:
    """Whatever lies in a folder is whole: a run that can be loaded, or none; no temporary files."""
    left = [p for p in folder.rglob("*") if p.name.endswith(".tmp")]
    assert not left, left
    for config in folder.rglob("config.json"):
        Run.load(config.parent)


# -- files -------------------------------------------------------------------------------------------

CELL = st.one_of(
    st.integers(-5, 5).map(str),
    st.floats(width=32).map(str),
    st.sampled_from(
        ["", "NA", "?", "1,5", "$5", "2024-01-02", "oak", "ash", "true", "1e400", "-0", "inf", "\x1b[2J", "ß"]
    ),
    st.text(max_size=4),
)
NAMES = st.lists(st.sampled_from(["x", "y", "x_train", "x_test", "a", "a b", "\x1b[1m", "größe", "", "x"]), max_size=4)
SHAPE = st.lists(st.integers(0, 12), max_size=3)
DTYPE = st.sampled_from(["f4", "f8", "i4", "u1", "u8", "?", "c8", "f2", "S3", "U2", "M8[D]", ">f4", "V3", "g"])


@st.composite
def arrays(draw):
    dtype, shape = np.dtype(draw(DTYPE)), tuple(draw(SHAPE))
    source = np.random.default_rng(draw(st.integers(0, 99)))
    array = (source.normal(size=shape) * draw(st.sampled_from([1, 1e3, 1e30, 0]))).astype("f8")
    with np.errstate(all="ignore"):
        array = (
            np.frombuffer(source.bytes(max(1, array.size) * 3), "V3")[: array.size].reshape(shape)
            if dtype.kind == "V"
            else array.astype("i8").astype(dtype)
            if dtype.kind in "MU"
            else array.astype(dtype)
        )
    if dtype.kind in "fc" and array.size and draw(st.booleans()):
        array.reshape(-1)[0] = draw(st.sampled_from([np.nan, np.inf, 0]))
    return array


@st.composite
def files(draw):
    """A name and the bytes of a data file, mostly a damaged one."""
    kind = draw(st.sampled_from(["csv", "csv.gz", "npy", "npz", "json", "parquet", "safetensors", "nc", "idx"]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"data.{kind}"
        if kind.startswith("csv"):
            names, n = draw(NAMES), draw(st.integers(0, 6))
            lines = [",".join(names)] + [",".join(draw(CELL) for _ in names) for _ in range(n)]
            text = "\n".join(lines).encode("utf-8", "replace")
            content = gzip.compress(text) if kind == "csv.gz" else text
        elif kind == "json":
            content = json.dumps(
                {name: draw(st.lists(CELL | st.floats() | st.none(), max_size=4)) for name in draw(NAMES)}
            ).encode()
        else:
            content = _binary(draw, kind, path)
    damage = draw(st.sampled_from(["none", "none", "cut", "flip", "empty"]))
    if content and damage == "cut":
        content = content[: draw(st.integers(0, len(content) - 1))]
    elif content and damage == "flip":
        at = draw(st.integers(0, len(content) - 1))
        content = content[:at] + bytes([content[at] ^ 1 << draw(st.integers(0, 7))]) + content[at + 1 :]
    return path.name, b"" if damage == "empty" else content


def _binary(draw, kind: str, path: Path) -> bytes:
    array = draw(arrays())
    try:
        if kind == "npy":
            np.save(path, array)
        elif kind == "npz":
            np.savez_compressed(path, **{name or "x": draw(arrays()) for name in draw(NAMES)})
        elif kind == "parquet":
            pd.DataFrame({"x": array.reshape(-1), "y": np.arange(array.size)}).to_parquet(path)
        elif kind == "safetensors":
            from safetensors.numpy import save_file

            save_file({"x": np.ascontiguousarray(array)}, path)
        elif kind == "nc":
            import xarray as xr

            xr.Dataset({"x": ([f"d{i}" for i in range(array.ndim)], array)}).to_netcdf(path, engine="h5netcdf")
        else:
            return bytes([0, 0, 13, array.ndim]) + array.tobytes()
        return path.read_bytes()
    except Exception:  # no such array in this format
        return array.tobytes()


def _tried(file: tuple[str, bytes]) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        (folder / file[0]).write_bytes(file[1])
        how = ["--steps", "1", "--engine", "eager", "-q", "--out", str(folder / "run")]
        code, said = run_line(["fit", "ppca", "-d", str(folder / file[0]), *how])
        assert code == 2 or (folder / "run" / "config.json").is_file()
        assert code == 0 or not (folder / "run").exists(), said
        require_whole(folder)
    finally:
        shutil.rmtree(folder)


@quick
@given(files())
def test_a_random_file_is_fitted_or_refused_in_a_sentence(file):
    _tried(file)


@pytest.mark.slow
@long
@given(files())
def test_a_thousand_random_files(file):
    _tried(file)


# -- command lines -----------------------------------------------------------------------------------

LINES = [
    "fit ppca -d data.csv --columns x=a+b --steps 2 --engine eager -q --out NEW",
    "fit vae -d data.csv --columns x=a+b --steps 2 --engine eager --set latent=2 --batch-size 5 --out NEW",
    "fit line.py -d data.csv --columns x=a --steps 2 --engine eager --valid test --patience 3 --out NEW",
    "check flow -d data.csv --columns x=a+b --json",
    "sample run -n 3 --seed 1 --out NEW.npz",
    "sample run -n 2 --given x=1 --out NEW.csv",
    "evaluate run -d data.csv --columns x=a+b --particles 3 --json",
    "predict run -d data.csv --columns x=a+b -n 3 --out NEW.nc",
    "list models",
    "list ppca --json",
    "compare run run --particles 3",
    "new NEW.py",
]
JUNK = [
    *("-", "--", "-1", "0", "1e400", "nan", "inf", "None", "3.5", "x", "x=", "=x", "x=a=b", "../..", "/dev/null", ""),
    *("data.csv", "run", "\u202e", "\x1b[2J", "ß", "[1,", "{}", "*", "a+b", "--help", "--json", "-q", "--nope", "true"),
    *("x=a+b,y=c", "Adam(", "AdamW(lr=2)", "cpu", "cuda", "64-true", "16-mixed", "converged", "flow", "test", "9" * 30),
    *(
        "AutoNormal",
        "iwae",
        "--seed",
        "--split",
        "--steps",
        "--lr",
        "--columns",
        "--set",
        "-d",
        "--objective",
        "--guide",
    ),
    *("--precision", "--optimizer", "--schedule", "--gradient", "--particles", "--until", "--kl-warmup"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    rows = np.random.default_rng(0).normal(size=(30, 3))
    pd.DataFrame(rows, columns=list("abc")).to_csv(folder / "data.csv", index=False)
    how = ["--columns", "x=a+b", "--steps", "2", "--engine", "eager", "-q", "--out", str(folder / "run")]
    assert CliRunner().invoke(cli.app, ["fit", "ppca", "-d", str(folder / "data.csv"), *how]).exit_code == 0
    return folder


def _lines(n: int, seed: int) -> list[list[str]]:
    """Command lines of which some words are left out, doubled, exchanged, or others put between."""
    source, made = random.Random(seed), []
    for i in range(n):
        words = LINES[i % len(LINES)].split()
        for _ in range(source.choice([1, 1, 2, 3])):
            at = source.randrange(1, len(words) + 1)
            change = source.choice(["drop", "double", "exchange", "insert"])
            if change in ("drop", "exchange") and len(words) > 1:
                at = min(at, len(words) - 1)
                words[at : at + 1] = [] if change == "drop" else [source.choice(JUNK)]
            elif change == "double":
                words.insert(at, words[at - 1])
            else:
                words.insert(at, source.choice(JUNK))
        if words[0] == "fit" and not {"--help", "-h"} & set(words):
            words += ["--steps", source.choice(["2", "2", "2", "0", "-1", "x"])]  # the last one counts: no long fit
        made.append(words)
    return made


def _line_tried(place: Path, words: list[str], i: int) -> None:
    before = sorted(p.name for p in place.iterdir())
    words = [w.replace("NEW", f"new{i}") for w in words]
    code, said = run_line(words)
    made = [p for p in place.iterdir() if p.name not in before]
    if code == 2:
        assert not made, f"{words}: {made} {said}"
    require_whole(place)
    for path in made:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.fixture
def there(place, monkeypatch):
    monkeypatch.chdir(place)
    (place / "line.py").write_text(
        "import pyro, ppgen\nfrom pyro.distributions import Normal\n\n\nclass Line(ppgen.Program):\n"
        "    def model(self, x=None):\n        m = pyro.sample('m', Normal(0.0, 1.0))\n"
        "        with ppgen.rows(x):\n            return pyro.sample('x', Normal(m, 1.0), obs=x)\n"
    )
    return place


def test_a_changed_command_line_runs_or_says_why(there):
    for i, words in enumerate(_lines(60, seed=0)):
        _line_tried(there, words, i)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(20))
def test_two_thousand_changed_command_lines(there, part):
    for i, words in enumerate(_lines(2000, seed=1)[100 * part :][:100]):
        _line_tried(there, words, 100 * part + i)
