"""Whether a guide that is narrower than the prior is as wide as the posterior: the likelihood may be 0 beyond.

Of x_i ~ Uniform(0, a) and a Pareto prior of a from 1 on, the posterior is a Pareto from the largest x_i on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ppgen.handlers import without_validation
from ppgen.program import Program
from ppgen.terms import Traces, latents_of, run

TRIES = 16  # draws of the prior


def is_impossible_beyond(
    program: Program, batch: Mapping[str, Any], t: Traces, name: str, low: torch.Tensor, high: torch.Tensor
) -> bool:
    """Whether the model has no density at draws of a latent's prior that lie beyond the guide's ends, the other latents
    being as the guide drew them; False where no draw does."""
    at = {n: v.detach() for n, v in latents_of(t.q).items()}
    found = []
    try:
        with torch.no_grad(), without_validation():
            for _ in range(TRIES):
                v = t.p.nodes[name]["fn"].sample()
                beyond = (v < low.to(v)) | (v > high.to(v))
                if beyond.any():
                    there = at | {name: torch.where(beyond, v, at[name])}
                    found.append(bool(torch.isneginf(run(program, batch, latents=there).p.log_prob_sum())))
    except Exception:  # a prior that cannot be drawn from, or a model that does not run at its draws
        return False
    return bool(found) and all(found)
