r"""ChEES-HMC: Hamiltonian Monte Carlo on many chains at once, whose trajectory length the chains learn together.

    maximise over T   C(T) / T^κ,   C = E[ (|y' - E y'|² - |y - E y|²)² ] / 4
                                                                  y: a chain's position, y': its proposal after time h T
    y = root⁻¹ (u - centre)                                       root rootᵀ: the pooled covariance of the warm-up

All chains take the same number of leapfrog steps, so that one batched call is one step of all of them. h in (0, 1] is
a Halton sequence; T rises by Adam on log T along the gradient of the criterion; the step size is set by dual averaging
to a harmonic mean acceptance of 0.651; metric and centre are those of the last, doubling window of the warm-up, which
ends early where a window has changed neither them nor T. Where chains still diverge in a metric that was learned, as
where the posterior is ever narrower far out, the acceptance is 0.9 from then on. In the coordinates y the metric is the
identity. Chains in a mode of next to no mass begin anew, before the last window, from where others are
(`sampling/negligible.py`).

Beyond 200 dimensions the covariance is a diagonal and the few directions in which the draws of a window are correlated
more strongly than noise makes them (`hamiltonian.strongest`).

κ = 1/8 is not the paper's (0): C is nearly flat beyond its first maximum, at T = 2.2 for a normal posterior, and
noise took T from there to 10 on a hidden Markov model, four times the steps for fewer effective draws.

Sources: An Adaptive MCMC Scheme for Setting Trajectory Lengths in Hamiltonian Monte Carlo (Hoffman, Radul, Sountsov,
AISTATS 2021); dual averaging: The No-U-Turn Sampler (Hoffman & Gelman 2014, arXiv:1111.4246), section 3.2.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from ppgen.engine.compiling.optimisers import adam, bias_corrections
from ppgen.engine.density.inverse_hessian import LowRank
from ppgen.engine.density.pathfinder import Paths
from ppgen.inference.sampling.hamiltonian import (
    Chains,
    Outcome,
    Preconditioner,
    Target,
    density_of,
    first_step,
    low_rank_root,
    root_of,
    strongest,
    transition,
)
from ppgen.inference.sampling.kernels import DENSE_DIM, SMALL_DIM, Begun, Draws, Numbers
from ppgen.inference.sampling.negligible import negligible_modes

SUMMARY = "ChEES-HMC: tens to hundreds of chains in step, which learn together"
DEFAULTS = Numbers(chains=64, draws=250, warmup=400)
LARGE = Numbers(chains=16, draws=1000, warmup=400)
LONG = Numbers(chains=16, draws=400, warmup=400)
ALONE = Numbers(chains=8, draws=500, warmup=400)
LEAST = Numbers(chains=4, draws=4, warmup=20)
TOGETHER = True

ACCEPTANCE = 0.651  # the harmonic mean that is optimal for ChEES (section 4 of the paper)
CAREFUL, DIVERGED = 0.9, 0.001  # that where more of a window's proposals diverged, as a share
TRYING = 20  # iterations in which dual averaging still tries steps that are far too large
MAX_STEPS = 1000  # leapfrog steps a draw
CONDITION = 10.0  # of the correlations, above which a matrix pays between the two, and a low-rank one beyond them
RANK, ROWS, OF_EACH = 16, 512, 16  # of a low-rank metric: directions; draws they are told by, those of an iteration
SETTLED = 0.2  # the change of coordinates (in sd, log sd) and of log T below which the warm-up ends
REFUSED = 0.03  # the least acceptance in a harmonic mean: one chain in 64 that is always refused takes it to 0.66
COST = 0.125  # κ
RATE, BETAS = 0.025, (0.0, 0.95)  # of Adam on log T
MOST_SLOPES = 2**22  # entries of the gradients that are kept with the draws
START = 2.0  # trajectory length to begin with: near the best for a standard normal


def sample(
    joint: Target, paths: Paths, *, draws: int, warmup: int, metric: str = "auto",
    generator: torch.Generator | None = None, report: Callable[[int], None] | None = None,
) -> Draws:  # fmt: skip
    """Runs the chains in step, in coordinates that begin with Pathfinder's best normal; see `kernels`."""
    frame = _first_frame(paths.mean, paths.covariance, metric)
    return _run(joint, paths.u, draws=draws, warmup=warmup, frame=frame, metric=metric, generator=generator,
                report=report)  # fmt: skip


