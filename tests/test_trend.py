"""Whether an ELBO was still rising: courses whose answer is known."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import Normal

from ppgen.inference import fit, posterior
from ppgen.inference.trend import rise, warn_if_rising

STEPS = np.arange(100)


def run(elbo, schedule="cosine", *, valid=None, path=None):
    m = {"elbo": elbo, "valid_elbo": np.full(len(elbo), np.nan) if valid is None else valid}
    fit = {"schedule": schedule, "patience": None if valid is None else 30, "steps": 2000, "lr": 0.01}
    data = {"rows": 10, "valid_rows": None if valid is None else 5}
    fit["starts"], program = None, SimpleNamespace(_autoguide=None)
    structure = SimpleNamespace(by_row=True)
    return SimpleNamespace(
        metrics=m, config={"fit": fit, "data": data}, structure=structure, path=path, program=program
    )


def test_a_gain_is_told_from_noise_and_is_in_nats_a_row():
    found = rise(run(10.0 * STEPS, "constant"))
    assert (found.gain, found.part, found.rising) == (pytest.approx(10.0), 0.1, True)
    noise = np.random.default_rng(0).normal(size=100)
    assert not rise(run(noise, "constant")).rising
    assert rise(run(noise[:19])) is None


def test_a_rise_that_the_noise_of_two_tenths_hides_is_seen_along_the_last_quarter():
    """Adam at 0.001 for 1 500 steps ended 10 sds from a regression's posterior, without a word."""
    rng = np.random.default_rng(0)
    told = [rise(run(-1000 + 1.5 * STEPS + 8 * rng.normal(size=100), "constant")).rising for _ in range(300)]
    assert np.mean(told) > 0.95  # by the tenths alone 76%
    flat = [rise(run(-1000 + 8 * rng.normal(size=100), "constant")).rising for _ in range(2000)]
    assert np.mean(flat) < 0.02
    level = -1000 + 3.0 * np.minimum(STEPS, 70)  # it has arrived before the last quarter begins
    assert np.mean([rise(run(level + 8 * rng.normal(size=100), "constant")).rising for _ in range(2000)]) < 0.02


def test_adams_default_rate_that_leaves_a_regression_half_way_is_said(caplog):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(200, generator=rng)
    y = 1 + 2 * x + 0.5 * torch.randn(200, generator=rng)

    def model(x, y):
        a, b = (pyro.sample(n, Normal(0.0, 1.0)) for n in "ab")
        with pyro.plate("rows", len(x)):
            pyro.sample("y", Normal(a + b * x, 0.5), obs=y)

    for steps in (500, 1000, 1500):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "ppgen"):
            fit(model, {"x": x, "y": y}, steps=steps, engine="trace")
        assert "not converged: the ELBO rose by" in caplog.text


def test_a_rate_that_falls_hides_what_is_left_from_the_last_tenth():
    cosine = (1 + np.cos(np.pi * STEPS / 100)) / 2
    elbo = -1000 + 3.0 * np.cumsum(cosine)  # it rises by the rate, and would for ever
    found = rise(run(elbo))
    assert found.rising and found.part == 0.25
    elbo[0] -= 1e5
    assert not rise(run(elbo - 1e5)).rising  # a gain of little beside all that there was to gain


def test_a_guide_that_is_far_from_the_posterior_is_told_and_begins_elsewhere(caplog):
    """Of m ~ N(1000, 1), 980 sds away after 20 of 1000: the last quarter's gain is a 300th of the ELBO."""

    def model(y):
        m = pyro.sample("m", Normal(1000.0, 1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", Normal(m, 1.0), obs=y)

    data = {"y": torch.tensor([1000.5, 1001.0, 999.7, 1002.0])}
    exact = (1000 + float(data["y"].sum())) / 5
    with caplog.at_level(logging.WARNING, "ppgen"):
        run = fit(model, data, guide="AutoNormal", particles=4)
        (said,) = caplog.messages
        assert abs(posterior(run, data)["posterior"]["m"].mean() - exact) > 900 and "begin where a search ends" in said
        caplog.clear()
        run = fit(model, data, guide="AutoNormal", particles=4, starts=4)
        assert not caplog.messages
    m = posterior(run, data, draws=2000)["posterior"]["m"].values
    assert abs(m.mean() - exact) < 4 * (0.2 / 2000) ** 0.5 + 0.02 and abs(m.std() / 0.2**0.5 - 1) < 0.08


def test_held_out_rows_tell_where_they_choose():
    found = rise(run(100.0 * STEPS, valid=-5.0 * STEPS))
    assert found.gain == pytest.approx(-25.0) and not found.rising


def test_the_remedy_goes_on_with_the_course(caplog):
    warn_if_rising(run(-1000.0 + 100 * STEPS, path="runs/a"))
    warn_if_rising(run(-1000.0 + 100 * STEPS))
    first, second = (r.message for r in caplog.records)
    assert "ppgen fit --resume runs/a --steps 4000" in first and "steps=4000, lr=0.01, schedule='cosine'" in second
    warn_if_rising(run(0.0 * STEPS))
    assert len(caplog.records) == 2
