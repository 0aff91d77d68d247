"""Run folders that are damaged, killed, shared, or somebody else's: the right figures, or one sentence and exit 2.

Every case has a seed of its own, so that what failed is run again by its name.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from files import LINE
from known import SCHOOLS, GuidedNormalMean, normal, ppca
from typer.testing import CliRunner

from ppgen import PpgenError, Run, cli
from ppgen.inference import fit, resume
from ppgen.inference.training.step import ENGINES
from ppgen.models import VAE, Diffusion, EightSchools, Flow
from ppgen.run.files import read_tree, write_tree


def call(*args):
    result = CliRunner().invoke(cli.app, [str(a) for a in args])
    return result.exit_code, result.stdout, result.stderr


# -- mutations of a run folder ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of the line with an average and batches, stopped in the middle of its 40 steps; and what commands say."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "line.py").write_text(LINE)
    code, _, said = call("fit", folder / "line.py", "--steps", 20, "--lr", 0.05, "--batch-size", 8, "--ema", 0.9,
                         "--log-every", 5, "--out", folder / "run", "-q")  # fmt: skip
    assert code == 0, said
    return folder / "run"


COMMANDS = {
    "evaluate": ("evaluate", "RUN", "--particles", 3, "--json"),
    "sample": ("sample", "RUN", "-n", 4, "--out", "OUT.npz", "--json"),
    "resume": ("fit", "--resume", "RUN", "--steps", 30, "--json", "-q"),
}
SLOW_COMMANDS = {
    "diagnose": ("diagnose", "RUN", "--draws", 20, "--particles", 20, "--json"),
    "plot": ("plot", "RUN", "--out", "OUT", "--json"),
    "predict": ("predict", "RUN", "--data", "OUT.csv", "-n", 20, "--json"),
    "mcmc": ("mcmc", "RUN", "--chains", 4, "--draws", 4, "--warmup", 20, "--engine", "eager", "--out", "OUT.nc", "-q",
             "--json"),
    "report": ("report", "RUN", "--draws", 20, "--out", "OUT.html", "--json"),
    "compare": ("compare", "RUN", "RUN/.", "--particles", 5, "--json"),
    "calibrate": ("calibrate", "RUN", "--simulations", 20, "--draws", 9, "--out", "OUT.json", "--json"),
}  # fmt: skip


def figures(command, run, out):
    """Exit code, what is printed and left, and the sentence."""
    line = [str(a).replace("RUN", str(run)).replace("OUT", str(out)) for a in command]
    (out.parent / "out.csv").write_text("x\n0.5\n1.5\n")
    code, printed, said = call(*line)
    shown = printed.replace(str(run), "RUN").replace(str(out), "OUT")
    if command[0] == "fit" and code == 0:
        shown = {n: (run / n).read_bytes() for n in ("metrics.csv", "parameters.safetensors", "state.safetensors")}
    if command[0] == "sample" and code == 0:
        shown += str(out.with_suffix(".npz").read_bytes())
    return code, shown, said


def truncate(rng, content):
    return content[: rng.randrange(len(content))]


def empty(rng, content):
    return b""


def flip(rng, content):
    damaged = bytearray(content)
    damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def cut_out(rng, content):
    at, n = rng.randrange(len(content)), rng.randrange(1, 64)
    return content[:at] + content[at + n :]


def zero_page(rng, content):
    at = rng.randrange(len(content)) // 512 * 512
    return content[:at] + bytes(len(content[at : at + 512])) + content[at + 512 :]


OTHER = (None, True, -1, 3.5, "text", [], {}, [1, 2], {"a": 1}, 10**30, float("nan"), "../evil.py", "/x/evil.py:A")


def places(value, at=()):
    """The places of all values within dicts and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for k, v in items:
        yield (*at, k)
        yield from places(v, (*at, k))


def change(rng, value):
    """A value of another type at a random place, a key that is missing, or one of another name."""
    *head, last = rng.choice(list(places(value)))
    inner = value
    for k in head:
        inner = inner[k]
    kind = rng.choice(("other", "other", "missing", "renamed"))
    if kind == "other":
        inner[last] = rng.choice(OTHER)
    elif isinstance(inner, list):
        del inner[last]
    else:
        kept = inner.pop(last)
        if kind == "renamed":
            inner[f"{last}x"] = kept
    return value


