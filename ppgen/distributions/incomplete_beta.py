r"""Both logarithms of the regularised incomplete beta function, which tails of Student's t, Beta and counts are.

    I_x(a, b) = 1/B(a, b) ∫₀ˣ t^(a-1) (1 - t)^(b-1) dt = x^a / B(a, b) ∫₀^∞ exp(-a v) (1 - x exp(-v))^(b-1) dv

of the side on which x is at most the mean, where the integrand of v = log(x/t) falls from v = 0 on; the other side is
one less that. The integral is the trapezoidal sum in τ, v = s exp(π/2 sinh τ), s being where the integrand has fallen
by about 1/e: the relative error is 1e-9 of a, b above 0.1, far out too, and the sum has its gradient in a, b and x.

Source: Double exponential formulas for numerical integration (Takahasi & Mori 1974).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_LOW, _HIGH, _NODES = -3.6, 2.8, 90  # of τ


def log_incomplete_beta(a: Tensor, b: Tensor, log_x: Tensor, log_y: Tensor) -> tuple[Tensor, Tensor]:
    """log I_x(a, b) and log I_y(b, a), which add up to 1 as x and y do; of any float dtype, computed in float64.

    Args:
        a, b: above 0; broadcast.
        log_x, log_y: below 0.

    >>> x = torch.tensor(0.25)
    >>> log_incomplete_beta(torch.tensor(2.0), torch.tensor(1.0), x.log(), (1 - x).log())[0].exp()  # x²
    tensor(0.0625)
    """
    dtype = torch.result_type(log_x, a)
    a, b, log_x, log_y = torch.broadcast_tensors(*(torch.as_tensor(v).double() for v in (a, b, log_x, log_y)))
    left = log_x - log_y <= a.log() - b.log()
    p, q = torch.where(left, a, b), torch.where(left, b, a)
    far = _log_lower(p, q, torch.where(left, log_x, log_y), torch.where(left, log_y, log_x)).clamp_max(-1e-300)
    near = torch.where(far < -1.0, torch.log1p(-torch.exp(far)), torch.log(-torch.expm1(far)))
    return torch.where(left, far, near).to(dtype), torch.where(left, near, far).to(dtype)


def _log_lower(a: Tensor, b: Tensor, log_x: Tensor, log_y: Tensor) -> Tensor:
    """log I_x(a, b), x <= a / (a + b)."""
    x, y = log_x.exp(), log_y.exp()
    with torch.no_grad():
        odds = x / y
        scale = 1 / (a - (b - 1) * odds + ((b - 1).abs() * odds / y).sqrt())
    tau = torch.linspace(_LOW, _HIGH, _NODES, dtype=a.dtype, device=a.device).reshape(-1, *[1] * a.dim())
    log_v = math.pi / 2 * tau.sinh()
    v = scale * log_v.exp()
    weight = log_v + (math.pi / 2 * tau.cosh()).log() + scale.log() + math.log((_HIGH - _LOW) / (_NODES - 1))
    integrand = -a * v + (b - 1) * torch.log(y - x * torch.expm1(-v))
    log_beta = torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
    return a * log_x - log_beta + torch.logsumexp(integrand + weight, 0)
