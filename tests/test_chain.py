"""The ELBO of a chain: its explicit program is the oracle of every shortcut."""

import math

import pytest
import torch
from known import KnownChain, normal, subsampled
from torch.distributions import kl_divergence

from ppgen.chains.chain_terms import _spread_times, _timed
from ppgen.chains.gaussian_chain import PROCESSES, VARIANCES
from ppgen.chains.schedules import SCHEDULES
from ppgen.inference import fit, loglik
from ppgen.inference.objective import Objective
from ppgen.models import Diffusion, diffusion
from ppgen.structure import inspect

D = 2
PREDICTIONS = [p for p in diffusion.PREDICTIONS if p != "levels"]  # which is for data on a grid: a test of its own
X = normal(4, D, seed=1).double()


def chain(**options) -> Diffusion:
    """A small chain in float64 whose network says something."""
    torch.manual_seed(0)
    program = Diffusion(D, **({"hidden": (6,), "gamma_low": -2.0, "gamma_high": 2.0} | options))
    torch.nn.init.normal_(program.net.last.weight, std=0.2)
    if options.get("schedule") == "learned":
        for p in program.schedule.parameters():
            p.data += 0.1 * torch.randn_like(p)
    return program.double().eval()


def full(program: Diffusion, x: torch.Tensor) -> torch.Tensor:
    """The ELBO of the whole trace, summed over rows: Pyro's sites, KL in closed form."""
    loss, _ = Objective(program, inspect(program, {"x": x}), len(x))({"x": x})
    return -loss * len(x)


def fraction(program: Diffusion, x: torch.Tensor) -> torch.Tensor:
    return subsampled(program, {"x": x}).target.sum()


def estimates(program, how, chunks, rows):
    """(chunks, 1 + projections): the ELBO a row and its gradient, along itself and in random directions."""
    parameters = [p for p in program.parameters() if p.requires_grad]
    directions = torch.randn(6, sum(p.numel() for p in parameters), generator=torch.Generator().manual_seed(5)).double()
    x = (X if program.likelihood_name == "normal" else (X > 0).double()).repeat(rows // len(X), 1)
    found = []
    for _ in range(chunks):
        elbo = how(program, x) / rows
        g = torch.cat([g.flatten() for g in torch.autograd.grad(elbo, parameters)])
        found.append(torch.cat([elbo.detach()[None], directions @ g]))
    return torch.stack(found)


def agree(a: torch.Tensor, b: torch.Tensor, precise: float = 0.0) -> None:
    off = a.mean(0) - b.mean(0)
    se = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
    assert (off.abs() < 4.8 * se + 1e-9).all(), (off / se, a.mean(0), b.mean(0))
    if precise:
        assert float(4.8 * se[0]) < precise * abs(float(a[:, 0].mean())), "a bias of this size would pass"


def compare(steps: int, **options) -> None:
    program = chain(steps=steps, **options)
    torch.manual_seed(1)
    agree(estimates(program, full, 30, 5600), estimates(program, fraction, 30, 4000), precise=0.02)


PAIRS = [(s, "velocity") for s in SCHEDULES] + [("cosine", p) for p in PREDICTIONS if p != "velocity"]


FAST = [("learned", "velocity"), ("cosine", "noise"), ("cosine", "edm")]  # the others: test_of_many_steps, slow


@pytest.mark.parametrize(("schedule", "prediction"), FAST)
def test_a_fraction_of_the_trace_is_the_trace(schedule, prediction):
    compare(4, schedule=schedule, prediction=prediction)


@pytest.mark.parametrize(
    ("process", "variance"),
    [
        ("sub-vp", "learned"),
        *(pytest.param(*o, marks=pytest.mark.slow) for o in (("ve", "forward"), ("ot", "posterior"))),
    ],
)
def test_of_any_process_and_variance(process, variance):
    compare(4, process=process, variance=variance)


@pytest.mark.parametrize("likelihood", [pytest.param("bernoulli", marks=pytest.mark.slow), "discrete"])
def test_of_levels(likelihood):
    compare(4, likelihood=likelihood, prediction="levels", levels=5, gamma_low=-1.0)


@pytest.mark.slow
def test_of_twenty_steps():
    compare(20, schedule="linear", variance="learned")


@pytest.mark.slow
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [4, 20])
def test_of_many_steps(steps, schedule, prediction):
    compare(steps, schedule=schedule, prediction=prediction)


@pytest.mark.slow
@pytest.mark.parametrize(("schedule", "prediction"), PAIRS)
def test_of_a_hundred_steps(schedule, prediction):
    compare(100, schedule=schedule, prediction=prediction)


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("process", PROCESSES)
def test_the_cost_is_the_kl(process, variance):
    program = chain(process=process, variance=variance)
    z = normal(4, D, seed=2).double()
    s, t = torch.tensor([0.1, 0.3, 0.0, 0.99]).double(), torch.tensor([0.2, 0.9, 1.0, 1.0]).double()
    kl = kl_divergence(program.posterior(z, X, s, t), program.reverse(z, s, t))
    assert torch.allclose(program.cost(X, z, s, t), kl)


