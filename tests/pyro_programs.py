"""Programs as Pyro users write them: what tests/test_pyro_programs.py runs through everything that ppgen does."""

from __future__ import annotations

import argparse
import functools
from collections import namedtuple
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.contrib.conjugate.infer import BetaBinomialPair, collapse_conjugate
from pyro.distributions import constraints
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoGuideList, AutoNormal, init_to_mean
from pyro.infer.reparam import (
    DiscreteCosineReparam,
    HaarReparam,
    LatentStableReparam,
    LocScaleReparam,
    SplitReparam,
    StableReparam,
)
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import nn

X = torch.tensor([0.3, -0.2, 1.1, 0.8, 0.4, -0.6])
G = torch.tensor([0, 0, 1, 1, 2, 2])
B = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])


class Case(NamedTuple):
    """A program.

    model, guide: as its author has them; data: its arguments by name; how: what `fit` is told besides; pyro: the class
    of Pyro's ELBO that is to be met, "" where its call takes more than named arguments.
    """

    model: Callable
    guide: Any = None
    data: dict[str, Any] = {"x": X}
    how: dict[str, Any] = {}
    pyro: str = "Trace_ELBO"
    refused: dict[str, str] = {}


CASES: dict[str, Callable[[], Case]] = {}


def case(**refused: str) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    """A row; what cannot be done with it, and words of the sentence that says so."""

    def add(f: Callable[[], Case]) -> Callable[[], Case]:
        CASES[f.__name__.replace("_", " ")] = lambda: f()._replace(refused=refused)
        return f

    return add


NEEDS = "cannot be run without the column"
POINT = "at a point is no bound"
ONLY = "has none that is continuous"
SUMS = "cannot be run at all of its values at once"
DIFFER = "other sites or shapes from draw to draw"


def mean_model(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def mean_guide(x):
    loc = pyro.param("loc", torch.tensor(0.1))
    scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
    pyro.sample("mu", dist.Normal(loc, scale))


@case()
def functions():
    return Case(mean_model, mean_guide)


@case()
def bound_methods_of_one_module():
    class VAE(nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder, self.encoder = nn.Linear(2, 3), nn.Linear(3, 4)

        def model(self, x):
            pyro.module("decoder", self.decoder)
            with pyro.plate("data", x.shape[0]):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("obs", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

        def guide(self, x):
            pyro.module("encoder", self.encoder)
            with pyro.plate("data", x.shape[0]):
                loc, s = self.encoder(x).chunk(2, -1)
                pyro.sample("z", dist.Normal(loc, s.exp()).to_event(1))

    vae = VAE()
    return Case(vae.model, vae.guide, {"x": torch.randn(5, 3)})


@case()
def no_arguments_data_is_global():
    def model():
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        with pyro.plate("data", 6):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=X)

    return Case(model, None, {})


@case()
def conditioned_model():
    def joint():
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        with pyro.plate("data", 6):
            pyro.sample("x", dist.Normal(mu, 1.0))

    model = poutine.condition(joint, data={"x": X})
    return Case(model, AutoDiagonalNormal(model), {})


@case()
def pyro_condition():
    def scale(guess):
        weight = pyro.sample("weight", dist.Normal(guess, 1.0))
        return pyro.sample("measurement", dist.Normal(weight, 0.75))

    def guide(guess):
        a = pyro.param("a", torch.tensor(8.5))
        b = pyro.param("b", torch.tensor(1.0), constraint=constraints.positive)
        pyro.sample("weight", dist.Normal(a, b))

    return Case(pyro.condition(scale, data={"measurement": torch.tensor(9.5)}), guide, {"guess": 8.5})


@case()
def none_bool_str_int_float_arguments():
    def model(x, y=None, wide=False, kind="normal", k=3, s=1.5):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(k), 2.0 if wide else 1.0).to_event(1))
        d = dist.Normal if kind == "normal" else dist.Cauchy
        with pyro.plate("data", len(x)):
            pyro.sample("x", d(mu.sum(), s), obs=x)

    return Case(model, None, {"x": X, "y": None, "wide": True, "kind": "normal", "k": 2, "s": 2.5})


@case()
def an_integer_size():
    def model(n, hits=None):
        p = pyro.sample("p", dist.Beta(2.0, 2.0))
        with pyro.plate("players", n):
            return pyro.sample("hits", dist.Bernoulli(p), obs=hits)

    return Case(model, None, {"n": 6, "hits": B})


@case()
def a_list_of_tensors_one_site_each():
    def model(data):
        f = pyro.sample("f", dist.Beta(10.0, 10.0))
        for i in range(len(data)):
            pyro.sample(f"obs_{i}", dist.Bernoulli(f), obs=data[i])

    def guide(data):
        a = pyro.param("alpha_q", torch.tensor(15.0), constraint=constraints.positive)
        b = pyro.param("beta_q", torch.tensor(15.0), constraint=constraints.positive)
        pyro.sample("f", dist.Beta(a, b))

    return Case(model, guide, {"data": [torch.tensor(1.0)] * 6 + [torch.tensor(0.0)] * 4})


@case(sample=NEEDS)
def a_dict_of_tensors():
    def model(batch):
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(batch["x"])):
            pyro.sample("y", dist.Normal(b * batch["x"], 1.0), obs=batch["y"])

    return Case(model, None, {"batch": {"x": X, "y": 2 * X}})


@case()
def a_list_of_tensors_of_two_lengths():
    def model(sequences):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        for i in pyro.plate("sequences", len(sequences)):
            with pyro.plate(f"steps_{i}", len(sequences[i])):
                pyro.sample(f"x_{i}", dist.Normal(mu, 1.0), obs=sequences[i])

    return Case(model, None, {"sequences": [X, X[:4]]})


