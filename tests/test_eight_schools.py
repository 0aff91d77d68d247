"""Eight schools: the log joint against scipy, both forms of it, and what a fit should find."""

import numpy as np
import pyro
import pytest
import scipy.stats
import torch
from pyro.poutine import condition, trace

from ppgen.models import EightSchools

Y = [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]
SIGMA = [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]


def columns(dtype=torch.float64):
    return {"sigma": torch.tensor(SIGMA, dtype=dtype), "y": torch.tensor(Y, dtype=dtype)}


def latents(centred: bool, shape=()):
    torch.manual_seed(0)
    draw = {"mu": torch.randn(shape).double() * 5, "tau": torch.rand(shape).double() * 9}
    name = "theta" if centred else "eta"
    return draw | {name: torch.randn(*shape[:-1], 8).double()}


def log_joint(program, z, data):
    return trace(condition(program.model, z)).get_trace(**data).log_prob_sum().item()


@pytest.mark.parametrize("centred", [False, True])
def test_log_joint_against_scipy(centred):
    z = latents(centred)
    mu, tau = z["mu"].item(), z["tau"].item()
    expected = scipy.stats.norm(0, 5).logpdf(mu) + scipy.stats.halfcauchy(scale=5).logpdf(tau)
    if centred:
        theta = z["theta"].numpy()
        expected += scipy.stats.norm(mu, tau).logpdf(theta).sum()
    else:
        theta = mu + tau * z["eta"].numpy()
        expected += scipy.stats.norm(0, 1).logpdf(z["eta"].numpy()).sum()
    expected += scipy.stats.norm(theta, SIGMA).logpdf(Y).sum()
    assert log_joint(EightSchools(centred), z, columns()) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("centred", [False, True])
def test_particles_at_once_equal_one_after_the_other(centred):
    program, z = EightSchools(centred), latents(centred, (5, 1))
    t = trace(condition(program.model, z)).get_trace(**columns())
    t.compute_log_prob()
    sites = [n for n in ("mu", "tau", "theta", "eta", "y") if n in t.nodes and "log_prob" in t.nodes[n]]
    sites = [n for n in sites if not t.nodes[n]["infer"].get("_deterministic")]
    together = sum(t.nodes[n]["log_prob"].sum(-1) for n in sites)
    alone = [log_joint(program, {n: v[i].squeeze() for n, v in z.items()}, columns()) for i in range(5)]
    np.testing.assert_allclose(together.numpy(), alone, rtol=1e-12)


def test_the_two_forms_have_one_prior():
    """theta given mu and tau, as the change of variables of eta: p(theta) = p(eta) / tau^8."""
    z = latents(False)
    theta = z["mu"] + z["tau"] * z["eta"]
    centred = log_joint(EightSchools(True), {"mu": z["mu"], "tau": z["tau"], "theta": theta}, columns())
    free = log_joint(EightSchools(), z, columns())
    assert centred == pytest.approx(free - 8 * z["tau"].log().item(), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_latents_take_the_dtype_of_the_data(dtype):
    t = trace(EightSchools().model).get_trace(**columns(dtype))
    assert {t.nodes[n]["value"].dtype for n in ("mu", "tau", "eta", "theta", "y")} == {dtype}


def test_whole_numbers_serve_as_data():
    whole = {name: value.long() for name, value in columns().items()}
    z = {name: value.float() for name, value in latents(False).items()}
    expected = log_joint(EightSchools(), z, columns(torch.float32))
    assert log_joint(EightSchools(), z, whole) == pytest.approx(expected, rel=1e-6)


def test_names_and_other_numbers_of_schools():
    program = EightSchools()
    assert program.coords == {"school": list("ABCDEFGH")} and program.columns == ("sigma", "y")
    assert not program.has_guide
    t = trace(program.model).get_trace(torch.ones(3))
    assert t.nodes["y"]["value"].shape == (3,) and not t.nodes["y"]["is_observed"]


def quadrature() -> dict[str, float]:
    """Posterior means with theta integrated out: y_j ~ N(mu, tau² + sigma_j²), mu and tau on a grid."""
    mu, tau = np.linspace(-25, 30, 400)[:, None], np.tan(np.linspace(1e-4, 1.5, 800))[None] * 5
    log_p = scipy.stats.norm(0, 5).logpdf(mu) + np.zeros_like(tau)  # even in the angle: the half-Cauchy
    for y, s in zip(Y, SIGMA, strict=True):
        log_p = log_p + scipy.stats.norm(mu, np.hypot(tau, s)).logpdf(y)
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    precision = 1 / tau**2 + 1 / SIGMA[0] ** 2
    theta = (mu / tau**2 + Y[0] / SIGMA[0] ** 2) / precision
    return {"mu": (p * mu).sum(), "mu squared": (p * mu**2).sum(), "theta A": (p * theta).sum()}


@pytest.mark.parametrize("centred", [False, True])
def test_the_posterior_against_quadrature(centred):
    """Draws of the prior, weighted by p(y | theta), have the posterior's means."""
    exact, n = quadrature(), 200_000
    pyro.set_rng_seed(0)
    program, data = EightSchools(centred), columns()
    with torch.no_grad(), pyro.plate("draws", n, dim=-2):
        t = trace(program.model).get_trace(**data)
    t.compute_log_prob()
    w = t.nodes["y"]["log_prob"].sum(-1).softmax(0)
    mu, theta = t.nodes["mu"]["value"][:, 0], t.nodes["theta"]["value"][:, 0]
    for value, expected in ((mu, exact["mu"]), (mu**2, exact["mu squared"]), (theta, exact["theta A"])):
        mean = (w * value).sum()
        se = ((w * (value - mean)) ** 2).sum().sqrt()
        assert (mean - expected).abs() < 4 * se < 0.05 * abs(expected)
