"""The effect handlers that ppgen adds to Pyro's."""

from __future__ import annotations

import copy
import logging
import math
import sys
import weakref
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import CodeType, FrameType
from typing import Any
from unittest import mock

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.nn.module import PyroModule, _Context
from pyro.poutine.condition_messenger import ConditionMessenger
from pyro.poutine.messenger import Messenger, _bound_partial
from pyro.poutine.runtime import _PYRO_STACK
from pyro.poutine.subsample_messenger import SubsampleMessenger
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

from ppgen.distributions import Flat
from ppgen.errors import PpgenError, reason
from ppgen.sites import innermost, is_deterministic, is_factor

log = logging.getLogger("ppgen")

LARGE = 2.0**62
CIRCLE = constraints.interval(-math.pi, math.pi)
ON_CIRCLE = {  # with the name that they had
    kind: type(kind.__name__, (kind,), {"support": support})
    for kind, support in (
        (dist.VonMises, CIRCLE),
        (dist.SineBivariateVonMises, constraints.independent(CIRCLE, 1)),
        (dist.SineSkewed, constraints.independent(CIRCLE, 1)),
    )
}
_MODULE_FRAME = pyro.module.__code__
_PYRO_MODULE_FRAME = PyroModule.__getattr__.__code__

if not hasattr(_Context, "param_state"):
    # A PyroModule made before `module_local_params` was switched on has no such state, and fails at its first
    # call within `Program.running`. It stays empty: local parameters live in their module.
    _Context.param_state = {"params": {}, "constraints": {}}


def open_handlers() -> list[Any]:
    """Pyro's stack of handlers, the outermost first."""
    return _PYRO_STACK


class Holder(Messenger):
    """A handler that holds values for sites of some names, or changes the names: what a site's value will be is known
    by asking these (`ppgen.nested`)."""


class LatentSupports(Messenger):
    """Latents of Pyro's `ImproperUniform`, which has no draws, as `Flat`, which has places where a fit can begin; and
    angles with the support [-π, π], not the real line, over which their density repeats and has no integral."""

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["is_observed"]:
            return
        kind = type(innermost(msg["fn"]))
        if issubclass(kind, dist.ImproperUniform):
            msg["fn"] = _with_starts(msg["fn"])
        elif kind in ON_CIRCLE:
            msg["fn"] = _on_circle(msg["fn"])


class PointMasses(Messenger):
    """Sites of a model that are a `Delta` at a value of its own, as `pyro.infer.reparam` makes them as well, are what
    they are given: recorded as `pyro.deterministic` does, not inferred and not observed. Those whose density is drawn
    are the values of chains (`ppgen.nested`), which are.

    Args:
        program: remembers by name, from its first run, which is not traced, whose point has a density of its own: that
            is a factor.
    """

    def __init__(self, program: nn.Module):
        super().__init__()
        self.dense: dict[str, bool] = program.__dict__.setdefault("dense_points", {})

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        fn, name, point = msg["fn"], msg["name"], innermost(msg["fn"])
        if not isinstance(point, dist.Delta) or is_deterministic(msg) or msg["infer"].get("drawn"):
            return
        if msg["is_observed"] and msg["value"] is not point.v:
            return
        if point.log_density.shape != point.batch_shape:
            raise PpgenError(
                f"the Delta at {name!r} has log densities of shape {tuple(point.log_density.shape)} beside values of "
                f"shape {tuple(point.batch_shape)}, so that some would count twice; sum them (of a NeuTraReparam: give "
                "it an AutoMultivariateNormal or an AutoIAFNormal)"
            )
        masked = isinstance(fn, dist.MaskedDistribution) and fn._mask is False
        if name not in self.dense:
            self.dense[name] = not masked and (point.log_density.requires_grad or bool(point.log_density.any()))
        msg["value"] = fn() if msg["value"] is None else msg["value"]
        msg["fn"], msg["is_observed"] = fn if masked else fn.mask(False), True
        msg["infer"] = {**msg["infer"], "_deterministic": True}
        if self.dense[name]:
            pyro.factor(f"{name}_log_density", point.log_density)


def _with_starts(fn: Any) -> Any:
    """A flat prior whose draws are feasible points, with the mask that it had."""
    if isinstance(fn, dist.MaskedDistribution):
        return _with_starts(fn.base_dist).mask(fn._mask)
    return Flat(fn.support, fn.event_shape).expand(fn.batch_shape)


