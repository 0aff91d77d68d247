# %% [markdown]
# # A Bayes factor, from both sides
#
# tags: Bayesian, model comparison
#
# The evidence log p(x) has a lower and an upper bound here. Where both sides of one model lie above both of the other,
# the comparison does not hang on the estimator. It still hangs on the priors: that is what a Bayes factor compares.

# %%
import matplotlib.pyplot as plt
import pyro
import torch
from pyro.distributions import HalfNormal, Normal

import ppgen
from ppgen.inference import bayes_factors, evidence, infer

torch.manual_seed(0)
x = torch.linspace(-2, 2, 30)
data = {"x": x, "y": 0.5 * x + 0.35 * x**2 + 0.5 * torch.randn(30)}


def polynomial(degree):
    def model(x, y):
        b = pyro.sample("b", Normal(torch.zeros(degree + 1), 1.0).to_event(1))
        s = pyro.sample("s", HalfNormal(1.0))
        with ppgen.rows(x):
            pyro.sample("y", Normal(x[:, None] ** torch.arange(degree + 1) @ b, s), obs=y)

    return model


found = {}
for degree in (1, 2, 3):
    model = polynomial(degree)
    draws = infer(model, data, predictive=False, prior=False)
    found[f"degree {degree}"] = evidence(model, data, draws=draws)
for row in bayes_factors(found).table():
    print(f"{row['name']} log p(x) {row['nats']:.2f} ± {row['se']:.2f}, log Bayes factor {row['log_bayes_factor']:.2f}")

# %% alt="Left: log evidence by degree, highest for 2. Right: its lower and upper bounds, within 0.2 nats of it"
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
marks = {"elbo": ("<", "#999999"), "iw": ("<", "#0072B2"), "eubo": (">", "#E69F00")}
for at, bounds in enumerate(found.values(), 1):
    rows = {row["name"]: row for row in bounds.table()}
    left.plot(at, rows["bridge"]["nats"], "o", color="#0072B2")
    for name, (mark, colour) in marks.items():
        off = rows[name]["nats"] - rows["bridge"]["nats"]
        right.plot(off, at, mark, color=colour, label=f"{name}, {rows[name]['kind']} bound" if at == 1 else None)
left.set(xticks=[1, 2, 3], xlabel="degree", ylabel="log p(x), nats", title="bridge estimate")
right.set(yticks=[1, 2, 3], ylim=(0.5, 3.5), ylabel="degree", xlabel="nats above the estimate", title="bounds")
figure.legend(loc="outside right upper", fontsize=8)
plt.show()
