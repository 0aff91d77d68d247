"""Counties partly pooled, by a multivariate guide, with the learning rate on a schedule."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, init_to_mean

from ppgen.pyro_compat import SVI, Trace_ELBO  # was: pyro.infer

pyro.set_rng_seed(7)
county = torch.arange(60) % 6
floor = (torch.rand(60) < 0.3).float()
level = torch.randn(6)[county] * 0.4 + 1.5 - 0.6 * floor + 0.5 * torch.randn(60)


def model(county, floor, level):
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    between = pyro.sample("between", dist.HalfNormal(1.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 2.0))
    with pyro.plate("counties", 6):
        offset = pyro.sample("offset", dist.Normal(mean, between))
    with pyro.plate("houses", len(level)):
        pyro.sample("level", dist.Normal(offset[county] + slope * floor, 0.5), obs=level)


guide = AutoMultivariateNormal(model, init_loc_fn=init_to_mean)
how = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.03}, "gamma": 0.997}
scheduler = pyro.optim.ExponentialLR(how)
svi = SVI(model, guide, scheduler, Trace_ELBO())
losses = []
for _ in range(400):
    losses.append(svi.step(county, floor, level))
    scheduler.step()
print("loss", sum(losses[-100:]) / 100)
print("slope", guide.median()["slope"].item())
