"""torch's optimisers, `torch.func.grad` and dispatch modes without Torch Dynamo, the front end of its compiler.

torch imports it, which takes a second, with the first optimiser, the first step, the first gradient of a function and
the first operation within a mode, to tell it what not to compile. As long as nothing else has imported it nothing is
compiled by it, and the same functions run without.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, wraps
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._functorch import eager_transforms
from torch.optim import Optimizer, optimizer
from torch.utils._python_dispatch import TorchDispatchMode

_DYNAMO = "torch._dynamo"
_autograd_grad = eager_transforms._autograd_grad
_MARKED = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")  # by torch._disable_dynamo


class Mode(TorchDispatchMode):
    """Sees each operation that is made within; nothing is compiled while it is on."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


@cache
def leave_out() -> None:
    """Once a process: methods of optimisers ask for Dynamo only where it is imported already.

    Where torch marks them in another way they stay as they are, and the first optimiser takes a second more.
    """
    for name in _MARKED:
        inner = getattr(getattr(Optimizer, name), "__wrapped__", None)
        if inner is not None and "__dynamo_disable" not in vars(inner):
            inner.__dynamo_disable = _unless_imported(inner)


def plain_gradients() -> AbstractContextManager[Any]:
    """Within it `torch.func.grad` does without; where torch has written it in another way, it is as it is."""
    known = list(inspect.signature(_autograd_grad).parameters) == list(inspect.signature(_gradients).parameters)
    if _DYNAMO in sys.modules or not known:
        return nullcontext()
    return mock.patch.object(eager_transforms, "_autograd_grad", _gradients)


def _unless_imported(inner: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(inner)
    def method(*args: Any, **kwargs: Any) -> Any:
        if _DYNAMO not in sys.modules:
            return inner(*args, **kwargs)
        if getattr(inner, "__dynamo_disable", method) is method:
            inner.__dynamo_disable = torch._dynamo.disable(inner, True, wrapping=False)  # type: ignore[attr-defined]
        return inner.__dynamo_disable(*args, **kwargs)  # type: ignore[attr-defined]

    return method


def _gradients(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], grad_outputs: Sequence[Tensor] | None = None,
    retain_graph: bool = False, create_graph: bool = True,
) -> tuple[Tensor, ...]:  # fmt: skip
    """What functorch takes gradients with: `torch.autograd.grad`, 0 where there is none."""
    places = [i for i, out in enumerate(outputs) if out.requires_grad]
    if not places:
        return tuple(torch.zeros_like(x) for x in inputs)
    weights = None if grad_outputs is None else tuple(grad_outputs[i] for i in places)
    found = torch.autograd.grad(
        tuple(outputs[i] for i in places), inputs, weights, retain_graph, create_graph, allow_unused=True
    )
    return tuple(torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True))


def take_step(of: Any) -> None:
    """`of.step()`, the same arithmetic, without the import."""
    step = None if _DYNAMO in sys.modules else _plain_step(of.__class__)
    if step is None or _has_hooks(of):
        of.step()
        return
    with torch.set_grad_enabled(of.defaults["differentiable"]):
        step(of)


@cache
def _plain_step(kind: type) -> Callable[[Any], Any] | None:
    """What torch wraps: to turn gradients off, to say it to a profiler and to Dynamo; None where it is another's."""
    if not issubclass(kind, Optimizer) or not kind.__module__.startswith("torch.optim."):
        return None
    step = inspect.unwrap(kind.step)
    return step if "differentiable" in inspect.signature(kind.__init__).parameters else None


def _has_hooks(of: Any) -> bool:
    own = (getattr(of, "_optimizer_step_pre_hooks", ()), getattr(of, "_optimizer_step_post_hooks", ()))
    of_all = (getattr(optimizer, f"_global_optimizer_{when}_hooks", ()) for when in ("pre", "post"))
    return any(len(hooks) for hooks in (*own, *of_all))
