r"""Discrete latents summed out exactly, and drawn from their conditional: a producer of terms.

    log Σ_d p(x, d, z)  by tensor contraction within the plates;      d ~ p(d | x, z)  by forward filtering, backward
                                                                       sampling

at the continuous latents z of one draw. What touches a summed-out site becomes one term a connected component, whose
dimensions are the plates that the component stands in: by row, where the latent is local to a row.

Source: Tensor Variable Elimination for Plated Factor Graphs (Obermeyer et al. 2019, arXiv:1902.03210).
Pyro's contraction is used, and its private `_compute_model_factors`, here only.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, TypeVar
from unittest import mock

import torch
from pyro import poutine
from pyro.distributions import Categorical
from pyro.distributions.util import scale_and_mask
from pyro.infer import config_enumerate, traceenum_elbo
from pyro.infer.traceenum_elbo import _compute_model_factors
from pyro.ops import special
from pyro.ops.contract import contract_tensor_tree, contract_to_tensor
from pyro.ops.packed import broadcast_all, gather, pack, unpack
from pyro.ops.rings import LogRing
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from ppgen.errors import PpgenError, reason
from ppgen.handlers import Unmask
from ppgen.sites import sample_sites
from ppgen.terms import Runnable, Term, Traces, full_plates, guide_run, holding, partly_masked, run, term, terms, total

T = TypeVar("T")
RANGE = 300.0  # nats, whose exponential is far from underflow in double precision


def summed_terms(
    program: Runnable,
    data: Mapping[str, Any],
    nesting: int,
    *,
    latents: Mapping[str, Tensor] | None = None,
    q: poutine.Trace | None = None,
    only: Mapping[str, Tensor] | None = None,
    power: float = 1.0,
) -> list[Term]:
    """The terms of one run with the discrete latents that the guide leaves out summed out.

    A term of the role "summed" is named by the observed sites in it.

    Args:
        nesting: how many batch dimensions the program's plates take.
        latents, q: as for `ppgen.terms.run`.
        only: values of the discrete latents, of which the sum is to have the term alone, in double precision.
        power: that what this sum is of is taken to.
    """
    t = _enumerated_run(program, data, nesting, latents=latents, q=q)
    with mock.patch.object(special, "_SafeLog", _Log):
        packed = _packed(t, program, nesting, only, power)
        factors, dims = _factors(packed)
        contracted = {f for fs in factors.values() for f in map(id, fs)}
        summed = contract_tensor_tree(factors, dims)
    guides = sample_sites(t.q, factors=True, deterministic=False)
    order = {n: i for i, n in enumerate(guides)}
    found: list[Term] = []
    observed: list[str] = []
    touched: dict[str, Any] = {}
    inside: frozenset[str] = frozenset()
    for name, site in sample_sites(t.p, factors=True, deterministic=False).items():
        if contracted & {id(packed.p.nodes[name]["packed"].get(k)) for k in ("unscaled_log_prob", "masked_log_prob")}:
            touched[name] = packed.p.nodes[name]
            inside |= full_plates(site)
            observed += [name] if site["is_observed"] else []
        else:
            found.append(term(site, order=order.get(name, -1)))
    plates = {symbol: name for name, symbol in packed.p.plate_to_symbol.items()}
    scale = _common_scale(program, touched)
    for each in (v for values in summed.values() for v in values):
        value, scaled = (each, each * scale) if isinstance(scale, float) else _scaled(each, scale)
        names = tuple(plates[d] for d in value._pyro_dims)
        found.append(Term("+".join(observed), "summed", value, scaled, value, names, frozenset(names) & inside))
    return found + [term(s, "guide", order[n]) for n, s in guides.items()]


def _enumerated_run(
    program: Runnable,
    data: Mapping[str, Any],
    nesting: int,
    *,
    latents: Mapping[str, Tensor] | None,
    q: poutine.Trace | None = None,
) -> Traces:
    """One run in which every discrete latent that is not drawn takes all of its values, in dimensions of its own."""
    # Within replay, so that values that are held are seen to depend on what is enumerated, as in Pyro's TraceEnum_ELBO.
    enumerate_all = poutine.enum(first_available_dim=-1 - nesting)
    model = enumerate_all(config_enumerate(Unmask()(lambda: program.call("model", data)), default="parallel"))
    if latents is None:
        q = guide_run(program, data) if q is None else q
        model = poutine.replay(model, trace=q)
    else:
        q = poutine.Trace()
        model = holding(latents)(model)
    with poutine.block():
        p = poutine.trace(model).get_trace()
    return partly_masked(Traces(prune_subsample_sites(p), prune_subsample_sites(q)))


def drawn_discrete(
    program: Runnable,
    data: Mapping[str, Any],
    nesting: int,
    latents: Mapping[str, Tensor],
    names: Collection[str],
) -> dict[str, Tensor]:
    """One draw of the summed-out sites from p(d | x, z) at the continuous latents z."""
    t = _enumerated_run(program, data, nesting, latents=latents)
    with mock.patch.object(special, "_SafeLog", _Log):
        packed = _packed(t, program, nesting)
        p = packed.p
        factors, dims = _factors(packed)
        drawn: dict[str, Tensor] = {}
        for name in sorted(names, key=list(p.nodes).index):  # each from its conditional given those before
            site = p.nodes[name]
            symbol, frames = site["infer"]["_enumerate_symbol"], [f for f in site["cond_indep_stack"] if f.vectorized]
            plates = frozenset(p.plate_to_symbol[f.name] for f in frames)
            ring = LogRing(dim_to_size={p.plate_to_symbol[f.name]: f.size for f in frames})  # a plate of one has no dim
            logits = contract_to_tensor(factors, dims, target_ordinal=plates, target_dims={symbol} & dims, ring=ring)
            index = Categorical(logits=_by_plates(logits, symbol, {f.dim: f.size for f in frames}, p)).sample()
            drawn[name] = _values(site["fn"])[index]
            at = pack(index, site["infer"]["_dim_to_symbol"])
            for own in factors.values():
                own[:] = [gather(f, at, symbol) if symbol in f._pyro_dims else f for f in own]
            dims = dims - {symbol}
    return drawn


def _factors(packed: Traces) -> tuple[Any, Any]:
    """What is multiplied in the sum, by plates, and the dimensions that are summed over. Scales are left out."""
    with mock.patch.object(traceenum_elbo, "_get_common_scale", lambda scales: 1.0):
        _, factors, _, dims, _ = _compute_model_factors(*packed)
    return factors, dims


def _common_scale(program: Runnable, sites: Mapping[str, Any]) -> Any:
    """That of all sites of a sum, s log Σ_d p(x, d): a number, or weights of the elements of plates by their names."""
    scales = {n: s["scale"] for n, s in sites.items()}
    if not any(isinstance(v, Tensor) for v in scales.values()) and len(set(scales.values())) < 2:
        return float(next(iter(scales.values()), 1.0))
    first, own = "", None
    for name, scale in scales.items():
        try:
            here = pack(torch.as_tensor(scale), sites[name]["infer"]["_dim_to_symbol"])
        except ValueError:  # weights along a dimension in which the site does not stand
            here = None
        first, own = (name, here) if own is None else (first, own)
        if here is None or own is None or not _is_same(own, here):
            raise PpgenError(
                f"{program.name} weighs the sites {first!r} and {name!r} by different scales, and what is summed over "
                "discrete latents takes one; put one poutine.scale around the latents and all that depends on them, or "
                "give the program a guide that draws them"
            )
    return own


def _is_same(one: Any, other: Any) -> bool:
    """Whether two tensors with named dimensions are equal; while they are recorded, whether they may be."""
    if one._pyro_dims != other._pyro_dims or one.shape != other.shape:
        return False
    try:
        return one is other or bool((one == other).all())
    except RuntimeError:  # has no value now; the check has seen one
        return True


def _scaled(value: Any, scale: Any) -> tuple[Any, Tensor]:
    """A term with the dimensions of both, and their product."""
    value, weights = broadcast_all(value, scale)
    return value, value * weights


def _by_plates(logits: Tensor, symbol: str, sizes: Mapping[int, int], p: poutine.Trace) -> Tensor:
    """Packed logits as (plates, values): a dimension of each plate in its place, and the latent's own last."""
    own = p.symbol_to_dim[symbol]
    last = unpack(logits, p.symbol_to_dim)
    last = last.reshape((1,) * (-own - last.dim()) + last.shape).movedim(own, -1)  # one value has no dimension either
    n = max((-d for d in sizes), default=0)
    lead = [sizes.get(d, 1) for d in range(-n, 0)]
    return last.reshape(last.shape[-n - 1 :]).expand(*lead, last.shape[-1])