def _run(
    target: Target,
    start: Tensor,
    *,
    draws: int,
    warmup: int,
    frame: Preconditioner | None = None,
    metric: str = "auto",
    generator: torch.Generator | None = None,
    report: Callable[[int], None] | None = None,
) -> Draws:
    """Runs the chains.

    Args:
        target: the log joint of unconstrained vectors.
        start: (chains, dim), where the log joint is finite. Two chains at least.
        draws, warmup: iterations; draws after the warm-up are kept. A warm-up that has settled ends before.
        frame: the coordinates to begin with; its root says of which kind the metric is.
        metric: auto: a diagonal one of many dimensions may become low-rank.
        report: called with the number of iterations done, of warmup + draws; those that are not needed count.
    """
    C, D = start.shape
    frame = frame or Preconditioner(torch.zeros(D).to(start), torch.ones(D).to(start))
    chains = frame.chains(target, start)
    learned = _Warmup(target, chains, frame, warmup, metric == "auto", generator)
    kept: dict[str, list[Tensor]] = {"u": []}
    slopes: list[Tensor] | None = [] if C * D * draws <= MOST_SLOPES else None
    steps, i, total = 0, 0, warmup + draws
    while i < learned.iterations + draws:
        warm = i < learned.iterations
        size = learned.step.current if warm else learned.step.average
        n = learned.steps(i, size)
        old = chains
        chains, p, alpha, moved = transition(target, old, learned.frame, size, n, generator)
        steps, i = steps + n, i + 1
        if warm:
            chains = learned.update(i, old, chains, moved, p, alpha, n * size, size)
        else:
            kept["u"].append(learned.frame.out(chains.y))
            if slopes is not None:
                slopes.append(learned.frame.slope(chains.g))
            stats = alpha._asdict() | {"lp": chains.lp}
            for name, value in stats.items():
                kept.setdefault(name, []).append(value)
            for name, number in (("n_steps", n), ("step_size", size)):
                kept.setdefault(name, []).append(torch.full((C,), number))
        if report is not None:
            report(total - (learned.iterations + draws - i))
    found = {name: torch.stack(values) for name, values in kept.items()}
    found["acceptance_rate"] = found.pop("acceptance")
    g = torch.stack(slopes) if slopes else None
    return Draws(found.pop("u"), found, steps, learned.growth, learned.frame.kind, begun=learned.begun, g=g)


def _harmonic(alpha: Tensor, diverging: Tensor) -> float:
    """The harmonic mean of acceptances over chains; those that have none count by their number alone: one chain that is
    stuck would otherwise bring the step size of all to zero."""
    share = 1 - float(diverging.to(alpha.dtype).mean())
    return share / float((1 / alpha[~diverging].clamp_min(REFUSED)).mean()) if share else 0.0


def _halton(i: int) -> float:
    """Element i >= 1 of the van der Corput sequence of base 2.

    >>> [_halton(i) for i in range(1, 5)]
    [0.5, 0.25, 0.75, 0.125]
    """
    value, scale = 0.0, 0.5
    while i:
        value, scale, i = value + scale * (i & 1), scale / 2, i >> 1
    return value


# -- what is learned ---------------------------------------------------------------------------------------


