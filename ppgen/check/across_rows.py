"""Rows that depend on latents of other rows, as of a Gaussian process or a sum along time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ppgen.handlers import without_validation
from ppgen.program import Program
from ppgen.sites import is_deterministic, plate_dim, sample_sites
from ppgen.structure import Structure
from ppgen.terms import run


def across_rows(program: Program, data: Mapping[str, Any], structure: Structure) -> tuple[str, str] | None:
    """The first observed site of whose first or last row the density has a derivative in a latent of another row, and
    that latent; None where there is none, or it cannot be told.

    Args:
        data: rows that the program was fitted to.
    """
    own = [n for n in structure.latents if structure.is_local(n)]
    if not own or structure.summed:
        return None
    try:
        with torch.enable_grad(), without_validation(), torch.random.fork_rng(devices=[]):
            drawn = sample_sites(run(program, data, guide=False).p)
            at = {n: drawn[n]["value"].detach() for n in structure.latents}
            moved = {n: at[n].requires_grad_() for n in own if at[n].is_floating_point()}
            sites = sample_sites(run(program, data, guide=False, latents=at).p)
            return _first(sites, moved, structure.row_plates)
    except Exception:  # a model that does not run at draws of its prior
        return None


def _first(
    sites: Mapping[str, dict[str, Any]], moved: Mapping[str, Tensor], plates: frozenset[str]
) -> tuple[str, str] | None:
    for name, site in sites.items():
        dim = plate_dim(site, plates)
        if not site["is_observed"] or is_deterministic(site) or dim is None:
            continue
        rows = site["fn"].log_prob(site["value"]).movedim(dim, 0)
        for i in (0, len(rows) - 1):
            for latent, slope in zip(moved, _slopes(rows[i].sum(), list(moved.values())), strict=True):
                at = plate_dim(sites[latent], plates)
                if slope is None or at is None:
                    continue
                slope = slope.movedim(at - len(sites[latent]["fn"].event_shape), 0)
                if bool(slope[:i].any()) or bool(slope[i + 1 :].any()):
                    return name, latent
    return None


def _slopes(value: Tensor, at: list[Tensor]) -> Sequence[Tensor | None]:
    if not value.requires_grad:
        return [None] * len(at)
    return torch.autograd.grad(value, at, allow_unused=True, retain_graph=True)
