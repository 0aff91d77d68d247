r"""Objectives: lower bounds on log p(x) whose gradients train both parts of a program.

    ELBO = E_q[log p_θ(x, z) − log q_φ(z | x)] ≤ log p_θ(x)

`analytic`   KL(q(z_i | ·), p(z_i | ·)) in closed form wherever it exists, drawn elsewhere
`sampled`    both terms drawn (Pyro's Trace_ELBO)
`iwae`       log 1/K Σ_k p(x, z_k) / q(z_k | x), a tighter bound for K > 1 particles; one weight a row
             where every latent is local, one for all rows otherwise
`enumerate`  discrete latents summed out exactly (Pyro's TraceEnum_ELBO), the others drawn
`subsampled` some of the terms of a chain's ELBO, drawn at random (`ppgen.inference.chain`)

Gradients are pathwise where a latent has a reparametrisation. Where it has none, the score function
∇ log q(z_i | ·) · (cost_i − b_i), with cost_i the terms that z_i can influence, within its own plates,
and b_i the mean cost of the other particles (so at least two are drawn): unbiased, and no state.

Sources: Auto-Encoding Variational Bayes (Kingma & Welling 2014, arXiv:1312.6114); Importance Weighted
Autoencoders (Burda et al. 2016, arXiv:1509.00519); Automated Variational Inference in Probabilistic
Programming (Wingate & Weber 2013, arXiv:1301.1299); Buy 4 REINFORCE Samples, Get a Baseline for Free!
(Kool et al. 2019).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.infer.util import MultiFrameTensor
from torch import Tensor, nn
from torch.distributions import kl_divergence

from ppgen.chain import Chain
from ppgen.data import n_rows
from ppgen.errors import PpgenError, nearest
from ppgen.handlers import Minibatch
from ppgen.inference.chain import subsampled
from ppgen.program import Program
from ppgen.sites import is_delta
from ppgen.structure import PARTICLES, Structure, Traces, trace_pair

OBJECTIVES = {
    "analytic": "ELBO, KL in closed form wherever it exists",
    "sampled": "ELBO, every term drawn (Pyro's Trace_ELBO)",
    "iwae": "importance-weighted bound with as many weights as particles",
    "enumerate": "ELBO with discrete latents summed out (Pyro's TraceEnum_ELBO)",
    "subsampled": "ELBO of a chain of latents, by terms drawn at random",
}


class Objective(nn.Module):
    """One bound of one program, as a torch module: forward(batch) gives the loss and the ELBO.

    Args:
        program: the pair, set up and checked.
        structure: what `ppgen.check.check` returned.
        rows: N, the number of rows of the whole data set.
        elbo: a key of `OBJECTIVES`.
        particles: draws of z a step, run at once.
    """

    program: Program
    structure: Structure
    rows: int
    elbo: str
    particles: int

    def __init__(
        self, program: Program, structure: Structure, rows: int, *, elbo: str = "analytic", particles: int = 1
    ):
        super().__init__()
        if elbo not in OBJECTIVES:
            raise PpgenError(
                f"there is no objective {elbo!r}{nearest(elbo, OBJECTIVES)}; they are {', '.join(OBJECTIVES)}"
            )
        if elbo == "subsampled" and program is not None and not isinstance(program, Chain):
            raise PpgenError(
                f"elbo='subsampled' draws terms of the ELBO of a chain of latents, and {program.name} is none; leave "
                "elbo out, or take elbo='analytic'"
            )
        if particles < 1:
            raise PpgenError(f"particles is {particles}; expected at least 1")
        self.program, self.structure, self.rows, self.elbo = program, structure, max(rows, 1), elbo
        score = [s for s in structure.sites if s.name in structure.latents and not s.reparametrised]
        if elbo == "iwae" and score:
            raise PpgenError(
                f"the latent {score[0].name!r} has no reparametrisation, which elbo='iwae' needs; take elbo='analytic'"
            )
        self.particles = max(particles, 2) if score and elbo != "enumerate" else particles

    def forward(self, batch: Mapping[str, Any], kl_weight: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
        """Loss in nats a row, to be minimised, and the ELBO in nats over all N rows, with no gradient.

        Args:
            batch: B rows of the N, whose sites are weighed by N/B.
            kl_weight: multiplies the latent terms in the loss only (KL warm-up).
        """
        weight = self.rows / n_rows(batch, self.structure.row_columns)
        if self.elbo == "subsampled":
            assert isinstance(self.program, Chain)
            drawn = subsampled(self.program, batch, self.particles)
            return -weight * drawn.target.sum() / self.rows, (weight * drawn.elbo.sum()).detach()
        if self.elbo == "enumerate":
            loss = self._enumerated(batch, weight)
            return loss / self.rows, -loss.detach()
        if self.elbo == "iwae":
            t = trace_pair(self.program, batch, particles=self.particles, structure=self.structure)
            log_w = log_weights(t, self.structure, kl_weight)
            bound = _log_mean_exp(log_w).sum() * (weight if log_w.dim() > 1 else 1.0)
            return -bound / self.rows, bound.detach()
        t = trace_pair(self.program, batch, particles=self.particles, structure=self.structure, weight=weight)
        elbo, surrogate = elbo_terms(t, analytic=self.elbo == "analytic", kl_weight=kl_weight, particles=self.particles)
        return -surrogate / (self.particles * self.rows), elbo.detach() / self.particles

    def _enumerated(self, batch: Mapping[str, Any], weight: float) -> Tensor:
        program, plates = self.program, self.structure.row_plates
        elbo = TraceEnum_ELBO(
            max_plate_nesting=self.structure.nesting,
            num_particles=self.particles,
            vectorize_particles=self.particles > 1,
            strict_enumeration_warning=False,
        )

        def model() -> None:
            with Minibatch(weight, plates):
                program.call("model", batch)

        def guide() -> None:
            with Minibatch(weight, plates):
                program.call("guide", batch)

        return elbo.differentiable_loss(config_enumerate(model), guide)


def default_elbo(program: Program) -> str:
    """The objective of a fit that was asked for none."""
    return "subsampled" if isinstance(program, Chain) else "analytic"


def elbo_terms(
    t: Traces, *, analytic: bool = True, kl_weight: float | Tensor = 1.0, particles: int = 1
) -> tuple[Tensor, Tensor]:
    """The ELBO summed over particles, and the surrogate whose gradient is that of the (KL-weighted) ELBO.

    Every site's log-probability carries the scale and mask of its handlers.
    """
    model = {n: s for n, s in t.p.nodes.items() if s["type"] == "sample"}
    guide = {n: s for n, s in t.q.nodes.items() if s["type"] == "sample"}
    closed = {n: kl for n in guide if analytic and (kl := _analytic_kl(n, model, guide)) is not None}
    terms: list[tuple[str, str, dict, Tensor]] = []  # (kind, site, node, contribution to the ELBO)
    for name, site in model.items():
        if name in closed:
            terms.append(("kl", name, site, -closed[name]))
        else:
            terms.append(("p" if name in guide else "x", name, site, _log_prob(site)))
    terms += [("q", name, site, -_log_prob(site)) for name, site in guide.items() if name not in closed]

    elbo = torch.zeros(())
    surrogate = torch.zeros(())
    for kind, _, _, value in terms:
        total = value.sum()
        elbo = elbo + total
        surrogate = surrogate + (total if kind == "x" else total * kl_weight)

    order = {name: i for i, name in enumerate(guide)}
    for name, site in guide.items():
        if site["fn"].has_rsample:
            continue
        cost = MultiFrameTensor()
        for kind, other, node, value in terms:
            if _influences(order[name], kind, order.get(other, -1)):
                cost.add((node["cond_indep_stack"], (value if kind == "x" else value * kl_weight).detach()))
        log_q = scale_and_mask(site["fn"].log_prob(site["value"]), 1.0, site["mask"])
        signal = _minus_others(cost.sum_to(site["cond_indep_stack"]), site, particles)
        surrogate = surrogate + (log_q * signal).sum()
    return elbo, surrogate


def _influences(i: int, kind: str, j: int) -> bool:
    """Whether the term of guide site j can depend on the draw of guide site i."""
    return kind in "xp" or (j >= i if kind == "q" else j > i)


def _minus_others(cost: Tensor, site: dict, particles: int) -> Tensor:
    """cost less its mean over the other particles."""
    dim = next((f.dim for f in site["cond_indep_stack"] if f.name == PARTICLES), None)
    if dim is None or not isinstance(cost, Tensor) or cost.dim() < -dim or cost.shape[dim] != particles:
        return cost
    return cost - (cost.sum(dim, keepdim=True) - cost) / (particles - 1)


def _log_prob(site: dict) -> Tensor:
    return scale_and_mask(site["fn"].log_prob(site["value"]), site["scale"], site["mask"])


def _analytic_kl(name: str, model: dict, guide: dict) -> Tensor | None:
    """KL(q(z_i | ·), p(z_i | ·)), None where it has no closed form, or where it would be wrong.

    With the parents drawn from q, E_q[log q(z_i | ·) − log p(z_i | ·)] = E_q KL holds only if p(z_i | ·) depends
    on nothing that q draws after z_i: every latent before z_i in the model comes before it in the guide.
    """
    q, p = guide[name], model.get(name)
    if p is None or p["is_observed"] or is_delta(q) or q["infer"].get("is_auxiliary"):
        return None
    order = list(guide)
    earlier = set(order[: order.index(name)])
    for other, node in model.items():
        if other == name:
            break
        if other not in earlier and other in guide and not node["is_observed"]:
            return None
    if q["scale"] is not p["scale"] and not _equal(q["scale"], p["scale"]):
        return None
    if q["mask"] is not p["mask"]:
        return None
    if q["fn"] is p["fn"]:
        return torch.zeros_like(_log_prob(q))
    batch_shape = torch.broadcast_shapes(q["fn"].batch_shape, p["fn"].batch_shape)
    try:
        # expanded first: some of torch's closed forms do not broadcast
        kl = kl_divergence(q["fn"].expand(batch_shape), p["fn"].expand(batch_shape))
    except NotImplementedError:
        return None
    return scale_and_mask(kl, p["scale"], p["mask"])


def _equal(a: Any, b: Any) -> bool:
    return not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b


def log_weights(t: Traces, structure: Structure, kl_weight: float | Tensor = 1.0) -> Tensor:
    """log p(x, z_k) − log q(z_k | x), of shape (K, rows) where every latent is local to a row, else (K,).

    A global observed site or factor of a program without global latents is a constant of the weights' sum
    and makes them one a data set as well.
    """
    particle_dim = -structure.nesting - 1
    by_row = structure.by_row
    total: Tensor | float = 0.0
    for trace, sign in ((t.p, 1.0), (t.q, -1.0)):
        for name, site in trace.nodes.items():
            if site["type"] != "sample":
                continue
            latent = sign < 0 or name in t.q.nodes
            value = sign * _log_prob(site) * (kl_weight if latent else 1.0)
            total = total + _to_weights(value, site, particle_dim, structure if by_row else None)
    assert isinstance(total, Tensor)
    return total


def _to_weights(value: Tensor, site: dict, particle_dim: int, structure: Structure | None) -> Tensor:
    """Sums a log-probability to (K, rows), or to (K,) where structure is None."""
    value = value.reshape((1,) * (-particle_dim - value.dim()) + value.shape)
    row_dim = None
    if structure is not None:
        row_dim = next((f.dim for f in site["cond_indep_stack"] if f.name in structure.row_plates), None)
    keep = [particle_dim] if row_dim is None else [particle_dim, row_dim]
    others = [d for d in range(particle_dim, 0) if d not in keep]
    value = value.sum(others) if others else value
    return value.unsqueeze(-1) if structure is not None and row_dim is None else value


def _log_mean_exp(log_w: Tensor) -> Tensor:
    return torch.logsumexp(log_w, 0) - math.log(log_w.shape[0])
