"""One thread a test process (several of them run side by side), and no random state of one test in the next."""

from __future__ import annotations

import os
import tempfile

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
