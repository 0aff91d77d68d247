"""Whether model, guide and data agree: the same sites, plates, shapes and supports."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.distributions.hmm import HiddenMarkovModel
from torch import Tensor
from torch.distributions import TransformedDistribution, constraints

from ppgen.distributions import Flat
from ppgen.errors import PpgenError, nearest, object_to
from ppgen.sites import innermost, is_delta, is_deterministic, is_factor, sample_sites, support_of
from ppgen.terms import Traces

log = logging.getLogger("ppgen")


def _sites(trace: poutine.Trace) -> dict[str, dict]:
    return sample_sites(trace, factors=True)


NOTHING = (
    "the model has no observed site and no factor",
    "a likelihood is pyro.sample(name, distribution, obs=column), and that column is to be passed",
)


def sites_match(t: Traces, enumerated: tuple[str, ...]) -> None:
    model, guide = _sites(t.p), _sites(t.q)
    observed = any(s["is_observed"] and not is_deterministic(s) for s in model.values())
    if not observed:
        log.warning("%s, and the guide is fitted to its prior; %s", *NOTHING)
    latent = [n for n, s in model.items() if not s["is_observed"]]
    for name in latent:
        if name in guide or name in enumerated:
            continue
        if not observed:
            raise PpgenError(f"{NOTHING[0]}, and the guide no site {name!r}; {NOTHING[1]}, or sample it in the guide")
        site = model[name]
        if site["fn"].has_enumerate_support and site["fn"].support.is_discrete:
            raise PpgenError(
                f"the discrete latent {name!r} ({type(site['fn']).__name__}) has no site in the guide; sum it out with "
                "objective='enumerate' (--objective enumerate), or write a guide that samples it"
            )
        raise PpgenError(
            f"the guide has no site {name!r}, which is a latent of the model{nearest(name, guide)}; sample it in the "
            "guide, observe it in the model, or ask for an autoguide with guide='AutoNormal' (--guide AutoNormal)"
        )
    for name, site in guide.items():
        if site["is_observed"]:
            continue  # a term of the loss, such as a classifier's
        if name in model and model[name]["is_observed"]:
            raise PpgenError(f"the guide samples {name!r}, which the model observes; take it out of the guide")
        if name not in model and not site["infer"].get("is_auxiliary"):
            raise PpgenError(
                f"the guide has the site {name!r}, which the model lacks{nearest(name, model)}; add it to the model, "
                "remove it, "
                'or, if latents are a function of it, mark it with infer={"is_auxiliary": True}'
            )


def observed_fit(p: poutine.Trace, n: int, rows: int, counted_once: bool = True) -> None:
    """
    Args:
        n, rows: of all rows, and of the batch.
        counted_once: whether values that are more than their distribution need plates that say so.
    """
    for name, site in _sites(p).items():
        if not site["is_observed"] or is_factor(site):
            continue
        found, fn = tuple(site["value"].shape), site["fn"]
        expected = tuple(fn.batch_shape) + tuple(fn.event_shape)
        times = -len(fn.event_shape)
        if _of_any_length(fn) and len(found) >= -times:
            expected = expected[:times] + (found[times],) + expected[times:][1:]
        if _grows(site, found, expected):
            continue
        together = _broadcast(found, expected)
        if together == found != expected and not counted_once:
            continue
        if together != expected:
            fixed = [f for f in site["cond_indep_stack"] if f.size == n != rows]
            if fixed:
                raise PpgenError(
                    f"the plate {fixed[0].name!r} has {n} rows whatever the batch, and the batch has {rows}; take its "
                    f"size from the column that is passed, as in pyro.plate({fixed[0].name!r}, len(x))"
                )
            raise PpgenError(
                f"the observed site {name!r} is given values of shape {found}, and its distribution has the shape "
                f"{expected} (batch {tuple(fn.batch_shape)}, event {tuple(fn.event_shape)}); make the two "
                f"agree{_sizes_hint(site, found)}"
            )
        _not_repeated(name, site, found, expected)


def _of_any_length(fn: Any) -> bool:
    """Whether a distribution is of chains of any length, the first dimension of whose event is then 1."""
    inner = innermost(fn)
    return isinstance(inner, HiddenMarkovModel) and inner.duration is None and tuple(fn.event_shape)[:1] == (1,)


def _grows(site: dict, found: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Whether the values are larger along plates without a size only, which take that of the values."""
    events = len(site["fn"].event_shape)
    free = {f.dim - events for f in site["cond_indep_stack"] if f.vectorized and f.size < 0}
    if not free or len(found) < len(expected):
        return False
    wide = dict(zip(range(-len(expected), 0), expected, strict=True))
    return all(m == wide.get(i, 1) or i in free for i, m in zip(range(-len(found), 0), found, strict=True))


