"""Whose code runs: a run folder that came from elsewhere runs nothing, in any command, until its owner says so."""

from __future__ import annotations

import json
import os
import py_compile
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_faults import LINE, call

from ppgen import PpgenError, Run
from ppgen.inference import mcmc, predict
from ppgen.run import trust

EVIL = 'from pathlib import Path\nPath({marker!r}).write_text("ran")\n'
COMMANDS = {
    "evaluate": ("evaluate", "RUN"),
    "sample": ("sample", "RUN", "--out", "OUT.npz"),
    "resume": ("fit", "--resume", "RUN", "--steps", 30),
    "diagnose": ("diagnose", "RUN"),
    "plot": ("plot", "RUN"),
    "compare": ("compare", "RUN", "RUN/."),
    "predict": ("predict", "RUN", "--data", "RUN/none.csv"),
    "mcmc": ("mcmc", "RUN"),
    "infer": ("infer", "RUN"),
    "report": ("report", "RUN"),
    "calibrate": ("calibrate", "RUN"),
}


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """Another account: nothing that was fitted before is on its list, nor in this process's."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(trust, "_here", set())


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("line")
    (folder / "line.py").write_text(LINE)
    code, _, said = call("fit", folder / "line.py", "--steps", 10, "--out", folder / "run", "-q")
    assert code == 0, said
    return folder / "run"


def evil(folder: Path, how: str) -> Path:
    """Makes a run folder run another's code, by one of several ways; the file that this code would write."""
    marker, text = folder.parent / "ran", EVIL.format(marker=str(folder.parent / "ran"))
    other = folder.parent / "evil.py"
    other.write_text(text + LINE)
    config = json.loads((folder / "config.json").read_text())
    spec = config["program"]
    if how == "model_is_a_file":
        spec |= {"model": f"{other}:Line", "file": None}
    elif how == "file_above":
        spec["file"] = "../evil.py"
    elif how == "file_from_the_root":
        spec["file"] = str(other)
    elif how == "link":
        (folder / "program.py").unlink()
        (folder / "program.py").symlink_to(other)
    elif how == "program_changed":
        (folder / "program.py").write_text(text + LINE)
    elif how == "name_is_a_path":
        spec["name"] = f"/../{other}"
    elif how == "name":
        spec["name"] = "torch"
    elif how == "arguments":
        spec["arguments"] = {"a": 2.0}
    (folder / "config.json").write_text(json.dumps(config))
    return marker


WAYS = ("model_is_a_file", "file_above", "file_from_the_root", "link", "program_changed", "name_is_a_path", "name",
        "arguments")  # fmt: skip


EVERY = [(how, name) for how in WAYS[:1] for name in COMMANDS]
SOME = [(how, name) for how in WAYS[1:] for name in ("evaluate", "resume", "predict")]


@pytest.mark.parametrize("how, name", EVERY + SOME)
def test_no_command_runs_anothers_code(fitted, tmp_path, how, name):
    folder = shutil.copytree(fitted, tmp_path / "run")
    marker = evil(folder, how)
    line = [str(a).replace("RUN", str(folder)).replace("OUT", str(tmp_path / "out")) for a in COMMANDS[name]]
    code, _, said = call(*line)
    assert code == 2 and said.count("\n") == 1, said
    assert "program.py" in said or "there is no model" in said
    assert not marker.exists()


def test_a_folder_from_elsewhere_is_opened_once_it_is_trusted(fitted, elsewhere):
    code, _, said = call("evaluate", fitted, "--particles", 2)
    assert code == 2 and f"ppgen trust {fitted} shows it" in said
    code, shown, said = call("trust", fitted)
    assert code == 0 and LINE.strip() in shown and f"trusted: {fitted}/program.py" in shown, said
    assert call("evaluate", fitted, "--particles", 2)[0] == 0
    program = fitted / "program.py"
    program.write_text(program.read_text() + "\n")
    try:
        assert call("evaluate", fitted, "--particles", 2)[0] == 2
    finally:
        program.write_text(LINE)


def test_trust_in_python_is_of_this_process(fitted, elsewhere, tmp_path):
    with pytest.raises(PpgenError, match="trust=True"):
        Run.load(fitted)
    assert Run.load(fitted, trust=True).program.name == Run.load(fitted).program.name == "Line"
    assert not (tmp_path / "state").exists()


def test_ppgen_trust_all_is_for_scripts(fitted, elsewhere, monkeypatch):
    monkeypatch.setenv("PPGEN_TRUST", "all")
    assert Run.load(fitted).program.name == "Line"
    monkeypatch.setenv("PPGEN_TRUST", "some")
    with pytest.raises(PpgenError, match="not trusted"):
        Run.load(fitted)


