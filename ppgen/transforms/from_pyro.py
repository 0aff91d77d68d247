r"""Pyro's own transforms, each with both directions where the map has an inverse.

Pyro's neural, block and polynomial autoregressive transforms have no inverse there; but z_i is an increasing function
of x_i given the others, so that D rounds of bisection on all entries at once find it, whatever their order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.distributions import transforms as pyro_transforms
from torch import Tensor
from torch.distributions import Transform

from ppgen.errors import PpgenError, nearest
from ppgen.transforms.change_of_variables import FlowTransform, Pair, full_precision
from ppgen.transforms.planar import Planar, Radial, Sylvester

# increasing in each entry given those before it in some order, with no inverse in Pyro
_TRIANGULAR = (
    pyro_transforms.NeuralAutoregressive,
    pyro_transforms.BlockAutoregressive,
    pyro_transforms.Polynomial,
)
_OWN = {"planar": Planar, "radial": Radial, "sylvester": Sylvester}
_NAMES = (
    "affine_autoregressive", "affine_coupling", "batchnorm", "block_autoregressive", "householder",
    "matrix_exponential", "neural_autoregressive", "permute", "polynomial", "spline", "spline_autoregressive",
    "spline_coupling",
)  # fmt: skip


class Kept(FlowTransform):
    """One of Pyro's unconditional transform modules on vectors, its direction z -> x kept as in Pyro.

    Args:
        transform: the module, or a plain transform.
        features: D.
    """

    pulls = False

    def __init__(self, transform: Transform, features: int):
        super().__init__((features,))
        self.map = transform
        self.triangular = isinstance(transform, _TRIANGULAR)
        if isinstance(transform, pyro_transforms.BlockAutoregressive) and transform.residual is None:
            self.directions = ("push",)  # its last layer is bounded: most x have no z

    @property
    def title(self) -> str:
        return type(self.map).__name__

    @full_precision
    def push(self, z: Tensor, context: Tensor | None = None) -> Pair:
        with self._fresh():
            x = self.map(z)
            return x, self._ladj(z, x)

    def _ladj(self, z: Tensor, x: Tensor) -> Tensor:
        ladj = self.map.log_abs_det_jacobian(z, x)
        return ladj.expand(z.shape[:-1]) if self.map.domain.event_dim else ladj.expand(z.shape).sum(-1)

    @full_precision
    def pull(self, x: Tensor, context: Tensor | None = None) -> Pair:
        with self._fresh():
            if self.triangular:
                z = self._solve(x)
            elif isinstance(self.map, pyro_transforms.AffineAutoregressive):
                z = self._substitute(x)
            else:
                z = self.map.inv(x)
                return z, -self._ladj(z, x)
            return z, -self._ladj(z, self.map(z))

    def _substitute(self, x: Tensor) -> Tensor:
        """The affine inverse, one entry more in each pass; Pyro's own knows float32 only."""
        t: Any = self.map
        z = torch.zeros_like(x)
        for _ in range(self.shape[0]):
            loc, log_scale = t.arn(z)
            if t.stable:
                scale = torch.sigmoid(log_scale + t.sigmoid_bias)
                z = (x - (1 - scale) * loc) / scale
            else:
                z = (x - loc) * (-log_scale.clamp(t.log_scale_min_clip, t.log_scale_max_clip)).exp()
        return z

    @contextmanager
    def _fresh(self) -> Iterator[None]:
        """Pyro's transforms remember their last pair, also beyond an optimiser's step; here nothing stays."""
        self._forget()
        try:
            yield
        finally:
            self._forget()

    def _forget(self) -> None:
        for part in self.modules():  # some hold others
            for name in vars(part):
                if part is not self and name.startswith("_cache") and name != "_cache_size":
                    part.__dict__[name] = (None, None) if name == "_cached_x_y" else None

    def _solve(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            z = torch.zeros_like(x)
            for _ in range(self.shape[0]):
                z = self._round(z, x)
        for _ in range(2):  # Newton's steps; the gradients through the last are those of the implicit function
            slope = _jacobian(self.map._call, z)
            z = z.detach() - torch.linalg.solve(slope, (self.map._call(z.detach()) - x)[..., None])[..., 0]
        return z

    def _round(self, z: Tensor, x: Tensor) -> Tensor:
        """Each entry solved for by itself, at the present others: right for one entry more than before."""
        found = []
        for i in range(self.shape[0]):

            def f(z_i: Tensor, i: int = i) -> Tensor:
                return self.map._call(torch.cat((z[..., :i], z_i[..., None], z[..., i + 1 :]), -1))[..., i]

            found.append(_bisect(f, x[..., i]))
        return torch.stack(found, -1)


def _bisect(f, y: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    high = torch.full_like(y, 1e6).asinh()
    low = -high
    for _ in range(40):
        middle = (low + high) / 2
        below = f(middle.sinh()) < y
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return ((low + high) / 2).sinh()


def _jacobian(f, z: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    with torch.enable_grad():
        at = z.detach().requires_grad_()
        x = f(at)
        rows = [torch.autograd.grad(x_i.sum(), at, retain_graph=True)[0] for x_i in x.unbind(-1)]
    return torch.stack(rows, -2).detach()


def keep(name: str, features: int, **options: Any) -> FlowTransform:
    """One of Pyro's transforms of vectors by its name in `pyro.distributions.transforms`, with both directions.

    Args:
        name: such as "planar", "affine_autoregressive", "spline_coupling".
        features: D.
        options: those of Pyro's function of that name.

    Raises:
        PpgenError: no such name.

    >>> keep("neural_autoregressive", 2).pull(torch.zeros(5, 2))[0].shape
    torch.Size([5, 2])
    """
    if name in _OWN:
        return _OWN[name](features, **options)
    names = sorted((*_OWN, *_NAMES))
    if name not in names:
        raise PpgenError(f"there is no Pyro transform {name!r} to keep{nearest(name, names)}; take {', '.join(names)}")
    return Kept(getattr(pyro_transforms, name)(features, **options), features)
