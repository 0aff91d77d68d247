"""Run folders that are damaged, killed, shared, or somebody else's: the right figures, or one sentence and exit 2.

The fast part is a sample of the slow one, which takes its number from PPGEN_FAULTS (1 for all of it).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from known import normal
from typer.testing import CliRunner

from ppgen import PpgenError, Run, cli
from ppgen.inference import fit, resume
from ppgen.run.files import read_tree, write_tree

LINE = '''
import pyro
import torch
from pyro.distributions import Normal

import ppgen

data = {"x": torch.linspace(-2.0, 2.0, 40)}


class Line(ppgen.Program):
    def __init__(self, a: float = 1.0):
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(a))
        self.encoder = torch.nn.Linear(1, 2)

    def model(self, x=None):
        with ppgen.rows(x):
            z = pyro.sample("z", Normal(0.0, 1.0))
            return pyro.sample("x", Normal(self.a * z, 0.5), obs=x)

    def guide(self, x):
        loc, log_scale = self.encoder(x[:, None]).unbind(-1)
        with ppgen.rows(x):
            pyro.sample("z", Normal(loc, log_scale.exp()))
'''


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
    "mcmc": ("mcmc", "RUN", "--chains", 2, "--draws", 10, "--warmup", 10, "--out", "OUT.nc", "--json", "-q"),
    "report": ("report", "RUN", "--draws", 20, "--out", "OUT.html", "--json"),
    "compare": ("compare", "RUN", "RUN/.", "--particles", 5, "--json"),
    "calibrate": ("calibrate", "RUN", "--simulations", 20, "--draws", 9, "--out", "OUT.json", "--json"),
}


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


def mutate(folder, seed):
    """Damages one file of a run folder in one way; says how."""
    rng = random.Random(seed)
    name = rng.choice(sorted(p.name for p in folder.iterdir() if p.name != "program.py"))
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
