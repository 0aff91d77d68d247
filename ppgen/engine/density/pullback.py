r"""The log joint in the coordinates of a map: chains move e, and their draws are T(e).

    log p(x, z(u)) + log |det ∂z/∂u| + log |det ∂u/∂e|,   u = T(e)

Where e ~ N(0, I) makes u = T(e) nearly draws of the posterior, as a trained guide does, this is nearly a standard
normal, whatever the posterior's shape. It is the posterior's density for every invertible T: a poor one costs steps,
and leaves the draws right.

Source: NeuTra-lizing Bad Geometry in Hamiltonian Monte Carlo Using Neural Transport (Hoffman et al. 2019,
arXiv:1903.03704).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ppgen.engine.density.joint import LogJoint
from ppgen.engine.density.leapfrog import leapfrog_step
from ppgen.errors import PpgenError

Push = Callable[[Tensor], tuple[Tensor, Tensor]]


class Pullback:
    """The density of e and its gradient, with what kernels take of a `LogJoint`.

    Attributes:
        whole: the log joint of u.
        dim, labels, latents, blocks, program: of it.
    """

    def __init__(self, whole: LogJoint, push: Push):
        """
        Args:
            push: one vector (dim,) to u, (dim,), in the order of `whole`, and log |det ∂u/∂e|, ().
        """
        self.whole, self.push, self.program = whole, push, whole.program
        self.dim, self.labels, self.latents, self.blocks = whole.dim, whole.labels, whole.latents, whole.blocks
        self._graphs: dict[tuple, Callable[..., Any]] = {}

    def one(self, e: Tensor) -> Tensor:
        """Of one vector."""
        u, ladj = self.push(e)
        return self.whole.one(u) + ladj

    def forward(self, e: Tensor) -> tuple[Tensor, Tensor]:
        """(n, dim) -> u, (n, dim), and log |det ∂u/∂e|, (n,)."""
        return torch.func.vmap(self._with_ladj)(e)

    def value_and_grad(self, e: Tensor) -> tuple[Tensor, Tensor]:
        """(..., dim) -> (...) in nats and (..., dim)."""
        flat = e.detach().reshape(-1, self.dim).contiguous()
        gradient, value = self._call("grad", lambda both: both, [flat])
        return value.reshape(e.shape[:-1]), gradient.reshape(e.shape)

    def leapfrog(self, y: Tensor, p: Tensor, g: Tensor, step: Tensor, centre: Tensor, root: Tensor) -> list[Tensor]:
        """As `LogJoint.leapfrog`."""

        def stepped(both):
            return lambda *inputs: leapfrog_step(both, *inputs)

        return list(self._call("leapfrog", stepped, [y, p, g, step, centre, root]))

    def _call(self, name: str, made: Callable[..., Any], inputs: list[Tensor]) -> Any:
        """A function of `both`, e -> gradient and value: one graph, or in two parts where the joint has none."""
        inputs = [x.contiguous() for x in inputs]
        if self.whole.engine == "eager":
            return made(self._in_parts)(*inputs)
        key = (name, inputs[0].shape, inputs[0].dtype, inputs[-1].dim())
        if key not in self._graphs:
            both = torch.func.vmap(torch.func.grad_and_value(self.one), randomness="different")
            try:
                self._graphs[key] = self.whole.build(made(both), [x.clone() for x in inputs])
            except PpgenError:  # an operation that cannot be batched
                self._graphs[key] = made(self._in_parts)
        return self._graphs[key](*inputs)

    def _with_ladj(self, e: Tensor) -> tuple[Tensor, Tensor]:
        u, ladj = self.push(e)
        return u, ladj + 0 * e[0]  # of each vector, where it is the same of all

    def _in_parts(self, e: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient and value, the joint's own wherever it gets them from."""
        (u, ladj), pulled = torch.func.vjp(self.forward, e)[:2]
        value, gradient = self.whole.value_and_grad(u)
        return pulled((gradient, torch.ones_like(ladj)))[0], value + ladj
