# %% [markdown]
# # A mixture, its labels summed out
#
# tags: Bayesian, density
#
# Waits for a geyser-like spring are of two kinds. No row's label is sampled: each is summed out of the density, and its
# probability follows from the draws. Components are in order, so that they cannot change names.

# %%
import matplotlib.pyplot as plt
import torch
from torch.distributions import Normal

from ppgen.inference import load_findings, mcmc, verdict
from ppgen.models import GaussianMixture

torch.manual_seed(0)
x = torch.cat([54 + 6 * torch.randn(40), 80 + 6 * torch.randn(70)])
few = {"chains": 16, "draws": 150, "engine": "trace", "predictive": False, "prior": False}
tree = mcmc(GaussianMixture(2, scale=50.0), {"x": x}, **few)
print("verdict:", verdict(load_findings(tree)))
for name in ("weights", "mu", "sigma"):
    mean, sd = tree.posterior[name].mean(("chain", "draw")), tree.posterior[name].std(("chain", "draw"))
    print(f"{name:8}", *(f"{float(m):.2f} ± {float(s):.2f}" for m, s in zip(mean, sd, strict=True)))

# %% alt="A histogram with two humps under 50 posterior densities, and the probability of the second component rising"
posterior = tree.posterior.to_dataset().stack(s=("chain", "draw")).isel(s=slice(None, None, 20))
w, mu, sigma = (torch.tensor(posterior[n].values.T, dtype=torch.float32) for n in ("weights", "mu", "sigma"))
at = torch.linspace(30, 105, 200)
parts = w[..., None] * Normal(mu[..., None], sigma[..., None]).log_prob(at).exp()

figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
axis.hist(x, 25, density=True, color="#999999", alpha=0.5, label="waits")
axis.plot(at, parts[:50].sum(1).T, color="#0072B2", lw=0.5, alpha=0.4)
axis.set(xlabel="wait, minutes", ylabel="density")
right = axis.twinx()
right.plot(at, (parts[:, 1] / parts.sum(1)).mean(0), color="#E69F00", lw=2)
right.set_ylabel("P(second kind)", color="#E69F00")
plt.show()
