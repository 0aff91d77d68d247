# %% [markdown]
# # From one digit to another, in z
#
# tags: VAE, images
#
# Two digits of the test set are encoded, and the decoder is asked for what lies between their z. Look at the middle of
# both rows: a mean of pixels shows both digits at once, and the decoder strokes of one figure, if not always a digit.

# %%
import matplotlib.pyplot as plt
import torch

import ppgen
from ppgen.inference import fit
from ppgen.models import VAE

train, test = ppgen.data.load("digits", "train"), ppgen.data.load("digits", "test")
x = {"x": train["x"]}
torch.manual_seed(0)
vae = VAE(**VAE.from_data(x) | {"latent": 8, "hidden": (128,)})
run = fit(vae, x, steps=1000, batch_size=128, lr=3e-3, schedule="cosine", engine="trace")

# %% alt="Two rows from a 6 to a 2: through z strokes move, and between pixels both digits show in the middle"
ends = torch.stack([test["x"][test["y"] == digit][1] for digit in (6, 2)])
share = torch.linspace(0, 1, 11)[:, None]
with torch.no_grad():
    z = vae.encode(ends).mean
    rows = {
        "between z": vae.decode((1 - share) * z[0] + share * z[1]).mean,
        "between pixels": (1 - share) * ends[0] + share * ends[1],
    }

figure, axes = plt.subplots(2, 11, figsize=(8, 1.9), layout="constrained")
for row, (name, images) in zip(axes, rows.items(), strict=True):
    row[0].set_title(name, loc="left", fontsize=9)
    for axis, image in zip(row, images.reshape(-1, 8, 8), strict=True):
        axis.imshow(image, cmap="gray_r", vmin=0, vmax=1)
        axis.set_axis_off()
plt.show()
