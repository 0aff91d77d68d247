"""Every objective x every law, on a conjugate target whose evidence is known. A file without a row fails the suite."""

from __future__ import annotations

import contextlib
import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from known import GuidedNormalMean, KnownChain, NormalMean, normal

from ppgen import Program, rows
from ppgen.check import check
from ppgen.errors import PpgenError
from ppgen.inference import Objective, fit, loglik, mcmc, objectives, posterior, predict

X = normal(12).double() + 1.0
EVIDENCE = NormalMean().log_evidence(X)


class Mixture(Program):
    """k ~ Bernoulli(0.3), x | k ~ N(θ + 2 k, 1): nothing is left to draw where k is summed out."""

    def __init__(self):
        super().__init__()
        self.theta = torch.nn.Parameter(torch.tensor(0.2).double())

    def model(self, x=None):
        with rows(x):
            k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.3).to(self.theta)))
            pyro.sample("x", dist.Normal(self.theta + 2 * k, 1.0), obs=x)

    def guide(self, x):
        pass

    def log_evidence(self, x):
        log_p = torch.tensor([0.7, 0.3]).to(x).log() + dist.Normal(self.theta + torch.tensor([0.0, 2.0]), 1.0).log_prob(
            x[:, None]
        )
        return log_p.logsumexp(-1).sum()


# By objective: the program whose guide is the posterior (so that every bound is the evidence), or None.
LAWS = {
    "analytic": "closed form",
    "sampled": "every weight is the evidence",
    "iwae": "every weight is the evidence",
    "renyi": "every weight is the evidence",
    "miwae": "every weight is the evidence",
    "piwae": "every weight is the evidence",
    "ciwae": "every weight is the evidence",
    "vimco": "every weight is the evidence",
    "rws": "every weight is the evidence",
    "dreg": "every weight is the evidence",
    "gdreg": "every weight is the evidence",
    "cubo": "every weight is the evidence",
    "wake_sleep": "every weight is the evidence",
    "tvo": "every weight is the evidence",
    "enumerate": "summed",
    "subsampled": "chain",
    "tc": "rows",
}


def made(program: Program, x, name: str, particles: int = 1, enumerated=()):
    program.double()
    program.setup({"x": x}, None)
    structure = check(program, {"x": x}, enumerated=enumerated)
    return Objective(program, structure, len(x), objective=name, particles=particles)


def test_every_objective_has_a_row():
    assert set(objectives.names()) == set(LAWS)


pytestmark = pytest.mark.usefixtures("double")


@pytest.mark.parametrize("name", [n for n, law in LAWS.items() if law == "every weight is the evidence"])
@pytest.mark.parametrize("particles", [2, 8])
def test_with_the_posterior_as_guide_the_bound_is_the_evidence(name, particles):
    o = made(GuidedNormalMean(), X, name, particles)
    loss, bound = o({"x": X})
    assert float(bound.detach()) == pytest.approx(EVIDENCE, abs=1e-9)
    assert float(loss.detach()) == pytest.approx(-EVIDENCE / len(X), abs=1e-9)


def test_the_analytic_bound_is_the_closed_form_on_average():
    o = made(GuidedNormalMean(width=1.5), X, "analytic", 400_000)
    q = dist.Normal(NormalMean().posterior(X).loc, 1.5 * NormalMean().posterior(X).scale)
    kl = torch.distributions.kl_divergence(q, NormalMean().posterior(X))
    assert float(o({"x": X})[1]) == pytest.approx(EVIDENCE - float(kl), abs=0.02 * float(kl))


@pytest.mark.parametrize("name", [pytest.param("iwae", marks=pytest.mark.slow), "renyi"])
def test_the_order_of_the_bounds(name):
    """One draw gives the ELBO's estimate; many draws raise it towards the evidence, and never above on average."""
    torch.manual_seed(0)
    few, many = (made(GuidedNormalMean(width=1.6), X, name, k) for k in (1, 8))
    one = torch.stack([few({"x": X})[1] for _ in range(2000)])
    eight = torch.stack([many({"x": X})[1] for _ in range(500)])
    kl = 0.5 * (1.6**2 - 1 - 2 * math.log(1.6))
    assert abs(one.mean() - (EVIDENCE - kl)) < 4.5 * one.std() / 2000**0.5
    assert one.mean() + 4.5 * one.std() / 2000**0.5 < eight.mean() < EVIDENCE + 4.5 * eight.std() / 500**0.5


def test_renyis_bound_is_its_closed_form_for_many_draws():
    """L_α of a normal guide `width` times as wide: E q^α p^(1−α), α = 1/2, with one draw's mean replaced by 200 000."""
    torch.manual_seed(1)
    o = made(GuidedNormalMean(width=1.6), X, "renyi", 200_000)
    # E_q w^½ = Z^½ ∫ q^½ p^½ = Z^½ (2 s / (1 + s²))^½ for normals of sd s and 1
    exact = EVIDENCE + math.log(2 * 1.6 / (1 + 1.6**2))
    assert float(o({"x": X})[1]) == pytest.approx(exact, abs=0.005)


def test_summed_out_latents_leave_the_evidence_and_its_gradient():
    program = Mixture()
    o = made(program, X, "enumerate", enumerated=("k",))
    loss, bound = o({"x": X})
    exact = program.log_evidence(X)
    torch.testing.assert_close(bound, exact.detach())
    torch.testing.assert_close(
        -len(X) * torch.autograd.grad(loss, program.theta)[0], torch.autograd.grad(exact, program.theta)[0]
    )


