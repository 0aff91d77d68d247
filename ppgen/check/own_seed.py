"""Programs that set the random state themselves, so that every draw is the same one."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from ppgen.draws import OURS
from ppgen.handlers import without_validation
from ppgen.program import Program
from ppgen.terms import run

log = logging.getLogger("ppgen")


def seeds_itself(program: Program, batch: Mapping[str, Any]) -> bool:
    """Whether a run of the pair leaves torch with another seed than it began with."""
    with torch.no_grad(), without_validation(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(OURS)
        run(program, batch)
        return torch.initial_seed() != OURS


@contextmanager
def own_seed_said(program: Program, batch: Mapping[str, Any]) -> Iterator[None]:
    """Says that a program that is run within sets the seed, so that its guide is fitted to one draw; one that does so
    at a further run as well, and not at its first one alone.

    The random numbers are what they were: a state of torch's begins with the seed that it was made from, in 8 bytes,
    from which no number is drawn; there `OURS` is written.
    """
    state = torch.get_rng_state()
    state[:8] = torch.tensor([OURS]).view(torch.uint8)
    torch.set_rng_state(state)
    marked = torch.initial_seed() == OURS
    yield
    if marked and torch.initial_seed() != OURS and seeds_itself(program, batch):
        log.warning(
            "%s sets the seed itself (torch.manual_seed or pyro.set_rng_seed) each time it is run, so that every draw "
            "is the same one, to which a guide is fitted; take that out of it, and pass the seed: seed= (--seed)",
            program.name,
        )  # fmt: skip
