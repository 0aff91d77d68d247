"""A rate that changed once: the year is summed out."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal

from ppgen.pyro_compat import SVI, TraceEnum_ELBO  # was: pyro.infer

pyro.set_rng_seed(10)
counts = torch.cat([dist.Poisson(6.0).sample((12,)), dist.Poisson(2.0).sample((18,))])


def model(counts):
    years = torch.arange(len(counts))
    early, late = (pyro.sample(name, dist.Gamma(2.0, 0.5)) for name in ("early", "late"))
    change = pyro.sample("change", dist.Categorical(logits=torch.zeros(len(counts))), infer={"enumerate": "parallel"})
    rate = torch.where(years < change.unsqueeze(-1), early, late)
    pyro.sample("counts", dist.Poisson(rate).to_event(1), obs=counts)


guide = AutoNormal(poutine.block(model, hide=["change"]), init_scale=0.05)
svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.03}), TraceEnum_ELBO(max_plate_nesting=0))
losses = [svi.step(counts) for _ in range(300)]
print("loss", sum(losses[-100:]) / 100)
print("rates", *(guide.median()[name].item() for name in ("early", "late")))
