"""What a fit takes where nothing is said: rates by the program, and none of it where something is."""

from __future__ import annotations

import pytest
import torch
from known import SCHOOLS, NormalMean, normal

from ppgen.inference import fit
from ppgen.inference.training import defaults
from ppgen.models import VAE, Diffusion, EightSchools

X = normal(12, 3)


def rates(program: object, data: dict[str, torch.Tensor], **options: object) -> tuple[object, ...]:
    return tuple(fit(program, data, engine="eager", **options).config["fit"][n] for n in ("lr", "schedule", "ema"))


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(defaults, "STEPS", 2)


def test_a_network_moves_slower_the_more_parameters_it_has():
    vae = VAE(3, latent=2, hidden=(300,), likelihood="normal")
    count = sum(p.numel() for p in vae.parameters())
    assert rates(vae, {"x": X}) == (pytest.approx(count**-0.5, rel=0.05), "cosine", None)
    counts = (0, 10_000, 10**6, 4 * 10**6, 16 * 10**6)
    assert [defaults._rate(n) for n in counts] == [0.02, 0.01, 0.002, 0.0014, 0.001]


def test_an_autoguide_of_normals_counts_for_nothing_and_one_with_layers_does():
    assert rates(NormalMean(), {"x": X[:, 0]}) == (0.02, "cosine", None)
    lr, _, _ = rates(EightSchools(), SCHOOLS, guide="AutoMultivariateNormal")
    assert lr == 0.02
    lr, _, _ = rates(EightSchools(), SCHOOLS, guide="flow", starts=0)
    assert 0.001 < lr < 0.02


def test_a_chain_is_averaged(caplog):
    caplog.set_level("INFO", "ppgen")
    lr, schedule, ema = rates(Diffusion(3, hidden=(40,), steps=3), {"x": X})
    assert (schedule, ema) == ("cosine", 0.995) and "averaged (ema 0.995)" in caplog.text
    assert rates(Diffusion(3, hidden=(8,), steps=3), {"x": X}, ema=0.9)[2] == 0.9


def test_held_out_rows_keep_the_best_average():
    vae = VAE(3, latent=2, hidden=(8,), likelihood="normal")
    held_out = fit(vae, {"x": X}, valid={"x": X}, engine="eager").config["fit"]
    assert (held_out["ema"], held_out["patience"]) == (0.995, defaults.PATIENCE)
    few = fit(VAE(3, latent=1, hidden=(), likelihood="normal"), {"x": normal(100, 3)}, valid={"x": X}, engine="eager")
    assert (few.config["fit"]["ema"], few.config["fit"]["patience"]) == (None, None)  # no more parameters than rows
    chain = fit(Diffusion(3, hidden=(8,), steps=3), {"x": X}, valid={"x": X}, engine="eager").config["fit"]
    assert (chain["ema"], chain["patience"]) == (0.995, None)  # its ELBO is drawn


def test_costly_steps_are_fewer_and_the_same_in_each_fit(monkeypatch, caplog):
    caplog.set_level("INFO", "ppgen")
    monkeypatch.setattr(defaults, "STEPS", 200)
    monkeypatch.setattr(defaults, "FEWEST", 3)
    monkeypatch.setattr(defaults, "SECONDS", 1e-3)
    runs = [fit(VAE(3, latent=2, hidden=(8,), likelihood="normal"), {"x": X}, engine="eager") for _ in range(2)]
    steps = [run.config["fit"]["steps"] for run in runs]
    assert 3 <= steps[0] < 20 and steps[0] == steps[1] and len(runs[0].rows) == steps[0]
    assert f"{steps[0]} steps (costly ones" in caplog.text
    monkeypatch.setattr(defaults, "step_seconds", lambda seconds, _: seconds)
    assert [defaults._affordable(s, {}) for s in (1e-9, 1e-3 / 57.3, 1.0)] == [200, 57, 3]


@pytest.mark.parametrize("told", [{"steps": 2}, {"lr": 0.1}, {"schedule": "linear"}, {"optimizer": "SGD"}])
def test_what_is_told_leaves_the_rest_as_it_was(told):
    plain = {"lr": 1e-3, "schedule": "constant"} | told
    assert rates(NormalMean(), {"x": X[:, 0]}, **told) == (plain["lr"], plain["schedule"], None)
