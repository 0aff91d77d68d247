r"""Pyro's `GaussianHMM` by covariances: its log_prob and draws are right at noises of any scale.

    z_t = F z_{t-1} + N(u, Q),   x_t = H z_t + N(d, R)             z_t: (k,), x_t: (D,), F: (k, k), H: (D, k)

Pyro multiplies densities by their precisions, of size 1/Q and 1/R, and log p(x) is a small difference of these: in
float32, log p of 60 values is off by a nat where the sd of a step is 0.001, and by 30 where that of a value is 0.0001;
in float64 without bound as a sd goes to 0, as some draws of one do. Here a step is the map of the state before,
N(A z + b, C), and what its value says of that state, exp(ηᵀz - zᵀJz / 2). Pairs of them are combined in log₂ T rounds,
which gives the states given the values so far; log p(x) is the sum over t of that of x_t given those. In float64.

Source: Särkkä and García-Fernández, Temporal parallelization of Bayesian smoothers, 2019 (arXiv:1905.13002), section 4.
"""

from __future__ import annotations

import math
from functools import wraps
from typing import Any, NamedTuple

import torch
from pyro.distributions import GaussianHMM
from torch import Tensor

from ppgen.data.precision import wide


class _Model(NamedTuple):
    """The steps of series, each (..., T, ·): that to the first state begins at 0, F = 0, and has z_0 in its noise."""

    F: Tensor
    u: Tensor
    Q: Tensor
    H: Tensor
    d: Tensor
    R: Tensor

    def seen(self, mean: Tensor, cov: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of z_t ~ N(mean, cov): log p(x_t), the difference of x_t from its mean, and the inverse of its covariance."""
        away = x - self.d - _times(self.H, mean)
        inverse, log_det = _inverted(_product(_product(self.H, cov), self.H.mT) + self.R)
        size = (away * _times(inverse, away)).sum(-1) + log_det
        return -(size + x.shape[-1] * math.log(2 * math.pi)) / 2, away, inverse


class _Steps(NamedTuple):
    """For each t, z_t and the values after s given z_s, s before t: N(z_t; A z_s + b, C) exp(ηᵀz_s - z_sᵀJz_s / 2)."""

    A: Tensor
    b: Tensor
    C: Tensor
    eta: Tensor
    J: Tensor

    def then(self, later: _Steps) -> _Steps:
        """Both, one after the other."""
        A, b, C, eta, J = later
        seen = _product(self.C, J)
        within = 1 / (1 + seen) if J.shape[-1] == 1 else _rows_first(torch.linalg.inv_ex(_eye(seen) + seen)[0])
        ahead, back = _product(A, within), _product(self.A.mT, within.mT)
        return _Steps(
            _product(ahead, self.A),
            _times(ahead, self.b + _times(self.C, eta)) + b,
            _product(_product(ahead, self.C), A.mT) + C,
            _times(back, eta - _times(J, self.b)) + self.eta,
            _product(_product(back, J), self.A) + self.J,
        )

    def filtered(self) -> tuple[Tensor, Tensor]:
        """Means and covariances of the states given the values so far: all steps up to each t."""
        steps, by, T = self, 1, self.A.shape[-3]
        while by < T:
            new = steps.part(0, T - by).then(steps.part(by, T - by))
            steps = _Steps(*(torch.cat(both, i) for *both, i in zip(steps.part(0, by), new, _TIME, strict=True)))
            by *= 2
        return steps.b, steps.C

    def part(self, start: int, length: int) -> _Steps:
        """Those of some times."""
        return _Steps(*(v.narrow(i, start, length) for v, i in zip(self, _TIME, strict=True)))


_TIME = (-3, -2, -3, -2, -3)  # the dimension of t in the fields


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Of matrices; of many small ones torch's is slow."""
    return left * right if left.shape[-1] == 1 else left @ right


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix * vector[..., None, :]).sum(-1)


def _eye(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1]).to(like)


def _rows_first(matrix: Tensor) -> Tensor:
    """LAPACK's are columns first, which a recorded program does not know of."""
    return matrix.clone(memory_format=torch.contiguous_format)


