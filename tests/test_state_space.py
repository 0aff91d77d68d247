"""The linear-Gaussian state-space model against its joint normal distribution, written out."""

import math

import pytest
import torch
from known import draws_agree, normal
from torch.distributions import MultivariateNormal

from ppgen import PpgenError
from ppgen.inference import fit, loglik, sample
from ppgen.models import StateSpace

T, K, D = 5, 2, 3


def made() -> StateSpace:
    torch.manual_seed(0)
    program = StateSpace(D, K, T).double()
    for p in program.parameters():
        p.data += 0.3 * torch.randn_like(p)
    return program


@torch.no_grad()
def joint(p: StateSpace, steps: int) -> MultivariateNormal:
    """(z_1 ... z_n, x_1 ... x_n) as one normal: everything is a linear map of independent noises."""
    noise = torch.cat([p.s, p.q.repeat(steps), p.r.repeat(steps)])
    n = len(noise)
    eye = torch.eye(n).double()
    z, shift, states, values, offsets = eye[:K], p.m, [], [], []
    for t in range(steps):
        z, shift = p.A @ z + eye[K + t * K : K + (t + 1) * K], p.A @ shift
        start = K + steps * K + t * D
        states.append((z, shift))
        values.append(p.C @ z + eye[start : start + D])
        offsets.append(p.C @ shift + p.d)
    rows = torch.cat([a for a, _ in states] + values) * noise
    return MultivariateNormal(torch.cat([b for _, b in states] + offsets), rows @ rows.T)


def given(full: MultivariateNormal, at: torch.Tensor, value: torch.Tensor, asked: torch.Tensor):
    """Mean and covariance of the entries `asked`, given those at `at`."""
    c, m = full.covariance_matrix, full.mean
    gain = torch.linalg.solve(c[at][:, at], c[at][:, asked]).T
    return m[asked] + gain @ (value - m[at]), c[asked][:, asked] - gain @ c[at][:, asked]


SEEN = torch.ones(2, T, D).double()
SEEN[0, 1] = 0
SEEN[0, 4, 2] = 0
SEEN[1, 0, 0] = 0


@torch.no_grad()
def test_the_density_with_and_without_gaps():
    program, x, full = made(), normal(2, T, D).double(), joint(made(), T)
    for seen in (None, SEEN):
        data = {"x": x} if seen is None else {"x": x, "seen": seen}
        found = loglik(program, data).best
        assert found.kind == "exact"
        for n in range(2):
            at = T * K + (torch.ones(T * D) if seen is None else seen[n].flatten()).nonzero()[:, 0]
            marginal = MultivariateNormal(full.mean[at], full.covariance_matrix[at][:, at])
            assert found.values[n] == pytest.approx(float(marginal.log_prob(x[n].flatten()[at - T * K])), abs=1e-8)


@torch.no_grad()
def test_smoothing_and_forecasts():
    program, x, full = made(), normal(2, T, D).double(), joint(made(), T + 2)
    smoothed, ahead = program.smooth(x, SEEN), program.forecast(x, 2, SEEN)
    for n in range(2):
        at = SEEN[n].flatten().nonzero()[:, 0]
        value, at = x[n].flatten()[at], (T + 2) * K + at
        for t in range(T):
            mean, cov = given(full, at, value, torch.arange(t * K, (t + 1) * K))
            torch.testing.assert_close(smoothed.mean[n, t], mean)
            torch.testing.assert_close(smoothed.cov[n, t], cov)
        for h in range(2):
            mean, cov = given(full, at, value, (T + 2) * K + torch.arange((T + h) * D, (T + h + 1) * D))
            torch.testing.assert_close(ahead.mean[n, h], mean)
            torch.testing.assert_close(ahead.cov[n, h], cov)


