"""Objectives against closed forms, enumeration and Pyro's own estimators; gradients too, by standard error."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from ppgen import PpgenError, Program, rows
from ppgen.check import check
from ppgen.data import take
from ppgen.inference.objective import Objective

torch.set_num_threads(1)
N = 12
X = torch.randn(N, generator=torch.Generator().manual_seed(0)) * 1.5
MANY = X.repeat_interleave(200)  # the rows of X, each of them many times: so many draws at once


class Linear(Program):
    """z ~ N(0, 1), x | z ~ N(θ z, 1), q = N(a x, s)."""

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(0.8))
        self.a = nn.Parameter(torch.tensor(0.3))
        self.s = nn.Parameter(torch.tensor(0.7))

    def model(self, x=None):
        with rows(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(self.theta * z, 1.0), obs=x)

    def guide(self, x):
        with rows(x):
            pyro.sample("z", dist.Normal(self.a * x, self.s))

    def elbo(self, x):
        m, v = self.a * x, self.s**2
        ll = -0.5 * math.log(2 * math.pi) - 0.5 * ((x - self.theta * m) ** 2 + self.theta**2 * v)
        kl = 0.5 * (m**2 + v - 1 - v.log())
        return (ll - kl).sum()

    def log_prob(self, x):
        return dist.Normal(0.0, (1 + self.theta**2).sqrt()).log_prob(x)

    def iwae(self, x, kl_weight=1.0, order=40):
        """E log ½ (w_1 + w_2) summed over x, the latent terms of log w times kl_weight: by quadrature over both z."""
        nodes, weights = (torch.tensor(v) for v in np.polynomial.hermite_e.hermegauss(order))
        z = self.a * x.double()[:, None] + self.s * nodes
        prior, guide = dist.Normal(0.0, 1.0), dist.Normal(self.a * x.double()[:, None], self.s)
        likelihood = dist.Normal(self.theta * z, 1.0).log_prob(x.double()[:, None])
        log_w = likelihood + kl_weight * (prior.log_prob(z) - guide.log_prob(z))
        bound = torch.logaddexp(log_w[:, :, None], log_w[:, None, :]) - math.log(2)
        return (bound @ weights @ weights / (2 * math.pi)).sum()


class Mixed(Program):
    """One global w, local z, local discrete b without reparametrisation: every kind of term at once."""

    def __init__(self):
        super().__init__()
        self.w_loc = nn.Parameter(torch.tensor(0.4))
        self.w_scale = nn.Parameter(torch.tensor(0.5))
        self.logit = nn.Parameter(torch.tensor(0.2))
        self.slope = nn.Parameter(torch.tensor(0.6))
        self.prior_logit = nn.Parameter(torch.tensor(-0.3))

    def model(self, x=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with rows(x):
            b = pyro.sample("b", dist.Bernoulli(logits=self.prior_logit))
            pyro.sample("x", dist.Normal(w + 1.5 * b, 1.0), obs=x)

    def guide(self, x):
        pyro.sample("w", dist.Normal(self.w_loc, self.w_scale.abs()))
        with rows(x):
            pyro.sample("b", dist.Bernoulli(logits=self.logit + self.slope * x))

    def elbo(self, x, kl_weight=1.0):
        q = torch.sigmoid(self.logit + self.slope * x)
        p = torch.sigmoid(self.prior_logit)
        m, v = self.w_loc, self.w_scale**2

        def ll(b):
            return -0.5 * math.log(2 * math.pi) - 0.5 * ((x - m - 1.5 * b) ** 2 + v)

        local = q * (q.log() - p.log()) + (1 - q) * ((1 - q).log() - (1 - p).log())
        kl = local.sum() + 0.5 * (m**2 + v - 1 - v.log())
        return (q * ll(1) + (1 - q) * ll(0)).sum() - kl_weight * kl


def objective(program, data, **options):
    program.setup(data)
    structure = check(program, data)
    return Objective(program, structure, len(data["x"]), **options)


def gradients(loss, program):
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(program.parameters()))])


def draws(obj, program, n, batch, kl_weight=1.0):
    """The figure, and the gradient of what is maximised, (n, 1 + parameters)."""
    values = []
    for i in range(n):
        torch.manual_seed(i)
        loss, elbo = obj(batch(i) if callable(batch) else batch, kl_weight)
        values.append(torch.cat([elbo[None], -gradients(loss, program) * obj.rows]))
    return torch.stack(values).double()


def within(values, exact, name="", precise=0.02):
    """The mean of the draws is the exact value: 4.5 standard errors, which are below 2% of its size."""
    se = values.std(0) / len(values) ** 0.5
    off = (values.mean(0) - exact).abs()
    assert (off < 4.5 * se + 1e-4).all(), (name, off / se)
    assert (se[0] < precise * exact[0].abs()).all(), (name, "too few draws", se[0] / exact[0])


def exact_of(program, x, bound="elbo", **how):
    value = getattr(program, bound)(x, **how)
    return torch.cat([value[None].detach(), gradients(value, program)]).double()


@pytest.mark.parametrize("program", [Linear, Mixed])
@pytest.mark.parametrize("name", ["analytic", "sampled"])
@pytest.mark.parametrize("particles", [1, 5])
def test_elbo_and_its_gradient_are_unbiased(program, name, particles):
    """1500 draws of 12 rows: where nothing is global, in 30 runs of 200 times the rows, a fourfold of them."""
    program = program()
    x, times = (MANY, 200) if isinstance(program, Linear) else (X, 1)
    obj = objective(program, {"x": x}, objective=name, particles=particles)
    n = 30 if times > 1 else 1500 // particles
    within(draws(obj, program, n, {"x": x}), times * exact_of(program, X))


def test_minibatches_are_unbiased_where_latents_are_local():
    """Over all batches of a quarter of the rows in turn, the mean of gradients is the full gradient."""
    program = Linear()
    obj = objective(program, {"x": MANY})
    found = draws(obj, program, 80, lambda i: take({"x": MANY}, torch.arange(600) + 600 * (i % 4)))
    within(found.unflatten(0, (20, 4)).mean(1), 200 * exact_of(program, X))


def test_minibatches_are_unbiased_where_a_latent_is_global():
    """Likewise of 3 rows, beside a global latent and one without reparametrisation."""
    program = Mixed()
    obj = objective(program, {"x": X}, particles=5)
    found = draws(obj, program, 480, lambda i: take({"x": X}, torch.arange(3) + 3 * (i % 4)))
    within(found.unflatten(0, (120, 4)).mean(1), exact_of(program, X))


def test_iwae_on_minibatches_is_unbiased_where_latents_are_local():
    """Two particles: the bound of a batch of N/4 rows, and its gradient, stand for all N."""
    program = Linear()
    obj = objective(program, {"x": MANY}, objective="iwae", particles=2)
    found = draws(obj, program, 80, lambda i: take({"x": MANY}, torch.arange(600) + 600 * (i % 4)))
    within(found.unflatten(0, (20, 4)).mean(1), 200 * exact_of(program, X, "iwae"), precise=0.005)


def test_iwae_on_minibatches_is_unbiased_where_a_latent_is_global():
    """One particle: iwae is then the ELBO. (The log of a mean over more has a bias by minibatches.)"""

    class Mean(Program):
        def __init__(self):
            super().__init__()
            self.loc, self.scale = nn.Parameter(torch.tensor(0.4)), nn.Parameter(torch.tensor(0.5))

        def model(self, x=None):
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
            with rows(x):
                pyro.sample("x", dist.Normal(w, 1.0), obs=x)

        def guide(self, x):
            pyro.sample("w", dist.Normal(self.loc, self.scale))

        def elbo(self, x):
            m, v = self.loc, self.scale**2
            ll = -0.5 * math.log(2 * math.pi) - 0.5 * ((x - m) ** 2 + v)
            return ll.sum() - 0.5 * (m**2 + v - 1 - v.log())

    program = Mean()
    obj = objective(program, {"x": X}, objective="iwae", particles=1)
    found = draws(obj, program, 240, lambda i: take({"x": X}, torch.arange(3) + 3 * (i % 4)))
    within(found.unflatten(0, (60, 4)).mean(1), exact_of(program, X))


def test_the_analytic_kl_has_no_noise_of_its_own():
    program = Linear()
    program.theta.data.zero_()  # the likelihood does not depend on z, and the KL is all that is left
    noise = {
        e: draws(objective(program, {"x": X}, objective=e), program, 50, {"x": X})[:, 0].std()
        for e in ("analytic", "sampled")
    }
    assert noise["analytic"] < 1e-5 < noise["sampled"]


def test_analytic_kl_is_not_used_against_the_order_of_sampling():
    """p(a | b) p(b) against q(a) q(b | a): the closed form at the sampled b would be wrong."""

    class Reversed(Program):
        def __init__(self):
            super().__init__()
            self.c = nn.Parameter(torch.tensor(1.2))

        def model(self, x=None):
            with rows(x):
                b = pyro.sample("b", dist.Normal(0.0, 1.0))
                a = pyro.sample("a", dist.Normal(b, 1.0))
                pyro.sample("x", dist.Normal(a, 1.0), obs=x)

        def guide(self, x):
            with rows(x):
                a = pyro.sample("a", dist.Normal(0.5 * x, 1.0))
                pyro.sample("b", dist.Normal(self.c * a, 0.8))

        def elbo(self, x):  # E_q of each Gaussian term
            ea, va, c, s = 0.5 * x, torch.tensor(1.0), self.c, 0.8
            eb2 = c**2 * (ea**2 + va) + s**2
            ab2 = (1 - c) ** 2 * (ea**2 + va) + s**2
            log2pi = math.log(2 * math.pi)
            log_p = -1.5 * log2pi - 0.5 * (eb2 + ab2 + (x - ea) ** 2 + va)
            entropy = 0.5 * (1 + log2pi) * 2 + math.log(s)
            return (log_p + entropy).sum()

    program = Reversed()
    within(draws(objective(program, {"x": MANY}), program, 30, {"x": MANY}), 200 * exact_of(program, X))


@pytest.mark.parametrize("particles", [1, 7])
@pytest.mark.parametrize(("name", "pyros"), [("sampled", Trace_ELBO), ("analytic", TraceMeanField_ELBO)])
def test_equal_to_pyro_from_the_same_seed(name, pyros, particles):
    program = Linear()
    obj = objective(program, {"x": X}, objective=name, particles=particles)
    other = pyros(num_particles=particles, vectorize_particles=True, max_plate_nesting=1)
    torch.manual_seed(5)
    loss, value = obj({"x": X})
    torch.manual_seed(5)
    theirs = other.differentiable_loss(program.model, program.guide, X)
    torch.testing.assert_close(-value, theirs.detach())
    torch.testing.assert_close(gradients(loss, program) * N, gradients(theirs, program))


def test_iwae_equals_its_definition_and_tightens():
    program = Linear()
    exact = program.log_prob(X).sum().item()
    means = []
    for k in (1, 5, 50):
        obj = objective(program, {"x": MANY}, objective="iwae", particles=k)
        torch.manual_seed(0)
        values = torch.tensor([obj({"x": MANY})[1] for _ in range(10)])
        means.append(values.mean().item() / 200)
    assert abs(means[0] - program.elbo(X).item()) < 0.05 * abs(exact)
    assert means[0] < means[1] < means[2] < exact + 0.02
    assert exact - means[2] < 0.05

    obj = objective(program, {"x": X}, objective="iwae", particles=6)
    torch.manual_seed(1)
    loss, value = obj({"x": X})
    torch.manual_seed(1)
    z = program.a * X + program.s * torch.randn(6, N)
    log_w = (
        dist.Normal(0.0, 1.0).log_prob(z)
        + dist.Normal(program.theta * z, 1.0).log_prob(X)
        - dist.Normal(program.a * X, program.s).log_prob(z)
    )
    bound = (log_w.logsumexp(0) - math.log(6)).sum()
    torch.testing.assert_close(value, bound.detach())
    torch.testing.assert_close(-gradients(loss, program) * N, gradients(bound, program))


def test_iwae_refuses_what_it_cannot_reparametrise():
    with pytest.raises(PpgenError, match="'b' has no reparametrisation"):
        objective(Mixed(), {"x": X}, objective="iwae", particles=2)


def test_kl_weight_reaches_the_loss_and_not_the_figure():
    program = Linear()
    obj = objective(program, {"x": X})
    torch.manual_seed(0)
    full, elbo = obj({"x": X})
    torch.manual_seed(0)
    half, same = obj({"x": X}, 0.5)
    m, v = program.a * X, program.s**2
    kl = (0.5 * (m**2 + v - 1 - v.log())).sum()
    assert elbo == same
    torch.testing.assert_close((full - half) * N, 0.5 * kl)


def test_kl_weight_reaches_both_latent_terms_of_iwae():
    """p(z) and q(z) alike: the gradient of the log of a mean of weights, at half the weight."""
    program = Linear()
    obj = objective(program, {"x": MANY}, objective="iwae", particles=2)
    exact = 200 * exact_of(program, X, "iwae", kl_weight=0.5)
    within(draws(obj, program, 100, {"x": MANY}, 0.5)[:, 1:], exact[1:])


def test_kl_weight_reaches_the_loss_of_iwae_and_not_its_figure():
    program = Linear()
    obj = objective(program, {"x": MANY}, objective="iwae", particles=2)
    within(draws(obj, program, 20, {"x": MANY}, 0.5)[:, :1], 200 * exact_of(program, X, "iwae")[:1])


def test_kl_weight_reaches_the_score_function():
    """Of a discrete latent whose gradient has no path: that of E log p(x | z) - KL / 2, and the figure as it was."""
    program = Mixed()
    obj = objective(program, {"x": X}, objective="sampled", particles=500)
    exact = exact_of(program, X, kl_weight=0.5)
    exact[0] = program.elbo(X)
    within(draws(obj, program, 100, {"x": X}, 0.5), exact, precise=0.005)


def test_enumeration_sums_the_discrete_latents_out():
    def model(x=None):
        loc = pyro.param("loc", torch.tensor([-1.0, 2.0]))
        with rows(x):
            b = pyro.sample("b", dist.Categorical(torch.tensor([0.3, 0.7])))
            pyro.sample("x", dist.Normal(loc[b], 1.0), obs=x)

    def guide(x):
        pass

    program = Program.from_pair(model, guide)
    program.setup({"x": X})
    structure = check(program, {"x": X}, enumerated=("b",))
    obj = Objective(program, structure, N, objective="enumerate")
    loss, value = obj({"x": X})
    loc = program.get_parameter("param:loc")
    exact = torch.logsumexp(torch.tensor([0.3, 0.7]).log() + dist.Normal(loc, 1.0).log_prob(X[:, None]), -1).sum()
    torch.testing.assert_close(value, exact.detach())
    torch.testing.assert_close(-gradients(loss, program) * N, gradients(exact, program))
    half, value = obj(take({"x": X}, torch.arange(0, N, 2)))
    exact_half = (
        2 * torch.logsumexp(torch.tensor([0.3, 0.7]).log() + dist.Normal(loc, 1.0).log_prob(X[::2, None]), -1).sum()
    )
    torch.testing.assert_close(value, exact_half.detach())


def test_masks_and_scales_are_kept():
    keep = torch.arange(N) % 3 != 0

    class Masked(Linear):
        def model(self, x=None):
            with rows(x):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                with pyro.poutine.mask(mask=keep), pyro.poutine.scale(scale=2.0):
                    pyro.sample("x", dist.Normal(self.theta * z, 1.0), obs=x)

    program = Masked()
    for name, pyros in (("sampled", Trace_ELBO), ("analytic", TraceMeanField_ELBO)):
        obj = objective(program, {"x": X}, objective=name)
        torch.manual_seed(2)
        _, value = obj({"x": X})
        torch.manual_seed(2)
        torch.testing.assert_close(-value.item(), pyros().loss(program.model, program.guide, X), rtol=1e-5, atol=1e-5)


def test_a_masked_latent_costs_nothing_and_a_scaled_one_as_much_more():
    """The likelihood does not depend on z here: what is left of the noise is the drawn KL's."""
    keep = torch.arange(N) % 3 != 0

    class Masked(Linear):
        def model(self, x=None):
            with rows(x):
                with pyro.poutine.mask(mask=keep), pyro.poutine.scale(scale=2.0):
                    z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(0 * self.theta * z, 1.0), obs=x)

        def guide(self, x):
            with rows(x), pyro.poutine.mask(mask=keep), pyro.poutine.scale(scale=2.0):
                pyro.sample("z", dist.Normal(self.a * x, self.s))

        def elbo(self, x):
            m, v = self.a * x, self.s**2
            kl = 0.5 * (m**2 + v - 1 - v.log())
            return dist.Normal(0.0, 1.0).log_prob(x).sum() - 2.0 * kl[keep].sum()

    program = Masked()
    exact = float(program.elbo(X).detach())
    assert float(objective(program, {"x": X}, objective="analytic")({"x": X})[1]) == pytest.approx(exact, rel=1e-5)
    torch.manual_seed(0)
    obj = objective(program, {"x": X}, objective="sampled", particles=4000)
    assert float(obj({"x": X})[1]) == pytest.approx(exact, rel=0.01)


