"""One guide, fitted anew to each of many data sets of one shape: all at once, as one graph of batched operations.

The gradient of the ELBO is traced once, its random draws are made inputs, and `torch.func.vmap` runs it over the data
sets, each with parameters of its own; Adam moves them all. Where that cannot be done (draws that depend on values), the
traced gradient is run for one data set after the other.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ppgen.data import n_rows
from ppgen.engine.compiling.optimisers import adam, bias_corrections
from ppgen.engine.graphs.gradient import Gradient
from ppgen.engine.graphs.noise import hoist
from ppgen.engine.graphs.trace import Traced, Untraceable, trace
from ppgen.errors import PpgenError
from ppgen.inference.objective import Objective
from ppgen.inference.training.optimise import learning_rate
from ppgen.program import Program
from ppgen.structure import Structure

log = logging.getLogger("ppgen")

BETAS = (0.9, 0.999)


def refit(
    program: Program, structure: Structure, data: Mapping[str, Tensor], changed: Mapping[str, Tensor], *, steps: int,
    lr: float, particles: int, objective: str = "analytic",
) -> list[dict[str, Tensor]]:  # fmt: skip
    """Fits the trainable parameters of the program to each data set, from where they are.

    Args:
        program, structure: set up and checked on `data`.
        data: the columns; those in `changed` are replaced.
        changed: columns with the data sets leading, (S, ...).
        steps, lr, particles, objective: as of `fit`; the learning rate falls as a cosine.

    Returns:
        The parameters by name, for each data set.
    """
    n = n_rows(data, structure.row_columns)
    bound = Objective(program, structure, n, objective=objective, particles=particles)
    names = [n.removeprefix("program.") for n, p in bound.named_parameters() if p.requires_grad]
    count = len(next(iter(changed.values())))
    try:
        gradient = Gradient(bound, data)
    except Untraceable as e:
        raise PpgenError(f"{program.name} cannot be traced, which many fits at once need: {e}") from e
    start = [p.detach().clone() for p in gradient.parameters]
    values = [p[None].repeat(count, *(1,) * p.dim()) for p in start]
    step = _all_at_once(gradient, data, changed, count) or _one_by_one(gradient, data, changed)
    moved = set(map(id, gradient.trained))
    elbos = _train(step, values, [i for i, p in enumerate(gradient.parameters) if id(p) in moved], steps, lr)
    if not torch.isfinite(elbos).all():
        bad = int((~torch.isfinite(elbos)).sum())
        raise PpgenError(
            f"the ELBO of {bad} of {count} fits is not finite at the end; take a smaller lr, or a prior whose draws "
            "the guide can start from"
        )
    return [{n: v[i] for n, v in zip(names, values, strict=True)} for i in range(count)]


Step = Callable[[Sequence[Tensor]], tuple[Tensor, list[Tensor]]]  # parameters -> ELBO (S,), gradients of the trained


def _train(step: Step, values: list[Tensor], trained: list[int], steps: int, lr: float) -> Tensor:
    """Adam on the trained values, in place; the ELBOs of the last step. A step that is not finite moves nothing of its
    fit."""
    moments = [(torch.zeros_like(values[i]), torch.zeros_like(values[i])) for i in trained]
    elbo = torch.zeros(len(values[0]) if values else 0)
    for t in range(1, steps + 1):
        elbo, gradients = step(values)
        rate = learning_rate("cosine", lr, t - 1, steps)
        good = torch.isfinite(elbo)
        for g in gradients:
            good = good & torch.isfinite(g.reshape(len(g), -1)).all(1)
        corrections = bias_corrections(float(t), BETAS)
        for k, (i, g) in enumerate(zip(trained, gradients, strict=True)):
            ok = good.reshape(-1, *(1,) * (g.dim() - 1))
            moved, moments[k] = adam(values[i], torch.where(ok, g, 0.0), moments[k], corrections, rate, BETAS)
            values[i].copy_(torch.where(ok, moved, values[i]))
    return elbo


def _all_at_once(
    gradient: Gradient, data: Mapping[str, Tensor], changed: Mapping[str, Tensor], count: int
) -> Step | None:
    graph, draws, complete = hoist(gradient.traced.graph)
    if not complete:
        return None
    n, m = len(gradient.parameters), len(gradient.others)
    columns = [changed.get(k, data[k]) for k in gradient.columns]
    dims = [0] * n + [None] * m + [0 if k in changed else None for k in gradient.columns]
    dims += [None] * len(gradient.traced.constants) + [0] * len(draws)

    def one(*inputs: Tensor) -> list[Tensor]:
        out = gradient.outputs(graph(*inputs))
        return [out.elbo, *out.gradients]

    def noise() -> list[Tensor]:
        return [d.many(count) for d in draws]

    example = [*(p.detach()[None].repeat(count, *(1,) * p.dim()) for p in gradient.parameters), *gradient.others]
    example += [*columns, *gradient.traced.constants, *noise()]
    try:
        batched: Traced = trace(torch.func.vmap(one, in_dims=tuple(dims)), example)
    except Untraceable as e:
        log.info("many fits run one after the other: %s", e)
        return None
    fixed = [*gradient.others, *columns, *gradient.traced.constants]

    def step(values: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        elbo, *gradients = batched(*values, *fixed, *noise())
        return elbo, gradients

    return step


def _one_by_one(gradient: Gradient, data: Mapping[str, Tensor], changed: Mapping[str, Tensor]) -> Step:
    def step(values: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        elbos, gradients = [], []
        for i in range(len(values[0])):
            columns: dict[str, Any] = {k: changed[k][i] if k in changed else data[k] for k in gradient.columns}
            inputs = [*(v[i] for v in values), *gradient.others, *columns.values()]
            out = gradient.outputs(gradient.traced(*inputs))
            elbos.append(out.elbo)
            gradients.append(out.gradients)
        return torch.stack(elbos), [torch.stack(g) for g in zip(*gradients, strict=True)]

    return step