@pytest.mark.parametrize("process", PROCESSES)
def test_the_conditionals_are_one_joint(process):
    """q(z_s | z_t, x) is what q(z_s | x) and z_t = step z_s + noise make of it: by the moments of a joint normal."""
    program = chain(process=process)
    s, t = 0.3, 0.8
    (_, alpha_s, sigma_s), (_, alpha_t, sigma_t) = program.coefficients(s), program.coefficients(t)
    step = alpha_t / alpha_s  # z_t = step z_s + noise of variance σ_t² − step² σ_s²
    joint = torch.stack([sigma_s**2, step * sigma_s**2, step * sigma_s**2, sigma_t**2]).reshape(2, 2)
    z, gain = normal(4, D, seed=2).double(), joint[0, 1] / joint[1, 1]
    q = program.posterior(z, X, s, t)
    torch.testing.assert_close(q.mean, alpha_s * X + gain * (z - alpha_t * X))
    torch.testing.assert_close(q.variance, (joint[0, 0] - gain * joint[0, 1]).expand(4, D))


@pytest.mark.parametrize("variance", VARIANCES)
def test_infinitely_many_steps(variance):
    """T KL -> rate as T grows, the difference like 1/T."""
    program = chain(variance=variance)
    z, t = normal(4, D, seed=2).double(), torch.tensor([0.2, 0.5, 0.7, 0.9]).double()
    rate = program.rate(X, z, t)
    off = [(program.cost(X, z, t - 1 / n, t) * n / rate - 1).abs().max() for n in (1e2, 1e3, 1e4)]
    assert off[2] < 1e-2 and off[1] / off[2] > 7, off


@pytest.mark.parametrize("process", PROCESSES)
def test_the_base_has_the_variance_of_unit_data(process):
    """At log SNR = −2 the data are still an eighth of it."""
    program = chain(process=process)
    ratio = math.exp(2.0)  # σ² / α²
    alpha = {"vp": (1 + ratio) ** -0.5, "ve": 1.0, "ot": 1 / (1 + ratio**0.5)}.get(process)
    if alpha is None:  # sub-vp: 1 − α² = σ = α e^(γ/2)
        alpha = (-(ratio**0.5) + (ratio + 4) ** 0.5) / 2
    base = program.base()
    assert torch.allclose(base.variance, torch.tensor(alpha**2 * (1 + ratio)).double()) and (base.mean == 0).all()


def test_processes_are_one_model():
    """The same data, times and noise: the ELBO of a process is that of the others."""
    of = {p: chain(process=p, steps=7) for p in PROCESSES}
    values = []
    for program in of.values():
        torch.manual_seed(3)
        values.append(subsampled(program, {"x": X}).elbo)
    assert all(torch.allclose(v, values[0]) for v in values)


def test_a_batch_of_a_chain_stands_for_all_rows():
    """At one seed the same rows, once all there are and once a quarter: nats a row are the same, the whole's are four
    times as many."""
    program = chain(steps=5)
    losses, elbos, slopes = [], [], []
    for rows in (len(X), 4 * len(X)):
        torch.manual_seed(3)
        loss, elbo = Objective(program, inspect(program, {"x": X}), rows, objective="subsampled", particles=2)({"x": X})
        losses.append(loss)
        elbos.append(elbo)
        slopes.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(program.net.parameters()))]))
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(slopes[0], slopes[1])
    torch.testing.assert_close(4 * elbos[0], elbos[1])
    torch.manual_seed(3)
    torch.testing.assert_close(-losses[0], subsampled(program, {"x": X}, 2).target.mean())


def test_times_are_spread_evenly_and_uniform():
    torch.manual_seed(0)
    u = _spread_times(3, 5, like=X)
    assert u.shape == (3, 5) and torch.allclose(u.flatten().sort().values.diff(), torch.tensor(1 / 15).double())
    many = torch.stack([_spread_times(3, 5, like=X) for _ in range(2000)]).flatten(1)
    assert (abs(many.mean(0) - 0.5) < 4 * math.sqrt(1 / 12 / 2000)).all()  # each entry's, the first and last as well
    assert (abs(many.var(0) - 1 / 12) < 4 * math.sqrt(1 / 180 / 2000)).all()


@pytest.mark.parametrize("batch_size", [None, 50])
def test_the_figure_of_a_fit_is_that_of_all_rows_at_all_times(batch_size):
    """Rows of two kinds, the first costly at the chain's start and the last at its end."""
    known = KnownChain(steps=20, schedule="loglinear", low=-5.0, high=1.0)
    x = torch.stack([known.mean, known.mean + 3 * known.factor.sum(1)]).repeat_interleave(100, 0)
    how = {"batch_size": batch_size, "lr": 1e-12, "precision": "64-true", "engine": "trace"}
    figures = fit(known, {"x": x}, steps=200, log_every=1, **how).metrics["elbo"]
    exact = loglik(known, {"x": x.repeat(20, 1)}, particles=20).best  # every step of the chain
    se = figures.std() / len(figures) ** 0.5
    assert se < 0.02 * abs(figures.mean())
    assert abs(figures.mean() - len(x) * exact.mean) < 4.5 * math.hypot(se, len(x) * exact.mean_se)