class _Warmup:
    """What the chains learn together: step size, trajectory length and coordinates.

    Attributes:
        iterations: of the warm-up; fewer than were asked for where it has settled.
        begun: chains that began anew before the last window.
    """

    def __init__(
        self, target: Target, chains: Chains, frame: Preconditioner, iterations: int, auto: bool,
        generator: torch.Generator | None,
    ):  # fmt: skip
        self.target, self.frame, self.auto, self.generator = target, frame, auto, generator
        self.iterations, self.ends = iterations, _windows(iterations)
        self.rest = iterations - self.ends[-1]
        self.seen, self.growth = self._moments(chains), torch.zeros_like(chains.y[0])
        self.begun: Begun | None = None
        self.judged = self.ends[-3:-1] if len(self.ends) > 2 else [0, self.ends[-1]]  # chains, by this window
        self.window: list[tuple[Tensor, Tensor]] = []  # u and lp in it
        self.acceptance, self.diverged = ACCEPTANCE, list[float]()  # wanted; shares of the window's proposals
        self._begin(chains)

    def _moments(self, chains: Chains) -> _Moments:
        dim = chains.y.shape[1]
        return _Moments(dim, chains.y, matrix=dim <= DENSE_DIM or self.frame.kind == "dense")

    def _begin(self, chains: Chains) -> None:
        self.step = _Averaged(first_step(self.target, chains, self.frame, self.generator))
        self.length = _Length(START)

    def steps(self, i: int, size: float) -> int:
        """Leapfrog steps of iteration i."""
        cap = 32 if len(self.ends) > 2 and i < self.ends[1] else MAX_STEPS  # the metric is still unknown
        return min(max(math.ceil(_halton(i + 1) * self.length.value / size), 1), cap)

    def update(
        self,
        i: int,
        old: Chains,
        chains: Chains,
        moved: Chains,
        p: Tensor,
        alpha: Outcome,
        time: float,
        size: float,
    ) -> Chains:
        """Takes in iteration i; the chains, in new coordinates where a window ends."""
        self.step.update(_harmonic(alpha.acceptance, alpha.diverging | alpha.outside), self.acceptance)
        if self.step.count > TRYING:
            self.diverged.append(float(alpha.diverging.double().mean()))
        self.length.update(old.y, moved.y, p, alpha.acceptance, time, size)
        u = self.frame.out(chains.y)
        self.seen.add(u)
        if self.judged[0] < i <= self.judged[1] and self.seen.matrix:
            self.window.append((u, chains.lp))
        if i not in self.ends:
            return chains
        chains = self._anew(chains) if i == self.judged[1] else chains
        reframe = _reframe if self.seen.matrix else _reframe_large
        auto = self.auto and i > self.ends[0]  # the draws of the first window are still on their way
        self.frame, chains, self.growth, change = reframe(self.target, self.frame, chains, self.seen, auto)
        self.seen = self._moments(chains)
        careful = self._more_careful(i)
        if max(change, self.length.drift) < SETTLED and i in self.ends[2:] and self.begun is None and not careful:
            self.ends, self.iterations = self.ends[: self.ends.index(i) + 1], i + self.rest
        elif i < self.ends[-1]:
            self._begin(chains)
        else:
            self.step = _Averaged(self.step.current)
        return chains

    def _more_careful(self, i: int) -> bool:
        """Whether chains diverged in a window whose metric was learned in two before it: steps are smaller from now."""
        share = sum(self.diverged) / max(len(self.diverged), 1)
        self.diverged.clear()
        before, late = self.acceptance, i in self.ends[2:]
        self.acceptance = CAREFUL if late and share > DIVERGED else before
        return self.acceptance != before

    def _anew(self, chains: Chains) -> Chains:
        """The chains, those in a mode of next to no mass where others are; what the window has seen without them."""
        if not self.window:
            return chains
        u, lp = (torch.stack(v) for v in zip(*self.window, strict=True))
        self.window.clear()
        root = torch.eye(u.shape[-1]).to(u) if self.frame.kind == "dense" else torch.ones(u.shape[-1]).to(u)
        self.begun = negligible_modes(density_of(self.target, u.shape[1], root), u, lp, self.generator)
        if self.begun is None:
            return chains
        others = torch.ones(u.shape[1], dtype=torch.bool)
        others[self.begun.chains] = False
        self.seen = self._moments(chains)
        for each in u:
            self.seen.add(each[others])
        origin = torch.arange(u.shape[1])
        where = others.nonzero()[:, 0]
        picked = torch.randint(len(where), (len(self.begun.chains),), generator=self.generator)
        origin[self.begun.chains] = where[picked]
        return Chains(*(v[origin] for v in chains))


class _Averaged:
    """The step size by dual averaging."""

    def __init__(self, first: float):
        self.mu, self.count, self.error = math.log(10 * first), 0, 0.0
        self.log, self.log_average = math.log(first), math.log(first)

    def update(self, acceptance: float, wanted: float = ACCEPTANCE) -> None:
        self.count += 1
        w = 1 / (self.count + 10)
        self.error += w * (wanted - acceptance - self.error)
        self.log = self.mu - self.count**0.5 / 0.05 * self.error
        w = self.count**-0.75
        self.log_average += w * (self.log - self.log_average)

    @property
    def current(self) -> float:
        return math.exp(self.log)

    @property
    def average(self) -> float:
        return math.exp(self.log_average)