def test_terms_of_a_chain_by_drawn_times_have_the_bound_as_their_mean():
    torch.manual_seed(0)
    program = KnownChain()
    x = program.data.sample((5000,)).double()
    o = made(program, x, "subsampled", 400)
    values = torch.stack([o({"x": x})[1] for _ in range(2)]) / len(x)
    by_row = sum(t.log_prob.mean(0) for t in o.terms({"x": x})).detach()
    error = float(by_row.std()) / len(x) ** 0.5
    assert error < 0.02 * abs(program.expected_elbo())
    assert abs(float(values.mean()) - program.expected_elbo()) < 4.5 * error


@pytest.mark.parametrize("name", ["sampled", "iwae", "renyi", "renyi(alpha=0.2)", "miwae(groups=3)", "ciwae"])
def test_the_gradient_is_the_bounds_derivative(name):
    """By central differences at the noise of one seed."""
    program = GuidedNormalMean(width=1.3)
    o = made(program, X, name, 6)

    def bound() -> torch.Tensor:
        torch.manual_seed(3)
        return o({"x": X})[0]

    parameters = [p for p in program.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(bound(), parameters)
    for p, g in zip(parameters, gradients, strict=True):
        with torch.no_grad():
            values = []
            for step in (1e-5, -2e-5):
                p.add_(step)
                values.append(float(bound()))
            p.add_(1e-5)
        assert float(g.sum()) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5, abs=1e-8)


class Local(Program):
    """z_i ~ N(0, 1), x_i | z_i ~ N(z_i, 1); q(z_i | x_i) = N(x_i / 2, √½ width), the posterior at a width of 1."""

    def __init__(self):
        super().__init__()
        self.log_width = torch.nn.Parameter(torch.tensor(1.5).double().log())

    def model(self, x=None):
        with rows(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        with rows(x):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5 * self.log_width.exp()))


