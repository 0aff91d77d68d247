"""The run folder: what is in it, what is read back, and one sentence for each way in which it can be damaged."""

from __future__ import annotations

import json
import pickle
import shutil
import textwrap

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from known import SCHOOLS, NormalMean, binary, normal, ppca
from torch import nn

import ppgen
from ppgen import PpgenError, Program, Run, catalog, rows
from ppgen.data import fingerprint
from ppgen.inference import fit, loglik, resume, sample
from ppgen.models import VAE
from ppgen.run.files import read_tree, write_tree

X = normal(30, 4)
FILES = {"config.json", "parameters.safetensors", "example.safetensors", "state.safetensors", "metrics.csv"}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run of PPCA and its folder. Tests that damage it take a copy."""
    pyro.clear_param_store()
    folder = tmp_path_factory.mktemp("runs") / "ppca"
    return fit(ppca(), {"x": X}, steps=20, lr=0.01, log_every=5, batch_size=10, ema=0.9, seed=3, out=folder), folder


# -- what is in it ---------------------------------------------------------------------------------


def test_the_folder_holds_these_files_and_no_others(kept):
    assert {p.name for p in kept[1].iterdir()} == FILES


def test_nothing_is_pickled(kept):
    for path in kept[1].iterdir():
        content = path.read_bytes()
        assert not content.startswith(b"PK")  # torch.save writes a zip of pickles
        with pytest.raises(Exception):  # noqa: B017 - every way of not being a pickle
            pickle.loads(content)
    assert {p.suffix for p in kept[1].iterdir()} == {".json", ".csv", ".safetensors"}


def test_config_says_how_to_do_it_again(kept):
    config = json.loads((kept[1] / "config.json").read_text())
    assert config["seed"] == 3
    assert {"python", "ppgen", "torch", "pyro-ppl", "numpy"} <= set(config["versions"])
    assert config["versions"]["torch"] == torch.__version__ and config["versions"]["ppgen"] == ppgen.__version__
    assert config["data"]["sha256"] == fingerprint({"x": X})["sha256"]
    assert config["data"]["contents"]["x"]["shape"] == [30, 4]
    assert (config["data"]["rows"], config["data"]["row_columns"]) == (30, ["x"])
    assert config["program"]["model"] == "ppca"
    assert config["program"]["arguments"] == {"features": 4, "latent": 2}
    assert {"steps": 20, "lr": 0.01, "batch_size": 10, "ema": 0.9}.items() <= config["fit"].items()


def test_the_example_is_two_rows_not_the_data(kept):
    """An amortised program is set up on two rows; the folder does not carry the data set."""
    assert torch.equal(kept[0].example["x"], X[:2])
    run = fit(VAE(6, 2, (8,)), {"x": binary(50, 6)}, steps=0)
    assert run.example["x"].shape == (2, 6)
    run = fit(NormalMean(), {"x": normal(50)}, steps=0)
    assert run.example["x"].shape == (2,)


def test_nothing_is_written_without_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fit(ppca(), {"x": X}, steps=2).path is None
    assert list(tmp_path.iterdir()) == []


# -- read back -------------------------------------------------------------------------------------


def assert_same(a: Run, b: Run):
    ours, theirs = a.program.state_dict(), b.program.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(v, theirs[k]) for k, v in ours.items())
    for name, values in a.metrics.items():
        assert np.array_equal(values, b.metrics[name], equal_nan=True), name
    assert json.loads(json.dumps(a.config)) == b.config  # JSON knows no tuples
    assert [(s.name, s.role, s.plates) for s in a.structure.sites] == [
        (s.name, s.role, s.plates) for s in b.structure.sites
    ]
    assert not b.program.training


def test_load_gives_the_same_run(kept):
    run, folder = kept
    loaded = Run.load(folder)
    assert_same(run, Run.load(str(folder)))
    assert loaded.path == folder and loaded.metrics["step"].tolist() == [5, 10, 15, 20]
    assert torch.equal(sample(run, 4, seed=0)["x"], sample(loaded, 4, seed=0)["x"])
    a, b = (loglik(r, {"x": X}, particles=5).best.values for r in (run, loaded))
    assert np.array_equal(a, b)


def test_a_run_written_before_the_key_was_objective_opens_and_goes_on(copy):
    config = json.loads((copy / "config.json").read_text())
    config["fit"]["elbo"] = config["fit"].pop("objective")
    del config["fit"]["gradient"], config["version"], config["history"]
    (copy / "config.json").write_text(json.dumps(config))
    assert {"objective": "analytic", "gradient": "pathwise"}.items() <= Run.load(copy).config["fit"].items()
    assert "elbo" not in resume(copy, {"x": X}, steps=21).config["fit"]


def test_loading_leaves_the_random_state_alone(kept):
    before = torch.get_rng_state()
    Run.load(kept[1])
    assert torch.equal(before, torch.get_rng_state())


USER = """
    import pyro
    import pyro.distributions as dist
    import torch
    import ppgen

    class Mine(ppgen.Program):
        def __init__(self, scale: float = 1.0, sizes=(3, 3)):
            super().__init__()
            self.scale = scale
            self.mu = torch.nn.Parameter(torch.zeros(()))

        def model(self, x=None):
            with ppgen.rows(x):
                pyro.sample("x", dist.Normal(self.mu, self.scale), obs=x)
