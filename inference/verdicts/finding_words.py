"""The sentence and the remedy of each finding, by its measure: made from the record's figures, and read by no code.

A new check is one entry of `TEXTS`, or one function named after its measure where the words hang on more than the
verdict, and one place that makes the record.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ppgen.errors import first_of

Finding = Any  # a `ppgen.inference.verdicts.findings.Finding`, whose file imports this one
Words = tuple[str, str]  # sentence, remedy

RICHER = "Fit a richer guide (--guide flow), or sample the posterior (ppgen mcmc)."
RICHER_ROWS = "Fit a richer encoder or posterior; for single rows, sample (ppgen mcmc)."
WEIGH = "Use draws weighted by their importance (posterior(run, data, corrected=True))."
MORE_DRAWS = "Take more draws."


@dataclass(frozen=True)
class _Text:
    """Templates of `str.format`, of the record f and its details; {fine} is the first of them."""

    fine: str
    other: str = "{fine}"
    remedy: str = ""
    unknown: Words | None = None  # of a figure that is nan

    def __call__(self, f: Finding) -> Words:
        if self.unknown is not None and math.isnan(f.figure):
            return self.unknown
        fine = self.fine.format(f=f, **f.details)
        if f.verdict == "fine":
            return fine, ""
        return self.other.format(f=f, fine=fine, **f.details), self.remedy.format(f=f, **f.details)


TEXTS: dict[str, Callable[[Finding], Words]] = {
    # training
    "converged": _Text(
        "The fit ended where its averaged iterates had stopped moving.",
        "The fit ended before its averaged iterates stopped moving.",
        "Go on: ppgen fit --resume RUN --steps N, with more steps.",
    ),
    "bad_steps": _Text(
        "{f.figure:.0f} steps had a loss that was not finite, and were skipped.",
        remedy="Try --clip 1, a smaller --lr, or --precision 64-true.",
    ),
    # chains
    "stuck_chains": _Text(
        "every chain moved",
        "chain {chains} never moved in {draws} draws: it sits where no proposal is accepted",
        "Run with another seed or a longer warm-up, and look at what is narrow there.",
    ),
    "chains_apart": _Text(
        "no chain stands apart from the others",
        "chain {chains} stands apart from the others, at a mean log joint of {lp:.1f} nats beside {others:.1f}: it is "
        "stuck, or the posterior has several modes",
        "Run more chains from other starts (--seed); if they find both places, write a model that has one.",
    ),
    "negligible_modes": _Text(
        "chain {chains} of {of} came to places such as {f.where}, which have at most {f.figure:.1g} of the posterior's "
        "mass, and in the warm-up began anew from where the others were"
    ),
    "e_bfmi": _Text(
        "E-BFMI is {f.figure:.2f} (good from {f.threshold} on)",
        "{fine}: the energy moves too slowly for the tails of the posterior, as with heavy tails or a funnel",
        "Reparametrise.",
        unknown=("E-BFMI could not be computed: the energy is not finite", "Run with another seed."),
    ),
    "evidence_se": _Text(
        "log p(x) is known to {f.figure:.2g} nats: the islands agree on the mass of what they have found",
        "log p(x) has a standard error of {f.figure:.2g} nats (good up to {f.threshold}): the islands of particles do "
        "not agree on it, nor on the mass of separated modes",
        "Sample with more particles (draws=, --draws).",
    ),
    "runs_away": _Text(
        "up to {sds:.0f} sd of the draws the density does not fall along {f.where}: it is unbounded there, or the "
        "draws are much narrower than the posterior",
        remedy="Run a longer warm-up; if that does not help, give what drives it a prior that keeps it from where the "
        "density is unbounded, such as a scale from 0.",
    ),
    "laplace": _Text(
        "{share:.0%} of the draws of {latents} by Laplace's method are effective (good from {least:.0%} on)",
        "{fine}, k-hat {f.figure:.2f} (good up to {f.threshold:.2f}): given the rest the latents are not near normal",
        "Sample {latents} with the rest: leave marginal (--marginal) out.",
    ),
    "through": _Text(
        "{share:.0%} of the draws of the guide {guide}, where chains begin, are effective",
        "{fine}, k-hat {f.figure:.2f} (good up to {f.threshold:.2f}): the posterior reaches beyond the guide, and the "
        "chains agree about no more than they have come to",
        "Fit the guide for more steps, take a richer one (--guide 'flow(smooth=True, transforms=4)'), or chains with "
        "starts of their own (without --through-guide).",
    ),
    # predictions and comparison
    "resolution": _Text(
        "{f.where} is fitted to its last digits: draws of it spread by {f.figure:.2g}, and numbers of {dtype} are "
        "{f.threshold:.2g} apart there, so that its scale and all standard errors are of rounding.",
        remedy="Look whether {f.where} is a function of what it is conditioned on: it is one, to the last digit.",
    ),
    "loo_khat": _Text(
        "{f.figure:.0f} of {rows} rows of {f.where} have a k-hat above {khat_threshold}: its LOO is not to be trusted "
        "there.",
        remedy="Compare on held-out rows, or sample the posterior (ppgen mcmc).",
    ),
}
for _part, _where in (("bulk", ""), ("tail", " in the tails")):
    TEXTS[f"ess_{_part}"] = _Text(
        "{f.figure:.0f} effective draws" + _where + " of {f.where} (good from {f.threshold:.0f} on)",
        "only {fine}",
        MORE_DRAWS,
        unknown=(f"the effective draws{_where} could not be counted", MORE_DRAWS),
    )


# -- where they hang on more -------------------------------------------------------------------------


def _elbo_trend(f: Finding) -> Words:
    part = "quarter" if f.details.get("part") == 0.25 else "tenth"
    if f.verdict == "fine":
        return f"The ELBO no longer rose over the last {part} of the steps.", ""
    unit = "nats a row" if f.details.get("per") == "row" else "nats"
    return (
        f"The ELBO was still rising at the end: by {f.figure:.3g} {unit} in the last {part} of the steps.",
        "Take more steps (--resume RUN --steps N), or fit with --until converged.",
    )


# -- a guide -----------------------------------------------------------------------------------------

FAULTS = {
    "ess": "few of its draws count",
    "mean_off": "its means are off",
    "sd_ratio": "its sds are off",
    "bound_gap": "its bound is loose",
}


def _guide(f: Finding) -> Words:
    if f.details.get("unweighed") == "drawn":
        return (
            "Whether the guide is close to the posterior cannot be told: a log-density is itself drawn, as that of a "
            "long chain within is, and gives no weights.",
            "Take the ELBO for a bound; where weights are to tell, take a flow or a chain of few steps in its place.",
        )
    if math.isnan(f.figure):
        return (
            "The guide gives one value of the latents, and its weights cannot tell how far the posterior is.",
            "Take it for a code or a point of the posterior, and its bound for a bound.",
        )
    d, failed = f.details, f.details["failed"]
    remedy = RICHER_ROWS if d["per"] == "row" else RICHER
    if f.verdict == "fine" and d["exact"]:
        return "The guide is the posterior: all importance weights are equal; draws and bounds can be believed.", ""
    if f.verdict == "fine":
        return "The guide is close to the posterior by every check; draws and bounds can be believed.", ""
    if {"khat", "ess", "bound_gap"} & set(failed) and (noise := d.get("noise")):
        return (
            f"Whether the guide is close to the posterior cannot be told: its weights are of what the program draws at "
            f"no site as well, by which the log_prob of {noise!r} differs.",
            "Draw it at a pyro.sample site, so that the guide has it.",
        )
    if "khat" in failed and d["per"] == "row":
        return (
            f"k-hat is above {d['khat_threshold']:.2g} for {d['bad_share']:.0%} of the rows: single draws are fine for "
            "reconstructions, while posterior spreads of those rows are not to be trusted.",
            remedy,
        )
    if {"khat", "moved"} & set(failed) or d["blind"]:
        return "The guide misses part of the posterior: do not trust its spread, nor what its weights say.", remedy
    if "unseen_modes" in failed:
        return (
            "The guide's draws are of one part of the posterior: nothing that its weights say is of the rest.",
            "Report them as draws of that part; or write a model that has one mode, or sample it (ppgen mcmc).",
        )
    if d["reference_off"]:
        return "The guide is not the posterior that the reference draws show, whatever its weights say.", remedy
    faults = [FAULTS[m] for m in FAULTS if m in failed]
    if not faults:
        return "Whether the guide is close to the posterior could not be told by every check.", "See below which."
    return (
        f"The guide covers the posterior without being close to it: {', '.join(faults)}; bounds can be believed, and "
        "draws once they are weighted by log_p - log_q.",
        WEIGH,
    )


def _bound_gap(f: Finding) -> Words:
    what = "a row" if f.details["per"] == "row" else "for the data set"
    whose = "is of the guide and of what the program draws at no site" if f.details.get("noise") else "is the guide's"
    return (
        f"The importance-weighted bound lies {f.figure:.3g} nats {what} above the ELBO: that much of the bound's gap "
        f"{whose}.",
        "Report the importance-weighted bound, not the ELBO, as log p(x).",
    )


def _khat(f: Finding) -> Words:
    d = f.details
    rows = f" of {d['rows']} rows" if d["per"] == "row" else ""
    if math.isnan(f.figure):
        return f"Pareto k-hat was not estimated: {d['particles']} weights are too few.", "Take 100 particles or more."
    if f.figure == -math.inf:
        nearly = "nearly " if d.get("raw", f.figure) > f.figure else ""
        return f"All importance weights{rows} are {nearly}equal: their law has no tail for k-hat to measure.", ""
    se = f" ± {d['se']:.2f}" if "se" in d and math.isfinite(f.figure) else ""
    most = f"Pareto k-hat is at most {f.figure:.2f}{se} (good below {f.threshold:.2g})"
    if f.verdict == "fine":
        return f"{most}: the {d['particles']} importance weights{rows} can be relied on.", ""
    above = f" and above for {d['bad_share']:.0%}{rows}" if rows else ""
    narrow = "" if d.get("noise") else ", and the guide is too narrow somewhere"
    return (
        f"{most}{above}: the importance weights are too uneven to be relied on{narrow}.",
        RICHER_ROWS if rows else RICHER,
    )


def _ess(f: Finding) -> Words:
    median = " in the median row" if f.details["per"] == "row" else ""
    count = f"{f.figure:.0f} of {f.details['particles']} draws count after weighting{median} (good from "
    sentence = f"{count}{f.threshold:.0f} on)."
    if f.verdict == "wrong":
        return sentence, RICHER_ROWS if median else RICHER
    return sentence, WEIGH


BESIDE = {"corrected": "moments corrected by its weights", "reference": "reference draws' moments"}


def _mean_off(f: Finding) -> Words:
    d = f.details
    if math.isnan(f.figure):
        return _not_compared(f)
    over = f", root mean square of {d['rows']} rows" if d["rows"] else ""
    return (
        f"Beside the {BESIDE[d['beside']]}, the guide is off in its mean by at most {f.figure:.2f} sd "
        f"({f.where}{over}).",
        _report(f),
    )


def _sd_ratio(f: Finding) -> Words:
    d = f.details
    if math.isnan(f.figure):
        return _not_compared(f)
    over = f" on average over {d['rows']} rows" if d["rows"] else ""
    most = max(f.figure, 1 / f.figure) - 1 if f.figure > 0 else math.inf
    return (
        f"Beside the {BESIDE[d['beside']]}, the guide is off in its sd by at most {most:.0%} "
        f"({f.where}: {f.figure:.2f} times as large{over}).",
        _report(f),
    )


def _report(f: Finding) -> str:
    if f.details["beside"] == "reference":
        return "Report the reference draws; fit a richer guide (--guide flow) if a guide is what is wanted."
    return "Report the corrected moments (diagnose's table), or corrected draws (posterior(..., corrected=True))."


def _not_compared(f: Finding) -> Words:
    richer = "Take more steps or a richer guide (--guide flow), or hold" if f.details.get("uneven") else "Hold"
    return (
        f"The guide's moments could not be checked: {f.details['reason']}.",
        f"{richer} it against draws of the posterior (ppgen mcmc, then ppgen diagnose --reference).",
    )


def _inactive_units(f: Finding) -> Words:
    idle, n = int(f.figure), f.details["dimensions"]
    if not idle:
        return f"Each of the {n} dimensions of {f.where!r} is active.", ""
    return (
        f"{idle} of {n} dimensions of {f.where!r} {'is' if idle == 1 else 'are'} inactive: the posterior is the prior "
        "for every row.",
        "Take a smaller latent, or a KL warm-up (--kl-warmup).",
    )


# -- chains ------------------------------------------------------------------------------------------


def _rhat(f: Finding) -> Words:
    if math.isnan(f.figure):
        return "whether chains agree was not checked: R-hat was not computed", "Run several chains that move."
    size = f"{f.figure:.4f}" if f.figure < 10 else f"{f.figure:.2g}"
    figure = f"R-hat of {f.where} is {size} (good below {f.threshold:.3g})"
    if f.verdict == "fine":
        return f"the chains agree: the largest {figure}", ""
    return (
        f"the chains do not agree: {figure}; do not use the draws as they are",
        "Run a longer warm-up and more draws, or reparametrise.",
    )


def _divergences(f: Finding) -> Words:
    count = f"{f.details['count']} of {f.details['draws']} draws diverged"
    if f.verdict == "fine":
        return count, ""
    through = (
        "Tighten a prior, or fit a flow (guide='flow', --guide flow), and take the chains through it "
        "(mcmc(run, data, through=True), ppgen mcmc RUN --through-guide)."
    )
    return (
        f"{count}: the posterior has a place too narrow for the step size, such as the neck of a funnel, and draws "
        "miss it",
        "Move hierarchical latents non-centred (noncentred='all', --noncentred all), or tighten a prior."
        if f.details.get("centred", "?")
        else through,
    )


def _tail_khat(f: Finding) -> Words:
    if f.verdict == "fine":
        return f"no latent's tails are too heavy for a mean and an sd (Pareto k-hat below {f.threshold})", ""
    if math.isnan(f.figure):
        more = f" and of {f.details['others']} more" if f.details["others"] else ""
        return (
            f"too few of the weighted draws are in the tails of {f.where}{more} to tell whether it has an sd, or the "
            "density ends beside them",
            "Take chains (ppgen mcmc), or more draws.",
        )
    more = f"; so are those of {f.details['others']} more" if f.details["others"] else ""
    what = "mean and sd are" if f.figure > 2 * f.threshold else "sd is"
    return (
        f"the tails of {f.where} are heavy (Pareto k-hat {f.figure:.2f}; good below {f.threshold}{more}): its {what} "
        "not determined by any number of draws, and may be infinite",
        "Report its median and quantiles, or give what drives it a prior with lighter tails.",
    )


def _outside_support(f: Finding) -> Words:
    why = " and were refused: log p is minus infinity there" if f.figure else ""
    return f"{f.details['count']} of {f.details['draws']} proposals left the support{why}", ""


def _importance(f: Finding) -> Words:
    d = f.details
    k = f"k-hat is {f.figure:.2f} (good below {f.threshold:.2g})"
    sentence = (
        f"{d['ess']:.0f} of {d['draws']} weighted draws are effective, and "
        f"{'weights are nearly equal' if f.figure == -math.inf else k}; means are known to {d['mean_error']:.2g} sd "
        f"and log sds to {d['sd_error']:.2g} ({f.where})"
    )
    if f.verdict == "wrong":
        return f"{sentence}: the weighted draws are not of the posterior", RICHER
    return sentence, MORE_DRAWS


def _score(f: Finding) -> Words:
    if math.isnan(f.figure):
        return "whether the draws' scores are those of the posterior could not be told", MORE_DRAWS
    if f.verdict == "fine":
        return "the scores of the draws are those of the posterior (E z ∂ log p = -1 in each coordinate)", ""
    sentence = (
        f"the draws' scores are not those of a posterior without edges: E z ∂ log p + 1 is {f.figure:.2g} in {f.where}"
    )
    if f.details.get("of") == "particles":
        return (
            sentence,
            "Sample with more particles (draws=, --draws); where a factor cuts the density off it is no fault.",
        )
    return sentence, RICHER


def _moved(f: Finding) -> Words:
    if f.verdict == "fine":
        return "the draws stay where they are under moves that leave the posterior as it is", ""
    what = (
        f"the mean of {f.where} by {f.figure:.2g} sd"
        if f.details["of"] == "mean"
        else (f"the log sd of {f.where} by {f.figure:.2g}")
    )
    return f"the draws are not of the posterior: Hamiltonian moves change {what} (s.e. {f.details['se']:.2g})", RICHER


def _bounds(f: Finding) -> Words:
    if f.verdict == "fine":
        return "the bounds on log p(x) leave room for it, and the estimates are between them", ""
    return (
        f"the bounds on log p(x) contradict each other, by {-f.figure:.0f} standard errors: the draws are not of this "
        "posterior, or have missed a part of it",
        "Take draws of this program, with these settings and these data; or leave draws (--draws) out.",
    )


def _unseen_modes(f: Finding) -> Words:
    sentence, remedy = _missing_mass(f)
    return (f"{sentence[0].upper()}{sentence[1:]}." if f.details.get("of") == "guide" else sentence), remedy


def _missing_mass(f: Finding) -> Words:
    d = f.details
    if "reason" in d:
        return f"modes that the draws have not seen were not all searched for: {d['reason']}", "Run with other seeds."
    climbs = f"climbs from {d['starts']} over-dispersed starts"
    if f.verdict == "fine":
        return f"{climbs} found no place of the posterior that the draws have not seen", ""
    if math.isnan(f.figure):
        return (
            f"{climbs} found a place without draws, at {f.where}, whose share of the posterior could not be told",
            "Look at it; run with other seeds, more chains and a longer warm-up.",
        )
    if d["copies"]:
        return (
            f"the posterior has copies of what the draws show, as where components can be exchanged or a sign flipped: "
            f"{d['unseen']} more found, one at {f.where}",
            "Report what is the same in all copies, or write an order or a sign into the model.",
        )
    return (
        f"about {f.figure:.0%} of the posterior's mass lies where {'too few' if d.get('few') else 'no'} draws are, at "
        f"{f.where}: do not use the draws as they are",
        "Write a model that has one mode, or report that the draws are of one part of the posterior.",
    )


# -- predictions, calibration, comparison ------------------------------------------------------------


def _predictive(f: Finding) -> Words:
    if f.verdict == "fine":
        have = ", ".join(f.details["statistics"])
        return f"Data drawn from the fitted model have the {have} of the observed {f.where}.", ""
    off = "; ".join(
        f"the {c['statistic']} of {f.where} is {c['observed']:.3g}, the model's {c['low']:.3g} to {c['high']:.3g}"
        for c in f.details["off"]
    )
    return f"The fitted model does not give data like the observed: {off}.", _other_likelihood(f.details["off"])


def _other_likelihood(off: list[dict[str, Any]]) -> str:
    """What to do about statistics that the model does not give."""
    names = {c["statistic"] for c in off}
    above = {c["statistic"] for c in off if c["p"] < 0.5}
    if by := next((n.partition("residuals by ")[2] for n in names if "residuals by " in n), ""):
        return f"The mean goes along {by} otherwise than the model says: add a curve, an interaction, or its groups."
    if "spread of the residuals" in above:
        return (
            "What spreads more than its model: of counts or successes a negative binomial, a part of zeros of its own, "
            "or an effect for each row; else a scale that is learned, or heavier tails."
        )
    if names == {"correlation of neighboring residuals"}:
        return (
            "Write what goes along the rows into the model: a trend, an autocorrelation, groups. Rows whose order "
            "means nothing and which were sorted, as by kind, need nothing."
        )
    if "share of zeros" in above:
        return "Counts with more zeros: a negative binomial, or a part of zeros of its own (zero_inflated_poisson)."
    if names <= {"least", "largest", "largest residual"}:
        return (
            "Look at the rows with the largest residuals; where they are right, take heavier tails (student; of counts "
            "negbinomial)."
        )
    return "Change the likelihood (tails, dispersion, bounds), or what it is conditioned on."


def _calibration(f: Finding) -> Words:
    d = f.details
    if math.isnan(f.figure):
        return "Whether the posteriors are calibrated was not checked.", "Run ppgen calibrate RUN."
    remedy = f"{RICHER} If a pair that should be exact fails, look for an error in model or guide."
    if "steps" in d:
        remedy = f"Take more steps (--steps {4 * d['steps']}), as fits that end too early look the same. {remedy}"
    if f.verdict == "look":
        remedy = (
            f"Take more simulations (--simulations {4 * d['simulations']}) before looking for a fault: ranks of one "
            "calibrated pair in twenty are as uneven by chance."
        )
    if f.where:
        return f"{f.where}: {SHAPES[d['shape']]} (p = {f.figure:.2g}).", remedy
    if f.verdict == "fine":
        return (
            f"Calibrated as far as {d['simulations']} simulations can tell: the ranks of all {d['quantities']} "
            f"quantities are uniform (smallest p-value {f.figure:.2g}, corrected for their number).",
            "",
        )
    names = first_of(d["failed"], 8)
    said = "Perhaps not" if f.verdict == "look" else "Not"
    return (
        f"{said} calibrated: the ranks of {len(d['failed'])} of {d['quantities']} quantities are not uniform over "
        f"{d['simulations']} simulations: {names} (p = {f.figure:.2g}).",
        remedy,
    )


SHAPES = {  # in what way ranks are not uniform
    "low": "its posterior lies too low: the true value ranks high",
    "high": "its posterior lies too high: the true value ranks low",
    "narrow": "its posterior is too narrow: the true value ranks at the ends",
    "wide": "its posterior is too wide: the true value ranks in the middle",
}


def _score_difference(f: Finding) -> Words:
    d = f.details
    best, other, gap, se = f.where, d["other"], f.figure, d["se"]
    if f.verdict == "fine":
        return f"{best} predicts best: {gap:.3g} nats above {other}, over {d['rows']} rows, s.e. {se:.2g}.", ""
    if gap == 0:
        return f"{best} and {other} predict each of these rows alike.", ""
    more = "Score more rows."
    if gap > 2 * se:
        return f"{best} probably predicts best: {gap:.3g} nats above {other}, which is {gap / se:.1f} s.e.", more
    return (
        f"{best} and {other} cannot be told apart: {gap:.2g} nats between them, with a standard error of {se:.2g}.",
        more,
    )


def _bound_kinds(f: Finding) -> Words:
    lower = f.details["lower"]
    return (
        f"Kinds are mixed: {', '.join(lower)} {'is a lower bound' if len(lower) == 1 else 'are lower bounds'}, and may "
        "be better than shown.",
        "Take more particles: they raise it.",
    )


WORDS: dict[str, Callable[[Finding], Words]] = TEXTS | {
    fn.__name__[1:]: fn
    for fn in (
        _elbo_trend, _guide, _bound_gap, _khat, _ess, _mean_off, _sd_ratio, _inactive_units, _rhat, _divergences,
        _outside_support, _tail_khat, _importance, _score, _moved, _bounds, _unseen_modes, _predictive, _calibration,
        _score_difference, _bound_kinds,
    )
}  # fmt: skip
