r"""Noise schedules: how fast a chain forgets the data, as γ(t) = −log SNR(t) = log σ_t² / α_t², t in [0, 1].

    linear      ∫β = β₀ u + (β₁ − β₀) u² / 2,  γ = log(e^∫β − 1)        DDPM (Ho et al., 2020, arXiv:2006.11239)
    cosine      γ = 2 log tan(π u / 2)                                   Nichol & Dhariwal (2021, arXiv:2102.09672)
    sigmoid     γ = log sinh(w u / 2) / sinh(w (1 − u) / 2),  w = 6      Jabri et al. (2022, arXiv:2212.11972)
    edm         γ = 2 ρ log(a + u (b − a)),  ρ = 7                       Karras et al. (2022, arXiv:2206.00364)
    loglinear   γ linear in u                                            the variance-exploding SDE's
    ot          γ = 2 log u / (1 − u)                                    flow matching's straight paths
    learned     a monotone network                  Variational Diffusion Models (Kingma et al., 2021, arXiv:2107.00630)

A curve is cut where it reaches γ_low and γ_high, u = u₀ + t (u₁ − u₀), so that γ(0) = γ_low and γ(1) = γ_high for each:
nothing is infinite at the ends, and the ends can be compared between schedules.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ppgen.errors import PpgenError, require_known

__all__ = ["SCHEDULES", "Schedule", "make_schedule"]

BETA = (0.1, 20.0)  # of `linear`
WIDTH = 6.0  # w of `sigmoid`: from -3 to 3, temperature 1
RHO = 7.0  # of `edm`


class Schedule(nn.Module):
    """γ(t), increasing, and its derivative. Either `_FixedSchedule` or `_LearnedSchedule`.

    Attributes:
        low, high: γ(0) and γ(1): numbers, or parameters where they are learned.
    """

    low: Tensor
    high: Tensor

    def forward(self, t: Tensor) -> Tensor:
        """γ(t), in the shape of t."""
        return self.with_rate(t)[0]

    def with_rate(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """γ(t) and dγ/dt, both in the shape of t."""
        raise NotImplementedError

    @contextmanager
    def shapes(self) -> Iterator[list[Tensor]]:
        """Lists the values between the ends that a learned shape gives meanwhile, in the shape of the times.

        The shape may then be given another objective than all other parameters. A fixed schedule has none.
        """
        yield []


class _Curve(NamedTuple):
    """γ = value(u), dγ/du = rate(u), u = inverse(γ); for tensors, and the inverse for numbers."""

    value: Callable[[Tensor], Tensor]
    rate: Callable[[Tensor], Tensor]
    inverse: Callable[[float], float]


def _linear() -> _Curve:
    b0, b1 = BETA

    def integral(u: Tensor) -> Tensor:
        return b0 * u + (b1 - b0) * u**2 / 2

    def inverse(gamma: float) -> float:
        b = _softplus(gamma)
        return 2 * b / (b0 + math.sqrt(b0**2 + 2 * (b1 - b0) * b))

    return _Curve(
        lambda u: integral(u) + torch.log(-torch.expm1(-integral(u))),
        lambda u: (b0 + (b1 - b0) * u) / -torch.expm1(-integral(u)),
        inverse,
    )


def _cosine() -> _Curve:
    return _Curve(
        lambda u: 2 * torch.log(torch.tan(math.pi / 2 * u)),
        lambda u: 2 * math.pi / torch.sin(math.pi * u),
        lambda gamma: 2 / math.pi * math.atan(math.exp(gamma / 2)),
    )


def _sigmoid() -> _Curve:
    half = WIDTH / 2

    def inverse(gamma: float) -> float:
        # sinh a = k sinh(c - a), with a = c u: e^2a = (1 + k e^c) / (1 + k e^-c)
        k = math.exp(gamma)
        return math.log((1 + k * math.exp(half)) / (1 + k * math.exp(-half))) / (2 * half)

    return _Curve(
        lambda u: torch.log(torch.sinh(half * u)) - torch.log(torch.sinh(half * (1 - u))),
        lambda u: half * (1 / torch.tanh(half * u) + 1 / torch.tanh(half * (1 - u))),
        inverse,
    )


def _edm(low: float, high: float) -> _Curve:
    a, b = math.exp(low / (2 * RHO)), math.exp(high / (2 * RHO))
    return _Curve(
        lambda u: 2 * RHO * torch.log(a + u * (b - a)),
        lambda u: 2 * RHO * (b - a) / (a + u * (b - a)),
        lambda gamma: (math.exp(gamma / (2 * RHO)) - a) / (b - a),
    )


def _loglinear() -> _Curve:
    return _Curve(lambda u: u, torch.ones_like, lambda gamma: gamma)


def _ot() -> _Curve:
    return _Curve(
        lambda u: 2 * (torch.log(u) - torch.log1p(-u)),
        lambda u: 2 / (u * (1 - u)),
        lambda gamma: 1 / (1 + math.exp(-gamma / 2)),
    )


_CURVES: dict[str, Callable[[], _Curve]] = {
    "linear": _linear,
    "cosine": _cosine,
    "sigmoid": _sigmoid,
    "loglinear": _loglinear,
    "ot": _ot,
}
SCHEDULES = (*_CURVES, "edm", "learned")


class _FixedSchedule(Schedule):
    """A named curve between two ends; see the file.

    Args:
        name: linear, cosine, sigmoid, edm, loglinear or ot.
        low, high: γ(0) < γ(1).

    >>> gamma = _FixedSchedule("cosine", -10.0, 10.0)
    >>> gamma(torch.tensor([0.0, 0.5, 1.0])).round(decimals=3).abs()
    tensor([10.,  0., 10.])
    """

    def __init__(self, name: str, low: float = -13.3, high: float = 5.0):
        super().__init__()
        self.curve = _edm(low, high) if name == "edm" else _CURVES[name]()
        self.start, self.end = self.curve.inverse(low), self.curve.inverse(high)
        self.register_buffer("low", torch.tensor(float(low)), persistent=False)
        self.register_buffer("high", torch.tensor(float(high)), persistent=False)

    def with_rate(self, t: Tensor) -> tuple[Tensor, Tensor]:
        u = self.start + t * (self.end - self.start)
        return self.curve.value(u), self.curve.rate(u) * (self.end - self.start)


class _LearnedSchedule(Schedule):
    r"""γ(t) = γ_low + (γ_high − γ_low) g(t),  g(t) = (h(t) − h(0)) / (h(1) − h(0)),  all of it learned.

    h(t) = a t + Σ_j w_j sigmoid(b_j (t + c_j)) with a, w_j, b_j > 0 is increasing. At first γ is close to linear.

    Args:
        low, high: where the ends start.
        width: J.
    """

    def __init__(self, low: float = -13.3, high: float = 5.0, width: int = 16):
        super().__init__()
        self.low = nn.Parameter(torch.tensor(float(low)))
        self.high = nn.Parameter(torch.tensor(float(high)))
        self.slope = nn.Parameter(torch.tensor(0.5413))  # softplus(0.5413) = 1
        self.weight = nn.Parameter(torch.full((width,), math.log(math.expm1(0.1 / width))))
        self.steepness = nn.Parameter(torch.full((width,), 10.0))
        self.centre = nn.Parameter(-torch.linspace(0, 1, width))
        self._shapes: list[Tensor] | None = None  # where they are listed

    def with_rate(self, t: Tensor) -> tuple[Tensor, Tensor]:
        g, rate = self._shape(t)
        if self._shapes is not None and g.requires_grad:
            self._shapes += [g, rate]
        return self.low + (self.high - self.low) * g, (self.high - self.low) * rate

    @contextmanager
    def shapes(self) -> Iterator[list[Tensor]]:
        shapes: list[Tensor] = []
        self.__dict__["_shapes"] = shapes
        try:
            yield shapes
        finally:
            self.__dict__["_shapes"] = None

    def _shape(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """g(t) and g'(t)."""
        a, w, b = softplus(self.slope), softplus(self.weight), softplus(self.steepness)

        def h(t: Tensor) -> tuple[Tensor, Tensor]:
            s = torch.sigmoid(b * (t[..., None] + self.centre))
            return a * t + (w * s).sum(-1), a + (w * b * s * (1 - s)).sum(-1)

        (start, _), (end, _) = h(torch.zeros_like(a)), h(torch.ones_like(a))
        value, rate = h(t)
        return (value - start) / (end - start), rate / (end - start)


def make_schedule(name: str, low: float, high: float) -> Schedule:
    """The schedule of that name.

    Raises:
        PpgenError: there is none; ends that do not increase, or that no float can tell from 0 or 1.
    """
    require_known("schedule", name, SCHEDULES)
    if not -60 <= low < high <= 60:
        raise PpgenError(
            f"the ends of the log-SNR are low={low}, high={high}; expected -60 <= low < high <= 60, as in -13.3 and 5"
        )
    return _LearnedSchedule(low, high) if name == "learned" else _FixedSchedule(name, low, high)


def _softplus(x: float) -> float:
    return x + math.log1p(math.exp(-x)) if x > 0 else math.log1p(math.exp(x))
