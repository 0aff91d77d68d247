# %% [markdown]
# # A diffusion model in the latents of a VAE
#
# tags: diffusion, images
#
# `prior="diffusion"` puts a diffusion model where the VAE had N(0, 1), and all of it is trained by one ELBO. Look at
# both ELBOs on held-out digits: encoder and decoder are the same, so that the difference is the prior's.

# %%
import matplotlib.pyplot as plt
import torch

import ppgen
from ppgen.inference import fit, loglik, sample
from ppgen.models import VAE

train, test = ({"x": ppgen.data.load("digits", part)["x"]} for part in ("train", "test"))
drawn, rows = {}, {}
for prior in ("normal", "diffusion"):
    torch.manual_seed(0)
    vae = VAE(**VAE.from_data(train) | {"latent": 8, "hidden": (128,), "prior": prior})
    run = fit(vae, train, steps=600, batch_size=128, lr=3e-3, schedule="cosine", engine="trace")
    bound = loglik(run, test, particles=20).bounds[0]
    rows[prior] = bound.values
    print(f"{prior:9} {bound.name} {bound.mean:.1f} ± {bound.rows_se:.1f} nats a digit, a {bound.kind} bound")
    with torch.no_grad():
        drawn[prior] = vae.decode(sample(run, 40, seed=0)["z"]).mean.reshape(-1, 8, 8)
better = rows["diffusion"] - rows["normal"]
print(f"the diffusion prior gains {better.mean():.1f} ± {better.std() / len(better) ** 0.5:.1f} nats a digit")

# %% alt="Forty draws with either prior; those with the diffusion prior have fewer broken strokes"
figure = plt.figure(figsize=(9, 2.4), layout="constrained")
for part, (prior, digits) in zip(figure.subfigures(1, 2, wspace=0.05), drawn.items(), strict=True):
    part.suptitle(f"{prior} prior", fontsize=9)
    for axis, digit in zip(part.subplots(4, 10).flat, digits, strict=True):
        axis.imshow(digit, cmap="gray_r", vmin=0, vmax=1)
        axis.set_axis_off()
plt.show()
