# %% [markdown]
# # The density of two moons, by a spline flow
#
# tags: flow, density
#
# A flow has an exact density. Look at the figure per row: it is log p(x) itself, not a bound. A good fit puts little
# density on the way between the moons.

# %%
import matplotlib.pyplot as plt
import torch

import ppgen
from ppgen.inference import fit, loglik, sample
from ppgen.models import Flow

train, test = ppgen.data.load("moons", "train"), ppgen.data.load("moons", "test")
torch.manual_seed(0)
flow = Flow(2, family="nsf_coupling", transforms=3, hidden=(48, 48)).prepare(train)
run = fit(flow, train, steps=400, batch_size=256, lr=4e-3, schedule="cosine", engine="trace")
bound = loglik(run, test).best
print(f"log p(x) = {bound.mean:.3f} ± {bound.rows_se:.3f} nats a row ({bound.kind})")

# %% alt="Left: the log density that the flow learned, high on two crescents. Right: draws from it on top of the data."
u, v = torch.linspace(-1.6, 2.6, 160), torch.linspace(-1.1, 1.6, 120)
with torch.no_grad():
    log_p = flow.log_prob(torch.cartesian_prod(u, v)).reshape(160, 120).T
draws = sample(run, 1000, seed=0)["x"]

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), sharex=True, sharey=True, layout="constrained")
colours = left.pcolormesh(u, v, log_p.clamp_min(-8), cmap="viridis", rasterized=True)
figure.colorbar(colours, ax=left, label="log p(x), nats")
right.plot(*test["x"].T, ".", ms=3, color="#999999", label="data")
right.plot(*draws.T, ".", ms=3, color="#0072B2", label="draws")
right.legend(loc="upper right", markerscale=3)
left.set(title="density", xlim=(-1.6, 2.6), ylim=(-1.1, 1.6))
right.set_title("draws")
plt.show()
