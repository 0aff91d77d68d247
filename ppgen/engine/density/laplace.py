r"""Latents that are integrated out by Laplace's method, inside of the log joint of the others.

    L(φ) = f(φ, θ̂) − ½ log det(−H) + k/2 log 2π,   θ̂ = argmax_θ f(φ, θ),   H = ∂²f/∂θ² at θ̂

f is the log joint on the unconstrained scale, θ the k entries that are integrated out, φ the rest. θ̂ is found by
Newton's steps from where it was last, by a graph that is called until nothing moves; its derivative is implicit,
dθ̂/dφ = −H⁻¹ ∂²f/∂θ∂φ. H is found column by column, as many columns at once as have no row in common: one product for
latents that are independent given φ, and its blocks are solved and factored apart.

Given φ, θ is drawn block by block, one of M candidates by their weights, and the draws are weighted by what was found
of the integral in place of L(φ), so that with its weight a draw is one of p(φ, θ):

    θ_b^m = θ̂_b + C_b z^m,   w_b^m = exp(f_b(θ_b^m) − f_b(θ̂_b)) / q(θ_b^m),
    W = exp(f(φ, θ̂) − L(φ)) Π_b (1/M) Σ_m w_b^m

The z are randomly shifted points of a net, so that a block's sum is nearly its integral. f_b, the part of f that block
b has to itself, is an integral of the gradient from θ̂ on, which gives those of all blocks at once; what it is off by, f
at the draw tells, and is in the weight.

Sources: Approximate Bayesian inference for latent Gaussian models by using integrated nested Laplace approximations
(Rue, Martino, Chopin 2009); Hamiltonian Monte Carlo using an adjoint-differentiated Laplace approximation (Margossian,
Vehtari, Simpson, Agrawal 2020, arXiv:2004.12550); What color is your Jacobian? (Gebremedhin, Manne, Pothen 2005);
weights that are products of sums: Nested sequential Monte Carlo (Naesseth, Lindsten, Schön 2015, arXiv:1502.02536).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from ppgen.engine.density.joint import BLOCK, LogJoint, in_blocks
from ppgen.engine.density.leapfrog import leapfrog_step
from ppgen.errors import PpgenError, first_line

ROUNDS = 30  # of Newton, at most
STILL = 1e-8  # a step, relative to 1 + |θ|, that is none
BEGIN = 1e-3  # of each entry of θ: 0 may be a saddle
ROUNDED = 1e-5  # a step, relative likewise, of which rounding tells whether it was one upwards
SHORTEST = 1e-9  # share of a step, below which it is hopeless
MOST = 500  # entries of a block
HUGE = 1e100  # beyond it a curvature is none
CANDIDATES, NODES = (8, 64), 4  # of a block of one entry, and of more; and of the integral of the gradient
FEW, WIDTH = 4, 0.9  # small blocks have candidates of logistic laws of this scale, whose weights a sum of few averages
ELSEWHERE = 0.5  # standard deviations between two tops that are not one


class LaplaceMarginal:
    """L(φ) and its gradient, with what kernels take of a `LogJoint`, over φ.

    Attributes:
        whole: the log joint of φ and θ.
        dim, labels, latents, blocks, program: of φ.
        places: of φ in vectors of `whole`, (dim,).
        inner: the names of the latents in θ.
        proper: false, the prior of φ alone is not looked at.
    """

    proper = False

    def __init__(self, whole: LogJoint, inner: Sequence[str]):
        """
        Raises:
            PpgenError: a name that is no continuous latent; no other latent; blocks of more than `MOST` entries; a log
                joint that has no second derivative.
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
        entries = {n: torch.arange(whole.dim)[s] for n, s in whole.places.items()}
        self.places, self._inner = (torch.cat([entries[n] for n in names]) for names in (self.latents, self.inner))
        self._order = torch.cat([self.places, self._inner]).argsort()
        self.dim = len(self.places)
        self.labels = tuple(whole.labels[i] for i in self.places.tolist())
        self.blocks, stop = {}, 0
        for n in self.latents:
            b = whole.blocks[n]
            self.blocks[n] = b._replace(start=stop, stop=stop + b.stop - b.start)
            stop = self.blocks[n].stop
        try:
            self._blocks, self._colors = self._pattern()
        except LinAlgError:  # at this draw from the prior
            raise
        except RuntimeError as e:
            raise PpgenError(
                f"{', '.join(self.inner)} cannot be integrated out, as the log joint of {self.program.name} cannot be "
                f"differentiated twice: {first_line(e)}; sample them with the rest"
            ) from e
        self._from_blocks = torch.cat([row[..., 0].flatten() for row, _ in self._blocks]).argsort()
        self._target = in_blocks(whole.value_and_grad)
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
        return self.whole.prior()[self.places]

    def place(self, u: Tensor) -> str:
        """As `LogJoint.place`, of φ."""
        return self.whole.place(self._join(u, torch.zeros(len(self._inner)).to(u)), self.latents)

    # -- θ given φ -----------------------------------------------------------------------------------

    def complete(self, u: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """φ, (n, dim), with a draw of θ each, as vectors of `whole`; and their log weights, (n,)."""
        full = torch.cat([u, u[-1:].expand(-len(u) % BLOCK, -1)])  # a graph serves for one number of vectors
        parts = [self._drawn(part, generator) for part in full.split(BLOCK)]
        return torch.cat([v for v, _ in parts])[: len(u)], torch.cat([w for _, w in parts])[: len(u)]

    def _drawn(self, u: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        theta, found = self._newton(u)
        value, minus_h = self._call("value", self._value, u, theta)
        factors = [_root(b) for b in minus_h]
        volume = sum(f.diagonal(dim1=-2, dim2=-1).log().sum((-1, -2)) for f in factors)
        top = value + volume - 0.5 * len(self._inner) * math.log(2 * math.pi)  # f at θ̂
        size, points = self._net()
        shift = torch.rand(theta.shape, generator=generator, dtype=theta.dtype)
        total, kept = torch.full((len(u), self._n_blocks), -torch.inf).to(u), torch.full_like(shift, torch.nan)
        best, rise = total.clone(), torch.zeros_like(total)
        for point in points:
            z, log_q = _quantile((point + shift).remainder(1.0), size)
            step = self._by_block(z, lambda i, b: _scaled(factors[i], b))
            more = self._rise(u, theta, step, top)
            log_w = torch.nan_to_num(more - self._block_sums(log_q), nan=-math.inf)
            total = torch.logaddexp(total, log_w)
            race = log_w - torch.rand(log_w.shape, generator=generator, dtype=log_w.dtype).log().neg().log()  # Gumbel's
            won = race > best
            best, rise = torch.where(won, race, best), torch.where(won, more, rise)
            kept = torch.where(self._by_entry(won), theta + step, kept)
        whole = self._join(u, torch.where(torch.isfinite(kept), kept, theta))
        at_top = self._target(whole)[0] - rise.sum(-1)  # f at θ̂, and what the integrals of the gradient are off by
        log_w = (total - math.log(len(points))).sum(-1) + at_top - volume - value
        return whole, torch.where(found & torch.isfinite(kept).all(-1), log_w, -torch.inf)

    def _net(self) -> tuple[Tensor, Tensor]:
        """How many entries the block of each entry of θ has, (k,); and points in the unit cube of each block."""
        size = torch.empty(len(self._inner), dtype=torch.long)
        for row, _ in self._blocks:
            size[row[..., 0].flatten()] = row.shape[1]
        net = torch.quasirandom.SobolEngine(len(self._colors)).draw(CANDIDATES[len(self._colors) > 1]).to(self._colors)
        return size, net[:, self._colors.argmax(0)]

    def _rise(self, u: Tensor, theta: Tensor, step: Tensor, top: Tensor) -> Tensor:
        """f_b(θ̂ + step) − f_b(θ̂) of each block, (n, blocks): the integral of the gradient, by Gauss and Legendre; of
        one block alone f less `top`, which is f at θ̂."""
        if self._n_blocks == 1:
            return (self._target(self._join(u, theta + step))[0] - top)[:, None]
        nodes, weights = np.polynomial.legendre.leggauss(NODES)
        rise = torch.zeros_like(step)
        for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
            gradient = self._target(self._join(u, theta + 0.5 * (1 + node) * step))[1][:, self._inner]
            rise = rise + 0.5 * weight * gradient * step
        return self._block_sums(rise)

    def other_top(self, u: Tensor, generator: torch.Generator) -> str | None:
        """The label of an entry of θ that has, given some φ of (n, dim), another top than θ̂; None: none was found.

        Newton climbs from draws of the prior, and from θ̂ with its sign flipped.
        """
        theta, found = self._newton(u)
        curved = self._call("value", self._value, u, theta)[1]
        prior = torch.stack([self.whole.prior() for _ in u])[:, self._inner]
        scale = torch.empty_like(theta)
        for (row, _), block in zip(self._blocks, curved, strict=True):
            scale[:, row[..., 0]] = block.diagonal(dim1=-2, dim2=-1).sqrt()
        for start in (prior, -theta):
            other, settled = self._climbed(u, start)
            apart = found[:, None] & settled & ((other - theta).abs() * scale > ELSEWHERE)
            if apart.any():
                return self.whole.labels[int(self._inner[int(apart.any(0).long().argmax())])]
        return None

    # -- the graphs ----------------------------------------------------------------------------------

    def _both(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient and value; NaN where θ̂ was not found."""
        theta, found = self._newton(u)
        gradient, value = self._call("grad", self._gradient, u, theta)
        return gradient, torch.where(found, value, torch.nan)

    def _newton(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """θ̂ of each φ, and whether it was found."""
        theta = self._last.get(len(u))
        theta = torch.full((len(u), len(self._inner)), BEGIN).to(u) if theta is None else theta
        theta, settled = self._climbed(u, theta)
        found = settled.all(-1)
        self._last[len(u)] = torch.where(found[:, None], theta, BEGIN)
        return theta, found

    def _climbed(self, u: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Where Newton's steps from θ end, and whether each entry has: (n, k).

        A block's step that passes the top by more than half of what it has come is taken again, shorter: to where the
        slope along it would be zero, were it a straight line.
        """
        slope, blocks = self._call("slope", self._slope, u, theta)
        share = torch.ones(len(u), self._n_blocks).to(u)
        for _ in range(ROUNDS):
            raised, of_entry = [_positive(b) for b in blocks], self._by_entry(share)
            step = of_entry * self._solved(raised, slope)
            small = step.abs() / (1 + theta.abs())
            saddle = torch.cat([(r != b).any(-1).any(-1) for r, b in zip(raised, blocks, strict=True)], -1)
            settled = (small <= STILL) & self._by_entry((share == 1) & ~saddle)
            if (settled | (of_entry < SHORTEST)).all():
                break
            further = self._call("slope", self._slope, u, theta + step)
            before, after = self._block_sums(slope * step), self._block_sums(further[0] * step)
            taken = (0.5 * before + after >= 0) | (self._block_sums(small) <= ROUNDED)
            at = self._by_entry(taken)
            theta, slope = torch.where(at, theta + step, theta), torch.where(at, further[0], slope)
            each = zip(self._split(taken), further[1], blocks, strict=True)
            blocks = [torch.where(t[..., None, None], new, old) for t, new, old in each]
            shorter = torch.nan_to_num(before / (before - after)).clamp(0.1, 0.5)
            share = torch.where(taken, (4 * share).clamp_max(1.0), share * shorter)
        return theta, settled

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
        colors = self._colors.to(theta)
        many = len(colors) > 1  # one graph for all of them, in place of one for each
        columns = -(torch.func.vmap(lambda c: product(c)[0])(colors) if many else product(colors[0])[0][None])
        return [columns[color, row] for row, color in self._blocks]

    def _slope(self, u: Tensor, theta: Tensor) -> tuple[Tensor, list[Tensor]]:
        """∂f/∂θ, and −H by blocks."""
        f = self._f(u)
        return torch.func.grad(f)(theta), self._minus_hessian(f, theta)

    def _value(self, u: Tensor, theta: Tensor) -> tuple[Tensor, list[Tensor]]:
        """f + ½ k log 2π − ½ log det(−H), which is L(φ) where θ is θ̂; and −H."""
        f = self._f(u)
        blocks = self._minus_hessian(f, theta)
        log_det = sum(_root(b).diagonal(dim1=-2, dim2=-1).log().sum() for b in blocks)
        return f(theta) - log_det + 0.5 * len(theta) * math.log(2 * math.pi), blocks

    def _gradient(self, u: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The derivative of L(φ), dθ̂/dφ = (−H)⁻¹ ∂²f/∂θ∂φ in it; and L."""

        def with_aux(*at: Tensor) -> tuple[Tensor, tuple[Tensor, list[Tensor]]]:
            value, blocks = self._value(*at)
            return value, (value, blocks)

        (by_phi, by_theta), (value, blocks) = torch.func.grad(with_aux, argnums=(0, 1), has_aux=True)(u, theta)
        along = self._solved(blocks, by_theta)
        through = torch.func.grad(lambda phi: (torch.func.grad(self._f(phi))(theta) * along).sum())(u)
        return by_phi + through, value

    def _solved(self, blocks: list[Tensor], b: Tensor) -> Tensor:
        parts = []
        for (row, _), block in zip(self._blocks, blocks, strict=True):
            part = b[..., row[..., 0]]  # thousands of blocks of one entry are no work for LAPACK
            x = part / block[..., 0] if block.shape[-1] == 1 else torch.linalg.solve(block, part[..., None])[..., 0]
            parts.append(x.flatten(-2))
        return torch.cat(parts, -1)[..., self._from_blocks]

    def _by_block(self, z: Tensor, fn: Callable[[int, Tensor], Tensor]) -> Tensor:
        """A function of each block's part of vectors (n, k)."""
        out = torch.empty_like(z)
        for i, (row, _) in enumerate(self._blocks):
            out[:, row[..., 0]] = fn(i, z[:, row[..., 0]][..., None])[..., 0]
        return out

    @property
    def _n_blocks(self) -> int:
        return sum(len(row) for row, _ in self._blocks)

    def _split(self, of_blocks: Tensor) -> tuple[Tensor, ...]:
        """(n, blocks) by the sizes of blocks."""
        return of_blocks.split([len(row) for row, _ in self._blocks], -1)

    def _block_sums(self, v: Tensor) -> Tensor:
        """(n, k) -> (n, blocks)."""
        return torch.cat([v[:, row[..., 0]].sum(-1) for row, _ in self._blocks], -1)

    def _by_entry(self, of_blocks: Tensor) -> Tensor:
        """(n, blocks) -> (n, k): each block's value at its entries."""
        sizes = [row.shape[1] for row, _ in self._blocks]
        parts = [v.repeat_interleave(size, -1) for v, size in zip(self._split(of_blocks), sizes, strict=True)]
        return torch.cat(parts, -1)[:, self._from_blocks]

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
            filled |= self._filled_at(self.whole.prior())
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

    def _filled_at(self, u: Tensor) -> Tensor:
        """Which entries of H are not zero, (k, k), near a vector of `whole`; NaN is not zero."""
        slope = torch.func.grad(self._f(u[self.places]))
        theta = u[self._inner] + 0.1 * torch.randn(len(self._inner)).to(u)
        product = torch.func.vjp(slope, theta)[1]
        columns = torch.eye(len(theta)).to(u).split(64)
        return torch.cat([torch.func.vmap(lambda c: product(c)[0])(c) != 0 for c in columns])


def _quantile(p: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Values of which a share p is lower, and their log-densities: logistic in small blocks, normal in large ones."""
    p = p.clamp(torch.finfo(p.dtype).tiny, 1 - torch.finfo(p.dtype).eps)
    normal = torch.special.ndtri(p)
    log_normal = -0.5 * (normal.square() + math.log(2 * math.pi))
    few = size <= FEW
    odds, log_logistic = WIDTH * p.logit(), p.log() + (-p).log1p() - math.log(WIDTH)
    return torch.where(few, odds, normal), torch.where(few, log_logistic, log_normal)


def _root(block: Tensor) -> Tensor:
    """Lower-triangular L, of L Lᵀ; NaN where a block is not positive definite."""
    if block.shape[-1] == 1:
        return block.sqrt()
    root, info = torch.linalg.cholesky_ex(block)
    return torch.where((info == 0)[..., None, None], root, torch.nan)


def _scaled(root: Tensor, z: Tensor) -> Tensor:
    """L⁻ᵀ z."""
    return z / root if root.shape[-1] == 1 else torch.linalg.solve_triangular(root.mT, z, upper=True)


def _positive(block: Tensor) -> Tensor:
    """Blocks (n, blocks, size, size), with so much added to the diagonal that each is a step upwards, if it is none."""
    size = block.shape[-1]
    bad = ~torch.isfinite(block).all(-1).all(-1)[..., None, None]
    block = torch.where(bad, torch.eye(size).to(block), block.clamp(-HUGE, HUGE))
    if size == 1:
        low = block[..., 0]
    elif not torch.linalg.cholesky_ex(block)[1].any():
        low = torch.full_like(block[..., 0, :1], torch.inf)
    else:
        low = torch.linalg.eigvalsh(block)[..., :1]
    scale = block.diagonal(dim1=-2, dim2=-1).abs().amax(-1, keepdim=True) + 1e-12
    more = torch.where(low < 1e-10 * scale, 1e-3 * scale - low, 0.0)
    return block + torch.diag_embed(more.expand(*block.shape[:-1]))


def _components(filled: Tensor) -> Tensor:
    """A number for each connected part of a graph."""
    from scipy.sparse.csgraph import connected_components

    return torch.as_tensor(connected_components(filled.numpy(), directed=False)[1]).long()
