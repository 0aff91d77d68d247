"""What to worry about first in a run, and what to do: plain sentences, the gravest first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ppgen.inference.psis import GOOD_K
from ppgen.run import Run

if TYPE_CHECKING:
    from xarray import DataTree

    from ppgen.inference.diagnose import Diagnosis

GRAVE, LOOK, FINE = "wrong", "look", "fine"


class Worry(NamedTuple):
    """One thing: how grave (wrong, look, fine), what was found, what to do (empty where nothing)."""

    grave: str
    what: str
    do: str = ""


class Check(NamedTuple):
    """A statistic of the observed data beside the posterior predictive: p is P(T(x_rep) >= T(x))."""

    site: str
    statistic: str
    observed: float
    predicted: tuple[float, float]  # the central 90%
    p: float

    @property
    def off(self) -> bool:
        return not 0.01 <= self.p <= 0.99


STATISTICS: dict[str, Any] = {"mean": np.mean, "sd": np.std, "least": np.min, "largest": np.max}


def predictive_checks(tree: DataTree, sites: int = 4) -> list[Check]:
    """Mean, sd, least and largest value of each observed site, beside those of data sets drawn from the posterior."""
    found = []
    if not {"posterior_predictive", "observed_data"} <= set(tree.children):
        return []
    drawn, seen = tree["posterior_predictive"].dataset, tree["observed_data"].dataset
    for name in list(seen.data_vars)[:sites]:
        if name not in drawn:
            continue
        x = seen[name].values.astype(float).ravel()
        many = drawn[name].values.astype(float)
        many = many.reshape(many.shape[0] * many.shape[1], -1)
        for words, fn in STATISTICS.items():
            if len(x) < 2 and words != "mean":
                continue
            t, r = float(fn(x)), fn(many, axis=1)
            p = float((r > t).mean() + 0.5 * (r == t).mean())
            low, high = np.quantile(r, [0.05, 0.95])
            found.append(Check(str(name), words, t, (float(low), float(high)), p))
    return found


def worries(
    run: Run, diagnosis: Diagnosis | None = None, checks: list[Check] | None = None,
    calibration: Mapping[str, Any] | None = None,
) -> list[Worry]:  # fmt: skip
    """All there is to worry about, the gravest first; what is fine comes last."""
    found = [*_training(run)]
    if diagnosis is not None:
        found += _guide(diagnosis)
    if checks:
        found += _checks(checks)
    if calibration is not None:
        found.append(
            Worry(FINE, str(calibration["findings"][0]))
            if calibration["passes"]
            else Worry(
                GRAVE,
                " ".join(calibration["findings"][:3]),
                "Fit a richer guide (--guide flow), or sample (ppgen mcmc); if a pair that should be exact fails, look "
                "for an error in model or guide.",
            )
        )
    elif run.structure.latents:
        found.append(Worry(LOOK, "Whether the posteriors are calibrated was not checked.", "Run ppgen calibrate RUN."))
    return sorted(found, key=lambda w: (GRAVE, LOOK, FINE).index(w.grave))


def _training(run: Run) -> list[Worry]:
    m = run.metrics
    elbo = m["elbo"][np.isfinite(m["elbo"])]
    said = []
    if run.config.get("converged") is True:
        said.append(Worry(FINE, "The fit ended where its averaged iterates had stopped moving."))
    elif run.config.get("converged") is False:
        said.append(
            Worry(GRAVE, "The fit ended before its averaged iterates stopped moving.", "Go on: ppgen fit --resume RUN "
                  "--steps N, with more steps.")
        )  # fmt: skip
    elif len(elbo) >= 20:
        tenth = max(2, len(elbo) // 10)
        last, before = elbo[-tenth:], elbo[-2 * tenth : -tenth]
        gain = last.mean() - before.mean()
        se = float(np.hypot(last.std(ddof=1), before.std(ddof=1)) / tenth**0.5)
        if gain > 3 * se and gain > 1e-4 * abs(last.mean()):
            said.append(
                Worry(LOOK, f"The ELBO was still rising at the end: by {gain:.3g} nats in the last tenth of the steps.",
                      "Take more steps (--resume RUN --steps N), or fit with --until converged.")
            )  # fmt: skip
        else:
            said.append(Worry(FINE, "The ELBO no longer rose over the last tenth of the steps."))
    bad = int(m["bad_steps"][-1]) if len(m["bad_steps"]) else 0
    if bad:
        said.append(
            Worry(LOOK, f"{bad} steps had a loss that was not finite, and were skipped.",
                  "Try --clip 1, a smaller --lr, or --precision 64-true.")
        )  # fmt: skip
    return said


def _guide(d: Diagnosis) -> list[Worry]:
    k = d.khat[np.isfinite(d.khat)]
    bad = float((d.khat > GOOD_K).mean())
    said = list(d.findings)
    if bad and d.bounds.per == "data set":
        grave, do = GRAVE, "Fit a richer guide (--guide flow), or sample the posterior (ppgen mcmc)."
    elif bad > 0.1:
        grave, do = LOOK, "A richer encoder or posterior; for single rows, sample (ppgen mcmc)."
    elif len(k) and np.median(d.ess) < d.bounds.particles / 10:
        grave, do = LOOK, "Use draws weighted by their importance (posterior(run, data, corrected=True))."
    else:
        grave, do = FINE, ""
    worries = [Worry(grave, said[0], do)]
    for sentence in said[2:]:
        if "inactive" in sentence:
            worries.append(Worry(LOOK, sentence))
        elif sentence.startswith("Beside"):
            off = float(sentence.split("by at most ")[1].split(" sd")[0])
            do = "Report the corrected moments." if off > 0.2 else ""
            worries.append(Worry(LOOK if off > 0.2 else FINE, sentence, do))
    return worries


def _checks(checks: list[Check]) -> list[Worry]:
    off = [c for c in checks if c.off]
    if not off:
        return [Worry(FINE, "Data drawn from the fitted model have the mean, sd and extremes of the observed ones.")]
    said = "; ".join(
        f"the {c.statistic} of {c.site} is {c.observed:.3g}, the model's {c.predicted[0]:.3g} to {c.predicted[1]:.3g}"
        for c in off[:3]
    )
    return [
        Worry(LOOK, f"The fitted model does not give data like the observed: {said}.",
              "Change the likelihood (tails, dispersion, bounds), or what it is conditioned on.")
    ]  # fmt: skip
