"""The loop: equal to Pyro's SVI, seeded, resumed to the bit, and doing what its options say."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from known import GuidedNormalMean, NormalMean, normal, ppca
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from scipy import stats
from torch import nn

from ppgen import PpgenError, Program, Run, rows
from ppgen.data import batch_index
from ppgen.inference import fit, loglik, mcmc, resume, sample
from ppgen.inference.training.optimise import SCHEDULES, averaged, ema_decay, learning_rate
from ppgen.inference.training.step import ENGINES
from ppgen.inference.training.train import Progress, _row
from ppgen.models import VAE
from ppgen.run.files import read_tree

torch.set_num_threads(1)
X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
SCHOOLS = {
    "sigma": torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]),
    "y": torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]),
}


class Small(Program):
    """A VAE with dropout, so that every step draws, and a buffer that changes."""

    def __init__(self, latent: int = 2):
        super().__init__()
        self.latent = latent
        torch.manual_seed(1)
        self.encoder = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 2 * latent))
        self.decoder = nn.Linear(latent, 6)

    def model(self, x=None):
        with rows(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([self.latent]).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        loc, scale = self.encoder(x).chunk(2, -1)
        with rows(x):
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


# -- equal to Pyro ---------------------------------------------------------------------------------


def svi(model, guide, data, steps, lr, n, seed=0):
    """Pyro's own loop. Adam's eps is N times ppgen's, whose loss is Pyro's over N."""
    optim = pyro.optim.Adam({"lr": lr, "eps": 1e-8 * n})
    pyro.set_rng_seed(seed)
    loop = SVI(model, guide, optim, Trace_ELBO())
    return [-loop.step(*data) for _ in range(steps)]


def assert_equal_to_svi(run, losses):
    np.testing.assert_allclose(run.metrics["elbo"], losses, rtol=2e-4)


def vae_pair():
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(2, 8), nn.Softplus(), nn.Linear(8, 6))
    encoder = nn.Sequential(nn.Linear(6, 8), nn.Softplus(), nn.Linear(8, 4))

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("latent", dist.Normal(x.new_zeros(2), x.new_ones(2)).to_event(1))
            pyro.sample("obs", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("latent", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide


def test_pyros_vae_pair_runs_unchanged_and_equals_svi():
    x = (X > 0).float()
    pyro.clear_param_store()
    losses = svi(*vae_pair(), (x,), 20, 0.01, len(x))
    pyro.clear_param_store()
    run = fit(Program.from_pair(*vae_pair()), {"x": x}, steps=20, lr=0.01, objective="sampled", log_every=1)
    assert_equal_to_svi(run, losses)
    assert not list(pyro.get_param_store().keys())


def schools(sigma, y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(sigma)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * eta, sigma), obs=y)


def test_eight_schools_with_no_guide_equals_svi():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    guide = AutoNormal(schools)
    guide(*SCHOOLS.values())  # its first call draws the initial values
    losses = svi(schools, guide, SCHOOLS.values(), 20, 0.02, 8)
    program = Program.from_pair(schools, guide=None)
    run = fit(program, SCHOOLS, steps=20, lr=0.02, objective="sampled", log_every=1)
    pyro.clear_param_store()
    assert_equal_to_svi(run, losses)


def constrained_model(x=None):
    scale = pyro.param("scale", torch.tensor(2.0), constraint=constraints.positive)
    weights = pyro.param("net.weights", lambda: torch.tensor([0.2, 0.8]), constraint=constraints.simplex)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z * weights[0], scale), obs=x)


def constrained_guide(x):
    loc = pyro.param("loc", lambda: torch.zeros(len(x)))
    scale = pyro.param("q_scale", torch.ones(len(x)), constraint=constraints.softplus_positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, scale))


def test_constrained_params_equal_svi(tmp_path):
    x = X[:, 0]
    pyro.clear_param_store()
    losses = svi(constrained_model, constrained_guide, (x,), 20, 0.02, len(x))
    theirs = {k: v.detach().clone() for k, v in pyro.get_param_store().items()}
    pyro.clear_param_store()
    program = Program.from_pair(constrained_model, constrained_guide)
    run = fit(program, {"x": x}, steps=20, lr=0.02, objective="sampled", log_every=1, out=tmp_path / "run")
    assert_equal_to_svi(run, losses)
    names = {n.removeprefix("param:").replace("/", ".") for n, _ in run.program.named_parameters()}
    assert names == set(theirs)
    back = Run.load(tmp_path / "run", Program.from_pair(constrained_model, constrained_guide))
    assert back.program.get_parameter("param:loc").shape == (64,)  # set up on two rows, loaded with its own size


def test_bound_methods_keep_their_owners_parameters():
    class Owner(nn.Module):
        def __init__(self):
            super().__init__()
            self.t = nn.Parameter(torch.tensor(0.0))

        def model(self, x=None):
            with rows(x):
                pyro.sample("x", dist.Normal(self.t, 1.0), obs=x)

    owner = Owner()
    fit(Program.from_pair(owner.model), {"x": X[:, 0] + 2}, steps=400, lr=0.05)
    assert abs(owner.t.item() - (X[:, 0] + 2).mean().item()) < 0.01


# -- seeds and resuming ----------------------------------------------------------------------------

OPTIONS = {"steps": 60, "batch_size": 16, "lr": 0.01, "ema": 0.95, "clip": 1.0, "schedule": "cosine", "kl_warmup": 20,
           "optimizer": "AdamW(weight_decay=0.01)", "log_every": 7, "patience": 50, "engine": "eager"}  # fmt: skip


def files_of(path):
    return {name: (path / name).read_bytes() for name in ("metrics.csv", "parameters.safetensors", "state.safetensors")}


def test_same_seed_same_result_and_another_seed_another():
    runs = [fit(Small(), {"x": X}, valid={"x": X[:20]}, seed=s, **OPTIONS) for s in (3, 3, 4)]
    states = [torch.cat([v.double().flatten() for v in r.program.state_dict().values()]) for r in runs]
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def killed_and_resumed(path, delay, checkpoint_every):
    """A child process fits and is killed after a while; then the parent goes on."""
    child = os.fork()
    if child == 0:  # pragma: no cover - it is killed
        os.setsid()
        try:
            fit(Small(), {"x": X}, valid={"x": X[:20]}, out=path, checkpoint_every=checkpoint_every, **OPTIONS)
        finally:
            os._exit(0)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if not (path / "config.json").is_file():
        return None
    steps_done = len((path / "metrics.csv").read_text().splitlines()) - 1
    resume(path, {"x": X}, valid={"x": X[:20]}, program=Small())
    return steps_done


@pytest.mark.slow
def test_killed_at_twenty_random_moments_and_resumed_to_the_bit(tmp_path):
    start = time.monotonic()
    fit(Small(), {"x": X}, valid={"x": X[:20]}, out=tmp_path / "whole", checkpoint_every=4, **OPTIONS)
    length = time.monotonic() - start
    whole = files_of(tmp_path / "whole")
    rng, seen, tries = np.random.default_rng(0), set(), 0
    while len(seen) < 20:
        tries += 1
        assert tries < 60, "the kills do not fall into the fit"
        path = tmp_path / f"run{tries}"
        done = killed_and_resumed(path, rng.uniform(0.1, 1.1) * length, checkpoint_every=4)
        if done is None:
            continue
        seen.add(tries)
        for name, content in files_of(path).items():
            assert content == whole[name], f"{name} differs after a kill with {done} rows written"


def test_resume_checks_the_data_and_takes_more_steps(tmp_path):
    fit(Small(), {"x": X}, valid={"x": X[:20]}, out=tmp_path / "run", **OPTIONS)
    with pytest.raises(PpgenError, match="fingerprints differ"):
        resume(tmp_path / "run", {"x": X + 1}, program=Small())
    with pytest.raises(PpgenError, match="in memory"):
        resume(tmp_path / "run", program=Small())
    with pytest.raises(PpgenError, match="no run folder"):
        resume(tmp_path / "nothing")
    run = resume(tmp_path / "run", {"x": X}, valid={"x": X[:20]}, program=Small(), steps=80)
    assert run.rows[-1]["step"] == 80
    assert Run.load(tmp_path / "run", Small()).config["fit"]["steps"] == 80


def test_resume_holds_the_held_out_rows_against_those_it_follows(tmp_path):
    """Others of the same number were taken, and their ELBO compared with the best of the former."""
    fit(Small(), {"x": X}, valid={"x": X[:20]}, out=tmp_path / "run", **OPTIONS)
    with pytest.raises(PpgenError, match="held-out rows are not those"):
        resume(tmp_path / "run", {"x": X}, valid={"x": X[20:40]}, program=Small(), steps=80)
    with pytest.raises(PpgenError, match="follows 20 held-out rows"):
        resume(tmp_path / "run", {"x": X}, valid={"x": X[:19]}, program=Small(), steps=80)
    double = {"x": X.double()}, {"x": X[:20].double()}
    for steps, precision in ((80, "64-true"), (90, "64-true"), (100, "32-true")):
        run = resume(tmp_path / "run", double[0], valid=double[1], program=Small(), steps=steps, precision=precision)
        assert run.rows[-1]["step"] == steps


def test_resume_says_that_a_fit_was_ended_by_its_patience(tmp_path, caplog):
    """More steps were asked for, and none was made, without a word."""
    options = OPTIONS | {"steps": 500, "patience": 1, "lr": 0.5}
    first = fit(Small(), {"x": X}, valid={"x": X[:20]}, out=tmp_path / "run", **options)
    ended = first.rows[-1]["step"]
    assert ended < 500
    same = resume(tmp_path / "run", {"x": X}, valid={"x": X[:20]}, program=Small(), steps=600)
    assert same.rows[-1]["step"] == ended and "resume with a larger patience" in caplog.text
    caplog.clear()
    more = resume(tmp_path / "run", {"x": X}, valid={"x": X[:20]}, program=Small(), patience=3)
    assert more.rows[-1]["step"] > ended and "patience" not in caplog.text


@pytest.mark.parametrize("name", ["lr", "schedule", "particles", "precision", "log_every", "engine"])
def test_none_keeps_an_option_of_a_run(tmp_path, name):
    """`resume(lr=None)` ended in a message of torch's."""
    fit(Small(), {"x": X}, out=tmp_path / "run", **OPTIONS | {"patience": None})
    run = resume(tmp_path / "run", {"x": X}, program=Small(), steps=61, **{name: None})
    assert run.config["fit"][name] == Run.load(tmp_path / "run", Small()).config["fit"][name] is not None


