r"""Whether chains are to be believed: one finding a check, those that are fine too.

Asked of every latent: do the chains agree (R-hat, rank-normalised, split and folded), are there enough effective draws
in the bulk and in the tails, and do its moments exist? Of a tail

    P(|z| > t) ~ t^(-1/k)         E |z|^r is finite for r < 1/k

an average over draws of |z|^r behaves as importance weights of shape r k do: it is worth something below r k = 0.7. So
a mean wants k < 0.7 and an sd, the mean of a square, k < 0.35. Quantiles want nothing.

Thresholds: R-hat 1.01 and 400 effective draws are those of Vehtari et al. (2021, section 4): an s.e. of a mean of 5% of
its sd, and enough for R-hat and ESS to be estimated themselves. Of many short chains R-hat is that of eight groups of
them (nested R-hat): that of single chains passes 1.01 by itself where 250 draws of each are autocorrelated, however
many the chains. Its threshold is what groups in agreement with 400 effective draws in all stay below in 99 of 100 runs,

    R̂² = 1 + χ²_{K-1} / 400,    at its quantile 1 - 0.01 / (2 entries)

and a chain among many that is elsewhere is seen by its position and by ESS. R-hat above 1.1, which Gelman and Rubin's
rule of 1992 refuses too, is "wrong"; so are chains that never moved or are elsewhere. E-BFMI below 0.3 is Betancourt's.
A single divergence in a thousand draws is let pass: chains that adapt meet one now and then. A proposal that left the
support, where log p is minus infinity, is no divergence: it was refused as it should be, and its share is said.

Sources: R-hat and ESS: Rank-normalization, folding, and localization (Vehtari et al. 2021, arXiv:1903.08008); Nested
R-hat: Assessing the convergence of Markov chain Monte Carlo when running many short chains (Margossian et al. 2024,
arXiv:2110.13017); Pareto
k-hat of a latent's own tails: Pareto smoothed importance sampling (Vehtari et al. 2024, arXiv:1507.02646); E-BFMI:
A conceptual introduction to Hamiltonian Monte Carlo's diagnosis of energy (Betancourt 2016, arXiv:1604.00695).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ppgen.inference.evaluation.estimates import Evidence
from ppgen.inference.evaluation.psis import GOOD_K, khat_se
from ppgen.inference.sampling.kernels import NEGLIGIBLE, Draws, distances
from ppgen.inference.verdicts.findings import FINE, LOOK, WRONG, Finding, grade

GOOD_RHAT, WRONG_RHAT, GOOD_ESS, GOOD_BFMI, DIVERGING = 1.01, 1.1, 400, 0.3, 0.001
GOOD_EVIDENCE = 0.2  # nats
SUPERCHAINS = 8
MANY, WORST = 100, 12  # entries, beyond which those are looked at whose quick figures are worst, so many by each figure
TAIL = 1.645  # sds, beyond which a quick figure counts a tail
CHOSEN_BY = 2**24  # values of draws, at most about, that the entries with the longest tails are chosen by
CHUNK = 2**20  # values whose quick figures are made together
TAILS = (0.05, 0.95)
LEAST = 225  # effective draws for a tail of 45
HEAVY = GOOD_K / 2  # of a tail, from which on there may be no sd
MOST_TAILS = 60  # entries of a latent whose tails are fitted: a few milliseconds each
DERIVED, LOOKED_AT = 20, 10_000  # entries of a deterministic site whose tails are fitted, of the first so many


class _Latents(Protocol):
    """Where draws come from: `ppgen.engine.LogJoint` is one."""

    @property
    def labels(self) -> Sequence[str]: ...

    def unflatten(self, u: Tensor) -> Mapping[str, Tensor]: ...


def findings(found: Draws, joint: _Latents, bounded: Collection[str] = ()) -> list[Finding]:
    """One for each check, in this order: chains, R-hat, ESS of bulk and tails, divergences, proposals outside of the
    support (where the kernel can tell), E-BFMI, heavy tails. Of islands of particles the error of log p(x) takes the
    place of the three that are about moves.

    Args:
        found: the chains, on the unconstrained scale.
        joint: what they are draws of.
        bounded: latents that have all moments, whatever their draws look like.
    """
    u = found.u.movedim(1, 0).numpy()  # (chains, draws, entries)
    lp = found.stats["lp"].T.numpy()
    worst = _suspects(u)
    labels = [joint.labels[i] for i in worst]
    few = u[..., worst] if len(worst) < u.shape[-1] else u
    if found.evidence is None:
        moves = [
            _divergences(found.stats["diverging"].numpy()),
            *_outside(found.stats),
            _energy(found.stats["energy"].T.numpy()),
        ]
    else:  # weights, and not moves alone, bring particles to where they have to be
        moves = [_evidence(found.evidence)]
    return [
        *_chains(u, lp),
        _agreement(few, labels, u.shape[-1]),
        _enough("ess_bulk", _each(few, "ess"), labels),
        _enough("ess_tail", _each(few, "ess", method="tail", prob=TAILS), labels),
        *moves,
        _heavy_tails({n: v.movedim(1, 0).numpy() for n, v in joint.unflatten(found.u).items() if n not in bounded}),
    ]


def _chains(u: np.ndarray, lp: np.ndarray) -> list[Finding]:
    """Chains that never moved, and chains that are where the others are not."""
    stuck = np.flatnonzero((np.ptp(u, axis=1) == 0).all(-1))
    apart = np.setdiff1d(_apart(lp, u), stuck)
    said: dict[str, Any] = {"chains": _list(apart)}
    if len(apart):
        others = np.setdiff1d(np.arange(len(u)), [*apart, *stuck])
        said |= {"lp": float(lp[apart].mean()), "others": float(lp[others].mean())}
    return [
        Finding("stuck_chains", "", float(len(stuck)), 0.0, WRONG if len(stuck) else FINE,
                {"chains": _list(stuck), "draws": u.shape[1]}),
        Finding("chains_apart", "", float(len(apart)), 0.0, WRONG if len(apart) else FINE, said),
    ]  # fmt: skip


def began_anew(found: Draws, name: Callable[[Tensor], str]) -> list[Finding]:
    """The chains that left a mode of next to no mass during the warm-up, if any did.

    Args:
        name: where a vector is, in words.
    """
    if found.begun is None:
        return []
    chains, share, where = found.begun
    said = {"chains": _list(chains.numpy()), "of": found.u.shape[1]}
    return [Finding("negligible_modes", name(where), share, NEGLIGIBLE, FINE, said)]


def _apart(lp: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Chains whose mean log joint, or position, is farther from that of most than chains are from each other."""
    if len(lp) < 4:
        return np.array([], int)
    off = distances(np.concatenate([lp[..., None], u], -1))
    return np.flatnonzero((off > 4 + 6 * np.median(off, 0)).any(1))


