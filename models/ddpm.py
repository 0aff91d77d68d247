r"""DDPM: the diffusion model that predicts the noise, on a linear schedule of β, trained on L_simple.

    x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε,   ᾱ_t = Π_s (1 − β_s),  β from 10⁻⁴ to 0.02 in 1 000 steps
    L_simple = E |ε − ε_θ(x_t, t)|²,   t uniform in 1, ..., T
    x_{t−1} = (x_t − β_t / √(1 − ᾱ_t) ε_θ) / √(1 − β_t) + √β̃_t z,   β̃_t = β_t (1 − ᾱ_{t−1}) / (1 − ᾱ_t)

In the words of `ppgen.models.diffusion`: schedule "linear", prediction "noise", weighting "simple" (half of L_simple),
variance "posterior", process "vp". The paper's x_1, ..., x_T are our z_0, ..., z_{T−1}: T latents make T − 1 steps. It
draws by all of them, sampler="ancestral"; unless that is asked for, draws are made as of every `Diffusion`.

What differs: the likelihood p(x | z_0) has no network, and the loss none of its term; ᾱ_t is the exponential of an
integral, its log-odds within 0.05 of the product's.

Source: Denoising Diffusion Probabilistic Models (Ho et al., 2020, arXiv:2006.11239).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ppgen.models.diffusion import Diffusion

FIRST, LAST = -9.2102, 10.1177  # log (1 − ᾱ) / ᾱ of x_1 and x_1000


class DDPM(Diffusion):
    """A `Diffusion` as Ho et al. have it; its bound is what a fit shows, and no bound is what it is trained on.

    Args:
        latents: T, the number of noisy states.
        features: as for `Diffusion`, and so are net, hidden, likelihood, classes, label_dropout, levels, low, high,
            loc, scale, blocks and attention.
    """

    def __init__(
        self, features: int | Sequence[int], latents: int = 1000, net: str = "mlp", hidden: Sequence[int] | None = None,
        likelihood: str = "normal", classes: int = 0, label_dropout: float = 0.1, levels: int = 256, low: float = 0.0,
        high: float = 1.0, loc: Sequence[float] | None = None, scale: Sequence[float] | None = None, blocks: int = 1,
        attention: int = 8,
    ):  # fmt: skip
        super().__init__(
            features, net, hidden, max(latents - 1, 1), "vp", "linear", "noise", "posterior", likelihood, "simple",
            classes=classes, label_dropout=label_dropout, levels=levels, low=low, high=high, loc=loc, scale=scale,
            gamma_low=FIRST, gamma_high=LAST, blocks=blocks, attention=attention,
        )  # fmt: skip

    @classmethod
    def from_data(cls, data: dict[str, Tensor]) -> dict[str, Any]:
        """As for `Diffusion`."""
        return cls.common_from_data(data)
