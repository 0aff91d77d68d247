"""Small programs of every kind that Pyro users write, for the laws that all programs keep.

`PROGRAMS[name]` is a `Case`: how to make the program (setup already), its columns, and what it is good for.
Each case can be made any number of times, always with the same parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import torch
from pyro import poutine
from pyro.contrib.easyguide import easy_guide  # noqa: F401 - importing it must not disturb anything
from pyro.infer import autoguide, config_enumerate
from pyro.infer.reparam import LocScaleReparam
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import Tensor, nn
from torch.distributions import constraints

import ppgen
from ppgen.program import Program

Columns = dict[str, Tensor]


class Case(NamedTuple):
    """One row of the table."""

    program: Callable[[], Program]
    data: Columns
    objective: str = "sampled"  # the one it is good for: sampled, analytic, enumerate
    particles: int = 1
    pathwise: bool = True  # False: some gradient is a score function's
    rows: int | None = None  # of the whole data set, where the columns are a batch of it


PROGRAMS: dict[str, Case] = {}


def case(data: Columns, guide: str | None = None, hide: tuple[str, ...] = (), **options):
    """Enters a factory of programs, called with no argument, or a plain Pyro model."""

    def enter(factory):
        def make() -> Program:
            with torch.random.fork_rng():
                torch.manual_seed(1)
                made = factory()
                program = made if isinstance(made, Program) else Program.from_pair(*made)
                program.setup(data, guide, hide)
                return program.train()

        PROGRAMS[factory.__name__] = Case(make, data, **options)
        return factory

    return enter


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _bits(*shape: int, seed: int = 0) -> Tensor:
    return (_randn(*shape, seed=seed) > 0).float()


SCHOOLS = {
    "sigma": torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18]),
    "y": torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12]),
}
X, Y = _randn(20, 3), _randn(20, seed=1)
REGRESSION = {"x": X, "y": Y}
LOGISTIC = {"x": X, "y": (Y > 0).float()}
GROUPS = {"x": X[:, 0], "group": torch.arange(20) % 4, "y": Y}
POINTS = {"x": _randn(12, 4)}
BITS = {"x": _bits(6, 16)}


# -- classical models with autoguides --------------------------------------------------------------


def _normal_normal(x):
    z = pyro.sample("z", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@case({"x": Y}, "AutoNormal", objective="analytic")
def normal_normal():
    return (_normal_normal,)


@case({"x": Y}, "AutoDelta")
def map_estimate():
    return (_normal_normal,)


@case({"x": Y}, "AutoLaplaceApproximation")
def laplace_approximation():
    return (_normal_normal,)


@case({"x": Y}, "AutoNormal", particles=5)
def several_particles():
    return (_normal_normal,)


@case({"x": Y[:5]}, "AutoNormal", rows=20)
def minibatch():
    return (_normal_normal,)


def _eight_schools(sigma, y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


@case(SCHOOLS, "AutoNormal")
def eight_schools():
    return (_eight_schools,)


@case(SCHOOLS, "AutoDiagonalNormal")
def eight_schools_diagonal():
    return (_eight_schools,)


@case(SCHOOLS, "AutoNormal")
def reparam_handler():
    return (poutine.reparam(_eight_schools, {"theta": LocScaleReparam(0.0)}),)


def _logistic(x, y):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[-1]]).to_event(1))
    b = pyro.sample("b", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(x)):
        logits = (x * w.unsqueeze(-2)).sum(-1) + b.unsqueeze(-1)
        pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)


@case(LOGISTIC, "AutoMultivariateNormal")
def logistic_full_covariance():
    return (_logistic,)


@case(LOGISTIC, "AutoLowRankMultivariateNormal")
def logistic_low_rank():
    return (_logistic,)


@case(LOGISTIC, "AutoIAFNormal")
def logistic_flow_guide():
    return (_logistic,)


@case(LOGISTIC)
def normalizing_flow_guide():
    made = autoguide.AutoNormalizingFlow(_logistic, lambda dim: transforms.affine_coupling(dim, hidden_dims=[4]))
    return _logistic, made


@case(LOGISTIC)
def guide_list():
    guide = autoguide.AutoGuideList(_logistic)
    guide.append(autoguide.AutoNormal(poutine.block(_logistic, expose=["w"])))
    guide.append(autoguide.AutoDelta(poutine.block(_logistic, expose=["b"])))
    return _logistic, guide


@case(GROUPS, "AutoNormal")
def hierarchical():
    def model(x, group, y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
        with pyro.plate("groups", 4):
            a = pyro.sample("a", dist.Normal(mu, tau))
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        s = pyro.sample("s", dist.Exponential(1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(a[..., group] + b * x, s), obs=y)

    return (model,)


@case({"x": _randn(5, 3)}, "AutoNormal")
def nested_plates():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("columns", 3, dim=-1):
            column = pyro.sample("column", dist.Normal(mu, 1.0))
            with pyro.plate("data", len(x), dim=-2):
                pyro.sample("x", dist.StudentT(4.0, column, 1.0), obs=x)

    return (model,)


@case(POINTS, "AutoMultivariateNormal")
def correlated_normal():
    def model(x):
        scale = pyro.sample("scale", dist.HalfNormal(1.0).expand([4]).to_event(1))
        corr = pyro.sample("corr", dist.LKJCholesky(4, 1.5))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.MultivariateNormal(torch.zeros(4), scale_tril=scale.unsqueeze(-1) * corr), obs=x)

    return (model,)


@case({"x": X[:8, 0], "y": Y[:8]}, "AutoDelta")
def gaussian_process():
    def model(x, y):
        length = pyro.sample("length", dist.LogNormal(0.0, 1.0))
        noise = pyro.sample("noise", dist.HalfNormal(1.0))
        k = torch.exp(-0.5 * ((x[:, None] - x[None]) / length) ** 2) + (noise**2 + 1e-4) * torch.eye(len(x))
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), covariance_matrix=k), obs=y)

    return (model,)


@case({"y": Y[:10].cumsum(0)}, "AutoNormal")
def autoregression_loop():
    def model(y):
        a = pyro.sample("a", dist.Uniform(-1.0, 1.0))
        s = pyro.sample("s", dist.InverseGamma(2.0, 1.0))
        before = torch.zeros(())
        for t in pyro.markov(range(len(y))):
            pyro.sample(f"y_{t}", dist.Normal(a * before, s), obs=y[t])
            before = y[t]

    return (model,)


@case({"y": (_randn(15).exp() * 3).floor()}, "AutoNormal")
def counts():
    def model(y):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        k = pyro.sample("k", dist.HalfNormal(3.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.GammaPoisson(k + 0.1, rate), obs=y)

    return (model,)


# -- handlers and statements -----------------------------------------------------------------------


@case(REGRESSION, "AutoNormal")
def mask_and_scale():
    def model(x, y):
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)), poutine.mask(mask=y > 0), poutine.scale(scale=0.5):
            pyro.sample("y", dist.Normal(b * x[:, 0], 1.0), obs=y)

    return (model,)


@case({"x": Y}, "AutoNormal")
def condition_handler():
    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        s = pyro.sample("s", dist.Gamma(2.0, 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m, s), obs=x)

    return (poutine.condition(model, {"s": torch.tensor(1.5)}),)


@case({"x": Y}, "AutoNormal")
def factor_and_deterministic():
    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        pyro.deterministic("twice", 2 * m)
        pyro.factor("pull", -(m**2) / 7)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Laplace(m, 1.0), obs=x)

    return (model,)


@case({"x": Y})
def constrained_params():
    def model(x):
        w = pyro.param("w", torch.tensor([0.2, 0.3, 0.5]), constraint=constraints.simplex)
        m = pyro.sample("m", dist.Normal((w * torch.arange(3.0)).sum(), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample(
                "x", dist.Normal(m, pyro.param("noise", torch.tensor(0.7), constraint=constraints.positive)), obs=x
            )

    def guide(x):
        loc = pyro.param("loc", torch.tensor(0.1), constraint=constraints.interval(-1.0, 2.0))
        pyro.sample("m", dist.Normal(loc, pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)))

    return model, guide


@case({"x": Y}, "AutoNormal")
def subsampled_plate():
    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=6) as index:
            pyro.sample("x", dist.Normal(m, 1.0), obs=x[index])

    return (model,)


@case(REGRESSION, "AutoNormal")
def pyro_module():
    class Net(PyroModule):
        def __init__(self):
            super().__init__()
            self.linear = PyroModule[nn.Linear](3, 1)
            self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2))
            self.noise = PyroParam(torch.tensor(0.5), constraint=constraints.positive)

        def forward(self, x, y):
            mean = self.linear(x).squeeze(-1)
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(mean, self.noise), obs=y)

    return (Net(),)


# -- latents with guides of their own --------------------------------------------------------------


@case({"x": _bits(10)}, objective="analytic")
def beta_bernoulli():
    def model(x):
        p = pyro.sample("p", dist.Beta(2.0, 3.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(p), obs=x)

    def guide(x):
        a = pyro.param("a", torch.tensor(3.0), constraint=constraints.positive)
        pyro.sample("p", dist.Beta(a, pyro.param("b", torch.tensor(4.0), constraint=constraints.positive)))

    return model, guide


@case({"x": torch.arange(12) % 3}, objective="analytic")
def dirichlet_categorical():
    def model(x):
        p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Categorical(p), obs=x)

    def guide(x):
        pyro.sample(
            "p", dist.Dirichlet(pyro.param("a", torch.tensor([2.0, 3.0, 4.0]), constraint=constraints.positive))
        )

    return model, guide


@case({"x": _randn(10).exp()}, objective="analytic")
def gamma_guide():
    def model(x):
        rate = pyro.sample("rate", dist.Gamma(2.0, 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Exponential(rate), obs=x)

    def guide(x):
        a = pyro.param("a", torch.tensor(5.0), constraint=constraints.positive)
        pyro.sample("rate", dist.Gamma(a, pyro.param("b", torch.tensor(4.0), constraint=constraints.positive)))

    return model, guide


@case({"x": Y}, objective="sampled", pathwise=False, particles=2)
def bernoulli_score():
    def model(x):
        z = pyro.sample("z", dist.Bernoulli(0.3))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 3.0), obs=x)

    def guide(x):
        pyro.sample("z", dist.Bernoulli(pyro.param("q", torch.tensor(0.4), constraint=constraints.unit_interval)))

    return model, guide


@case({"x": Y[:4]}, objective="sampled", pathwise=False, particles=2)
def local_poisson_score():
    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Poisson(2.0))
            pyro.sample("x", dist.Normal(k, 2.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Poisson(pyro.param("rate", torch.full((4,), 1.5), constraint=constraints.positive)))

    return model, guide


# -- discrete latents summed out -------------------------------------------------------------------


@case({"x": Y}, "AutoNormal", ("k",), objective="enumerate")
def gaussian_mixture():
    @config_enumerate
    def model(x):
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
        with pyro.plate("components", 2):
            loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(loc[k], 1.0), obs=x)

    return (model,)


@case({"x": Y[:8]}, "AutoDelta", tuple(f"z_{t}" for t in range(8)), objective="enumerate")
def hidden_markov_model():
    @config_enumerate
    def model(x):
        step = pyro.sample("step", dist.Dirichlet(0.9 * torch.eye(2) + 0.1).to_event(1))
        loc = pyro.sample("loc", dist.Normal(torch.tensor([-1.0, 1.0]), 1.0).to_event(1))
        z = 0
        for t in pyro.markov(range(len(x))):
            z = pyro.sample(f"z_{t}", dist.Categorical(step[z]))
            pyro.sample(f"x_{t}", dist.Normal(loc[z], 1.0), obs=x[t])

    return (model,)


@case({"x": Y[:9]}, objective="enumerate")
def exact_mixture():
    @config_enumerate
    def model(x):
        p = pyro.param("p", torch.tensor([0.3, 0.7]), constraint=constraints.simplex)
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(p))
            pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor([-1.0, 0.5]))[k], 1.0), obs=x)

    return model, lambda x: None


# -- deep generative models ------------------------------------------------------------------------


class SmallVAE(Program):
    """A VAE with whatever layers are put between."""

    def __init__(self, *layers: nn.Module, features: int = 16, latent: int = 2):
        super().__init__()
        self.latent = latent
        self.encoder = nn.Sequential(nn.Linear(features, 8), *layers, nn.Tanh(), nn.Linear(8, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, 8), nn.ReLU(), nn.Linear(8, features))

    def model(self, x=None):
        with ppgen.rows(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([self.latent]).to_event(1))
            return pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        loc, log_scale = self.encoder(x).chunk(2, -1)
        with ppgen.rows(x):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


@case(BITS, objective="analytic")
def vae():
    return SmallVAE()


@case(BITS, objective="sampled", particles=3)
def vae_particles():
    return SmallVAE()


@case(BITS, objective="analytic", rows=60)
def vae_minibatch():
    return SmallVAE()


@case(BITS, objective="analytic")
def vae_dropout():
    return SmallVAE(nn.Dropout(0.3))


@case(BITS, objective="analytic")
def vae_batch_norm():
    return SmallVAE(nn.BatchNorm1d(8))


@case(BITS, objective="analytic")
def pyro_module_statement():
    encoder, decoder = nn.Linear(16, 4), nn.Linear(2, 16)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        loc, log_scale = encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide


@case({"x": _bits(3, 1, 8, 8)}, objective="analytic")
def convolutional_vae():
    class Convolutional(Program):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Sequential(nn.Conv2d(1, 4, 4, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4))
            self.up = nn.Linear(2, 64)
            self.decoder = nn.ConvTranspose2d(4, 1, 4, 2, 1)

        def model(self, x=None):
            with ppgen.rows(x):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                h = self.decoder(self.up(z).relu().reshape(-1, 4, 4, 4)).reshape(z.shape[:-1] + (1, 8, 8))
                pyro.sample("x", dist.Bernoulli(logits=h).to_event(3), obs=x)

        def guide(self, x):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            with ppgen.rows(x):
                pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return Convolutional()


@case(POINTS, objective="analytic")
def probabilistic_pca():
    class PPCA(Program):
        def __init__(self):
            super().__init__()
            self.w, self.log_noise = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.zeros(()))
            self.encoder, self.log_scale = nn.Linear(4, 2), nn.Parameter(torch.zeros(2))

        def model(self, x=None):
            with ppgen.rows(x):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z @ self.w, self.log_noise.exp()).to_event(1), obs=x)

        def guide(self, x):
            with ppgen.rows(x):
                pyro.sample("z", dist.Normal(self.encoder(x), self.log_scale.exp()).to_event(1))

    return PPCA()


@case(POINTS)
def spline_flow():
    class Flow(Program):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList([transforms.spline_coupling(4, hidden_dims=[8], count_bins=4) for _ in range(2)])

        def model(self, x=None):
            base = dist.Normal(torch.zeros(4), 1.0).to_event(1)
            with ppgen.rows(x):
                pyro.sample("x", dist.TransformedDistribution(base, list(self.parts)), obs=x)

    return Flow()


@case({"x": _bits(4, 5, 3)}, objective="analytic")
def deep_markov_model():
    class DMM(Program):
        def __init__(self):
            super().__init__()
            self.rnn, self.start = nn.GRU(3, 6, batch_first=True), nn.Parameter(torch.zeros(2))
            self.transition, self.emission, self.combine = nn.Linear(2, 4), nn.Linear(2, 3), nn.Linear(8, 4)

        def model(self, x):
            z = self.start.expand(len(x), 2)
            with ppgen.rows(x):
                for t in pyro.markov(range(x.shape[1])):
                    loc, log_scale = self.transition(z).chunk(2, -1)
                    z = pyro.sample(f"z_{t}", dist.Normal(loc, log_scale.exp()).to_event(1))
                    pyro.sample(f"x_{t}", dist.Bernoulli(logits=self.emission(z)).to_event(1), obs=x[:, t])

        def guide(self, x):
            h, _ = self.rnn(x.flip(1))
            z = self.start.expand(len(x), 2)
            with ppgen.rows(x):
                for t in pyro.markov(range(x.shape[1])):
                    loc, log_scale = self.combine(torch.cat([h[:, -1 - t], z], -1)).chunk(2, -1)
                    z = pyro.sample(f"z_{t}", dist.Normal(loc, log_scale.exp()).to_event(1))

    return DMM()