def _not_repeated(name: str, site: dict, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Observed values that broadcasting repeats along a dimension that is no plate's would be counted many times."""
    plates = {f.dim for f in site["cond_indep_stack"] if f.vectorized}
    events = len(site["fn"].event_shape)
    for i in range(1, len(expected) + 1):
        own = found[-i] if i <= len(found) else 1
        if own != expected[-i] and (i <= events or events - i not in plates):
            raise PpgenError(
                f"the observed site {name!r} is given values of shape {found}, which its distribution of shape "
                f"{expected} repeats along a dimension that no plate stands for, so that each is counted "
                f"{expected[-i]} times; give parameters and values one shape, as with x[:, 0] for a column (N, 1)"
            )


def _sizes_hint(site: dict, found: tuple[int, ...]) -> str:
    for frame in site["cond_indep_stack"]:
        if frame.vectorized and frame.size not in (1, *found):
            return f": the plate {frame.name!r} has size {frame.size}"
    return ""


def _broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...] | None:
    try:
        return np.broadcast_shapes(a, b)
    except ValueError:
        return None


UNSIZED = -1  # of a pyro.plate without a size: as many as what stands in it


def plates_fit(t: Traces) -> None:
    model, guide = _sites(t.p), _sites(t.q)
    for trace, part in ((t.q, "guide"), (t.p, "model")):
        for name, site in _sites(trace).items():
            _site_in_plates(name, site, part)
    for name in model.keys() & guide.keys():
        p, q = model[name], guide[name]
        if p["is_observed"]:
            continue
        frames_p, frames_q = plates_of(p), plates_of(q)
        sizes_q = {name: size for name, size in frames_q}
        for plate, size in frames_p:
            if plate not in sizes_q:
                if sizes_q and size in sizes_q.values():
                    continue  # the same plate under another name
                raise PpgenError(
                    f"the latent {name!r} stands in the plate {plate!r} of size {size} in the model, and the guide "
                    "forgot that plate "
                    f"(its plates: {', '.join(sizes_q) or 'none'}); sample it within the same plate in the guide"
                )
            if sizes_q[plate] not in (size, UNSIZED) and not subsampled(q, plate):
                raise PpgenError(
                    f"the plate {plate!r} around the latent {name!r} has size {size} in the model and {sizes_q[plate]} "
                    "in the guide; give both the same size"
                )
        p_shape = tuple(p["fn"].batch_shape) + tuple(p["fn"].event_shape)
        q_shape = tuple(q["value"].shape)
        if any(subsampled(q, plate) for plate, _ in frames_p):  # the model will take the guide's subsample
            continue
        if _broadcast(p_shape, q_shape) != p_shape or len(q["fn"].event_shape) != len(p["fn"].event_shape):
            raise PpgenError(
                f"the latent {name!r} has batch shape {tuple(p['fn'].batch_shape)} and event shape "
                f"{tuple(p['fn'].event_shape)} in the model, and {tuple(q['fn'].batch_shape)} and "
                f"{tuple(q['fn'].event_shape)} in the guide; make them equal, for example with .to_event(1)"
            )


