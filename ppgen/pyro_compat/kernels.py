"""Pyro's NUTS and HMC on a recorded potential: one graph for the potential energy and its gradient.

The sampler is Pyro's, and so are its random numbers: the same seed gives the same draws. With `jit_compile=True`,
Pyro's own argument, the graph is compiled: faster, and the same but for rounding, which a long trajectory enlarges.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro import infer
from torch import Tensor

from ppgen.engine.compiling.compile import compiled
from ppgen.engine.graphs.noise import python_randomness
from ppgen.engine.graphs.trace import Traced, Untraceable, trace
from ppgen.pyro_compat.watched import Watched

log = logging.getLogger("ppgen")

Potential = Callable[[dict[str, Tensor]], Tensor]


class _OnRecord:
    """What NUTS and HMC share: when a chain is set up, the potential is recorded."""

    potential_fn: Any
    initial_params: Any
    model: Any

    def __init__(self, *args: Any, jit_compile: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._compile = jit_compile
        self._record: _Record | None = None

    def _initialize_model_properties(self, model_args: tuple, model_kwargs: dict[str, Any]) -> None:
        super()._initialize_model_properties(model_args, model_kwargs)  # type: ignore[misc]
        own, params = self.potential_fn, self.initial_params
        if not params or infer.is_validation_enabled():  # values are to be looked at, at each call
            return
        try:
            if self._record is None or not self._record.holds(own, params):
                reads = {"model": self.model, "args": model_args, "kwargs": model_kwargs}
                self._record = _Record(own, params, reads, compile=self._compile)
            self.potential_fn = self._record.potential
        except Untraceable as e:
            log.warning("%s runs as in Pyro: %s", type(self).__name__, e)


class NUTS(_OnRecord, infer.NUTS):
    """`pyro.infer.NUTS`, the same arguments and draws, faster."""


class HMC(_OnRecord, infer.HMC):
    """`pyro.infer.HMC`, the same arguments and draws, faster."""


class _Record:
    """A potential energy as a graph that gives its gradient as well.

    Raises:
        Untraceable: it needs values to decide what to do, or its graph gives something else.
    """

    def __init__(self, own: Potential, params: dict[str, Tensor], reads: dict[str, Any], *, compile: bool):
        self.names = list(params)
        examples = [params[n].detach() for n in self.names]
        self.watched = Watched(reads)
        with python_randomness():
            self.traced: Traced = trace(lambda *values: _with_gradient(own, self.names, values), examples)
        self._run: Callable[..., Any] = self.traced
        if compile:
            constants = self.traced.constants
            run = compiled(self.traced.graph, [*(t.clone() for t in examples), *constants])
            self._run = lambda *values: run([*values, *constants])
        if not self.holds(own, params):
            raise Untraceable("its recorded potential gives other values")

    def holds(self, own: Potential, params: dict[str, Tensor]) -> bool:
        """Whether it is the same function at this place, from the same random state."""
        if list(params) != self.names or self.watched.changed():
            return False
        values = [params[n].detach() for n in self.names]
        start = torch.get_rng_state()
        theirs = _with_gradient(own, self.names, values)
        end = torch.get_rng_state()
        torch.set_rng_state(start)
        ours = self._run(*values)
        same = torch.equal(end, torch.get_rng_state())
        torch.set_rng_state(start)
        return same and all(
            a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-5, equal_nan=True)
            for a, b in zip(theirs, ours, strict=True)
        )

    def potential(self, params: dict[str, Tensor]) -> Tensor:
        return _Value.apply(self._run, *(params[n] for n in self.names))


def _with_gradient(own: Potential, names: Sequence[str], values: Sequence[Tensor]) -> list[Tensor]:
    with torch.enable_grad():
        values = [v.detach().requires_grad_() for v in values]
        value = own(dict(zip(names, values, strict=True)))
        return [value.detach(), *torch.autograd.grad(value, values)]


class _Value(torch.autograd.Function):
    """The value, which brings its gradient along."""

    @staticmethod
    def forward(ctx: Any, run: Callable[..., Any], *values: Tensor) -> Tensor:
        value, *gradients = run(*values)
        ctx.gradients = gradients
        return value

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> Any:
        return None, *(factor * g for g in ctx.gradients)
