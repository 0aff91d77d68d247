# %% [markdown]
# # The posterior of a simulator, by one flow for all data
#
# tags: flow, simulators, calibration
#
# An epidemic can be simulated, and its density cannot be written down. A conditional flow learns p(θ | data) from pairs
# of both, once for all data. Look at the ranks of true rates in new simulations: they should be uniform. If less than
# 90% are in the 90% intervals, the flow is too sure, and asks for more simulations.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

from ppgen.inference import fit, sample
from ppgen.models import Flow

torch.manual_seed(0)


def epidemic(theta, days=30, people=500.0):
    """Infected by day, square roots, (n, days / 3): a stochastic SIR of rates θ = (infection, recovery) a day."""
    susceptible, infected = torch.full((len(theta),), people - 5), torch.full((len(theta),), 5.0)
    seen = []
    for _ in range(days):
        chance = 1 - torch.exp(-theta[:, 0] * infected / people)
        new = torch.binomial(susceptible, chance)
        gone = torch.binomial(infected, 1 - torch.exp(-theta[:, 1]))
        susceptible, infected = susceptible - new, infected + new - gone
        seen.append(infected)
    return torch.stack(seen[::3], 1).sqrt()


def prior(n):
    return torch.rand(n, 2) * torch.tensor([0.8, 0.3]) + torch.tensor([0.2, 0.05])


theta = prior(20_000)
pairs = {"x": theta, "context": epidemic(theta)}
flow = Flow(2, family="nsf", transforms=2, hidden=(48, 48), context=10).prepare(pairs)
run = fit(flow, pairs, steps=600, batch_size=256, lr=3e-3, schedule="cosine", engine="trace")

new = prior(300)
draws = sample(run, 300 * 100, given={"context": epidemic(new).repeat_interleave(100, 0)}, seed=0)["x"]
ranks = (draws.reshape(300, 100, 2) < new[:, None]).float().mean(1)
for i, name in enumerate(("infection", "recovery")):
    inside = ((ranks[:, i] > 0.05) & (ranks[:, i] < 0.95)).float().mean()
    print(f"{name}: {inside:.0%} of the true rates are within their 90% interval")

# %% alt="Left: draws of both rates for one epidemic about the true ones. Right: ECDFs of ranks, near the diagonal"
one = torch.tensor([[0.6, 0.15]])
of_one = sample(run, 1500, given={"context": epidemic(one).expand(1500, 10)}, seed=1)["x"]

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
left.plot(*of_one.T, ".", ms=2, color="#0072B2", label="posterior")
left.plot(*one[0], "D", color="#E69F00", label="made with")
left.set(xlabel="infections a day", ylabel="recoveries a day", xlim=(0.2, 1.0), ylim=(0.05, 0.35))
left.legend(fontsize=8)
right.plot([0, 1], [0, 1], color="#999999")
for i, (name, colour) in enumerate({"infection": "#0072B2", "recovery": "#E69F00"}.items()):
    right.step(np.sort(ranks[:, i]), np.linspace(0, 1, 300), color=colour, label=name)
right.set(xlabel="rank of the true rate", ylabel="share of simulations")
right.legend(fontsize=8)
plt.show()
