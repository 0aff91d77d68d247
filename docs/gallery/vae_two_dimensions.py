# %% [markdown]
# # Digits on a map of two dimensions
#
# tags: VAE, images
#
# A VAE with two latents, its posterior means coloured by the label that it was never shown. Look at the two bounds too:
# two numbers say less of a digit than eight do.

# %%
import matplotlib.pyplot as plt
import torch

import ppgen
from ppgen.inference import fit, loglik
from ppgen.models import VAE

train, test = ppgen.data.load("digits", "train"), ppgen.data.load("digits", "test")
x = {"x": train["x"]}
torch.manual_seed(0)
vae = VAE(**VAE.from_data(x) | {"latent": 2, "hidden": (128,)})
run = fit(vae, x, steps=1200, batch_size=128, lr=3e-3, schedule="cosine", engine="trace")
for bound in loglik(run, {"x": test["x"]}, particles=100).bounds:
    print(f"{bound.name:5} {bound.mean:.1f} ± {bound.rows_se:.1f} nats a digit, a {bound.kind} bound")

# %% alt="The plane of z: test digits of one label lie together; beside it what the decoder draws on a grid of z"
with torch.no_grad():
    z = vae.encode(test["x"]).mean
    side = torch.linspace(-2, 2, 9)
    grid = torch.stack([side.repeat(9), side.flip(0).repeat_interleave(9)], 1)  # rows from the top down
    tiles = torch.nn.functional.pad(vae.decode(grid).mean.reshape(9, 9, 8, 8), (1, 1, 1, 1))
    tiles = tiles.permute(0, 2, 1, 3).reshape(90, 90)

colours = ["#332288", "#E69F00", "#117733", "#CC6677", "#88CCEE", "#882255", "#999933", "#555555", "#AA4499", "#44AA99"]
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.8), layout="constrained")
for digit in range(10):
    here = z[test["y"] == digit]
    left.scatter(*here.T, s=0)  # the limits of the axis
    for place in here[:25]:
        left.text(*place.tolist(), str(digit), color=colours[digit], fontsize=8, ha="center")
left.set(title="test digits, by the mean of q(z | x)", xlabel="z 0", ylabel="z 1")
right.imshow(tiles, cmap="gray_r", extent=(-2.25, 2.25, -2.25, 2.25))
right.set(title="what the decoder makes of z", xlabel="z 0")
plt.show()