def _suspects(u: np.ndarray) -> np.ndarray:
    """The entries of (chains, draws, entries) of which R-hat and ESS are made: all where they are `MANY`; else those
    that are among the `WORST` by a quick figure: R-hat of groups of chains and ESS, without ranks, of the draws and of
    their distances from the mean, and ESS of either tail."""
    chains, draws, entries = u.shape
    if entries <= MANY or draws < 8:
        return np.arange(entries)
    size = max(CHUNK // (chains * draws), 1)
    parts = torch.as_tensor(u).split(size, -1)
    badness = torch.cat([_quick(p.movedim(-1, 0).float().contiguous()) for p in parts], 1)
    return badness.nan_to_num(torch.inf).topk(WORST).indices.flatten().unique().numpy()


def _quick(x: Tensor) -> Tensor:
    """Six figures, of which more is worse, of each of (entries, chains, draws)."""
    x = x - x.mean((1, 2), keepdim=True)
    sd = x.square().mean((1, 2), keepdim=True).sqrt()
    tails = (x < -TAIL * sd).to(x.dtype), (x > TAIL * sd).to(x.dtype)
    times = [_autocorrelation_time(v) for v in (x, x.abs(), *tails)]
    return torch.stack([*times, _between(x), _between(x.abs())])


def _between(x: Tensor) -> Tensor:
    """Nested R̂² - 1 of each of (entries, chains, draws)."""
    groups = next((k for k in range(SUPERCHAINS, x.shape[1]) if x.shape[1] % k == 0), x.shape[1])
    sets = x.unflatten(1, (-1, groups))
    return sets.mean((1, 3)).var(1) / sets.var((1, 3)).mean(1)


def _autocorrelation_time(x: Tensor) -> Tensor:
    """Draws over effective ones, Σ_t ρ_t up to where pairs of them end to be positive (Geyer's), of each of
    (entries, chains, draws); autocovariances about the mean of all chains."""
    n = x.shape[-1]
    power = torch.fft.rfft(x - x.mean((1, 2), keepdim=True), 2 * n).abs().square().mean(1)
    rho = torch.fft.irfft(power, 2 * n)[:, :n]
    pairs = (rho[:, : n // 2 * 2] / rho[:, :1]).unflatten(1, (-1, 2)).sum(-1)
    positive = (pairs > 0).cumprod(1)
    return 2 * (pairs * positive).sum(1) - 1


def _agreement(u: np.ndarray, labels: Sequence[str], entries: int) -> Finding:
    """The largest R-hat, of so many; of one chain it is not known whether another would agree."""
    chains = len(u)
    if chains < 2 * SUPERCHAINS:
        rhat, most = _each(u, "rhat"), GOOD_RHAT
    else:
        from scipy.special import chdtri  # chi2.isf; scipy.stats takes half a second to import

        groups = next(k for k in range(SUPERCHAINS, chains + 1) if chains % k == 0)
        rhat = _each(u, "rhat_nested", superchain_ids=np.arange(chains) % groups)
        most = float(np.sqrt(1 + chdtri(groups - 1, 0.01 / (2 * entries)) / GOOD_ESS))
    if chains == 1 or not np.isfinite(rhat).any():
        return Finding("rhat", "", np.nan, most, LOOK)
    worst = int(np.nanargmax(rhat))
    return Finding("rhat", labels[worst], float(rhat[worst]), most, grade(rhat[worst], most, WRONG_RHAT))


def _enough(measure: str, ess: np.ndarray, labels: Sequence[str]) -> Finding:
    """The least number of effective draws."""
    if not np.isfinite(ess).any():
        return Finding(measure, "", np.nan, GOOD_ESS, LOOK)
    least = int(np.nanargmin(ess))
    return Finding(measure, labels[least], float(ess[least]), GOOD_ESS, FINE if ess[least] >= GOOD_ESS else LOOK)


def _divergences(diverging: np.ndarray) -> Finding:
    share = float(diverging.mean())
    said = {"count": int(diverging.sum()), "draws": diverging.size}
    return Finding("divergences", "", share, DIVERGING, grade(share, DIVERGING), said)


def _outside(stats: Mapping[str, Tensor]) -> list[Finding]:
    if "outside" not in stats:  # the kernel cannot tell
        return []
    count, draws = int(stats["outside"].sum()), stats["outside"].numel()
    return [Finding("outside_support", "", count / draws, np.nan, FINE, {"count": count, "draws": draws})]


def _evidence(evidence: Evidence) -> Finding:
    """How well islands of particles agree on log p(x), and with it on the mass of separated modes."""
    return Finding("evidence_se", "", evidence.se, GOOD_EVIDENCE, grade(evidence.se, GOOD_EVIDENCE, 3 * GOOD_EVIDENCE))


def _energy(energy: np.ndarray) -> Finding:
    """E-BFMI, Σ (E_i − E_{i−1})² / Σ (E_i − mean E)²: the median over the chains."""
    with np.errstate(invalid="ignore"):
        bfmi = float(np.median((np.diff(energy, axis=1) ** 2).mean(1) / energy.var(1).clip(1e-300)))
    return Finding("e_bfmi", "", bfmi, GOOD_BFMI, FINE if bfmi >= GOOD_BFMI else LOOK)


def _heavy_tails(latents: Mapping[str, np.ndarray]) -> Finding:
    """The latent with the heaviest tail, and whether that is too heavy for an sd.

    Args:
        latents: by name (chains, draws, ...), on their own scales.
    """
    k = {"": -np.inf}
    for name, value in latents.items():
        entries = value.reshape(*value.shape[:2], -1)
        for i in longest_tails(entries.reshape(-1, entries.shape[-1]), MOST_TAILS):
            k[_label(name, value, i)] = _tail_shape(entries[..., i])
    return heaviest(k)


def _label(name: str, value: np.ndarray, i: int) -> str:
    """Of the i-th entry of (chains, draws, ...)."""
    index = np.unravel_index(i, value.shape[2:])
    return f"{name}[{', '.join(map(str, index))}]" if index else name


def longest_tails(z: np.ndarray, most: int) -> list[int]:
    """Of draws (S, entries) the entries whose tails are fitted: `most` of the largest kurtosis, or of the largest
    sd, half of either."""
    if z.shape[1] <= most:
        return list(range(z.shape[1]))
    z = z[:: max(z.size // CHOSEN_BY, 1)]
    with np.errstate(all="ignore"):
        square = np.square(z - z.mean(0))
        variance = square.mean(0)
        figures = [np.nan_to_num(v, nan=np.inf) for v in (np.square(square).mean(0) / variance**2, variance)]
    return sorted({int(i) for v in figures for i in np.argsort(-v, kind="stable")[: most // 2]})


def with_derived(said: Sequence[Finding], values: Mapping[str, np.ndarray]) -> list[Finding]:
    """The records, with the tails of functions of latents, which are reported as latents are.

    A ratio of two normals has no mean, an exponential of a wide one an sd that no number of draws determines. No slope
    of the log density tells it: the draws do, so far as they are surely heavy (two standard errors of k-hat).

    Args:
        said: one of them of "tail_khat", which stays where it is not fine.
        values: of deterministic sites, by name (chains, draws, ...).
    """
    sure: dict[str, float] = {}
    for name, value in values.items():
        if value.dtype.kind != "f":
            continue
        entries = value.reshape(value.shape[0] * value.shape[1], -1)[:, :LOOKED_AT].astype(np.float64)
        for i in longest_tails(entries, DERIVED):
            one = np.inf if np.isinf(entries[:, i]).any() else _tail_shape(entries[:, i].reshape(value.shape[:2]))
            if one > HEAVY + 2 * khat_se(one, len(entries)) or one == np.inf:
                sure[_label(name, value, i)] = one
    return [heaviest(sure) if sure and f.measure == "tail_khat" and f.verdict == FINE else f for f in said]


def heaviest(k: Mapping[str, float]) -> Finding:
    """The record of the heaviest of tails, P(|z| > t) ~ t^(-1/k), by the label of each entry; NaN: it is not known."""
    unknown = [name for name, each in k.items() if np.isnan(each)]
    worst = max((name for name in k if name not in unknown), key=k.__getitem__)
    if unknown and k[worst] <= HEAVY:
        return Finding("tail_khat", unknown[0], np.nan, HEAVY, LOOK, {"others": len(unknown) - 1})
    others = max(sum(each > HEAVY for each in k.values()) - 1, 0)
    return Finding("tail_khat", worst, k[worst], HEAVY, grade(k[worst], HEAVY), {"others": others})


def _tail_shape(draws: np.ndarray) -> float:
    """Pareto k-hat of the heavier of two tails, (chains, draws); minus infinity where there is no tail to speak of:
    the draws are all the same there, or fewer than `LEAST` of them are effective."""
    if np.ptp(draws) == 0 or not np.isfinite(draws).all():
        return -np.inf
    share = float(statistic("ess", draws, method="tail", prob=TAILS)) / draws.size
    if not share * draws.size >= LEAST:
        return -np.inf
    try:
        return float(statistic("pareto_khat", draws, r_eff=min(share, 1.0)))
    except ValueError:  # a tail of equal values
        return -np.inf


def _each(u: np.ndarray, name: str, **options: Any) -> np.ndarray:
    """A statistic of each entry of (chains, draws, entries)."""
    return np.array([statistic(name, u[..., i], **options) for i in range(u.shape[-1])])


def statistic(name: str, draws: np.ndarray, **options: Any) -> Any:
    """One of ArviZ's statistics of chains, of (chains, draws)."""
    from arviz_stats.base import array_stats  # type: ignore[attr-defined]

    with np.errstate(all="ignore"):  # of draws that are equal, as a chain's are that stays
        return getattr(array_stats, name)(np.ascontiguousarray(draws, np.float64), **options)


def _list(chains: np.ndarray) -> str:
    return ", ".join(map(str, chains[:5])) + (f" and {len(chains) - 5} more" if len(chains) > 5 else "")
