r"""What the draws have not seen: climbs from over-dispersed starts, and the mass of the places where they end.

    Z_R = ∫_R p(x, z(u)) |det ∂z/∂u| du,   R: the shell that holds nine tenths of N(m, Σ)

N(m, Σ) is what Pathfinder finds on its way up from one start, or the normal at the top. Draws of the posterior lie in R
in the share Z_R / Z. Z_R is a mean of importance weights; Z is that of the draws' own place: the evidence that the
guide's weights give, or bridge sampling between chains and a mixture of normals. A place that has mass, and draws not
in that share, was not seen: another mode, or the wide part of a posterior whose draws are all in a narrow one. As that
one may lie within R, the same is asked of R without the ellipsoid that holds the draws but a hundredth.

It sees modes that a climb ends in, and that are about normal: from the prior, from wide boxes, from the draws' mirror
images, from those of the largest weight, and from the highest of many points on spheres about them; not a mode that no
start leads to. Where all that is missing equals what is there, the modes are copies
of each other (exchangeable components, a sign that can be flipped), told as such.

Source: Pathfinder (Zhang, Carpenter, Gelman, Vehtari 2022, arXiv:2108.03782).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppgen.engine.density.pathfinder import Climbs, Density, climb
from ppgen.inference.evaluation.estimates import Evidence
from ppgen.inference.sampling.bridge import bridge_sampling
from ppgen.inference.sampling.hamiltonian import Preconditioner
from ppgen.inference.verdicts.findings import FINE, LOOK, WRONG, Finding

WIDEST = 3.0  # log10 of the largest box, in standard deviations of the draws
MOST = 6  # places that are weighed, of those on the way and of those at the end
PRIOR_STARTS = 3200  # entries of the climbs' starts from the prior,
FEWEST, MOST_STARTS = 16, 64  # and how many; one that a fiftieth leads to is found 3 times in 4
HEAVIEST = 16  # draws of a guide, by their weights
SPHERES, ON_SPHERE = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 8.0), 300  # radii, in those of the draws; points
SCOUTED = 10  # dimensions, at the most: in more, none of the points comes near
ENOUGH = 0.75  # of the climbs, ended
DRAWS = 300  # of a region
BRIDGE = 1000  # of either side
LEAST_ESS = 20  # of a region's weights, for its mass to be known
ROUGH = 0.05  # standard error of the log of a mass
MISSING = (0.01, 0.05)  # the share of the mass from which on it is told, and is "wrong"
REST = 0.01  # of the draws, outside of their core
SURE = 3.0  # standard errors
LARGEST = 300  # entries of u, as many as `batch_and_match` takes: a climb keeps a matrix of so many squared


class _Normal(NamedTuple):
    """N(m, L Lᵀ)."""

    m: Tensor
    L: Tensor

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        noise = torch.randn(n, len(self.m), generator=generator, dtype=self.m.dtype)
        return self.m + noise @ self.L.mT

    def radius(self, u: Tensor) -> Tensor:
        """r² of each vector."""
        return torch.linalg.solve_triangular(self.L, (u - self.m).mT, upper=False).square().sum(0)

    def log_prob(self, u: Tensor) -> Tensor:
        return -0.5 * (self.radius(u) + len(self.m) * math.log(2 * math.pi)) - self.L.diagonal().log().sum()


class _Core(NamedTuple):
    """The ellipsoid that holds the draws but a hundredth."""

    q: _Normal
    square: float

    @classmethod
    def of(cls, draws: Tensor, weights: Tensor) -> _Core | None:
        m = weights @ draws
        root, info = torch.linalg.cholesky_ex((weights[:, None] * (draws - m)).mT @ (draws - m))
        if info or not torch.isfinite(root).all():
            return None
        q = _Normal(m, root)
        r, order = q.radius(draws).sort()
        last = int((weights[order].cumsum(0) < 1 - REST).sum())
        return cls(q, float(r[min(last, len(r) - 1)]))


class _Region(NamedTuple):
    """A shell of a normal, without a core if there is one, and the log of its mass with its standard error."""

    q: _Normal
    log_z: float
    se: float
    core: _Core | None = None


class _Search(NamedTuple):
    """What a search found: the record, and (m, L) of the places that were not seen, the heaviest first."""

    finding: Finding
    unseen: list[tuple[Tensor, Tensor]]


def unseen_modes(target: Density, draws: Tensor, effective: float, **options: Any) -> Finding | None:
    """The share of the posterior's mass that was found where draws are not; arguments as for `search_modes`."""
    found = search_modes(target, draws, effective, **options)
    return None if found is None else found.finding