def _values(fn: Any) -> Tensor:
    """All values of a discrete distribution, (values, event)."""
    values: Tensor = fn.enumerate_support(expand=False).reshape(-1, *fn.event_shape)
    return values


def require_summable(program: Runnable, data: Mapping[str, Any], nesting: int, names: Collection[str]) -> None:
    """The sum over the values of these latents with one term left in it is what the other sites have at that one.

    Raises:
        PpgenError: it is not: the program reads a place of a latent (`k[0]`, `k[group]`), which in the sum is a place
            among its values; or it cannot be run at all values at once.
    """
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            nodes = sample_sites(run(program, data, guide=False).p, deterministic=False)
            names = [n for n in names if n in nodes]  # a program may have fewer on few rows
            latents = {n: s["value"] for n, s in nodes.items() if not s["is_observed"] and n not in names}
            held = trials({n: nodes[n]["fn"] for n in names})
            plain = [_others(program, data, latents | only, names) for only in held]
        except (LinAlgError, ValueError):  # a draw from the prior at which the model cannot be run
            return
        for only, ((expected, size), ends) in zip(held, plain, strict=True):
            if not math.isfinite(size):
                continue
            power = min(RANGE / max(size, 1.0), 1.0)  # so that the one term is not lost beside a likelier value's
            summed = partial(summed_terms, program, data, nesting, latents=latents, only=only, power=power)
            try:
                found, its_ends = repeatable(summed)
            except (LookupError, RuntimeError, ValueError) as e:
                if isinstance(e, PpgenError | LinAlgError):
                    raise
                raise _not_summable(
                    program, names, f"it cannot be run at all of its values at once ({reason(e)})"
                ) from e
            one = sum(float(f.log_prob.sum()) / (power if f.role == "summed" else 1.0) for f in found)
            off, most = abs(one - expected), 1e-3 + 3e-6 * size
            if not off <= most:
                again = _others(program, data, latents | only, names)[0][0]
                if not (torch.equal(ends, its_ends) and abs(again - expected) <= most):
                    return  # what dropout draws, say, is of another shape, or no two runs have the same terms
                raise _not_summable(program, names, f"its term is off by {off:.2g} nats")