@case(sample=NEEDS)
def a_named_tuple():
    Batch = namedtuple("Batch", "x y")

    def model(batch):
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(batch.x)):
            pyro.sample("y", dist.Normal(b * batch.x, 1.0), obs=batch.y)

    return Case(model, None, {"batch": Batch(X, 2 * X)})


@case()
def a_namespace_and_a_function():
    def model(x, args, link):
        mu = pyro.sample("mu", dist.Normal(0.0, args.scale))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(link(mu), 1.0), obs=x)

    return Case(model, None, {"x": X, "args": argparse.Namespace(scale=2.0), "link": torch.tanh})


@case()
def keywords_of_any_name():
    def model(**kwargs):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(kwargs["x"])):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=kwargs["x"])

    def guide(**kwargs):
        mean_guide(None)

    return Case(model, guide)


@case(sample=NEEDS)
def any_number_of_arguments():
    def model(*args):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(args[0])):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=args[0] + args[1])

    def guide(*args):
        mean_guide(None)

    return Case(model, guide, {"args": (X, X)}, {}, pyro="")


@case()
def a_plate_without_a_size():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data"):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    return Case(model)


@case()
def a_plate_that_subsamples():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=3) as i:
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x[i])

    return Case(model, mean_guide)


@case()
def a_subsample_given():
    def model(x, index):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 12, subsample=index):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    def guide(x, index):
        mean_guide(x)

    return Case(model, guide, {"x": X, "index": torch.tensor([0, 3, 4, 7, 8, 9])})


@case()
def the_guide_alone_subsamples():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)) as i:
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[i])

    def guide(x):
        mean_guide(x)
        a = pyro.param("a", torch.zeros(6))
        with pyro.plate("data", len(x), subsample_size=3) as i:
            pyro.sample("z", dist.Normal(a[i], 1.0))

    return Case(model, guide)


@case()
def an_amortised_guide_with_a_subsampling_plate():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=3) as i:
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[i])

    def guide(x):
        mean_guide(x)
        a = pyro.param("a", torch.tensor(0.5))
        with pyro.plate("data", len(x), subsample_size=3) as i:
            pyro.sample("z", dist.Normal(a * x[i], 1.0))

    return Case(model, guide)


@case()
def a_sequential_plate():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        for i in pyro.plate("data", len(x)):
            pyro.sample(f"x_{i}", dist.Normal(mu, 1.0), obs=x[i])

    return Case(model)


@case()
def a_sequential_plate_with_latents():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        for i in pyro.plate("data", len(x)):
            z = pyro.sample(f"z_{i}", dist.Normal(mu, 1.0))
            pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=x[i])

    return Case(model)


@case(fit="an autoguide has no place for the others")
def latents_of_a_sequential_plate_that_subsamples():
    def model(x):
        for i in pyro.plate("data", len(x), subsample_size=2):
            z = pyro.sample(f"z_{i}", dist.Normal(0.0, 1.0))
            pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=x[i])

    return Case(model)


@case()
def a_sequential_plate_that_subsamples():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        for i in pyro.plate("data", len(x), subsample_size=2):
            pyro.sample(f"x_{i}", dist.Normal(mu, 1.0), obs=x[i])

    return Case(model, mean_guide)


@case()
def plates_with_dims():
    def model(x):
        a, b = pyro.plate("a", x.shape[0], dim=-2), pyro.plate("b", x.shape[1], dim=-1)
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with a:
            r = pyro.sample("r", dist.Normal(0.0, 1.0))
        with b:
            c = pyro.sample("c", dist.Normal(0.0, 1.0))
        with a, b:
            pyro.sample("x", dist.Normal(mu + r + c, 1.0), obs=x)

    return Case(model, None, {"x": torch.randn(4, 3)})


@case(fit="uses the name 'data' twice", mcmc="uses the name 'data' twice")
def one_plate_name_twice():
    def model(x, y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    return Case(model, None, {"x": X, "y": X + 0.1})


@case()
def a_batch_shape_and_no_plate():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(3), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu.sum(), 1.0), obs=x)

    return Case(model)


@case()
def closed_over_float32():
    design = torch.randn(6, 2)

    class Net(PyroModule):
        def __init__(self):
            super().__init__()
            self.linear = PyroModule[nn.Linear](2, 1)
            self.linear.weight = PyroSample(dist.Normal(torch.zeros(1, 2), torch.ones(1, 2)).to_event(2))
            self.linear.bias = PyroSample(dist.Normal(torch.zeros(1), torch.ones(1)).to_event(1))
            self.register_buffer("shift", torch.ones(1))

        def forward(self, x=None):
            mean = self.linear(design).squeeze(-1) + self.shift
            sigma = pyro.sample("sigma", dist.Uniform(0.1, 5.0))
            with pyro.plate("data", 6):
                pyro.sample("x", dist.Normal(mean, sigma), obs=x)
            return mean

    return Case(Net())


@case(sample=NEEDS)
def a_regression_of_pyro_modules():
    class Net(PyroModule):
        def __init__(self):
            super().__init__()
            self.linear = PyroModule[nn.Linear](2, 1)
            self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 2]).to_event(2))
            self.linear.bias = PyroSample(dist.Normal(0.0, 10.0).expand([1]).to_event(1))

        def forward(self, x, y=None):
            sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
            mean = self.linear(x).squeeze(-1)
            with pyro.plate("data", x.shape[0]):
                pyro.sample("obs", dist.Normal(mean, sigma), obs=y)
            return mean

    net = Net()
    return Case(net, AutoDiagonalNormal(net), {"x": torch.randn(6, 2), "y": X})


