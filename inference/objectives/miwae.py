r"""The mean of importance-weighted bounds: K draws in M groups, so that K / M weights are in each.

    1/M Σ_m log 1/L Σ_l w_ml,   K = M L

One group is `iwae`, K groups the ELBO: the bound loosens and the signal of the guide's gradient grows with M.

Source: Tighter Variational Bounds are Not Necessarily Better (Rainforth et al. 2018, arXiv:1802.04537).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ppgen.errors import PpgenError
from ppgen.inference.bounds import Setting, log_mean_exp, of_weights
from ppgen.terms import Term

SUMMARY = "mean of importance-weighted bounds over groups of particles: miwae(groups=2)"
TERMS = "drawn"
PATHWISE = True


def objective(terms: Sequence[Term], s: Setting, *, groups: int = 2) -> tuple[Tensor, Tensor]:
    """The bound, and the same with KL-weighted terms.

    Raises:
        PpgenError: draws that cannot be divided into so many groups.
    """
    return of_weights(lambda log_w: grouped(log_w, groups, "miwae"), terms, s)


def grouped(log_w: Tensor, groups: int, name: str) -> Tensor:
    """The mean over groups of the importance-weighted bounds.

    Raises:
        PpgenError: draws that cannot be divided into so many groups.
    """
    k = len(log_w)
    if groups < 1 or k % groups:
        raise PpgenError(f"{name}(groups={groups}) divides {k} particles; take a multiple of {groups}")
    return log_mean_exp(log_w.unflatten(0, (-1, groups))).mean(0)
