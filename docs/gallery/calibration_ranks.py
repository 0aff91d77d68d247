# %% [markdown]
# # Ranks that give away a guide that is too narrow
#
# tags: Bayesian, calibration, custom Pyro code
#
# Simulation-based calibration: data sets are drawn from the model, and the true value is ranked among the draws of each
# posterior. Look at the band: a calibrated guide stays within it, and a guide with half the sd leaves it in an S.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pyro
import torch
from pyro.distributions import Normal

import ppgen
from ppgen.inference import calibrate


class Mean(ppgen.Program):
    """m ~ N(0, 2²), x ~ N(m, 1); the guide is the exact posterior, its sd multiplied by `width`."""

    def __init__(self, width):
        super().__init__()
        self.width = torch.nn.Parameter(torch.tensor(width))

    def model(self, x=None):
        m = pyro.sample("m", Normal(0.0, 2.0))
        with ppgen.rows(x):
            pyro.sample("x", Normal(m, 1.0), obs=x)

    def guide(self, x):
        precision = 0.25 + len(x)
        pyro.sample("m", Normal(x.sum() / precision, self.width * precision**-0.5))


found = {w: calibrate(Mean(w), {"x": torch.zeros(4)}, simulations=200, refit=False) for w in (1.0, 0.5)}
for width, one in found.items():
    m = one.names.index("m")
    print(f"sd times {width}: p = {one.p[m]:.4f}, sd of the z-scores {one.z_sd[m]:.2f}")

# %% alt="ECDF of ranks less the uniform one: the right guide stays in the band, the narrow one does not"
figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
band = found[1.0].band
axis.fill_between(band.z, band.low - band.z, band.high - band.z, color="#999999", alpha=0.4, label="95% band")
for (width, one), colour in zip(found.items(), ("#0072B2", "#E69F00"), strict=True):
    u = np.sort(one.u[:, m])
    axis.step(u, np.arange(1, len(u) + 1) / len(u) - u, color=colour, label=f"sd times {width:g}")
axis.set(xlabel="rank of the true m, as a share", ylabel="ECDF less uniform")
axis.legend(fontsize=8)
plt.show()
