"""Reading a Pyro trace: which nodes are sites, of what kind, and the distribution inside the wrappers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyro import poutine
from pyro.distributions import Delta, Unit


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


def innermost(fn: Any) -> Any:
    """The distribution within Independent, Masked, Transformed and other wrappers.

    >>> from pyro.distributions import Normal
    >>> innermost(Normal(0.0, 1.0).expand([3]).to_event(1))
    Normal(loc: torch.Size([3]), scale: torch.Size([3]))
    """
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn


def support_of(fn: Any) -> Any:
    """The support of a distribution, None where it does not tell (a Rejector, a GaussianScaleMixture)."""
    try:
        return fn.support
    except NotImplementedError:
        return None


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
