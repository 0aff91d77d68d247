r"""Whether chains are to be believed: sentences on what is wrong with them, none where nothing is.

Asked of every latent: do the chains agree (R-hat, rank-normalised, split and folded), are there enough effective draws
in the bulk and in the tails, and do its moments exist? Of a tail

    P(|z| > t) ~ t^(-1/k)         E |z|^r is finite for r < 1/k

an average over draws of |z|^r behaves as importance weights of shape r k do: it is worth something below r k = 0.7. So
a mean wants k < 0.7 and an sd, the mean of a square, k < 0.35. Quantiles want nothing.

Sources: R-hat and ESS: Rank-normalization, folding, and localization (Vehtari et al. 2021, arXiv:1903.08008); Pareto
k-hat of a latent's own tails: Pareto smoothed importance sampling (Vehtari et al. 2024, arXiv:1507.02646); E-BFMI:
A conceptual introduction to Hamiltonian Monte Carlo's diagnosis of energy (Betancourt 2016, arXiv:1604.00695).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from ppgen.inference.chees import Draws
from ppgen.inference.psis import GOOD_K

GOOD_RHAT, GOOD_ESS, GOOD_BFMI = 1.01, 400, 0.3
TAILS = (0.05, 0.95)
LEAST = 225  # effective draws for a tail of 45
MOST_TAILS = 300  # entries whose tails are fitted: a few milliseconds each


class Latents(Protocol):
    """Where draws come from: `ppgen.engine.LogJoint` is one."""

    labels: Sequence[str]

    def unflatten(self, u: Tensor) -> Mapping[str, Tensor]: ...


def findings(found: Draws, joint: Latents) -> list[str]:
    """The sentences, the worst first.

    Args:
        found: the chains, on the unconstrained scale.
        joint: what they are draws of.
    """
    u, lp = found.u.movedim(1, 0).numpy(), found.stats["lp"].T.numpy()  # (chains, draws, ...)
    diverging = int(found.stats["diverging"].sum())
    said = [*_chains(u, lp), *_agreement(u, joint.labels), *_enough(u, joint.labels)]
    if diverging > 0.001 * lp.size:
        said.append(
            f"{diverging} of {lp.size} draws diverged: the posterior has a place too narrow for the step size, such as "
            "the neck of a funnel, and draws miss it; write hierarchical latents non-centred, or tighten a prior"
        )
    energy = found.stats["energy"].T.numpy()
    bfmi = float(np.median((np.diff(energy, axis=1) ** 2).mean(1) / energy.var(1).clip(1e-300)))
    if bfmi < GOOD_BFMI:
        said.append(
            f"E-BFMI is {bfmi:.2f} (good from {GOOD_BFMI} on): the energy moves too slowly for the tails of "
            "the posterior, as with heavy tails or a funnel; reparametrise"
        )
    return said + heavy_tails({n: v.movedim(1, 0).numpy() for n, v in joint.unflatten(found.u).items()})


def _chains(u: np.ndarray, lp: np.ndarray) -> Iterator[str]:
    """Chains that never moved, or are where the others are not."""
    stuck = np.flatnonzero((np.ptp(u, axis=1) == 0).all(-1))
    apart = _apart(lp, u)
    if len(stuck):
        yield (
            f"chain {_list(stuck)} never moved in {u.shape[1]} draws: it sits where no proposal is accepted; run with "
            "another seed or a longer warm-up, and look at what is narrow there"
        )
    elif len(apart):
        others = np.setdiff1d(np.arange(len(u)), apart)
        yield (
            f"chain {_list(apart)} stands apart from the others, at a mean log joint of {lp[apart].mean():.1f} nats "
            f"beside {lp[others].mean():.1f}: it is stuck, or the posterior has several modes"
        )


def _apart(lp: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Chains whose mean log joint, or position, is not that of the others, by robust deviations."""
    if len(lp) < 4:
        return np.array([], int)
    figures = np.concatenate([lp.mean(1)[:, None], u.mean(1)], 1)
    within = np.concatenate([lp.std(1)[:, None], u.std(1)], 1)
    off = np.abs(figures - np.median(figures, 0)) / np.maximum(np.median(within, 0), 1e-12)
    between = np.median(off, 0)
    return np.flatnonzero((off > 4 + 6 * between).any(1))


def _agreement(u: np.ndarray, labels: Sequence[str]) -> Iterator[str]:
    if len(u) == 1:
        return
    rhat = _each(u, "rhat")
    worst = int(np.nanargmax(rhat)) if np.isfinite(rhat).any() else 0
    if not rhat[worst] <= GOOD_RHAT:
        yield (
            f"the chains do not agree: R-hat of {labels[worst]} is {rhat[worst]:.4f} (good below {GOOD_RHAT}); do "
            "not use the draws as they are, run a longer warm-up and more draws, or reparametrise"
        )


def _enough(u: np.ndarray, labels: Sequence[str]) -> Iterator[str]:
    """Effective draws in the bulk; where these are enough, in the tails."""
    for where, options in (("", {}), (" in the tails", {"method": "tail", "prob": TAILS})):
        ess = _each(u, "ess", **options)
        least = int(np.nanargmin(ess)) if np.isfinite(ess).any() else 0
        if not ess[least] >= GOOD_ESS:
            yield (
                f"only {ess[least]:.0f} effective draws{where} of {labels[least]} (good from {GOOD_ESS} on); "
                "take more draws"
            )
            return


def heavy_tails(latents: Mapping[str, np.ndarray]) -> list[str]:
    """One sentence on the latent with the heaviest tail, where that is too heavy for an sd.

    Args:
        latents: by name (chains, draws, ...), on their own scales.
    """
    names: list[str] = []
    k: list[float] = []
    for name, value in latents.items():
        entries = value.reshape(*value.shape[:2], -1)
        for i in range(min(entries.shape[-1], MOST_TAILS - len(k))):
            index = np.unravel_index(i, value.shape[2:])
            names.append(f"{name}[{', '.join(map(str, index))}]" if index else name)
            k.append(tail_shape(entries[..., i]))
    if not k or not max(k) > GOOD_K / 2:
        return []
    worst = int(np.argmax(k))
    others = sum(each > GOOD_K / 2 for each in k) - 1
    more = f"; so are those of {others} more" if others else ""
    what = "mean and sd are" if k[worst] > GOOD_K else "sd is"
    return [
        f"the tails of {names[worst]} are heavy (Pareto k-hat {k[worst]:.2f}; good below {GOOD_K / 2}{more}): its "
        f"{what} not determined by any number of draws, and may be infinite; report its median and quantiles, or give "
        "what drives it a prior with lighter tails"
    ]


def tail_shape(draws: np.ndarray) -> float:
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
