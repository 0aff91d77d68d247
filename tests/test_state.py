"""state.safetensors: a resumed fit has the bytes of the unbroken one under every engine, or other options if asked."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pyro
import pytest
import torch
from known import GuidedNormalMean, normal, ppca
from pyro.distributions import Normal

from ppgen import PpgenError, Program, Run
from ppgen.engine import compiler
from ppgen.inference import fit, resume
from ppgen.inference.training.optimise import optimizer_names
from ppgen.inference.training.state import like, read_state
from ppgen.inference.training.step import Step
from ppgen.run.config import VERSION
from ppgen.run.files import read_tree, write_tree

X = normal(48, 4)
FILES = ("metrics.csv", "parameters.safetensors", "state.safetensors")


class Stopped(Exception):
    pass


def stop_after(step):
    def report(row):
        if row["step"] >= step:
            raise Stopped

    return report


def broken(path, at, **options):
    with pytest.raises(Stopped):
        fit(ppca(), {"x": X}, out=path, report=stop_after(at), **options)
    return path


def same_files(a, b):
    return [n for n in FILES if (a / n).read_bytes() != (b / n).read_bytes()]


@pytest.mark.parametrize(
    "engine", ["eager", "trace", *(pytest.param(e, marks=pytest.mark.slow) for e in ("auto", "compile"))]
)  # fmt: skip
def test_a_resumed_fit_has_the_bytes_of_the_unbroken_one(tmp_path, engine):
    """The rows of metrics as well, whose window holds the step after the resume."""
    options = {"steps": 40, "batch_size": 20, "lr": 0.02, "ema": 0.9, "clip": 1.0, "log_every": 4,
               "checkpoint_every": 3, "engine": engine}  # fmt: skip
    fit(ppca(), {"x": X}, out=tmp_path / "whole", **options)
    for at in (8, 20):
        resume(broken(tmp_path / str(at), at, **options), {"x": X}, program=ppca())
        assert same_files(tmp_path / "whole", tmp_path / str(at)) == []


def test_the_step_after_a_resume_runs_on_the_graph(tmp_path, monkeypatch):
    """It differs from an eager one by rounding only, which few programs show under trace and most under compile."""
    path = broken(tmp_path / "run", 8, steps=20, engine="trace", log_every=4, checkpoint_every=3)

    def eager(*_):
        raise AssertionError("an eager step")

    monkeypatch.setattr(Step, "eager", eager)
    assert resume(path, {"x": X}, program=ppca()).metrics["step"][-1] == 20


def test_the_state_says_which_engine_runs_what(tmp_path):
    run = fit(ppca(), {"x": X}, steps=5, engine="trace", out=tmp_path / "run")
    engines = read_state(tmp_path / "run" / "state.safetensors")["engines"]
    assert engines["asked"] == "trace" and engines["runs"] == {"x (48, 4) (4, 1) torch.float32": "trace"}
    assert run.config["version"] == VERSION


@pytest.mark.slow
def test_what_auto_has_decided_is_not_decided_again(tmp_path):
    options = {"steps": 1500, "batch_size": 16, "lr": 0.01, "log_every": 50, "checkpoint_every": 100, "engine": "auto"}
    fit(ppca(), {"x": X}, out=tmp_path / "whole", **options)
    resume(broken(tmp_path / "run", 700, **options), {"x": X}, program=ppca())
    assert same_files(tmp_path / "whole", tmp_path / "run") == []


def walk(y):
    """An AR(1) of variances in a Python loop, and latents of each row."""
    a = pyro.sample("a", Normal(0.0, 1.0))
    z = pyro.sample("z", Normal(torch.zeros(len(y)), 1.0).to_event(1))
    v, total = torch.ones(()), 0.0
    for t in range(len(y)):
        v = 0.5 + 0.3 * (y[t] - a) ** 2 + 0.2 * v + 0.1 * z[t] ** 2
        total = total + Normal(a, v.sqrt()).log_prob(y[t])
    pyro.factor("y", total)


@pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
@pytest.mark.parametrize("rows", [4, 16])  # fewer than 16 normals are drawn one by one
def test_a_loop_is_interpreted_where_that_pays_and_resumed_so(tmp_path, monkeypatch, caplog, rows):
    """The same numbers as its trace's, but for rounding; the resumed fit has the bytes of the unbroken one."""
    monkeypatch.setattr("ppgen.engine.compiling.tiers._pays", lambda *_: True)
    monkeypatch.setattr("ppgen.inference.training.step.LOOK_SECONDS", 0.0)
    monkeypatch.setattr("ppgen.inference.training.step.WORTH_TRACING", 1)
    monkeypatch.setattr("ppgen.engine.compiling.compile.TOO_LARGE", 0)
    caplog.set_level("INFO", "ppgen")
    options = {"steps": 25, "lr": 0.02, "log_every": 5, "checkpoint_every": 8}
    data, program = {"y": X[:rows, 0]}, partial(Program.from_pair, walk)
    traced = fit(program(), data, engine="trace", **options)
    run = fit(program(), data, out=tmp_path / "whole", **options)
    assert "operations are interpreted" in caplog.text
    np.testing.assert_allclose(run.metrics["elbo"], traced.metrics["elbo"], rtol=1e-6)
    engines = read_state(tmp_path / "whole" / "state.safetensors")["engines"]
    assert [*engines["runs"].values()] == ["interpret"] and len(engines["settled"]) == 1
    with pytest.raises(Stopped):
        fit(program(), data, out=tmp_path / "run", report=stop_after(15), **options)
    resume(tmp_path / "run", data, program=walk)  # a Pyro model, as fit takes one
    assert same_files(tmp_path / "whole", tmp_path / "run") == []