def _gradient(name: str, particles: int, n: int = 50, weight: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the loss a row with respect to the guide's width, and its standard error."""
    torch.manual_seed(0)
    program, x = Local(), 2**0.5 * torch.randn(4000).double()
    o = made(program, x, name, particles)
    each = torch.stack([torch.autograd.grad(o({"x": x}, weight)[0], program.log_width)[0] for _ in range(n)])
    return each.mean(), each.std() / n**0.5


def test_vimco_has_the_gradient_of_the_importance_weighted_bound():
    (ours, se), (exact, exact_se) = _gradient("vimco", 3, 300), _gradient("iwae", 3, 100)
    both = (se**2 + exact_se**2) ** 0.5
    assert abs(ours - exact) < 4.5 * both
    assert 4.5 * both < 0.04 * abs(exact)


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_doubly_reparametrized_gradients_are_those_of_the_importance_weighted_bound(weight):
    """Of the guide's width, with a KL weight (a warm-up) as well; and none is left where the guide is the posterior."""
    (ours, se), (exact, exact_se) = _gradient("dreg", 3, 100, weight), _gradient("iwae", 3, 200, weight)
    both = (se**2 + exact_se**2) ** 0.5
    assert abs(ours - exact) < 4.5 * both < 0.04 * abs(exact)
    assert se < exact_se  # of twice as many
    o = made(GuidedNormalMean(), X, "dreg", 4)
    torch.autograd.backward(o({"x": X})[0])
    assert all(p.grad is None or float(p.grad.abs().max()) < 1e-12 for p in o.program.parameters())


class Scaled(Local):
    """z_i ~ N(m, 1), x_i | z_i ~ N(z_i, 1), with m learned."""

    def __init__(self):
        super().__init__()
        self.m = torch.nn.Parameter(torch.tensor(0.3).double())

    def model(self, x=None):
        with rows(x):
            z = pyro.sample("z", dist.Normal(self.m, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_doubly_reparametrized_gradients_leave_the_models_gradient_as_it_is():
    """At one draw that of the importance-weighted bound is Σ w̃ ∇ log p: the very same."""
    found = []
    for name in ("dreg", "iwae"):
        torch.manual_seed(0)
        o = made(Scaled(), X, name, 5)
        found.append(torch.autograd.grad(o({"x": X})[0], o.program.m)[0])
    torch.testing.assert_close(*found)


class Wider(Scaled):
    """And the scale of the prior is learned, as is a slope of x."""

    def __init__(self):
        super().__init__()
        self.log_s, self.slope = (torch.nn.Parameter(torch.tensor(v).double()) for v in (0.2, 0.8))

    def model(self, x=None):
        with rows(x):
            z = pyro.sample("z", dist.Normal(self.m, self.log_s.exp()))
            pyro.sample("x", dist.Normal(self.slope * z, 1.0), obs=x)


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_generalized_doubly_reparametrized_gradients_are_those_of_the_importance_weighted_bound(weight):
    """Of the prior's, the likelihood's and the guide's parameters, over copies of a few rows; the prior's has less
    noise, and the likelihood's is the very same."""
    x, found = (X[:3] + 3).repeat(4000), {}
    for name in ("gdreg", "iwae"):
        torch.manual_seed(0)
        o = made(Wider(), x, name, 4)
        parameters = {k: getattr(o.program, k) for k in ("m", "log_s", "slope", "log_width")}
        each = [torch.autograd.grad(o({"x": x}, weight)[0], list(parameters.values())) for _ in range(20)]
        found[name] = torch.stack([torch.stack(g) for g in each])
    ours, exact = found["gdreg"], found["iwae"]
    error = ((ours.var(0) + exact.var(0)) / 20) ** 0.5
    assert ((ours.mean(0) - exact.mean(0)).abs() < 4.5 * error + 1e-9).all()
    assert (4.5 * error[:2] < 0.08 * exact.mean(0)[:2].abs()).all()
    torch.testing.assert_close(ours[:, 2], exact[:, 2])
    assert (ours.var(0)[:2] < exact.var(0)[:2]).all()


def test_with_one_draw_the_priors_gradient_is_that_of_the_closed_form():
    x, found = (X[:3] + 3).repeat(4000), {}
    for name in ("gdreg", "analytic"):
        torch.manual_seed(0)
        o = made(Wider(), x, name)
        of = [o.program.m, o.program.log_s]
        found[name] = torch.stack([torch.stack(torch.autograd.grad(o({"x": x})[0], of)) for _ in range(20)])
    error = found["gdreg"].std(0) / 20**0.5
    exact = found["analytic"][0]
    assert (4.5 * error < 0.02 * exact.abs()).all()
    assert ((found["gdreg"].mean(0) - exact).abs() < 4.5 * error).all()


def test_gdreg_says_which_prior_it_takes():
    class Other(Program):
        def model(self, x=None):
            with rows(x):
                z = pyro.sample("z", dist.StudentT(torch.tensor(5.0).double(), 0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(self, x):
            with rows(x):
                pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))

    with pytest.raises(PpgenError, match="take objective='dreg'"):
        made(Other(), X, "gdreg")({"x": X})


def test_piwae_has_the_models_gradient_of_iwae_and_the_guides_of_miwae():
    """At the same draws, to rounding."""
    found = {}
    for name in ("piwae(groups=3)", "iwae", "miwae(groups=3)"):
        torch.manual_seed(0)
        o = made(Scaled(), X, name, 6)
        found[name] = torch.autograd.grad(o({"x": X})[0], [o.program.m, o.program.log_width])
    ours, tight, grouped = found.values()
    torch.testing.assert_close(ours[0], tight[0])
    torch.testing.assert_close(ours[1], grouped[1])
    assert abs(float(tight[1] - grouped[1])) > 1e-3 and abs(float(tight[0] - grouped[0])) > 1e-4


def test_the_chi_square_bound_moves_the_guide_by_its_own_gradient():
    """Of normals of one mean, and sds of 1 and s."""
    s = 1.5
    ours, se = _gradient("cubo", 400, 10)
    # E_q (p / q)² = ∫ p² / q = s² / √(2 s² − 1): the derivative of half its logarithm in log s
    exact = 1 - s**2 / (2 * s**2 - 1)
    assert 4.5 * se < 0.01 * exact  # the bias of 400 weights is 0.1%
    assert abs(ours - exact) < 0.01 * exact


def test_wake_sleep_moves_the_guide_by_the_gradient_of_the_forward_kl():
    """Over the model's own data, whatever the rows are: without a bias, by one draw."""
    s = 1.5
    ours, se = _gradient("wake_sleep", 1, 100)
    exact = 1 - 1 / s**2
    assert 4.5 * se < 0.02 * exact
    assert abs(ours - exact) < 4.5 * se


def test_wake_sleep_moves_the_model_by_the_guides_draws():
    """At the posterior, ∇ E_q log p(x, z) is ∇ log p(x): of x ~ N(m, 2), (x̄ − m) / 2 a row."""
    program = Scaled()
    with torch.no_grad():
        program.m.zero_()
        program.log_width.zero_()
    x = 2**0.5 * torch.randn(20_000).double() + 1.0
    o = made(program, x, "wake_sleep", 4)
    each = torch.stack([torch.autograd.grad(o({"x": x})[0], program.m)[0] for _ in range(10)])
    assert float(-each.mean()) == pytest.approx(float(x.mean()) / 2, rel=0.02)


def test_wake_sleep_needs_a_guide_of_the_models_latents():
    program = Program.from_pair(Local().model).double()
    with pytest.raises(PpgenError, match="in a way of its own"):
        fit(program, {"x": X}, steps=1, objective="wake_sleep", precision="64-true", guide="AutoNormal")


class Far(Program):
    """z ~ N(50, 3²), two x | z ~ N(z, 2): z | x ~ N(50 + 0.9 (x̄ − 50), 0.9)."""

    def model(self, x=None):
        with rows(x):
            z = pyro.sample("z", dist.Normal(50.0, 3.0))
            pyro.sample("x", dist.Normal(z[..., None].expand(*z.shape, 2), 2**0.5).to_event(1), obs=x)


class Dose(Program):
    """λ ~ Gamma(2, 1), six counts | λ ~ Poisson(λ): λ | y ~ Gamma(2 + Σ y, 7)."""

    def model(self, y=None):
        with rows(y):
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
            pyro.sample("y", dist.Poisson(rate[..., None].expand(*rate.shape, 6)).to_event(1), obs=y)


def _posterior_of_any_row(program, steps, rows, latent, law):
    """Of one row, which says nothing of the units of others; the guide is found too."""
    run = fit(program, rows[0], objective="wake_sleep", steps=steps, lr=5e-3, schedule="cosine", particles=64,
              engine="trace", seed=0)  # fmt: skip
    for row in rows:
        exact = law(next(iter(row.values())))
        q = torch.as_tensor(posterior(run, row, draws=8000, prior=False).posterior[latent].values).flatten()
        assert abs(q.mean() - exact.mean) < 0.2 * exact.stddev
        assert q.std() == pytest.approx(float(exact.stddev), rel=0.12)
    return run


def test_a_flow_learns_by_wake_sleep_the_posterior_of_any_row(caplog):
    each = [{"x": 50 + torch.tensor([row])} for row in ([1.0, 2.0], [-3.0, -4.0], [0.0, 1.0])]
    _posterior_of_any_row(Far(), 300, each, "z", lambda x: dist.Normal(50 + 0.9 * (x.mean() - 50), 0.9**0.5))
    assert "one row" not in caplog.text


class Shared(Program):
    """m ~ N(20, 3²), x_i ~ N(m, 3²) of 9 rows: m | x ~ N(20 + 0.9 (x̄ − 20), 0.9)."""

    def model(self, x=None):
        m = pyro.sample("m", dist.Normal(20.0, 3.0))
        with rows(x):
            pyro.sample("x", dist.Normal(m, 3.0), obs=x)


def test_a_flow_learns_by_wake_sleep_what_all_rows_say_of_a_shared_latent():
    """Whatever their order; of another number of rows it has learned nothing."""
    torch.manual_seed(0)
    x = 20 + 3 * torch.randn(9)
    each = [{"x": 20 + (x - x.mean()) + 3 * shift} for shift in (0.0, 1.0, -1.5)]
    law = lambda x: dist.Normal(20 + 9 * (x.mean() - 20) / 10, 0.9**0.5)  # noqa: E731
    run = _posterior_of_any_row(Shared(), 400, each, "m", law)
    of_rows = run.program.autoguide.summary
    assert torch.allclose(of_rows(x[:, None]), of_rows(x[:, None].flip(0)), atol=1e-5)
    with pytest.raises(PpgenError, match="made for 9 rows at once, and reads 8"):
        posterior(run, {"x": x[:8]}, draws=5)
    with pytest.raises(PpgenError, match="its flow reads the rows' columns"):
        mcmc(run, {"x": x}, through=True)
    exact = float(law(each[0]["x"]).mean)
    for new in (x[:4] - 50, x - 50):  # what is predicted is what the fitted rows say: 0.2 sd of the fit, 4 se of draws
        drawn = predict(run, {"x": new}, draws=4000)["predictions"]["x"].values
        assert abs(drawn.mean() - exact) < 0.2 * 0.9**0.5 + 4 * (9.9 / drawn[0, :, 0].size) ** 0.5
        assert drawn.std() == pytest.approx(9.9**0.5, rel=0.05)


@pytest.mark.slow
def test_a_flow_learns_by_wake_sleep_a_rate_of_counts():
    each = [{"y": torch.tensor([row])} for row in ([3.0, 2, 1, 0, 4, 2], [5.0, 4, 3, 2, 6, 4], [0.0] * 6)]
    _posterior_of_any_row(Dose(), 600, each, "rate", lambda y: dist.Gamma(2 + y.sum(), 7.0))


class ByMean(Program):
    """m ~ N(0, 1), x_i ~ N(m, 1); q(m | x) = N(a + b x̄, s)."""

    def __init__(self):
        super().__init__()
        self.line, self.log_scale = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(()))

    def model(self, x=None):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with rows(x):
            pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    def guide(self, x):
        pyro.sample("m", dist.Normal(self.line[0] + self.line[1] * x.mean(), self.log_scale.exp()))


def test_wake_sleep_takes_all_rows_of_a_shared_latent():
    """Of batches of 10 of 40 rows the guide learned the posterior of 10: an sd of 0.30 for 0.16, without a word."""
    x = {"x": torch.randn(40) + 1}
    with pytest.raises(
        PpgenError, match="the guide learns the posterior of as many rows as a step has; leave batch_size"
    ):
        fit(ByMean(), x, steps=1, batch_size=10, objective="wake_sleep")
    how = {"steps": 1500, "lr": 0.03, "schedule": "cosine", "particles": 16, "engine": "trace", "seed": 0}
    q = fit(ByMean(), x, valid=None, objective="wake_sleep", **how).program
    assert q.line[1].item() == pytest.approx(40 / 41, rel=0.03)  # 24 000 draws
    assert float(q.log_scale.exp()) == pytest.approx(41**-0.5, rel=0.02)


@pytest.mark.parametrize("reads", [True, False])
def test_wake_sleep_says_where_the_guide_reads_nothing_of_the_data(reads, caplog):
    """It becomes the prior. A guide whose network begins at zero does read them."""

    class Other(ByMean):
        def guide(self, x):
            loc = self.line[0] + self.line[1] * x.mean() if reads else self.line[0]
            pyro.sample("m", dist.Normal(loc, self.log_scale.exp()))

    fit(Other(), {"x": torch.randn(40) + 1}, steps=1, objective="wake_sleep")
    assert ("it becomes the prior" in caplog.text) == (not reads)


class Coin(Program):
    """k ~ Bernoulli(0.6), x | k ~ N(2 k, 1); q(k | x) = Bernoulli(σ(b x − 0.2))."""

    def __init__(self):
        super().__init__()
        self.b = torch.nn.Parameter(torch.tensor(0.4).double())

    def model(self, x=None):
        with rows(x):
            k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.6).double()))
            pyro.sample("x", dist.Normal(2 * k, 1.0), obs=x)

    def guide(self, x):
        with rows(x):
            pyro.sample("k", dist.Bernoulli(logits=self.b * x - 0.2))


