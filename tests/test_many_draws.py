"""Many draws at once are many draws one after the other: every distribution of Pyro as a latent and in its guide.

A program has one latent, x ~ d(p), in a plate of three where it can be, and a guide x ~ d(q). Its draws (of the guide,
`posterior`; of the model, `prior`), their log-probabilities, its bound and the gradient are held against those that
the distribution gives by itself.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from functools import cache
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from known_distributions import DISTRIBUTIONS, SKIPPED, Known
from scipy.stats import ks_2samp, rankdata
from torch import Tensor, nn

from ppgen import Program, rows
from ppgen.inference import fit, loglik, posterior
from ppgen.run import Run

DRAWS = 2000  # of ppgen
REFERENCE = 20_000  # of the distribution itself
DATA = {"y": torch.tensor([0.5]).double()}
LOG_Y = -0.5 * math.log(2 * math.pi) - 0.5**3

every = pytest.mark.parametrize("name", DISTRIBUTIONS)


@pytest.fixture(autouse=True)
def double():
    """Everything in float64. (conftest puts the default back.)"""
    torch.set_default_dtype(torch.float64)


class OneSite(Program):
    """One latent of a family, and a datum that has nothing to do with it."""

    def __init__(self, name: str):
        super().__init__()
        self.known = DISTRIBUTIONS[name]
        self.q = nn.ParameterList([nn.Parameter(v) for v in self.known.tensors(self.known.q)])

    def plate(self) -> Any:
        return pyro.plate("three", 3) if self.known.plate else contextlib.nullcontext()

    def model(self, y=None):
        with self.plate():
            pyro.sample("x", self.known())
        with rows(y):
            pyro.sample("y", dist.Normal(torch.zeros(()), 1.0), obs=y)

    def guide(self, y):
        with self.plate():
            pyro.sample("x", self.known(*self.q))


@cache
def fitted(name: str) -> Run:
    torch.manual_seed(0)
    return fit(OneSite(name), DATA, steps=0, elbo="sampled", precision="64-true")


def reference(known: Known, values: Any, draws: int, seed: int = 1) -> Tensor:
    """Independent draws, (draws, plate, event), made by the distribution."""
    d = known(*known.tensors(values))
    torch.manual_seed(seed)
    if not known.plate:
        return torch.stack([d.sample() for _ in range(min(draws, 4000))])
    return d.expand((3,)).sample((draws,))


def log_weights(known: Known, x: Tensor, q: list[Tensor] | None = None) -> Tensor:
    """log p(x) - log q(x) of draws (draws, plate, event): (draws,)."""
    p, q_of = known(), known(*(known.tensors(known.q) if q is None else q))
    if not known.plate:  # not all of them take draws of many at once
        return torch.stack([p.log_prob(v) - q_of.log_prob(v) for v in x])
    return (p.log_prob(x) - q_of.log_prob(x)).sum(-1)


def same_law(found: np.ndarray, expected: np.ndarray) -> None:
    """Entry by entry, by Kolmogorov and Smirnov's test, and by the means of ranks and of their squares."""
    assert found.shape[1:] == expected.shape[1:]
    flat, truth = found.reshape(len(found), -1), expected.reshape(len(expected), -1)
    for i in range(flat.shape[1]):
        a, b = flat[:, i].astype(float), truth[:, i].astype(float)
        if np.ptp(b) < 1e-12:
            assert np.allclose(a, b[0], atol=1e-9), i
            continue
        assert ks_2samp(a, b, method="asymp").pvalue > 1e-5, (i, a.mean(), b.mean(), a.std(), b.std())
        u = rankdata(np.concatenate([a, b])) / (len(a) + len(b)) - 0.5
        for v in (u, u**2):
            x, y = v[: len(a)], v[len(a) :]
            assert abs(x.mean() - y.mean()) < 4.5 * np.sqrt(x.var() / len(x) + y.var() / len(y)), i


def independent(found: np.ndarray, known: Known) -> None:
    """From draw to draw, and across the plate."""
    by_entry = found.reshape(len(found), -1)
    moving = np.flatnonzero(np.ptp(by_entry, axis=0) > 1e-12)
    ranks = np.stack([rankdata(by_entry[:, i]) for i in moving], 1)
    z = (ranks - ranks.mean(0)) / ranks.std(0)
    limit = 4.5 / np.sqrt(len(found))
    assert np.abs((z[1:] * z[:-1]).mean(0)).max() < limit
    if known.plate:
        width = by_entry.shape[1] // 3
        first, second = (int(np.searchsorted(moving, moving[-1] - k * width)) for k in (0, 1))
        assert abs((z[:, first] * z[:, second]).mean()) < limit
    if not known().support.is_discrete:
        assert len(np.unique(by_entry[:, moving[0]])) > 0.99 * len(found)


def test_every_distribution_of_pyro_is_here():
    kinds = {n for n, c in vars(dist).items() if inspect.isclass(c) and issubclass(c, torch.distributions.Distribution)}
    assert not set(DISTRIBUTIONS) & set(SKIPPED)
    assert kinds - set(DISTRIBUTIONS) - set(SKIPPED) == set()
    assert set(SKIPPED) - kinds == set()