@case()
def a_pyro_module_guide_with_params():
    class Guide(PyroModule):
        def __init__(self):
            super().__init__()
            self.loc = PyroParam(torch.tensor(0.2))
            self.scale = PyroParam(torch.tensor(0.4), constraint=constraints.positive)

        def forward(self, x):
            pyro.sample("mu", dist.Normal(self.loc, self.scale))

    return Case(mean_model, Guide())


def mixture(x):
    w = pyro.sample("w", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("components", 2):
        loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(w), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(loc[k], 0.5), obs=x)


@case()
def enumerated_at_the_site():
    return Case(mixture, AutoNormal(poutine.block(mixture, hide=["k"])))


@case(loglik=POINT)
def config_enumerate_of_the_model():
    @config_enumerate
    def model(x):
        w = pyro.sample("w", dist.Dirichlet(torch.ones(2)))
        with pyro.plate("components", 2):
            loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(w))
            pyro.sample("x", dist.Normal(loc[k], 0.5), obs=x)

    return Case(model, AutoDelta(poutine.block(model, expose=["w", "loc"])))


@case(mcmc=ONLY)
def enumeration_in_the_guide():
    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.4, 0.6])))
            pyro.sample("x", dist.Normal(torch.tensor([-1.0, 1.0])[k], 1.0), obs=x)

    @config_enumerate
    def guide(x):
        with pyro.plate("data", len(x)):
            p = pyro.param("p", torch.full((len(x), 2), 0.5), constraint=constraints.simplex)
            pyro.sample("k", dist.Categorical(p))

    return Case(model, guide)


@case()
def a_markov_chain():
    @config_enumerate
    def model(x):
        p = pyro.sample("p", dist.Beta(torch.ones(2), torch.ones(2)).to_event(1))
        k = 0
        for t in pyro.markov(range(len(x))):
            k = pyro.sample(f"k_{t}", dist.Bernoulli(p[k]).mask(True)).long()
            pyro.sample(f"x_{t}", dist.Normal(torch.tensor([-1.0, 1.0])[k], 1.0), obs=x[t])

    return Case(model, AutoNormal(poutine.block(model, expose=["p"])))


@case(mcmc="none that is continuous")
def a_markov_chain_with_params():
    def model(x):
        p = pyro.param("p", torch.tensor([0.3, 0.6]), constraint=constraints.unit_interval)
        k = 0
        for t in pyro.markov(range(len(x))):
            row = torch.stack([1 - p[k], p[k]], -1)
            k = pyro.sample(f"k_{t}", dist.Categorical(row), infer={"enumerate": "parallel"})
            pyro.sample(f"x_{t}", dist.Normal(torch.tensor([-1.0, 1.0])[k], 1.0), obs=x[t])

    return Case(model, lambda x: None)


@case()
def scaled_by_a_decorator():
    @poutine.scale(scale=0.1)
    def model(x):
        return mean_model(x)

    @poutine.scale(scale=0.1)
    def guide(x):
        return mean_guide(x)

    return Case(model, guide)


@case()
def partial_functions():
    def model(s, x):
        mu = pyro.sample("mu", dist.Normal(0.0, s))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    return Case(functools.partial(model, 2.0), mean_guide)


@case()
def do():
    def model(x):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(a, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(b, 1.0), obs=x)

    return Case(poutine.do(model, data={"a": torch.tensor(1.0)}))


@case()
def blocked_and_masked():
    return Case(poutine.mask(mean_model, mask=torch.tensor(True)), poutine.mask(mean_guide, mask=torch.tensor(True)))


@case(sample=NEEDS)
def reparametrised():
    def model(x, g):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("groups", 3):
            a = pyro.sample("a", dist.Normal(mu, 0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(a[g], 1.0), obs=x)

    return Case(poutine.reparam(model, config={"a": LocScaleReparam(0.0)}), None, {"x": X, "g": G})


@case(sample=NEEDS)
def reparametrised_with_a_learnt_centring():
    def model(x, g):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("groups", 3):
            a = pyro.sample("a", dist.Normal(mu, 0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(a[g], 1.0), obs=x)

    return Case(poutine.reparam(model, config={"a": LocScaleReparam()}), None, {"x": X, "g": G})


@case()
def names_with_slashes_and_umlauts():
    def model(x):
        mu = pyro.sample("level/μ", dist.Normal(0.0, 1.0))
        with pyro.plate("data/rows", len(x)):
            pyro.sample("obs/größe", dist.Normal(mu, 1.0), obs=x)

    return Case(model)


@case()
def relaxed_distributions():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.RelaxedBernoulliStraightThrough(torch.tensor(0.5), probs=torch.tensor(0.4)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        p = pyro.param("p", torch.full((6,), 0.4), constraint=constraints.unit_interval)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.RelaxedBernoulliStraightThrough(torch.tensor(0.5), probs=p))

    return Case(model, guide, {"x": X})


@case()
def values_outside_the_support_on_purpose():
    def model(x):
        p = pyro.sample("p", dist.Beta(1.0, 1.0, validate_args=False))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(p, validate_args=False), obs=x)

    return Case(model, None, {"x": torch.tensor([0.2, 0.9, 0.5, 0.1, 1.0, 0.0])})


@case()
def a_guide_wider_than_the_support():
    def model(x):
        s = pyro.sample("s", dist.HalfNormal(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, s + 0.01, validate_args=False), obs=x)

    def guide(x):
        pyro.sample("s", dist.Normal(pyro.param("a", torch.tensor(3.0)), 0.1))

    return Case(model, guide)


@case()
def a_parameter_that_nothing_reaches():
    def model(x):
        pyro.param("unused", torch.zeros(2))
        mean_model(x)

    return Case(model, mean_guide)


@case(predict="nothing can be drawn")
def no_observed_site():
    def model():
        pyro.sample("z", dist.Normal(2.0, 3.0))

    def guide():
        scale = pyro.param("s", torch.tensor(1.0), constraint=constraints.positive)
        pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.0)), scale))

    return Case(model, guide, {})


