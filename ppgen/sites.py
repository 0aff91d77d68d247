"""Reading a Pyro trace: which nodes are sites, of what kind, and the distribution inside the wrappers."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from pyro import poutine
from pyro.distributions import Delta, Unit, constraints
from torch import Tensor
from torch.distributions import biject_to

import ppgen.distributions.corrected
import ppgen.distributions.gaussian_hmm  # noqa: F401 (both for every program)
from ppgen.errors import PpgenError


def sample_sites(
    trace: poutine.Trace, *, factors: bool = False, deterministic: bool = True
) -> dict[str, dict[str, Any]]:
    """The sample sites of a trace by name, in order; a plate's own draw of a subsample is none."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and type(site["fn"]).__name__ != "_Subsample"
        and (factors or not is_factor(site))
        and (deterministic or not is_deterministic(site))
    }


def is_same(a: Tensor, b: Tensor) -> bool:
    """Whether they are one tensor, or a view of all of it."""
    return a.shape == b.shape and a.data_ptr() == b.data_ptr()


def observed_columns(sites: Mapping[str, Mapping[str, Any]], data: Mapping[str, Any]) -> dict[str, str]:
    """The column that each observed site observes, by site: the tensor itself, or one of the same values."""
    found: dict[str, str] = {}
    for name, site in sites.items():
        if site["is_observed"] and not is_deterministic(site):
            value = given_value(site)
            tensors = {k: v for k, v in data.items() if isinstance(v, Tensor)}
            same = [k for k, v in tensors.items() if is_same(v, value)]
            alike = [k for k, v in tensors.items() if v.shape == value.shape and bool((v == value).all())]
            found |= {name: (same or alike)[0]} if same or alike else {}
    return found


def seen_in(sites: Mapping[str, Mapping[str, Any]], column: Tensor) -> list[str]:
    """The sites that observe a column or a part of it: rows one by one, in a loop."""
    return [
        name
        for name, site in sites.items()
        if site["is_observed"] and not is_deterministic(site) and _is_part(given_value(site), column)
    ]


def is_event(site: Mapping[str, Any], data: Mapping[str, Any]) -> bool:
    """Whether an observed site stands for an event and not for records: a discrete site of one value everywhere that no
    column gives, as of the ones trick, a Bernoulli of a survival probability at `obs=torch.ones(n)`."""
    value, support = given_value(site), support_of(site["fn"])
    if support is None or not support.is_discrete or not isinstance(value, Tensor) or not value.numel():
        return False
    columns = [v for v in data.values() if isinstance(v, Tensor)]
    known = observed_columns({"": site}, data) or any(_is_part(value, v) for v in columns)
    return bool((value == value.reshape(-1)[0]).all()) and not known


def _is_part(value: Any, column: Tensor) -> bool:
    """Whether a value is a view into a column, or equal to one of its rows."""
    if not isinstance(value, Tensor) or value.numel() > column.numel():
        return False
    if value.untyped_storage().data_ptr() == column.untyped_storage().data_ptr():
        return True
    if column.dim() == 0 or value.shape != column.shape[1:]:
        return False
    return bool((column == value).reshape(len(column), -1).all(1).any())


def is_selected(name: str, sites: Mapping[str, Mapping[str, Any]], data: Mapping[str, Any]) -> bool:
    """Whether an observed site has but the values that others leave it, so that its draws are of more than these.

    As of times of which the censored ones are a factor, or an event, under the opposite mask or in a plate of theirs.

    Args:
        sites: of a run, by name, factors too.
    """
    own = _plates(sites[name])
    of_latents = {p for s in sites.values() if not s["is_observed"] for p in _plates(s)}
    for other, site in sites.items():
        if other == name or not site["is_observed"] or not (is_factor(site) or is_event(site, data)):
            continue
        shared = own & _plates(site)
        masks = [(rows_seen(sites[name], p), rows_seen(site, p)) for p in shared]
        if any(a is not None and b is not None and bool(b.any()) and not bool((a & b).any()) for a, b in masks):
            return True
        if own and not shared and _plates(site) - of_latents:
            return True
    return False


def _plates(site: Mapping[str, Any]) -> set[str]:
    return {f.name for f in site["cond_indep_stack"] if f.vectorized}


def plate_dim(site: Mapping[str, Any], plates: Collection[str]) -> int | None:
    """The dimension of the first of these plates, from the right of a site's batch; None where it stands in none."""
    return next((f.dim for f in site["cond_indep_stack"] if f.vectorized and f.name in plates), None)


