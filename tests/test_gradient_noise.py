"""The signal-to-noise ratio of gradients against closed forms, and how it goes with the number of particles."""

from __future__ import annotations

import pytest
import torch
from known import GuidedNormalMean, normal

from ppgen.errors import PpgenError
from ppgen.inference import fit, gradient_noise, objectives
from ppgen.models import Diffusion

X = normal(12).double() + 1.0


@pytest.fixture
def run():
    return fit(GuidedNormalMean(width=1.5), {"x": X}, steps=0, precision="64-true")


def test_signal_and_noise_of_the_elbo_are_closed_forms(run):
    """At a draw s e posterior sds away from its mean, ∂/∂log s of log p − log q along the path is (1 − s²) e²."""
    s, n, k = 1.5, len(X), 4
    (row,), refused = gradient_noise(run, {"x": X}, choices=["sampled sticking"], particles=k, repeats=4000)
    assert not refused and row.size == 1
    assert row.signal == pytest.approx((s**2 - 1) / n, rel=0.06)
    assert row.noise == pytest.approx(2**0.5 * (s**2 - 1) / n / k**0.5, rel=0.06)
    assert row.ratio == pytest.approx(row.signal / row.noise)


@pytest.mark.slow
def test_the_guides_signal_falls_with_particles_under_iwae_and_not_under_dreg(run):
    """As 1/√K against √K (Rainforth et al. 2018; Tucker et al. 2019)."""
    found = {
        (name, k): gradient_noise(run, {"x": X}, choices=[name], particles=k, repeats=n)[0][0].ratio
        for name, n in (("iwae", 3000), ("dreg", 300)) for k in (4, 64)
    }  # fmt: skip
    assert found["iwae", 64] < 0.6 * found["iwae", 4]
    assert found["dreg", 64] > 2.5 * found["dreg", 4]


def test_what_does_not_go_with_the_program_is_said(run):
    rows, refused = gradient_noise(run, {"x": X}, choices=["iwae sticking", "sampled"], repeats=2)
    assert [r.choice for r in rows] == ["sampled"] and "complete derivatives" in refused["iwae sticking"]
    with pytest.raises(PpgenError, match="no objective 'iwea'"):
        gradient_noise(run, {"x": X}, choices=["iwea"])
    with pytest.raises(PpgenError, match="needs 2"):
        gradient_noise(run, {"x": X}, repeats=1)


def test_all_objectives_are_tried(run):
    """miwae, piwae, ciwae and gdreg were left out of "all"."""
    found, refused = gradient_noise(run, {"x": X}, particles=4, repeats=2)
    assert {c.partition(" ")[0] for c in (*(r.choice for r in found), *refused)} == {*objectives.names()} - {
        "subsampled"
    }


def test_the_random_state_is_left_alone(run):
    before = torch.get_rng_state()
    gradient_noise(run, {"x": X}, choices=["sampled"], repeats=3)
    assert torch.equal(before, torch.get_rng_state())


def test_of_a_long_chain_what_it_is_trained_by():
    """All objectives over its 1 000 steps took a minute a gradient; a short chain has them beside."""
    x = {"x": normal(8, 2)}
    rows, refused = gradient_noise(fit(Diffusion(2, hidden=(4,), steps=0), x, steps=0), x, repeats=2)
    assert {row.choice for row in rows} == {"subsampled"} and not refused
    rows, _ = gradient_noise(fit(Diffusion(2, hidden=(4,), steps=2), x, steps=0), x, particles=2, repeats=2)
    assert {row.choice for row in rows} >= {"subsampled", "analytic", "iwae"}
