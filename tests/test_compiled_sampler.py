"""The forward model as one graph: the same draws as the program's own, faster."""

import random

import pyro
import pyro.distributions as dist
import pytest
import torch

import ppgen
from ppgen.errors import PpgenError
from ppgen.inference import compiled_sampler, fit, sample
from ppgen.models import PPCA, VAE, EightSchools, Flow


def flow(**how):
    torch.manual_seed(1)
    program = Flow(3, transforms=2, hidden=(8,), **how).double()
    with torch.no_grad():
        for p in program.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return program


@pytest.mark.parametrize(
    "make",
    [
        flow,
        lambda: flow(family="maf", base="student"),
        lambda: flow(family="nsf_coupling", mix="lu"),
        lambda: VAE(6, latent=2, hidden=(8,)),
        lambda: PPCA(5, latent=2),
    ],
    ids=["nsf", "maf, student", "coupling", "vae", "ppca"],
)
def test_draws_are_those_of_sample(make):
    program = make()
    draw = compiled_sampler(program, 30, engine="trace")
    ours, own = draw(seed=4), sample(program, 30, seed=4)
    assert list(ours) == list(own)
    for name in own:
        assert ours[name].dtype == own[name].dtype
        assert torch.allclose(ours[name], own[name], atol=1e-6)
    assert not torch.equal(draw()["x"], draw()["x"])


@pytest.mark.slow
@pytest.mark.parametrize("family", ["maf", "nsf", "realnvp"])
def test_compiled_draws_are_those_of_sample(family):
    program = flow(family=family)
    assert torch.allclose(compiled_sampler(program, 30)(seed=4)["x"], sample(program, 30, seed=4)["x"], atol=1e-6)


def test_the_random_state_is_as_after_sample():
    program = flow()
    draw = compiled_sampler(program, 20, engine="trace")
    torch.manual_seed(0)
    draw()
    ours = torch.rand(3)
    torch.manual_seed(0)
    sample(program, 20)
    assert torch.equal(ours, torch.rand(3))


def test_parameters_that_change_in_place_are_used():
    program = flow()
    draw = compiled_sampler(program, 20, engine="trace")
    with torch.no_grad():
        program.loc.add_(5.0)
    assert torch.allclose(draw(seed=0)["x"], sample(program, 20, seed=0)["x"])


def test_a_run_and_a_context():
    x = torch.randn(200, 1)
    program = Flow(1, transforms=1, hidden=(8,), context=1)
    run = fit(program, {"x": x, "context": x + 1}, steps=3)
    at = torch.linspace(0, 1, 20)[:, None]
    draw = compiled_sampler(run, 20, given={"context": at}, engine="trace")
    assert torch.allclose(draw(seed=2)["x"], sample(run, 20, given={"context": at}, seed=2)["x"], atol=1e-6)


class Careless(ppgen.Program):
    def __init__(self, how):
        super().__init__()
        self.how = how

    def model(self, x=None):
        with ppgen.rows(x):
            loc = random.random() if self.how == "random" else torch.zeros(())
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            if self.how == "branch" and z.sum() > 0:
                z = z + 1
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize(
    ("make", "how", "message"),
    [
        (flow, {"engine": "fast"}, "no engine 'fast'"),
        (lambda: Flow(2, context=1), {"engine": "trace"}, "no context was given"),
        (lambda: Careless("random"), {"engine": "trace"}, "draws other values of 'z'"),
        (lambda: Careless("branch"), {"engine": "trace"}, "cannot be traced: test_compiled_sampler.py"),
    ],
)
def test_what_cannot_be_has_its_sentence(make, how, message):
    with pytest.raises(PpgenError, match=message):
        compiled_sampler(make(), 10, **how)


def test_global_latents_are_for_sample():
    data = ppgen.data.load("eight_schools")
    with pytest.raises(PpgenError, match=r"sample\(\)|not drawn row by row"):
        compiled_sampler(EightSchools(), 10, given={"sigma": data["sigma"]}, engine="trace")
