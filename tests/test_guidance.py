"""Guidance on Gaussian data, whose posterior given a linear observation is known."""

import pytest
import torch
from known import KnownChain, draws_agree
from torch.distributions import MultivariateNormal

from ppgen import PpgenError
from ppgen.inference import Guided, linear_weight
from ppgen.inference.diffusion.samplers import sample_diffusion

A, Y, NOISE = torch.tensor([[1.0, 0.5]]).double(), torch.tensor([2.0]).double(), 0.4


def posterior(known: KnownChain) -> MultivariateNormal:
    """p(x | y)."""
    c = known.data.covariance_matrix
    gain = c @ A.T / (A @ c @ A.T + NOISE**2)
    covariance = c - gain @ A @ c
    return MultivariateNormal(known.mean + (gain @ (Y - A @ known.mean)), (covariance + covariance.T) / 2)


def agree(draws: torch.Tensor, exact: MultivariateNormal) -> None:
    whitened = torch.linalg.solve_triangular(exact.scale_tril, (draws - exact.mean).T, upper=False).T
    draws_agree(whitened, 0.0, 1.0)
    draws_agree(whitened[:, 0] * whitened[:, 1], 0.0, 1.0)


@pytest.mark.parametrize("sampler", ["unipc", "dpmpp_sde"])
def test_a_weight_that_knows_the_noise_gives_the_posterior(sampler):
    """p(y | z_t) = N(A E[x | z_t], A Cov[x | z_t] Aᵀ + noise²), as a classifier of noisy states is meant to be."""
    known = KnownChain()
    c = known.data.covariance_matrix

    def weight(x, z, t):
        level = known.gamma(t).exp()
        left = c - c @ torch.linalg.inv(c + level * torch.eye(2)) @ c
        return MultivariateNormal(x @ A.T, A @ left @ A.T + NOISE**2).log_prob(Y)

    draws = sample_diffusion(Guided(known, weight), 4000, sampler, {"unipc": 60, "dpmpp_sde": 150}[sampler], seed=1)
    agree(draws, posterior(known))


def test_a_linear_observation_of_unit_normals_is_exact():
    known = KnownChain(mean=(1.0, -0.5), factor=((1.0, 0.0), (0.0, 1.0)))
    draws = sample_diffusion(Guided(known, linear_weight(known, A, Y, NOISE)), 4000, "unipc", 60, seed=1)
    agree(draws, posterior(known))


def test_without_a_weight_it_is_the_chain():
    known = KnownChain()
    same = Guided(known, lambda x, z, t: 0.0 * z.sum(-1))
    both = [sample_diffusion(program, 5, "ancestral", 20, seed=0) for program in (known, same)]
    torch.testing.assert_close(*both)


def test_what_it_says():
    known = KnownChain()
    with pytest.raises(PpgenError, match="expected log w for each row, \\(3,\\)"):
        sample_diffusion(Guided(known, lambda x, z, t: x.sum()), 3, "ddim", 2)
    with pytest.raises(PpgenError, match="expected \\(M, 2\\)"):
        linear_weight(known, A.T, Y, NOISE)
