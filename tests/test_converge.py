"""When a fit has converged: iterates whose law is known, and fits whose end is."""

from __future__ import annotations

import numpy as np
import pyro
import pytest
import torch
from arviz_stats.base import array_stats
from known import Gaussian, NormalMean, normal
from pyro.distributions import Normal

from ppgen import PpgenError, Program, Run, rows
from ppgen.check import check
from ppgen.inference import fit, posterior, resume
from ppgen.inference.training.converge import EVERY, FALL, Convergence, Probe, _mcse, _split_r_hat, _unit

X = normal(20) + 1.0


def wander(n: int, *, drift: float = 0.0, seed: int = 0, entries: int = 5) -> torch.Tensor:
    """An AR(1) process about 3 (or a line), (n, 4 draws, entries); draws lie 1 apart."""
    noise = normal(n, entries, seed=seed)
    x = torch.zeros(n, entries)
    for t in range(1, n):
        x[t] = 0.7 * x[t - 1] + 0.05 * noise[t]
    return 3 + x[:, None] + drift * torch.arange(n)[:, None, None] + torch.arange(4.0)[:, None]


def feed(iterates: torch.Tensor) -> tuple[Convergence, int]:
    c = Convergence()
    for i, probed in enumerate(iterates):
        c.note({"w": probed[0], "n": torch.tensor(i)}, probed)
        if c.converged:
            return c, i + 1
    return c, len(iterates)


def test_split_r_hat_is_arvizs():
    x = wander(60).reshape(60, -1)
    ours = _split_r_hat(x)
    theirs = [array_stats.rhat(c.reshape(2, -1), method="identity") for c in x.numpy().astype(float).T]
    assert np.allclose(ours, theirs, atol=1e-6)


def test_the_unit_is_the_spread_of_the_draws():
    assert torch.allclose(_unit(wander(50)), torch.full((5,), torch.arange(4.0).std()), rtol=1e-4)


def test_the_standard_error_of_a_mean_of_iterates():
    """Independent ones: sd / √n."""
    found = _mcse(3.0 * normal(400, 2, 2000))
    assert float((found**2).mean()) == pytest.approx(3.0**2 / 400, rel=0.02)


def test_what_wanders_about_a_place_converges_and_its_average_is_there():
    c, n = feed(wander(2000))
    assert c.converged and c.phase == 1 and n < 400
    assert c.lr_factor == FALL
    assert torch.allclose(c.average["w"], torch.full((5,), 3.0), atol=0.05)
    assert c.average["n"] == n - 1  # what is no float is that of the last iterate


def test_what_drifts_does_not():
    c, _ = feed(wander(1000, drift=0.05))
    assert not c.converged and c.phase == 0


def test_what_another_learning_rate_moves_does_not():
    """Each phase has another mean: the learning rate goes on falling."""
    c, x = Convergence(), wander(3000)
    for probed in x:
        c.note({"w": probed[0]}, probed + c.phase)
    assert not c.converged and c.phase > 5


def test_a_slow_wandering_that_stays_near_does_not_hold_up_the_end():
    """R-hat is high for long where the iterates are correlated for long; in a later phase the distance decides."""
    slow = 0.006 * normal(4000, 5, seed=3)  # 0.06 in all, beside draws that lie 1 apart
    for t in range(1, len(slow)):
        slow[t] += 0.995 * slow[t - 1]
    c = Convergence()
    c.phase, c.last = 1, torch.arange(4.0)[:, None].expand(4, 5)
    n = 0
    while not c.converged and n < 150:
        c.note({"w": slow[n]}, slow[n] + torch.arange(4.0)[:, None])
        n += 1
    assert c.converged and _split_r_hat(slow[:n]).max() > 1.1
    first = Convergence()
    for x in slow[:n]:
        first.note({"w": x}, x + torch.arange(4.0)[:, None])
    assert not first.averaging  # at the first learning rate it is R-hat that decides


def test_the_average_is_the_mean_of_the_states_that_it_has_seen():
    c = Convergence(averaging=True)
    states = normal(5, 3)
    for n, w in enumerate(states, 1):
        c.note({"w": w}, w[:, None])
        assert torch.allclose(c.average["w"], states[:n].mean(0), atol=1e-6)


