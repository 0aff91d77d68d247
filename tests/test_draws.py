"""Many draws: the recorded, batched run is the program run one draw at a time, in value, gradient and randomness."""

from __future__ import annotations

import logging
import random

import pyro
import pyro.distributions as dist
import pytest
import torch
from known import GuidedNormalMean, normal
from pyro import poutine

from ppgen import Program, rows
from ppgen import draws as draws_module
from ppgen.check import check
from ppgen.draws import FEW, Many, ManyTerms, one_draw
from ppgen.inference import fit, mcmc, posterior, sample

X = normal(6) + 1.0


def test_a_batch_of_draws_is_the_runs_one_by_one():
    """With inputs of each draw, there is nothing random left: equal to rounding."""
    a, z = torch.randn(3), torch.randn(40, 3)

    def one(a, z):
        return [a * z, (a @ z).exp(), dist.Normal(a.sum(), 1.0).log_prob(z)]

    many = Many(one, [a], [z[0]], name="test")
    for got, values in zip(many(40, [a], z[None].unbind(0)), zip(*(one(a, v) for v in z), strict=True), strict=True):
        torch.testing.assert_close(got, torch.stack(values))


@pytest.mark.parametrize("draws", [FEW, 5000])
def test_draws_are_independent_and_of_the_right_law(draws):
    torch.manual_seed(0)
    many = Many(lambda: [dist.Gamma(torch.full((2,), 3.0), 2.0).sample(), dist.Normal(1.0, 2.0).sample()], name="test")
    gamma, normal_ = many(draws)
    assert gamma.shape == (draws, 2) and normal_.shape == (draws,)
    # some meet in float32
    assert len(gamma.unique()) > 1.99 * draws and len(normal_.unique()) > 0.99 * draws
    assert abs(gamma.mean() - 1.5) < 4.5 * (3 / 4 / 2 / draws) ** 0.5
    assert abs(normal_.mean() - 1.0) < 4.5 * 2 / draws**0.5


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("fn", [dist.Gamma(3.0, 2.0), dist.Stable(1.5, 0.1), dist.Beta(2.0, 2.0)])
def test_batched_draws_leave_torch_nothing_to_warn_of(capfd, fn, gradient):
    """torch warns, on its own way to stderr and once a process, of what it runs one by one under vmap."""
    torch._C._debug_only_display_vmap_fallback_warnings(True)  # every time
    try:
        Many(lambda: [fn.sample((2,))], name="test", gradient=gradient)(2 * FEW)
    finally:
        torch._C._debug_only_display_vmap_fallback_warnings(False)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("gives", ["constants", "latents"])
def test_von_mises_draws_are_batched_each_its_own_and_of_the_right_law(gives, caplog):
    """E cos(y - loc) = I1(k) / I0(k), of constants as of values that differ from draw to draw."""

    def one() -> list[torch.Tensor]:
        drawn = gives == "latents"
        loc, k = (torch.randn(()), 1.0 + torch.rand(())) if drawn else (torch.tensor(0.3), torch.tensor(1.5))
        return [loc.clone(), k.clone(), dist.VonMises(loc, k).sample((30,))]

    torch.manual_seed(0)
    with caplog.at_level(logging.INFO, logger="ppgen"):
        loc, k, y = Many(one, name="angles")(4000)
    assert not caplog.records and y.shape == (4000, 30)
    assert len(y.unique()) > 0.95 * y.numel()  # float32 has equal ones among so many
    expected = torch.special.i1e(k) / torch.special.i0e(k)
    assert abs(((y - loc[:, None]).cos().mean(1) - expected).mean()) < 4 * 0.75 / 120_000**0.5


def test_what_cannot_be_recorded_is_run_one_by_one_and_said(caplog):
    def one():
        z = torch.randn(())
        return [z if z > 0 else -z]  # a value decides

    with caplog.at_level(logging.INFO, "ppgen"):
        (found,) = Many(one, name="Branch")(100)
    assert (found > 0).all() and len(found.unique()) == 100
    assert sum("Branch" in r.message and "one after the other" in r.message for r in caplog.records) == 1


def test_what_counts_its_calls_is_found_out():
    calls = []

    def one():
        calls.append(0)
        return [torch.tensor(float(len(calls)))]

    (found,) = Many(one, name="Counts")(30)
    assert len(found.unique()) == 30