def _on_circle(fn: Any) -> Any:
    """A distribution of angles with their own support. A user's guide may still draw beyond it: the density repeats."""
    if isinstance(fn, dist.MaskedDistribution):
        return _on_circle(fn.base_dist).mask(fn._mask)
    if isinstance(fn, dist.Independent):
        return _on_circle(fn.base_dist).to_event(fn.reinterpreted_batch_ndims)
    if type(fn) not in ON_CIRCLE:
        return fn
    new = copy.copy(fn)
    new.__class__, new._validate_args = ON_CIRCLE[type(fn)], False
    return new


class ParamSites(LatentSupports):
    """Serves `pyro.param` statements from the program's own parameters.

    Pyro's global store is neither read nor written. The value of a plain `pyro.param(name, init,
    constraint)` is kept unconstrained in the program, registered at its first run (`Program.setup`).
    `pyro.module` statements give the module's own parameters, and register the module.

    Args:
        given: what the program is called with, of which the longest tensors are columns of the rows.
    """

    def __init__(self, program: nn.Module, given: Collection[Any] = ()):
        super().__init__()
        self.program = program
        columns = [v for v in given if isinstance(v, Tensor) and v.dim()]
        longest = max(map(len, columns), default=0)
        self.columns = [v for v in columns if len(v) == longest]
        self.partly: set[str] = set()  # sites with an obs_mask
        self.own: set[int] = set()  # the program's modules, by address
        # as it is outside of PyroModules, each of which puts a store of its own in its place for the while of its run
        self.store = pyro.get_param_store().get_state()

    def _pyro_param(self, msg: dict[str, Any]) -> None:
        if "served" in msg:  # by a program within this one
            return
        msg["served"] = True
        name, args = msg["name"], msg["args"]
        known = self.program.__dict__.get("constraints_of_params", {})
        if msg["fn"] != pyro.get_param_store().get_param:  # a PyroModule's own parameter: it has its value
            self._own_module(name.rpartition(".")[0], _PYRO_MODULE_FRAME, "self")
            return
        if "$$$" in name:  # from pyro.module: the parameter itself
            self._own_module(name.split("$$$")[0], _MODULE_FRAME, "nn_module")
            msg["value"] = args[1]
            return
        constraint = msg["kwargs"].get("constraint", constraints.real)
        if len(args) < 2:  # no initial value: as it was made elsewhere
            constraint = known.get(name, constraint)
        key = _key(name)
        if key not in self.program._parameters:
            self._register(name, key, args, constraint)
        unconstrained = self.program._parameters[key]
        value = transform_to(constraint)(unconstrained)
        value.unconstrained = weakref.ref(unconstrained)
        msg["value"] = value

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        """Booleans are observed as numbers, with which log-probabilities calculate, and numbers as tensors; the whole
        numbers 0 and 1 of a file as floats where a Bernoulli observes them, whose log_prob takes no others.

        The latents of `obs_mask` have their density in every row. Pyro masks it where the value was observed, which
        leaves them flat there: an ELBO then grows without limit, and chains walk away. They are used nowhere else, so
        that with it they integrate to one. Where a guide draws them one by one, both densities are masked
        (`ppgen.terms.run`).
        """
        super()._pyro_sample(msg)
        if msg["is_observed"] and not is_factor(msg) and not is_deterministic(msg):
            msg["fixed"] = self._is_fixed(msg)
        if msg["is_observed"] and isinstance(msg["value"], bool | int | float):
            msg["value"] = torch.as_tensor(msg["value"])
        value = msg["value"]
        if msg["is_observed"] and isinstance(value, torch.Tensor) and _wants_numbers(msg["fn"], value.dtype):
            msg["given"], msg["value"] = value, value.to(torch.get_default_dtype())
        if msg["is_observed"] and msg["name"].endswith("_observed"):
            self.partly.add(msg["name"].removesuffix("_observed"))
        elif not msg["is_observed"] and msg["name"] in {f"{name}_unobserved" for name in self.partly}:
            msg["partly"], msg["mask"] = msg["mask"], None

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if "given" in msg:  # the program gets what it gave
            msg["value"] = msg["given"]

    def _is_fixed(self, msg: dict[str, Any]) -> bool:
        """Whether a site is no data, but a latent that `poutine.condition` gives a value: it was conditioned, not to a
        column of the rows, and other sites are observed by `obs=` or so, or, where all are conditioned, within a plate.
        Known after the first run; the mark `rank` of all sites of a run tells as well (`ppgen.structure`)."""
        inner = open_handlers()[open_handlers().index(self) + 1 :]
        conditioned = any(isinstance(m, ConditionMessenger) and msg["name"] in m.data for m in inner)
        conditioned = conditioned and not any(_is_view(msg["value"], column) for column in self.columns)
        if conditioned:
            _held_fits(msg)
        msg["rank"] = conditioned * (1 if msg["cond_indep_stack"] else 2)
        least = self.program.__dict__["data_rank"] = min(msg["rank"], self.program.__dict__.get("data_rank", 2))
        return bool(msg["rank"] > least)

    def _register(self, name: str, key: str, args: tuple, constraint: Any) -> None:
        if not (getattr(self.program, "_collecting", False) or getattr(self.program, "_growing", False)):
            raise PpgenError(
                f"pyro.param {name!r} is new to this run: no step of the fit reached the statement; write it so that "
                "every run reaches it, or fit for longer"
            )
        args, constraint = _of_the_store(self.program, self.store, name, args, constraint)
        if len(args) < 2 or args[1] is None:
            raise PpgenError(
                f"pyro.param {name!r} has no initial value; give it one, as in pyro.param({name!r}, torch.zeros(()))"
            )
        init = args[1]() if callable(args[1]) else args[1]
        if isinstance(init, nn.Parameter) and constraint is constraints.real:  # the program may use it directly
            self.program.register_parameter(key, init)
        else:
            with torch.no_grad():
                unconstrained = transform_to(constraint).inv(torch.as_tensor(init).detach()).clone()
            self.program.register_parameter(key, nn.Parameter(unconstrained))
        self.program.__dict__.setdefault("constraints_of_params", {})[name] = constraint

    def _own_module(self, name: str, code: CodeType, variable: str) -> None:
        """Registers a module that the program uses and does not own (a closure's), at the first run."""
        if not getattr(self.program, "_collecting", False):
            return
        # Pyro's messages name the parameters one by one; the module itself stands in its frame only.
        frame: FrameType | None = sys._getframe()
        while frame is not None and frame.f_code is not code:
            frame = frame.f_back
        module = frame.f_locals[variable] if frame is not None else None
        if module is None or id(module) in self.own:
            return
        self.own |= {id(m) for m in self.program.modules()}
        owned = {id(p) for p in self.program.parameters()}
        if id(module) in self.own or all(id(p) in owned for p in module.parameters()):
            return
        self.program.add_module(name.replace(".", "_") or type(module).__name__.lower(), module)


