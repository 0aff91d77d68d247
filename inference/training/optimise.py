"""Parts of the loop that are not ppgen's own: torch.optim by name, learning-rate schedules, Fabric, EMA."""

from __future__ import annotations

import inspect
import math
import os
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ppgen.engine.graphs.without_dynamo import leave_out
from ppgen.errors import PpgenError, first_line, nearest, require_known
from ppgen.folder import call_of, require_options

Value = TypeVar("Value")

SCHEDULES = {
    "constant": "lr",
    "linear": "lr (1 − t)",
    "cosine": "lr (1 + cos πt) / 2",
    "exponential": "lr 100^(−t)",
}


def learning_rate(schedule: str, lr: float, step: int, steps: int) -> float:
    """The learning rate at a step, t = step / steps. A function of the step alone, so that it needs no state.

    >>> [round(learning_rate("cosine", 1.0, s, 4), 3) for s in range(4)]
    [1.0, 0.854, 0.5, 0.146]
    """
    require_known("schedule", schedule, SCHEDULES)
    t = step / max(steps, 1)
    if schedule == "linear":
        return lr * (1 - t)
    if schedule == "cosine":
        return lr * (1 + math.cos(math.pi * t)) / 2
    return lr * 100 ** (-t) if schedule == "exponential" else lr


def optimizer_names() -> tuple[str, ...]:
    """The optimisers of torch.optim, but for SparseAdam: gradients here are dense."""
    return tuple(
        n
        for n, o in vars(torch.optim).items()
        if inspect.isclass(o) and issubclass(o, torch.optim.Optimizer) and n not in ("Optimizer", "SparseAdam")
    )


def make_optimizer(spec: str, parameters: list[Tensor], lr: float) -> torch.optim.Optimizer:
    """An optimiser of torch.optim by name, with keywords: `AdamW(weight_decay=0.01)`."""
    cls, options = _optimizer_call(spec)
    leave_out()
    try:
        return cls(parameters, lr=lr, **options)
    except (TypeError, ValueError) as e:
        raise PpgenError(
            f"torch.optim.{cls.__name__} does not take these parameters or options: {e}; choose another optimizer"
        ) from e


def check_optimizer(spec: str, lr: float) -> None:
    """Makes one where its keywords need it.

    Raises:
        PpgenError: no such optimiser or keyword, or a value that it does not take.
    """
    if _optimizer_call(spec)[1]:
        make_optimizer(spec, [torch.nn.Parameter(torch.zeros(1, 1))], lr)


def weight_decay(spec: str, lr: float) -> float:
    """What an optimiser pulls parameters to 0 by: AdamW does so unless told otherwise.

    >>> weight_decay("Adam", 1.0), weight_decay("AdamW", 1.0), weight_decay("AdamW(weight_decay=0)", 1.0)
    (0, 0.01, 0)
    """
    if spec == "Adam":
        return 0
    return make_optimizer(spec, [torch.nn.Parameter(torch.zeros(1, 1))], lr).param_groups[0].get("weight_decay", 0)


def _optimizer_call(spec: str) -> tuple[Any, dict[str, Any]]:
    """The class, and its keywords."""
    name, names = spec.partition("(")[0], optimizer_names()
    if name not in names:
        raise PpgenError(f"torch.optim has no optimizer {name!r}{nearest(name, names)}; it has {', '.join(names)}")
    options = call_of(spec, "optimizer", "AdamW(weight_decay=0.01)")[1]
    cls = getattr(torch.optim, name)
    require_options(f"optimizer {name}", cls, options, but=("params", "lr"))
    return cls, options


def make_fabric(device: str, precision: str) -> Any:
    """Lightning Fabric: devices, precision, processes. Under torchrun it joins the processes there are.

    One process on the CPU at a true precision needs none of it, and gets a `_OneProcess`.
    """
    accelerator, _, index = device.partition(":")
    world = int(os.environ.get("WORLD_SIZE", 1))
    if device == "cpu" and world == 1 and precision in ("32-true", "64-true"):
        return _OneProcess(precision)

    from lightning_fabric import Fabric

    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    devices: Any = [int(index)] if index.isdigit() else local
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _join_after_restart(world)
            fabric = Fabric(
                accelerator=accelerator,
                devices=devices,
                num_nodes=max(world // local, 1),
                strategy="ddp" if world > 1 else "auto",
                precision=precision,  # type: ignore[arg-type]
            )
            fabric.launch()
        if precision.endswith("-mixed"):  # operations are cast, data are not: a rounded pixel is another pixel
            fabric._precision.convert_input = lambda data: data  # type: ignore[method-assign]
    except (RuntimeError, ValueError, TypeError) as e:
        raise PpgenError(
            f"device {device!r} with precision {precision!r} cannot be used: {first_line(e)}; take device "
            "cpu, cuda or auto, and precision 32-true, 64-true or bf16-mixed"
        ) from e
    except Exception as e:  # Fabric's own classes for a device that is not there
        raise PpgenError(f"device {device!r} is not there: {first_line(e)}; take device cpu or auto") from e
    if precision == "16-mixed" and fabric.device.type == "cpu":  # Fabric takes bfloat16 for it
        raise PpgenError("precision '16-mixed' needs a GPU, and the device is the CPU; take bf16-mixed or 32-true")
    return fabric


class _Precision(NamedTuple):
    precision: str

    @staticmethod
    def forward_context() -> Any:
        return nullcontext()


class _OneProcess:
    """Does what a `Fabric` of one process on the CPU would do, at a true precision: Fabric takes 1.4 s to import."""

    device = torch.device("cpu")
    world_size, global_rank, is_global_zero = 1, 0, True

    def __init__(self, precision: str):
        """
        Args:
            precision: 32-true or 64-true.
        """
        self._precision = _Precision(precision)

    def setup(self, module: nn.Module, optimizer: Any) -> tuple[nn.Module, Any]:
        """Both as they are; parameters of 64-true are float64, as with Fabric."""
        return (module.double() if self._precision.precision == "64-true" else module), optimizer

    @staticmethod
    def backward(loss: Tensor) -> None:
        loss.backward()

    @staticmethod
    def broadcast(value: Value) -> Value:
        return value

    @staticmethod
    def all_gather(tensor: Tensor) -> Tensor:
        return tensor


def _join_after_restart(world: int) -> None:
    """Joins the processes that torchrun has started again: its store still has the addresses of those before them."""
    from torch import distributed
    from torch.distributed import PrefixStore, rendezvous  # type: ignore[attr-defined]

    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if world > 1 and attempt != "0" and not distributed.is_initialized():
        store, rank, size = next(rendezvous("env://"))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        own = PrefixStore(f"attempt-{attempt}", store)
        distributed.init_process_group(backend, store=own, rank=rank, world_size=size)


def ema_decay(decay: float, step: int) -> float:
    """min(decay, (1 + step) / (10 + step)), so that the start is forgotten."""
    return min(decay, (1 + step) / (10 + step))


def averaged(ema: dict[str, Tensor], values: Mapping[str, Tensor], decay: float, step: int) -> None:
    """ema ← d ema + (1 − d) values, in place, with d = `ema_decay(decay, step)`."""
    move_average(ema, values, 1 - ema_decay(decay, step))


@torch.no_grad()
def move_average(average: dict[str, Tensor], values: Mapping[str, Tensor], weight: float) -> None:
    """average ← (1 − w) average + w values, in place; whole numbers, and parameters that appear late, as they are."""
    for name, value in values.items():
        if name not in average:
            average[name] = value.detach().clone()
        elif value.is_floating_point():
            average[name].lerp_(value, weight)
        else:
            average[name].copy_(value)