@pytest.mark.parametrize("steps", [0, 7, 100])
def test_times_by_running_loss_have_the_density_that_they_say(steps):
    program = chain(steps=steps, importance=True).train()
    program.history.copy_(torch.linspace(1, 30, 32) ** 2)
    u = (torch.arange(200_000).double() + 0.5) / 200_000
    t, density = _timed(program, u)
    bins = steps or 32
    share = torch.histc(t, bins, 0.0, 1.0) / len(t)
    at = torch.stack([density[(t * bins).long() == i].mean() for i in range(bins)])
    assert torch.allclose(share * bins, at, rtol=1e-2)


def test_times_by_running_loss_leave_the_elbo_as_it_is():
    program = chain(steps=20, importance=True)
    torch.manual_seed(0)
    plain = estimates(program, fraction, 12, 4000)
    program.train()
    weighed = estimates(program, fraction, 12, 4000)
    assert not torch.equal(program.history, torch.ones(32).double())
    agree(plain, weighed)
    x = X.repeat(20_000, 1)
    with torch.no_grad():
        drawn = subsampled(program, {"x": x}).elbo  # what a fit shows
        exact = subsampled(program.eval(), {"x": x}, 20).elbo.mean()
    assert abs(drawn.mean() - exact) < 4.5 * drawn.std() / len(x) ** 0.5 < 0.02 * abs(exact)


def test_a_learned_schedule_lowers_the_variance_of_the_limit():
    """The ends aside, its gradient is that of E cost², half of it, over the mean cost."""
    program = chain(steps=0, schedule="learned")
    shape = [p for n, p in program.schedule.named_parameters() if n not in ("low", "high")]
    x = X.repeat(20_000, 1)

    def second_moment() -> torch.Tensor:
        torch.manual_seed(1)
        t = _spread_times(1, len(x), like=x)
        cost = program.rate(x, program.forward(x, t).rsample(), t)
        return (cost**2).mean() / 2 / cost.detach().mean()

    slope = torch.autograd.grad(second_moment(), shape)
    torch.manual_seed(1)
    ours = torch.autograd.grad(-subsampled(program, {"x": x}).target.mean(), shape)
    for a, b in zip(slope, ours, strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("weighting", ["simple", "min_snr", "edm", "flow"])
@pytest.mark.parametrize("steps", [0, 1000])
def test_reweightings_leave_the_figure_and_change_the_target(weighting, steps):
    program = chain(steps=steps, weighting=weighting, process="ot")
    torch.manual_seed(0)
    drawn = subsampled(program, {"x": X.repeat(500, 1)})
    program.weighting = "elbo"
    torch.manual_seed(0)
    plain = subsampled(program, {"x": X.repeat(500, 1)})
    assert torch.equal(drawn.elbo, plain.elbo) and not torch.allclose(drawn.target, plain.target, rtol=0.01)


@pytest.mark.parametrize("weighting", ["simple", "min_snr", "edm", "flow"])
def test_reweightings_are_the_published_losses(weighting):
    """In the limit, and as the mean over the steps of a finite chain, each at its noisier end."""
    program = chain(steps=0, weighting=weighting, process="ot", schedule="ot")
    z, t = normal(4, D, seed=2).double(), torch.tensor([0.01, 0.5, 0.7, 0.9]).double()
    gamma, alpha, sigma = (c[:, 0] for c in program.coefficients(t))
    guess = program.denoise(z, t)
    error = ((X - guess) ** 2).sum(-1)
    ours = program.rate(X, z, t) * program.weight(t, t)
    noise_error = error * alpha**2 / sigma**2
    if weighting == "simple":
        theirs = noise_error / 2
    elif weighting == "min_snr":
        theirs = (-gamma).exp().clamp(max=5.0) * error / 2
    elif weighting == "flow":
        a, s = alpha[:, None], sigma[:, None]
        v, v_hat = (z - a * X) / s - X, (z - a * guess) / s - guess
        theirs = ((v - v_hat) ** 2).sum(-1) / 2
    else:
        level = (gamma / 2).exp()
        weight = (level**2 + 0.25) / (level * 0.5) ** 2
        density = torch.distributions.Normal(-1.2, 1.2).log_prob(level.log()).exp()
        rate = program.schedule.with_rate(t)[1] / 2  # of log σ
        theirs = weight * density * rate * error / 2
    assert torch.allclose(ours, theirs)
    s = t - 0.01
    assert torch.allclose(100 * program.cost(X, z, s, t) * program.weight(s, t), theirs)
