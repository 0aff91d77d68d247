"""Kernels of `mcmc`, one a file, found by the file's name.

A file has

    SUMMARY     what it is, for `ppgen list`
    DEFAULTS    chains, draws and iterations of warm-up where none are asked for
    LARGE       the same where there are more than `LARGE_DIM` latents; as DEFAULTS if the file has none
    LONG        the same where the data have more than `LONG_VALUES` values (optional)
    ALONE       the same where chains cannot be run together (optional)
    LEAST       the least number of each
    TOGETHER    whether the chains run in step, as one call of a batch (as against one after the other)
    sample      (joint, paths, *, draws, warmup, metric, generator, report) -> `Draws`

`sample` runs one chain from each of Pathfinder's draws, `paths.u`, on `joint`, a `ppgen.engine.LogJoint`; metric is
diag, dense or auto; report is called with the number of iterations done, if the kernel can tell. A kernel that begins
elsewhere has `begin`, (joint, chains, prior, generator) -> what takes the place of `paths`.

Adding one is adding its file, and its row in the table of laws (`of_NAME` in tests/test_models.py).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from ppgen.folder import Folder
from ppgen.inference.evaluation.estimates import Evidence

__all__ = [
    "DENSE_DIM", "LARGE_DIM", "LONG_VALUES", "NEGLIGIBLE", "SMALL_DIM", "Begun", "Draws", "Numbers", "distances",
    "named", "names",
]  # fmt: skip

SMALL_DIM, DENSE_DIM = 32, 200  # dense metric: always up to the first, never beyond the second
LARGE_DIM = 1000  # beyond it many chains leave the cache
LONG_VALUES = 50_000  # of all columns, beyond which a step of many chains takes long, and few have draws enough
NEGLIGIBLE = 1e-4  # a share of the posterior's mass: of the 16 000 draws of a run it has one or two

_FOLDER = Folder(__name__, "kernel")
names, named = _FOLDER.names, _FOLDER.named


class Numbers(NamedTuple):
    """Of chains, of draws of each, of iterations of warm-up."""

    chains: int
    draws: int
    warmup: int


class Begun(NamedTuple):
    """Chains that were in a mode of next to no mass, and began anew from where others were.

    Attributes:
        chains: their numbers.
        share: of the posterior in their places, at the most, of the place with the most.
        where: (dim,), where that one was.
    """

    chains: Tensor
    share: float
    where: Tensor


class Draws(NamedTuple):
    """What a kernel leaves.

    Attributes:
        u: (draws, chains, dim).
        stats: by name (draws, chains): lp, energy, acceptance_rate, diverging, n_steps, step_size; and, if the kernel
            can tell, outside: proposals that were refused because they left the support.
        steps: leapfrog steps of warm-up and sampling, of each chain.
        growth: (dim,) the direction in which the draws spread most between the last two windows, in units of u.
        metric: "diag" or "dense".
        evidence: log p(x), of a kernel that estimates it.
        begun: chains that began anew during the warm-up, as they were in a mode of next to no mass.
        g: the gradient of the log joint at u, of a kernel that has kept it.
    """

    u: Tensor
    stats: dict[str, Tensor]
    steps: int
    growth: Tensor
    metric: str
    evidence: Evidence | None = None
    begun: Begun | None = None
    g: Tensor | None = None


def distances(x: np.ndarray) -> np.ndarray:
    """How far the mean of each chain is from that of most, in sds of the draws of one: (chains, draws, figures) ->
    (chains, figures); of both it is the median chain's that is meant.
    """
    mean = x.mean(1)
    return np.abs(mean - np.median(mean, 0)) / np.median(x.std(1), 0).clip(1e-12)