@pytest.mark.parametrize("option", [{"precision": "64"}, {"lr": "fast"}])
def test_options_that_no_folder_can_hold_are_refused_before_it_is_made(tmp_path, option):
    """precision='64' made a run folder that could not be read back; lr='fast' was a TypeError."""
    with pytest.raises(PpgenError, match=next(iter(option))):
        fit(Small(), {"x": X}, out=tmp_path / "run", **OPTIONS | {"patience": None} | option)
    assert not (tmp_path / "run").exists()


def test_interrupt_waits_for_the_step_and_leaves_a_checkpoint(tmp_path):
    sent = []

    def report(row):
        if not sent:
            sent.append(row["step"])
            os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="step"):
        fit(Small(), {"x": X}, valid={"x": X[:20]}, out=tmp_path / "run", report=report, **OPTIONS)
    assert signal.getsignal(signal.SIGINT) is handler
    state = read_tree(tmp_path / "run" / "state.safetensors")
    assert state["progress"]["step"] == sent[0] == 7
    run = resume(tmp_path / "run", {"x": X}, valid={"x": X[:20]}, program=Small())
    assert run.rows[-1]["step"] == 60


# -- options ---------------------------------------------------------------------------------------


def test_learning_rates_are_their_formulas():
    for name in SCHEDULES:
        assert learning_rate(name, 0.3, 0, 100) == pytest.approx(0.3)
    assert learning_rate("linear", 0.3, 50, 100) == pytest.approx(0.15)
    assert learning_rate("cosine", 0.3, 100, 100) == pytest.approx(0.0, abs=1e-12)
    assert learning_rate("exponential", 0.3, 100, 100) == pytest.approx(0.003)