@case(fit="has 2 NaN values", mcmc="has 2 NaN values")
def nan_under_a_mask():
    def model(x, seen):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)), poutine.mask(mask=seen):
            pyro.sample("x", dist.Normal(mu, 1.0, validate_args=False), obs=x)

    return Case(model, None, {"x": torch.where(B.bool(), X, torch.tensor(float("nan"))), "seen": B.bool()})


@case(sample=NEEDS)
def an_obs_mask():
    def model(x, seen):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x, obs_mask=seen)

    # Pyro's ELBO of it grows without limit: tests/test_pyro_arguments.py has the right value
    return Case(model, None, {"x": X, "seen": B.bool()}, pyro="")


@case(posterior=DIFFER, sample=DIFFER, mcmc=SUMS)
def a_random_number_of_sites():
    def model(x):
        t, n = 0.0, 0
        while n < 3 and (n == 0 or pyro.sample(f"go_{n}", dist.Bernoulli(0.5)) > 0):
            t = t + pyro.sample(f"z_{n}", dist.Normal(0.0, 1.0))
            n += 1
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(t, 1.0), obs=x)

    def guide(x):
        m = pyro.param("m", torch.zeros(3))
        p = pyro.param("p", torch.full((3,), 0.5), constraint=constraints.unit_interval)
        n = 0
        while n < 3 and (n == 0 or pyro.sample(f"go_{n}", dist.Bernoulli(p[n])) > 0):
            pyro.sample(f"z_{n}", dist.Normal(m[n], 1.0))
            n += 1

    return Case(model, guide, {"x": X})


@case(posterior=DIFFER, sample=DIFFER, mcmc="x")
def recursion():
    def geometric(p, i):
        x = pyro.sample(f"flip_{i}", dist.Bernoulli(p))
        return 0 if x == 1 or i > 5 else 1 + geometric(p, i + 1)

    def model(x):
        n = float(geometric(0.5, 0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(n, 1.0), obs=x)

    def guide(x):
        geometric(pyro.param("p", torch.tensor(0.5), constraint=constraints.unit_interval), 0)

    return Case(model, guide, {"x": X})


@case()
def integers_observed_as_files_give_them():
    def model(y):
        r = pyro.sample("r", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Poisson(r), obs=y)

    return Case(model, None, {"y": torch.tensor([1, 0, 2, 3, 1, 1])})


@case()
def booleans_observed():
    def model(y):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Bernoulli(p), obs=y)

    return Case(model, None, {"y": B.bool()}, pyro="")  # its own log_prob takes none


@case()
def integers_under_a_normal():
    return Case(mean_model, mean_guide, {"x": torch.tensor([1, 2, 0, 1, 3, 1])})


@case(sample=NEEDS)
def integers_under_a_binomial():
    def model(n, y=None):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        with pyro.plate("data", len(n)):
            pyro.sample("y", dist.Binomial(n, p), obs=y)

    return Case(model, None, {"n": torch.tensor([3, 4, 5]), "y": torch.tensor([1, 2, 5])})


@case(sample=NEEDS)
def an_ordered_logistic():
    def model(x, y):
        base, ordered = dist.Normal(torch.zeros(2), 1.0).to_event(1), dist.transforms.OrderedTransform()
        cut = pyro.sample("cut", dist.TransformedDistribution(base, ordered))
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.OrderedLogistic(b * x, cut), obs=y)

    return Case(model, None, {"x": X, "y": torch.tensor([0, 1, 2, 1, 0, 2])})


@case()
def multinomial_rows_of_different_totals():
    def model(y):
        p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Multinomial(total_count=9, probs=p, validate_args=False), obs=y)

    return Case(model, None, {"y": torch.tensor([[1.0, 2, 3], [4, 5, 0], [0, 1, 1]])})


@case(predict="nothing can be drawn")
def a_factor_alone():
    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.factor("energy", -((z[0] ** 2 - z[1]) ** 2))

    return Case(model, None, {})


@case(loglik=POINT)
def an_auto_guide_list():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, s), obs=x)

    guide = AutoGuideList(model)
    guide.append(AutoNormal(poutine.block(model, expose=["mu"])))
    guide.append(AutoDelta(poutine.block(model, expose=["s"])))
    return Case(model, guide)


@case(loglik=POINT)
def an_easy_guide():
    from pyro.contrib.easyguide import EasyGuide

    class Guide(EasyGuide):
        def guide(self, x):
            self.map_estimate("mu")

    return Case(mean_model, Guide(mean_model), {"x": X})


@case()
def a_structured_guide():
    from pyro.infer.autoguide import AutoStructured

    return Case(mean_model, AutoStructured(mean_model, conditionals={"mu": "normal"}, dependencies={}))


@case()
def a_messenger_guide():
    from pyro.infer.autoguide import AutoNormalMessenger

    return Case(mean_model, AutoNormalMessenger(mean_model))


@case()
def a_multivariate_autoguide():
    from pyro.infer.autoguide import AutoMultivariateNormal, init_to_mean

    return Case(mean_model, AutoMultivariateNormal(mean_model, init_loc_fn=init_to_mean))


@case()
def a_sparse_gaussian_process():
    import pyro.contrib.gp as gp

    x = torch.linspace(0, 1, 6)
    model = gp.models.VariationalSparseGP(
        x, X, gp.kernels.RBF(1), Xu=torch.linspace(0, 1, 3), likelihood=gp.likelihoods.Gaussian(), whiten=True
    )
    return Case(model.model, model.guide, {})