def _of_coins(name: str, particles: int, weight: float, x: torch.Tensor) -> torch.Tensor:
    """∂/∂b of the mean over x of what is trained on, over all coins that K draws can show, or of K -> ∞."""
    b = torch.tensor(0.4, requires_grad=True).double()
    k = torch.tensor(list(itertools.product([0.0, 1.0], repeat=particles)) if name == "vimco" else [[0.0, 1.0]])
    x, k = x[:, None, None], k.double()
    log_q = dist.Bernoulli(logits=b * x - 0.2).log_prob(k)
    log_p = weight * dist.Bernoulli(torch.tensor(0.6).double()).log_prob(k) + dist.Normal(2 * k, 1.0).log_prob(x)
    log_w = log_p - weight * log_q
    if name == "vimco":  # the bound itself
        value = (log_q.sum(-1).exp() * (log_w.logsumexp(-1) - math.log(particles))).sum(-1)
    elif name == "tvo":  # Σ (β' − β) E_π[log w], π ∝ q w^β
        betas = [0.0, *(0.03 ** (1 - j / 4) for j in range(5))]
        each = [(hi - lo) * (log_q + lo * log_w).softmax(-1) * log_w for lo, hi in itertools.pairwise(betas)]
        value = torch.stack(each).sum((0, -1))
    else:  # the mean score where weights are in proportion to a power of w
        power = 2.0 if name == "cubo" else 1.0
        value = (log_q + power * log_w).softmax(-1).detach() * log_q * (0.5 if name == "cubo" else 1.0)
    return torch.autograd.grad(value.sum() / len(x), b)[0]