def test_a_moved_or_linked_folder_is_still_trusted(fitted, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(shutil.copytree(fitted, tmp_path / "moved"))
    assert Run.load(link).program.name == "Line"


def test_a_program_given_needs_no_trust(fitted, elsewhere):
    scope: dict = {"__name__": "own"}
    exec(LINE, scope)
    assert Run.load(fitted, scope["Line"]()).program.name == "Line"


def test_the_text_that_was_read_is_what_runs(fitted, tmp_path, monkeypatch):
    """Neither Python's cache of another text, nor a module beside the file that the program imports."""
    folder = shutil.copytree(fitted, tmp_path / "run")
    marker = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(EVIL.format(marker=str(marker)) + LINE)
    stat = (folder / "program.py").stat()
    padding = max(0, (tmp_path / "evil.py").stat().st_size - stat.st_size)
    text = (folder / "program.py").read_text() + "#" * padding
    (folder / "program.py").write_text(text)
    os.utime(tmp_path / "evil.py", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    os.utime(folder / "program.py", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    (folder / "__pycache__").mkdir()
    cached = folder / "__pycache__" / f"program.{sys.implementation.cache_tag}.pyc"
    py_compile.compile(str(tmp_path / "evil.py"), cfile=str(cached), dfile=str(folder / "program.py"))
    assert Run.load(folder, trust=True).program.name == "Line" and not marker.exists()
    (folder / "beside.py").write_text(EVIL.format(marker=str(marker)))
    (folder / "program.py").write_text("import beside\n" + LINE)
    with pytest.raises(PpgenError, match="No module named 'beside'"):
        Run.load(folder, trust=True)
    assert not marker.exists()


def test_what_would_hide_code_is_shown(fitted, tmp_path):
    folder = shutil.copytree(fitted, tmp_path / "run")
    (folder / "program.py").write_text(LINE + "# \x1b[2K\x1b[1A \u202e\n")
    shown = call("trust", folder)[1]
    assert "\x1b" not in shown and "\u202e" not in shown and r"\x1b[2K" in shown and r"\u202e" in shown


@pytest.mark.parametrize("model", ["vae", None])
def test_there_is_nothing_to_trust_without_a_program(fitted, tmp_path, model):
    folder = shutil.copytree(fitted, tmp_path / "run")
    config = json.loads((folder / "config.json").read_text())
    config["program"] |= {"model": model, "file": None}
    (folder / "config.json").write_text(json.dumps(config))
    code, _, said = call("trust", folder)
    assert code == 2 and "has no code to trust" in said


def test_a_file_for_a_catalogue_name_is_not_called_one(fitted, tmp_path):
    shutil.copytree(fitted, tmp_path / "run")
    evil(tmp_path / "run", "model_is_a_file")
    code, _, said = call("trust", tmp_path / "run")
    assert code == 2 and "there is no model" in said and not (tmp_path / "ran").exists()


def test_a_home_that_cannot_be_written_to_is_a_warning(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(trust, "_here", set())
    (tmp_path / "line.py").write_text(LINE)
    code, _, said = call("fit", tmp_path / "line.py", "--steps", 2, "--out", tmp_path / "run", "-q")
    assert code == 0 and "cannot be written to" in said + caplog.text
    assert Run.load(tmp_path / "run").program.name == "Line"  # in this process


def test_a_tree_of_draws_runs_the_file_it_names_only_as_it_was(tmp_path, elsewhere):
    file = tmp_path / "line.py"
    file.write_text(LINE.replace("self.a = torch.nn.Parameter(torch.tensor(a))", "self.a = a").replace(
        "        self.encoder = torch.nn.Linear(1, 2)\n", ""))  # fmt: skip
    from ppgen import catalog

    program = catalog.build(catalog.find(str(file)), {})
    tree = mcmc(program, {"x": [0.1, 0.5, -0.3]}, chains=4, draws=10, warmup=20)
    assert predict(tree, {"x": [0.1, 0.5, -0.3]}, draws=10) is not None
    file.write_text(EVIL.format(marker=str(tmp_path / "ran")) + file.read_text())
    with pytest.raises(PpgenError, match="changed since or never trusted, and would be run; read it, and name it"):
        predict(tree, {"x": [0.1, 0.5, -0.3]}, draws=10)
    assert not (tmp_path / "ran").exists()


def test_what_was_held_against_the_list_is_what_a_tree_of_draws_runs(tmp_path, monkeypatch, elsewhere):
    """The file is another one from the moment on that it was read; its neighbours can still be imported."""
    file = tmp_path / "line.py"
    (tmp_path / "beside_line.py").write_text("slope = 1.0\n")
    file.write_text("import beside_line\n" + LINE)
    spec = {"file": str(file), "name": "Line", "arguments": {}}
    trust.trust(file.read_bytes(), spec, keep=False)
    read = trust._read

    def exchanged(path):
        text = read(path)
        path.write_text(EVIL.format(marker=str(tmp_path / "ran")) + LINE)
        return text

    monkeypatch.setattr(trust, "_read", exchanged)
    assert trust.find_file(spec, "").target.__name__ == "Line" and not (tmp_path / "ran").exists()


def test_a_pipe_for_a_program_is_not_waited_for(fitted, tmp_path):
    folder = shutil.copytree(fitted, tmp_path / "run")
    (folder / "program.py").unlink()
    os.mkfifo(folder / "program.py")
    with pytest.raises(PpgenError, match="program.py is no file; restore it"):
        Run.load(folder)


@pytest.mark.slow
def test_fit_then_sample_needs_no_further_step(tmp_path):
    """In processes of their own, with a list in a home that is not there yet."""
    (tmp_path / "line.py").write_text(LINE)
    environment = {k: v for k, v in os.environ.items() if k != "XDG_STATE_HOME"} | {"HOME": str(tmp_path / "home")}
    for line in ("fit line.py --steps 3 --out run -q", "sample run -n 2 --out x.csv"):
        done = subprocess.run([sys.executable, "-m", "ppgen", *line.split()], cwd=tmp_path, env=environment,
                              capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, done.stderr
    (entry,) = (tmp_path / "home" / ".local" / "state" / "ppgen" / "trusted").iterdir()
    assert len(entry.name) == 64 and entry.read_bytes() == b""
