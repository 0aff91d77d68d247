"""What a fit that is told nothing takes: how fast the parameters move, for how long, and which of them are kept.

    lr = min(0.02, max(P^(-1/2), min(0.002, (P/8)^(-1/2)), 0.001)), falling along a cosine; P: parameters of networks
    steps = 2000, or as many as take 240 seconds, but 300 at least

Adam moves every parameter by about lr a step, so that what a network of P of them gives moves by about lr √P; of wide
and deep ones it moves by less, and up to some millions 0.002 is no more than suits them. Locations and scales of an
autoguide's normals are apart from each other, and are not counted. The seconds are counted and not timed
(`ppgen.engine.compiling.cost`), so that the same fit takes the same steps everywhere.

The parameters of a chain of latents, of which a step sees a few random times alone, are averaged; so are networks of
more parameters than there are rows, where held-out rows are followed. Unless their ELBO is drawn, as a chain's is, the
average with the best of it is kept: such a network is at its best long before its parameters have come to rest.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import nn

from ppgen.engine.compiling.cost import step_seconds
from ppgen.program import Program

MOST, WIDE, LEAST = 0.02, 0.002, 0.001  # learning rates
AVERAGED = 0.995  # decay of the average
STEPS, UNTIL_STEPS = 2000, 50_000  # the most, where a fit ends by itself
FEWEST, SECONDS = 300, 240.0  # steps of a fit whose steps are costly, at least, and seconds of all of them
PATIENCE = 30  # evaluations, of a hundred
PLAIN: dict[str, Any] = {"lr": 1e-3, "schedule": "constant"}  # what is not told, where something is

log = logging.getLogger("ppgen")


def plain_rates(o: dict[str, Any]) -> bool:
    """Fills in steps, lr and schedule unless the program is to say them: whether it is, as nothing was told."""
    told = any(o[name] is not None for name in ("steps", "lr", "schedule", "until", "patience"))
    by_program = not told and o["optimizer"] == "Adam"
    if not by_program:
        o |= {name: value for name, value in PLAIN.items() if o[name] is None}
        o["steps"] = most_steps(o)
    return by_program


def most_steps(o: Mapping[str, Any]) -> int:
    """The steps that options ask for, or the most of a fit that was told no number."""
    return (UNTIL_STEPS if o["until"] else STEPS) if o["steps"] is None else o["steps"]


def choose_rates(
    program: Program, o: dict[str, Any], rows: int, objective: nn.Module | None = None,
    batch: Mapping[str, Any] | None = None, *, follows: bool = False,
) -> None:  # fmt: skip
    """Sets steps, lr, schedule, ema and patience by the program, whose parameters are there, and says so.

    Args:
        rows: that are fitted.
        objective, batch: what a step runs; None: as if its steps cost little.
        follows: whether the ELBO of held-out rows is followed, and tells which parameters are the best.
    """
    guide = program._autoguide
    normal = set() if guide is None or _has_networks(guide) else {id(p) for p in guide.parameters()}
    count = sum(p.numel() for p in program.parameters() if p.requires_grad and id(p) not in normal)
    o["lr"] = _rate(count)
    o["schedule"] = "cosine"
    o["steps"] = STEPS if objective is None or batch is None else _affordable(objective, batch)
    few_times, follows = program.subsamples, follows and count > rows
    if o["ema"] is None and (few_times or follows):
        o["ema"] = AVERAGED
    if follows and not few_times:
        o["patience"] = PATIENCE
    _say(o, count)


def _rate(count: int) -> float:
    """The learning rate for networks of so many parameters, to two digits."""
    move = max(count, 1) ** -0.5
    return float(f"{min(MOST, max(move, min(WIDE, 8**0.5 * move), LEAST)):.2g}")


def _affordable(objective: nn.Module, batch: Mapping[str, Any]) -> int:
    """As many steps as `SECONDS` have, to two digits."""
    try:
        seconds = step_seconds(objective, batch)
    except Exception:  # the first step says what is wrong with it
        return STEPS
    if STEPS * seconds <= SECONDS:
        return STEPS
    return min(STEPS, max(FEWEST, int(float(f"{SECONDS / seconds:.2g}"))))


def _say(o: Mapping[str, Any], count: int) -> None:
    ema = f", averaged (ema {o['ema']:g})" if o["ema"] is not None else ""
    best = "; what held-out rows are best under is kept" if o["patience"] else ""
    few = " (costly ones: --steps says another number)" if o["steps"] < STEPS else ""
    of = f"{count} parameters" if count else "an autoguide"
    log.info("%d steps%s; of %s lr %g, falling to 0 along a cosine%s%s", o["steps"], few, of, o["lr"], ema, best)


def _has_networks(guide: Any) -> bool:
    """Whether an autoguide has layers, as a flow has."""
    return any(name.rpartition(".")[2] == "weight" for name, _ in guide.named_parameters())