def _wants_numbers(fn: Any, dtype: torch.dtype) -> bool:
    """Whether a log-probability cannot calculate with values of a type: booleans, and whole numbers of a Bernoulli."""
    binary = isinstance(innermost(fn), torch.distributions.Bernoulli)
    return dtype == torch.bool or binary and not dtype.is_floating_point


def _of_the_store(
    program: nn.Module, outside: Mapping[str, Any], name: str, args: tuple, constraint: Any
) -> tuple[tuple, Any]:
    """Initial value and constraint of a parameter: of a plain pair what Pyro's store holds of that name, if it does."""
    found = [s for s in (pyro.get_param_store().get_state(), outside) if name in s["params"]]
    if not getattr(program, "pair", None) or not found:
        return args, constraint
    log.info("pyro.param %r begins at its value in Pyro's store; pyro.clear_param_store() forgets that", name)
    theirs = found[0]["constraints"].get(name, constraint)
    return (name, transform_to(theirs)(found[0]["params"][name]).detach()), theirs


def _held_fits(msg: Mapping[str, Any]) -> None:
    """Refuses a site that is conditioned on another number of values than its plate has, as of fewer rows."""
    value, within = msg["value"], len(msg["fn"].event_shape)
    for f in msg["cond_indep_stack"]:
        if not f.vectorized or not isinstance(value, Tensor) or value.dim() < within - f.dim:
            continue
        n = value.shape[f.dim - within]
        if n not in (1, f.size):
            raise PpgenError(
                f"{msg['name']!r} is conditioned on {n} values, and the plate {f.name!r} around it has {f.size} here; "
                "condition it on one value for all of them (of size 1 there), or within the model on what it computes "
                "from the rows that it is given"
            )


class Unmask(Messenger):
    """The mask of a distribution (`d.mask(m)`) as the mask of its site: the same density."""

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        while isinstance(msg["fn"], dist.MaskedDistribution):
            mask, msg["fn"] = msg["fn"]._mask, msg["fn"].base_dist
            msg["mask"] = mask if msg["mask"] is None else msg["mask"] & mask


