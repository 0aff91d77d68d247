"""A function that will be run many times on inputs of one shape, traced if it can be."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ppgen.engine.graphs.trace import Untraceable, trace

log = logging.getLogger("ppgen")


def traced(fn: Callable[..., Any], inputs: Sequence[Tensor]) -> Callable[..., Any]:
    """`fn`, faster, for inputs of the shapes of these.

    Its tensors outside of the inputs (parameters of a module) keep their places: a change in place is seen. It
    is run both ways once from one random state; where the results differ, or it cannot be traced, `fn` itself is
    given back and the log says why.

    Args:
        fn: gives a tensor or a list of tensors; needs no gradient.
        inputs: examples.

    >>> import torch
    >>> twice = traced(lambda x: torch.distributions.Normal(x, 1.0).log_prob(2 * x), [torch.ones(3)])
    >>> twice(torch.ones(3))
    tensor([-1.4189, -1.4189, -1.4189])
    """
    try:
        graph = trace(fn, inputs)
    except Untraceable as e:
        log.info("not traced: %s", e)
        return fn
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        start = torch.get_rng_state()
        eager = fn(*inputs)
        torch.set_rng_state(start)
        ours = graph(*inputs)
    pairs = zip(_list(eager), _list(ours), strict=True)
    if not all(torch.allclose(a, b, rtol=1e-4, atol=1e-6, equal_nan=True) for a, b in pairs):
        log.info("not traced: the trace gives other values; does it draw from Python's random, or count its calls?")
        return fn
    return graph


def _list(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [v for v in value if isinstance(v, Tensor)]
