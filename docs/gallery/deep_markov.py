# %% [markdown]
# # Sequences from a deep Markov model
#
# tags: VAE, time series
#
# Notes climb a scale of eight, one a step, or two at once. The model has to find this in binary sequences. Look at the
# bound: a sequence has sixteen forms, so that no model can be above -log 16 = -2.77 nats. So short a fit is not there.

# %%
import matplotlib.pyplot as plt
import torch

from ppgen.inference import fit, loglik, sample
from ppgen.models import DeepMarkov

torch.manual_seed(0)
first, both = torch.randint(8, (300, 1)), torch.rand(300, 1, 1) < 0.5
note, one = (first + torch.arange(8)) % 8, torch.eye(8)
data = {"x": one[note] + both * one[(note + 2) % 8]}
model = DeepMarkov(8, 8, latent=8, transition=32, emission=32, recurrent=32)
run = fit(model, data, steps=500, batch_size=100, lr=8e-3, schedule="cosine", engine="trace")
bound = loglik(run, data, particles=30).best
print(f"log p(x) ≥ {bound.mean:.2f} ± {bound.rows_se:.2f} nats a sequence")

# %% alt="Eight sequences of the data above eight that the model drew, which climb as well, with some wrong notes"
drawn = sample(run, 8, seed=0)["x"]
figure, axes = plt.subplots(2, 8, figsize=(9, 2.6), layout="constrained")
for row, sequences in zip(axes, (data["x"], drawn), strict=True):
    for axis, sequence in zip(row, sequences[:8], strict=True):
        axis.imshow(sequence.T, cmap="gray_r", origin="lower")
        axis.set(xticks=[], yticks=[])
axes[0, 0].set_ylabel("data")
axes[1, 0].set_ylabel("drawn")
plt.show()