def test_ema_begins_with_the_mean_of_few():
    for step, decay in ((1, 2 / 11), (10, 11 / 20), (1000, 1001 / 1010), (10**6, 0.999)):
        assert ema_decay(0.999, step) == pytest.approx(decay)
        ema = {"t": torch.tensor(2.0)}
        averaged(ema, {"t": torch.tensor(1.0)}, 0.999, step)
        assert float(ema["t"]) == pytest.approx(1 + decay)


def test_ema_forgets_its_start():
    ema, value = {"t": torch.tensor(100.0), "n": torch.tensor(0)}, {"t": torch.tensor(1.0), "n": torch.tensor(5)}
    for step in range(1, 200):
        averaged(ema, value, 0.99, step)
    assert abs(ema["t"].item() - 1.0) < 0.02 and ema["n"] == 5


def test_a_run_with_ema_keeps_the_average():
    run = fit(Small(), {"x": X}, steps=30, lr=0.05, ema=0.9)
    raw = fit(Small(), {"x": X}, steps=30, lr=0.05)
    a, b = run.program.decoder.weight, raw.program.decoder.weight
    assert not torch.equal(a, b) and torch.dist(a, b) < 0.5


def test_clip_bounds_the_step_of_sgd():
    torch.manual_seed(0)
    program = Small()
    before = [p.detach().clone() for p in program.parameters()]
    fit(program, {"x": X * 100}, steps=1, lr=1.0, optimizer="SGD", clip=0.01)
    moved = torch.cat([(a - b).flatten() for a, b in zip(program.parameters(), before, strict=True)])
    assert 0 < moved.norm() <= 0.0101