@case()
def a_gaussian_process_regression():
    import pyro.contrib.gp as gp

    model = gp.models.GPRegression(torch.linspace(0, 1, 6), X, gp.kernels.RBF(1), noise=torch.tensor(0.1))
    model.kernel.lengthscale = PyroSample(dist.LogNormal(0.0, 1.0))
    model.kernel.autoguide("lengthscale", dist.Normal)
    return Case(model.model, model.guide, {})


@case()
def a_deterministic_site_and_a_return_value():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        double = pyro.deterministic("double", 2 * mu)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(double, 1.0), obs=x)
        return {"double": double}

    return Case(model)


@case()
def a_parameter_that_appears_late():
    def model(x):
        mean_model(x)

    count = {"runs": 0}

    def guide(x):
        count["runs"] += 1
        loc = pyro.param("loc", torch.tensor(0.1))
        scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
        if count["runs"] > 3:
            loc = loc + pyro.param("late", torch.tensor(0.0))
        pyro.sample("mu", dist.Normal(loc, scale))

    return Case(model, guide, {"x": X}, {"engine": "eager"}, pyro="")


@case(sample=NEEDS)
def a_random_module_of_pyro_modules():
    class Block(PyroModule):
        def __init__(self):
            super().__init__()
            self.a = PyroModule[nn.Linear](1, 4)
            self.b = PyroModule[nn.Linear](4, 1)
            for layer in (self.a, self.b):
                for name, p in list(layer.named_parameters()):
                    setattr(layer, name, PyroSample(dist.Normal(0.0, 1.0).expand(p.shape).to_event(p.dim())))

    class Net(PyroModule):
        def __init__(self):
            super().__init__()
            self.block = Block()

        def forward(self, x, y=None):
            mean = self.block.b(torch.tanh(self.block.a(x))).squeeze(-1)
            with pyro.plate("data", len(x)):
                return pyro.sample("y", dist.Normal(mean, 0.5), obs=y)

    net = Net()
    return Case(net, AutoNormal(net), {"x": X[:, None], "y": X})


@case()
def lkj_and_multivariate():
    def model(y):
        d = y.shape[1]
        theta = pyro.sample("theta", dist.HalfCauchy(torch.ones(d)).to_event(1))
        L = pyro.sample("L", dist.LKJCholesky(d, torch.ones(())))
        mu = torch.zeros(d)
        with pyro.plate("observations", len(y)):
            pyro.sample("obs", dist.MultivariateNormal(mu, scale_tril=theta.sqrt().diag() @ L), obs=y)

    return Case(model, None, {"y": torch.randn(8, 3)})


@case()
def a_timeseries_with_gaussian_hmm():
    def model(x):
        s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
        eye = torch.eye(1)
        d = dist.GaussianHMM(
            dist.Normal(torch.zeros(1), 1.0).to_event(1),
            eye,
            dist.Normal(torch.zeros(1), s).to_event(1),
            eye,
            dist.Normal(torch.zeros(1), 0.5).to_event(1),
            duration=len(x),
        )
        pyro.sample("x", d, obs=x[:, None])

    return Case(model)


@case()
def a_history_in_a_loop():
    def model(x):
        drift = pyro.sample("drift", dist.Normal(0.0, 1.0))
        z = 0.0
        for t in range(len(x)):
            z = pyro.sample(f"z_{t}", dist.Normal(z + drift, 1.0))
            pyro.sample(f"x_{t}", dist.Normal(z, 0.5), obs=x[t])

    return Case(model)


@case()
def counts_with_a_zero_inflation():
    def model(y):
        gate = pyro.sample("gate", dist.Beta(1.0, 1.0))
        rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.ZeroInflatedPoisson(rate, gate=gate), obs=y)

    return Case(model, None, {"y": torch.tensor([0.0, 0, 2, 3, 0, 1])})


@case()
def a_gamma_guide():
    def model(y):
        r = pyro.sample("r", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Exponential(r), obs=y)

    def guide(y):
        a = pyro.param("a", torch.tensor(2.0), constraint=constraints.positive)
        b = pyro.param("b", torch.tensor(2.0), constraint=constraints.positive)
        pyro.sample("r", dist.Gamma(a, b))

    return Case(model, guide, {"y": X.abs()})


@case(mcmc=ONLY)
def a_discrete_latent_drawn_by_its_guide():
    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    def guide(x):
        p = pyro.param("p", torch.full((len(x),), 0.5), constraint=constraints.unit_interval)
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Bernoulli(p))

    return Case(model, guide, {"x": X})


@case(mcmc=ONLY)
def a_baseline_for_a_discrete_latent():
    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    def guide(x):
        p = pyro.param("p", torch.full((len(x),), 0.5), constraint=constraints.unit_interval)
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Bernoulli(p), infer={"baseline": {"use_decaying_avg_baseline": True}})

    return Case(model, guide, {"x": X})


