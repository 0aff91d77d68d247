# %% [markdown]
# # Missing responses, drawn with the rest
#
# tags: Bayesian, missing data, regression, tables
#
# With `missing = "impute"` each missing cell of an observed column is one more latent. Look at the intervals of the
# cells that were taken away: they should hold the true values about nine times in ten.

# %%
import logging

import matplotlib.pyplot as plt
import numpy as np
import pyro
from pyro.distributions import HalfNormal, Normal

import ppgen
from ppgen.inference import mcmc

rng = np.random.default_rng(1)
area = np.sort(rng.uniform(0, 10, 60))
rent = 4 + 0.8 * area + rng.normal(0, 0.7, 60)
away = rng.permutation(60)[:12]
seen = rent.copy()
seen[away] = np.nan


def model(area, rent=None):
    base, slope = pyro.sample("base", Normal(0.0, 10.0)), pyro.sample("slope", Normal(0.0, 5.0))
    spread = pyro.sample("spread", HalfNormal(3.0))
    with ppgen.rows(area):
        pyro.sample("rent", Normal(base + slope * area, spread), obs=rent)


program = ppgen.Program.from_pair(model)
program.missing = "impute"
logging.getLogger("ppgen").setLevel(logging.ERROR)
tree = mcmc(program, {"area": area, "rent": seen}, chains=8, draws=150, engine="trace", predictive=False, prior=False)
print(dict(tree.posterior["rent"].sizes))

# %% alt="A line through the seen values, and an interval at each missing one, most of which hold the true value"
cells = tree.posterior["rent"].stack(s=("chain", "draw")).values[away]
low, high = np.quantile(cells, [0.05, 0.95], 1)
held = (low < rent[away]) & (rent[away] < high)
print(f"{held.sum()} of {len(away)} true values are within their 90% interval")

figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
axis.plot(area, seen, ".", color="#999999", label="seen")
axis.vlines(area[away], low, high, color="#0072B2", lw=3, label="90% interval of a missing cell")
axis.plot(area[away], rent[away], "D", ms=4, color="#E69F00", label="what was taken away")
axis.set(xlabel="area", ylabel="rent")
axis.legend(fontsize=8)
plt.show()