def subsampled(site: dict, plate: str) -> bool:
    """Whether a plate around a site holds a part of what it stands for."""
    return any(f.name == plate and f.full_size not in (None, f.size) for f in site["cond_indep_stack"])


def plates_of(site: dict) -> list[tuple[str, int]]:
    return [(f.name, f.size) for f in site["cond_indep_stack"] if f.vectorized]


def _site_in_plates(name: str, site: dict, part: str) -> None:
    if is_factor(site):
        return
    dims = {f.dim: f for f in site["cond_indep_stack"] if f.vectorized}
    batch = tuple(site["fn"].batch_shape)
    for dim, frame in dims.items():
        if -dim <= len(batch) and frame.size >= 0 and batch[dim] not in (1, frame.size):
            raise PpgenError(
                f"the site {name!r} of the {part} has batch shape {batch}, and the plate {frame.name!r} around it has "
                f"size {frame.size} at dimension {dim}; make the two agree"
            )


def shape_table(trace: poutine.Trace) -> str:
    return ", ".join(
        f"{n} {tuple(s['fn'].batch_shape)}|{tuple(s['fn'].event_shape)}"
        for n, s in _sites(trace).items()
        if not is_factor(s)
    )


def supports_match(t: Traces, unvalidated: Callable[[str], bool], impossible: Callable[..., bool]) -> None:
    """
    Args:
        unvalidated: whether values of the observed site of that name are not to be validated.
        impossible: whether the model has no density at values of a latent beyond two ends.
    """
    guide = _sites(t.q)
    for name, site in guide.items():
        if isinstance(innermost(site["fn"]), Flat) and not site["is_observed"]:
            raise PpgenError(
                f"the guide draws {name!r} from a flat density (ImproperUniform or Flat), which is no distribution; "
                "give it one in the guide, such as Normal or TransformedDistribution"
            )
    for name, site in _sites(t.p).items():
        if is_factor(site) or is_deterministic(site):
            continue
        if site["is_observed"]:
            observed_in_support(name, site, unvalidated)
        elif name in guide and _flat_where_masked(site, guide[name]):
            log.warning(
                "the latent %r is masked in the model and not in the guide, so that its prior is flat where the mask "
                "is False and the ELBO grows without limit; mask it in both, or in neither", name,
            )  # fmt: skip
        elif name in guide and not is_delta(guide[name]):
            _covers(name, support_of(site["fn"]), guide[name], impossible)


def _maps_into(q: dict, support: Any) -> bool:
    """Whether a transformed distribution draws within a support that it does not claim: torch knows the last map's."""
    fn = q["fn"]
    while hasattr(fn, "base_dist") and not isinstance(fn, TransformedDistribution):
        fn = fn.base_dist
    return isinstance(fn, TransformedDistribution) and bool(support.check(q["value"]).all())


def _flat_where_masked(p: dict, q: dict) -> bool:
    return isinstance(p["mask"], Tensor) and not bool(p["mask"].all()) and q["mask"] is None


def observed_in_support(name: str, site: dict, unvalidated: Callable[[str], bool] = lambda name: False) -> None:
    fn, value = site["fn"], site.get("filled", site["value"])
    if type(innermost(fn)).__name__.startswith("NanMasked"):  # NaN is how these write what is missing
        return
    try:
        ok = fn.support.check(value)
    except NotImplementedError:
        return
    if isinstance(site["mask"], Tensor):
        ok = ok | ~site["mask"].expand(ok.shape)
    if bool(ok.all()):
        return
    base = innermost(fn)
    inner = _unwrap(fn.support)
    try:
        bad = value[~inner.check(value)].reshape(-1)
    except (IndexError, RuntimeError):
        bad = value.reshape(-1)
    example = f"{bad[0].item():.6g}" if bad.numel() else "some value"
    remedy = "choose a likelihood for such values, or transform the data"
    if type(base).__name__ == "Bernoulli" and bool(((value >= 0) & (value <= 1)).all()):
        remedy = (
            "grey values are no outcomes of a Bernoulli: binarise them (x > 0.5), or take a likelihood for grey values "
            "(for the VAE: --set likelihood=logistic or normal)"
        )
    sentence = (
        f"the observed site {name!r} ({type(base).__name__}) has the support {_describe(fn.support)}, and the data "
        f"have {example} ({bad.numel()} such values in this batch)"
    )
    if unvalidated(name):
        if bool(bad.isnan().all()) and bool(fn.log_prob(value).isfinite().all()):
            return  # missing values, which it leaves out
        log.warning("%s, and its validation is switched off: what is called log p(x) is none", sentence)
    else:
        object_to(f"{sentence}; {remedy}")


