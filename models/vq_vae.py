r"""The VQ-VAE: an autoencoder whose latents are codes, each the place of a vector in a table that is learned.

    z ~ p(z),  z: (L,) of 0, ..., K − 1             uniform, autoregressive, or a masked diffusion
    x | z ~ Π_d p(x_d; f_θ(e_{z_1}, ..., e_{z_L})_d)                            e: (K, w), the codebook
    guide:  all mass on z_l = argmin_k |u_l − e_k|,  u = g_φ(x): (L, w)

The guide has no spread: its ELBO is log p(x, z) at the nearest codes, a bound on log p(x) = log Σ_z p(x, z); below it
by L log K at most, were these the best of all z. No gradient goes through the choice of a code, so that what is trained
on is not this bound alone:

    straight through   the decoder's gradient at e_z is given to u_l as it is, and none of it to the codebook
    codebook           |e_z − sg(u)|² is taken off; or e_k is a running mean of the u that were nearest to it,
                       N_k ← γ N_k + (1 − γ) n_k,  m_k ← γ m_k + (1 − γ) Σ u,  e_k = m_k / N_k
    commitment         β |u − sg(e_z)|² is taken off

sg: without gradient. The last two are no part of a bound: their value here is 0, their gradient as it should be.

Source: Neural Discrete Representation Learning (van den Oord, Vinyals, Kavukcuoglu 2017, arXiv:1711.00937); its
appendix A.1 has the running means.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.nn.functional import one_hot

import ppgen
from ppgen.distributions import GridCategorical
from ppgen.errors import PpgenError, nearest
from ppgen.models.autoregressive import Autoregressive
from ppgen.models.masked_diffusion import MaskedDiffusion
from ppgen.models.vae import VAE, make_encoder

PRIORS = ("uniform", "autoregressive", "diffusion")
MOST_CODES, MOST_VECTORS = 16, 64  # of a row, and to choose from, where data say how many
A_CODE = 16  # features
SEEN = 1e-6  # running counts below which a code stays where it is


class VQVAE(ppgen.Program):
    """A VAE with L discrete latents of K values each. The column is x, as for `VAE`.

    What a fit reports is the ELBO of the file's head; the terms of the codebook and of the commitment change what is
    trained on, which is then no bound, and leave that figure as it is.

    Args:
        features: D, or the shape of one datum.
        latent: L, codes of a row; by `from_data` (the command line) fewer of few features.
        codebook: K, vectors to choose from; by `from_data` fewer for few rows.
        width: w, their length.
        hidden: widths of the encoder, the decoder's being the reverse; for net="conv" channels of its layers.
        prior: p(z), learned with the rest: "uniform", "autoregressive" or "diffusion", the latter two programs within
            this one (`Autoregressive`, `MaskedDiffusion`). No gradient of it reaches the encoder.
        commitment: β.
        decay: γ of the running means; 0: the codebook is trained by its loss.
        activation: of the networks.
        likelihood, levels, low, high, noise, net, channels: as for `VAE`.

    Raises:
        PpgenError: an argument out of range.
    """

    rows_a_step = 256
    guide_is_fixed = True  # its draws are certain, and no gradient goes through them: it goes straight through

    codebook: Tensor
    prepared: Tensor
    flat: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(
        self, features: int | Sequence[int], latent: int = 16, codebook: int = 64, width: int = 8,
        hidden: int | Sequence[int] = (200,), prior: str = "uniform", commitment: float = 0.25, decay: float = 0.0,
        activation: str = "silu", likelihood: str = "bernoulli", levels: int = 256, low: float = 0.0,
        high: float = 1.0, noise: str = "shared", net: str = "mlp", channels: int = 1,
    ):  # fmt: skip
        super().__init__()
        if min(latent, width) < 1 or codebook < 2 or commitment < 0 or not 0 <= decay < 1:
            raise PpgenError(
                f"VQVAE got latent={latent}, codebook={codebook}, width={width}, commitment={commitment}, "
                f"decay={decay}; expected at least 1 code a row and 1 number a vector, a codebook of at least 2, a "
                "commitment of at least 0 and 0 <= decay < 1"
            )
        if prior not in PRIORS:
            raise PpgenError(f"VQVAE got prior={prior!r}{nearest(prior, PRIORS)}; take one of {', '.join(PRIORS)}")
        self.latent, self.width, self.commitment, self.decay = latent, width, commitment, decay
        widths = (hidden,) if isinstance(hidden, int) else tuple(hidden)
        self.vae = VAE(
            features, latent * width, widths, likelihood, net, activation, levels=levels, low=low, high=high,
            noise=noise, channels=channels,
        )  # fmt: skip
        how = {"activation": activation}
        self.vae.encoder = make_encoder(self.vae.shape, latent * width, widths, net, channels, 0, how)  # no scales
        self.shapes, self.latents = self.vae.shapes, _prior_program(prior, latent, codebook)
        start = torch.randn(codebook, width)
        if decay:
            self.register_buffer("codebook", start)
            self.register_buffer("counts", torch.ones(codebook))
            self.register_buffer("sums", start.clone())
        else:
            self.codebook = nn.Parameter(start)
        self.register_buffer("prepared", torch.zeros(()))
        self.register_buffer("flat", torch.zeros(latent, codebook), persistent=False)

    @classmethod
    def from_data(cls, data: dict[str, Tensor]) -> dict[str, Any]:
        """As for `VAE`, features and a likelihood that suits them; and how many codes, out of how many.

        A row costs L log K nats under a uniform prior, and more codes than there is to say of rows cost more than they
        tell: L is a code for 16 features, 2 to 16; K the power of two next below the square root of the rows, 8 to 64.
        """
        made = VAE.from_data(data)
        rows, features = len(data["x"]), math.prod(data["x"].shape[1:])
        codes = min(MOST_CODES, max(2, features // A_CODE))
        return made | {"latent": codes, "codebook": min(MOST_VECTORS, max(8, 2 ** int(math.log2(rows) / 2)))}

    @torch.no_grad()
    def prepare(self, data: dict[str, Tensor]) -> VQVAE:
        """The codebook begins with encodings of these rows (10 000 at most), once: codes far from all stay unused."""
        if "x" in data and not self.prepared:
            self.vae.prepare(data)
            u = self.encode(data["x"][:10_000]).flatten(0, -2)
            order = torch.randperm(len(u), generator=torch.Generator().manual_seed(0)).to(u.device)
            u = u[order[: len(self.codebook)]]
            for table in (self.codebook, self.sums) if self.decay else (self.codebook,):
                table[: len(u)] = u
            self.prepared.fill_(1)
        return self

    def model(self, x: Tensor | None = None) -> Tensor:
        """p(x, z)."""
        with ppgen.rows(x):
            z = ppgen.sample("z", self.latents) if self.latents else pyro.sample("z", self._on_codes(self.flat))
            e = self.codebook[z.long()]
            if x is not None:
                e = self._straight_through(e, z, x)
            obs = x if x is None or x.is_floating_point() else x.to(e.dtype)
            return pyro.sample("x", self.vae.decode(e.flatten(-2)), obs=obs)

    def guide(self, x: Tensor) -> None:
        """The nearest codes."""
        with ppgen.rows(x):
            sure = one_hot(self.quantize(x).long(), len(self.codebook)).to(self.flat.dtype)
            pyro.sample("z", self._on_codes(sure.log()))

    def _on_codes(self, logits: Tensor) -> TorchDistribution:
        """Independent codes of these logits, (..., L, K)."""
        return GridCategorical(logits, 0.0, len(self.codebook) - 1.0).to_event(1)

    def encode(self, x: Tensor) -> Tensor:
        """u: (..., *features) -> (..., L, w)."""
        return self.vae.encoder(self.vae.units(x)).unflatten(-1, (self.latent, self.width))

    def quantize(self, x: Tensor) -> Tensor:
        """The nearest codes, 0, ..., K − 1 as floats: (..., *features) -> (..., L)."""
        with torch.no_grad():
            u, e = self.encode(x), self.codebook
            return ((e**2).sum(-1) - 2 * u @ e.mT).argmin(-1).to(u.dtype)  # |u|² is the same for all

    def decode(self, z: Tensor) -> TorchDistribution:
        """p(x | z): codes (..., L) -> a distribution of event shape `features`."""
        return self.vae.decode(self.codebook[z.long()].flatten(-2))

    def _straight_through(self, e: Tensor, z: Tensor, x: Tensor) -> Tensor:
        """e_z with u's gradient, and the terms of codebook and commitment: their gradient, and the value 0."""
        u = self.encode(x)
        loss = self.commitment * (u - e.detach()).square().sum((-2, -1))
        if not self.decay:
            loss = loss + (e - u.detach()).square().sum((-2, -1))
        pyro.factor("codebook", loss.detach() - loss)
        if self.decay and self.training and torch.is_grad_enabled():
            self._average(u.detach(), z)
        return e.detach() + (u - u.detach())

    @torch.no_grad()
    def _average(self, u: Tensor, z: Tensor) -> None:
        """One step of the running means; the run that a fit checks the program by is one, too."""
        which = one_hot(z.long(), len(self.codebook)).to(u.dtype).flatten(0, -2)
        self.counts.copy_(self.decay * self.counts + (1 - self.decay) * which.sum(0))
        self.sums.copy_(self.decay * self.sums + (1 - self.decay) * which.mT @ u.flatten(0, -2))
        mean = self.sums / self.counts.clamp_min(SEEN)[:, None]
        self.codebook.copy_(torch.where(self.counts[:, None] > SEEN, mean, self.codebook))


def _prior_program(prior: str, latent: int, codebook: int) -> ppgen.Program | None:
    how: dict[str, Any] = {"levels": codebook, "low": 0.0, "high": codebook - 1.0}
    if prior == "autoregressive":
        return Autoregressive(latent, **how)
    return MaskedDiffusion(latent, **how) if prior == "diffusion" else None
