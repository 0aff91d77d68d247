r"""Chains that sit in a mode of next to no mass: the share of each chain's place in the posterior, from above.

    log Z   >= log mean p̃(v) / q(v),  v ~ q       Z: of the whole posterior
    log Z_c <= E_c[log p̃(u) − log q_k(u)]          Z_c: of the place that chain c is in; of any k

p̃(u) = p(x, z(u)) |det ∂z/∂u|; q_k are the normals of the places where climbs from the chains end, with heavy tails,
and q is their mixture. The first is a bound in expectation, and the second as far as a chain's draws are draws of its
place: together they bound the share Z_c / Z from above, each with its error. Draws that are on their way into their
place give no bound: in 100 dimensions, where a place is a thin shell, they are off by tens of nats. So the weights of
the draws of q that are nearest to these chains have to be as small. A place without a normal near it, as the
neck of a funnel, gives no low bound: its share is not known.

Sources: the two bounds are those of `evidence.py`; the places those of `ppgen/inference/verdicts/mode_search.py`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ppgen.engine.density.pathfinder import Density
from ppgen.inference.sampling.kernels import NEGLIGIBLE, Begun, distances
from ppgen.inference.sampling.weighted import Mixture, mixture_of
from ppgen.inference.verdicts.mode_search import climbs, places

APART = 3.0  # sds of the draws of one chain, between its mean and that of most, from which on places are compared
WEIGHTS = 2000  # draws of the mixture
SURE = 3.0  # standard errors


@torch.no_grad()
def negligible_modes(target: Density, u: Tensor, lp: Tensor, generator: torch.Generator | None) -> Begun | None:
    """The chains in modes whose share is negligible; None where there are none, or nothing but such, and where the
    chains are not apart.

    Args:
        target: the log joint of unconstrained vectors, any number at once, and its gradient.
        u, lp: of a window of a warm-up, (draws, chains, dim) and (draws, chains).
    """
    if not (distances(torch.cat([lp[..., None], u], -1).transpose(0, 1).numpy()) > APART).any():
        return None
    generator = generator or torch.Generator().manual_seed(0)
    draws = u.flatten(0, 1)
    found = [(n.m, n.L) for n in places(target, climbs(target, u[-1], draws, generator))]
    if not found:
        return None
    q = mixture_of(found, target, generator)
    v = q.draw(WEIGHTS, generator)
    log_w = torch.nan_to_num(target(v)[0] - q.log_prob(v), nan=-torch.inf).double()
    w = (log_w - log_w.max()).exp()
    whole = float(log_w.max() + w.mean().log() - SURE * w.std() / w.mean() / WEIGHTS**0.5)
    share = (_from_above(found, u, lp) - whole).exp()
    gone = share < NEGLIGIBLE
    mean, sd = u.mean(0), u.var(0).mean(0).sqrt()
    there = gone[torch.cdist(v / sd, mean / sd).argmin(1)]  # draws of the mixture that are nearest to these chains
    if not gone.any() or gone.all() or w[there].sum() > NEGLIGIBLE * w.sum():
        return None
    most = int(torch.where(gone, share, -torch.inf).argmax())
    return Begun(gone.nonzero()[:, 0], float(share[most]), u[-1, most])


def _from_above(parts: list[tuple[Tensor, Tensor]], u: Tensor, lp: Tensor) -> Tensor:
    """log Z_c of each chain at the most, (chains,): the mean of log p̃ / q_k and one sd, three standard errors where a
    ninth of the draws are effective; of the best k."""
    each = []
    for m, L in parts:
        q = Mixture(torch.zeros(1).to(m), m[None], L[None])
        log_w = lp - q.log_prob(u.flatten(0, 1)).reshape(lp.shape)
        each.append(log_w.mean(0) + SURE * log_w.std(0) / (max(len(lp) / 9, 1)) ** 0.5)
    return torch.stack(each).double().amin(0).nan_to_num(nan=math.inf)
