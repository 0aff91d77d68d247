# %% [markdown]
# # Effects of towns, and a town that nobody has seen
#
# tags: Bayesian, regression, tables
#
# A formula and a table are a program. Each town has an intercept of its own, drawn from what towns have in common. A
# new town gets its intercept from the same distribution, so look at how much wider its prediction is.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from ppgen.inference import load_findings, mcmc, predict, verdict
from ppgen.models import regression

rng = np.random.default_rng(4)
names = np.array(["Ashby", "Bolton", "Corby", "Derby", "Epsom", "Frome", "Goole", "Hythe"])
town, cars = rng.integers(0, 8, 90), rng.uniform(0, 4, 90)
level = rng.normal(0, 0.6, 8)
table = pd.DataFrame({"town": names[town], "cars": cars})
table["accidents"] = rng.poisson(np.exp(0.3 + level[town] + 0.3 * cars))

program = regression("accidents ~ 1 + cars + (1 | town)", "poisson", table, {"sd_town": 1.0})
tree = mcmc(program, table, chains=32, draws=100, engine="trace", predictive=False, prior=False)
slope = tree.posterior["beta"]
print(
    f"slope {float(slope.mean()):.2f} ± {float(slope.std()):.2f}, made with 0.3; verdict {verdict(load_findings(tree))}"
)

# %% alt="Predicted accidents by town, with intervals: that of the new town is the widest"
new = pd.DataFrame({"town": [*sorted(set(table.town)), "Newtown"], "cars": 2.0})
found = predict(tree, new, program=program, new_groups="draw")["predictions"]["accidents"]
low, middle, high = found.quantile([0.05, 0.5, 0.95], ("chain", "draw")).values

figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
colours = ["#0072B2"] * (len(new) - 1) + ["#D55E00"]
axis.vlines(new.town, low, high, color=colours, lw=5, alpha=0.6)
axis.scatter(new.town, middle, color=colours, zorder=3)
axis.set(ylabel="accidents at two cars", title="90% intervals of one more count")
plt.show()
