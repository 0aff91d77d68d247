# %% [markdown]
# # Too many zeros
#
# tags: Bayesian, regression, tables, model comparison
#
# Some visitors of a lake do not fish at all. A Poisson regression has to explain their zeros by low rates. Look at the
# number of zeros that each fitted model predicts, beside that of the table.

# %%
import logging

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from ppgen.inference import fit, posterior
from ppgen.models import regression

logging.getLogger("ppgen").setLevel(logging.ERROR)
rng = np.random.default_rng(0)
hours = rng.uniform(0, 4, 200)
fish = rng.poisson(np.exp(0.2 + 0.4 * hours)) * (rng.random(200) > 0.35)
table = pd.DataFrame({"hours": hours, "fish": fish})

zeros = {}
for family in ("poisson", "zero_inflated_poisson"):
    program = regression("fish ~ hours", family, data=table)
    run = fit(program, table, guide="AutoMultivariateNormal", steps=600, lr=0.03, schedule="cosine", engine="trace")
    tree = posterior(run, table, draws=1000, prior=False)
    zeros[family] = (tree.posterior_predictive["fish"].values == 0).sum(-1).ravel()
    slope = tree.posterior["beta"]
    print(f"{family:22} slope {float(slope.mean()):.2f} ± {float(slope.std()):.2f}, made with 0.4")
    print(f"{'':22} {zeros[family].mean():.0f} zeros predicted, {(fish == 0).sum()} seen")

# %% alt="Histograms of the number of predicted zeros: the Poisson's is far below what was seen, the other's about it"
figure, axis = plt.subplots(figsize=(6, 2.6), layout="constrained")
for (family, counts), colour in zip(zeros.items(), ("#999999", "#0072B2"), strict=True):
    axis.hist(counts, np.arange(10, 131, 3), color=colour, alpha=0.7, label=family.replace("_", " "))
axis.axvline((fish == 0).sum(), color="#E69F00", lw=2, label="seen")
axis.set(xlabel="zeros among 200 rows", yticks=[])
axis.legend(fontsize=8)
plt.show()
