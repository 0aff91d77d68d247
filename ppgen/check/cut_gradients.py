"""Latents whose gradient is cut: the model depends on their values, and no derivative says so.

An estimator along paths differentiates log p(x, z) in z. Where z is detached, rounded, made a number (`.item()`, NumPy)
compared or used under no_grad, that derivative is that of the prior alone, and the guide is fitted to the prior. At one
value alone it may be absent by chance, as on one side of the kink of relu, clamp or minimum: the value is then moved.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ppgen.handlers import without_validation
from ppgen.program import Program
from ppgen.sites import is_deterministic, sample_sites
from ppgen.terms import Traces, latents_of, run

log = logging.getLogger("ppgen")

OTHERS = 4  # values of a latent that has no derivative, to see whether it is used
BETWEEN = 32  # places on the way to one of these, to see whether there is a derivative


def warn_of_cut_gradients(program: Program, batch: Mapping[str, Any], t: Traces) -> None:
    """Names a latent on whose value other sites depend, without a derivative; the program runs again only for those
    that have none."""
    latents = latents_of(t.q)
    drawn = {n: v for n, v in latents.items() if n in t.p.nodes and v.requires_grad}
    at = {n: v.detach() for n, v in latents.items()}
    for name in _without_gradient(t, drawn):
        depending = _depending(program, batch, at, name, t.p.nodes[name]["fn"])
        if depending:
            log.warning(
                "%r of %s depends on the latent %r, and has no derivative in it: %r is detached, rounded, made a "
                "number (.item(), NumPy), compared or used under no_grad, so that a fit by derivatives leaves its "
                "guide at the prior; keep it a tensor with a gradient, or fit with gradient='score' (--gradient score)",
                depending[0], program.name, name, name,
            )  # fmt: skip


def _depending(
    program: Program, batch: Mapping[str, Any], at: Mapping[str, Tensor], name: str, prior: Any
) -> list[str]:
    """The sites that have another finite log-probability at other values of a latent (not those of a support), if there
    is no derivative on the way to these."""
    try:
        with torch.no_grad(), without_validation():
            before = _log_probs(program, batch, at, name)
            for _ in range(OTHERS):
                other = prior.sample()
                after = _log_probs(program, batch, {**at, name: other}, name)
                changed = {n: after[n] - v for n, v in before.items() if n in after}
                if found := [n for n, by in changed.items() if by != 0 and bool(torch.isfinite(by))]:
                    return [] if _has_slope(program, batch, at, name, other) else found
    except Exception:  # a prior that cannot be drawn from, or a model that does not run at its draws
        pass
    return []


@torch.enable_grad()
def _has_slope(program: Program, batch: Mapping[str, Any], at: Mapping[str, Tensor], name: str, other: Tensor) -> bool:
    """Whether the other sites have a derivative in a latent anywhere between its value and another."""
    for share in (torch.arange(BETWEEN) + 1) / BETWEEN:
        z = (at[name] + share.to(other) * (other - at[name])).requires_grad_()
        total: Any = sum(_log_probs(program, batch, {**at, name: z}, name).values())
        (slope,) = torch.autograd.grad(total, z, allow_unused=True) if total.requires_grad else (None,)
        if slope is not None and bool(slope.any()):
            return True
    return False


def _without_gradient(t: Traces, drawn: Mapping[str, Tensor]) -> list[str]:
    """The latents in which the log-probabilities of all other sites have no derivative, or zero."""
    sites = {n: s for n, s in sample_sites(t.p, factors=True).items() if not is_deterministic(s)}
    values = {n: s["value"].detach() if n in drawn else s["value"] for n, s in sites.items()}
    total = sum(s["fn"].log_prob(values[n]).sum() for n, s in sites.items())
    if not drawn or not isinstance(total, Tensor) or not total.requires_grad:
        return list(drawn)
    try:
        found = torch.autograd.grad(total, list(drawn.values()), allow_unused=True)
    except RuntimeError:  # no derivative at all, which another check says
        return []
    return [n for n, g in zip(drawn, found, strict=True) if g is None or not bool(g.any())]


def _log_probs(program: Program, batch: Mapping[str, Any], at: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Of the sites but this one, in a run at these latents, always from one random state."""
    with torch.random.fork_rng(devices=[]):
        sites = sample_sites(run(program, batch, latents=at).p, factors=True)
    return {n: s["fn"].log_prob(s["value"]).sum() for n, s in sites.items() if n != name and not is_deterministic(s)}
