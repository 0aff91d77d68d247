r"""The ELBO less a multiple of the total correlation: latents whose dimensions are independent over the rows.

    ELBO − (β − 1) KL(q(z) ‖ Π_d q(z_d)),   q(z) = 1/B Σ_j q(z | x_j) over the rows of a step

The KL of the ELBO is mutual information + total correlation + KL of each dimension from its prior, of which β weighs
the second; `analytic(beta=...)` weighs all three. What is trained on is a looser bound above β = 1, as no total
correlation is below 0, and **no** bound below it; what is reported is the ELBO. Of a batch q(z) is the mixture of its
rows, the paper's "minibatch-weighted" estimate, whose total correlation differs from that of all rows.

Source: Isolating Sources of Disentanglement in Variational Autoencoders (Chen et al. 2018, arXiv:1802.04942).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent

from ppgen.draws import one_draw
from ppgen.errors import PpgenError
from ppgen.inference.bounds import Setting, require_between
from ppgen.inference.objectives import analytic
from ppgen.program import Program
from ppgen.structure import Structure
from ppgen.terms import Term, full_plates, guide_run

SUMMARY = "ELBO less β - 1 times the total correlation of a row's latents: tc(beta=6)"
TERMS = "closed_form"
PATHWISE = True
MEAN = True
DRAWS = 1
REWEIGHTED = {"beta": 1.0}
_SITE = "total correlation"


def draw(program: Program, data: Mapping[str, Any], structure: Structure, *, closed_form: bool = False) -> list[Term]:
    """The terms of a draw, and log q(z_i) − Σ_d log q(z_id) of each row i, less than 0 in `target`.

    Raises:
        PpgenError: another guide than one vector a row, whose dimensions are independent given the row.
    """
    q = guide_run(program, data)
    terms = one_draw(program, data, structure, closed_form=closed_form, q=q)
    site = q.nodes[structure.latents[0]] if len(structure.latents) == 1 else None
    fn: Any = site["fn"] if site else None
    inside = (
        isinstance(fn, Independent) and fn.reinterpreted_batch_ndims == 1 and fn.base_dist.event_shape == ()
        and len(fn.batch_shape) == 1 and structure.is_local(structure.latents[0])
    )  # fmt: skip
    if site is None or not inside or site["mask"] is not None or site["scale"] != 1.0:
        raise PpgenError(
            "objective='tc' needs a guide of one latent, a vector a row with independent dimensions given the row and "
            f"no mask or scale, as Normal(loc, scale).to_event(1), and {program.name} has the latents "
            f"{', '.join(structure.latents) or 'none'}; take objective='analytic(beta=4)'"
        )
    z, rows = site["value"], tuple(f.name for f in site["cond_indep_stack"] if f.vectorized)
    pairs = fn.base_dist.log_prob(z[:, None])  # (i, j, d): log q(z_id | x_j)
    log_n = math.log(len(z))
    joint = pairs.sum(-1).logsumexp(1) - log_n
    correlation = joint - (pairs.logsumexp(1) - log_n).sum(-1)
    none = torch.zeros_like(correlation)
    return [*terms, Term(_SITE, "kl", none, none, none, rows, full_plates(site), target=-correlation)]


def objective(terms: Sequence[Term], s: Setting, *, beta: float = 6.0) -> tuple[Tensor, Tensor]:
    """The ELBO less (β − 1) times the total correlation, and the ELBO.

    Raises:
        PpgenError: β below 0.
    """
    require_between("tc", "beta", beta, 0.0, 1e30)
    weighed = [
        t._replace(target=(beta - 1) * t.target) if t.site == _SITE and t.target is not None else t for t in terms
    ]
    return analytic.objective(weighed, s)
