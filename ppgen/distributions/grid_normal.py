r"""Values on a grid of levels, seen through Gaussian noise: how likely each is, and what to expect."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ppgen.distributions import _LocScaleOnGrid


class GridNormal(_LocScaleOnGrid):
    """p(v_k) ∝ exp(−(v_k − loc)² / 2 scale²) over the levels v_k of a grid.

    By Bayes' rule, the probability of v given v + noise = loc when all levels are equally likely beforehand. With
    `window` = K the sum over levels runs over the 2 K + 1 that are nearest to loc, which is enough where
    scale <= K / 6 steps: the others have less than 1e-8 of the mass.

    Args:
        loc, scale: of the normal, in the units of the values; they broadcast.
        low, high, levels: the grid, see `ppgen.distributions`.
        window: K; None sums over all levels.

    References: Variational Diffusion Models (Kingma et al., 2021, arXiv:2107.00630), section 3.3.

    >>> d = GridNormal(torch.tensor(0.4), torch.tensor(0.05), levels=17)
    >>> float(d.log_prob(d.enumerate_support()).logsumexp(0).abs() < 1e-6)
    1.0
    """

    def __init__(
        self,
        loc: Tensor | float,
        scale: Tensor | float,
        low: float = 0.0,
        high: float = 1.0,
        levels: int = 256,
        window: int | None = None,
        validate_args: bool | None = None,
    ):
        self.window = None if window is None or 2 * window + 1 >= levels else window
        super().__init__(loc, scale, low, high, levels, validate_args)

    def _nearby(self) -> tuple[Tensor, Tensor]:
        """Levels that have any mass, (..., n), and their log-weights, −∞ beyond the ends of the grid."""
        top = self.grid.levels - 1
        like = {"dtype": self.loc.dtype, "device": self.loc.device}
        if self.window is None:
            k = torch.arange(top + 1, **like)  # type: ignore[call-overload]
            return k, self._log_weight(k)
        nearest = self.grid.position(self.loc.detach()).round().clamp(0, top)
        k = nearest[..., None] + torch.arange(-self.window, self.window + 1, **like)  # type: ignore[call-overload]
        return k, torch.where((k < 0) | (k > top), -torch.inf, self._log_weight(k))

    def _log_weight(self, k: Tensor) -> Tensor:
        return -0.5 * ((self.grid.value(k) - self.loc[..., None]) / self.scale[..., None]) ** 2

    def log_prob(self, value: Tensor) -> Tensor:
        """log p(value), in nats, of the broadcast shape of value and batch."""
        if self._validate_args:
            self._validate_sample(value)
        log_weight = -0.5 * ((value - self.loc) / self.scale) ** 2
        return log_weight - self._nearby()[1].logsumexp(-1)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            k, log_weight = self._nearby()
            p = log_weight.softmax(-1).expand(*shape, k.shape[-1])
            u = torch.rand(shape, dtype=p.dtype, device=p.device)
            index = (p.cumsum(-1) < u[..., None]).sum(-1).clamp(max=k.shape[-1] - 1)
            chosen = k.expand(p.shape).gather(-1, index[..., None])[..., 0]
            return self.grid.value(chosen.clamp(0, self.grid.levels - 1))

    @property
    def mean(self) -> Tensor:
        k, log_weight = self._nearby()
        return (log_weight.softmax(-1) * self.grid.value(k)).sum(-1)

    @property
    def variance(self) -> Tensor:
        k, log_weight = self._nearby()
        p = log_weight.softmax(-1)
        return (p * (self.grid.value(k) - self.mean[..., None]) ** 2).sum(-1)


def levels_numbers(levels: int, atoms: Sequence[int] = ()) -> int:
    """How many numbers a value `posterior_mean` takes."""
    return 1 if levels == 2 else 3 + (len(atoms) or 2)


def posterior_mean(out: Tensor, y: Tensor, variance: Tensor, levels: int, atoms: Sequence[int] = ()) -> Tensor:
    r"""E[x | y] of values x on a grid from -1 to 1, seen as y = x + noise, the prior being told by a network.

    The prior is Σ_j w_j δ(v_j) + w N(m, s²): some levels v_j, the atoms, have mass of their own, as the black and the
    whites of pixels do. By Bayes' rule the noisy value's evidence then does by itself what a network finds hard: as
    the noise falls the mean becomes one of the levels, to all digits. N(m, s²)'s part is on the levels as well, where
    the noise tells them.

    Args:
        out: the network's numbers, (..., n D), the first of each value first: the log-odds of 1 for 2 levels, else
            a logit an atom, one for N, m and log s.
        y: (..., D), in the units of the grid.
        variance: of the noise, (..., 1).
        atoms: numbers of levels, from 0; the two ends where none is given.

    Sources: after Continuous Diffusion for Categorical Data (Dieleman et al., 2022, arXiv:2211.15089), where the
    network gives probabilities of the values; the evidence is ours to add.
    """
    if levels == 2:
        return torch.tanh(out + y / variance)
    numbers = out.chunk(levels_numbers(levels, atoms), -1)
    grey, m, log_s = numbers[-3:]
    step = 2 / (levels - 1)
    points = [step * k - 1 for k in atoms or (0, levels - 1)]
    s2 = (2 * log_s.clamp(-6.0, 3.0)).exp()
    total = s2 + variance
    log_w = torch.stack([
        *(logit - (y - v) ** 2 / (2 * variance) for logit, v in zip(numbers, points, strict=False)),
        grey - (y - m) ** 2 / (2 * total) - 0.5 * (total / variance).log(),
    ])  # fmt: skip
    w = log_w.softmax(0)
    mean = _expected_level((m * variance + y * s2) / total, variance * s2 / total, step)
    return w[-1] * mean + sum(weight * v for weight, v in zip(w, points, strict=False))


def _expected_level(y: Tensor, variance: Tensor, step: float) -> Tensor:
    """The mean of N(y, variance) restricted to the levels: y itself where it is wider than a step."""
    nearest = ((y.detach() + 1) / step).round() * step - 1
    levels = nearest + step * torch.arange(-3, 4, dtype=y.dtype, device=y.device).reshape(-1, *(1,) * y.dim())
    weight = (-((y - levels) ** 2) / (2 * variance.clamp(max=step**2))).softmax(0)
    return torch.where(variance < step**2, (weight * levels).sum(0), y)
