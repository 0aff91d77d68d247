# %% [markdown]
# # A funnel: draws that are not to be believed, and ones that are
#
# tags: Bayesian, custom Pyro code, regression
#
# Eight schools with few data per school, written the centred way. The scale tau and the effects make a funnel, and
# short chains do not reach its neck. Moved non-centred, by the effects in units of tau, chains of the same program see
# no funnel. Look at the verdicts, and at the gradients that a draw takes.

# %%
import logging

import matplotlib.pyplot as plt
import pyro
from pyro.distributions import HalfCauchy, Normal

import ppgen
from ppgen.inference import load_findings, mcmc, verdict

logging.getLogger("ppgen").setLevel(logging.ERROR)  # what is wrong is printed below
schools = ppgen.data.load("eight_schools")


def centred(y, sigma):
    mu = pyro.sample("mu", Normal(0.0, 5.0))
    tau = pyro.sample("tau", HalfCauchy(5.0))
    with pyro.plate("school", len(y)):
        theta = pyro.sample("theta", Normal(mu, tau))
        pyro.sample("y", Normal(theta, sigma), obs=y)


few = {"engine": "trace", "predictive": False, "prior": False}
trees = {
    "centred": mcmc(centred, schools, chains=8, draws=80, warmup=50, **few),
    "non-centred": mcmc(centred, schools, noncentred="theta", chains=16, draws=250, warmup=100, **few),
}
for name, tree in trees.items():
    found, gradients = load_findings(tree), int(tree.sample_stats["n_steps"].sum())
    print(f"{name}: {verdict(found)}; {tree.sample_stats['lp'].size} draws of {gradients} gradients")
    print(*(f"    {f}" for f in found if f.verdict != "fine"), sep="\n")

# %% alt="Effect of one school against log tau: the non-centred draws go deep into the neck, the centred ones hardly"
figure, axes = plt.subplots(1, 2, figsize=(8, 3), sharex=True, sharey=True, layout="constrained")
for axis, (name, tree) in zip(axes, trees.items(), strict=True):
    theta, tau = tree.posterior["theta"].values[..., 0], tree.posterior["tau"].values
    axis.plot(theta.ravel(), tau.ravel(), ".", ms=2, color="#0072B2")
    axis.set(title=name, xlabel="effect of school A", yscale="log")
axes[0].set_ylabel("tau")
plt.show()
