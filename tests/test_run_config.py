"""config.json: its schema, its versions, and one sentence for every key that is missing or of another type."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from known import normal, ppca
from safetensors.torch import save
from test_faults import call, change, places

from ppgen import PpgenError, Run
from ppgen.inference import fit
from ppgen.run.config import config_schema, read_config
from ppgen.run.files import read_tree, write_tree
from ppgen.run.schema import validate

DOCS = Path(__file__).resolve().parent.parent / "docs"
X = normal(20, 4)

# As ppgen wrote it before config.json had a version.
VERSION_1 = {
    "versions": {"python": "3.11.7", "ppgen": "0.1.0", "torch": "2.13.0"},
    "seed": 0,
    "fit": {
        "steps": 3, "until": None, "batch_size": None, "lr": 0.001, "schedule": "constant", "optimizer": "Adam",
        "clip": None, "ema": None, "kl_warmup": 0, "patience": None, "objective": "analytic", "gradient": "pathwise",
        "particles": 1, "guide": None, "starts": None, "engine": "auto", "precision": "32-true", "device": "cpu",
        "seed": 0, "log_every": 1, "checkpoint_every": None, "strict": True,
    },
    "data": {"contents": {"x": {"shape": [20, 4], "dtype": "float32"}}, "sha256": "0", "rows": 20,
             "row_columns": ["x"], "words": {}},
    "program": {"guide": None, "enumerated": [], "arguments": {"features": 4, "latent": 2}, "model": "ppca"},
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("config") / "run"
    fit(ppca(), {"x": X}, valid={"x": X[:5]}, steps=3, out=folder)
    return folder


@pytest.fixture
def config(run, tmp_path):
    """A config of this version, and a function that reads another."""
    kept = json.loads((run / "config.json").read_text())

    def read(changed):
        (tmp_path / "config.json").write_text(json.dumps(changed))
        return read_config(tmp_path)

    return kept, read


def test_the_schema_of_the_docs_is_that_of_the_code():
    assert json.loads((DOCS / "_static" / "config.schema.json").read_text()) == config_schema(), (
        "write docs/_static/config.schema.json anew: json.dumps(ppgen.run.config.config_schema(), indent=2)"
    )


def test_a_config_is_read_as_it_was_written(config):
    kept, read = config
    assert read(kept) == kept


def test_every_key_is_looked_at(config):
    """Each key is missing, and each of the schema's has an object in its place: one sentence with its name."""
    kept, read = config
    for place in [p for p in places(kept) if p[0] in ("seed", "fit", "version", "history")]:
        for other in ({"a": 1}, None):
            changed = copy.deepcopy(kept)
            inner = changed
            for k in place[:-1]:
                inner = inner[k]
            if other is None:
                del inner[place[-1]]
            else:
                inner[place[-1]] = other
            with pytest.raises(PpgenError, match=place[-1]) as caught:
                read(changed)
            assert "expected" in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "place, value, said",
    [
        (("fit", "lr"), "fast", "fit.lr is 'fast', and a number is expected"),
        (("fit", "steps"), True, "fit.steps is True, and a whole number is expected"),
        (("fit", "steps"), 2.5, "fit.steps is 2.5, and a whole number is expected"),
        (("fit", "clip"), "1", "fit.clip is '1', and a number or null is expected"),
        (("fit", "precision"), "8-true", "fit.precision is '8-true', and '32-true' or '64-true' or"),
        (("data", "row_columns"), "x", "data.row_columns is 'x', and a list is expected"),
        (("data", "row_columns"), [1], r"data.row_columns\[0\] is 1, and text is expected"),
        (("program",), [], r"program is \[\], and an object of keys and values is expected"),
        (("history",), [{"step": 1}], r"history\[0\].before is missing"),
        (("data", "rows"), 0, "data.rows is 0, and a whole number of at least 1 is expected"),
        (("data", "valid_rows"), -1, "data.valid_rows is -1, and a whole number of at least 1 or null is expected"),
        (("version",), 4, "is of version 4, and this ppgen reads versions up to 3; install a newer ppgen"),
        (("version",), "2", "version is '2', and a whole number is expected"),
    ],
)
def test_what_is_wrong_is_said(config, place, value, said):
    kept, read = config
    inner = kept
    for k in place[:-1]:
        inner = inner[k]
    inner[place[-1]] = value
    with pytest.raises(PpgenError, match=f"config.json .*{said}"):
        read(kept)


def test_a_key_of_ones_own_is_a_warning(config, caplog):
    kept, read = config
    kept["fit"]["note"] = "for Anna"
    assert read(kept)["fit"]["lr"] == 0.001
    assert "has fit.note, which is no key there" in caplog.text


def test_version_1_is_brought_up(config):
    found = config[1](copy.deepcopy(VERSION_1))
    assert (found["version"], found["history"]) == (3, [])
    assert found["fit"] == VERSION_1["fit"] and found["program"] == VERSION_1["program"]


