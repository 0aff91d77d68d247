"""How fair is a coin? The first script of most people who try Pyro."""

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from ppgen.pyro_compat import SVI, Trace_ELBO  # was: pyro.infer

pyro.set_rng_seed(1)
throws = [torch.tensor(float(heads)) for heads in (1, 0, 1, 1, 1, 0, 1, 1)]


def model(throws):
    fairness = pyro.sample("fairness", dist.Beta(8.0, 8.0))
    for i, throw in enumerate(throws):
        pyro.sample(f"throw_{i}", dist.Bernoulli(fairness), obs=throw)


def guide(throws):
    a = pyro.param("a", torch.tensor(8.0), constraint=constraints.positive)
    b = pyro.param("b", torch.tensor(8.0), constraint=constraints.positive)
    pyro.sample("fairness", dist.Beta(a, b))


svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
losses = [svi.step(throws) for _ in range(400)]
a, b = (pyro.param(name).item() for name in "ab")
print("loss", sum(losses[-100:]) / 100)
print("fairness", a / (a + b))