@case()
def semi_supervised_labels():
    class SS(nn.Module):
        def __init__(self):
            super().__init__()
            self.decode, self.encode = nn.Linear(3, 2), nn.Linear(2, 2)

        def model(self, xs, ys=None):
            pyro.module("ss", self)
            with pyro.plate("data", len(xs)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                y = pyro.sample("y", dist.OneHotCategorical(torch.ones(2) / 2), obs=ys)
                pyro.sample("x", dist.Normal(self.decode(torch.cat([z[:, None], y], -1)), 1.0).to_event(1), obs=xs)

        def guide(self, xs, ys=None):
            with pyro.plate("data", len(xs)):
                loc, s = self.encode(xs).unbind(-1)
                if ys is None:
                    pyro.sample("y", dist.OneHotCategorical(logits=self.encode(xs)))
                pyro.sample("z", dist.Normal(loc, s.exp()))

    ss = SS()
    return Case(ss.model, ss.guide, {"xs": torch.randn(5, 2), "ys": torch.eye(2)[[0, 1, 1, 0, 1]]})


@case(mcmc=SUMS)
def semi_supervised_without_labels():
    base = semi_supervised_labels()
    return base._replace(data={"xs": base.data["xs"]})


@case()
def autoname_scopes():
    from pyro.contrib.autoname import scope

    @scope(prefix="f")
    def f():
        return pyro.sample("mu", dist.Normal(0.0, 1.0))

    def model(x):
        mu = f()
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    return Case(model)


@case()
def a_subsample_statement():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=3):
            batch = pyro.subsample(x, event_dim=0)
            pyro.sample("x", dist.Normal(mu, 1.0), obs=batch)

    return Case(model, AutoNormal(model))


@case(sample=NEEDS)
def a_mask_from_lengths():
    def model(xs, lengths):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(xs)):
            for t in range(int(lengths.max())):
                with poutine.mask(mask=t < lengths):
                    pyro.sample(f"x_{t}", dist.Normal(mu, 1.0), obs=xs[:, t])

    return Case(model, None, {"xs": torch.randn(4, 3), "lengths": torch.tensor([3, 1, 2, 3])})


@case()
def kl_annealing_by_an_argument():
    def model(x, factor=1.0):
        with poutine.scale(scale=factor):
            mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    def guide(x, factor=1.0):
        with poutine.scale(scale=factor):
            mean_guide(x)

    return Case(model, guide, {"x": X, "factor": 0.5})


@case(loglik=POINT)
def a_delta_guide_by_hand():
    def guide(x):
        pyro.sample("mu", dist.Delta(pyro.param("m", torch.tensor(0.0))))

    return Case(mean_model, guide, {"x": X})


@case(posterior="has no latent to infer", mcmc="has no latent")
def maximum_likelihood_without_latents():
    def model(x):
        m = pyro.param("m", torch.tensor(0.0))
        s = pyro.param("s", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m, s), obs=x)

    return Case(model, lambda x: None, {"x": X})


@case()
def a_flow_in_the_guide():
    flow = dist.transforms.affine_autoregressive(2, hidden_dims=[4])

    def model(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z.sum(), 1.0), obs=x)

    def guide(x):
        pyro.module("flow", flow)
        pyro.sample("z", dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0).to_event(1), [flow]))

    return Case(model, guide)


@case()
def an_auxiliary_site():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    def guide(x):
        u = pyro.sample("u", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0), infer={"is_auxiliary": True})
        pyro.sample("mu", dist.Delta(u))

    return Case(model, guide)


@case()
def a_nested_plate_with_a_ragged_mask():
    def model(x, seen):
        with pyro.plate("groups", x.shape[0], dim=-2):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            with pyro.plate("units", x.shape[1], dim=-1), poutine.mask(mask=seen):
                pyro.sample("x", dist.Normal(a, 1.0), obs=x)

    return Case(model, None, {"x": torch.randn(3, 4), "seen": torch.rand(3, 4) < 0.7})


@case()
def topics():
    def model(words):
        with pyro.plate("topics", 2):
            phi = pyro.sample("phi", dist.Dirichlet(torch.ones(5)))
        with pyro.plate("documents", words.shape[1]):
            theta = pyro.sample("theta", dist.Dirichlet(torch.ones(2)))
            with pyro.plate("words", words.shape[0]):
                z = pyro.sample("z", dist.Categorical(theta), infer={"enumerate": "parallel"})
                pyro.sample("w", dist.Categorical(phi[z]), obs=words)

    return Case(model, AutoNormal(poutine.block(model, hide=["z"])), {"words": torch.randint(0, 5, (4, 3))})


@case()
def a_dirichlet_process_by_sticks():
    def model(x):
        with pyro.plate("sticks", 3):
            b = pyro.sample("b", dist.Beta(1.0, 2.0))
        with pyro.plate("components", 4):
            mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        w = torch.cat([b, torch.ones(1)]) * torch.cat([torch.ones(1), (1 - b).cumprod(0)])
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(w))
            pyro.sample("x", dist.Normal(mu[z], 1.0), obs=x)

    def guide(x):
        kappa = pyro.param("kappa", torch.ones(3), constraint=constraints.positive)
        tau = pyro.param("tau", torch.zeros(4))
        phi = pyro.param("phi", torch.ones(6, 4) / 4, constraint=constraints.simplex)
        with pyro.plate("sticks", 3):
            pyro.sample("b", dist.Beta(torch.ones(3), kappa))
        with pyro.plate("components", 4):
            pyro.sample("mu", dist.Normal(tau, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(phi))

    return Case(model, guide, {"x": X})


@case(posterior="has no latent to infer", mcmc="has no latent")
def nothing_to_learn():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    return Case(model, lambda x: None)


@case(predict="nothing can be drawn", mcmc="none that is continuous")
def a_discrete_latent_and_nothing_downstream():
    def model():
        with pyro.plate("coins", 3):
            pyro.sample("z", dist.Bernoulli(0.25))

    def guide():
        p = pyro.param("p", torch.tensor(0.5), constraint=constraints.unit_interval)
        with pyro.plate("coins", 3):
            pyro.sample("z", dist.Bernoulli(p))

    return Case(model, guide, {})


@case(mcmc="none that is continuous")
def discrete_sites_of_a_sequential_plate_that_subsamples():
    def model(x):
        for i in pyro.plate("data", len(x), subsample_size=2):
            z = pyro.sample(f"z_{i}", dist.Bernoulli(0.5))
            pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=x[i])

    def guide(x):
        p = pyro.param("p", torch.tensor(0.5), constraint=constraints.unit_interval)
        for i in pyro.plate("data", len(x), subsample_size=2):
            pyro.sample(f"z_{i}", dist.Bernoulli(p))

    return Case(model, guide)


