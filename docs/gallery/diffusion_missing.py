# %% [markdown]
# # What the other coordinate may be
#
# tags: diffusion, missing data, density
#
# A diffusion model of the plane fills in a missing coordinate as it is, without being trained for that. Where the known
# one cuts both moons, the draws should lie on both. Their shares are known to about a tenth with so many particles.

# %%
import matplotlib.pyplot as plt
import torch

import ppgen
from ppgen.inference import fit, impute
from ppgen.models import Diffusion

train = ppgen.data.load("moons", "train")
torch.manual_seed(0)
model = Diffusion(2, hidden=(64, 64), steps=0)
run = fit(model, train, steps=1000, batch_size=256, lr=3e-3, schedule="cosine", ema=0.99, engine="trace")

known = torch.tensor([-0.9, 0.0, 0.5, 1.0, 1.9])
rows = torch.stack([known, torch.full_like(known, float("nan"))], 1)
filled = impute(run, rows, draws=200, particles=1000, steps=100, seed=0)  # (draws, rows, 2)
for x0, level, y in zip(known, (0.25, 0.65, 0.2, -0.1, 0.25), filled[..., 1].T, strict=True):
    near = train["x"][(train["x"][:, 0] - x0).abs() < 0.05, 1]
    above, of_data = (y > level).float().mean(), (near > level).float().mean()
    print(f"x = {x0:4.1f}: share above {level:5.2f} is {above:.2f}, of the data near it {of_data:.2f}")

# %% alt="Two moons, and on five vertical lines the draws of the missing coordinate, on both moons where they are cut"
figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
axis.plot(*train["x"][:1500].T, ".", ms=2, color="#999999", label="data")
axis.plot(filled[..., 0].ravel(), filled[..., 1].ravel(), ".", ms=3, color="#0072B2", label="filled in")
axis.set(xlabel="known", ylabel="missing")
axis.legend(fontsize=8, loc="upper right")
plt.show()
