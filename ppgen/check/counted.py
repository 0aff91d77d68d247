"""Whether each row of a plate counts all rows: a sum over the rows within their plate, which multiplies it by N.

    with pyro.plate("rows", len(y)):
        pyro.factor("likelihood", Normal(m, 1).log_prob(y).sum())     # N times the log-likelihood

It is told by a run on one row more: what is the same for every row, and another number then, is of all rows. A number
a row that does not depend on the others, as the penalty of a latent, is not.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ppgen.handlers import without_validation
from ppgen.program import Program
from ppgen.sites import innermost, sample_sites
from ppgen.structure import Site, Structure, longer_run
from ppgen.terms import latents_of, run

log = logging.getLogger("ppgen")


def warn_of_rows_counted_again(program: Program, data: Mapping[str, Any], structure: Structure) -> None:
    """Names the factors and observed sites by which each row counts all rows."""
    asked = [s for s in structure.sites if structure.row_plates & {*s.plates} and _is_one_number(s)]
    found = _of_all_rows(program, data, structure, asked) if asked else []
    for site in found:
        plate = next(p for p in site.plates if p in structure.row_plates)
        way = "leave out its sum" if site.role == "factor" else "leave out .to_event"
        log.warning(
            "%r within the plate %r has one log-probability of all rows, which the plate counts once for each row; %s, "
            "or put it outside of the plate", site.name, plate, way,
        )  # fmt: skip


def _is_one_number(site: Site) -> bool:
    """Whether it may be: a factor, or an observed site whose value has no dimension for one of its plates."""
    if site.role == "factor":
        return True
    return site.role == "observed" and len(site.value_shape) - len(site.event_shape) < len(site.plates)


def _of_all_rows(program: Program, data: Mapping[str, Any], structure: Structure, asked: list[Site]) -> list[Site]:
    """Those that are another number on a row more, at the same latents, or have it in their event."""
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), without_validation(), program.in_brief():
            longer = longer_run(program, data, structure.row_columns, guide=False)
            one = run(program, data, guide=False)
    except Exception:  # it draws what it cannot run on: a guide's draws are others
        return []
    if longer is None:
        return []
    now, then = (sample_sites(t.p, factors=True) for t in (one, longer))
    (mine, others) = (latents_of(t.p) for t in (one, longer))
    alike = mine.keys() == others.keys() and all(torch.equal(v, others[n]) for n, v in mine.items())
    found = []
    for s in asked:
        if s.name in now and s.name in then:
            both = now[s.name], then[s.name]
            if s.role == "observed":
                again = both[0]["fn"].event_shape != both[1]["fn"].event_shape
            else:
                again = alike and _differ(*(_one_number(site, structure) for site in both))
            found += [s] if again else []
    return found


def _one_number(site: dict[str, Any], structure: Structure) -> Tensor | None:
    """A factor's value along the rows' plate, which has expanded it; None where it has a value a row."""
    value: Tensor = innermost(site["fn"]).log_factor
    dim = next(f.dim for f in site["cond_indep_stack"] if f.vectorized and f.name in structure.row_plates)
    if value.dim() < -dim or value.shape[dim] == 1:
        return value
    return value.select(dim, 0) if value.stride(dim) == 0 else None


def _differ(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and one.shape == other.shape and not torch.allclose(one, other)
