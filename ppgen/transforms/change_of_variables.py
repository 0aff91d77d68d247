r"""What every flow transform is: an invertible map with its log-determinant, in Pyro's interface.

    x = T(z),   z ~ base,   log p(x) = log p_base(T⁻¹(x)) + log |det ∂T⁻¹(x) / ∂x|

A family writes two methods, both in nats and batched over leading dimensions:

    push(z, context) -> (x, log |det ∂x/∂z|)     the sampling direction
    pull(x, context) -> (z, log |det ∂z/∂x|)     the density direction

and gets `torch.distributions.Transform`'s interface, so that `TransformedDistribution(base, [t1, t2])` takes it in
any Pyro program; `Conditional` adds `.condition(context)`. A log-determinant that one call has computed is kept for
the `log_abs_det_jacobian` that follows it, and the z that gave a sample for the `log_prob` of that very sample.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import numpy as np
import torch
from pyro.distributions import TransformModule
from pyro.distributions.conditional import ConditionalTransformModule
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from ppgen.errors import PpgenError

Pair = tuple[Tensor, Tensor]


def _real_array(dims: int) -> constraints.Constraint:
    """Real arrays whose last `dims` dimensions are one event."""
    return constraints.independent(constraints.real, dims) if dims else constraints.real


def full_precision(method: Callable[..., Any]) -> Callable[..., Any]:
    """Leaves mixed precision (torch.autocast) out of a method of one tensor and what else it takes.

    Networks that say how x is transformed may be rounded; what acts on x itself may not, or the density is of another
    map than the one that is inverted.
    """

    @wraps(method)
    def run(self: Any, value: Tensor, *rest: Any, **more: Any) -> Any:
        if not torch.is_autocast_enabled(value.device.type):
            return method(self, value, *rest, **more)
        with torch.autocast(value.device.type, enabled=False):
            return method(self, value, *rest, **more)

    return run


def _version(t: Tensor) -> int:
    """How often a tensor was written into."""
    return 0 if t.is_inference() else t._version


class _Paired(Transform):
    """Remembers the last pair (z, x) and its log-determinant, by identity and without keeping z or x alive.

    torch's own cache (`with_cache`) answers for any tensor it has seen, also after an optimiser's step or a write into
    it: the stale value is silent. Here an answer is given only for what this transform itself made, as it made it: z
    from x under the present call, or x from z with parameters and gradient mode unchanged.
    """

    def _push(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        raise NotImplementedError

    def _pull(self, x: Tensor) -> Pair:
        raise NotImplementedError

    def _tensors(self) -> list[Tensor]:
        raise NotImplementedError

    @property
    def _pulls(self) -> bool:
        raise NotImplementedError

    def _call(self, z: Tensor) -> Tensor:
        x, ladj = self._push(z)
        self._remember(z, x, ladj, made="x")
        return x

    def _inverse(self, x: Tensor) -> Tensor:
        memo = self.__dict__.get("_memo")
        if memo is not None and memo["x"]() is x and memo["state"] is not None and memo["state"] == self._state():
            z = memo["z"]()
            if z is not None and memo["versions"] == (_version(z), _version(x)):
                return z
        z, ladj = self._pull(x)
        self._remember(z, x, -ladj, made="z")
        return z

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log |det ∂y/∂x| in nats, with Pyro's names: here y = T(x)."""
        memo = self.__dict__.get("_memo")
        if (
            memo is not None and memo["x"]() is y and memo["z"]() is x
            and memo["grad"] == torch.is_grad_enabled() and memo["versions"] == (_version(x), _version(y))
        ):  # fmt: skip
            if memo["ladj"] is None:
                memo["ladj"] = -self._pull(y)[1]
            return memo["ladj"]
        if self._pulls:
            return -self._pull(y)[1]
        ladj = self._push(x)[1]
        assert ladj is not None
        return ladj

    def _remember(self, z: Tensor, x: Tensor, ladj: Tensor | None, made: str) -> None:
        state = self._state() if made == "x" else None
        # through __dict__: nn.Module would register a tensor or slow the assignment down
        self.__dict__["_memo"] = {
            "z": weakref.ref(z), "x": weakref.ref(x), "versions": (_version(z), _version(x)), "ladj": ladj,
            "grad": torch.is_grad_enabled(), "state": state,
        }  # fmt: skip

    def _state(self) -> tuple:
        return torch.is_grad_enabled(), *((id(t), t._version) for t in self._tensors())

    def clear_cache(self) -> None:
        """Forgets the last pair."""
        self.__dict__.pop("_memo", None)
        if self._cache_size:
            self._cached_x_y = None, None

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state.pop("_memo", None)
        if self._cache_size:
            state["_cached_x_y"] = None, None
        return state

    def with_cache(self, cache_size: int = 1) -> Transform:
        """The same transform, parameters shared, with torch's cache of one pair (mind `clear_cache` in training)."""
        if self._cache_size == cache_size:
            return self
        new = copy.copy(self)
        new._cache_size = cache_size
        new._cached_x_y = None, None
        return new


