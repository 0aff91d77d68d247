"""Whether each row of a plate counts all rows: a sum over the rows within their plate, which multiplies it by N.

    with pyro.plate("rows", len(y)):
        pyro.factor("likelihood", Normal(m, 1).log_prob(y).sum())     # N times the log-likelihood

It is told by the data twice and thrice, at the same latents: what each row counts once grows by as much again, and N
sums over N rows by N². A mean over the rows, or a number a row that does not depend on the others, is right.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ppgen.data import n_rows, take
from ppgen.handlers import without_validation
from ppgen.program import Program
from ppgen.sites import innermost, is_factor, plate_dim, sample_sites
from ppgen.structure import Site, Structure
from ppgen.terms import latents_of, run

CURVED = 0.05  # the second difference from which on a total grows by more than rows, a share of it; of N² it is 2/9

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
    """Those whose total over their plates grows by more than the rows, where these come again and again."""
    rows = torch.arange(n_rows(data, structure.row_columns))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), without_validation(), program.in_brief():
            once = run(program, data, guide=False)
            asked = [s for s in asked if _is_alike(sample_sites(once.p, factors=True)[s.name], structure)]
            totals = [_totals(once.p.nodes, asked)]
            for times in (2, 3) if asked else ():
                more = take(data, rows.repeat(times), structure.row_columns)
                held = {n: _again(once.p.nodes[n], v, times, structure) for n, v in latents_of(once.p).items()}
                totals.append(_totals(run(program, more, guide=False, latents=held).p.nodes, asked))
    except Exception:  # written for one number of rows, or it draws what it cannot run on: a guide's draws are others
        return []
    return [
        s for s, one, two, three in zip(asked, *totals, strict=True) if abs(one - 2 * two + three) > CURVED * abs(three)
    ]


def _again(site: Mapping[str, Any], value: Tensor, times: int, structure: Structure) -> Tensor:
    """The latents of rows that come so many times."""
    dim = plate_dim(site, structure.row_plates)
    return value if dim is None else torch.cat([value] * times, dim - site["fn"].event_dim)


def _totals(nodes: Mapping[str, Any], asked: list[Site]) -> list[float]:
    """Log-probabilities over the plates; times N/B of no minibatch, which stands for as many rows however it grows."""
    found = []
    for site in (nodes[s.name] for s in asked):
        log_prob, scale = site["fn"].log_prob(site["value"]), site["scale"]
        whole = all(f.full_size in (None, f.size) for f in site["cond_indep_stack"])
        found.append(float((log_prob * scale if whole else log_prob).double().sum()))
    return found


def _is_alike(site: Mapping[str, Any], structure: Structure) -> bool:
    """Whether a factor has one number along the rows' plate, which has expanded it."""
    if not is_factor(site):
        return True
    value: Tensor = innermost(site["fn"]).log_factor
    dim = next(f.dim for f in site["cond_indep_stack"] if f.vectorized and f.name in structure.row_plates)
    return value.dim() < -dim or value.shape[dim] == 1 or value.stride(dim) == 0
