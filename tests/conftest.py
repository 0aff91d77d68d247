"""One thread a test process (several of them run side by side), and no random state of one test in the next."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["PPGEN_BACKGROUND"] = "0"  # compilation would take the processor from other tests
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="ppgen-tests-")  # not the user's list of trusted programs

import pyro
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fresh_random_state():
    """Every test starts from the same random state and an empty parameter store, and leaves torch's defaults."""
    dtype = torch.get_default_dtype()
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    torch.set_default_dtype(dtype)


@pytest.fixture
def double():
    """Everything in float64; `fresh_random_state` puts the default back."""
    torch.set_default_dtype(torch.float64)


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> Path:
    """A wheel and an sdist, built offline from a copy (a build leaves folders behind)."""
    root = Path(__file__).resolve().parents[1]
    folder = tmp_path_factory.mktemp("build")
    leave = shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info", "__pycache__", "_build")
    shutil.copytree(root, folder / "source", symlinks=True, ignore=leave)
    code = "from setuptools import build_meta as b; b.build_sdist('out'); b.build_wheel('out')"
    run = subprocess.run([sys.executable, "-c", code], cwd=folder / "source", capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return folder / "source" / "out"
