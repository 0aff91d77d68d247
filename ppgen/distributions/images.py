"""The support of a transformed distribution: the image of its base's, x = T(u) with u in (a, b) in (T(a), T(b)).

torch says the codomain of the last transform, whatever the base: 10 x for x ~ Beta(2, 2) would have the support ℝ.
"""

from __future__ import annotations

import copy
import functools
from typing import Any, cast

import torch
from torch import distributions as td
from torch.distributions import constraints, transforms

_ENDS = tuple[Any, Any]  # the lowest and the highest value; None: there is none
_MONOTONE = (
    transforms.AffineTransform, transforms.ExpTransform, transforms.PowerTransform, transforms.SigmoidTransform,
    transforms.SoftplusTransform, transforms.TanhTransform,
)  # fmt: skip


def with_image(d: Any) -> Any:
    """The same distribution with the image of its base's support for its own, where torch says another.

    >>> import pyro.distributions as dist
    >>> scaled = dist.TransformedDistribution(dist.Beta(2.0, 2.0), [transforms.AffineTransform(0.0, 10.0)])
    >>> with_image(scaled).support
    Interval(lower_bound=0.0, upper_bound=10.0)
    """
    own: Any = td.TransformedDistribution.support
    if not isinstance(d, td.TransformedDistribution) or type(d).support is not own:
        return d
    if not all(isinstance(t, _MONOTONE) for t in _parts(d.transforms)) or (support := _image(d)) is None:
        return d
    new, kind = cast(tuple[Any, Any], (copy.copy(d), type(d)))
    new.__class__, new.image = _kind(kind), support
    return new


@functools.cache
def _kind(kind: Any) -> Any:
    """A type of the same name whose support is said."""

    def expand(self: Any, batch_shape: Any, _instance: Any = None) -> Any:
        return with_image(kind.expand(self, batch_shape, kind.__new__(kind)))

    support = constraints.dependent_property(lambda self: self.image)
    return type(kind.__name__, (kind,), {"support": support, "expand": expand})


def _image(d: Any) -> Any:
    """None: torch's is right, or the image is not known. No value is looked at where it may be traced or batched."""
    ends = _ends(d.base_dist.support)
    for t in _parts(d.transforms):
        ends = ends and (_ends(t.codomain) if ends == _ends(t.domain) else _moved(t, ends))
    if ends in (None, (None, None), _ends(d.support)):
        return None
    low, high = ends
    made: Any = constraints.less_than(high) if low is None else constraints.interval(low, high)
    made = constraints.greater_than(low) if high is None else made
    return constraints.independent(made, d.event_dim) if d.event_dim else made


def _moved(t: Any, ends: _ENDS) -> _ENDS | None:
    """The ends of the image of a part of a transform's domain."""
    a, b = (None if e is None else t(torch.as_tensor(e)) for e in ends)
    if isinstance(t, transforms.ExpTransform):
        return 0.0 if a is None else a, b
    if a is not None and b is not None:
        return _finite(torch.minimum(a, b)), _finite(torch.maximum(a, b))
    if not isinstance(t, transforms.AffineTransform):
        return None
    try:
        signs = {bool(s) for s in (torch.as_tensor(t.scale) > 0).flatten()}
    except Exception:  # a scale that is traced or batched
        return None
    return None if len(signs) > 1 else (a, b) if signs.pop() else (b, a)


def _finite(end: Any) -> Any:
    """None of an end at infinity, as of 1 / u at 0."""
    try:
        return None if bool(torch.isinf(end).all()) else end
    except Exception:  # one that is traced or batched
        return end


def _parts(found: Any) -> list[Any]:
    """The transforms, one by one."""
    return [p for t in found for p in (_parts(t.parts) if isinstance(t, transforms.ComposeTransform) else [t])]


def _ends(constraint: Any) -> _ENDS | None:
    """None of what is no interval."""
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    found = getattr(constraint, "lower_bound", None), getattr(constraint, "upper_bound", None)
    known = found != (None, None) or isinstance(constraint, type(constraints.real))
    return found if known and not constraint.is_discrete and not constraint.event_dim else None
