"""Guidance on Gaussian data, whose posterior given a linear observation is known."""

import pytest
import torch
from known import KnownChain, draws_agree
from torch.distributions import MultivariateNormal

from ppgen import PpgenError
from ppgen.inference import Guided, elbo_decomposition, linear_weight, loglik, sample
from ppgen.inference.diffusion.samplers import sample_diffusion
from ppgen.models import Diffusion, DiffusionBridge, FlowMatching

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


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_linear_observation_of_independent_normals_is_exact(scale):
    """0.5 is the standard deviation of an EDM's data."""
    known = KnownChain(mean=(1.0, -0.5), factor=((scale, 0.0), (0.0, scale)))
    known.data_scale = scale
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


def test_a_guided_chain_takes_the_columns_of_its_chain():
    torch.manual_seed(0)
    labelled = Diffusion(2, hidden=(4,), classes=3, loc=[0.0], scale=[1.0])
    torch.nn.init.normal_(labelled.net.last.weight)
    for program, given in ((labelled, {"y": 1}), (DiffusionBridge(2, hidden=(4,)), {"x0": torch.tensor([[4.0, 5.0]])})):
        same = Guided(program, lambda x, z, t: 0.0 * z.sum(-1))
        both = [sample_diffusion(p, 5, "ancestral", 5, given=given, seed=0) for p in (program, same)]
        torch.testing.assert_close(*both)
    with pytest.raises(PpgenError, match="has 3 in row 0"):
        sample_diffusion(Guided(labelled, lambda x, z, t: 0.0 * z.sum(-1)), 2, given={"y": 3})


class BrownianBridge(DiffusionBridge):
    """From x0 to x ~ N(0, I), independent of it: E[x | z_t] of z_t = (1 - s) x + s x0 + N(0, noise² s (1 - s))."""

    def predict(self, z, t, **columns):
        s = self.share(t)
        return (z - s * columns["x0"]) / (1 - s + self.noise**2 * s), None


def test_a_guided_bridge_starts_from_its_row():
    """p(x | x0, y) of an x that x0 does not tell of, with the exact p(y | z_t, x0)."""
    bridge = BrownianBridge(1, hidden=(2,), noise=0.8, loc=[0.0], scale=[1.0]).double().eval()
    y, noise, x0 = 1.0, 0.5, torch.tensor([[3.0]]).double()

    def weight(x, z, t):
        s = bridge.share(t)
        left = bridge.noise**2 * s / (1 - s + bridge.noise**2 * s)  # of x given z_t
        return -0.5 * ((x - y) ** 2 / (left + noise**2)).sum(-1)

    drawn = sample_diffusion(Guided(bridge, weight), 4000, "ancestral", 300, given={"x0": x0}, seed=0)
    draws_agree((drawn - y / (1 + noise**2)) / (noise / (1 + noise**2) ** 0.5), 0.0, 1.0)


def test_a_guided_chain_has_no_density():
    guided = Guided(KnownChain(steps=20), lambda x, z, t: -(x**2).sum(-1))
    x = {"x": torch.zeros(2, 2).double()}
    for ask in (lambda: sample(guided, 2), lambda: loglik(guided, x, ode=True), lambda: elbo_decomposition(guided, x)):
        with pytest.raises(PpgenError, match="by sample_diffusion alone"):
            ask()
    with pytest.raises(PpgenError, match="by the sum of both log w"):  # the inner x̂ has no gradient
        Guided(guided, lambda x, z, t: x.sum(-1) + z.sum(-1))
    with pytest.raises(PpgenError, match="that of FlowMatching as set is not"):
        Guided(FlowMatching(2, hidden=(4,), coupling="ot"), lambda x, z, t: z.sum(-1))


def test_a_weight_that_is_too_steep_is_said(caplog):
    """A loss of x̂ alone: draws of x ~ N(0, 1) seen at 2 with a noise of 0.1 were near 0, or at 10^6."""
    known = KnownChain(mean=(0.0, 0.0), factor=((1.0, 0.0), (0.0, 1.0)))
    for precision, said in ((50.0, True), (0.5, False)):
        guided = Guided(known, lambda x, z, t, k=precision: -k * (x[:, 0] - 2) ** 2)
        sample_diffusion(guided, 20, seed=0)
        assert ("moved x̂ by up to" in caplog.text) == said, caplog.text
        assert len(caplog.records) == said
        caplog.clear()
    weight = linear_weight(known, torch.tensor([[1.0, 0.0]]).double(), torch.tensor([3.0]).double(), 0.01)
    sample_diffusion(Guided(known, weight), 20, seed=0)
    assert not caplog.records
