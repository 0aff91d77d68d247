"""A Bayesian neural network of PyroModules, its activation passed as an argument."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import nn

from ppgen.pyro_compat import SVI, Trace_ELBO  # was: pyro.infer

pyro.set_rng_seed(12)
x = torch.linspace(-2.0, 2.0, 40)[:, None]
y = torch.sin(2 * x[:, 0]) + 0.1 * torch.randn(40)


class Network(PyroModule):
    def __init__(self, hidden=8):
        super().__init__()
        self.inner = PyroModule[nn.Linear](1, hidden)
        self.outer = PyroModule[nn.Linear](hidden, 1)
        for layer in (self.inner, self.outer):
            layer.weight = PyroSample(dist.Normal(0.0, 1.5).expand(layer.weight.shape).to_event(2))
            layer.bias = PyroSample(dist.Normal(0.0, 1.0).expand(layer.bias.shape).to_event(1))

    def forward(self, x, y=None, activation=torch.tanh):
        mean = self.outer(activation(self.inner(x))).squeeze(-1)
        with pyro.plate("rows", len(x)):
            return pyro.sample("y", dist.Normal(mean, 0.2), obs=y)


network = Network()
guide = AutoNormal(network, init_scale=0.02)
svi = SVI(network, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
losses = [svi.step(x, y, activation=torch.tanh) for _ in range(300)]
print("loss", sum(losses[-100:]) / 100)