@pytest.mark.parametrize("weight", [1.0, 0.3, 0.0])
@pytest.mark.parametrize(("name", "particles"), [("vimco", 3), ("tvo", 300), ("rws", 300), ("cubo", 300)])
def test_a_kl_weight_is_no_part_of_the_score_of_the_guide(name, particles, weight):
    """With kl_warmup the score of what is drawn was weighted as well: at first no guide learned anything."""
    torch.manual_seed(0)
    x = torch.tensor([0.7, -1.2, 2.0]).double()
    many = x.repeat(60_000 // particles)
    o = made(Coin(), many, name, particles)
    each = torch.stack([-torch.autograd.grad(o({"x": many}, weight)[0], o.program.b)[0] for _ in range(20)])
    exact, error = _of_coins(name, particles, weight, x), each.std() / 20**0.5
    assert 4.5 * error < 0.06 * abs(exact)
    assert abs(each.mean() - exact) < 4.5 * error + 0.01 * abs(exact)  # the bias of 300 weights


def test_rws_moves_the_guide_by_the_gradient_of_the_forward_kl():
    """KL(p, q) of normals of one mean and sds 1 and s is log s + 1 / (2 s²) − 1/2; the bias of 400 weights is 0.4%."""
    s = 1.5
    ours, se = _gradient("rws", 400, 10)
    exact = 1 - 1 / s**2
    assert 4.5 * se < 0.02 * exact
    assert abs(ours - exact) < 0.02 * exact


def _tempered(betas: list[float], s: torch.Tensor) -> torch.Tensor:
    """The thermodynamic bound of a posterior of sd 1 and a guide of sd s with its mean, less the evidence."""
    value = torch.zeros(())
    for b, above in zip(betas, betas[1:], strict=False):
        v = 1 / ((1 - b) / s**2 + b)  # of π_β
        value = value + (above - b) * (torch.log(s) - v / 2 + v / (2 * s**2))
    return value


def test_the_thermodynamic_bound_and_its_gradient_are_closed_forms():
    betas = [0.0, 0.1, 0.1**0.5, 1.0]
    o = made(GuidedNormalMean(width=1.5), X, "tvo(intervals=3, first=0.1)", 400_000)
    s = torch.tensor(1.5, requires_grad=True)
    exact = _tempered(betas, s)
    torch.manual_seed(0)
    assert float(o({"x": X})[1]) - EVIDENCE == pytest.approx(float(exact.detach()), abs=0.01)
    ours, se = _gradient("tvo(intervals=3, first=0.1)", 400, 10)
    gradient = -torch.autograd.grad(exact, s)[0] * s.detach()
    assert 4.5 * se < 0.02 * abs(gradient)
    assert abs(ours - gradient) < 0.03 * abs(gradient)


def test_groups_of_weights_lie_between_the_elbo_and_the_importance_weighted_bound():
    def mean(name: str, n: int = 600) -> float:
        torch.manual_seed(0)
        o = made(GuidedNormalMean(width=1.6), X, name, 6)
        return float(torch.stack([o({"x": X})[1] for _ in range(n)]).mean())

    elbo, two, one = mean("miwae(groups=6)"), mean("miwae(groups=2)"), mean("iwae")
    assert elbo < two < one < EVIDENCE
    assert mean("ciwae(beta=0.25)") == pytest.approx(0.25 * elbo + 0.75 * one, abs=1e-9)


@pytest.mark.parametrize("name", ["iwae", "vimco", "rws", "tvo"])
def test_a_weighted_objective_sums_out_what_asks_for_it(name):
    """x | k ~ N(θ + 2 k, 1): nothing is drawn, and every weight is the evidence."""

    class Asks(Mixture):
        def model(self, x=None):
            with rows(x):
                k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.3).to(self.theta)), infer={"enumerate": "parallel"})
                pyro.sample("x", dist.Normal(self.theta + 2 * k, 1.0), obs=x)

    run = fit(Asks(), {"x": X}, steps=1, objective=name, particles=3, precision="64-true", lr=1e-9)
    assert run.structure.summed == ("k",)
    assert run.rows[-1]["elbo"] == pytest.approx(float(Asks().double().log_evidence(X)), abs=1e-4)


