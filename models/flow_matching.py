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
        features, net, hidden, classes: as for `Diffusion`.
        options: its other arguments; those that make it flow matching are set.
    """

    def __init__(
        self,
        features: int | Sequence[int],
        net: str = "mlp",
        hidden: Sequence[int] | None = None,
        classes: int = 0,
        **kwargs: Any,
    ):
        path = {"process": "ot", "schedule": "ot", "prediction": "flow", "weighting": "flow", "steps": 0}
        super().__init__(features, net, hidden, classes=classes, **(path | kwargs))

    @classmethod
    def from_data(cls, data: dict[str, Tensor]) -> dict[str, Any]:
        """As for `Diffusion`."""
        return {k: v for k, v in Diffusion.from_data(data).items() if k != "prediction"}