def test_the_words_of_version_2_are_types(config):
    kept, read = config
    del kept["data"]["types"]
    found = read(kept | {"version": 2, "data": kept["data"] | {"words": {"g": ["a", "b"]}}})
    assert found["version"] == 3
    assert found["data"]["types"] == {"g": {"name": "g", "kind": "categorical", "levels": ["a", "b"]}}


def test_the_oldest_lack_what_came_later(config):
    oldest = copy.deepcopy(VERSION_1)
    oldest["fit"]["elbo"] = oldest["fit"].pop("objective")
    for key in ("gradient", "until", "starts", "strict"):
        del oldest["fit"][key]
    del oldest["data"]["words"]
    found = config[1](oldest)
    assert found["fit"] == VERSION_1["fit"] and found["data"]["types"] is None


def test_a_schema_of_types(tmp_path):
    validate({"a": [1, 2.5]}, dict[str, list[float]], "x")
    with pytest.raises(PpgenError, match=r"x is damaged: a\[1\] is 'b', and a number is expected"):
        validate({"a": [1, "b"]}, dict[str, list[float]], "x")


# -- what is beside it -----------------------------------------------------------------------------


def test_no_bit_flips_unnoticed(tmp_path):
    """Header, names, digest, numbers: every 7th bit in turn."""
    path = tmp_path / "tree.safetensors"
    write_tree(path, {"a": torch.arange(6.0), "b": {"tree": f'{{"tree":"{64 * "0"} '}, "n": 3})
    assert read_tree(path)["b"]["tree"].endswith("0 ")
    content = path.read_bytes()
    for bit in range(0, 8 * len(content), 7):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(PpgenError, match="is no file of ppgen's, or is damaged"):
            read_tree(path)


def test_files_of_version_1_have_no_digest(tmp_path):
    (tmp_path / "x").write_bytes(save({"a": torch.ones(2)}, metadata={"tree": '{"dict": [["a", {"tensor": "a"}]]}'}))
    assert read_tree(tmp_path / "x")["a"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.97])
def test_metrics_that_are_cut_are_refused(run, tmp_path, caplog, cut):
    import shutil

    folder = shutil.copytree(run, tmp_path / "run")
    content = (folder / "metrics.csv").read_bytes()
    (folder / "metrics.csv").write_bytes(content[: int(cut * len(content))])
    with pytest.raises(PpgenError, match="metrics.csv is damaged .it .*; remove it: the run can do without"):
        Run.load(folder)
    (folder / "metrics.csv").unlink()
    assert Run.load(folder).rows == [] and "metrics.csv is not there" in caplog.text


@pytest.mark.parametrize(
    "name, said",
    [("", "'' is no path"), ("r.nc", "is the name of a netCDF file, and a fit leaves a folder"),
     ("mine", "is no run, and holds 'metrics.csv', which a fit might write over")],
)  # fmt: skip
def test_out_is_a_folder_of_its_own(tmp_path, monkeypatch, name, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "metrics.csv").write_text("mine")
    code, _, error = call("fit", "eight_schools", "--data", "eight_schools", "--steps", 2, "--out", name, "-q")
    assert code == 2 and said in error
    assert [p.name for p in tmp_path.rglob("*")] == ["mine", "metrics.csv"]
    with pytest.raises(PpgenError):
        fit(ppca(), {"x": X}, steps=1, out=name)
    assert (tmp_path / "mine" / "metrics.csv").read_text() == "mine"


@pytest.mark.parametrize("text", ["poetry", "", "{}", "[7]"])
def test_a_lock_of_somebody_elses_frees_no_folder(tmp_path, text):
    """A file `lock` of another program is no leave to write over what lies beside it."""
    for name, content in (("lock", text), ("metrics.csv", "mine"), ("program.py", "mine")):
        (tmp_path / name).write_text(content)
    with pytest.raises(PpgenError, match="is no run, and holds 'lock', which a fit might write over"):
        fit(ppca(), {"x": X}, steps=1, out=tmp_path)
    assert [(tmp_path / n).read_text() for n in ("lock", "metrics.csv", "program.py")] == [text, "mine", "mine"]


def test_an_empty_folder_is_taken_and_left_where_the_fit_fails(tmp_path):
    (tmp_path / "empty").mkdir()
    fit(ppca(), {"x": X}, steps=1, out=tmp_path / "empty")
    for there in (True, False):
        path = tmp_path / f"failed{there}"
        if there:
            path.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PATH", "")
            patch.delenv("CXX", raising=False)
            with pytest.raises(PpgenError, match="needs a C\\+\\+ compiler"):
                fit(ppca(), {"x": X}, steps=1, engine="compile", out=path)
        assert path.exists() == there and not (there and list(path.iterdir()))


def test_half_precision_needs_a_gpu():
    with pytest.raises(PpgenError, match="'16-mixed' needs a GPU, and the device is the CPU; take bf16-mixed"):
        fit(ppca(), {"x": X}, steps=1, precision="16-mixed")


def test_changes_of_a_config_are_of_every_kind():
    """The mutations of test_faults reach every level."""
    import random

    changed = [json.dumps(change(random.Random(i), copy.deepcopy(VERSION_1))) for i in range(200)]
    assert len(set(changed)) > 100