def repeatable(call: Callable[[], T]) -> tuple[T, Tensor]:
    """What a call gives at the random numbers that come next, which are left to the next call as well, and the state
    of the generator at its end."""
    with torch.random.fork_rng(devices=[]):
        return call(), torch.get_rng_state()


def _others(
    program: Runnable, data: Mapping[str, Any], latents: Mapping[str, Tensor], names: Collection[str]
) -> tuple[tuple[float, float], Tensor]:
    """The log joint at these latents without the named ones' own terms, and the sum of what it is made of without
    signs; and the generator's state after it."""
    t, ends = repeatable(lambda: run(program, data, latents=latents))
    found = [each for each in terms(t) if each.site not in names]
    return (float(total(found)), float(sum(each.log_prob.abs().sum() for each in found))), ends


def trials(fns: Mapping[str, Any]) -> list[dict[str, Tensor]]:
    """Three values of discrete latents, at which reading by place is told: no function of all values is right at each.

    The entries of a plate differ, as far as there are values; or each has the first value, whose largest is not that of
    all; or the last, and what is read at the first place is another.
    """
    return [{n: of(fn) for n, fn in fns.items()} for of in (_spread, _first, _last)]


def _spread(fn: Any) -> Tensor:
    values, n = _values(fn), fn.batch_shape.numel()
    order = torch.arange(n, device=values.device) * len(values) // max(n, len(values))  # 0 0 1 1: not as when turned
    return values[order].reshape(fn.shape())


