"""The README's examples run, with fewer steps."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ppgen import cli

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
_, VAE, OTHERS = (
    [line.split("#")[0] for line in block.splitlines()] for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
)


@pytest.mark.parametrize("code", PYTHON, ids=["library", "own model"])
def test_python(code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "example.py").write_text(re.sub(r"steps=\d+", "steps=5", code))
    exec(compile((tmp_path / "example.py").read_text(), str(tmp_path / "example.py"), "exec"), {"__name__": "example"})
    assert capsys.readouterr().out


@pytest.mark.parametrize("lines", [VAE, OTHERS], ids=["vae", "others"])
def test_shell(lines, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(lines) in (8, 9, 10)
    for line in lines:
        words = re.sub(r"--steps (1000|500|3000)", "--steps 5", line).replace("--steps 4000", "--steps 8").split()
        if words[1] in ("evaluate", "diagnose"):
            words += ["--particles", "50"]
        if words[1:3] == ["fit", "flow"]:
            words += ["--steps", "5"]
        if words[1] == "mcmc":
            words += ["--chains", "8", "--draws", "20", "--warmup", "20"]
        assert words[0] == "ppgen"
        result = CliRunner().invoke(cli.app, words[1:])
        assert result.exit_code == 0, f"{line}\n{result.output}"


def test_the_picture_is_there():
    for path in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (Path(__file__).resolve().parent.parent / path).is_file()