def test_patience_stops_and_keeps_the_best():
    torch.manual_seed(0)
    valid = {"x": torch.randn(50, 6) * 3}
    run = fit(Small(), {"x": X[:8]}, valid=valid, steps=3000, lr=0.05, patience=5, log_every=20)
    assert run.rows[-1]["step"] < 3000
    scores = run.metrics["valid_elbo"]
    assert np.argmax(scores) == len(scores) - 6


def test_patience_keeps_the_parameters_that_were_best():
    """On its way to the mean of the rows that it is fitted to, 3, it passes that of those held out, 1."""

    class Mean(Program):
        def __init__(self):
            super().__init__()
            self.t = nn.Parameter(torch.tensor(0.0))

        def model(self, x=None):
            with rows(x):
                pyro.sample("x", dist.Normal(self.t, 1.0), obs=x)

    x = torch.linspace(-1, 1, 20)
    run = fit(Mean(), {"x": 3 + x}, valid={"x": 1 + x}, steps=500, lr=0.02, optimizer="SGD", patience=3, log_every=4)
    kept = dist.Normal(run.program.t.detach(), 1.0).log_prob(1 + x).sum().item()
    assert kept == pytest.approx(run.metrics["valid_elbo"].max(), abs=1e-4) and abs(run.program.t.item() - 1) < 0.1
    assert run.metrics["valid_elbo"][-1] < kept - 0.1


def test_held_out_rows_without_a_density_are_said_and_end_no_fit(caplog):
    """Their ELBO is -inf at each look, which patience took for no better: the fit ended at its third."""
    x = torch.randn(50)
    beyond = torch.tensor([0.0, float("inf")])
    run = fit(NormalMean(), {"x": x}, valid={"x": beyond}, steps=60, patience=2, log_every=5, strict=False, seed=0)
    assert run.rows[-1]["step"] == 60
    assert caplog.text.count("one of them, at least, has no density") == 1


def test_validation_figure_is_for_the_held_out_rows():
    x = torch.randn(500, generator=torch.Generator().manual_seed(1))

    class Fixed(Program):
        def __init__(self):
            super().__init__()
            self.t = nn.Parameter(torch.tensor(0.0))

        def model(self, x=None):
            with rows(x):
                pyro.sample("x", dist.Normal(self.t, 1.0), obs=x)

    run = fit(Fixed(), {"x": x[:400]}, valid={"x": x[400:]}, steps=1, lr=1e-9, batch_size=30)
    exact = dist.Normal(0.0, 1.0).log_prob(x[400:]).sum().item()
    assert run.rows[-1]["valid_elbo"] == pytest.approx(exact, rel=1e-4)


