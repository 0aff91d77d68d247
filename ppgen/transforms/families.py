"""The families of flows by name: how each stacks its transforms into one map of vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ppgen.errors import PpgenError, nearest, require_known
from ppgen.transforms import autoregressive as ar
from ppgen.transforms.change_of_variables import Conditional, FlowTransform
from ppgen.transforms.continuous import cnf, ffjord
from ppgen.transforms.coupling import nice, realnvp, spline_coupling
from ppgen.transforms.linear import LULinear, Orthogonal, Permutation
from ppgen.transforms.planar import Planar, Radial, Sylvester
from ppgen.transforms.residual import residual
from ppgen.transforms.transformer import transformer
from ppgen.transforms.univariate.elementwise import ActNorm, gaussianization

__all__ = ["FAMILIES", "MIXES", "stack"]

Part = FlowTransform | Conditional
Layer = Callable[..., Part]


def _ordered(layer: Layer) -> Callable[..., list[Part]]:
    """Autoregressive layers whose orders alternate."""

    def make(features: int, i: int, **how: Any) -> list[Part]:
        order = torch.arange(features)
        return [layer(features, order=order.flip(0) if i % 2 else order, **how)]

    return make


def _halves(layer: Layer) -> Callable[..., list[Part]]:
    """Coupling layers that keep every second feature, in turn."""

    def make(features: int, i: int, **how: Any) -> list[Part]:
        if features < 2:
            raise PpgenError(
                "a coupling needs two features at least, one to transform given the other, and there is one; take an "
                "autoregressive family, such as 'nsf'"
            )
        return [layer(features, mask=torch.arange(features) % 2 == i % 2, **how)]

    return make


def _between(layer: Layer, mix: Callable[[int], FlowTransform]) -> Callable[..., list[Part]]:
    """Layers with a fixed-volume mixing of the features between two."""

    def make(features: int, i: int, **how: Any) -> list[Part]:
        return [*([mix(features)] if i else []), layer(features, **how)]

    return make


def _plain(layer: Layer) -> Callable[..., list[Part]]:
    """Layers that know neither context nor hidden widths."""

    def make(features: int, i: int, context: int = 0, hidden: Sequence[int] = (), **how: Any) -> list[Part]:
        if context:
            raise PpgenError(
                f"{layer.__name__} transforms have no context, and context={context} was asked for; take another "
                "family, such as 'nsf'"
            )
        return [layer(features, **how)]

    return make


FAMILIES: dict[str, Callable[..., list[Part]]] = {
    "nice": _halves(nice),
    "realnvp": _halves(realnvp),
    "nsf_coupling": _halves(spline_coupling),
    "maf": _ordered(ar.maf),
    "iaf": _ordered(ar.iaf),
    "nsf": _ordered(ar.spline),
    "ncsf": _ordered(ar.circular_spline),
    "naf": _ordered(ar.naf),
    "unaf": _ordered(ar.unaf),
    "sospf": _ordered(ar.sos),
    "bpf": _ordered(ar.bernstein),
    "transformer": _ordered(transformer),
    "gf": _between(gaussianization, Orthogonal),
    "residual": _between(residual, ActNorm),
    "cnf": _between(cnf, ActNorm),
    "ffjord": _between(ffjord, ActNorm),
    "lu": _plain(LULinear),
    "planar": _plain(Planar),
    "radial": _plain(Radial),
    "sylvester": _plain(Sylvester),
}


# Linear maps that may stand between the transforms of any family. LU layers begin as permutations, which leave features
# as they are: of whitened patches of images a rotation hides the heavy tails, which splines know how to take.
MIXES: dict[str, Callable[[int], FlowTransform]] = {
    "lu": lambda features: LULinear(features, permute=features > 1, rotate=False),
    "rotation": Orthogonal,
    "shuffle": Permutation,
}


def stack(
    family: str, features: int, transforms: int = 5, hidden: Sequence[int] = (64, 64), context: int = 0,
    mix: str | None = None, **how: Any,
) -> list[Part]:  # fmt: skip
    """A family's transforms, in the order in which `TransformedDistribution` applies them to draws of the base.

    Args:
        family: a key of `FAMILIES`.
        features: D.
        transforms: how many, the mixings between them not counted.
        hidden: widths of each network.
        context: features of the context, 0 for none.
        mix: what stands between two transforms: "lu", a matrix in its LU factors, at first a permutation; "rotation",
            of Householder reflections; "shuffle", a random order of the features; None leaves it to the family.
        how: further keywords of each transform, as bins=16, bound=8.0 for splines, residual=True, dropout=0.1 for the
            networks of couplings, heads=8, components=16 for transformers.

    Raises:
        PpgenError: no such family, mix or keyword; one without context where a context is asked for; fewer than one
            transform.

    >>> len(stack("maf", features=3, transforms=4))
    4
    >>> len(stack("nsf_coupling", features=3, transforms=4, mix="lu", bins=4))
    7
    """
    require_known("flow family", family, FAMILIES)
    if mix is not None and mix not in MIXES:
        raise PpgenError(f"there is no mix {mix!r}{nearest(str(mix), MIXES)}; they are {', '.join(MIXES)}, and None")
    if features < 1 or transforms < 1 or context < 0:
        raise PpgenError(
            f"a flow got features={features}, transforms={transforms}, context={context}; expected at least 1, 1 and 0"
        )
    try:
        layers = [
            FAMILIES[family](features, i, context=context, hidden=tuple(hidden), **how) for i in range(transforms)
        ]
    except TypeError as e:
        if not how or "keyword" not in str(e):
            raise
        raise PpgenError(
            f"the transforms of family {family!r} do not take all of {', '.join(how)}: {e}; see "
            f"help(ppgen.transforms.stack)"
        ) from e
    if mix is not None:
        layers = [[*([MIXES[mix](features)] if i else []), *layer] for i, layer in enumerate(layers)]
    return [part for layer in reversed(layers) for part in reversed(layer)]
