r"""How far the steps of a sampler leave the variance of normal data from what it is: exactly, without draws.

Of x ~ N(0, s²) the network to be learned is x̂ = α s² z / (α² s² + σ²), and what a sampler draws is linear in z_1 and in
the noise that it adds. Each of these is given to a row of its own, of one state that the sampler is run on, so that the
squares of the rows sum to the variance of z_0; it should be α_0² s² + σ_0².
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ppgen.chains.gaussian_chain import GaussianChain


class _Normals(GaussianChain):
    """The chain of a normal value of the standard deviation `data_scale`, the network being exact."""

    def __init__(self, program: GaussianChain):
        super().__init__()
        self.schedule, self.process, self.variance = program.schedule, program.process, "posterior"
        self.steps, self.limit, self.data_scale = program.steps, program.limit, program.data_scale
        self.register_buffer("zero", program.zero[:1])

    def predict(self, z: Tensor, t: Tensor | float, **columns: Tensor) -> tuple[Tensor, None]:
        _, alpha, sigma = self.coefficients(t)
        return alpha * z / (alpha**2 + (sigma / self.data_scale) ** 2), None


class _Apart(TorchFunctionMode):
    """Noise that is drawn is one, in the next row, and zero in all others."""

    def __init__(self) -> None:
        super().__init__()
        self.row = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.normal:
            return args[0] + args[1] * self._unit(args[0])
        return self._unit(args[0]) if func is torch.randn_like else func(*args, **(kwargs or {}))

    def _unit(self, z: Tensor) -> Tensor:
        self.row += 1
        return (torch.arange(len(z), device=z.device) == self.row)[:, None].to(z).expand_as(z)


@torch.no_grad()
def variance_error(program: GaussianChain, sampler: Callable[..., Tensor], steps: int, **how: Any) -> float:
    """The share by which the variance of z_0 is too large, or below 0 too small.

    Args:
        sampler: one that adds noise at most once a step.
        how: its options.
    """
    known = _Normals(program)
    _, alpha, sigma = known.coefficients(1.0)
    z = torch.zeros(steps + 1, 1).to(program.zero)
    z[0] = (alpha**2 + sigma**2).sqrt()
    with _Apart():
        z = sampler(known, steps, z, **how)
    _, alpha, sigma = known.coefficients(0.0)
    return float((z**2).sum() / (alpha**2 * program.data_scale**2 + sigma**2)) - 1
