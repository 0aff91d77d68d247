r"""Discrete latents summed out exactly, and drawn from their conditional: a producer of terms.

    log Σ_d p(x, d, z)  by tensor contraction within the plates;      d ~ p(d | x, z)  by forward filtering, backward
                                                                       sampling

at the continuous latents z of one draw. What touches a summed-out site becomes one term a connected component, whose
dimensions are the plates that the component stands in: by row, where the latent is local to a row.

Source: Tensor Variable Elimination for Plated Factor Graphs (Obermeyer et al. 2019, arXiv:1902.03210).
Pyro's contraction is used through its `BackwardSampleMessenger` and private `_compute_model_factors`, here only.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any
from unittest import mock

import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.traceenum_elbo import BackwardSampleMessenger, _compute_model_factors
from pyro.ops import special
from pyro.ops.contract import contract_tensor_tree
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from ppgen.errors import PpgenError
from ppgen.handlers import Unmask
from ppgen.sites import sample_sites
from ppgen.terms import Runnable, Term, Traces, full_plates, guide_run, holding, partly_masked, term


def summed_terms(
    program: Runnable,
    data: Mapping[str, Any],
    nesting: int,
    *,
    guide: bool = True,
    latents: Mapping[str, Tensor] | None = None,
    q: poutine.Trace | None = None,
) -> list[Term]:
    """The terms of one run with the discrete latents that the guide leaves out summed out.

    A term of the role "summed" is named by the observed sites in it.

    Args:
        nesting: how many batch dimensions the program's plates take.
        guide, latents, q: as for `ppgen.terms.run`.
    """
    t = _enumerated_run(program, data, nesting, guide=guide, latents=latents, q=q)
    with mock.patch.object(special, "_SafeLog", _Log):
        for trace in (t.p, t.q):
            trace.compute_log_prob()
        try:
            t.p.pack_tensors()
            t.q.pack_tensors(t.p.plate_to_symbol)
        except ValueError as e:
            named = re.search(r"at site '(.*?)'", str(e))
            raise PpgenError(
                f"{program.name} cannot sum its discrete latents out: the site {named[1] if named else '?'!r} has a "
                "dimension that stands in no plate once a latent has one of its own; let the latent broadcast from the "
                "left, as in x < tau and not x < tau[..., None]"
            ) from e
        _in_one_dtype(t)
        _, factors, _, dims, scale = _compute_model_factors(t.p, t.q)
        contracted = {f for fs in factors.values() for f in map(id, fs)}
        summed = contract_tensor_tree(factors, dims)
    guides = sample_sites(t.q, factors=True, deterministic=False)
    order = {n: i for i, n in enumerate(guides)}
    found: list[Term] = []
    observed: list[str] = []
    inside: frozenset[str] = frozenset()
    for name, site in sample_sites(t.p, factors=True, deterministic=False).items():
        if contracted & {id(site["packed"].get(k)) for k in ("unscaled_log_prob", "masked_log_prob")}:
            inside |= full_plates(site)
            observed += [name] if site["is_observed"] else []
        else:
            found.append(term(site, order=order.get(name, -1)))
    plates = {symbol: name for name, symbol in t.p.plate_to_symbol.items()}
    for value in (v for values in summed.values() for v in values):
        names = tuple(plates[d] for d in value._pyro_dims)
        found.append(Term("+".join(observed), "summed", value, value * scale, value, names, frozenset(names) & inside))
    return found + [term(s, "guide", order[n]) for n, s in guides.items()]


def _enumerated_run(
    program: Runnable,
    data: Mapping[str, Any],
    nesting: int,
    *,
    guide: bool,
    latents: Mapping[str, Tensor] | None,
    q: poutine.Trace | None,
) -> Traces:
    """One run in which every discrete latent that is not drawn takes all of its values, in dimensions of its own."""
    # Within replay, so that values that are held are seen to depend on what is enumerated, as in Pyro's TraceEnum_ELBO.
    enumerate_all = poutine.enum(first_available_dim=-1 - nesting)
    model = enumerate_all(config_enumerate(Unmask()(lambda: program.call("model", data)), default="parallel"))
    if latents is None and guide:
        q = guide_run(program, data) if q is None else q
        model = poutine.replay(model, trace=q)
    else:
        q = poutine.Trace()
        model = holding(latents or {})(model)
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
    t = _enumerated_run(program, data, nesting, guide=False, latents=latents, q=None)
    with mock.patch.object(special, "_SafeLog", _Log):
        t.p.compute_log_prob()
        t.p.pack_tensors()
        _in_one_dtype(t)
        # Site after site, each from its conditional given those before.
        with BackwardSampleMessenger(t.p, t.q), poutine.trace() as tracer:
            holding(latents)(Unmask()(lambda: program.call("model", data)))()
    sites = sample_sites(tracer.trace)
    return {n: sites[n]["value"].expand(sites[n]["fn"].shape()) for n in names}


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
