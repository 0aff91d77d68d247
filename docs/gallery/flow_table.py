# %% [markdown]
# # A made-up copy of a table
#
# tags: flow, tables, density
#
# A flow learns the joint density of three columns, and its draws are rows of nobody. Look at the correlations beside
# each other, and at the tails. A copy that looks right is not private by that: nothing here was asked to hide a row.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from ppgen.inference import fit, sample
from ppgen.models import Flow

rng = np.random.default_rng(0)
age = 18 + 60 * rng.beta(2, 3, 3000)
hours = np.clip(rng.normal(38 - 0.02 * (age - 45) ** 2, 5), 1, None)
income = np.exp(0.5 + 0.03 * hours + 0.012 * age + rng.normal(0, 0.35, 3000))
table = pd.DataFrame({"age": age, "hours": hours, "income": income})

rows = {"x": torch.tensor(table.to_numpy(), dtype=torch.float32)}
torch.manual_seed(0)
flow = Flow(3, family="nsf_coupling", transforms=3, hidden=(32, 32)).prepare(rows)
run = fit(flow, rows, steps=400, batch_size=256, lr=4e-3, schedule="cosine", engine="trace")
copy = pd.DataFrame(sample(run, 3000, seed=0)["x"].numpy(), columns=table.columns)
print("rank correlations of the table and of its copy:")
print(pd.concat([table.corr("spearman"), copy.corr("spearman")], axis=1, keys=["table", "copy"]).round(2))

# %% alt="Income against age in the table and in the copy, and the histograms of all three columns on top of each other"
figure, axes = plt.subplots(1, 4, figsize=(10, 2.6), layout="constrained")
axes[0].plot(table.age, table.income, ".", ms=2, color="#999999")
axes[0].plot(copy.age[:1000], copy.income[:1000], ".", ms=2, color="#0072B2")
axes[0].set(xlabel="age", ylabel="income")
for axis, name in zip(axes[1:], table, strict=True):
    bins = np.linspace(min(table[name].min(), copy[name].min()), table[name].max(), 40)
    axis.hist(table[name], bins, color="#999999", alpha=0.6, label="table")
    axis.hist(copy[name], bins, color="#0072B2", histtype="step", label="copy")
    axis.set(xlabel=name, yticks=[])
axes[1].legend(fontsize=8)
plt.show()
