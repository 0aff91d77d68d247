r"""Draws of a mixture of normals, weighted, as draws of a posterior; and whether to believe them.

    q = Σ_i α_i [(1 − δ) N(μ_i, Σ_i) + δ t_ν(μ_i, Σ_i)],   w = p̃ / q,   E f ≈ Σ_s w_s f(u_s) / Σ_s w_s

The part δ of Student's t keeps the weights bounded where the posterior's tails are heavier than a normal's. Checks, one
record each, of the weights as they are:

importance   k-hat, and the Monte Carlo error that the weights leave in a mean and in a log sd (delta method)
score        E_w[z_i ∂_i log p(z)] = −1 in each coordinate z of the draws, which holds for the posterior (integration by
             parts) and fails where draws end before it does
tails        how fast each latent's own density falls far out: whether it has an sd
unseen_modes climbs from over-dispersed starts (`mode_search`)

Sources: Pareto smoothed importance sampling (Vehtari et al. 2024, arXiv:1507.02646); Weighted average importance
sampling and defensive mixture distributions (Hesterberg 1995); Measuring sample quality with Stein's method (Gorham and
Mackey 2015, arXiv:1506.03039), here with linear functions.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributions.transforms import ExpTransform, identity_transform

from ppgen.data import take
from ppgen.engine import LogJoint, log_joint
from ppgen.engine.density.joint import BLOCK, in_blocks
from ppgen.engine.density.laplace import LaplaceMarginal
from ppgen.engine.density.pathfinder import Density, mixture_weights
from ppgen.errors import PpgenError
from ppgen.inference.evaluation.estimates import Evidence
from ppgen.inference.evaluation.psis import effective, khat_se, smoothed, tail, threshold
from ppgen.inference.verdicts.findings import FINE, LOOK, WRONG, Finding, is_settled
from ppgen.inference.verdicts.mcmc_diagnostics import HEAVY, MOST_TAILS, heaviest, longest_tails
from ppgen.inference.verdicts.mode_search import search_modes
from ppgen.program import Program
from ppgen.structure import Structure

log = logging.getLogger("ppgen")

DEFENSIVE, DEGREES = 0.2, 5  # δ, ν
MEAN_ERROR, SD_ERROR = 0.1 / 3, 0.15 / 3  # sd, log sd: a third of what is promised of a mean and a log sd
SCORE_OFF = 0.15  # of 1
TAILS, FAR = (0.005, 0.01, 0.02), 0.05  # mass of a tail, the first with draws in it, and of its regression's draws
BEYOND = 8.0  # sds
ENDS = 30  # draws of a tail, from each of which a step out of the support is asked
LEAST_TAIL = 10  # effective draws in a tail
SURE = 3.0  # standard errors by which a slope is that of a heavy tail
ALIKE = 50  # effective draws below which weights say nothing
TAIL_ROWS = 3  # of an amortised guide, whose tails are looked at
LOST = 0.01  # of the draws, where there is no marginal
ADAPTED = 0.5  # k-hat that is asked of normals that weighted draws made: they know of no place that those missed


class Mixture(NamedTuple):
    """Normals with their log weights, (P,), (P, dim), (P, dim, dim)."""

    log_weights: Tensor
    means: Tensor
    roots: Tensor

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, dim); the shares of the normals, and of their t parts, are as even as whole numbers allow."""
        order = torch.randperm(n, generator=generator)
        at = (torch.arange(n) + 0.5) / n
        shares = self.log_weights.softmax(0).cumsum(0).to(at)
        which = torch.searchsorted(shares, at).clamp_max(len(self.means) - 1)[order]
        z = torch.randn(n, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        chi2 = torch.randn(n, int(DEGREES), generator=generator, dtype=z.dtype).square().sum(-1)
        heavy = torch.rand(n, generator=generator) < DEFENSIVE
        z = z * torch.where(heavy, (DEGREES / chi2).sqrt(), 1.0)[:, None]
        return self.means[which] + (self.roots[which] @ z[..., None])[..., 0]

    def log_prob(self, u: Tensor) -> Tensor:
        """(n, dim) -> (n,)."""
        return self.value_and_grad(u)[0]

    def value_and_grad(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """log q of vectors, (n, dim) -> (n,), and its gradient, (n, dim)."""
        dim = u.shape[-1]
        identity = torch.eye(dim).to(u)
        values, gradients = [], []
        for log_weight, mean, root in zip(self.log_weights.log_softmax(0), self.means, self.roots, strict=True):
            inverse = torch.linalg.solve_triangular(root, identity, upper=False)
            z = (u - mean) @ inverse.mT
            r2 = z.square().sum(-1)
            normal = -0.5 * (r2 + dim * math.log(2 * math.pi)) + math.log(1 - DEFENSIVE)
            t = (
                math.lgamma((DEGREES + dim) / 2) - math.lgamma(DEGREES / 2) - dim / 2 * math.log(DEGREES * math.pi)
                - (DEGREES + dim) / 2 * torch.log1p(r2 / DEGREES) + math.log(DEFENSIVE)
            )  # fmt: skip
            both = torch.logaddexp(normal, t)
            slope = (normal - both).exp() + (t - both).exp() * (DEGREES + dim) / (DEGREES + r2)
            values.append(log_weight + both - root.diagonal().log().sum())
            gradients.append(-(slope[:, None] * z) @ inverse)
        each = torch.stack(values)
        gradient = (each.softmax(0)[..., None] * torch.stack(gradients)).sum(0)
        return torch.logsumexp(each, 0), gradient

    def adapted(self, u: Tensor, w: Tensor) -> Mixture:
        """Normals of the means and covariances of weighted draws (S, dim), each draw shared among those it is near."""
        each = torch.stack(
            [Mixture(torch.zeros(1).to(u), m[None], L[None]).log_prob(u) for _, m, L in zip(*self, strict=True)]
        )
        shares = (each + self.log_weights.log_softmax(0)[:, None]).softmax(0) * w
        mass = shares.sum(1).clamp_min(1e-300)
        means = shares @ u / mass[:, None]
        roots = self.roots.clone()
        for i, (share, m) in enumerate(zip(shares, means, strict=True)):
            cov = (share[:, None] * (u - m)).mT @ (u - m) / mass[i]
            root, info = torch.linalg.cholesky_ex(cov)
            roots[i] = roots[i] if info else root
        return Mixture(mass.log().clamp_min(float(mass.log().max()) - math.log(1e3)), means, roots)


class Drawn(NamedTuple):
    """Draws (S, dim) of a mixture, the log joint of each, and its gradient."""

    mixture: Mixture
    u: Tensor
    lp: Tensor
    g: Tensor

    @classmethod
    def of(cls, mixture: Mixture, target: Density, n: int, generator: torch.Generator) -> Drawn:
        u = mixture.draw(n, generator)
        return cls(mixture, u, *target(u))

    def extended(self, target: Density, n: int, generator: torch.Generator) -> Drawn:
        """With n more draws of the same mixture."""
        more = Drawn.of(self.mixture, target, n, generator)
        return Drawn(self.mixture, *(torch.cat(v) for v in zip(self[1:], more[1:], strict=True)))

    def joined(self, other: Drawn) -> Drawn:
        """All draws, as those of one mixture: what only one of the two has seen keeps its weight."""
        n = torch.tensor([len(self.u), len(other.u)]).to(self.lp).log()
        log_weights = [q.log_weights.log_softmax(0) + k for q, k in zip((self.mixture, other.mixture), n, strict=True)]
        mixture = Mixture(
            torch.cat(log_weights), *(torch.cat(v) for v in zip(self.mixture[1:], other.mixture[1:], strict=True))
        )
        return Drawn(mixture, *(torch.cat(v) for v in zip(self[1:], other[1:], strict=True)))


class Weighted(NamedTuple):
    """Draws (S, dim), smoothed weights (S,) that sum to one, the log joint of each, the evidence, the records, and
    places not seen: (m, L)."""

    u: Tensor
    w: Tensor
    lp: Tensor
    evidence: Evidence
    findings: list[Finding]
    unseen: list[tuple[Tensor, Tensor]]

    @property
    def few(self) -> bool:
        """Whether the weights would do, were there more of them."""
        weights = self.findings[0]
        return bool(weights.details["few"]) and weights.figure <= weights.threshold

    @property
    def effective(self) -> float:
        return float(self.findings[0].details["ess"])

    @property
    def settled(self) -> bool:
        return is_settled(self.findings)

    def renewed(self, more: Weighted, joint: LogJoint, target: Density, g: Tensor) -> Weighted:
        """The draws and weights of `more`, a longer set of the same density, and its checks but that of unseen modes.

        Args:
            g: the gradient of the log joint at its draws.
        """
        u, w = more.u, more.w
        found = [*more.findings, score(u, w, g, joint.labels), tails(joint, u, w, more.lp, g, target)]
        known = {f.measure for f in found}
        return more._replace(findings=[*found, *(f for f in self.findings if f.measure not in known)])


@torch.no_grad()
def importance_weights(
    joint: LogJoint,
    target: Density,
    u: Tensor,
    log_q: Tensor,
    *,
    at: tuple[Tensor, Tensor] | None = None,
    prior: Callable[[int], Tensor] | None,
    seed: int,
    further: bool = True,
) -> Weighted:
    """Weighs draws of a known density, and checks them.

    Args:
        target: the log joint of vectors, any number at once, and its gradient.
        u, log_q: (S, dim) and (S,).
        at: target(u), where it is known.
        prior: n draws from the prior, unconstrained; None where it is flat somewhere.
        further: whether more than the weights is checked.
    """
    lp, g = target(u) if at is None else at
    log_w = torch.where(torch.isfinite(lp) & torch.isfinite(log_q), lp - log_q, -torch.inf).double()
    w, khat, ess, evidence = _smoothed(log_w)
    w, top = w.to(u), int(w.argmax())
    u, lp = torch.where((w > 0)[:, None], u, u[top]), torch.where(w > 0, lp, lp[top])
    found = [_importance(u, w, khat, ess, joint.labels)]
    weighted = Weighted(u, w, lp, evidence, found, [])
    if found[0].verdict == WRONG or not further:
        return weighted
    found.append(score(u, w, g, joint.labels))
    found.append(tails(joint, u, w, lp, g, target))
    search = search_modes(target, u, ess, evidence=evidence, weights=w, prior=prior, name=joint.place, seed=seed,
        size=getattr(joint, "whole", joint).dim,
    )  # fmt: skip
    if search is None:
        none = Finding("unseen_modes", "", math.nan, math.nan, LOOK, {"reason": "there are too many latents"})
        return weighted._replace(findings=[*found, none])
    return weighted._replace(findings=[*found, search.finding], unseen=search.unseen)


@torch.no_grad()
def completed(
    found: Weighted,
    drawn: Drawn,
    outer: LaplaceMarginal,
    target: Density,
    generator: torch.Generator,
) -> Weighted:
    """Draws of φ with draws of θ given them, weighed (`ppgen/engine/density/laplace.py`).

    Args:
        found: what was found of φ, by the marginal.
        drawn: draws of φ.
        target: of the whole log joint.
    """
    u, log_w = outer.complete(drawn.u, generator)
    log_w = (log_w + drawn.lp - drawn.mixture.log_prob(drawn.u)).double()
    log_w = torch.where(torch.isfinite(log_w), log_w, -torch.inf)
    if not torch.isfinite(log_w).any():
        raise PpgenError(f"no draw of {', '.join(outer.latents)} has a marginal by Laplace's method")
    w, khat, ess, evidence = _smoothed(log_w)
    w, (lp, g) = w.to(u), target(u)
    indices = _tail_indices(outer.whole, u, w, lp, g, target)
    heavy = {name for name, index in indices.items() if index > HEAVY}  # no number of draws would do for their sds
    importance = _importance(u, w, khat, ess, outer.whole.labels, ADAPTED, heavy)
    said = {f.measure: f for f in (importance, *found.findings[1:], heaviest(indices))}
    some = torch.multinomial(w, BLOCK, generator=generator)
    label = outer.other_top(drawn.u[some], generator)
    why = f"given {', '.join(outer.latents)}, {label} has more than one top" if label is not None else ""
    lost = float(drawn.lp.isnan().double().mean())
    if lost > LOST:
        why = why or f"Newton's steps to the top of the others came to no end at {lost:.0%} of the draws"
    if "unseen_modes" not in said:
        why = why or f"too few of the draws of {', '.join(outer.latents)} are effective by Laplace's method"
    if why and ("unseen_modes" not in said or said["unseen_modes"].verdict != WRONG):
        said["unseen_modes"] = Finding("unseen_modes", label or "", math.nan, math.nan, LOOK, {"reason": why})
    return Weighted(u, w, lp, evidence, list(said.values()), [])


def _smoothed(log_w: Tensor) -> tuple[Tensor, float, float, Evidence]:
    """Weights that sum to one, k-hat, effective draws, and the log of the mean weight, of log weights (S,)."""
    smooth, k = smoothed(log_w.clamp_min(float(log_w.max()) - 1e4).numpy()[:, None])
    S, ess = len(log_w), float(effective(smooth)[0])
    log_z = float(torch.logsumexp(log_w, 0)) - math.log(S)
    evidence = Evidence(log_z, max(1 / ess - 1 / S, 0.0) ** 0.5)
    return torch.as_tensor(np.exp(smooth[:, 0])), float(k[0]), ess, evidence


def is_unbounded(block: Any) -> bool:
    """Whether a latent's block of the vector is its value."""
    return getattr(block.transform, "base_transform", block.transform) == identity_transform


def _importance(
    u: Tensor,
    w: Tensor,
    khat: float,
    ess: float,
    labels: Sequence[str],
    most: float | None = None,
    heavy: Collection[str] = (),
) -> Finding:
    S = len(u)
    asked, good = float(tail(np.array([khat]), np.array([ess]), S)[0]), threshold(S)
    most = good if most is None else most
    mean = (w[:, None] * u).sum(0)
    off = u - mean
    variance = (w[:, None] * off.square()).sum(0)
    mean_se = ((w[:, None] * off).square().sum(0) / variance).sqrt()
    sd_se = 0.5 * (w[:, None] * (off.square() / variance - 1)).square().sum(0).sqrt()
    sd_se[[label in heavy for label in labels]] = 0.0
    worst = int(torch.maximum(mean_se / MEAN_ERROR, sd_se / SD_ERROR).argmax())
    few = bool((mean_se > MEAN_ERROR).any() or (sd_se > SD_ERROR).any())
    bad = not asked <= most or few
    graded = WRONG if ess < ALIKE or asked > good + khat_se(asked, S) else LOOK if bad else FINE
    said = {
        "draws": S, "ess": ess, "mean_error": float(mean_se[worst]), "sd_error": float(sd_se[worst]), "few": few,
        "khat_se": khat_se(khat, S),
    }  # fmt: skip
    return Finding("importance", labels[worst], asked, most, graded, said)


def tails(
    joint: LogJoint, u: Tensor, w: Tensor, lp: Tensor, g: Tensor, target: Density, *,
    at_edges: float = math.nan, chains: Tensor | None = None,
) -> Finding:  # fmt: skip
    """The latent with the heaviest tail; see `_tail_indices`."""
    return heaviest(_tail_indices(joint, u, w, lp, g, target, at_edges=at_edges, chains=chains))


def _tail_indices(
    joint: LogJoint, u: Tensor, w: Tensor, lp: Tensor, g: Tensor, target: Density, *,
    at_edges: float = math.nan, chains: Tensor | None = None,
) -> dict[str, float]:  # fmt: skip
    """The index k of each latent's heavier tail, P(|z| > t) ~ t^(-1/k), from the slope of its log density far out.

    That is E[∂ log p / ∂u_i | u_i], a mean of scores of all latents: −1/k of u = log z, and −(1 + 1/k) / u of u = z.
    Draws of the proposal reach farther than those of the posterior, and the tail is told before it is seen; and from
    the best draw of a tail the density is followed `BEYOND` sds farther, where a tail may end otherwise than it begins.

    Args:
        u, w, lp, g: (S, dim), weights (S,) that sum to one, the log joint and its gradient.
        target: the log joint, of other vectors.
        at_edges: k of a tail along whose draws the density ends, so that slopes do not tell it: NaN, it is not known;
            or minus infinity, where draws of the posterior are asked as well.
        chains: (S,), the number of each draw's chain; None: draws are independent.
    """
    chains = torch.arange(len(u)) if chains is None else chains
    off, g = u - w @ u, torch.where(w[:, None] > 0, g, 0.0)
    looked: list[tuple[int, bool]] = []  # entries, and whether they are logarithms
    for block in joint.blocks.values():
        transform = getattr(block.transform, "base_transform", block.transform)
        steps = getattr(transform, "parts", [transform])  # an exponential, and a shift to the bound
        log_scale = bool(steps) and isinstance(steps[0], ExpTransform)
        if log_scale or is_unbounded(block):
            own = longest_tails(off[:, block.start : block.stop].numpy(), MOST_TAILS)
            looked += [(block.start + i, log_scale) for i in own]
    some = off[:, [i for i, _ in looked]]
    cov = (w[:, None] * off).mT @ some
    along = g @ (cov / (w @ some.square()).clamp_min(1e-300))
    found = [
        (i, log_scale, _tail(i, side, off, w, g, direction, log_scale, chains))
        for (i, log_scale), direction in zip(looked, along.mT, strict=True)
        for side in ((1.0,) if log_scale else (1.0, -1.0))
    ]
    sd = (w @ off.square()).sqrt()
    beyond = _beyond(found, u, off, sd, lp, target)
    k = {"": -math.inf}
    for (i, _, within), other in zip(found, beyond, strict=True):
        name, index = joint.labels[i], max(within.k, other)  # of a k that is not known the first
        if index > HEAVY:
            ends, cut = _edges(within, i, u, off, sd, target)
            if ends:
                continue
            index = index if not cut or other > HEAVY else at_edges
        before = k.get(name, -math.inf)
        k[name] = before if math.isnan(before) or before >= index else index  # what is not known counts
    return k


class _Tail(NamedTuple):
    """k; the draws in it, and the direction in which they lie, its entry i being 1."""

    k: float
    inside: Tensor
    direction: Tensor


def _beyond(
    found: Sequence[tuple[int, bool, _Tail]], u: Tensor, off: Tensor, sd: Tensor, lp: Tensor, target: Density
) -> list[float]:
    """k by the fall of the density from the best draw of each tail to a point far beyond it."""
    known = [(i, log_scale, t) for i, log_scale, t in found if not math.isnan(t.k)]
    if not known:
        return [-math.inf] * len(found)
    best = [int(t.inside[lp[t.inside].argmax()]) for _, _, t in known]
    steps = torch.stack(
        [BEYOND * sd[i] * off[b, i].sign() * t.direction for (i, _, t), b in zip(known, best, strict=True)]
    )
    falls = lp[best] - target(u[best] + steps)[0]
    indices = []
    for (i, log_scale, _), b, step, fall in zip(known, best, steps, falls.tolist(), strict=True):
        first, last = float(off[b, i]), float(off[b, i] + step[i])
        rate = fall / (last - first) if log_scale else fall / math.log(last / first) - 1.0
        indices.append(-math.inf if not math.isfinite(fall) else 1 / rate if rate > 0 else math.inf)
    each = iter(indices)
    return [-math.inf if math.isnan(t.k) else next(each) for _, _, t in found]


def _edges(tail: _Tail, i: int, u: Tensor, off: Tensor, sd: Tensor, target: Density) -> tuple[bool, bool]:
    """Whether a tail is cut off where it lies, and whether slopes tell nothing of it: there the density is zero within
    an sd of each of its draws, here of some. What it loses over an edge, as of a and b where y ~ Uniform(a, a + b), is
    in no slope."""
    inside = tail.inside[:ENDS]
    if not len(inside):
        return False, False
    outward = sd[i] * off[inside, i].sign()[:, None] * tail.direction
    alone = torch.zeros_like(outward).index_fill_(1, torch.tensor(i), 1.0) * sd[i]
    zero = [torch.isneginf(target(u[inside] + step)[0]) for step in (outward, -outward, alone, -alone)]
    return bool(zero[0].all()), any(bool(z.any()) for z in zero)


def _tail(
    i: int, side: float, off: Tensor, w: Tensor, g: Tensor, along: Tensor, log_scale: bool, chains: Tensor
) -> _Tail:
    """A tail of entry i; its k is NaN where too few draws are in it.

    E[∂ log p / ∂u_j | u_i] = 0 for j other than i: the derivative along any direction of which entry i is 1 has the
    same mean. Along the regression of u on u_i, of all draws (`along`) or of those far out, it is close to a function
    of u_i alone, and not as noisy as the scores of latents that are strongly correlated.

    A tail is heavy where it is surely, by `SURE` standard errors, which are those of means by chain: a visit to a tail
    is many draws of one. Where the farthest is not, those that begin nearer, of more draws, may be.
    """
    order = (side * off[:, i]).argsort(descending=True)
    mass = w[order].cumsum(0)
    tails, far = [order[mass <= share] for share in TAILS], order[mass <= FAR]
    tails = [t for t in tails if float(w[t].sum() ** 2) >= LEAST_TAIL * float(w[t].square().sum()) > 0]
    if not tails:
        return _Tail(math.nan, far, off[0])
    near = w[far] / w[far].sum()
    spread = off[far] - near @ off[far]
    regression = (near * spread[:, i]) @ spread
    direction = regression / regression[i].clamp_min(1e-300)
    estimates = []
    for inside in tails:
        slopes = side * torch.stack([g[inside, i], along[inside], g[inside] @ direction])
        falls = -slopes if log_scale else -slopes * side * off[inside, i] - 1.0
        fall, se = _least_noisy(falls, w[inside] / w[inside].sum(), chains[inside])
        estimates.append((fall, fall + SURE * se))
    sure = [fall for fall, most in estimates if most < 1 / HEAVY]
    fall = estimates[0][0] if estimates[0][0] >= 1 / HEAVY else sure[0] if sure else estimates[0][1]
    return _Tail(1 / fall if fall > 0 else math.inf, tails[0], direction)


def _least_noisy(values: Tensor, w: Tensor, chains: Tensor) -> tuple[float, float]:
    """Of (estimates, S) with weights that sum to one, the mean whose standard error is least, and that."""
    means = values @ w
    off = (values - means[:, None]) * w
    _, which = chains.unique(return_inverse=True)
    by_chain = off.new_zeros(len(values), int(which.max()) + 1).index_add_(1, which, off)
    se = by_chain.square().sum(1).sqrt()
    best = int(se.argmin())
    mass = w.new_zeros(by_chain.shape[1]).index_add_(0, which, w)
    return float(means[best]), max(float(se[best]), 1e-300) * _few_visits(mass)


def _few_visits(mass: Tensor) -> float:
    """What a standard error by chain is multiplied by, of the mass that each chain has there: the quantile of Student's
    t at `SURE` normal errors over these. One chain alone says nothing of how chains differ."""
    from scipy.special import ndtr, stdtrit  # scipy.stats takes half a second to import

    freedom = float(mass.square().sum().reciprocal()) - 1
    return float(stdtrit(max(freedom, 0.1), ndtr(SURE))) / SURE if mass.count_nonzero() > 1 else math.inf


def guide_tails(
    program: Program, data: Mapping[str, Any], structure: Structure, drawn: Mapping[str, np.ndarray], log_w: np.ndarray
) -> Finding | None:
    """The heaviest tail of the posterior, by the weighted draws of a guide, whose own tails say nothing of it.

    A normal guide of a posterior like t(2.5) has weights that look tame up to where its draws end, and what they
    correct is an sd that is a third too small.

    Args:
        drawn: by latent, (S, plates, event).
        log_w: (S, n), one a row where every latent is local; of these the `TAIL_ROWS` least even are looked at.

    Returns:
        None where all are light, or it is not known.
    """
    rows: list[int | None] = [None]
    if structure.by_row:
        rows = [int(i) for i in effective(log_w).argsort()[:TAIL_ROWS]]
    found: list[Finding] = []
    for i in rows:
        few = data if i is None else take(data, torch.tensor([i]), structure.row_columns)
        try:
            joint = log_joint(program, few)
            u, w = guide_vectors(joint, _of_row(drawn, structure, i), log_w[:, i or 0])
            own = heavy_tail(joint, in_blocks(joint.value_and_grad), u, w)
        except Exception as e:
            log.info("the tails of the posterior were not looked at: %s", e)
            return None
        found += [] if own is None else [own if i is None else replace(own, where=own.where.replace("[0", f"[{i}", 1))]
    return max(found, key=lambda f: f.figure, default=None)


def heavy_tail(joint: LogJoint, target: Density, u: Tensor, w: Tensor) -> Finding | None:
    """The heaviest tail, by weighted draws; None where all are light, or it is not known."""
    f = tails(joint, u, w, *target(u), target)
    return None if f.verdict == FINE or math.isnan(f.figure) else f


def _of_row(drawn: Mapping[str, np.ndarray], structure: Structure, i: int | None) -> Mapping[str, np.ndarray]:
    if i is None:
        return drawn
    axis = {n: 1 + next(k for k, d in enumerate(structure[n].dims) if d in structure.row_plates) for n in drawn}
    return {n: v.take([i], axis[n]) for n, v in drawn.items()}


def guide_vectors(joint: LogJoint, drawn: Mapping[str, np.ndarray], log_w: np.ndarray) -> tuple[Tensor, Tensor]:
    """Draws (S, plates, event) of each latent as vectors of the log joint, and their smoothed weights (S,)."""
    u = joint.vectors(drawn, 1)
    finite = torch.isfinite(u).all(-1)
    u = torch.where(finite[:, None], u, u[finite][:1])
    w = torch.as_tensor(np.exp(smoothed(log_w[:, None])[0][:, 0])).to(u) * finite
    return u, w / w.sum()


def score(u: Tensor, w: Tensor, g: Tensor, labels: Any) -> Finding:
    """E_w[z g] + 1 in coordinates in which the draws have mean 0 and covariance I: the largest, less its error."""
    mean = (w[:, None] * u).sum(0)
    off = u - mean
    cov = (w[:, None] * off).mT @ off
    root, info = torch.linalg.cholesky_ex(cov + 1e-12 * cov.diagonal().diag())
    if info:
        return Finding("score", "", math.nan, SCORE_OFF, LOOK)
    z = torch.linalg.solve_triangular(root, off.mT, upper=False).mT
    value = z * (torch.where(w[:, None] > 0, g, 0.0) @ root)  # rootᵀ g is the gradient in z
    figure = (w[:, None] * value).sum(0) + 1
    se = (w[:, None] * (value - figure + 1)).square().sum(0).sqrt()
    excess = figure.abs() - 3 * se
    worst = int(excess.argmax())
    graded = FINE if float(excess[worst]) <= SCORE_OFF else LOOK
    return Finding("score", labels[worst], float(figure[worst]), SCORE_OFF, graded, {"se": float(se[worst])})


def mixture_of(parts: list[tuple[Tensor, Tensor]], target: Density, generator: torch.Generator) -> Mixture:
    """The normals with the weights of the mixture that is nearest to the posterior."""
    means, roots = torch.stack([m for m, _ in parts]), torch.stack([L for _, L in parts])
    weights = mixture_weights(target, means, roots, generator) if len(parts) > 1 else torch.zeros(1).to(means)
    return Mixture(weights.clamp_min(float(weights.max()) - math.log(1e3)), means, roots)
