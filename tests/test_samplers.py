"""Samplers on Gaussian data, where every answer is known, and beside diffusers' schedulers."""

import math
from functools import partial
from unittest import mock

import pytest
import torch
from known import KnownChain, draws_agree, normal

from ppgen import PpgenError
from ppgen.chains.schedules import SCHEDULES
from ppgen.inference.diffusion.samplers import (
    BLOCK,
    SAMPLERS,
    _usual,
    ddim,
    deis,
    dpmpp,
    dpmpp_sde,
    heun,
    sample_diffusion,
    unipc,
)
from ppgen.inference.diffusion.variance_error import variance_error
from ppgen.models import DDPM, EDM, VDM, Diffusion, FlowMatching

STEPS = {"ancestral": 400, "ddim": 400, "heun": 60, "dpmpp": 100, "dpmpp_sde": 150, "unipc": 60, "deis": 60, "ode": 1}


def moments_agree(x, known, name=""):
    whitened = torch.linalg.solve_triangular(known.factor, (x - known.mean).T, upper=False).T
    draws_agree(whitened, 0.0, 1.0, name)
    draws_agree(whitened[:, 0] * whitened[:, 1], 0.0, 1.0, name)


@pytest.mark.parametrize("process", ["vp", "ve", "ot"])
@pytest.mark.parametrize("sampler", [s for s in SAMPLERS if s != "consistency"])
def test_it_draws_from_the_gaussian(sampler, process):
    known = KnownChain(process=process)
    x = sample_diffusion(
        known, 10_000, sampler, STEPS[sampler] // (4 if process != "vp" and STEPS[sampler] > 300 else 1), seed=1
    )
    if process == "vp" or STEPS[sampler] <= 300:
        moments_agree(x, known, sampler)
    else:  # coarse: the first-order samplers by their mean only
        assert ((x.mean(0) - known.mean).abs() < 0.03).all()


@pytest.mark.parametrize("how", [{"eta": 1.0}, {"eta": 0.5}])
def test_ddim_with_noise(how):
    known = KnownChain()
    moments_agree(sample_diffusion(known, 10_000, "ddim", 400, seed=1, **how), known)


def test_heun_with_churn():
    known = KnownChain()
    moments_agree(sample_diffusion(known, 10_000, "heun", 100, seed=1, churn=20.0, churn_noise=1.0), known)


def test_ddim_of_eta_one_is_ancestral():
    known = KnownChain(steps=5)
    z = known.base().expand([4]).sample()
    for s, t in known.grid():
        mean = known.reverse(z, s, t).base_dist
        torch.manual_seed(0)
        state = z.clone()
        known.sampling_grid = lambda steps, s=s, t=t: [(s, t)]
        found = ddim(known, 1, state, eta=1.0)
        torch.manual_seed(0)
        assert torch.allclose(found, mean.loc + mean.scale * torch.randn_like(z))
        del known.sampling_grid


def walked(sampler, known, steps, z, **how):
    """The states of a sampler, (steps + 1) of them, and the steps (s, t) between."""
    states = [z]
    sampler(known, steps, z, watch=lambda _, state: states.append(state), **how)
    return [s.detach() for s in states], known.sampling_grid(steps)


def test_each_ancestral_step_is_a_draw_of_its_conditional():
    """What is left of a step when its mean is taken off, over its sd, is N(0, 1): told to 1.3% of its variance."""
    known = KnownChain(low=-4.0, high=4.0)
    torch.manual_seed(0)
    states, grid = walked(SAMPLERS["ancestral"], known, 3, known.base().expand([100_000]).sample())
    for z, below, (s, t) in zip(states[:-1], states[1:], grid, strict=True):
        p = known.reverse(z, s, t).base_dist
        left = ((below - p.loc) / p.scale).detach()
        draws_agree(left.flatten(), 0.0, 1.0, f"from {t:.2f} to {s:.2f}")
        draws_agree((left * z).flatten(), 0.0, (z**2).mean())  # the noise is fresh


