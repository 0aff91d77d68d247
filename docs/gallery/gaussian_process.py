# %% [markdown]
# # A function of unknown shape
#
# tags: Bayesian, regression
#
# A Gaussian process has no formula for the curve, and integrates it out; `function` gives it back at any x. Look at the
# gap: where there are no data the band opens.

# %%
import matplotlib.pyplot as plt
import torch

from ppgen.inference import load_findings, mcmc, verdict
from ppgen.models import GaussianProcess

torch.manual_seed(1)
x = torch.cat([4 * torch.rand(22), 7 + 3 * torch.rand(18)])
y = torch.sin(x) + 0.05 * x + 0.15 * torch.randn(40)
program = GaussianProcess(scale=1.0)
few = {"chains": 8, "draws": 150, "engine": "trace", "predictive": False, "prior": False}
tree = mcmc(program, {"x": x, "y": y}, **few)
print("verdict:", verdict(load_findings(tree)))
for name, what in {"rho": "length scale", "alpha": "height", "sigma": "noise"}.items():
    print(f"{what:12} {float(tree.posterior[name].mean()):.2f} ± {float(tree.posterior[name].std()):.2f}")

# %% alt="Points with a gap in the middle, and a band about a wave that widens within the gap"
some = tree.posterior.to_dataset().stack(s=("chain", "draw")).isel(s=slice(None, None, 6))
rho, alpha, sigma = (torch.tensor(some[name].values, dtype=torch.float32) for name in ("rho", "alpha", "sigma"))
at = torch.linspace(-0.5, 10.5, 120)
curves = program.function(x, y, at, rho, alpha, sigma).sample((5,)).flatten(0, 1)  # each point by itself
low, middle, high = curves.quantile(torch.tensor([0.05, 0.5, 0.95]), 0)

figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
axis.fill_between(at, low, high, color="#0072B2", alpha=0.25, label="90% of the function")
axis.plot(at, middle, color="#0072B2")
axis.plot(at, torch.sin(at) + 0.05 * at, color="#E69F00", ls="--", label="made with")
axis.plot(x, y, ".", color="#999999", label="data")
axis.set(xlabel="x", ylabel="y")
axis.legend(fontsize=8, ncols=3)
plt.show()
