"""The ladder VAE: a hierarchical VAE whose guide goes the model's own way from the top down.

    z_L ~ N(0, I),   z_i | z_{i+1} ~ N(m_i(h_{i+1}), diag(s_i(h_{i+1})²)),   x | z ~ Π_d p(x_d; f(h_1)_d)    z_i: (k_i,)
    down:   h_i = MLP'_i(z_i), or of (z_i, h_{i+1}) with skip           up:  d_i = MLP_i(d_{i-1}),  d_0 = x
    guide:  z_L | x ~ N(m̂_L, ŝ_L²), and below it z_i | z_{i+1}, x of what d_i says and of p(z_i | z_{i+1}):

    precision   N(v (m̂/ŝ² + m/s²), v),  1/v = 1/ŝ² + 1/s²,  m̂ and ŝ of d_i: in proportion to both densities' product
    residual    N(m + s m̂, (s ŝ)²),  m̂ and ŝ of (d_i, h_{i+1}): how it differs from p(z_i | z_{i+1})

Sources: Ladder Variational Autoencoders (Sønderby et al., 2016, arXiv:1602.02282), precision; Improving Variational
Inference with Inverse Autoregressive Flow (Kingma et al., 2016, arXiv:1606.04934), the bidirectional guide and the way
down that keeps what is above; NVAE (Vahdat & Kautz, 2020, arXiv:2007.03898), residual.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import torch
from pyro.distributions import Normal
from torch import Tensor, nn
from torch.nn.functional import softplus

import ppgen
from ppgen.errors import PpgenError, nearest
from ppgen.models.vae import VAE, prior_program
from ppgen.nets import MLP

INFERENCES = ("precision", "residual")
PRIORS = ("normal", "flow", "diffusion")
UNIT = 0.5413  # its softplus is 1


class _Rung(nn.Module):
    """One layer: what p and q know of z_i, (..., k), and the step down.

    Args:
        latent: k.
        up: width of d_i. hidden: of h_i.
        above: of h_{i+1}; 0 at the top.
        inference, skip: of `LadderVAE`.
        how: activation and dropout.
    """

    def __init__(self, latent: int, up: int, hidden: int, above: int, inference: str, skip: bool, how: dict[str, Any]):
        super().__init__()
        self.residual, self.skip = inference == "residual", skip
        self.prior_numbers = MLP(above, 2 * latent, (), output_gain=0.1) if above else None
        self.numbers = MLP(up + (above if self.residual else 0), 2 * latent, (), output_gain=0.1)
        self.step = MLP(latent + (above if skip else 0), hidden, (hidden,), **how)
        self.register_buffer("zero", torch.zeros(latent), persistent=False)

    zero: Tensor

    def prior(self, h: Tensor | None) -> Normal:
        """p(z_i | z_{i+1}) at h_{i+1}, None at the top."""
        if self.prior_numbers is None:
            return Normal(self.zero, torch.ones_like(self.zero))
        return _normal(self.prior_numbers(h))

    def posterior(self, d: Tensor, h: Tensor | None) -> Normal:
        """q(z_i | z_{i+1}, x) at d_i and h_{i+1}."""
        p = self.prior(h)
        if self.residual:
            q = _normal(self.numbers(d if h is None else torch.cat([d, h], -1)))
            return Normal(p.loc + p.scale * q.loc, p.scale * q.scale)
        q = _normal(self.numbers(d))
        return q if h is None else _product(q, p)

    def down(self, z: Tensor, h: Tensor | None) -> Tensor:
        """h_i."""
        return self.step(torch.cat([z, h], -1) if self.skip and h is not None else z)


class LadderVAE(ppgen.Program):
    """A VAE with L latents z_1 (next to x), ..., z_L (at the top), each given the one above.

    The column is x, floats or bytes of shape (N, *features). What a value may be, and its likelihood, is as for `VAE`.

    Args:
        features: D, or the shape of one datum.
        latent: k_1, ..., k_L, from the bottom up.
        hidden: widths of d_i and h_i, from the bottom up; as many as latents.
        inference: "precision" or "residual", see the file.
        skip: whether h_i sees h_{i+1} beside z_i, so that all latents reach x, and not z_1 alone.
        activation, dropout: of the networks.
        likelihood, levels, low, high, noise: as for `VAE`.
        net, channels: as for `VAE`: with "conv" what reads x into d_1, and gives x from h_1, is convolutional.
        convolutions: channels of its layers.
        prior: p(z_L): "normal", N(0, I), or "flow" or "diffusion", a program that is learned, as for `VAE`.

    Raises:
        PpgenError: an argument out of range.
    """

    rows_a_step = 256

    def __init__(
        self, features: int | Sequence[int], latent: Sequence[int] = (32, 16, 8),
        hidden: Sequence[int] = (256, 128, 64), inference: str = "precision", skip: bool = False,
        activation: str = "silu", dropout: float = 0.0, likelihood: str = "bernoulli", levels: int = 256,
        low: float = 0.0, high: float = 1.0, noise: str = "shared", net: str = "mlp", channels: int = 1,
        convolutions: Sequence[int] = (32, 64), prior: str = "normal",
    ):  # fmt: skip
        super().__init__()
        latent, hidden = list(latent), list(hidden)
        if len(latent) != len(hidden) or not latent or min(*latent, *hidden) < 1:
            raise PpgenError(
                f"LadderVAE got latent={latent} and hidden={hidden}; pass as many of each, from the bottom up, of at "
                "least 1, as in latent=[32, 16], hidden=[256, 128]"
            )
        if inference not in INFERENCES:
            raise PpgenError(
                f"LadderVAE got inference={inference!r}{nearest(inference, INFERENCES)}; take {' or '.join(INFERENCES)}"
            )
        if prior not in PRIORS:
            raise PpgenError(f"LadderVAE got prior={prior!r}{nearest(prior, PRIORS)}; take one of {', '.join(PRIORS)}")
        how: dict[str, Any] = {"activation": activation, "dropout": dropout}
        # d_1 are the numbers that its encoder gives, h_1 is the z that its decoder takes
        self.base = VAE(
            features, hidden[0], convolutions if net == "conv" else hidden[0], likelihood, net=net, channels=channels,
            levels=levels, low=low, high=high, noise=noise, **how,
        )  # fmt: skip
        self.shapes = self.base.shapes
        ups = [2 * hidden[0], *hidden[1:]]
        self.up = nn.ModuleList(MLP(i, o, (o,), **how) for i, o in zip(ups, ups[1:], strict=False))
        sizes = zip(latent, ups, hidden, [*hidden[1:], 0], strict=True)
        self.rungs = nn.ModuleList(_Rung(*size, inference, skip, how) for size in sizes)
        self.top = prior_program(prior, latent[-1])

    @classmethod
    def from_data(cls, data: dict[str, Tensor]) -> dict[str, Any]:
        """As for `VAE`: features, and a likelihood that suits them."""
        return VAE.from_data(data)

    def prepare(self, data: dict[str, Tensor]) -> LadderVAE:
        """As for `VAE`: the level of each feature, of counts."""
        self.base.prepare(data)
        return self

    def model(self, x: Tensor | None = None) -> Tensor:
        """p(x, z_1, ..., z_L)."""
        with ppgen.rows(x):
            h = self.latents()
            obs = x if x is None or x.is_floating_point() else x.to(h.dtype)
            return pyro.sample("x", self.base.decode(h), obs=obs)

    def latents(self) -> Tensor:
        """z_L, ..., z_1 of a row, from the prior: h_1."""
        h: Any = None
        for i, rung in self.from_the_top():
            own = self.top if h is None else None
            z = pyro.sample(f"z_{i}", rung.prior(h).to_event(1)) if own is None else ppgen.sample(f"z_{i}", own)
            h = rung.down(z, h)
        return h

    def guide(self, x: Tensor) -> None:
        """q(z_L | x) Π_i q(z_i | z_{i+1}, x)."""
        d = self.read(x)
        with ppgen.rows(x):
            h = None
            for i, rung in self.from_the_top():
                z = pyro.sample(f"z_{i}", rung.posterior(d[i - 1], h).to_event(1))
                h = rung.down(z, h)

    def from_the_top(self) -> list[tuple[int, Any]]:
        """(L, its rung), ..., (1, its rung)."""
        return list(enumerate(self.rungs, 1))[::-1]

    def read(self, x: Tensor) -> list[Tensor]:
        """d_1, ..., d_L, each (..., width)."""
        d = [self.base.encoder(self.base.units(x))]
        for step in self.up:
            d.append(step(d[-1]))
        return d


def _product(a: Normal, b: Normal) -> Normal:
    """The normal in proportion to the product of two densities: precisions add, and weigh the means."""
    precision_a, precision_b = a.scale**-2, b.scale**-2
    variance = 1 / (precision_a + precision_b)
    return Normal(variance * (precision_a * a.loc + precision_b * b.loc), variance.sqrt())


def _normal(numbers: Tensor) -> Normal:
    """Location and scale of (..., 2 k) numbers; scale 1 at 0, and no scale of 0."""
    loc, raw = numbers.chunk(2, -1)
    return Normal(loc, softplus(raw + UNIT) + 1e-4)
