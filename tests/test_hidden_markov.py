"""The hidden Markov model: its density by summing over every path, its draws, a posterior that finds the states."""

import itertools

import numpy as np
import pytest
import torch
from known import draws_agree, log_joint_at, normal
from scipy import special, stats

from ppgen import PpgenError
from ppgen.inference import mcmc
from ppgen.models import HiddenMarkov
from ppgen.models.hidden_markov import _NormalHMM

A = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).double()
MU, SIGMA = torch.tensor([-1.0, 1.5]).double(), torch.tensor([0.5, 1.0]).double()


@pytest.mark.parametrize("T", [1, 2, 5, 8])
def test_the_density_over_all_paths(T):
    y = normal(3, T).double()
    for row, found in zip(y.numpy(), _NormalHMM(A, MU, SIGMA, T).log_prob(y), strict=True):
        paths = []
        for path in itertools.product(range(2), repeat=T):
            log_p = np.log(0.5) + sum(np.log(A.numpy()[a, b]) for a, b in itertools.pairwise(path))
            paths.append(log_p + stats.norm(MU.numpy()[list(path)], SIGMA.numpy()[list(path)]).logpdf(row).sum())
        assert float(found) == pytest.approx(special.logsumexp(paths), rel=1e-9)


def test_draws_have_the_chains_moments():
    torch.manual_seed(0)
    y = _NormalHMM(A, MU, SIGMA, 6).sample((40_000,)).numpy()
    p = np.array([0.5, 0.5])
    for t in range(6):
        mean = p @ MU.numpy()
        draws_agree(y[:, t], mean, p @ (SIGMA.numpy() ** 2 + MU.numpy() ** 2) - mean**2)
        p = p @ A.numpy()


def test_the_joint_density_with_its_priors():
    """By scipy and the forward recursion, at a scale and a stay that are not the defaults."""
    scale, stay, y = 1.7, 2.5, normal(4, 3).double()
    a = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.25, 0.15, 0.6]], dtype=torch.double)
    mu, sigma = np.array([-0.7, -0.3, 0.8]), np.array([0.5, 0.9, 1.3])
    latents = {"first": mu[0], "gaps": np.diff(mu), "sigma": sigma}
    found = log_joint_at(
        HiddenMarkov(3, 3, scale=scale, stay=stay),
        {k: torch.as_tensor(v).double() for k, v in latents.items()} | {"transition": a},
        {"y": y},
    )
    exact = stats.norm(0, scale).logpdf(mu[0])
    exact += stats.halfnorm(scale=scale).logpdf(np.diff(mu)).sum() + stats.halfnorm(scale=scale).logpdf(sigma).sum()
    exact += sum(stats.dirichlet(1 + stay * np.eye(3)[k]).logpdf(a[k].numpy()) for k in range(3))
    for row in y.numpy():
        p = stats.norm(mu, sigma).pdf(row[0]) / 3
        for value in row[1:]:
            p = (p @ a.numpy()) * stats.norm(mu, sigma).pdf(value)
        exact += np.log(p.sum())
    assert found == pytest.approx(exact, rel=1e-9)


@pytest.mark.slow
def test_the_states_are_found():
    torch.manual_seed(1)
    y = _NormalHMM(A, MU * 2, SIGMA, 150).sample()
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
