"""Transforms from the real line to a latent that depend on other latents, and so are asked of its site in each run.

That is of a latent whose support depends on others, as that of x ~ Uniform(0, b) on b; and of one that is non-centred,

    z = loc + scale u    for z ~ Normal(loc, scale),

so that u is independent of loc and scale before the data are seen, and a hierarchical model has no funnel.

Source: Papaspiliopoulos, Roberts and Sköld, A general framework for the parametrization of hierarchical models, 2007.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
import torch.distributions as td
from pyro import poutine
from pyro.distributions.transforms import CorrMatrixCholeskyTransform, LowerCholeskyAffine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions.transforms import (
    AffineTransform,
    ComposeTransform,
    CorrCholeskyTransform,
    SigmoidTransform,
    StickBreakingTransform,
)

from ppgen.handlers import without_validation
from ppgen.sites import support_of

_BOUNDED = (SigmoidTransform, StickBreakingTransform, CorrCholeskyTransform)


def moving(model: Callable[[], Any], nodes: Mapping[str, Mapping[str, Any]], latents: Collection[str]) -> list[str]:
    """Those of the latents whose bounds are others in a second run of the model, at draws of its own.

    Args:
        nodes: of a first run. The model is not run again where no bound could differ.
    """
    return _differing(model, nodes, latents, lambda fn: _bounds(support_of(fn)))


def scaled(model: Callable[[], Any], nodes: Mapping[str, Mapping[str, Any]], latents: Collection[str]) -> list[str]:
    """Those of the latents that can be non-centred and have another scale in a second run; arguments as of `moving`."""
    return _differing(model, nodes, latents, _scales)


def _differing(
    model: Callable[[], Any],
    nodes: Mapping[str, Mapping[str, Any]],
    latents: Collection[str],
    tensors: Callable[[Any], list[Tensor]],
) -> list[str]:
    first = {n: found for n in latents if (found := tensors(nodes[n]["fn"]))}
    if not first:
        return []
    with torch.no_grad(), torch.random.fork_rng(devices=[]), without_validation():
        torch.manual_seed(torch.initial_seed() + 1)  # other draws, where the first run was of this very state
        again = poutine.trace(model).get_trace().nodes
    return [n for n, b in first.items() if n in again and not _same(b, tensors(again[n]["fn"]))]


def _scales(fn: Any) -> list[Tensor]:
    if located(fn) is None:
        return []
    base = _base(fn)[0]
    return [base.scale_tril if isinstance(base, td.MultivariateNormal) else base.scale]


def _base(fn: Any) -> tuple[Any, list[td.Transform]]:
    """The innermost distribution, and what is done to its draws."""
    after: list[td.Transform] = []
    while hasattr(fn, "base_dist"):
        if isinstance(fn, td.TransformedDistribution):
            after = [*fn.transforms, *after]
        fn = fn.base_dist
    return fn, after


class _Rooted(LowerCholeskyAffine):
    """u -> loc + L u; Pyro's takes one L, and no batch of them."""

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1).expand(x.shape[:-1])


def located(fn: Any) -> td.Transform | None:
    """u -> loc + scale u, and what the distribution does to that; None of one that is not of that kind."""
    base, after = _base(fn)
    if not all(t.bijective for t in after):
        return None
    if isinstance(base, td.MultivariateNormal):
        own: list[td.Transform] = [_Rooted(base.loc, base.scale_tril)]
    elif isinstance(base, td.Normal | td.StudentT | td.Laplace | td.Cauchy):
        own = [AffineTransform(base.loc, base.scale)]
    else:
        return None
    return ComposeTransform([*own, *after]) if after else own[0]


def _bounds(support: Any) -> list[Tensor]:
    """The tensors that a support is made of; numbers are the same in each run."""
    found: list[Tensor] = []
    for value in vars(support).values() if support is not None else ():
        for part in value if isinstance(value, list | tuple) else [value]:
            if isinstance(part, Tensor):
                found.append(part)
            elif isinstance(part, torch.distributions.constraints.Constraint):
                found += _bounds(part)
    return found


def _same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def transform_of(fn: Any, noncentred: bool) -> Any:
    """From the real line to the latent of a site, as it is in this run."""
    return located(fn) if noncentred else td.biject_to(support_of(fn))


def is_bounded(transform: Any) -> bool:
    """Whether a transform from the reals has a bounded image, as those to an interval or a simplex do."""
    transform = getattr(transform, "base_transform", transform)
    first, *after = getattr(transform, "parts", [transform]) or [transform]
    own = (AffineTransform, CorrMatrixCholeskyTransform)
    return isinstance(first, _BOUNDED) and all(isinstance(t, own) or isinstance(t.inv, own) for t in after)


class Transforms(Messenger):
    """Within it, the transform of each of these latents is noted, as it is in this run."""

    def __init__(self, latents: Collection[str], noncentred: Collection[str] = ()):
        super().__init__()
        self.latents, self.noncentred = latents, noncentred
        self.found: dict[str, Any] = {}

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] in self.latents:
            self.found[msg["name"]] = transform_of(msg["fn"], msg["name"] in self.noncentred)


class Placing(Messenger):
    """Within it, latents take the values that unconstrained ones have by their transforms in this run.

    Args:
        inner: unconstrained values by latent.
        held: values of other latents, as they are.
        noncentred: which of them are.
    """

    def __init__(self, inner: Mapping[str, Tensor], held: Mapping[str, Tensor], noncentred: Collection[str] = ()):
        super().__init__()
        self.inner, self.held, self.noncentred = inner, held, noncentred
        self.values: dict[str, Tensor] = {}
        self.log_det: Any = 0.0

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        name = msg["name"]
        if name in self.inner:
            transform, u = transform_of(msg["fn"], name in self.noncentred), self.inner[name]
            msg["value"] = self.values[name] = transform(u)
            self.log_det = self.log_det + transform.log_abs_det_jacobian(u, msg["value"]).sum()
        elif name in self.held:
            msg["value"] = self.held[name]
        else:
            return
        msg["done"] = True
