# %% [markdown]
# # Times to failure, some of them cut off
#
# tags: Bayesian, regression, tables, missing data
#
# The study ends after eight years, and parts that still run are censored: their time is only known to be longer. Look
# at what becomes of the slope where they are taken for failures, and where they are left out.

# %%
import logging

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from ppgen.inference import fit, posterior
from ppgen.models import regression

logging.getLogger("ppgen").setLevel(logging.ERROR)
rng = np.random.default_rng(0)
load = rng.uniform(0, 2, 150)
time = np.exp(2.4 - 0.6 * load) * rng.weibull(1.5, 150)
table = pd.DataFrame({"load": load, "time": np.minimum(time, 8.0), "cut": np.where(time > 8, "right", "none")})
print(f"{(table.cut == 'right').mean():.0%} of the parts are censored")

readings = {
    "censored": ("censored(time, cut) ~ load", table),
    "taken for failures": ("time ~ load", table),
    "left out": ("time ~ load", table[table.cut == "none"].reset_index(drop=True)),
}
draws = {}
for name, (formula, rows) in readings.items():
    program = regression(formula, "weibull", data=rows)
    run = fit(program, rows, guide="AutoMultivariateNormal", steps=600, lr=0.03, schedule="cosine", engine="trace")
    draws[name] = posterior(run, rows, draws=1000, prior=False, predictive=False).posterior["beta"].values.ravel()
    print(f"{name:18} slope {draws[name].mean():.2f} ± {draws[name].std():.2f}, made with -0.60")

# %% alt="Posterior of the slope by three readings of the table: only with censoring it is about the true value"
figure, axis = plt.subplots(figsize=(6, 2.6), layout="constrained")
for (name, slope), colour in zip(draws.items(), ("#0072B2", "#999999", "#CC6677"), strict=True):
    axis.hist(slope, np.linspace(-1.1, 0.2, 66), color=colour, alpha=0.7, label=name)
axis.axvline(-0.6, color="#E69F00", lw=2, label="made with")
axis.set(xlabel="slope of the log time by load", yticks=[])
axis.legend(fontsize=8)
plt.show()
