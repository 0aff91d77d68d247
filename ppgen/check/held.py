"""Whether data are held as a latent: `poutine.condition` on what the program computes from its rows, as y.log().

A conditioned site beside observed ones is a latent that is held, unless its value is a column of the rows itself.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from torch import Tensor

from ppgen.structure import Structure
from ppgen.terms import Traces

log = logging.getLogger("ppgen")


def warn_of_held_data(structure: Structure, longer: Callable[[], Traces | None]) -> None:
    """Names the held sites that have a value of its own for a row more: what is computed from the rows has one.

    Args:
        longer: a run on a row more, as of `longer_run`.
    """
    held = [s for s in structure.sites if s.role == "fixed" and structure.row_plates & {*s.plates}]
    more = longer() if held else None
    for site in held:
        node = None if more is None else more.p.nodes.get(site.name)
        if node is None or node["value"].shape == site.value_shape or _is_constant(node["value"]):
            continue
        log.warning(
            "%r is conditioned on what the program computes from its rows, and is held like a latent: it is in no "
            "prediction, log-likelihood or LOO; observe it by obs=, or condition it on a column itself", site.name,
        )  # fmt: skip


def _is_constant(value: Tensor) -> bool:
    """As of a latent that is held at 0 for each row, however many."""
    return bool((value == value.max()).all())
