"""Pyro's Predictive, whose runs one after the other are a recorded run, replayed: the same draws, faster."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from pyro import infer, poutine
from pyro.infer import predictive
from torch import Tensor

from ppgen.engine.graphs.repeated import traced
from ppgen.pyro_compat.watched import Watched

FEW = 32  # runs that cost as much as a record

_pyros = predictive._predictive_sequential


class Predictive(infer.Predictive):
    """`pyro.infer.Predictive`: the same arguments, and the same draws from the same seed."""

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        with mock.patch.object(predictive, "_predictive_sequential", _replayed):
            return super().forward(*args, **kwargs)


def _replayed(
    model: Any, samples: dict[str, Tensor], args: tuple, kwargs: dict[str, Any], runs: int, shapes: dict[str, Any]
) -> Any:
    """As Pyro's function of that place, but for the traces of the runs, which `forward` does not use."""
    if runs <= FEW or any(shape is None for shape in shapes.values()):
        return _pyros(model, samples, args, kwargs, runs, shapes)

    def one(*values: Tensor) -> list[Tensor]:
        given = dict(zip(samples, values, strict=True))
        nodes = poutine.trace(poutine.condition(model, given)).get_trace(*args, **kwargs).nodes
        return [nodes[site]["value"] for site in shapes]

    watched = Watched({"model": model, "args": args, "kwargs": kwargs})
    run = traced(one, [v[0] for v in samples.values()])
    if watched.changed():  # which a recorded run would do once
        watched.restore()
        run = one
    collected = [run(*(v[i] for v in samples.values())) for i in range(runs)]
    drawn = {site: torch.stack([c[k] for c in collected]).reshape(shapes[site]) for k, site in enumerate(shapes)}
    return predictive._predictiveResults(trace=[], samples=drawn)