class Exact(Program):
    """z ~ N(0, 1), x | z ~ N(z, 1), q the posterior: one draw of the ELBO is log p(x) = log N(x; 0, 2)."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.5))

    def model(self, x=None):
        with rows(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        with rows(x):
            pyro.sample("z", dist.Normal(self.slope * x, 0.5**0.5))


class Location(Program):
    """x ~ N(t, 1) through a dropout of `rate`: nothing is latent, and log p(x) is exact in eval mode."""

    def __init__(self, rate: float = 0.0):
        super().__init__()
        self.t, self.dropout = nn.Parameter(torch.tensor(0.5)), nn.Dropout(rate)

    def model(self, x=None):
        with rows(x):
            loc = self.dropout(self.t.expand(1 if x is None else len(x)))
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def test_validation_in_batches_counts_every_row_once():
    """Latents of a row, and a last batch of 10 rows that are unlike the others."""
    x = torch.cat((torch.linspace(-1.0, 1.0, 90), torch.linspace(4.0, 5.0, 10)))
    run = fit(Exact(), {"x": X.flatten()}, valid={"x": x}, steps=1, lr=1e-9, batch_size=30, objective="sampled")
    assert run.rows[-1]["valid_elbo"] == pytest.approx(dist.Normal(0.0, 2**0.5).log_prob(x).sum().item(), rel=1e-5)


def test_the_standard_error_of_validation_is_that_over_its_batches():
    x = torch.randn(120, generator=torch.Generator().manual_seed(1))
    run = fit(Exact(), {"x": X.flatten()}, valid={"x": x}, steps=1, lr=1e-9, batch_size=30, objective="sampled")
    means = dist.Normal(0.0, 2**0.5).log_prob(x).reshape(4, 30).mean(1).numpy()
    assert run.rows[-1]["valid_elbo_se"] == pytest.approx(120 * means.std(ddof=1) / 2, rel=1e-3)


def test_validation_is_of_the_averaged_parameters():
    x = torch.randn(50, generator=torch.Generator().manual_seed(1))
    how = {"steps": 20, "lr": 0.1, "log_every": 20}
    run = fit(Location(), {"x": X[:, 0] + 3}, valid={"x": x}, ema=0.9, **how)
    kept, raw = run.program.t.detach(), fit(Location(), {"x": X[:, 0] + 3}, **how).program.t
    assert abs(kept - raw) > 0.1
    assert run.rows[-1]["valid_elbo"] == pytest.approx(dist.Normal(kept, 1.0).log_prob(x).sum().item(), rel=1e-5)


@pytest.mark.parametrize("engine", ["eager", "trace"])
def test_validation_is_in_eval_mode_and_training_is_not(engine):
    """A dropout of half the rows is on in every step, and off in every evaluation between them."""
    x, valid = torch.full((2000,), 0.5), {"x": torch.linspace(0.0, 3.0, 50)}
    how = {"steps": 4, "lr": 1e-9, "log_every": 1, "engine": engine}
    run = fit(Location(0.5), {"x": x}, valid=valid, **how)
    exact = dist.Normal(0.5, 1.0).log_prob(valid["x"]).sum().item()
    assert run.metrics["valid_elbo"] == pytest.approx(4 * [exact], rel=1e-5)
    # dropout makes the location 0 or 2 t = 1: off by 0.5 in every row
    assert run.metrics["elbo"] == pytest.approx(4 * [2000 * dist.Normal(0.5, 1.0).log_prob(torch.tensor(0.0)).item()])


@pytest.mark.parametrize("steps", [1, 2, 4, 6])
def test_the_weight_of_the_kl_rises_step_by_step(steps):
    """The loss is the weighted KL, m² / 2, over N = 10 rows, so that SGD takes m to m (1 - lr w / N): w = ¼ ... 1."""

    class OnlyKL(Program):
        def __init__(self):
            super().__init__()
            self.m = nn.Parameter(torch.tensor(2.0))

        def model(self, x=None):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            with rows(x):
                pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

        def guide(self, x):
            pyro.sample("z", dist.Normal(self.m, 1.0))

    run = fit(OnlyKL(), {"x": torch.zeros(10)}, steps=steps, lr=1.0, optimizer="SGD", kl_warmup=4)
    weights = [0.25, 0.5, 0.75, 1.0, 1.0, 1.0][:steps]
    assert run.program.m.item() == pytest.approx(2.0 * np.prod([1 - w / 10 for w in weights]), rel=1e-5)


@pytest.mark.parametrize("optimizer", ["Adam", "SGD(momentum=0.9)", "RMSprop", "Adagrad", "NAdam", "LBFGS(max_iter=5)"])
def test_optimizers_of_torch(optimizer):
    run = fit(Small(), {"x": X}, steps=25, lr=0.02, optimizer=optimizer)
    assert run.metrics["elbo"][-1] > run.metrics["elbo"][0]


class Counts(Program):
    """y ~ Poisson(rate), the rate learned: log p is a sum of terms of size y log y that cancel."""

    def __init__(self):
        super().__init__()
        self.log_rate = nn.Parameter(torch.tensor(13.8))

    def model(self, y=None):
        with rows(y):
            pyro.sample("y", dist.Poisson(self.log_rate.exp()), obs=y)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.float64])
def test_counts_of_a_million_are_computed_in_float64(dtype, caplog):
    y = torch.tensor([1_000_003, 998_751, 1_001_212]).to(dtype)
    with caplog.at_level(logging.INFO, "ppgen"):
        run = fit(Counts(), {"y": y}, steps=0)
    said = [r.message for r in caplog.records if "float64" in r.message]
    assert len(said) == 1 and "'y' has whole numbers of up to 1e+06" in said[0]
    rate = run.program.log_rate.exp().item()
    assert loglik(run, {"y": y}).best.values == pytest.approx(stats.poisson(rate).logpmf(y.numpy()), abs=1e-6)
    assert abs(loglik(fit(Counts(), {"y": y}, steps=0, precision="32-true"), {"y": y}).best.values - stats.poisson(
        np.exp(np.float32(13.8))).logpmf(y.numpy())).max() > 0.01  # fmt: skip
    assert fit(Counts(), {"y": y // 100}, steps=0).config["fit"]["precision"] == "32-true"


def test_precision_is_one_dtype_everywhere(caplog):
    run = fit(Small(), {"x": X.double()}, steps=3, precision="64-true")
    assert all(p.dtype == torch.float64 for p in run.program.parameters())
    assert torch.get_default_dtype() == torch.float32
    with caplog.at_level("INFO", logger="ppgen"):
        run = fit(Small(), {"x": X.double()}, steps=3)
    assert all(p.dtype == torch.float32 for p in run.program.parameters())
    assert "float64" in caplog.text and "64-true" in caplog.text
    run = fit(Small(), {"x": X}, steps=3, precision="bf16-mixed", engine="eager")
    assert all(p.dtype == torch.float32 for p in run.program.parameters())


def test_a_fit_that_ends_where_its_loss_is_not_finite_says_so(caplog):
    run = fit(ppca(), {"x": normal(20, 4)}, steps=2, lr=1e29)
    assert run.rows[-1]["bad_steps"] == 1
    assert "the loss of the last 1 of 2 steps is not finite" in caplog.text


def test_bad_steps_are_skipped_and_counted():
    class Sometimes(Program):
        def __init__(self):
            super().__init__()
            self.t = nn.Parameter(torch.tensor(0.0))
            self.register_buffer("count", torch.tensor(0))

        def model(self, x=None):
            bad = torch.where(torch.rand(()) < 0.2, torch.nan, 0.0) if self.training else 0.0
            with rows(x):
                pyro.sample("x", dist.Normal(self.t + bad, 1.0), obs=x)

    run = None
    for seed in range(5):  # the checks run the program too, and may meet a nan there
        try:
            run = fit(Sometimes(), {"x": X[:, 0] + 1}, steps=300, lr=0.05, engine="eager", seed=seed)
            break
        except PpgenError as e:
            assert "nan" in str(e)
    assert run is not None
    assert 20 < run.rows[-1]["bad_steps"] < 120
    assert abs(run.program.t.item() - (X[:, 0] + 1).mean().item()) < 0.05


def test_rows_of_metrics_give_mean_and_standard_error():
    row = _row(Progress(step=4, window=[1.0, 2.0, 3.0, 4.0]), 0.1)
    assert row["elbo"] == 2.5 and row["elbo_se"] == pytest.approx(np.std([1, 2, 3, 4], ddof=1) / 2)


def test_every_row_is_seen_once_an_epoch():
    n, b = 10, 5
    first = torch.cat([batch_index(s, n, b, 0) for s in range(2)])
    second = torch.cat([batch_index(s, n, b, 0) for s in range(2, 4)])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(n))
    assert first.tolist() != second.tolist()


def test_a_folder_with_a_run_is_not_written_over(tmp_path):
    fit(Small(), {"x": X}, steps=1, out=tmp_path / "run")
    with pytest.raises(PpgenError, match="holds a run already"):
        fit(Small(), {"x": X}, steps=1, out=tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(PpgenError, match="could not be made"):
        fit(Small(), {"x": X}, steps=1, out=tmp_path / "file" / "run")


SCRIPT = """
import sys, torch, pyro
import pyro.distributions as dist
from scipy import stats
from torch import nn
from ppgen import Program, rows
from ppgen.inference import fit

