r"""Whether to believe a guide: what its importance weights and its latents say, one finding a check.

    w = p(x, z) / q(z | x),  z ~ q      k-hat: Pareto shape of the largest weights, ESS = (Σ w)² / Σ w²

k-hat: below min(0.7, 1 − 1 / log10 K) averages by K weights can be relied on (Vehtari et al. 2024); above, the guide
is narrower than the posterior somewhere. One row above it is a "look", the data set above 0.7 by its standard error
"wrong". Of weights that are nearly equal k-hat is noise, and is not asked (`psis.tail`). Of a guide that is too *wide*
k-hat is low: it does not make a guide fine.

ESS: K / ESS is 1 + χ²(p, q) (Agapiou et al. 2017), and a mean over the guide's draws is off by at most √χ² sd of the
guide (Hammersley, Chapman and Robbins). Fine is half of the draws, where χ² = 1. Below 10, whatever k-hat says, weights
are too few to say anything: the guide can be anywhere.

Weights of a program that draws what is no site are of that noise as well: where they are uneven, that is a "look".

Bound: the gap of importance-weighted bound and ELBO is KL(q, p), as far as K draws see it. Fine is up to log 2 nats:
the Rényi divergence log K / ESS at the threshold of ESS.

Sources: Pareto smoothed importance sampling (Vehtari et al. 2024, arXiv:1507.02646); Importance Sampling: Intrinsic
Dimension and Computational Cost (Agapiou et al. 2017, arXiv:1511.06196); active units: Importance Weighted Autoencoders
(Burda et al. 2016, arXiv:1509.00519).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from ppgen.inference.evaluation.estimates import LogLik
from ppgen.inference.evaluation.psis import GOOD_K, khat_se, tail, threshold
from ppgen.inference.verdicts.findings import FINE, LOOK, WRONG, Finding, grade, verdict

LEAST_ESS = 10  # a mean over so many draws is off by 0.3 sd
LOOSE = math.log(2)  # nats


def conclusion(ll: LogLik, khat: np.ndarray, checks: list[Finding]) -> Finding:
    """All checks in one: whether to believe draws and bounds. Its figure is how many of them are not fine."""
    assert ll.ess is not None
    failed = [f for f in checks if f.verdict != FINE]
    bad = tail(khat, ll.ess, ll.particles) > threshold(ll.particles)
    measured = [f for f in failed if not math.isnan(f.figure)]
    details = {
        "per": ll.per, "exact": bool((khat == -np.inf).all()), "failed": sorted({f.measure for f in measured}),
        "khat_threshold": threshold(ll.particles), "bad_share": float(bad.mean()),
        "blind": any(f.measure == "ess" and f.verdict == WRONG for f in failed),
        "reference_off": any(f.details.get("beside") == "reference" for f in measured), "noise": ll.noise,
    }  # fmt: skip
    return Finding("guide", "", float(len(failed)), 0.0, verdict(checks), details)


def bound_gap(ll: LogLik) -> Finding:
    """Importance-weighted bound less ELBO, in nats a row or for the data set."""
    gap = max(ll.best.mean - ll.bounds[0].mean, 0.0)
    se = math.hypot(ll.best.mean_se, ll.bounds[0].mean_se)
    return Finding(
        "bound_gap",
        "",
        gap,
        LOOSE,
        LOOK if gap > LOOSE + 4 * se else FINE,
        {"per": ll.per, "se": se, "noise": ll.noise},
    )


def weight_checks(ll: LogLik, khat: np.ndarray) -> list[Finding]:
    """k-hat and ESS of the importance weights."""
    assert ll.ess is not None
    most, K = threshold(ll.particles), ll.particles
    said = {"per": ll.per, "rows": len(khat), "particles": K, "noise": ll.noise}
    asked = tail(khat, ll.ess, K)
    largest = float(np.nan if np.isnan(asked).all() else np.nanmax(asked))
    se = khat_se(largest, K)
    graded = grade(largest, most, math.inf if ll.per == "row" or ll.noise else GOOD_K + se)
    share = float((asked > most).mean())
    k = Finding("khat", "", largest, most, graded, said | {"bad_share": share, "se": se, "raw": float(np.max(khat))})
    ess = float(np.median(ll.ess))
    graded = FINE if ess >= K / 2 else LOOK if ess >= min(LEAST_ESS, K / 2) or ll.noise else WRONG
    return [k, Finding("ess", "", ess, K / 2, graded, said)]


def inactive_units(active: Mapping[str, np.ndarray]) -> list[Finding]:
    """Of each local latent, how many of its dimensions carry nothing."""
    idle = {name: int((~units).sum()) for name, units in active.items()}
    return [
        Finding("inactive_units", name, float(n), 0.0, LOOK if n else FINE, {"dimensions": len(active[name])})
        for name, n in idle.items()
    ]
