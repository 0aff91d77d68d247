"""The hidden Markov model: its density by summing over every path, its draws, a posterior that finds the states."""

import itertools

import numpy as np
import pytest
import torch
from known import normal
from scipy import special, stats

from ppgen import PpgenError
from ppgen.inference import mcmc
from ppgen.models import HiddenMarkov
from ppgen.models.hidden_markov import NormalHMM

A = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).double()
MU, SIGMA = torch.tensor([-1.0, 1.5]).double(), torch.tensor([0.5, 1.0]).double()


@pytest.mark.parametrize("T", [1, 2, 5, 8])
def test_the_density_over_all_paths(T):
    y = normal(3, T).double()
    for row, found in zip(y.numpy(), NormalHMM(A, MU, SIGMA, T).log_prob(y), strict=True):
        paths = []
        for path in itertools.product(range(2), repeat=T):
            log_p = np.log(0.5) + sum(np.log(A.numpy()[a, b]) for a, b in itertools.pairwise(path))
            paths.append(log_p + stats.norm(MU.numpy()[list(path)], SIGMA.numpy()[list(path)]).logpdf(row).sum())
        assert float(found) == pytest.approx(special.logsumexp(paths), rel=1e-9)


def test_draws_have_the_chains_moments():
    torch.manual_seed(0)
    y = NormalHMM(A, MU, SIGMA, 6).sample((40_000,)).numpy()
    p = np.array([0.5, 0.5])
    for t in range(6):
        mean = p @ MU.numpy()
        var = p @ (SIGMA.numpy() ** 2 + MU.numpy() ** 2) - mean**2
        assert abs(y[:, t].mean() - mean) < 4.5 * (var / 40_000) ** 0.5
        p = p @ A.numpy()


@pytest.mark.slow
def test_the_states_are_found():
    torch.manual_seed(1)
    y = NormalHMM(A, MU * 2, SIGMA, 150).sample()
    tree = mcmc(HiddenMarkov(2, 150), {"y": y}, chains=16, draws=60, warmup=120, prior=False, predictive=False)
    post = tree["posterior"]
    for k in range(2):
        mu = post["mu"].values[..., k]
        assert abs(mu.mean() - float(2 * MU[k])) < 5 * mu.std() and mu.std() < 0.5
        stay = post["transition"].values[..., k, k]
        assert abs(stay.mean() - float(A[k, k])) < 4 * stay.std()
    assert post["transition"].dims == ("chain", "draw", "state", "to_state")


def test_one_state_is_refused():
    with pytest.raises(PpgenError, match="states=1"):
        HiddenMarkov(1)
    assert HiddenMarkov.from_data({"y": torch.zeros(3, 7)}) == {"duration": 7}
