"""`ppgen.ode` beside closed forms and SciPy, alone and within programs."""

import logging
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.integrate import solve_ivp

import ppgen
from ppgen.errors import PpgenError
from ppgen.inference import fit, mcmc, posterior

TIMES = torch.linspace(0.0, 10.0, 11, dtype=torch.float64)


def circle(t, y):
    return torch.stack([y[..., 1], -y[..., 0]], -1)


def prey(a, b, c, d):
    def slope(t, y):
        u, v = y.unbind(-1)
        return torch.stack([(a - b * v) * u, (d * u - c) * v], -1)

    return slope


def test_the_error_falls_with_the_fifth_power_of_the_step():
    errors = []
    for steps in (2, 4, 8):
        y = ppgen.ode(circle, torch.tensor([1.0, 0.0], dtype=torch.float64), TIMES, steps=steps)
        errors.append(float((y[:, 0] - TIMES.cos()).abs().max()))
    orders = [math.log2(a / b) for a, b in zip(errors, errors[1:], strict=False)]
    assert all(4.8 < order < 5.3 for order in orders), orders


def test_backward_in_time_uneven_and_repeated_times():
    y0 = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for t in (-TIMES, torch.tensor([0.0, 0.1, 0.1, 2.0, 7.0], dtype=torch.float64)):
        y = ppgen.ode(circle, y0, t, steps=40)
        assert torch.allclose(y[:, 0], t.cos(), atol=1e-7) and torch.allclose(y[:, 1], -t.sin(), atol=1e-7)


def test_an_equation_that_depends_on_time():
    y = ppgen.ode(lambda t, y: t.cos() * y, torch.ones(3, dtype=torch.float64), TIMES, steps=20)
    assert torch.allclose(y, TIMES.sin().exp()[:, None].expand(-1, 3), rtol=1e-7)


def test_predators_and_prey_beside_scipy():
    rates, start = (0.55, 0.028, 0.8, 0.024), [33.0, 6.0]
    own = ppgen.ode(prey(*rates), torch.tensor(start, dtype=torch.float64), 2 * TIMES, steps=40)
    a, b, c, d = rates
    theirs = solve_ivp(
        lambda t, y: [(a - b * y[1]) * y[0], (d * y[0] - c) * y[1]], (0, 20), start, t_eval=2 * TIMES.numpy(),
        rtol=1e-10, atol=1e-10,
    )  # fmt: skip
    np.testing.assert_allclose(own.numpy(), theirs.y.T, rtol=1e-6)


def test_the_gradient_is_that_of_the_solution():
    """d/dk exp(-k t) y0 = -t exp(-k t) y0, and d/dy0 = exp(-k t)."""
    k = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    y0 = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    y = ppgen.ode(lambda t, y: -k * y, y0, TIMES, steps=10)
    by_k, by_y0 = torch.autograd.grad(y[-1, 0], (k, y0))
    assert float(by_k) == pytest.approx(-10 * math.exp(-3) * 2, rel=1e-7)
    assert float(by_y0) == pytest.approx(math.exp(-3), rel=1e-7)


def decay(t, y=None):
    k = pyro.sample("k", dist.LogNormal(-1.0, 0.5))
    solution = ppgen.ode(lambda time, z: -k * z, torch.ones(1), t)
    with pyro.plate("times", len(t)):
        return pyro.sample("y", dist.Normal(solution[:, 0], 0.1), obs=y)


def decaying():
    t = torch.linspace(0.0, 4.0, 9)
    return {"t": t, "y": torch.exp(-0.5 * t) + 0.1 * torch.randn(9, generator=torch.Generator().manual_seed(0))}


def by_grid(data):
    """The posterior's mean and sd of k, with exp(-k t) for the solution."""
    k = torch.linspace(0.05, 2.0, 4001, dtype=torch.float64)
    log_p = dist.LogNormal(-1.0, 0.5).log_prob(k)
    mean = torch.exp(-k[:, None] * data["t"].double())
    log_p = log_p + dist.Normal(mean, 0.1).log_prob(data["y"].double()).sum(-1)
    w = log_p.softmax(0)
    centre = (w * k).sum()
    return float(centre), float((w * (k - centre) ** 2).sum().sqrt())


def test_chains_run_together_and_have_the_posterior(caplog):
    data = decaying()
    caplog.set_level(logging.INFO, "ppgen")
    draws = mcmc(decay, data, seed=0).posterior["k"].values
    mean, sd = by_grid(data)
    assert abs(draws.mean() - mean) < 0.1 * sd and abs(draws.std() / sd - 1) < 0.05
    assert "one after the other" not in caplog.text and "differential" not in caplog.text


def test_a_fit_records_it_and_many_draws_are_one_graph(caplog):
    data = decaying()
    caplog.set_level(logging.INFO, "ppgen")
    run = fit(decay, data, steps=600, lr=0.05, schedule="cosine", particles=8, engine="trace", seed=0)
    tree = posterior(run, data, draws=500, seed=0)
    mean, sd = by_grid(data)
    assert abs(float(tree.posterior["k"].mean()) - mean) < 0.2 * sd
    assert "eagerly" not in caplog.text and "one after the other" not in caplog.text


def test_a_solution_by_too_few_steps_is_said(caplog):
    stiff = lambda t, y: -30 * y  # noqa: E731
    ppgen.ode(stiff, torch.ones(1), torch.tensor([0.0, 1.0]), steps=1)
    assert "does not follow the equation with steps=1" in caplog.text and "steps=4" in caplog.text
    caplog.clear()
    ppgen.ode(stiff, torch.ones(1), torch.tensor([0.0, 1.0]), steps=1)
    assert not caplog.text  # once
    coarse = lambda t, y: torch.stack([y[1], -y[0]])  # noqa: E731
    y = ppgen.ode(coarse, torch.tensor([1.0, 0.0]), torch.tensor([0.0, 3.0]), steps=2)
    assert "has an error of about" in caplog.text
    caplog.clear()
    ppgen.ode(circle, torch.tensor([1.0, 0.0]), TIMES.float(), steps=4)
    assert not caplog.text and abs(float(y[-1, 0]) - math.cos(3)) > 1e-3


def test_what_cannot_be_solved_has_a_sentence():
    with pytest.raises(PpgenError, match=r"expected \(T,\), the first that of y0"):
        ppgen.ode(circle, torch.ones(2), torch.zeros(3, 1))
    with pytest.raises(PpgenError, match="at least one step"):
        ppgen.ode(circle, torch.ones(2), TIMES, steps=0)
    with pytest.raises(PpgenError, match=r"gives \(1, 2\) for y of \(2,\)"):
        ppgen.ode(lambda t, y: y[None], torch.ones(2), TIMES)