torch.set_num_threads(1)

class Mean(Program):
    def __init__(self):
        super().__init__()
        self.t = nn.Parameter(torch.zeros(()))
    def model(self, x=None):
        with rows(x):
            pyro.sample("x", dist.Normal(self.t, 1.0), obs=x)

x = torch.linspace(0.0, 3.0, 64)
fit(Mean(), {"x": x}, steps=30, batch_size=16, lr=0.05, out=sys.argv[1], checkpoint_every=10, engine=sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_under_torchrun_equal_one(tmp_path, engine: str):
    (tmp_path / "script.py").write_text(SCRIPT)
    script = str(tmp_path / "script.py")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29517"]
    subprocess.run([sys.executable, script, str(tmp_path / "one"), "eager"], check=True, timeout=120)
    said = subprocess.run(
        [*launch, script, str(tmp_path / "two"), engine], check=True, timeout=180, capture_output=True, text=True
    )
    assert "eagerly" not in said.stderr and "steps run as" not in said.stderr
    a, b = (read_tree(tmp_path / n / "parameters.safetensors")["t"] for n in ("one", "two"))
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("own", [True, False])
def test_the_model_runs_three_times_before_the_first_step(own):
    """Once for its terms (and an autoguide's prototype), once with the guide, once on a row more."""
    runs = []

    class Counted(GuidedNormalMean if own else NormalMean):
        def model(self, x=None):
            runs.append(0)
            return super().model(x)

    fit(Counted(), {"x": X[:, 0]}, steps=0)
    assert len(runs) <= 3


def test_a_parameter_that_appears_late_is_trained_and_resumed(tmp_path):
    """A guide with a parameter a row, of which a sequential plate shows a few at each step."""

    def model(x):
        for i in pyro.plate("data", 40, subsample_size=2):
            z = pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))
            pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=x[i])

    def guide(x):
        for i in pyro.plate("data", 40, subsample_size=2):
            pyro.sample(f"z_{i}", dist.Normal(pyro.param(f"loc_{i}", torch.zeros(())), 1.0))

    def program() -> Program:
        return Program.from_pair(model, guide)

    data = {"x": torch.linspace(-3.0, 3.0, 40)}
    whole = fit(program(), data, steps=12, lr=0.1, ema=0.9)
    assert sum(float(p.detach().abs()) > 0 for p in whole.program.parameters()) > 4
    fit(program(), data, steps=6, lr=0.1, ema=0.9, out=tmp_path / "run")
    went_on = resume(tmp_path / "run", data, program=program(), steps=12).program.state_dict()
    for name, p in whole.program.state_dict().items():
        assert torch.equal(p, went_on[name]), name


