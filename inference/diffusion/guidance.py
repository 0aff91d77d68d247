r"""Guidance: draws from a diffusion model times a weight, by the gradient of the weight's logarithm.

    ∇ log p(z_t) w(z_t, t) = ∇ log p(z_t) + ∇ log w,      so that    x̂ → x̂ + σ_t² / α_t ∇_{z_t} log w(z_t, t)

If w(z_t, t) = E[w(x) | z_t], as p(y | z_t) of a classifier of noisy states is, the draws are those of p(x) w(x). A loss
of x̂(z_t) in its place (`weight` as a function of x̂ alone) is an approximation that is good where the noise is small.
`linear_weight` has p(y | z_t) of y = A x + noise under x | z_t ~ N(x̂, r² I), 1 / r² = 1 / s² + e^−γ, in the units of
the chain: exact where the data are a normal of variance s² I in these (s = 1, and 0.5 of an `EDM`), an approximation
elsewhere.

A loss of x̂ alone that is steep is no approximation where the noise is large: its slope there moves x̂ by many standard
deviations of the data, and draws end anywhere, or diverge. Where that was so, it is said.

Sources: Diffusion Models Beat GANs on Image Synthesis (Dhariwal & Nichol, 2021, arXiv:2105.05233), classifiers;
Diffusion Posterior Sampling (Chung et al., 2023, arXiv:2209.14687), losses of x̂; Pseudoinverse-Guided Diffusion Models
for Inverse Problems (Song et al., 2023, OpenReview 9_gsMA8MRKQ), the linear weight.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import MultivariateNormal

from ppgen.chains.gaussian_chain import GaussianChain
from ppgen.errors import PpgenError

log = logging.getLogger("ppgen")
FAR = 10.0  # standard deviations of the data, by which no weight should move the mean of x
Weight = Callable[[Tensor, Tensor, float], Tensor]


class Guided(GaussianChain):
    """A Gaussian chain whose draws are weighed: it is drawn from (`sample_diffusion`), not fitted.

    Args:
        program: the chain.
        weight: (x̂, z, t) -> log w of each row, nats, (rows,), with a gradient: x̂ as the column x, (rows, D), the state
            z, and the time.

    Raises:
        PpgenError: a weight that is not one number a row, or depends on neither x̂ nor z; a chain whose x̂ is no
            E[x | z_t].
    """

    sampled_only = True
    moved = 0.0  # the furthest that x̂ was moved since the last draws ended, in standard deviations of the data

    def __init__(self, program: GaussianChain, weight: Weight):
        super().__init__()
        if not program.draws_by_steps:
            raise PpgenError(
                f"guidance needs a chain whose x̂ is E[x | z_t], and that of {program.name} as set is not; take one "
                "that is neither distilled nor trained on coupled noise"
            )
        if isinstance(program, Guided):  # whose x̂ has no gradient
            raise PpgenError(
                "the chain is guided already; guide the chain that it was made of by the sum of both log w"
            )
        self.program, self.weight_of = program, weight
        self.schedule, self.process, self.variance = program.schedule, program.process, program.variance
        self.steps, self.limit, self.zero = program.steps, program.limit, program.zero
        self.data_scale = program.data_scale
        self.sampler, self.samplers, self.categories = program.sampler, program.samplers, program.categories
        self.shapes, self.__dict__["model"] = program.shapes, program.model  # whose arguments are the columns
        self.train(program.training)

    def predict(self, z: Tensor, t: Tensor | float, **columns: Tensor) -> tuple[Tensor, Tensor | None]:
        """x̂ plus σ² / α times the gradient of log w."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            x, raw = self.program.predict(z, t, **columns)
            log_w = self.weight_of(self.program.decode(x), z, float(t))
            if log_w.shape != z.shape[:-1] or not log_w.requires_grad:
                raise PpgenError(
                    f"the weight of guidance gave a tensor of shape {tuple(log_w.shape)}; expected log w for each row, "
                    f"{tuple(z.shape[:-1])}, computed from x̂ or z by operations that have a gradient"
                )
            (slope,) = torch.autograd.grad(log_w.sum(), z)
        _, alpha, sigma = self.coefficients(t)
        by = sigma**2 / alpha * slope
        furthest = float(by.abs().max()) / self.data_scale
        self.moved = max(self.moved, math.inf if math.isnan(furthest) else furthest)
        return (x + by).detach(), raw

    def base(self, **columns: Tensor) -> TorchDistribution:
        return self.program.base(**columns)

    def forward(self, x: Tensor, t: Tensor | float, **columns: Tensor) -> TorchDistribution:
        return self.program.forward(x, t, **columns)

    def values(self, x: Tensor) -> Tensor:
        return self.program.values(x)

    def encode(self, x: Tensor) -> Tensor:
        return self.program.encode(x)

    def decode(self, x: Tensor) -> Tensor:
        return self.program.decode(x)

    def context(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.program.context(data)

    def likelihood(self, z: Tensor, **columns: Tensor) -> TorchDistribution:
        """p(x | z_0) of the chain: at its noise the weight makes no difference."""
        if self.moved > FAR:
            log.warning(
                "the weight of guidance moved x̂ by up to %.2g standard deviations of the data, so that it is too steep "
                "for an approximation, and draws may be anywhere; take a weaker one, or one that knows the noise, as "
                "linear_weight does", self.moved,
            )  # fmt: skip
        self.moved = 0.0
        return self.program.likelihood(z, **columns)

    def left(self, t: Tensor | float) -> Tensor:
        return self.program.left(t)


def linear_weight(program: GaussianChain, matrix: Tensor, y: Tensor, noise: float) -> Weight:
    """log p(y | z_t) of y = A x + N(0, noise² I).

    Args:
        program: the chain of x.
        matrix: A, (M, D).
        y: what was observed, (M,), in the units of A x.
        noise: its standard deviation.

    Raises:
        PpgenError: shapes that do not fit; a noise that is not positive.
    """
    size = len(program.zero)
    if matrix.shape[-1] != size or y.shape != matrix.shape[:1] or not noise > 0:
        raise PpgenError(
            f"a linear observation of {size} values got a matrix of shape {tuple(matrix.shape)}, y of shape "
            f"{tuple(y.shape)} and noise={noise}; expected (M, {size}), (M,) and a positive noise"
        )
    matrix, y = matrix.to(program.zero.dtype), y.to(program.zero.dtype)
    unit = program.decode(torch.ones_like(program.zero)) - program.decode(torch.zeros_like(program.zero))

    def weight(x: Tensor, z: Tensor, t: float) -> Tensor:
        scaled = matrix * unit * program.left(t).sqrt()
        covariance = scaled @ scaled.T + noise**2 * torch.eye(len(y)).to(matrix)
        return MultivariateNormal(x @ matrix.T, covariance).log_prob(y)

    return weight
