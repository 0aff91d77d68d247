# %% [markdown]
# # An autoregression, and its forecast
#
# tags: Bayesian, time series
#
# Two lags give a damped wave. The forecast is made from the draws: each continues the series with its own coefficients
# and its own noise. Look at how the interval widens, and at whether it holds what came next.

# %%
import matplotlib.pyplot as plt
import torch

from ppgen.inference import infer
from ppgen.models import ARMA

torch.manual_seed(3)
y = [torch.tensor(0.0), torch.tensor(0.0)]
for _ in range(140):
    y.append(1.5 * y[-1] - 0.8 * y[-2] + 0.5 * torch.randn(()))
past, future = torch.stack(y)[2:122], torch.stack(y)[122:]

tree = infer(ARMA(p=2, q=0, duration=120), {"y": past}, predictive=False, prior=False)
print(tree.attrs["method"], tree.attrs["verdict"])
phi = tree.posterior["phi"]
mean, sd = phi.mean(("chain", "draw")).values, phi.std(("chain", "draw")).values
print("phi:", *(f"{m:.2f} ± {s:.2f}" for m, s in zip(mean, sd, strict=True)), "made with 1.5 and -0.8")

# %% alt="The end of a series, its forecast as a widening band about a damped wave, and what came next, mostly in it"
draws = tree.posterior.to_dataset().stack(s=("chain", "draw"))
mu, sigma, phi = (torch.tensor(draws[name].values, dtype=torch.float32) for name in ("mu", "sigma", "phi"))
ahead = ARMA(p=2, q=0).forecast(past, len(future), mu, sigma, phi.T)
low, middle, high = ahead.sample().quantile(torch.tensor([0.05, 0.5, 0.95]), 0)
print(f"{((low < future) & (future < high)).sum()} of {len(future)} later values are in their 90% interval")

figure, axis = plt.subplots(figsize=(7, 2.8), layout="constrained")
steps = torch.arange(120, 120 + len(future))
axis.plot(range(70, 120), past[70:], color="#767676", label="seen")
axis.fill_between(steps, low, high, color="#0072B2", alpha=0.25, label="90% forecast")
axis.plot(steps, middle, color="#0072B2")
axis.plot(steps, future, ".", color="#D55E00", label="what came next")
axis.set(xlabel="step", ylabel="y")
axis.legend(fontsize=8, loc="upper left", ncols=3)
plt.show()
