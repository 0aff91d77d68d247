"""The deep Markov model: its log p(x) by quadrature, its KL, lengths and gaps, a short fit."""

import math

import pytest
import torch
from known import binary
from torch.distributions import Normal

from ppgen import PpgenError
from ppgen.distributions.markov import MarkovNormal
from ppgen.inference import fit, loglik, sample
from ppgen.models import DeepMarkov
from ppgen.terms import run, terms


def made(latent: int = 1, features: int = 3, duration: int = 3) -> DeepMarkov:
    torch.manual_seed(0)
    program = DeepMarkov(features, duration, latent, transition=4, emission=4, recurrent=6).double()
    for p in program.parameters():
        p.data += 0.3 * torch.randn_like(p)
    return program


@torch.no_grad()
def by_quadrature(program: DeepMarkov, x: torch.Tensor, seen: list[bool]) -> float:
    """log p(x) of one sequence with k = 1: the forward recursion on a grid."""
    grid = torch.linspace(-15, 15, 3001).double()
    log_step = math.log(float(grid[1] - grid[0]))
    logits = program.emission(grid[:, None])
    loc, scale = program.transition(grid[:, None])
    into = Normal(loc, scale).log_prob(grid) + log_step  # (from, to)
    loc, scale = program.transition(program.start)
    alpha = Normal(loc, scale).log_prob(grid) + log_step
    for t, known in enumerate(seen):
        alpha = alpha if t == 0 else (alpha[:, None] + into).logsumexp(0)
        if known:
            alpha = alpha + torch.distributions.Bernoulli(logits=logits).log_prob(x[t]).sum(-1)
    return float(alpha.logsumexp(0))


def test_importance_weights_average_to_the_quadrature():
    """With a sequence that ends early, and one with a step that was not seen."""
    program, x = made(), binary(3, 3, 3).double()
    with torch.no_grad():
        program.combiner.out.weight.mul_(0.3)
        program.combiner.out.bias.copy_(torch.tensor([0.0, 2.0]))  # wider than the posterior: bounded weights
    seen = torch.ones(3, 3).double()
    seen[2, 1] = 0
    data = {"x": x, "length": torch.tensor([3.0, 2.0, 3.0]).double(), "seen": seen}
    found = loglik(program, data, particles=60_000, seed=0).best
    assert found.se.max() < 0.02
    steps = ([True] * 3, [True] * 2, [True, False, True])
    for row, known, value, se in zip(x, steps, found.values, found.se, strict=True):
        assert abs(value - by_quadrature(program, row, known)) < 4 * se


def test_what_is_not_there_counts_for_nothing():
    program, x = made(), binary(2, 3, 3).double()
    length, seen = torch.tensor([2.0, 3.0]).double(), torch.tensor([[1, 1, 1], [0, 1, 1]]).double()
    other = x.clone()
    other[0, 2], other[1, 0] = 1 - other[0, 2], 1 - other[1, 0]
    a, b = (loglik(program, {"x": v, "length": length, "seen": seen}, particles=5, seed=0) for v in (x, other))
    assert (a.best.values == b.best.values).all()


def test_the_kl_of_the_steps_has_the_mean_of_the_drawn_one():
    program, x = made(latent=2), binary(1, 3, 3).double()
    torch.manual_seed(1)
    with torch.no_grad():
        ts = [run(program, {"x": x}) for _ in range(1500)]
        kl = torch.stack([sum(t.log_prob.sum() for t in terms(u, closed_form=True) if t.role == "kl") for u in ts])
        drawn = torch.stack([sum(t.sign * t.log_prob.sum() for t in terms(u) if t.latent) for u in ts])
    error = (kl - drawn).std() / len(ts) ** 0.5
    assert abs(float((kl - drawn).mean())) < 4 * float(error)
    assert kl.std() < drawn.std()


def test_draws_of_a_linear_chain_have_its_moments():
    chain = MarkovNormal(lambda z, t: (0.5 * z + 1, torch.full_like(z, 2.0)), torch.zeros(1).double(), 3)
    torch.manual_seed(0)
    z = chain.sample((40_000,))[..., 0]
    mean, var = 0.0, 0.0
    for t in range(3):
        mean, var = 0.5 * mean + 1, 0.25 * var + 4
        assert abs(float(z[:, t].mean()) - mean) < 4 * (var / len(z)) ** 0.5
        assert abs(float(z[:, t].var()) / var - 1) < 4 * (2 / len(z)) ** 0.5


def test_it_learns_that_a_pattern_stays():
    """Sequences of all ones or all zeros: log 2 nats each, where independent steps have 6 × 2 log 2."""
    x = (torch.arange(64) % 2).float()[:, None, None].expand(64, 6, 2).clone()
    torch.manual_seed(0)
    result = fit(DeepMarkov(2, 6, 2, transition=8, emission=8, recurrent=8), {"x": x}, steps=400, lr=0.02, seed=0)
    assert loglik(result, {"x": x}, particles=100).best.mean > -2.0
    assert sample(result, 5, seed=0)["x"].shape == (5, 6, 2)


def test_errors():
    with pytest.raises(PpgenError, match="sizes of at least 1"):
        DeepMarkov(0, 3)
    with pytest.raises(PpgenError, match="sequences, steps, features"):
        DeepMarkov.from_data({"x": torch.zeros(3, 2)})