class _Length:
    """log T by Adam up the gradient of the criterion."""

    def __init__(self, first: float):
        self.log, self.moments, self.count = math.log(first), (0.0, 0.0), 0
        self.log_average = self.log

    @property
    def value(self) -> float:
        return math.exp(self.log_average)

    @property
    def drift(self) -> float:
        """How far log T is from its average: it is still on its way."""
        return abs(self.log - self.log_average)

    def update(self, y: Tensor, moved: Tensor, p: Tensor, alpha: Tensor, time: float, step: float) -> None:
        weight = torch.where(alpha > 0, alpha, 0.0)
        total = float(weight.sum())
        if total < 1e-3:
            return
        ok = (alpha > 0)[:, None]
        moved, p = torch.where(ok, moved, y), torch.where(ok, p, 0.0)
        a, b = y - y.mean(0), moved - (weight[:, None] * moved).sum(0) / total
        change = (b**2).sum(-1) - (a**2).sum(-1)
        each = change * (time * (b * p).sum(-1) - COST * change / 4)
        gradient = float((weight * each).sum()) / total
        if not math.isfinite(gradient):
            return
        self.count += 1
        corrections = bias_corrections(float(self.count), BETAS)
        self.log, self.moments = adam(self.log, -gradient, self.moments, corrections, RATE, BETAS, 1e-30)
        # a large step that is being tried must not lift T
        self.log = min(max(self.log, math.log(min(step, START))), math.log(MAX_STEPS * step))
        w = max(self.count**-0.5, 0.02)
        self.log_average += w * (self.log - self.log_average)


