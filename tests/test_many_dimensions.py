"""What is done otherwise beyond 200 dimensions: Pathfinder by L-BFGS, a low-rank metric, statistics of the worst."""

from importlib import import_module

import numpy as np
import pyro
import pytest
import torch

import ppgen.distributions as ours
from ppgen import Program
from ppgen.engine import log_joint
from ppgen.engine.density import joint as joint_module
from ppgen.engine.density.inverse_hessian import LowRank
from ppgen.engine.density.leapfrog import _back, leapfrog_step, outward
from ppgen.engine.density.pathfinder import FEW, pathfinder_low_rank
from ppgen.inference.sampling.hamiltonian import Preconditioner, low_rank_root, strongest
from ppgen.inference.sampling.kernels import chees
from ppgen.inference.verdicts import mcmc_diagnostics

mcmc_module = import_module("ppgen.inference.sampling.mcmc")
DIM = 240


def spiked():
    """Mean, covariance and its root: sds from 0.1 to 10, and correlations along three directions."""
    generator = torch.Generator().manual_seed(0)
    sd = 10 ** (2 * torch.rand(DIM, generator=generator).double() - 1)
    directions = torch.linalg.qr(torch.randn(DIM, 3, generator=generator).double())[0]
    loads = sd[:, None] * directions * torch.tensor([15.0, 10.0, 8.0]).double()
    covariance = (sd**2).diag() + loads @ loads.mT
    return torch.randn(DIM, generator=generator).double(), covariance, torch.linalg.cholesky(covariance)


LOC, COVARIANCE, ROOT = spiked()
SD = COVARIANCE.diagonal().sqrt()


def spread_of(root):
    """The eigenvalues of the covariance in the coordinates of a root."""
    matrix = outward(torch.eye(DIM).double(), root).mT
    half = torch.linalg.solve(matrix, ROOT)
    return torch.linalg.eigvalsh(half @ half.mT)


def draws(n):
    return LOC + torch.randn(n, DIM, generator=torch.Generator().manual_seed(1)).double() @ ROOT.mT


def test_few_draws_tell_the_strong_directions():
    u = draws(500)
    sd = u.std(0)
    values, vectors = strongest((u - u.mean(0)) / sd, 16)
    exact = torch.linalg.eigvalsh(COVARIANCE / SD / SD[:, None])[-3:].flip(0)
    assert len(values) == 3 and torch.allclose(values, exact, rtol=0.25)
    few = strongest(((u - u.mean(0)) / sd)[:200], 16)
    assert torch.allclose(few[0][:3], exact, rtol=0.5)
    eigenvalues = spread_of(low_rank_root(sd**2, values, vectors, 16))
    assert eigenvalues[0] > 0.4 and eigenvalues[-1] < 2.5 < 40 < spread_of(sd)[-1]


def test_independent_draws_have_no_direction():
    u = torch.randn(400, 1000, generator=torch.Generator().manual_seed(2)).double()
    assert len(strongest(u, 16)[0]) == 0


def test_a_low_rank_root_and_its_inverse():
    values, vectors = torch.linalg.eigh(COVARIANCE / SD / SD[:, None])
    root = low_rank_root(SD**2, values[-3:].flip(0), vectors[:, -3:].flip(1), 5)
    frame, y = Preconditioner(LOC, root), torch.randn(7, DIM).double()
    matrix = outward(torch.eye(DIM).double(), root).mT
    assert frame.kind == "low-rank" and root.shape == (DIM, 6)
    torch.testing.assert_close(frame.out(y), LOC + y @ matrix.mT)
    torch.testing.assert_close(frame.into(frame.out(y)), y)
    torch.testing.assert_close(_back(y, root), y @ matrix)
    torch.testing.assert_close(frame.sd, matrix.norm(dim=1))
    torch.testing.assert_close(frame.sd, SD, rtol=0.05, atol=0)


def target(u):
    off = torch.linalg.solve_triangular(ROOT, (u - LOC).mT, upper=False)
    lp = -0.5 * off.square().sum(0) - ROOT.diagonal().log().sum() - 0.5 * DIM * np.log(2 * np.pi)
    return lp, -torch.linalg.solve_triangular(ROOT.mT, off, upper=True).mT


def test_pathfinder_of_low_rank():
    """Every chain has a draw, few of them paths of their own; the draws are about where the mass is."""
    generator = torch.Generator().manual_seed(0)
    paths = pathfinder_low_rank(target, 4 * torch.rand(40, DIM, generator=generator).double() - 2, generator=generator)
    assert paths.u.shape == (40, DIM) and len(paths.u.unique(dim=0)) == 40 and isinstance(paths.covariance, LowRank)
    assert len(paths.elbo.unique()) <= FEW and ((paths.u - LOC) / SD).abs().mean() < 2
    for metric, kind in (("dense", "low-rank"), ("diag", "diag")):
        first = chees._first_frame(paths.mean, paths.covariance, metric)
        assert first.kind == kind and (first.sd / SD).log().abs().median() < 0.7


