"""The rates of a fit that is told nothing: how fast the parameters move, and how the last of them are averaged.

    lr = min(0.02, max(0.001, P^(-1/2))), falling to 0 along a cosine; P: the parameters of networks

Adam moves every parameter by about lr a step, so that what a network of P of them gives moves by about lr √P. Locations
and scales of an autoguide's normals are apart from each other, and are not counted. The parameters of a chain of
latents, of which a step sees a few random times alone, are averaged as well.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ppgen.program import Program

MOST, LEAST = 0.02, 0.001
OF_A_CHAIN = 0.995  # decay of the average
STEPS, UNTIL_STEPS = 2000, 50_000  # the most, where a fit ends by itself
PLAIN: dict[str, Any] = {"lr": 1e-3, "schedule": "constant"}  # what is not told, where something is

log = logging.getLogger("ppgen")


def plain_rates(o: dict[str, Any]) -> bool:
    """Fills in steps, and lr and schedule unless the program is to say them: whether it is, as nothing was told."""
    told = any(o[name] is not None for name in ("steps", "lr", "schedule", "until", "patience"))
    by_program = not told and o["optimizer"] == "Adam"
    o["steps"] = most_steps(o)
    if not by_program:
        o |= {name: value for name, value in PLAIN.items() if o[name] is None}
    return by_program


def most_steps(o: Mapping[str, Any]) -> int:
    """The steps that options ask for, or those of a fit that was told no number."""
    return (UNTIL_STEPS if o["until"] else STEPS) if o["steps"] is None else o["steps"]


def choose_rates(program: Program, o: dict[str, Any]) -> None:
    """Sets lr, schedule and ema by the program, whose parameters are there, and says so."""
    guide = program._autoguide
    normal = set() if guide is None or _has_networks(guide) else {id(p) for p in guide.parameters()}
    count = sum(p.numel() for p in program.parameters() if p.requires_grad and id(p) not in normal)
    o["lr"] = float(f"{min(MOST, max(LEAST, max(count, 1) ** -0.5)):.2g}")
    o["schedule"] = "cosine"
    if program.is_chain and o["ema"] is None:
        o["ema"] = OF_A_CHAIN
    ema = f", averaged (ema {o['ema']:g})" if o["ema"] is not None else ""
    of = f"{count} parameters" if count else "an autoguide"
    log.info("%d steps; of %s lr %g, falling to 0 along a cosine%s", o["steps"], of, o["lr"], ema)


def _has_networks(guide: Any) -> bool:
    """Whether an autoguide has layers, as a flow has."""
    return any(name.rpartition(".")[2] == "weight" for name, _ in guide.named_parameters())
