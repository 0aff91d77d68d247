r"""What one run of a program pair gives: labelled terms of the log joint and of the guide's log-density.

    log p(x, z) − log q(z | x) = Σ prior + Σ likelihood + Σ factor − Σ guide

A program is only ever run for one draw, and a term has the shape that the program gave it: the dimensions of its
log-probability are named by the plates that they run over. Bounds, importance weights, pointwise log-likelihoods are
formulas on terms; several draws are several runs, stacked in a leading dimension (`ppgen.draws`).
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import kl_divergence

from ppgen.sites import is_delta, is_deterministic, is_factor, sample_sites


class Runnable(Protocol):
    """What can be run: a `ppgen.Program`."""

    @property
    def name(self) -> str: ...

    @property
    def fixed_rows(self) -> bool: ...

    def call(self, part: str, data: Mapping[str, Any]) -> Any: ...

    def in_brief(self) -> AbstractContextManager[None]: ...


class Term(NamedTuple):
    """One site of a run. Of S runs, value and log-probabilities have a leading dimension of S.

    Attributes:
        site: its name.
        role: prior, likelihood, factor (of the model), guide, kl (−KL of guide and prior: both in one), summed (the
            model's sites that touch a discrete latent that is summed out).
        value: the site's; of a factor empty.
        log_prob: nats, masked and scaled by the program's own handlers; with the dimensions `dims`. Of "kl", −KL.
        log_density: the site's own log-density, masked and not scaled; of "kl", log q(z_i | ·).
        dims: names of log_prob's dimensions: plates, or the site's name and a number where no plate stands for one.
        rows: the plates among them that hold all rows that were passed: those that a minibatch's N/B weighs.
        order: the place of a latent among those that the guide draws, -1 for other sites.
        pathwise: whether gradients go through the value.
        target: what is trained on in place of log_prob, where that is another thing (a reweighted bound).
        scale: what `poutine.scale` multiplies log_density by.
        counts: of "kl", what scale and mask multiply each entry by, where that is not 1.
    """

    site: str
    role: str
    value: Tensor
    log_prob: Tensor
    log_density: Tensor
    dims: tuple[str, ...]
    rows: frozenset[str]
    order: int = -1
    pathwise: bool = True
    target: Tensor | None = None
    scale: float | Tensor = 1.0
    counts: Tensor | None = None

    @property
    def sign(self) -> float:
        """Of its part in log p(x, z) − log q(z | x)."""
        return -1.0 if self.role == "guide" else 1.0

    @property
    def latent(self) -> bool:
        """Whether a KL weight applies to it."""
        return self.role in ("prior", "guide", "kl")

    def weight(self, row_plates: frozenset[str], n_over_b: float) -> float:
        """N/B where the term is a sum over rows, 1 where it is not."""
        return n_over_b if self.rows & row_plates else 1.0


class Traces(NamedTuple):
    """One run of both parts: p the model's trace, at the guide's latents; q the guide's."""

    p: poutine.Trace
    q: poutine.Trace


def run(
    program: Runnable,
    data: Mapping[str, Any],
    *,
    guide: bool = True,
    latents: Mapping[str, Tensor] | None = None,
    q: poutine.Trace | None = None,
) -> Traces:
    """Runs the guide, then the model at its latents, once.

    Args:
        guide: whether there is one; without it the model draws its own latents, and q is empty.
        latents: values at which the model is run in place of the guide's; q is then empty.
        q: a run of the guide, where it was run already.
    """
    if latents is not None or not guide:
        with holding(latents or {}):
            p = model_run(program, data)
        return Traces(prune_subsample_sites(p), poutine.Trace())
    q = guide_run(program, data) if q is None else q
    p = poutine.trace(poutine.replay(lambda: program.call("model", data), trace=q)).get_trace()
    return partly_masked(Traces(prune_subsample_sites(p), prune_subsample_sites(q)))


def partly_masked(t: Traces) -> Traces:
    """The latents of `obs_mask` that the guide draws one by one are masked in both parts, where a value was observed.

    There they are used nowhere, and a guide's draws of them would only pull at the others'.
    """
    for name, site in t.p.nodes.items():
        if "partly" in site and name in t.q.nodes:
            own = [t.q.nodes[name]] + [t.q.nodes[k] for k in (f"{name}_unconstrained",) if k in t.q.nodes]
            if not is_delta(own[0]) or len(own) > 1:
                for s in (site, *own):
                    s["mask"] = site["partly"]
    return t


def guide_run(program: Runnable, data: Mapping[str, Any]) -> poutine.Trace:
    """One run of the guide, its subsamples included."""
    return poutine.trace(lambda: program.call("guide", data)).get_trace()


def model_run(program: Runnable, data: Mapping[str, Any]) -> poutine.Trace:
    """One run of the model by itself, its subsamples included."""
    return poutine.trace(lambda: program.call("model", data)).get_trace()


def latents_of(q: poutine.Trace) -> dict[str, Tensor]:
    """What a run of the guide drew."""
    return {n: s["value"] for n, s in sample_sites(q).items() if not s["is_observed"]}


def holding(latents: Mapping[str, Tensor]) -> Any:
    """Within it, latent sites of these names take these values, and stay latent."""
    q = poutine.Trace()
    for name, value in latents.items():
        q.add_node(name, type="sample", name=name, is_observed=False, value=value, infer={}, fn=Delta(value))
    return poutine.replay(trace=q)


def terms(t: Traces, *, closed_form: bool = False, alike: frozenset[str] = frozenset()) -> list[Term]:
    """The terms of a run: the model's in order, then the guide's.

    Args:
        closed_form: whether KL(q(z_i | ·), p(z_i | ·)) takes the place of both terms wherever it is known.
        alike: latents that are known to have one scale and mask in model and guide (`Structure.alike`).
    """
    model, guide = (sample_sites(trace, factors=True, deterministic=False) for trace in t)
    kl = {n: k for n in guide if closed_form and (k := _kl(n, model, guide, n in alike)) is not None}
    order = {n: i for i, n in enumerate(guide)}
    found = [_kl_term(s, guide[n], kl[n], order[n]) if n in kl else term(s, order=order.get(n, -1))
             for n, s in model.items()]  # fmt: skip
    return found + [term(s, "guide", order[n]) for n, s in guide.items() if n not in kl]


def term(site: Mapping[str, Any], role: str = "", order: int = -1) -> Term:
    """The term of one site of a trace; its role is that of a site of the model where none is given."""
    density = site["fn"].log_prob(site["value"])
    if site["mask"] is not None:
        density = scale_and_mask(density, 1.0, site["mask"])
    log_prob = density if type(site["scale"]) is float and site["scale"] == 1.0 else density * site["scale"]
    found = _labelled(site, role or site["infer"].get("role") or _role(site), log_prob, density, order, _has_path(site))
    target = site["infer"].get("target")  # of a chain within a program: what it is trained on, reweighted
    return found if target is None else found._replace(target=scale_and_mask(target, site["scale"], site["mask"]))


def _has_path(site: Mapping[str, Any]) -> bool:
    """Whether gradients go through the value: the draw is reparametrized, and no handler has cut its path; or it is no
    draw, but was observed."""
    if site["is_observed"] and not is_factor(site):
        return True
    return bool(getattr(site["fn"], "has_rsample", False)) and not site["infer"].get("detached")


def _role(site: Mapping[str, Any]) -> str:
    if is_factor(site):
        return "factor"
    return "likelihood" if site["is_observed"] else "prior"


def _labelled(
    site: Mapping[str, Any], role: str, log_prob: Tensor, density: Tensor, order: int, pathwise: bool
) -> Term:
    if log_prob.shape != density.shape:
        log_prob, density = torch.broadcast_tensors(log_prob, density)
    dims = _named(site, range(-log_prob.dim(), 0))
    rows, scale = full_plates(site), site["scale"]
    return Term(site["name"], role, site["value"], log_prob, density, dims, rows, order, pathwise, scale=scale)


def _named(site: Mapping[str, Any], dims: Sequence[int]) -> tuple[str, ...]:
    plates = {f.dim: f.name for f in site["cond_indep_stack"] if f.vectorized}
    number = itertools.count()
    return tuple(plates[d] if d in plates else f"{site['name']}_dim_{next(number)}" for d in dims)


def laid_out(site: Mapping[str, Any], value: Tensor, event_dim: int) -> tuple[Tensor, tuple[str, ...]]:
    """A tensor with a site's batch dimensions and `event_dim` more, and the names of the former.

    Dimensions of 1 that only keep plates in their places (within a plate that is further left) are left out.
    """
    n = value.dim() - event_dim
    plates = {f.dim for f in site["cond_indep_stack"] if f.vectorized}
    gaps = [i for i in range(n) if i - n not in plates and value.shape[i] == 1 and any(d < i - n for d in plates)]
    dims = _named(site, [i - n for i in range(n) if i not in gaps])
    return value.reshape([m for i, m in enumerate(value.shape) if i not in gaps]), dims


def whole_value(site: Mapping[str, Any]) -> Tensor:
    """A site's value with all its plates."""
    value: Tensor = site["value"]
    return value if is_deterministic(site) else value.expand(np.broadcast_shapes(value.shape, site["fn"].shape()))


def value_of(site: Mapping[str, Any]) -> tuple[Tensor, tuple[str, ...]]:
    """A site's value with all its plates, and the names of its dimensions outside of its event.

    Pyro calls all dimensions of a deterministic site event ones: its plates are the leading ones.
    """
    value = whole_value(site)
    if not is_deterministic(site):
        return laid_out(site, value, site["fn"].event_dim)
    nesting = max((-f.dim for f in site["cond_indep_stack"] if f.vectorized), default=0)
    return laid_out(site, value, max(value.dim() - nesting, 0))


def drawn_density(t: Traces, values: int = 1) -> str:
    """Which site's log-density is itself drawn, in words: evaluated anew at one value it differs. "" where none is.

    Args:
        values: how many log-densities of each site are evaluated anew; at least those that it has.
    """
    for name, site in itertools.chain(*(sample_sites(trace, factors=True, deterministic=False).items() for trace in t)):
        if site["infer"].get("drawn"):
            return f"the log-density of {name!r} is a sum over the times of a chain, some of which are drawn at random"
        first = site["fn"].log_prob(site["value"])
        for _ in range(max(values // max(first.numel(), 1), 1)):
            if off := _apart(first, site["fn"].log_prob(site["value"])):
                return (
                    f"the log_prob of {name!r} is drawn anew at each call (two at one value differ by {off:.2g} nats)"
                )
    return ""


def unnamed_noise(program: Runnable, data: Mapping[str, Any], p: poutine.Trace, calls: int = 1) -> tuple[str, bool]:
    """Which site of a model's trace has another log-density when the model is run again with the same latents, because
    it draws what is no site; and whether that site is a factor. "" where none has."""
    sites = sample_sites(p, factors=True, deterministic=False)
    latents = latents_of(p)
    for _ in range(calls):
        again = sample_sites(run(program, data, latents=latents).p, factors=True, deterministic=False)
        for name in sites.keys() & again.keys():
            one, two = (s["fn"].log_prob(s["value"]) for s in (sites[name], again[name]))
            if one.shape == two.shape and _apart(one, two):
                return name, is_factor(sites[name])
    return "", False


def _apart(one: Tensor, two: Tensor) -> float:
    """By how much two differ, 0 where that is rounding."""
    if torch.allclose(one, two, rtol=1e-5, atol=1e-5, equal_nan=True):
        return 0.0
    return float((one - two).abs().max())


def full_plates(site: Mapping[str, Any]) -> frozenset[str]:
    """The plates that hold what was passed; one that subsamples by itself has been weighed by Pyro."""
    return frozenset(f.name for f in site["cond_indep_stack"] if f.full_size in (None, f.size))


def stacked_terms(runs: Sequence[Sequence[Term]]) -> list[Term]:
    """The terms of S runs, S leading."""

    def lead(tensors: Sequence[Tensor]) -> Tensor:
        return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(list(tensors))

    def of_each(one: Sequence[Term], name: str) -> list[Tensor]:
        return [v for t in one if isinstance(v := getattr(t, name), Tensor)]

    found = []
    for one in zip(*runs, strict=True):
        t = one[0]
        log_prob = lead([u.log_prob for u in one])
        density = log_prob if t.log_density is t.log_prob else lead([u.log_density for u in one])
        others = {name: lead(v) for name in ("target", "scale", "counts") if (v := of_each(one, name))}
        value = lead([u.value for u in one])
        found.append(t._replace(value=value, log_prob=log_prob, log_density=density, **others))
    return found


# -- KL in closed form -----------------------------------------------------------------------------


def _kl_term(p: Mapping[str, Any], q: Mapping[str, Any], kl: Tensor, order: int) -> Term:
    log_prob = scale_and_mask(-kl, p["scale"], p["mask"])
    pathwise = _has_path(q)
    density = log_prob if pathwise else scale_and_mask(q["fn"].log_prob(q["value"]), 1.0, q["mask"])
    found = _labelled(p, "kl", log_prob, density, order, pathwise)
    if p["mask"] is None and isinstance(p["scale"], float) and p["scale"] == 1.0:
        return found
    return found._replace(counts=scale_and_mask(torch.ones_like(found.log_prob), p["scale"], p["mask"]))


def _kl(name: str, model: Mapping[str, dict], guide: Mapping[str, dict], alike: bool) -> Tensor | None:
    """KL(q(z_i | ·), p(z_i | ·)), None where it has no closed form, or where it would be wrong.

    With the parents drawn from q, E_q[log q(z_i | ·) − log p(z_i | ·)] = E_q KL holds only if p(z_i | ·) depends
    on nothing that q draws after z_i: every latent before z_i in the model comes before it in the guide.
    """
    q, p = guide[name], model.get(name)
    if p is None or p["is_observed"] or is_factor(q) or is_delta(q) or q["infer"].get("is_auxiliary"):
        return None
    order = list(guide)
    earlier = set(order[: order.index(name)])
    for other, node in model.items():
        if other == name:
            break
        if other not in earlier and other in guide and not node["is_observed"]:
            return None
    if not alike and (q["mask"] is not p["mask"] or not is_equal(q["scale"], p["scale"])):
        return None
    a, b = q["fn"], p["fn"]
    if a is b:
        return torch.zeros(a.batch_shape, dtype=torch.get_default_dtype())
    if a.batch_shape != b.batch_shape:  # some of torch's closed forms do not broadcast
        batch_shape = np.broadcast_shapes(a.batch_shape, b.batch_shape)
        a, b = a.expand(batch_shape), b.expand(batch_shape)
    try:
        return kl_divergence(a, b)
    except NotImplementedError:
        return None


def is_equal(a: Any, b: Any) -> bool:
    return a is b or not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b


# -- formulas on terms ------------------------------------------------------------------------------


def total(found: Sequence[Term], *, keep: frozenset[str] = frozenset()) -> Tensor:
    """Σ sign · log_prob over the terms of one draw, and over all dimensions but those named in `keep`."""
    return added([t.sign * sum_to(t, t.log_prob, keep) for t in found])


def added(parts: Sequence[Tensor]) -> Tensor:
    """The sum of tensors that broadcast."""
    return functools.reduce(operator.add, parts)


def sum_to(t: Term, value: Tensor, keep: frozenset[str], lead: int = 0) -> Tensor:
    """A tensor with the dimensions of the term's log_prob, summed over all but the first of `keep` that it has.

    Where `keep` is not empty and the term has none of it, a dimension of 1 stands in its place.

    Args:
        lead: 1 where the tensor is of many draws, whose dimension is kept as the first.
    """
    row = next((i for i, d in enumerate(t.dims) if d in keep), None)
    others = [lead + i for i in range(len(t.dims)) if i != row]
    value = value.sum(others) if others else value
    return value.unsqueeze(-1) if keep and row is None else value
