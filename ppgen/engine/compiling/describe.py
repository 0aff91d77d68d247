"""What a trace is made of, for people: `ppgen check --engine trace`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ppgen.engine.compiling.compile import TOO_LARGE, compiler, estimated_seconds
from ppgen.engine.graphs.gradient import Gradient
from ppgen.engine.graphs.noise import hoist
from ppgen.engine.graphs.trace import Untraceable


def describe(objective: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """How an objective traces on a batch.

    Args:
        objective: as `ppgen.inference.Objective`.
        batch: the columns that a step sees.

    Returns:
        `traces` (bool) and `reason` (the line that broke the trace, or None). Where it traces: `operations` by name,
        most frequent first, and `size`, their number; `random`, the draws, and whether all are made ahead of the
        graph; `constants`, the shapes of tensors that the program closed over; `outside`, what a step does outside of
        the graph; `parameters` that the loss depends on, and `unused` ones; `buffers` that a step changes; `seconds`,
        an estimate of the compilation; `compiler`, its path or None; `advice` where compiling is not worth it.
    """
    try:
        gradient = Gradient(objective, batch)
    except Untraceable as e:
        return {"traces": False, "reason": str(e), "outside": ["the whole step: it runs eagerly"]}
    names = {id(p): n.removeprefix("program.") for n, p in objective.named_parameters()}
    names |= {id(b): n.removeprefix("program.") for n, b in objective.named_buffers()}
    nodes = [n for n in gradient.traced.graph.graph.nodes if n.op == "call_function"]
    operations = Counter(str(n.target) if isinstance(n.target, torch._ops.OpOverload) else "getitem" for n in nodes)
    _, draws, complete = hoist(gradient.traced.graph)
    trained = {id(p) for p in gradient.trained}
    random = [str(n.target) for n in nodes if torch.Tag.nondeterministic_seeded in getattr(n.target, "tags", ())]
    outside = ["batches of rows", "learning rate and KL weight"]
    if random and not complete:
        outside.append(f"the first {len(draws)} of {len(random)} draws")
    elif random:
        outside.append(f"{len(random)} draws of noise")
    return {
        "traces": True,
        "reason": None,
        "size": len(nodes),
        "operations": dict(operations.most_common()),
        "random": {"draws": random, "ahead": complete},
        "constants": [tuple(c.shape) for c in gradient.traced.constants],
        "outside": outside,
        "parameters": [names[id(p)] for p in gradient.trained],
        "unused": [names[id(p)] for p in gradient.parameters if id(p) not in trained],
        "buffers": [names[id(b)] for b in gradient.changed],
        "seconds": estimated_seconds(len(nodes)),
        "compiler": compiler(),
        "advice": _advice(len(nodes)),
    }


def _advice(operations: int) -> str | None:
    if operations > TOO_LARGE:
        return (
            f"{operations} operations would take about {estimated_seconds(operations):.0f} s to compile: a loop over "
            "time steps unrolls; use a closed form (pyro.distributions.DiscreteHMM, GaussianHMM), an associative scan, "
            "or engine 'trace'"
        )
    return "there is no C++ compiler: install g++ for engine 'compile'" if compiler() is None else None
