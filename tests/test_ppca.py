"""Probabilistic PCA against dense Gaussian algebra, which shares no code with it."""

import math

import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.poutine import condition, trace
from torch.distributions import MultivariateNormal, kl_divergence

from ppgen.errors import PpgenError
from ppgen.models import PPCA
from ppgen.nested import asked_rows

F64 = torch.float64


def made(scale: str = "full", features: int = 5, latent: int = 3) -> tuple[PPCA, torch.Tensor]:
    """A model with random parameters in double precision, and seven rows."""
    torch.manual_seed(0)
    ppca = PPCA(features, latent, scale).double()
    for p in ppca.parameters():
        p.data += 0.3 * torch.randn_like(p)
    return ppca, 2 * torch.randn(7, features, dtype=F64)


def joint_normal(ppca: PPCA) -> MultivariateNormal:
    """(z, x) as one dense normal: the textbook's block covariance."""
    W, k, D = ppca.W.detach(), ppca.latent, len(ppca.mu)
    C = W @ W.T + ppca.log_sigma.exp().detach() ** 2 * torch.eye(D, dtype=F64)
    block = torch.cat([torch.cat([torch.eye(k, dtype=F64), W.T], 1), torch.cat([W, C], 1)])
    return MultivariateNormal(torch.cat([torch.zeros(k, dtype=F64), ppca.mu.detach()]), block)


def log_joint(ppca, x, z):
    t = trace(condition(ppca.model, {"z": z})).get_trace(x)
    t.compute_log_prob()
    return t.nodes["x"]["log_prob"] + t.nodes["z"]["log_prob"]


def test_the_program_is_the_dense_joint():
    ppca, x = made()
    z = torch.randn(4, 7, 3, dtype=F64)
    expected = joint_normal(ppca).log_prob(torch.cat([z, x.expand(4, 7, 5)], -1))
    torch.testing.assert_close(log_joint(ppca, x, z), expected)


@pytest.mark.parametrize("features, latent", [(5, 3), (5, 1), (4, 4), (3, 6)])
def test_log_prob_is_the_dense_marginal(features, latent):
    ppca, x = made(features=features, latent=latent)
    dense = joint_normal(ppca)
    C, mu = dense.covariance_matrix[latent:, latent:], dense.loc[latent:]
    torch.testing.assert_close(ppca.log_prob(x), MultivariateNormal(mu, C).log_prob(x))
    assert ppca.log_prob(x.expand(2, 7, features)).shape == (2, 7)
    assert ppca.log_prob(x[0]).shape == ()


@pytest.mark.parametrize("features, latent", [(5, 3), (5, 1), (4, 4), (3, 6)])
def test_posterior_is_the_dense_conditional(features, latent):
    ppca, x = made(features=features, latent=latent)
    S = joint_normal(ppca).covariance_matrix
    gain = S[:latent, latent:] @ torch.linalg.inv(S[latent:, latent:])
    posterior = ppca.posterior(x)
    assert posterior.batch_shape == (7,) and posterior.event_shape == (latent,)
    torch.testing.assert_close(posterior.loc, (x - ppca.mu.detach()) @ gain.T)
    expected = S[:latent, :latent] - gain @ S[latent:, :latent]
    torch.testing.assert_close(posterior.covariance_matrix[0], expected)


def test_bayes_rule_holds_between_the_three():
    ppca, x = made()
    z = torch.randn(7, 3, dtype=F64)
    torch.testing.assert_close(log_joint(ppca, x, z) - ppca.posterior(x).log_prob(z), ppca.log_prob(x))


def test_the_elbo_with_the_matched_guide_is_exact():
    ppca, x = made()
    ppca.match_guide_()
    q = trace(ppca.guide).get_trace(x).nodes["z"]["fn"]
    torch.testing.assert_close(q.loc, ppca.posterior(x).loc)
    torch.testing.assert_close(q.covariance_matrix, ppca.posterior(x).covariance_matrix)
    for _ in range(3):  # of every single draw: the weight is constant
        elbo = -Trace_ELBO().loss(ppca.model, ppca.guide, x)
        assert elbo == pytest.approx(ppca.log_prob(x).sum().item(), rel=1e-10)


def test_the_gap_of_any_guide_is_its_kl():
    ppca, x = made()
    q = trace(ppca.guide).get_trace(x).nodes["z"]["fn"]
    gap = kl_divergence(q, ppca.posterior(x)).sum()
    with torch.no_grad():
        z = q.sample((40_000,))
        terms = (log_joint(ppca, x, z) - q.log_prob(z)).sum(-1)
    se = terms.std() / 40_000**0.5
    assert (ppca.log_prob(x).sum() - terms.mean() - gap).abs() < 4 * se < 0.2 * gap


