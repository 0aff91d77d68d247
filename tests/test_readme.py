"""The README's examples run, with fewer steps."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ppgen import cli

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHELL = [line.split("#")[0] for line in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)[1].splitlines()]


@pytest.mark.parametrize("code", PYTHON, ids=["library", "own model"])
def test_python(code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "example.py").write_text(re.sub(r"steps=\d+", "steps=5", code))
    exec(compile((tmp_path / "example.py").read_text(), str(tmp_path / "example.py"), "exec"), {"__name__": "example"})
    assert capsys.readouterr().out


def test_shell(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(SHELL) == 10
    for line in SHELL:
        words = line.replace("--steps 3000", "--steps 5").replace("--steps 4000", "--steps 8").split()
        if words[1] in ("evaluate", "diagnose"):
            words += ["--particles", "50"]
        assert words[0] == "ppgen"
        result = CliRunner().invoke(cli.app, words[1:])
        assert result.exit_code == 0, f"{line}\n{result.output}"


def test_the_picture_is_there():
    for path in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (Path(__file__).resolve().parent.parent / path).is_file()