class Unrolled(Messenger):
    """Sites within a sequential plate without that plate: what Pyro's autoguides, which refuse such plates, are shown
    of a model."""

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        loops = [f for f in msg["cond_indep_stack"] if not f.vectorized]
        msg["cond_indep_stack"] = tuple(f for f in msg["cond_indep_stack"] if f.vectorized)
        for f in loops:
            if not msg["is_observed"] and f.full_size not in (None, f.size):
                raise PpgenError(
                    f"the latent {msg['name']!r} is one of {f.full_size} in the sequential plate {f.name!r}, of which "
                    f"a run shows {f.size}, and an autoguide has no place for the others; write a guide, or leave out "
                    "the plate's subsample_size"
                )


_OUTER: list[bool] = []  # Pyro's validation setting around the outermost `without_validation`


@contextmanager
def without_validation() -> Iterator[None]:
    """Pyro's own validation off: ppgen's checks say it in a sentence."""
    _OUTER.append(dist.is_validation_enabled())
    try:
        with pyro.validation_enabled(False):
            yield
    finally:
        _OUTER.pop()


def user_validates() -> bool:
    """Pyro's validation setting, as it is outside of ppgen."""
    return _OUTER[0] if _OUTER else dist.is_validation_enabled()


def whole_plates() -> AbstractContextManager[Any]:
    """Within it, plates that subsample by themselves hold all that they stand for; a subsample that is passed stays."""
    own = SubsampleMessenger._subsample

    def whole(name: str, size: Any = None, subsample_size: Any = None, subsample: Any = None, *rest: Any) -> Any:
        return own(name, size, None if subsample is None else subsample_size, subsample, *rest)

    return mock.patch.object(SubsampleMessenger, "_subsample", staticmethod(whole))


def free_name(module: nn.Module, name: str) -> str:
    """The name, or the name with as many underscores as it takes, that no attribute of the module has."""
    while hasattr(module, name):
        name += "_"
    return name


def within(fn: Any) -> Any:
    """The function inside of Pyro's handlers, as `poutine.scale(scale=0.1)(model)` hides it."""
    while type(fn) is _bound_partial:
        fn = fn.args[1]  # not fn.func.args: a copy of such a function has no inner partial
    return fn


def _key(name: str) -> str:
    return "param:" + name.replace(".", "/")  # a torch parameter's name takes no dot


class Unobserve(Messenger):
    """Samples the observed sites afresh, the data columns still telling the plates their sizes.

    `pyro.factor` and `pyro.deterministic` sites stay as they are, and so do latents that `poutine.condition` holds
    (`ParamSites`). The others are marked infer["was_observed"], keep what was given as "observed", and are sampled at
    the tempo of the likelihood, not of the data. A Poisson count of a rate above 2^62, which torch cannot draw, is its
    rate: they differ by 5e-10 of it.

    Args:
        only: the names of the sites that are meant; None for all.
        keep: names of sites that stay observed.
        undrawn: takes the names of those whose distribution has no draws, which stay observed. None: they are refused.

    Raises:
        PpgenError: a site whose distribution has no draws.
    """

    def __init__(
        self, only: Collection[str] | None = None, undrawn: set[str] | None = None, keep: Collection[str] = ()
    ):
        super().__init__()
        self.only, self.undrawn, self.keep = only, undrawn, keep

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        meant = (self.only is None or msg["name"] in self.only) and msg["name"] not in self.keep
        fn, value = msg["fn"], msg["value"]
        if meant and msg["is_observed"] and "fixed" in msg and not msg["fixed"]:
            if value.dim() - fn.event_dim > len(fn.batch_shape):  # no plate, or one without a size: as many as observed
                batch = value.shape[: value.dim() - fn.event_dim]
                fn = fn.expand(np.broadcast_shapes(batch, fn.batch_shape))
            try:
                drawn = _drawn(fn, msg)
            except (NotImplementedError, AssertionError) as e:  # the latter of a chain without a duration
                self._has_no_draws(msg["name"], fn, e)
                return
            msg["observed"] = msg.get("given", value)
            msg["fn"], msg["is_observed"], msg["value"], msg["done"] = fn, False, drawn, True
            msg["infer"]["was_observed"] = True
        elif not msg["done"] and value is None and isinstance(innermost(fn), torch.distributions.Poisson):
            msg["value"], msg["done"] = _drawn(fn, msg), True

    def _has_no_draws(self, name: str, fn: Any, e: Exception) -> None:
        kind = type(innermost(fn)).__name__
        if self.undrawn is None:
            raise PpgenError(
                f"nothing can be drawn at the observed site {name!r}: {kind} has no draws ({reason(e)}); give it a "
                "sample method, or, where it is a chain, its duration"
            ) from e
        if name not in self.undrawn:
            log.warning("there are no predictions of %r: %s has no draws (%s)", name, kind, reason(e))
            self.undrawn.add(name)