def test_the_diagonal_guide_is_the_nearest_normal():
    ppca, x = made("diagonal")
    ppca.match_guide_()

    def kl():
        q = trace(ppca.guide).get_trace(x).nodes["z"]["fn"].base_dist
        full = MultivariateNormal(q.loc, q.scale.diag_embed().square())
        return kl_divergence(full, ppca.posterior(x)).sum()

    ppca.zero_grad()
    kl().backward()
    torch.testing.assert_close(ppca.V.grad, torch.zeros(3, 5, dtype=F64), atol=1e-9, rtol=0)
    torch.testing.assert_close(ppca.raw_diagonal.grad, torch.zeros(3, dtype=F64), atol=1e-9, rtol=0)


def test_solve_reaches_the_maximum_of_the_likelihood():
    ppca, _ = made(latent=2)
    x = torch.randn(50, 5, dtype=F64) * torch.arange(1, 6)
    ppca.solve_(x)
    ppca.zero_grad()
    best = ppca.log_prob(x).mean()
    best.backward()
    for p in (ppca.W, ppca.mu, ppca.log_sigma):  # a stationary point
        torch.testing.assert_close(p.grad, torch.zeros_like(p), atol=1e-9, rtol=0)
    # Tipping & Bishop's closed form of the value there
    eigenvalues = torch.linalg.eigvalsh(torch.cov(x.T, correction=0))
    value = 5 * math.log(2 * math.pi) + eigenvalues[-2:].log().sum() + 3 * eigenvalues[:3].mean().log()
    assert best.item() == pytest.approx(-0.5 * (value.item() + 5))
    for _ in range(20):  # and no neighbour is better
        other = PPCA(5, 2).double()
        other.load_state_dict(ppca.state_dict())
        for p in other.parameters():
            p.data += 0.1 * torch.randn_like(p)
        assert other.log_prob(x).mean() < best
    elbo = -Trace_ELBO().loss(ppca.model, ppca.guide, x)
    assert elbo / 50 == pytest.approx(best.item(), rel=1e-9)


@pytest.mark.parametrize("scale", ["full", "diagonal"])
def test_it_learns_the_maximum(scale):
    """A plain Adam on the ELBO comes within 0.05 nats a row of the closed form, without passing it.

    With a diagonal guide as well: the ELBO is then largest where the columns of W are orthogonal,
    and there is no gap there.
    """
    truth, _ = made(features=6, latent=2)
    with asked_rows(500), torch.no_grad():
        x = truth.model().float()
    best = PPCA(6, 2).solve_(x).log_prob(x).mean().item()
    ppca = PPCA(6, 2, scale)
    optimiser = torch.optim.Adam(ppca.parameters(), lr=0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 500)
    for _ in range(500):
        optimiser.zero_grad()
        (TraceMeanField_ELBO().differentiable_loss(ppca.model, ppca.guide, x) / 500).backward()
        optimiser.step()
        schedule.step()
    assert best - 0.05 < ppca.log_prob(x).mean().item() <= best + 1e-4
    many = TraceMeanField_ELBO(200, max_plate_nesting=1, vectorize_particles=True)
    elbo = -many.loss(ppca.model, ppca.guide, x) / 500
    assert elbo > best - 0.1


@pytest.mark.parametrize("scale", ["full", "diagonal"])
def test_gradient_reaches_every_parameter(scale):
    ppca, x = made(scale)
    ppca.float()
    Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1).differentiable_loss(
        ppca.model, ppca.guide, x.float()
    ).backward()
    for name, p in ppca.named_parameters():
        assert p.grad.isfinite().all() and p.grad.abs().sum() > 0, name


def test_draws_have_the_moments_of_the_marginal():
    ppca, _ = made()
    n = 100_000
    with asked_rows(n), torch.no_grad():
        x = ppca.model()
    C = joint_normal(ppca).covariance_matrix[3:, 3:]
    assert ((x.mean(0) - ppca.mu).abs() < 4 * (C.diagonal() / n).sqrt()).all()
    # a sample covariance has the variance (C_ii C_jj + C_ij²) / n
    se = ((C.diagonal()[:, None] * C.diagonal() + C**2) / n).sqrt()
    assert ((torch.cov(x.T) - C).abs() < 4 * se).all()


def test_arguments():
    assert PPCA.from_data({"x": torch.zeros(9, 4)}) == {"features": 4}
    for data in ({"y": torch.zeros(3)}, {"x": torch.zeros(3)}):
        with pytest.raises(PpgenError, match="column x of shape"):
            PPCA.from_data(data)
    for bad in ({"latent": 0}, {"posterior_scale": "ful"}, {"features": 0}):
        with pytest.raises(PpgenError, match="expected sizes"):
            PPCA(**{"features": 3} | bad)
    for latent, x in ((4, torch.randn(9, 4)), (2, torch.ones(9, 4))):
        with pytest.raises(PpgenError, match="fewer latents"):
            PPCA(4, latent).solve_(x)
