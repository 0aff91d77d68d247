"""Whether log q(z) is the density of the latents, where a guide of one's own draws auxiliary variables first.

    u ~ q(u),  z = f(u) as Delta(f(u), log_density = -log |det ∂f/∂u|)      log q(z) = log q(u) - log |det ∂f/∂u|

Of more auxiliary numbers than the Delta sites hold, as of a mixture's component, q(z) is an integral that no term of a
run gives: log p(x, z) - log q(u) - log q(z | u) bounds nothing. Without the determinant it is another density.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ppgen.data import n_rows
from ppgen.program import Program
from ppgen.sites import is_delta, is_factor, sample_sites, support_of
from ppgen.structure import Structure, shorter_run
from ppgen.terms import Traces

MOST = 100  # auxiliary numbers of which a determinant is taken
FEW = 2  # rows by which it is looked at where each has its own
CLOSE = 1e-3  # nats


def auxiliary_fault(program: Program, data: Mapping[str, Any], t: Traces, structure: Structure) -> str:
    """What is wrong with the density of a guide's latents, a clause and its remedy; "" where nothing is, or where a
    factor of the guide's may set it right.

    Args:
        t: a run of the pair on the data.
    """
    if program._autoguide is not None or any(map(is_factor, sample_sites(t.q, factors=True).values())):
        return ""
    drawn = {n: s for n, s in sample_sites(t.q).items() if not s["is_observed"]}
    if any(f.full_size not in (None, f.size) for s in drawn.values() for f in s["cond_indep_stack"]):
        return ""
    own = {n: s for n, s in drawn.items() if n not in t.p.nodes and _is_auxiliary(s) and _counts(s)}
    held = [n for n, s in drawn.items() if n not in own and is_delta(s)]
    numbers = sum(s["value"].numel() for s in own.values())
    places = sum(drawn[n]["value"].numel() for n in held)
    if not own or numbers < places:  # a simplex of K numbers is made of K - 1
        return ""
    first = next(iter(own))
    if numbers > places:
        return (
            f"the guide draws more at auxiliary sites ({numbers} numbers, of {first!r} first) than its Delta sites "
            f"hold ({places}), so that its density at the latents is an integral that is not taken; draw the latents "
            "without them, or make them latents of the model"
        )
    if any(map(_is_discrete, own.values())):
        return ""
    if numbers > MOST:
        fewer = structure.by_row and n_rows(data, structure.row_columns) > FEW
        few = shorter_run(program, data, FEW, structure.row_columns) if fewer else None
        return auxiliary_fault(program, *few, structure) if few is not None else ""
    off, error = _determinant(program, data, {n: s["value"].detach() for n, s in own.items()}, held)
    if not abs(off) > CLOSE * (1 + numbers) + error:
        return ""
    return (
        f"the guide's density leaves out {off:.3g} nats of the change of variables from {first!r} to "
        f"{', '.join(map(repr, held))}; pass Delta(value, log_density=-log|det|), or draw the latents themselves"
    )


def _is_auxiliary(site: Mapping[str, Any]) -> bool:
    return bool(site["infer"].get("is_auxiliary")) and not is_delta(site)


def _counts(site: Mapping[str, Any]) -> bool:
    """Whether it has a density in the run: not where it is masked or scaled away."""
    mask, scale = site["mask"], site["scale"]
    kept = bool(mask.any()) if isinstance(mask, Tensor) else mask is not False
    return kept and bool((scale != 0).any() if isinstance(scale, Tensor) else scale != 0)


def _is_discrete(site: Mapping[str, Any]) -> bool:
    support = support_of(site["fn"])
    return support is None or bool(support.is_discrete)


def _determinant(
    program: Program, data: Mapping[str, Any], at: Mapping[str, Tensor], held: list[str]
) -> tuple[float, float]:
    """log |det ∂f/∂u| and the log-densities of the Delta sites, together 0, and their error: a derivative is known as
    well as the value is, as that of a sigmoid near 1. nan where the determinant is 0."""
    densities: list[Tensor] = []

    def values(*u: Tensor) -> tuple[Tensor, ...]:
        given = {n: v.reshape(at[n].shape) for n, v in zip(at, u, strict=True)}
        with torch.random.fork_rng(devices=[]), poutine.condition(data=given):
            q = poutine.trace(lambda: program.call("guide", data)).get_trace()
        q.compute_log_prob(lambda name, _: name in held)
        densities[:] = [q.nodes[n]["unscaled_log_prob"].sum() for n in held]
        return tuple(q.nodes[n]["value"].reshape(-1) for n in held)

    try:
        with torch.enable_grad():
            found: Any = torch.autograd.functional.jacobian(values, tuple(v.reshape(-1) for v in at.values()))
        matrix = torch.cat([torch.cat(tuple(row), 1) for row in found])
        off = float(torch.linalg.slogdet(matrix.double())[1] + torch.stack(densities).sum().detach())
        value = torch.cat(values(*(v.reshape(-1) for v in at.values()))).detach()
    except Exception:  # no derivatives
        return float("nan"), 0.0
    error = 4 * torch.finfo(value.dtype).eps * float((value.abs() / matrix.abs().amax(1)).sum())
    return (off if abs(off) < float("inf") else float("nan")), error
