"""Whether an ELBO was still rising: courses whose answer is known."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from ppgen.inference.trend import rise, warn_if_rising

STEPS = np.arange(100)


def run(elbo, schedule="cosine", *, valid=None, path=None):
    m = {"elbo": elbo, "valid_elbo": np.full(len(elbo), np.nan) if valid is None else valid}
    fit = {"schedule": schedule, "patience": None if valid is None else 30, "steps": 2000, "lr": 0.01}
    data = {"rows": 10, "valid_rows": None if valid is None else 5}
    return SimpleNamespace(
        metrics=m, config={"fit": fit, "data": data}, structure=SimpleNamespace(by_row=True), path=path
    )


def test_a_gain_is_told_from_noise_and_is_in_nats_a_row():
    found = rise(run(10.0 * STEPS, "constant"))
    assert (found.gain, found.part, found.rising) == (pytest.approx(10.0), 0.1, True)
    noise = np.random.default_rng(0).normal(size=100)
    assert not rise(run(noise, "constant")).rising
    assert rise(run(noise[:19])) is None


def test_a_rate_that_falls_hides_what_is_left_from_the_last_tenth():
    cosine = (1 + np.cos(np.pi * STEPS / 100)) / 2
    elbo = -1000 + 3.0 * np.cumsum(cosine)  # it rises by the rate, and would for ever
    found = rise(run(elbo))
    assert found.rising and found.part == 0.25 and not rise(run(elbo - 1e5)).rising


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
