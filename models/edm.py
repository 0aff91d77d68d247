r"""EDM: the diffusion model with a preconditioned denoiser, and noise levels drawn log-normally.

    y = x + σ n,   D(y; σ) = c_skip y + c_out F(c_in y; σ)          σ_data = 0.5: standard deviation of x
    c_skip = σ_d² / (σ² + σ_d²),  c_out = σ σ_d / √(σ² + σ_d²),  c_in = 1 / √(σ² + σ_d²)
    loss  E λ(σ) |D(y; σ) − x|²,  λ = (σ² + σ_d²) / (σ σ_d)²,  log σ ~ N(−1.2, 1.2²)

In the words of `ppgen.models.diffusion`: process "ve", schedule "edm", prediction "edm", weighting "edm" (half of the
loss, a time uniform in [0, 1] being weighed by the density of log σ), σ from 80 to 0.002, T → ∞. The loss is no bound
on log p(x); what a fit shows is. The paper draws by 18 steps of `heun`, which leave 10% too much variance; unless they
are asked for, draws are made as of every `Diffusion`, from σ = 80 to 0.002, where p(x | z_0) draws.

Source: Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022, arXiv:2206.00364).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ppgen.models.diffusion import Diffusion

DATA = 0.5  # σ_data


class EDM(Diffusion):
    """A `Diffusion` as Karras et al. have it. Continuous data are brought to a standard deviation of 0.5.

    Args:
        sigma_min, sigma_max: standard deviations of the noise at t = 0 and t = 1, data being of 0.5.
        steps: T of the explicit chain; 0, the default, trains the limit T → ∞.
        loc, scale: x = loc + scale z; measured by `prepare` where None.
        features: as for `Diffusion`, and so are net, hidden, likelihood, classes, label_dropout, levels, low, high,
            blocks and attention.
    """

    def __init__(
        self, features: int | Sequence[int], net: str = "mlp", hidden: Sequence[int] | None = None, steps: int = 0,
        likelihood: str = "normal", classes: int = 0, label_dropout: float = 0.1, levels: int = 256, low: float = 0.0,
        high: float = 1.0, loc: Sequence[float] | None = None, scale: Sequence[float] | None = None,
        sigma_min: float = 0.002, sigma_max: float = 80.0, blocks: int = 1, attention: int = 8,
    ):  # fmt: skip
        super().__init__(
            features, net, hidden, steps, "ve", "edm", "edm", "posterior", likelihood, "edm", data_scale=DATA,
            classes=classes, label_dropout=label_dropout, levels=levels, low=low, high=high, loc=loc, scale=scale,
            gamma_low=2 * math.log(sigma_min), gamma_high=2 * math.log(sigma_max), blocks=blocks, attention=attention,
        )  # fmt: skip

    @classmethod
    def from_data(cls, data: dict[str, Tensor]) -> dict[str, Any]:
        """As for `Diffusion`, continuous data at a standard deviation of 0.5."""
        found = cls.common_from_data(data)
        half = {"scale": [s / DATA for s in found["scale"]]} if "scale" in found else {}
        return found | half

    def prepare(self, data: dict[str, Tensor]) -> EDM:
        """Location and scale of continuous data that came without."""
        measured = not self.prepared
        super().prepare(data)
        if measured:
            self.scale.div_(DATA)
        return self