def _drawn(fn: Any, msg: dict[str, Any]) -> Tensor:
    """A draw, as Pyro makes it."""
    drawn: Tensor = fn(*msg["args"], **msg["kwargs"])
    inner = innermost(fn)
    if not isinstance(inner, torch.distributions.Poisson):
        return drawn
    rate = inner.rate.expand(drawn.shape)
    return torch.where(rate > LARGE, rate, drawn)


class NewGroup(Exception):
    """A plate of latents is larger than it was at the fit."""


class HoldGroups(Holder):
    """Latent sites of these names take these values; the new groups of a plate that has grown draw theirs.

    Within a plate the values of a latent are independent given what stands outside of it, so that those of a new group
    come from the site's own distribution there, at the held values of everything else.

    Args:
        values: by site.
        sizes: of the plates that are to be larger than the program makes them, by name.
        fixed: names of the plates that are no groups: those of the rows.
        grow: whether a plate may be larger than its values.

    Attributes:
        groups: after a run, the number of values that each plate has, by name.
    """

    def __init__(
        self, values: Mapping[str, Tensor], sizes: Mapping[str, int], fixed: Collection[str], *, grow: bool = False
    ):
        super().__init__()
        self.values, self.sizes, self.fixed, self.grow = values, sizes, fixed, grow
        self.groups: dict[str, int] = {}

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        name, fn = msg["name"], msg["fn"]
        if type(fn).__name__ == "_Subsample":
            if msg["value"] is None and self.sizes.get(name, 0) > fn.size:
                msg["value"], msg["done"] = torch.arange(self.sizes[name]), True
        elif name in self.values and not msg["is_observed"]:
            msg["value"], msg["done"] = self._grown(msg, self.values[name]), True

    def _grown(self, msg: dict[str, Any], value: Tensor) -> Tensor:
        """The held value, and draws for the groups beyond it."""
        plates = [f for f in msg["cond_indep_stack"] if f.vectorized and f.name not in self.fixed]
        places = {f.dim - msg["fn"].event_dim: f for f in plates if f.dim - msg["fn"].event_dim >= -value.dim()}
        self.groups |= {f.name: value.shape[dim] for dim, f in places.items()}
        larger = {dim: f for dim, f in places.items() if f.size > value.shape[dim]}
        if not larger:
            return _of_shape(msg, value)
        if not self.grow:
            raise NewGroup(next(iter(larger.values())).name)
        drawn = msg["fn"].sample()
        for dim, f in larger.items():
            old, size = value.shape[dim], f.size
            new = drawn.narrow(dim, old, size - old)
            for other in larger:
                new = new.narrow(other, 0, value.shape[other]) if other != dim else new
            value = torch.cat([value, new.expand(*_with(value.shape, dim, size - old))], dim)
        return value


def _of_shape(msg: Mapping[str, Any], value: Tensor) -> Tensor:
    """Refuses a value that is shorter than the site, as of a vector of all times where there are more of them now."""
    shape, event = tuple(msg["fn"].shape()), msg["fn"].event_dim
    pairs = list(zip(reversed(value.shape), reversed(shape), strict=False))
    if any(have < need and (have > 1 or i < event) for i, (have, need) in enumerate(pairs)):
        raise PpgenError(
            f"the latent {msg['name']!r} has the shape {tuple(value.shape)} in the posterior and {shape} here, and "
            "stands in no plate, so that its further values are not known; write it in a loop (for t in range(n)) to "
            "go on from the fitted ones, within a plate for new rows, or leave its shape as it was fitted"
        )
    return value


def _with(shape: torch.Size, dim: int, size: int) -> list[int]:
    sizes = list(shape)
    sizes[dim] = size
    return sizes


def _is_view(value: Any, column: Tensor) -> bool:
    """Whether a value is a column or a part of it, told without its content, which it may not have."""
    if value is column:
        return True
    return isinstance(value, Tensor) and value._base is not None and value._base is column._base
