"""A hidden Markov model: wet and dry spells out of the noise of one gauge."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal

from ppgen.pyro_compat import SVI, TraceEnum_ELBO  # was: pyro.infer

pyro.set_rng_seed(5)
gauge = torch.tensor([0.1, -0.3, 0.2, 2.1, 1.7, 2.4, 1.9, 0.0, -0.2, 0.3, 2.2, 1.8])


def model(gauge):
    stay = pyro.sample("stay", dist.Beta(torch.tensor([4.0, 4.0]), 1.0).to_event(1))
    level = pyro.sample("level", dist.Normal(torch.tensor([0.0, 2.0]), 0.5).to_event(1))
    rows = torch.stack([torch.stack([stay[0], 1 - stay[0]]), torch.stack([1 - stay[1], stay[1]])])
    state = 0
    for t in pyro.markov(range(len(gauge))):
        state = pyro.sample(f"state_{t}", dist.Categorical(rows[state]), infer={"enumerate": "parallel"})
        pyro.sample(f"gauge_{t}", dist.Normal(level[state], 0.4), obs=gauge[t])


guide = AutoNormal(poutine.block(model, expose=["stay", "level"]), init_scale=0.05)
svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.03}), TraceEnum_ELBO(max_plate_nesting=0))
losses = [svi.step(gauge) for _ in range(150)]
print("loss", sum(losses[-50:]) / 50)
print("levels", *guide.median()["level"].tolist())
