r"""Latents that are integrated out by Laplace's method, inside of the log joint of the others.

    L(φ) = f(φ, θ̂) − ½ log det(−H) + k/2 log 2π,   θ̂ = argmax_θ f(φ, θ),   H = ∂²f/∂θ² at θ̂

f is the log joint on the unconstrained scale, θ the k entries that are integrated out, φ the rest. θ̂ is found by damped
Newton steps from where it was last, by a graph that is called until nothing moves; its derivative is implicit: that of
one more Newton step in which H is held. H is found column by column, as many columns at once as have no row in common:
one product for latents that are independent given φ, and its blocks are solved and factored apart.

Given φ, θ is drawn from N(θ̂, −H⁻¹). How good that is, weights say: f(φ, θ) against log N(θ) + L(φ).

Sources: Approximate Bayesian inference for latent Gaussian models by using integrated nested Laplace approximations
(Rue, Martino, Chopin 2009); Hamiltonian Monte Carlo using an adjoint-differentiated Laplace approximation (Margossian,
Vehtari, Simpson, Agrawal 2020, arXiv:2004.12550); What color is your Jacobian? (Gebremedhin, Manne, Pothen 2005).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ppgen.engine.joint import LogJoint, leapfrog_step
from ppgen.errors import PpgenError

ROUNDS = 60  # of Newton, at most
STILL = 1e-8  # a step, relative to 1 + |θ|, that is none
SHORTER = (1.0, 0.5, 0.2, 0.04)  # shares of a Newton step that are tried
MOST = 500  # entries of a block
HUGE = 1e100  # beyond it a curvature is none


class LaplaceMarginal:
    """L(φ) and its gradient, with what kernels take of a `LogJoint`, over φ.

    Attributes:
        whole: the log joint of φ and θ.
        dim, labels, latents, program: of φ.
        inner: the names of the latents in θ.
        proper: false, the prior of φ alone is not looked at.
    """

    proper = False

    def __init__(self, whole: LogJoint, inner: Sequence[str]):
        """
        Raises:
            PpgenError: a name that is no continuous latent; no other latent; blocks of more than `MOST` entries.
        """
        for name in inner:
            if name not in whole.latents:
                raise PpgenError(
                    f"marginal names {name!r}, which is no continuous latent of {whole.program.name}; name some of "
                    f"{', '.join(whole.latents)}"
                )
        self.whole, self.inner, self.program = whole, tuple(inner), whole.program
        self.latents = tuple(n for n in whole.latents if n not in inner)
        if not self.latents:
            raise PpgenError(f"marginal names all latents of {whole.program.name}; leave some to be sampled")
        places = {n: torch.arange(whole.dim)[s] for n, s in whole.places.items()}
        self._outer, self._inner = (torch.cat([places[n] for n in names]) for names in (self.latents, self.inner))
        self._order = torch.cat([self._outer, self._inner]).argsort()
        self.dim = len(self._outer)
        self.labels = tuple(whole.labels[i] for i in self._outer.tolist())
        self._blocks, self._colors = self._pattern()
        self._graphs: dict[tuple, Callable[..., Any]] = {}
        self._last: dict[int, Tensor] = {}  # θ̂ of the last call, by the number of vectors

    # -- as LogJoint ---------------------------------------------------------------------------------

    def value_and_grad(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """(..., dim) -> (...) in nats and (..., dim)."""
        flat = u.detach().reshape(-1, self.dim).contiguous()
        gradient, value = self._both(flat)
        return value.reshape(u.shape[:-1]), gradient.reshape(u.shape)

    def leapfrog(self, y: Tensor, p: Tensor, g: Tensor, step: Tensor, centre: Tensor, root: Tensor) -> list[Tensor]:
        """As `LogJoint.leapfrog`."""
        return leapfrog_step(self._both, y, p, g, step, centre, root)

    def prior(self) -> Tensor:
        """One draw of φ from the prior."""
        return self.whole.prior()[self._outer]

    # -- θ given φ -----------------------------------------------------------------------------------

    def complete(self, u: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """φ, (n, dim), with a draw of θ each, as vectors of `whole`; and their log weights, (n,)."""
        parts = [self._drawn(part, generator) for part in u.split(1024)]
        return torch.cat([v for v, _ in parts]), torch.cat([w for _, w in parts])

    def _drawn(self, u: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        theta, found = self._newton(u)
        value, minus_h = self._call("value", self._value, u, theta)
        factors = [torch.linalg.cholesky_ex(b)[0] for b in minus_h]
        z = torch.randn(theta.shape, generator=generator, dtype=theta.dtype)
        at = theta + self._by_block(z, lambda i, b: torch.linalg.solve_triangular(factors[i].mT, b, upper=True))
        log_q = -0.5 * z.square().sum(-1) - 0.5 * z.shape[-1] * math.log(2 * math.pi)
        log_q = log_q + sum(f.diagonal(dim1=-2, dim2=-1).log().sum((-1, -2)) for f in factors)
        whole = self._join(u, at)
        log_w = self.whole.value_and_grad(whole)[0] - log_q - value
        return whole, torch.where(found, log_w, -torch.inf)

    # -- the graphs ----------------------------------------------------------------------------------

    def _both(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient and value; NaN where θ̂ was not found."""
        theta, found = self._newton(u)
        gradient, value = self._call("grad", torch.func.grad_and_value(lambda *x: self._value(*x)[0]), u, theta)
        return gradient, torch.where(found, value, torch.nan)

    def _newton(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """θ̂ of each φ, and whether it was found."""
        theta = self._last.get(len(u))
        theta = torch.zeros(len(u), len(self._inner)).to(u) if theta is None else theta
        found = torch.zeros(len(u), dtype=torch.bool)
        for _ in range(ROUNDS):
            new, step = self._call("newton", self._step, u, theta)
            usable = torch.isfinite(new).all(-1)
            theta = torch.where(usable[:, None], new, 0.0)
            found = usable & (step.abs() <= STILL * (1 + theta.abs())).all(-1)
            if found.all():
                break
        self._last[len(u)] = torch.where(found[:, None], theta, 0.0)
        return theta, found

    def _call(self, name: str, fn: Callable[..., Any], u: Tensor, theta: Tensor) -> Any:
        key = (name, u.shape, u.dtype)
        if key not in self._graphs:
            self._graphs[key] = self.whole.build(torch.func.vmap(fn), [u.contiguous().clone(), theta.clone()])
        return self._graphs[key](u.contiguous(), theta)

    def _join(self, u: Tensor, theta: Tensor) -> Tensor:
        return torch.cat([u, theta.expand(*u.shape[:-1], -1)], -1)[..., self._order]

    def _f(self, u: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda theta: self.whole.one(self._join(u, theta))

    def _minus_hessian(self, f: Callable[[Tensor], Tensor], theta: Tensor) -> list[Tensor]:
        """−H by blocks: for each size of block (blocks, size, size)."""
        slope = torch.func.grad(f)
        product = torch.func.vjp(slope, theta)[1]
        columns = torch.stack([-product(c.to(theta))[0] for c in self._colors])
        return [columns[color, row] for row, color in self._blocks]

    def _step(self, u: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """θ after one damped Newton step, and that step."""
        f = self._f(u)
        slope = torch.func.grad(f)(theta)
        blocks = [_positive(b) for b in self._minus_hessian(f, theta)]
        step = self._solved(blocks, slope)
        tried = torch.stack([theta + t * step for t in SHORTER])
        height = torch.stack([torch.nan_to_num(f(t), nan=-math.inf) for t in tried])
        best = torch.nn.functional.one_hot(height.argmax(0), len(SHORTER)).to(theta)
        # at the top rounding decides which is best, and the whole step is the one that ends it
        small = (step.abs() <= 1e-4 * (1 + theta.abs())).all()
        best = torch.where(small, torch.eye(len(SHORTER))[0].to(theta), best)
        return (best[:, None] * tried).sum(0), step

    def _value(self, u: Tensor, theta: Tensor) -> tuple[Tensor, list[Tensor]]:
        """L(φ) where θ is θ̂, with its derivative, and −H."""
        f = self._f(u)
        held = [_positive(b.detach()) for b in self._minus_hessian(f, theta)]
        theta = theta + self._solved(held, torch.func.grad(f)(theta))
        blocks = self._minus_hessian(f, theta)
        log_det = sum(torch.linalg.cholesky(b).diagonal(dim1=-2, dim2=-1).log().sum() for b in blocks)
        return f(theta) - log_det + 0.5 * len(theta) * math.log(2 * math.pi), blocks

    def _solved(self, blocks: list[Tensor], b: Tensor) -> Tensor:
        out = torch.zeros_like(b)
        for (row, _), block in zip(self._blocks, blocks, strict=True):
            x = torch.linalg.solve(block, b[row[..., 0]][..., None])[..., 0]
            out = out.index_put((row[..., 0].flatten(),), x.flatten())
        return out

    def _by_block(self, z: Tensor, fn: Callable[[int, Tensor], Tensor]) -> Tensor:
        """A function of each block's part of vectors (n, k)."""
        out = torch.empty_like(z)
        for i, (row, _) in enumerate(self._blocks):
            out[:, row[..., 0]] = fn(i, z[:, row[..., 0]][..., None])[..., 0]
        return out

    # -- which entries of H are not zero -------------------------------------------------------------

    def _pattern(self) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Blocks of θ that have no entry of H with each other, and vectors of ones that give H's columns.

        Returns:
            for each size of block the rows and the colors of its entries, (blocks, size, size); the colors' vectors.
        """
        k = len(self._inner)
        if k > 20 * MOST:
            raise PpgenError(f"marginal takes {k} entries, and at most {20 * MOST} can be looked through")
        filled = torch.zeros(k, k, dtype=torch.bool)
        for _ in range(2):
            filled |= self._hessian_at(self.whole.prior()) != 0
        filled = filled | filled.mT | torch.eye(k, dtype=torch.bool)
        member = _components(filled)
        groups: dict[int, list[list[int]]] = {}
        for label in range(int(member.max()) + 1):
            block = (member == label).nonzero()[:, 0].tolist()
            groups.setdefault(len(block), []).append(block)
        largest = max(groups)
        if largest > MOST:
            raise PpgenError(
                f"{largest} entries of {', '.join(self.inner)} depend on each other given the rest, and a block has at "
                f"most {MOST}; name latents that stand in a plate, or sample them"
            )
        color = torch.zeros(k, dtype=torch.long)  # an entry's place in its block: other blocks share no row with it
        blocks = []
        for size, members in groups.items():
            index = torch.tensor(members)
            color[index] = torch.arange(size)
            row = index[:, :, None].expand(-1, -1, size)
            blocks.append((row, torch.arange(size).expand(len(members), size, size)))
        return blocks, torch.nn.functional.one_hot(color, largest).mT.to(torch.get_default_dtype())

    def _hessian_at(self, u: Tensor) -> Tensor:
        """(k, k), near a vector of `whole`; NaN is not zero."""
        slope = torch.func.grad(self._f(u[self._outer]))
        theta = u[self._inner] + 0.1 * torch.randn(len(self._inner)).to(u)

        product = torch.func.vjp(slope, theta)[1]
        return torch.cat([torch.func.vmap(lambda c: product(c)[0])(c) for c in torch.eye(len(theta)).to(u).split(64)])


def _positive(block: Tensor) -> Tensor:
    """A block with so much added to its diagonal that it is a step upwards, where it is not positive definite."""
    block = torch.where(torch.isfinite(block).all(), block.clamp(-HUGE, HUGE), torch.eye(block.shape[-1]).to(block))
    low = torch.linalg.eigvalsh(block)[..., :1]
    scale = block.diagonal(dim1=-2, dim2=-1).abs().amax(-1, keepdim=True) + 1e-12
    more = torch.where(low < 1e-10 * scale, 1e-3 * scale - low, 0.0)
    return block + torch.diag_embed(more.expand(*block.shape[:-1]))


def _components(filled: Tensor) -> Tensor:
    """A number for each connected part of a graph."""
    from scipy.sparse.csgraph import connected_components

    return torch.as_tensor(connected_components(filled.numpy(), directed=False)[1]).long()
