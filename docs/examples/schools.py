"""Eight schools by NUTS, with the summary that Pyro prints."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.reparam import LocScaleReparam

from ppgen.pyro_compat import MCMC, NUTS  # was: pyro.infer

pyro.set_rng_seed(3)
effect = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
error = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


@pyro.poutine.reparam(config={"theta": LocScaleReparam(0.0)})
def model(error, effect):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("effect", dist.Normal(theta, error), obs=effect)


mcmc = MCMC(NUTS(model), num_samples=100, warmup_steps=100, disable_progbar=True)
mcmc.run(error, effect)
drawn = mcmc.get_samples()
print("mean effect", drawn["mu"].mean().item())
print("spread", drawn["tau"].mean().item())