def test_a_program_that_reads_places_of_the_data_is_set_up_again(tmp_path):
    """On all rows: two do not have the places."""

    def places(y):
        m = pyro.sample("m", Normal(0.0, 1.0))
        for i in range(4):
            pyro.sample(f"y{i}", Normal(m, 1.0), obs=y[i])

    fit(Program.from_pair(places), {"y": X[:8, 0]}, steps=1, out=tmp_path / "run")
    assert len(Run.load(tmp_path / "run", Program.from_pair(places)).example["y"]) == 8


# -- other options from here on --------------------------------------------------------------------


def test_options_can_change_and_the_run_says_when(tmp_path):
    path = tmp_path / "run"
    fit(ppca(), {"x": X}, steps=10, lr=0.5, batch_size=12, log_every=5, out=path)
    run = resume(path, {"x": X}, steps=20, lr=0.01, clip=1.0, batch_size=24)
    changed = {"steps": 20, "lr": 0.01, "clip": 1.0, "batch_size": 24}
    before = {"steps": 10, "lr": 0.5, "clip": None, "batch_size": 12}
    assert run.config["history"] == [{"step": 10, "before": before, "after": changed}]
    assert changed.items() <= run.config["fit"].items()
    assert run.metrics["lr"].tolist() == [0.5, 0.5, 0.01, 0.01]
    resume(path, {"x": X}, steps=20)
    assert Run.load(path).config["history"] == run.config["history"]  # nothing was changed


@pytest.mark.parametrize("ema", [None, 0.9])
def test_precision_can_change(tmp_path, ema):
    path = tmp_path / "run"
    fit(ppca(), {"x": X}, steps=10, ema=ema, out=path)
    run = resume(path, {"x": X}, steps=20, precision="64-true")
    assert {p.dtype for p in run.program.parameters()} == {torch.float64}
    loaded = Run.load(path)
    assert loaded.example["x"].dtype == torch.float64
    assert resume(path, {"x": X}, steps=25).metrics["step"][-1] == 25
    with pytest.raises(PpgenError, match="fingerprints differ"):
        resume(path, {"x": X + 1}, steps=30, precision="32-true")


@pytest.mark.parametrize(
    "changes, said",
    [({"guide": "flow"}, "a run keeps its guide; what resume can change is steps, batch_size, lr"),
     ({"sed": 3}, "a run keeps its sed"), ({"lr": -1.0}, "lr is -1.0"), ({"engine": "fast"}, "no engine 'fast'"),
     ({"patience": 3}, "patience counts on the ELBO of held-out rows")],
)  # fmt: skip
def test_what_cannot_change_is_said(tmp_path, changes, said):
    fit(ppca(), {"x": X}, steps=2, out=tmp_path / "run")
    before = (tmp_path / "run" / "config.json").read_bytes()
    with pytest.raises(PpgenError, match=said):
        resume(tmp_path / "run", {"x": X}, **changes)
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_held_out_rows_are_asked_for(tmp_path):
    fit(ppca(), {"x": X}, valid={"x": X[:7]}, steps=2, out=tmp_path / "run")
    with pytest.raises(PpgenError, match="follows 7 held-out rows; pass the same as valid="):
        resume(tmp_path / "run", {"x": X}, steps=4)


# -- fits that diverge, and figures that are none --------------------------------------------------


def test_the_advice_after_divergence_can_be_followed(tmp_path):
    """It names a command; what it says is done, and the run goes on from its last good checkpoint."""
    path, options = tmp_path / "run", {"lr": 1e25, "optimizer": "SGD", "log_every": 1, "checkpoint_every": 1}
    with pytest.raises(PpgenError) as caught:
        fit(ppca(), {"x": X}, steps=50, out=path, **options)
    assert f"ppgen fit --resume {path} --lr 0.01 --clip 1" in str(caught.value)
    assert torch.isfinite(Run.load(path).program.state_dict()["mu"]).all()
    assert np.isfinite(resume(path, {"x": X}, steps=50, lr=0.01, clip=1.0).metrics["elbo"][-1])