@pytest.mark.parametrize(
    ("latent", "guide"), [(True, None), (True, "AutoDiagonalNormal"), (True, "flow"), (False, None)]
)
def test_a_column_may_be_called_context(latent, guide):
    """Pyro's handlers take keywords of their own: a model(context, fn) without a guide ended in a TypeError."""

    def model(context, fn, x=None):
        b = pyro.sample("b", dist.Normal(0.0, 1.0)) if latent else pyro.param("b", torch.zeros(()))
        with rows(context):
            pyro.sample("x", dist.Normal(b * context + fn, 1.0), obs=x)

    c = torch.tensor([1.0, 2.0, 3.0])
    data = {"context": c, "x": 2 * c + 1, "fn": torch.ones(3)}
    how = {"steps": 400, "lr": 0.05, "schedule": "cosine", "engine": "trace", "seed": 0}
    bound = loglik(fit(Program.from_pair(model), data, guide=guide, **how), data, particles=1000).best
    mean, covariance = (0 * c, np.eye(3) + np.outer(c, c)) if latent else (2 * c, np.eye(3))
    exact = stats.multivariate_normal.logpdf(2 * c, mean, covariance)
    assert float(np.sum(bound.values)) == pytest.approx(exact, abs=0.02)  # the guide is the posterior: weights are even


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [("AdamW", True), ("AdamW(weight_decay=0)", False), ("Adam", False), ("SGD(weight_decay=0.1)", True)],
)
def test_weight_decay_of_a_guide_is_said(optimizer, said, caplog):
    """AdamW's default of 0.01 left the guide of a location of 50 at 23 standard deviations from the posterior's mean,
    without a word."""
    y = torch.randn(20) + 50.0

    def model(y):
        m = pyro.sample("m", dist.Normal(0.0, 100.0))
        with rows(y):
            pyro.sample("y", dist.Normal(m, 1.0), obs=y)

    fit(Program.from_pair(model), {"y": y}, steps=1, lr=0.01, optimizer=optimizer)
    assert ("pulls the guide's means and scales to 0" in caplog.text) == said
    caplog.clear()
    fit(VAE(3, latent=1, hidden=(4,)), {"x": (torch.rand(20, 3) > 0.5).float()}, steps=1, lr=0.01, optimizer=optimizer)
    assert "pulls" not in caplog.text


