# %% [markdown]
# # Digits drawn by a variational autoencoder
#
# tags: VAE, images
#
# Draws of z from the prior, decoded to the mean of x. Look at the two bounds: the importance-weighted one is
# nearer to log p(x), and the distance between them is what the guide costs.

# %%
import matplotlib.pyplot as plt
import torch

import ppgen
from ppgen.inference import fit, loglik, sample
from ppgen.models import VAE

train, test = ({"x": ppgen.data.load("digits", part)["x"]} for part in ("train", "test"))
torch.manual_seed(0)
vae = VAE(**VAE.from_data(train) | {"latent": 8, "hidden": (128,)})
run = fit(vae, train, steps=1000, batch_size=128, lr=3e-3, schedule="cosine", engine="trace")
for bound in loglik(run, test, particles=100).bounds:
    print(f"{bound.name:5} {bound.mean:.1f} ± {bound.rows_se:.1f} nats a digit, a {bound.kind} bound")

# %% alt="Sixty draws of the decoder's mean, most of them readable digits"
with torch.no_grad():
    digits = vae.decode(sample(run, 60, seed=1)["z"]).mean.reshape(-1, 8, 8)

figure, axes = plt.subplots(5, 12, figsize=(7, 3), layout="constrained")
for axis, digit in zip(axes.flat, digits, strict=True):
    axis.imshow(digit, cmap="gray_r", vmin=0, vmax=1)
    axis.set_axis_off()
plt.show()
