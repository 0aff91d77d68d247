# %% [markdown]
# # Two modes, in their right proportions
#
# tags: Bayesian, custom Pyro code
#
# Only the square of θ is seen, and the prior prefers the positive root. Chains stay in the mode where they began.
# Tempered SMC moves particles from a density that is known, so that the share of each mode is the posterior's.

# %%
import logging

import matplotlib.pyplot as plt
import numpy as np
import pyro
import torch
from pyro.distributions import Normal

from ppgen.inference import load_findings, mcmc, verdict

logging.getLogger("ppgen").setLevel(logging.ERROR)  # the verdicts are printed below
y = torch.tensor([3.1, 4.4, 4.0, 3.7])


def squared(y):
    theta = pyro.sample("theta", Normal(0.5, 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", Normal(theta**2, 1.0), obs=y)


grid = torch.linspace(-4, 4, 2001)
log_p = Normal(0.5, 2.0).log_prob(grid) + Normal(grid**2, 1.0).log_prob(y[:, None]).sum(0)
exact = log_p.softmax(0)
print(f"share above 0 by quadrature     {exact[grid > 0].sum():.3f}")
few = {"predictive": False, "prior": False, "engine": "trace"}
trees = {
    "ChEES": mcmc(squared, {"y": y}, chains=16, draws=100, **few),
    "tempered SMC": mcmc(squared, {"y": y}, "smc", **few),
}
for name, tree in trees.items():
    share = (tree.posterior.theta.values > 0).mean()
    print(f"share above 0 by {name:14} {share:.3f}, verdict {verdict(load_findings(tree))}")

# %% alt="Histograms of theta by both methods over the exact density with its two modes"
figure, axes = plt.subplots(1, 2, figsize=(8, 2.8), sharey=True, layout="constrained")
for axis, (name, tree) in zip(axes, trees.items(), strict=True):
    axis.hist(tree.posterior.theta.values.ravel(), np.linspace(-3, 3, 81), density=True, color="#0072B2", alpha=0.6)
    axis.plot(grid, exact / (grid[1] - grid[0]), color="#E69F00", label="exact")
    axis.set(title=name, xlabel="θ", xlim=(-3, 3))
axes[0].legend()
plt.show()
