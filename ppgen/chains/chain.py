r"""Programs that are a chain of latents, z_1 → ... → z_0 → x: what a diffusion model is, whatever its process.

Four conditionals say all there is, with times 1 = t_T > ... > t_0 = 0:

    forward     q(z_t | x)              posterior   q(z_s | z_t, x),  s < t
    reverse     p_θ(z_s | z_t)          likelihood  p_θ(x | z_0)      and the base p(z_1)

`model` and `guide` write the whole chain out, sites z_T, ..., z_0 and x; its ELBO,

    −KL(q(z_1 | x), p(z_1)) − Σ_i E KL(q(z_s | z_t, x), p_θ(z_s | z_t)) + E log p_θ(x | z_0),

is a sum over i, and one i drawn at random and weighed by T is an unbiased estimate: what `objective="subsampled"`
trains by (`ppgen.chains.chain_terms`). Sources: Deep Unsupervised Learning using Nonequilibrium Thermodynamics
(Sohl-Dickstein et al., 2015, arXiv:1503.03585); Variational Diffusion Models (Kingma et al., 2021, arXiv:2107.00630).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints, kl_divergence

from ppgen.chains.chain_terms import subsampled_terms
from ppgen.errors import PpgenError
from ppgen.program import Program
from ppgen.terms import Term

SHORT = 2  # steps of the chain that checks are run on
LONG = 8  # steps above which they are


class Chain(Program):
    """A program whose latents are a chain of T + 1 states of one shape. Abstract: a subclass gives the conditionals,
    and the pair that they make.

    Each conditional has event shape (D,), takes states of shape (..., D), and times that are numbers or tensors of
    shape (...). Columns of the model other than x (a label) are passed by name to all but `posterior`.

    Attributes:
        support: of a row of x, where a program that this one is a part of should know; None: real.
        steps: T of the explicit chain.
        limit: whether training takes T → ∞; the subclass then has a `rate`.
        history: a buffer of running means of squared costs, by time, where times are to be drawn by it (optional).
        weighting: "elbo", or the name of a reweighting: what is trained on is then **not** a bound.
        sampled_only: whether samplers draw from it otherwise than its explicit chain does, by no known density.
    """

    support: constraints.Constraint | None = None
    steps: int = 1000
    limit: bool = False
    weighting: str = "elbo"
    sampled_only: bool = False
    zero: Tensor

    def time(self, t: Tensor | float) -> Tensor:
        """A time as a tensor, of the dtype and on the device of `zero`, a buffer of 0 in each entry of a state."""
        return torch.as_tensor(t, dtype=self.zero.dtype, device=self.zero.device)

    # -- the conditionals ----------------------------------------------------------------------------

    def base(self, **columns: Tensor) -> TorchDistribution:
        """p(z_1)."""
        raise NotImplementedError

    def forward(self, x: Tensor, t: Tensor | float, **columns: Tensor) -> TorchDistribution:
        """q(z_t | x)."""
        raise NotImplementedError

    def posterior(self, z: Tensor, x: Tensor, s: Tensor | float, t: Tensor | float) -> TorchDistribution:
        """q(z_s | z_t, x) at z_t = z, s < t."""
        raise NotImplementedError

    def reverse(self, z: Tensor, s: Tensor | float, t: Tensor | float, **columns: Tensor) -> TorchDistribution:
        """p_θ(z_s | z_t) at z_t = z, s < t."""
        raise NotImplementedError

    def likelihood(self, z: Tensor, **columns: Tensor) -> TorchDistribution:
        """p_θ(x | z_0) at z_0 = z."""
        raise NotImplementedError

    # -- what follows, and what a subclass may give in closed form --------------------------------------

    def values(self, x: Tensor) -> Tensor:
        """The column x as the likelihood takes it: (..., D) floats."""
        return x

    def prior(self, x: Tensor, **columns: Tensor) -> Tensor:
        """KL(q(z_1 | x), p(z_1)) in nats, one a row."""
        q = self.forward(x, 1.0, **columns)
        return kl_divergence(q, self.base(**columns).expand(q.batch_shape))

    def cost(self, x: Tensor, z: Tensor, s: Tensor, t: Tensor, **columns: Tensor) -> Tensor:
        """KL(q(z_s | z_t, x), p_θ(z_s | z_t)) in nats, (...)."""
        return kl_divergence(self.posterior(z, x, s, t), self.reverse(z, s, t, **columns))

    def rate(self, x: Tensor, z: Tensor, t: Tensor, **columns: Tensor) -> Tensor:
        """lim KL / (t − s) as s → t, in nats a unit of time, (...): what `limit` needs."""
        raise NotImplementedError(f"{self.name} has no rate(), so no limit of infinitely many steps")

    def weight(self, s: Tensor, t: Tensor) -> Tensor:
        """What `weighting` multiplies the KL of the step from t to s by, (...); s = t in the limit."""
        return torch.ones_like(t)

    def variance_only(self) -> AbstractContextManager[list[Tensor]]:
        """Lists the tensors made meanwhile, in the shape of the times, that change the variance of `rate` alone."""
        return nullcontext([])

    def hide(self, columns: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        """The columns as training on x sees them, a label left out here and there."""
        return columns

    def coupled(self, x: Tensor, t: Tensor, **columns: Tensor) -> Tensor | None:
        """States z_t to train at that are not draws of q(z_t | x), as their noise depends on x; None: such draws."""
        return None

    def grid(self, steps: int | None = None) -> list[tuple[float, float]]:
        """The T steps (s, t) from t = 1 down to s = 0."""
        n = steps or self.steps
        return [(i / n, (i + 1) / n) for i in reversed(range(n))]

    def context(self, data: dict[str, Tensor]) -> dict[str, Tensor]:
        """The columns beside x that the model takes."""
        return {k: v for k, v in data.items() if k != "x" and k in self.columns}

    # -- as a program -------------------------------------------------------------------------------------

    is_chain = True

    @property
    def draws_by_steps(self) -> bool:
        """Whether the steps of its explicit chain draw what it was trained to draw."""
        return True

    def call(self, part: str, data: Mapping[str, Any]) -> Any:
        self.require_density()
        return super().call(part, data)

    def require_density(self) -> None:
        """
        Raises:
            PpgenError: its draws are not those of its explicit chain, whose density would be that of other draws.
        """
        if self.sampled_only:
            raise PpgenError(
                f"{self.name} as made here is drawn from by sample_diffusion alone, and there is no log p(x) of its "
                "draws; take the chain that it was made of"
            )

    def subsampled_terms(self, data: dict[str, Tensor], draws: int) -> list[Term]:
        return subsampled_terms(self, data, draws)

    @property
    def repeats(self) -> bool:
        return int(self.__dict__.get("_whole", self.steps)) > LONG

    @contextmanager
    def in_brief(self) -> Iterator[None]:
        """Within it, the chain has two steps: its steps are alike, and so is what may be wrong."""
        if not self.repeats or "_whole" in self.__dict__:
            yield
            return
        self.__dict__ |= {"_whole": self.steps, "steps": SHORT}
        try:
            yield
        finally:
            self.__dict__["steps"] = self.__dict__.pop("_whole")


def require_few_states(program: Program) -> None:
    """
    Raises:
        PpgenError: a long chain: its guide has nothing to learn, and its states are nothing to summarise.
    """
    if program.repeats:
        steps: Any = program.steps
        raise PpgenError(
            f"the guide of {program.name} has nothing to learn, and its {steps + 1} states are no posterior to "
            "summarise; look at the terms of its bound (ppgen plot), or weigh whole paths "
            "(ppgen.inference.diffusion.path_weights)"
        )


def flat_rows(x: Tensor, shape: torch.Size, zero: Tensor, name: str) -> Tensor:
    """(..., *shape), or flat already -> (..., D) in the dtype of `zero`, (D,).

    Raises:
        PpgenError: rows of another size than those of the model, which has that name.
    """
    flat = x.flatten(-len(shape)) if x.shape[-len(shape) :] == shape else x
    if flat.shape[-1] != len(zero):
        raise PpgenError(
            f"{name}(features={tuple(shape)}) has rows of {len(zero)} values, and x is of shape {tuple(x.shape)}; "
            "fit a model to these data, or name the column with columns= (--columns x=...)"
        )
    return flat.to(zero.dtype)
