r"""What torch and Pyro have wrong, or lack, of their own distributions: set right in them, for every program.

    LKJCholesky.sample       row k of L has |w|² ~ Beta(k/2, η + (d - 1 - k)/2); torch draws Beta(k - 1/2, ...),
                             which is another law than its log_prob from three dimensions on
    CoalescentTimes.sample   times at `rate`; Pyro draws those of rate 1
    Binomial.sample          nan of trials that are nan; torch's loop has no end
    GeneralizedPareto        its support without an upper end, which torch calls an interval up to infinity
    transformed supports     x = T(u) with u in (a, b) in (T(a), T(b)): torch says the codomain of the last transform,
                             ℝ for 10 x of x ~ Beta(2, 2), and forgets the order of ordered numbers, as of their eˣ
    supports of mixtures     a bijection from the reals, where all components have one support
    directions               of length 1 as float32 has it, in which data are; Pyro's check in float64 refuses them
    positive definite        X = L Lᵀ, of L's entries below the diagonal and the logarithms of those on it

tests/test_corrected.py holds draws of every distribution of Pyro against its density.

Source: Lewandowski, Kurowicka and Joe, Generating random correlation matrices based on vines and extended onion method,
2009. Pyro's LKJ and LKJCorrCholesky are made of torch's.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

import torch
from pyro.distributions import CoalescentTimes
from pyro.distributions import constraints as pyro_constraints
from torch import Tensor
from torch.distributions import (
    Beta,
    Binomial,
    GeneralizedPareto,
    LKJCholesky,
    Transform,
    TransformedDistribution,
    biject_to,
    constraints,
    transform_to,
    transforms,
)
from torch.distributions.constraints import MixtureSameFamilyConstraint

# -- draws ---------------------------------------------------------------------------------------------------

_made, _drawn = LKJCholesky.__init__, CoalescentTimes.sample


@wraps(_made)
def _lkj(self: Any, *args: Any, **kwargs: Any) -> None:
    _made(self, *args, **kwargs)
    k = torch.arange(1, self.dim, dtype=self.concentration.dtype, device=self.concentration.device)
    below = torch.cat([k.new_ones(1), k])  # the first row has none, and its draw is not used
    self._beta = Beta(below / 2, (self.concentration + (self.dim - 1) / 2).unsqueeze(-1) - below / 2)


@wraps(_drawn)
def _coalescent(self: Any, sample_shape: Any = ()) -> Tensor:
    rate = self.rate.detach().expand(self.batch_shape).unsqueeze(-1)
    return _drawn(type(self)(self.leaf_times * rate, validate_args=False), torch.Size(sample_shape)) / rate


def _binomial(self: Any, sample_shape: Any = ()) -> Tensor:
    shape = self._extended_shape(torch.Size(sample_shape))
    n = self.total_count.expand(shape)
    with torch.no_grad():
        return torch.where(n.isnan(), n, torch.binomial(torch.where(n.isnan(), 0.0, n), self.probs.expand(shape)))


Binomial.sample = _binomial  # type: ignore[method-assign]
LKJCholesky.__init__ = _lkj  # type: ignore[method-assign]
CoalescentTimes.sample = _coalescent


# -- supports ------------------------------------------------------------------------------------------------


class _UpToInfinity(constraints.interval):
    """An interval of tensors, whose upper ends may be infinite."""


class _IntoIntervals(Transform):
    """u -> lower + (upper - lower) σ(u), or lower + eᵘ where the upper end is infinite."""

    domain = constraints.real
    bijective = True
    sign = 1

    def __init__(self, lower: Tensor, upper: Tensor):
        super().__init__()
        self.lower, self.open = lower, torch.isinf(upper)
        self.width = torch.where(self.open, 1.0, upper - lower)
        self.codomain = _UpToInfinity(lower, upper)

    def _call(self, x: Tensor) -> Tensor:
        return self.lower + self.width * torch.where(self.open, x, torch.nn.functional.logsigmoid(x)).exp()

    def _inverse(self, y: Tensor) -> Tensor:
        share = (y - self.lower) / self.width
        return share.log() - torch.where(self.open, 0.0, (-share).log1p())

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        inside = torch.nn.functional.logsigmoid(x) + torch.nn.functional.logsigmoid(-x)
        return self.width.log() + torch.where(self.open, x, inside)


@constraints.dependent_property(is_discrete=False, event_dim=0)
def _pareto_support(self: Any) -> Any:
    upper = torch.where(self.concentration < 0, self.loc - self.scale / self.concentration, torch.inf)
    return _UpToInfinity(self.loc, upper)


GeneralizedPareto.support = _pareto_support  # type: ignore[method-assign]


_Ends = tuple[Any, Any]  # the lowest and the highest value; None: there is none
_MONOTONE = (
    transforms.AffineTransform, transforms.ExpTransform, transforms.PowerTransform, transforms.SigmoidTransform,
    transforms.SoftplusTransform, transforms.TanhTransform,
)  # fmt: skip
_codomain: Any = TransformedDistribution.support.fget


@constraints.dependent_property(is_discrete=False)
def _transformed_support(self: Any) -> Any:
    found = _image(self)
    return _codomain(self) if found is None else found


TransformedDistribution.support = _transformed_support  # type: ignore[method-assign]


def _image(d: Any) -> Any:
    """None: torch's is right, or the image is not known. No value is looked at where it may be traced or batched."""
    parts = _parts(d.transforms)
    first = max((i + 1 for i, t in enumerate(parts) if not isinstance(t, _MONOTONE)), default=0)
    inner = parts[first - 1].codomain if first else d.base_dist.support
    if first < len(parts) and inner.event_dim and not isinstance(inner, constraints.independent):
        return _Image(inner, parts[first:])
    if first:
        return None
    ends = _ends(d.base_dist.support)
    for t in parts:
        ends = ends and (_ends(t.codomain) if ends == _ends(t.domain) else _moved(t, ends))
    if ends in (None, (None, None), _ends(_codomain(d))):
        return None
    low, high = ends
    made: Any = constraints.less_than(high) if low is None else constraints.interval(low, high)
    made = constraints.greater_than(low) if high is None else made
    return constraints.independent(made, d.event_dim) if d.event_dim else made