@case()
def whole_numbers_observed_one_by_one():
    def model(tosses):
        p = pyro.sample("p", dist.Beta(10.0, 10.0))
        for i in range(len(tosses)):
            pyro.sample(f"toss_{i}", dist.Bernoulli(p), obs=tosses[i])

    def guide(tosses):
        a = pyro.param("a", torch.tensor(15.0), constraint=constraints.positive)
        pyro.sample("p", dist.Beta(a, 15.0))

    return Case(model, guide, {"tosses": torch.tensor([1, 0, 1, 1, 0, 1])}, pyro="")  # its own log_prob takes none


@case()
def a_chain_that_observes_row_by_row():
    def model(x):
        phi = pyro.sample("phi", dist.Normal(0.0, 0.5))
        last = torch.tensor(0.0)
        for i in range(len(x)):
            last = pyro.sample(f"x_{i}", dist.Normal(phi * last, 1.0), obs=x[i])

    return Case(model)


@case(sample=NEEDS)
def a_chain_that_reads_the_row_before():
    def model(x):
        phi = pyro.sample("phi", dist.Normal(0.0, 0.5))
        for i in range(1, len(x)):
            pyro.sample(f"x_{i}", dist.Normal(phi * x[i - 1], 1.0), obs=x[i])

    return Case(model)


@case(mcmc="has no initial value")
def a_parameter_of_the_guide_that_the_model_reads():
    def model(x):
        s = pyro.param("s")
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu, s), obs=x)

    def guide(x):
        pyro.param("s", torch.tensor(1.0), constraint=constraints.positive)
        pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 0.3))

    return Case(model, guide)


@case(mcmc="cannot be normalised")
def masks_within_events_and_a_packed_sequence():
    lengths = torch.tensor([3, 2, 1])
    encoder, emitter = nn.RNN(2, 2, batch_first=True), nn.Linear(2, 2)

    def model(x, packed, mask):
        pyro.module("emitter", emitter)
        with pyro.plate("rows", len(x)):
            z = torch.zeros(len(x), 2)
            for t in pyro.markov(range(x.shape[1])):
                z = pyro.sample(f"z_{t}", dist.Normal(z, 1.0).mask(mask[:, t, None]).to_event(1))
                pyro.sample(f"x_{t}", dist.Normal(emitter(z), 1.0).mask(mask[:, t, None]).to_event(1), obs=x[:, t])

    def guide(x, packed, mask):
        pyro.module("encoder", encoder)
        h, _ = nn.utils.rnn.pad_packed_sequence(encoder(packed)[0], batch_first=True)
        with pyro.plate("rows", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                pyro.sample(f"z_{t}", dist.Normal(h[:, t], 0.5).mask(mask[:, t, None]).to_event(1))

    x = torch.randn(3, 3, 2)
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
    return Case(model, guide, {"x": x, "packed": packed, "mask": torch.arange(3) < lengths[:, None]})


@case()
def a_guide_that_begins_at_an_expanded_mean():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), torch.tensor(2.0)).expand([2]).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mu.sum(), 1.0), obs=x)

    return Case(model, AutoNormal(model, init_loc_fn=init_to_mean))


@case(mcmc="none that is continuous")
def enumeration_in_both_parts():
    def model(x):
        a = pyro.sample("a", dist.Bernoulli(0.3))
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Bernoulli(0.2 + a / 2), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(b, 1.0), obs=x)

    def guide(x):
        p = pyro.param("p", torch.tensor(0.4), constraint=constraints.unit_interval)
        pyro.sample("a", dist.Bernoulli(p), infer={"enumerate": "parallel"})

    return Case(model, guide, pyro="")


@case()
def a_conjugate_pair_that_is_collapsed():
    def model(x):
        with pyro.plate("kinds", 2):
            a = pyro.sample("a", dist.HalfNormal(3.0))
            pair = BetaBinomialPair()
            p = pyro.sample("p", pair.latent(a, torch.tensor(2.0)))
            with pyro.plate("data", len(x)):
                pyro.sample("x", pair.conditional(probs=p, total_count=10), obs=x)

    return Case(collapse_conjugate(model), None, {"x": torch.tensor([[3.0, 8.0], [4.0, 7.0], [2.0, 9.0]])})


def series(x):
    level = pyro.sample("level", dist.Normal(torch.zeros(6), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(level, 0.5).to_event(1), obs=x)


@case()
def a_series_split_in_two():
    return Case(poutine.reparam(series, config={"level": SplitReparam([2, 4], -1)}))


@case()
def a_series_of_cosines():
    return Case(poutine.reparam(series, config={"level": DiscreteCosineReparam(dim=-1)}))


@case()
def a_series_of_wavelets_split_in_two():
    wavelets = poutine.reparam(series, config={"level": HaarReparam(dim=-1)})
    return Case(poutine.reparam(wavelets, config={"level_haar": SplitReparam([2, 4], -1)}))


@case()
def flat_priors():
    def model(x):
        s = pyro.sample("s", dist.ImproperUniform(constraints.positive, (), ()))
        ends = pyro.sample("ends", dist.ImproperUniform(constraints.ordered_vector, (), (2,)))
        pyro.factor("near", -ends.square().sum())
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(ends.mean(), s), obs=x)

    return Case(model)


