"""Bayesian regression with an autoguide, minibatches, and predictions for new rows."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoDiagonalNormal

from ppgen.pyro_compat import SVI, Predictive, Trace_ELBO  # was: pyro.infer

pyro.set_rng_seed(2)
hours = torch.linspace(0.0, 3.0, 90)
score = 40 + 12 * hours + 4 * torch.randn(90)


def model(hours, score=None, total=90):
    start = pyro.sample("start", dist.Normal(50.0, 20.0))
    gain = pyro.sample("gain", dist.Normal(0.0, 20.0))
    spread = pyro.sample("spread", dist.HalfNormal(10.0))
    with pyro.plate("pupils", total, subsample_size=len(hours)):
        return pyro.sample("score", dist.Normal(start + gain * hours, spread), obs=score)


guide = AutoDiagonalNormal(model, init_scale=0.1)
svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.999}), Trace_ELBO(num_particles=2))
for _ in range(120):
    for batch in torch.randperm(90).split(30):
        loss = svi.step(hours[batch], score[batch])
print("loss", loss)
predictive = Predictive(model, guide=guide, num_samples=400, return_sites=["score"])
drawn = predictive(torch.tensor([1.0, 2.0]), total=2)["score"]
print("after one and two hours", *drawn.mean(0).tolist())
