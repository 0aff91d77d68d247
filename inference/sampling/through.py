"""Chains in the coordinates of a program's trained guide: where they begin, how their draws are brought back, and what
the guide's own weights say of it (`ppgen/engine/density/pullback.py`).

Chains begin at draws of the guide. They agree with each other about what they have all come to: of a place that the
guide has no mass at, and no chain goes to, R-hat does not tell. The guide's weights p̃ / q tell of tails that it has
too little of (k-hat), and climbs from over-dispersed starts of modes (`mode_search`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppgen.engine import LogJoint
from ppgen.engine.density.pathfinder import Density, Paths
from ppgen.engine.density.pullback import Pullback
from ppgen.errors import PpgenError
from ppgen.guides import coordinates
from ppgen.inference.evaluation.psis import of_draws, threshold
from ppgen.inference.sampling.kernels import Draws
from ppgen.inference.verdicts.findings import FINE, LOOK, Finding
from ppgen.program import Program

TRIES = 20  # of starts where the density is not finite
WEIGHED = 2000  # draws of the guide


def through_guide(joint: LogJoint, program: Program) -> Pullback:
    """The log joint in the coordinates of the program's guide."""
    push, places = coordinates(program._autoguide, program.name)
    sizes = {n: s.stop - s.start for n, s in places.items()}
    here = {n: b.stop - b.start for n, b in joint.blocks.items()}
    if sizes != here:
        other = next(n for n in {**sizes, **here} if sizes.get(n) != here.get(n))
        raise PpgenError(
            f"the latent {other!r} has {here.get(other, 0)} entries in {program.name} on these data, and "
            f"{sizes.get(other, 0)} in its guide; pass the data of the fit, or leave through (--through-guide) out"
        )
    index = torch.cat([torch.arange(joint.dim)[places[n]] for n in joint.blocks])
    if bool((index == torch.arange(joint.dim)).all()):
        return Pullback(joint, push)

    def ordered(e: Tensor) -> tuple[Tensor, Tensor]:
        u, ladj = push(e)
        return u[index], ladj

    return Pullback(joint, ordered)


def base_starts(target: Density, chains: int, dim: int, generator: torch.Generator) -> Paths:
    """Draws of N(0, I); of those where the density is not finite others, drawn anew."""
    e = torch.randn(chains, dim, generator=generator)
    lp = target(e)[0]
    for _ in range(TRIES):
        if bool((alive := torch.isfinite(lp)).all()):
            break
        fresh = torch.randn(chains, dim, generator=generator)
        e = torch.where(alive[:, None], e, fresh)
        lp = torch.where(alive, lp, target(fresh)[0])
    alive = torch.isfinite(lp)
    if not alive.any():
        raise PpgenError(
            "the log joint is not finite at any draw of the guide; fit it for more steps, or leave through "
            "(--through-guide) out"
        )
    where = alive.nonzero()[:, 0]
    e = torch.where(alive[:, None], e, e[where[torch.arange(chains) % len(where)]])
    return Paths(e, target(e)[0], torch.zeros(dim), torch.eye(dim), chains)


def brought_back(outer: Pullback, found: Draws) -> Draws:
    """Draws of u, and lp that of the log joint; energies are those of the chains."""
    u, ladj = outer.forward(found.u.flatten(0, 1))
    lp = found.stats["lp"] - ladj.reshape(found.u.shape[:2])
    begun = found.begun and found.begun._replace(where=outer.forward(found.begun.where[None])[0][0])
    return found._replace(
        u=u.reshape(found.u.shape),
        stats=found.stats | {"lp": lp},
        growth=torch.zeros_like(found.growth),
        begun=begun,
        g=None,
    )


def guide_weights(outer: Pullback, target: Density, seed: int) -> Finding:
    """Whether the guide's tails are heavy enough for its draws to have reached all of what the guide is near to.

    Args:
        target: `outer` of any number of vectors.
    """
    e = torch.randn(WEIGHED, outer.dim, generator=torch.Generator().manual_seed(seed))
    log_w = target(e)[0] + 0.5 * e.square().sum(-1)
    log_w = torch.where(torch.isfinite(log_w), log_w, -torch.inf).double()
    _, khat, ess = of_draws(log_w.numpy())
    most = threshold(WEIGHED)
    guide = outer.program._autoguide
    said = {"share": ess / WEIGHED, "guide": getattr(guide, "spec", type(guide).__name__)}
    return Finding("through", "", khat, most, FINE if khat <= most else LOOK, said)
