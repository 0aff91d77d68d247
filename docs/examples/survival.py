"""Times to failure, some of them cut off: a mask, a factor, and one parameter that is learned."""

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

from ppgen.pyro_compat import SVI, Trace_ELBO  # was: pyro.infer

pyro.set_rng_seed(8)
time = dist.Weibull(4.0, 1.6).sample((50,))
seen = time < 5.0
time = time.clamp(max=5.0)


def model(time, seen):
    shape = pyro.param("shape", torch.tensor(1.0), constraint=constraints.positive)
    scale = pyro.sample("scale", dist.Gamma(2.0, 0.5))
    with pyro.plate("parts", len(time)):
        with pyro.poutine.mask(mask=seen):
            pyro.sample("failure", dist.Weibull(scale, shape), obs=time)
        with pyro.poutine.mask(mask=~seen):
            pyro.factor("survived", -((time / scale) ** shape))


def guide(time, seen):
    loc = pyro.param("loc", torch.tensor(1.0))
    width = pyro.param("width", torch.tensor(0.1), constraint=constraints.positive)
    pyro.sample("scale", dist.LogNormal(loc, width))


svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
losses = [svi.step(time, seen) for _ in range(400)]
print("loss", sum(losses[-100:]) / 100)
print("shape", pyro.param("shape").item())