def _unwrap(c: Any) -> Any:
    while isinstance(c, constraints.independent):
        c = c.base_constraint
    return c


def _describe(c: Any) -> str:
    c = _unwrap(c)
    bounds = _bounds(c)
    if bounds is not None and not c.is_discrete:
        lower, upper = (float((b.min() if i == 0 else b.max()).detach()) for i, b in enumerate(bounds))
        return f"({lower:g}, {upper:g})"
    if bounds is not None and str(c) != "Boolean()" and torch.isfinite(bounds[0]).all():
        first, last = float(bounds[0].min()), float(bounds[1].max())
        return f"{{{first:g}, {first + 1:g}, ...}}" if last == math.inf else f"{{{first:g}, ..., {last:g}}}"
    return str(c).removesuffix("()").split(".")[-1].lstrip("_").lower().replace("boolean", "{0, 1}")


def _bounds(c: Any) -> tuple[Tensor, Tensor] | None:
    """Lower and upper end of a one-dimensional support, None for others."""
    c = _unwrap(c)
    if c is constraints.real or str(c) == "Real()":
        return torch.tensor(-math.inf), torch.tensor(math.inf)
    if str(c) == "Boolean()":
        return torch.tensor(0.0), torch.tensor(1.0)
    if not (hasattr(c, "lower_bound") or hasattr(c, "upper_bound")):
        return None
    return (
        torch.as_tensor(getattr(c, "lower_bound", -math.inf), dtype=torch.float64),
        torch.as_tensor(getattr(c, "upper_bound", math.inf), dtype=torch.float64),
    )


def _covers(name: str, p: Any, site: dict, impossible: Callable[..., bool]) -> None:
    """The guide's support must be the model's.

    Narrower, unless the likelihood is 0 beyond, the ELBO and the importance-weighted bounds stay below
    log ∫ p(x, z) over the guide's support, and so never reach log p(x); wider, the ELBO is minus infinity.
    """
    q = support_of(site["fn"])
    if p is None or q is None:
        return
    a, b = _bounds(p), _bounds(q)
    said = f"the latent {name!r} has the support {_describe(p)} in the model and {_describe(q)} in the guide"
    if bool(p.is_discrete) != bool(q.is_discrete):
        raise PpgenError(f"{said}, one discrete and one continuous; take a guide distribution of the model's kind")
    if a is None or b is None:
        return
    eps = 1e-6
    narrower = bool((b[0] > a[0] + eps).any()) or bool((b[1] < a[1] - eps).any())
    if narrower and not impossible(name, *b):
        raise PpgenError(
            f"{said}, which is narrower, so that no bound could reach log p(x); take a guide distribution that covers "
            "it, for example by transforming a Normal"
        )
    if (bool((b[0] < a[0] - eps).any()) or bool((b[1] > a[1] + eps).any())) and not _maps_into(site, p):
        log.warning(
            "%s, so that the guide draws values that the model cannot have: where it does, log p(x, z) is minus "
            "infinity or no number, and the step is left out; take a guide distribution on that support, for example a "
            "LogNormal for a positive latent", said,
        )  # fmt: skip
