"""The command line: every command on small programs, what wrong input says, exit codes, Ctrl-C."""

import csv
import html
import inspect
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from files import LINE
from typer.testing import CliRunner

import ppgen
from ppgen import cli, inference
from ppgen.cli import progress
from ppgen.run import Run

PAIR = """import pyro, torch
from pyro.distributions import Normal

data = "table.csv"  # beside this file

def model(x, y=None):
    slope = pyro.sample("slope", Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", Normal(slope * x, 0.1), obs=y)
"""


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Runs the command line in an empty folder: call("fit", ..., code=0) -> (stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PPGEN_DATA", raising=False)

    def run(*args, code: int = 0) -> tuple[str, str]:
        result = CliRunner().invoke(cli.app, [str(a) for a in args])
        assert result.exit_code == code, result.output
        return result.stdout, result.stderr

    return run


@pytest.fixture
def line(tmp_path):
    path = tmp_path / "line.py"
    path.write_text(LINE)
    return path


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A run of the line, 60 steps."""
    folder = tmp_path_factory.mktemp("line")
    (folder / "line.py").write_text(LINE)
    result = CliRunner().invoke(
        cli.app, ["fit", str(folder / "line.py"), "--out", str(folder / "run"), "--steps", "60", "--lr", "0.05"]
    )
    assert result.exit_code == 0, result.output
    return folder / "run"


# ---------------------------------------------------------------- help


def test_help_names_every_command_and_imports_nothing_heavy():
    code = (
        "import sys; from ppgen.cli import main; sys.argv = ['ppgen', '--help']\n"
        "try: main()\nexcept SystemExit as e: assert not e.code\n"
        "assert not {'torch', 'pyro', 'numpy', 'rich', 'pandas', 'matplotlib'} & set(sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for name in ("fit", "sample", "evaluate", "diagnose", "plot", "check", "new", "list"):
        assert f"\n  {name} " in run.stdout


@pytest.mark.parametrize("name", ["fit", "sample", "evaluate", "diagnose", "plot", "check", "new", "list"])
def test_each_command_has_help(call, name):
    assert f"ppgen {name}" in call(name, "--help")[0]


def test_no_command_is_help_and_version(call):
    assert "Commands" in call()[0]
    assert call("--version")[0] == f"ppgen {ppgen.__version__}\n"


def test_defaults_are_those_of_the_functions():
    """The layer is thin: an option left out is the function's own default."""
    shell = {n: p.default for n, p in inspect.signature(cli.fit.fit).parameters.items()}
    library = {n: p.default for n, p in inspect.signature(inference.fit).parameters.items()}
    shared = set(shell) & set(library) - {"program", "data"}
    assert {"steps", "lr", "engine", "patience", "seed", "log_every", "guide"} <= shared
    assert {n: shell[n] for n in shared} == {n: library[n] for n in shared}
    options = {n for n in library if n not in ("valid", "source", "report")}
    assert options <= set(shell), "an option of fit that the shell lacks"


# ---------------------------------------------------------------- fit


def test_fit_leaves_a_run_and_says_where(call, line, tmp_path):
    out, err = call("fit", line, "--steps", 20, "--set", "a=0.5", "--seed", 3)
    assert err == ""
    assert "Line on its own data: 40 rows (all)" in out
    assert "step 20/20  ELBO " in out and "nats a row" in out and "steps/s" in out
    assert out.endswith("run  runs/line-1\n")
    run = Run.load(tmp_path / "runs" / "line-1")
    assert run.config["program"]["arguments"] == {"a": 0.5}
    assert run.config["seed"] == 3 and run.config["fit"]["steps"] == 20
    assert call("fit", line, "--steps", 2, "--quiet")[0].splitlines()[-1] == "run  runs/line-2"


def test_a_folder_may_have_py_in_its_name(call, tmp_path):
    (tmp_path / ".pyenv").mkdir()
    (tmp_path / ".pyenv" / "line.py").write_text(LINE)
    call("fit", ".pyenv/line.py:Line", "--steps", 2, "-q")
    call("evaluate", "runs/line-1", "--particles", 2)


def test_fit_is_the_function(call, line, tmp_path):
    """The same seed gives the same parameters from the shell as from Python."""
    call("fit", line, "--steps", 15, "--lr", 0.01, "--seed", 7, "--out", "a", "-q")
    found = ppgen.run.catalog.find(str(line))
    torch.manual_seed(7)
    program = found.target()
    inference.fit(program, found.data, steps=15, lr=0.01, seed=7)
    here = Run.load(tmp_path / "a").program.state_dict()
    assert all(torch.equal(v, here[k]) for k, v in program.state_dict().items())


def test_fit_json_is_all_of_stdout(call, line):
    out, err = call("fit", line, "--steps", 20, "--out", "r", "--json")
    figures = json.loads(out)
    assert "steps/s" in err
    assert figures["run"] == "r" and figures["steps"] == 20 and figures["rows"] == 40 and figures["per"] == "row"
    last = Run.load("r").rows[-1]
    assert figures["elbo"] == pytest.approx(last["elbo"] / 40)
    assert figures["elbo_se"] is None or figures["elbo_se"] > 0


def test_fit_takes_condition_columns(call, tmp_path):
    rows = "".join(f"{i % 7 / 3},{i % 5 / 2 + i / 100},{i % 11 / 4}\n" for i in range(60))
    (tmp_path / "three.csv").write_text("a,b,c\n" + rows)
    call("fit", "flow", "--data", "three.csv", "--columns", "x=a+b", "--context", "c", "--steps", 2, "--set",
         "transforms=1", "--set", "hidden=(4,)", "--out", "r")  # fmt: skip
    run = Run.load(tmp_path / "r")
    assert run.config["data"]["columns"] == {"x": ["a", "b"], "context": "c"}
    assert run.program.context_features == 1 and run.program.features == 2
    assert "no context was given" in call("sample", "r", code=2)[1]


def test_fit_takes_a_file_and_its_columns(call, tmp_path):
    (tmp_path / "pair.py").write_text(PAIR)
    with open(tmp_path / "table.csv", "w") as f:
        f.write("a,b\n" + "".join(f"{i / 10},{i / 5}\n" for i in range(20)))
    out, _ = call("fit", "pair.py", "--data", "table.csv", "--columns", "x=a,y=b", "--steps", 300, "--lr", 0.05,
                  "--out", "r", "--seed", 1)  # fmt: skip
    assert "pair" not in out and "20 rows (all)" in out and "nats a row" not in out  # slope is global: of the data set
    run = Run.load("r")
    assert run.config["data"]["columns"] == {"x": "a", "y": "b"}
    assert run.config["data"]["source"] == str(tmp_path / "table.csv")
    assert set(run.data()) == {"x", "y"}
    assert run.program.autoguide.median()["slope"].item() == pytest.approx(2.0, abs=0.2)


def test_a_file_that_changed_since_the_fit_is_said(call, tmp_path):
    (tmp_path / "pair.py").write_text(PAIR)
    (tmp_path / "table.csv").write_text("x,y\n1,2\n2,4\n3,6\n")
    call("fit", "pair.py", "--data", "table.csv", "--steps", 2, "--out", "r", "-q")
    assert "changed" not in call("evaluate", "r", "--particles", 30)[1]
    (tmp_path / "table.csv").write_text("x,y\n1,2\n2,4\n3,9\n")
    assert "table.csv: y changed since the run was fitted" in call("evaluate", "r", "--particles", 30)[1]


def test_data_that_the_file_names_is_found_beside_it(call, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "pair.py").write_text(PAIR)
    (tmp_path / "there" / "table.csv").write_text("x,y\n1,2\n2,4\n3,6\n")
    call("fit", "there/pair.py", "--steps", 2, "--out", "r", "-q")
    assert Run.load("r").config["data"]["source"] == str(tmp_path / "there" / "table.csv")


def test_built_in_label_is_passed_only_where_it_is_taken(call, tmp_path):
    call("fit", "ppca", "--data", "digits", "--steps", 2, "--out", "a", "-q", "--set", "latent=2")
    call("fit", "vae", "--data", "digits", "--steps", 2, "--out", "b", "-q", "--set", "classes=10")
    assert set(Run.load("a").data()) == {"x"} and set(Run.load("b").data()) == {"x", "y"}
    recorded = Run.load("a").config["data"]
    assert (recorded["split"], recorded["valid_split"], recorded["rows"], recorded["valid_rows"]) == (
        "train", "valid", 1437, 180,
    )  # fmt: skip
    assert "valid_elbo" in Run.load("a").rows[-1]
    call("fit", "ppca", "--data", "digits", "--split", "all", "--steps", 2, "--out", "c", "-q")
    assert Run.load("c").config["data"]["rows"] == 1797


def test_valid_rows_are_followed_only_by_a_guide_that_reads_them(call, tmp_path):
    table = {"x_train": np.zeros((30, 2), np.float32), "x_test": np.ones((10, 2), np.float32)}
    np.savez(tmp_path / "t.npz", **table)
    (tmp_path / "local.py").write_text(
        "import pyro, ppgen\nfrom pyro.distributions import Normal\n\n"
        "class Local(ppgen.Program):\n"
        "    def model(self, x=None):\n"
        "        with ppgen.rows(x):\n"
        "            z = pyro.sample('z', Normal(0., 1.))\n"
        "            pyro.sample('x', Normal(z[..., None], 1.).expand(z.shape + (2,)).to_event(1), obs=x)\n"
    )
    call("fit", "local.py", "--data", "t.npz", "--steps", 3, "--out", "r", "-q")
    assert Run.load("r").config["data"]["valid_split"] is None


def test_resume_goes_on(call, line):
    call("fit", line, "--steps", 10, "--out", "r", "-q")
    call("fit", line, "--steps", 25, "--out", "whole", "-q")
    out, _ = call("fit", "--resume", "r", "--steps", 25, "--json")
    assert json.loads(out)["steps"] == 25
    a, b = Run.load("r").program.state_dict(), Run.load("whole").program.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert call("fit", "--resume", "r", "-q")[0]  # nothing left to do is no error


def test_resume_with_data_whose_file_was_moved(call, line, tmp_path):
    (tmp_path / "x.csv").write_text("x\n1.5\n2.5\n0.5\n")
    call("fit", line, "--data", "x.csv", "--steps", 5, "--out", "r", "-q")
    (tmp_path / "x.csv").rename("moved.csv")
    (tmp_path / "x.csv").write_text("x\n1.5\n2.5\n0.6\n")
    with pytest.raises(ppgen.PpgenError, match="fingerprints differ"):
        inference.resume("r", source="x.csv", steps=10)
    call("fit", "--resume", "r", "--data", "moved.csv", "--steps", 10, "-q")
    assert Run.load("r").config["data"]["source"] == "moved.csv" and Run.load("r").config["fit"]["steps"] == 10


# ---------------------------------------------------------------- what a run is asked


def test_sample_writes_each_format(call, fitted, tmp_path):
    from matplotlib.image import imread

    out, _ = call("sample", fitted, "-n", 12, "--out", "x.npz", "--json")
    with np.load(tmp_path / "x.npz", allow_pickle=False) as saved:
        npz = dict(saved)
    assert json.loads(out)["sites"] == {"z": [12], "x": [12]} and {k: v.shape for k, v in npz.items()} == {
        "z": (12,), "x": (12,),
    }  # fmt: skip
    call("sample", fitted, "-n", 12, "--out", "x.csv")
    rows = list(csv.DictReader((tmp_path / "x.csv").read_text().splitlines()))
    np.testing.assert_allclose([float(r["x"]) for r in rows], npz["x"], rtol=1e-6)  # one seed, the same draws
    call("sample", fitted, "-n", 12, "--out", "x.png")
    assert imread(tmp_path / "x.png").ndim == 3
    assert "samples.png" in call("sample", fitted)[0] and (fitted / "samples.png").is_file()


def test_sample_holds_what_is_given(call, fitted, tmp_path):
    call("sample", fitted, "-n", 5, "--given", "z=1.5", "--out", "a.npz")
    np.savez(tmp_path / "given.npz", z=np.full(5, 1.5, np.float32))
    call("sample", fitted, "-n", 5, "--given", "given.npz", "--out", "b.npz")
    with np.load("a.npz") as a, np.load("b.npz") as b:
        assert (a["z"] == 1.5).all() and np.array_equal(a["x"], b["x"])


def test_evaluate_is_loglik(call, fitted):
    out, _ = call("evaluate", fitted, "--particles", 50, "--json")
    found = json.loads(out)
    run = Run.load(fitted)
    again = inference.loglik(run, {"x": torch.linspace(-2.0, 2.0, 40)}, particles=50, seed=0)
    assert [b["nats"] for b in found["bounds"]] == pytest.approx([b.mean for b in again.bounds])
    assert found["rows"] == 40 and found["per"] == "row" and found["bounds"][0]["kind"] == "lower"
    out, _ = call("evaluate", fitted, "--particles", 50)
    assert "lower bound" in out and "nats a row" in out and "± Monte Carlo" in out and "bits/dim" not in out


def test_evaluate_takes_the_test_split_and_bits(call):
    call("fit", "vae", "--data", "digits", "--steps", 3, "--out", "r", "-q", "--set", "latent=2")
    out, _ = call("evaluate", "r", "--particles", 5)
    assert "digits (test), 180 rows" in out and "bits/dim" in out
    assert "digits (valid)" in call("evaluate", "r", "--split", "valid", "--particles", 2)[0]
    found = json.loads(call("evaluate", "r", "--data", "digits", "--particles", 5, "--json")[0])
    assert found["rows"] == 180
    best = found["bounds"][-1]
    assert best["bits_per_dim"] == pytest.approx(-best["nats"] / (64 * np.log(2)))


def test_diagnose_writes_the_posterior(call, fitted, tmp_path):
    import xarray

    out, _ = call("diagnose", fitted, "--out", "p.nc", "--draws", 20, "--particles", 100)
    assert "ArviZ summary" in out and "Pareto k-hat" in out and "\n- " in out and out.endswith("posterior p.nc\n")
    tree = xarray.open_datatree(tmp_path / "p.nc")
    assert tree.posterior["z"].shape == (1, 20, 40) and "log_likelihood" in tree.children
    tree.close()
    found = json.loads(call("diagnose", fitted, "--draws", 20, "--particles", 100, "--json")[0])
    assert len(found["khat"]) == 40 and "z[0]" in found["summary"]
    assert found["verdict"] in ("fine", "look", "wrong") and found["findings"][0]["measure"] == "guide"
    assert {"khat", "ess", "sd_ratio"} <= {f["measure"] for f in found["findings"]}
    assert (fitted / "posterior.nc").is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["p.nc"]


def test_report_has_its_findings_in_json(call, fitted, tmp_path):
    """The worst first, as on the page."""
    found = json.loads(call("report", fitted, "--out", "r.html", "--draws", 50, "--json")[0])
    verdicts = [f["verdict"] for f in found["findings"]]
    assert found["verdict"] == verdicts[0] and verdicts == sorted(verdicts, key=("wrong", "look", "fine").index)
    page = (tmp_path / "r.html").read_text()
    assert all(html.escape(f["sentence"]).replace("&#x27;", "&#39;") in page for f in found["findings"])


def test_plot_names_its_files(call, fitted):
    files = json.loads(call("plot", fitted, "--out", "here", "--json")[0])["files"]
    assert "here/elbo.png" in files and all(os.path.getsize(f) > 1000 for f in files)


def test_check_shows_the_sites(call, line):
    out, _ = call("check", line)
    assert "every check passed" in out and "latent" in out and "data (rows)" in out and "a row each" in out
    found = json.loads(call("check", line, "--json")[0])
    assert [s["name"] for s in found["sites"]] == ["z", "x"] and found["row_plates"] == ["data"]
    assert found["columns"]["x"] == {"shape": [40], "dtype": "torch.float32", "rows": True}
    assert "AutoNormal" in call("check", line, "--guide", "AutoNormal")[0]
    out, _ = call("check", "eight_schools", "--data", "eight_schools")
    assert "school" in out and "AutoNormal" in out
    assert "HalfCauchy" in out and not os.path.exists("runs")


def test_check_shows_the_traced_graph(call, line):
    out, _ = call("check", line, "--engine", "trace")
    assert "operations: " in out and "outside " in out and "compiling " in out
    found = json.loads(call("check", line, "--engine", "trace", "--json")[0])["graph"]
    assert found["traces"] and found["size"] == sum(found["operations"].values())
    assert "did you mean 'trace'" in call("check", line, "--engine", "tarce", code=2)[1]


def test_new_writes_a_program_that_fits(call, tmp_path):
    assert "ppgen fit my_model.py" in call("new", "my_model.py")[0]
    text = (tmp_path / "my_model.py").read_text()
    assert "class MyModel(ppgen.Program):" in text and "{{" not in text
    call("check", "my_model.py")
    out, _ = call("fit", "my_model.py", "--steps", 3)
    assert "MyModel on moons" in out
    _, err = call("new", "my_model.py", code=2)
    assert "not overwritten" in err and (tmp_path / "my_model.py").read_text() == text


def test_gradients(call):
    args = ("--rows", 50, "--repeats", 5, "--objective", "sampled", "--objective", "sampled sticking", "--json")
    found = json.loads(call("gradients", "ppca", "--data", "digits", *args)[0])
    assert {r["choice"] for r in found["gradients"]} == {"sampled", "sampled sticking"} and not found["refused"]
    call("fit", "ppca", "--data", "digits", "--steps", 2, "--out", "run", "--quiet")
    assert "a ratio below" in call("gradients", "run", "--rows", 20, "--repeats", 2)[0]


def test_list(call):
    out, _ = call("list")
    for word in ("vae", "digits", "AutoNormal", "flow", "analytic", "sticking", "64 chains of 250 draws"):
        assert word in out
    assert "Adam" in call("list", "optimizers")[0] and "cosine" in call("list", "schedules")[0]
    assert "vae" in json.loads(call("list", "models", "--json")[0])["models"]
    out, _ = call("list", "vae")
    assert "latent" in out and "20" in out and "from the data" in out


def test_list_reads_what_the_modules_have():
    """It reads their sources, for the sake of speed."""
    from ppgen import guides
    from ppgen.cli.programs import SECTIONS, _section
    from ppgen.data.files import datasets
    from ppgen.inference.sampling import kernels
    from ppgen.inference.training import optimise, step

    found = {name: _section(name) for name in SECTIONS}
    assert found["data"] == datasets.NAMES and list(found["engines"]) == list(step.ENGINES)
    own = {n: guides.file_of(n) for n in guides.guide_names()}
    assert found["guides"] == {n: f.SUMMARY if f else "Pyro's autoguide" for n, f in own.items()}
    assert list(found["schedules"]) == list(optimise.SCHEDULES)
    for name in kernels.names():
        chains, draws, warmup = kernels.named(name).DEFAULTS
        assert found["kernels"][name].endswith(f"{chains} chains of {draws} draws after {warmup}")


def test_list_does_without_torch():
    code = "import sys; from ppgen.cli.programs import list_; list_(None); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "command, also",
    [
        ("check", {"pandas"}),
        ("fit --engine trace --steps 200", {"pandas"}),
        ("fit --engine trace", {"pandas"}),  # by default rates, for which the cost of a step is counted
        ("mcmc --engine trace", ()),
    ],
)
def test_a_command_imports_nothing_that_takes_a_second(command: str, also: Iterable[str], tmp_path: Path):
    name, *options = command.split()
    names = {"torch._dynamo", "sympy", "lightning_fabric", *also}
    code = (
        "import atexit, sys; from ppgen.cli import app\n"
        f"atexit.register(lambda: print({names} & set(sys.modules) or 'none'))\n"
        f"app({[name, 'eight_schools', '--data', 'eight_schools', *options]})"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert said.stdout.endswith("none\n"), said.stdout[-300:] + said.stderr


def test_list_shows_the_arguments_of_a_file(call, line):
    found = json.loads(call("list", line, "--json")[0])["arguments"]
    assert found == [{"name": "a", "default": "1.0", "help": "the slope to begin with."}]


# ---------------------------------------------------------------- wrong input

WRONG = {
    "no such command": ("fitt x", "Did you mean 'fit'"),
    "no such option": ("fit line.py --stps 3", "No such option"),
    "not a number": ("fit line.py --steps many", "--steps"),
    "no program": ("fit", "no program to fit"),
    "no such model": ("fit vea --data digits", "did you mean 'vae'"),
    "no such file": ("fit nothing.py", "no file nothing.py"),
    "no such name": ("fit line.py:Lin", "did you mean 'Line'"),
    "a file that fails": ("fit broken.py", "broken.py line 2"),
    "a file without a program": ("fit empty.py", "neither a Program class"),
    "no data": ("fit vae", "name them with --data"),
    "no such data": ("fit vae --data digts", "did you mean 'digits'"),
    "a truncated file": ("fit line.py --data cut.npz", "cut.npz"),
    "no such split": ("fit vae --data digits --split tset", "did you mean 'test'"),
    "split of own data": ("fit line.py --split test", "leave out --split"),
    "a column that is not there": ("fit line.py --data t.csv --columns x=c", "no column 'c'"),
    "a column nobody takes": ("fit line.py --data t.csv", "taken by no argument"),
    "a context without x": ("fit flow --data t.csv --context b", "add --columns"),
    "a context twice": ("fit flow --data t.csv --columns x=a,context=b --context b", "both name the context"),
    "a context that is x": ("fit flow --data t.csv --columns x=a+b --context b", "'b' is in x and in --context"),
    "a context that is not there": ("fit flow --data t.csv --columns x=a --context c", "no column 'c'"),
    "a context nobody takes": ("fit line.py --data t.csv --columns x=a --context b", "takes no context"),
    "no context": ("fit flow --data t.csv --columns x=a --context b,a", "joined by +"),
    "not a mapping": ("fit line.py --data t.csv --columns x", "argument=column"),
    "NaN in the data": ("fit line.py --data nan.csv", "1 NaN"),
    "a setting nobody takes": ("fit line.py --set b=1", "no argument 'b'"),
    "no setting": ("fit line.py --set a", "key=value"),
    "optimizer": ("fit line.py --optimizer Adan --out r", "did you mean 'Adam"),
    "optimizer's option": ("fit line.py --optimizer Adam(beta=1) --out r", "'beta'"),
    "schedule": ("fit line.py --schedule cosin --out r", "did you mean 'cosine'"),
    "engine": ("fit line.py --engine egaer --out r", "did you mean 'eager'"),
    "objective": ("fit line.py --objective iwaee --out r", "did you mean 'iwae'"),
    "gradient estimator": ("fit line.py --gradient scoer --out r", "did you mean 'score'"),
    "resume with an estimator": ("fit --resume RUN --gradient score", "--gradient was given"),
    "the objective's old name": ("fit line.py --elbo iwae", "No such option: --elbo"),
    "guide": ("fit line.py --guide AutoNorml --out r", "did you mean 'AutoNormal'"),
    "device": ("fit line.py --device cuda:7 --out r", "device"),
    "precision": ("fit line.py --precision 31 --out r", "precision"),
    "negative steps": ("fit line.py --steps -1 --out r", "steps is -1"),
    "learning rate": ("fit line.py --lr 0 --out r", "lr is 0"),
    "patience without held-out rows": ("fit line.py --patience 3 --out r", "held-out"),
    "seed": ("fit line.py --seed -4 --out r", "--seed"),
    "seed of draws": ("sample RUN --seed -4", "--seed"),
    "seed of no generator": (f"evaluate RUN --seed {10**30}", "--seed"),
    "particles beyond whole numbers": (f"fit --resume RUN --particles {10**30}", "below 2**53"),
    "simulations beyond memory": (f"calibrate RUN --simulations {10**30}", "take fewer"),
    "a run that is there": ("fit line.py --out RUN", "holds a run already"),
    "resume nothing": ("fit --resume nowhere", "no run folder"),
    "resume with another guide": ("fit --resume RUN --guide flow", "--guide was given; what can be changed is --steps"),
    "resume with a bad option": ("fit --resume RUN --lr -1", "lr is -1.0"),
    "resume with fewer steps": ("fit --resume RUN --steps 10", "steps is 10, and"),
    "resume with a program": ("fit line.py --resume RUN", "PROGRAM was given"),
    "resume with lenience": ("fit --resume RUN --lenient", "--lenient was given"),
    "resume with settings": ("fit --resume RUN --set a=1", "--set was given"),
    "sample nothing": ("sample nowhere", "no run folder"),
    "sample none": ("sample RUN -n 0", "at least 1"),
    "sample into a format": ("sample RUN --out x.jpg", ".png, .npz, .csv"),
    "sample into no folder": ("sample RUN --out no/x.npz", "no folder no"),
    "given a stranger": ("sample RUN --given w=1", "'w'"),
    "given no file": ("sample RUN --given w.npz", "w.npz"),
    "evaluate nothing": ("evaluate RUN --particles 0", "particles is 0"),
    "evaluate other data": ("evaluate RUN --data t.csv", "no column 'x'"),
    "diagnose into a format": ("diagnose RUN --out x.csv", ".nc"),
    "plot nothing": ("plot nowhere", "no run folder"),
    "new without a name": ("new", "FILE"),
    "new of a kind": ("new x.txt", ".py"),
    "new in no folder": ("new no/x.py", "no folder no"),
    "list what": ("list modls", "did you mean 'models'"),
    "list arguments of functions": ("list pair.py", "takes no arguments"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_wrong_input_is_one_sentence(what, call, line, fitted, tmp_path):
    (tmp_path / "broken.py").write_text("import ppgen\nraise RuntimeError('no luck')\n")
    (tmp_path / "empty.py").write_text("x = 1\n")
    (tmp_path / "pair.py").write_text(PAIR)
    (tmp_path / "t.csv").write_text("a,b\n1,2\n3,4\n")
    (tmp_path / "nan.csv").write_text("x\n1\nnan\n3\n")
    np.savez(tmp_path / "cut.npz", x=np.zeros(100))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "cut.npz").read_bytes()[:90])
    before = sorted(p.name for p in [*tmp_path.iterdir(), *fitted.iterdir()])
    words, expected = WRONG[what]
    out, err = call(*words.replace("RUN", str(fitted)).split(), code=2)
    assert err.startswith("ppgen: ") and expected in err and len(err.splitlines()) == 1
    assert "Traceback" not in out + err
    after = sorted(p.name for p in [*tmp_path.iterdir(), *fitted.iterdir()] if p.name != "__pycache__")
    assert after == before, "something was left behind"


def test_debug_shows_the_traceback(call, line):
    assert "Traceback" in call("fit", line, "--debug", "--steps", "-1", code=2)[1]


def test_verbose_says_which_engine_why_and_what_it_costs(call, line, monkeypatch):
    monkeypatch.setenv("PPGEN_BACKGROUND", "0")
    err = call("fit", line, "-v", "--steps", 110, "--out", "a", "-q")[1]
    assert "engine auto: traced" in err and "operations in" in err
    assert "compiled code would save" in err and "steps stay with trace" in err
    err = call("fit", line, "--steps", 20, "--out", "b", "-q", "--verbose")[1]
    assert "eager steps, as a trace pays off from 100 steps on" in err
    assert "engine" not in call("fit", line, "--steps", 20, "--out", "c", "-q")[1], "asked for before, and not now"


def test_a_fault_of_ours_is_told_apart(call, line, monkeypatch):
    def fault(*args, **kwargs):
        raise KeyError("lost")

    monkeypatch.setattr(inference, "fit", fault)
    _, err = call("fit", line, code=1)
    assert "unexpected KeyError" in err and len(err.splitlines()) == 1


def test_memory_that_is_not_there_is_no_fault_of_ours(call, line):
    _, err = call("fit", line, "--particles", 10**12, "--engine", "eager", "--out", "r", "-q", code=2)
    assert "not enough memory" in err and "take fewer draws, particles or rows at a time" in err
    call("fit", "--resume", "r", "--particles", 1, "--steps", 2, "-q")


# ---------------------------------------------------------------- progress and Ctrl-C


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "110")
    screen = Terminal()
    with progress.progress(100, screen) as report:
        for step in (10, 50, 100):
            report({"step": step, "elbo": -500.0, "elbo_se": 5.0, "valid_elbo": -60.0, "per": 100, "valid_per": 10})
            time.sleep(0.15)
    assert "ELBO -5.000 ± 0.050 nats a row" in screen.getvalue() and "valid -6" in screen.getvalue()
    assert "100/100" in screen.getvalue() and "steps/s" in screen.getvalue()


