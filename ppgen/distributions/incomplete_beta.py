r"""Both logarithms of the regularised incomplete beta function, which tails of Student's t, Beta and counts are.

    I_x(a, b) = 1/B(a, b) ∫₀ˣ t^(a-1) (1 - t)^(b-1) dt = x^a / B(a, b) ∫₀^∞ exp(-a v) (1 - x exp(-v))^(b-1) dv

of the side on which x is at most the mean, where the integrand of v = log(x/t) falls from v = 0 on; the other side is
one less that. The integral is the trapezoidal sum in τ, v = s exp(π/2 sinh τ), s being where the integrand has fallen
by about 1/e: the relative error is 1e-9 of a, b above 0.1, far out too (5e-6 in float32, whose sum has fewer nodes and
is held in float32), and the sum has its gradient in a, b and x.

Source: Double exponential formulas for numerical integration (Takahasi & Mori 1974).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Of τ: the first, the last and how many, for relative errors of 1e-9, and of 2e-6 where numbers have no more digits.
_NODES = (-3.6, 2.8, 90)
_NODES32 = (-3.0, 2.4, 48)


def log_incomplete_beta(a: Tensor, b: Tensor, log_x: Tensor, log_y: Tensor) -> tuple[Tensor, Tensor]:
    """log I_x(a, b) and log I_y(b, a), which add up to 1 as x and y do; of any float dtype, computed in float64 but for
    the sum over nodes of those of fewer digits.

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
    far = _log_lower(
        p, q, torch.where(left, log_x, log_y), torch.where(left, log_y, log_x),
        torch.float64 if dtype == torch.float64 else torch.float32,
    ).clamp_max(-1e-300)  # fmt: skip
    near = torch.where(far < -1.0, torch.log1p(-torch.exp(far)), torch.log(-torch.expm1(far)))
    return torch.where(left, far, near).to(dtype), torch.where(left, near, far).to(dtype)


def _log_lower(a: Tensor, b: Tensor, log_x: Tensor, log_y: Tensor, dtype: torch.dtype) -> Tensor:
    """log I_x(a, b), x <= a / (a + b); the sum, which holds all nodes of each value, in `dtype`."""
    y = log_y.exp()
    odds = (log_x - log_y).exp()
    with torch.no_grad():
        scale = 1 / (a - (b - 1) * odds + ((b - 1).abs() * odds / y).sqrt())
    low, high, nodes = _NODES if dtype == torch.float64 else _NODES32
    tau = torch.linspace(low, high, nodes, dtype=a.dtype, device=a.device).reshape(-1, *[1] * a.dim())
    log_v = math.pi / 2 * tau.sinh()
    weight = log_v + (math.pi / 2 * tau.cosh()).log() + math.log((high - low) / (nodes - 1))
    rate, power, step = (a * scale).to(dtype), (b - 1).to(dtype), scale.to(dtype)
    v = log_v.exp().to(dtype)
    integrand = weight.to(dtype) - rate * v + power * torch.log1p(-odds.to(dtype) * torch.expm1(-step * v))
    log_sum = torch.logsumexp(integrand, 0).to(a) + scale.log()
    log_beta = torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
    return a * log_x + (b - 1) * log_y + log_sum - log_beta
