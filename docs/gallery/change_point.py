# %% [markdown]
# # When did the rate change?
#
# tags: Bayesian, time series, custom Pyro code
#
# The year of the change is a discrete latent. It is summed out for the rates, and then drawn given them, so that the
# tree has it as any other latent. Look at the verdict, and at how many years share the probability.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pyro
import torch
from pyro.distributions import Categorical, Gamma, Poisson

from ppgen.inference import infer

torch.manual_seed(0)
counts = torch.cat([torch.poisson(torch.full((14,), 6.0)), torch.poisson(torch.full((20,), 2.0))])


def model(counts):
    years = torch.arange(34)
    early, late = (pyro.sample(name, Gamma(2.0, 0.5)) for name in ("early", "late"))
    infer = {"enumerate": "parallel"}
    change = pyro.sample("change", Categorical(logits=torch.zeros(34)), infer=infer)
    rate = torch.where(years < change.unsqueeze(-1), early, late)
    pyro.sample("counts", Poisson(rate).to_event(1), obs=counts)


tree = infer(model, {"counts": counts}, prior=False, predictive=False)
print(tree.attrs["method"], tree.attrs["verdict"])
for name in ("early", "late"):
    print(f"{name} {float(tree.posterior[name].mean()):.2f} ± {float(tree.posterior[name].std()):.2f}")

# %% alt="Counts by year, and below them the probability of each year of change, with its mass about year 14"
share = np.bincount(tree.posterior["change"].values.ravel().astype(int), minlength=34) / tree.posterior["change"].size

figure, (above, below) = plt.subplots(2, 1, figsize=(6, 3.6), sharex=True, layout="constrained")
above.bar(range(34), counts, color="#999999")
above.set_ylabel("count")
below.bar(range(34), share, color="#0072B2")
below.axvline(13.5, color="#E69F00", label="where the data were made to change")
below.set(xlabel="year", ylabel="probability")
below.legend(fontsize=8)
plt.show()
