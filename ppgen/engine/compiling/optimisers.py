r"""Optimisers as functions of tensors, the same arithmetic as torch.optim's, for a step that is one graph.

Each: (p, g, state, corrections, lr, options) -> (p', state'), with the step's `bias_corrections`. `adam` is also
the step of loops outside the graph.

    Adam (Kingma & Ba 2014, arXiv:1412.6980), AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101),
    SGD with momentum, RMSprop; Pyro's ClippedAdam (gradients clamped, the learning rate decayed by its caller)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from pyro.optim.clipped_adam import ClippedAdam
from torch import Tensor

State = dict[str, Tensor]
Update = Callable[[Tensor, Tensor, State, Tensor, Tensor, dict[str, Any]], tuple[Tensor, State]]
Value = TypeVar("Value", float, Tensor)


def bias_corrections(t: Value, betas: tuple[float, float]) -> tuple[Value, Value]:
    """1 / (1 - β₁^t) and 1 / √(1 - β₂^t) of Adam's step t. In float64: 1 - 0.999^t loses half its digits in float32."""
    b1, b2 = betas
    return 1 / (1 - b1**t), (1 - b2**t) ** -0.5


def adam(
    p: Value, g: Value, moments: tuple[Value, Value], corrections: tuple[Any, Any], lr: Any, betas: tuple[float, float],
    eps: float = 1e-8,
) -> tuple[Value, tuple[Value, Value]]:  # fmt: skip
    """One step against the gradient g of numbers or tensors p, and the new moments (m, v).

    m' = β₁ m + (1 - β₁) g,  v' = β₂ v + (1 - β₂) g²,  p' = p - lr c₁ m' / (√v' c₂ + ε), with the corrections (c₁, c₂).
    """
    m, v = moments
    m = m + (1 - betas[0]) * (g - m)
    v = betas[1] * v + (1 - betas[1]) * (g * g)
    return p - lr * corrections[0] * (m / (v**0.5 * corrections[1] + eps)), (m, v)


def _adam(p: Tensor, g: Tensor, s: State, c: Tensor, lr: Tensor, o: dict[str, Any]) -> tuple[Tensor, State]:
    if o["weight_decay"] and o.get("decoupled_weight_decay"):
        p = p * (1 - lr * o["weight_decay"]).to(p.dtype)
    elif o["weight_decay"]:
        g = g + o["weight_decay"] * p
    size, root = (lr * c[0]).to(p.dtype), c[1].to(p.dtype)
    p, (m, v) = adam(p, g, (s["exp_avg"], s["exp_avg_sq"]), (1.0, root), size, o["betas"], o["eps"])
    return p, {"exp_avg": m, "exp_avg_sq": v}


def _sgd(p: Tensor, g: Tensor, s: State, c: Tensor, lr: Tensor, o: dict[str, Any]) -> tuple[Tensor, State]:
    if o["weight_decay"]:
        g = g + o["weight_decay"] * p
    state: State = {}
    if o["momentum"]:
        buffer = s["momentum_buffer"] * o["momentum"] + g
        state = {"momentum_buffer": buffer}
        g = g + o["momentum"] * buffer if o["nesterov"] else buffer
    return p - lr.to(p.dtype) * g, state


def _rmsprop(p: Tensor, g: Tensor, s: State, c: Tensor, lr: Tensor, o: dict[str, Any]) -> tuple[Tensor, State]:
    if o["weight_decay"]:
        g = g + o["weight_decay"] * p
    v = s["square_avg"] * o["alpha"] + g * g * (1 - o["alpha"])
    step = g / (v.sqrt() + o["eps"])
    state = {"square_avg": v}
    if o["momentum"]:
        step = s["momentum_buffer"] * o["momentum"] + step
        state["momentum_buffer"] = step
    return p - lr.to(p.dtype) * step, state


def _clipped_adam(p: Tensor, g: Tensor, s: State, c: Tensor, lr: Tensor, o: dict[str, Any]) -> tuple[Tensor, State]:
    """ε is added to √v before its correction, so that both corrections are of the step's size."""
    g = g.clamp(-o["clip_norm"], o["clip_norm"])
    if o["weight_decay"]:
        g = g + o["weight_decay"] * p
    size = (lr * c[0] / c[1]).to(p.dtype)
    p, (m, v) = adam(p, g, (s["exp_avg"], s["exp_avg_sq"]), (1.0, 1.0), size, o["betas"], o["eps"])
    return p, {"exp_avg": m, "exp_avg_sq": v}


def functional(optimizer: torch.optim.Optimizer) -> tuple[Update, tuple[str, ...], bool] | None:
    """The update, the names of its state, whether torch counts its steps; None where its options have none."""
    if len(optimizer.param_groups) != 1:
        return None
    o = optimizer.param_groups[0]
    if o.get("maximize") or o.get("differentiable"):
        return None
    kind = type(optimizer)
    if kind in (torch.optim.Adam, torch.optim.AdamW) and not o["amsgrad"]:
        return _adam, ("exp_avg", "exp_avg_sq"), True
    if kind is ClippedAdam and not o["centered_variance"]:
        return _clipped_adam, ("exp_avg", "exp_avg_sq"), True
    if kind is torch.optim.SGD and not o["dampening"]:
        return _sgd, ("momentum_buffer",) if o["momentum"] else (), False
    if kind is torch.optim.RMSprop and not o["centered"]:
        return _rmsprop, ("square_avg", "momentum_buffer") if o["momentum"] else ("square_avg",), True
    return None