class _Moments:
    """Pooled mean and covariance over chains and iterations (Welford's, a batch at a time).

    Args:
        matrix: whether all of the covariance is kept, or its diagonal, and the last `ROWS` of some chains in turn.
    """

    def __init__(self, dim: int, like: Tensor, matrix: bool = True):
        self.n, self.mean, self.matrix = 0, torch.zeros(dim).to(like), matrix
        self.sum = torch.zeros(dim, dim).to(like) if matrix else torch.zeros(dim).to(like)
        self.rows: deque[Tensor] = deque(maxlen=-(-ROWS // OF_EACH))
        self._turn = 0

    def add(self, u: Tensor) -> None:
        n = len(u)
        before = u - self.mean
        self.n += n
        self.mean = self.mean + before.sum(0) / self.n
        after = u - self.mean
        self.sum += before.mT @ after if self.matrix else (before * after).sum(0)
        if not self.matrix:
            self.rows.append(u[(self._turn + torch.arange(min(OF_EACH, n))) % n])
            self._turn += OF_EACH

    @property
    def covariance(self) -> Tensor:
        """(dim, dim), or its diagonal."""
        c = self.sum / max(self.n - 1, 1)
        return 0.5 * (c + c.mT) if c.dim() == 2 else c

    @property
    def strongest(self) -> tuple[Tensor, Tensor]:
        """Of the correlations; see `hamiltonian.strongest`."""
        variance = self.covariance
        sd = torch.where(variance > 0, variance, 1.0).sqrt()
        return strongest((torch.cat([*self.rows]) - self.mean) / sd, RANK)


def _windows(warmup: int) -> list[int]:
    """Where the metric is set anew: windows that double, a last one of what is left, and a rest for the step size.

    >>> _windows(400)
    [11, 33, 77, 356]
    """
    usable = warmup - max(warmup // 9, 1)
    first = max(usable // 31, 4)
    ends: list[int] = []
    size = first
    while usable - sum(ends[-1:]) >= 3 * size or not ends:
        ends.append((ends[-1] if ends else 0) + size)
        size *= 2
    ends[-1:] = [usable] if usable > (ends[-2] if len(ends) > 1 else 0) else []
    return ends


def _reframe(
    target: Target, frame: Preconditioner, chains: Chains, seen: _Moments, _: bool
) -> tuple[Preconditioner, Chains, Tensor, float]:
    """The frame of a window's covariance, the chains in it, the direction that grew most, and the largest change of
    the log sd, or of the mean in sd, along any direction of the frame."""
    u, cov, dense = frame.out(chains.y), seen.covariance, frame.root.dim() == 2
    variance = cov.diagonal()
    sd = torch.where(variance > 0, variance, 1.0).sqrt()
    inside = frame.into(frame.centre + cov)
    inside = frame.into(frame.centre + inside.mT)  # root⁻¹ cov root⁻ᵀ
    values, vectors = torch.linalg.eigh(0.5 * (inside + inside.mT))
    growth = frame.out(vectors[:, -1]) - frame.centre
    change = max(float(frame.into(seen.mean[None]).abs().max()), float(values.clamp_min(1e-30).log().abs().max() / 2))
    new = Preconditioner(seen.mean, root_of(cov, seen.n) if dense else sd)
    return new, new.chains(target, u), growth, change


def _reframe_large(
    target: Target, frame: Preconditioner, chains: Chains, seen: _Moments, auto: bool
) -> tuple[Preconditioner, Chains, Tensor, float]:
    """The same where there are too many dimensions for a matrix: along the entries of u, and the few directions that
    they are correlated in.

    Args:
        auto: whether a diagonal metric may become low-rank.
    """
    u, variance, old = frame.out(chains.y), seen.covariance, frame.sd
    variance = torch.where(variance > 0, variance, 1.0)
    sd = variance.sqrt()
    values, vectors = seen.strongest
    if frame.kind == "low-rank" or auto and len(values) and float(values[0]) > CONDITION:
        root = low_rank_root(variance, values, vectors, RANK)
    else:
        root = sd
    changes = [((seen.mean - frame.centre) / old).abs(), (sd / old).log().abs()]
    if len(values):
        growth = sd * vectors[:, 0] * values[0].sqrt()
        if frame.kind == "low-rank":
            along = frame.into(frame.centre + (sd[:, None] * vectors).mT).norm(dim=-1)  # ℓ^-½ where it is as it was
            changes.append((along * values.sqrt()).log().abs())
    else:
        growth = torch.where(sd / old == (sd / old).max(), sd, 0.0)
    new = Preconditioner(seen.mean, root)
    return new, new.chains(target, u), growth, max(float(c.max()) for c in changes)


def _first_frame(mean: Tensor, covariance: Tensor | LowRank, metric: str) -> Preconditioner:
    """Coordinates of a first guess at the posterior.

    Args:
        mean: (dim,).
        covariance: (dim, dim), or that of one normal of low rank, where there are many dimensions.
        metric: diag, dense, or auto: dense where it is small, or where the correlations make it worth the products.
    """
    if isinstance(covariance, LowRank):
        return _first_large(mean, covariance, metric)
    dim = len(mean)
    sd = covariance.diagonal().clamp_min(1e-30).sqrt()
    if metric == "auto" and SMALL_DIM < dim <= DENSE_DIM:
        metric = "dense" if _condition(covariance / sd / sd[:, None]) > CONDITION else "diag"
    elif metric == "auto":
        metric = "dense" if dim <= SMALL_DIM else "diag"
    return Preconditioner(mean, sd if metric == "diag" else root_of(covariance, 10 * dim))


def _first_large(mean: Tensor, covariance: LowRank, metric: str) -> Preconditioner:
    """The same of many dimensions: diagonal, or low-rank where few directions are strong or a matrix is asked for."""
    d, P, stretch = covariance
    extra = stretch**2 - 1
    variance = d**2 * (1 + (P**2 * extra).sum(1)).clamp_min(1e-30)
    long = extra > 0
    factor = (d / variance.sqrt())[:, None] * P[:, long] * extra[long].sqrt()
    vectors, size, _ = torch.linalg.svd(factor, full_matrices=False)
    values = 1 + size[:RANK] ** 2
    if metric == "diag" or metric == "auto" and not (len(values) and float(values[0]) > CONDITION):
        return Preconditioner(mean, variance.sqrt())
    return Preconditioner(mean, low_rank_root(variance, values, vectors[:, : len(values)], RANK))


def _condition(correlation: Tensor) -> float:
    values = torch.linalg.eigvalsh(correlation)
    return float(values[-1] / values[0].clamp_min(1e-12))
