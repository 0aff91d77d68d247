"""What a check found, as a record: measured, figure, threshold, verdict. Sentences are made from records, never read.

Each check is made in one place: training and predictive checks in report_checks.py, the guide in guide_checks.py and
moments.py, chains in mcmc_diagnostics.py, calibration in calibrate.py. `verdict` combines them, and is the only place
that decides what is worst; the words are in finding_words.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ppgen.errors import PpgenError
from ppgen.inference.verdicts.finding_words import WORDS
from ppgen.run.shown import in_words

if TYPE_CHECKING:
    from xarray import DataTree

WRONG, LOOK, FINE = VERDICTS = ("wrong", "look", "fine")  # the worst first
OF_MODEL = ("predictive", "resolution")  # what the data say of the model; all other findings are of draws and bounds

# Checks that stand for one question: where some were made, "fine" needs all of a set.
_CHAINS = frozenset(("rhat", "ess_bulk", "ess_tail"))
TOGETHER = (
    (frozenset(("khat", "ess", "mean_off", "sd_ratio")),),
    (_CHAINS | {"divergences", "e_bfmi"}, _CHAINS | {"evidence_se"}),  # of chains; of islands of particles
)


@dataclass(frozen=True)
class Finding:
    """What one check found; printed, it is its sentence.

    Attributes:
        measure: what was measured, a name of `WORDS`: khat, ess, mean_off, sd_ratio, rhat, e_bfmi, elbo_trend ...
        where: the variable, site or entry that the figure belongs to, the worst of them; "" for the whole.
        figure: the figure; nan where it was not or could not be measured, and the verdict then is "look".
        threshold: where the figure stops being fine; nan where there is no such number.
        verdict: "fine", "look" (use it with care, as the remedy says) or "wrong" (do not use it).
        details: further figures that the sentence gives: numbers, strings, lists of them.

    >>> print(Finding("e_bfmi", "", 0.12, 0.3, "look"))
    E-BFMI is 0.12 (good from 0.3 on): the energy moves too slowly for the tails of the posterior, as with heavy tails
    or a funnel
    """

    measure: str
    where: str
    figure: float
    threshold: float
    verdict: str
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS or self.measure not in WORDS:
            raise ValueError(f"{self.measure!r} has no words, or {self.verdict!r} is none of {VERDICTS}")
        if math.isnan(self.figure) and self.verdict == FINE:
            raise ValueError(f"{self.measure!r} was not measured, and cannot be fine")

    def __str__(self) -> str:
        return self.sentence

    @property
    def sentence(self) -> str:
        """What was found, in words."""
        return WORDS[self.measure](self)[0]

    @property
    def remedy(self) -> str:
        """What to do about it; "" where there is nothing to do."""
        return "" if self.verdict == FINE else WORDS[self.measure](self)[1]

    @property
    def told(self) -> str:
        """The sentence, and the remedy after it."""
        return f"{self.sentence.removesuffix('.')}. {self.remedy}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which has neither nan (null) nor infinity (the strings "inf" and "-inf")."""
        return {
            "measure": self.measure, "where": self.where, "figure": _to_json(self.figure),
            "threshold": _to_json(self.threshold), "verdict": self.verdict,
            "details": {k: _to_json(v) for k, v in self.details.items()}, "sentence": self.sentence,
            "remedy": self.remedy,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Finding:
        """The record that `as_dict` wrote; its sentence is made anew.

        Raises:
            PpgenError: something else.
        """
        try:
            details = {k: _inf(v) for k, v in d["details"].items()}
            figure, threshold = (math.nan if d[k] is None else float(d[k]) for k in ("figure", "threshold"))
            return cls(str(d["measure"]), str(d["where"]), figure, threshold, str(d["verdict"]), details)
        except (KeyError, TypeError, ValueError, AttributeError) as e:
            raise PpgenError(
                f"a finding cannot be read ({type(e).__name__}: {e}); it was written by another version of ppgen: run "
                "the command that wrote it again"
            ) from e


def verdict(findings: Iterable[Finding]) -> str:
    """What is worst among those on draws; "look" where nothing was checked, or not all that makes a posterior fine.

    A posterior may be right whose model the data contradict: of that see `model_verdict`.

    >>> close = Finding("khat", "", 0.1, 0.7, "fine", {"rows": 1})
    >>> verdict([close])  # ESS and moments were not looked at
    'look'
    >>> verdict([close, Finding("bad_steps", "", 3.0, 0.0, "wrong")])
    'wrong'
    """
    found = [f for f in findings if f.measure not in OF_MODEL]
    worst = min((f.verdict for f in found), key=VERDICTS.index, default=LOOK)
    measured = {f.measure for f in found}
    part = any(measured & sets[0] and not any(s <= measured for s in sets) for sets in TOGETHER)
    return LOOK if worst == FINE and part else worst


def is_settled(findings: Iterable[Finding]) -> bool:
    """Whether nothing but the posterior itself is not fine, as its tails: another method would say the same."""
    return all(f.verdict == FINE or f.measure == "tail_khat" for f in findings)


def model_verdict(findings: Iterable[Finding]) -> str:
    """What the data say of the model, the worst of these findings; "" where they were not compared."""
    return min((f.verdict for f in findings if f.measure in OF_MODEL), key=VERDICTS.index, default="")


def figures(findings: Iterable[Finding]) -> dict[str, Any]:
    """What JSON holds of them: the verdicts on the draws and on the model, and each."""
    found = list(findings)
    return {"verdict": verdict(found), "model": model_verdict(found), "findings": [f.as_dict() for f in found]}


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Sorted by verdict; in the order given where these are the same."""
    return sorted(findings, key=lambda f: VERDICTS.index(f.verdict))


def grade(figure: float, look: float, wrong: float = math.inf) -> str:
    """The verdict of a figure that should be low: fine up to `look`, wrong above `wrong`; "look" where it is nan.

    >>> grade(0.3, 0.7), grade(0.8, 0.7), grade(2.0, 0.7, 1.0), grade(math.nan, 0.7)
    ('fine', 'look', 'wrong', 'look')
    """
    if figure > wrong:
        return WRONG
    return FINE if figure <= look else LOOK


# -- as an attribute of a tree, which netCDF holds ----------------------------------------------------


def store_findings(tree: DataTree, findings: Iterable[Finding]) -> None:
    """Puts them into `tree.attrs["findings"]` as JSON: attributes of netCDF are strings and numbers."""
    tree.attrs["findings"] = json.dumps([f.as_dict() for f in findings], allow_nan=False, ensure_ascii=False)


def with_words(tree: DataTree, findings: Iterable[Finding]) -> list[Finding]:
    """Entries by the labels that the tree has for them: r_town[3, 0] is r_town[Ulm, Intercept]."""
    return [replace(f, where=in_words(tree, f.where)) for f in findings]


def load_findings(tree: DataTree) -> list[Finding]:
    """The findings that a tree of `mcmc` or `diagnose` carries, also after it was written and read; [] without any.

    Raises:
        PpgenError: the attribute is something else.
    """
    text = tree.attrs.get("findings", "[]")
    try:
        return [Finding.from_dict(d) for d in json.loads(text)]
    except (json.JSONDecodeError, TypeError) as e:
        raise PpgenError(
            "the tree's findings cannot be read: another version of ppgen wrote them; sample or diagnose again"
        ) from e


def _to_json(value: Any) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def _inf(value: Any) -> Any:
    return {"inf": math.inf, "-inf": -math.inf}.get(value, value) if isinstance(value, str) else value