class FlowTransform(_Paired, TransformModule):
    """One invertible map on events of a fixed shape; a torch module and a Pyro transform. Subclasses are final.

    Args:
        shape: event shape of x; z has the same unless the subclass says `base_shape`.
        context: number of context features, 0 for none. A transform with context is used through `Conditional`.

    Attributes:
        directions: which directions exist: ("push", "pull"), or only one of them. Where one is missing its method
            raises, and `require` says so before training.
        pulls: whether `pull` is the cheap direction for the log-determinant.
    """

    bijective = True
    directions: tuple[str, ...] = ("push", "pull")
    pulls = True

    def __init__(self, shape: Sequence[int], context: int = 0, base_shape: Sequence[int] | None = None):
        super().__init__()
        self.shape, self.context = torch.Size(shape), context
        self.base_shape = self.shape if base_shape is None else torch.Size(base_shape)

    @property
    def domain(self) -> constraints.Constraint:  # type: ignore[override]
        return constraints.real_vector if len(self.base_shape) == 1 else _real_array(len(self.base_shape))

    @property
    def codomain(self) -> constraints.Constraint:  # type: ignore[override]
        return constraints.real_vector if len(self.shape) == 1 else _real_array(len(self.shape))

    @property
    def sign(self) -> int:
        return 1

    def push(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """x and log |det ∂x/∂z| of shape (...); None for the latter where only `pull` gives it cheaply."""
        raise NotImplementedError

    def pull(self, x: Tensor, context: Tensor | None = None) -> Pair:
        """z and log |det ∂z/∂x| of shape (...)."""
        raise NotImplementedError

    @property
    def title(self) -> str:
        """What messages call it."""
        return type(self).__name__

    def require(self, direction: str) -> None:
        """Raises PpgenError where the direction, "push" or "pull", does not exist."""
        if direction not in self.directions:
            use = {"push": "sampling from a base", "pull": "the density of data"}
            there = self.directions[0]
            raise PpgenError(
                f"{self.title} has no {direction} (needed for {use[direction]}), only {there} ({use[there]}); "
                "use its .inv the other way round, or another family"
            )

    # -- torch's interface -----------------------------------------------------------------------

    def _check(self, value: Tensor, shape: torch.Size, context: Tensor | None) -> Tensor:
        n = len(shape)
        if value.shape[value.dim() - n :] != shape:
            raise PpgenError(
                f"{self.title} is of event shape {tuple(shape)} and got a value of shape "
                f"{tuple(value.shape)}; its last {n} dimension(s) must agree"
            )
        if context is None:
            if self.context:
                raise PpgenError(
                    f"{self.title} has {self.context} context features and no context was given; "
                    "call .condition(context) on it first"
                )
            return value
        if context.shape[-1] != self.context:
            raise PpgenError(
                f"{self.title} has {self.context} context features and got a context of shape "
                f"{tuple(context.shape)}; its last dimension must be {self.context}"
            )
        batch = np.broadcast_shapes(value.shape[: value.dim() - n], context.shape[:-1])
        return value.expand(batch + shape)

    def _push(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.checked_push(z)

    def _pull(self, x: Tensor) -> Pair:
        return self.checked_pull(x)

    def checked_push(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """`push` with its shapes checked, and z broadcast with the context."""
        self.require("push")
        return self.push(self._check(z, self.base_shape, context), context)

    def checked_pull(self, x: Tensor, context: Tensor | None = None) -> Pair:
        """`pull` with its shapes checked, and x broadcast with the context."""
        self.require("pull")
        return self.pull(self._check(x, self.shape, context), context)

    def _tensors(self) -> list[Tensor]:
        return [*self.parameters(), *self.buffers()]

    @property
    def _pulls(self) -> bool:
        return self.pulls

    def forward_shape(self, shape: Sequence[int]) -> torch.Size:
        return torch.Size((*shape[: len(shape) - len(self.base_shape)], *self.shape))

    def inverse_shape(self, shape: Sequence[int]) -> torch.Size:
        return torch.Size((*shape[: len(shape) - len(self.shape)], *self.base_shape))

    def __repr__(self) -> str:
        return nn.Module.__repr__(self)

    def extra_repr(self) -> str:
        return f"shape={tuple(self.shape)}" + (f", context={self.context}" if self.context else "")


class Inverse(FlowTransform):
    """The transform the other way round, as a module: unlike `.inv` it registers its parameters.

    >>> from ppgen.transforms import maf
    >>> x = Inverse(maf(3))(torch.zeros(5, 3))  # an inverse autoregressive transform: one pass to sample
    """

    def __init__(self, transform: FlowTransform):
        super().__init__(transform.base_shape, transform.context, transform.shape)
        self.transform = transform
        self.pulls = not transform.pulls
        swap = {"push": "pull", "pull": "push"}
        self.directions = tuple(swap[d] for d in transform.directions)

    def push(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return self.transform.pull(z, context)

    def pull(self, x: Tensor, context: Tensor | None = None) -> Pair:
        z, ladj = self.transform.push(x, context)
        return z, -self.transform.pull(z, context)[1] if ladj is None else ladj

    @property
    def domain(self) -> constraints.Constraint:  # type: ignore[override]
        return self.transform.codomain

    @property
    def codomain(self) -> constraints.Constraint:  # type: ignore[override]
        return self.transform.domain


class _Bound(_Paired):
    """A transform at a given context: what `Conditional.condition` returns."""

    bijective = True

    def __init__(self, transform: FlowTransform, context: Tensor):
        super().__init__()
        self.transform, self.context = transform, context
        self.domain, self.codomain = transform.domain, transform.codomain

    sign = 1

    def _push(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.transform.checked_push(z, self.context)

    def _pull(self, x: Tensor) -> Pair:
        return self.transform.checked_pull(x, self.context)

    def _tensors(self) -> list[Tensor]:
        return [*self.transform._tensors(), self.context]

    @property
    def _pulls(self) -> bool:
        return self.transform.pulls

    def forward_shape(self, shape: Sequence[int]) -> torch.Size:
        return self._batched(shape, self.transform.base_shape, self.transform.shape)

    def inverse_shape(self, shape: Sequence[int]) -> torch.Size:
        return self._batched(shape, self.transform.shape, self.transform.base_shape)

    def _batched(self, shape: Sequence[int], before: torch.Size, after: torch.Size) -> torch.Size:
        batch = np.broadcast_shapes(tuple(shape[: len(shape) - len(before)]), self.context.shape[:-1])
        return torch.Size((*batch, *after))


class Conditional(ConditionalTransformModule):
    """A transform that depends on a context, in Pyro's interface: `.condition(context)` gives the transform.

    >>> from pyro.distributions import ConditionalTransformedDistribution, Normal
    >>> from ppgen.transforms import maf
    >>> base = Normal(torch.zeros(3), 1.0).to_event(1)
    >>> p = ConditionalTransformedDistribution(base, [maf(3, context=2)])
    >>> p.condition(torch.zeros(7, 2)).log_prob(torch.zeros(7, 3)).shape
    torch.Size([7])
    """

    def __init__(self, transform: FlowTransform):
        super().__init__()
        self.transform = transform

    def condition(self, context: Tensor) -> Transform:
        """The transform at this context, (..., context features), whose batch broadcasts with the values'."""
        return _Bound(self.transform, context)


def gather(transform: FlowTransform) -> FlowTransform | Conditional:
    """The transform itself, or where it has a context its `Conditional`."""
    return Conditional(transform) if transform.context else transform