@torch.no_grad()
def search_modes(
    target: Density,
    draws: Tensor,
    effective: float,
    *,
    evidence: Evidence | None = None,
    weights: Tensor | None = None,
    prior: Callable[[int], Tensor] | None = None,
    name: Callable[[Tensor], str] = str,
    seed: int = 0,
    size: int = 0,
) -> _Search | None:
    """Climbs, weighs the places where they end, and compares them with the draws.

    Args:
        target: the log joint of unconstrained vectors, any number at once, and its gradient.
        draws: (S, dim), unconstrained.
        effective: how many independent draws they are worth.
        evidence: log p(x) as the draws have it; without it bridge sampling gives it, from draws of the posterior.
        weights: (S,), the draws' own where they are of a guide; they sum to one.
        prior: n draws from the prior, unconstrained; None where it is flat somewhere.
        name: where a vector is, in words.
        size: entries that a call of the target works on for a vector, where they are more than its own.

    Returns:
        None where there are too many dimensions to search.
    """
    dim = draws.shape[1]
    if dim > LARGEST or len(draws) < 2 * dim:
        return None
    generator, of_guide = torch.Generator().manual_seed(seed), evidence is not None
    weights = torch.full((len(draws),), 1 / len(draws), dtype=draws.dtype) if weights is None else weights
    start = starts_around(draws, prior, generator, size)
    start = torch.cat([start, _scouted(target, draws, generator)])
    if of_guide:  # the edge of a narrow place that the guide's tail reaches
        start = torch.cat([start, draws[weights.topk(min(HEAVIEST, len(draws))).indices]])
    paths = climbs(target, start, draws, generator)
    ends = places(target, paths, lambda q: _share(q, draws, weights) > MISSING[0] / 10)
    if not ends:
        return None
    shares = [_share(q, draws, weights) for q in ends]
    reached = [q for q, share in zip(ends, shares, strict=True) if share > 0]
    half = draws[torch.randperm(len(draws), generator=generator)[: 2 * BRIDGE]]
    weighed = [_weighed(target, q, generator) for q in ends]
    known = [(r, share) for r, share in zip(weighed, shares, strict=True) if r is not None]
    if evidence is None:
        parts = [r.q for r, share in known if share > 0]
        evidence = _bridge(target, half, parts or reached, generator)
    full = [r for r, share in known if share > 0.5]  # most draws: it cannot lack as many
    regions = [r for r, share in known if not share > 0.5]
    if (core := _Core.of(draws, weights)) is not None:  # a narrow mode lies within the shell of a wide one
        regions += [r for q in reached if (r := _mass_of(target, q, generator, core)) is not None]
    held = [_share(r.q, draws, weights, r.core) for r in regions]
    together = sum(_mass(r, evidence) for r in _different([r for r, s in zip(regions, held, strict=True) if s == 0]))
    lacking = together > max(MISSING[0], 2 * SURE**2 / effective)  # none of them may, by itself
    missing = [
        lacking and s == 0 or _is_missing(_mass(r, evidence), s, effective) for r, s in zip(regions, held, strict=True)
    ]
    unseen = _different([r for r, gone in zip(regions, missing, strict=True) if gone])
    searched = {"starts": len(start), "places": len(ends), "of": "guide" if of_guide else "chains"}
    if not unseen:
        return _Search(Finding("unseen_modes", "", 0.0, MISSING[0], FINE, searched), [])
    where = name(unseen[0].q.m)
    if evidence.se > 1.0 or not math.isfinite(evidence.log_z):
        return _Search(Finding("unseen_modes", where, math.nan, MISSING[0], LOOK, searched), _places_of(unseen))
    odds = sum(math.exp(min(r.log_z - evidence.log_z, 500.0)) for r in unseen)
    share = odds / (1 + odds)
    seen = [r for r, gone in zip(regions, missing, strict=True) if not gone] + full
    copies = all(any(_copy(r, other) for other in seen) for r in unseen)
    graded = FINE if share < MISSING[0] else LOOK if share < MISSING[1] or copies else WRONG
    few = _share(unseen[0].q, draws, weights, unseen[0].core) > 0
    said = searched | {"unseen": len(unseen), "copies": copies, "few": few}
    return _Search(Finding("unseen_modes", where, share, MISSING[0], graded, said), _places_of(unseen))