@pytest.mark.parametrize("steps", [4, 15])
def test_dpmpp_sde_is_its_published_update(steps):
    """SDE-DPM-Solver++(2M), step by step, at unequal steps of λ, its noise held; few steps end by one of order 1."""
    known, z = KnownChain(low=-6.0, high=5.0, steps=steps), normal(6, 2).double()  # the steps of its own
    torch.manual_seed(2)
    states, grid = walked(dpmpp_sde, known, steps, z)
    torch.manual_seed(2)
    noise = [torch.randn_like(z) for _ in range(steps)]
    lengths = [float(known.gamma(t) - known.gamma(s)) / 2 for s, t in grid]
    assert max(lengths) > 1.5 * min(lengths)
    guesses = [known.denoise(state, t).detach() for state, (_, t) in zip(states, grid, strict=False)]
    for i, ((s, t), h) in enumerate(zip(grid, lengths, strict=True)):
        (_, alpha, sigma), (_, _, sigma_t) = known.coefficients(s), known.coefficients(t)
        d = guesses[i]
        if i and not (steps < 15 and i == steps - 1):
            half = h / (2 * lengths[i - 1])
            d = (1 + half) * guesses[i] - half * guesses[i - 1]
        share = 1 - math.exp(-2 * h)
        mean = sigma / sigma_t * math.exp(-h) * states[i] + alpha * share * d
        torch.testing.assert_close(states[i + 1], mean + sigma * share**0.5 * noise[i])


def test_every_sampler_starts_from_the_base():
    """100 000 draws: 4 standard errors of their variance are 1.3% of it."""
    known, states = KnownChain(low=-4.0, high=2.0), []
    sample_diffusion(known, 100_000, "ddim", 1, seed=0, watch=lambda t, z: states.append((t, z)))
    assert states[0][0] == 1.0
    _, alpha, sigma = known.coefficients(1.0)
    draws_agree(states[0][1].flatten(), 0.0, float(alpha**2 + sigma**2))


def test_orders_of_convergence():
    """Against the ODE's own map: halving the step divides the error by 2 or by 4."""
    known = KnownChain(low=-4.0, high=4.0)
    z = known.base().expand([200]).sample()
    exact = SAMPLERS["ode"](known, 1, z, tolerance=1e-9)
    for sampler, order in ((ddim, 1), (heun, 2), (dpmpp, 2), (unipc, 3)):
        off = [float((sampler(known, n, z) - exact).abs().max().detach()) for n in (80, 160)]
        assert math.log2(off[0] / off[1]) == pytest.approx(order, abs=0.25), (sampler.__name__, off)


@pytest.mark.parametrize("order", [1, 3])
def test_unipc_of_other_orders(order):
    """p + 1; the first step, which has one state to begin with, is in so much noise that it does not count."""
    known = KnownChain(low=-4.0, high=4.0)
    z = known.base().expand([50]).sample()
    exact = SAMPLERS["ode"](known, 1, z, tolerance=1e-9)
    off = [float((unipc(known, n, z, order=order) - exact).abs().max().detach()) for n in (80, 160)]
    assert math.log2(off[0] / off[1]) == pytest.approx(order + 1, abs=0.3), off


def gaussian_flow(known, z, t, s):
    """The ODE's own map from t to s: along each eigenvector of C the state keeps its place in units of its sd."""
    values, vectors = torch.linalg.eigh(known.data.covariance_matrix)
    (_, alpha_s, sigma_s), (_, alpha, sigma) = known.coefficients(s), known.coefficients(t)
    ratio = ((alpha_s**2 * values + sigma_s**2) / (alpha**2 * values + sigma**2)).sqrt()
    return alpha_s * known.mean + ((z - alpha * known.mean) @ vectors * ratio) @ vectors.T


