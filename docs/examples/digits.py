"""A variational autoencoder: two bound methods of one module."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from ppgen.pyro_compat import SVI, TraceMeanField_ELBO  # was: pyro.infer

pyro.set_rng_seed(6)
strokes = (torch.rand(256, 3) < 0.4).float()
images = (strokes @ torch.eye(3).repeat_interleave(12, 1)).bernoulli()


class VAE(nn.Module):
    def __init__(self, pixels=36, latent=4, hidden=64):
        super().__init__()
        self.latent = latent
        self.encoder = nn.Sequential(nn.Linear(pixels, hidden), nn.Softplus(), nn.Linear(hidden, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.Softplus(), nn.Linear(hidden, pixels))

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("images", x.shape[0]):
            z = pyro.sample("z", dist.Normal(x.new_zeros(x.shape[0], self.latent), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("images", x.shape[0]):
            loc, scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


vae = VAE()
svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 3e-3}), TraceMeanField_ELBO())
for _ in range(30):
    loss = sum(svi.step(batch) for batch in images.split(64)) / len(images)
print("loss an image", loss)
