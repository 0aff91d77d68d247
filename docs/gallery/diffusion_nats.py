# %% [markdown]
# # Where the nats of a diffusion model go
#
# tags: diffusion, density
#
# The ELBO of a chain is a sum over time: each step costs the KL between what the network says and the truth. Look at
# the sum beside log p(x) by the probability flow: the distance between them is what the bound costs.

# %%
import matplotlib.pyplot as plt
import torch

import ppgen
from ppgen.inference import elbo_decomposition, fit, loglik
from ppgen.models import Diffusion

train = ppgen.data.load("moons", "train")
test = {"x": ppgen.data.load("moons", "test")["x"][:500]}
torch.manual_seed(0)
model = Diffusion(2, hidden=(64, 64), steps=0)
run = fit(model, train, steps=1000, batch_size=256, lr=3e-3, schedule="cosine", ema=0.99, engine="trace")

terms = elbo_decomposition(run, test, intervals=40)
total = -terms.prior - terms.kl.sum() + terms.reconstruction
print(f"prior {terms.prior:.3f}, times {terms.kl.sum():.3f}, reconstruction {terms.reconstruction:.3f}")
for bound in loglik(run, test, particles=20, ode=True).bounds:
    print(f"{bound.name:5} {bound.kind:6} {bound.mean:.3f} ± {bound.rows_se:.3f} nats a row")

# %% alt="Bars of the KL of forty intervals of time: most nats are paid at low noise, near time 0"
figure, axis = plt.subplots(figsize=(6, 2.8), layout="constrained")
width = terms.times[1] - terms.times[0]
axis.bar(terms.times[:-1] + width / 2, terms.kl, 0.9 * width, yerr=terms.kl_se, color="#0072B2", ecolor="#999999")
axis.set(xlabel="time (0: data, 1: noise)", ylabel="KL of the interval, nats")
plt.show()