@torch.no_grad()
@pytest.mark.parametrize("process", ["vp", "ve"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_converges_at_its_order(order, process):
    """Against the map in closed form, by the slope of log error on log steps."""
    known = KnownChain(low=-4.0, high=4.0, schedule="linear", process=process)
    z = known.base().expand([50]).sample()
    steps = torch.tensor([20.0, 40, 80])
    off = [(deis(known, int(n), z, order=order) - gaussian_flow(known, z, 1.0, 0.0)).abs().max() for n in steps]
    x, y = steps.log() - steps.log().mean(), torch.stack(off).log()
    assert -float((x * y).sum() / (x**2).sum()) == pytest.approx(order, abs=0.15)


@torch.no_grad()
def test_deis_of_order_one_is_ddim():
    known = KnownChain(low=-6.0, high=5.0)
    z = known.base().expand([5]).sample()
    torch.testing.assert_close(deis(known, 7, z, order=1), ddim(known, 7, z), rtol=1e-11, atol=1e-11)
    with pytest.raises(PpgenError, match="order is 4; expected 1, 2 or 3"):
        deis(known, 7, z, order=4)


@torch.no_grad()
def test_deis_is_exact_where_the_noise_is_a_polynomial_in_time():
    """ε̂ = 1 + t - 2 t², so that the ODE is an integral of it over σ / α; z stays in the units of z / α."""
    known = KnownChain(low=-4.0, high=4.0, schedule="linear")

    def denoise(z, t):
        _, alpha, sigma = known.coefficients(t)
        return (z - sigma * (1 + t - 2 * t**2)) / alpha

    known.denoise = denoise
    z = normal(3, 2).double()
    states, grid = walked(deis, known, 6, z, order=3)
    (s, _), (_, t) = grid[-1], grid[2]  # from the third step on it has three states
    times = torch.linspace(s, t, 20_001).double()
    level, noise = (known.gamma(times)[:, 0] / 2).exp(), 1 + times - 2 * times**2
    change = -((noise[1:] + noise[:-1]) / 2 * level.diff()).sum()
    (_, alpha_s, _), (_, alpha, _) = known.coefficients(s), known.coefficients(t)
    torch.testing.assert_close(states[-1], alpha_s * (states[2] / alpha + change), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("steps", [5, 16])
def test_dpmpp_is_its_published_update(steps):
    """DPM-Solver++(2M), Lu et al. 2022, algorithm 2, at steps of λ that are unequal; the last of few is first order."""
    known, states = KnownChain(low=-6.0, high=6.0, steps=steps), []  # the steps of its own
    z = known.base().expand([4]).sample()
    dpmpp(known, steps, z, watch=lambda time, state: states.append(state))
    times = torch.linspace(1, 0, steps + 1, dtype=torch.double)
    gamma, alpha, sigma = known.coefficients(times)
    lam = -gamma / 2
    h = lam[1:] - lam[:-1]
    assert ((h[1:] / h[:-1] - 1).abs() > 0.05).any()
    guesses = [known.denoise(state, t) for state, t in zip([z, *states], times[:-1], strict=False)]
    before = [z, *states]
    for i in range(steps):
        d = guesses[i]
        if i and not (steps < 15 and i == steps - 1):
            r = h[i - 1] / h[i]
            d = (1 + 1 / (2 * r)) * guesses[i] - guesses[i - 1] / (2 * r)
        exact = sigma[i + 1] / sigma[i] * before[i] - alpha[i + 1] * ((-h[i]).exp() - 1) * d
        assert torch.allclose(states[i], exact, rtol=1e-9), i


def test_times_of_noise_levels():
    known, gamma = KnownChain(), torch.tensor([1.7, 100.0, -100.0]).double()
    torch.testing.assert_close(known.gamma(known.times_of(gamma))[:, 0], torch.tensor([1.7, 8.0, -10.0]).double())


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_steps_are_even_in_log_snr_whatever_the_schedule(schedule):
    """At steps even in time DDPM's schedule had dpmpp_sde draw 1.9 times the variance along a narrow axis."""
    known = KnownChain(schedule=schedule, low=-9.0, high=9.0)
    grid = known.sampling_grid(12)
    assert grid[0][1] == 1.0 and grid[-1][0] == 0.0 and all(a[0] == b[1] for a, b in zip(grid, grid[1:], strict=False))
    lengths = [float((known.gamma(t) - known.gamma(s)).detach()) for s, t in grid]
    assert lengths == pytest.approx([1.5] * 12, rel=1e-5)
    assert known.sampling_grid(1000) == known.grid()  # an explicit chain has steps of its own
    known.limit = True
    assert known.sampling_grid(1000) != known.grid() or schedule == "loglinear"


class Diagonal(KnownChain):
    """Independent normals of many scales, the network exact, in place of a model of their schedule and process."""

    def __init__(self, model, scales):
        super().__init__((0.0,) * len(scales), torch.diag(torch.tensor(scales) * model.data_scale).tolist())
        self.schedule, self.process, self.data_scale = model.schedule, model.process, model.data_scale
        self.limit = model.limit


@torch.no_grad()
@pytest.mark.parametrize("features", [2, 100])
@pytest.mark.parametrize(
    "model",
    [partial(Diffusion, schedule=s) for s in ("loglinear", "cosine", "linear", "sigmoid", "edm", "ot", "learned")]
    + [partial(Diffusion, steps=0), DDPM, EDM, VDM, FlowMatching, partial(FlowMatching, coupling="ot")],
)
def test_the_usual_sampler_leaves_the_variance_of_normal_data(model, features):
    """Of scales from 0.1 to 3, to 2%: along each axis draws are linear in z_1 and in the noise of each step."""
    model = model(features, hidden=(4,)).double()
    known, scales = Diagonal(model, [0.1, 0.3, 1.0, 3.0]), torch.tensor([0.1, 0.3, 1.0, 3.0]).double()
    sampler, steps = _usual(model)
    z = torch.zeros(steps + 1, 4).double()
    _, alpha, sigma = known.coefficients(1.0)
    z[0] = (alpha**2 * scales**2 * model.data_scale**2 + sigma**2).sqrt()
    rows = iter(torch.eye(steps + 1).double()[1:])
    with mock.patch.object(torch, "randn_like", lambda z: next(rows)[:, None].expand_as(z)):
        z = SAMPLERS[sampler](known, steps, z)
    _, alpha, sigma = known.coefficients(0.0)
    share = (z**2).sum(0) / (alpha**2 * scales**2 * model.data_scale**2 + sigma**2)
    assert ((share - 1).abs() < 0.02).all(), (sampler, steps, share)


def test_the_error_of_the_variance_is_that_of_the_steps():
    """Of `ancestral` by the recursion of its mean and variance; of `dpmpp_sde` by 400 000 draws, to 0.9%."""
    model = Diffusion(3, hidden=(4,), schedule="cosine").double()
    variance, known = torch.ones(1).double(), Diagonal(model, [1.0])
    for s, t in known.sampling_grid(40):
        (gamma_s, alpha_s, sigma_s), (gamma, alpha, sigma) = known.coefficients(s), known.coefficients(t)
        c = 1 - (gamma_s - gamma).exp()
        slope = alpha_s * ((1 - c) / alpha + c * alpha / (alpha**2 + sigma**2))
        variance = slope**2 * variance + c * sigma_s**2
    off = variance_error(model, SAMPLERS["ancestral"], 40)
    assert off == pytest.approx(float(variance) - 1) and off < -0.1
    z = sample_diffusion(Diagonal(model, [1.0]), 400_000, "dpmpp_sde", 12, seed=0, mean=True)
    sd = 2**0.5 / 400_000**0.5
    assert variance_error(model, SAMPLERS["dpmpp_sde"], 12) == pytest.approx(float(z.var()) - 1, abs=4 * sd)


def test_steps_that_change_the_variance_are_said(caplog):
    model = Diffusion(2, hidden=(4,), steps=0)
    sample_diffusion(model, 2, "ddim", 20)
    assert "20 steps of ddim draw a variance that is 18% too small where the data are normal" in caplog.text
    assert "take steps=160, or leave sampler and steps" in caplog.text
    caplog.clear()
    sample_diffusion(model, 2, "heun", 15)
    assert "too large" in caplog.text
    caplog.clear()
    sample_diffusion(model, 2)
    for sampler, steps in (("dpmpp", 20), ("ddim", 160), ("dpmpp_sde", 50), ("unipc", 20), ("ode", 1)):
        sample_diffusion(model, 2, sampler, steps)
    sample_diffusion(Diffusion(2, hidden=(4,), steps=10), 2, "ancestral", 10)  # the model itself
    assert not caplog.records


def test_draws_are_reported_and_watched():
    seen, states = [], []
    n = 2 * BLOCK // 2 + 5  # three blocks of rows
    x = sample_diffusion(
        KnownChain(), n, "ddim", 7, seed=0, report=lambda i, n: seen.append((i, n)), watch=lambda t, z: states.append(t)
    )
    assert x.shape == (n, 2) and seen[-1] == (21, 21) and len(seen) == 21
    gamma = KnownChain().gamma(torch.tensor(states, dtype=torch.double))[:, 0]
    torch.testing.assert_close(gamma, torch.linspace(8, -10, 8).double())


def test_guidance():
    torch.manual_seed(0)
    model = Diffusion(2, hidden=(8,), classes=3, steps=10)
    torch.nn.init.normal_(model.net.last.weight)
    torch.nn.init.normal_(model.net.time.label.weight)
    z, y = normal(4, 2), torch.tensor([0, 1, 2, 0])
    with_label, without = model.denoise(z, 0.5, y=y), model.denoise(z, 0.5, y=torch.tensor(3))
    assert not torch.allclose(with_label, without)
    assert torch.allclose(model.denoise(z, 0.5, y=y, guidance=1.0), with_label, atol=1e-6)
    assert torch.allclose(model.denoise(z, 0.5, y=y, guidance=3.0), without + 3 * (with_label - without), atol=1e-5)
    x = sample_diffusion(model, 4, "dpmpp", 3, given={"y": y}, guidance=2.0, seed=0)
    assert x.shape == (4, 2) and not torch.allclose(x, sample_diffusion(model, 4, "dpmpp", 3, given={"y": y}, seed=0))
    with pytest.raises(PpgenError, match="with and without their label"):
        sample_diffusion(Diffusion(2, hidden=(8,)), 4, "ddim", 3, guidance=2.0)
    with pytest.raises(PpgenError, match="towards a label, and got none"):
        sample_diffusion(model, 4, "ddim", 3, guidance=2.0)


def test_the_usual_sampler():
    few, many = Diffusion(2, hidden=(4,)), Diffusion(64, hidden=(4,))
    assert _usual(few) == ("dpmpp_sde", 100) and _usual(many) == ("dpmpp", 50)
    assert _usual(few, steps=20) == ("dpmpp", 20) and _usual(few, "heun") == ("heun", 50)
    assert _usual(many, "ancestral") == ("ancestral", 1000) and _usual(many, "ancestral", 7) == ("ancestral", 7)
    assert torch.equal(sample_diffusion(few, 3, seed=0), sample_diffusion(few, 3, "dpmpp_sde", 100, seed=0))
    short = Diffusion(2, hidden=(4,), steps=20)  # its network knows 20 times
    assert _usual(short) == ("ancestral", 20) and _usual(short, steps=30) == ("dpmpp", 30)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"sampler": "dpm++"}, "no sampler 'dpm\\+\\+'.*dpmpp"),
        ({"steps": 0}, "steps is 0"),
        ({"given": {"y": torch.zeros(3)}}, "3 rows for n=2"),
        ({"sampler": "ddim", "etta": 1.0}, "'ddim' has no option 'etta' .did you mean 'eta'"),
        ({"sampler": "ode", "churn": 3.0}, "'ode' has no option 'churn'; its options are tolerance"),
        ({"sampler": "ancestral", "y": 1}, "'ancestral' has no option 'y'; its options are none"),
        ({"sampler": "ddim", "eta": -1.0}, "eta is -1.0; expected at least 0"),
        ({"sampler": "ddim", "eta": 2.0, "steps": 3}, "cannot have the noise of eta=2.0"),
        ({"sampler": "heun", "churn": -5.0}, "churn is -5.0"),
        ({"sampler": "ode", "tolerance": 0.0}, "tolerance is 0.0; expected above 0"),
    ],
)
def test_errors(how, message):
    with pytest.raises(PpgenError, match=message):
        sample_diffusion(Diffusion(2, hidden=(8,), classes=2), 2, **how)