class Normal:
    """A target for chains."""

    def leapfrog(self, *inputs):
        return leapfrog_step(lambda u: target(u)[::-1], *inputs)


@pytest.mark.parametrize("metric, kind", [("auto", "low-rank"), ("diag", "diag")])
def test_a_diagonal_metric_becomes_low_rank(metric, kind):
    start, frame = draws(32), Preconditioner(LOC, SD)
    found = chees._run(
        Normal(), start, draws=60, warmup=60, frame=frame, metric=metric, generator=torch.Generator().manual_seed(0)
    )
    assert found.metric == kind
    flat = found.u.flatten(0, 1)
    if kind == "low-rank":
        assert ((flat.mean(0) - LOC) / SD).abs().max() < 0.25 and (flat.std(0) / SD).log().abs().max() < 0.2


def test_a_leapfrog_step_without_a_graph_of_its_own(monkeypatch):
    def model(x):
        z = pyro.sample("z", ours.Flat(shape=(3,), dtype=torch.float64))
        pyro.factor("f", -(z**2).sum() + z[0] * z[1])

    steps = []
    for most in (200, 2):
        monkeypatch.setattr(joint_module, "FUSED_DIM", most)
        joint = log_joint(Program.from_pair(model), {"x": torch.ones(1)})
        y, p, g = (torch.randn(4, 3, generator=torch.Generator().manual_seed(i)).double() for i in range(3))
        steps.append(
            joint.leapfrog(y, p, g, torch.tensor(0.1).double(), torch.zeros(3).double(), torch.eye(3).double())
        )
    for one, other in zip(*steps, strict=True):
        torch.testing.assert_close(one, other)


def test_the_worst_entries_are_looked_at(monkeypatch):
    """Of AR(1) chains of many entries: the least ESS and the largest R-hat of some are those of all."""
    for name, number in (("MANY", 30), ("WORST", 3), ("CHUNK", 32 * 100 * 16)):
        monkeypatch.setattr(mcmc_diagnostics, name, number)
    generator = np.random.default_rng(0)
    rho, u = generator.uniform(0, 0.8, 40), np.zeros((32, 100, 40))
    now = generator.normal(size=(32, 40))
    for t in range(100):
        now = rho * now + (1 - rho**2) ** 0.5 * generator.normal(size=now.shape)
        u[:, t] = now
    u[::8, :, 5] += 1.0  # a group of chains is elsewhere
    u[..., 6] = np.exp(2 * u[..., 6])
    worst = mcmc_diagnostics._suspects(u)
    assert len(worst) <= 18 and 5 in worst
    ess, tail = mcmc_diagnostics._each(u, "ess"), mcmc_diagnostics._each(u, "ess", method="tail", prob=(0.05, 0.95))
    assert ess.argmin() in worst and tail.argmin() in worst
    assert list(mcmc_diagnostics._suspects(u[..., :30])) == list(range(30))


def test_the_longest_tails_are_looked_at(monkeypatch):
    monkeypatch.setattr(mcmc_diagnostics, "MOST_TAILS", 6)
    z = np.random.default_rng(0).normal(size=(2000, 40))
    z[:, 33] = np.random.default_rng(1).standard_t(2, 2000)
    z[:, 21] *= 10
    looked = mcmc_diagnostics.longest_tails(z, 6)
    assert len(looked) <= 6 and {21, 33} <= set(looked)
    found = mcmc_diagnostics._heavy_tails({"z": z.reshape(4, 500, 40)})
    assert found.where == "z[33]" and found.figure > 0.3
    assert mcmc_diagnostics.longest_tails(z[:, :6], 6) == list(range(6))


def test_fewer_chains_of_thousands_of_latents_and_of_many_values():
    def numbers(kernel, dim, values, *given):
        return mcmc_module._numbers(kernel, "auto", dim, values, *given)

    assert numbers("chees", 1000, 50_000, None, None, None) == [64, 250, 400]
    assert numbers("chees", 1001, 10, None, None, None) == [16, 1000, 400]
    assert numbers("chees", 1001, 50_001, None, None, None) == [16, 1000, 400]
    assert numbers("chees", 1000, 50_001, None, None, None) == [16, 400, 400]
    assert numbers("chees", 1001, 50_001, 32, None, None) == [32, 250, 400]
    assert numbers("smc", 1001, 50_001, None, None, None) == [16, 500, 200]