def test_progress_is_lines_elsewhere_and_nothing_when_quiet():
    lines = io.StringIO()
    with progress.progress(1000, lines) as report:
        for step in range(10, 1001, 10):
            report({"step": step, "elbo": -31.0, "per": 1, "bad_steps": 2})
    said = lines.getvalue().splitlines()
    assert len(said) == 10 and said[0].startswith("step  100/1000  ELBO -31.00 nats  2 bad steps")
    with progress.progress(10, lines, quiet=True) as report:
        assert report is None


def test_ctrl_c_leaves_a_run_that_goes_on(line, tmp_path):
    command = [sys.executable, "-m", "ppgen", "fit", str(line), "--steps", "1000000", "--out", "r", "--engine", "eager"]
    process = subprocess.Popen(
        [*command, "--log-every", "20"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        while process.poll() is None and not (tmp_path / "r" / "config.json").exists():
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "go on with: ppgen fit --resume r" in err and "Traceback" not in err
    stopped = ppgen.run.files.read_tree(tmp_path / "r" / "state.safetensors")["progress"]["step"]
    run = subprocess.run(
        [sys.executable, "-m", "ppgen", "fit", "--resume", "r", "--steps", str(stopped + 20), "--json"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["steps"] == stopped + 20


def test_the_last_line_of_a_fit_is_of_what_is_kept(monkeypatch, tmp_path, capsys):
    from ppgen.cli.output import fit

    run = ppgen.inference.fit(ppgen.models.PPCA(2, 1), {"x": torch.zeros(4, 2)}, steps=2, out=tmp_path / "r")
    rows = [{"step": s, "elbo": -4.0, "elbo_se": 0.4, "valid_elbo": v} for s, v in ((1, -2.0), (2, -3.0), (3, -9.0))]
    monkeypatch.setattr(run, "rows", rows)
    run.config["data"]["valid_rows"] = 1
    for patience, said in ((1, "-2 held out, of step 1, which is kept; 3 steps"), (None, "-9 held out; 3 steps")):
        run.config["fit"]["patience"] = patience
        fit(run, 1.0, False)
        assert said in capsys.readouterr().out


def test_output_that_cannot_be_encoded_or_written(tmp_path):
    """A pipe in ASCII takes every figure; a full disk is one sentence, and no fault of ppgen's."""
    command = [sys.executable, "-m", "ppgen", "list", "objectives"]
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, env=ascii_only)
    assert done.returncode == 0 and b"?" in done.stdout and not done.stderr, done.stderr
    if Path("/dev/full").exists():
        with open("/dev/full", "w") as full:
            done = subprocess.run(command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE)
        assert done.returncode == 2 and done.stderr.count(b"\n") == 1 and b"No space left" in done.stderr


def test_a_pipe_that_is_closed_early(tmp_path):
    command = [sys.executable, "-m", "ppgen", "list"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.wait(60) == 1 and not process.stderr.read()


def test_ctrl_c_in_any_command_is_said(monkeypatch, call):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(inference, "mcmc", stopped)
    said = call("mcmc", "eight_schools", "--data", "eight_schools", "--quiet", code=130)[1]
    assert said == "ppgen: stopped\n"


def test_diagnose_of_what_is_no_run(call):
    assert "is no run folder" in call("diagnose", "nowhere", code=2)[1]
    Path("x.nc").write_bytes(b"")
    assert "is a posterior, and a run folder is expected" in call("diagnose", "x.nc", code=2)[1]


def test_notes_are_of_what_was_passed(call, tmp_path):
    """A column of words that nobody passes as numbers, and held-out rows that are float32 already."""
    text = "x,y,g\n" + "".join(f"{i / 10},{i % 7},{'ab'[i % 2]}\n" for i in range(20))
    (tmp_path / "t.csv").write_text(text)
    call("fit", "y ~ x + (1 | g)", "--data", "t.csv", "--steps", 5, "--out", "r")
    assert "passed as numbers" not in call("plot", "r")[1]
    call("fit", "ppca", "--data", "moons", "--steps", 2, "--batch-size", 10, "--set", "latent=1", "--out", "p")
    assert "is computed in" not in call("fit", "--resume", "p", "--steps", 3)[1]


NOISY = """import functools, pyro, torch
from pyro.distributions import Normal
import ppgen

print("imported")

def plain(x, y=None):
    print("run")
    a = pyro.sample("a", Normal(0.0, 1.0))
    with ppgen.rows(x):
        pyro.sample("y", Normal(a * x, 1.0), obs=y)

def halved(f):
    @functools.wraps(f)
    def g(x, y=None):
        with pyro.poutine.scale(scale=0.5):
            return f(x, y)
    return g

tempered = halved(plain)
short = lambda x, y=None: plain(x, y)
"""


@pytest.fixture
def noisy(tmp_path):
    (tmp_path / "noisy.py").write_text(NOISY)
    np.savez(tmp_path / "d.npz", x=np.arange(3.0), y=np.array([0.1, 0.9, 2.2]))
    return tmp_path


def test_json_stands_alone_beside_a_program_that_prints(call, noisy):
    out, err = call("fit", "noisy.py:plain", "--data", "d.npz", "--steps", 1, "--out", "r", "--json")
    assert json.loads(out)["steps"] == 1 and "imported" in err
    assert "imported" in call("fit", "noisy.py:plain", "--data", "d.npz", "--steps", 1, "--out", "r2")[0]


@pytest.mark.parametrize("name", ["tempered", "short"])
def test_a_run_is_reopened_as_what_was_named(call, noisy, name):
    """A function that wraps another of the file has its name, and a lambda has none. a ~ N(0, 1), y = a x + e: closed
    form of log p(y); of the tempered one of its square root, over a."""
    call(
        "fit",
        f"noisy.py:{name}",
        "--data",
        "d.npz",
        "--steps",
        0,
        "--guide",
        "bam",
        "--precision",
        "64-true",
        "--out",
        "r",
    )
    x, y, power = np.arange(3.0), np.array([0.1, 0.9, 2.2]), 0.5 if name == "tempered" else 1.0
    a = np.linspace(-12, 12, 200_001)
    log_joint = -((y - a[:, None] * x) ** 2).sum(1) / 2 - a**2 / 2 - 4 * np.log(2 * np.pi) / 2
    exact = np.log(np.exp(power * log_joint).sum() * (a[1] - a[0]))
    out = call("evaluate", "r", "--json")[0]
    assert abs(json.loads(out)["bounds"][1]["nats"] - exact) < 1e-6


def test_a_check_shows_the_columns_that_are_taken(call, noisy, tmp_path):
    (tmp_path / "t.csv").write_text("x,y,left\n1,2,a\n2,3,b\n")
    assert json.loads(call("check", "noisy.py:plain", "--data", "t.csv", "--json")[0])["columns"].keys() == {"x", "y"}


def test_a_number_beside_the_columns_is_taken(call, noisy, tmp_path):
    np.savez(tmp_path / "k.npz", x=np.arange(3.0), y=np.ones(3), k=3.0)
    (tmp_path / "k.py").write_text(
        NOISY.replace("plain(x, y=None)", "plain(x, k, y=None)").replace("a * x", "a * k * x")
    )
    call("fit", "k.py:plain", "--data", "k.npz", "--steps", 1, "--out", "r")


def test_draws_of_sites_that_are_called_as_arguments_of_numpy_are_written(tmp_path):
    """They come back equal, with their dtypes and shapes; numpy.savez takes `file` and `allow_pickle` for its own."""
    from ppgen.cli.draw import _write_draws

    drawn = {
        "file": torch.arange(6.0).reshape(3, 2),
        "allow_pickle": torch.tensor([True, False, True]),
        "a/b": torch.arange(3),
        "x": torch.linspace(0, 1, 3).double(),
    }
    _write_draws(tmp_path / "x.npz", drawn, ["x"])
    with np.load(tmp_path / "x.npz", allow_pickle=False) as saved:
        found = dict(saved)
    assert found.keys() == drawn.keys()
    for name, value in drawn.items():
        assert found[name].dtype == value.numpy().dtype
        np.testing.assert_array_equal(found[name], value.numpy())