class _Image(constraints.Constraint):
    """A support of several entries together, as ordered numbers or a simplex, after a map of each entry."""

    is_discrete = False

    def __init__(self, inner: Any, parts: list[Any]):
        self.inner, self.map = inner, transforms.ComposeTransform(parts)
        self.tensors = [v for t in parts for v in vars(t).values() if isinstance(v, Tensor)]
        super().__init__()

    def __repr__(self) -> str:
        return f"{self.inner}, mapped by {self.map}"

    @property
    def event_dim(self) -> int:  # type: ignore[override]
        return int(self.inner.event_dim)

    def check(self, value: Tensor) -> Tensor:
        within = constraints.independent(self.map.codomain, self.event_dim - self.map.codomain.event_dim)
        return within.check(value) & self.inner.check(self.map.inv(value))


@biject_to.register(_Image)
@transform_to.register(_Image)
def _into_image(constraint: _Image) -> Transform:
    return transforms.ComposeTransform([biject_to(constraint.inner), *constraint.map.parts])


def _moved(t: Any, ends: _Ends) -> _Ends | None:
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


def _ends(constraint: Any) -> _Ends | None:
    """None of what is no interval."""
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    found = getattr(constraint, "lower_bound", None), getattr(constraint, "upper_bound", None)
    known = found != (None, None) or isinstance(constraint, type(constraints.real))
    return found if known and not constraint.is_discrete and not constraint.event_dim else None


class _OfEntries(Transform):
    """(..., d (d + 1) / 2) -> (..., d, d): X = L Lᵀ; the entries of L by rows, those on its diagonal as logarithms."""

    domain = constraints.real_vector
    codomain = constraints.positive_definite
    bijective = True

    def _call(self, x: Tensor) -> Tensor:
        lower = self._root(x)
        return lower @ lower.mT

    def _root(self, x: Tensor) -> Tensor:
        d = self.inverse_shape_of(x.shape[-1])
        rows, columns = torch.tril_indices(d, d)
        full = x.new_zeros((*x.shape[:-1], d, d))
        full[..., rows, columns] = x
        return full.tril(-1) + torch.diag_embed(full.diagonal(dim1=-2, dim2=-1).exp())

    def _inverse(self, y: Tensor) -> Tensor:
        lower = torch.linalg.cholesky(y)
        d = lower.shape[-1]
        logs = lower.tril(-1) + torch.diag_embed(lower.diagonal(dim1=-2, dim2=-1).log())
        rows, columns = torch.tril_indices(d, d)
        return logs[..., rows, columns]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """dX has the factor 2ᵈ Π l_iiᵈ⁻ⁱ⁺¹, i from 1, and dl_ii that of l_ii."""
        d = y.shape[-1]
        logs = x[..., torch.arange(1, d + 1).cumsum(0) - 1]
        return d * torch.log(torch.tensor(2.0)).to(x) + (logs * torch.arange(d + 1, 1, -1).to(x)).sum(-1)

    @staticmethod
    def inverse_shape_of(entries: int) -> int:
        return int(((8 * entries + 1) ** 0.5 - 1) / 2)

    def forward_shape(self, shape: Any) -> torch.Size:
        d = self.inverse_shape_of(shape[-1])
        return torch.Size((*shape[:-1], d, d))

    def inverse_shape(self, shape: Any) -> torch.Size:
        return torch.Size((*shape[:-2], shape[-1] * (shape[-1] + 1) // 2))


def _as_in_float32(check: Any) -> Any:
    """A check of a length, of which what was float32 misses 1 by more than float64 rounds."""
    return wraps(check)(lambda self, value: check(self, value.float() if value.dtype == torch.float64 else value))


for _lengths in (type(constraints.corr_cholesky), type(pyro_constraints.sphere)):
    _lengths.check = _as_in_float32(_lengths.check)  # type: ignore[method-assign]


def _shared(support: Any, events: int = 0) -> Any:
    """The support of all components, whose bounds have a dimension of components before `events` others.

    Raises:
        NotImplementedError: components of different supports.
    """
    own = dict(vars(support))
    for name, value in own.items():
        if isinstance(value, constraints.Constraint):
            own[name] = _shared(value, events + own.get("reinterpreted_batch_ndims", 0))
        elif isinstance(value, Tensor) and value.dim() > events:
            own[name] = value.select(-1 - events, 0)
            if not torch.equal(value, own[name].unsqueeze(-1 - events).expand_as(value)):
                raise NotImplementedError("components of different supports")
    kind: Any = type(support)
    found = kind.__new__(kind)
    found.__dict__.update(own)
    return found


for _to in (biject_to, transform_to):
    _to.register(_UpToInfinity, lambda c: _IntoIntervals(c.lower_bound, c.upper_bound))
    _to.register(MixtureSameFamilyConstraint, lambda c: biject_to(_shared(c.base_constraint)))
biject_to.register(type(constraints.positive_definite), lambda _: _OfEntries())