def test_advice_that_would_not_help_is_not_given(tmp_path):
    """A fit that ends with the step that broke it leaves parameters without a finite loss."""
    with pytest.raises(PpgenError, match="failed on a batch|; fit again with a smaller lr, clip=1"):
        fit(ppca(), {"x": X}, steps=1, out=tmp_path / "run", lr=1e20, optimizer="SGD")
        resume(tmp_path / "run", {"x": X}, steps=20, lr=0.01)


def test_a_last_step_to_infinity_is_an_error(tmp_path):
    with pytest.raises(PpgenError, match="parameters are not finite after step 1; .* keeps the last good checkpoint"):
        fit(
            GuidedNormalMean(),
            {"x": X[:, 0] * 1e14},
            steps=1,
            lr=1e29,
            optimizer="SGD",
            precision="32-true",
            out=tmp_path / "run",
        )
    Run.load(tmp_path / "run", GuidedNormalMean())


def test_parameters_that_are_not_finite_are_refused(tmp_path):
    path = tmp_path / "run"
    fit(ppca(), {"x": X}, steps=2, out=path)
    for name, load in (("parameters", Run.load), ("state", lambda p: resume(p, {"x": X}, steps=4))):
        file = path / f"{name}.safetensors"
        tree, content = read_tree(file), file.read_bytes()
        (tree if name == "parameters" else tree["parameters"])["mu"][1] = float("nan")
        write_tree(file, tree)
        with pytest.raises(PpgenError, match="1 of 4 values of the parameter 'mu' in .* are not finite"):
            load(path)
        file.write_bytes(content)


# -- what a state must hold ------------------------------------------------------------------------


def damaged(tree, *place, value):
    *head, last = place
    inner = tree
    for key in head:
        inner = inner[key]
    inner[last] = value
    return tree


@pytest.mark.parametrize(
    "place, value, said",
    [(("progress", "step"), "3", "progress.step is '3', and a whole number is expected"),
     (("optimizer",), [], r"optimizer is \[\], and an object of keys and values is expected"),
     (("random", "torch"), None, "random.torch is None, and a Tensor is expected"),
     (("random", "python"), (3, (1, 2), None), "no state of this program's fit"),
     (("random", "torch"), torch.zeros(1, 9, dtype=torch.uint8), "no state of this program's fit"),
     (("ema", "mu"), torch.zeros(9), r"'mu' of another shape than the program \(\(9,\) and \(4,\)\)"),
     (("optimizer", "state", 0, "exp_avg"), torch.zeros(9, 9), r"exp_avg has shape \(9, 9\)"),
     (("optimizer", "state", 0, "exp_avg"), 3, "exp_avg is a int, and a Tensor is expected"),
     (("optimizer", "state", 0), {"step": torch.tensor(4.0)}, "exp_avg of a parameter is missing"),
     (("progress", "other"), 1, "it has progress.other, which is no key there"),
     (("engines", "asked"), 1, "engines.asked is 1, and text is expected")],
)  # fmt: skip
def test_a_state_with_other_contents_is_named(tmp_path, place, value, said):
    path = tmp_path / "run"
    fit(ppca(), {"x": X}, steps=4, ema=0.9, out=path)
    file = path / "state.safetensors"
    write_tree(file, damaged(read_tree(file), *place, value=value))
    with pytest.raises(PpgenError, match=f"state.safetensors.*{said}"):
        resume(path, {"x": X}, steps=8)


@pytest.mark.parametrize("name", [*optimizer_names(), "SGD(momentum=0.9)", "Adam(amsgrad=True)"])
def test_a_state_of_every_optimizer_is_taken(tmp_path, name):
    try:
        fit(ppca(), {"x": X}, steps=2, optimizer=name, out=tmp_path / "run")
    except PpgenError as e:
        assert any(w in str(e) for w in ("cannot", "not")), e  # no such parameters, or no closure
        return
    assert resume(tmp_path / "run", {"x": X}, steps=4).rows[-1]["step"] == 4


def test_a_state_of_version_1_goes_on(tmp_path):
    """It says nothing of engines, and its config has neither version nor history."""
    path = tmp_path / "run"
    fit(ppca(), {"x": X}, steps=4, out=path)
    state = read_tree(path / "state.safetensors")
    del state["engines"]
    write_tree(path / "state.safetensors", state)
    config = json.loads((path / "config.json").read_text())
    del config["version"], config["history"]
    (path / "config.json").write_text(json.dumps(config))
    run = resume(path, {"x": X}, steps=8)
    assert (run.config["version"], run.metrics["step"][-1]) == (VERSION, 8)


def test_like_takes_the_programs_dtype():
    own = {"a": torch.zeros(2, dtype=torch.float64), "n": torch.tensor(3)}
    made = like({"a": torch.ones(2), "n": torch.tensor(5)}, own, "file")
    assert made["a"].dtype == torch.float64 and made["n"] == 5