@every
def test_many_draws_are_draws_of_the_family(name):
    known = DISTRIBUTIONS[name]
    tree = posterior(fitted(name), DATA, draws=DRAWS, predictive=False)
    shape = tuple(known().event_shape)
    for group, values in (("posterior", known.q), ("prior", known.p)):
        x = tree[group]["x"].values
        assert x.shape == (1, DRAWS, *((3,) if known.plate else ()), *shape)
        same_law(x[0], reference(known, values, REFERENCE).numpy())
        independent(x[0], known)


@every
@pytest.mark.parametrize("draws", [2, 3, 200])
def test_log_probabilities_are_those_of_the_draws(name, draws):
    """3 is as many as the plate has."""
    known = DISTRIBUTIONS[name]
    tree = posterior(fitted(name), DATA, draws=draws, predictive=False, prior=False)
    d = known(*known.tensors(known.q))
    x = torch.as_tensor(tree["posterior"]["x"].values[0])
    x = x.to(d.sample().dtype)
    log_q = torch.stack([d.log_prob(v).sum() for v in x])
    assert tree["sample_stats"]["log_q"].values[0] == pytest.approx(log_q.detach().numpy(), abs=1e-8)
    log_p = log_weights(known, x) + log_q + LOG_Y
    assert tree["sample_stats"]["log_p"].values[0] == pytest.approx(log_p.detach().numpy(), abs=1e-8)


@every
def test_loglik_with_many_particles(name):
    known = DISTRIBUTIONS[name]
    log_w = log_weights(known, reference(known, known.q, REFERENCE))
    bound = loglik(fitted(name), DATA, particles=500).bounds[0]
    sd = float(log_w.std())
    assert bound.mean_se == pytest.approx(sd / 500**0.5, rel=0.35, abs=1e-9)
    assert abs(bound.mean - LOG_Y - float(log_w.mean())) < 4.5 * sd * (1 / 500 + 1 / len(log_w)) ** 0.5 + 1e-9


def gradients(known: Known, n: int) -> tuple[list[Tensor], list[Tensor]]:
    """Of the ELBO by the distribution itself: means over n draws, and the standard deviation of a single draw's.

    Without a reparametrisation it is that of the score function, with the cost's mean as baseline; a single draw's is
    then that of an estimator that has the gradient of log q itself, whose mean is 0, as well.
    """
    batches, size = 40, n // 40
    found: list[list[Tensor]] = []
    extra: list[list[Tensor]] = []
    torch.manual_seed(2)
    for _ in range(batches):
        q = [v.requires_grad_() for v in known.tensors(known.q)]
        d = known(*q)
        many = d.expand((3,)) if known.plate else d
        draw = many.rsample if d.has_rsample else many.sample
        x = draw((size,)) if known.plate else torch.stack([draw() for _ in range(size)])
        log_p, log_q = (a.log_prob(x) if known.plate else torch.stack([a.log_prob(v) for v in x]) for a in (known(), d))
        if d.has_rsample:
            each, own = log_p - log_q, 0.0 * log_q
        else:
            cost = (log_p - log_q).detach()
            each, own = log_q * (cost - cost.mean(0)) * size / (size - 1), log_q
        for terms, where in ((each, found), (own, extra)):
            total = terms.sum() / size
            where.append(
                list(torch.autograd.grad(total, q, retain_graph=True, allow_unused=True, materialize_grads=True))
            )
    mean, noise = ([torch.stack(g) for g in zip(*each, strict=True)] for each in (found, extra))
    sd = [(g.var(0) + e.var(0)).sqrt() * size**0.5 for g, e in zip(mean, noise, strict=True)]
    return [g.mean(0) for g in mean], sd


@every
@pytest.mark.parametrize(("particles", "steps"), [(1, 200), (100, 20)])
def test_gradients_of_many_draws(name, particles, steps):
    """Of SGD with a tiny step, the sum over the steps; and the bound beside it."""
    known = DISTRIBUTIONS[name]
    rate, program = 1e-7, OneSite(name)
    run = fit(program, DATA, steps=steps, lr=rate, optimizer="SGD", particles=particles, elbo="sampled", log_every=1,
              engine="trace", precision="64-true", seed=3)  # fmt: skip
    mean, sd = gradients(known, 4000)
    for i, (g, s) in enumerate(zip(mean, sd, strict=True)):
        found = (run.program.q[i].detach() - known.tensors(known.q)[i]) / (rate * steps)
        # a single particle without a reparametrisation is two, one the other's baseline: twice the variance
        error = 1.5 * s * (1 / (steps * particles) + 1 / 4000) ** 0.5
        assert ((found - g).abs() < 4.5 * error + 1e-4).all(), (i, found, g, error)
    log_w = log_weights(known, reference(known, known.q, 4000))
    error = float(log_w.std()) * (1 / (steps * particles) + 1 / len(log_w)) ** 0.5
    assert abs(run.metrics["elbo"].mean() - LOG_Y - float(log_w.mean())) < 4.5 * error + 1e-5