class Stopped(Program):
    """z = a e under no_grad beside b e: a recorded run would give a gradient for a."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (torch.nn.Parameter(torch.tensor(v)) for v in (0.5, 0.7))

    def model(self, x=None):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with rows(x):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        with torch.no_grad():
            fixed = self.a * 2
        pyro.sample("z", dist.Normal(self.b + fixed + self.a.detach(), self.b.exp()))


def test_gradients_that_are_stopped_stay_stopped():
    program = Stopped().setup({"x": X})
    structure = check(program, {"x": X}, learn=False)
    many = ManyTerms(program, {"x": X}, structure, train=True)
    assert many.many.graph is not None, "recorded, with its no_grad"
    total = sum((t.sign * t.log_prob.sum() for t in many(8, {"x": X})), torch.zeros(()))
    a, b = torch.autograd.grad(total, [program.a, program.b], allow_unused=True)
    assert a is None or float(a) == 0.0
    assert float(b) != 0.0


@pytest.mark.parametrize("concentration", [[1.0, 2.0, 3.0], [0.3, 0.4, 5.0]])
def test_a_dirichlets_pathwise_gradient_goes_through_the_recorded_run(concentration):
    """Against torch's own implicit gradient, of the same draws."""
    alpha = torch.tensor(concentration).double().requires_grad_()
    weight = torch.tensor([1.0, -2.0, 0.5]).double()
    many = Many(lambda a: [(dist.Dirichlet(a).rsample() * weight).sum()], [alpha], name="test", gradient=True)
    assert many.graph is not None, "recorded, and its gradient is that of the program"
    (value,) = many(20_000, [alpha])
    (got,) = torch.autograd.grad(value.mean(), alpha)
    mean = alpha / alpha.sum()
    (exact,) = torch.autograd.grad((mean * weight).sum(), alpha)
    assert torch.allclose(got, exact, atol=0.02)


def test_terms_of_many_draws_are_those_of_one_with_a_dimension_more():
    program = GuidedNormalMean().setup({"x": X})
    structure = check(program, {"x": X})
    one, many = one_draw(program, {"x": X}, structure), ManyTerms(program, {"x": X}, structure)(30, {"x": X})
    for a, b in zip(one, many, strict=True):
        assert (a.site, a.role, a.dims, a.rows) == (b.site, b.role, b.dims, b.rows)
        assert b.log_prob.shape == (30, *a.log_prob.shape) and b.value.shape[1:] == a.value.shape


def test_private_parts_of_torch_and_pyro_are_there():
    """What the core reaches for behind their public interfaces, each in one file."""
    from pyro.infer.traceenum_elbo import _compute_model_factors  # ppgen.enumerated
    from pyro.ops import special
    from torch.distributions import dirichlet, von_mises  # ppgen.engine.graphs.trace, .von_mises
    from torch.nn.utils.stateless import _reparametrize_module  # ppgen.draws, ppgen.engine.graphs.gradient

    assert callable(_compute_model_factors) and callable(_reparametrize_module)
    assert callable(von_mises._rejection_sample)
    assert hasattr(special, "_SafeLog") and hasattr(dirichlet, "_Dirichlet") and hasattr(torch, "_dirichlet_grad")


A = torch.tensor([0.5, 2.0])


def _drawn(one, inputs=(), each=(), gradient=False):
    """Of 20 draws, from one random state."""
    torch.manual_seed(0)
    return Many(one, inputs, [v[0] for v in each], name="test", gradient=gradient)(20, inputs, each)


@pytest.fixture
def made(monkeypatch):
    """The recordings that were worked out, from none."""
    recordings, of = [], draws_module.Recording
    monkeypatch.setattr(draws_module, "_recordings", {})
    monkeypatch.setattr(draws_module, "Recording", lambda *args: recordings.append(of(*args)) or recordings[-1])
    return recordings


def _base(a):
    return [dist.Gamma(a, 2.0).sample() + 0.5 * torch.randn(2)]


OTHERS = {
    "an operation": (lambda a: [dist.Gamma(a, 2.0).sample() - 0.5 * torch.randn(2)], [A]),
    "a number": (lambda a: [dist.Gamma(a, 2.0).sample() + 0.25 * torch.randn(2)], [A]),
    "a shape of noise": (lambda a: [dist.Gamma(a, 2.0).sample() + 0.5 * torch.randn(1)], [A]),
    "a law of noise": (lambda a: [dist.Gamma(a, 2.0).sample() + 0.5 * torch.rand(2)], [A]),
    "the order of its operands": (lambda a: [0.5 * torch.randn(2) + dist.Gamma(a, 2.0).sample()], [A]),
    "an output more": (lambda a: [*_base(a), a], [A]),
    "the shape of an input": (_base, [A[:1]]),
    "the dtype of an input": (_base, [A.double()]),
}