def test_programs_that_are_no_chain():
    from known import Gaussian

    with pytest.raises(PpgenError, match="Gaussian is none"):
        sample_diffusion(Gaussian(), 2)


# -- beside diffusers ------------------------------------------------------------------------------


class Table(torch.nn.Module):
    """A schedule that passes through given values of γ at t = 0, 1/n, ..., 1."""

    def __init__(self, gamma):
        super().__init__()
        self.register_buffer("gamma", gamma)

    def forward(self, t):
        return self.gamma[(t * (len(self.gamma) - 1)).round().long()]


def theirs(cls, steps, model, z, generator=None, **how):
    """Their scheduler run on the same x̂; the states, from z on, and γ at their times with the end that they take."""
    scheduler = cls(beta_schedule="linear", prediction_type="sample", **how)
    scheduler.set_timesteps(steps)
    betas = torch.linspace(0.0001, 0.02, 1000)
    kept = (1 - betas).cumprod(0).double()
    for t in scheduler.timesteps:
        a = kept[int(t)].sqrt()
        x = model(z, a, (1 - kept[int(t)]).sqrt())
        more = {"generator": generator} if generator is not None else {}
        z = scheduler.step(x, t, z, **more).prev_sample
    gamma = torch.log1p(-kept) - kept.log()
    return z, gamma[scheduler.timesteps.long()].flip(0), gamma