"""
PAIR = """
    import pyro
    import pyro.distributions as dist
    import torch

    def model(x=None):
        s = pyro.param("s", torch.tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, s), obs=x)

    def guide(x=None):
        a = pyro.param("a", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(a * x, 0.7))
"""


def of_file(path, settings=None):
    return catalog.build(catalog.find(str(path)), settings or {})


@pytest.mark.parametrize("text, arguments", [(USER, {"scale": 2.0, "sizes": (4, 5)}), (PAIR, {})])
def test_the_users_file_goes_with_the_run(tmp_path, text, arguments):
    file = tmp_path / "mine.py"
    file.write_text(textwrap.dedent(text))
    run = fit(of_file(file, arguments), {"x": normal(20)}, steps=5, out=tmp_path / "r")
    file.unlink()
    copy = tmp_path / "r" / "program.py"
    assert copy.read_text() == textwrap.dedent(text)
    assert run.config["program"]["file"] == "program.py"
    loaded = Run.load(tmp_path / "r")
    assert_same(run, loaded)
    if arguments:
        assert (loaded.program.scale, loaded.program.arguments["sizes"]) == (2.0, (4, 5))
    moved = shutil.move(tmp_path / "r", tmp_path / "elsewhere")
    assert_same(run, Run.load(moved))


class Made(Program):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def model(self, x=None):
        with rows(x):
            pyro.sample("x", dist.Normal(self.network(torch.ones(1))[0], 1.0), obs=x)


def test_a_program_made_of_objects_is_passed_to_load(tmp_path):
    torch.manual_seed(0)
    run = fit(Made(nn.Linear(1, 1)), {"x": normal(20)}, steps=5, out=tmp_path / "r")
    with pytest.raises(PpgenError, match=r"made in memory \(its constructor was given objects\); pass it"):
        Run.load(tmp_path / "r")
    assert_same(run, Run.load(tmp_path / "r", Made(nn.Linear(1, 1))))


def test_data_that_were_in_memory_are_asked_for(kept):
    with pytest.raises(PpgenError, match="fitted to data in memory"):
        Run.load(kept[1]).data()


# -- damaged ---------------------------------------------------------------------------------------


@pytest.fixture
def copy(kept, tmp_path):
    return shutil.copytree(kept[1], tmp_path / "copy")


def one_sentence(call, name):
    with pytest.raises(PpgenError) as caught:
        call()
    said = str(caught.value)
    assert name in said and "\n" not in said and len(said) < 400, said
    return said


@pytest.mark.parametrize("left", [0, 1, 7, 0.3, 0.9])
@pytest.mark.parametrize("name", sorted(FILES - {"metrics.csv"}))
def test_a_truncated_file_is_named(copy, name, left):
    path = copy / name
    content = path.read_bytes()
    path.write_bytes(content[: left if isinstance(left, int) else int(left * len(content))])
    call = (lambda: resume(copy, {"x": X})) if name == "state.safetensors" else (lambda: Run.load(copy))
    one_sentence(call, name)


@pytest.mark.parametrize("name", sorted(FILES - {"metrics.csv"}))
def test_a_missing_file_is_named(copy, name):
    (copy / name).unlink()
    one_sentence(lambda: resume(copy, {"x": X}) if name == "state.safetensors" else Run.load(copy), name)


@pytest.mark.parametrize(
    "content", ["[]", "{}", "3", '{"program": {}, "fit": 1, "data": 2}', '{"fit": {}, "data": {}}']
)
def test_a_config_that_is_none(copy, content):
    (copy / "config.json").write_text(content)
    one_sentence(lambda: Run.load(copy), "config.json")
    one_sentence(lambda: resume(copy, {"x": X}), "config.json")


@pytest.mark.parametrize("content", ["step,elbo\n1,abc\n", "step,elbo\nx,1.0\n", "\x00\xff"])
def test_metrics_that_are_none(copy, content):
    (copy / "metrics.csv").write_bytes(content.encode("latin-1"))
    one_sentence(lambda: Run.load(copy), "metrics.csv")


def test_a_run_without_metrics_is_read(copy):
    (copy / "metrics.csv").unlink()
    assert Run.load(copy).rows == []


@pytest.mark.parametrize("name", ["parameters.safetensors", "example.safetensors", "state.safetensors"])
def test_one_file_in_place_of_another(copy, name):
    other = "parameters.safetensors" if name == "state.safetensors" else "state.safetensors"
    shutil.copy(copy / other, copy / name)
    call = (lambda: resume(copy, {"x": X})) if name == "state.safetensors" else (lambda: Run.load(copy))
    with pytest.raises(PpgenError):
        call()


def test_no_run_folder(tmp_path):
    one_sentence(lambda: Run.load(tmp_path), "is no run folder")
    one_sentence(lambda: Run.load(tmp_path / "nothing"), "is no run folder")
    one_sentence(lambda: resume(tmp_path), "is no run folder")


def test_a_program_that_was_changed_since(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(textwrap.dedent(USER))
    fit(of_file(file), {"x": normal(20)}, steps=1, out=tmp_path / "r")
    copy = tmp_path / "r" / "program.py"
    text = copy.read_text()
    for old, new, said in (
        ("torch.zeros(())", "torch.zeros(2)", "was the program changed since"),
        ("self.mu", "self.nu", "was the program changed since"),
        ("class Mine", "class Mime", "did you mean 'Mime'"),
        ("scale: float", "size: float", "Mine() failed: NameError: name 'scale' is not defined"),
        ("def model", "def modell", "Mine has no model()"),
        ("self.mu, self.scale", "self.mu, 1 / 0", "ZeroDivisionError"),
    ):
        copy.write_text(text.replace(old, new))
        one_sentence(lambda: Run.load(tmp_path / "r", trust=True), said)
    copy.unlink()
    one_sentence(lambda: Run.load(tmp_path / "r"), "program.py")


def test_a_second_fit_does_not_overwrite_the_first(kept):
    with pytest.raises(PpgenError, match="holds a run already"):
        fit(ppca(), {"x": X}, steps=1, out=kept[1])


def test_other_data_are_refused_by_resume(copy):
    with pytest.raises(PpgenError, match="not those that .* was fitted to"):
        resume(copy, {"x": X + 1})


def test_a_broken_fit_leaves_no_folder(tmp_path):
    with pytest.raises(PpgenError):
        fit(VAE(4, 2, (8,)), {"x": X}, steps=1, out=tmp_path / "r")  # no 0s and 1s
    assert not (tmp_path / "r").exists()


# -- trees of tensors ------------------------------------------------------------------------------

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.lists(st.floats(-1e6, 1e6, width=32), max_size=4).map(torch.tensor)
    | st.lists(st.integers(-5, 5), max_size=4).map(lambda v: np.array(v, dtype=np.int64))
)
TREES = st.recursive(
    LEAVES,
    lambda t: (
        st.lists(t, max_size=3)
        | st.lists(t, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=4), t, max_size=3)
    ),
    max_leaves=8,
)


def same(a, b):
    if isinstance(a, torch.Tensor | np.ndarray):
        return type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(v, b[k]) for k, v in a.items())
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b and type(a) is type(b)


@settings(max_examples=60, deadline=None)
@given(tree=TREES)
def test_a_tree_comes_back_as_it_was(tmp_path_factory, tree):
    path = tmp_path_factory.mktemp("tree") / "tree.safetensors"
    write_tree(path, tree)
    assert same(tree, read_tree(path))


def test_schools_are_a_run_too(tmp_path):
    """Global latents, an autoguide, constants: the guide's parameters come back."""
    from ppgen.models import EightSchools

    run = fit(EightSchools(), SCHOOLS, steps=20, lr=0.05, out=tmp_path / "r")
    loaded = Run.load(tmp_path / "r")
    assert_same(run, loaded)
    more = resume(tmp_path / "r", SCHOOLS, steps=30)
    assert more.metrics["step"][-1] == 30
