"""Latents as one vector of unconstrained values: where each stands in it, and how its site is written out of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import pyro
import torch
from pyro.distributions import Delta
from pyro.distributions.util import sum_rightmost
from torch import Tensor
from torch.distributions import biject_to

from ppgen.errors import PpgenError


class _Latent(NamedTuple):
    """A latent's place in its vector, and how it is written."""

    name: str
    start: int
    stop: int
    shape: tuple[int, ...]  # of the unconstrained value in a single run, the dimension of the rows left out
    batch_dim: int  # plates and other batch dimensions of the value, the rows' included
    event_dim: int
    frames: tuple[tuple[str, int, int | None], ...]  # plates: name, dim, size (None: as many as there are rows)
    transform: Any
    row_dim: int | None  # of the rows, counted from the right of the batch; None for one of the global vector


def require_whole_plates(sites: Mapping[str, dict[str, Any]]) -> None:
    for name, site in sites.items():
        for f in site["cond_indep_stack"]:
            if f.full_size not in (None, f.size):
                raise PpgenError(
                    f"the latent {name!r} stands in the plate {f.name!r}, which draws {f.size} of {f.full_size} rows "
                    "by itself; leave subsample_size out, and pass batch_size to fit"
                )


def row_frame(name: str, site: Mapping[str, Any], over_rows: Mapping[str, int]) -> int | None:
    dims = [f.dim for f in site["cond_indep_stack"] if f.vectorized and f.name in over_rows]
    if len(dims) > 1:
        raise PpgenError(
            f"the latent {name!r} stands in two plates over the rows, for which a guide by name has no form; write a "
            "guide of its own"
        )
    return dims[0] if dims else None


def places(sites: Mapping[str, dict[str, Any]], over_rows: Mapping[str, int]) -> list[_Latent]:
    found, start = [], 0
    for name, site in sites.items():
        event_dim = site["fn"].event_dim
        transform = biject_to(site["fn"].support)
        shape = list(transform.inv(site["value"]).shape)
        batch_dim = site["value"].dim() - event_dim
        row_dim = row_frame(name, site, over_rows)
        if row_dim is not None:
            del shape[batch_dim + row_dim]
        frames = tuple(
            (f.name, f.dim, None if f.name in over_rows else f.size)
            for f in sorted(site["cond_indep_stack"], key=lambda f: f.dim)
            if f.vectorized
        )
        size = math.prod(shape)
        found.append(_Latent(name, start, start + size, tuple(shape), batch_dim, event_dim, frames, transform, row_dim))
        start += size
    return found


def emit(latent: _Latent, vector: Tensor, plates: Mapping[str, Any]) -> None:
    """Writes one latent's site out of its vector: (D,), or (rows, 1, ..., D) of a latent of the rows."""
    u = vector[..., latent.start : latent.stop]
    if latent.row_dim is None:
        u = u.reshape(latent.shape)
    else:
        u = u.reshape(len(u), *latent.shape).movedim(0, latent.batch_dim + latent.row_dim)
    value = latent.transform(u)
    ladj = latent.transform.log_abs_det_jacobian(u, value)
    ladj = sum_rightmost(ladj, ladj.dim() - value.dim() + latent.event_dim)
    delta = Delta(value, -ladj, event_dim=latent.event_dim)
    with ExitStack() as stack:
        for name, *_ in latent.frames:
            stack.enter_context(plates[name])
        pyro.sample(latent.name, delta)


def vector(latents: Sequence[_Latent], values: Mapping[str, Tensor]) -> Tensor:
    """The vector that `emit` writes these values out of."""
    parts = []
    for latent in latents:
        u = latent.transform.inv(values[latent.name])
        if latent.row_dim is None:
            parts.append(u.reshape(-1))
        else:
            u = u.movedim(latent.batch_dim + latent.row_dim, 0)
            dim = next(dim for _, dim, size in latent.frames if size is None)
            parts.append(u.reshape(len(u), *(1,) * (-dim - 1), -1))
    return torch.cat(parts, -1)
