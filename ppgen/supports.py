"""Latents whose support depends on other latents, as that of x ~ Uniform(0, b) on b.

A transform from the real line to such a support is another one at each b: it is asked of the site, in each run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to

from ppgen.handlers import without_validation
from ppgen.sites import support_of

__all__ = ["Placing", "Transforms", "moving"]


def moving(model: Callable[[], Any], nodes: Mapping[str, Mapping[str, Any]], latents: Collection[str]) -> list[str]:
    """Those of the latents whose bounds are others in a second run of the model, at draws of its own.

    Args:
        nodes: of a first run. The model is not run again where no bound could differ.
    """
    bounds = {n: found for n in latents if (found := _bounds(support_of(nodes[n]["fn"])))}
    if not bounds:
        return []
    with torch.no_grad(), torch.random.fork_rng(devices=[]), without_validation():
        torch.manual_seed(torch.initial_seed() + 1)  # other draws, where the first run was of this very state
        again = poutine.trace(model).get_trace().nodes
    return [n for n, b in bounds.items() if n in again and not _same(b, _bounds(support_of(again[n]["fn"])))]


def _bounds(support: Any) -> list[Tensor]:
    """The tensors that a support is made of; numbers are the same in each run."""
    found: list[Tensor] = []
    for value in vars(support).values() if support is not None else ():
        for part in value if isinstance(value, list | tuple) else [value]:
            if isinstance(part, Tensor):
                found.append(part)
            elif isinstance(part, torch.distributions.constraints.Constraint):
                found += _bounds(part)
    return found


def _same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


class Transforms(Messenger):
    """Within it, the transform of each of these latents is noted: from the real line to its support in this run."""

    def __init__(self, latents: Collection[str]):
        super().__init__()
        self.latents = latents
        self.found: dict[str, Any] = {}

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] in self.latents:
            self.found[msg["name"]] = biject_to(support_of(msg["fn"]))


class Placing(Messenger):
    """Within it, latents take the values that unconstrained ones have on their supports in this run.

    Args:
        inner: unconstrained values by latent.
        held: values of other latents, as they are.
    """

    def __init__(self, inner: Mapping[str, Tensor], held: Mapping[str, Tensor]):
        super().__init__()
        self.inner, self.held = inner, held
        self.values: dict[str, Tensor] = {}
        self.log_det: Any = 0.0

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        name = msg["name"]
        if name in self.inner:
            transform, u = biject_to(support_of(msg["fn"])), self.inner[name]
            msg["value"] = self.values[name] = transform(u)
            self.log_det = self.log_det + transform.log_abs_det_jacobian(u, msg["value"]).sum()
        elif name in self.held:
            msg["value"] = self.held[name]
        else:
            return
        msg["done"] = True
