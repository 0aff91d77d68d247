# %% [markdown]
# # Outliers, by a Student's t
#
# tags: Bayesian, regression, model comparison
#
# Five of fifty values were read off wrongly. A normal noise lets them pull the line; a Student's t does not. Look at
# the slopes, made with 0.5, and at the leave-one-out scores of both models (elpd, higher is better).

# %%
import logging

import arviz_stats
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from ppgen.inference import fit, posterior
from ppgen.models import regression

logging.getLogger("ppgen").setLevel(logging.ERROR)
rng = np.random.default_rng(0)
x = np.linspace(0, 10, 50)
y = 1 + 0.5 * x + rng.normal(0, 0.4, 50)
y[44:49] -= 6
table = pd.DataFrame({"x": x, "y": y})

trees = {}
for family in ("gaussian", "student"):
    program = regression("y ~ x", family, data=table)
    run = fit(program, table, guide="AutoMultivariateNormal", steps=800, lr=0.03, schedule="cosine", engine="trace")
    trees[family] = posterior(run, table, draws=1000, prior=False, corrected=True)
    slope, elpd = trees[family].posterior["beta"], arviz_stats.loo(trees[family])
    print(
        f"{family:8} slope {float(slope.mean()):.2f} ± {float(slope.std()):.2f}",
        f"elpd {elpd.elpd:.1f} ± {elpd.se:.1f}",
    )

# %% alt="Fifty points of which five are far below: the line with normal noise is pulled down, the other is not"
figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
axis.plot(x, y, ".", color="#999999")
for (family, tree), colour in zip(trees.items(), ("#E69F00", "#0072B2"), strict=True):
    alpha, beta = (tree.posterior[name].values.reshape(-1, 1) for name in ("alpha", "beta"))
    low, middle, high = np.quantile(alpha + beta * (x - x.mean()), [0.05, 0.5, 0.95], axis=0)
    axis.fill_between(x, low, high, color=colour, alpha=0.25)
    axis.plot(x, middle, color=colour, label=f"{family} noise")
axis.set(xlabel="x", ylabel="y")
axis.legend(fontsize=8)
plt.show()
