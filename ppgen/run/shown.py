"""What tables and pictures of a tree of posterior draws show: which variables, their effects by group, and entries by
the data's words.

In the attributes of a tree that `ppgen.inference` made:

unreported     JSON: variables that tables and pictures leave out (`ppgen.Program.unreported`)
group_plates   JSON: dimensions that are plates of groups, not of rows
drawn_cells    JSON: of variables with a value or a vector a row (`NAME_unobserved`), the rows whose cell was missing,
               or pairs of row and entry
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import product
from typing import TYPE_CHECKING, Any

from ppgen.console import number

if TYPE_CHECKING:  # they take half a second to import
    import pandas as pd
    from xarray import DataArray, DataTree


LEVEL = 0.9  # of the intervals of tables


def shown(tree: DataTree) -> list[str]:
    """The variables of the posterior that tables and pictures show: all of them, where nothing else would be left."""
    own: Any = tree["posterior"]
    names = [str(n) for n in own.data_vars]
    changed: Mapping[str, str] = json.loads(tree.attrs.get("original_names", "{}"))
    left_out = json.loads(tree.attrs.get("unreported", "[]"))
    return [n for n in names if changed.get(n, n) not in left_out] or names


def variable(tree: DataTree, name: str) -> DataArray:
    """A variable of the posterior as it is shown: of missing cells that were drawn, those alone."""
    own: Any = tree["posterior"]
    rows = json.loads(tree.attrs.get("drawn_cells", "{}")).get(name)
    found: DataArray = own[name]
    if rows is None:
        return found
    dims, cells = [d for d in found.dims if d not in ("chain", "draw")], f"{name}_row"
    if len(dims) == 1:
        return found.isel({dims[0]: rows}).rename({dims[0]: cells})
    labels = [", ".join(str(found[d].values[i]) for d, i in zip(dims, pair, strict=True)) for pair in rows]
    flat = found.stack({cells: dims}, create_index=False).drop_vars(dims, errors="ignore")
    return flat.isel({cells: [i * own.sizes[dims[1]] + j for i, j in rows]}).assign_coords({cells: labels})


def entry_names(variable: DataArray, without: str | None = None) -> list[str]:
    """Of each entry of (chain, draw, ...), with its coordinates: theta[A], theta[B], ...

    Args:
        without: a dimension that is left out.
    """
    dims = [d for d in variable.dims if d not in ("chain", "draw", without)]
    places = product(*(variable[d].values.tolist() for d in dims))
    return [f"{variable.name}[{', '.join(map(str, place))}]" if place else str(variable.name) for place in places]


def summarized(tree: DataTree, **options: Any) -> pd.DataFrame:
    """ArviZ's summary of the variables that are shown, one at a time.

    Of several at once arviz-stats 0.8.0 gives the figures of an entry to another, where their dimensions do not come in
    one order: sd (term), r (group, term).
    """
    import pandas as pd
    from arviz_stats import summary  # type: ignore[attr-defined]

    each = [variable(tree, name).to_dataset(name=name) for name in shown(tree)]
    return pd.concat([summary(one, round_to="none", ci_prob=LEVEL, **options) for one in each])


def group_effects(tree: DataTree) -> dict[str, dict[str, DataArray]]:
    """What varies over groups, by the groups' plate and the effect's name: (chain, draw, groups).

    Only of groups with words, and at least two effects: one is a list already.
    """
    own: Any = tree["posterior"]
    found: dict[str, dict[str, DataArray]] = {}
    for plate in json.loads(tree.attrs.get("group_plates", "[]")):
        if plate not in own.coords or own[plate].dtype.kind not in "OUT":
            continue
        effects: dict[str, DataArray] = {}
        for part in (own[n] for n in shown(tree) if plate in own[n].dims and own[n].ndim <= 4):
            others = [d for d in part.dims if d not in ("chain", "draw", plate)]
            of_one = {f"{part.name}[{e}]": part.isel({d: i}) for d in others for i, e in enumerate(part[d].values)}
            effects |= of_one if others else {str(part.name): part}
        if len(effects) > 1:
            found[plate] = effects
    return found


def by_group(tree: DataTree) -> dict[str, tuple[pd.DataFrame, pd.DataFrame]]:
    """Means and sds of `group_effects`: a row for each group, a column for each effect, by the groups' plate."""
    import pandas as pd

    def table(plate: str, effects: Mapping[str, DataArray], how: str) -> pd.DataFrame:
        words = [str(w) for w in next(iter(effects.values()))[plate].values]
        columns = {k: getattr(v, how)(("chain", "draw")).values for k, v in effects.items()}
        return pd.DataFrame(columns, index=words)

    return {p: (table(p, effects, "mean"), table(p, effects, "std")) for p, effects in group_effects(tree).items()}


def group_rows(means: pd.DataFrame, sds: pd.DataFrame, most: int) -> list[list[str]]:
    """The first rows of a table of `by_group` in text: the group, and mean ± sd of each effect."""
    return [
        [word, *(f"{number(m)} ± {number(s)}" for m, s in zip(means.loc[word], sds.loc[word], strict=True))]
        for word in means.index[:most]
    ]


def in_words(tree: DataTree, where: str) -> str:
    """An entry by its labels, where the tree has some: "r_town[3, 0]" -> "r_town[Ulm, Intercept]"."""
    match = re.fullmatch(r"(.+)\[([\d, ]+)\]", where)
    own: Any = tree["posterior"]
    if match is None or match[1] not in own.data_vars:
        return where
    variable, places = own[match[1]], [int(i) for i in match[2].split(",")]
    dims = variable.dims[2:]
    if len(dims) != len(places) or any(i >= variable.sizes[d] for i, d in zip(places, dims, strict=True)):
        return where
    labels = [str(variable[d].values[i]) for i, d in zip(places, dims, strict=True)]
    return f"{match[1]}[{', '.join(labels)}]"