def test_starts_that_do_nothing_are_said(caplog):
    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with rows(x):
            pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    def guide(x):
        pyro.sample("m", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    data, two = {"x": torch.ones(4)}, {"starts": 2, "steps": 1}
    used = [(model, {"guide": "AutoNormal"}), (model, {}), (model, {"guide": "bam"})]
    unused = [((model, guide), {}), (model, {"guide": "AutoDelta"}), (model, {"guide": "AutoNormal", "batch_size": 2})]
    for cases, said in ((used, False), (unused, True)):
        for program, how in cases:
            caplog.clear()
            pair = program if isinstance(program, tuple) else (program,)
            fit(Program.from_pair(*pair), data, **two, **how)
            assert ("starts=2 did nothing" in caplog.text) == said, how


def test_numpys_numbers_are_numbers(tmp_path):
    """`for seed in np.arange(3)`: they were refused as no whole numbers, or failed by their type."""
    x, own = {"x": torch.linspace(-1.0, 2.0, 20)}, {"guide": "AutoNormal", "starts": 0, "log_every": 1}
    whole = fit(NormalMean(), x, steps=5, lr=0.25, seed=2, **own)
    fit(NormalMean(), x, steps=np.int64(3), lr=np.float32(0.25), seed=np.int64(2), out=tmp_path / "run", **own)
    resumed = resume(tmp_path / "run", x, program=NormalMean(), steps=np.int64(5))
    assert [r["elbo"] for r in resumed.rows] == [r["elbo"] for r in whole.rows]
    assert sample(whole, np.int64(4), given=x, seed=0)["m"].shape == (4,)
    tree = mcmc(NormalMean(), x, chains=np.int64(4), draws=np.int64(20), warmup=np.int64(50), seed=np.int64(1))
    assert tree["posterior"]["m"].shape == (4, 20)