@pytest.mark.parametrize("name", [n for n, law in LAWS.items() if law not in ("chain", "rows")])
def test_a_function_of_weights_needs_all_rows_that_share_latents(name):
    """The mean over batches of log E_q[w^(N/B)]-like figures is above log p(x): only means of terms take batches."""
    o = made(GuidedNormalMean(), X, name, 4)
    o({"x": X})
    half = {"x": X[: len(X) // 2]}
    if getattr(o.bound, "MEAN", False):
        assert torch.isfinite(o(half)[1])
        return
    with pytest.raises(PpgenError, match=f"{name}.* needs all rows.*leave batch_size"):
        o(half)
    with pytest.raises(PpgenError, match="leave held-out rows"):
        fit(GuidedNormalMean(), {"x": X}, valid={"x": X[:2]}, steps=1, objective=name, particles=4)


@pytest.mark.parametrize("how", ["analytic(beta=4.0)", "analytic(free_bits=10.0)"])
def test_what_is_trained_on_with_weighted_latents_is_not_what_is_reported(how):
    program = GuidedNormalMean(width=1.5)
    loss, bound = made(program, X, how, 4)({"x": X})
    torch.manual_seed(0)
    plain = made(GuidedNormalMean(width=1.5), X, "analytic", 200_000)({"x": X})[1]
    assert abs(float(bound) - float(plain)) < 2.0
    kl = 0.5 * (1.5**2 - 1 - 2 * math.log(1.5))  # beside the posterior; the prior's is another
    assert abs(-float(loss) * len(X) - float(bound)) > 0.5 * kl


class Planar(Program):
    """z ~ N(0, I), x | z ~ N(z, I) in the plane; the guide is N(A x, diag s²)."""

    def __init__(self):
        super().__init__()
        self.A = torch.nn.Parameter(torch.tensor([[1.0, 0.6], [0.2, 0.9]]).double())
        self.log_s = torch.nn.Parameter(torch.tensor([-0.5, -0.9]).double())

    def model(self, x=None):
        with rows(x):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).to(self.A), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with rows(x):
            pyro.sample("z", dist.Normal(x @ self.A.T, self.log_s.exp()).to_event(1))


def test_the_total_correlation_is_that_of_a_grid():
    """KL(q(z) ‖ q(z_1) q(z_2)) of the mixture of seven normals, its value and its gradient, by quadrature."""
    torch.manual_seed(0)
    x, grid = torch.randn(7, 2).double(), torch.linspace(-6, 6, 301).double()
    program = Planar()
    log_q = [
        dist.Normal((x @ program.A.T)[:, d], program.log_s[d].exp()).log_prob(grid[:, None]) for d in (0, 1)
    ]  # (grid, rows)
    joint = torch.logsumexp(log_q[0][:, None] + log_q[1][None], -1) - math.log(7)
    apart = [torch.logsumexp(v, -1) - math.log(7) for v in log_q]
    exact = (joint.exp() * (joint - apart[0][:, None] - apart[1][None])).sum() * 0.04**2
    parameters = (program.A, program.log_s)
    slopes = torch.cat([g.flatten() for g in torch.autograd.grad(exact, parameters)])
    program.setup({"x": x}, None)
    structure = check(program, {"x": x})
    with_it, without = (Objective(program, structure, 7, objective=f"tc(beta={b})", particles=400) for b in (3.0, 1.0))
    found, values = [], []
    for seed in range(30):
        losses = []
        for o in (with_it, without):
            torch.manual_seed(seed)
            losses.append(o({"x": x}))
        assert float(losses[0][1]) == float(losses[1][1])  # the ELBO is reported, whatever β is
        half = 7 * (losses[0][0] - losses[1][0]) / 2  # Σ over rows of log q(z_i) − Σ_d log q(z_id)
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(half, parameters)]))
        values.append(half.detach())
    for draws, truth in ((torch.stack(values)[:, None], 7 * exact.detach()[None]), (torch.stack(found), 7 * slopes)):
        se = draws.std(0) / 30**0.5
        assert ((draws.mean(0) - truth).abs() < 4.5 * se).all()
        assert float(se.norm()) < 0.02 * float(truth.norm())


@pytest.mark.parametrize("engine", ["eager", "trace"])
def test_a_guide_whose_latents_go_together_over_the_rows_is_trained_apart(engine):
    torch.manual_seed(0)
    x = torch.randn(60, 2) @ torch.tensor([[1.0, 0.9], [0.0, 0.4]])
    correlation = {}
    for beta in (1.0, 30.0):
        run = fit(Planar(), {"x": x}, steps=300, lr=0.03, objective=f"tc(beta={beta})", engine=engine, seed=0)
        with torch.no_grad():
            cov = torch.cov((x @ run.program.A.T.to(x)).T) + (2 * run.program.log_s.to(x)).exp().diag()
        correlation[beta] = float(cov[0, 1] / (cov[0, 0] * cov[1, 1]) ** 0.5)  # of z over the rows
    posterior_cov = torch.cov(x.T) / 4 + torch.eye(2) / 2  # of z over the rows, where the guide is the posterior
    exact = float(posterior_cov[0, 1] / posterior_cov.diagonal().prod() ** 0.5)
    assert correlation[1.0] == pytest.approx(exact, abs=0.02) and exact > 0.2
    assert abs(correlation[30.0]) < exact / 4


def test_a_total_correlation_is_of_one_vector_a_row():
    with pytest.raises(PpgenError, match=r"needs a guide of one latent.*has the latents"):
        fit(GuidedNormalMean(), {"x": X}, steps=1, objective="tc", precision="64-true")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("analytic", ""),
        ("analytic(beta=1.0)", ""),
        ("analytic(beta=4, free_bits=0.5)", "analytic with beta=4 and free_bits=0.5"),
        ("sampled(beta=0.5)", "sampled with beta=0.5"),
        ("subsampled(free_bits=1)", "subsampled with free_bits=1"),
        ("ciwae(beta=0.5)", ""),  # a bound
        ("tc", "tc with beta=6"),
        ("tc(beta=1)", ""),
        ("Trace_ELBO", ""),
    ],
)
def test_what_is_trained_on_in_place_of_a_bound_is_said(spec, said):
    assert objectives.reweighted(spec, Planar()) == said


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("renyi(alpha=1.0)", "alpha=1.0.*below 1"),
        ("renyi(order=2)", "no option 'order'.*alpha"),
        ("iwae(k=3)", "no option 'k'.*has none"),
        ("renyi(alpha=", "cannot be read"),
        ("miwae(groups=4)", "divides 3 particles"),
        ("tvo(intervals=0)", "one at least"),
    ],
)
def test_options_that_an_objective_does_not_have(name, sentence):
    with pytest.raises(PpgenError, match=sentence):
        fit(GuidedNormalMean(), {"x": X}, steps=1, objective=name, particles=3, precision="64-true")