def mutate(folder, seed, unread=("program.py",)):
    """Damages one file of a run folder in one way; says how."""
    rng = random.Random(seed)
    name = rng.choice(sorted(p.name for p in folder.iterdir() if p.name not in unread))
    path = folder / name
    if name == "config.json" and rng.random() < 0.8:
        path.write_text(json.dumps(change(rng, json.loads(path.read_text()))))
        return f"{name}: changed"
    if name in ("state.safetensors", "example.safetensors") and rng.random() < 0.4:  # with a digest that is right
        write_tree(path, change(rng, read_tree(path)))
        return f"{name}: changed"
    if rng.random() < 0.05:
        path.unlink()
        return f"{name}: removed"
    way = rng.choice((truncate, empty, flip, flip, cut_out, zero_page))
    path.write_bytes(way(rng, path.read_bytes()))
    return f"{name}: {way.__name__}"


@pytest.fixture(scope="module")
def expected(whole, tmp_path_factory):
    """What the commands give of the folder as it was."""
    found = {}

    def of(name):
        if name not in found:
            folder = shutil.copytree(whole, tmp_path_factory.mktemp("copy") / "run")
            found[name] = figures((COMMANDS | SLOW_COMMANDS)[name], folder, folder.parent / "out")
        return found[name]

    return of


def assert_right_or_one_sentence(whole, expected, tmp_path, seed, name, **kept):
    folder = shutil.copytree(whole, tmp_path / f"{seed}" / "run")
    how = mutate(folder, seed, **kept)
    code, shown, said = figures((COMMANDS | SLOW_COMMANDS)[name], folder, folder.parent / "out")
    last = said.strip().splitlines()[-1:]
    assert code in (0, 2), f"seed {seed}, {how}: {said}"
    if code == 2:
        assert last and last[0].startswith("ppgen: ") and "tmp" not in last[0].replace(str(tmp_path), ""), said
    elif not how.endswith("changed"):  # what was changed on purpose has a digest that is right, or is an option
        without = "metrics.csv is not there" in said  # a plot less
        assert without or shown == expected(name)[1], f"seed {seed}, {how}: other figures, and nothing said"
    shutil.rmtree(folder.parent)


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("part", range(5))
def test_a_damaged_folder_gives_the_right_figures_or_one_sentence(whole, expected, tmp_path, part, name):
    for seed in range(10 * part, 10 * part + 10):
        assert_right_or_one_sentence(whole, expected, tmp_path, seed, name)