def _places_of(regions: list[_Region]) -> list[tuple[Tensor, Tensor]]:
    return [(r.q.m, r.q.L) for r in regions]


def starts_around(
    draws: Tensor, prior: Callable[[int], Tensor] | None, generator: torch.Generator, size: int = 0
) -> Tensor:
    """Draws, their mirror images in some coordinates, boxes around them of 1 to 1000 sd, and draws of the prior."""
    dim, sd = draws.shape[1], draws.std(0).clamp_min(1e-12)

    def some(n: int) -> Tensor:
        return draws[torch.randint(len(draws), (n,), generator=generator)]

    def box(n: int, width: float) -> Tensor:
        return width * (2 * torch.rand(n, dim, generator=generator, dtype=draws.dtype) - 1)

    reach = 10 ** torch.linspace(0, WIDEST, 16).to(draws)[:, None]
    around = draws.mean(0) + sd * reach * box(16, 1.0)
    kinds = [some(4), -some(4), box(12, 1.0).sign() * some(12), box(12, 2.0), around]
    if prior is not None:
        kinds.append(prior(max(FEWEST, min(MOST_STARTS, PRIOR_STARTS // max(dim, size)))))
    return torch.cat(kinds)


def _scouted(target: Density, draws: Tensor, generator: torch.Generator) -> Tensor:
    """The highest of many points of each of some spheres about the draws: on the slope of a narrow place, if one is.

    Of a place that is narrower than what lies around it no more than a ball is its slope, from which a climb ends in
    it; a start that is drawn is seldom in that ball, and the best of hundreds at one distance is.
    """
    dim = draws.shape[1]
    if dim > SCOUTED:
        return draws[:0]
    frame = _whitening(draws)
    z = torch.randn(len(SPHERES) * ON_SPHERE, dim, generator=generator, dtype=draws.dtype)
    radius = (torch.tensor(SPHERES).to(draws) * dim**0.5).repeat_interleave(ON_SPHERE)[:, None]
    u = frame.out(z / z.norm(dim=-1, keepdim=True) * radius)
    height = torch.nan_to_num(target(u)[0], nan=-torch.inf).reshape(len(SPHERES), ON_SPHERE)
    height = torch.where(height == torch.inf, -torch.inf, height)
    return u[height.argmax(-1) + ON_SPHERE * torch.arange(len(SPHERES))]


def _whitening(draws: Tensor) -> Preconditioner:
    """Coordinates in which the draws have mean 0 and covariance I."""
    dim = draws.shape[1]
    m, cov = draws.mean(0), torch.cov(draws.mT).reshape(dim, dim)
    L, info = torch.linalg.cholesky_ex(cov)
    if info or not torch.isfinite(L).all():
        L = draws.std(0).clamp_min(1e-12).diag()
    return Preconditioner(m, L)


def climbs(target: Density, start: Tensor, draws: Tensor, generator: torch.Generator) -> Climbs:
    """Paths from the starts, in coordinates in which the draws have mean 0 and covariance I: few steps are needed."""
    frame = _whitening(draws)
    L = frame.root

    def whitened(y: Tensor) -> tuple[Tensor, Tensor]:
        lp, g = target(frame.out(y))
        return lp, g @ L

    paths = climb(whitened, frame.into(start), generator=generator, enough=ENOUGH)
    mean, draw, top = (frame.out(v) for v in (paths.mean, paths.draw, paths.top))
    return Climbs(paths.elbo, mean, L @ paths.root, draw, top)  # ELBOs of these coordinates: each less log |L|


def places(target: Density, paths: Climbs, seen: Callable[[_Normal], bool] = lambda q: True) -> list[_Normal]:
    """The different normals that paths have found on their way up, and at their ends: `MOST` of either of those that
    draws have seen, and of those that they have not."""
    kept: list[_Normal] = []
    marks: list[bool] = []  # whether draws have seen each: all draws are asked
    for i in paths.elbo.argsort(descending=True):
        new = _Normal(paths.mean[i], paths.root[i])
        other = torch.isfinite(paths.elbo[i]) and all(_apart(new, old) for old in kept)
        if other and marks.count(mark := seen(new)) < MOST:
            kept.append(new)
            marks.append(mark)
    tops: list[_Normal] = []
    marks = []
    height = torch.nan_to_num(target(paths.top)[0], nan=-torch.inf)
    for i in height.argsort(descending=True):
        if not torch.isfinite(height[i]) or len(tops) == 2 * MOST:
            break
        if all(float(old.radius(paths.top[i][None])) > 0.01 for old in tops):
            normal = _at(target, paths.top[i])
            if normal is not None and marks.count(mark := seen(normal)) < MOST:
                tops.append(normal)
                marks.append(mark)
    return kept + [new for new in tops if all(_apart(new, old) for old in kept)]


def _at(target: Density, u: Tensor) -> _Normal | None:
    """The normal of minus the inverse Hessian there, by differences of gradients, and its top; None where it is not
    one.

    What a climb knows of the curvature is that of its way: one step through a wide quadratic ends in a narrow mode.
    """
    h = torch.finfo(u.dtype).eps ** (1 / 3) * (1 + u.abs())
    g = target(torch.cat([u[None], u + h.diag(), u - h.diag()]))[1]
    hessian = (g[1 : 1 + len(u)] - g[1 + len(u) :]) / (2 * h)[:, None]
    factor, info = torch.linalg.cholesky_ex(-(hessian + hessian.mT) / 2)
    if info or not torch.isfinite(factor).all():
        return None
    root, info = torch.linalg.cholesky_ex(torch.cholesky_inverse(factor))  # of a Hessian that is nearly singular
    return None if info or not torch.isfinite(root).all() else _Normal(u + root @ (root.mT @ g[0]), root)


def _apart(a: _Normal, b: _Normal) -> bool:
    """Whether they are not two estimates of one normal: centers a standard deviation apart, or volumes tenfold."""
    volume = abs(float(a.L.diagonal().log().sum() - b.L.diagonal().log().sum()))
    return not (_near(a, b) or _near(b, a)) or volume > max(math.log(10), 0.5 * len(a.m))


def _near(a: _Normal, b: _Normal) -> bool:
    """Whether the center of a is within a standard deviation of b's, or little more in many dimensions."""
    return float(b.radius(a.m[None])) < 1 + 0.25 * len(a.m)


def _copy(a: _Region, b: _Region) -> bool:
    """Whether one has the mass, the center and the widths of the other, with entries exchanged or signs flipped."""
    mass = abs(a.log_z - b.log_z) < 0.1 + SURE * math.hypot(a.se, b.se)
    x, y = (r.q.L.norm(dim=-1) for r in (a, b))
    width = torch.minimum(x.max(), y.max())
    same = (a.q.m.abs().sort().values - b.q.m.abs().sort().values).abs() < width
    ratio = (x.sort().values / y.sort().values).log().abs() < math.log(1.5)
    return mass and bool((same & ratio).all()) and bool((a.q.m - b.q.m).abs().max() > width)


@cache
def _shell(dim: int) -> tuple[float, float]:
    """r² between the 5% and the 95% quantile."""
    from scipy.special import gammaincinv

    low, high = 2 * gammaincinv(dim / 2, [0.05, 0.95])
    return float(low), float(high)


def _within(q: _Normal, u: Tensor, core: _Core | None) -> Tensor:
    low, high = _shell(len(q.m))
    r = q.radius(u)
    shell = (r >= low) & (r <= high)
    return shell if core is None else shell & (core.q.radius(u) > core.square)


def _share(q: _Normal, draws: Tensor, weights: Tensor, core: _Core | None = None) -> float:
    return min(float(weights[_within(q, draws, core)].sum()), 1.0)


def _weighed(target: Density, q: _Normal, generator: torch.Generator) -> _Region | None:
    """The mass of a normal's shell, or where that is roughly known of the one at its top, which in many dimensions is
    nearer to the posterior than what a climb knows; None where the weights of both are too uneven to tell."""
    found = _mass_of(target, q, generator)
    if (found is None or found.se > ROUGH) and (top := _at(target, q.m)) is not None and _near(q, top):
        other = _mass_of(target, top, generator)
        found = min((r for r in (found, other) if r is not None), key=lambda r: r.se, default=None)
    return found


def _mass_of(target: Density, q: _Normal, generator: torch.Generator, core: _Core | None = None) -> _Region | None:
    """The mass of a normal's shell, outside of the core; None where its weights are too uneven to tell."""
    u = q.draw(DRAWS, generator)
    within = _within(q, u, core)
    if int(within.sum()) < LEAST_ESS:
        return None
    log_w = target(u)[0] - q.log_prob(u)
    log_w = torch.where(torch.isfinite(log_w) & within, log_w, -torch.inf).double()
    if not torch.isfinite(log_w).any():
        return None
    w = (log_w - log_w.max()).exp()
    if float(w.sum() ** 2 / (w**2).sum()) < LEAST_ESS:
        return None
    log_z = float(torch.logsumexp(log_w, 0)) - math.log(DRAWS)
    return _Region(q, log_z, float(w.std() / w.mean()) / DRAWS**0.5, core)


def _mass(r: _Region, evidence: Evidence) -> float:
    """The share of a shell in the posterior, at the least; of what the draws have seen as a whole."""
    se = math.hypot(r.se, min(evidence.se, 1.0))
    return math.exp(min(r.log_z - SURE * se - evidence.log_z, 500.0))


def _is_missing(expected: float, share: float, effective: float) -> bool:
    """Whether a shell has a smaller share of the draws than its mass asks for."""
    have = share + SURE * math.sqrt(share * (1 - share) / effective) + SURE**2 / effective
    return expected > MISSING[0] and expected > 2 * have


def _different(regions: list[_Region]) -> list[_Region]:
    """The heaviest first, each by what its mass is at the least, without those whose center one before them holds."""
    kept: list[_Region] = []
    for new in sorted(regions, key=lambda r: SURE * r.se - r.log_z):
        _, high = _shell(len(new.q.m))
        if all(float(old.q.radius(new.q.m[None])) > high for old in kept):
            kept.append(new)
    return kept


def _bridge(target: Density, draws: Tensor, parts: list[_Normal], generator: torch.Generator) -> Evidence:
    """log Z of the posterior by bridge sampling between its draws and a mixture that half of them makes."""
    n = len(draws) // 2
    made, held = draws[:n], draws[n:]
    cov = torch.cov(made.mT).reshape(draws.shape[1], -1)
    L, info = torch.linalg.cholesky_ex(cov + 1e-10 * torch.diag(cov.diagonal().clamp_min(1e-300)))
    normals = ([] if info else [_Normal(made.mean(0), L)]) + parts
    if not normals:
        return Evidence(math.nan, math.inf)
    each = -(-n // len(normals))
    u = torch.cat([q.draw(each, generator) for q in normals])

    def log_q(x: Tensor) -> Tensor:
        return torch.logsumexp(torch.stack([q.log_prob(x) for q in normals]), 0) - math.log(len(normals))

    at_q, at_p = (torch.nan_to_num(target(x)[0], nan=-math.inf).double() - log_q(x).double() for x in (u, held))
    return bridge_sampling(at_q, at_p)
