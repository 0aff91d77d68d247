r"""Flow matching on straight paths: the continuous limit of a diffusion whose network gives the velocity.

    z_t = (1 − t) x + t ε,     v_θ(z_t, t) ≈ E[ε − x | z_t],     loss  E |v_θ(z_t, t) − (ε − x)|²,   t uniform

The same chain as `ppgen.models.diffusion` with α + σ = 1 and T → ∞, trained on another weighting of the same costs,
so that its bound, its samplers and the likelihood of its ODE, dz/dt = v_θ, are those of any Gaussian chain. The loss is
no bound on log p(x); the ELBO that a fit shows is.

Source: Flow Matching for Generative Modeling (Lipman et al., 2023, arXiv:2210.02747), the conditional-OT path, with
time running from data to noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ppgen.models.diffusion import Diffusion

__all__ = ["FlowMatching"]


class FlowMatching(Diffusion):
    """A `Diffusion` on the conditional-OT path, trained by flow matching.

    Args:
        steps: T of the explicit chain; 0, the default, trains the limit T → ∞, which flow matching is.
        features: as for `Diffusion`, and so are all others: net, hidden, likelihood, classes, label_dropout, levels,
            low, high, loc, scale, gamma_low, gamma_high, blocks, attention, fourier.
    """

    def __init__(
        self,
        features: int | Sequence[int],
        net: str = "mlp",
        hidden: Sequence[int] | None = None,
        steps: int = 0,
        likelihood: str = "normal",
        classes: int = 0,
        label_dropout: float = 0.1,
        levels: int = 256,
        low: float = 0.0,
        high: float = 1.0,
        loc: Sequence[float] | None = None,
        scale: Sequence[float] | None = None,
        gamma_low: float | None = None,
        gamma_high: float = 6.0,
        blocks: int = 1,
        attention: int = 8,
        fourier: Sequence[int] = (),
    ):
        super().__init__(
            features, net, hidden, steps, "ot", "ot", "flow", "posterior", likelihood, "flow",
            classes=classes, label_dropout=label_dropout, levels=levels, low=low, high=high, loc=loc, scale=scale,
            gamma_low=gamma_low, gamma_high=gamma_high, blocks=blocks, attention=attention, fourier=fourier,
        )  # fmt: skip

    @classmethod
    def from_data(cls, data: dict[str, Tensor]) -> dict[str, Any]:
        """As for `Diffusion`."""
        return {k: v for k, v in Diffusion.from_data(data).items() if k not in ("prediction", "atoms")}
