"""Counts given the logarithm η of their mean μ: Poisson, negative binomial, and that with more zeros.

poisson             variance μ
negative_binomial   variance μ + μ² / φ
zinb                the same, but 0 with probability sigmoid(g)
"""

from __future__ import annotations

from pyro.distributions import GammaPoisson, Poisson, TorchDistribution, ZeroInflatedDistribution
from torch import Tensor

__all__ = ["COUNTS", "counts"]

COUNTS = ("poisson", "negative_binomial", "zinb")
LARGEST = 20.0  # of η: e²⁰ is half a thousand million


def counts(eta: Tensor, log_phi: Tensor | None = None, gate: Tensor | None = None) -> TorchDistribution:
    """Poisson of the shape of η; with log φ negative binomial, with the logits g of a gate as well `zinb`."""
    mean = eta.clamp_max(LARGEST).exp()
    if log_phi is None:
        return Poisson(mean)
    phi = log_phi.exp()
    base = GammaPoisson(phi, rate=phi / mean)
    return base if gate is None else ZeroInflatedDistribution(base, gate_logits=gate)
