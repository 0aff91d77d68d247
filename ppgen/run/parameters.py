"""Parameters by Pyro's names: constrained values, and Pyro's parameter store filled with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints, transform_to

from ppgen.handlers import without_validation
from ppgen.program import Program


def _param_sites(program: Program, data: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The `pyro.param` sites of one run of both parts, by name, those of modules included."""
    found: dict[str, dict[str, Any]] = {}
    with torch.no_grad(), torch.random.fork_rng(devices=[]), without_validation():
        for part in ("guide", "model"):
            tracer = poutine.trace(param_only=True)
            with tracer:
                program.call(part, data)
            found |= {n: s for n, s in tracer.trace.nodes.items() if s["type"] == "param"}
    for name, constraint in program.__dict__.get("constraints_of_params", {}).items():
        if name not in found:  # of a site that this run did not come to
            free = program.get_parameter("param:" + name.replace(".", "/"))
            value = transform_to(constraint)(free)
            found[name] = {"value": value, "args": (), "kwargs": {"constraint": constraint}}
    return found


def constrained(program: Program, data: Mapping[str, Any]) -> dict[str, Tensor]:
    """Every parameter: `pyro.param` and PyroParam ones as the program sees them, by Pyro's names, the others as
    modules hold them."""
    sites = _param_sites(program, data)
    seen = {id(s["value"].unconstrained()) for s in sites.values() if hasattr(s["value"], "unconstrained")}
    seen |= {id(s["value"]) for s in sites.values()} | {id(s["args"][1]) for s in sites.values() if len(s["args"]) > 1}
    rest = {n: p for n, p in program.named_parameters() if id(p) not in seen and not n.startswith("param:")}
    rest = {n: p for n, p in rest.items() if not n.endswith("_unconstrained")}
    return {**{n: s["value"].detach().clone() for n, s in sites.items()},
            **{n: p.detach().clone() for n, p in rest.items()}}  # fmt: skip


def fill_store(program: Program, data: Mapping[str, Any]) -> None:
    """Writes them into Pyro's global store, with their constraints."""
    store = pyro.get_param_store()
    for name, site in _param_sites(program, data).items():
        constraint = site["kwargs"].get("constraint", constraints.real)
        value = site["value"].detach().clone()
        if name in store:
            del store[name]
        store.setdefault(name, value, constraint)