def test_a_constant_longer_than_the_batch_does_not_upset_the_weights():
    """40 groups' covariates beside 100 rows: a batch of 10 rows still weighs 100/10."""
    groups, u = torch.arange(100) % 40, torch.linspace(-1, 1, 40)
    y = torch.randn(100, generator=torch.Generator().manual_seed(0))

    class Groups(Program):
        def __init__(self):
            super().__init__()
            self.slope = nn.Parameter(torch.tensor(0.5))

        def model(self, u, group, y=None):
            with rows(group):
                pyro.sample("y", dist.Normal(self.slope * u[group], 1.0), obs=y)

    program, data = Groups(), {"u": u, "group": groups, "y": y}
    program.setup(data)
    structure = check(program, data, batch_size=10)
    assert structure.row_columns == ("group", "y") and structure.row_plates == {"data"}
    obj = Objective(program, structure, 100)
    full = obj(data)[1]
    parts = [obj(take(data, slice(10 * i, 10 * i + 10)))[1] for i in range(10)]
    torch.testing.assert_close(torch.stack(parts).mean(), full)


def test_it_is_the_guides_draw_that_is_reparametrised():
    class Mixture(Linear):
        def model(self, x=None):
            mix = dist.Categorical(torch.tensor([0.5, 0.5]))
            prior = dist.MixtureSameFamily(mix, dist.Normal(torch.tensor([-1.0, 1.0]), 1.0))
            with rows(x):
                z = pyro.sample("z", prior)
                pyro.sample("x", dist.Normal(self.theta * z, 1.0), obs=x)

    obj = objective(Mixture(), {"x": X}, objective="iwae", particles=3)
    assert obj.particles == 3
    assert objective(Mixture(), {"x": X}).particles == 1
