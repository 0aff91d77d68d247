"""Invertible maps with their log-determinants, as Pyro transforms: one family a file.

Each function or class gives a `TransformModule` for `TransformedDistribution(base, [t1, t2, ...])`, or with
context > 0 a `ConditionalTransformModule`. `FAMILIES` stacks them into flows.
"""

from ppgen.transforms.autoregressive import (
    Autoregressive,
    bernstein,
    circular_spline,
    iaf,
    maf,
    naf,
    sos,
    spline,
    unaf,
)
from ppgen.transforms.change_of_variables import Conditional, FlowTransform, Inverse, gather
from ppgen.transforms.continuous import Continuous, cnf, ffjord
from ppgen.transforms.coupling import Coupling, nice, realnvp, spline_coupling
from ppgen.transforms.families import FAMILIES, MIXES, stack
from ppgen.transforms.from_pyro import Kept, keep
from ppgen.transforms.images.glow import ConvCoupling, glow, glow_step
from ppgen.transforms.images.multiscale import Multiscale, Split, Squeeze
from ppgen.transforms.images.tarflow import PatchAutoregressive, tarflow
from ppgen.transforms.linear import LULinear, Orthogonal, Permutation, Whitening, conv1x1
from ppgen.transforms.planar import Planar, Radial, Sylvester
from ppgen.transforms.residual import Residual, residual
from ppgen.transforms.transformer import TransformerAutoregressive, transformer
from ppgen.transforms.univariate.elementwise import ActNorm, Mixtures, gaussianization

__all__ = [
    "FAMILIES", "MIXES", "ActNorm", "Autoregressive", "Conditional", "Continuous", "ConvCoupling", "Coupling",
    "FlowTransform", "Inverse", "Kept", "LULinear", "Mixtures", "Multiscale", "Orthogonal", "PatchAutoregressive",
    "Permutation", "Planar", "Radial", "Residual", "Split", "Squeeze", "Sylvester", "TransformerAutoregressive",
    "Whitening", "bernstein", "circular_spline", "cnf", "conv1x1", "ffjord", "gather", "gaussianization", "glow",
    "glow_step", "iaf", "keep", "maf", "naf", "nice", "realnvp", "residual", "sos", "spline", "spline_coupling",
    "stack", "tarflow", "transformer", "unaf",
]  # fmt: skip