def test_an_objective_with_draws_of_its_own_takes_no_other_estimator():
    with pytest.raises(PpgenError, match="has a gradient of its own"):
        fit(GuidedNormalMean(), {"x": X}, steps=1, objective="vimco", gradient="sticking", precision="64-true")


def test_no_such_objective():
    with pytest.raises(PpgenError, match="'analytic'"):
        objectives.named("analytical")


# -- rows with weights ----------------------------------------------------------------------------------


class Weighed(Program):
    """Rows that count w times, in model and guide: x_i | z_i ~ N(θ z_i, 1), of which Σ_i w_i log N(x_i; 0, 1 + θ²)."""

    def __init__(self):
        super().__init__()
        self.theta, self.a = torch.nn.Parameter(torch.tensor(0.7)), torch.nn.Parameter(torch.tensor(0.3))

    def model(self, x, w):
        with rows(x), pyro.poutine.scale(scale=w):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(self.theta * z, 1.0), obs=x)

    def guide(self, x, w):
        with rows(x), pyro.poutine.scale(scale=w):
            pyro.sample("z", dist.Normal(self.a * x, 1.0))

    def log_p(self, x):
        return dist.Normal(0.0, (1 + self.theta**2).sqrt()).log_prob(x).detach()


W = torch.linspace(0.3, 5.0, len(X)).double()


def weighed(program, name, particles):
    data = {"x": X, "w": W}
    program.double().setup(data, None)
    return Objective(program, check(program, data), len(X), objective=name, particles=particles), data


@pytest.mark.parametrize("name", ["iwae", "miwae", "dreg", "rws", "wake_sleep"])
def test_weights_of_rows_multiply_the_bound_of_each(name):
    """They were powers within the mean over draws, log E (p / q)^w: no bound, and 18 nats above Σ w log p(x) here. The
    standard error of a row is that of a mean of 20 000 weights of sd 0.5 of their mean."""
    torch.manual_seed(0)
    program = Weighed()
    o, data = weighed(program, name, 20_000)
    exact = float((W * program.log_p(X)).sum())
    error = float((W**2).sum()) ** 0.5 * 0.5 / 20_000**0.5
    assert error < 0.002 * abs(exact)
    assert float(o(data)[1]) == pytest.approx(exact, abs=4.5 * error + 0.005)


@pytest.mark.parametrize("name", [n for n, law in LAWS.items() if law == "every weight is the evidence"])
def test_the_gradient_is_linear_in_the_weights_of_rows(name):
    """At the draws of one seed, that of Σ_i w_i L(x_i) for every w, which at w = 1 is that of the bound."""

    def slopes(w):
        torch.manual_seed(4)
        return torch.stack(torch.autograd.grad(o({"x": X, "w": w})[0], [program.theta, program.a]))

    program = Weighed()
    o, _ = weighed(program, name, 6)
    one = slopes(torch.ones_like(W))
    torch.testing.assert_close(slopes(3 * torch.ones_like(W)), 3 * one)
    torch.testing.assert_close(slopes(W + 1), slopes(W) + one)


@pytest.mark.parametrize("batch_size", [None, 4])
def test_engines_weigh_rows_alike(batch_size):
    found = []
    for engine in ("eager", "trace"):
        how = {"objective": "iwae", "particles": 5, "steps": 4, "lr": 0.1, "batch_size": batch_size}
        run = fit(Weighed(), {"x": X, "w": W}, engine=engine, seed=0, **how)
        found.append([float(run.program.theta.detach()), float(run.program.a.detach())])
    assert found[0] == pytest.approx(found[1], rel=1e-9)


def test_figures_of_weighed_rows_are_of_unweighed_draws(caplog):
    """`loglik` had a "lower bound" above w log p(x), and corrected draws were of another posterior, N(.., s² / w)."""
    program = Weighed().double()
    found = loglik(program, {"x": X, "w": W}, particles=20_000)
    exact = (W * program.log_p(X)).numpy()
    z = torch.linspace(-12, 12, 4001).double()[:, None]  # the variance of a weight over its mean's square
    q, p = dist.Normal(program.a * X, 1.0).log_prob(z), dist.Normal(0.0, 1.0).log_prob(z)
    ratio = p + dist.Normal(program.theta * z, 1.0).log_prob(X) - program.log_p(X)
    se = W * ((((2 * ratio - q).exp().sum(0) * 0.006).detach() - 1) / 20_000).sqrt()
    assert (abs(found.best.values - exact) < 4.5 * se.numpy()).all()
    assert found.best.se == pytest.approx(se.numpy(), rel=0.1)
    assert "weighs rows" in caplog.text and "powers" not in caplog.text
    tree = posterior(program, {"x": X, "w": W}, draws=1000, corrected=True, seed=0)
    sd = float((1 + program.theta.detach() ** 2) ** -0.5)
    assert tree["posterior"]["z"].values.std(1).ravel() == pytest.approx(sd, rel=0.1)


