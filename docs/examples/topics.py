"""Topics of short documents: words' topics summed out, Dirichlets by their own guide."""

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

from ppgen.pyro_compat import SVI, TraceEnum_ELBO  # was: pyro.infer

pyro.set_rng_seed(9)
words = torch.cat([torch.randint(0, 5, (12, 6)), torch.randint(5, 10, (12, 6))], 1)


def model(words):
    with pyro.plate("topics", 2):
        phi = pyro.sample("phi", dist.Dirichlet(torch.ones(10) / 2))
    with pyro.plate("documents", words.shape[1]):
        theta = pyro.sample("theta", dist.Dirichlet(torch.ones(2) / 2))
        with pyro.plate("words", words.shape[0]):
            topic = pyro.sample("topic", dist.Categorical(theta), infer={"enumerate": "parallel"})
            pyro.sample("word", dist.Categorical(phi[topic]), obs=words)


def guide(words):
    phi = pyro.param("phi_q", lambda: 0.5 + torch.rand(2, 10), constraint=constraints.positive)
    theta = pyro.param("theta_q", lambda: torch.ones(words.shape[1], 2), constraint=constraints.positive)
    with pyro.plate("topics", 2):
        pyro.sample("phi", dist.Dirichlet(phi))
    with pyro.plate("documents", words.shape[1]):
        pyro.sample("theta", dist.Dirichlet(theta))


svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), TraceEnum_ELBO(max_plate_nesting=2))
losses = [svi.step(words) for _ in range(150)]
print("loss", sum(losses[-50:]) / 50)