def ours(known, gamma):
    known.schedule, known.steps = Table(gamma), len(gamma) - 1
    return known


def exact(known):
    return lambda z, a, s: (
        known.mean
        + (z / a - known.mean)
        @ torch.linalg.solve(
            known.data.covariance_matrix + (s / a) ** 2 * torch.eye(2).double(), known.data.covariance_matrix
        )
    )


@pytest.mark.slow
@pytest.mark.parametrize("steps", [10, 20, 50])
def test_ddim_is_theirs(steps):
    diffusers = pytest.importorskip("diffusers")
    known, z = KnownChain(), normal(5, 2).double()
    found, gamma, table = theirs(
        diffusers.DDIMScheduler, steps, exact(known), z, clip_sample=False, set_alpha_to_one=False
    )
    whole = torch.cat([table[:1], gamma])
    assert torch.allclose(ddim(ours(known, whole), steps, z).detach(), found, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [10, 20, 50])
@pytest.mark.parametrize("kind", ["dpmsolver++", "sde-dpmsolver++"])
def test_dpm_solver_is_theirs(kind, steps):
    diffusers = pytest.importorskip("diffusers")
    known, z = KnownChain(), normal(5, 2).double()
    generator = torch.Generator().manual_seed(3)
    how = {"algorithm_type": kind, "final_sigmas_type": "sigma_min"}
    found, gamma, table = theirs(
        diffusers.DPMSolverMultistepScheduler, steps, exact(known), z, generator if "sde" in kind else None, **how
    )
    whole = torch.cat([table[:1], gamma])
    torch.manual_seed(3)
    sampler = dpmpp_sde if "sde" in kind else dpmpp
    assert torch.allclose(sampler(ours(known, whole), steps, z).detach(), found, atol=1e-4)
