# %% [markdown]
# # A guide that is too narrow, corrected by its weights
#
# tags: Bayesian, custom Pyro code, regression
#
# Intercept and slope are correlated, and a guide of independent normals is too narrow for that. Importance weights say
# so, and where their tail allows it (k-hat below 0.7) they correct the draws. Look at the sds beside the exact ones.

# %%
import logging

import matplotlib.pyplot as plt
import pyro
import torch
from pyro.distributions import Normal

import ppgen
from ppgen.inference import diagnose, fit, posterior

logging.getLogger("ppgen").setLevel(logging.ERROR)
torch.manual_seed(0)
x = torch.linspace(-1.0, 2.0, 20)
data = {"x": x, "y": 1 + 2 * x + torch.randn(20)}


def line(x, y=None):
    a, b = pyro.sample("a", Normal(0.0, 10.0)), pyro.sample("b", Normal(0.0, 10.0))
    with ppgen.rows(x):
        pyro.sample("y", Normal(a + b * x, 1.0), obs=y)


run = fit(
    ppgen.Program.from_pair(line), data, guide="AutoNormal", steps=400, lr=0.03, schedule="cosine", engine="trace"
)
print(*(f"{f.verdict}: {f}" for f in diagnose(run, data).findings if f.verdict != "fine"), sep="\n")
few = {"draws": 2000, "prior": False, "predictive": False}
draws = {"guide": posterior(run, data, **few), "corrected": posterior(run, data, corrected=True, **few)}

design = torch.stack([torch.ones(20), x], 1)  # the exact posterior is a normal
covariance = torch.linalg.inv(design.T @ design + torch.eye(2) / 100)
mean, sd = covariance @ design.T @ data["y"], covariance.diagonal().sqrt()
print(f"sds: exact {sd[0]:.3f} and {sd[1]:.3f}")
for name, tree in draws.items():
    print(f"     {name} {float(tree.posterior['a'].std()):.3f} and {float(tree.posterior['b'].std()):.3f}")

# %% alt="Draws of intercept and slope over exact ellipses: the guide has no correlation, the corrected draws have it"
turn = torch.linspace(0, 2 * torch.pi, 100)
circle = torch.linalg.cholesky(covariance) @ torch.stack([turn.cos(), turn.sin()])

figure, axes = plt.subplots(1, 2, figsize=(8, 3), sharex=True, sharey=True, layout="constrained")
for axis, (name, tree) in zip(axes, draws.items(), strict=True):
    axis.plot(tree.posterior["a"].values.ravel(), tree.posterior["b"].values.ravel(), ".", ms=2, color="#0072B2")
    for radius in (1, 2, 3):
        axis.plot(*(mean[:, None] + radius * circle), color="#E69F00")
    axis.set(title=f"draws: {name}", xlabel="intercept")
axes[0].set_ylabel("slope")
plt.show()
