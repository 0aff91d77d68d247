r"""The semi-supervised VAE, "M2": a label that is known for some rows, and summed out for the others.

    y ~ Categorical(π),  z ~ N(0, I_k),  x | y, z ~ Π_d p(x_d; f_θ(y, z)_d)              y in 0 .. C - 1
    guide:  y | x ~ Categorical(softmax c_φ(x)) where it is not known,  z | x, y ~ N(m_φ(x, y), diag(s_φ(x, y)²))

    known:  L(x, y) = E_q(z|x,y) [log p(x, y, z) − log q(z | x, y)] ≤ log p(x, y)
    not:    U(x) = Σ_y q(y | x) (L(x, y) − log q(y | x)) ≤ log p(x)

The classifier learns from the rows whose label is known as well: α log q(y | x) is added to what is maximized, and
not to the bound.

Source: Semi-Supervised Learning with Deep Generative Models (Kingma, Rezende, Mohamed, Welling 2014, arXiv:1406.5298).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import torch
from pyro.distributions import Categorical, Normal
from torch import Tensor, nn

import ppgen
from ppgen.errors import PpgenError
from ppgen.models.vae import VAE
from ppgen.nets import MLP


class SemiSupervisedVAE(ppgen.Program):
    """Rows x: (N, *features) with labels y: (N,), 0 .. C - 1, nan where a label is not known.

    Args:
        features, latent, hidden, likelihood, levels, low, high: of the networks and of p(x | y, z), see `VAE`.
        classes: C, at least 2.
        alpha: α, the weight of log q(y | x) of a row whose label is known.
        dropout: of the classifier.

    Raises:
        PpgenError: an argument out of range.
    """

    rows_a_step = 256
    missing = "mask"

    def __init__(
        self, features: int | Sequence[int], classes: int, latent: int = 10, hidden: int | Sequence[int] = (200,),
        likelihood: str = "bernoulli", alpha: float = 20.0, dropout: float = 0.0, levels: int = 256, low: float = 0.0,
        high: float = 1.0,
    ):  # fmt: skip
        super().__init__()
        if classes < 2 or alpha < 0:
            raise PpgenError(
                f"SemiSupervisedVAE got classes={classes}, alpha={alpha}; expected at least 2 classes and an alpha of "
                "at least 0"
            )
        self.vae = VAE(features, latent, hidden, likelihood, classes=classes, levels=levels, low=low, high=high)
        widths = (hidden,) if isinstance(hidden, int) else tuple(hidden)
        self.classifier = MLP(self.vae.size, classes, widths, dropout=dropout)
        self.label_logits = nn.Parameter(torch.zeros(classes))
        self.alpha, self.shapes, self.categories = alpha, self.vae.shapes, {"y": classes}

    @classmethod
    def from_data(cls, data: dict[str, Tensor]) -> dict[str, Any]:
        """The VAE's, and the number of labels.

        Raises:
            PpgenError: no column y with a label.
        """
        known = data["y"][~data["y"].isnan()] if "y" in data else torch.zeros(0)
        if not len(known):
            raise PpgenError(
                "SemiSupervisedVAE needs a column y of labels 0, 1, ..., nan where one is not known, and found none; "
                "name it with columns= (--columns y=...)"
            )
        return VAE.from_data(data) | {"classes": max(2, int(known.max()) + 1)}

    def model(self, x: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """p(x, y, z)."""
        zero = self.vae.zero
        with ppgen.rows(x, y):
            seen = pyro.sample("y", Categorical(logits=self.label_logits), obs=y)
            label = pyro.sample("label", self._where_known(seen, self.label_logits))
            z = pyro.sample("z", Normal(zero, 1.0).to_event(1))
            if x is not None and y is not None:
                pyro.factor("classifier", self._supervision(x, y))
            return pyro.sample("x", self.vae.decode(z, label), obs=x)

    def guide(self, x: Tensor, y: Tensor) -> None:
        """q(y, z | x)."""
        with ppgen.rows(x, y):
            label = pyro.sample("label", self._where_known(y, self.classify(x)), infer={"enumerate": "parallel"})
            pyro.sample("z", self.vae.encode(x, label))

    def classify(self, x: Tensor) -> Tensor:
        """log q(y | x): (..., *features) -> (..., C)."""
        return self.classifier(self.vae.units(x)).log_softmax(-1)

    def _where_known(self, y: Tensor, logits: Tensor) -> Categorical:
        """The label, certain where it is known."""
        known = ~y.isnan() if y.is_floating_point() else torch.ones_like(y, dtype=torch.bool)
        sure = self.vae.one_hot[y.nan_to_num().long()].log().clamp_min(-1e4)
        return Categorical(logits=torch.where(known[..., None], sure, logits))

    def _supervision(self, x: Tensor, y: Tensor) -> Tensor:
        """α log q(y | x) of the labels that are known: its gradient, and the value 0."""
        log_q = self.classify(x).gather(-1, y.nan_to_num().long()[..., None])[..., 0]
        log_q = torch.where(y.isnan(), 0.0, self.alpha * log_q)
        return log_q - log_q.detach()