def _inverted(cov: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse and log determinant of a covariance; infinite, where it is none."""
    if cov.shape[-1] == 1:
        return 1 / cov, cov[..., 0, 0].log()
    root, failed = torch.linalg.cholesky_ex(cov)
    log_det = 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return _rows_first(torch.cholesky_inverse(root)), torch.where(failed > 0, torch.inf, log_det)


def _moments(d: Any) -> tuple[Tensor, Tensor]:
    """Mean and covariance of a MultivariateNormal, or of independent normals."""
    if hasattr(d, "base_dist"):
        return wide(d.mean), torch.diag_embed(wide(d.stddev) ** 2)
    root = wide(d.scale_tril)
    return wide(d.mean), root @ root.mT


def _model(parts: Any, shape: torch.Size) -> _Model:
    """Of the arguments of a GaussianHMM, for series of the batch shape and duration `shape`."""
    start, transition, step, observation, noise = parts
    (m, P), (u, Q), (d, R) = map(_moments, (start, step, noise))
    F, H = wide(transition).mT, wide(observation).mT
    F, Q, H, R = (v.expand(*shape, *v.shape[-2:]) for v in (F, Q, H, R))
    u, d = (v.expand(*shape, v.shape[-1]) for v in (u, d))
    first = F[..., :1, :, :]
    u = torch.cat([u[..., :1, :] + _times(first, m[..., None, :]), u[..., 1:, :]], -2)
    into = _product(_product(first, P[..., None, :, :]), first.mT)
    Q = torch.cat([Q[..., :1, :, :] + into, Q[..., 1:, :, :]], -3)
    return _Model(torch.cat([0 * first, F[..., 1:, :, :]], -3), u, Q, H, d, R)


def _log_prob(parts: Any, batch_shape: torch.Size, value: Tensor) -> Tensor:
    """log p of series (..., T, D)."""
    x = wide(value)
    p = _model(parts, torch.broadcast_shapes(batch_shape, x.shape[:-2]) + x.shape[-2:-1])
    _, away, inverse = p.seen(p.u, p.Q, x)
    told = _product(p.H.mT, inverse)
    gain, says = _product(p.Q, told), _product(p.F.mT, told)
    kept = _eye(p.F) - _product(gain, p.H)
    C = _product(_product(kept, p.Q), kept.mT) + _product(_product(gain, p.R), gain.mT)
    J = _product(_product(says, p.H), p.F)
    b, C = _Steps(_product(kept, p.F), p.u + _times(gain, away), C, _times(says, away), J).filtered()
    b, C = (torch.cat([0 * v.narrow(i, 0, 1), v.narrow(i, 0, v.shape[i] - 1)], i) for v, i in ((b, -2), (C, -3)))
    return p.seen(_times(p.F, b) + p.u, _product(_product(p.F, C), p.F.mT) + p.Q, x)[0].sum(-1)


_made, _density, _drawn, _expanded = (
    GaussianHMM.__init__, GaussianHMM.log_prob, GaussianHMM.rsample, GaussianHMM.expand,
)  # fmt: skip


@wraps(_made)
def _init(self: Any, *args: Any, **kwargs: Any) -> None:
    _made(self, *args, **kwargs)
    names = ("initial_dist", "transition_matrix", "transition_dist", "observation_matrix", "observation_dist")
    given = dict(zip(names, args, strict=False)) | kwargs
    self._parts = tuple(given[n] for n in names)


@wraps(_expanded)
def _expand(self: Any, batch_shape: Any, _instance: Any = None) -> Any:
    new = _expanded(self, batch_shape, _instance)
    if "_parts" in vars(self):
        new._parts = self._parts
    return new


@wraps(_density)
def log_prob(self: Any, value: Tensor) -> Tensor:
    """Pyro's own of a GaussianHMM that its methods derived from another (conjugate_update, prefix_condition)."""
    if "_parts" not in vars(self):
        return _density(self, value)
    if self._validate_args:
        self._validate_sample(value)
    found = _log_prob(self._parts, self.batch_shape, value)
    return found.to(torch.promote_types(value.dtype, self._parts[1].dtype))


@wraps(_drawn)
def rsample(self: Any, sample_shape: Any = ()) -> Tensor:
    """Step by step."""
    if "_parts" not in vars(self) or self.duration is None:
        return _drawn(self, torch.Size(sample_shape))
    start, F, step, H, noise = self._parts
    each, shape = torch.Size((*self.batch_shape, self.duration)), torch.Size(sample_shape)
    F = F.expand(*each, *F.shape[-2:])
    z, steps, states = start.expand(self.batch_shape).rsample(shape), step.expand(each).rsample(shape), []
    for t in range(self.duration):
        z = _times(F[..., t, :, :].mT, z) + steps[..., t, :]
        states.append(z)
    return _times(H.mT, torch.stack(states, -2)) + noise.expand(each).rsample(shape)


GaussianHMM.__init__ = _init
GaussianHMM.expand = _expand
GaussianHMM.log_prob = log_prob
GaussianHMM.rsample = rsample
