"""Where a guide begins: a Gaussian in the latents' unconstrained space, the best of several starts.

Pathfinder climbs the log joint from each start (`ppgen.engine.density.pathfinder`), and the best Gaussian on the way is
matched to the scores (`ppgen.engine.density.batch_and_match`). A guide that is nothing but what a search finds searches
by itself.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ppgen.engine import log_joint
from ppgen.engine.density.batch_and_match import MOST, best_gaussian
from ppgen.engine.density.joint import in_blocks
from ppgen.errors import PpgenError, first_line
from ppgen.program import Program

log = logging.getLogger("ppgen")


def start_at(program: Program, data: Mapping[str, Tensor], starts: int, seed: int) -> bool:
    """Sets the program's guide to what is found on all rows: a Gaussian, for a flow or one of Pyro's autoguides.

    Returns:
        Whether it did: False where the latents are too many, or the log joint is no function of them alone.

    Raises:
        PpgenError: the same, where the guide is nothing without a search.
    """
    guide: Any = program._autoguide
    if hasattr(guide, "search"):
        joint = log_joint(program, data)
        with program.running(), torch.no_grad():
            guide.search(in_blocks(joint.value_and_grad), joint.places, starts=starts, seed=seed)
        return True
    if not hasattr(guide, "start_at"):
        return False
    try:
        joint = log_joint(program, data)
        if joint.dim > MOST:
            return False
        found = best_gaussian(in_blocks(joint.value_and_grad), joint.dim, starts=starts, seed=seed)
    except (PpgenError, RuntimeError, ValueError) as e:
        log.info("the guide begins where it was made, as no start was found: %s", first_line(e))
        return False
    if found is None:
        return False
    with program.running(), torch.no_grad():
        guide.start_at(joint.places, found.loc, found.scale_tril)
    return True