@pytest.mark.parametrize("other", OTHERS)
def test_only_an_equal_graph_is_worked_out_once(other, made):
    """What a first program left behind changes no draw of a second one that differs from it in one thing."""
    one, inputs = OTHERS[other]
    fresh = _drawn(one, inputs)
    made.clear(), draws_module._recordings.clear()
    _drawn(_base, [A])
    again = _drawn(one, inputs)
    assert len(made) == 2 and all(torch.equal(a, b) for a, b in zip(fresh, again, strict=True))


def test_an_input_of_each_draw_is_not_one_of_all(made):
    a = torch.rand(20, 2) + 1.0
    _drawn(_base, [a[0]])
    each = _drawn(_base, each=[a])
    assert len(made) == 2 and not torch.equal(each[0], _drawn(_base, [a[0]])[0])
    _drawn(_base, [A.clone().requires_grad_()], gradient=True)
    assert len(made) == 3, "and gradients want another one"


def test_what_a_program_closes_over_may_change(made):
    """Parameters, columns and other tensors are inputs of the graph, and are those of now."""
    scale = torch.tensor(1.0)
    first = _drawn(lambda: [scale * torch.randn(3)])
    scale = torch.tensor(3.0)
    second = _drawn(lambda: [scale * torch.randn(3)])
    scale.fill_(5.0)
    third = _drawn(lambda: [scale * torch.randn(3)])
    assert len(made) == 1 and torch.equal(second[0], 3 * first[0]) and torch.equal(third[0], 5 * first[0])


def test_an_equal_graph_tells_nothing_of_what_is_no_operation(made):
    """What a program draws elsewhere, or the gradient that it says it has, is seen though another left such a graph."""

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a):
            return a * 3

        @staticmethod
        def backward(ctx, grad):
            return grad * 2

    _drawn(lambda: [torch.tensor(0.5) * torch.ones(())])
    assert len(_drawn(lambda: [torch.tensor(random.random()) * torch.ones(())])[0].unique()) == 20
    a = A.clone().requires_grad_()
    _drawn(lambda a: [a * 3 + torch.randn(2)], [a], gradient=True)
    _drawn(lambda a: [Doubled.apply(a) + torch.randn(2)], [a], gradient=True)[0].sum().backward()
    assert len(made) == 2 and torch.equal(a.grad, torch.full((2,), 40.0))


def test_a_room_for_all_draws_is_kept_and_the_oldest_recordings_are_not(made, monkeypatch):
    def one():
        p = torch.zeros(2)
        p[0] = torch.randn(())
        return [p]

    _drawn(one)
    assert made[0].narrow is None and _drawn(one)[0][:, 0].std() > 0 and len(made) == 1
    monkeypatch.setattr(draws_module, "MOST_RECORDINGS", 2)
    for n in (3, 4, 5):
        _drawn(lambda n=n: [torch.randn(n)])
    assert len(draws_module._recordings) == 2
    _drawn(one)
    assert len(made) == 5


def test_draws_of_a_program_with_a_seed_of_its_own_are_said_to_be_one(caplog):
    """Within `poutine.seed`, which puts the random state back, predictions had a third of their sd, without a word."""

    def plain(x=None):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with rows(x):
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def features(x=None):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            shift = torch.randn(())
        return plain(x) + shift

    def seeding(x=None):
        pyro.set_rng_seed(3)
        return plain(x)

    said = "are all made of the same random numbers"
    for model, expected in (
        (plain, False),
        (features, False),
        (poutine.seed(plain, rng_seed=1), True),
        (seeding, True),
    ):
        caplog.clear()
        z = sample(model, 50, seed=0)["z"]
        assert (said in caplog.text) == expected == (float(z.std()) == 0)
        if expected:
            caplog.clear()
            mcmc(model, {"x": torch.ones(3)}, chains=4, draws=10, warmup=20, prior=False)
            assert said in caplog.text
        caplog.clear()
        run = fit(model, {"x": torch.ones(3)}, steps=2, guide="AutoNormal", seed=0)
        posterior(run, {"x": torch.ones(3)}, draws=50)  # the guide, which draws in no seed, hid it
        assert (said in caplog.text) == expected
