# %% [markdown]
# # Seeing is not doing
#
# tags: Bayesian, custom Pyro code, simulators
#
# Ill people take a drug more often, and it helps them. Rows where it was taken do worse all the same. `sample` with
# `given=` sets the site by intervention: what lies before it is drawn as ever, and does not hear of it.

# %%
import matplotlib.pyplot as plt
import pyro
import torch
from pyro.distributions import Bernoulli, Normal

import ppgen
from ppgen.inference import sample


def clinic(health=None):
    with ppgen.rows(health):
        ill = pyro.sample("ill", Bernoulli(0.4))
        drug = pyro.sample("drug", Bernoulli(0.1 + 0.7 * ill))
        return pyro.sample("health", Normal(8 - 4 * ill + 1.5 * drug, 1.0), obs=health)


program = ppgen.Program.from_pair(clinic)
seen = sample(program, 4000, seed=0)
groups = {"seen": {d: seen["health"][seen["drug"] == d] for d in (0, 1)}, "done": {}}
for d in (0, 1):
    groups["done"][d] = sample(program, 4000, given={"drug": torch.tensor(float(d))}, seed=1)["health"]
for name, (without, taken) in ((name, both.values()) for name, both in groups.items()):
    print(f"{name}: health with the drug less without {taken.mean() - without.mean():5.2f}; the program has +1.50")

# %% alt="Histograms of health with and without the drug: among rows as seen it looks harmful, by intervention it helps"
figure, axes = plt.subplots(1, 2, figsize=(8, 2.6), sharex=True, layout="constrained")
for axis, (name, both) in zip(axes, groups.items(), strict=True):
    for d, colour in ((0, "#999999"), (1, "#0072B2")):
        axis.hist(both[d], 50, density=True, color=colour, alpha=0.6, label="drug" if d else "no drug")
        axis.axvline(both[d].mean(), color=colour, lw=2)
    axis.set(title="rows as seen" if name == "seen" else "by intervention", xlabel="health", yticks=[])
axes[0].legend(fontsize=8)
plt.show()
