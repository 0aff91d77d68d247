"""What a fit settles before its first step: how many rows it takes, and one seed for all that is random."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from ppgen import PpgenError
from ppgen.inference.training.fit import _one_seed as one_seed
from ppgen.inference.training.fit import rows_a_step
from ppgen.models import VAE


def test_rows_a_step_are_the_models_where_there_are_many():
    vae = VAE(4, latent=2, hidden=(3,))
    few = vae.rows_a_step
    assert few and [rows_a_step(vae, n) for n in (1, 4 * few, 4 * few + 1)] == [None, None, few]
    assert rows_a_step(vae, 100 * few, guide="AutoNormal") is None, "an autoguide knows each row"


def test_one_seed_is_of_all_generators_and_gives_the_state_back():
    def drawn() -> list[float]:
        return [float(torch.rand(())), float(np.random.rand()), random.random()]

    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    expected = drawn()
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    seen = []
    for seed in (3, np.int64(3), 4):
        with one_seed(seed):
            seen.append(drawn())
    assert drawn() == expected
    assert seen[0] == seen[1] and not set(seen[0]) & set(seen[2])
    with pytest.raises(PpgenError, match=r"seed is 1\.5; expected a whole number"), one_seed(1.5):
        pass