@case()
def latents_with_stable_tails():
    def model(x):
        with pyro.plate("data", len(x)):
            jump = pyro.sample("jump", dist.Stable(1.5, 0.3, 0.5, 0.0))
            pyro.sample("x", dist.Normal(jump, 0.5), obs=x)

    return Case(poutine.reparam(model, config={"jump": LatentStableReparam()}))


@case()
def observed_with_stable_tails():
    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Stable(1.6, 0.2, 0.5, m), obs=x)

    return Case(poutine.reparam(model, config={"x": StableReparam()}), None, {"x": X[:3]})


@case(fit="needs the package 'funsor'", mcmc="needs the package 'funsor'")
def a_collapsed_latent():
    def model(x):
        with poutine.collapse():
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return Case(model)


@case()
def parameters_with_priors():
    def model(x):
        w = pyro.param("w", torch.tensor(0.2))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    return Case(poutine.lift(model, prior={"w": dist.Normal(0.0, 1.0)}))


@case()
def tied_sites():
    def model(x):
        a, b = (pyro.sample(name, dist.Normal(0.0, 1.0)) for name in "ab")
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(a + b, 1.0), obs=x)

    return Case(poutine.equalize(model, ["a", "b"]))


@case()
def sites_configured_from_outside():
    def model(x):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(p))
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    summed = {"k": {"enumerate": "parallel"}}
    return Case(poutine.infer_config(model, config_fn=lambda site: summed.get(site["name"], {})))


@case()
def censored_by_masks():
    def model(t, dead):
        rate = pyro.sample("rate", dist.Gamma(2.0, 2.0))
        with pyro.plate("data", len(t)):
            with poutine.mask(mask=dead):
                pyro.sample("t", dist.Exponential(rate), obs=t)
            with poutine.mask(mask=~dead):
                pyro.factor("alive", -rate * t)

    return Case(model, None, {"t": X.abs(), "dead": B > 0})


@case(sample=NEEDS)
def items_and_people():
    def model(person, item, y):
        with pyro.plate("people", 3):
            ability = pyro.sample("ability", dist.Normal(0.0, 1.0))
        with pyro.plate("items", 2):
            hard = pyro.sample("hard", dist.Normal(0.0, 1.0))
            sharp = pyro.sample("sharp", dist.LogNormal(0.0, 0.5))
        with pyro.plate("answers", len(y)):
            pyro.sample("y", dist.Bernoulli(logits=sharp[item] * (ability[person] - hard[item])), obs=y)

    return Case(model, None, {"person": G, "item": torch.tensor([0, 1] * 3), "y": B})


@case()
def a_state_with_two_histories():
    def model(y):
        one = pyro.sample("one", dist.Dirichlet(torch.ones(2, 2)).to_event(1))
        two, loc = torch.tensor([[0.3, 0.7], [0.6, 0.4]]), torch.tensor([-1.0, 1.0])
        z = before = 0
        for t in pyro.markov(range(len(y)), history=2):
            p = (one[z] + two[before]) / 2
            before, z = z, pyro.sample(f"z_{t}", dist.Categorical(p), infer={"enumerate": "parallel"})
            pyro.sample(f"y_{t}", dist.Normal(loc[z], 1.0), obs=y[t])

    return Case(model, AutoNormal(poutine.block(model, expose=["one"])), {"y": X[:4]})


@case()
def a_guide_that_classifies():
    def model(x, label=None):
        p = torch.tensor([0.4, 0.6])
        with pyro.plate("data", len(x)):
            kind = pyro.sample("kind", dist.Categorical(p), obs=label)
            z = pyro.sample("z", dist.Normal(kind.to(x.dtype), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x, label=None):
        w = pyro.param("w", torch.tensor([0.1, -0.2]))
        with pyro.plate("data", len(x)):
            pyro.sample("kind", dist.Categorical(logits=x[:, None] * w), obs=label, infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(pyro.param("a", torch.tensor(0.8)) * x, 0.4))

    return Case(model, guide, {"x": X, "label": B.long()})


@case(predict="'y': GaussianHMM has no draws", sample="'y': GaussianHMM has no draws")
def a_chain_of_any_length():
    def model(y):
        drift = pyro.sample("drift", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        start, step = (dist.Normal(torch.zeros(1), 1.0).to_event(1) for _ in range(2))
        seen = dist.Normal(drift, 1.0).to_event(1)
        pyro.sample("y", dist.GaussianHMM(start, torch.eye(1), step, torch.ones(1, 2), seen), obs=y)

    return Case(model, None, {"y": X.reshape(3, 2)})


class Hyperbolic(dist.TorchDistribution):
    """A distribution as users write them: a density and nothing else."""

    arg_constraints = {}
    support = constraints.real

    def __init__(self, loc):
        self.loc = loc
        super().__init__(loc.shape, validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return Hyperbolic(self.loc.expand(batch_shape))

    def log_prob(self, value):
        return -(1 + (value - self.loc) ** 2).sqrt() - 0.1854


@case(predict="'x': Hyperbolic has no draws", sample="'x': Hyperbolic has no draws")
def a_density_of_ones_own():
    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", Hyperbolic(loc), obs=x)

    return Case(model)


@case(sample=NEEDS)
def a_series_on_its_own_past():
    def model(y):
        phi = pyro.sample("phi", dist.Uniform(-1.0, 1.0))
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        pyro.sample("y", dist.Normal(phi * y[:-1], scale).to_event(1), obs=y[1:])

    return Case(model, None, {"y": X})


@case(sample=NEEDS)
def missing_values_that_the_model_fills_in():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)), poutine.mask(mask=~torch.isnan(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=torch.nan_to_num(x))

    return Case(model, None, {"x": torch.where(B.bool(), X, torch.tensor(float("nan")))})
