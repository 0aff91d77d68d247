# %% [markdown]
# # Quantiles of a response whose spread changes
#
# tags: flow, regression, density
#
# A conditional flow learns p(y | x) without a family for the noise. Look at the share of held-out rows between the 5%
# and the 95% quantile: it should be about 0.90 at small x and at large x.

# %%
import matplotlib.pyplot as plt
import torch

from ppgen.inference import fit, loglik, sample
from ppgen.models import Flow

torch.manual_seed(0)


def made(n):
    x = 6 * torch.rand(n, 1)
    noise = torch.distributions.Gamma(2.0, 1.0).sample((n, 1)) - 2
    return {"x": torch.sin(x) + 0.08 * (1 + x) * noise, "context": x}  # the flow's x is our y


train, test = made(3000), made(1000)
flow = Flow(1, family="nsf", transforms=2, hidden=(32, 32), context=1).prepare(train)
run = fit(flow, train, steps=500, batch_size=256, lr=5e-3, schedule="cosine", engine="trace")
print(f"log p(y | x) = {loglik(run, test).best.mean:.3f} nats a row on held-out rows")

# %% alt="Points whose spread grows from left to right, and the learned 5%, 50% and 95% quantiles that follow them"
at = torch.linspace(0, 6, 61)
draws = sample(run, 61 * 500, given={"context": at.repeat_interleave(500)[:, None]}, seed=0)["x"].reshape(61, 500)
low, middle, high = draws.quantile(torch.tensor([0.05, 0.5, 0.95]), 1)
cell = (test["context"][:, 0] * 10).round().long()
inside = (low[cell] < test["x"][:, 0]) & (test["x"][:, 0] < high[cell])
for name, half in {"small": cell < 30, "large": cell >= 30}.items():
    print(f"share between the quantiles at {name} x: {inside[half].float().mean():.2f}")

figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
axis.plot(test["context"], test["x"], ".", ms=3, color="#999999", label="held-out rows")
axis.fill_between(at, low, high, color="#0072B2", alpha=0.25, label="5% to 95%, learned")
axis.plot(at, middle, color="#0072B2", label="median, learned")
axis.set(xlabel="x", ylabel="y")
axis.legend(fontsize=8)
plt.show()