def _first(fn: Any) -> Tensor:
    return _values(fn)[0].expand(fn.shape())


def _last(fn: Any) -> Tensor:
    return _values(fn)[-1].expand(fn.shape())


def where_it_is(site: Mapping[str, Any], value: Tensor) -> Tensor:
    """Where a site that takes all of its values has this one."""
    same: Tensor = site["value"] == value
    return same.flatten(-event).all(-1) if (event := site["fn"].event_dim) else same


def _not_summable(program: Runnable, names: Collection[str], why: str) -> PpgenError:
    return PpgenError(
        f"{program.name} cannot sum {', '.join(map(repr, names))} out: {why}; a latent that is summed out has its "
        "values in a dimension of its own, and no places to be read (k[0], k[group]): read it whole within its plates, "
        "or draw its entries at sites of their own (k = [pyro.sample(f'k_{j}', ...) for j in range(n)])"
    )


def _packed(
    t: Traces, program: Runnable, nesting: int, only: Mapping[str, Tensor] | None = None, power: float = 1.0
) -> Traces:
    """A copy whose log-probabilities have dimensions by name, as Pyro's contraction takes them."""
    t = Traces(t.p.copy(), t.q.copy())
    for trace in t:
        trace.compute_log_prob()
        for site in sample_sites(trace, factors=True).values():
            _sum_batch(site, nesting)
    if only is not None:
        _leave(t.p, only, power)
    try:
        t.p.pack_tensors()
        t.q.pack_tensors(t.p.plate_to_symbol)
    except ValueError as e:
        named = re.search(r"at site '(.*?)'", str(e))
        raise PpgenError(
            f"{program.name} cannot sum its discrete latents out: the site {named[1] if named else '?'!r} has a "
            "dimension that stands in no plate once a latent has one of its own; draw it within a pyro.plate, and let "
            "the latent broadcast from the left, as in x < tau and not x < tau[..., None]"
        ) from e
    _in_one_dtype(t)
    return t


def _sum_batch(site: dict[str, Any], nesting: int) -> None:
    """Sums a site's log-probabilities over its batch dimensions that stand in no plate."""
    value, plates = site["log_prob"], {f.dim for f in site["cond_indep_stack"] if f.vectorized}
    dims = [d for d in range(-min(nesting, value.dim()), 0) if d not in plates and value.shape[d] > 1]
    if dims and site["infer"].get("_enumerate_dim") is None:
        masked = scale_and_mask(site["unscaled_log_prob"], 1.0, site["mask"])
        site |= {"log_prob": value.sum(dims, True), "unscaled_log_prob": masked.sum(dims, True), "mask": None}


def _leave(p: poutine.Trace, only: Mapping[str, Tensor], power: float) -> None:
    """Makes the density of some sites one at a value each, and zero at all others; those of all other sites are taken
    to a power."""
    for name, site in sample_sites(p, factors=True).items():
        here = where_it_is(site, only[name]) if name in only else None
        for k in ("log_prob", "unscaled_log_prob"):
            found = site[k].double()
            site[k] = power * found if here is None else torch.where(here, torch.zeros_like(found), -torch.inf)


def _in_one_dtype(t: Traces) -> None:
    """Packed log-probabilities in the widest dtype among them: a model may close over tensors of another dtype."""
    packed = [s["packed"] for trace in t for s in trace.nodes.values() if "packed" in s]
    found = [(of, k, v) for of in packed for k, v in of.items() if k.endswith("log_prob") and isinstance(v, Tensor)]
    widest = max((v.dtype for *_, v in found), key=lambda dtype: dtype.itemsize, default=None)
    for of, k, v in found:
        if v.dtype != widest:
            wide: Any = v.to(widest)
            wide._pyro_dims = v._pyro_dims  # type: ignore[attr-defined]
            of[k] = wide


class _Log:
    """Pyro's logarithm with a finite slope at 0, written so that `torch.func` can go through it."""

    @staticmethod
    def apply(x: Tensor) -> Tensor:
        return x.clamp_min(torch.finfo(x.dtype).tiny).log()