@pytest.mark.parametrize("name", [n for n in COMMANDS if n != "resume"])
def test_a_state_is_read_by_resume_alone(whole, expected, tmp_path, name):
    folder = shutil.copytree(whole, tmp_path / "run")
    (folder / "state.safetensors").unlink()
    assert figures(COMMANDS[name], folder, tmp_path / "out")[:2] == expected(name)[:2]


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are made, and not drawn: that is most of the time of a plot, and no file of the run has a part in it."""

    def savefig(self, file, *_, **__):
        file.write(b"") if hasattr(file, "write") else Path(file).touch()

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", savefig)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS | SLOW_COMMANDS)
@pytest.mark.parametrize("part", range(30))
def test_3000_damaged_folders_in_every_command(whole, expected, tmp_path, undrawn, part, name):
    """Parts of a hundred, so that `-k "[7-"` takes one up again; of the files that the command reads."""
    unread = ("program.py",) if name == "resume" else ("program.py", "state.safetensors")
    for seed in range(1000 + 100 * part, 1100 + 100 * part):
        assert_right_or_one_sentence(whole, expected, tmp_path, seed, name, unread=unread)


# -- processes that are killed ---------------------------------------------------------------------

X = normal(48, 4)
FILES = ("metrics.csv", "parameters.safetensors", "state.safetensors")


def in_child(work):
    """Runs something in a child process; its process id."""
    child = os.fork()
    if child:
        return child
    try:  # pragma: no cover - it is killed
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        work()
    finally:
        os._exit(0)


def ended(child):
    return os.waitpid(child, 0)[1]


def kill_at(monkeypatch, n, names=("replace", "fsync")):
    """From now on the n-th call of os.replace or os.fsync kills the process, before it does anything."""
    left = [n]

    def counted(own, *args):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return own(*args)

    for name in names:
        monkeypatch.setattr(os, name, partial(counted, getattr(os, name)))


def files_of(path):
    return {name: (path / name).read_bytes() for name in FILES}


def assert_resumes_to(whole, path, data, make, **given):
    resume(path, data, program=make(), **given)
    for name, content in files_of(path).items():
        assert content == whole[name], f"{name} is not that of the unbroken run"
    left = {p.name for p in path.iterdir()}
    assert left <= {*FILES, "config.json", "example.safetensors", "program.py"}, "something was left behind"


@pytest.mark.parametrize("engine, every", [("eager", 3), pytest.param("trace", 8, marks=pytest.mark.slow)])
def test_killed_between_any_two_writes_and_resumed_to_the_bit(tmp_path, engine, every):
    """At a replace or fsync of three checkpoints and what surrounds them, one after the other."""
    options = {"steps": 15, "batch_size": 16, "lr": 0.05, "ema": 0.9, "log_every": 3, "checkpoint_every": 5}
    valid = {"x": X[:9]}
    fit(ppca(), {"x": X}, valid=valid, out=tmp_path / "whole", engine=engine, **options)
    whole = files_of(tmp_path / "whole")
    for n in range(2, 34, every):
        path = tmp_path / str(n)
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, n)
            child = in_child(lambda: fit(ppca(), {"x": X}, valid=valid, out=path, engine=engine, **options))  # noqa: B023
            assert ended(child) == signal.SIGKILL
        if (path / "config.json").exists():
            Run.load(path)
            assert_resumes_to(whole, path, {"x": X}, ppca, valid=valid)
        else:  # before the first checkpoint: the fit may begin anew in its folder
            fit(ppca(), {"x": X}, valid=valid, out=path, engine=engine, **options)
            assert files_of(path) == whole


SMALL = {
    "vae": (lambda: VAE(4, 2, (8,), likelihood="normal"), {"x": X}),
    "flow": (lambda: Flow(4, transforms=1, hidden=(8,)), {"x": X}),
    "diffusion": (lambda: Diffusion(4, hidden=(8,), steps=20), {"x": X}),
    "hierarchical": (lambda: EightSchools(), SCHOOLS),
    "custom": (lambda: GuidedNormalMean(), {"x": X[:, 0]}),
}
HOW = {
    "plain": {},
    "converged": {"until": "converged", "steps": 400},
    "patience": {"patience": 4},
    "ema": {"ema": 0.95, "clip": 1.0},
    "schedule": {"schedule": "cosine", "kl_warmup": 30, "optimizer": "AdamW(weight_decay=0.01)"},
}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", SMALL)
def test_killed_at_random_moments_and_resumed_to_the_bit(tmp_path, name, how, engine):
    """Two kills of each of a hundred fits; the moment is counted in rows of metrics and a part of one."""
    fresh, data = SMALL[name]

    def make():
        torch.manual_seed(0)  # the constructor draws the first parameters
        return fresh()

    rows = name not in ("hierarchical",)
    given = {"valid": {k: v[:9] for k, v in data.items()}} if rows else {}
    if how == "patience" and not rows:
        pytest.skip("no rows to hold out")
    options = {"steps": 120, "lr": 0.02, "log_every": 5, "checkpoint_every": 7, "engine": engine} | HOW[how] | given
    if rows:
        options["batch_size"] = 16
    begun = time.monotonic()
    fit(make(), data, out=tmp_path / "whole", **options)
    length, whole = time.monotonic() - begun, files_of(tmp_path / "whole")
    rng = random.Random(f"{name} {how} {engine}")
    for i in range(2):
        path = tmp_path / f"run{i}"
        child = in_child(lambda: fit(make(), data, out=path, **options))  # noqa: B023
        moment = rng.uniform(0.2, 1.0) * length
        while not (path / "config.json").exists() and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.01)
        time.sleep(moment / 2)
        try:
            os.kill(child, signal.SIGKILL)
            ended(child)
        except (ProcessLookupError, ChildProcessError):
            pass  # it was done
        assert_resumes_to(whole, path, data, make, **given)


WRITERS = {
    "sample": ("sample", "RUN", "-n", "4", "--out", "OUT.npz"),
    "plot": ("plot", "RUN", "--out", "OUT"),
    "report": ("report", "RUN", "--draws", "20", "--out", "OUT.html"),
    "diagnose": ("diagnose", "RUN", "--draws", "20", "--particles", "20", "--out", "OUT.nc"),
    "mcmc": ("mcmc", "RUN", "--chains", "4", "--draws", "20", "--warmup", "20", "--out", "OUT.nc", "-q"),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n != "sample" else []) for n in WRITERS])
def test_a_killed_command_leaves_whole_files_or_none(whole, tmp_path, monkeypatch, name):
    line = [a.replace("RUN", str(whole)).replace("OUT", str(tmp_path / "out")) for a in WRITERS[name]]
    before = {p.name: p.read_bytes() for p in whole.iterdir()}
    for n in range(3):
        with pytest.MonkeyPatch.context() as patch:
            kill_at(patch, n)
            status = ended(in_child(lambda: call(*line)))
        left = [p for p in tmp_path.rglob("*") if p.is_file() and not p.name.startswith(".")]
        assert status == signal.SIGKILL and (not left or n == 2 or name == "plot")  # the last sync is of the folder
    assert call(*line)[0] == 0
    assert {p.name: p.read_bytes() for p in whole.iterdir()} == before


@pytest.mark.parametrize("name", ["sample", "diagnose"])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(whole, tmp_path, name):
    """HDF5 ends the process where it cannot write, and would leave a part of a file."""
    line = [a.replace("RUN", str(whole)).replace("OUT", str(tmp_path / "out")) for a in WRITERS[name]]
    before = {p.name: p.read_bytes() for p in whole.iterdir()}

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        code, _, said = call(*line)
        os._exit(code if "could not be written: File too large" in said else 3)

    assert os.waitstatus_to_exitcode(ended(in_child(work))) == 2
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    assert {p.name: p.read_bytes() for p in whole.iterdir()} == before


# -- two at once -----------------------------------------------------------------------------------


@pytest.fixture
def at_work(tmp_path):
    """A fit that is at work in a folder, and waits."""
    path = tmp_path / "busy"

    def wait(row):
        (tmp_path / "ready").touch()
        time.sleep(60)

    child = in_child(lambda: fit(ppca(), {"x": X}, steps=50, log_every=5, checkpoint_every=5, out=path, report=wait))
    while not (tmp_path / "ready").exists():
        time.sleep(0.02)
    yield path, child
    if os.waitpid(child, os.WNOHANG) == (0, 0):
        os.kill(child, signal.SIGKILL)
        ended(child)


def test_a_second_fit_or_resume_waits_for_nobody_and_says_who_is_there(at_work):
    path, child = at_work
    with pytest.raises(PpgenError, match="holds a run already"):
        fit(ppca(), {"x": X}, steps=5, out=path)
    with pytest.raises(PpgenError) as caught:
        resume(path, {"x": X}, steps=60)
    assert f"a fit is at work in {path} (process {child} on {socket.gethostname()})" in str(caught.value)
    assert Run.load(path).config["fit"]["steps"] == 50  # to read is no conflict


def test_the_lock_of_a_killed_fit_is_taken_over(at_work):
    path, child = at_work
    os.kill(child, signal.SIGKILL)
    while (path / "lock").exists():
        try:
            resume(path, {"x": X}, steps=60)
        except PpgenError as e:  # the system has not let go of it yet
            assert "at work" in str(e)
            time.sleep(0.02)
    assert Run.load(path).rows[-1]["step"] == 60


def test_of_two_fits_that_begin_at_once_one_wins(tmp_path):
    go = tmp_path / "go"

    def begin():
        while not go.exists():
            pass
        try:
            fit(ppca(), {"x": X}, steps=20, out=tmp_path / "run")
        except PpgenError:
            os._exit(2)

    children = [in_child(begin) for _ in range(3)]
    go.touch()
    codes = sorted(os.waitstatus_to_exitcode(ended(c)) for c in children)
    assert codes == [0, 2, 2]
    assert Run.load(tmp_path / "run").rows[-1]["step"] == 20


def test_the_lock_of_another_machine_is_not_taken(tmp_path):
    fit(ppca(), {"x": X}, steps=5, out=tmp_path / "run")
    (tmp_path / "run" / "lock").write_text('{"pid": 7, "host": "node17"}')
    with pytest.raises(PpgenError, match="process 7 on the machine node17 has left its lock .* remove .*/lock once"):
        resume(tmp_path / "run", {"x": X}, steps=6)
    (tmp_path / "run" / "lock").write_text("")  # killed before it was written
    resume(tmp_path / "run", {"x": X}, steps=6)
    assert not (tmp_path / "run" / "lock").exists()


@pytest.mark.parametrize("way", ["folder", "link", "pipe"])
def test_something_else_named_lock_is_named(tmp_path, way):
    fit(ppca(), {"x": X}, steps=1, out=tmp_path / "run")
    lock = tmp_path / "run" / "lock"
    lock.mkdir() if way == "folder" else lock.symlink_to(tmp_path / "x") if way == "link" else os.mkfifo(lock)
    with pytest.raises(PpgenError, match="run/lock could not be made: .*; remove what is there"):
        resume(tmp_path / "run", {"x": X}, steps=2)
    assert not (tmp_path / "x").exists()


# -- several processes -----------------------------------------------------------------------------

SCRIPT = """
import sys, torch, pyro, os, pathlib, time
import pyro.distributions as dist
from torch import nn
from ppgen import Program, rows
from ppgen.inference import fit, resume

