# %% [markdown]
# # Eight schools, and a verdict
#
# tags: Bayesian, regression
#
# `infer` takes the cheapest method whose checks are fine, and says which that was. Look at the verdict before the
# figures. Each school's effect is pulled towards the mean of all, the more the less is known of it.

# %%
import matplotlib.pyplot as plt
import numpy as np

import ppgen
from ppgen.inference import infer
from ppgen.models import EightSchools

schools = ppgen.data.load("eight_schools")
tree = infer(EightSchools(), schools)
print(tree.attrs["method"], tree.attrs["verdict"])

# %% alt="By school, the estimate with its standard error and the posterior, which is nearer to the common mean"
theta = tree.posterior["theta"].stack(draw_=("chain", "draw")).values
at, y, sigma = np.arange(8), schools["y"].numpy(), schools["sigma"].numpy()

figure, axis = plt.subplots(figsize=(8, 3), layout="constrained")
axis.errorbar(y, at + 0.15, xerr=sigma, fmt="o", color="#999999", label="estimate ± standard error")
mean, sd = theta.mean(1), theta.std(1)
axis.errorbar(mean, at - 0.15, xerr=sd, fmt="o", color="#0072B2", label="posterior mean ± sd")
axis.axvline(float(tree.posterior["mu"].mean()), color="#E69F00", label="mean of all schools")
axis.set(yticks=at, yticklabels="ABCDEFGH", xlabel="effect of coaching, points", ylabel="school")
figure.legend(loc="outside right upper", fontsize=8)
plt.show()