def test_what_is_not_seen_may_be_nan(caplog):
    """`filter`, `smooth` and `forecast` were nan, and of log p(x), which was right, it was said that it is none."""
    program, x = made(), normal(2, T, D).double()
    gaps = torch.where(SEEN > 0, x, torch.nan)
    for f in (program.filter, program.smooth, lambda v, seen: program.forecast(v, 2, seen)):
        for a, b in zip(f(x, SEEN), f(gaps, SEEN), strict=True):
            torch.testing.assert_close(a, b)
    one, other = (loglik(program, {"x": v, "seen": SEEN}).best.values for v in (x, gaps))
    assert one == pytest.approx(other, abs=1e-12) and "none" not in caplog.text


@pytest.mark.parametrize("seen", [False, True])
def test_float32_is_as_exact_as_its_numbers(seen):
    """log p of 50 steps with little noise was off by thirty nats in float32, without a word, and a covariance of the
    smoother was not positive: against a Kalman filter in float64, step by step."""
    torch.manual_seed(1)
    program = StateSpace(D, K, 50)
    with torch.no_grad():
        program.A.copy_(torch.tensor([[0.99, 0.1], [-0.1, 0.99]]))
        program.log_q.fill_(-2.0)
        program.log_r.fill_(-6.0)
        program.log_s.fill_(2.0)
    x = sample(program, 1, seed=0)["x"]
    shown = (torch.rand(x.shape) < 0.7).float() if seen else torch.ones_like(x)
    A, C, d, mean, s, q, r = (v.detach().double() for v in (program.A, program.C, program.d, program.m, program.s,
                                                            program.q, program.r))  # fmt: skip
    cov, exact = (s**2).diag(), 0.0
    for x_t, seen_t in zip(x[0].double(), shown[0] > 0, strict=True):
        mean, cov = A @ mean, A @ cov @ A.T + (q**2).diag()
        c, noise = C[seen_t], (r[seen_t] ** 2).diag()
        if len(c):
            spread, error = c @ cov @ c.T + noise, x_t[seen_t] - d[seen_t] - c @ mean
            exact += float(-0.5 * (error @ torch.linalg.solve(spread, error) + torch.logdet(2 * math.pi * spread)))
            gain = torch.linalg.solve(spread, c @ cov).T
            left = torch.eye(K).double() - gain @ c
            mean, cov = mean + gain @ error, left @ cov @ left.T + gain @ noise @ gain.T  # Joseph's form
    data = {"x": x, "seen": shown} if seen else {"x": x}
    found = loglik(program, data).best
    assert found.values[0] == pytest.approx(exact, abs=0.01)
    filtered, smoothed = (f(x, shown if seen else None) for f in (program.filter, program.smooth))
    torch.testing.assert_close(filtered.mean[0, -1].double(), mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(filtered.cov[0, -1].double(), cov, rtol=1e-3, atol=1e-7)
    assert filtered.mean.dtype == smoothed.cov.dtype == torch.float32
    assert torch.linalg.eigvalsh(smoothed.cov.double()).min() > 0


def test_draws_have_the_moments_of_the_joint():
    program, full = made(), joint(made(), T)
    x = sample(program, 20_000, seed=0)["x"].flatten(1)
    draws_agree(x, full.mean[T * K :], full.variance[T * K :])


@pytest.mark.slow
def test_it_learns_a_rotation():
    """A turning state seen through noise: log p(x) comes close to that of the truth."""
    torch.manual_seed(0)
    truth = StateSpace(2, 2, 12)
    cos, sin = math.cos(0.7), math.sin(0.7)
    with torch.no_grad():
        truth.A.copy_(0.98 * torch.tensor([[cos, -sin], [sin, cos]]))
        truth.log_q.fill_(-2.0)
    x = sample(truth, 60, seed=0)["x"]
    run = fit(StateSpace(2, 2, 12), {"x": x}, steps=150, lr=0.05, schedule="cosine", seed=0)
    assert loglik(run, {"x": x}).best.mean > loglik(truth, {"x": x}).best.mean - 0.3


def test_errors():
    with pytest.raises(PpgenError, match="at least 1 of each"):
        StateSpace(2, 0)
    with pytest.raises(PpgenError, match="series, steps, features"):
        StateSpace.from_data({"x": torch.zeros(3, 2)})