def innermost(fn: Any) -> Any:
    """The distribution within Independent, Masked, Transformed and other wrappers.

    >>> from pyro.distributions import Normal
    >>> innermost(Normal(0.0, 1.0).expand([3]).to_event(1))
    Normal(loc: torch.Size([3]), scale: torch.Size([3]))
    """
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn


def rows_seen(site: Mapping[str, Any], plate: str) -> Tensor | None:
    """Of each row of a plate, whether some value of the site counts; None where no mask says otherwise."""
    masked, dim = masked_values(site), plate_dim(site, (plate,))
    if masked is None or dim is None:
        return None
    return (~masked).movedim(dim, 0).flatten(1).any(1) if masked.dim() > 1 else ~masked


def masked_values(site: Mapping[str, Any]) -> Tensor | None:
    """Which values, of the site's batch shape, count for nothing; None where no mask says of any."""
    masks = masks_of(site)
    if not masks:
        return None
    seen = masks[0].bool().expand(site["fn"].batch_shape)
    for mask in masks[1:]:
        seen = seen & mask.bool()
    return ~seen


def masks_of(site: Mapping[str, Any]) -> list[Tensor]:
    """The masks of a site: that of handlers, and those of its distribution."""
    return ([site["mask"]] if isinstance(site["mask"], Tensor) else []) + _masks(site["fn"])


def _masks(fn: Any) -> list[Tensor]:
    """Those of `MaskedDistribution`s within a distribution; of one within an event, whether any of it counts."""
    found, event = [], 0
    while hasattr(fn, "base_dist"):
        if isinstance(mask := getattr(fn, "_mask", None), Tensor):
            mask = mask.bool().expand(fn.batch_shape)
            found.append(mask.flatten(mask.dim() - event).any(-1) if event else mask)
        event += getattr(fn, "reinterpreted_batch_ndims", 0)
        fn = fn.base_dist
    return found


def scaled_site(sites: Mapping[str, Mapping[str, Any]]) -> str:
    """The first site whose log-probability a `poutine.scale` multiplies; "" where none does. Of a run with whole
    plates: those that subsample weigh their sites as well."""
    for name, site in sites.items():
        scale = site["scale"]
        if not is_deterministic(site) and bool((scale != 1).any() if isinstance(scale, Tensor) else scale != 1):
            return name
    return ""


def support_of(fn: Any) -> Any:
    """The support of a distribution, None where it does not tell (a Rejector, a GaussianScaleMixture)."""
    try:
        return fn.support
    except NotImplementedError:
        return None


def require_bijection(name: str, fn: Any) -> None:
    """Refuses a continuous latent whose support has no bijection from the reals, or does not tell it."""
    support = support_of(fn)
    what = f"does not tell its support (it is a {type(fn).__name__})" if support is None else ""
    try:
        biject_to(support or constraints.real)
    except NotImplementedError as e:
        why = "" if "Cannot transform" in str(e) else f": {e}"
        what = f"has the support {support}, to which no bijection from the reals is known{why}"
    if what:
        sphere = (
            "poutine.reparam with ProjectedNormalReparam" if support is constraints.sphere else "another distribution"
        )
        raise PpgenError(
            f"the latent {name!r} {what}, and so no place in an unconstrained vector, as chains and guides by name "
            f"need; give it {sphere}, or fit the program with a guide that draws it"
        )


def stem(name: str) -> str:
    """What the sites of a loop have in common, as `pyro.sample(f"y_{t}", ...)` names them.

    >>> stem("y_12")
    'y_#'
    """
    return re.sub(r"\d+", "#", name)


def is_factor(site: Mapping[str, Any]) -> bool:
    """Whether a site is a `pyro.factor` statement: it adds to the log joint and has no value."""
    return isinstance(innermost(site["fn"]), Unit)


def is_deterministic(site: Mapping[str, Any]) -> bool:
    """Whether a site is a `pyro.deterministic` statement: it records a value and adds nothing."""
    return bool(site["infer"].get("_deterministic"))


def given_value(site: Mapping[str, Any]) -> Any:
    """What an observed site was given, before booleans became numbers."""
    return site.get("given", site["value"])


def is_delta(site: Mapping[str, Any]) -> bool:
    """Whether a site is a point mass, as autoguides write the constrained value of each latent."""
    return isinstance(innermost(site["fn"]), Delta)