def test_many_iterates_are_thinned():
    c = Convergence()
    for probed in wander(2000, drift=0.05):
        c.note({"w": probed[0]}, probed)
    assert c.stride >= 4 and len(c.iterates) <= 400


def test_a_probe_leaves_no_trace():
    run = fit(NormalMean(), {"x": X}, steps=0)
    before = torch.get_rng_state()
    a, b = (Probe(run.program, {"x": X}, check(run.program, {"x": X}))() for _ in range(2))
    assert torch.equal(a, b) and a.shape == (8, 21) and torch.equal(before, torch.get_rng_state())
    assert not run.program.training


class Dropout(Program):
    """z ~ N(0, 1), x | z ~ N(t z, 1), with half of the t z left out in training."""

    def __init__(self):
        super().__init__()
        self.t, self.dropout = torch.nn.Parameter(torch.tensor(1.0)), torch.nn.Dropout(0.5)

    def model(self, x=None):
        with rows(x):
            z = pyro.sample("z", Normal(0.0, 1.0))
            pyro.sample("x", Normal(self.dropout(self.t * z), 1.0), obs=x)

    def guide(self, x):
        with rows(x):
            pyro.sample("z", Normal(self.t * x / 2, 0.7))


def test_a_probe_is_in_eval_mode_and_leaves_training_as_it_was():
    program = fit(Dropout(), {"x": X}, steps=0).program
    structure = check(program, {"x": X})
    program.eval()
    still = Probe(program, {"x": X}, structure)()
    program.train()
    assert torch.equal(Probe(program, {"x": X}, structure)(), still) and program.training and program.dropout.training
    z, log_p = still[:, :20], still[:, 20:]  # nothing is left out
    assert torch.allclose(log_p, Normal(z, 1.0).log_prob(X), atol=1e-5)


@pytest.mark.slow
def test_a_normal_posterior():
    run = fit(NormalMean(), {"x": X}, until="converged", lr=0.1, particles=8, engine="trace", steps=8000)
    exact = NormalMean().posterior(X)
    m = posterior(run, {"x": X}, draws=20_000)["posterior"]["m"].values
    assert run.config["converged"] and run.rows[-1]["lr"] < 0.1 and run.rows[-1]["step"] % EVERY == 0
    assert abs(m.mean() - float(exact.loc)) < 0.1 * float(exact.scale)
    assert m.std() / float(exact.scale) == pytest.approx(1, abs=0.06)


def test_a_program_without_latents():
    run = fit(Gaussian(), {"x": 3 + 2 * normal(100)}, until="converged", lr=0.05, engine="trace", steps=8000)
    assert run.config["converged"]
    assert float(run.program.mu.detach()) == pytest.approx(float((3 + 2 * normal(100)).mean()), abs=0.05)


def test_a_resumed_fit_is_the_unbroken_one(tmp_path):
    options = {"until": "converged", "lr": 0.05, "seed": 1, "log_every": 100, "engine": "eager", "particles": 4}
    whole = fit(NormalMean(), {"x": X}, steps=400, **options)
    fit(NormalMean(), {"x": X}, steps=230, out=tmp_path / "run", **options)
    again = resume(tmp_path / "run", {"x": X}, steps=400)
    for key, value in whole.program.state_dict().items():
        assert torch.equal(value, again.program.state_dict()[key])
    assert Run.load(tmp_path / "run").config["converged"] is whole.config["converged"]


def test_a_fit_that_ends_before_says_so(caplog):
    run = fit(NormalMean(), {"x": X}, until="converged", lr=1e-5, steps=200)
    assert run.config["converged"] is False and "not converged after 200 steps" in caplog.text


@pytest.mark.parametrize("options, sentence", [
    ({"until": "done"}, "expected 'converged'"),
    ({"until": "converged", "schedule": "cosine"}, "leave schedule out"),
    ({"until": "converged", "ema": 0.9}, "leave ema out"),
])  # fmt: skip
def test_options_that_do_not_go_together(options, sentence):
    with pytest.raises(PpgenError, match=sentence):
        fit(NormalMean(), {"x": X}, **options)