torch.set_num_threads(1)

class Mean(Program):
    def __init__(self):
        super().__init__()
        self.t = nn.Parameter(torch.zeros(()))
    def model(self, x=None):
        with rows(x):
            pyro.sample("x", dist.Normal(self.t, 1.0), obs=x)

out = pathlib.Path(sys.argv[1])
(out.parent / f"{out.name}.{os.environ['RANK']}.pid").write_text(str(os.getpid()))
x = torch.linspace(0.0, 3.0, 64)
slow = lambda row: time.sleep(0.05)
if sys.argv[2:] == ["resume"] and (out / "config.json").exists():
    resume(out, {"x": x}, program=Mean())
else:
    fit(Mean(), {"x": x}, steps=200, batch_size=16, lr=0.05, out=out, checkpoint_every=10, log_every=5, engine="trace",
        report=slow)
"""


def launched(script, out, *more, restarts=0, processes=2):
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes),
            "--max-restarts", str(restarts), str(script), str(out), *more]  # fmt: skip
    return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def kill_one(out, rank, delay):
    """Kills a process of a launch, a while after the first checkpoint."""
    while not (out / "config.json").exists():
        time.sleep(0.05)
    time.sleep(delay)
    os.kill(int((out.parent / f"{out.name}.{rank}.pid").read_text()), signal.SIGKILL)
    return time.monotonic()


@pytest.fixture(scope="module", params=[2, 4])
def unbroken(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("torchrun")
    (folder / "script.py").write_text(SCRIPT)
    process = launched(folder / "script.py", folder / "whole", processes=request.param)
    assert process.wait(240) == 0, process.stderr.read()
    return folder, request.param


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(5))
def test_of_several_processes_one_is_killed_and_the_others_end(unbroken, moment):
    folder, n = unbroken
    rng, out = random.Random(moment), folder / f"killed{moment}"
    process = launched(folder / "script.py", out, processes=n)
    at = kill_one(out, rng.randrange(n), rng.uniform(0.1, 2.0))
    assert process.wait(60) != 0
    assert time.monotonic() - at < 10
    process = launched(folder / "script.py", out, "resume", processes=n)
    assert process.wait(240) == 0, process.stderr.read()
    assert files_of(out) == files_of(folder / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(5))
def test_torchrun_restarts_a_fit_by_itself(unbroken, moment):
    folder, n = unbroken
    rng, out = random.Random(100 + moment), folder / f"restarted{moment}"
    process = launched(folder / "script.py", out, restarts=2, processes=n)
    kill_one(out, rng.randrange(n), rng.uniform(0.1, 2.0))
    assert process.wait(240) == 0, process.stderr.read()
    assert files_of(out) == files_of(folder / "whole")
