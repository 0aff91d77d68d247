"""Words whose order matters: their codes are in alphabetical order unless a categorical says otherwise."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch.distributions import Bernoulli, Categorical, OneHotCategorical

from ppgen.data import Table
from ppgen.sites import innermost, observed_columns

log = logging.getLogger("ppgen")


def warn_of_word_order(sites: Mapping[str, Mapping[str, Any]], data: Mapping[str, Any]) -> None:
    """Warns where words in alphabetical order are observed as numbers, by a distribution in which order matters.

    Args:
        sites: of a run of the model on these data.
    """
    types = data.types if isinstance(data, Table) else {}
    for site, column in observed_columns(sites, data).items() if types else ():
        fn = innermost(sites[site]["fn"])
        own = types[column].levels if column in types and types[column].kind != "ordered" else ()
        unordered = isinstance(fn, Bernoulli | Categorical | OneHotCategorical) and "Ordered" not in type(fn).__name__
        if len(own) > 2 and list(own) == sorted(own) and not unordered:
            log.warning(
                "the site %r (%s) observes the words of %r as numbers in alphabetical order (%s); if their order is "
                "another, say it with types=%s=ordered:a<b<c (--types), or make the column an ordered categorical",
                site, type(fn).__name__, column, ", ".join(f"{w!r} is {i}" for i, w in enumerate(own[:4])), column,
            )  # fmt: skip
