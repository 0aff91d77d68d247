"""A mixture of normals: its assignments summed out, its parameters at their mode."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoDelta

from ppgen.pyro_compat import SVI, TraceEnum_ELBO  # was: pyro.infer

pyro.set_rng_seed(4)
waits = torch.cat([2.0 + 0.3 * torch.randn(30), 4.5 + 0.4 * torch.randn(50)])


@config_enumerate
def model(waits):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("kinds", 2):
        centre = pyro.sample("centre", dist.Normal(torch.tensor([1.0, 5.0]), 2.0))
        width = pyro.sample("width", dist.LogNormal(-1.0, 0.5))
    with pyro.plate("eruptions", len(waits)):
        kind = pyro.sample("kind", dist.Categorical(weights))
        pyro.sample("wait", dist.Normal(centre[kind], width[kind]), obs=waits)


guide = AutoDelta(poutine.block(model, hide=["kind"]))
svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), TraceEnum_ELBO(max_plate_nesting=1))
for _ in range(250):
    loss = svi.step(waits)
print("loss", loss)
print("centres", *pyro.param("AutoDelta.centre").tolist())
