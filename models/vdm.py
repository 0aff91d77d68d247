r"""VDM: the diffusion model whose schedule is learned, trained on the ELBO of infinitely many steps.

    z_t = α_t x + σ_t ε,   α_t² = sigmoid(−γ_η(t)),  σ_t² = sigmoid(γ_η(t)),   γ_η a monotone network
    ELBO = E log p(x | z_0) − KL(q(z_1 | x), p(z_1)) − ½ E_{t, ε} γ_η'(t) |ε − ε_θ(z_t; γ_η(t))|²,   t uniform in [0, 1]

In the words of `ppgen.models.diffusion`: schedule "learned" between −13.3 and 5 at first, prediction "noise", weighting
"elbo", process "vp", T → ∞, and for 256 levels the waves sin(2ⁿ π z), cos(2ⁿ π z), n = 7, 8, beside z, by which a
network tells neighbouring levels apart. The ends of γ raise the bound; its shape between them does not change it, and
lowers the variance of its estimate. The network may see a label, and is ours, not the paper's U-Net.

Source: Variational Diffusion Models (Kingma et al., 2021, arXiv:2107.00630).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ppgen.models.diffusion import Diffusion

FOURIER = [7, 8]  # of 256 levels: waves of two levels, and of one


class VDM(Diffusion):
    """A `Diffusion` as Kingma et al. have it: what it is trained on is the bound that it shows.

    Args:
        steps: T of the explicit chain; 0, the default, trains the limit T → ∞.
        gamma_low, gamma_high: −log SNR at t = 0 and t = 1 where learning begins.
        features: as for `Diffusion`, and so are net, hidden, likelihood, classes, label_dropout, levels, low, high,
            loc, scale, blocks, attention and fourier.
    """

    def __init__(
        self, features: int | Sequence[int], net: str = "mlp", hidden: Sequence[int] | None = None, steps: int = 0,
        likelihood: str = "normal", classes: int = 0, label_dropout: float = 0.1, levels: int = 256, low: float = 0.0,
        high: float = 1.0, loc: Sequence[float] | None = None, scale: Sequence[float] | None = None,
        gamma_low: float = -13.3, gamma_high: float = 5.0, blocks: int = 1, attention: int = 8,
        fourier: Sequence[int] = (),
    ):  # fmt: skip
        super().__init__(
            features, net, hidden, steps, "vp", "learned", "noise", "posterior", likelihood, "elbo",
            classes=classes, label_dropout=label_dropout, levels=levels, low=low, high=high, loc=loc, scale=scale,
            gamma_low=gamma_low, gamma_high=gamma_high, blocks=blocks, attention=attention, fourier=fourier,
        )  # fmt: skip

    @classmethod
    def from_data(cls, data: dict[str, Tensor]) -> dict[str, Any]:
        """As for `Diffusion`, with the paper's waves where there are 256 levels."""
        found = cls.common_from_data(data)
        return found | ({"fourier": FOURIER} if found.get("levels") == 256 else {})
