"""The variational autoencoder, conditional on a label where there are classes.

    z ~ N(0, I_k),   x | z ~ Π_d p(x_d; f_θ(z)_d)          z: (k,), x: (D,) or an array of D values
    guide:  z | x ~ N(m_φ(x), diag(s_φ(x)²))

f_θ is the decoder, (m_φ, s_φ) the encoder. With labels y, both see y one-hot: p(x, z | y).

Sources: Auto-Encoding Variational Bayes (Kingma & Welling, 2014, arXiv:1312.6114); Semi-Supervised
Learning with Deep Generative Models (Kingma et al., 2014, arXiv:1406.5298), for the label.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyro
import torch
from pyro.distributions import Bernoulli, Normal, TorchDistribution
from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn
from torch.nn.functional import softplus

import ppgen
from ppgen.data import blocks, moments, warn_of_unseen_labels
from ppgen.distributions import DiscretizedLogistic, GridCategorical
from ppgen.distributions.counts import COUNTS, counts
from ppgen.distributions.dequantize import find_grid
from ppgen.distributions.mixtures import NormalMixture
from ppgen.errors import PpgenError, lacking, nearest
from ppgen.nets import MLP, ConvDecoder, ConvEncoder

__all__ = ["VAE"]

LIKELIHOODS = ("bernoulli", "normal", "logistic", "categorical", *COUNTS)
NETS = ("mlp", "conv")
PRIORS = ("normal", "mixture", "flow", "diffusion")
# The decoder starts near one and the same distribution for all z. On the 8 x 8 digits, 2 000 steps
# then reach 1.85 bits/dim, and 1.94 with an output gain of 1.
DECODER_GAIN = 0.1


class VAE(ppgen.Program):
    """A variational autoencoder, or with `classes` > 0 a conditional one.

    The columns are x, floats or bytes of shape (N, *features), and y, labels 0, 1, ... of shape
    (N,). With classes = 0 a column y that the data have is not used; with classes > 0 it is needed
    wherever the program runs, generation included: p(x, z | y) is modelled, p(y) is not. Of counts, a column exposure,
    (N,), multiplies the means: the size of a library, a time.

    Args:
        features: D, or the shape of one datum, as in (3, 32, 32).
        latent: k, the dimension of z.
        hidden: widths of the hidden layers of the encoder, the decoder's being the reverse;
            (200, 200) for net="mlp", and for net="conv" the channels of its layers, (32, 64).
        likelihood: of one value given z:
            "bernoulli": values exactly 0 or 1;
            "normal": real values, with a learned scale that does not depend on z;
            "logistic": a discretised logistic on `levels` values from `low` to `high`, location and
            scale from the decoder;
            "categorical": free probabilities of those levels;
            "poisson", "negative_binomial", "zinb": counts, their log mean from the decoder and a learned level of each
            feature, as is the dispersion of the last two; "zinb" has more zeros, their probability from the decoder.
        net: "mlp", or "conv" for square images with a side of 8 at least.
        activation, dropout: of the networks, see `ppgen.nets.MLP`.
        classes: number of labels, 0 for none.
        levels, low, high: the grid of values. For "normal" (low, high) is the mean less and plus
            one standard deviation of the data: the networks work in these units.
        noise: for "normal", one learned scale ("shared"), or one for each value ("feature").
        channels: of images that come as flat vectors, for net="conv".
        prior: p(z), learned with the rest where it is not "normal", and the KL is then drawn:
            "normal": N(0, I);
            "mixture": `components` diagonal normals; VAE with a VampPrior (Tomczak & Welling, 2018, arXiv:1705.07120)
            has the idea and the gain;
            "flow", "diffusion": a program within this one (`ppgen.sample`): a neural spline flow, or a diffusion model
            of a thousand steps, of which a bound is trained: Score-based Generative Modeling in Latent Space (Vahdat
            et al., 2021, arXiv:2106.05931).
        components: of the mixture; 0 for another prior.

    Raises:
        PpgenError: an argument out of range; labels missing, or out of range.
    """

    rows_a_step = 256

    zero: Tensor
    one_hot: Tensor

    def __init__(
        self,
        features: int | Sequence[int],
        latent: int = 20,
        hidden: int | Sequence[int] | None = None,
        likelihood: str = "bernoulli",
        net: str = "mlp",
        activation: str = "relu",
        dropout: float = 0.0,
        classes: int = 0,
        levels: int = 256,
        low: float = 0.0,
        high: float = 1.0,
        noise: str = "shared",
        channels: int = 1,
        components: int = 0,
        prior: str = "",
    ):
        super().__init__()
        _one_of("likelihood", likelihood, LIKELIHOODS)
        _one_of("net", net, NETS)
        _one_of("noise", noise, ("shared", "feature"))
        prior = prior or ("mixture" if components else "normal")
        _one_of("prior", prior, PRIORS)
        if (prior == "mixture") != (components > 0):
            raise PpgenError(
                f"VAE got prior={prior!r} and components={components}; a mixture has at least one component, no other "
                "prior has any"
            )
        self.shape = (features,) if isinstance(features, int) else tuple(features)
        if not self.shape or min(*self.shape, latent) < 1 or classes < 0 or levels < 2 or not low < high:
            raise PpgenError(
                f"VAE got features={features}, latent={latent}, classes={classes}, "
                f"levels={levels}, low={low}, high={high}; expected features and latent of at "
                "least 1, classes of at least 0, levels of at least 2, and low < high"
            )
        self.shapes, self.size = {"x": self.shape}, math.prod(self.shape)
        self.likelihood, self.classes, self.components = likelihood, classes, components
        self.categories = {"y": classes} if classes else {}
        self.levels, self.low, self.high = levels, float(low), float(high)
        # parameters of the likelihood that the decoder gives for every value
        self.numbers = {"logistic": 2, "zinb": 2, "categorical": levels}.get(likelihood, 1)
        if hidden is None:
            hidden = (200, 200) if net == "mlp" else (32, 64)
        widths = (hidden,) if isinstance(hidden, int) else tuple(hidden)
        how: dict[str, Any] = {"activation": activation, "dropout": dropout}
        self.encoder, self.decoder = self._networks(net, latent, widths, channels, how)
        if likelihood == "normal":
            # softplus(-0.43) = 0.5 standard deviations of the data to begin with
            self.noise = nn.Parameter(torch.full(self.shape if noise == "feature" else (), -0.43))
        if likelihood in COUNTS:
            self.log_mean = nn.Parameter(torch.zeros(self.shape))
            self.log_phi = None if likelihood == "poisson" else nn.Parameter(torch.zeros(self.shape))
        self.latents = prior_program(prior, latent)
        if components:
            self.prior_logits = nn.Parameter(torch.zeros(components))
            self.prior_loc = nn.Parameter(torch.randn(components, latent))
            self.prior_raw = nn.Parameter(torch.full((components, latent), 0.54))  # softplus(0.54) = 1
        self.register_buffer("zero", torch.zeros(latent), persistent=False)
        self.register_buffer("one_hot", torch.eye(classes), persistent=False)

    def _networks(
        self, net: str, latent: int, widths: tuple[int, ...], channels: int, how: dict[str, Any]
    ) -> tuple[nn.Module, nn.Module]:
        """Encoder and decoder."""
        inputs = latent + self.classes
        reader = make_encoder(self.shape, 2 * latent, widths, net, channels, self.classes, how)
        if net == "mlp":
            return reader, MLP(inputs, self.numbers * self.size, widths[::-1], output_gain=DECODER_GAIN, **how)
        side, depth = _square(self.shape, channels)
        how = how | {"channels": depth, "widths": widths}
        return reader, ConvDecoder(inputs, side, outputs=self.numbers, output_gain=DECODER_GAIN, **how)

    @classmethod
    def from_data(cls, data: dict[str, Tensor]) -> dict[str, Any]:
        """The arguments that follow from the data: features, and a likelihood that suits them.

        Values 0 and 1 get "bernoulli"; values on a grid, such as k/16, k/255 or bytes, "logistic"
        with its levels; all others "normal".
        """
        if "x" not in data or data["x"].dim() < 2 or len(data["x"]) == 0:
            needed = "the VAE needs a column x of shape (rows, features)"
            raise lacking(needed, data, "name or gather it with columns= (--columns x=...)")
        x = data["x"]
        shape = list(x.shape[1:])
        arguments: dict[str, Any] = {"features": shape[0] if len(shape) == 1 else shape}
        if len(list(blocks(x))) == 1:
            x = x[torch.isfinite(x)]  # a fit names the others; here they are left out
        grid = find_grid(x)
        if grid is None:
            mean, sd = (m.item() for m in moments(x.reshape(-1)))
            sd = sd if sd > 0 else 1.0
            return arguments | {"likelihood": "normal", "low": mean - sd, "high": mean + sd}
        if grid == (0.0, 1.0, 2):
            return arguments | {"likelihood": "bernoulli"}
        low, high, levels = grid
        return arguments | {"likelihood": "logistic", "levels": levels, "low": low, "high": high}

    def prepare(self, data: dict[str, Tensor]) -> VAE:
        """The level of each feature, of counts, where none is known yet; labels that no row has are said."""
        warn_of_unseen_labels(data, self.categories, self.name)
        if self.likelihood in COUNTS and "x" in data and not self.log_mean.any():
            with torch.no_grad():
                exposure = data["exposure"].mean() if "exposure" in data else 1.0
                self.log_mean.copy_(((data["x"].to(self.zero.dtype).nanmean(0) + 0.01) / exposure).log())
        return self

    def model(self, x: Tensor | None = None, y: Tensor | None = None, exposure: Tensor | None = None) -> Tensor:
        """p(x, z), or p(x, z | y)."""
        self._require_labels(y)
        with ppgen.rows(x, y if self.classes else None, exposure if self.likelihood in COUNTS else None):
            z = pyro.sample("z", self.prior()) if self.latents is None else ppgen.sample("z", self.latents)
            obs = x if x is None or x.is_floating_point() else x.to(self.zero.dtype)
            return pyro.sample("x", self.decode(z, y, exposure), obs=obs)

    def prior(self) -> TorchDistribution:
        """p(z), where it is no program: a distribution of event shape (k,)."""
        if not self.components:
            return Normal(self.zero, 1.0).to_event(1)
        return NormalMixture(self.prior_logits, self.prior_loc, softplus(self.prior_raw) + 1e-3)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        """q(z | x), or q(z | x, y)."""
        self._require_labels(y)
        with ppgen.rows(x):
            pyro.sample("z", self.encode(x, y))

    def units(self, x: Tensor) -> Tensor:
        """What the networks read of x: (..., *features) -> (..., D), 0 at `low`, 1 at `high`; of counts log(1 + x)."""
        x = x.to(self.zero.dtype).flatten(-len(self.shape))
        return x.log1p() if self.likelihood in COUNTS else (x - self.low) / (self.high - self.low)

    def encode(self, x: Tensor, y: Tensor | None = None) -> TorchDistribution:
        """q(z | x, y): x of shape (..., *features) -> a Normal of event shape (k,)."""
        loc, raw = self.encoder(self._with_label(self.units(x), y)).chunk(2, -1)
        return Normal(loc, softplus(raw) + 1e-5).to_event(1)  # no scale of 0: its log is finite

    def decode(self, z: Tensor, y: Tensor | None = None, exposure: Tensor | None = None) -> TorchDistribution:
        """p(x | z, y): z of shape (..., k) -> a distribution of event shape `features`."""
        out = self.decoder(self._with_label(z, y))
        out = out.reshape(out.shape[:-1] + (self.numbers, *self.shape))
        dims, width = len(self.shape), self.high - self.low
        first = out.select(-dims - 1, 0)
        if self.likelihood == "bernoulli":
            fn = Bernoulli(logits=first)
        elif self.likelihood == "categorical":
            fn = GridCategorical(out.movedim(-dims - 1, -1), self.low, self.high)
        elif self.likelihood in COUNTS:
            size = 0.0 if exposure is None else exposure.log().reshape(exposure.shape + (1,) * dims)
            gate = out.select(-dims - 1, 1) if self.likelihood == "zinb" else None
            fn = counts(first + self.log_mean + size, None if self.log_phi is None else self.log_phi.exp(), gate)
        elif self.likelihood == "normal":
            fn = Normal(self.low + width * (0.5 + first), width * (softplus(self.noise) + 1e-3) / 2)
        else:
            # at least a tenth of a step: sharp enough for a sure value, and no infinite density
            scale = width * (0.1 * softplus(out.select(-dims - 1, 1)) + 0.1 / (self.levels - 1))
            loc = self.low + width * (0.5 + first)
            fn = DiscretizedLogistic(loc, scale, self.low, self.high, self.levels)
        return fn.to_event(dims)

    def _require_labels(self, y: Tensor | None) -> None:
        if self.classes and y is not None and is_validation_enabled():
            wrong = (y < 0) | (y >= self.classes) | (y != y.long())
            if y.dim() != 1 or bool(wrong.any()):
                what = f"shape {tuple(y.shape)}" if y.dim() != 1 else f"{y[wrong][0].item():g}"
                raise PpgenError(
                    f"column y of VAE(classes={self.classes}) has {what}, expected one label a "
                    f"row out of 0 to {self.classes - 1}; recode it, or set classes"
                )

    def _with_label(self, h: Tensor, y: Tensor | None) -> Tensor:
        if not self.classes:
            return h
        if y is None:
            raise PpgenError(
                f"VAE(classes={self.classes}) is conditional on the labels y, and got none; "
                "pass a column y, and to sample from it given={'y': ...} (--given file)"
            )
        label = self.one_hot[y.long()]
        shape = np.broadcast_shapes(h.shape[:-1], label.shape[:-1])
        return torch.cat([h.expand(*shape, -1), label.expand(*shape, -1)], -1)


def make_encoder(
    shape: tuple[int, ...], outputs: int, widths: tuple[int, ...], net: str, channels: int, context: int,
    how: dict[str, Any],
) -> nn.Module:  # fmt: skip
    """What reads a datum of that shape, flat, and `context` entries after it: (..., D + context) -> (..., outputs).

    Args:
        net, channels: as for `VAE`.
        how: activation and dropout.
    """
    if net == "mlp":
        return MLP(math.prod(shape) + context, outputs, widths, **how)
    side, depth = _square(shape, channels)
    return ConvEncoder(side, outputs, channels=depth, widths=widths, context=context, **how)


def prior_program(prior: str, latent: int) -> ppgen.Program | None:
    """The program that p(z) of so many latents is, where that prior is one."""
    if prior == "flow":
        from ppgen.models.flow import Flow

        family = "nsf_coupling" if latent > 1 else "nsf"  # a coupling has two parts
        return Flow(latent, family=family, transforms=4, hidden=(64, 64))
    if prior == "diffusion":
        from ppgen.models.diffusion import Diffusion

        return Diffusion(latent, steps=1000, hidden=(128, 128), loc=[0.0] * latent, scale=[1.0] * latent)
    return None


def _one_of(argument: str, value: str, names: Sequence[str]) -> None:
    if value not in names:
        raise PpgenError(f"VAE got {argument}={value!r}{nearest(str(value), names)}; take one of {', '.join(names)}")


def _square(shape: tuple[int, ...], channels: int) -> tuple[int, int]:
    """Side and channels of an image of that shape: (D,), (side, side) or (channels, side, side)."""
    if len(shape) == 1:
        side = math.isqrt(shape[0] // channels)
        shape = (channels, side, side) if channels * side * side == shape[0] else shape
    elif len(shape) == 2:
        shape = (1, *shape)
    if len(shape) != 3 or shape[1] != shape[2]:
        raise PpgenError(
            f"VAE(net='conv') got features of shape {shape}, expected a square image of "
            f"channels={channels}; set channels, or take net='mlp'"
        )
    return shape[1], shape[0]
