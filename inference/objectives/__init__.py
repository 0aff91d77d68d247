"""Bounds on log p(x), one a file, found by the file's name: functions of the terms of K draws.

A file has

    SUMMARY     what it is, for `ppgen list`
    TERMS       which producer its terms come from: drawn, closed_form, summed, subsampled
    PATHWISE    whether its gradient is right only along the paths of all draws: it is no mean over draws
    MEAN        whether it is a sum of means of terms, which a part of the rows gives without bias (optional: it is
                not)
    OF_A_PART   what else is wrong, even of one draw, where the rows of a step are a part of those that share latents
                (optional)
    GRADIENT    the estimator whose draws it is made of, where that is not the user's choice (optional)
    REWEIGHTED  (optional) options that make what is trained on another thing than the bound, and the values at which
                they do not
    DREAMS      whether the guide is fitted to draws of the model: a guide by name is one that reads its rows (optional)
    draw        (optional) its own terms of one draw, in place of an estimator's; with DRAWS, see
                `ppgen.inference.gradients`
    objective   (terms, setting, **options) -> (target, bound): what is maximized, whose gradient is that of the
                (KL-weighted) bound, and the bound itself, both in nats over all N rows

A name may have keywords: `renyi`, `renyi(alpha=0.3)`. Adding one is adding its file, and its row in the table of laws
(tests/test_objectives.py).
"""

import inspect
from functools import partial
from typing import Any

from ppgen.folder import Folder, call_of, require_options

__all__ = ["formula", "named", "names", "reweighted"]

_FOLDER = Folder(__name__, "objective")
names, named = _FOLDER.names, _FOLDER.named


def formula(spec: str) -> partial[Any]:
    """The function (terms, setting) -> (target, bound) of a name with keywords.

    Raises:
        PpgenError: no such objective, or option.
    """
    made = named(spec).objective
    name, options = call_of(spec, "objective", "renyi(alpha=0.3)")
    require_options(f"objective {name}", made, options, but=("terms", "s"))
    return partial(made, **options)


def reweighted(spec: str, program: Any) -> str:
    """What is trained on in place of the bound that is shown, in words; "" where it is that bound.

    Args:
        spec: of an objective, or the name of another loss.
        program: a chain may weigh its terms by itself.
    """
    if spec.partition("(")[0] not in names():
        return ""
    part, plain = formula(spec), getattr(named(spec), "REWEIGHTED", {})
    has = {k: v.default for k, v in inspect.signature(part.func).parameters.items()} | part.keywords
    changed = [f"{k}={has[k]:g}" for k, v in plain.items() if has[k] != v]
    if getattr(program, "weighting", "elbo") != "elbo":
        changed.append(f"weighting={program.weighting!r}")
    return f"{spec.partition('(')[0]} with {' and '.join(changed)}" if changed else ""
