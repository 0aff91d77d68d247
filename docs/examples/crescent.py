"""A posterior that is no ellipse: a flow as the guide, as Pyro's autoguides have it."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoIAFNormal

from ppgen.pyro_compat import SVI, Predictive, Trace_ELBO  # was: pyro.infer

pyro.set_rng_seed(11)


def model():
    z = pyro.sample("z", dist.Normal(torch.zeros(2), torch.tensor([1.0, 3.0])).to_event(1))
    pyro.sample("reading", dist.Normal(z[1] - z[0] ** 2, 0.3), obs=torch.tensor(0.5))


guide = AutoIAFNormal(model, hidden_dim=[16], num_transforms=1)
svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO(num_particles=4, vectorize_particles=False))
losses = [svi.step() for _ in range(250)]
print("loss", sum(losses[-100:]) / 100)
drawn = Predictive(model, guide=guide, num_samples=200, return_sites=["z"])()["z"]
print("second moment", (drawn.reshape(-1, 2) ** 2).mean().item())
