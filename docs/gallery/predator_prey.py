# %% [markdown]
# # Predators and prey
#
# tags: Bayesian, time series, simulators, custom Pyro code
#
# Pelts of hares and lynxes that the Hudson's Bay Company took, in thousands, and the equations of Lotka and Volterra:
# $du/dt = (\alpha - \beta v)\,u$ and $dv/dt = (\delta u - \gamma)\,v$. `ppgen.ode` solves them within the program, by
# steps that do not depend on the values, so that all chains run as one graph. Look at the years that come: the paths
# stay together for a period, and then fan out.

# %%
import logging

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from arviz_base import extract

import ppgen
from ppgen.inference import mcmc

logging.getLogger("ppgen").setLevel(logging.ERROR)
hare = [30, 47.2, 70.2, 77.4, 36.3, 20.6, 18.1, 21.4, 22, 25.4, 27.1, 40.3, 57, 76.6]
lynx = [4, 6.1, 9.8, 35.2, 59.4, 41.7, 19, 13, 8.3, 9.1, 7.4, 8, 12.3, 19.5]
hare += [52.3, 19.5, 11.2, 7.6, 14.6, 16.2, 24.7]
lynx += [45.7, 51.1, 29.7, 15.8, 9.7, 10.1, 8.6]
data = {"t": torch.arange(1900.0, 1921), "pelts": torch.tensor([hare, lynx]).T}


def path(rates, start, t):
    a, b, c, d = rates.unbind(-1)

    def slope(time, y):
        u, v = y.unbind(-1)
        return torch.stack([(a - b * v) * u, (d * u - c) * v], -1)

    return ppgen.ode(slope, start, t, steps=4)


def model(t, pelts=None):
    rates = pyro.sample("rates", dist.LogNormal(torch.tensor([0.5, 0.03, 0.8, 0.03]).log(), 0.5).to_event(1))
    start = pyro.sample("start", dist.LogNormal(torch.tensor([30.0, 4.0]).log(), 0.5).to_event(1))
    noise = pyro.sample("noise", dist.LogNormal(torch.tensor([-1.0, -1.0]), 1.0).to_event(1))
    with pyro.plate("years", len(t)):
        return pyro.sample("pelts", dist.LogNormal(path(rates, start, t).log(), noise).to_event(1), obs=pelts)


tree = mcmc(model, data, seed=0)
for name, i in (("alpha", 0), ("beta", 1), ("gamma", 2), ("delta", 3)):
    draws = tree.posterior["rates"][..., i]
    print(f"{name:6} {float(draws.mean()):.3f} ± {float(draws.std()):.3f}")

# %% alt="Pelts by year with the posterior's paths through them and twenty years on, where they fan out"
years = torch.linspace(1900.0, 1940, 161)
some = extract(tree, num_samples=40, random_seed=0)
rates, start = (torch.as_tensor(some[n].values.T.copy()).float() for n in ("rates", "start"))
paths = path(rates, start, years)
figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
for i, (name, colour) in enumerate((("hares", "#0072B2"), ("lynxes", "#D55E00"))):
    axis.plot(years, paths[..., i], color=colour, lw=0.7, alpha=0.3)
    axis.plot(data["t"], data["pelts"][:, i], "o", ms=4, color=colour, label=name)
axis.set(xlabel="year", ylabel="pelts, thousands", ylim=(0, 120))
axis.legend(fontsize=8)
plt.show()
