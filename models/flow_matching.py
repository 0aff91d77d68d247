r"""Flow matching on straight paths: the continuous limit of a diffusion whose network gives the velocity.

    z_t = (1 − t) x + t ε,     v_θ(z_t, t) ≈ E[ε − x | z_t],     loss  E |v_θ(z_t, t) − (ε − x)|²,   t uniform

The same chain as `ppgen.models.diffusion` with α + σ = 1 and T → ∞, trained on another weighting of the same costs,
so that its bound, its samplers and the likelihood of its ODE, dz/dt = v_θ, are those of any Gaussian chain. The loss is
no bound on log p(x); the ELBO that a fit shows is.

With coupling="ot" each row of a batch is paired with the noise that lies closest, such that the sum of squared
distances is least (`ppgen.chains.pairs`). x and ε keep their distributions, so that the ODE still ends in the data; its
paths are straighter, and take fewer steps. Rows with labels are paired within their label (a hidden one counts as one
more): draws given y start from all of the noise, and pairs across labels would leave each label a part of it. z_t is
then no draw of q(z_t | x): x̂ = z − t v is no E[x | z_t] under fresh noise, and samplers that add noise, which need
that, are refused. log p(x) of the draws is that of the ODE (`loglik(ode=True)`); the ELBO is one of the explicit chain,
on independent noise, and may be far below.

Sources: Flow Matching for Generative Modeling (Lipman et al., 2023, arXiv:2210.02747), the conditional-OT path, with
time running from data to noise; Improving and generalizing flow-based generative models with minibatch optimal
transport (Tong et al., 2023, arXiv:2302.00482); The Curse of Conditions (Cheng & Schwing, 2025, arXiv:2503.10636),
labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ppgen.chains.pairs import optimal_pairs
from ppgen.errors import PpgenError, nearest
from ppgen.models.diffusion import Diffusion

COUPLINGS = ("independent", "ot")


class FlowMatching(Diffusion):
    """A `Diffusion` on the conditional-OT path, trained by flow matching.

    Args:
        steps: T of the explicit chain; 0, the default, trains the limit T → ∞, which flow matching is.
        features: as for `Diffusion`, and so are all others: net, hidden, likelihood, classes, label_dropout, levels,
            low, high, loc, scale, gamma_low, blocks, attention, fourier.
        gamma_high: −log SNR at t = 1. None: 6, and with coupling="ot" 12, as its noise has to be all of z_1.
        coupling: of data and noise in training: "independent", or "ot", by minibatch optimal transport.

    Raises:
        PpgenError: as of `Diffusion`; no such coupling.
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
        gamma_high: float | None = None,
        blocks: int = 1,
        attention: int = 8,
        fourier: Sequence[int] = (),
        coupling: str = "independent",
    ):
        if coupling not in COUPLINGS:
            raise PpgenError(
                f"FlowMatching got coupling={coupling!r}{nearest(str(coupling), COUPLINGS)}; take one of "
                f"{', '.join(COUPLINGS)}"
            )
        if gamma_high is None:
            gamma_high = 12.0 if coupling == "ot" else 6.0
        super().__init__(
            features, net, hidden, steps, "ot", "ot", "flow", "posterior", likelihood, "flow",
            classes=classes, label_dropout=label_dropout, levels=levels, low=low, high=high, loc=loc, scale=scale,
            gamma_low=gamma_low, gamma_high=gamma_high, blocks=blocks, attention=attention, fourier=fourier,
        )  # fmt: skip
        self.coupling = coupling
        if coupling == "ot":
            self.samplers = ("ddim", "heun", "dpmpp", "unipc", "deis", "ode")

    def coupled(self, x: Tensor, t: Tensor, **columns: Tensor) -> Tensor | None:
        """z_t whose noise is paired with x in each batch, or in each batch's rows of a label."""
        if self.coupling == "independent":
            return None
        rows, label = self.encode(x), columns.get("y")
        label = None if label is None else label.expand(len(rows))
        noise = torch.randn(*t.shape, rows.shape[-1], dtype=rows.dtype, device=rows.device)
        noise = torch.stack([e[optimal_pairs(rows, e, label)] for e in noise])
        _, alpha, sigma = self.coefficients(t)
        return alpha * rows + sigma * noise

    def draws_apart(self) -> str | None:
        """That coupled noise is of the ODE."""
        if self.coupling == "independent":
            return None
        return (
            "the explicit chain of FlowMatching(coupling='ot') draws otherwise than its ODE, which it was trained for; "
            "draw by sample_diffusion(run) (ppgen sample)"
        )

    @classmethod
    def from_data(cls, data: dict[str, Tensor]) -> dict[str, Any]:
        """As for `Diffusion`."""
        return {k: v for k, v in Diffusion.from_data(data).items() if k not in ("prediction", "atoms")}
