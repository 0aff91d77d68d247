r"""A guide of all latents as one map of a standard normal vector.

    u = T(e),  e ~ N(0, I):  the unconstrained latents side by side, and log |det ∂u/∂e|

T is affine for a normal, and the flow itself for a flow. A guide that draws site after site, mixes, or reads its rows
has no such map, or none that is one vector's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.distributions as td
from pyro.infer import autoguide as autoguides
from torch import Tensor, nn
from torch.distributions.transforms import ComposeTransform

from ppgen.errors import PpgenError
from ppgen.guides._vector import VectorGuide
from ppgen.guides.flow import Guide as FlowGuide

Push = Callable[[Tensor], tuple[Tensor, Tensor]]


class Coordinates(NamedTuple):
    """T: (D,) -> (D,) and its log-determinant, in nats; and where each latent stands in u."""

    push: Push
    places: Mapping[str, slice]


def coordinates(guide: nn.Module | None, name: str) -> Coordinates:
    """The map of a guide, its parameters as they are.

    Args:
        guide: one that a program was given, made already; None where it has none, or one of its own.
        name: of the program, for errors.

    Raises:
        PpgenError: a guide that has none.
    """
    if isinstance(guide, FlowGuide) and not guide.columns:
        return Coordinates(guide.flow.push, {a.name: slice(a.start, a.stop) for a in guide.of_all})
    if isinstance(guide, FlowGuide):
        why = "its flow reads the rows' columns; fit by another objective, with guide='flow(amortised=False)'"
    elif isinstance(guide, autoguides.AutoNormal):
        return _of_sites(guide)
    elif isinstance(guide, VectorGuide) and (push := _push_of(guide.law())) is not None:
        return Coordinates(push, {a.name: slice(a.start, a.stop) for a in guide.latents})
    elif isinstance(guide, autoguides.AutoContinuous) and (push := _push_of(guide.get_posterior())) is not None:
        return Coordinates(push, _side_by_side({n: math.prod(s) for n, s in guide._unconstrained_shapes.items()}))
    else:
        kind = "it has none, or one of its own" if guide is None else f"it is {type(guide).__name__}"
        why = f"{kind}; fit with guide='flow', 'bam' or an autoguide that is a normal (--guide)"
    raise PpgenError(f"the guide of {name} is no normal or flow of all latents as one vector: {why}")


def _push_of(law: td.Distribution) -> Push | None:
    """Of a law of vectors, (D,)."""
    if isinstance(law, td.Independent) and isinstance(law.base_dist, td.Normal):
        return _diagonal(law.base_dist.loc, law.base_dist.scale)
    if isinstance(law, td.LowRankMultivariateNormal):
        return _affine(law.loc, torch.linalg.cholesky(law.covariance_matrix))
    if isinstance(law, td.MultivariateNormal):
        return _affine(law.loc, law.scale_tril)
    if isinstance(law, td.TransformedDistribution):
        transform = ComposeTransform(law.transforms)

        def push(e: Tensor) -> tuple[Tensor, Tensor]:
            u = transform(e)
            return u, transform.log_abs_det_jacobian(e, u)

        return push
    return None


def _diagonal(loc: Tensor, scale: Tensor) -> Push:
    return lambda e: (loc + scale * e, scale.log().sum())


def _affine(loc: Tensor, scale_tril: Tensor) -> Push:
    ladj = scale_tril.diagonal().log().sum()
    return lambda e: (loc + (scale_tril * e[..., None, :]).sum(-1), ladj)


def _of_sites(guide: Any) -> Coordinates:
    """Of a normal for each site."""
    each = {n: guide._get_loc_and_scale(n) for n in guide._event_dims}
    loc, scale = (torch.cat([v[i].reshape(-1) for v in each.values()]) for i in (0, 1))
    return Coordinates(_diagonal(loc, scale), _side_by_side({n: v[0].numel() for n, v in each.items()}))


def _side_by_side(sizes: Mapping[str, int]) -> dict[str, slice]:
    places, start = {}, 0
    for name, size in sizes.items():
        places[name] = slice(start, start + size)
        start += size
    return places