def test_a_row_of_weight_0_counts_for_nothing():
    """Its log weight was 0 / 0: the loss of a fit was not finite, and `loglik` said that the program fails there."""
    w = W.clone()
    w[1] = 0.0
    others = torch.arange(len(X)) != 1
    found = []
    for data in ({"x": X, "w": w}, {"x": X[others], "w": w[others]}):
        run = fit(Weighed(), data, objective="iwae", particles=5000, steps=3, lr=0.1, engine="eager")
        found.append((float(run.program.theta.detach()), loglik(run, data, particles=50).best.values))
    assert found[0][0] == pytest.approx(found[1][0], abs=0.01)
    assert found[0][1][1] == 0 and torch.tensor(found[0][1]).isfinite().all()


def test_a_guide_of_another_scale_than_the_model_is_said(caplog):
    def model(x):
        with rows(x):
            with pyro.poutine.scale(scale=0.5):
                z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with rows(x), pyro.poutine.scale(scale=0.5):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    program = Program.from_pair(model, guide)
    fit(program, {"x": X}, objective="iwae", particles=4, steps=1)
    assert "by another number than other sites" in caplog.text
    caplog.clear()
    fit(program, {"x": X}, steps=1)
    assert "another number" not in caplog.text
    loglik(program, {"x": X}, particles=5)
    assert "no figure is a bound" in caplog.text


class Panel(Program):
    """z_i ~ N(0, 1), x_i | z_i ~ N(θ z_i, 1), of weighed rows that a mask leaves out; the guide N(c x_i, s²)."""

    def __init__(self):
        super().__init__()
        self.theta, self.c, self.log_s = (torch.nn.Parameter(torch.tensor(v).double()) for v in (0.7, 0.4, -0.5))

    def kept(self, x, w, seen):
        weighed = pyro.poutine.scale(scale=w) if w is not None else contextlib.nullcontext()
        return rows(x), weighed, pyro.poutine.mask(mask=seen)

    def model(self, x=None, w=None, seen=None):
        plate, weighed, mask = self.kept(x, w, seen)
        with plate, weighed, mask:
            z = pyro.sample("z", dist.Normal(torch.zeros(()).to(self.theta), 1.0))
            pyro.sample("x", dist.Normal(self.theta * z, 1.0), obs=x)

    def guide(self, x, w=None, seen=None):
        plate, weighed, mask = self.kept(x, w, seen)
        with plate, weighed, mask:
            pyro.sample("z", dist.Normal(self.c * x, self.log_s.exp()))

    def costs(self, x):
        """KL(N(c x, s²), N(0, 1)) of each row."""
        s = self.log_s.exp()
        return (s**2 + (self.c * x) ** 2 - 1) / 2 - self.log_s


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("particles", [1, 3])
def test_free_bits_of_masked_rows_were_taken_off_the_cost_of_others(weighed, particles):
    """The floor of the cost is for the rows that count: 4 of 12 seen, whose KL is above it, has all of its gradient."""
    program, seen = Panel(), torch.arange(12) < 4
    w = torch.linspace(0.5, 2.0, 12).double() if weighed else None
    data = {"x": X, "seen": seen} | ({"w": w} if weighed else {})
    program.double().setup(data, None)
    structure = check(program, data)
    each = (1.0 if w is None else w) * program.costs(X) * seen
    allowed = float((seen if w is None else w * seen).sum())
    free = 0.9 * float(each.sum()) / allowed  # nats a row: a little less than they cost
    slopes = []
    for how in (f"(free_bits={free})", "", f"(free_bits={1.3 * free})", "(beta=0.0)"):
        torch.manual_seed(0)
        loss, bound = Objective(program, structure, 12, objective=f"analytic{how}", particles=particles)(data)
        slopes.append((float(loss), torch.autograd.grad(loss, program.c)[0], float(bound)))
    assert slopes[0][2] == pytest.approx(slopes[2][2])
    assert slopes[0] == slopes[1], "they cost more than is free: the gradient of the ELBO"
    assert torch.equal(slopes[2][1], slopes[3][1]), "they cost less: none of the KL"
    assert slopes[2][0] - slopes[3][0] == pytest.approx(1.3 * free * allowed / 12)


@pytest.mark.parametrize("B", [12, 5])
def test_the_kl_of_weighed_rows_is_in_closed_form(B):
    """It was drawn, whose gradient is off by its noise; the oracle is autograd of Σ w_i KL_i."""
    program, w, seen = Panel(), torch.linspace(0.5, 2.0, 12).double(), torch.arange(12) != 3
    data = {"x": X, "w": w, "seen": seen}
    program.double().setup(data, None)
    o = Objective(program, check(program, data), 12, objective="analytic")
    batch = {k: v[:B] for k, v in data.items()}
    kl = next(t for t in o.terms(batch) if t.role == "kl")
    ours = torch.autograd.grad(kl.log_prob.sum(), (program.c, program.log_s))
    exact = -(w * program.costs(X) * seen)[:B].sum()
    torch.testing.assert_close(kl.log_prob.sum(), exact)
    torch.testing.assert_close(ours, torch.autograd.grad(exact, (program.c, program.log_s)))


@pytest.mark.parametrize(("guide", "said"), [(None, False), ("AutoNormal", True)])
def test_free_bits_without_a_kl_in_closed_form_are_said_to_do_nothing(guide, said, caplog):
    program = GuidedNormalMean() if guide is None else NormalMean()
    fit(program, {"x": X}, steps=2, objective="analytic(free_bits=0.5)", guide=guide, precision="64-true")
    assert ("free_bits=0.5 did nothing" in caplog.text) == said
    for name in ("sampled(free_bits=0.5)", "enumerate(beta=2.0)"):
        with pytest.raises(PpgenError, match="has no option"):
            fit(program, {"x": X}, steps=2, objective=name, guide=guide, precision="64-true")
