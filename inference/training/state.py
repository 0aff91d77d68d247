"""state.safetensors: all that the next step depends on, and how it is read back.

A file from a damaged disk is refused by its digest (`ppgen.run.files`); here its contents are held against what a fit
writes, and against the program and the optimiser that they are for.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppgen.errors import PpgenError, reason
from ppgen.inference.training.converge import Convergence
from ppgen.inference.training.step import Engines
from ppgen.run import METRICS
from ppgen.run.files import read_tree
from ppgen.run.schema import validate


@dataclass
class Progress:
    """Where the loop stands, beside parameters, optimiser and random state."""

    step: int = 0
    window: list[float] = field(default_factory=list)  # the ELBO of each step since the last row of metrics
    rows: list[dict[str, float]] = field(default_factory=list)
    bad_steps: int = 0
    best: float = -float("inf")
    waited: int = 0
    grad_norm: float = 0.0


@dataclass
class _Random:
    torch: Tensor  # a row a process
    device: Tensor | None
    python: tuple
    numpy: tuple


@dataclass
class _Optimizer:
    state: dict[int, dict[str, Any]]
    param_groups: list[dict[str, Any]]


@dataclass
class _State:
    parameters: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    best_parameters: dict[str, Tensor] | None
    optimizer: _Optimizer
    progress: Progress
    convergence: Convergence | None
    random: _Random
    engines: Engines | None = None  # version 1 has none


_FORMER = ("seconds", "eager_seconds", "trace_next")


def read_state(path: Path) -> dict[str, Any]:
    """state.safetensors, as `ppgen.inference.training.train` writes it."""
    state = read_tree(path)
    if isinstance(state.get("engines"), dict):  # once there were times in it
        state["engines"] = {"settled": []} | {k: v for k, v in state["engines"].items() if k not in _FORMER}
    validate(state, _State, str(path), exact=True)
    if not all({"step"} <= row.keys() <= set(METRICS) for row in state["progress"]["rows"]):
        raise PpgenError(f"{path} is damaged: a row of metrics has other columns; restore it, or fit again")
    return state


def like(saved: Mapping[str, Tensor], own: Mapping[str, Tensor], file: str) -> dict[str, Tensor]:
    """Saved tensors with the dtypes and the device of the program's."""
    for name in [*saved, *own]:
        a, b = saved.get(name), own.get(name)
        if a is None or b is None or a.shape != b.shape:
            shapes = " and ".join("none" if v is None else str(tuple(v.shape)) for v in (a, b))
            raise PpgenError(f"{file} has a {name!r} of another shape than the program ({shapes}); fit again")
    return {k: v.to(own[k], copy=True) for k, v in saved.items()}


@contextmanager
def _of(file: str) -> Any:
    """What cannot be set is the file's fault."""
    try:
        yield
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, OverflowError) as e:
        if isinstance(e, PpgenError):
            raise
        raise PpgenError(f"{file} is no state of this program's fit ({reason(e)}); restore it, or fit again") from e


def load_optimizer(optimizer: Any, saved: Mapping[str, Any], file: str, twin: torch.optim.Optimizer) -> None:
    """Puts averages, counts and the learning rate back; other options are those that the optimiser was made with.

    Args:
        twin: another one of its kind, of one parameter.
    """
    kinds: dict[str, Any] = _kinds(twin)
    with _of(file):
        own = optimizer.state_dict()["param_groups"]
        groups = [a | {"lr": float(b["lr"])} for a, b in zip(own, saved["param_groups"], strict=True)]
        optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
        plain = getattr(optimizer, "optimizer", optimizer)
        for p, state in plain.state.items():
            if lacking := [name for name in kinds if state and name not in state]:
                raise ValueError(f"{lacking[0]} of a parameter is missing")
            for name, value in state.items():
                if not isinstance(value, kinds.get(name, object)):
                    raise ValueError(f"{name} is a {type(value).__name__}, and a {kinds[name].__name__} is expected")
                single = not isinstance(p, Tensor) or not isinstance(value, Tensor) or value.numel() <= 1
                if not single and value.shape != p.shape and type(plain) not in _OTHER_SHAPES:
                    raise ValueError(f"{name} has shape {tuple(value.shape)} for a parameter of {tuple(p.shape)}")


def _kinds(twin: torch.optim.Optimizer) -> dict[str, type]:
    """What an optimiser keeps of a parameter, by name, after one step; nothing of one where this is by its shape."""
    if type(twin) in _OTHER_SHAPES:
        return {}
    (p,) = twin.param_groups[0]["params"]
    p.grad = torch.zeros_like(p)
    twin.step()
    return {name: Tensor if isinstance(v, Tensor) else type(v) for name, v in twin.state[p].items()}


_OTHER_SHAPES = tuple(c for c in (torch.optim.LBFGS, getattr(torch.optim, "Adafactor", None)) if c is not None)


def random_state(fabric: Any) -> dict[str, Any]:
    """Of torch (of every process), the device, Python and NumPy."""
    name, keys, *rest = np.random.get_state()
    return {
        "torch": fabric.all_gather(torch.get_rng_state().to(fabric.device)).cpu().reshape(fabric.world_size, -1),
        "device": torch.cuda.get_rng_state(fabric.device) if fabric.device.type == "cuda" else None,
        "python": random.getstate(),
        "numpy": (name, np.asarray(keys).astype(np.int64), *rest),
    }


def set_random_state(state: Mapping[str, Any], fabric: Any, file: str) -> None:
    """Sets what `random_state` gave; a process that was not there then takes the last one's."""
    with _of(file):
        torch.set_rng_state(state["torch"][min(fabric.global_rank, len(state["torch"]) - 1)].clone())
        if state["device"] is not None and fabric.device.type == "cuda":
            torch.cuda.set_rng_state(state["device"], fabric.device)
        random.setstate(state["python"])
        name, keys, *rest = state["numpy"]
        np.random.set_state((name, keys.astype(np.uint32), *rest))
