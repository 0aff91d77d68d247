"""The deep Markov model of sequences of binary vectors, with a guide that reads the sequence from its end.

    z_t | z_{t-1} ~ N(m(z_{t-1}), diag(s(z_{t-1})²)),   x_t | z_t ~ Bernoulli(f(z_t))      z_t: (k,), x_t: (D,)
    m(z) = (1 − g) ∘ W z + g ∘ h,   g = σ(MLP(z)),  h = MLP(z),   s = softplus(W' relu(h))  the gated transition
    guide:  z_t | z_{t-1}, x_{t:T} ~ N(m_φ(c_t), diag(s_φ(c_t)²)),   c_t = (tanh(W'' z_{t-1}) + r_t) / 2

r_t is the state of a recurrent network that has read x_T, x_{T-1}, ..., x_t: p(z_t | z_{t-1}, x) depends on no more.

Source: Structured Inference Networks for Nonlinear State Space Models (Krishnan, Shalit, Sontag 2017,
arXiv:1609.09869).
"""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro.distributions import Bernoulli, TorchDistribution
from torch import Tensor, nn
from torch.nn.functional import softplus

import ppgen
from ppgen.distributions.markov import MarkovNormal
from ppgen.errors import PpgenError, lacking
from ppgen.nets import MLP


class _GatedTransition(nn.Module):
    """Location and scale of z_t given z_{t-1}: (..., k) -> two of (..., k). It begins as the identity."""

    def __init__(self, latent: int, hidden: int):
        super().__init__()
        self.gate, self.proposal = MLP(latent, latent, (hidden,)), MLP(latent, latent, (hidden,))
        self.linear, self.raw = nn.Linear(latent, latent), nn.Linear(latent, latent)
        nn.init.eye_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        gate, proposal = torch.sigmoid(self.gate(z)), self.proposal(z)
        return (1 - gate) * self.linear(z) + gate * proposal, softplus(self.raw(proposal.relu())) + 1e-4


class _Combiner(nn.Module):
    """Location and scale of the guide's z_t of z_{t-1}, (..., k), and the recurrent state r_t, (..., H)."""

    def __init__(self, latent: int, hidden: int):
        super().__init__()
        self.into, self.out = nn.Linear(latent, hidden), nn.Linear(hidden, 2 * latent)

    def forward(self, z: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
        loc, raw = self.out(0.5 * (torch.tanh(self.into(z)) + r)).chunk(2, -1)
        return loc, softplus(raw) + 1e-4


class DeepMarkov(ppgen.Program):
    """Binary sequences x: (N, T, D), of unequal lengths where a column says so.

    The columns beside x are `length`, (N,), of how many steps a sequence has (none: all T), and `seen`, (N, T) of 0 and
    1, where x_t is known: a step that is not seen has its latent, and no likelihood. What stands in x there, and
    after the end, counts for nothing (0 will do; nan will not).

    Args:
        features: D.
        duration: T of sequences that are generated.
        latent: k.
        transition, emission, recurrent: widths of the hidden layers of the gated transition and of the emission, and
            of the guide's recurrent network.
        dropout: of what the recurrent network gives, while training.

    Raises:
        PpgenError: an argument out of range; a column x that is no (N, T, D).
    """

    rows_a_step = 32
    dims = {"x": ["time", "feature"], "z": ["time", "latent"]}

    def __init__(
        self, features: int, duration: int, latent: int = 32, transition: int = 64, emission: int = 64,
        recurrent: int = 128, dropout: float = 0.0,
    ):  # fmt: skip
        super().__init__()
        if min(features, duration, latent, transition, emission, recurrent) < 1 or not 0 <= dropout < 1:
            raise PpgenError(
                f"DeepMarkov got features={features}, duration={duration}, latent={latent}, transition={transition}, "
                f"emission={emission}, recurrent={recurrent}, dropout={dropout}; expected sizes of at least 1 and a "
                "dropout of at least 0 and below 1"
            )
        self.duration, self.shapes = duration, {"x": (duration, features)}
        self.transition, self.emission = _GatedTransition(latent, transition), MLP(latent, features, (emission,) * 2)
        self.start = nn.Parameter(torch.zeros(latent))
        self.guide_start = nn.Parameter(torch.zeros(latent))
        self.recurrent = nn.GRU(features, recurrent, batch_first=True)
        self.combiner = _Combiner(latent, recurrent)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    @classmethod
    def from_data(cls, data: dict[str, Tensor]) -> dict[str, Any]:
        """The number of features and of steps.

        Raises:
            PpgenError: no column x of sequences.
        """
        if "x" not in data or data["x"].dim() != 3:
            needed = "DeepMarkov needs a column x of shape (sequences, steps, features)"
            raise lacking(needed, data, "name it with columns= (--columns x=...)")
        return {"features": data["x"].shape[-1], "duration": data["x"].shape[-2]}

    def model(self, x: Tensor | None = None, length: Tensor | None = None, seen: Tensor | None = None) -> Tensor:
        """p(x, z), z: (N, T, k)."""
        T = self.duration if x is None else x.shape[-2]
        runs = self._runs(length, T)
        with ppgen.rows(x, length, seen):
            step = lambda z, t: self.transition(z)  # noqa: E731
            z = pyro.sample("z", MarkovNormal(step, self.start, T, runs))
            return pyro.sample("x", self.emit(z, _both(runs, seen)), obs=x)

    def guide(self, x: Tensor, length: Tensor | None = None, seen: Tensor | None = None) -> None:
        """q(z | x) = Π_t q(z_t | z_{t-1}, x_{t:T})."""
        runs = self._runs(length, x.shape[-2])
        r = self.read_backwards(x, length, _both(runs, seen))
        with ppgen.rows(x):
            step = lambda z, t: self.combiner(z, r[..., t, :])  # noqa: E731
            pyro.sample("z", MarkovNormal(step, self.guide_start, x.shape[-2], runs, r.shape[:-2]))

    def emit(self, z: Tensor, seen: Tensor | None = None) -> TorchDistribution:
        """p(x | z): (..., T, k) -> a distribution of event shape (T, D); steps that are not seen count for nothing."""
        steps = Bernoulli(logits=self.emission(z)).to_event(1)
        return (steps if seen is None else steps.mask(seen > 0)).to_event(1)

    def read_backwards(self, x: Tensor, length: Tensor | None, seen: Tensor | None) -> Tensor:
        """r_t, what a recurrent network knows of x_T ... x_t: (N, T, D) -> (N, T, H)."""
        x = x.to(self.start.dtype)
        x = x if seen is None else x * seen.to(x.dtype)[..., None]
        T = x.shape[-2]
        last = torch.full_like(x[..., 0, 0], T) if length is None else length
        order = (last[..., None] - 1 - torch.arange(T, device=x.device)).remainder(T).long()[..., None]
        h, _ = self.recurrent(x.gather(-2, order.expand(x.shape)))
        return self.dropout(h.gather(-2, order.expand(h.shape)))

    def _runs(self, length: Tensor | None, T: int) -> Tensor | None:
        """(N, T) of 0 and 1: the steps before the end."""
        if length is None:
            return None
        return (torch.arange(T, device=length.device) < length[..., None]).to(self.start.dtype)


def _both(runs: Tensor | None, seen: Tensor | None) -> Tensor | None:
    return runs if seen is None else seen if runs is None else runs * seen.to(runs.dtype)
