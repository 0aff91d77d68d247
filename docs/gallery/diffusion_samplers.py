# %% [markdown]
# # How many steps does a sampler need?
#
# tags: diffusion, density
#
# One network, three samplers, few and many steps. The figure above each picture is a distance of the draws from
# held-out data (the energy distance; 0 is best). Look at how differently the samplers do at 5 steps, and how alike at
# 100.

# %%
import matplotlib.pyplot as plt
import torch

import ppgen
from ppgen.inference import fit, sample_diffusion
from ppgen.models import Diffusion

train, test = ppgen.data.load("rings", "train"), ppgen.data.load("rings", "test")["x"][:1000]
torch.manual_seed(0)
model = Diffusion(2, hidden=(64, 64), steps=0, schedule="cosine")
run = fit(model, train, steps=800, batch_size=256, lr=3e-3, schedule="cosine", ema=0.99, engine="trace")


def energy(a, b):
    """2 E|a − b| − E|a − a'| − E|b − b'|: zero where both are draws of one distribution."""
    return float(2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean())


# %% alt="Draws of two rings by three samplers at 5, 20 and 100 steps; at 5 steps many lie between the rings"
figure, axes = plt.subplots(3, 3, figsize=(6, 6.4), sharex=True, sharey=True, layout="constrained")
for row, steps in zip(axes, (5, 20, 100), strict=True):
    for axis, sampler in zip(row, ("ancestral", "ddim", "dpmpp"), strict=True):
        drawn = sample_diffusion(run, 1000, sampler, steps, seed=0)
        axis.plot(*drawn.T, ".", ms=2, color="#0072B2")
        axis.set_title(f"{sampler}, {steps} steps: {energy(drawn, test):.3f}", fontsize=9)
axes[0, 0].set(xlim=(-3, 3), ylim=(-3, 3))
plt.show()
