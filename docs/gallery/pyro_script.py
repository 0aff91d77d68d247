# %% [markdown]
# # A Pyro script, with one line changed
#
# tags: Bayesian, custom Pyro code, time series
#
# A hidden Markov model as Pyro users write it: `pyro.markov`, states that are enumerated, an autoguide. The import of
# `SVI` and `TraceEnum_ELBO` is from `ppgen.pyro_compat`; nothing else is changed.

# %%
import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import config_enumerate, infer_discrete
from pyro.infer.autoguide import AutoNormal, init_to_mean

from ppgen.pyro_compat import SVI, TraceEnum_ELBO  # was: pyro.infer

pyro.set_rng_seed(5)
spells = torch.tensor([0] * 6 + [1] * 5 + [0] * 4 + [1] * 5)
gauge = 2.0 * spells + 0.4 * torch.randn(20)


@config_enumerate
def model(gauge):
    stay = pyro.sample("stay", dist.Beta(torch.tensor([4.0, 4.0]), 1.0).to_event(1))
    level = pyro.sample("level", dist.Normal(torch.tensor([0.0, 2.0]), 0.5).to_event(1))
    rows = torch.stack([torch.stack([stay[0], 1 - stay[0]]), torch.stack([1 - stay[1], stay[1]])])
    state = 0
    for t in pyro.markov(range(len(gauge))):
        state = pyro.sample(f"state_{t}", dist.Categorical(rows[state]))
        pyro.sample(f"gauge_{t}", dist.Normal(level[state], 0.4), obs=gauge[t])


guide = AutoNormal(poutine.block(model, expose=["stay", "level"]), init_loc_fn=init_to_mean, init_scale=0.05)
svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.03}), TraceEnum_ELBO(max_plate_nesting=0))
losses = [svi.step(gauge) for _ in range(150)]
print(f"loss {sum(losses[:20]) / 20:.1f} at first, {sum(losses[-50:]) / 50:.1f} at the end")
print("levels", *(f"{level:.2f}" for level in guide.median()["level"]))

# %% alt="Readings of a gauge over twenty days, and the most probable state of each day, which follows the spells"
at_medians = poutine.condition(model, {k: v.detach() for k, v in guide.median().items()})
found = poutine.trace(infer_discrete(at_medians, first_available_dim=-1, temperature=0)).get_trace(gauge)
states = torch.stack([found.nodes[f"state_{t}"]["value"] for t in range(20)])
print(f"{int((states == spells).sum())} of 20 days in the right state")

figure, axis = plt.subplots(figsize=(7, 2.6), layout="constrained")
axis.plot(gauge, "o", color="#999999", label="gauge")
axis.step(range(20), 2 * states, where="mid", color="#0072B2", label="most probable state (wet: 2)")
axis.set(xlabel="day", xticks=range(0, 20, 5))
figure.legend(fontsize=8, loc="outside upper center", ncols=2)
plt.show()
