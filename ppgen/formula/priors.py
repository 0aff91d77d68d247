"""Priors of a regression, weakly informative by the scales of the data, and those that a user states instead.

With s the standard deviation of y less its offsets where the link is the identity (of log y for lognormal), else 1, and
s_d the spread of a column of the design (`ppgen.formula.spreads`):

    Intercept, at the means of the columns   N(m, (2.5 s)²)    m: the mean of y, its log for a log link, 0 for a logit,
                                                                 less the mean of the offsets
    β_d                                      N(0, (2.5 s / s_d)²)
    sd of effects that vary                  HalfNormal(2.5 s / s_d)
    their correlations                       LKJ(1)
    sigma                                    Exponential(1 / s)

Without an intercept the columns tell the level of y as well: √(s² + m²) stands for the s of their coefficients, and of
effects that vary where no column tells it.

The models of columns with gaps (`ppgen.formula.gaps`) have the same, with s the standard deviation of the column's seen
cells, 1 of a binary one.

Sources: the defaults of rstanarm (Goodrich et al.) and bambi (Capretto et al. 2022).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor

from ppgen.errors import PpgenError, nearest
from ppgen.formula.design import Design, Gap, Matrix
from ppgen.formula.expressions import compute
from ppgen.formula.families import FAMILIES
from ppgen.formula.spreads import spans_constant, spreads

_WIDE = 2.5


class GapPriors(TypedDict):
    """alpha: location and scale.  slopes: scales, one a column.  rate: of sigma, which a binary column has not."""

    alpha: list[float]
    slopes: list[float]
    rate: float


class Priors(TypedDict):
    """intercept: location and scale.  slopes: one pair a column.  spread: scales of the sds, by group.

    beside: the name of a distribution and its arguments, by site.  gaps: by column with missing cells.
    """

    intercept: list[float]
    slopes: list[list[float]]
    spread: dict[str, list[float]]
    beside: dict[str, tuple[str, list[float]]]
    gaps: NotRequired[dict[str, GapPriors]]


def priors_of(design: Design, family: str, table: Mapping[str, Tensor], stated: Mapping[str, Any] | None) -> Priors:
    """
    Args:
        table: the columns and codes of the rows that are fitted.
        stated: in place of these: a scale, or a pair (location, scale), of "Intercept", a column by its label, a
            term's columns by its name, or all slopes as "beta"; a scale of "sd" (all), "sd_GROUP", "sd_GROUP[label]",
            "sigma"; a pair of the arguments of another site beside. "beta[x]" is x, where a site has that name.
    """
    if not isinstance(stated, Mapping | None):
        raise PpgenError(f"priors is {stated!r}; expected scales, or pairs of location and scale, by name: {{'x': 1}}")
    own = FAMILIES[family]
    loc, s = _scales(own.link, own.kind, family, table, design)
    like = torch.zeros((), dtype=torch.float64)
    columns = {k: v for k, v in table.items() if isinstance(v, Tensor) and v.dim()}
    centred = design["intercept"] or family == "ordered"
    level = s if centred else math.hypot(s, loc)
    varying = s if centred or spans_constant(design["matrix"]) else level
    made: Priors = {
        "intercept": [_rounded(loc, s), _rounded(_WIDE * s)],
        "slopes": [[0.0, _rounded(_WIDE * level / sd)] for sd in spreads(design["matrix"], columns, like, centred)],
        "spread": {
            g["name"]: [_rounded(_WIDE * varying / sd) for sd in spreads(g["matrix"], columns, like, intercept=False)]
            for g in design["groups"]
        },
        "beside": {
            site: (name, [_rounded(1 / s) if a == "1/sd" else float(a) for a in arguments])
            for site, (name, arguments) in own.beside.items()
        },
    }
    if gaps := design.get("gaps"):
        made["gaps"] = {gap["name"]: _of_gap(gap, design["matrix"], columns) for gap in gaps}
    for name, value in (stated or {}).items():
        _state(made, design, name, value)
    return made


def _scales(link: str, kind: str, family: str, table: Mapping[str, Tensor], design: Design) -> tuple[float, float]:
    """The location of the intercept, and s."""
    numbers = {k: v.double() for k, v in table.items() if isinstance(v, Tensor) and v.dim()}
    offset = torch.zeros(len(table[design["response"]["y"]]), dtype=torch.float64)
    offset = sum((torch.as_tensor(compute(text, numbers)).double() for text in design["offsets"]), offset)
    if kind in ("categories", "binary", "trials") or link == "logit":
        return 0.0 - float(offset.mean()), 1.0
    y = table[design["response"]["y"]].double()
    y, offset = y[~y.isnan()], offset[~y.isnan()]
    if family == "lognormal" or link == "identity":
        y = (y.log() if family == "lognormal" else y) - offset
        sd = float(y.std()) if len(y) > 1 else 1.0
        return float(y.mean()), sd if sd > 0 else 1.0
    total = float(y.sum()) or 0.5  # of counts that are all 0, half a one
    return math.log(total / float(offset.exp().sum())), 1.0


def _of_gap(gap: Gap, own: Matrix, columns: Mapping[str, Tensor]) -> GapPriors:
    x = columns[gap["name"]].double()
    seen = torch.ones(len(x), dtype=torch.bool)
    seen[gap["rows"]] = False
    sd = float(x[seen].std(correction=0))
    s = 1.0 if gap["binary"] or not sd > 1e-12 else sd
    sds = spreads(own, columns, torch.zeros((), dtype=torch.float64), intercept=True)
    return {
        "alpha": [0.0 if gap["binary"] else _rounded(gap["fill"], s), _rounded(_WIDE * s)],
        "slopes": [_rounded(_WIDE * s / sds[i]) for i in gap["beside"]],
        "rate": _rounded(1 / s),
    }


def _rounded(value: float, scale: float | None = None) -> float:
    """To three figures, of the scale where one is given: priors that can be read."""
    scale = abs(value if scale is None else scale)
    return round(value, 2 - math.floor(math.log10(scale))) if scale else 0.0


def _state(made: Priors, design: Design, name: str, value: Any) -> None:
    labels, groups = design["matrix"]["labels"], [g["name"] for g in design["groups"]]
    effects = [(g["name"], i, label) for g in design["groups"] for i, label in enumerate(g["matrix"]["labels"])]
    if name == "Intercept" and design["intercept"]:
        made["intercept"] = _pair(name, value, made["intercept"][0])
    elif name in made["beside"]:
        distribution, arguments = made["beside"][name]
        made["beside"][name] = distribution, _arguments(name, value, distribution, arguments)
    elif varying := [(g, i) for g, i, label in effects if name in ("sd", f"sd_{g}", f"sd_{g}[{label}]")]:
        for group, i in varying:
            made["spread"][group][i] = _scale(name, value)
    elif _state_gap(made, design, name, value):
        return
    elif columns := [
        i for i, label in enumerate(labels) if name in ("beta", f"beta[{label}]", label, label.partition("[")[0])
    ]:
        for i in columns:
            made["slopes"][i] = _pair(name, value, 0.0)
    else:
        known = ["Intercept"] * design["intercept"] + [*labels, "beta"] * bool(labels) + list(made["beside"])
        known += [f"sd_{g}" for g in groups]
        sites = {gap["name"]: ("alpha", "beta", *["sigma"] * (not gap["binary"])) for gap in design.get("gaps", [])}
        known += [f"{site}_{gap}" for gap in sites for site in sites[gap]]
        raise PpgenError(
            f"there is nothing called {name!r} with a prior{nearest(name, known)}; there are {', '.join(known)}"
        )


def _state_gap(made: Priors, design: Design, name: str, value: Any) -> bool:
    """alpha_COLUMN, beta_COLUMN or sigma_COLUMN of the model of a column with gaps; whether it was one of them."""
    for gap in design.get("gaps", []):
        column, own = gap["name"], made["gaps"][gap["name"]]
        labels = [design["matrix"]["labels"][place] for place in gap["beside"]]
        slopes = [i for i, label in enumerate(labels) if name in (f"beta_{column}", f"beta_{column}[{label}]")]
        if name == f"alpha_{column}":
            own["alpha"] = _pair(name, value, own["alpha"][0])
        elif name == f"sigma_{column}" and not gap["binary"]:
            own["rate"] = _arguments(name, value, "Exponential", [own["rate"]])[0]
        elif slopes:
            for i in slopes:
                own["slopes"][i] = _scale(name, value)
        else:
            continue
        return True
    return False


def _scale(name: str, value: Any) -> float:
    """The scale of a prior whose location is 0."""
    loc, scale = _pair(name, value, 0.0)
    if loc:
        raise PpgenError(f"the prior of {name!r} has the location {loc:g}, and stands about 0; state its scale alone")
    return scale


def _pair(name: str, value: Any, loc: float) -> list[float]:
    pair = [loc, value] if isinstance(value, int | float) else value
    if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(v, int | float) for v in pair)):
        raise PpgenError(f"the prior of {name!r} is {value!r}; expected a scale, or a pair of location and scale")
    if not pair[1] > 0:
        raise PpgenError(f"the prior of {name!r} has the scale {pair[1]}; expected a positive one")
    return [float(v) for v in pair]


def _arguments(name: str, value: Any, distribution: str, before: list[float]) -> list[float]:
    given = [value] if isinstance(value, int | float) else list(value)
    if len(given) != len(before) or not all(isinstance(v, int | float) and v > 0 for v in given):
        raise PpgenError(
            f"the prior of {name!r} is {value!r}; expected {len(before)} positive numbers, "
            f"{'the mean' if distribution == 'Exponential' else 'the arguments'} of {distribution}"
        )
    return [1.0 / given[0]] if distribution == "Exponential" else [float(v) for v in given]


def described(design: Design, priors: Priors) -> dict[str, str]:
    """Each prior in words, by the name that states it."""
    found = {}
    if design["intercept"]:
        found["Intercept"] = "Normal({:.10g}, {:g})".format(*priors["intercept"])
    for label, (loc, scale) in zip(design["matrix"]["labels"], priors["slopes"], strict=True):
        found[f"beta[{label}]" if label in priors["beside"] else label] = f"Normal({loc:g}, {scale:g})"
    for group in design["groups"]:
        for label, scale in zip(group["matrix"]["labels"], priors["spread"][group["name"]], strict=True):
            found[f"sd_{group['name']}[{label}]"] = f"HalfNormal({scale:g})"
        if group["correlated"]:
            found[f"corr_{group['name']}"] = "LKJ(1)"
    for gap in design.get("gaps", []):
        own = priors["gaps"][gap["name"]]
        found[f"alpha_{gap['name']}"] = "Normal({:.10g}, {:g})".format(*own["alpha"])
        for i, scale in zip(gap["beside"], own["slopes"], strict=True):
            found[f"beta_{gap['name']}[{design['matrix']['labels'][i]}]"] = f"Normal(0, {scale:g})"
        if not gap["binary"]:
            found[f"sigma_{gap['name']}"] = f"Exponential({own['rate']:g})"
    return found | {n: f"{d}({', '.join(f'{a:g}' for a in args)})" for n, (d, args) in priors["beside"].items()}
