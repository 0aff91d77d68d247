"""Every gradient estimator x every law, on a conjugate Gaussian model whose ELBO is known in closed form.

A file without a row fails the suite.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from known import KnownChain, few, normal
from torch import nn

from ppgen import PpgenError, Program, rows
from ppgen.check import check
from ppgen.inference import Objective, fit, gradients

X = normal(4).double() + 1.0

# By estimator: its variance beside that of pathwise, away from the posterior and with the posterior as guide.
LAWS = {
    "pathwise": ("the same", "the same"),
    "enumerated": ("the same", "the same"),
    "score": ("more", "more"),
    "sticking": ("some", "none"),
}


class Pair(Program):
    """a ~ N(0, 1), b | a ~ N(a, 1), x_i | b ~ N(b + θ, 1); q(a) = N(l, s), q(b | a) = N(c a + d, t), of the family of
    the posterior."""

    def __init__(self, posterior: bool = False):
        super().__init__()
        n, y = len(X), X - 0.3
        exact = {  # b | a: precision 1 + n; mean of y | a ~ N(a, 1 + 1/n)
            "l": y.mean() / (2 + 1 / n), "log_s": -0.5 * math.log(1 + 1 / (1 + 1 / n)),
            "c": 1 / (1 + n), "d": y.sum() / (1 + n), "log_t": -0.5 * math.log(1 + n),
        }  # fmt: skip
        for name, value in exact.items():
            off = 0.0 if posterior else 0.3
            self.register_parameter(name, nn.Parameter(torch.as_tensor(value).double() + off))
        self.theta = nn.Parameter(torch.tensor(0.3).double())

    def model(self, x=None):
        a = pyro.sample("a", dist.Normal(torch.zeros(()).double(), 1.0))
        b = pyro.sample("b", dist.Normal(a, 1.0))
        with rows(x):
            pyro.sample("x", dist.Normal(b + self.theta, 1.0), obs=x)

    def guide(self, x):
        a = pyro.sample("a", dist.Normal(self.l, self.log_s.exp()))
        pyro.sample("b", dist.Normal(self.c * a + self.d, self.log_t.exp()))

    def elbo(self, x):
        s2, t2 = (2 * self.log_s).exp(), (2 * self.log_t).exp()
        of_a = self.l**2 + s2
        of_b = ((self.c - 1) * self.l + self.d) ** 2 + (self.c - 1) ** 2 * s2 + t2
        of_x = ((x - self.theta - self.c * self.l - self.d) ** 2).sum() + len(x) * (self.c**2 * s2 + t2)
        constant = -0.5 * (2 + len(x)) * math.log(2 * math.pi) + 1 + math.log(2 * math.pi)
        return constant - 0.5 * (of_a + of_b + of_x) + self.log_s + self.log_t


pytestmark = pytest.mark.usefixtures("double")


def estimates(program: Program, gradient: str, objective: str, particles: int, n: int, hide=()) -> torch.Tensor:
    """(n, entries): estimates of the gradient of the ELBO."""
    torch.manual_seed(0)
    program.double().setup({"x": X})
    o = Objective(
        program, check(program, {"x": X}), len(X), objective=objective, gradient=gradient, particles=particles
    )
    parameters = [p for name, p in program.named_parameters() if name not in hide]
    each = [torch.autograd.grad(-len(X) * o({"x": X})[0], parameters) for _ in range(n)]
    return torch.stack([torch.stack(g) for g in each])


def exact(program: Program) -> torch.Tensor:
    return torch.stack(torch.autograd.grad(program.elbo(X), list(program.parameters())))


def test_every_estimator_has_a_row():
    assert set(gradients.names()) == set(LAWS)


@pytest.mark.parametrize("gradient", few(LAWS, "pathwise", "score", "sticking"))
@pytest.mark.parametrize("objective", ["sampled", pytest.param("analytic", marks=pytest.mark.slow)])
def test_its_mean_is_the_closed_form_gradient(gradient, objective):
    """Within 4.5 standard errors, which are less than 2% of each entry."""
    program = Pair()
    found, expected = estimates(program, gradient, objective, 70_000, 120), exact(program)
    error = found.std(0) / len(found) ** 0.5
    assert (4.5 * error < 0.02 * expected.abs()).all(), 4.5 * error / expected.abs()
    assert ((found.mean(0) - expected).abs() < 4.5 * error + 1e-9).all(), (found.mean(0) - expected) / error


@pytest.mark.parametrize("gradient", few(LAWS, "pathwise", "score", "sticking"))
def test_its_variance_beside_pathwise(gradient):
    for posterior, law in zip((False, True), LAWS[gradient], strict=True):
        ours, pathwise = (
            estimates(Pair(posterior), name, "sampled", 2, 100, hide=("theta",)).var(0).sum()
            for name in (gradient, "pathwise")
        )
        assert pathwise > 0.1
        assert {"the same": ours == pathwise, "more": ours > 2 * pathwise, "some": ours > 0, "none": ours < 1e-20}[law]


@pytest.mark.parametrize("gradient", ["score", "sticking"])
def test_of_a_named_guide(gradient):
    """Its draws are auxiliary, and the latents functions of them: the ELBO of a normal beside the posterior of m."""

    class Mean(Program):
        def model(self, x=None):
            m = pyro.sample("m", dist.Normal(torch.zeros(()).double(), 1.0))
            with rows(x):
                pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    program = Mean().double().setup({"x": X}, "AutoNormal(init_scale=0.3)")
    o = Objective(program, check(program, {"x": X}), len(X), objective="sampled", gradient=gradient, particles=2000)
    loc = program.autoguide.locs.m_unconstrained
    torch.manual_seed(0)
    found = torch.stack([torch.autograd.grad(-len(X) * o({"x": X})[0], loc)[0] for _ in range(100)])
    expected = X.sum() - (1 + len(X)) * loc.detach()
    assert abs(found.mean() - expected) < 4.5 * found.std() / 10 < 0.02 * abs(expected)


@pytest.mark.parametrize("gradient", few(LAWS, "pathwise", "score", "sticking"))
def test_a_traced_fit_goes_to_the_posterior(gradient):
    program, best = Pair(), Pair(posterior=True)
    options = {"objective": "sampled", "particles": 20, "schedule": "cosine", "precision": "64-true"}
    run = fit(program, {"x": X}, steps=600, lr=0.03, gradient=gradient, engine="trace", **options)
    assert run.config["fit"]["gradient"] == gradient
    shift = float(program.theta.detach()) - 0.3  # the posterior is that of x − θ
    assert shift == pytest.approx(float(X.mean()) - 0.3, abs=0.2)
    assert float(program.c.detach()) == pytest.approx(float(best.c.detach()), abs=0.1)
    assert float(program.log_t.detach()) == pytest.approx(float(best.log_t.detach()), abs=0.1)


class Discrete(Program):
    """a of the whole data set, b of a row and dependent on it; so is the guide."""

    def __init__(self):
        super().__init__()
        self.q_a, self.q_b = nn.Parameter(normal(2)), nn.Parameter(normal(2, 3))

    def model(self, x=None):
        a = pyro.sample("a", dist.Categorical(torch.tensor([0.3, 0.7])))
        with rows(x):
            b = pyro.sample("b", dist.Categorical(torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])[a]))
            pyro.sample("x", dist.Normal(a - 1.0 * b, 1.0), obs=x)

    def guide(self, x):
        a = pyro.sample("a", dist.Categorical(logits=self.q_a))
        with rows(x):
            pyro.sample("b", dist.Categorical(logits=self.q_b[a] * x[:, None]))

    def elbo(self, x):
        a, b = torch.arange(2)[:, None, None], torch.arange(3)
        log_q = (self.q_b[:, None] * x[:, None]).log_softmax(-1)  # (a, row, b)
        log_p = torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]]).log()[:, None]
        each = log_q.exp() * (log_p + dist.Normal(a - 1.0 * b, 1.0).log_prob(x[:, None]) - log_q)
        log_q_a = self.q_a.log_softmax(0)
        return (log_q_a.exp() * (torch.tensor([0.3, 0.7]).log() - log_q_a + each.sum((1, 2)))).sum()


@pytest.mark.parametrize("objective", ["sampled", "analytic"])
def test_discrete_latents_are_summed_over_without_noise(objective):
    program = Discrete().double().setup({"x": X})
    bound = Objective(program, check(program, {"x": X}), len(X), objective=objective, gradient="enumerated")
    loss, value = bound({"x": X})
    torch.testing.assert_close(value, program.elbo(X).detach())
    parameters = list(program.parameters())
    ours, exact = (torch.autograd.grad(v, parameters) for v in (-len(X) * loss, program.elbo(X)))
    torch.testing.assert_close(ours, exact)


def test_a_guide_that_asks_for_it_is_summed_over():
    class Asks(Discrete):
        def guide(self, x):
            with pyro.poutine.infer_config(config_fn=lambda site: {"enumerate": "parallel"}):
                super().guide(x)

    run = fit(Asks(), {"x": X}, steps=2, precision="64-true")
    assert run.config["fit"]["gradient"] == "enumerated"


def test_what_cannot_be_summed_over_is_said():
    class Counts(Program):
        def model(self, x=None):
            with rows(x):
                n = pyro.sample("n", dist.Poisson(torch.ones(())))
                pyro.sample("x", dist.Normal(n, 1.0), obs=x)

        def guide(self, x):
            with rows(x):
                pyro.sample("n", dist.Poisson(torch.ones(())))

    with pytest.raises(PpgenError, match="cannot over 'n' of Counts"):
        fit(Counts(), {"x": X}, steps=1, gradient="enumerated", precision="64-true")

    class ByPlace(Program):
        def model(self, x=None):
            with pyro.plate("two", 2):
                k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.3)))
            pyro.sample("x", dist.Normal(2.0 * k[0], 1.0).expand([len(X)]).to_event(1), obs=x)

        def guide(self, x):
            p = pyro.param("p", torch.tensor([0.2, 0.7]))
            with pyro.plate("two", 2):
                pyro.sample("k", dist.Bernoulli(p))

    with pytest.raises(PpgenError, match="the term of 'x' at one value is off"):
        fit(ByPlace(), {"x": X}, steps=1, gradient="enumerated", precision="64-true")


def test_a_model_with_dropout_is_summed_over():
    class Dropped(Discrete):
        def model(self, x):
            super().model(nn.functional.dropout(x, 0.5))

    assert fit(Dropped(), {"x": X}, steps=1, gradient="enumerated").config["fit"]["gradient"] == "enumerated"


@pytest.mark.parametrize("objective", ["iwae", "renyi", "subsampled"])
@pytest.mark.parametrize("gradient", ["score", "sticking"])
def test_what_does_not_go_together_is_said(objective, gradient):
    program = KnownChain() if objective == "subsampled" else Pair()
    x = program.data.sample((4,)) if objective == "subsampled" else X
    with pytest.raises(PpgenError, match=f"objective='{objective}' needs complete .* gradient='{gradient}' does not"):
        fit(program, {"x": x}, steps=1, objective=objective, gradient=gradient, precision="64-true")


def test_a_second_run_of_a_guide_with_dropout_is_refused():
    class Dropped(Pair):
        def __init__(self):
            super().__init__()
            self.dropout = nn.Dropout(0.5)

    with pytest.raises(PpgenError, match="has dropout, which differs"):
        fit(Dropped(), {"x": X}, steps=1, objective="sampled", gradient="sticking", precision="64-true")


def test_no_such_estimator():
    with pytest.raises(PpgenError, match="'pathwise'"):
        fit(Pair(), {"x": X}, steps=1, gradient="pathwisee")
